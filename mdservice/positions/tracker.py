"""The actor that makes the feed subscribe to the symbols of all open positions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from decimal import Decimal
from typing import Final

import anyio
import attrs
from anyio.abc import TaskStatus

from mdservice.clock import Clock
from mdservice.errors import SubscriptionRefused
from mdservice.model.position import Position
from mdservice.observability.logging import get_logger
from mdservice.positions.cache import PositionCache
from mdservice.runtime.actor import Depth, Heartbeat

__all__ = ["GRACE_S", "SOURCE", "HeldSymbols", "PositionTracker", "TrackerSnapshot"]

_log = get_logger(__name__)

GRACE_S = 30.0
"""How long a symbol stays followed after its position was closed, since it may be reopened."""

_LEAST_S: Final = 1.0
"""How often to fetch where the interval is 0."""

SOURCE: Final = "positions"
"""The source of these subscriptions, as ``/subscriptions`` shows it."""


class PositionTracker:
    """Fetches the positions regularly and subscribes to their symbols, the largest first.

    It subscribes to the symbol of a fill at once, without waiting for the next fetch.

    It never changes the subscriptions of settings or API: the feed counts the sources of each
    symbol. If the positions cannot be fetched, the last known ones stay followed.

    Args:
        positions: The cache, refreshed at its interval.
        follow: Makes the feed follow exactly these symbols for positions. If it does not grant
            all of them, the first ones have priority. May raise SubscriptionRefused.
        clock: The time.
    """

    name = "position_tracker"
    depth = Depth(0, 0)

    def __init__(
        self,
        positions: PositionCache,
        follow: Callable[[tuple[str, ...]], Awaitable[None]],
        clock: Clock,
    ) -> None:
        self.heartbeat = Heartbeat(clock)
        self._positions = positions
        self._have_followed = follow
        self._clock = clock
        self._held = HeldSymbols()
        self._followed: tuple[str, ...] = ()

    def snapshot(self) -> TrackerSnapshot:
        """The tracker's present state."""
        return TrackerSnapshot(
            source=self._positions.address,
            positions=self._positions.positions,
            followed=self._followed,
            age_s=self._positions.age_s(),
            last_error=self._positions.last_error,
            differences=tuple(self._positions.differences()),
        )

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Fetch and follow until cancelled."""
        task_status.started()
        self.heartbeat.rest()  # it waits for its source, and each request has a limit
        known = self._positions
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._poll)
            while True:
                version = known.version
                symbols = self._held.update(known.positions, self._clock.monotonic())
                await self._follow(symbols)
                await known.change(version, known.interval_s or _LEAST_S)

    async def _poll(self) -> None:
        await self._positions.refresh()
        while True:
            await self._positions.refresh_when_due(_LEAST_S)

    async def _follow(self, symbols: tuple[str, ...]) -> None:
        if symbols == self._followed:
            return
        try:
            await self._have_followed(symbols)
        except SubscriptionRefused as exc:  # still wanted: the next connection asks again
            _log.warning("positions_are_not_followed", reason=str(exc))
        before, self._followed = self._followed, symbols
        _log.info(
            "positions_followed",
            symbols=len(symbols),
            opened=sorted(set(symbols) - set(before))[:50],
            closed=sorted(set(before) - set(symbols))[:50],
        )


class HeldSymbols:
    """The symbols to follow, the largest position first, including those just closed.

    Positions are ordered by cost, not by value, so that the order, and the choice at the feed's
    symbol limit, does not change with every quote.

    Args:
        grace_s: How long the symbol of a closed position stays followed, seconds.
    """

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self._grace_s = grace_s
        self._held: tuple[str, ...] = ()
        self._closed: dict[str, float] = {}
        """The symbols of closed positions, with the time until which they stay followed."""

    def update(self, positions: Iterable[Position], now_s: float) -> tuple[str, ...]:
        """The feed's symbols to follow now, the most important first.

        Args:
            positions: All positions; those with a problem, or with a quantity of 0, are not
                followed.
            now_s: Monotonic seconds.
        """
        sizes: defaultdict[str, Decimal] = defaultdict(Decimal)
        for position in positions:
            if position.problem is None and position.qty:
                cost = position.qty * (position.avg_entry_price or 0) * position.multiplier
                sizes[position.priced_by] += abs(cost)
        for symbol in self._held:
            if symbol not in sizes:
                self._closed.setdefault(symbol, now_s + self._grace_s)
        self._closed = {
            symbol: until_s
            for symbol, until_s in self._closed.items()
            if symbol not in sizes and until_s > now_s
        }
        self._held = tuple(sorted(sizes, key=lambda symbol: (-sizes[symbol], symbol)))
        return (*self._held, *self._closed)


@attrs.frozen
class TrackerSnapshot:
    """The held positions and the followed symbols.

    Attributes:
        source: The address of the positions, without any secret.
        positions: The last known positions.
        followed: The symbols to follow, the most important first.
        age_s: Seconds since the last answer; None before the first.
        last_error: Why the last request failed, or None. If set, ``positions`` may be outdated.
        differences: What an answer has corrected lately.
    """

    source: str
    positions: Sequence[Position]
    followed: Sequence[str]
    age_s: float | None
    last_error: str | None
    differences: Sequence[str] = ()
