"""The wiring: every actor, every channel with its size, what happens when it is full, and why.

::

    PositionTracker
           │
    commands ──▶ FeedConnection ──feed──▶ QuoteRouter ──events──▶ EventPublisher ──batches──▶ RedisWriter
                                              │                        ▲                          │
                                              └──▶ LocalReaders        └──────acknowledged────────┘
"""  # noqa: E501 - the picture is one line

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs

from mdservice.clock import Clock
from mdservice.feed.connection import FeedConnection
from mdservice.feed.driver import Driver
from mdservice.feed.first_prices import FirstPrices
from mdservice.feed.gap_repair.repair import GapRepair
from mdservice.feed.history import HalvingHistory, History
from mdservice.feed.liveness import Liveness
from mdservice.feed.requests import Command, Follow, SubscriptionResult, Unsubscribe
from mdservice.feed.retries import DriverSelection
from mdservice.feed.send_queue import SendQueue
from mdservice.feed.subscriptions import SubscriptionSet
from mdservice.model.events import FeedItem, RoutedItem
from mdservice.model.kinds import QUOTES, Kind
from mdservice.model.quote import Quote
from mdservice.positions.cache import PositionCache
from mdservice.positions.tracker import SOURCE, PositionTracker
from mdservice.publish.publisher import EventPublisher
from mdservice.publish.readers import LocalReaders
from mdservice.publish.store import PriceStore, WriteBatch
from mdservice.publish.writer import RedisWriter
from mdservice.router.actor import QuoteRouter
from mdservice.runtime.actor import Actor, Channel
from mdservice.runtime.backoff import Backoff
from mdservice.runtime.supervisor import HealthWatchdog, Supervisor

__all__ = ["ChannelPlan", "Topology", "build"]


@attrs.frozen
class ChannelPlan:
    """One channel's size, what a full one does, and why that is right."""

    size: int
    when_full: str
    why: str


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
class Topology:
    """All parts of one service, joined by channels. Nothing runs before ``supervisor.run``."""

    feed: FeedConnection
    first_prices: FirstPrices[Quote]
    router: QuoteRouter
    publisher: EventPublisher
    writer: RedisWriter
    watchdog: HealthWatchdog
    readers: LocalReaders
    tracker: PositionTracker | None
    supervisor: Supervisor
    commands: Channel[Command]
    channels: Sequence[Channel[Any]]

    async def request(self, command: Command) -> SubscriptionResult:
        """Change the subscriptions, and fetch the first prices of new symbols from REST meanwhile.

        Raises:
            SubscriptionRefused: The feed refused the request.
        """
        if not isinstance(command, Unsubscribe):
            self.first_prices.want(command.symbols)
        await self.commands.outbox.send(command)
        try:
            return await command.answer.wait()
        finally:
            self.first_prices.forget(command.symbols)

    def close(self) -> None:
        """Close every channel after the actors have ended."""
        for channel in self.channels:
            channel.close()


def build(
    *,
    drivers: Sequence[Driver],
    history: History | None,
    is_open: Callable[[], Awaitable[bool]],
    mute_after_s: float,
    store: PriceStore,
    symbols: Sequence[str],
    backlog: int,
    clock: Clock,
    rng: random.Random,
    positions: PositionCache | None = None,
    last_quotes: Sequence[Quote] = (),
    price_ttl_s: int = 300,
    renew_prices: bool = True,
) -> Topology:
    """Join the parts of one service.

    Args:
        drivers: The drivers in the order in which to try them.
        history: The source of missed quotes, or None.
        is_open: Returns whether the market is open.
        mute_after_s: The silence after which an open connection is checked, seconds.
        store: The store. The writer connects and closes it.
        symbols: The symbols of the settings.
        backlog: How many events are kept in order while the store is down.
        clock: The time.
        rng: The source of random numbers for the back-off's jitter.
        positions: The positions whose symbols are subscribed, or None.
        last_quotes: The last quote of each symbol from an earlier run.
        price_ttl_s: How long a price lives in the store, seconds.
        renew_prices: Whether the writer renews the price of a quiet symbol while connected.
    """
    commands = Channel[Command](COMMANDS.size)
    feed_items = Channel[FeedItem](FEED.size)
    events = Channel[RoutedItem](EVENTS.size)
    batches = Channel[WriteBatch](BATCHES.size)
    acknowledged = Channel[int](ACKNOWLEDGED.size)

    subscriptions = SubscriptionSet()
    subscriptions.add(symbols, "settings")
    readers = LocalReaders()

    def confirmed(kind: Kind[Any], symbols: Sequence[str]) -> None:
        writer.confirm(kind, symbols)

    def vouched() -> frozenset[str]:
        return feed.vouched()

    router = QuoteRouter(feed_items, events.outbox, readers.offer, clock, confirmed)
    router.start_from(QUOTES, last_quotes, resuming=_can_resume(last_quotes, clock.utc_ns()))
    send_queue = SendQueue(feed_items.outbox)
    accepted = router.sequencer(QUOTES)
    halving_history = HalvingHistory(history, QUOTES) if history is not None else None
    repair = GapRepair(QUOTES, halving_history, accepted, send_queue, clock)
    first_prices = FirstPrices(
        QUOTES, halving_history, subscriptions, repair, accepted, send_queue, clock
    )
    first_prices.want_all()
    feed = FeedConnection(
        DriverSelection(drivers),
        subscriptions,
        commands,
        send_queue,
        clock,
        Backoff(rng=rng),
        repair,
        Liveness(mute_after_s, halving_history, is_open, accepted),
        first_prices,
    )
    publisher = EventPublisher(events, batches.outbox, acknowledged, backlog, clock)
    writer = RedisWriter(
        batches,
        acknowledged.outbox,
        store,
        clock,
        vouched if renew_prices else None,
        price_ttl_s,
    )
    writer.start_from(QUOTES, {quote.symbol: QUOTES.encode(quote) for quote in last_quotes})
    watchdog = HealthWatchdog(clock)

    async def follow(symbols: tuple[str, ...]) -> None:
        await topology.request(Follow(symbols, SOURCE))

    tracker = None
    # They start in this order, so the receiver of each channel is ready before the sender.
    actors: list[Actor] = [watchdog, writer, publisher, router, feed]
    if positions is not None:
        tracker = PositionTracker(positions, follow, clock)
        actors.append(tracker)
    supervisor = Supervisor(actors, clock)
    watchdog.watch(supervisor)
    topology = Topology(
        feed,
        first_prices,
        router,
        publisher,
        writer,
        watchdog,
        readers,
        tracker,
        supervisor,
        commands,
        channels=(commands, feed_items, events, batches, acknowledged),
    )
    return topology


def _can_resume(last_quotes: Sequence[Quote], now_ns: int) -> bool:
    return any(now_ns - quote.ts_event_ns <= _LONGEST_PAUSE_NS for quote in last_quotes)
