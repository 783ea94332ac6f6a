"""Prices leave as the exact decimals that Redis holds."""

from __future__ import annotations

import json
from decimal import Decimal

import httpx
import pytest

from mdservice.testing.fake_service import FakeService

PRICES = "/api/v1/market-data/prices"
AT_NS = 1_795_190_304_208_912_345


async def test_gives_one_price_object(client: httpx.AsyncClient, service: FakeService) -> None:
    service.publish("AAPL", 187.12, 187.15, ts_event_ns=AT_NS)
    answer = await client.get(f"{PRICES}/AAPL")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "symbol": "AAPL",
        "price": 187.135,
        "bid": 187.12,
        "ask": 187.15,
        "bid_size": 2,
        "ask_size": 3,
        "timestamp": "2026-11-20T15:58:24.208912345Z",
        "seq": 1,
    }


@pytest.mark.parametrize(
    ("bid", "ask", "exact"),
    [
        (0.1, 0.2, "0.15"),
        (0.0001, 0.0002, "0.00015"),
        (123456789012.01, 123456789012.04, "123456789012.025"),
        (0.0, 5.5, "5.5"),
    ],
)
async def test_prices_are_exact_decimal_numbers(
    client: httpx.AsyncClient, service: FakeService, bid: float, ask: float, exact: str
) -> None:
    service.publish("X", bid, ask)
    for text in ((await client.get(f"{PRICES}/X")).text, (await client.get(PRICES)).text):
        found = json.loads(text, parse_float=Decimal)
        price = found["price"] if "price" in found else found["prices"][0]["price"]
        assert price == Decimal(exact)


async def test_a_quote_without_any_side_has_a_null_price(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    service.publish("X", 0.0, 0.0)
    assert (await client.get(f"{PRICES}/X")).json()["price"] is None


@pytest.mark.parametrize("path", ["BTC/USD", "BTC%2FUSD", "btc/usd"])
async def test_a_symbol_may_hold_a_slash_and_lower_case(
    client: httpx.AsyncClient, service: FakeService, path: str
) -> None:
    service.publish("BTC/USD", 1.0, 3.0)
    assert (await client.get(f"{PRICES}/{path}")).json()["symbol"] == "BTC/USD"


async def test_404_says_whether_the_symbol_is_subscribed(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    answer = await client.get(f"{PRICES}/MSFT")
    assert answer.status_code == 404
    assert answer.json() == {"detail": "there is no price of MSFT yet: subscribe to it first"}
    await service.subscribe("MSFT")
    answer = await client.get(f"{PRICES}/MSFT")
    assert answer.json() == {"detail": "there is no price of MSFT yet: wait for its first quote"}


@pytest.mark.parametrize("path", [f"{PRICES}/A PPL", f"{PRICES}/", f"{PRICES}?symbols=A,B B"])
async def test_a_bad_symbol_is_422(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 422
    assert "is not a symbol" in answer.json()["detail"]


async def test_lists_all_prices_or_those_asked_for(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    assert (await client.get(PRICES)).json() == {"prices": []}
    for symbol in ("A", "B", "C"):
        service.publish(symbol, 1.0, 2.0)

    async def listed(query: str) -> list[str]:
        answer = await client.get(PRICES + query)
        return [price["symbol"] for price in answer.json()["prices"]]

    assert await listed("") == ["A", "B", "C"]
    assert await listed("?symbols=c,A,UNKNOWN") == ["C", "A"]
    assert await listed("?symbols=A,&symbols=B") == ["A", "B"]
    assert await listed("?symbols=*") == ["A", "B", "C"]
    assert await listed("?symbols=UNKNOWN") == []


@pytest.mark.parametrize("query", ["?symbols=", "?symbols=,"])
async def test_an_empty_list_is_422_and_never_everything(
    client: httpx.AsyncClient, service: FakeService, query: str
) -> None:
    service.publish("A", 1.0, 2.0)
    answer = await client.get(PRICES + query)
    assert answer.status_code == 422
    assert "leave it out for all" in answer.json()["detail"]
