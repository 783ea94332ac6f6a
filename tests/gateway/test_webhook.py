"""What the webhook sends, and when it tries again. On virtual time."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest

from mdservice.gateway import webhook as module
from mdservice.gateway.webhook import Webhook
from mdservice.runtime.network import HttpClient

URL = "https://example.test/hooks/SECRET"


class Server:
    """Answers with these statuses, then with 204; None breaks the connection."""

    def __init__(self, *statuses: int | None) -> None:
        self.statuses = list(statuses)
        self.requests: list[httpx.Request] = []
        self.times_s: list[float] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.requests.append(request)
        self.times_s.append(anyio.current_time())
        status = self.statuses.pop(0) if self.statuses else 204
        if status is None:
            raise httpx.ConnectError("refused")
        return httpx.Response(status)

    def contents(self) -> list[bytes]:
        return [request.content for request in self.requests]


@asynccontextmanager
async def running(
    server: Server, url: str = URL, token: str | None = None
) -> AsyncIterator[Webhook]:
    webhook = Webhook(url, token, HttpClient(httpx.MockTransport(server)))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(webhook.run)
        yield webhook
        tasks.cancel_scope.cancel()
    await webhook.aclose()


async def until(condition: Callable[[], Any]) -> None:
    with anyio.fail_after(100):
        while not condition():
            await anyio.sleep(0.01)


async def test_a_message_is_posted_with_the_signature_of_its_body(autojump_clock: Any) -> None:
    server = Server()
    async with running(server, token="token") as webhook:
        webhook.send(b'{"state":"tripped"}', "tripped")
        await until(lambda: server.requests)
    (request,) = server.requests
    assert (request.method, str(request.url)) == ("POST", URL)
    assert request.content == b'{"state":"tripped"}'
    assert request.headers["content-type"] == "application/json"
    digest = hmac.new(b"token", request.content, hashlib.sha256).hexdigest()
    assert request.headers["x-mdservice-signature"] == f"sha256={digest}"
    assert webhook.dropped == 0


async def test_without_a_token_there_is_no_signature(autojump_clock: Any) -> None:
    server = Server()
    async with running(server) as webhook:
        webhook.send(b"{}", "")
        await until(lambda: server.requests)
    assert "x-mdservice-signature" not in server.requests[0].headers


@pytest.mark.parametrize(
    "host", ["hooks.slack.com", "HOOKS.slack.com:443", "hooks.slack-gov.com", "hooks.slack.com."]
)
async def test_slack_gets_its_own_form(autojump_clock: Any, host: str) -> None:
    server = Server()
    async with running(server, f"https://{host}/services/T0/B0/x", "token") as webhook:
        webhook.send(b"{}", '"A & B" pnl < -5 > x')
        await until(lambda: server.requests)
    (request,) = server.requests
    # Slack takes what is between < and > for a link.
    assert json.loads(request.content) == {"text": '"A &amp; B" pnl &lt; -5 &gt; x'}
    digest = hmac.new(b"token", request.content, hashlib.sha256).hexdigest()
    assert request.headers["x-mdservice-signature"] == f"sha256={digest}"


async def test_a_failing_server_is_tried_again_after_doubling_waits(autojump_clock: Any) -> None:
    server = Server(500, None, 503, 502)
    async with running(server) as webhook:
        webhook.send(b"1", "")
        webhook.send(b"2", "")
        await until(lambda: len(server.requests) == 6)
    assert server.contents() == [b"1"] * 5 + [b"2"]
    waits = [later - time for time, later in zip(server.times_s, server.times_s[1:], strict=False)]
    assert waits[:4] == pytest.approx([1, 2, 4, 8])
    assert webhook.dropped == 0


async def test_after_five_tries_a_message_is_dropped_and_counted(autojump_clock: Any) -> None:
    server = Server(*[500] * 5)
    async with running(server) as webhook:
        webhook.send(b"1", "")
        webhook.send(b"2", "")
        await until(lambda: len(server.requests) == 6)
        assert webhook.dropped == 1
    assert server.contents() == [b"1"] * 5 + [b"2"]


@pytest.mark.parametrize("host", ["hooks.slack.com.example.test", "nothooks.slack.com.test"])
async def test_a_host_that_looks_like_slack_gets_the_json(autojump_clock: Any, host: str) -> None:
    server = Server()
    async with running(server, f"https://{host}/hooks.slack.com") as webhook:
        webhook.send(b"{}", "text")
        await until(lambda: server.requests)
    assert server.contents() == [b"{}"]


@pytest.mark.parametrize("status", [301, 400, 404, 429])
async def test_a_refused_message_is_not_sent_again(autojump_clock: Any, status: int) -> None:
    server = Server(status)
    async with running(server) as webhook:
        webhook.send(b"1", "")
        webhook.send(b"2", "")
        await until(lambda: len(server.requests) == 2)
        assert webhook.dropped == 1
    assert server.contents() == [b"1", b"2"]


async def test_the_queue_is_bounded_and_the_oldest_are_dropped(
    autojump_clock: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(module, "_MOST_WAITING", 3)
    server = Server(500)
    async with running(server) as webhook:
        webhook.send(b"0", "")
        await until(lambda: server.requests)  # now it waits to try again
        for number in range(1, 6):
            webhook.send(b"%d" % number, "")
        assert (webhook.dropped, webhook.waiting) == (2, 3)
        await until(lambda: len(server.requests) == 5)
        await until(lambda: webhook.sent == 4)
        assert (webhook.dropped, webhook.waiting) == (2, 0)
    assert server.contents() == [b"0", b"0", b"3", b"4", b"5"]


async def test_a_flood_of_alerts_neither_delays_nor_drops_a_trip(
    autojump_clock: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(module, "_MOST_WAITING", 3)
    server = Server(500)
    async with running(server) as webhook:
        webhook.send(b"0", "", urgent=False)
        await until(lambda: server.requests)
        webhook.send(b"trip", "")
        for number in range(1, 6):
            webhook.send(b"%d" % number, "", urgent=False)
        webhook.send(b"reset", "")
        await until(lambda: webhook.sent == 4)
    assert server.contents() == [b"0", b"0", b"trip", b"reset", b"5"]
    assert webhook.dropped == 4


async def test_what_waits_at_the_end_counts_as_dropped(autojump_clock: Any) -> None:
    server = Server(*[500] * 5)
    async with running(server) as webhook:
        for _ in range(3):
            webhook.send(b"1", "")
        await until(lambda: server.requests)
    assert (webhook.dropped, webhook.waiting) == (3, 0)
