"""Subscribing, unsubscribing and listing, by every form that a caller may use."""

from __future__ import annotations

from typing import Any

import anyio
import httpx
import pytest

from mdservice.errors import FeedUnavailable, MDServiceError
from mdservice.http_api.requests import MAX_SYMBOLS
from mdservice.http_api.server import create_app
from mdservice.testing.fake_service import FakeOutcome, FakeService

BASE = "/api/v1/market-data"
SUBSCRIBE = f"{BASE}/subscribe"
UNSUBSCRIBE = f"{BASE}/unsubscribe"


async def test_subscribes_to_the_symbol_of_the_query(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    answer = await client.post(SUBSCRIBE, params={"symbol": "AAPL"})
    assert answer.status_code == 200
    assert answer.json() == {"status": "subscribed", "symbol": "AAPL", "symbols": ["AAPL"]}
    assert service.subscriptions() == {"AAPL": ["api"]}


async def test_subscribes_to_the_symbols_of_the_body(client: httpx.AsyncClient) -> None:
    answer = await client.post(SUBSCRIBE, json={"symbols": ["AAPL", "MSFT", "AAPL"]})
    assert answer.json() == {"status": "subscribed", "symbols": ["AAPL", "MSFT"]}


async def test_one_symbol_in_the_body_is_answered_as_one_in_the_query(
    client: httpx.AsyncClient,
) -> None:
    expected = {"status": "subscribed", "symbol": "AAPL", "symbols": ["AAPL"]}
    assert (await client.post(SUBSCRIBE, json={"symbols": ["AAPL"]})).json() == expected
    assert (await client.post(SUBSCRIBE, json={"symbol": "AAPL"})).json() == expected


async def test_takes_the_symbols_of_query_and_body_together(client: httpx.AsyncClient) -> None:
    answer = await client.post(
        SUBSCRIBE, params={"symbol": ["A", "B"]}, json={"symbol": "C", "symbols": ["D"]}
    )
    assert answer.json() == {"status": "subscribed", "symbols": ["A", "B", "C", "D"]}


async def test_raises_lower_case_and_takes_every_form_of_symbol(client: httpx.AsyncClient) -> None:
    answer = await client.post(SUBSCRIBE, json={"symbols": ["aapl", "brk.b", "btc/usd", "*"]})
    assert answer.json()["symbols"] == ["AAPL", "BRK.B", "BTC/USD", "*"]


async def test_reads_a_json_body_whatever_its_content_type_says(client: httpx.AsyncClient) -> None:
    answer = await client.post(
        SUBSCRIBE,
        content=b'{"symbols": ["AAPL"]}',
        headers={"content-type": "application/x-www-form-urlencoded"},
    )
    assert answer.json()["symbols"] == ["AAPL"]


async def test_unsubscribes_on_behalf_of_the_api(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    await service.subscribe("AAPL", source="positions")
    await client.post(SUBSCRIBE, json={"symbols": ["AAPL", "MSFT"]})
    answer = await client.post(UNSUBSCRIBE, json={"symbols": ["AAPL", "MSFT"]})
    assert answer.json() == {"status": "unsubscribed", "symbols": ["AAPL", "MSFT"]}
    assert service.subscriptions() == {"AAPL": ["positions"]}


@pytest.mark.parametrize("path", [SUBSCRIBE, UNSUBSCRIBE])
async def test_a_change_is_pending_while_the_feed_is_away(
    client: httpx.AsyncClient, service: FakeService, path: str
) -> None:
    service.feed_connected = False
    answer = await client.post(path, params={"symbol": "AAPL"})
    assert answer.status_code == 200
    assert answer.json() == {"status": "pending", "symbol": "AAPL", "symbols": ["AAPL"]}


@pytest.mark.parametrize("path", [SUBSCRIBE, UNSUBSCRIBE])
@pytest.mark.parametrize(
    ("request_parts", "named"),
    [
        ({}, "?symbol=AAPL"),
        ({"json": {"symbols": []}}, "no symbol was given"),
        ({"json": {}}, "no symbol was given"),
        ({"params": {"symbol": ""}}, "'' is not a symbol"),
        ({"params": {"symbol": "A,B"}}, "'A,B' is not a symbol"),
        ({"json": {"symbols": ["AAPL", "A PPL"]}}, "'A PPL' is not a symbol"),
        ({"json": {"symbols": "AAPL"}}, "Expected `array"),
        ({"json": {"symbols": [1]}}, "Expected `str`"),
        ({"json": ["AAPL"]}, "Expected `object`"),
        ({"json": {"symbls": ["AAPL"]}}, "unknown field `symbls`"),
        ({"content": b"symbols=AAPL"}, "the body is not of the form"),
        ({"content": b'{"symbol": "\xff"}'}, "the body is not of the form"),
    ],
)
async def test_a_bad_request_is_422_and_says_what_is_wrong(
    client: httpx.AsyncClient,
    service: FakeService,
    path: str,
    request_parts: dict[str, Any],
    named: str,
) -> None:
    answer = await client.post(path, **request_parts)
    assert answer.status_code == 422
    assert named in answer.json()["detail"]
    assert service.subscriptions() == {}


async def test_a_long_bad_symbol_is_named_cut_short(client: httpx.AsyncClient) -> None:
    answer = await client.post(SUBSCRIBE, json={"symbols": ["Z" * 5000]})
    assert answer.status_code == 422
    assert "Z" * 32 + "…" in answer.json()["detail"]
    assert len(answer.json()["detail"]) < 250


async def test_a_long_unknown_field_is_named_cut_short(client: httpx.AsyncClient) -> None:
    answer = await client.post(SUBSCRIBE, json={"x" * 5000: 1})
    assert answer.status_code == 422
    assert len(answer.json()["detail"]) < 300


async def test_too_many_symbols_in_one_request_are_422(client: httpx.AsyncClient) -> None:
    answer = await client.post(SUBSCRIBE, json={"symbols": ["A"] * (MAX_SYMBOLS + 1)})
    assert answer.status_code == 422
    assert "at most 20000" in answer.json()["detail"]


async def test_what_the_feed_refuses_is_409_with_its_reason(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    symbols = [f"S{number}" for number in range(31)]
    answer = await client.post(SUBSCRIBE, json={"symbols": symbols})
    assert answer.status_code == 409
    assert answer.json() == {"detail": "the feed takes 30 symbols: unsubscribe some first"}
    assert service.subscriptions() == {}


async def test_lists_the_symbols_with_their_sources(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    await service.subscribe("MSFT", "AAPL", source="settings")
    await client.post(SUBSCRIBE, params={"symbol": "AAPL"})
    service.not_given = {"MSFT": "symbol limit exceeded"}
    answer = await client.get(f"{BASE}/subscriptions")
    assert answer.json() == {
        "symbols": ["AAPL", "MSFT"],
        "sources": {"AAPL": ["api", "settings"], "MSFT": ["settings"]},
        "channels": {"AAPL": ["quotes"]},
        "left_out": {"MSFT": {"quotes": "symbol limit exceeded"}},
    }


class _Failing(FakeService):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    async def subscribe(self, *symbols: str, source: str = "api") -> FakeOutcome:
        raise self._error


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        (FeedUnavailable("the feed did not answer in time: try again"), 503, "did not answer"),
        (MDServiceError("the service is stopping"), 503, "is stopping"),
        (ZeroDivisionError("a secret detail"), 500, "the reason is in its log"),
    ],
)
async def test_other_failures_are_answered_in_the_same_form(
    error: Exception, status: int, detail: str
) -> None:
    transport = httpx.ASGITransport(create_app(_Failing(error)), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://mdservice") as client:
        answer = await client.post(SUBSCRIBE, params={"symbol": "AAPL"})
    assert answer.status_code == status
    assert detail in answer.json()["detail"]
    assert "a secret detail" not in answer.text


def test_subscribes_on_asyncio_too() -> None:
    async def scenario() -> None:
        service = FakeService()
        transport = httpx.ASGITransport(create_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://mdservice") as client:
            answer = await client.post(SUBSCRIBE, json={"symbols": ["AAPL", "MSFT"]})
        assert answer.json() == {"status": "subscribed", "symbols": ["AAPL", "MSFT"]}
        assert service.subscriptions() == {"AAPL": ["api"], "MSFT": ["api"]}

    anyio.run(scenario, backend="asyncio")
