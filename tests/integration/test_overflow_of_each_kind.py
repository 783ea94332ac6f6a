"""What becomes of each kind of record while Redis takes no writes and the backlog is full."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import pytest

from mdservice.app.service import open_service
from mdservice.settings import Settings
from mdservice.simulator import SimulatorConfig, open_simulator, stocks
from mdservice.simulator.stock_records import SimStatus, SimTrade
from mdservice.simulator.wire import SimQuote
from tests.integration.conftest import patient, published_so_far

LIMIT_S = 60
BACKLOG = 10_000
ROUNDS = 50


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="over-") as name:  # short: it holds a socket
        yield Path(name)


async def until(condition: Any) -> None:
    while not condition():
        await anyio.sleep(0.02)


async def test_trades_are_dropped_and_counted_quotes_conflated_and_halts_kept(
    fresh_valkey: Any, folder: Path
) -> None:
    per_round, quotes_per_round = 300, 20
    trades, quotes = ROUNDS * per_round, ROUNDS * quotes_per_round

    def events(messages: list[Any], channel: str, symbol: str) -> list[dict[str, Any]]:
        found = [json.loads(m["data"]) for m in messages if m["channel"] == channel.encode()]
        return [event for event in found if event["symbol"] == symbol]

    with (
        anyio.fail_after(patient(LIMIT_S)),
        fresh_valkey.client() as client,
        client.pubsub(ignore_subscribe_messages=True) as heard,
    ):
        channels = ("price.updated", "trade.updated", "trading_status.updated")
        heard.subscribe(*channels)
        assert not published_so_far(heard)
        async with open_simulator(SimulatorConfig(rate=0, rest_rate_limit=None)) as simulator:
            settings = Settings(
                feed="simulator",
                feed_url=simulator.url,
                driver="websockets",
                redis_url=fresh_valkey.url,
                socket=folder / "s",
                symbols="AAPL,MSFT",
                channels=("quotes", "trades", "statuses"),
                backlog=BACKLOG,
            )
            async with open_service(settings) as service:
                await until(lambda: service.status().state == "running")
                client.config_set("min-replicas-to-write", 1)
                await until(lambda: service.status().redis.last_error is not None)
                at = time.time_ns()
                simulator.send_records(stocks.TRADES, [SimTrade("MSFT", 20, 1, 9, at)])
                for start in range(0, trades, per_round):
                    last = start + per_round
                    numbers = range(start + 1, last + 1)
                    simulator.send_records(
                        stocks.TRADES, [SimTrade("AAPL", 10, 1, n, at + n) for n in numbers]
                    )
                    halt = SimStatus("AAPL", "H", "", str(start), "", at + last)
                    simulator.send_records(stocks.STATUSES, [halt])
                    simulator.send_records(
                        stocks.QUOTES,
                        [
                            SimQuote("AAPL", n, n + 1, ts_event_ns=at + n)
                            for n in numbers[:quotes_per_round]
                        ],
                    )
                await until(lambda: service.status().counters.quotes_accepted == quotes)
                full = service.status()
                assert full.redis.backlog <= BACKLOG
                client.config_set("min-replicas-to-write", 0)
                await until(lambda: service.status().redis.backlog == 0)
                counters = service.status().counters
        messages = published_so_far(heard)
        keys = {name: json.loads(client.get(name)) for name in ("trade:AAPL", "trade:MSFT")}
        price = json.loads(client.get("price:AAPL"))

    seqs = [event["seq"] for event in events(messages, "trade.updated", "AAPL")]
    assert seqs == [*range(trades + 1 - len(seqs), trades + 1)], "the newest are all there"
    assert not events(messages, "trade.updated", "MSFT")
    assert counters.trades_dropped == trades + 1 - len(seqs) > 0
    assert keys["trade:AAPL"]["seq"] == trades
    assert keys["trade:MSFT"]["price"] == 20, "the latest trade is known, though not as an event"
    seqs = [event["seq"] for event in events(messages, "trading_status.updated", "AAPL")]
    assert seqs == [*range(1, ROUNDS + 1)]
    prices = events(messages, "price.updated", "AAPL")
    assert prices[-1] == price
    assert price["seq"] == quotes
    assert counters.events_conflated == quotes - len(prices) > 0
    assert counters.events_published == len(messages)
