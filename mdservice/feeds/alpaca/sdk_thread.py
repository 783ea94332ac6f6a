"""alpaca-py's socket on an asyncio loop in a thread of its own, lent to any event loop.

alpaca-py needs an asyncio loop to itself. This thread runs that loop, reads frames and
hands them over in batches: the list is swapped under a lock, and the other side is woken
once per batch. When the other side is slow the thread stops reading, so TCP holds the
sender back.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import anyio
import sniffio
from anyio.lowlevel import checkpoint

from mdservice.errors import FeedError, FeedUnavailable
from mdservice.feeds.driver import CLOSE_TIMEOUT_S, Frame

__all__ = ["LentSocket", "SdkThread", "SdkWebsocket"]

_MOST_FRAMES = 2048
"""Frames that may wait to be taken before the thread stops reading."""
_MOST_AT_ONCE = 64
"""Frames taken at once: all are decoded in one turn of the event loop, which others share."""


class SdkWebsocket(Protocol):
    """What is used of alpaca-py's websocket (``websockets.legacy``)."""

    async def recv(self) -> Frame:
        """The next message."""
        ...

    async def send(self, message: bytes) -> None:
        """Send one."""
        ...


class LentSocket(Protocol):
    """The SDK's stream, as the thread uses it."""

    async def open(self) -> SdkWebsocket:
        """Connect and log in.

        Raises:
            FeedError
        """
        ...

    async def close(self) -> None:
        """Close the connection, politely."""
        ...

    def abort(self) -> None:
        """Drop the connection at once."""
        ...


class SdkThread:
    """One connection of the SDK, from opening to its end.

    Args:
        make_socket: Makes the SDK's stream; called in the thread.
        limit_s: How long its opening may take, seconds.
    """

    def __init__(self, make_socket: Callable[[], LentSocket], limit_s: float) -> None:
        self._make_socket = make_socket
        self._limit_s = limit_s
        self._soon = _host_soon()
        self._thread = threading.Thread(target=self._main, name="alpaca-py", daemon=True)
        self._lock = threading.Lock()
        self._frames: list[Frame] = []
        self._error: FeedError | None = None
        self._opened = False
        self._closing = False
        self._ended = False
        self._changed = anyio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._websocket: SdkWebsocket | None = None
        self._stop: asyncio.Event
        self._room: asyncio.Event

    # The host's side: any event loop.

    async def open(self) -> None:
        """Start the thread; return when logged in.

        Raises:
            FeedError: What the opening ended with.
        """
        self._thread.start()
        while not self._opened:
            if self._ended:
                raise self._error or FeedUnavailable("alpaca-py's thread ended at its start")
            await self._change()

    async def take(self) -> Sequence[Frame]:
        """Frames that have come, in order, at least one.

        Raises:
            FeedUnavailable: The connection has ended and everything was taken.
        """
        await checkpoint()
        while True:
            ended = self._ended  # looked at first: the last frames come before the end
            with self._lock:
                was_full = len(self._frames) >= _MOST_FRAMES
                taken, self._frames = self._frames[:_MOST_AT_ONCE], self._frames[_MOST_AT_ONCE:]
            if taken:
                if was_full:
                    self._in_thread(self._room.set)
                return taken
            if ended:
                raise self._error or FeedUnavailable("the feed closed the connection")
            await self._change()

    def send(self, data: bytes) -> None:
        """Send a message; a failure shows as the end of the connection.

        Raises:
            FeedUnavailable: The connection has ended.
        """
        if self._ended or self._websocket is None:
            raise self._error or FeedUnavailable("the feed closed the connection")
        websocket = self._websocket
        self._in_thread(lambda: self._spawn(_send(websocket, data)))

    async def close(self) -> None:
        """End the connection and the thread within :data:`CLOSE_TIMEOUT_S` and a bit."""
        self._closing = True
        self._in_thread(self._ask_to_stop)
        with anyio.move_on_after(CLOSE_TIMEOUT_S + 0.5):
            while self._thread.is_alive() and not self._ended:
                await self._change()

    def _ask_to_stop(self) -> None:
        self._stop.set()

    async def _change(self) -> None:
        await self._changed.wait()
        self._changed = anyio.Event()

    def _notify(self) -> None:
        self._changed.set()

    def _in_thread(self, call: Callable[[], object]) -> None:
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(call)
            except RuntimeError:  # the thread's loop has just been closed: nothing to tell it
                return

    # The thread's side: asyncio.

    def _main(self) -> None:
        try:
            asyncio.run(self._run())
        finally:
            self._end()

    def _end(self) -> None:
        self._ended = True
        self._soon(self._notify)

    async def _run(self) -> None:
        self._stop, self._room = asyncio.Event(), asyncio.Event()
        self._tasks: set[asyncio.Future[Any]] = set()
        self._loop = asyncio.get_running_loop()
        if self._closing:  # before there was a loop to be told
            self._stop.set()
        try:
            await self._hold(self._make_socket())
        except FeedError as exc:
            self._error = exc
        except Exception as exc:  # noqa: BLE001 - whatever the SDK raises ends this connection
            self._error = FeedUnavailable(
                f"the connection that alpaca-py held ended: {exc or type(exc).__name__}"
            )
        # Told here: asyncio's own end waits for name resolutions that were given up.
        self._end()

    async def _hold(self, socket: LentSocket) -> None:
        stopping = self._spawn(self._stop.wait())
        try:
            opening = self._spawn(asyncio.wait_for(socket.open(), self._limit_s))
            await asyncio.wait({opening, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if self._stop.is_set():
                return
            self._websocket = await opening
            self._opened = True
            self._soon(self._notify)
            reading = self._spawn(self._read(self._websocket))
            await asyncio.wait({reading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                await reading
        except TimeoutError as exc:
            raise FeedUnavailable(
                f"the feed did not finish the login within {self._limit_s:g} s"
            ) from exc
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await _close_within_limit(socket)

    async def _read(self, websocket: SdkWebsocket) -> None:
        while True:
            frame = await websocket.recv()
            with self._lock:
                self._frames.append(frame)
                waiting = len(self._frames)
            if waiting == 1:
                self._soon(self._notify)
            elif waiting >= _MOST_FRAMES:
                self._room.clear()
                if len(self._frames) >= _MOST_FRAMES:
                    await self._room.wait()

    def _spawn(self, awaitable: Awaitable[Any]) -> asyncio.Future[Any]:
        future = asyncio.ensure_future(awaitable)
        self._tasks.add(future)
        future.add_done_callback(self._forget)
        return future

    def _forget(self, future: asyncio.Future[Any]) -> None:
        self._tasks.discard(future)
        if not future.cancelled():
            future.exception()  # looked at, so that asyncio does not print it at the end


async def _send(websocket: SdkWebsocket, data: bytes) -> None:
    try:
        await websocket.send(data)
    except Exception:  # noqa: BLE001 - the reader sees the same end, and tells why
        return


async def _close_within_limit(socket: LentSocket) -> None:
    try:
        await asyncio.wait_for(socket.close(), CLOSE_TIMEOUT_S)
    except Exception:  # noqa: BLE001 - it is being dropped anyway
        socket.abort()
    else:
        socket.abort()


def _host_soon() -> Callable[[Callable[[], object]], None]:
    """How another thread gets a call run on the current event loop, without waiting for it."""
    if sniffio.current_async_library() == "trio":
        import trio

        run_soon: Callable[[Callable[[], object]], object]
        run_soon = trio.lowlevel.current_trio_token().run_sync_soon
    else:
        run_soon = asyncio.get_running_loop().call_soon_threadsafe

    def soon(call: Callable[[], object]) -> None:
        try:
            run_soon(call)
        except RuntimeError:  # that loop has ended (trio.RunFinishedError is one too)
            return

    return soon
