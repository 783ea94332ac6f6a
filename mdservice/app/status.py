"""The status of the service, made from the snapshots of its parts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal
from zoneinfo import ZoneInfo

import attrs

from mdservice.app.topology import Pipeline, Topology
from mdservice.clock import Clock
from mdservice.feed.alpaca.drivers import make_market_clock, make_stock_clock
from mdservice.feed.connection import IDLE, FeedSnapshot
from mdservice.feed.driver import Driver
from mdservice.feed.liveness import Hours
from mdservice.model.feeds import NEWS_FEED, STOCKS, FeedName
from mdservice.model.kinds import KINDS, QUOTES
from mdservice.model.status import (
    ActorReport,
    ChannelCounters,
    Counters,
    FeedReport,
    Inbox,
    JournalStatus,
    PositionsReport,
    Readiness,
    RedisReport,
    RelayStatus,
    ServiceState,
    Status,
    TradeUpdatesReport,
)
from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.publish.publisher import PublisherSnapshot
from mdservice.publish.store import Refusable, channel_of
from mdservice.publish.writer import WriterSnapshot
from mdservice.runtime.market_clock import MarketClock
from mdservice.runtime.network import HttpClient
from mdservice.settings import Settings
from mdservice.settings.feeds import feed_delay_s

__all__ = [
    "FeedFacts",
    "always_open",
    "feed_facts",
    "news_hours",
    "readiness",
    "status",
]


@attrs.frozen
class FeedFacts:
    """The facts of the first feed of one service, from the settings or an embedder's drivers.

    Attributes:
        name: Its name in the status.
        simulated: Whether its prices are simulated.
        own: Whether it is the embedder's own feed and not one of Alpaca's.
        delay_s: The intended delay of its quotes, seconds.
        is_open: Returns whether its market is open.
        hours_refused: Why the trading API refuses to give the market's hours, or None.
        own_names: The name of each feed of an embedder; none of Alpaca's.
        market_clock: The clock of the stock market that ``is_open`` asks, or None.
    """

    name: str
    simulated: bool
    own: bool
    delay_s: float
    is_open: Callable[[], Awaitable[bool]]
    hours_refused: Callable[[], str | None]
    own_names: Mapping[FeedName, str] = attrs.field(factory=dict)
    market_clock: MarketClock | None = None

    def hours(self, clock: Clock) -> Callable[[], Awaitable[Hours]]:
        """Returns what the silence of the feed means, also before the open and after the close."""

        async def hours() -> Hours:
            if await self.is_open():
                return "open"
            return "extended" if _in_extended_hours(clock.utc_ns()) else "closed"

        return hours

    def stock_clock(self, settings: Settings, http: HttpClient) -> MarketClock | None:
        """The clock of the stock market, also for a feed that is always open; None without one.

        Args:
            settings: With the addresses of a simulator that was started here.
            http: What it uses.
        """
        if self.market_clock is not None or self.own:
            return self.market_clock
        return make_stock_clock(settings, http)

    async def regular_hours(self) -> Hours:
        """What silence means for a market without trading before the open and after the close."""
        return "open" if await self.is_open() else "closed"


async def always_open() -> Hours:
    """What silence means in a market that never closes."""
    return "open"


async def news_hours() -> Hours:
    """What silence means for news: nothing, unless REST has a newer article."""
    return "extended"


_SECONDS_NS = 1_000_000_000
_SATURDAY = 5
_FIRST_HOUR, _LAST_HOUR = 4, 20
"""The hours of trading in New York, before the open and after the close included.

Source: Alpaca, "Orders at Alpaca", extended hours.
"""


def _in_extended_hours(utc_ns: int) -> bool:
    moment = datetime.fromtimestamp(utc_ns // _SECONDS_NS, ZoneInfo("America/New_York"))
    return moment.weekday() < _SATURDAY and _FIRST_HOUR <= moment.hour < _LAST_HOUR


def feed_facts(
    settings: Settings, drivers: Mapping[FeedName, Sequence[Driver]], http: HttpClient
) -> FeedFacts:
    """The facts of the feed that the drivers connect to, or that the settings name.

    An embedder's drivers have their own feeds, each with the name of its first driver and always
    open, unless the settings name a feed of Alpaca's or the simulator.

    Args:
        settings: The settings.
        drivers: The embedder's, by feed, in order.
        http: Asks for the market's hours.
    """
    named = "feed" in settings.sources or settings.feed_url is not None
    own_names = {} if named else {feed: some[0].name for feed, some in drivers.items() if some}
    own = bool(own_names)
    market = None if own else make_market_clock(settings, http)
    return FeedFacts(
        name=next(iter(own_names.values()), settings.feed_name),
        own_names=own_names,
        simulated=settings.simulated and not own,
        own=own,
        delay_s=feed_delay_s(settings.feed),
        is_open=_always if market is None else market.is_open,
        hours_refused=lambda: None if market is None else market.refused,
        market_clock=None if market is None else market.clock,
    )


async def _always() -> bool:
    return True


_SHOWN = 100
"""Symbols that the status lists, of what may be thousands."""
_NAMED = 10
"""Symbols that one sentence lists."""


def readiness(topology: Topology, *, draining: bool) -> Readiness:
    """Whether the service is ready: logged in, all wanted symbols subscribed, Redis answers."""
    reasons = []
    if draining:
        reasons.append("the service is stopping")
    for pipeline in topology.pipelines:
        feed = pipeline.connection.snapshot()
        name = "feed" if pipeline.feed is STOCKS else f"{pipeline.feed.name} feed"
        if feed.phase == IDLE:
            continue
        if not feed.connected:
            phase = feed.phase.replace("_", " ")
            reasons.append(f"the {name} is {phase}{_because(feed.last_error)}")
        elif not feed.subscribed:
            reasons.append(f"the {name} has not acknowledged the subscriptions yet")
    writer = topology.writer.snapshot()
    if not writer.connected:
        reasons.append(f"Redis is not connected{_because(writer.last_error)}")
    elif writer.last_error is not None:
        reasons.append(f"Redis refuses: {writer.last_error}")
    behind = (each.router.snapshot().clock_behind_s for each in topology.pipelines)
    behind_s = next((seconds for seconds in behind if seconds is not None), None)
    if behind_s is not None:
        reasons.append(
            f"this machine's clock is {behind_s:.0f} s behind the feed's, so most quotes are "
            "refused; set the clock"
        )
    reasons.extend(
        f"{actor.name} is {state}{_because(topology.supervisor.look_at(actor.name).last_error)}"
        for actor in topology.supervisor.actors
        if (state := topology.supervisor.look_at(actor.name).state) in ("restarting", "failed")
    )
    return Readiness(not reasons, tuple(reasons))


def _because(reason: str | None) -> str:
    return f": {reason}" if reason else ""


def status(
    facts: FeedFacts,
    names: Mapping[FeedName, str],
    topology: Topology,
    clock: Clock,
    *,
    started_s: float,
    stale_after_s: float,
    key_prefix: str,
    draining: bool,
    conflicts: Sequence[str] = (),
    relay: RelayStatus | None = None,
    journal: JournalStatus | None = None,
    clock_ahead_s: float | None = None,
) -> Status:
    """A snapshot of the whole service; ``names`` has Alpaca's name of what each feed carries."""
    ready = readiness(topology, draining=draining)
    positions = _positions(topology)
    parts = _snapshots(topology)
    snapshots = {
        each.feed.name: found for each, found in zip(topology.pipelines, parts["feed"], strict=True)
    }
    late = None if topology.trade_updates is None else topology.trade_updates.snapshot().warning
    why = _why_degraded(snapshots.values(), positions, late, facts.hours_refused())
    unrecorded = (journal.last_error,) if journal is not None and journal.last_error else ()
    degraded = (*why, *_not_written(topology), *conflicts, *unrecorded)
    publisher, writer = topology.publisher.snapshot(), topology.writer.snapshot()
    watchdog = topology.watchdog.snapshot()
    feeds: dict[str, FeedReport] = {
        each.feed.name: _feed(names[each.feed.name], snapshots[each.feed.name], each)
        for each in topology.pipelines
    }
    logged_in = any(feed.logins > 0 for feed in snapshots.values())
    wanted = sum(feed.wanted for name, feed in snapshots.items() if name != NEWS_FEED.name)
    return Status(
        state=_state(ready, degraded, draining=draining, ever_logged_in=logged_in),
        reasons=(*ready.reasons, *degraded),
        feed=feeds[topology.pipelines[0].feed.name],
        feeds=feeds,
        redis=_redis(writer, publisher, key_prefix),
        symbols=wanted,
        uptime_s=round(clock.monotonic() - started_s, 3),
        actors=_actors(topology),
        counters=_counters(parts),
        channels=_channel_counters(parts),
        latency_ms=publisher.latencies,
        histograms={**publisher.histograms, "redis_write": writer.write_times},
        positions=positions,
        loop_lag_ms=watchdog.loop_lag_ms,
        loop_lag_max_ms=watchdog.loop_lag_max_ms,
        stale_symbols=_stale(stale_after_s + facts.delay_s, topology, clock.utc_ns()),
        clock_ahead_s=clock_ahead_s,
        simulator=facts.simulated,
        relay=relay,
        journal=journal,
    )


def _feed(name: str, feed: FeedSnapshot, pipeline: Pipeline) -> FeedReport:
    router = pipeline.router.snapshot()
    return FeedReport(
        name=name,
        driver=feed.driver,
        phase=feed.phase,
        connected=feed.connected,
        subscribed=feed.subscribed,
        reconnects=feed.reconnects,
        last_error=feed.last_error,
        wanted=feed.wanted,
        acknowledged=feed.acknowledged,
        left_out=feed.left_out,
        other_messages=feed.other_messages,
        without_quotes=len(feed.without_quotes),
        without_quotes_first=tuple(feed.without_quotes[:_SHOWN]),
        repairs_refused=feed.history_set_aside,
        repair_error=feed.history_refused,
        times_frozen_s=router.times_frozen_s,
        received=feed.records_received,
        silent=feed.silent,
        silent_symbols=feed.silent_symbols,
        decode_errors=feed.decode_errors + router.future_records,
        gaps=router.gaps,
        gaps_repaired=router.gaps_repaired,
        clock_behind_s=router.clock_behind_s,
    )


def _state(
    ready: Readiness, degraded: Sequence[str], *, draining: bool, ever_logged_in: bool
) -> ServiceState:
    if draining:
        return "draining"
    if ready.ready:
        return "degraded" if degraded else "running"
    return "degraded" if ever_logged_in else "starting"


def _positions(topology: Topology) -> PositionsReport | None:
    if topology.tracker is None:
        return None
    tracker = topology.tracker.snapshot()
    left_out: dict[str, str] = {}
    for pipeline in topology.pipelines:
        left_out |= pipeline.connection.snapshot().left_out
    every = EVERY_SYMBOL in topology.feed.sources() and EVERY_SYMBOL not in left_out
    answered: Literal["starting", "ok"] = "starting" if tracker.age_s is None else "ok"
    return PositionsReport(
        source=tracker.source,
        state="degraded" if tracker.last_error is not None else answered,
        held=len(tracker.positions),
        followed=len(tracker.followed),
        left_out=() if every else tuple(s for s in tracker.followed if s in left_out),
        problems={p.symbol: p.problem for p in tracker.positions if p.problem is not None},
        age_s=None if tracker.age_s is None else round(tracker.age_s, 3),
        last_error=tracker.last_error,
        differences=tuple(tracker.differences),
        updates=_updates(topology),
    )


def _updates(topology: Topology) -> TradeUpdatesReport | None:
    if topology.trade_updates is None:
        return None
    updates = topology.trade_updates.snapshot()
    return TradeUpdatesReport(
        url=updates.address,
        state=updates.state,
        reconnects=updates.reconnects,
        last_error=updates.last_error,
    )


def _why_degraded(
    feeds: Iterable[FeedSnapshot],
    positions: PositionsReport | None,
    late: str | None,
    hours_refused: str | None,
) -> tuple[str, ...]:
    """The reasons for ``degraded`` that do not affect live prices: the service stays ready."""
    reasons = []
    if positions is not None and positions.last_error is not None:
        reasons.append(f"the positions are out of date: {positions.last_error}")
    if late is not None:
        reasons.append(late)
    for feed in feeds:
        if feed.history_refused is not None:
            reasons.append(f"repairs are refused: {feed.history_refused}")
        if feed.history_set_aside:
            symbols = list(feed.history_set_aside)
            more = f" and {len(symbols) - _NAMED} more" if len(symbols) > _NAMED else ""
            reasons.append(
                f"repairs of {', '.join(symbols[:_NAMED])}{more} are refused: "
                f"{feed.history_set_aside[symbols[0]]}"
            )
    if hours_refused is not None:
        reasons.append(f"the market's hours are not known, so it counts as open: {hours_refused}")
    return tuple(reasons)


def _not_written(topology: Topology) -> tuple[str, ...]:
    """What the service does not write although it is wanted, because the Redis user may not."""

    def is_wanted(one: Refusable) -> bool:
        if isinstance(one, str):
            return topology.trade_updates is not None
        return any(each.connection.wants(one) for each in topology.pipelines)

    missing = [
        (channel_of(one), rights)
        for one, rights in topology.writer.snapshot().refused.items()
        if is_wanted(one)
    ]
    if not missing:
        return ()
    channels, rights = zip(*missing, strict=True)
    reason = (
        f"the Redis user has no right to {', '.join(rights)}, so these are not written: "
        f"{', '.join(channels)}; `mdservice check` prints the ACL line"
    )
    return (reason,)


def _redis(writer: WriterSnapshot, publisher: PublisherSnapshot, key_prefix: str) -> RedisReport:
    return RedisReport(
        connected=writer.connected,
        url=writer.address,
        last_error=writer.last_error,
        backlog=publisher.backlog,
        backlog_limit=publisher.backlog_limit,
        command_errors=writer.command_errors,
        last_command_error=writer.last_command_error,
        key_prefix=key_prefix,
        refusal=writer.refusal,
    )


def _stale(limit_s: float, topology: Topology, now_ns: int) -> int:
    oldest_ns = now_ns - int(limit_s * 1e9)
    return sum(
        1
        for pipeline in topology.pipelines
        if QUOTES in pipeline.feed.kinds
        for quote in pipeline.router.sequencer(QUOTES).all_latest()
        if quote.ts_event_ns < oldest_ns
    )


def _actors(topology: Topology) -> dict[str, ActorReport]:
    reports = {}
    for actor in topology.supervisor.actors:
        seen = topology.supervisor.look_at(actor.name)
        reports[actor.name] = ActorReport(
            state=seen.state,
            restarts=seen.restarts,
            heartbeat_age_s=round(actor.heartbeat.age_s(), 3),
            inbox=Inbox(actor.depth.used, actor.depth.size),
            last_error=seen.last_error,
            stalls=seen.stalls,
        )
    return reports


def _snapshots(topology: Topology) -> dict[str, Sequence[Any]]:
    """The snapshots of the parts that count something."""
    pipelines, updates = topology.pipelines, topology.trade_updates
    return {
        "feed": [each.connection.snapshot() for each in pipelines],
        "router": [each.router.snapshot() for each in pipelines],
        "publisher": [topology.publisher.snapshot()],
        "trade_updates": [] if updates is None else [updates.snapshot()],
        "first_prices": [first for each in pipelines for first in each.first_prices.values()],
    }


def _channel_counters(snapshots: Mapping[str, Sequence[Any]]) -> dict[str, ChannelCounters]:
    """The totals of each channel, from the snapshots of the parts that count them."""
    found: dict[str, dict[str, int]] = {}
    for counter in attrs.fields(ChannelCounters):
        for place in counter.metadata["counted_by"]:
            part, _, name = place.partition(".")
            for snapshot in snapshots[part]:
                for channel, count in getattr(snapshot, name or counter.name).items():
                    counts = found.setdefault(channel, {})
                    counts[counter.name] = counts.get(counter.name, 0) + count
    named = (kind.channel for kind in KINDS)
    return {c: ChannelCounters(**found[c]) for c in named if any(found.get(c, {}).values())}


def _counters(snapshots: Mapping[str, Sequence[Any]]) -> Counters:
    """Collect each counter from the snapshot of the part that counts it."""

    def total(counter: attrs.Attribute[int]) -> int:
        places = (place.partition(".") for place in counter.metadata["counted_by"])
        return sum(
            getattr(snapshot, name or counter.name)
            for part, _, name in places
            for snapshot in snapshots[part]
        )

    return Counters(**{counter.name: total(counter) for counter in attrs.fields(Counters)})
