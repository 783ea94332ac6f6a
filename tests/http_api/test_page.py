"""The page's files and its stream, and who may ask an address without a token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import anyio
import httpx
import msgspec
import pytest

from mdservice.errors import StoreUnavailable
from mdservice.http_api.page import PageView
from mdservice.http_api.requests import OwnPagesOnly
from mdservice.http_api.server import create_app
from mdservice.testing.fake_service import FakeService

Events = list[tuple[str, Any]]


class FakeAccount:
    """Positions that change at each look, and limits that Redis does not give."""

    def __init__(self) -> None:
        self.looks = 0

    async def whole(self) -> bytes:
        self.looks += 1
        return b'{"positions":[],"looks":%d}' % self.looks

    async def risk(self) -> bytes | None:
        raise StoreUnavailable("Redis does not answer")


async def looks(shown: PageView, times: int) -> AsyncIterator[Events]:
    """What each look at the service gives."""
    for _ in range(times):
        events = [*shown.changes(), *await shown.account_changes()]
        yield [(name, msgspec.json.decode(data)) for name, data in events]
        await anyio.sleep(0.2)


def a_page(service: FakeService, account: FakeAccount | None = None, match: str = "") -> PageView:
    return PageView(service, account, match)


async def test_only_changed_prices_are_sent(autojump_clock: Any, service: FakeService) -> None:
    await service.subscribe("AAPL", "MSFT")
    service.publish("AAPL", 1.0, 2.0)
    service.publish("MSFT", 3.0, 4.0)
    async with aclosing(looks(a_page(service), 3)) as each:
        first = dict(await anext(each))
        assert [record["symbol"] for record in first["prices"]] == ["AAPL", "MSFT"]
        assert first["status"]["status"]["state"] == "running"
        assert "prices" not in dict(await anext(each))
        service.publish("MSFT", 3.0, 5.0)
        assert [record["ask"] for record in dict(await anext(each))["prices"]] == [5.0]


async def test_the_filter_chooses_symbols(autojump_clock: Any, service: FakeService) -> None:
    await service.subscribe("AAPL", "MSFT")
    service.publish("AAPL", 1.0, 2.0)
    service.publish("MSFT", 3.0, 4.0)
    async with aclosing(looks(a_page(service, match="MS"), 1)) as each:
        found = dict(await anext(each))
    assert [record["symbol"] for record in found["prices"]] == ["MSFT"]
    assert list(found["status"]["symbols"]) == ["MSFT"]


async def test_a_symbol_that_comes_back_has_its_price_again(
    autojump_clock: Any, service: FakeService
) -> None:
    await service.subscribe("AAPL")
    service.publish("AAPL", 1.0, 2.0)
    async with aclosing(looks(a_page(service), 99)) as each:
        assert "prices" in dict(await anext(each))
        await service.unsubscribe("AAPL")
        left = [event for _ in range(7) for event in await anext(each)]
        assert [name for name, _ in left if name == "prices"] == []
        await service.subscribe("AAPL")
        back = [event for _ in range(7) for event in await anext(each)]
        assert [data[0]["symbol"] for name, data in back if name == "prices"] == ["AAPL"]


async def test_positions_and_what_redis_does_not_give(
    autojump_clock: Any, service: FakeService
) -> None:
    account = FakeAccount()
    async with aclosing(looks(a_page(service, account), 11)) as each:
        events = [event async for found in each for event in found]
    names = [name for name, _ in events]
    assert 3 <= names.count("account") <= 5  # at most two a second
    assert [data for name, data in events if name == "risk"] == [{"error": "Redis does not answer"}]


async def test_the_files_need_no_token_and_allow_no_other_host(
    client: httpx.AsyncClient,
) -> None:
    answer = await client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    script = await client.get("/page/page.js")
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"host": "127.0.0.1:8001"}, True),
        ({"host": "localhost:8001"}, True),
        ({"host": "[::1]:8001"}, True),
        ({"host": "desk.internal:8001"}, True),  # the host of the setting
        ({"host": "127.0.0.1:8001", "origin": "http://127.0.0.1:8001"}, True),
        ({"host": "127.0.0.1:8001", "origin": "https://example.com"}, False),
        ({"host": "127.0.0.1:8001", "origin": "null"}, False),
        ({"host": "127.0.0.1:8001", "origin": "http://127.0.0.1:9000"}, False),
        ({"host": "example.com:8001"}, False),
        ({"host": "example.com:8001", "origin": "http://example.com:8001"}, False),
        ({"host": "[::1"}, False),
    ],
)
async def test_pages_of_other_sites_are_refused(
    service: FakeService, headers: dict[str, str], *, allowed: bool
) -> None:
    app = OwnPagesOnly(create_app(service), "desk.internal:8001")
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        answer = await client.post("/api/v1/market-data/subscribe?symbol=AAPL", headers=headers)
    assert answer.status_code == (200 if allowed else 403), answer.text
    assert ("AAPL" in service.subscriptions()) is allowed
