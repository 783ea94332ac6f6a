"""What a reader of Redis sees of a quote, exactly; for each driver, from outside."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import attrs
import pytest

from tests.integration.conftest import patient

FIELDS = ["symbol", "price", "bid", "ask", "bid_size", "ask_size", "timestamp", "seq"]
T0 = 1_763_653_904_208_912_345
T0_TEXT = "2025-11-20T15:51:44.208912345Z"


@attrs.frozen
class Live:
    stage: Any
    simulator: Any
    valkey: Any
    service: Any
    listener: Any
    redis: Any

    def symbol(self) -> str:
        symbol = self.stage.new_symbol()
        self.service.subscribe(symbol)
        return symbol

    def send(self, *quotes: dict[str, Any]) -> None:
        assert self.simulator.send_quotes(quotes)

    def event(self, symbol: str, bid: float, ask: float, **more: Any) -> dict[str, Any]:
        """Send this quote as the symbol's first; its event."""
        self.send({"S": symbol, "bp": bid, "ap": ask, **more})
        (event,) = self.listener.wait(symbol, 1)
        return event

    def key(self, symbol: str) -> dict[str, Any]:
        return self.stage.exact(self.redis.get(f"price:{symbol}"))


@pytest.fixture(scope="module", params=["websockets", "alpaca-py"])
def live(request: pytest.FixtureRequest, module_stage: Any) -> Iterator[Live]:
    simulator, valkey = module_stage.simulator(), module_stage.valkey()
    listener = module_stage.listener(valkey)
    service = module_stage.service(
        simulator,
        valkey,
        MDSERVICE_DRIVER=request.param,
        MDSERVICE_EVENT_LOG="prices.log",
        MDSERVICE_SYMBOLS="AAPL",
    ).wait_ready()
    with valkey.client() as client:
        yield Live(module_stage, simulator, valkey, service, listener, client)


def test_the_price_object_has_exactly_the_fields_of_the_contract(live: Live) -> None:
    symbol = live.symbol()
    event = live.event(symbol, 187.12, 187.15, bs=2, **{"as": 3}, t=T0)
    assert list(event) == FIELDS
    assert event == {
        "symbol": symbol,
        "price": Decimal("187.135"),
        "bid": Decimal("187.12"),
        "ask": Decimal("187.15"),
        "bid_size": 2,
        "ask_size": 3,
        "timestamp": T0_TEXT,
        "seq": 1,
    }
    assert live.key(symbol) == event


def test_the_key_lives_as_long_as_the_price_ttl(live: Live) -> None:
    symbol = live.symbol()
    live.event(symbol, 1, 2)
    assert 200 < live.redis.ttl(f"price:{symbol}") <= 300


@pytest.mark.parametrize(
    ("bid", "ask", "price"),
    [
        (0.1, 0.2, "0.15"),
        (0.0001, 0.0002, "0.00015"),
        (187.12, 187.13, "187.125"),
        (100, 101, "100.5"),
        (1.1, 2.2, "1.65"),
        (4503599627370.11, 4503599627370.12, "4503599627370.115"),
        (742311.01, 742311.02, "742311.015"),
        (0.29, 0.3, "0.295"),
        (10.5, 10.5, "10.5"),
        (10.6, 10.5, "10.55"),
        (0.000001, 0.000003, "0.000002"),
    ],
)
def test_the_price_is_the_exact_mid(live: Live, bid: float, ask: float, price: str) -> None:
    symbol = live.symbol()
    event = live.event(symbol, bid, ask)
    assert event["price"] == Decimal(price)
    assert (event["bid"], event["ask"]) == (Decimal(repr(bid)), Decimal(repr(ask)))
    assert live.key(symbol)["price"] == Decimal(price)


def test_the_mid_has_no_float_residue_in_the_text(live: Live) -> None:
    symbol = live.symbol()
    live.event(symbol, 0.1, 0.2)
    text = live.redis.get(f"price:{symbol}").decode().replace(" ", "")
    assert '"price":0.15,' in text
    assert '"bid":0.1,"ask":0.2,' in text


def test_hundreds_of_mids_are_exact(live: Live) -> None:
    symbol, draw = live.symbol(), random.Random(5)
    sides = [
        (draw.randrange(1, 10**7) / 10**4, draw.randrange(1, 10**9) / 10**2) for _ in range(500)
    ]
    live.send(
        *({"S": symbol, "bp": bid, "ap": ask, "t": T0 + i} for i, (bid, ask) in enumerate(sides))
    )
    events = live.listener.wait(symbol, 500)
    mids = [(Decimal(repr(bid)) + Decimal(repr(ask))) / 2 for bid, ask in sides]
    assert [event["price"] for event in events] == mids


@pytest.mark.parametrize(
    ("bid", "ask", "price"), [(187.12, 0, "187.12"), (0, 187.15, "187.15"), (0, 0, None)]
)
def test_a_side_without_a_quote_is_never_averaged(
    live: Live, bid: float, ask: float, price: str | None
) -> None:
    symbol = live.symbol()
    event = live.event(symbol, bid, ask)
    assert event["price"] == (None if price is None else Decimal(price))
    assert (event["bid"], event["ask"]) == (Decimal(repr(bid)), Decimal(repr(ask)))
    assert live.key(symbol) == event


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (T0, "2025-11-20T15:51:44.208912345Z"),
        (T0 - 345, "2025-11-20T15:51:44.208912Z"),
        (T0 - 208_912_345, "2025-11-20T15:51:44Z"),
        (T0 - 208_912_344, "2025-11-20T15:51:44.000000001Z"),
    ],
)
def test_every_nanosecond_is_kept(live: Live, nanoseconds: int, text: str) -> None:
    symbol = live.symbol()
    told = live.event(symbol, 1, 2, t=nanoseconds)["timestamp"]
    assert told.endswith("Z")
    assert told.rstrip("Z").rstrip("0").rstrip(".") == text.rstrip("Z").rstrip("0").rstrip(".")


def test_seq_counts_from_one_without_steps(live: Live) -> None:
    symbol = live.symbol()
    for start in range(0, 300, 3):
        live.send(
            *({"S": symbol, "bp": 1, "ap": 2 + n, "t": T0 + n} for n in range(start, start + 3))
        )
    events = live.listener.wait(symbol, 300)
    assert [event["seq"] for event in events] == list(range(1, 301))
    assert [event["ask"] for event in events] == list(range(2, 302))
    assert live.key(symbol) == events[-1]


def test_an_older_quote_is_refused_and_counted(live: Live) -> None:
    symbol = live.symbol()
    stale = live.service.counter("quotes_stale")
    live.send(
        {"S": symbol, "bp": 1, "ap": 2, "t": T0},
        {"S": symbol, "bp": 3, "ap": 4, "t": T0 - 1},
        {"S": symbol, "bp": 5, "ap": 6, "t": T0 + 1},
    )
    events = live.listener.wait(symbol, 2)
    assert [(event["seq"], event["bid"]) for event in events] == [(1, 1), (2, 5)]
    assert live.service.counter("quotes_stale") == stale + 1


def test_the_same_time_with_other_content_is_accepted(live: Live) -> None:
    symbol = live.symbol()
    sizes = [{"S": symbol, "bp": 1, "ap": 2, "t": T0, "bs": size} for size in (7, 8, 9)]
    live.send(*sizes)
    events = live.listener.wait(symbol, 3)
    assert [(event["seq"], event["bid_size"]) for event in events] == [(1, 7), (2, 8), (3, 9)]


def test_an_exact_repeat_is_refused_and_counted(live: Live) -> None:
    symbol = live.symbol()
    stale = live.service.counter("quotes_stale")
    one = {"S": symbol, "bp": 1, "ap": 2, "t": T0}
    other = {**one, "bp": 1.5}
    live.send(one, one)
    live.send(one)
    live.send(other)
    live.send(one)  # no repeat of the last accepted one
    live.send({**one, "t": T0 + 1})
    events = live.listener.wait(symbol, 4)
    assert [event["bid"] for event in events] == [1, Decimal("1.5"), 1, 1]
    assert live.service.counter("quotes_stale") == stale + 2


def test_symbols_do_not_disturb_each_other(live: Live) -> None:
    one, other = live.symbol(), live.symbol()
    live.send(
        {"S": one, "bp": 1, "ap": 2, "t": T0 + 5},
        {"S": other, "bp": 3, "ap": 4, "t": T0},
        {"S": one, "bp": 5, "ap": 6, "t": T0 + 6},
        {"S": other, "bp": 7, "ap": 8, "t": T0 + 1},
    )
    assert [event["bid"] for event in live.listener.wait(one, 2)] == [1, 5]
    assert [event["bid"] for event in live.listener.wait(other, 2)] == [3, 7]


def test_a_time_of_the_future_is_a_decode_error_that_does_not_block_its_symbol(live: Live) -> None:
    symbol, now = live.symbol(), time.time_ns()
    errors, stale = live.service.counter("decode_errors"), live.service.counter("quotes_stale")
    live.send(
        {"S": symbol, "bp": 1, "ap": 2, "t": now},
        {"S": symbol, "bp": 3, "ap": 4, "t": now + 65 * 10**9},
        {"S": symbol, "bp": 5, "ap": 6, "t": now + 1},
    )
    events = live.listener.wait(symbol, 2)
    assert [(event["seq"], event["bid"]) for event in events] == [(1, 1), (2, 5)]
    assert live.service.counter("decode_errors") == errors + 1
    assert live.service.counter("quotes_stale") == stale


def test_up_to_a_minute_ahead_is_accepted(live: Live) -> None:
    symbol, ahead = live.symbol(), time.time_ns() + 50 * 10**9
    assert live.event(symbol, 1, 2, t=ahead)["seq"] == 1


@pytest.mark.parametrize("garbage", ['[{"T":"q","S":"AAPL","bp":1', "not json", "[1,2,", "{}", ""])
def test_a_broken_text_frame_is_counted_and_skipped(live: Live, garbage: str) -> None:
    symbol, errors = live.symbol(), live.service.counter("decode_errors")
    live.simulator.send_raw(garbage)
    live.event(symbol, 1, 2)
    assert live.service.counter("decode_errors") == errors + 1
    assert live.service.status()["counters"]["reconnects"] == 0


@pytest.mark.parametrize("garbage", [b"\xc1", b"\x92\x81", b"\x00", bytes(range(256)), b"\xff" * 9])
def test_a_broken_binary_frame_is_counted_and_skipped(live: Live, garbage: bytes) -> None:
    symbol, errors = live.symbol(), live.service.counter("decode_errors")
    live.simulator.send_raw(garbage)
    live.event(symbol, 1, 2)
    assert live.service.counter("decode_errors") == errors + 1
    assert live.service.status()["counters"]["reconnects"] == 0


@pytest.mark.parametrize(
    "bad",
    [
        {"bp": "one"}, {"bp": None}, {"S": 7}, {"t": "yesterday"}, {"t": None}, {"S": ""},
        {"bp": -1.0}, {"bs": "many"}, {"t": "2025-13-40T99:00:00Z"}, {"S": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_message_that_breaks_the_schema_loses_only_itself(
    live: Live, bad: dict[str, Any]
) -> None:
    symbol, errors = live.symbol(), live.service.counter("decode_errors")
    good = {
        "T": "q", "S": symbol, "bx": "V", "bp": 1, "bs": 2, "ax": "V", "ap": 2, "as": 3,
        "c": ["R"], "z": "C",
    }  # fmt: skip
    live.simulator.send_messages(
        [{**good, "t": T0}, {**good, "t": T0 + 1, **bad}, {**good, "t": T0 + 2}]
    )
    events = live.listener.wait(symbol, 2)
    assert [event["timestamp"][-4:] for event in events] == ["345Z", "347Z"]
    assert live.service.counter("decode_errors") == errors + 1


def test_missing_fields_break_the_schema(live: Live) -> None:
    symbol, errors = live.symbol(), live.service.counter("decode_errors")
    live.simulator.send_messages([{"T": "q", "S": symbol}, {"T": "q"}, {"S": symbol}, {}])
    live.event(symbol, 1, 2)
    assert live.service.counter("decode_errors") == errors + 4


def test_other_messages_of_the_protocol_are_no_errors(live: Live) -> None:
    symbol, errors = live.symbol(), live.service.counter("decode_errors")
    quote = {
        "T": "q", "S": symbol, "bx": "V", "bp": 1, "bs": 2, "ax": "V", "ap": 2, "as": 3,
        "c": ["R"], "z": "C", "t": T0,
    }  # fmt: skip
    bar = {
        "S": symbol,
        "o": 1.0,
        "h": 2.0,
        "l": 1.0,
        "c": 2.0,
        "v": 100,
        "t": T0,
        "n": 3,
        "vw": 1.5,
    }
    live.simulator.send_messages([
        {"T": "t", "S": symbol, "i": 52983525029461, "x": "D", "p": 126.55, "s": 1, "t": T0,
         "c": ["@", "I"], "z": "C"},
        {"T": "b", **bar}, {"T": "d", **bar}, {"T": "u", **bar},
        {"T": "s", "S": symbol, "sc": "H", "sm": "Trading Halt", "rc": "T12",
         "rm": "Additional Information Requested by NASDAQ", "t": T0, "z": "C"},
        {"T": "l", "S": symbol, "u": 3.24, "d": 2.65, "i": "B", "t": T0, "z": "C"},
        quote,
    ])  # fmt: skip
    live.listener.wait(symbol, 1)
    assert live.service.counter("decode_errors") == errors


@pytest.mark.parametrize("quotes", [15_000])
def test_a_frame_of_more_than_a_mebibyte_arrives_whole(live: Live, quotes: int) -> None:
    symbol = live.symbol()
    live.simulator.send_quotes(
        [{"S": symbol, "bp": 1, "ap": 2 + n, "t": T0 + n} for n in range(quotes)], frames=[quotes]
    )
    events = live.listener.wait(symbol, quotes, within=30)
    assert [event["seq"] for event in events] == list(range(1, quotes + 1))


def test_the_event_log_has_the_symbol_and_the_events_own_json(live: Live) -> None:
    symbol = live.symbol()
    live.send(*({"S": symbol, "bp": 1, "ap": 2 + n, "t": T0 + n} for n in range(20)))
    live.listener.wait(symbol, 20)
    entries = [fields for _, fields in live.redis.xrange("prices.log")]
    mine = [fields for fields in entries if fields[b"symbol"] == symbol.encode()]
    assert all(set(fields) == {b"symbol", b"data"} for fields in entries)
    heard = [raw for raw in live.listener.raw if live.stage.exact(raw)["symbol"] == symbol]
    assert [fields[b"data"] for fields in mine] == heard
    assert len(mine) == 20


def test_the_event_log_is_trimmed_about(live: Live) -> None:
    symbol = live.symbol()
    with live.valkey.client() as client, client.monitor() as monitor:
        live.event(symbol, 1, 2)
        commands = monitor.listen()
        xadd = next(c["command"] for c in commands if c["command"].upper().startswith("XADD"))
    words = xadd.upper().split()
    assert words[1] == "PRICES.LOG"
    assert words[2:4] == ["MAXLEN", "~"]
    assert int(words[4]) > 0


def test_when_an_event_is_heard_its_key_holds_that_price_or_a_newer_one(live: Live) -> None:
    symbols = [live.symbol() for _ in range(5)]
    looked = 0
    with live.valkey.client() as client, client.pubsub() as pubsub:
        pubsub.subscribe("price.updated")
        assert pubsub.get_message(timeout=20) is not None
        for n in range(40):
            live.send(
                *(
                    {"S": symbol, "bp": 1, "ap": 2 + m, "t": T0 + 10 * n + m}
                    for symbol in symbols
                    for m in range(10)
                )
            )
        deadline = time.monotonic() + patient(60)
        while looked < 2000 and time.monotonic() < deadline:
            message = pubsub.get_message(timeout=1)
            if message is None:
                continue
            event = live.stage.exact(message["data"])
            key = live.key(event["symbol"])
            assert key["seq"] >= event["seq"]
            assert key["timestamp"] >= event["timestamp"]
            looked += 1
    assert looked == 2000


def test_received_is_accepted_and_stale_and_decode_errors(live: Live) -> None:
    """The sums agree once everything is through; accepted ones are written."""
    symbol = live.symbol()
    live.event(symbol, 1, 2)
    counters = live.service.until(
        lambda s: (
            s["counters"]["events_published"] == s["counters"]["quotes_accepted"] and s["counters"]
        )
    )
    assert counters["events_conflated"] == 0
    assert counters["quotes_received"] >= counters["quotes_accepted"] + counters["quotes_stale"]
    assert 0 < counters["prices_written"] <= counters["events_published"]
    published = counters["events_published"]
    live.stage.eventually(lambda: len(live.listener.raw) >= published, what=published)
    assert len(live.listener.raw) == published


def test_feed_to_redis_latency_is_measured_from_the_quotes_timestamp(live: Live) -> None:
    symbol = live.symbol()
    live.event(symbol, 1, 2, t=time.time_ns())
    live.service.until(lambda s: s["latency_ms"]["feed_to_redis"]["p50"] is not None)


def test_most_quotes_from_the_future_mean_that_this_clock_is_behind(live: Live) -> None:
    """Last in its file: it fills the last hundred quotes."""
    symbol = live.symbol()
    ahead = time.time_ns() + 120 * 10**9
    live.send(*({"S": symbol, "bp": 1, "ap": 2, "t": ahead + n} for n in range(100)))
    ready, reasons = live.stage.eventually(
        lambda: (found := live.service.ready()) and not found[0] and found, what="not ready"
    )
    assert not ready
    assert any("clock" in reason and "behind" in reason for reason in reasons), reasons
    assert any("12" in reason or "11" in reason or "2 min" in reason for reason in reasons), reasons
    assert live.service.status()["state"] == "degraded"
    live.send(*({"S": symbol, "bp": 1, "ap": 2 + n, "t": time.time_ns() + n} for n in range(100)))
    live.stage.eventually(lambda: live.service.ready()[0], what="ready again")
    assert live.service.status()["state"] == "running"


def test_timestamps_look_like_rfc_3339(live: Live) -> None:
    symbol = live.symbol()
    told = live.event(symbol, 1, 2)["timestamp"]
    parsed = datetime.fromisoformat(told[:19] + "+00:00")
    assert abs((datetime.now(UTC) - parsed).total_seconds()) < 30
