"""A connection without a socket: two byte streams joined in memory.

For a client and a simulator in one process, also on trio's virtual clock, which must not
wait for the real network.
"""

from __future__ import annotations

import anyio
import anyio.lowlevel
from anyio.abc import ByteStream

__all__ = ["MemoryByteStream", "memory_stream_pair"]

_CAPACITY_BYTES = 64 * 1024


class _Pipe:
    """One direction; at most ``capacity`` bytes wait."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.waiting = bytearray()
        self.ended = False
        self.reader_gone = False
        self.reset = False
        self._changed: anyio.Event | None = None

    def notify(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def change(self) -> None:
        if self._changed is None:
            self._changed = anyio.Event()
        await self._changed.wait()


class MemoryByteStream(ByteStream):
    """One end; see :func:`memory_stream_pair`. One task sends and one receives at a time."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._closed = False

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Wait for at least one byte.

        Raises:
            EndOfStream: The other end has closed, and all of its bytes were received.
            BrokenResourceError: The other end has cut the line.
            ClosedResourceError: This end is closed.
        """
        pipe = self._incoming
        if pipe.waiting or pipe.ended or pipe.reset or self._closed:
            await anyio.lowlevel.checkpoint()
        while True:
            if self._closed:
                raise anyio.ClosedResourceError
            if pipe.reset:
                raise anyio.BrokenResourceError
            if pipe.waiting:
                data = bytes(pipe.waiting[:max_bytes])
                del pipe.waiting[:max_bytes]
                pipe.notify()
                return data
            if pipe.ended:
                raise anyio.EndOfStream
            await pipe.change()

    async def send(self, item: bytes) -> None:
        """Send all of it; waits while the other end does not read.

        Raises:
            BrokenResourceError: The other end is gone.
            ClosedResourceError: This end is closed.
        """
        await anyio.lowlevel.checkpoint()
        pipe = self._outgoing
        rest = memoryview(item)
        while rest:
            if self._closed or pipe.ended:
                raise anyio.ClosedResourceError
            if pipe.reader_gone or pipe.reset:
                raise anyio.BrokenResourceError
            room = pipe.capacity - len(pipe.waiting)
            if room > 0:
                pipe.waiting += rest[:room]
                rest = rest[room:]
                pipe.notify()
            else:
                await pipe.change()

    async def send_eof(self) -> None:
        """End this direction; the other stays open."""
        await anyio.lowlevel.checkpoint()
        self._outgoing.ended = True
        self._outgoing.notify()

    def reset(self) -> None:
        """Drop the connection: unreceived bytes are lost, and the other end gets an error."""
        for pipe in (self._incoming, self._outgoing):
            pipe.reset = True
            pipe.notify()

    async def aclose(self) -> None:
        """Close both directions."""
        self._closed = True
        self._outgoing.ended = True
        self._incoming.reader_gone = True
        self._outgoing.notify()
        self._incoming.notify()
        await anyio.lowlevel.checkpoint()


def memory_stream_pair(
    capacity_bytes: int = _CAPACITY_BYTES,
) -> tuple[MemoryByteStream, MemoryByteStream]:
    """Two joined streams; ``capacity_bytes`` can wait in each direction."""
    one, other = _Pipe(capacity_bytes), _Pipe(capacity_bytes)
    return MemoryByteStream(one, other), MemoryByteStream(other, one)
