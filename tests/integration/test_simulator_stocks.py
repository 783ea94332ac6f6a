"""alpaca-py's own StockDataStream and StockHistoricalDataClient, unchanged, on every channel."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest
from alpaca.data.enums import DataFeed
from alpaca.data.historical import StockHistoricalDataClient
from alpaca.data.live import StockDataStream
from alpaca.data.models import Bar, Trade, TradeCancel, TradeCorrection, TradingStatus
from alpaca.data.requests import (
    StockBarsRequest,
    StockLatestBarRequest,
    StockLatestTradeRequest,
    StockSnapshotRequest,
    StockTradesRequest,
)
from alpaca.data.timeframe import TimeFrame

from mdservice.model.timestamps import parse_rfc3339
from mdservice.simulator import Simulator, SimulatorConfig, open_simulator
from tests.integration.conftest import patient

LIMIT_S = 60
SYMBOLS = ("AAPL", "JPM")
START = datetime(2026, 11, 20, 15, 0, tzinfo=UTC)
LIVELY: dict[str, Any] = {
    "rate": 400,
    "shape": "flat",
    "correction_ratio": 0.02,
    "cancel_ratio": 0.02,
    "late_trade_ratio": 0.05,
    "halt_every_s": 20,
    "halt_s": 5,
}
CHANNELS = {
    "trades": Trade,
    "bars": Bar,
    "updatedBars": Bar,
    "dailyBars": Bar,
    "statuses": TradingStatus,
    "corrections": TradeCorrection,
    "cancelErrors": TradeCancel,
}


class FastClock:
    """Two minutes of the market in a second and a half."""

    def __init__(self) -> None:
        self._began_ns = time.monotonic_ns()

    def monotonic(self) -> float:
        return time.monotonic()

    def utc_ns(self) -> int:
        elapsed_ns = (time.monotonic_ns() - self._began_ns) * 80
        return parse_rfc3339("2026-11-20T15:00:00Z") + elapsed_ns


class Subscriber:
    """The SDK in a thread of its own, and what its handlers were given."""

    def __init__(self, simulator: Simulator, *, raw_data: bool) -> None:
        self.stream = StockDataStream("key", "secret", raw_data, url_override=simulator.url)
        self.came: dict[str, list[Any]] = defaultdict(list)
        self.thread = threading.Thread(target=self.stream.run)
        self.stream.subscribe_trades(self.into("trades"), *SYMBOLS)
        self.stream.subscribe_bars(self.into("bars"), *SYMBOLS)
        self.stream.subscribe_updated_bars(self.into("updatedBars"), *SYMBOLS)
        self.stream.subscribe_daily_bars(self.into("dailyBars"), *SYMBOLS)
        self.stream.subscribe_trading_statuses(self.into("statuses"), *SYMBOLS)
        self.stream.register_trade_corrections(self.into("corrections"))
        self.stream.register_trade_cancels(self.into("cancelErrors"))

    def into(self, channel: str) -> Callable[[Any], Any]:
        async def handle(record: Any) -> None:
            self.came[channel].append(record)

        return handle

    async def every_channel(self) -> None:
        """Wait until something of each channel came."""
        while not all(len(self.came[channel]) > 1 for channel in CHANNELS):
            await anyio.sleep(0.05)

    async def stop(self) -> None:
        await anyio.to_thread.run_sync(self.stream.stop)
        await anyio.to_thread.run_sync(partial(self.thread.join, LIMIT_S))
        assert not self.thread.is_alive()


@contextmanager
def running(subscriber: Subscriber) -> Iterator[None]:
    """Let the thread end with the block, whatever happens in it."""
    subscriber.thread.start()
    try:
        yield
    finally:
        if subscriber.thread.is_alive():
            subscriber.stream.stop()


def run(body: Callable[[Simulator], Any]) -> None:
    async def main() -> None:
        with anyio.fail_after(patient(LIMIT_S)):
            async with open_simulator(SimulatorConfig(**LIVELY), clock=FastClock()) as simulator:
                await body(simulator)

    anyio.run(main, backend="trio")


def ns(message: dict[str, Any]) -> int:
    return int(message["t"].to_unix_nano())


@pytest.mark.parametrize("raw_data", [True, False])
def test_the_sdk_s_stream_and_history_have_every_channel(raw_data: bool) -> None:
    async def body(simulator: Simulator) -> None:
        subscriber = Subscriber(simulator, raw_data=raw_data)
        with running(subscriber):
            await subscriber.every_channel()
            await subscriber.stop()
        came = subscriber.came
        client = StockHistoricalDataClient(
            "key", "secret", raw_data=raw_data, url_override=simulator.rest_url
        )
        span = {
            "symbol_or_symbols": [*SYMBOLS],
            "start": START,
            "end": START + timedelta(hours=2),
            "feed": DataFeed.IEX,
        }
        newest = {"symbol_or_symbols": [*SYMBOLS], "feed": DataFeed.IEX}

        async def call(method: Callable[[Any], Any], request: Any) -> Any:
            return await anyio.to_thread.run_sync(method, request)

        # The market goes on: what is asked last has it all.
        latest_trades = await call(client.get_stock_latest_trade, StockLatestTradeRequest(**newest))
        latest_bars = await call(client.get_stock_latest_bar, StockLatestBarRequest(**newest))
        snapshots = await call(client.get_stock_snapshot, StockSnapshotRequest(**newest))
        trades = await call(client.get_stock_trades, StockTradesRequest(**span))
        bars = await call(
            client.get_stock_bars, StockBarsRequest(**span, timeframe=TimeFrame.Minute)
        )
        day = {**span, "start": START - timedelta(days=1)}
        days = await call(client.get_stock_bars, StockBarsRequest(**day, timeframe=TimeFrame.Day))
        if raw_data:
            _check_raw(came, trades, bars)
            ids = {row["i"] for row in trades["AAPL"]}
            assert {latest_trades["AAPL"]["i"], snapshots["AAPL"]["latestTrade"]["i"]} <= ids
            starts = {row["t"] for row in bars["AAPL"]}
            assert {latest_bars["AAPL"]["t"], snapshots["AAPL"]["minuteBar"]["t"]} <= starts
            (row,) = days["AAPL"]
            assert row["n"] >= snapshots["AAPL"]["dailyBar"]["n"]
            assert row["o"] == snapshots["AAPL"]["dailyBar"]["o"]
        else:
            for channel, model in CHANNELS.items():
                assert all(isinstance(record, model) for record in came[channel]), channel
            assert {(t.exchange, t.id) for t in came["trades"] if t.symbol == "AAPL"} <= {
                (t.exchange, t.id) for t in trades["AAPL"]
            }
            for bar in (*came["bars"], *came["updatedBars"]):
                assert bar.low <= bar.open <= bar.high
                assert bar.timestamp in {each.timestamp for each in bars[bar.symbol]}
            ids = {trade.id for trade in trades["AAPL"]}
            assert {latest_trades["AAPL"].id, snapshots["AAPL"].latest_trade.id} <= ids
            starts = {bar.timestamp for bar in bars["AAPL"]}
            assert {latest_bars["AAPL"].timestamp, snapshots["AAPL"].minute_bar.timestamp} <= starts
            (bar,) = days["AAPL"]
            assert bar.open == snapshots["AAPL"].daily_bar.open

    run(body)


def _check_raw(came: dict[str, list[Any]], trades: dict[str, Any], bars: dict[str, Any]) -> None:
    """What the stream brought is in the history, with all nanoseconds."""
    rows = {(s, row["x"], row["i"]): row for s, some in trades.items() for row in some}
    for trade in came["trades"]:
        row = rows[trade["S"], trade["x"], trade["i"]]
        assert parse_rfc3339(row["t"]) == ns(trade)
        assert all(row[name] == trade[name] for name in ("p", "s", "c", "z"))
    for one in came["corrections"]:
        assert rows[one["S"], one["x"], one["oi"]]["u"] == "incorrect"
        assert rows[one["S"], one["x"], one["ci"]]["u"] == "corrected"
    for one in came["cancelErrors"]:
        assert rows[one["S"], one["x"], one["i"]]["u"] == "canceled"
    final = {(bar["S"], ns(bar)): bar for bar in (*came["bars"], *came["updatedBars"])}
    by_start = {(s, parse_rfc3339(row["t"])): row for s, some in bars.items() for row in some}
    for key, bar in final.items():
        assert by_start[key]["n"] >= bar["n"]
        assert by_start[key]["o"] == bar["o"]
