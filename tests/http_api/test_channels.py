"""Channels in the calls under ``/api/v1/market-data``: subscribing, latest values, news, streams."""

from __future__ import annotations

import json
from typing import Any

import attrs
import httpx
import pytest
import trio.testing

from mdservice.http_api import schemas
from mdservice.model.feeds import CHANNELS, kinds_of
from mdservice.model.kinds import BARS, KINDS, NEWS, ORDERBOOKS, QUOTES, TRADES
from mdservice.testing.fake_service import FakeService
from tests.http_api.test_market_data import BASE, SUBSCRIBE, UNSUBSCRIBE, opened
from tests.records import make_record

LATEST = f"{BASE}/latest"
KEYED = [kind for kind in KINDS if kind.has_key]


@pytest.mark.parametrize(
    "request_parts",
    [
        {"json": {"symbol": "AAPL", "channels": ["quotes", "trades"]}},
        {"params": {"symbol": "AAPL", "channels": "quotes,trades"}},
        {"params": {"symbol": "AAPL", "channels": ["trades", "quotes"]}},
        {"params": {"channels": "quotes"}, "json": {"symbol": "AAPL", "channels": ["trades"]}},
    ],
)
async def test_subscribes_to_the_channels_that_are_named(
    client: httpx.AsyncClient, request_parts: dict[str, Any]
) -> None:
    answer = await client.post(SUBSCRIBE, **request_parts)
    assert answer.json() == {"status": "subscribed", "symbol": "AAPL", "symbols": ["AAPL"]}
    listed = (await client.get(f"{BASE}/subscriptions")).json()
    assert listed["channels"] == {"AAPL": ["quotes", "trades"]}


async def test_unsubscribes_from_some_channels_or_all(client: httpx.AsyncClient) -> None:
    async def channels() -> Any:
        return (await client.get(f"{BASE}/subscriptions")).json()["channels"]

    await client.post(f"{SUBSCRIBE}?symbol=AAPL&channels=quotes,trades,bars")
    await client.post(f"{UNSUBSCRIBE}?symbol=AAPL&channels=trades")
    assert await channels() == {"AAPL": ["bars", "quotes"]}
    await client.post(f"{UNSUBSCRIBE}?symbol=AAPL")
    assert await channels() == {}


@pytest.mark.parametrize("path", [SUBSCRIBE, UNSUBSCRIBE])
@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"symbol": "AAPL", "channels": ["tardes"]}, "'tardes' is not a channel"),
        ({"symbol": "AAPL", "channels": ["orderbooks"]}, "none of the channels orderbooks"),
        ({"symbol": "BTC/USD", "channels": ["statuses", "lulds"]}, "statuses, lulds"),
        ({"symbol": "AAPL261218C00200000", "channels": ["bars"]}, "none of the channels"),
        ({"symbol": "AAPL", "channels": ["corrections"]}, "trades"),
        ({"symbol": "AAPL", "channels": ["news"]}, "news"),
        ({"symbol": "AAPL", "channels": []}, "list of channels is empty"),
        ({"symbol": "AAPL", "channels": [" ", ""]}, "list of channels is empty"),
        ({"symbol": "AAPL", "channels": "quotes"}, "Expected `array"),
    ],
)
async def test_channels_that_cannot_be_had_are_422(
    client: httpx.AsyncClient, service: FakeService, path: str, body: Any, named: str
) -> None:
    answer = await client.post(path, json=body)
    assert answer.status_code == 422
    assert named in answer.json()["detail"]
    assert service.subscriptions() == {}


async def test_a_channel_that_one_class_lacks_is_skipped_for_it(client: httpx.AsyncClient) -> None:
    body = {"symbols": ["AAPL", "BTC/USD"], "channels": ["quotes", "statuses", "orderbooks"]}
    assert (await client.post(SUBSCRIBE, json=body)).status_code == 200
    assert (await client.get(f"{BASE}/subscriptions")).json()["channels"] == {
        "AAPL": ["quotes", "statuses"],
        "BTC/USD": ["orderbooks", "quotes"],
    }


@pytest.mark.parametrize("channel", CHANNELS)
async def test_a_latest_record_is_the_bytes_of_its_key(
    client: httpx.AsyncClient, service: FakeService, channel: str
) -> None:
    kind = kinds_of([channel])[0]
    for symbol, number in (("AAPL", 1), ("AAPL", 2), ("BTC/USD", 3)):
        service.publish_record(kind, make_record(kind, symbol, number))
    found = {
        symbol: kind.encode(make_record(kind, symbol, number))
        for symbol, number in (("AAPL", 2), ("BTC/USD", 3))
    }
    for path, symbol in (("aapl", "AAPL"), ("BTC/USD", "BTC/USD"), ("btc%2Fusd", "BTC/USD")):
        answer = await client.get(f"{LATEST}/{channel}/{path}")
        assert (answer.status_code, answer.content) == (200, found[symbol])
        assert answer.headers["content-type"] == "application/json"
    every = await client.get(f"{LATEST}/{channel}")
    assert every.content == b'{"records":[%b]}' % b",".join(found.values())
    some = await client.get(f"{LATEST}/{channel}?symbols=btc/usd,NONE")
    assert some.content == b'{"records":[%b]}' % found["BTC/USD"]


async def test_no_latest_record_is_404_with_a_hint(client: httpx.AsyncClient) -> None:
    await client.post(f"{SUBSCRIBE}?symbol=AAPL&channels=trades")
    for symbol, hint in (("AAPL", "wait for its first"), ("MSFT", "subscribe to it first")):
        answer = await client.get(f"{LATEST}/trades/{symbol}")
        assert answer.status_code == 404
        assert hint in answer.json()["detail"]
        assert symbol in answer.json()["detail"]
    assert (await client.get(f"{LATEST}/orderbooks/AAPL")).status_code == 404
    assert (await client.get(f"{LATEST}/trades")).content == b'{"records":[]}'


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("latest/tardes/AAPL", "'tardes' is not a channel"),
        ("latest/tardes", "known are quotes, trades"),
        ("latest/news", "market-data/news"),
        ("latest/cancelErrors/AAPL", "trades"),
        ("latest/trades/A PPL", "'A PPL' is not a symbol"),
        ("latest/trades?symbols=", "the list of symbols is empty"),
        ("news?limit=0", "limit"),
        ("news?limit=many", "limit"),
        ("news?limit=1001", "limit"),
        ("news?symbols=,", "the list of symbols is empty"),
        ("stream?channels=tardes", "'tardes' is not a channel"),
        ("stream?channels=", "the list of channels is empty"),
    ],
)
async def test_a_bad_request_is_422_and_says_what_is_wrong(
    client: httpx.AsyncClient, path: str, named: str
) -> None:
    answer = await client.get(f"{BASE}/{path}")
    assert answer.status_code == 422
    assert named in answer.json()["detail"]


async def test_news_are_the_newest_first_of_the_symbols(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    for number in range(1, 61):
        article = make_record(NEWS, "AAPL" if number % 2 else "MSFT", number)
        service.publish_record(NEWS, article)

    async def ids(query: str) -> list[int]:
        answer = await client.get(f"{BASE}/news{query}")
        assert answer.status_code == 200
        return [article["id"] for article in answer.json()["news"]]

    assert await ids("") == list(range(60, 10, -1))
    assert await ids("?limit=2") == [60, 59]
    assert await ids("?symbols=aapl&limit=2") == [59, 57]
    assert await ids("?symbols=AAPL,MSFT&limit=1000") == list(range(60, 0, -1))
    assert await ids("?symbols=IBM") == []
    content = (await client.get(f"{BASE}/news?limit=1")).content
    assert content == b'{"news":[%b]}' % NEWS.encode(make_record(NEWS, "MSFT", 60))


async def test_every_answer_has_the_described_fields(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    for kind in KEYED:
        service.publish_record(kind, make_record(kind))
        for channel in kind.topics:
            answer = await client.get(f"{LATEST}/{channel}")
            schemas.RecordsAnswer.model_validate_json(answer.content, strict=True)
    crypto = attrs.evolve(make_record(TRADES, "BTC/USD"), taker_side="buy", exchange=None)
    service.publish_record(TRADES, crypto)
    answer = await client.get(f"{LATEST}/trades")
    schemas.RecordsAnswer.model_validate_json(answer.content, strict=True)
    service.publish_record(NEWS, make_record(NEWS))
    answer = await client.get(f"{BASE}/news")
    schemas.NewsAnswer.model_validate_json(answer.content, strict=True)


async def test_every_kind_of_record_is_described(client: httpx.AsyncClient) -> None:
    description = (await client.get("/openapi.json")).json()["components"]["schemas"]
    for kind in (*KEYED, NEWS):
        fields = json.loads(kind.encode(make_record(kind)))
        assert any(
            fields.keys() <= schema["properties"].keys() <= {*fields, "taker_side"}
            for schema in description.values()
        ), kind
    book = description["OrderBookAnswer"]["properties"]["bids"]
    assert book["items"]["prefixItems"] == [{"type": "number"}, {"type": "number"}]


async def test_the_stream_sends_each_kind_under_its_event(
    autojump_clock: trio.testing.MockClock,
) -> None:
    service = FakeService()
    for kind in (QUOTES, TRADES, ORDERBOOKS):
        service.publish_record(kind, make_record(kind))
    every = ",".join((*CHANNELS, "news"))
    async with opened(service, f"symbols=AAPL&channels={every}") as reader:
        names = [name for name, _ in await reader.events(3)]
        assert names == ["price.updated", "trade.updated", "orderbook.updated"]
        for kind in KINDS:
            record = make_record(kind, number=2)
            service.publish_record(kind, record)
            service.publish_record(kind, make_record(kind, "MSFT", 3))
            await trio.testing.wait_all_tasks_blocked()
            assert await reader.events(1) == [(kind.event, json.loads(kind.encode(record)))]


async def test_the_stream_sends_only_the_channels_that_are_named(
    autojump_clock: trio.testing.MockClock,
) -> None:
    service = FakeService()
    async with opened(service, "channels=updatedBars") as reader:
        await trio.testing.wait_all_tasks_blocked()
        for kind in (QUOTES, TRADES, BARS):
            service.publish_record(kind, make_record(kind))
        assert [name for name, _ in await reader.events(1)] == ["bar.updated"]
    async with opened(service) as reader:
        assert [name for name, _ in await reader.events(1)] == ["price.updated"]
