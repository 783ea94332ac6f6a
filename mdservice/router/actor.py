"""The actor between feed and sinks: every quote goes through its symbol's lane."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from anyio.abc import TaskStatus
from anyio.streams.memory import MemoryObjectSendStream

from mdservice.actors.actor import Channel, Depth
from mdservice.actors.heartbeat import Heartbeat
from mdservice.clock import Clock
from mdservice.logs import get_logger
from mdservice.model.events import Backfill, FeedItem, FeedStatus, QuoteBatch, RoutedItem
from mdservice.model.quote import Quote
from mdservice.model.timestamps import format_ns
from mdservice.router.clock_check import ClockCheck
from mdservice.router.lanes import Lanes
from mdservice.router.merge import merge

__all__ = ["FUTURE_TOLERANCE_NS", "QuoteRouter", "RouterSnapshot"]

_log = get_logger(__name__)

FUTURE_TOLERANCE_NS = 60_000_000_000
"""A quote that is further ahead of this machine's clock has a wrong time."""


@attrs.frozen
class RouterSnapshot:
    """The router at one moment; the names are those of ``/status``."""

    symbols: int
    quotes_accepted: int
    quotes_stale: int
    future_quotes: int
    gaps: int
    gaps_repaired: int
    quotes_backfilled: int
    clock_behind_s: float | None


class QuoteRouter:
    """Accepts, orders and numbers quotes; tells of the gap that a lost connection leaves.

    It never waits for a reader: the publisher behind it always takes, and in-process
    readers are given what they have room for.

    Args:
        inbox: Quotes and changes of the feed's state.
        outbox: Accepted quotes, and all changes of state, in the same order.
        listener: Told of the same items, without waiting.
        clock: The time.
    """

    name = "quote_router"

    def __init__(
        self,
        inbox: Channel[FeedItem],
        outbox: MemoryObjectSendStream[RoutedItem],
        listener: Callable[[RoutedItem], None],
        clock: Clock,
    ) -> None:
        self.heartbeat = Heartbeat(clock)
        self.lanes = Lanes()
        self._inbox = inbox.inbox(self.heartbeat)
        self._outbox = outbox
        self._listener = listener
        self._clock = clock
        self._clock_check = ClockCheck()
        self._accepted = 0
        self._stale = 0
        self._future = 0
        self._gaps = 0
        self._gaps_repaired = 0
        self._backfilled = 0
        self._unsent: deque[RoutedItem] = deque()
        """What one item was made into: three at most."""
        self._connection_lost = False
        self._gap: dict[str, Any] | None = None
        """The gap that is not repaired yet, as it was told."""

    @property
    def depth(self) -> Depth:
        """How full its inbox is."""
        return self._inbox.depth

    def snapshot(self) -> RouterSnapshot:
        """The router now."""
        return RouterSnapshot(
            symbols=len(self.lanes),
            quotes_accepted=self._accepted,
            quotes_stale=self._stale,
            future_quotes=self._future,
            gaps=self._gaps,
            gaps_repaired=self._gaps_repaired,
            quotes_backfilled=self._backfilled,
            clock_behind_s=self._clock_check.behind_s(),
        )

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Route until the feed's side is closed; then close the sinks' side."""
        task_status.started()
        await self._send()
        async for item in self._inbox:
            if isinstance(item, QuoteBatch):
                self._route(item.quotes)
            elif isinstance(item, Backfill):
                self._fill(item)
            else:
                self._hand_on(item)
                self._watch_connection(item)
            await self._send()
        self._outbox.close()

    async def _send(self) -> None:
        """Send what was made of an item; a restart in the middle goes on where this was."""
        while self._unsent:
            await self._outbox.send(self._unsent[0])
            self._unsent.popleft()

    def _route(self, quotes: Sequence[Quote]) -> Sequence[Quote]:
        routed = self.lanes.route(quotes, self._clock.utc_ns(), FUTURE_TOLERANCE_NS)
        self._clock_check.add(len(quotes), routed.ahead_ns)
        self._accepted += len(routed.accepted)
        self._stale += routed.stale
        if routed.ahead_ns:
            self._future += len(routed.ahead_ns)
            _log.warning("quote_from_the_future", ahead_s=routed.ahead_ns[0] / 1e9)
        if routed.accepted:
            self._hand_on(QuoteBatch(routed.accepted))
        return routed.accepted

    def _fill(self, backfill: Backfill) -> None:
        """Past quotes and those that waited for them, in one order, nothing twice."""
        past = {id(quote) for quote in backfill.past}
        missing = self.lanes.not_out_yet(merge(backfill.past, backfill.live))
        accepted = self._route(missing)
        backfilled = sum(1 for quote in accepted if id(quote) in past)
        self._backfilled += backfilled
        if backfill.repaired and self._gap is not None:
            details = {**self._gap, "to": format_ns(backfill.until_ns), "quotes": backfilled}
            self._gap = None
            self._gaps_repaired += 1
            at_ns = self._clock.utc_ns()
            self._hand_on(FeedStatus("gap_repaired", at_ns, details))

    def _watch_connection(self, status: FeedStatus) -> None:
        """After a lost connection the new one starts later: what was between is missing."""
        if status.state == "disconnected":
            self._connection_lost = True
        elif status.state == "connected" and self._connection_lost:
            self._connection_lost = False
            if len(self.lanes):
                self._gaps += 1
                self._gap = self._gap_until(status.at_ns)
                self._hand_on(FeedStatus("gap", status.at_ns, self._gap))

    def _gap_until(self, to_ns: int) -> dict[str, Any]:
        latest = self.lanes.all_latest()
        return {
            "from": format_ns(max(quote.ts_event_ns for quote in latest)),
            "to": format_ns(to_ns),
            "symbols": sorted(quote.symbol for quote in latest),
        }

    def _hand_on(self, item: RoutedItem) -> None:
        self._listener(item)
        self._unsent.append(item)
