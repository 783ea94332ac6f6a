"""Bodies that are too long or too slow, and callers without the token, at the ASGI seam."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import anyio
import httpx
import msgspec
import pytest
import trio
import trio.testing

from mdservice.http_api.requests import MAX_BODY_BYTES, BearerGate, BodyLimit, OwnPagesOnly
from mdservice.http_api.server import create_app
from mdservice.testing.fake_service import FakeService

TOKEN = "s3cret-token"


class Exchange:
    """One request whose body comes in pieces, and the answer to it."""

    def __init__(self, pieces: Iterable[dict[str, Any]]) -> None:
        self.status = 0
        self.body = b""
        self.pieces_left = list(pieces)

    async def receive(self) -> dict[str, Any]:
        if self.pieces_left:
            return self.pieces_left.pop(0)
        await anyio.sleep_forever()
        raise AssertionError

    async def send(self, message: Any) -> None:
        self.status = message.get("status", self.status)
        self.body += message.get("body", b"")

    async def run(self, app: Callable[..., Any]) -> Any:
        await app({"type": "http", "path": "/", "headers": []}, self.receive, self.send)
        return msgspec.json.decode(self.body)["detail"] if self.body else None


def piece(size: int, *, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": b"x" * size, "more_body": more}


async def echo(scope: Any, receive: Any, send: Any) -> None:
    first = await receive()
    length = len(first["body"])
    assert not first["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b'{"detail": %d}' % length})


async def test_a_body_in_pieces_reaches_the_application_whole() -> None:
    exchange = Exchange([piece(400, more=True), piece(600, more=True), piece(0, more=False)])
    assert await exchange.run(BodyLimit(echo, 1000)) == 1000
    assert exchange.status == 200


async def test_the_application_hears_that_the_client_left() -> None:
    heard = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        heard.extend([await receive(), await receive()])

    gone = {"type": "http.disconnect"}
    await Exchange([piece(3, more=False), gone]).run(BodyLimit(app))
    assert heard == [piece(3, more=False), gone]


async def test_a_body_that_is_too_long_is_413_and_thrown_away() -> None:
    exchange = Exchange([piece(600, more=True)] * 50 + [piece(1, more=False)])
    assert "longer than 1000 bytes" in await exchange.run(BodyLimit(echo, 1000))
    assert exchange.status == 413
    assert exchange.pieces_left == []


async def test_an_endless_body_is_answered_after_two_seconds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    exchange = Exchange([piece(600, more=True)] * 2)
    await exchange.run(BodyLimit(echo, 1000))
    assert exchange.status == 413
    assert trio.current_time() == pytest.approx(2)


async def test_a_body_that_does_not_arrive_is_408(autojump_clock: trio.testing.MockClock) -> None:
    exchange = Exchange([piece(600, more=True)])
    assert "did not arrive within 10 s" in await exchange.run(BodyLimit(echo, 1000))
    assert exchange.status == 408
    assert trio.current_time() == pytest.approx(12)


async def test_a_client_that_leaves_in_mid_body_is_not_answered() -> None:
    exchange = Exchange([piece(600, more=True), {"type": "http.disconnect"}])
    assert await exchange.run(BodyLimit(echo, 1000)) is None
    assert exchange.status == 0


async def test_the_application_limits_bodies(client: httpx.AsyncClient) -> None:
    content = b" " * (MAX_BODY_BYTES + 1)
    answer = await client.post("/api/v1/market-data/subscribe?symbol=A", content=content)
    assert answer.status_code == 413


async def call(path: str, *headers: tuple[str, str]) -> httpx.Response:
    transport = httpx.ASGITransport(BearerGate(create_app(FakeService()), TOKEN))
    async with httpx.AsyncClient(transport=transport, base_url="http://mdservice") as client:
        return await client.get(path, headers=list(headers))


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
async def test_health_needs_no_token(path: str) -> None:
    assert (await call(path)).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/status",
        "/metrics",
        "/openapi.json",
        "/api/v1/market-data/prices",
        "/api/v1/market-data/stream",
        "/api/v1/market-data/subscriptions",
        "/nothing",
        "/health/ready/",
        "/health/live/../../status",
        "/health%2Flive/x",
    ],
)
async def test_everything_else_is_401_without_the_token(path: str) -> None:
    answer = await call(path)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="mdservice"'
    assert "Authorization: Bearer" in answer.json()["detail"]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
async def test_the_token_opens_every_call(scheme: str) -> None:
    assert (await call("/status", ("Authorization", f"{scheme} {TOKEN}"))).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", "Bearer wrong")],
        [("Authorization", f"Bearer {TOKEN}x")],
        [("Authorization", f"Basic {TOKEN}")],
        [("Authorization", TOKEN)],
        [("Authorization", "Bearer")],
        [("Authorization", "Bearer wrong"), ("Authorization", f"Bearer {TOKEN}")],
        [("X-Token", TOKEN)],
    ],
)
async def test_a_wrong_token_is_401_and_not_repeated(headers: list[tuple[str, str]]) -> None:
    answer = await call("/status", *headers)
    assert answer.status_code == 401
    assert TOKEN not in answer.text


async def test_a_change_without_the_token_is_not_made() -> None:
    service = FakeService()
    transport = httpx.ASGITransport(BearerGate(create_app(service), TOKEN))
    async with httpx.AsyncClient(transport=transport, base_url="http://mdservice") as client:
        answer = await client.post("/api/v1/market-data/subscribe?symbol=AAPL")
    assert answer.status_code == 401
    assert service.subscriptions() == {}


@pytest.mark.parametrize("origin", ["http://[", "http://a]", "http://\u2100", "null", "x", ""])
async def test_a_malformed_origin_is_refused_as_that_of_another_site(origin: str) -> None:
    transport = httpx.ASGITransport(OwnPagesOnly(create_app(FakeService()), "127.0.0.1:8001"))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8001") as client:
        headers = {b"origin": origin.encode("latin-1", "replace")}
        assert (await client.get("/status", headers=headers)).status_code == 403
