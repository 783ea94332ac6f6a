"""The simulator's streams in memory, as the websockets library wants them on trio."""

from __future__ import annotations

import anyio
import trio

from mdservice.simulator import MemoryByteStream


class _AsTrio:
    """Anyio's errors of a stream as trio's."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, anyio.BrokenResourceError):
            raise trio.BrokenResourceError from error
        if isinstance(error, anyio.ClosedResourceError):
            raise trio.ClosedResourceError from error


_AS_TRIO = _AsTrio()


class TrioStream(trio.abc.HalfCloseableStream):
    """A line to the simulator."""

    def __init__(self, stream: MemoryByteStream) -> None:
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with _AS_TRIO:
            await self._stream.send(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        with _AS_TRIO:
            try:
                return await self._stream.receive(max_bytes or 65536)
            except anyio.EndOfStream:
                return b""

    async def send_eof(self) -> None:
        with _AS_TRIO:
            await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()
