"""The positions of a book: polled, or asked for where an answer needs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import anyio

from mdservice.clock import Clock
from mdservice.errors import PositionsUnavailable
from mdservice.positions.polled import PolledPositions

__all__ = ["PATIENCE_S", "HeldPositions"]

PATIENCE_S: Final = 5.0
"""How long an answer waits for the source; then it tells what is known."""
_LEAST_POLL_S: Final = 1.0


class HeldPositions:
    """Asks when it is due, one at a time.

    Args:
        polled: The positions.
        interval_s: How often they are asked for, seconds; 0 for each answer anew.
        changed: Told of new ones.
        clock: The time.
    """

    def __init__(
        self,
        polled: PolledPositions,
        interval_s: float,
        changed: Callable[[PolledPositions], None],
        clock: Clock,
    ) -> None:
        self.polled = polled
        self._interval_s = interval_s
        self._changed = changed
        self._clock = clock
        self._asking = anyio.Lock()
        self._asked_s: float | None = None
        self._overdue = False
        """Whether an answer has waited for the source in vain, since it answered last."""

    def warning(self) -> str | None:
        """Why they may be out of date, or None."""
        if self.polled.last_error is not None:
            return self.polled.last_error
        if self._overdue:
            return f"{self.polled.address} does not answer within {PATIENCE_S:g} s"
        return None

    async def current(self, *, polling: bool) -> PolledPositions:
        """The positions, once there are any.

        Args:
            polling: Whether :meth:`poll` runs beside.

        Raises:
            PositionsUnavailable: The source has not answered yet, or refused.
        """
        if not self._is_known(polling=polling):
            with anyio.move_on_after(PATIENCE_S) as limit:
                async with self._asking:
                    if not self._is_known(polling=polling):
                        await self._ask()
            self._overdue = self._overdue or limit.cancelled_caught
        if not self.polled.answers:
            reason = self.warning() or f"{self.polled.address} has not answered yet"
            raise PositionsUnavailable(f"the positions are not known: {reason}")
        return self.polled

    async def poll(self) -> None:
        """Ask now and then, until cancelled."""
        while True:
            async with self._asking:
                await self._ask()
            await anyio.sleep(self._interval_s or _LEAST_POLL_S)

    def _is_known(self, *, polling: bool) -> bool:
        """Whether an answer need not wait for the source."""
        if self._asked_s is None:
            return False
        if polling and self.polled.answers:
            # Who was in vain waited for is left to the polling.
            return self._interval_s > 0 or self._overdue
        return self._clock.monotonic() < self._asked_s + self._interval_s

    async def _ask(self) -> None:
        await self.polled.refresh()
        self._asked_s = self._clock.monotonic()
        self._overdue = False
        self._changed(self.polled)
