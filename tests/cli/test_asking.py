"""``mdservice status`` for people."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import attrs
import click
import pytest

from mdservice.cli.asking import WIDTH, status_lines
from mdservice.model.status import (
    ActorReport,
    Counters,
    FeedReport,
    Inbox,
    Latencies,
    Latency,
    PositionsReport,
    RedisReport,
    RelayClient,
    RelayStatus,
    Status,
    status_to_json,
)

STATUS = Status(
    state="degraded",
    reasons=("the feed is not connected", "redis does not answer " + "for long " * 20),
    feed=FeedReport(
        name="delayed_sip",
        driver="alpaca-py",
        phase="waiting_for_slot",
        connected=False,
        subscribed=False,
        reconnects=12_345,
        last_error="the feed refused with 406: connection limit exceeded " * 3,
        left_out={"FAKEPACA": "unknown"},
        without_quotes=1_200,
        without_quotes_first=tuple(f"S{number}" for number in range(100)),
        times_frozen_s=75.0,
    ),
    redis=RedisReport(
        connected=False,
        url="unix:///tmp/" + "long-name-" * 9 + "redis.sock",
        last_error="connection refused",
        backlog=99_999,
    ),
    symbols=11_000,
    uptime_s=93_784.5,
    actors={
        "FeedConnection": ActorReport("running", 0, 0.25, Inbox(3, 1_000)),
        "AnActorWithAVeryLongNameIndeed": ActorReport(
            "restarting", 1_000, 99_999.5, Inbox(100_000, 100_000), "it broke " * 20
        ),
    },
    counters=Counters(quotes_received=12_345_678_901, quotes_accepted=7),
    latency_ms=Latencies(feed_to_redis=Latency(1.234, 5_432.1, 123_456.0)),
    loop_lag_ms=0.3,
    simulator=True,
)


def table(status: Mapping[str, Any]) -> list[str]:
    return [click.unstyle(line) for line in status_lines(status)]


def test_the_table_shows_everything_within_80_columns() -> None:
    lines = table(status_to_json(STATUS))
    assert max(map(len, lines)) <= WIDTH
    text = " ".join("\n".join(lines).split())
    for part in (
        "service degraded, up 1 d 2 h, 11,000 symbols",
        "simulated prices",
        "the feed is not connected",
        "delayed_sip by alpaca-py, not connected, waiting for slot, 12,345 reconnects",
        "last error: the feed refused with 406",
        "left out: FAKEPACA (unknown)",
        "1,200 symbols have had no quote yet: S0, S1, S2, S3, S4, S5, S6, S7, …",
        "their times have stood still for 1 min 15 s",
        "not connected, 99,999 events waiting",
        "feed to redis p50 1.23 ms p99 5.4 s max 123.5 s",
        "receive to redis p50 - p99 - max -",
        "feed to receive p50 - p99 - max -",
        "quotes_received 12,345,678,901",
        "FeedConnection running 0 0.2 s 3/1,000",
        "AnActorWithAVeryLongName… restarting 1,000 1 d 3 h 100,000/100,000",
        "last error: it broke",
    ):
        assert part in text


def test_no_text_steers_the_terminal() -> None:
    hostile = "a\x1b[2J\x9b31m\x07"
    feed = attrs.evolve(
        STATUS.feed, driver=hostile, last_error=hostile, left_out={hostile: hostile}
    )
    actors = {hostile: ActorReport("running", 0, 1.0, Inbox(0, 1), hostile)}
    status = attrs.evolve(
        STATUS, feed=feed, feeds={hostile: feed}, actors=actors, reasons=(hostile,)
    )
    lines = table(status_to_json(status))
    assert all(line.isprintable() for line in lines)
    assert sum("\\x1b[2J" in line for line in lines) > 5


def test_every_counter_and_actor_has_its_place() -> None:
    text = "\n".join(table(status_to_json(STATUS)))
    for counter in attrs.asdict(STATUS.counters):
        assert len(re.findall(rf"\b{counter} +[\d,]+", text)) == 1


def test_the_counters_stand_in_two_columns() -> None:
    lines = list(status_lines(status_to_json(attrs.evolve(STATUS, counters=Counters()))))
    rows = [line for line in lines if re.fullmatch(r"\w+ +0( +\w+ +0)?", line)]
    assert len(rows) == (len(attrs.fields(Counters)) + 1) // 2
    assert {len(line) for line in rows} <= {36, 76}


def test_a_quiet_service_is_reported_without_errors() -> None:
    status = attrs.evolve(
        STATUS,
        state="running",
        reasons=(),
        feed=FeedReport("delayed_sip", "alpaca-py", "streaming", True, True, 12_345, None),
        redis=RedisReport(connected=True, url="redis://db", last_error=None),
        simulator=False,
        actors={},
        uptime_s=61.0,
    )
    lines = table(status_to_json(status))
    assert lines[0] == "service   running, up 1 min 1 s, 11,000 symbols"
    assert lines[1] == "feed      delayed_sip by alpaca-py, connected, 12,345 reconnects"
    assert lines[2] == "redis     connected, redis://db"


def test_what_is_wrong_quietly_is_reported() -> None:
    redis = attrs.evolve(STATUS.redis, command_errors=7, last_command_error="WRONGTYPE no stream")
    lines = table(status_to_json(attrs.evolve(STATUS, redis=redis, stale_symbols=3)))
    assert "          3 symbols have a stale price" in lines
    assert "          7 commands failed inside writes: WRONGTYPE no stream" in lines


def positions_rows(**more: Any) -> list[str]:
    known: dict[str, Any] = {
        "source": "https://gw/positions", "state": "ok", "held": 4_000, "followed": 3, "age_s": 2.5,
        "left_out": (), "problems": {}, "last_error": None,
    }  # fmt: skip
    report = PositionsReport(**{**known, **more})
    lines = table(status_to_json(attrs.evolve(STATUS, positions=report)))
    start = next(n for n, line in enumerate(lines) if line.startswith("positions"))
    return [" ".join(line.split()) for line in lines[start : start + 3]]


def test_positions_are_shown_with_their_age_and_source() -> None:
    row = "positions 4,000 held, 3 symbols subscribed, updated 2.5 s ago, https://gw/positions"
    assert " ".join(positions_rows()).startswith(row)


def test_positions_that_are_not_known_yet_have_no_age() -> None:
    rows = " ".join(positions_rows(age_s=None, last_error="refused", left_out=("A", "B")))
    assert "not known yet" in rows
    assert "updated" not in rows
    assert "last error: refused" in rows
    assert "not subscribed, the feed allows no more: A" in rows


def test_without_positions_there_is_no_row_for_them() -> None:
    assert not any(line.startswith("positions") for line in table(status_to_json(STATUS)))


def test_what_another_version_leaves_out_is_a_dash() -> None:
    lines = table({"actors": {"A": {}}, "latency_ms": None, "feed": 3})
    assert lines[0] == "service   -, up -, - symbols"
    assert any(line.startswith("A    ") and line.endswith("-/-") for line in lines)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.4, "0 s"),
        (59.9, "59 s"),
        (3_599, "59 min 59 s"),
        (3_600, "1 h 0 min"),
        (86_400, "1 d 0 h"),
    ],
)
def test_uptime_in_words(seconds: float, told: str) -> None:
    assert f"up {told}," in table({"uptime_s": seconds})[0]


def test_each_feed_in_use_has_its_line() -> None:
    crypto = FeedReport("us", "websockets", "streaming", True, True, 3, None, wanted=2)
    idle = FeedReport("indicative", "websockets", "idle", False, False, 0, None)
    feeds = {"stocks": STATUS.feed, "crypto": crypto, "options": idle}
    rows = table(status_to_json(attrs.evolve(STATUS, feeds=feeds)))
    assert "crypto    us by websockets, connected, 3 reconnects" in rows
    assert not any(row.startswith(("options", "stocks")) for row in rows)


def relay_of(*clients: RelayClient, **more: int) -> list[str]:
    totals = {"cut": 0, "messages": 0, "conflated": 0, **more}
    relay = RelayStatus("127.0.0.1:8765", clients, **totals)
    return table(status_to_json(attrs.evolve(STATUS, relay=relay)))


BOT = RelayClient(
    name="bot",
    address="127.0.0.1:50412",
    path="/v1beta3/crypto/us-1",
    encoding="msgpack",
    connected_s=75.0,
    symbols=3,
    sent=700,
    rate=20.54,
    backlog=1,
    conflated=0,
)


def test_the_relay_has_a_row_and_a_line_for_each_client() -> None:
    slow = attrs.evolve(
        BOT,
        name="a-name-that-is-longer-than-its-column (7)",
        address="[2001:db8::1234:5678]:50413",
        symbols=11_000,
        rate=123_456.7,
        backlog=10_001,
        conflated=5_000,
    )
    lines = relay_of(BOT, slow, cut=1, messages=12_345, conflated=4)
    assert max(map(len, lines)) <= WIDTH
    rows = [" ".join(line.split()) for line in lines]
    assert "relay 127.0.0.1:8765, 2 clients, 12,345 messages, 4 conflated, 1 cut off" in rows
    assert "bot 127.0.0.1:50412 crypto/us-1 3 20.5 1" in rows
    cut = next(number for number, row in enumerate(rows) if row.startswith("a-name-that"))
    assert rows[cut].startswith("a-name-that-is-… (7) ")
    assert rows[cut].endswith("11,000 123,457 10,001")
    assert rows[cut + 1] == "slow: 5,000 messages conflated"


def test_the_slowest_of_many_relay_clients_are_shown() -> None:
    many = [attrs.evolve(BOT, name=f"client{n}", backlog=n) for n in range(60)]
    rows = [" ".join(line.split()) for line in relay_of(*many)]
    shown = [row.split()[0] for row in rows if row.startswith("client") and "crypto/us-1" in row]
    assert shown[0] == "client59"
    assert len(shown) == 40
    assert "and 20 more; mdservice status --json has all of them" in rows


def test_a_relay_without_clients_has_only_its_row() -> None:
    rows = [" ".join(line.split()) for line in relay_of()]
    assert "relay 127.0.0.1:8765, no clients, 0 messages, 0 conflated, 0 cut off" in rows
    assert not any(row.startswith("client") for row in rows)


def test_without_a_relay_there_is_no_row_for_it() -> None:
    assert not any(line.startswith("relay") for line in table(status_to_json(STATUS)))
