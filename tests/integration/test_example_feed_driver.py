"""The example of another feed: its driver keeps the seam's promises, its program is a service."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketStream

import mdservice
from mdservice.errors import FeedRefused, FeedUnavailable
from mdservice.feed.subscriptions import Followed
from mdservice.model.feeds import Topic
from mdservice.model.kinds import QUOTES
from tests.integration.conftest import patient

FILE = Path(mdservice.__file__).parent.parent / "docs" / "examples" / "feed_driver.py"
LIMIT_S = 60.0


@pytest.fixture
def example() -> Any:
    spec = importlib.util.spec_from_file_location("feed_driver_example", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def with_exchange(
    serve: Callable[[SocketStream], Awaitable[None]], scene: Callable[[int], Awaitable[None]]
) -> None:
    """Run the scene on both loops beside an exchange that treats every client like this."""

    async def main() -> None:
        with anyio.fail_after(patient(LIMIT_S)):
            listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
            port = listener.extra(anyio.abc.SocketAttribute.local_port)
            async with listener, anyio.create_task_group() as tasks:
                tasks.start_soon(listener.serve, serve)
                await scene(port)
                tasks.cancel_scope.cancel()

    for backend in ("trio", "asyncio"):
        anyio.run(main, backend=backend)


def test_a_program_with_another_feed_is_a_whole_service(stage: Any) -> None:
    port, valkey = stage.free_port(), stage.valkey()
    exchange = stage.example("line_exchange.py", str(port))
    stage.eventually(lambda: "listens" in exchange.stdout, what=lambda: exchange.said)
    service = stage.example(
        "feed_driver.py", f"127.0.0.1:{port}", "EURUSD", MDSERVICE_REDIS_URL=valkey.url
    ).wait_ready()
    assert service.status()["feed"]["name"] == "lines"
    assert service.post("subscribe", params={"symbol": "GBPUSD"})["status"] == "subscribed"
    refused = service.post("subscribe", 409, params={"symbol": "XXX"})
    assert "there is no XXX" in refused["detail"]
    with valkey.client() as client:
        stage.eventually(lambda: client.get("price:GBPUSD") and client.get("price:EURUSD"))
        price = json.loads(client.get("price:EURUSD"))
    assert 1.0 < price["bid"] < price["price"] < price["ask"] < 1.2

    exchange.process.kill()  # an outage
    exchange.process.wait()
    stage.eventually(lambda: not service.ready()[0])
    stage.example("line_exchange.py", str(port))
    service.wait_ready(60)  # the time between two tries grows while the exchange starts
    at = service.counter("quotes_accepted")
    stage.eventually(lambda: service.counter("quotes_accepted") > at + 2)
    assert service.counter("decode_errors") == 0


def test_an_exchange_that_is_not_there_or_hangs_up_is_unavailable(example: Any) -> None:
    async def hang_up(client: SocketStream) -> None:
        await client.aclose()

    async def scene(port: int) -> None:
        with pytest.raises(FeedUnavailable, match="closed"):
            async with example.LineDriver("127.0.0.1", port, "me").connect(
                Followed(), time.time_ns
            ):
                pass
        with pytest.raises(FeedUnavailable, match="cannot be reached"):
            async with example.LineDriver("127.0.0.1", 1, "me").connect(Followed(), time.time_ns):
                pass

    with_exchange(hang_up, scene)


def test_an_exchange_that_does_not_answer_is_unavailable_in_time(
    example: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example, "OPEN_TIMEOUT_S", 0.1)

    async def listen(client: SocketStream) -> None:
        async with client:
            await anyio.sleep_forever()

    async def scene(port: int) -> None:
        with pytest.raises(FeedUnavailable, match="does not answer"):
            async with example.LineDriver("127.0.0.1", port, "me").connect(
                Followed(), time.time_ns
            ):
                pass

    with_exchange(listen, scene)


def test_a_refused_login_is_a_refusal(example: Any) -> None:
    async def refuse(client: SocketStream) -> None:
        async with client:
            await client.send(b"REFUSED who are you\n")
            await anyio.sleep_forever()

    async def scene(port: int) -> None:
        with pytest.raises(FeedRefused, match="who are you"):
            async with example.LineDriver("127.0.0.1", port, "me").connect(
                Followed(), time.time_ns
            ):
                pass

    with_exchange(refuse, scene)


def test_lines_that_come_in_pieces_are_not_lost(example: Any) -> None:
    """Every second call is cancelled while it waits in the middle of a line."""
    told: list[float] = []

    async def drip(client: SocketStream) -> None:
        async with client:
            await client.send(b"WELCOME me\n")
            for number in range(1, 6):
                line = f"QUOTE A {number} 1 {number}.5 1 2026-11-20T15:51:44.208912345Z\n".encode()
                for piece in (line[:9], line[9:]):
                    await anyio.wait_all_tasks_blocked()
                    await client.send(piece)
            await client.send(b"what is this\n")

    async def scene(port: int) -> None:
        told.clear()
        broken = 0
        followed = Followed()
        followed.ask([Topic("quotes", "A")])
        async with example.LineDriver("127.0.0.1", port, "me").connect(followed, lambda: 7) as link:
            while not broken:
                with anyio.move_on_after(0.002):
                    received = await link.receive()
                    broken += received.errors
                    told.extend(quote.bid for quote in received.of(QUOTES))
                    assert {quote.ts_recv_ns for quote in received.of(QUOTES)} <= {7}
        assert told == [1, 2, 3, 4, 5]

    with_exchange(drip, scene)
