"""One run of the service within a simulation, and what was seen of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import anyio
import attrs

from mdservice.app.service import Service
from mdservice.app.topology import Pipeline, Topology
from mdservice.feed.gap_repair.recheck import Believed
from mdservice.feed.gap_repair.repair import GapRepair
from mdservice.model.events import FeedStatus, FirstRecords, RecordBatch, RoutedItem
from mdservice.model.feeds import STOCKS, FeedName
from mdservice.model.kinds import QUOTES, Kind
from mdservice.model.quote import Quote
from mdservice.publish.conflation import records_of
from mdservice.publish.store import WriteBatch
from mdservice.router.actor import Router
from mdservice.testing import VirtualClock
from tests.simulation.store import SimulatedStore


@attrs.define
class Interval:
    """From when to when somebody wanted a symbol, by the market's clock."""

    start_ns: int
    end_ns: int | None = None

    def holds(self, ts_ns: int) -> bool:
        return self.start_ns <= ts_ns and (self.end_ns is None or ts_ns < self.end_ns)


@attrs.define
class Life:
    """A service from its start to its end.

    Attributes:
        every: Every accepted record, with its feed and kind, and every state, with None as its
            kind, in the order in which they were sent.
        wanted: Of each symbol, when it was wanted.
        first_batch: Where its batches begin in the store's record.
        ever_refused: Symbols that history has refused, as far as it was seen.
        drained: Whether the store had taken all of it at the end.
    """

    number: int
    market_clock: VirtualClock
    store: SimulatedStore
    first_batch: int = 0
    last_batch: int = 0
    every: list[tuple[FeedName, Kind[Any] | None, Any]] = attrs.field(factory=list)
    resumed_ns: dict[tuple[FeedName, Kind[Any], str], int] = attrs.field(factory=dict)
    """When a symbol of a feed was first acknowledged, by the market's clock."""
    wanted: dict[str, list[Interval]] = attrs.field(factory=dict)
    ever_refused: set[str] = attrs.field(factory=set)
    drained: bool = False
    waiting_at_end: int = 0
    unsettled: list[int] = attrs.field(factory=list)
    opened_s: float = 0.0
    closed_s: float = 0.0
    drain_began_s: float | None = None
    cut_short: bool = False
    error: BaseException | None = None
    counters: Any = None
    service: Service | None = None
    topology: Topology | None = None
    newest: dict[str, Quote] = attrs.field(factory=dict)
    accepted_count: int = 0
    changing: Counter[str] = attrs.field(factory=Counter)
    earlier: dict[str, Quote] = attrs.field(factory=dict)
    """The last quotes of the run before, as it numbered them."""
    earlier_records: list[tuple[Kind[Any], Any]] = attrs.field(factory=list)
    """What the keys of every kind held at the start."""
    earlier_payloads: dict[bytes, int] = attrs.field(factory=dict)
    """The same as they were written, each with its time."""
    earlier_ns: dict[tuple[Kind[Any], str], int] = attrs.field(factory=dict)
    """The same by kind and symbol."""
    fetched: set[int] = attrs.field(factory=set)
    """The ids of the accepted quotes that REST gave on subscribing."""
    future_fetched: int = 0
    """Future quotes that REST gave on subscribing: the feed has not sent these."""
    fetched_before: int = 0
    """Quotes of the feed that REST had given on subscribing: accepted then, and not again."""

    def begin(self, service: Service, symbols: tuple[str, ...]) -> None:
        """Listen from the first record on."""
        self.service = service
        self.topology = service._topology
        for pipeline in self.topology.pipelines:
            self._listen(pipeline)
        for symbol in symbols:
            self.want(symbol)

    def _listen(self, pipeline: Pipeline) -> None:
        router, feed = pipeline.router, pipeline.feed.name
        listener, resume = router._listener, router._resume

        def listen(item: RoutedItem) -> None:
            if isinstance(item, RecordBatch):
                kind = item.kind
                self.every.extend((feed, kind, record) for record in item.records)
                sequencer = router.sequencer(kind)
                self.fetched.update(id(r) for r in item.records if sequencer.is_first(r.symbol))
                if kind is QUOTES:
                    self.accepted_count += len(item.records)
                    self.newest.update((quote.symbol, quote) for quote in item.records)
            elif isinstance(item, FeedStatus):
                self.every.append((feed, None, item))
            listener(item)

        def resumed(routing: Any, item: Any) -> None:
            now_ns = self.market_clock.utc_ns()
            for symbol in item.symbols:
                self.resumed_ns.setdefault((feed, item.kind, symbol), now_ns)
            resume(routing, item)

        router._listener = listen
        router._resume = resumed  # type: ignore[method-assign]
        for kind in pipeline.feed.kinds:
            if kind.has_key:
                earlier = router.sequencer(kind)._earlier
                for symbol, record in earlier.items():
                    self.earlier_records.append((kind, record))
                    self.earlier_payloads[kind.encode(record)] = record.ts_event_ns
                    self.earlier_ns[kind, symbol] = record.ts_event_ns
        if QUOTES in pipeline.feed.kinds:
            self.earlier |= router.sequencer(QUOTES)._earlier
            self._count_fetched(router)

    def _count_fetched(self, router: Router) -> None:
        """Count what REST and the feed give apart."""
        sequencer, take = router.sequencer(QUOTES), router._take_first
        is_new, quotes = sequencer._is_new_at, router._routings[QUOTES]

        def take_first(routing: Any, first: FirstRecords[Any]) -> None:
            before = quotes.future
            take(routing, first)
            for symbol in sequencer._confirmed & self.earlier.keys():
                self.newest.setdefault(symbol, self.earlier[symbol])
            self.future_fetched += quotes.future - before

        def is_new_at(quote: Quote, last: Quote) -> bool | None:
            was_first = sequencer.is_first(quote.symbol)
            new = is_new(quote, last)
            self.fetched_before += was_first and new is None
            return new

        router._take_first = take_first  # type: ignore[method-assign]
        sequencer._is_new_at = is_new_at  # type: ignore[method-assign]

    @property
    def handle(self) -> Service:
        """The service, which has begun."""
        if self.service is None:
            raise RuntimeError("it has ended")
        return self.service

    def note_refused(self) -> None:
        """Keep which symbols history refuses now."""
        self.ever_refused |= self.handle._topology.feed._recoveries[QUOTES].set_aside.keys()

    def want(self, symbol: str) -> None:
        """From now on it is wanted."""
        intervals = self.wanted.setdefault(symbol, [])
        if not intervals or intervals[-1].end_ns is not None:
            intervals.append(Interval(self.market_clock.utc_ns()))

    def unwant(self, symbol: str) -> None:
        """From now on it may be left out."""
        intervals = self.wanted.get(symbol)
        if intervals and intervals[-1].end_ns is None:
            intervals[-1].end_ns = self.market_clock.utc_ns()

    def end(self) -> None:
        """It has ended: keep what its parts say."""
        self.closed_s = anyio.current_time()
        self.last_batch = len(self.store.executed)
        if self.service is None:
            return
        self.note_refused()
        publisher = self.service._topology.publisher
        in_flight = publisher._in_flight
        self.drained = not publisher.unacknowledged
        waiting = publisher._waiting.take(publisher.unacknowledged)
        self.waiting_at_end = len(records_of(waiting))
        self.unsettled = [in_flight.records] if in_flight else []
        self.counters = self.service.status().counters
        self.future = self.service._topology.router.snapshot().future_records
        self.unchecked = self.service._topology.feed._recoveries[QUOTES]._recheck.waiting
        self.data_came = self.service._topology.feed._data_has_come
        self.dropped = sum(publisher.snapshot().dropped.values())
        self.kinds_unchecked = {
            (pipeline.feed.name, kind): recovery._recheck.waiting
            for pipeline in self.service._topology.pipelines
            for kind, recovery in pipeline.connection._recoveries.items()
            if isinstance(recovery, GapRepair) and recovery._recheck is not None
        }
        self.service = None

    future: int = 0
    unchecked: Sequence[Believed] = ()
    """Repairs whose second look at history was still to come: ended before, nobody knows."""

    data_came: bool = False
    """Whether there was data of stocks; a refusal before that ends the service."""
    dropped: int = 0
    """How many events were dropped because the backlog was full."""
    kinds_unchecked: dict[tuple[FeedName, Kind[Any]], Sequence[Believed]] = attrs.field(
        factory=dict
    )

    @property
    def routed(self) -> list[Quote | FeedStatus]:
        """The accepted quotes of stocks, and the states that concern them, in order."""
        return [
            item
            for feed, kind, item in self.every
            if feed == STOCKS.name and (kind is QUOTES or (kind is None and _concerns(item)))
        ]

    @property
    def accepted(self) -> list[Quote]:
        return [item for item in self.routed if isinstance(item, Quote)]

    @property
    def statuses(self) -> list[FeedStatus]:
        return self.statuses_of(STOCKS.name, QUOTES)

    def statuses_of(self, feed: FeedName, kind: Kind[Any]) -> list[FeedStatus]:
        """The states of a feed that concern a kind, in order."""
        return [
            item
            for its_feed, its_kind, item in self.every
            if its_feed == feed and its_kind is None and _concerns(item, kind)
        ]

    def batches(self) -> list[WriteBatch]:
        """What the store executed for it, in order.

        A server that forgot everything also forgot which batch it had executed when its
        connection broke: that one comes again, and nobody can know better.
        """
        executed = [
            batch
            for batch in self.store.executed[self.first_batch : self.last_batch]
            if not batch.ages_s and not batch.restored  # those write again what a server has lost
        ]
        if not self.store.emptied_between(self.opened_s, self.closed_s):
            return executed
        return [
            batch
            for before, batch in zip([None, *executed], executed, strict=False)
            if before is None or before.number != batch.number
        ]


def _concerns(status: FeedStatus, kind: Kind[Any] = QUOTES) -> bool:
    """Whether a state is about this kind: about its channel, or about none."""
    return status.details.get("channel", kind.channel) == kind.channel
