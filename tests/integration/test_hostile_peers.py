"""Peers that attack: servers in the place of the feed, and clients of the HTTP API."""

from __future__ import annotations

import errno
import select
import socket
import tempfile
import threading
import tracemalloc
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import httpx
import msgspec
import pytest
from websockets.http11 import Request
from websockets.server import ServerProtocol

from mdservice.errors import FeedUnavailable
from mdservice.feed.alpaca.login import Credentials
from mdservice.feed.alpaca.sdk_driver import AlpacaPyDriver
from mdservice.feed.alpaca.websockets_driver import MAX_FRAME_BYTES, WebsocketsDriver
from mdservice.feed.subscriptions import Followed
from mdservice.http_api import connections
from mdservice.http_api.server import serve_api
from mdservice.testing.fake_service import FakeService
from tests.integration.conftest import patient

LIMIT_S = 60.0
BACKENDS = ["trio", "asyncio"]
on_both_loops = pytest.mark.parametrize("backend", BACKENDS)


def run(backend: str, main: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        with anyio.fail_after(patient(LIMIT_S)):
            await main()

    anyio.run(limited, backend=backend)


# A server in the place of the feed


class HostileFeed:
    """Lets a client log in, and then sends these bytes.

    Attributes:
        url: Its address.
    """

    def __init__(self, attack: Iterable[bytes], pressing: Pressing | None = None) -> None:
        self._attack = attack
        self._pressing = pressing
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{self._listener.getsockname()[1]}/v2/iex"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            sock, _ = self._listener.accept()
            sock.settimeout(LIMIT_S)
            with sock:
                self._talk(sock)

    def _talk(self, sock: socket.socket) -> None:
        protocol = ServerProtocol()
        answers = iter(["connected", "authenticated"])

        def send_next() -> None:
            answer = [{"T": "success", "msg": next(answers)}]
            protocol.send_binary(msgspec.msgpack.encode(answer))

        logged_in = False
        while not logged_in:
            protocol.receive_data(sock.recv(65_536))
            for event in protocol.events_received():
                if isinstance(event, Request):
                    protocol.send_response(protocol.accept(event))
                else:
                    logged_in = True
                send_next()
            for data in protocol.data_to_send():
                sock.sendall(data)
        for data in self._attack:
            sock.sendall(data)
        if self._pressing is not None:
            self._pressing(sock)
        sock.recv(65_536)  # the client's close frame; it would wait for an answer

    def close(self) -> None:
        self._listener.close()
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()


MEGABYTE = b"\x00\x7f" + (1 << 20).to_bytes(8, "big") + bytes(1 << 20)
"""A fragment with which the message does not end."""
ENDING = {
    "a declared gigabyte": lambda: iter([b"\x82\x7f" + (1 << 30).to_bytes(8, "big") + bytes(1000)]),
    "the largest length": lambda: iter([b"\x82\x7f" + (2**63 - 1).to_bytes(8, "big")]),
    "a length with its highest bit": lambda: iter([b"\x82\x7f" + b"\xff" * 8]),
    "endless fragments": lambda: iter([b"\x02" + MEGABYTE[1:], *[MEGABYTE] * 20]),
    "compressed without an agreement": lambda: iter([b"\xc2\x05hello"]),
    "masked": lambda: iter([b"\x82\x85abcdhello"]),
    "a continuation of nothing": lambda: iter([b"\x80\x01x"]),
    "a ping of a kilobyte": lambda: iter([b"\x89\x7e\x04\x00" + bytes(1024)]),
    "text that is no UTF-8": lambda: iter([b"\x81\x02\xff\xff"]),
    "no websocket at all": lambda: iter([b"HTTP/1.1 200 OK\r\n"] * 100),
}


@contextmanager
def hostile(
    attack: Iterable[bytes] = (), pressing: Pressing | None = None
) -> Iterator[HostileFeed]:
    feed = HostileFeed(attack, pressing)
    try:
        yield feed
    finally:
        feed.close()


DRIVERS = {
    "websockets on trio": (WebsocketsDriver, "trio"),
    "websockets on asyncio": (WebsocketsDriver, "asyncio"),
    "alpaca-py": (AlpacaPyDriver, "trio"),
}
with_each_driver = pytest.mark.parametrize(
    ("driver_class", "backend"), DRIVERS.values(), ids=DRIVERS
)


@with_each_driver
@pytest.mark.parametrize("name", ENDING)
def test_frames_that_no_feed_sends_end_the_connection(
    driver_class: Any, backend: str, name: str
) -> None:
    with hostile(ENDING[name]()) as feed:

        async def main() -> None:
            driver = driver_class(feed.url, Credentials("key", "secret"))
            with pytest.raises(FeedUnavailable):
                async with driver.connect(Followed(), lambda: 0) as link:
                    while True:
                        await link.receive()

        run(backend, main)


DEEP = 1_000_000
HARMLESS = {
    "deep arrays": b"\x91" * DEEP,
    "deep maps": b"\x81\xa1a" * DEEP,
    "an array that claims four thousand million elements": b"\xdd" + b"\xff" * 4,
    "a text that claims four gigabytes": b"\x91\xdb" + b"\xff" * 4,
    "an extension that claims four gigabytes": b"\x91\xc9" + b"\xff" * 4 + b"\x01",
    "deep arrays in a field that is not read": b"\x91\x82\xa1T\xa1q\xa1y" + b"\x91" * DEEP,
}


@with_each_driver
@pytest.mark.parametrize("name", HARMLESS)
def test_messages_that_cannot_be_read_cost_themselves(
    driver_class: Any, backend: str, name: str
) -> None:
    content = HARMLESS[name]
    frame = b"\x82\x7f" + len(content).to_bytes(8, "big") + content
    good = msgspec.msgpack.encode([{"T": "subscription", "quotes": ["AAPL"]}])
    with hostile(iter([frame, b"\x82" + bytes([len(good)]) + good])) as feed:

        async def main() -> None:
            driver = driver_class(feed.url, Credentials("key", "secret"))
            async with driver.connect(Followed(), lambda: 0) as link:
                errors, controls = 0, []
                while not controls:
                    received = await link.receive()
                    errors += received.errors
                    controls += received.controls
                assert errors == 1

        run(backend, main)


def test_a_claimed_length_takes_no_memory_before_its_bytes_come() -> None:
    with hostile(ENDING["a declared gigabyte"]()) as feed:

        async def main() -> None:
            driver = WebsocketsDriver(feed.url, Credentials("key", "secret"))
            with pytest.raises(FeedUnavailable):
                async with driver.connect(Followed(), lambda: 0) as link:
                    tracemalloc.start()
                    await link.receive()

        run("trio", main)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < MAX_FRAME_BYTES


LARGE_BYTES, LARGE_COUNT = 1 << 20, 64
LARGE = b"\x82\x7f" + LARGE_BYTES.to_bytes(8, "big") + b"\xc4" * LARGE_BYTES
"""A frame that is no message."""
STALLED_S = 2.0


class Pressing:
    """Sends the same bytes many times, and finds out whether the peer stops reading.

    Attributes:
        settled: Set once all is sent, or nothing more can be.
        stalled: Whether nothing more could be sent.
    """

    def __init__(self, data: bytes, count: int) -> None:
        self._data = data
        self._count = count
        self.settled = threading.Event()
        self.stalled = False

    def __call__(self, sock: socket.socket) -> None:
        try:
            for _ in range(self._count):
                rest = memoryview(self._data)
                while rest:
                    ready = select.select([], [sock], [], LIMIT_S if self.stalled else STALLED_S)
                    if ready[1]:
                        rest = rest[sock.send(rest[: 1 << 16], socket.MSG_DONTWAIT) :]
                    else:
                        assert not self.stalled, "the client reads no more"
                        self.stalled = True
                        self.settled.set()
        finally:
            self.settled.set()


@with_each_driver
def test_large_frames_wait_in_the_socket_and_not_in_memory(driver_class: Any, backend: str) -> None:
    pressing = Pressing(LARGE, LARGE_COUNT)
    with hostile(pressing=pressing) as feed:

        async def main() -> None:
            driver = driver_class(feed.url, Credentials("key", "secret"))
            async with driver.connect(Followed(), lambda: 0) as link:
                await anyio.to_thread.run_sync(pressing.settled.wait, LIMIT_S)
                assert pressing.stalled, "all of it has been read"
                errors = 0
                while errors < LARGE_COUNT:  # none is lost
                    errors += (await link.receive()).errors

        run(backend, main)


FLOODS = {
    "pings": b"\x89\x7d" + bytes(125),
    "pongs": b"\x8a\x7d" + bytes(125),
    "empty pings": b"\x89\x00",
    "empty messages": b"\x82\x00",
    "empty fragments": b"\x00\x00",
}
FLOOD_FRAMES = 120_000
MOST_HELD_BYTES = 12 << 20
"""Less than a flood's frames take, and more than those of one read, a queue, and answers to pings."""


@with_each_driver
@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_of_frames_without_data_fills_no_memory(
    driver_class: Any, backend: str, flood: str
) -> None:
    """The server reads no pongs, so a driver may stop reading, end the connection, or throw away."""
    data = FLOODS[flood]
    part = data * ((1 << 16) // len(data))
    start = [b"\x02\x00"] if "fragments" in flood else []
    pressing = Pressing(part, FLOOD_FRAMES * len(data) // len(part))
    held_bytes: list[int] = []

    async def receive(link: Any) -> None:
        while True:
            await link.receive()

    async def main() -> None:
        driver = driver_class(feed.url, Credentials("key", "secret"))
        async with driver.connect(Followed(), lambda: 0) as link, anyio.create_task_group() as task:
            tracemalloc.start()
            task.start_soon(receive, link)
            while not pressing.settled.is_set():
                held_bytes.append(tracemalloc.get_traced_memory()[0])
                await anyio.sleep(0.01)
            held_bytes.append(tracemalloc.get_traced_memory()[0])
            task.cancel_scope.cancel()

    with hostile(iter(start), pressing=pressing) as feed:
        try:
            run(backend, main)
        except* FeedUnavailable:
            assert "pings" in flood
        finally:
            tracemalloc.stop()
    assert max(held_bytes) < MOST_HELD_BYTES


# Clients of the HTTP API


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="md-") as name:
        yield Path(name)


async def ends(sock: socket.socket) -> bytes:
    """What comes until the server ends the connection."""
    found = b""
    with suppress(ConnectionError):
        while True:
            await anyio.wait_readable(sock)
            part = sock.recv(65_536)
            if not part:
                break
            found += part
    return found


SLOW = {
    "nothing": b"",
    "half a request line": b"GET /heal",
    "a head that does not end": b"GET /health/live HTTP/1.1\r\nHost: x\r\nX-A: ",
}


@on_both_loops
@pytest.mark.parametrize("begin", SLOW.values(), ids=SLOW)
def test_a_client_that_dribbles_its_request_is_ended_however_often_it_sends(
    backend: str, begin: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_IDLE_S", 0.5)
    with folder() as where, ExitStack() as sockets:

        async def main() -> None:
            async with anyio.create_task_group() as tasks:
                path = where / "s"
                await tasks.start(
                    lambda *, task_status: serve_api(
                        FakeService(), socket=path, task_status=task_status
                    )
                )
                clients = [sockets.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(8)]
                for client in clients:
                    client.connect(str(path))
                    client.setblocking(False)
                    client.send(begin)

                async def dribble(client: socket.socket) -> None:
                    with suppress(OSError):
                        while True:
                            client.send(b"x")
                            await anyio.sleep(0.05)

                async with anyio.create_task_group() as dribbling:
                    for client in clients if begin else ():
                        dribbling.start_soon(dribble, client)
                    for client in clients:
                        await ends(client)
                    dribbling.cancel_scope.cancel()
                transport = httpx.AsyncHTTPTransport(uds=str(path))
                async with httpx.AsyncClient(transport=transport, base_url="http://x") as good:
                    assert (await good.get("/health/live")).status_code == 200
                tasks.cancel_scope.cancel()

        run(backend, main)


class BadListener:
    """A listener whose next connections fail."""

    def __init__(self, listener: socket.socket, errors: list[int]) -> None:
        self._listener = listener
        self._errors = errors

    def accept(self) -> Any:
        if self._errors:
            raise OSError(self._errors.pop(), "no")
        return self._listener.accept()

    def fileno(self) -> int:
        return self._listener.fileno()

    def close(self) -> None:
        self._listener.close()


@on_both_loops
def test_a_client_that_cannot_be_accepted_ends_nothing_and_is_logged_once(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    errors = [errno.EMFILE] * 3 + [errno.EPROTO, errno.ENETDOWN, errno.ENFILE]
    with socket.create_server(("127.0.0.1", 0)) as real:
        real.setblocking(False)
        listener: Any = BadListener(real, errors)
        url = f"http://127.0.0.1:{real.getsockname()[1]}/health/live"

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        async def main() -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(connections.serve_apps, [(app, [listener])], lambda: None)
                async with httpx.AsyncClient(timeout=LIMIT_S) as client:
                    assert (await client.get(url)).status_code == 200
                tasks.cancel_scope.cancel()

        run(backend, main)
    assert errors == []
    assert caplog.text.count("cannot accept a connection") == 1
