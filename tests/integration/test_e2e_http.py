"""Every call of the HTTP API of a running program, over its UNIX socket and over TCP."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import attrs
import httpx
import pytest

MARKET_DATA = "/api/v1/market-data"
TOKEN = "correct-horse-battery"
T0 = 1_763_653_904_208_912_345
COUNTERS = {
    "quotes_received", "quotes_accepted", "quotes_stale", "prices_written", "events_published",
    "events_conflated", "trades_dropped", "decode_errors", "reconnects", "gaps", "gaps_repaired",
    "quotes_backfilled", "history_symbols_refused", "prices_fetched", "price_fetches_failed",
    "unfollowed", "trade_updates_received", "trade_updates_applied", "trade_updates_late",
    "trade_updates_unreadable", "trade_updates_unknown", "position_differences",
    "account_updates_published", "account_updates_dropped",
}  # fmt: skip


@attrs.frozen
class Served:
    stage: Any
    simulator: Any
    service: Any
    listener: Any
    tcp: str

    def price(self, symbol: str, bid: float = 1, ask: float = 2, at: int = T0) -> None:
        """Subscribe, send a quote, and wait until it is through."""
        self.service.subscribe(symbol)
        self.simulator.quotes((symbol, bid, ask, at))
        self.listener.wait(symbol, 1)


@pytest.fixture(scope="module")
def served(module_stage: Any) -> Served:
    simulator, valkey = module_stage.simulator(), module_stage.valkey()
    listener, port = module_stage.listener(valkey), module_stage.free_port()
    service = module_stage.service(
        simulator, valkey, MDSERVICE_SYMBOLS="AAPL", MDSERVICE_HTTP=f"127.0.0.1:{port}",
        MDSERVICE_API_TOKEN=TOKEN,
    ).wait_ready()  # fmt: skip
    return Served(module_stage, simulator, service, listener, f"http://127.0.0.1:{port}")


def test_it_is_live_and_ready(served: Served) -> None:
    assert served.service.http.get("/health/live").status_code == 200
    assert served.service.get("/health/ready") == {"ready": True, "reasons": []}


def numbers(found: dict[str, Any]) -> bool:
    return all(
        isinstance(v, int | float | Decimal) and not isinstance(v, bool) for v in found.values()
    )


def test_the_status_has_every_field_of_the_contract(served: Served) -> None:
    served.price(served.stage.new_symbol(), at=time.time_ns())
    status = served.service.until(
        lambda s: s["latency_ms"]["feed_to_redis"]["max"] is not None and s
    )
    assert status["state"] == "running"
    feed = status["feed"]
    assert (feed["name"], feed["driver"], feed["connected"]) == ("iex", "websockets", True)
    assert feed["reconnects"] == 0
    assert feed["last_error"] is None
    assert status["redis"]["connected"] is True
    assert status["redis"]["url"].startswith("unix://")
    assert status["redis"]["last_error"] is None
    assert isinstance(status["symbols"], int)
    assert 0 < status["uptime_s"] < 1000
    assert status["actors"]
    for actor in status["actors"].values():
        assert isinstance(actor["state"], str)
        assert actor["restarts"] == 0
        assert 0 <= actor["heartbeat_age_s"] < 10
        assert 0 <= actor["inbox"]["used"] <= actor["inbox"]["size"]
    assert set(status["counters"]) == COUNTERS
    assert all(type(count) is int for count in status["counters"].values())
    for measure in ("feed_to_redis", "receive_to_redis"):
        latency = status["latency_ms"][measure]
        assert set(latency) == {"p50", "p99", "max"}
        assert numbers(latency)
        assert 0 <= latency["p50"] <= latency["p99"] <= latency["max"] + Decimal("0.001")


def test_the_metrics_have_the_counters_names_and_values(served: Served) -> None:
    def values() -> dict[str, str]:
        answer = served.service.http.get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain")
        return dict(re.findall(r"^(\w+)(?:\{[^}]*\})? ([0-9.e+-]+)$", answer.text, re.MULTILINE))

    assert {name.partition("_")[0] for name in values()} <= {"mdservice", "process", "python"}

    def agree() -> bool:
        """Between two looks at the status that has not changed."""
        counters, found = served.service.status()["counters"], values()
        return all(float(found[f"mdservice_{name}_total"]) == n for name, n in counters.items())

    served.stage.eventually(agree, what=lambda: (values(), served.service.status()["counters"]))


@pytest.mark.parametrize("how", ["query", "body"])
def test_a_symbol_is_subscribed_to_and_taken_back(served: Served, how: str) -> None:
    symbol = served.stage.new_symbol()
    asked = {"params": {"symbol": symbol}} if how == "query" else {"json": {"symbols": [symbol]}}
    answer = served.service.post("subscribe", **asked)
    assert answer["status"] == "subscribed"
    assert answer["symbols"] == [symbol]
    assert answer["symbol"] == symbol
    assert symbol in served.simulator.subscribed()
    listed = served.service.get(f"{MARKET_DATA}/subscriptions")
    assert symbol in listed["symbols"]
    assert listed["sources"][symbol] == ["api"]

    answer = served.service.post("unsubscribe", **asked)
    assert answer == {"status": "unsubscribed", "symbol": symbol, "symbols": [symbol]}
    served.stage.eventually(lambda: symbol not in served.simulator.subscribed(), what="taken back")
    assert symbol not in served.service.get(f"{MARKET_DATA}/subscriptions")["symbols"]


def test_several_symbols_are_named_without_a_single_one(served: Served) -> None:
    symbols = [served.stage.new_symbol() for _ in range(3)]
    answer = served.service.post("subscribe", json={"symbols": symbols})
    assert answer == {"status": "subscribed", "symbols": symbols}


def test_a_symbol_of_the_settings_shows_every_source(served: Served) -> None:
    sources = served.service.get(f"{MARKET_DATA}/subscriptions")["sources"]
    assert "settings" in sources["AAPL"]
    served.service.subscribe("AAPL")
    sources = served.service.get(f"{MARKET_DATA}/subscriptions")["sources"]
    assert sources["AAPL"] == ["api", "settings"]


def test_subscribing_twice_is_harmless(served: Served) -> None:
    symbol = served.stage.new_symbol()
    for _ in range(2):
        answer = served.service.post("subscribe", params={"symbol": symbol})
        assert answer["status"] == "subscribed"
    assert served.service.get(f"{MARKET_DATA}/subscriptions")["symbols"].count(symbol) == 1


def test_unsubscribing_what_was_never_subscribed_is_harmless(served: Served) -> None:
    answer = served.service.post("unsubscribe", params={"symbol": served.stage.new_symbol()})
    assert answer["status"] == "unsubscribed"


def test_a_lower_case_symbol_is_raised(served: Served) -> None:
    symbol = served.stage.new_symbol()
    answer = served.service.post("subscribe", params={"symbol": symbol.lower()})
    assert answer == {"status": "subscribed", "symbol": symbol, "symbols": [symbol]}
    assert symbol in served.simulator.subscribed()
    served.price(symbol)
    assert served.service.get(f"{MARKET_DATA}/prices/{symbol.lower()}")["symbol"] == symbol
    found = served.service.get(f"{MARKET_DATA}/prices", params={"symbols": symbol.lower()})
    assert [price["symbol"] for price in found["prices"]] == [symbol]


@pytest.mark.parametrize(
    "asked",
    [
        {"params": {"symbol": "NO GOOD"}}, {"json": {"symbols": ["AAPL", "NO GOOD"]}},
        {"params": {"symbol": "NO GOOD"}, "json": {"symbols": ["AAPL"]}},
    ],
    ids=["query", "body", "both"],
)  # fmt: skip
@pytest.mark.parametrize("call", ["subscribe", "unsubscribe"])
def test_a_bad_symbol_is_422_and_named(served: Served, call: str, asked: Any) -> None:
    before = served.service.get(f"{MARKET_DATA}/subscriptions")
    answer = served.service.post(call, status=422, **asked)
    assert "NO GOOD" in json.dumps(answer, default=str)
    assert served.service.get(f"{MARKET_DATA}/subscriptions") == before


def test_a_long_bad_symbol_is_named_cut_short(served: Served) -> None:
    answer = served.service.http.post(
        f"{MARKET_DATA}/subscribe", params={"symbol": "X" * 5000 + "!"}
    )
    assert answer.status_code == 422
    assert "XXXXXXXX" in answer.text
    assert len(answer.text) < 1000


@pytest.mark.parametrize(
    "asked",
    [
        {}, {"json": {}}, {"json": {"symbols": []}}, {"json": {"symbols": "AAPL"}},
        {"json": {"symbols": [7]}}, {"json": {"symbols": [""]}}, {"params": {"symbol": ""}},
        {"content": b"{broken"}, {"json": []}, {"json": {"symbols": [None]}},
    ],
    ids=str,
)  # fmt: skip
def test_a_request_without_good_symbols_is_422(served: Served, asked: Any) -> None:
    answer = served.service.http.post(f"{MARKET_DATA}/subscribe", **asked)
    assert answer.status_code == 422, answer.text
    assert answer.json()


@pytest.mark.parametrize("symbol", ["BRK.B", "BF-A"])
def test_symbols_with_marks_in_them_have_prices(served: Served, symbol: str) -> None:
    served.price(symbol)
    assert served.service.get(f"{MARKET_DATA}/prices/{symbol}")["symbol"] == symbol
    found = served.service.get(f"{MARKET_DATA}/prices", params={"symbols": symbol})
    assert [price["symbol"] for price in found["prices"]] == [symbol]


def test_a_price_is_the_object_that_redis_holds(served: Served) -> None:
    symbol = served.stage.new_symbol()
    served.price(symbol, 0.1, 0.2)
    (event,) = served.listener.events(symbol)
    answer = served.service.http.get(f"{MARKET_DATA}/prices/{symbol}")
    assert served.stage.exact(answer.text) == event
    assert '"price":0.15' in answer.text.replace(" ", "")


def test_a_symbol_without_a_price_is_404(served: Served) -> None:
    symbol = served.stage.new_symbol()
    served.service.get(f"{MARKET_DATA}/prices/{symbol}", status=404)
    served.service.subscribe(symbol)
    answer = served.service.get(f"{MARKET_DATA}/prices/{symbol}", status=404)
    assert symbol in json.dumps(answer)


def test_prices_are_all_or_those_asked_for(served: Served) -> None:
    one, other, without = (served.stage.new_symbol() for _ in range(3))
    served.price(one)
    served.price(other)
    everything = served.service.get(f"{MARKET_DATA}/prices")
    assert {one, other} <= {price["symbol"] for price in everything["prices"]}
    some = served.service.get(f"{MARKET_DATA}/prices", params={"symbols": f"{one},{without}"})
    assert [price["symbol"] for price in some["prices"]] == [one]


def read_events(answer: httpx.Response) -> Iterator[tuple[str, str]]:
    """``(event, data)`` of a stream of server-sent events."""
    name, data = "", []
    for line in answer.iter_lines():
        if line.startswith("event:"):
            name = line.removeprefix("event:").strip()
        elif line.startswith("data:"):
            data.append(line.removeprefix("data:").strip())
        elif not line and data:
            yield name, "\n".join(data)
            name, data = "", []


def test_the_stream_sends_the_prices_asked_for(served: Served) -> None:
    one, other = served.stage.new_symbol(), served.stage.new_symbol()
    served.service.subscribe(one, other)
    with served.service.http.stream("GET", f"{MARKET_DATA}/stream?symbols={one}") as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        served.simulator.quotes((other, 1, 2, T0), (one, 3, 4, T0), (one, 5, 6, T0 + 1))
        events = read_events(answer)
        heard = [next(events), next(events)]
    assert [name for name, _ in heard] == ["price.updated"] * 2
    served.listener.wait(one, 2)
    assert [served.stage.exact(data) for _, data in heard] == served.listener.events(one)


def test_the_stream_sends_every_price_and_the_feeds_state(served: Served) -> None:
    symbol = served.stage.new_symbol()
    served.price(symbol)
    with served.service.http.stream("GET", f"{MARKET_DATA}/stream") as answer:
        served.simulator.quotes((symbol, 3, 4, T0 + 1))
        events = read_events(answer)
        # Prices that were known before may come first.
        heard = (served.stage.exact(data) for name, data in events if name == "price.updated")
        assert next(price for price in heard if price["symbol"] == symbol)["seq"] in {1, 2}
        served.simulator.drop("close")
        data = next(data for name, data in events if name == "feed.status")
        told = served.listener.state("disconnected")
        assert json.loads(data) == told
    served.service.wait_ready()


def test_a_stream_for_a_bad_symbol_is_422(served: Served) -> None:
    answer = served.service.http.get(f"{MARKET_DATA}/stream", params={"symbols": "NO GOOD"})
    assert answer.status_code == 422
    answer = served.service.http.get(f"{MARKET_DATA}/prices", params={"symbols": "NO GOOD"})
    assert answer.status_code == 422


def test_the_api_is_described(served: Served) -> None:
    paths = served.service.get("/openapi.json")["paths"]
    for path in ("/health/live", "/health/ready", "/status", "/metrics"):
        assert path in paths
    for path in ("subscribe", "unsubscribe", "subscriptions", "prices", "stream"):
        assert f"{MARKET_DATA}/{path}" in paths


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", f"{MARKET_DATA}/subscribe", 405), ("POST", "/status", 405)],
)
def test_other_calls_are_refused(served: Served, method: str, path: str, status: int) -> None:
    assert served.service.http.request(method, path).status_code == status


# Over TCP.

PROTECTED = [
    "/status", "/metrics", "/openapi.json", "/docs", "/nowhere", f"{MARKET_DATA}/subscriptions",
    f"{MARKET_DATA}/prices", f"{MARKET_DATA}/prices/AAPL", f"{MARKET_DATA}/stream", "/",
    "/health", "/health/live/x", "/health/ready/../../status", "//status",
]  # fmt: skip


@pytest.mark.parametrize("path", PROTECTED)
def test_over_tcp_nothing_is_reported_without_the_token(served: Served, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}):
        answer = httpx.get(served.tcp + path, headers=headers)
        assert answer.status_code == 401, f"{path} {headers} {answer.text}"
        assert TOKEN not in answer.text


def test_over_tcp_nothing_is_done_without_the_token(served: Served) -> None:
    symbol = served.stage.new_symbol()
    answer = httpx.post(f"{served.tcp}{MARKET_DATA}/subscribe", params={"symbol": symbol})
    assert answer.status_code == 401
    assert symbol not in served.simulator.subscribed()


def test_over_tcp_health_needs_no_token(served: Served) -> None:
    assert httpx.get(f"{served.tcp}/health/live").status_code == 200
    assert httpx.get(f"{served.tcp}/health/ready").json() == {"ready": True, "reasons": []}


def test_over_tcp_everything_answers_with_the_token(served: Served) -> None:
    symbol = served.stage.new_symbol()
    with httpx.Client(base_url=served.tcp, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        assert client.get("/status").json()["state"] == "running"
        assert client.get("/metrics").status_code == 200
        answer = client.post(f"{MARKET_DATA}/subscribe", params={"symbol": symbol})
        assert answer.json() == {"status": "subscribed", "symbol": symbol, "symbols": [symbol]}
        served.price(symbol)
        assert client.get(f"{MARKET_DATA}/prices/{symbol}").json()["symbol"] == symbol
        with client.stream("GET", f"{MARKET_DATA}/stream?symbols={symbol}") as stream:
            served.simulator.quotes((symbol, 3, 4, T0 + 1))
            assert next(read_events(stream))[0] == "price.updated"


def test_a_client_that_says_nothing_or_nonsense_delays_no_other(served: Served) -> None:
    with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as noisy:
        silent.connect(str(served.service.socket))
        noisy.connect(str(served.service.socket))
        noisy.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        assert served.service.ready()[0]
    assert served.service.ready()[0]


def test_a_reader_of_the_stream_that_stops_reading_slows_no_other(served: Served) -> None:
    symbol = served.stage.new_symbol()
    served.service.subscribe(symbol)
    with socket.socket(socket.AF_UNIX) as slow:
        slow.connect(str(served.service.socket))
        slow.sendall(f"GET {MARKET_DATA}/stream HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        slow.recv(100)
        count = 12_000
        for start in range(0, count, 1000):
            served.simulator.send_quotes(
                [{"S": symbol, "bp": 1, "ap": 2, "t": T0 + n} for n in range(start, start + 1000)]
            )
        served.listener.wait(symbol, count, within=20)
        assert served.service.get(f"{MARKET_DATA}/prices/{symbol}")["seq"] == count
    assert served.service.ready()[0]


def test_over_loopback_tcp_without_a_token_everything_answers(stage: Any) -> None:
    port = stage.free_port()
    service = stage.program("run", MDSERVICE_HTTP=f"127.0.0.1:{port}").wait_ready()
    assert httpx.get(f"http://127.0.0.1:{port}/status").status_code == 200
    taken = stage.program("run", MDSERVICE_HTTP=f"127.0.0.1:{port}")
    assert taken.code() in {1, 78}, taken.said
    assert str(port) in taken.stderr
    assert "Traceback" not in taken.stderr
    assert service.end() == 0
