"""A source of positions without a server: a test sets its positions and its failures."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import anyio
import anyio.lowlevel

from mdservice.errors import PositionsUnavailable
from mdservice.model.position import Position
from mdservice.positions import sources

__all__ = ["FakePositions"]


class FakePositions:
    """A :class:`~mdservice.positions.sources.PositionSource` in this process.

    Passes the same contract suite as the real ones.

    Args:
        positions: Its first positions.

    Attributes:
        address: Its address in the status.
        positions: Its positions; may be set at any time.
        delay_s: How long every answer takes.
        script: Errors for the next fetches; each fetch takes one, None lets it succeed.
        always: The error of every fetch once the script is empty, or None.
        fetches: The times of the last 10,000 fetches, by the event loop's clock.
        closed: How often it was closed.
    """

    def __init__(self, positions: Iterable[Position] = ()) -> None:
        self.address = "fake positions"
        self.positions: tuple[Position, ...] = tuple(positions)
        self.delay_s = 0.0
        self.script: deque[Exception | None] = deque()
        self.always: Exception | None = None
        self.fetches: deque[float] = deque(maxlen=10_000)
        self.closed = 0
        self._stalled = False

    # As the caller sees it.

    async def fetch(self) -> list[Position]:
        """See :meth:`mdservice.positions.sources.PositionSource.fetch`."""
        self.fetches.append(anyio.current_time())
        await anyio.lowlevel.checkpoint()
        limit_s = sources.FETCH_LIMIT_S
        with anyio.move_on_after(limit_s) as waiting:
            await (anyio.sleep_forever() if self._stalled else anyio.sleep(self.delay_s))
        if waiting.cancelled_caught:
            raise PositionsUnavailable(f"{self.address} do not answer within {limit_s:g} s")
        outcome = self.script.popleft() if self.script else self.always
        if outcome is not None:
            raise outcome
        return list(self.positions)

    async def aclose(self) -> None:
        """See :meth:`mdservice.positions.sources.PositionSource.aclose`."""
        self.closed += 1
        await anyio.lowlevel.checkpoint()

    # As the test sees it.

    def set(self, *positions: Position) -> None:
        """Replace its positions by these."""
        self.positions = positions

    def fail(self, error: Exception, times: int = 1) -> None:
        """Let the next fetches fail with this error."""
        self.script.extend([error] * times)

    def stall(self) -> None:
        """Stop answering; a fetch then ends at its time limit."""
        self._stalled = True

    def resume(self) -> None:
        """Answer again, from the next fetch on."""
        self._stalled = False
