"""The wiring: every actor, every channel with its size, what happens when it is full, and why.

::

    TradeUpdatesFollower ──▶ events
           │
    PositionTracker
           │
    commands ──▶ FeedConnection ──feed──▶ Router ──events──▶ EventPublisher ──batches──▶ RedisWriter
                                            │                      ▲                          │
                                            ├──▶ LocalReaders      └──────acknowledged────────┘
                                            └──▶ Relay ──▶ its clients

Each feed (stocks, crypto, options, news) has a connection and a router of its own.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import attrs

from mdservice.clock import Clock
from mdservice.errors import SubscriptionRefused
from mdservice.feed.connection import FeedConnection
from mdservice.feed.driver import Driver
from mdservice.feed.first_prices import FirstPrices
from mdservice.feed.gap_repair.recovery import Recovery, Refresh
from mdservice.feed.gap_repair.repair import GapRepair
from mdservice.feed.history import HalvingHistory, History
from mdservice.feed.liveness import Hours, Judge, Liveness
from mdservice.feed.requests import (
    Command,
    Follow,
    Outcome,
    Subscribe,
    SubscriptionResult,
    Unsubscribe,
)
from mdservice.feed.retries import DriverSelection
from mdservice.feed.send_queue import SendQueue
from mdservice.feed.subscriptions import SubscriptionSet
from mdservice.model.events import AccountEvent, FeedItem, FirstRecords, RoutedItem
from mdservice.model.feeds import NEWS_FEED, Feed, FeedName, Topic, feed_of, symbols_of
from mdservice.model.kinds import (
    BARS,
    FIRST_KINDS,
    NEWS,
    ORDERBOOKS,
    QUOTES,
    TRADES,
    Kind,
    R,
    Repair,
)
from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.positions.cache import PositionCache
from mdservice.positions.tracker import SOURCE, PositionTracker
from mdservice.positions.trade_updates import TradeUpdate, encode_account_update
from mdservice.positions.trading_stream import TradeUpdatesFollower, TradingStream
from mdservice.publish.publisher import EventPublisher
from mdservice.publish.readers import LocalReaders
from mdservice.publish.store import PriceStore, WriteBatch
from mdservice.publish.writer import RedisWriter
from mdservice.router.actor import Router
from mdservice.runtime.actor import Actor, Channel, Outbox
from mdservice.runtime.backoff import Backoff
from mdservice.runtime.supervisor import HealthWatchdog, Supervisor
from mdservice.runtime.task_groups import run_together

if TYPE_CHECKING:
    from mdservice.journal.recorder import Recorder
    from mdservice.relay.server import Relay

__all__ = ["HELD_SOURCE", "ChannelPlan", "FeedParts", "MakeRelay", "Pipeline", "Topology", "build"]


@attrs.frozen
class ChannelPlan:
    """One channel's size, what a full one does, and why that is right."""

    size: int
    when_full: str
    why: str


HELD_SOURCE = "takeover"
"""The source of what the last leader's relay and positions wanted, until they want it again. At the
feed's symbol limit it gives way."""

COMMANDS = ChannelPlan(
    100,
    "the caller waits",
    "a request comes from a person or a poll, so there are never many at once",
)
FEED = ChannelPlan(
    64,
    "the feed stops reading, so TCP slows Alpaca down",
    "an item has all quotes of one read; the router is faster than the feed, so the channel "
    "fills only while the event loop is busy",
)
EVENTS = ChannelPlan(
    64,
    "the router waits",
    "the publisher always receives, because its backlog conflates without room; so the channel "
    "is never full for longer than one turn of the event loop",
)
BATCHES = ChannelPlan(
    1,
    "never full",
    "the publisher makes the next batch after the acknowledgement, so batches grow with load",
)
ACKNOWLEDGED = ChannelPlan(1, "never full", "one batch is written at a time")

_LONGEST_PAUSE_NS = 3_600 * 1_000_000_000
"""The longest pause between two runs that is repaired. A longer one has too many quotes."""


@attrs.frozen
class FeedParts:
    """What one feed needs from outside.

    Attributes:
        feed: What it carries.
        drivers: The drivers in the order in which to try them.
        history: The source of past and latest records, or None.
        hours: Returns what its silence means now.
        on_demand: Whether to connect only while something is wanted.
    """

    feed: Feed
    drivers: Sequence[Driver]
    history: History | None
    hours: Callable[[], Awaitable[Hours]]
    on_demand: bool = True


@attrs.frozen(eq=False)
class Pipeline:
    """The parts of one feed in the service."""

    feed: Feed
    connection: FeedConnection
    router: Router
    first_prices: Mapping[Kind[Any], FirstPrices[Any]]
    commands: Channel[Command]
    feed_items: Channel[FeedItem]
    events: Outbox[RoutedItem]
    """The router's end of the channel to the publisher."""
    send_queue: SendQueue
    """What sends records to the router."""

    async def request(self, command: Command) -> SubscriptionResult:
        """Change the subscriptions, and fetch the first prices of new symbols from REST meanwhile.

        Raises:
            SubscriptionRefused: The feed refused the request.
        """
        if not isinstance(command, Unsubscribe):
            for first in self.first_prices.values():
                first.want(command.topics)
        await self.commands.outbox.send(command)
        try:
            return await command.answer.wait()
        finally:
            for first in self.first_prices.values():
                first.forget(command.topics)


@attrs.frozen
class Topology:
    """All parts of one service, joined by channels. Nothing runs before ``supervisor.run``."""

    pipelines: Sequence[Pipeline]
    publisher: EventPublisher
    writer: RedisWriter
    watchdog: HealthWatchdog
    readers: LocalReaders
    relay: Relay | None
    journal: Recorder | None
    tracker: PositionTracker | None
    trade_updates: TradeUpdatesFollower | None
    account: Outbox[RoutedItem]
    """The end of the channel to the publisher for events of the account."""
    supervisor: Supervisor
    channels: Sequence[Channel[Any]]
    _by_feed: dict[FeedName, Pipeline] = attrs.field(init=False)

    @_by_feed.default
    def _make_by_feed(self) -> dict[FeedName, Pipeline]:
        return {pipeline.feed.name: pipeline for pipeline in self.pipelines}

    @property
    def feed(self) -> FeedConnection:
        """The connection of the first feed, stocks."""
        return self.pipelines[0].connection

    @property
    def router(self) -> Router:
        """The router of the first feed, stocks."""
        return self.pipelines[0].router

    def pipeline_of(self, symbol: str) -> Pipeline:
        """The pipeline that carries a symbol; the only one where there is but one."""
        if len(self.pipelines) == 1:
            return self.pipelines[0]
        try:
            return self._by_feed[feed_of(symbol).name]
        except KeyError:
            raise LookupError(f"no feed carries {symbol}") from None

    def pipeline(self, topic: Topic) -> Pipeline:
        """The pipeline that carries a topic."""
        if topic.channel in NEWS_FEED.channels and len(self.pipelines) > 1:
            return next(each for each in self.pipelines if each.feed is NEWS_FEED)
        return self.pipeline_of(topic.symbol)

    def topics(self, symbols: Iterable[str], channels: Iterable[str]) -> tuple[Topic, ...]:
        """Every channel of every symbol, without the channels that a symbol's feed lacks."""
        wanted = tuple(channels)
        offered = {
            pipeline: [channel for channel in wanted if channel in pipeline.feed.channels]
            for pipeline in self.pipelines
        }
        return tuple(
            Topic(channel, symbol)
            for symbol in symbols
            for channel in offered[self.pipeline_of(symbol)]
        )

    async def subscribe(self, topics: Iterable[Topic], source: str) -> SubscriptionResult:
        """Subscribe to all of the topics, or to none if a feed refuses.

        Raises:
            SubscriptionRefused: A feed refused its part; the others are as before.
        """
        parts = self._by_pipeline(topics)
        before = {pipeline: pipeline.connection.wanted_by(source) for pipeline in parts}
        results, refused = await _at_once(
            {pipeline: Subscribe(part, source) for pipeline, part in parts.items()}
        )
        if refused is not None:
            undo = {}
            for pipeline in results:
                new = tuple(topic for topic in parts[pipeline] if topic not in before[pipeline])
                undo[pipeline] = Unsubscribe(new, (source,))
            await _at_once(undo)
            raise refused
        return _joined(tuple(results.values()), "subscribed")

    async def unsubscribe(
        self, topics: Iterable[Topic], sources: tuple[str, ...]
    ) -> SubscriptionResult:
        """Remove topics from those that some sources want."""
        parts = self._by_pipeline(topics)
        results, _ = await _at_once(
            {pipeline: Unsubscribe(part, sources) for pipeline, part in parts.items()}
        )
        return _joined(tuple(results.values()), "unsubscribed")

    async def follow(self, topics: Iterable[Topic], source: str) -> None:
        """Follow exactly these topics for a source, the most important first.

        Raises:
            SubscriptionRefused: A feed refused for another reason than its symbol limit. The
                other feeds follow their part.
        """
        wanted = self._by_pipeline(topics)
        _, refused = await _at_once(
            {
                pipeline: Follow(wanted.get(pipeline, ()), source)
                for pipeline in self.pipelines
                if pipeline in wanted
                or pipeline.connection.wanted_by(source)
                or pipeline is self.pipelines[0]
            }
        )
        if refused is not None:
            raise refused

    def wanted_topics(self, symbols: Collection[str]) -> tuple[Topic, ...]:
        """The wanted topics of these symbols, of all feeds but news."""
        return tuple(
            topic
            for pipeline in self.pipelines
            if pipeline.feed is not NEWS_FEED
            for topic in pipeline.connection.topics_of(symbols)
        )

    def _by_pipeline(self, topics: Iterable[Topic]) -> dict[Pipeline, tuple[Topic, ...]]:
        parts: dict[Pipeline, list[Topic]] = {}
        for topic in topics:
            parts.setdefault(self.pipeline(topic), []).append(topic)
        return {pipeline: tuple(part) for pipeline, part in parts.items()}

    def stop_feeds(self, *, hand_over: bool = False) -> None:
        """Close every connection; the actors below then drain.

        Args:
            hand_over: Whether another run goes on at once from what is published.
        """
        self.account.close()
        for pipeline in self.pipelines:
            pipeline.connection.stop(hand_over=hand_over)

    def close(self) -> None:
        """Close every channel after the actors have ended."""
        for pipeline in self.pipelines:
            pipeline.events.close()
        self.account.close()
        for channel in self.channels:
            channel.close()


async def _at_once(
    commands: Mapping[Pipeline, Command],
) -> tuple[Mapping[Pipeline, SubscriptionResult], SubscriptionRefused | None]:
    """Send each feed its request, and wait for every answer.

    Returns:
        The results, and the first refusal. A refusal ends no other request.
    """
    results: dict[Pipeline, SubscriptionResult] = {}
    refusals: dict[Pipeline, SubscriptionRefused] = {}

    async def ask(pipeline: Pipeline, command: Command) -> None:
        try:
            results[pipeline] = await pipeline.request(command)
        except SubscriptionRefused as exc:
            refusals[pipeline] = exc

    await run_together(*(partial(ask, each, command) for each, command in commands.items()))
    in_order = {pipeline: results[pipeline] for pipeline in commands if pipeline in results}
    return in_order, next((refusals[each] for each in commands if each in refusals), None)


MakeRelay = Callable[[Mapping[Feed, Pipeline], Callable[[], bool]], "Relay"]
"""Makes the relay of the pipelines, which are built after it, and of what says that they run."""


def _joined(results: Sequence[SubscriptionResult], done: Outcome) -> SubscriptionResult:
    """One result of the parts of a request: pending where one of them is."""
    status: Outcome = "pending" if any(one.status == "pending" for one in results) else done
    return SubscriptionResult(status, tuple(topic for one in results for topic in one.topics))


@attrs.frozen
class _Shared:
    """What the pipelines of one service share."""

    events: Channel[RoutedItem]
    readers: LocalReaders
    relay: Relay | None
    journal: Recorder | None
    clock: Clock
    rng: random.Random
    mute_after_s: float
    wishes: Mapping[str, Sequence[Topic]]
    last: Mapping[Kind[Any], Sequence[Any]]
    numbering_on: bool
    complete: Mapping[str, Mapping[str, int]]
    ends_if_refused: bool
    confirmed: Callable[[Kind[Any], Sequence[str]], None]
    several: bool

    def listener(self, feed: Feed) -> Callable[[RoutedItem], None]:
        """What takes the items of a feed's router in this process."""
        relay, readers = self.relay, self.readers
        if relay is None:
            return readers.offer

        def offer(item: RoutedItem) -> None:
            readers.offer(item)
            relay.offer(feed, item)

        return offer

    def carries(self, feed: Feed, topic: Topic) -> bool:
        """Whether a topic is of this feed; without other feeds, every topic is."""
        if not self.several:
            return True
        if topic.channel in NEWS_FEED.channels:
            return feed is NEWS_FEED
        return feed.name == feed_of(topic.symbol).name


def _build_pipeline(parts: FeedParts, shared: _Shared) -> Pipeline:
    """The parts of one feed."""
    feed, clock, history = parts.feed, shared.clock, parts.history
    commands = Channel[Command](COMMANDS.size)
    feed_items = Channel[FeedItem](FEED.size)
    subscriptions = SubscriptionSet()
    for source, topics in shared.wishes.items():
        own = [topic for topic in topics if shared.carries(feed, topic)]
        if source == HELD_SOURCE:
            subscriptions.follow(own, source)
        else:
            subscriptions.add(own, source)
    tap = None if shared.journal is None else shared.journal.tap(feed)
    send_queue = SendQueue(feed_items.outbox, tap)

    def fetch_latest(kind: Kind[Any], symbol: str) -> None:
        if kind in first_prices:
            first_prices[kind].fetch([symbol])

    outbox = shared.events.outbox.clone()
    router = Router(
        feed_items,
        outbox,
        shared.listener(feed),
        clock,
        shared.confirmed,
        feed=feed,
        wanted_latest=fetch_latest,
    )
    followed = subscriptions.wanted if shared.numbering_on else ()
    earlier = {kind: _start_from(kind, router, feed, shared, followed) for kind in feed.kinds}
    histories = {
        kind: HalvingHistory(history, kind) if history is not None else None for kind in feed.kinds
    }
    recoveries = {
        kind: _recovery(feed, kind, histories[kind], router, send_queue, clock, earlier.get(kind))
        for kind in feed.kinds
        if not kind.is_companion
    }
    first_prices: dict[Kind[Any], FirstPrices[Any]] = {
        kind: FirstPrices(
            kind,
            histories[kind],
            subscriptions,
            recoveries[kind],
            router.sequencer(kind),
            send_queue,
            clock,
        )
        for kind in FIRST_KINDS
        if kind in feed.kinds
    }
    for first in first_prices.values():
        first.want_all()

    async def refresh(kind: Kind[Any], records: Sequence[Any], asked_ns: int) -> None:
        asked = {record.symbol: asked_ns for record in records}
        await send_queue.send(FirstRecords(kind, records, asked))

    judges = [
        Judge(kind, histories[kind], router.sequencer(kind))
        for kind in _JUDGING_KINDS
        if kind in feed.kinds
    ]
    connection = FeedConnection(
        feed,
        DriverSelection(parts.drivers),
        subscriptions,
        commands,
        send_queue,
        clock,
        Backoff(rng=shared.rng),
        recoveries,
        Liveness(shared.mute_after_s, judges, parts.hours, clock.utc_ns, refresh),
        tuple(first_prices.values()),
        lambda: history.rows_skipped if history is not None else 0,
        on_demand=parts.on_demand,
        ends_if_refused=shared.ends_if_refused and not parts.on_demand,  # else the others go on
        keep_wire=shared.relay is not None,
        tap=tap,
    )
    return Pipeline(
        feed, connection, router, first_prices, commands, feed_items, outbox, send_queue
    )


def build(
    *,
    feeds: Sequence[FeedParts],
    mute_after_s: float,
    store: PriceStore,
    topics: Sequence[Topic],
    backlog: int,
    clock: Clock,
    rng: random.Random,
    channels: Sequence[str] = (QUOTES.channel,),
    positions: PositionCache | None = None,
    trading_stream: TradingStream | None = None,
    last_records: Mapping[Kind[Any], Sequence[Any]] | None = None,
    price_ttl_s: int = 300,
    renew_prices: bool = True,
    make_relay: MakeRelay | None = None,
    journal: Recorder | None = None,
    wishes: Mapping[str, Sequence[Topic]] | None = None,
    readers: LocalReaders | None = None,
    numbering_on: bool = False,
    complete: Mapping[str, Mapping[str, int]] | None = None,
    ends_if_refused: bool = True,
) -> Topology:
    """Join the parts of one service.

    Args:
        feeds: The feeds; stocks first.
        mute_after_s: The silence after which an open connection is checked, seconds.
        store: The store. The writer connects and closes it.
        topics: The topics of the settings.
        backlog: How many events are kept in order while the store is down.
        clock: The time.
        rng: The source of random numbers for the back-off's jitter.
        channels: The channels of the settings, which the symbols of positions get, with quotes.
        positions: The positions whose symbols are subscribed, or None.
        trading_stream: The stream whose fills change them, or None.
        last_records: The last record of each symbol from an earlier run, by kind.
        price_ttl_s: How long a price lives in the store, seconds.
        renew_prices: Whether the writer renews the keys of quiet symbols while connected.
        make_relay: Makes the relay; None for none.
        journal: Records the connections; None for none.
        wishes: What other sources than the settings want from the start, by source.
        readers: The readers of an earlier term in this process, which stay; None for new ones.
        numbering_on: Whether to number records after the last ones, as a new leader of a group
            does, instead of from 1.
        complete: The time up to which the earlier run had published all, by feed and channel, UTC
            nanoseconds, where it is known.
        ends_if_refused: Whether the service ends if the first feed refuses it for good before any
            data.
    """
    events = Channel[RoutedItem](EVENTS.size)
    batches = Channel[WriteBatch](BATCHES.size)
    acknowledged = Channel[int](ACKNOWLEDGED.size)
    readers = LocalReaders() if readers is None else readers
    last = last_records or {}

    def confirmed(kind: Kind[Any], symbols: Sequence[str]) -> None:
        writer.confirm(kind, symbols)

    def vouched(kind: Kind[Any]) -> Collection[str]:
        found = [each.connection.vouched(kind) for each in pipelines if kind in each.feed.kinds]
        return frozenset().union(*found)

    by_feed: dict[Feed, Pipeline] = {}
    relay = None
    if make_relay is not None:
        relay = make_relay(by_feed, lambda: supervisor.started)
    shared = _Shared(
        events,
        readers,
        relay,
        journal,
        clock,
        rng,
        mute_after_s,
        {"settings": topics, **(wishes or {})},
        last,
        numbering_on,
        complete or {},
        ends_if_refused,
        confirmed,
        several=len(feeds) > 1,
    )
    pipelines = [_build_pipeline(parts, shared) for parts in feeds]
    by_feed.update({each.feed: each for each in pipelines})
    account = events.outbox.clone()
    events.outbox.close()  # each sender has its own end
    publisher = EventPublisher(events, batches.outbox, acknowledged, backlog, clock)
    writer = RedisWriter(
        batches,
        acknowledged.outbox,
        store,
        clock,
        vouched if renew_prices else None,
        price_ttl_s,
    )
    for kind, records in last.items():
        writer.start_from(kind, {record.symbol: kind.encode(record) for record in records})
    watchdog = HealthWatchdog(clock)
    held_channels = tuple(dict.fromkeys((QUOTES.channel, *channels)))

    async def follow(symbols: tuple[str, ...]) -> None:
        await topology.follow(topology.topics(symbols, held_channels), SOURCE)

    tracker = trade_updates = None
    # They start in this order, so the receiver of each channel is ready before the sender.
    actors: list[Actor] = [watchdog]
    if relay is not None:
        actors.append(relay)  # it answers before the others are ready
    if journal is not None:
        actors.append(journal)
    actors += [writer, publisher]
    actors += [each.router for each in pipelines]
    actors += [each.connection for each in pipelines]
    if positions is not None:
        tracker = PositionTracker(positions, follow, clock)
        actors.append(tracker)
        if trading_stream is not None:
            publish = partial(_publish_update, positions, account)
            trade_updates = TradeUpdatesFollower(trading_stream, positions, publish, clock)
            actors.append(trade_updates)
    supervisor = Supervisor(actors, clock)
    watchdog.watch(supervisor)
    topology = Topology(
        pipelines,
        publisher,
        writer,
        watchdog,
        readers,
        relay,
        journal,
        tracker,
        trade_updates,
        account,
        supervisor,
        channels=(
            *(each.commands for each in pipelines),
            *(each.feed_items for each in pipelines),
            events,
            batches,
            acknowledged,
        ),
    )
    return topology


async def _publish_update(
    positions: PositionCache, outbox: Outbox[RoutedItem], update: TradeUpdate
) -> None:
    """Publish an event of the account with the position after it; not while the service stops."""
    message = encode_account_update(update, positions.position(update.priced_by))
    with suppress(anyio.ClosedResourceError):
        await outbox.send(AccountEvent(message))


_JUDGING_KINDS: tuple[Kind[Any], ...] = (QUOTES, TRADES, BARS, ORDERBOOKS, NEWS)
"""The kinds by which the silence of a feed is judged: the first that is subscribed."""


def _start_from(
    kind: Kind[Any], router: Router, feed: Feed, shared: _Shared, wanted: Iterable[Topic]
) -> tuple[Collection[str], int] | None:
    """Continue where an earlier run ended.

    Args:
        kind: The kind of the records.
        router: Gets them.
        feed: The feed.
        shared: What the feeds share.
        wanted: The topics of the earlier run, if they are known. Without a group, the settings may
            have other symbols now.

    Returns:
        As ``earlier`` of :meth:`mdservice.router.actor.Router.start_from`.
    """
    records = [
        record
        for record in shared.last.get(kind, ())
        if shared.carries(feed, Topic(kind.channel, record.symbol))
    ]
    complete_ns = shared.complete.get(feed.name, {}).get(kind.channel)
    if complete_ns is not None and not _can_resume((complete_ns,), shared.clock):
        complete_ns = None  # of a service long ago; others have published here since
    times = [record.ts_event_ns for record in records]
    if complete_ns is not None and (shared.numbering_on or not records):
        times.append(complete_ns)
    resuming = _can_resume(times, shared.clock)
    earlier: tuple[Collection[str], int] | None = None
    if resuming and complete_ns is not None and router.repairs(kind):
        followed = set() if kind.stream else set(symbols_of(wanted, kind)) - {EVERY_SYMBOL}
        earlier = followed, complete_ns
    if records or earlier:
        router.start_from(
            kind,
            records,
            resuming=resuming,
            numbering_on=shared.numbering_on,
            earlier=earlier,
        )
    return earlier


def _recovery(
    feed: Feed,
    kind: Kind[R],
    history: HalvingHistory[R] | None,
    router: Router,
    send_queue: SendQueue,
    clock: Clock,
    earlier: tuple[Collection[str], int] | None,
) -> Recovery[R]:
    """What recovers the records of a kind that a lost connection has missed."""
    repair = feed.repair(kind)
    if repair is Repair.LATEST:
        return Refresh(kind, history, router.sequencer(kind), send_queue, clock)
    if repair is Repair.SUBSCRIBE_AGAIN:
        return Refresh(kind, None, router.sequencer(kind), send_queue, clock)
    past = history if repair is Repair.FROM_HISTORY else None
    return GapRepair(kind, past, router.sequencer(kind), send_queue, clock, earlier)


def _can_resume(times: Iterable[int], clock: Clock) -> bool:
    now_ns = clock.utc_ns()
    return any(now_ns - at_ns <= _LONGEST_PAUSE_NS for at_ns in times)
