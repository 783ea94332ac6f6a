"""The actor that has the feed follow the symbols of all open positions."""

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
"""How long a symbol is followed after its position was closed: it may be opened again."""

SOURCE: Final = "positions"
"""On whose behalf the symbols are followed, as ``/subscriptions`` shows it."""


class PositionTracker:
    """Asks for the positions now and then, and has their symbols followed, the largest first.

    What settings or the API ask for is never touched: the feed counts who wants a symbol. A
    source that fails changes nothing; what was known is followed on.

    Args:
        positions: Asked for at their interval.
        follow: Has the feed follow exactly these symbols on behalf of positions, the first ones
            rather than the others where it does not give all. May raise SubscriptionRefused.
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
        """The tracker now."""
        return TrackerSnapshot(
            source=self._positions.address,
            positions=self._positions.positions,
            followed=self._followed,
            age_s=self._positions.age_s(),
            last_error=self._positions.last_error,
        )

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Look until cancelled."""
        task_status.started()
        self.heartbeat.rest()  # it waits for its source, and each of its requests has a limit
        while True:
            positions = await self._positions.refresh()
            await self._follow(self._held.update(positions, self._clock.monotonic()))
            await anyio.sleep(self._positions.interval_s)

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


class HeldSymbols:
    """The symbols to follow, the largest position first; for a while those just closed too.

    A position's size is what it cost and not what it is worth, so that the order, and what is
    left out at the feed's symbol limit, does not change with every quote.

    Args:
        grace_s: For how long a closed one is followed, seconds.
    """

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self._grace_s = grace_s
        self._held: tuple[str, ...] = ()
        self._closed: dict[str, float] = {}
        """Symbols with the time until which they are followed all the same."""

    def update(self, positions: Iterable[Position], now_s: float) -> tuple[str, ...]:
        """What to follow now, the most important symbol first.

        Args:
            positions: All of them; of those with a problem, and of empty ones, nothing is
                followed.
            now_s: Monotonic seconds.
        """
        sizes: defaultdict[str, Decimal] = defaultdict(Decimal)
        for position in positions:
            if position.problem is None and position.qty:
                cost = position.qty * (position.avg_entry_price or 0) * position.multiplier
                sizes[position.symbol] += abs(cost)
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
    """What is held and followed.

    Attributes:
        source: Where the positions come from, without any secret.
        positions: The last known positions.
        followed: The symbols to follow, the most important first.
        age_s: Seconds since the last answer; None before the first.
        last_error: Why the last try failed, or None; then ``positions`` may be out of date.
    """

    source: str
    positions: Sequence[Position]
    followed: Sequence[str]
    age_s: float | None
    last_error: str | None
