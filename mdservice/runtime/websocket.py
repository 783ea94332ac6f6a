"""A client's websocket that closes cleanly, and the way to it, on trio and asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache, partial
from typing import Any, Final

import anyio
import sniffio
from anyio.abc import TaskGroup

from mdservice.runtime.network import Route, route, tls_context
from mdservice.runtime.task_groups import block_tasks

__all__ = [
    "HeldWebsocket",
    "WebsocketRoute",
    "asyncio_connection",
    "held_websocket",
    "library_connect",
]

_MOST_UNREAD_BYTES: Final = 4 * 1024 * 1024
"""More than any request has, so only a peer that does not read its pongs comes to it."""


class WebsocketRoute:
    """The way to a websocket, by the environment's proxy and certificates.

    Args:
        url: ``ws://`` or ``wss://``.
        direct: Whether the way is known, and the environment does not count.

    Raises:
        ConfigurationError: The environment has a proxy or certificates that cannot be used.
    """

    def __init__(self, url: str, *, direct: bool = False) -> None:
        self._url = url
        self._route = Route() if direct else route(url)
        by_tls = url.startswith("wss:") or (self._route.proxy or "").startswith("https:")
        self._tls = tls_context("websocket") if by_tls else None

    @property
    def hint(self) -> str:
        """Text for an error, as that of :class:`~mdservice.runtime.network.Route`."""
        return self._route.hint

    def options(self) -> dict[str, Any]:
        """The library's arguments for proxy and TLS, so that it does not read the environment."""
        proxy = self._route.proxy
        options: dict[str, Any] = {"proxy": proxy}
        if self._url.startswith("wss:"):
            options["ssl"] = self._tls
        if proxy is not None and proxy.startswith("https:"):
            options["proxy_ssl"] = self._tls
        return options


def library_connect() -> Any:
    """The library's ``connect`` for the running event loop; both take the same arguments."""
    if sniffio.current_async_library() == "trio":
        from websockets.trio.client import connect as trio_connect

        return trio_connect
    from websockets.asyncio.client import connect as asyncio_connect

    return partial(asyncio_connect, create_connection=asyncio_connection())


@cache
def asyncio_connection() -> Any:
    """The library's client connection on asyncio, which ends when the peer sends but does not read.

    The library answers each ping, and on asyncio it does not wait until the answer is sent. A peer
    that sends pings and does not read the pongs could fill the memory. On trio it waits.
    """
    from websockets.asyncio.client import ClientConnection

    class Connection(ClientConnection):
        def send_data(self) -> None:
            # One write for thousands of pongs; an empty one is the end of writing, always the last
            if len(writes := self.protocol.writes) > 1:
                self.protocol.writes = [b"".join(writes), *([] if writes[-1] else [b""])]
            super().send_data()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.transport.get_write_buffer_size() > _MOST_UNREAD_BYTES:
                self.set_connection_exc(ConnectionError("the server does not read its pongs"))
                self.transport.abort()

    return Connection


@asynccontextmanager
async def held_websocket(close_timeout_s: float) -> AsyncIterator[HeldWebsocket]:
    """A websocket for the length of the block, closed at its end, also after a cancellation.

    Args:
        close_timeout_s: How long closing may take before the socket is dropped.
    """
    async with block_tasks() as tasks:
        held = HeldWebsocket(tasks, close_timeout_s)
        try:
            yield held
        finally:
            held.leave()


class HeldWebsocket:
    """Holds the library's connection in a task that the user's cancellation does not reach.

    On trio the library reads in a nursery inside its ``connect``. A cancellation from outside would
    end that nursery, and with it the socket, before a close frame is sent. Here it ends only the
    user's task, and this task then closes the connection.

    Made by :func:`held_websocket`.
    """

    def __init__(self, tasks: TaskGroup, close_timeout_s: float) -> None:
        self._tasks = tasks
        self._close_timeout_s = close_timeout_s
        self._scope = anyio.CancelScope(shield=True)
        self._settled = anyio.Event()
        self._leaving = anyio.Event()
        self._websocket: Any = None
        self._error: Exception | None = None

    @property
    def is_open(self) -> bool:
        """Whether the upgrade was accepted."""
        return self._websocket is not None

    async def open(self, opening: Any) -> Any:
        """Wait for the library's connection.

        Args:
            opening: What the library's ``connect`` has returned.

        Raises:
            Exception: Whatever the library raises.
        """
        self._tasks.start_soon(self._hold, opening)
        await self._settled.wait()
        if self._websocket is None:
            raise self._error or EOFError("the connection was not opened")
        return self._websocket

    def leave(self) -> None:
        """Close the connection, or stop opening it."""
        self._leaving.set()
        if self._websocket is None:
            self._scope.cancel()

    async def _hold(self, opening: Any) -> None:
        """Enter the library's ``connect``, and stay in it until :meth:`leave`."""
        try:
            with self._scope:
                async with opening as self._websocket:
                    self._settled.set()
                    await self._leaving.wait()
                    await self._close(self._websocket)
        except Exception as exc:  # noqa: BLE001 - raised where the connection is used
            self._error = exc
        finally:
            self._settled.set()

    async def _close(self, websocket: Any) -> None:
        """Send a close frame, and wait for the peer's; after the limit, drop the socket.

        The two versions of the library name it differently. Frames that still come are discarded
        if the queue can do so, since a full queue would keep the peer's close frame from being
        read.
        """
        discard = getattr(websocket.recv_messages, "discard", None)
        if discard is not None:
            discard()
        with anyio.move_on_after(self._close_timeout_s):
            await (websocket.aclose if hasattr(websocket, "aclose") else websocket.close)()
