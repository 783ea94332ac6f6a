"""alpaca-py's own REST clients, unchanged, each call in a worker thread."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
import requests
from alpaca.common.enums import Sort
from alpaca.common.exceptions import APIError
from alpaca.data.enums import DataFeed
from alpaca.data.historical import StockHistoricalDataClient
from alpaca.data.requests import StockLatestQuoteRequest, StockQuotesRequest
from alpaca.trading.client import TradingClient

from mdservice.model.timestamps import parse_rfc3339
from mdservice.simulator import SimQuote, Simulator, SimulatorConfig, open_simulator
from tests.integration.conftest import patient

LIMIT_S = 60
START = datetime(2026, 11, 20, 15, 0, tzinfo=UTC)
START_NS = parse_rfc3339("2026-11-20T15:00:00Z")


@pytest.fixture(params=["trio", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Runs a test's body beside a simulator, on either event loop."""

    def with_simulator(body: Callable[[Simulator], Any], **settings: Any) -> None:
        async def main() -> None:
            with anyio.fail_after(patient(LIMIT_S)):
                config = SimulatorConfig(**{"rate": 0, **settings})
                async with open_simulator(config) as simulator:
                    await body(simulator)

        anyio.run(main, backend=request.param)

    return with_simulator


async def call(function: Callable[..., Any], *args: Any) -> Any:
    """In a thread; the simulator goes on meanwhile."""
    return await anyio.to_thread.run_sync(partial(function, *args))


def history_client(simulator: Simulator, **options: Any) -> StockHistoricalDataClient:
    return StockHistoricalDataClient("key", "secret", url_override=simulator.rest_url, **options)


def quotes_of(*symbols: str, each: int) -> list[SimQuote]:
    """In turns; all quotes of a turn have one time."""
    return [
        SimQuote(symbol, float(n + 1), n + 2.5, ts_event_ns=START_NS + n * 1_001)
        for n in range(each)
        for symbol in symbols
    ]


def asked(*symbols: str, **options: Any) -> StockQuotesRequest:
    return StockQuotesRequest(
        symbol_or_symbols=list(symbols),
        start=START,
        end=START + timedelta(hours=1),
        feed=DataFeed.IEX,
        **options,
    )


def test_get_stock_quotes_reads_every_page_with_nanoseconds(run: Callable[..., None]) -> None:
    async def body(simulator: Simulator) -> None:
        simulator.send_quotes(quotes_of("MSFT", "AAPL", each=12_000))
        client = history_client(simulator, raw_data=True)
        found = await call(client.get_stock_quotes, asked("MSFT", "AAPL", "NONE"))
        assert sorted(found) == ["AAPL", "MSFT"]
        for quotes in found.values():
            assert [parse_rfc3339(q["t"]) for q in quotes] == [
                START_NS + n * 1_001 for n in range(12_000)
            ]
            assert [q["bp"] for q in quotes] == list(range(1, 12_001))
        assert len(simulator.rest_requests) == 3

    run(body, history_size=24_000)


def test_get_stock_quotes_gives_its_own_models(run: Callable[..., None]) -> None:
    async def body(simulator: Simulator) -> None:
        simulator.send_quotes(quotes_of("AAPL", each=30))
        client = history_client(simulator)
        found = await call(client.get_stock_quotes, asked("AAPL", limit=20, sort=Sort.DESC))
        quotes = found["AAPL"]
        assert [quote.bid_price for quote in quotes] == list(range(30, 10, -1))
        newest = quotes[0]
        assert newest.timestamp == START + timedelta(microseconds=29)
        assert (newest.ask_price, newest.bid_exchange, newest.tape) == (31.5, "V", "C")
        assert newest.conditions == ["R"]

    run(body, rest_page_size=7)


@pytest.mark.parametrize("raw_data", [True, False])
def test_get_stock_latest_quote(run: Callable[..., None], raw_data: bool) -> None:
    async def body(simulator: Simulator) -> None:
        simulator.send_quotes(quotes_of("AAPL", "MSFT", each=3))
        client = history_client(simulator, raw_data=raw_data)
        request = StockLatestQuoteRequest(
            symbol_or_symbols=["AAPL", "MSFT", "NONE"], feed=DataFeed.OVERNIGHT
        )
        found = await call(client.get_stock_latest_quote, request)
        if raw_data:
            newest = (3, "2026-11-20T15:00:00.000002002Z")
            assert {s: (q["bp"], q["t"]) for s, q in found.items()} == {
                "AAPL": newest,
                "MSFT": newest,
            }
        else:
            assert {s: q.ask_price for s, q in found.items()} == {"AAPL": 4.5, "MSFT": 4.5}
            assert found["AAPL"].timestamp == START + timedelta(microseconds=2)

    run(body)


@pytest.mark.parametrize("raw_data", [True, False])
def test_get_clock(run: Callable[..., None], raw_data: bool) -> None:
    async def body(simulator: Simulator) -> None:
        client = TradingClient("key", "secret", raw_data=raw_data, url_override=simulator.rest_url)
        for is_open in (True, False):
            simulator.market_open = is_open
            clock = await call(client.get_clock)
            if raw_data:
                assert clock["is_open"] is is_open
            else:
                assert clock.is_open is is_open
                assert abs(clock.timestamp - datetime.now(UTC)) < timedelta(minutes=1)
                assert clock.timestamp < min(clock.next_open, clock.next_close)
                assert (clock.next_close < clock.next_open) is is_open

    run(body)


def test_refusals_are_its_api_errors(run: Callable[..., None]) -> None:
    async def body(simulator: Simulator) -> None:
        client = history_client(simulator, raw_data=True)
        with pytest.raises(APIError) as caught:
            await call(client.get_stock_quotes, asked("AAPL"))
        assert (caught.value.status_code, caught.value.message) == (403, "forbidden.")
        client = StockHistoricalDataClient("key", "right", url_override=simulator.rest_url)
        simulator.refuse_rest()
        with pytest.raises(APIError) as caught:
            await call(client.get_stock_quotes, asked("AAPL"))
        assert (caught.value.status_code, caught.value.code) == (403, 42210000)
        with pytest.raises(APIError) as caught:
            await call(client.get_stock_quotes, asked("A*PL"))
        assert (caught.value.status_code, caught.value.code) == (400, 40010001)

    run(body, key="key", secret="right")


def test_a_cut_and_a_garbled_answer_are_errors_over_tcp(run: Callable[..., None]) -> None:
    async def body(simulator: Simulator) -> None:
        simulator.send_quotes(quotes_of("AAPL", each=5_000))
        client = history_client(simulator, raw_data=True)
        simulator.cut_rest()
        with pytest.raises(requests.RequestException):
            await call(client.get_stock_quotes, asked("AAPL"))
        simulator.garble_rest()
        with pytest.raises(requests.JSONDecodeError):
            await call(client.get_stock_quotes, asked("AAPL"))
        simulator.slow_rest(0.1)
        assert len((await call(client.get_stock_quotes, asked("AAPL")))["AAPL"]) == 5_000

    run(body)


def test_answers_many_clients_at_once(run: Callable[..., None]) -> None:
    async def body(simulator: Simulator) -> None:
        simulator.send_quotes(quotes_of("AAPL", each=2_000))
        params = {"symbols": "AAPL", "feed": "iex", "limit": "10000", "start": "2026-11-20"}
        counts = []

        async def ask(client: httpx.AsyncClient) -> None:
            answer = await client.get(f"{simulator.rest_url}/v2/stocks/quotes", params=params)
            counts.append(len(answer.json()["quotes"]["AAPL"]))

        async with httpx.AsyncClient(trust_env=False) as client, anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(ask, client)
        assert counts == [2_000] * 20

    run(body)


def test_the_rest_url_is_on_loopback(run: Callable[..., None]) -> None:
    async def body(simulator: Simulator) -> None:
        assert simulator.rest_url == f"http://127.0.0.1:{simulator.port}"

    run(body)
