"""Subscribing and listing by every form, prices as exact decimals, and the event stream."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import anyio
import anyio.abc
import httpx
import msgspec
import pytest
import trio
import trio.testing

from mdservice.errors import FeedUnavailable, MDServiceError
from mdservice.http_api.requests import MAX_SYMBOLS
from mdservice.http_api.server import create_app
from mdservice.model.events import FeedStatus
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

    async def subscribe(
        self, *symbols: str, channels: Iterable[str] | None = None, source: str = "api"
    ) -> FakeOutcome:
        raise self._error


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        (FeedUnavailable("the feed did not answer in time: try again"), 503, "did not answer"),
        (MDServiceError("the service is stopping"), 503, "is stopping"),
        (ZeroDivisionError("a secret detail"), 500, "see its log for the reason"),
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


STREAM = "/api/v1/market-data/stream"


class Reader:
    """A client of the stream; while ``reading`` is not set, writes to it have to wait."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.chunks: list[bytes] = []
        self.ended = False
        self.reading = anyio.Event()
        self.reading.set()
        self.leaves = anyio.Event()
        self._request_sent = False
        self._arrived = anyio.Event()

    async def receive(self) -> dict[str, Any]:
        if not self._request_sent:
            self._request_sent = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await self.reading.wait()
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = dict(message["headers"])
        elif message["body"]:
            self.chunks.append(message["body"])
        self.ended = message["type"] == "http.response.body" and not message["more_body"]
        self._arrived.set()

    async def events(self, count: int) -> list[tuple[str, dict[str, Any]]]:
        """Wait for so many events and take them."""
        while len(found := self._parsed()) < count and not self.ended:
            self._arrived = anyio.Event()
            await self._arrived.wait()
        self.chunks.clear()
        return found

    def _parsed(self) -> list[tuple[str, dict[str, Any]]]:
        events = []
        for block in b"".join(self.chunks).decode().split("\n\n"):
            if block.startswith("event: "):
                name, data = block.split("\n")
                events.append((name[7:], msgspec.json.decode(data.removeprefix("data: "))))
        return events


@asynccontextmanager
async def opened(
    service: FakeService, query: str = "", closing: anyio.Event | None = None
) -> AsyncIterator[Reader]:
    reader = Reader()
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.1"},
        "http_version": "1.1",
        "method": "GET",
        "path": STREAM,
        "raw_path": STREAM.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "scheme": "http",
        "headers": [],
        "client": None,
        "server": None,
        "state": {} if closing is None else {"closing": closing},
    }
    with trio.fail_after(600):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(create_app(service), scope, reader.receive, reader.send)
            yield reader
            reader.leaves.set()


def seen(events: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, int]]:
    return [(event["symbol"], event["seq"]) for name, event in events if name == "price.updated"]


async def test_sends_the_latest_prices_first_and_then_each_update(
    autojump_clock: trio.testing.MockClock,
) -> None:
    service = FakeService()
    service.publish("AAPL", 1.0, 1.0)
    service.publish("AAPL", 1.0, 2.0)
    service.publish("MSFT", 5.0, 6.0)
    async with opened(service) as reader:
        assert seen(await reader.events(2)) == [("AAPL", 2), ("MSFT", 1)]
        assert reader.headers[b"content-type"] == b"text/event-stream; charset=utf-8"
        assert reader.headers[b"cache-control"] == b"no-cache"
        assert b"content-length" not in reader.headers
        service.publish("AAPL", 187.12, 187.15)
        (name, event), *others = await reader.events(1)
        assert (name, event["symbol"], event["price"], event["seq"]) == (
            "price.updated",
            "AAPL",
            187.135,
            3,
        )
        assert others == []


async def test_sends_only_the_symbols_asked_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    service = FakeService()
    for symbol in ("AAPL", "MSFT", "TSLA"):
        service.publish(symbol, 1.0, 2.0)
    async with opened(service, "symbols=aapl,TSLA") as reader:
        assert seen(await reader.events(2)) == [("AAPL", 1), ("TSLA", 1)]
        service.publish("MSFT", 1.0, 2.0)
        service.publish("TSLA", 1.0, 2.0)
        assert seen(await reader.events(1)) == [("TSLA", 2)]


async def test_sends_changes_of_the_feeds_state(
    autojump_clock: trio.testing.MockClock,
) -> None:
    service = FakeService()
    async with opened(service) as reader:
        await trio.testing.wait_all_tasks_blocked()
        service.announce(FeedStatus("fallback", 1_000_000_000, {"driver": "websockets"}))
        assert await reader.events(1) == [
            (
                "feed.status",
                {
                    "state": "fallback",
                    "at": "1970-01-01T00:00:01.000000000Z",
                    "feed": "stocks",
                    "driver": "websockets",
                },
            )
        ]


async def test_a_comment_keeps_a_quiet_stream_alive_every_15_s(
    autojump_clock: trio.testing.MockClock,
) -> None:
    service = FakeService()
    async with opened(service) as reader:
        await anyio.sleep(46)
        assert reader.chunks == [b": keep-alive\n\n"] * 3
        service.publish("AAPL", 1.0, 2.0)
        assert seen(await reader.events(1)) == [("AAPL", 1)]


async def test_a_reader_that_stalls_gets_the_latest_and_holds_up_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    service = FakeService()
    async with opened(service) as reader:
        await trio.testing.wait_all_tasks_blocked()
        reader.reading = anyio.Event()
        before = trio.current_time()
        for _ in range(5_000):
            service.publish("AAPL", 1.0, 2.0)
            await anyio.lowlevel.checkpoint()
        assert trio.current_time() == before
        reader.reading.set()
        numbers: list[int] = []
        while not numbers or numbers[-1] < 5_000:
            numbers += [seq for _, seq in seen(await reader.events(1))]
        assert numbers == sorted(set(numbers))
        assert len(numbers) < 1_200


async def test_many_updates_share_a_write(autojump_clock: trio.testing.MockClock) -> None:
    service = FakeService()
    for number in range(300):
        service.publish(f"S{number}", 1.0, 2.0)
    async with opened(service) as reader:
        while sum(chunk.count(b"event: ") for chunk in reader.chunks) < 300:
            await anyio.sleep(0.01)
        assert len(reader.chunks) <= 3


async def test_a_client_that_leaves_ends_its_stream(
    autojump_clock: trio.testing.MockClock,
) -> None:
    service = FakeService()
    async with opened(service) as reader:
        await trio.testing.wait_all_tasks_blocked()
        assert service.readers == 1
        reader.leaves.set()
        await trio.testing.wait_all_tasks_blocked()
        assert service.readers == 0


async def test_a_client_that_stalls_and_leaves_ends_its_stream(
    autojump_clock: trio.testing.MockClock,
) -> None:
    service = FakeService()
    for number in range(2_000):
        service.publish(f"S{number}", 1.0, 2.0)
    async with opened(service) as reader:
        while not reader.status:
            await anyio.lowlevel.checkpoint()
        reader.reading = anyio.Event()
        await trio.testing.wait_all_tasks_blocked()
        assert service.readers == 1
        reader.leaves.set()
        await trio.testing.wait_all_tasks_blocked()
        assert service.readers == 0


async def test_the_stream_ends_in_order_when_the_service_ends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    service = FakeService()
    async with opened(service) as reader:
        await trio.testing.wait_all_tasks_blocked()
        service.publish("AAPL", 1.0, 2.0)
        service.close()
        assert seen(await reader.events(1)) == [("AAPL", 1)]
        await anyio.sleep(1)
        assert reader.ended


async def test_the_stream_ends_in_order_when_the_server_closes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    service, closing = FakeService(), anyio.Event()
    async with opened(service, closing=closing) as reader:
        await trio.testing.wait_all_tasks_blocked()
        closing.set()
        await anyio.sleep(1)
        assert reader.ended
        assert service.readers == 0


@pytest.mark.parametrize("query", ["symbols=A B", "symbols="])
async def test_a_bad_list_of_symbols_is_422(client: httpx.AsyncClient, query: str) -> None:
    assert (await client.get(f"{STREAM}?{query}")).status_code == 422
