"""Crypto and options in the whole simulator, on trio's virtual clock: streams and REST agree."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from trio.testing import MockClock

from mdservice.model.timestamps import format_ns, parse_rfc3339
from mdservice.simulator import Simulator, SimulatorConfig, crypto, open_simulator, options
from mdservice.simulator.crypto import SimBook, apply_change
from mdservice.simulator.transport import SimulatorTransport
from mdservice.testing import VirtualClock

CRYPTO, OPRA = "/v1beta3/crypto/us", "/v1beta1/opra"
CALL = "AAPL281215C00190000"
SINCE = {"start": "1970-01-01"}


@asynccontextmanager
async def opened(**settings: Any) -> AsyncIterator[tuple[Simulator, httpx.AsyncClient]]:
    """A simulator and a client of REST, for at most a virtual hour."""
    config = SimulatorConfig(**{"connection_limit": None, **settings})
    with anyio.fail_after(3_600):
        async with (
            open_simulator(config, port=None, clock=VirtualClock()) as simulator,
            httpx.AsyncClient(
                transport=SimulatorTransport(simulator), base_url=simulator.rest_url
            ) as client,
        ):
            yield simulator, client


async def subscribed(
    dial: Any, simulator: Simulator, path: str, *, msgpack: bool = False, **channels: list[str]
) -> Any:
    client = await dial(simulator, msgpack=msgpack, path=path)
    await client.login()
    await client.send(action="subscribe", **channels)
    (answer,) = await client.receive()
    assert {
        name: symbols for name, symbols in answer.items() if symbols and name != "T"
    } == channels
    return client


def book_of(message: dict[str, Any]) -> SimBook:
    sides = (tuple((level["p"], level["s"]) for level in message[side]) for side in "ba")
    return SimBook(message["S"], *sides, whole=message.get("r", False))


async def pages(client: httpx.AsyncClient, path: str, channel: str, **params: Any) -> Any:
    """All records of a history, by symbol."""
    found: dict[str, list[Any]] = {}
    while True:
        answer = await client.get(path, params={**SINCE, "limit": "100", **params})
        assert answer.status_code == 200, answer.text
        page = answer.json()
        for symbol, rows in page[channel].items():
            found.setdefault(symbol, []).extend(rows)
        if page["next_page_token"] is None:
            return found
        params["page_token"] = page["next_page_token"]


async def test_the_first_book_after_each_subscription_is_whole(
    dial: Any, autojump_clock: MockClock
) -> None:
    async with opened() as (simulator, client):
        pair = ["BTC/USD"]
        one = await subscribed(dial, simulator, CRYPTO, orderbooks=pair, quotes=pair)
        two = await subscribed(dial, simulator, "/v1beta3/crypto/eu-1", orderbooks=["*"])
        books: dict[Any, SimBook] = {}
        for stream, rounds in ((one, 40), (two, 60)):
            for _ in range(rounds):
                for message in await stream.receive():
                    if message["T"] != "o" or message["S"] != "BTC/USD":
                        continue
                    change = book_of(message)
                    assert change.whole == (stream not in books), "whole once"
                    book = apply_change(books.get(stream), change)
                    assert book is not None
                    books[stream] = book
        await one.send(action="subscribe", orderbooks=pair)
        messages: list[dict[str, Any]] = []
        while not any(message.get("r") for message in messages):
            messages = await one.receive()
            changes = [book_of(message) for message in messages if message["T"] == "o"]
            for change in changes:
                expected = books[one]
                books[one] = apply_change(expected, change) or expected
                if change.whole:
                    assert (expected.bids, expected.asks) == (change.bids, change.asks)
        newest = simulator.sent_of(crypto.ORDERBOOKS)
        assert newest
        answer = await client.get(f"{CRYPTO}/latest/orderbooks", params={"symbols": "BTC/USD"})
        found = answer.json()["orderbooks"]["BTC/USD"]
        assert set(found) == {"t", "b", "a"}
        assert [level["p"] for level in found["b"]] == sorted(
            (level["p"] for level in found["b"]), reverse=True
        )
        assert found["b"][0]["p"] < found["a"][0]["p"]


@pytest.mark.thorough
async def test_cryptos_history_is_what_its_stream_sent(
    dial: Any, autojump_clock: MockClock
) -> None:
    channels = ("trades", "quotes", "bars", "updatedBars", "dailyBars")
    async with opened(crypto_rate=20, late_trade_ratio=0.05) as (simulator, client):
        pair = ["DOGE/USD"]
        stream = await subscribed(dial, simulator, CRYPTO, **dict.fromkeys(channels, pair))
        received: dict[str, list[Any]] = {tag: [] for tag in "tqbud"}
        received["subscription"] = []
        while len(received["b"]) < 5:
            for message in await stream.receive():
                received[message["T"]].append(message)
        await stream.send(action="unsubscribe", **dict.fromkeys(channels, pair))
        while not received["subscription"]:
            for message in await stream.receive():
                received[message["T"]].append(message)

        def rows(tag: str) -> list[Any]:
            kept = [
                {name: value for name, value in message.items() if name not in "TS"}
                for message in received[tag]
            ]
            return sorted(kept, key=lambda row: parse_rfc3339(row["t"]))

        until = max((rows(tag)[-1]["t"] for tag in "tq"), key=parse_rfc3339)
        params = {"symbols": "DOGE/USD", "end": until}
        trades = (await pages(client, f"{CRYPTO}/trades", "trades", **params))["DOGE/USD"]
        quotes = (await pages(client, f"{CRYPTO}/quotes", "quotes", **params))["DOGE/USD"]
        # The first records were made before the subscription was in force.
        assert trades[-len(rows("t")) :] == rows("t")
        assert quotes[-len(rows("q")) :] == rows("q")
        assert {trade["tks"] for trade in trades} == {"B", "S"}
        final = {bar["t"]: bar for bar in (*rows("b"), *rows("u"))}
        bars = await pages(client, f"{CRYPTO}/bars", "bars", timeframe="1Min", **params)
        assert bars["DOGE/USD"] == list(final.values())
        days = await pages(client, f"{CRYPTO}/bars", "bars", timeframe="1Day", **params)
        assert days["DOGE/USD"][-1] == rows("d")[-1]
        newest = await client.get(f"{CRYPTO}/latest/bars", params={"symbols": "DOGE/USD,X/Y"})
        assert newest.json() == {"bars": {"DOGE/USD": list(final.values())[-1]}}
        answer = await client.get(f"{CRYPTO}/snapshots", params={"symbols": "DOGE/USD"})
        snapshot = answer.json()["snapshots"]["DOGE/USD"]
        assert set(snapshot) == {"latestTrade", "latestQuote", "minuteBar", "dailyBar"}
        assert snapshot["minuteBar"] == list(final.values())[-1]


async def test_bars_come_with_each_minute_and_some_without_a_trade(
    dial: Any, autojump_clock: MockClock
) -> None:
    async with opened(crypto_rate=0.02, slice_s=1) as (simulator, _):
        stream = await subscribed(dial, simulator, CRYPTO, bars=["BTC/USD"])
        bars: list[dict[str, Any]] = []
        while len(bars) < 20:
            bars += await stream.receive()
        assert len({bar["t"] for bar in bars}) == 20
        assert all(bar["t"].endswith(":00Z") for bar in bars)
        assert any(bar["v"] == bar["n"] == bar["vw"] == 0 for bar in bars)
        assert any(bar["v"] and bar["n"] and bar["vw"] for bar in bars)


@pytest.mark.parametrize(
    ("path", "params", "message"),
    [
        (f"{CRYPTO}/trades", {"symbols": "AAPL"}, "invalid symbol: AAPL"),
        (f"{CRYPTO}/latest/quotes", {}, "symbols is required"),
        (
            f"{CRYPTO}/bars",
            {"symbols": "BTC/USD", "timeframe": "3Min"},
            "invalid timeframe: 3Min",
        ),
        ("/v1beta1/options/trades", {"symbols": "AAPL"}, "invalid symbol: AAPL"),
        ("/v1beta1/options/bars", {"symbols": CALL}, "invalid timeframe: "),
        (
            "/v1beta1/options/quotes/latest",
            {"symbols": CALL, "feed": "iex"},
            "invalid feed: iex",
        ),
        ("/v1beta1/options/snapshots/AAPL", {"strike_price_gte": "x"}, "invalid strike price"),
    ],
)
async def test_wrong_requests_are_refused(
    path: str, params: dict[str, str], message: str, autojump_clock: MockClock
) -> None:
    async with opened(rate=0) as (_, client):
        answer = await client.get(path, params=params)
        assert answer.status_code == 400
        assert answer.json()["message"].startswith(message)


async def test_rest_of_every_market_has_the_same_faults_and_limits(
    autojump_clock: MockClock,
) -> None:
    async with opened(rate=0, rest_rate_limit=3) as (simulator, client):
        path, params = f"{CRYPTO}/trades", {"symbols": "BTC/USD"}
        simulator.refuse_rest(500, 0, "broken", path=path)
        assert (await client.get("/v1beta1/news")).status_code == 200
        assert (await client.get(path, params=params)).status_code == 500
        assert (await client.get(path, params=params)).status_code == 200
        assert (await client.get("/v1beta1/news")).status_code == 429
    async with opened(rate=0, rest_lag_s=10) as (simulator, client):
        simulator.send_records(crypto.TRADES, [crypto.SimPairTrade("BTC/USD", 1.5, 2.0, 7)])
        assert await pages(client, path, "trades", **params) == {}
        await anyio.sleep(11)
        assert [row["i"] for row in (await pages(client, path, "trades", **params))["BTC/USD"]] == [
            7
        ]


async def test_options_are_msgpack_only_and_have_their_own_refusals(
    dial: Any, autojump_clock: MockClock
) -> None:
    async with opened(option_quotes_limit=2) as (simulator, _):
        as_json = await dial(simulator, path=OPRA)
        await as_json.login()
        await as_json.send(action="subscribe", quotes=[CALL])
        assert (await as_json.receive())[0]["code"] == 412
        client = await subscribed(dial, simulator, OPRA, msgpack=True, quotes=[CALL])
        for request, code in (
            ({"quotes": ["*"]}, 413),
            ({"bars": [CALL]}, 410),
            ({"quotes": ["AAPL"]}, 400),
            ({"quotes": [f"AAPL28121{n}C00190000" for n in range(3)]}, 405),
        ):
            await client.send(action="subscribe", **request)
            refusals = []
            while not refusals:
                refusals = [one for one in await client.receive() if one["T"] == "error"]
            assert refusals[0]["code"] == code, request


async def test_options_stream_and_rest_agree(dial: Any, autojump_clock: MockClock) -> None:
    async with opened() as (simulator, client):
        stream = await subscribed(dial, simulator, OPRA, msgpack=True, quotes=[CALL], trades=[CALL])
        received: dict[str, list[Any]] = {"t": [], "q": []}
        while len(received["t"]) < 20:
            for message in await stream.receive():
                received[message["T"]].append(message)
        assert all(isinstance(one["c"], str) for one in received["t"] + received["q"])
        assert all("i" not in trade for trade in received["t"])
        await stream.send(action="unsubscribe", quotes=[CALL], trades=[CALL])
        await anyio.sleep(1)
        trades = simulator.history_of(options.TRADES)
        assert [trade.price for trade in trades][:20] == [one["p"] for one in received["t"][:20]]
        params = {"symbols": CALL}
        found = (await pages(client, "/v1beta1/options/trades", "trades", **params))[CALL]
        assert [(row["p"], row["s"], row["x"], row["c"]) for row in found] == [
            (one.price, one.size, one.exchange, one.condition) for one in trades
        ]
        (bar,) = (await pages(client, "/v1beta1/options/bars", "bars", timeframe="1Day", **params))[
            CALL
        ]
        assert bar["v"] == sum(one.size for one in trades)
        assert (bar["o"], bar["c"], bar["n"]) == (trades[0].price, trades[-1].price, len(trades))
        minutes = (
            await pages(client, "/v1beta1/options/bars", "bars", timeframe="1Min", **params)
        )[CALL]
        assert sum(minute["v"] for minute in minutes) == bar["v"]
        newest = {"feed": "indicative", **params}
        answer = await client.get("/v1beta1/options/quotes/latest", params=newest)
        quote = simulator.history_of(options.QUOTES)[-1]
        assert answer.json()["quotes"][CALL]["ap"] == quote.ask
        assert answer.json()["quotes"][CALL]["t"].rstrip("Z") in format_ns(quote.ts_event_ns)
        answer = await client.get("/v1beta1/options/trades/latest", params=newest)
        assert answer.json()["trades"][CALL]["p"] == trades[-1].price
        answer = await client.get("/v1beta1/options/snapshots", params=newest)
        snapshot = answer.json()["snapshots"][CALL]
        assert snapshot["latestQuote"]["ap"] == quote.ask
        assert snapshot["latestTrade"]["p"] == trades[-1].price
        assert 0 < snapshot["greeks"]["delta"] < 1
        assert snapshot["impliedVolatility"] > 0.1


async def test_a_chain_is_whole_priced_from_the_stock_and_filtered(
    autojump_clock: MockClock,
) -> None:
    async with opened(rate=0) as (simulator, client):
        simulator.send_quotes([{"S": "AAPL", "bp": 199.99, "ap": 200.01}])
        path = "/v1beta1/options/snapshots/AAPL"
        found: dict[str, Any] = {}
        params = {"feed": "indicative", "limit": "100"}
        while True:
            page = (await client.get(path, params=params)).json()
            found |= page["snapshots"]
            if page["next_page_token"] is None:
                break
            params["page_token"] = page["next_page_token"]
        assert len(found) == 4 * 2 * 21
        deep = min(found)
        contract = options.Contract.parse(deep)
        assert found[deep]["latestQuote"]["ap"] >= 200 - contract.strike
        expiry = contract.expiry.isoformat()
        params = {"expiration_date": expiry, "type": "put", "strike_price_gte": "187.5"}
        page = (await client.get(path, params=params)).json()["snapshots"]
        contracts = [options.Contract.parse(symbol) for symbol in page]
        assert contracts
        for each in contracts:
            assert (each.expiry, each.is_call) == (contract.expiry, False)
            assert each.strike >= 187.5


async def test_an_options_price_follows_the_quoted_stock(
    dial: Any, autojump_clock: MockClock
) -> None:
    async with opened(rate=0.001, shape="flat") as (simulator, _):
        stream = await subscribed(dial, simulator, OPRA, msgpack=True, quotes=[CALL])
        simulator.send_quotes([{"S": "AAPL", "bp": 399.99, "ap": 400.01}])
        while True:
            quotes = await stream.receive()
            if quotes[-1]["bp"] > 200:
                break


async def test_faults_can_be_put_on_one_stream(dial: Any, autojump_clock: MockClock) -> None:
    async with opened() as (simulator, _):
        pair = ["BTC/USD"]
        coins = await subscribed(dial, simulator, CRYPTO, trades=pair)
        stocks = await subscribed(dial, simulator, "/v2/iex", quotes=["AAPL"])
        simulator.mute(feed="crypto")
        await anyio.sleep(1)
        before = simulator.made[crypto.TRADES]
        with anyio.move_on_after(5) as silent:
            while True:
                await coins.receive()
        assert silent.cancelled_caught
        assert simulator.made[crypto.TRADES] > before
        await stocks.receive()
        simulator.drop("close", feed="crypto")
        assert await coins.closed() == 1001
        await stocks.receive()
