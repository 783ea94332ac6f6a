"""An opened connection to a Redis-protocol server, used from the event loop.

A thread opens a connection, since redis-py's way to do so blocks. From then on a batch is sent and
its replies are read where it is made: a hop to a thread and back costs more than the server needs
for a small batch.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import hiredis
from anyio.lowlevel import checkpoint_if_cancelled

from mdservice.errors import StoreUnavailable
from mdservice.sinks.redis_link import RedisAddress, RedisLink, connection_lost
from mdservice.sinks.redis_replies import READ_BYTES, collect, hung_up, new_reader
from mdservice.sinks.resp import pack

__all__ = ["RedisStream", "open_stream"]

_T = TypeVar("_T")


async def open_stream(
    address: RedisAddress, timeout_s: float, limiter: anyio.CapacityLimiter, name: str
) -> RedisStream:
    """Connect and log in, in a worker thread.

    Args:
        address: The server.
        timeout_s: How long connecting, and each wait for the server, may take.
        limiter: How many threads may be at work.
        name: How the connection is called in the server's ``CLIENT LIST``.

    Raises:
        StoreUnavailable: No connection within ``timeout_s``.
        StoreRefused: The login is refused.
    """
    link = RedisLink(address)
    stream: RedisStream | None = None
    try:
        with anyio.move_on_after(timeout_s):
            await anyio.to_thread.run_sync(
                _open_named, link, name, abandon_on_cancel=True, limiter=limiter
            )
            stream = RedisStream(link, timeout_s)
    finally:
        if stream is None:
            link.close()  # which ends what the thread waits for
    if stream is None:
        raise StoreUnavailable(f"Redis at {address.shown} did not answer within {timeout_s:g} s")
    return stream


def _open_named(link: RedisLink, name: str) -> None:
    link.open()
    link.call(pack(b"CLIENT", b"SETNAME", name.encode()))  # a refusal does not matter


class RedisStream:
    """One conversation at a time, on trio or asyncio, with or without TLS.

    Args:
        link: Open; it is not used from a thread any more, except to be closed.
        timeout_s: How long each wait for the server may take.
    """

    def __init__(self, link: RedisLink, timeout_s: float) -> None:
        self._link = link
        self._timeout_s = timeout_s
        self._socket = link.opened_socket()
        self._socket.setblocking(False)
        self._reader = new_reader()
        self._buffer = bytearray(READ_BYTES)

    async def exchange(self, data: bytes, count: int) -> list[Any]:
        """Send ``data``, return the ``count`` replies that it has, errors among them.

        Whatever ends it early, cancelling too, leaves what was sent uncertain and the replies out
        of step: the caller then closes the connection.

        Raises:
            StoreUnavailable: The connection was lost, or the server did not answer in time.
        """
        await checkpoint_if_cancelled()
        try:
            await self._send(data)
            return await self._receive(count)
        except (OSError, hiredis.ProtocolError, anyio.ClosedResourceError) as exc:
            raise connection_lost(self._link.address, exc) from exc

    def close(self) -> None:
        """End the connection, and a call that waits for it; never raises."""
        if self._socket.fileno() >= 0:
            anyio.notify_closing(self._socket)
        self._link.close()

    async def _send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            sent = await self._when_ready(self._socket.send, rest, anyio.wait_writable)
            rest = rest[sent:]

    async def _receive(self, count: int) -> list[Any]:
        replies: list[Any] = []
        reader, buffer = self._reader, self._buffer
        while not collect(reader, replies, count):
            size = await self._when_ready(self._socket.recv_into, buffer, anyio.wait_readable)
            if size == 0:
                raise hung_up(replies)
            reader.feed(buffer, 0, size)  # type: ignore[arg-type]  # any buffer will do
        return replies

    async def _when_ready(
        self, call: Callable[[Any], _T], argument: Any, wait: Callable[[Any], Awaitable[None]]
    ) -> _T:
        """Call the socket, again whenever it is ready for it."""
        while True:
            try:
                return call(argument)
            except BlockingIOError:
                ready = wait
            except ssl.SSLWantReadError:  # TLS has its own mind about who speaks next
                ready = anyio.wait_readable
            except ssl.SSLWantWriteError:
                ready = anyio.wait_writable
            with anyio.fail_after(self._timeout_s):
                await ready(self._socket)
