"""Every channel of every feed, from the exchange to a reader in another process, through cuts."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from mdservice.clock import SystemClock
from mdservice.model.feeds import CHANNELS, FEEDS
from mdservice.simulator import crypto, news, options, stocks

STOCK, PAIR, OPTION = "AAPL", "BTC/USD", "AAPL281215C00200000"
KEYS = {
    STOCK: ("price", "trade", "bar", "daily_bar", "trading_status", "luld", "imbalance"),
    PAIR: ("price", "trade", "bar", "daily_bar", "orderbook"),
    OPTION: ("price", "trade"),
}
REPAIRED = {
    "stocks": {"quotes", "trades", "bars"},
    "crypto": {"quotes", "trades", "bars"},
    "options": {"trades"},
    "news": {"news"},
}
CONTENT = ("bid", "ask", "bid_size", "ask_size")
READER = """
import sys
import attrs, anyio, json, mdservice

async def main():
    url, *channels = sys.argv[1:]
    async with mdservice.open_stream(url, channels=channels) as records:
        async for record in records:
            fields = attrs.asdict(record, filter=lambda field, value: field.name != "taker_side")
            print(json.dumps([type(record).__name__, fields]), flush=True)

anyio.run(main)
"""


class _AlmostAMinute(SystemClock):
    """The machine's clock, set back so far that a minute ends some seconds after the start."""

    def __init__(self, before_s: int) -> None:
        second = time.time() % 60
        self._back_ns = int(((second - (60 - before_s)) % 60) * 1e9)

    def utc_ns(self) -> int:
        return super().utc_ns() - self._back_ns


@attrs.define
class Side:
    """The market, the service and the reader."""

    simulator: Any
    service: Any
    reader: Any
    clock: SystemClock
    valkey: Any
    states: Any

    def heard(self, name: str) -> list[dict[str, Any]]:
        lines = self.reader.stdout.splitlines(keepends=True)
        found = (json.loads(line) for line in lines if line.endswith("\n"))
        return [fields for kind, fields in found if kind == name]

    def missing_keys(self) -> list[str]:
        with self.valkey.client() as client:
            names = [f"{prefix}:{symbol}" for symbol in KEYS for prefix in KEYS[symbol]]
            return [name for name in [*names, "news"] if not client.exists(name)]


@pytest.fixture(params=["websockets", "alpaca-py"])
def side(stage: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Side]:
    clock = _AlmostAMinute(before_s=25)
    simulator = stage.simulator(
        clock=clock,
        rate=60,
        crypto_rate=30,
        options_rate=20,
        news_every_s=2,
        halt_every_s=None,
        late_trade_ratio=0,
        imbalance_ratio=0.05,
        correction_ratio=0.01,
        cancel_ratio=0.01,
    )
    valkey = stage.valkey()
    urls = {
        f"MDSERVICE_{feed.name.upper()}_URL": simulator.stream_url(feed.name)
        for feed in FEEDS
        if feed.name != "stocks"
    }
    states = stage.listener(valkey)
    script = tmp_path / "reader.py"
    script.write_text(READER)
    reader = stage.python(str(script), valkey.url, *CHANNELS, "news")
    service = stage.service(
        simulator,
        valkey,
        MDSERVICE_SYMBOLS=f"{STOCK},{PAIR},{OPTION}",
        MDSERVICE_CHANNELS=",".join(CHANNELS),
        MDSERVICE_NEWS="*",
        MDSERVICE_DRIVER=request.param,
        **urls,
    )
    service.wait_ready()
    yield Side(simulator, service, reader, clock, valkey, states)
    assert reader.process.poll() is None, reader.said


def check_complete(side: Side, name: str, kind: Any, symbol: str, key: Any, until_ns: int) -> None:
    """From the first that was heard on, each of the market's records was heard exactly once.

    A trade that was canceled or corrected in an outage did not take place, and may be left out.
    """
    heard = [fields for fields in side.heard(name) if fields["symbol"] == symbol]
    assert heard, f"no {name} of {symbol}"
    first_ns = heard[0]["ts_event_ns"]
    made = [
        record
        for record in side.simulator.history_of(kind)
        if record.symbol == symbol and first_ns < record.ts_event_ns < until_ns
    ]
    assert len(made) > 20, f"hardly any {name} of {symbol}"
    out = Counter(key(fields) for fields in heard if first_ns < fields["ts_event_ns"] < until_ns)
    every = Counter(key(fields_of(record)) for record in made)
    changed = Counter(key(fields_of(r)) for r in made if getattr(r, "update", None) is not None)
    missing, extra = every - changed - out, out - every
    assert not missing, f"{name} of {symbol} missing: {missing}"
    assert not extra, f"{name} of {symbol} too many: {extra}"


def fields_of(record: Any) -> dict[str, Any]:
    return {field: getattr(record, field) for field in record.__struct_fields__}


def by_id(fields: dict[str, Any]) -> Any:
    return fields["id"]


def by_content(fields: dict[str, Any]) -> Any:
    return fields["ts_event_ns"], fields["price"], fields["size"]


def by_quote(fields: dict[str, Any]) -> Any:
    return fields["ts_event_ns"], *(fields[name] for name in CONTENT)


def test_every_key_is_there_and_a_reader_misses_nothing_through_a_cut_of_each_connection(
    side: Side, stage: Any
) -> None:
    stage.eventually(lambda: side.heard("Quote"), within=20, what=lambda: side.reader.said)
    side.simulator.halt(STOCK, 2.0)
    time.sleep(4)
    for feed in FEEDS:
        side.simulator.drop("reset", feed=feed.name)
        time.sleep(1)
    repaired = {(feed, channel) for feed, channels in REPAIRED.items() for channel in channels}

    def told(state: str) -> set[tuple[str, str]]:
        messages = [m for m in list(side.states.states) if m["state"] == state]
        return {(m["feed"], m["channel"]) for m in messages}

    feeds = {feed.name for feed in FEEDS}
    stage.eventually(
        lambda: (
            {feed for feed, _ in told("gap")} == feeds
            and told("gap_repaired") >= told("gap") & repaired
        ),
        within=60,
        what=lambda: side.states.states,
    )
    stage.eventually(lambda: not side.missing_keys(), within=60, what=side.missing_keys)
    time.sleep(3)
    until_ns = side.clock.utc_ns() - 1_000_000_000
    articles = {a.id for a in side.simulator.history_of(news.ARTICLES)}
    checks = [
        ("Quote", stocks.QUOTES, STOCK, by_quote),
        ("Quote", crypto.QUOTES, PAIR, by_quote),
        ("Trade", stocks.TRADES, STOCK, by_id),
        ("Trade", crypto.TRADES, PAIR, by_id),
        ("Trade", options.TRADES, OPTION, by_content),
    ]

    def read_so_far() -> bool:
        """Whether the reader, another process, has come past that time and those articles."""
        for name, _, symbol, _ in checks:
            times = (f["ts_event_ns"] for f in side.heard(name) if f["symbol"] == symbol)
            if max(times, default=0) <= until_ns + 1_000_000_000:
                return False
        return max(articles) in {fields["id"] for fields in side.heard("Article")}

    stage.eventually(read_so_far, within=60, what=lambda: side.reader.said[-2_000:])
    for name, kind, symbol, key in checks:
        check_complete(side, name, kind, symbol, key, until_ns)
    heard = [fields["id"] for fields in side.heard("Article")]
    first = min(heard)
    assert {number for number in articles if number >= first} <= set(heard)

    for channel in ("statuses", "lulds", "imbalances"):
        assert ("stocks", channel) not in told("gap_repaired"), "there is no history of these"
    refreshed = {
        (m["feed"], m["channel"]) for m in side.states.states if m.get("refreshed") is True
    }
    assert refreshed >= {("options", "quotes"), ("crypto", "orderbooks")} & told("gap")
    books = side.heard("OrderBook")
    assert all(book["bids"][0][0] < book["asks"][0][0] for book in books)
