"""A connection on the event loop: who waits for what, and how a wait ends."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from mdservice.errors import StoreUnavailable
from mdservice.redis_io.connection import RedisAddress
from mdservice.redis_io.store import RedisStream

LIMIT_S = 10.0
BACKENDS = ["trio", "asyncio"]


class Link:
    """What a :class:`RedisStream` needs of an opened link."""

    address = RedisAddress("unix:///nowhere", timeout_s=1).shown

    def __init__(self, sock: Any) -> None:
        self._socket = sock

    def opened_socket(self) -> Any:
        return self._socket

    def close(self) -> None:
        self._socket.close()


class Moody:
    """A socket that, as one with TLS, first wants something else."""

    def __init__(self, sock: socket.socket, **wants: list[type[ssl.SSLError]]) -> None:
        self._socket = sock
        self._wants = wants
        self.calls: list[str] = []

    def fileno(self) -> int:
        return self._socket.fileno()

    def setblocking(self, flag: bool) -> None:
        self._socket.setblocking(flag)

    def close(self) -> None:
        self._socket.close()

    def send(self, data: Any) -> int:
        return int(self._call("send", data))

    def recv_into(self, buffer: Any) -> int:
        return int(self._call("recv_into", buffer))

    def _call(self, name: str, argument: Any) -> Any:
        self.calls.append(name)
        if self._wants.get(name):
            raise self._wants[name].pop(0)
        return getattr(self._socket, name)(argument)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        yield ours, theirs


@pytest.mark.parametrize("backend", BACKENDS)
def test_sends_more_than_the_system_takes_at_once(pair: Any, backend: str) -> None:
    ours, theirs = pair
    data = b"x" * 4_000_000

    async def serve() -> None:
        left = len(data)
        while left:
            await anyio.wait_readable(theirs)
            left -= len(theirs.recv(1 << 20))
        theirs.send(b"+OK\r\n")

    async def main() -> None:
        stream = RedisStream(Link(ours), LIMIT_S)  # type: ignore[arg-type]
        with anyio.fail_after(LIMIT_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(serve)
                assert await stream.exchange(data, 1) == [b"OK"]

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_send_that_first_has_to_read_waits_for_that(pair: Any, backend: str) -> None:
    ours, theirs = pair
    moody = Moody(ours, send=[ssl.SSLWantReadError])

    async def main() -> None:
        stream = RedisStream(Link(moody), LIMIT_S)  # type: ignore[arg-type]
        with anyio.fail_after(LIMIT_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stream.exchange, b"PING\r\n", 1)
                for _ in range(20):
                    await anyio.lowlevel.checkpoint()
                assert moody.calls == ["send"]  # it can be written to, which is not the point
                theirs.send(b"+PONG\r\n")

    anyio.run(main, backend=backend)
    assert moody.calls[:2] == ["send", "send"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_read_that_first_has_to_write_waits_for_that(pair: Any, backend: str) -> None:
    ours, theirs = pair
    moody = Moody(ours, recv_into=[ssl.SSLWantWriteError])
    theirs.send(b"+PONG\r\n")

    async def main() -> None:
        stream = RedisStream(Link(moody), LIMIT_S)  # type: ignore[arg-type]
        with anyio.fail_after(LIMIT_S):
            assert await stream.exchange(b"PING\r\n", 1) == [b"PONG"]

    anyio.run(main, backend=backend)
    assert moody.calls == ["send", "recv_into", "recv_into"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_closing_ends_a_call_that_waits(pair: Any, backend: str) -> None:
    ours, _ = pair

    async def main() -> None:
        stream = RedisStream(Link(ours), LIMIT_S)  # type: ignore[arg-type]

        async def call() -> None:
            with pytest.raises(StoreUnavailable):
                await stream.exchange(b"PING\r\n", 1)

        with anyio.fail_after(LIMIT_S / 2):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call)
                await anyio.wait_all_tasks_blocked()
                stream.close()
                stream.close()

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_server_that_is_mute_is_given_up(pair: Any, backend: str) -> None:
    ours, _ = pair

    async def main() -> None:
        stream = RedisStream(Link(ours), 0.05)  # type: ignore[arg-type]
        with pytest.raises(StoreUnavailable, match="no answer in time"):
            await stream.exchange(b"PING\r\n", 1)

    anyio.run(main, backend=backend)
