"""Server-sent events: the latest prices first, then every update."""

from __future__ import annotations

from collections.abc import AsyncGenerator, MutableMapping
from typing import Any

import anyio
from starlette.responses import Response

from mdservice.api.handle import ServiceHandle
from mdservice.api.requests import Receive, Send
from mdservice.model.encode import encode_quote, encode_status
from mdservice.model.events import FeedStatus
from mdservice.model.quote import Quote

__all__ = ["EventStream"]

KEEP_ALIVE_S = 15.0
_KEEP_ALIVE = b": keep-alive\n\n"
_PAUSE_S = 0.01
"""Between two writes to one client: some thousand updates then share a few, and no client
takes more than a small part of the loop that also reads the feed."""
_MAX_FRAMES = 512
"""Events taken from the service for the next write; what is beyond waits and is conflated
there."""


class EventStream(Response):
    """An endless answer of ``price.updated`` and ``feed.status`` events.

    First comes the latest price of each symbol that has one, then what follows it. While
    nothing happens, a comment is sent every 15 s. The stream ends when the client leaves, when
    the service closes its events, or when the server sets ``scope["state"]["closing"]``.

    Args:
        service: Where the events come from.
        symbols: Only their prices, or all where it is empty.
    """

    media_type = "text/event-stream"

    def __init__(self, service: ServiceHandle, symbols: tuple[str, ...]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._service = service
        self._symbols = symbols
        self._frames: list[bytes] = []
        self._filled = anyio.Event()
        self._taken = anyio.Event()
        self._ended = False
        self._gone = False
        self._reading = anyio.CancelScope()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Send events until one side ends. Leaves nothing behind when it is cancelled."""
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        closing: anyio.Event | None = scope.get("state", {}).get("closing")
        async with anyio.create_task_group() as tasks:

            async def until_gone() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                self._gone = True
                tasks.cancel_scope.cancel()

            async def until_closing(event: anyio.Event) -> None:
                await event.wait()
                self._reading.cancel()

            tasks.start_soon(until_gone)
            tasks.start_soon(self._read)
            if closing is not None:
                tasks.start_soon(until_closing, closing)
            await self._write(send)
            tasks.cancel_scope.cancel()
        if not self._gone:
            # Out of the tasks' reach: during this, Hypercorn says that the client is gone, and
            # a cancellation would keep it from closing the connection.
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _read(self) -> None:
        """Turn the service's events into frames, at most some hundred ahead of the writes."""
        with self._reading:
            async with self._service.events(*self._symbols) as events:
                try:
                    async for event in events:
                        await self._put(event)
                finally:
                    # A generator that is left in the middle would be ended some time later,
                    # by the garbage collector.
                    if isinstance(events, AsyncGenerator):
                        await events.aclose()
        self._ended = True
        self._filled.set()

    async def _put(self, event: Quote | FeedStatus) -> None:
        while len(self._frames) >= _MAX_FRAMES:
            self._taken = anyio.Event()
            await self._taken.wait()
        self._frames.append(_frame(event))
        self._filled.set()

    async def _write(self, send: Send) -> None:
        while not self._ended or self._frames:
            with anyio.move_on_after(KEEP_ALIVE_S):
                await self._filled.wait()
            if not self._ended:
                self._filled = anyio.Event()
            frames, self._frames = self._frames, []
            self._taken.set()
            if frames or not self._ended:
                body = b"".join(frames) or _KEEP_ALIVE
                await send({"type": "http.response.body", "body": body, "more_body": True})
                await anyio.sleep(_PAUSE_S)


def _frame(event: Quote | FeedStatus) -> bytes:
    if isinstance(event, FeedStatus):
        return b"event: feed.status\ndata: %b\n\n" % encode_status(event)
    return b"event: price.updated\ndata: %b\n\n" % encode_quote(event)
