"""The actor between feed and sinks: every quote goes through its symbol's lane."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from anyio.abc import TaskStatus
from anyio.lowlevel import checkpoint
from anyio.streams.memory import MemoryObjectSendStream

from mdservice.clock import Clock
from mdservice.model.events import (
    Backfill,
    FeedItem,
    FeedLost,
    FeedResumed,
    FeedState,
    FeedStatus,
    FirstQuotes,
    LateQuotes,
    QuoteBatch,
    RoutedItem,
)
from mdservice.model.quote import Identity, Quote
from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.observability.logging import get_logger
from mdservice.router.gaps import Gaps
from mdservice.router.sequencer import Sequencer, merge
from mdservice.router.time_checks import ClockCheck, TimeCheck
from mdservice.runtime.actor import Channel, Depth, Heartbeat, forward

__all__ = ["FUTURE_TOLERANCE_NS", "QuoteRouter", "RouterSnapshot"]

_log = get_logger(__name__)

FUTURE_TOLERANCE_NS = 60_000_000_000
"""A quote that is further ahead of this machine's clock has a wrong time."""
_MOST_AT_ONCE = 1_000
"""Quotes that go on together; between two such parts of a large repair readers take theirs."""


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
    prices_fetched: int
    clock_behind_s: float | None
    times_frozen_s: float


@attrs.define
class _Fill:
    """A repair on its way out: what is left of it, and how much of it came from history."""

    backfill: Backfill
    past: set[int]
    echoes: Sequence[Quote]
    parts: deque[list[Quote]]
    backfilled: Counter[str] = attrs.field(factory=Counter)


class QuoteRouter:
    """Accepts, orders and numbers quotes; tells of the gap that a lost connection leaves.

    It never waits for a reader: the publisher behind it always takes, and in-process
    readers are given what they have room for.

    Args:
        inbox: Quotes and changes of the feed's state.
        outbox: Accepted quotes, and all changes of state, in the same order.
        listener: Told of the same items, without waiting.
        clock: The time.
        confirmed: Called with the symbols whose last quote REST has shown to be still right.
    """

    name = "quote_router"

    def __init__(
        self,
        inbox: Channel[FeedItem],
        outbox: MemoryObjectSendStream[RoutedItem],
        listener: Callable[[RoutedItem], None],
        clock: Clock,
        confirmed: Callable[[Sequence[str]], None] | None = None,
    ) -> None:
        self.heartbeat = Heartbeat(clock)
        self.sequencer = Sequencer()
        self._inbox = inbox.inbox(self.heartbeat)
        self._outbox = outbox
        self._listener = listener
        self._clock = clock
        self._clock_check = ClockCheck()
        self._time_check = TimeCheck()
        self._accepted = 0
        self._stale = 0
        self._future = 0
        self._backfilled = 0
        self._fetched = 0
        self._confirmed = confirmed
        self._gaps = Gaps()
        self._unsent: deque[RoutedItem] = deque()
        """What one item was made into: a batch, or a few changes of state."""
        self._echoes_before: Counter[Identity] = Counter()
        self._filling: _Fill | None = None
        """The repair that is handed on part by part."""

    @property
    def depth(self) -> Depth:
        """How full its inbox is."""
        return self._inbox.depth

    def snapshot(self) -> RouterSnapshot:
        """The router now."""
        return RouterSnapshot(
            symbols=len(self.sequencer),
            quotes_accepted=self._accepted,
            quotes_stale=self._stale,
            future_quotes=self._future,
            gaps=self._gaps.told,
            gaps_repaired=self._gaps.repaired,
            quotes_backfilled=self._backfilled,
            prices_fetched=self._fetched,
            clock_behind_s=self._clock_check.behind_s(),
            times_frozen_s=round(self._time_check.frozen_s(), 1),
        )

    def start_from(self, quotes: Sequence[Quote], *, resuming: bool) -> None:
        """Go on where an earlier run ended; before :meth:`run`.

        Args:
            quotes: The last one of each symbol.
            resuming: Whether what has come since shall be repaired.
        """
        self.sequencer.start_from(quotes, resuming=resuming)
        self._gaps.lost(self.sequencer.newest_ns(), self.sequencer.symbols())

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Route until the feed's side is closed; then close the sinks' side."""
        task_status.started()
        await self._send()
        async for item in self._inbox:
            if isinstance(item, QuoteBatch):
                self._route(item.quotes)
            elif isinstance(item, Backfill):
                self._fill(item)
            elif isinstance(item, FeedResumed):
                self._resume(item)
            elif isinstance(item, LateQuotes):
                self._take_late(item)
            elif isinstance(item, FirstQuotes):
                self._take_first(item)
            elif isinstance(item, FeedLost):
                self._lose(item)
            else:
                self._hand_on(item)
            await self._send()
        self._outbox.close()

    async def _send(self) -> None:
        """Send what was made of an item; a restart in the middle goes on where this was."""
        while self._unsent or self._filling:
            while self._unsent:
                await forward(self._outbox, self._unsent[0])
                self._unsent.popleft()
            if self._filling:
                await checkpoint()
                self._fill_on(self._filling)

    def _route(self, quotes: Sequence[Quote]) -> Sequence[Quote]:
        routed = self.sequencer.route(quotes, self._clock.utc_ns(), FUTURE_TOLERANCE_NS)
        self._clock_check.add(len(quotes), routed.ahead_ns)
        if len(routed.ahead_ns) < len(quotes):
            self._time_check.add(routed.accepted, self._clock.monotonic())
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
        merged = merge(backfill.past, backfill.live)
        echoes = [quote for quote in merged if id(quote) in past]
        self._echoes_before = self.sequencer.take_echoes()  # of this repair nothing is one yet
        missing = self.sequencer.not_out_yet(merged)
        going_on = {id(quote) for quote in missing}
        self._stale += sum(1 for quote in backfill.live if id(quote) not in going_on)
        starts = range(0, len(missing), _MOST_AT_ONCE)
        parts = deque(missing[start : start + _MOST_AT_ONCE] for start in starts)
        self._filling = _Fill(backfill, past, echoes, parts)

    def _fill_on(self, fill: _Fill) -> None:
        """Route the next part of it."""
        if fill.parts:
            accepted = self._route(fill.parts.popleft())
            from_history = [quote.symbol for quote in accepted if id(quote) in fill.past]
            fill.backfilled.update(from_history)
            self._backfilled += len(from_history)
            return
        self._filling = None
        self.sequencer.expect_again(fill.echoes, self._echoes_before)
        backfill = fill.backfill
        repaired = self._gaps.filled(
            backfill.until_ns,
            self.sequencer.newest_ns(),
            fill.backfilled,
            backfill.complete,
        )
        self._tell("gap_repaired", repaired)

    def _take_late(self, late: LateQuotes) -> None:
        """Those that are still in order go out; of the others there is a gap after all."""
        accepted = self._route(self.sequencer.not_out_yet(late.quotes))
        self.sequencer.expect_again(accepted, self.sequencer.take_echoes())
        self._backfilled += len(accepted)
        out = {id(quote) for quote in accepted}
        lost = {quote.symbol for quote in late.quotes if id(quote) not in out}
        self._gaps.brought(self.sequencer.newest_ns(), {quote.symbol for quote in accepted})
        symbols = late.unknown.union(lost)
        self._tell("gap", self._gaps.late(late.from_ns, late.to_ns, symbols))

    def _take_first(self, first: FirstQuotes) -> None:
        """The latest quotes of symbols that were subscribed just now."""
        now_ns = self._clock.utc_ns()
        fetched = self.sequencer.route_first(
            first.quotes, first.asked_ns, now_ns, FUTURE_TOLERANCE_NS
        )
        if fetched.ahead_ns:
            self._future += len(fetched.ahead_ns)
            _log.warning("quote_from_the_future", ahead_s=fetched.ahead_ns[0] / 1e9)
        self._accepted += len(fetched.accepted)
        self._fetched += len(fetched.accepted)
        if fetched.known and self._confirmed is not None:
            self._confirmed(fetched.known)
        if fetched.accepted:
            self._hand_on(QuoteBatch(fetched.accepted))

    def _lose(self, lost: FeedLost) -> None:
        symbols = set(lost.symbols)
        if EVERY_SYMBOL in symbols:
            symbols = (symbols | set(self.sequencer.symbols())) - {EVERY_SYMBOL}
        self._gaps.lost(self.sequencer.newest_ns(), symbols, self.sequencer.streamed_ns)
        self.sequencer.take_echoes()  # the stream that could yet have brought them is gone
        self._hand_on(FeedStatus("disconnected", lost.at_ns, {"reason": lost.reason}))

    def _resume(self, resumed: FeedResumed) -> None:
        """After a lost connection: what came between is missing."""
        gaps = self._gaps.resumed(
            resumed.at_ns,
            resumed.symbols,
            resumed.left_out,
            self.sequencer.streamed_ns,
            repairing=resumed.repairing,
        )
        self._tell("gap", gaps)

    def _tell(self, state: FeedState, details: Sequence[dict[str, Any]]) -> None:
        for each in details:
            self._hand_on(FeedStatus(state, self._clock.utc_ns(), each))

    def _hand_on(self, item: RoutedItem) -> None:
        self._listener(item)
        self._unsent.append(item)
