"""alpaca-py's own clients of crypto, options and news, unchanged: streams and REST."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest
from alpaca.common.enums import Sort
from alpaca.data.enums import OptionsFeed
from alpaca.data.historical import (
    CryptoHistoricalDataClient,
    NewsClient,
    OptionHistoricalDataClient,
)
from alpaca.data.live import CryptoDataStream, NewsDataStream, OptionDataStream
from alpaca.data.models import Bar, News, Orderbook, Quote, Trade
from alpaca.data.requests import (
    CryptoBarsRequest,
    CryptoLatestBarRequest,
    CryptoLatestOrderbookRequest,
    CryptoLatestQuoteRequest,
    CryptoLatestTradeRequest,
    CryptoQuoteRequest,
    CryptoSnapshotRequest,
    CryptoTradesRequest,
    NewsRequest,
    OptionBarsRequest,
    OptionChainRequest,
    OptionLatestQuoteRequest,
    OptionLatestTradeRequest,
    OptionSnapshotRequest,
    OptionTradesRequest,
)
from alpaca.data.timeframe import TimeFrame
from alpaca.trading.enums import ContractType

from mdservice.model.timestamps import parse_rfc3339
from mdservice.simulator import Simulator, SimulatorConfig, crypto, open_simulator, options
from mdservice.simulator.news import ARTICLES
from tests.integration.conftest import patient

LIMIT_S = 60
START = datetime(2026, 11, 20, 15, 0, tzinfo=UTC)
PAIRS = ("BTC/USD", "DOGE/USD")
CALL, PUT = "AAPL261218C00190000", "AAPL261218P00190000"
SPEED = 80
"""Two minutes of the market pass in a second and a half."""


class FastClock:
    """A market's time that runs ahead of the machine's."""

    def __init__(self) -> None:
        self._began_ns = time.monotonic_ns()

    def monotonic(self) -> float:
        return time.monotonic()

    def utc_ns(self) -> int:
        elapsed_ns = (time.monotonic_ns() - self._began_ns) * SPEED
        return parse_rfc3339("2026-11-20T15:00:00Z") + elapsed_ns


class Received:
    """The SDK's stream in a thread of its own, and what its handlers were given, by channel."""

    def __init__(self, stream: Any, channels: dict[str, str], *symbols: str) -> None:
        self.stream = stream
        self.records: dict[str, list[Any]] = defaultdict(list)
        self.channels = channels
        self.symbols = symbols
        for channel, method in channels.items():
            getattr(stream, method)(self._into(channel), *symbols)

    def _into(self, channel: str) -> Callable[[Any], Awaitable[None]]:
        async def handle(record: Any) -> None:
            self.records[channel].append(record)

        return handle

    async def until(self, count: int, *channels: str) -> None:
        """Wait until so many records of each channel came."""
        while any(len(self.records[channel]) < count for channel in channels or self.channels):
            await anyio.sleep(0.02)

    async def unsubscribe(self, simulator: Simulator) -> None:
        """From all, so that the market stops."""
        for method in self.channels.values():
            await call(getattr(self.stream, f"un{method}"), *self.symbols)
        await simulator.until(
            lambda s: not any(any(each.subscriptions.values()) for each in s.connections)
        )

    def __getitem__(self, channel: str) -> list[Any]:
        return self.records[channel]


@asynccontextmanager
async def running(stream: Any, channels: dict[str, str], *symbols: str) -> AsyncIterator[Received]:
    received = Received(stream, channels, *symbols)
    thread = threading.Thread(target=stream.run)
    thread.start()
    try:
        yield received
    finally:
        stream.stop()
        await anyio.to_thread.run_sync(partial(thread.join, LIMIT_S))


@pytest.fixture(params=["trio", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Runs a test's body beside a simulator, on either event loop."""

    def with_simulator(body: Callable[[Simulator], Any], **settings: Any) -> None:
        async def main() -> None:
            with anyio.fail_after(patient(LIMIT_S)):
                config = SimulatorConfig(
                    **{
                        "crypto_rate": 400,
                        "options_rate": 200,
                        "late_trade_ratio": 0.05,
                        "rest_rate_limit": None,
                        **settings,
                    }
                )
                async with open_simulator(config, clock=FastClock()) as simulator:
                    await body(simulator)

        anyio.run(main, backend=request.param)

    return with_simulator


async def call(function: Callable[..., Any], *args: Any) -> Any:
    """In a thread; the simulator goes on meanwhile."""
    return await anyio.to_thread.run_sync(partial(function, *args))


CRYPTO = {
    "trades": "subscribe_trades",
    "quotes": "subscribe_quotes",
    "bars": "subscribe_bars",
    "updatedBars": "subscribe_updated_bars",
    "dailyBars": "subscribe_daily_bars",
    "orderbooks": "subscribe_orderbooks",
}


def crypto_stream(simulator: Simulator, *, raw_data: bool) -> CryptoDataStream:
    url = simulator.stream_url("crypto")
    return CryptoDataStream("key", "secret", raw_data, url_override=url)


def test_the_crypto_stream_reads_every_channel_raw(run: Callable[..., None]) -> None:
    async def body(simulator: Simulator) -> None:
        async with running(crypto_stream(simulator, raw_data=True), CRYPTO, *PAIRS) as received:
            await received.until(2)
        kinds = {kind.channel: kind for kind in crypto.CRYPTO_MARKET.kinds}
        for channel in CRYPTO:
            sent = [(one.symbol, one.ts_event_ns) for one in simulator.sent_of(kinds[channel])]
            came = [(one["S"], one["t"].to_unix_nano()) for one in received[channel]]
            assert came[-1] in sent, channel
        sent_trades = {trade.id: trade for trade in simulator.sent_of(crypto.TRADES)}
        for trade in received["trades"]:
            expected = sent_trades[trade["i"]]
            assert (trade["p"], trade["s"], trade["tks"]) == (
                expected.price,
                expected.size,
                expected.taker,
            )
        books: dict[str, dict[str, dict[float, float]]] = {}
        for message in received["orderbooks"]:
            if message.get("r"):
                books[message["S"]] = {"b": {}, "a": {}}
            book = books[message["S"]]
            for side in "ba":
                for level in message[side]:
                    if level["s"]:
                        book[side][level["p"]] = level["s"]
                    else:
                        book[side].pop(level["p"], None)
            assert max(book["b"]) < min(book["a"])
        assert set(books) == set(PAIRS)

    run(body)


def test_the_crypto_stream_reads_models(run: Callable[..., None]) -> None:
    models = {"trades": Trade, "quotes": Quote, "orderbooks": Orderbook}

    async def body(simulator: Simulator) -> None:
        async with running(crypto_stream(simulator, raw_data=False), CRYPTO, "*") as received:
            await received.until(2)
        for channel, records in received.records.items():
            assert {type(record) for record in records} == {models.get(channel, Bar)}
        assert received["orderbooks"][0].reset

    run(body)


@pytest.mark.parametrize("run", ["trio"], indirect=True)
def test_cryptos_rest_has_what_was_streamed(run: Callable[..., None]) -> None:
    async def body(simulator: Simulator) -> None:
        async with running(crypto_stream(simulator, raw_data=True), CRYPTO, *PAIRS) as received:
            await received.until(2)
            await received.unsubscribe(simulator)
        client = CryptoHistoricalDataClient(url_override=simulator.rest_url)
        raw = CryptoHistoricalDataClient(url_override=simulator.rest_url, raw_data=True)
        asked = {"symbol_or_symbols": list(PAIRS), "start": START}
        trades = await call(raw.get_crypto_trades, CryptoTradesRequest(**asked))
        ids = {row["i"] for rows in trades.values() for row in rows}
        assert {trade["i"] for trade in received["trades"]} <= ids
        quotes = await call(raw.get_crypto_quotes, CryptoQuoteRequest(**asked))
        in_rest = {
            (symbol, row["bp"], row["ap"], row["bs"], row["as"])
            for symbol, rows in quotes.items()
            for row in rows
        }
        assert {
            (quote["S"], quote["bp"], quote["ap"], quote["bs"], quote["as"])
            for quote in received["quotes"]
        } <= in_rest
        minutes = CryptoBarsRequest(timeframe=TimeFrame.Minute, **asked)
        bars = await call(client.get_crypto_bars, minutes)
        days = CryptoBarsRequest(timeframe=TimeFrame.Day, **asked | {"start": START.date()})
        of_days = await call(client.get_crypto_bars, days)
        newest = {"symbol_or_symbols": "BTC/USD"}
        latest_bar = await call(client.get_crypto_latest_bar, CryptoLatestBarRequest(**newest))
        assert latest_bar["BTC/USD"] == bars.data["BTC/USD"][-1]
        assert of_days.data["BTC/USD"][-1].timestamp == START.replace(hour=0)
        trade = await call(client.get_crypto_latest_trade, CryptoLatestTradeRequest(**newest))
        assert trade["BTC/USD"].id in ids
        quote = await call(client.get_crypto_latest_quote, CryptoLatestQuoteRequest(**newest))
        request = CryptoLatestOrderbookRequest(**newest)
        book = (await call(client.get_crypto_latest_orderbook, request))["BTC/USD"]
        snapshot = await call(client.get_crypto_snapshot, CryptoSnapshotRequest(**newest))
        for ends in (quote["BTC/USD"], snapshot["BTC/USD"].latest_quote):
            assert ends.bid_price < ends.ask_price
        assert book.bids[0].price < book.asks[0].price
        assert snapshot["BTC/USD"].daily_bar.trade_count >= 1

    run(body)


OPTIONS = {"trades": "subscribe_trades", "quotes": "subscribe_quotes"}


@pytest.mark.parametrize("raw_data", [True, False])
def test_the_options_stream(run: Callable[..., None], raw_data: bool) -> None:
    async def body(simulator: Simulator) -> None:
        url = simulator.stream_url("options")
        stream = OptionDataStream("key", "secret", raw_data, url_override=url)
        async with running(stream, OPTIONS, CALL, PUT) as received:
            await received.until(10)
        if raw_data:
            sent = {(q.symbol, q.ts_event_ns): q for q in simulator.sent_of(options.QUOTES)}
            for quote in received["quotes"]:
                expected = sent[quote["S"], quote["t"].to_unix_nano()]
                assert (quote["bp"], quote["ap"]) == (expected.bid, expected.ask)
            assert all(isinstance(trade["c"], str) for trade in received["trades"])
        else:
            assert {type(trade) for trade in received["trades"]} == {Trade}
            assert {type(quote) for quote in received["quotes"]} == {Quote}
            assert {quote.symbol for quote in received["quotes"]} == {CALL, PUT}

    run(body)


@pytest.mark.parametrize("run", ["trio"], indirect=True)
def test_the_options_rest(run: Callable[..., None]) -> None:
    async def body(simulator: Simulator) -> None:
        url = simulator.stream_url("options")
        stream = OptionDataStream("key", "secret", raw_data=True, url_override=url)
        async with running(stream, OPTIONS, CALL) as received:
            await received.until(10)
            await received.unsubscribe(simulator)
        rest = simulator.rest_url
        client = OptionHistoricalDataClient("key", "secret", url_override=rest)
        asked = {"symbol_or_symbols": CALL, "start": START}
        trades = await call(client.get_option_trades, OptionTradesRequest(**asked))
        prices = [trade.price for trade in trades.data[CALL]]
        assert [trade["p"] for trade in received["trades"]] == prices[: len(received["trades"])]
        days = OptionBarsRequest(timeframe=TimeFrame.Day, **asked | {"start": START.date()})
        (bar,) = (await call(client.get_option_bars, days)).data[CALL]
        assert (bar.open, bar.high, bar.low) == (prices[0], max(prices), min(prices))
        newest = {"symbol_or_symbols": CALL, "feed": OptionsFeed.INDICATIVE}
        quote = await call(client.get_option_latest_quote, OptionLatestQuoteRequest(**newest))
        trade = await call(client.get_option_latest_trade, OptionLatestTradeRequest(**newest))
        snapshot = await call(client.get_option_snapshot, OptionSnapshotRequest(**newest))
        assert 0 < quote[CALL].bid_price < quote[CALL].ask_price
        assert trade[CALL].price in prices
        assert snapshot[CALL].latest_trade.price in prices
        assert 0 < snapshot[CALL].greeks.delta < 1
        request = OptionChainRequest(
            underlying_symbol="AAPL", type=ContractType.PUT, expiration_date_gte=date(2026, 11, 28)
        )
        chain = await call(client.get_option_chain, request)
        assert len(chain) == 2 * 21
        assert all("P" in symbol[4:] for symbol in chain)
        assert all(each.latest_quote.ask_price > 0 for each in chain.values())

    run(body)


@pytest.mark.parametrize("raw_data", [True, False])
def test_the_news_stream(run: Callable[..., None], raw_data: bool) -> None:
    async def body(simulator: Simulator) -> None:
        url = simulator.stream_url("news")
        stream = NewsDataStream("key", "secret", raw_data, url_override=url)
        async with running(stream, {"news": "subscribe_news"}, "*") as received:
            await received.until(20)
        sent = list(simulator.sent_of(ARTICLES))[:20]
        if raw_data:
            assert [(one["id"], one["headline"]) for one in received["news"][:20]] == [
                (article.id, article.headline) for article in sent
            ]
            assert received["news"][0]["updated_at"].to_unix_nano() == sent[0].ts_event_ns
        else:
            assert {type(one) for one in received["news"]} == {News}
            assert [list(one.symbols) for one in received["news"][:20]] == [
                list(article.symbols) for article in sent
            ]

    run(body, news_every_s=0.05)


@pytest.mark.parametrize("run", ["trio"], indirect=True)
def test_the_news_client_reads_every_page(run: Callable[..., None]) -> None:
    async def body(simulator: Simulator) -> None:
        url = simulator.stream_url("news")
        stream = NewsDataStream("key", "secret", raw_data=True, url_override=url)
        async with running(stream, {"news": "subscribe_news"}, "*") as received:
            await received.until(120)
            await received.unsubscribe(simulator)
        client = NewsClient("key", "secret", url_override=simulator.rest_url)
        request = NewsRequest(start=START, include_content=True, sort=Sort.ASC)
        found = (await call(client.get_news, request)).data["news"]
        last = {article.id: article for article in simulator.history_of(ARTICLES)}
        assert {one.id: (one.headline, one.content) for one in found} == {
            article.id: (article.headline, article.content) for article in last.values()
        }
        assert [one.updated_at for one in found] == sorted(one.updated_at for one in found)
        some = await call(client.get_news, NewsRequest(start=START, symbols="AAPL,BTCUSD", limit=3))
        assert 0 < len(some.data["news"]) <= 3
        assert all({"AAPL", "BTCUSD"} & set(one.symbols) for one in some.data["news"])

    run(body, news_every_s=0.02)
