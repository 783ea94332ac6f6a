"""The actor that has the feed follow the symbols of all open positions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import anyio
import attrs
from anyio.abc import TaskStatus

from mdservice.actors.actor import Depth
from mdservice.actors.heartbeat import Heartbeat
from mdservice.clock import Clock
from mdservice.errors import SubscriptionRefused
from mdservice.logs import get_logger
from mdservice.model.position import Position
from mdservice.positions.held import HeldSymbols
from mdservice.positions.polled import PolledPositions

__all__ = ["SOURCE", "PositionTracker", "TrackerSnapshot"]

_log = get_logger(__name__)

SOURCE: Final = "positions"
"""On whose behalf the symbols are followed, as ``/subscriptions`` shows it."""


@attrs.frozen
class TrackerSnapshot:
    """What is held and followed.

    Attributes:
        source: Where the positions come from, without any secret.
        positions: As last told.
        followed: The symbols to follow, the most important first.
        age_s: Seconds since they were last told; None before the first answer.
        last_error: Why the last try failed, or None; then ``positions`` may be out of date.
    """

    source: str
    positions: Sequence[Position]
    followed: Sequence[str]
    age_s: float | None
    last_error: str | None


class PositionTracker:
    """Asks for the positions now and then, and has their symbols followed, the largest first.

    What settings or the API ask for is never touched: the feed counts who wants a symbol. A
    source that fails changes nothing; what was known is followed on.

    Args:
        polled: The positions.
        follow: Has the feed follow exactly these symbols on behalf of positions, the first ones
            rather than the others where it does not give all. May raise SubscriptionRefused.
        interval_s: Between two looks, seconds.
        clock: The time.
    """

    name = "position_tracker"
    depth = Depth(0, 0)

    def __init__(
        self,
        polled: PolledPositions,
        follow: Callable[[tuple[str, ...]], Awaitable[None]],
        interval_s: float,
        clock: Clock,
    ) -> None:
        self.heartbeat = Heartbeat(clock)
        self._polled = polled
        self._have_followed = follow
        self._interval_s = interval_s
        self._clock = clock
        self._held = HeldSymbols()
        self._followed: tuple[str, ...] = ()

    def snapshot(self) -> TrackerSnapshot:
        """The tracker now."""
        return TrackerSnapshot(
            source=self._polled.address,
            positions=self._polled.positions,
            followed=self._followed,
            age_s=self._polled.age_s(),
            last_error=self._polled.last_error,
        )

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Look until cancelled."""
        task_status.started()
        self.heartbeat.rest()  # it waits for its source, and each of its requests has a limit
        while True:
            await self._polled.refresh()
            await self._follow(self._held.update(self._polled.positions, self._clock.monotonic()))
            await anyio.sleep(self._interval_s)

    async def _follow(self, symbols: tuple[str, ...]) -> None:
        if symbols == self._followed:
            return
        try:
            await self._have_followed(symbols)
        except SubscriptionRefused as exc:  # the book has them: the next connection asks again
            _log.warning("positions_are_not_followed", reason=str(exc))
        before, self._followed = self._followed, symbols
        _log.info(
            "positions_followed",
            symbols=len(symbols),
            opened=sorted(set(symbols) - set(before))[:50],
            closed=sorted(set(before) - set(symbols))[:50],
        )
