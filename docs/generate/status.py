"""The status of a service on a quiet afternoon, for the example of ``/status``."""

from __future__ import annotations

from mdservice.model.status import (
    ActorReport,
    Counters,
    FeedReport,
    Inbox,
    Latencies,
    Latency,
    PositionsReport,
    RedisReport,
    Status,
)

__all__ = ["STATUS"]

_SIZES = {
    "health_watchdog": 0,
    "redis_writer": 1,
    "event_publisher": 64,
    "quote_router": 64,
    "feed_connection": 100,
    "position_tracker": 0,
}

STATUS = Status(
    state="running",
    reasons=(),
    feed=FeedReport(
        name="iex",
        driver="alpaca-py",
        phase="streaming",
        connected=True,
        subscribed=True,
        reconnects=1,
        last_error="the connection was closed",
        wanted=2,
        acknowledged=2,
        left_out={},
    ),
    redis=RedisReport(True, "redis://localhost:6379", None, backlog=0),
    symbols=2,
    uptime_s=5821.4,
    actors={name: ActorReport("running", 0, 0.2, Inbox(0, size)) for name, size in _SIZES.items()},
    counters=Counters(
        quotes_received=52_310,
        quotes_accepted=52_304,
        quotes_stale=6,
        prices_written=52_211,
        events_published=52_304,
        reconnects=1,
        gaps=1,
        gaps_repaired=1,
        quotes_backfilled=14,
        prices_fetched=2,
    ),
    latency_ms=Latencies(Latency(21.4, 48.0, 97.3), Latency(0.5, 1.2, 8.1), Latency(20.8, 47, 96)),
    loop_lag_ms=0.2,
    positions=PositionsReport(
        source="https://paper-api.alpaca.markets/v2/positions",
        state="ok",
        held=2,
        followed=2,
        left_out=(),
        problems={},
        age_s=3.1,
        last_error=None,
    ),
)
