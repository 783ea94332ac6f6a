"""A running service: :func:`open_service` starts it and yields a :class:`Service`."""

from __future__ import annotations

import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

import anyio
import attrs

from mdservice.app.dev_stack import start_embedded_server, start_simulator
from mdservice.app.progress import ProgressKeeper, read_complete
from mdservice.app.relay import open_relay
from mdservice.app.status import (
    FeedFacts,
    always_open,
    feed_facts,
    news_hours,
    readiness,
    status,
)
from mdservice.app.topology import FeedParts, MakeRelay, Topology, build
from mdservice.clock import Clock, SystemClock
from mdservice.errors import ConfigurationError, InvalidChannel, MDServiceError
from mdservice.feed.alpaca.drivers import make_drivers, make_history
from mdservice.feed.driver import Driver
from mdservice.feed.history import History
from mdservice.feed.liveness import Hours
from mdservice.feed.requests import SubscriptionResult
from mdservice.model.events import FeedStatus, RecordBatch
from mdservice.model.feeds import (
    FEEDS,
    NEWS_FEED,
    STOCKS,
    Feed,
    FeedName,
    Topic,
    kinds_of,
    parse_channels,
    symbols_of,
    topics_of,
)
from mdservice.model.kinds import KINDS, NEWS, QUOTES, Kind, R
from mdservice.model.news import Article
from mdservice.model.position import Position
from mdservice.model.quote import Quote
from mdservice.model.status import Readiness, Status
from mdservice.model.symbol import EVERY_SYMBOL, parse_symbol, parse_symbols, without_slash
from mdservice.observability.logging import get_logger, hide_secrets
from mdservice.positions.cache import PositionCache
from mdservice.positions.sources import ALPACA, PositionSource, open_source
from mdservice.positions.trading_stream import TradingStream, open_trading_stream
from mdservice.publish.lease import Leader, Lease
from mdservice.publish.readers import LocalReader, LocalReaders
from mdservice.publish.store import PriceStore, ProgressStore, read_last_records
from mdservice.redis_io.names import ACCOUNT_CHANNEL
from mdservice.router.actor import FUTURE_TOLERANCE_NS
from mdservice.runtime.backoff import JITTER
from mdservice.runtime.market_clock import MarketClock
from mdservice.runtime.network import HttpClient
from mdservice.runtime.task_groups import background, leaves
from mdservice.settings import Settings

if TYPE_CHECKING:
    from mdservice.journal.recorder import Recorder
    from mdservice.publish.instances import Instances
    from mdservice.redis_io.lease import Admit

__all__ = ["DRAIN_LIMIT_S", "GroupView", "Plan", "Service", "StoreMaker", "open_service"]

_log = get_logger(__name__)


DRAIN_LIMIT_S = 3.0
"""How long writing the accepted quotes may take after the feed is closed."""
_FIRST_ARTICLES = 50
"""How many articles a reader of news begins with."""
_STORE_TIMEOUT_S = 3.0
"""Shorter than the watchdog's limit; a batch takes a few milliseconds."""


class GroupView(Protocol):
    """What the service shows of its standby group, and asks it for."""

    @property
    def standing_by(self) -> str | None:
        """Why the service does not serve: another one leads; None while it leads."""
        ...

    @property
    def taking_over(self) -> tuple[str, ...]:
        """Why prices are not live yet in this term."""
        ...

    def status(self, status: Status) -> Status:
        """The status, with the group."""
        ...

    def liveness(self) -> Readiness:
        """Whether a standby still looks for its leader."""
        ...

    async def remember(self) -> None:
        """Keep the subscriptions for the next leader."""
        ...

    async def stop(self) -> None:
        """End the term, so that a standby leads."""
        ...


class Service:
    """A running service, made by :func:`open_service`. Use it only in that event loop."""

    def __init__(
        self,
        settings: Settings,
        topology: Topology,
        clock: Clock,
        resolved: Settings,
        facts: FeedFacts,
        instances: Instances | None = None,
        market_clock: MarketClock | None = None,
        group: GroupView | None = None,
    ) -> None:
        self.settings = settings
        self.resolved = resolved
        """The settings, with the addresses of what was started here: simulator, server, relay."""
        self._facts = facts
        self._clock = clock
        self._started_s = clock.monotonic()
        self._draining = False
        self._group = group
        self.use(topology, instances, market_clock)

    def use(
        self,
        topology: Topology,
        instances: Instances | None = None,
        market_clock: MarketClock | None = None,
    ) -> None:
        """Serve these parts from now on; a member of a group gets others with each term."""
        self._topology = topology
        self._instances = instances
        self._market_clock = market_clock
        if topology.relay is not None:
            self.resolved = attrs.evolve(self.resolved, relay=topology.relay.config.address)

    async def subscribe(
        self, *symbols: str, channels: Iterable[str] | None = None, source: str = "api"
    ) -> SubscriptionResult:
        """Subscribe to channels of symbols: to all of them, or to none if a feed refuses.

        Args:
            symbols: In upper or lower case; ``*`` is every symbol of the stock feed.
            channels: In Alpaca's names. None for the channels of the settings. A channel that a
                symbol's asset class does not have is skipped for it.
            source: Who wants them. A topic stays subscribed as long as one source wants it.

        Returns:
            ``subscribed``, or ``pending`` while a feed is down: the service subscribes later.

        Raises:
            InvalidSymbol: One of them is not a symbol; nothing has changed.
            InvalidChannel: A channel is unknown, or a symbol has none of them; likewise.
            SubscriptionRefused: A feed refused, for instance at the plan's symbol limit.
        """
        topics = self._topics(parse_symbols(symbols), channels)
        self._require_running()
        result = await self._topology.subscribe(topics, source)
        if self._group is not None:
            await self._group.remember()
        return result

    async def unsubscribe(
        self, *symbols: str, channels: Iterable[str] | None = None, source: str = "api"
    ) -> SubscriptionResult:
        """Remove symbols from those that a source wants, or only some of their channels.

        ``api`` also removes the symbols of the settings, since both belong to the operator.
        Symbols of open positions stay subscribed.

        Raises:
            InvalidSymbol: One of them is not a symbol; nothing has changed.
            InvalidChannel: A channel is unknown, or a symbol has none of them; likewise.
        """
        sources = ("api", "settings") if source == "api" else (source,)
        chosen = parse_symbols(symbols)
        if channels is None:
            places = {symbol: place for place, symbol in enumerate(chosen)}
            wanted = self._topology.wanted_topics(chosen)
            # The answer names what was not wanted too.
            others = [Topic(QUOTES.channel, s) for s in places.keys() - set(symbols_of(wanted))]
            topics = tuple(sorted((*wanted, *others), key=lambda topic: places[topic.symbol]))
        else:
            topics = self._topics(chosen, channels)
        self._require_running()
        result = await self._topology.unsubscribe(topics, sources)
        if self._group is not None:
            await self._group.remember()
        return result

    def _topics(self, symbols: Sequence[str], channels: Iterable[str] | None) -> tuple[Topic, ...]:
        named = parse_channels(self.settings.channels if channels is None else channels)
        topics = self._topology.topics(symbols, named)
        served = set(symbols_of(topics))
        for symbol in symbols:
            if symbol not in served:
                has = self._topology.pipeline_of(symbol).feed.channels
                raise InvalidChannel(
                    f"{symbol} has none of the channels {', '.join(named)}; it has {', '.join(has)}"
                )
        return topics

    def _require_running(self) -> None:
        if self._draining:
            raise MDServiceError("the service is stopping: its subscriptions no longer change")
        if self._group is not None and self._group.standing_by is not None:
            raise MDServiceError(f"the service {self._group.standing_by}: ask that one")

    def subscriptions(self) -> dict[str, list[str]]:
        """Each wanted symbol, with the sources that want it; news apart."""
        found: dict[str, list[str]] = {}
        for pipeline in self._topology.pipelines:
            if pipeline.feed is not NEWS_FEED:
                for symbol, sources in pipeline.connection.sources().items():
                    found[symbol] = sorted({*found.get(symbol, ()), *sources})  # * of two feeds
        return dict(sorted(found.items()))

    def channels(self) -> dict[str, list[str]]:
        """The acknowledged channels, ``{"AAPL": ["quotes"]}``; none of a feed in an outage."""
        found: dict[str, list[str]] = {}
        for pipeline in self._topology.pipelines:
            if pipeline.feed is not NEWS_FEED:
                for topic in pipeline.connection.acknowledged():
                    found.setdefault(topic.symbol, []).append(topic.channel)
        return dict(sorted(found.items()))

    def left_out(self) -> dict[str, dict[str, str]]:
        """The unfulfilled symbols, which a feed does not send, with the reason per channel."""
        found: dict[str, dict[str, str]] = {}
        for pipeline in self._topology.pipelines:
            for topic, reason in pipeline.connection.left_out().items():
                found.setdefault(topic.symbol, {})[topic.channel] = reason
        return dict(sorted(found.items()))

    def positions(self) -> Sequence[Position]:
        """The last known positions; empty without a source of positions."""
        tracker = self._topology.tracker
        return tracker.snapshot().positions if tracker is not None else ()

    def latest(self, symbol: str) -> Quote | None:
        """The last accepted quote of a symbol, or None.

        Raises:
            InvalidSymbol
        """
        return self.latest_record(QUOTES, symbol)

    def latest_record(self, kind: Kind[R], symbol: str) -> R | None:
        """The latest record of one kind and symbol, or None.

        Raises:
            InvalidSymbol
        """
        name = parse_symbol(symbol)
        pipeline = self._topology.pipeline_of(name)
        if kind not in pipeline.feed.kinds:
            return None
        return pipeline.router.sequencer(kind).latest(name)

    def prices(self, symbols: Iterable[str] | None = None) -> list[Quote]:
        """The last accepted quotes of these symbols, or of all; unknown symbols are omitted."""
        return self.latest_records(QUOTES, symbols)

    def latest_records(self, kind: Kind[R], symbols: Iterable[str] | None = None) -> list[R]:
        """The latest records of one kind of these symbols, or of all; symbols without are omitted.

        Raises:
            InvalidSymbol
        """
        if symbols is not None:
            found = (self.latest_record(kind, symbol) for symbol in parse_symbols(symbols))
            return [record for record in found if record is not None]
        every = (
            record
            for pipeline in self._topology.pipelines
            if kind in pipeline.feed.kinds
            for record in pipeline.router.sequencer(kind).all_latest()
        )
        return sorted(every, key=lambda record: record.symbol)

    @asynccontextmanager
    async def quotes(self, *symbols: str) -> AsyncIterator[AsyncIterator[Quote]]:
        """Every accepted quote of the symbols from now on; without symbols, of all.

        The reader never delays the feed. If it falls 10,000 quotes behind, it loses the oldest,
        but keeps the newest of each symbol, and sees a step in ``seq``.
        """
        with self._topology.readers.open(parse_symbols(symbols)) as reader:
            yield cast("AsyncIterator[Quote]", reader)  # without statuses, it yields only quotes

    @asynccontextmanager
    async def events(self, *symbols: str) -> AsyncIterator[AsyncIterator[Quote | FeedStatus]]:
        """The latest quote of each symbol, then every accepted quote and change of state."""
        chosen = parse_symbols(symbols)
        first = RecordBatch(QUOTES, self.prices(chosen or None))
        with self._topology.readers.open(chosen, statuses=True, first=[first]) as reader:
            yield reader

    @asynccontextmanager
    async def stream(
        self, *symbols: str, channels: Iterable[str] = ("trades",)
    ) -> AsyncIterator[AsyncIterator[Any]]:
        """The latest value of each symbol and channel, then every accepted record.

        It yields the records of :class:`mdservice.Records`, also of symbols that are subscribed
        later. ``trades`` also brings corrections and cancellations, ``bars`` updated bars. ``news``
        begins with the newest articles, up to 50.

        The reader never delays the feeds. If it falls 10,000 records behind, it loses the oldest
        trades, and keeps the newest quote, price band and order book of each symbol; ``seq`` shows
        it by a step.

        Args:
            symbols: In upper or lower case; none, or ``*``, for all.
            channels: In Alpaca's names, and ``news``.

        Raises:
            InvalidSymbol
            InvalidChannel
        """
        with self._reader(symbols, channels, statuses=False) as reader:
            yield reader

    @asynccontextmanager
    async def batches(
        self, *symbols: str, channels: Iterable[str] = ("quotes",)
    ) -> AsyncIterator[AsyncIterator[RecordBatch[Any] | FeedStatus]]:
        """As :meth:`stream`, in batches of one kind, with every change of a feed's state."""
        with self._reader(symbols, channels, statuses=True) as reader:
            yield reader.batches()

    def _reader(
        self, symbols: Iterable[str], channels: Iterable[str], *, statuses: bool
    ) -> AbstractContextManager[LocalReader]:
        chosen, kinds = parse_symbols(symbols), kinds_of(channels)
        if EVERY_SYMBOL in chosen:
            chosen = ()
        first = [
            RecordBatch(kind, self.latest_records(kind, chosen or None))
            for kind in kinds
            if kind.has_key
        ]
        if NEWS in kinds:
            newest = self.news(chosen, _FIRST_ARTICLES)
            first.append(RecordBatch(NEWS, newest[::-1]))
        return self._topology.readers.open(chosen, kinds=kinds, statuses=statuses, first=first)

    def news(self, symbols: Iterable[str] = (), limit: int = 50) -> list[Article]:
        """The newest articles about any of the symbols, or of all, the newest first.

        Args:
            symbols: In upper or lower case; none for all.
            limit: How many at most. The service keeps the newest 1,000.

        Raises:
            InvalidSymbol
        """
        return self._topology.readers.articles(parse_symbols(symbols), limit)

    def states_since(self, count: int) -> tuple[list[FeedStatus], int]:
        """The last changes of the feeds' states after the first ``count``, the oldest first.

        Returns:
            Those that are kept, 200 at most, and how many there have been since the start.
        """
        return self._topology.readers.states_since(count)

    def status(self) -> Status:
        """A snapshot of the whole service."""
        names = {feed.name: self.resolved.feed_name_of(feed.name) for feed in FEEDS}
        found = status(
            self._facts,
            names | {STOCKS.name: self._facts.name, **self._facts.own_names},
            self._topology,
            self._clock,
            started_s=self._started_s,
            stale_after_s=self.settings.stale_after,
            key_prefix=str(self.settings.key_prefix),  # JSON accepts no subclass of str
            draining=self._draining,
            conflicts=self._warnings(),
            relay=self._topology.relay.status() if self._topology.relay is not None else None,
            journal=self._topology.journal.status() if self._topology.journal is not None else None,
            clock_ahead_s=None
            if (market := self._market_clock) is None
            else market.check.seconds(),
        )
        return found if self._group is None else self._group.status(found)

    def readiness(self) -> Readiness:
        """Whether prices are live now, and the reasons if they are not."""
        if self._group is not None and self._group.standing_by is not None:
            return Readiness(False, (f"the service {self._group.standing_by}",))
        ready = readiness(self._topology, draining=self._draining)
        return attrs.evolve(ready, reasons=(*ready.reasons, *self._warnings()))

    def _warnings(self) -> tuple[str, ...]:
        """What does not make the service unready: others that publish the same names, and so on."""
        conflicts = () if self._instances is None else self._instances.conflicts()
        return (*conflicts, *(() if self._group is None else self._group.taking_over))

    def liveness(self) -> Readiness:
        """Whether the event loop and the watchdog move."""
        if self._group is not None and self._group.standing_by is not None:
            return self._group.liveness()
        return self._topology.watchdog.liveness()

    async def drain(self) -> None:
        """Close the feed and write all accepted quotes to the store, within a time limit."""
        self._draining = True
        if self._group is not None:
            await self._group.stop()
        else:
            await self.drain_topology()
        _log.info("service_stopped", events_published=self._published())

    async def drain_topology(self, *, hand_over: bool = False) -> None:
        """Drain the present parts; the last step of a term.

        Args:
            hand_over: Whether another run goes on at once from what is published.
        """
        topology = self._topology
        if topology.relay is not None:
            topology.relay.refuse()
        topology.supervisor.drain()
        topology.stop_feeds(hand_over=hand_over)
        with anyio.move_on_after(DRAIN_LIMIT_S):
            await topology.supervisor.drained()
        topology.readers.close()
        if topology.relay is not None:
            await topology.relay.stop()
        if topology.journal is not None:
            await topology.journal.stop()
        self._log_lost()

    def _published(self) -> int:
        return self._topology.publisher.snapshot().events_published

    def _log_lost(self) -> None:
        """Log how many events were not written, and how many may have been."""
        writer = self._topology.writer
        in_batch, waiting = self._topology.publisher.not_stored(writer.written)
        unknown = in_batch if writer.uncertain else 0
        lost = in_batch + waiting - unknown
        if lost or unknown:
            _log.error(
                "events_lost_at_the_end", count=lost, unknown=unknown, reason=self._why_lost()
            )

    def _why_lost(self) -> str:
        """Why the last events were not written: the store, an actor, or the time limit."""
        failed = self._topology.supervisor.failed
        if failed is not None:
            return f"{failed} failed and ended the service before they were written"
        store = self._topology.writer.snapshot()
        if store.last_error is not None:
            return f"the store did not take them: {store.last_error}"
        return f"they were not all written within {DRAIN_LIMIT_S:g} s"


StoreMaker = Callable[[Leader | None], PriceStore]
"""Makes the store of a term in a group. Its writes must not be executed once another member has
claimed the lease. For None, the store from which a standby reads."""


@attrs.define
class Plan:
    """What the parts of a service are built from, once for each term."""

    settings: Settings
    resolved: Settings
    facts: FeedFacts
    clock: Clock
    http: HttpClient
    rng: random.Random
    feeds: Sequence[FeedParts]
    positions: PositionCache | None
    trading_stream: TradingStream | None
    readers: LocalReaders

    def topics(self) -> tuple[Topic, ...]:
        """What the settings want."""
        return _settings_topics(self.resolved, [each.feed for each in self.feeds])

    async def last_records(
        self, store: PriceStore, topics: Sequence[Topic], *, required: bool = False
    ) -> Mapping[Kind[Any], Sequence[Any]]:
        """The last records of these topics; see :func:`read_last_records`."""
        wanted = {kind: symbols_of(topics, kind) for kind in KINDS if kind.has_key or kind.stream}
        latest_ns = self.clock.utc_ns() + FUTURE_TOLERANCE_NS
        return await read_last_records(store, wanted, latest_ns, required=required)

    def build(
        self,
        store: PriceStore,
        topics: Sequence[Topic],
        last_records: Mapping[Kind[Any], Sequence[Any]],
        *,
        make_relay: MakeRelay | None = None,
        journal: Recorder | None = None,
        wishes: Mapping[str, Sequence[Topic]] | None = None,
        numbering_on: bool = False,
        complete: Mapping[str, Mapping[str, int]] | None = None,
        ends_if_refused: bool = True,
    ) -> Topology:
        """Join the parts; see :func:`mdservice.app.topology.build`."""
        settings = self.settings
        return build(
            feeds=self.feeds,
            mute_after_s=settings.mute_after,
            store=store,
            topics=topics,
            backlog=settings.backlog,
            clock=self.clock,
            channels=self.resolved.channels,
            positions=self.positions,
            trading_stream=self.trading_stream,
            rng=self.rng,
            last_records=last_records,
            price_ttl_s=settings.price_ttl,
            renew_prices=settings.renew_prices,
            make_relay=make_relay,
            journal=journal,
            wishes=wishes,
            readers=self.readers,
            numbering_on=numbering_on,
            complete=complete,
            ends_if_refused=ends_if_refused,
        )

    async def open_relay(self, stack: AsyncExitStack) -> MakeRelay | None:
        """Listen for the relay's clients; see :func:`mdservice.app.relay.open_relay`."""
        simulated = self.facts.simulated
        return await open_relay(self.resolved, self.feeds, stack, self.clock, simulated=simulated)

    def open_journal(self, stack: AsyncExitStack) -> Recorder | None:
        """Open the journal of the settings; None where it is off."""
        return _open_journal(self.resolved, stack, self.clock)

    def open_store(
        self, name: str, *, admit: Admit | None = None, reads_only: bool = False
    ) -> PriceStore:
        """The Redis of the settings; ``name`` is the writer's."""
        return _open_store(self.resolved, name, admit, reads_only=reads_only)

    def instances(self, name: str, admit: Admit | None = None) -> Instances | None:
        """What announces this service by its writer's name."""
        return _open_instances(self.resolved, name, self.facts, self.clock, admit)

    async def run(
        self, topology: Topology, instances: Instances | None, stack: AsyncExitStack
    ) -> MarketClock | None:
        """Run the parts until the stack ends; return the clock of the stock market."""
        stack.callback(topology.close)
        await stack.enter_async_context(background(topology.supervisor.run))
        if instances is None:
            return None
        market = self.facts.stock_clock(self.resolved, self.http)
        await _start_announcing(instances, market, self.clock, stack)
        return market


@asynccontextmanager
async def open_service(
    settings: Settings,
    *,
    store: PriceStore | StoreMaker | None = None,
    drivers: Sequence[Driver] | None = None,
    history: History | None = None,
    feeds: Sequence[FeedParts] | None = None,
    positions: PositionSource | None = None,
    trading_stream: TradingStream | None = None,
    clock: Clock | None = None,
    rng: random.Random | None = None,
    lease: Lease | None = None,
) -> AsyncIterator[Service]:
    """Run a service inside this block, on trio or asyncio.

    If the settings name no Redis, it starts an embedded Valkey server. If they name nothing real,
    it starts the simulator. At the end of the block, also after a cancellation, the service closes
    the feed, writes the accepted quotes, and ends everything that it started.

    In a standby group, the block begins as soon as the service leads or stands by.

    Args:
        settings: See :class:`mdservice.Settings`.
        store: Replaces the Redis of the settings. In a group, a function that makes the store of
            each term.
        drivers: Replace the feed of the settings. If the settings name no feed, the drivers'
            feed needs no keys and has the name of the first driver.
        history: Replaces the REST API of the settings. With ``drivers``, None means no history.
        feeds: Replace all feeds of the settings, with their drivers and histories; stocks first.
            If the settings name no feed, they need no keys, and each has the name of its first
            driver.
        positions: Replaces the source of positions of the settings.
        trading_stream: The stream of the account's fills, where ``positions`` are given; None means
            none.
        clock: The time, for tests.
        rng: The source of jitter, for tests.
        lease: Replaces the lease in Redis of the settings' standby group. It needs ``store``.

    Raises:
        ConfigurationError: The settings are incomplete, or a part cannot work here.
        FeedRefused: The feed refused permanently before any data.
        EmbeddedServerError: The embedded server did not start.
        ActorFailed: An actor failed too often.
    """
    http = HttpClient()
    facts = feed_facts(settings, _own_drivers(drivers, feeds), http)
    settings.require_runnable(own_feed=facts.own, own_lease=lease is not None)
    hide_secrets(settings.secret_values())
    clock = clock or SystemClock()
    try:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(http.aclose)
            resolved = settings
            if store is None:
                resolved = await start_embedded_server(resolved, stack)
            parts = list(feeds or ())
            if drivers is not None:
                parts = [FeedParts(STOCKS, drivers, history, facts.hours(clock), on_demand=False)]
            elif not parts:
                resolved = await start_simulator(resolved, stack, clock)
                parts = _feeds(resolved, facts, clock, http)
            if history is not None:
                parts[0] = attrs.evolve(parts[0], history=history)
            plan = Plan(
                settings=settings,
                resolved=resolved,
                facts=facts,
                clock=clock,
                http=http,
                rng=rng or JITTER,
                feeds=parts,
                positions=_follow_positions(resolved, positions, stack, clock, http),
                trading_stream=(
                    open_trading_stream(resolved.positions, resolved)
                    if positions is None
                    else trading_stream
                ),
                readers=LocalReaders(),
            )
            opened = _open_member if settings.group is not None or lease is not None else _open_one
            service = await opened(plan, stack, store, lease)
            try:
                yield service
            finally:
                with anyio.CancelScope(shield=True):
                    await service.drain()
    except BaseExceptionGroup as group:
        # A cancellation may come at the same moment. The caller needs the error.
        failed, others = group.split(Exception)
        errors = list(leaves(failed)) if failed is not None else []
        cancelled = anyio.get_cancelled_exc_class()
        if len(errors) != 1 or (others is not None and others.split(cancelled)[1] is not None):
            raise
        raise errors[0] from errors[0].__cause__


async def _open_one(
    plan: Plan, stack: AsyncExitStack, store: PriceStore | StoreMaker | None, _lease: Lease | None
) -> Service:
    """A service without a group."""
    instances = None
    if store is None:
        name = secrets.token_hex(8)  # noqa: TID251 - with a real Redis alone
        store, instances = plan.open_store(name), plan.instances(name)
    elif callable(store):
        store = store(None)
    make_relay = await plan.open_relay(stack)
    topics = plan.topics()
    last_records = await plan.last_records(store, topics)
    keeps = instances or (store if isinstance(store, ProgressStore) else None)
    complete = await read_complete(keeps) if keeps is not None else {}
    journal = plan.open_journal(stack)
    topology = plan.build(
        store, topics, last_records, make_relay=make_relay, journal=journal, complete=complete
    )
    plan.readers.keep(last_records.get(NEWS, ()))
    keeper = None if keeps is None else ProgressKeeper(keeps, topology, complete)
    market = await plan.run(topology, instances, stack)
    if keeper is not None:
        await stack.enter_async_context(background(keeper.run))
    return Service(
        plan.settings, topology, plan.clock, plan.resolved, plan.facts, instances, market
    )


async def _open_member(
    plan: Plan,
    stack: AsyncExitStack,
    store: PriceStore | StoreMaker | None,
    lease: Lease | None,
) -> Service:
    """A service in a standby group."""
    from mdservice.app.group import Member

    member = Member(plan, store if callable(store) else None, lease)
    await stack.enter_async_context(background(member.run))
    return member.service


def _own_drivers(
    drivers: Sequence[Driver] | None, feeds: Sequence[FeedParts] | None
) -> Mapping[FeedName, Sequence[Driver]]:
    """The embedder's drivers, by feed."""
    if drivers is not None and feeds is not None:
        raise ConfigurationError("open_service takes drivers= or feeds=, and not both")
    if drivers is not None:
        return {STOCKS.name: drivers}
    return {each.feed.name: each.drivers for each in feeds or ()}


def _feeds(settings: Settings, facts: FeedFacts, clock: Clock, http: HttpClient) -> list[FeedParts]:
    """The feeds of the account; the stock feed is always connected, the others on demand."""
    hours = facts.hours(clock)
    meanings: dict[FeedName, Callable[[], Awaitable[Hours]]] = {
        "stocks": hours,
        "crypto": always_open,
        "options": facts.regular_hours,
        "news": news_hours,
    }
    return [
        FeedParts(
            feed,
            make_drivers(settings, feed),
            make_history(settings, feed, clock, http, keep_wire=settings.relay is not None),
            meanings[feed.name],
            on_demand=feed is not STOCKS,
        )
        for feed in FEEDS
    ]


def _settings_topics(settings: Settings, feeds: Sequence[Feed]) -> tuple[Topic, ...]:
    """What the settings want: their channels of their symbols, and news."""
    if len(feeds) == 1:
        channels = [channel for channel in settings.channels if channel in feeds[0].channels]
        return tuple(Topic(c, symbol) for symbol in settings.symbols for c in channels)
    news = (Topic(NEWS.channel, without_slash(symbol)) for symbol in settings.news)
    return (*topics_of(settings.symbols, settings.channels), *news)


def _open_store(
    settings: Settings, instance: str, admit: Admit | None = None, *, reads_only: bool = False
) -> PriceStore:
    from mdservice.redis_io.cluster_store import open_price_store

    if settings.redis_url is None:
        raise ConfigurationError("there is no Redis: set MDSERVICE_REDIS_URL")
    return open_price_store(
        settings.redis_url,
        price_ttl_s=settings.price_ttl,
        event_log=settings.event_log,
        prefix=settings.key_prefix,
        instance=instance,
        timeout_s=_STORE_TIMEOUT_S,
        kinds=(
            *kinds_of((QUOTES.channel, *settings.channels, *(settings.news and (NEWS.channel,)))),
            *((ACCOUNT_CHANNEL,) if settings.positions == ALPACA else ()),
        ),
        admit=admit,
        reads_only=reads_only,
    )


def _open_instances(
    settings: Settings, instance: str, facts: FeedFacts, clock: Clock, admit: Admit | None = None
) -> Instances | None:
    from mdservice.publish.instances import Instances

    if settings.redis_url is None:
        return None
    return Instances(
        settings.redis_url,
        id=instance,
        feed=facts.name,
        delay_s=facts.delay_s,
        price_ttl_s=settings.price_ttl,
        prefix=settings.key_prefix,
        channels=settings.channels,
        clock=clock,
        group=settings.group,
        admit=admit,
    )


def _open_journal(settings: Settings, stack: AsyncExitStack, clock: Clock) -> Recorder | None:
    if settings.journal is None:
        return None
    from mdservice.journal.recorder import JournalConfig, Recorder

    days, most_bytes = settings.journal_days, settings.journal_bytes
    config = JournalConfig(settings.journal, days, most_bytes, settings.secret_values())
    recorder = Recorder(config, clock)
    stack.callback(recorder.close)
    return recorder


async def _start_announcing(
    instances: Instances, market: MarketClock | None, clock: Clock, stack: AsyncExitStack
) -> None:
    """Announce the service, and the stock market's hours where they have a clock."""
    await stack.enter_async_context(background(instances.run))
    if market is not None:
        follow = partial(market.follow, clock, instances.set_market)
        await stack.enter_async_context(background(follow))


def _follow_positions(
    settings: Settings,
    source: PositionSource | None,
    stack: AsyncExitStack,
    clock: Clock,
    http: HttpClient,
) -> PositionCache | None:
    source = source or open_source(
        settings.positions,
        trading_url=settings.resolved_trading_url(),
        api_key=settings.api_key,
        secret_key=settings.secret_key,
        http=http,
    )
    if source is None:
        return None
    stack.push_async_callback(source.aclose)
    return PositionCache(source, settings.positions_interval, clock)
