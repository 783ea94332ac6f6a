"""``/status``: the names of the contract, in plain JSON types."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest

from mdservice.model.status import (
    ActorReport,
    Counters,
    FeedReport,
    Inbox,
    Latencies,
    Latency,
    Readiness,
    RedisReport,
    RelayClient,
    RelayStatus,
    Status,
    status_to_json,
)

STATUS = Status(
    state="degraded",
    reasons=("Redis is not connected",),
    feed=FeedReport(
        name="iex",
        driver="websockets",
        phase="streaming",
        connected=True,
        subscribed=True,
        reconnects=2,
        last_error=None,
        left_out={"ZZZ": "symbol limit"},
    ),
    redis=RedisReport(connected=False, url="unix:///run/s", last_error="refused"),
    symbols=2,
    uptime_s=1.5,
    actors={"quote_router": ActorReport("running", 1, 0.25, Inbox(3, 64))},
    counters=Counters(quotes_received=7),
    latency_ms=Latencies(Latency(1.0, 2.0, 3.0)),
    loop_lag_ms=0.1,
)

CONTRACT: dict[str, Any] = {
    "state": "degraded",
    "feed": {
        "name": "iex",
        "driver": "websockets",
        "connected": True,
        "reconnects": 2,
        "last_error": None,
    },
    "redis": {"connected": False, "url": "unix:///run/s", "last_error": "refused"},
    "symbols": 2,
    "uptime_s": 1.5,
    "actors": {
        "quote_router": {
            "state": "running",
            "restarts": 1,
            "heartbeat_age_s": 0.25,
            "inbox": {"used": 3, "size": 64},
        }
    },
    "counters": {"quotes_received": 7},
    "latency_ms": {
        "feed_to_redis": {"p50": 1.0, "p99": 2.0, "max": 3.0},
        "receive_to_redis": {"p50": None, "p99": None, "max": None},
    },
}


def part_of(whole: Any, wanted: Any) -> Any:
    """Of ``whole`` the fields that ``wanted`` has."""
    if not isinstance(wanted, dict):
        return whole
    return {name: part_of(whole[name], wanted[name]) for name in wanted}


def test_has_the_fields_of_the_contract_in_plain_json() -> None:
    plain = json.loads(json.dumps(status_to_json(STATUS)))
    assert part_of(plain, CONTRACT) == CONTRACT
    assert plain == status_to_json(STATUS), "no tuple, no object"
    assert plain["reasons"] == ["Redis is not connected"]


def test_the_relay_appears_only_where_it_is_on() -> None:
    assert "relay" not in status_to_json(STATUS)
    client = RelayClient(
        name="bot",
        address="127.0.0.1:50412",
        path="/v2/iex",
        encoding="msgpack",
        connected_s=12.5,
        symbols=3,
        sent=700,
        rate=20.5,
        backlog=1,
        conflated=2,
    )
    relay = RelayStatus("127.0.0.1:8765", (client,), cut=1, messages=900, conflated=4)
    plain = status_to_json(attrs.evolve(STATUS, relay=relay))["relay"]
    assert plain == json.loads(json.dumps(plain)), "no tuple, no object"
    assert plain == {
        "address": "127.0.0.1:8765",
        "clients": [
            {
                "name": "bot",
                "address": "127.0.0.1:50412",
                "path": "/v2/iex",
                "encoding": "msgpack",
                "connected_s": 12.5,
                "symbols": 3,
                "sent": 700,
                "rate": 20.5,
                "backlog": 1,
                "conflated": 2,
            }
        ],
        "cut": 1,
        "messages": 900,
        "conflated": 4,
    }


def test_counters_of_the_contract_are_there() -> None:
    assert {
        "quotes_received",
        "quotes_accepted",
        "quotes_stale",
        "prices_written",
        "events_published",
        "events_conflated",
        "trades_dropped",
        "decode_errors",
        "reconnects",
        "gaps",
        "gaps_repaired",
        "quotes_backfilled",
        "history_symbols_refused",
        "prices_fetched",
        "price_fetches_failed",
        "unfollowed",
    } <= attrs.asdict(Counters()).keys()


@pytest.mark.parametrize("value", [STATUS, STATUS.feed, STATUS.counters, Readiness(ready=True)])
def test_a_snapshot_cannot_be_changed(value: Any) -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(value, attrs.fields(type(value))[0].name, None)
