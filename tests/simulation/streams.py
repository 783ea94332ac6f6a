"""The simulator's streams in memory, as the websockets library wants them on trio."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import trio

from mdservice.simulator import MemoryByteStream


@contextmanager
def _as_trio() -> Iterator[None]:
    try:
        yield
    except anyio.BrokenResourceError as exc:
        raise trio.BrokenResourceError from exc
    except anyio.ClosedResourceError as exc:
        raise trio.ClosedResourceError from exc


class TrioStream(trio.abc.HalfCloseableStream):
    """A line to the simulator."""

    def __init__(self, stream: MemoryByteStream) -> None:
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with _as_trio():
            await self._stream.send(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        with _as_trio():
            try:
                return await self._stream.receive(max_bytes or 65536)
            except anyio.EndOfStream:
                return b""

    async def send_eof(self) -> None:
        with _as_trio():
            await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()
