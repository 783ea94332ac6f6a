"""Requests to the service's HTTP API and to the gateway's: none may end in 500, or in an error."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, MutableMapping
from decimal import Decimal
from typing import Any, Final

import msgspec

from mdservice.gateway.make import make_tracker
from mdservice.gateway.serve import gateway_app
from mdservice.http_api.requests import App, BearerGate, BodyLimit, OwnPagesOnly
from mdservice.http_api.server import create_app
from mdservice.model.kinds import QUOTES
from mdservice.model.position import Position
from mdservice.settings import Settings
from mdservice.testing import FakePositions
from mdservice.testing.fake_service import FakeService
from tests.records import make_record

__all__ = ["run", "seeds"]

_LIMIT_S: Final = 60.0
_MOST_SUBSCRIBED: Final = 1_000
_METHODS: Final = ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS")
_LOOP: Final = asyncio.new_event_loop()
_KEPT: dict[str, App] = {}


def run(data: bytes) -> None:
    """``method|app``, path and query, header lines, an empty line, the body."""
    head, _, body = data[1:].partition(b"\n\n")
    target, *lines = head.split(b"\n")
    path, _, query = target.partition(b"?")
    if not data or not path.startswith(b"/"):
        return
    headers = [
        (name.strip().lower(), value.strip())
        for name, colon, value in (line.partition(b":") for line in lines)
        if colon
    ]
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": _METHODS[data[0] % len(_METHODS)],
        "scheme": "http",
        "path": path.decode("utf-8", "replace"),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8001),
        "state": {},
    }
    app = _apps()[("local", "token", "gateway")[data[0] // len(_METHODS) % 3]]
    status, answer = _LOOP.run_until_complete(asyncio.wait_for(_ask(app, scope, body), _LIMIT_S))
    assert status < 500 or status == 503, (status, answer)
    if status >= 400 and scope["method"] != "HEAD" and path != b"/":
        assert "detail" in msgspec.json.decode(answer), answer


async def _ask(app: App, scope: MutableMapping[str, Any], body: bytes) -> tuple[int, bytes]:
    statuses: list[int] = []
    answer = bytearray()
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return left.pop() if left else {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
        answer.extend(message.get("body", b""))

    await app(scope, receive, send)
    return (statuses[0] if statuses else 0), bytes(answer)


def _apps() -> dict[str, App]:
    if not _KEPT:
        service = FakeService()
        service.publish_record(QUOTES, make_record(QUOTES))
        local, token = create_app(service), create_app(service)
        held = FakePositions([Position("AAPL", Decimal(10), Decimal(150))])
        tracker = make_tracker(held, Settings(), redis_url="unix:///nonexistent")
        _KEPT["local"] = OwnPagesOnly(local, "127.0.0.1:8001")
        _KEPT["token"] = BearerGate(token, "s3cret-token")
        _KEPT["gateway"] = OwnPagesOnly(BodyLimit(gateway_app(tracker)), "127.0.0.1:8002")
    return _KEPT


def seeds() -> Iterator[bytes]:
    """Each call once, with what it may be given."""
    data = b"/api/v1/market-data/"
    json = b"\ncontent-type: application/json"
    for path in (
        b"/",
        b"/page/page.js",
        b"/health/live",
        b"/status",
        b"/metrics\naccept: application/openmetrics-text",
        b"/openapi.json",
        data + b"subscriptions",
        data + b"prices?symbols=AAPL,MSFT",
        data + b"prices/BTC%2FUSD",
        data + b"stream?symbols=AAPL&channels=trades",
        data + b"latest/trades/AAPL",
        data + b"latest/orderbooks?symbols=BTC/USD",
        data + b"news?symbols=AAPL&limit=5",
        b"/api/v1/positions",
        b"/status\nhost: localhost:8001\norigin: http://localhost:8001",
        b"/status\nhost: [::1]:8001\norigin: http://[",
        b"/status\nauthorization: Bearer s3cret-token",
    ):
        yield b"\x00" + path
        yield b"\x06" + path + b"\nauthorization: Bearer s3cret-token"
    for call in (b"subscribe", b"unsubscribe"):
        yield b"\x01" + data + call + b"?symbol=AAPL&channels=quotes"
        yield b"\x01" + data + call + json + b'\n\n{"symbols":["AAPL"],"channels":["trades"]}'
    for path in (
        b"/api/v1/positions/pnl/realtime",
        b"/api/v1/account/pnl/day",
        b"/api/v1/positions",
        b"/api/v1/risk",
        b"/metrics",
    ):
        yield b"\x0c" + path
    order = b'{"symbol":"AAPL","side":"buy","qty":"10","price":1.5}'
    yield b"\x0d/api/v1/risk/check" + json + b"\n\n" + order
    yield b"\x0d/api/v1/risk/reset"
