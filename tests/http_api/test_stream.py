"""The event stream, driven at the ASGI seam in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import httpx
import msgspec
import pytest
import trio
import trio.testing

from mdservice.http_api.server import create_app
from mdservice.model.events import FeedStatus
from mdservice.testing.fake_service import FakeService

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
