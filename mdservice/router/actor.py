"""The actor between feed and sinks: puts the records of each kind in order and numbers them."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Generic

import anyio
import attrs
from anyio.abc import TaskStatus
from anyio.lowlevel import checkpoint

from mdservice.clock import Clock
from mdservice.model.events import (
    Backfill,
    FeedItem,
    FeedLost,
    FeedResumed,
    FeedState,
    FeedStatus,
    FirstRecords,
    LateRecords,
    RecordBatch,
    Refreshed,
    RoutedItem,
)
from mdservice.model.feeds import STOCKS, Feed, symbols_of
from mdservice.model.kinds import (
    CANCELS,
    CORRECTIONS,
    QUOTES,
    TRADES,
    Kind,
    R,
    Record,
    Repair,
)
from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.model.trade import Correction
from mdservice.observability.logging import get_logger
from mdservice.router.gaps import Gaps
from mdservice.router.policies import TradeSequencer, make_sequencer
from mdservice.router.sequencer import Echo, Routed, Sequencer
from mdservice.router.time_checks import ClockCheck, TimeCheck
from mdservice.runtime.actor import Channel, Depth, Heartbeat, Outbox

__all__ = ["FUTURE_TOLERANCE_NS", "Router", "RouterSnapshot"]

_log = get_logger(__name__)

FUTURE_TOLERANCE_NS = 60_000_000_000
"""A record further ahead of this machine's clock has a wrong time."""
_MOST_AT_ONCE = 1_000
"""The part of a large repair that is sent at once; readers run between two parts."""


@attrs.frozen
class RouterSnapshot:
    """A snapshot of the router, with the names of ``/status``.

    The mappings count the records of each channel: the accepted and the rejected ones, those that a
    repair fetched, and the first values from REST.
    """

    symbols: int
    quotes_accepted: int
    quotes_stale: int
    future_records: int
    gaps: int
    gaps_repaired: int
    quotes_backfilled: int
    prices_fetched: int
    clock_behind_s: float | None
    times_frozen_s: float
    accepted: Mapping[str, int] = attrs.field(factory=dict)
    rejected: Mapping[str, int] = attrs.field(factory=dict)
    backfilled: Mapping[str, int] = attrs.field(factory=dict)
    fetched: Mapping[str, int] = attrs.field(factory=dict)


class _Routing(Generic[R]):
    """The sequencer, the gaps and the counters of one kind."""

    def __init__(self, kind: Kind[R], repair: Repair) -> None:
        self.kind = kind
        self.sequencer: Sequencer[R] = make_sequencer(kind)
        self.timed = kind is QUOTES or kind is TRADES
        """Whether its records come as they happen, so that their times check the clock."""
        self.repaired = repair is Repair.FROM_HISTORY
        self.refreshed = repair in (Repair.LATEST, Repair.SUBSCRIBE_AGAIN)
        self.gaps = Gaps(kind.channel, in_order=self.sequencer.in_order and self.repaired)
        self.subscribed_ns: int | None = None
        """When the feed first acknowledged symbols, UTC nanoseconds."""
        self.resumed_ns: int | None = None
        """When it last did."""
        self.earlier_ns: int | None = None
        """The time up to which an earlier run had published all, if it is known."""
        self.accepted = 0
        self.rejected = 0
        self.future = 0
        self.backfilled = 0
        self.fetched = 0


@attrs.define
class _Fill(Generic[R]):
    """A repair that is being sent: its remaining records, and the number of those from history."""

    routing: _Routing[R]
    backfill: Backfill[R]
    past: set[int]
    echoes: Sequence[R]
    echoes_before: Counter[Echo]
    parts: deque[list[R]]
    backfilled: Counter[str] = attrs.field(factory=Counter)


class Router:
    """Accepts, orders and numbers records; reports the gap that a lost connection leaves.

    It never waits for a reader: the publisher always receives, and readers in the process have
    bounded buffers.

    Args:
        inbox: Records and changes of the feed's state.
        outbox: Accepted records, and all changes of state, in the same order.
        listener: Called with the same items; must not wait.
        clock: The time.
        confirmed: Called with a kind and the symbols whose last record REST has confirmed.
        feed: The feed whose kinds it routes.
        wanted_latest: Called with a kind and a symbol whose latest record is no longer known, since
            it was canceled: REST may know the one before.
    """

    def __init__(
        self,
        inbox: Channel[FeedItem],
        outbox: Outbox[RoutedItem],
        listener: Callable[[RoutedItem], None],
        clock: Clock,
        confirmed: Callable[[Kind[Any], Sequence[str]], None] | None = None,
        feed: Feed = STOCKS,
        wanted_latest: Callable[[Kind[Any], str], None] | None = None,
    ) -> None:
        self.name = "quote_router" if feed.name == "stocks" else f"{feed.name}_router"
        self._feed = feed
        self.heartbeat = Heartbeat(clock)
        self._inbox = inbox.inbox(self.heartbeat)
        self._outbox = outbox
        self._listener = listener
        self._clock = clock
        self._clock_check = ClockCheck()
        self._time_check = TimeCheck()
        self._confirmed = confirmed
        self._wanted_latest = wanted_latest
        self._routings: dict[Kind[Any], _Routing[Any]] = {
            kind: _Routing(kind, feed.repair(kind)) for kind in feed.kinds
        }
        for routing in self._routings.values():
            routing.sequencer.complete_ns = partial(self._complete_ns, routing)
        self._unsent: deque[RoutedItem] = deque()
        """Items that did not fit into the outbox. A restart sends them first."""
        self._filling: _Fill[Any] | None = None
        """The repair that is being sent in parts."""
        self._streamed_ns: int | None = None
        """The time of the newest record that this connection has brought, as far as noted."""
        self._history_ns: int | None = None
        """The time of the newest record from history, while the stream has brought none as new."""

    @property
    def depth(self) -> Depth:
        """How full its inbox is."""
        return self._inbox.depth

    def sequencer(self, kind: Kind[R]) -> Sequencer[R]:
        """The sequencer of one kind."""
        return self._routings[kind].sequencer

    def snapshot(self) -> RouterSnapshot:
        """A snapshot of the router."""
        every = self._routings.values()
        quotes = self._routings.get(QUOTES)
        return RouterSnapshot(
            symbols=len(quotes.sequencer) if quotes else 0,
            quotes_accepted=quotes.accepted if quotes else 0,
            quotes_stale=quotes.rejected if quotes else 0,
            future_records=sum(each.future for each in every),
            gaps=sum(each.gaps.reported for each in every),
            gaps_repaired=sum(each.gaps.repaired for each in every),
            quotes_backfilled=quotes.backfilled if quotes else 0,
            prices_fetched=quotes.fetched if quotes else 0,
            clock_behind_s=self._clock_check.behind_s(),
            times_frozen_s=round(self._time_check.frozen_s(), 1),
            accepted={each.kind.channel: each.accepted for each in every},
            rejected={each.kind.channel: each.rejected for each in every},
            backfilled={each.kind.channel: each.backfilled for each in every},
            fetched={each.kind.channel: each.fetched for each in every},
        )

    def start_from(
        self,
        kind: Kind[R],
        records: Sequence[R],
        *,
        resuming: bool,
        numbering_on: bool = False,
        earlier: tuple[Collection[str], int] | None = None,
    ) -> None:
        """Continue where an earlier run ended; before :meth:`run`.

        Args:
            kind: The kind of the records.
            records: The last record of each symbol.
            resuming: Whether to repair the records since then.
            numbering_on: Whether to number after these records, instead of from 1.
            earlier: The symbols that the earlier run had subscribed, also those without a record,
                and the time up to which it had published all, UTC nanoseconds. None if it is not
                known: then that of the newest record stands in, which may have come from REST.
        """
        routing = self._routings[kind]
        routing.sequencer.start_from(records, resuming=resuming)
        if numbering_on:
            routing.sequencer.number_on({record.symbol: record.seq for record in records})
        newest_ns, symbols = routing.sequencer.newest_ns(), routing.sequencer.symbols()
        if earlier is not None:
            followed, complete_ns = earlier
            routing.earlier_ns = complete_ns
            from_ns = complete_ns if newest_ns is None else min(newest_ns, complete_ns)
            routing.gaps.start(from_ns, {*symbols, *followed}, routing.sequencer.last_ns)
        for each in self._routings.values():
            if each is routing or not (each.repaired or each.kind.is_companion):
                each.gaps.lost(newest_ns, symbols)

    def complete_until_ns(self, kind: Kind[Any]) -> int | None:
        """The time from which a next run would have to repair, UTC nanoseconds; None before any."""
        routing = self._routings[kind]
        complete_ns = routing.sequencer.complete_until_ns()
        if complete_ns is None:
            complete_ns = routing.subscribed_ns
        missing_ns = routing.gaps.since_ns()
        if complete_ns is None or missing_ns is None:
            return complete_ns
        return min(complete_ns, missing_ns)

    def repairs(self, kind: Kind[Any]) -> bool:
        """Whether missing records of a kind are fetched from history."""
        return self._routings[kind].repaired

    def _newest_ns(self) -> int | None:
        """The time of the newest accepted record of all kinds, UTC nanoseconds."""
        times = (each.sequencer.newest_ns() for each in self._routings.values())
        return max((ns for ns in times if ns is not None), default=None)

    def _complete_ns(self, routing: _Routing[Any], newest_ns: int | None) -> int | None:
        """The time up to which a kind is complete whose newest record has this time.

        All kinds come over one connection. Between the records of some kinds hours may pass.
        """
        if newest_ns is None:
            newest_ns = self._newest_ns()
        if routing.earlier_ns is not None and routing.resumed_ns is None:
            # What REST has given since is no more than that of some symbols.
            return min(newest_ns or routing.earlier_ns, routing.earlier_ns)
        if newest_ns is None:
            return routing.subscribed_ns
        reached_ns = self._reached_ns(routing)
        return newest_ns if reached_ns is None else min(newest_ns, reached_ns)

    def _reached_ns(self, routing: _Routing[Any]) -> int | None:
        """The time that the stream has reached, UTC nanoseconds, if history is ahead of it.

        History does not show how far the stream has come: the connection may be dead.
        """
        if self._history_ns is None:
            return None
        return routing.resumed_ns if self._streamed_ns is None else self._streamed_ns

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Route until the inbox is closed; then close the outbox."""
        task_status.started()
        await self._finish()
        async for item in self._inbox:
            self._take(item)
            if self._unsent or self._filling:
                await self._finish()
        for routing in self._routings.values():
            if routing.resumed_ns is not None:
                own = routing.repaired
                newest_ns = routing.sequencer.newest_ns() if own else self._newest_ns()
                self._report("gap", routing.gaps.ended(self._clock.utc_ns(), newest_ns))
        await self._finish()
        self._outbox.close()

    def route_now(self, item: FeedItem) -> None:
        """Route an item at once, in place of :meth:`run`: in a replay, which has no outbox."""
        self._take(item)
        while self._filling:
            self._fill_on(self._filling)

    def _take(self, item: FeedItem) -> None:
        if isinstance(item, RecordBatch):
            routing = self._routings[item.kind]
            routed = self._route(routing, item.records)
            if routed.accepted:
                self._note_streamed(routed.accepted[-1])
            if routing.timed:
                self._check_times(item.records, routed)
        elif isinstance(item, Backfill):
            self._fill(self._routings[item.kind], item)
        elif isinstance(item, FeedResumed):
            self._resume(self._routings[item.kind], item)
        elif isinstance(item, LateRecords):
            self._take_late(self._routings[item.kind], item)
        elif isinstance(item, FirstRecords):
            self._take_first(self._routings[item.kind], item)
        elif isinstance(item, Refreshed):
            gaps = self._routings[item.kind].gaps
            self._report("gap", gaps.refreshed(item.symbols, item.failed))
        elif isinstance(item, FeedLost):
            self._lose(item)
        else:
            self._send(item)

    def _send(self, item: RoutedItem) -> None:
        """Send an item now; without room, leave it to :meth:`_finish`."""
        self._listener(item)
        if not self._unsent:
            with suppress(anyio.WouldBlock):
                self._outbox.send_nowait(item)
                return
        self._unsent.append(item)

    async def _finish(self) -> None:
        """Send the items that did not fit, also after a restart."""
        while self._unsent or self._filling:
            while self._unsent:
                await self._outbox.send(self._unsent[0], self.heartbeat)
                self._unsent.popleft()
            if self._filling:
                await checkpoint()
                self._fill_on(self._filling)

    def _route(self, routing: _Routing[R], records: Sequence[R]) -> Routed[R]:
        routed = routing.sequencer.route(records, self._clock.utc_ns(), FUTURE_TOLERANCE_NS)
        routing.accepted += len(routed.accepted)
        routing.rejected += routed.rejected
        if routed.ahead_ns:
            self._reject_future(routing, routed.ahead_ns)
        if routed.accepted:
            if routing.kind is CORRECTIONS or routing.kind is CANCELS:
                self._change_trades(routed.accepted)
            self._send(RecordBatch(routing.kind, routed.accepted))
        return routed

    def _check_times(self, records: Sequence[Any], routed: Routed[Any]) -> None:
        """Compare the times of records from the stream with the clock."""
        self._clock_check.add(len(records), routed.ahead_ns)
        if len(routed.ahead_ns) < len(records):
            self._time_check.add(routed.accepted, self._clock.monotonic())

    def _change_trades(self, changes: Sequence[Any]) -> None:
        """Apply corrections and cancellations; send the latest trades that they have changed.

        These go out before the events, so that a reader of an event finds the key changed.
        """
        trades = self._routings[TRADES].sequencer
        if not isinstance(trades, TradeSequencer):
            return
        for change in changes:
            correct = isinstance(change, Correction)
            changed = trades.correct(change) if correct else trades.cancel(change)
            if changed is not None:
                self._send(changed)
                if changed.record is None and self._wanted_latest is not None:
                    self._wanted_latest(TRADES, changed.symbol)

    def _reject_future(self, routing: _Routing[Any], ahead_ns: Sequence[int]) -> None:
        routing.future += len(ahead_ns)
        _log.warning(
            "record_from_the_future", channel=routing.kind.channel, ahead_s=ahead_ns[0] / 1e9
        )

    def _fill(self, routing: _Routing[R], backfill: Backfill[R]) -> None:
        """Merge past records and the live ones that waited for them, without repeats."""
        sequencer = routing.sequencer
        past = {id(record) for record in backfill.past}
        echoes_before = sequencer.take_echoes()  # this repair has none yet
        missing, echoes = sequencer.fill(backfill.past, backfill.live)
        going_on = {id(record) for record in missing}
        routing.rejected += sum(1 for record in backfill.live if id(record) not in going_on)
        starts = range(0, len(missing), _MOST_AT_ONCE)
        parts = deque(missing[start : start + _MOST_AT_ONCE] for start in starts)
        self._filling = _Fill(routing, backfill, past, echoes, echoes_before, parts)

    def _fill_on(self, fill: _Fill[Any]) -> None:
        """Route the next part of the repair."""
        routing = fill.routing
        if fill.parts:
            for record in self._route(routing, fill.parts.popleft()).accepted:
                if id(record) in fill.past:
                    fill.backfilled[record.symbol] += 1
                    routing.backfilled += 1
                    self._note_from_history(record)
                else:
                    self._note_streamed(record)
            return
        self._filling = None
        routing.sequencer.expect_again(fill.echoes, fill.echoes_before)
        backfill = fill.backfill
        repaired = routing.gaps.filled(
            backfill.until_ns,
            routing.sequencer.newest_ns(),
            fill.backfilled,
            backfill.complete,
        )
        self._report("gap_repaired", repaired)

    def _take_late(self, routing: _Routing[R], late: LateRecords[R]) -> None:
        """Send the late records that are still in order; report a gap for the others."""
        sequencer = routing.sequencer
        known = {id(record) for record in late.records if sequencer.was_accepted(record)}
        accepted = self._route(routing, sequencer.not_out_yet(late.records)).accepted
        sequencer.expect_again(accepted, sequencer.take_echoes())
        for record in accepted:
            self._note_from_history(record)
        routing.backfilled += len(accepted)
        out = known | {id(record) for record in accepted}
        lost = {record.symbol for record in late.records if id(record) not in out}
        routing.gaps.brought(sequencer.newest_ns(), {record.symbol for record in accepted})
        symbols = late.unknown.union(lost)
        self._report("gap", routing.gaps.late(late.from_ns, late.to_ns, symbols))

    def _take_first(self, routing: _Routing[R], first: FirstRecords[R]) -> None:
        """Route the latest records of symbols that were just subscribed."""
        fetched = routing.sequencer.route_first(
            first.records, first.asked_ns, self._clock.utc_ns(), FUTURE_TOLERANCE_NS
        )
        if fetched.ahead_ns:
            self._reject_future(routing, fetched.ahead_ns)
        routing.accepted += len(fetched.accepted)
        routing.fetched += len(fetched.accepted)
        if fetched.known and self._confirmed is not None:
            self._confirmed(routing.kind, fetched.known)
        if fetched.accepted:
            self._send(RecordBatch(routing.kind, fetched.accepted))

    def _note_streamed(self, record: Record) -> None:
        self._streamed_ns = max(self._streamed_ns or 0, record.ts_event_ns)
        if self._history_ns is not None and self._streamed_ns > self._history_ns:
            self._history_ns = None

    def _note_from_history(self, record: Record) -> None:
        if record.ts_event_ns > (self._streamed_ns or 0):
            self._history_ns = max(self._history_ns or 0, record.ts_event_ns)

    def _lose(self, lost: FeedLost) -> None:
        newest_ns = self._newest_ns()
        for routing in self._routings.values():
            sequencer = routing.sequencer
            symbols = self._lost_symbols(routing, lost)
            sequencer.lose(symbols)
            if routing.kind.is_companion:
                continue  # its gap is that of the kind with which it comes
            if routing.repaired:
                from_ns = sequencer.newest_ns()
                from_ns = self._complete_ns(routing, None) if from_ns is None else from_ns
            else:
                # First values do not show how far the stream had come when it was lost.
                known_ns = routing.resumed_ns if newest_ns is None else newest_ns
                from_ns = lost.at_ns if known_ns is None else known_ns
            reached_ns = self._reached_ns(routing)
            routing.gaps.lost(from_ns, symbols, sequencer.streamed_ns, reached_ns)
        self._streamed_ns = None
        self._send(FeedStatus("disconnected", lost.at_ns, {"reason": lost.reason}, self._feed.name))

    def _lost_symbols(self, routing: _Routing[Any], lost: FeedLost) -> set[str]:
        """The symbols of a kind that were subscribed; with ``*``, those that a repair can ask for.

        Without such symbols, as of news, and of kinds without a history, it is ``*`` itself.
        """
        symbols = set(symbols_of(lost.topics, routing.kind))
        if EVERY_SYMBOL not in symbols:
            return symbols
        if routing.repaired:
            symbols.update(routing.sequencer.symbols())
            symbols.discard(EVERY_SYMBOL)
            if symbols:
                return symbols
        return {EVERY_SYMBOL}

    def _resume(self, routing: _Routing[Any], resumed: FeedResumed) -> None:
        """Report the gap after a lost connection."""
        if routing.kind.is_companion:
            return
        if resumed.symbols:
            routing.resumed_ns = resumed.at_ns
            if routing.subscribed_ns is None:
                routing.subscribed_ns = resumed.at_ns
        gaps = routing.gaps.resumed(
            resumed.at_ns,
            resumed.symbols,
            resumed.left_out,
            routing.sequencer.streamed_ns,
            repairing=resumed.repairing,
            refreshing=resumed.refreshing,
        )
        self._report("gap", gaps)

    def _report(self, state: FeedState, details: Sequence[dict[str, Any]]) -> None:
        for each in details:
            self._send(FeedStatus(state, self._clock.utc_ns(), each, self._feed.name))
