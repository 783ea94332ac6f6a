"""The status of the service, made from the snapshots of its parts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

import attrs

from mdservice.app.topology import Topology
from mdservice.clock import Clock
from mdservice.feed.alpaca.drivers import make_market_clock
from mdservice.feed.connection import FeedSnapshot
from mdservice.feed.driver import Driver
from mdservice.model.kinds import QUOTES
from mdservice.model.status import (
    ActorReport,
    Counters,
    FeedReport,
    Inbox,
    PositionsReport,
    Readiness,
    RedisReport,
    ServiceState,
    Status,
)
from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.runtime.network import HttpClient
from mdservice.settings import Settings
from mdservice.settings.feeds import feed_delay_s

__all__ = ["FeedFacts", "feed_facts", "readiness", "status"]


@attrs.frozen
class FeedFacts:
    """The facts of the feed of one service, from the settings or from an embedder's drivers.

    Attributes:
        name: Its name in the status.
        simulated: Whether its prices are simulated.
        own: Whether it is the embedder's own feed and not one of Alpaca's.
        delay_s: The intended delay of its quotes, seconds.
        is_open: Returns whether its market is open.
        hours_refused: Why the trading API refuses to give the market's hours, or None.
    """

    name: str
    simulated: bool
    own: bool
    delay_s: float
    is_open: Callable[[], Awaitable[bool]]
    hours_refused: Callable[[], str | None]


def feed_facts(settings: Settings, drivers: Sequence[Driver] | None, http: HttpClient) -> FeedFacts:
    """The facts of the feed that the drivers connect to, or that the settings name.

    An embedder's drivers have their own feed, with the name of the first driver and always open,
    unless the settings name a feed of Alpaca's or the simulator.
    """
    named = "feed" in settings.sources or settings.feed_url is not None
    own = bool(drivers) and not named
    market = None if own else make_market_clock(settings, http)
    return FeedFacts(
        name=drivers[0].name if drivers and own else settings.feed_name,
        simulated=settings.simulated and not own,
        own=own,
        delay_s=feed_delay_s(settings.feed),
        is_open=_always if market is None else market.is_open,
        hours_refused=lambda: None if market is None else market.refused,
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
    feed = topology.feed.snapshot()
    if draining:
        reasons.append("the service is stopping")
    if not feed.connected:
        reasons.append(f"the feed is {feed.phase.replace('_', ' ')}{_because(feed.last_error)}")
    elif not feed.subscribed:
        reasons.append("the feed has not acknowledged the subscriptions yet")
    writer = topology.writer.snapshot()
    if not writer.connected:
        reasons.append(f"Redis is not connected{_because(writer.last_error)}")
    elif writer.last_error is not None:
        reasons.append(f"Redis refuses: {writer.last_error}")
    behind_s = topology.router.snapshot().clock_behind_s
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
    topology: Topology,
    clock: Clock,
    *,
    started_s: float,
    stale_after_s: float,
    key_prefix: str,
    draining: bool,
    conflicts: Sequence[str] = (),
) -> Status:
    """A snapshot of the whole service."""
    ready = readiness(topology, draining=draining)
    positions = _positions(topology)
    feed = topology.feed.snapshot()
    degraded = (*_why_degraded(feed, positions, facts.hours_refused()), *conflicts)
    publisher = topology.publisher.snapshot()
    watchdog = topology.watchdog.snapshot()
    return Status(
        state=_state(ready, degraded, draining=draining, ever_logged_in=feed.logins > 0),
        reasons=(*ready.reasons, *degraded),
        feed=FeedReport(
            name=facts.name,
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
            times_frozen_s=topology.router.snapshot().times_frozen_s,
        ),
        redis=_redis(topology, publisher.backlog, key_prefix),
        symbols=feed.wanted,
        uptime_s=round(clock.monotonic() - started_s, 3),
        actors=_actors(topology),
        counters=_counters(topology),
        latency_ms=publisher.latencies,
        positions=positions,
        loop_lag_ms=watchdog.loop_lag_ms,
        loop_lag_max_ms=watchdog.loop_lag_max_ms,
        stale_symbols=_stale(stale_after_s + facts.delay_s, topology, clock.utc_ns()),
        simulator=facts.simulated,
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
    left_out = topology.feed.snapshot().left_out
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
    )


def _why_degraded(
    feed: FeedSnapshot, positions: PositionsReport | None, hours_refused: str | None
) -> tuple[str, ...]:
    """The reasons for ``degraded`` that do not affect live prices: the service stays ready."""
    reasons = []
    if positions is not None and positions.last_error is not None:
        reasons.append(f"the positions are out of date: {positions.last_error}")
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


def _redis(topology: Topology, backlog: int, key_prefix: str) -> RedisReport:
    writer = topology.writer.snapshot()
    return RedisReport(
        connected=writer.connected,
        url=writer.address,
        last_error=writer.last_error,
        backlog=backlog,
        command_errors=writer.command_errors,
        last_command_error=writer.last_command_error,
        key_prefix=key_prefix,
    )


def _stale(limit_s: float, topology: Topology, now_ns: int) -> int:
    oldest_ns = now_ns - int(limit_s * 1e9)
    return sum(
        1
        for quote in topology.router.sequencer(QUOTES).all_latest()
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
        )
    return reports


def _counters(topology: Topology) -> Counters:
    """Collect each counter from the snapshot of the part that counts it."""
    snapshots = {
        "feed": topology.feed.snapshot(),
        "router": topology.router.snapshot(),
        "publisher": topology.publisher.snapshot(),
        "first_prices": topology.first_prices,
    }

    def total(counter: attrs.Attribute[int]) -> int:
        places = (place.partition(".") for place in counter.metadata["counted_by"])
        return sum(getattr(snapshots[part], name or counter.name) for part, _, name in places)

    return Counters(**{counter.name: total(counter) for counter in attrs.fields(Counters)})
