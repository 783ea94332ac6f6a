"""Accepts connections for ASGI applications and passes each to Hypercorn.

Hypercorn's own ``serve()`` is not used. If a client stops reading, it never ends on trio, where its
writes are shielded, and ends with an error on asyncio (seen with 0.18). This module owns the
sockets, so it can close them.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import anyio
import attrs
import sniffio
import trio
from hypercorn.asyncio.tcp_server import TCPServer as AsyncioTCPServer
from hypercorn.asyncio.worker_context import WorkerContext as AsyncioContext
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer as TrioTCPServer
from hypercorn.trio.worker_context import WorkerContext as TrioContext
from hypercorn.typing import AppWrapper, ConnectionState, LifespanState
from hypercorn.utils import wrap_app

from mdservice.http_api.requests import App

__all__ = ["serve_apps"]

MAX_CONNECTIONS = 256
"""Connections per listener; further clients wait in the system's queue. TCP clients cannot use up
those of the UNIX socket, which operators use."""
_SHARE_OF_FILES = 8
"""A listener takes no more than this part of the files that the process may open."""
_MAX_HEAD_BYTES = 64 * 1024
"""The limit of request line and headers; a long ``?symbols=`` fits."""
_IDLE_S = 30
"""After so long an idle connection is closed. The timer also runs while a busy machine delays a
request that the client has sent already, so Hypercorn's 5 s closed connections in use."""
_UNREAD_MS = 300_000
"""After so long the kernel ends a connection whose client takes no byte of an answer."""
_GRACE_S = 0.5
_RETRY_S = 0.1
_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

_log = logging.getLogger("mdservice.http_api")


async def serve_apps(
    served: Sequence[tuple[App, Sequence[socket.socket]]], started: Callable[[], None]
) -> None:
    """Serve applications until cancelled.

    When cancelled, it accepts no new connections and ends event streams. Answers in progress get
    half a second; then all connections are closed.

    Args:
        served: Each application with its listener. Their lifespans are not run.
        started: Called when connections are accepted.
    """
    closing = anyio.Event()
    acceptors = [
        _Acceptor(listener, _Server(app, {"closing": closing}))
        for app, listeners in served
        for listener in listeners
    ]
    async with anyio.create_task_group() as tasks:
        for acceptor in acceptors:
            tasks.start_soon(acceptor.run)
        started()
        try:
            await anyio.sleep_forever()
        finally:
            closing.set()
            with anyio.CancelScope(shield=True):
                async with anyio.create_task_group() as ends:
                    for acceptor in acceptors:
                        ends.start_soon(acceptor.end)


@attrs.define(eq=False)
class _Caller:
    """An open connection; ``connection`` is None until Hypercorn has it."""

    sock: socket.socket
    scope: anyio.CancelScope
    connection: _Connection | None = None

    def abort(self) -> None:
        if self.connection is not None:
            self.connection.abort()
        self.scope.cancel()


class _Acceptor:
    """Accepts connections at one listener, and keeps track of the open ones."""

    def __init__(self, listener: socket.socket, server: _Server) -> None:
        self._listener = listener
        self._server = server
        self._slots = anyio.Semaphore(_most_connections())
        self._open: set[_Caller] = set()
        self._one_closed = anyio.Event()
        self._full = False
        """Whether the last client could not be accepted, as the log says."""

    async def run(self) -> None:
        """Accept until cancelled. Connections outlive the cancellation until :meth:`end`."""
        async with anyio.create_task_group() as connections:
            while True:
                await self._slots.acquire()
                caller = _Caller(await self._accept(), anyio.CancelScope(shield=True))
                self._open.add(caller)
                connections.start_soon(self._handle, caller)

    async def end(self) -> None:
        """Let the open connections finish for half a second, then close them."""
        await self._server.wind_down()
        with anyio.move_on_after(_GRACE_S):
            while self._open:
                self._one_closed = anyio.Event()
                await self._one_closed.wait()
        for caller in tuple(self._open):
            caller.abort()

    async def _accept(self) -> socket.socket:
        while True:
            await anyio.wait_readable(self._listener)
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue  # The client is already gone.
            except OSError as error:  # no room, or what Linux reports of a client's network
                if error.errno in _NO_ROOM and not self._full:
                    self._full = True
                    _log.error("The API cannot accept a connection: %s", error.strerror)
                await anyio.sleep(_RETRY_S)
                continue
            self._full = False
            sock.setblocking(False)
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
                with suppress(OSError):  # a UNIX socket has no such option
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_MS)
            return sock

    async def _handle(self, caller: _Caller) -> None:
        try:
            with caller.scope:
                caller.connection = await self._server.connect(caller.sock)
                await caller.connection.run()
        except Exception:  # noqa: BLE001 - one caller's connection must not end the service
            _log.exception("A connection of the API failed")
        finally:
            if caller.connection is None:
                caller.sock.close()
            self._open.discard(caller)
            self._one_closed.set()
            self._slots.release()


class _Server:
    """The state that all connections of one application share.

    Args:
        app: The application.
        state: Passed to each request as ``scope["state"]``.
    """

    def __init__(self, app: App, state: dict[str, Any]) -> None:
        config = Config()
        config.accesslog = None
        config.errorlog = logging.getLogger("hypercorn.error")
        config.include_server_header = False
        config.keep_alive_timeout = _IDLE_S
        config.h11_max_incomplete_size = _MAX_HEAD_BYTES
        self._config = config
        self._app: AppWrapper = wrap_app(app, config.wsgi_max_body_size, "asgi")  # type: ignore[arg-type]
        self._state = state
        self._context = (
            TrioContext(None) if sniffio.current_async_library() == "trio" else AsyncioContext(None)
        )

    async def connect(self, sock: socket.socket) -> _Connection:
        """Start serving an accepted, non-blocking socket."""
        context = self._context
        if isinstance(context, TrioContext):
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
            state = ConnectionState(self._state)
            served = _TrioServer(self._app, self._config, context, state, stream)  # type: ignore[arg-type]
            # Closing wakes a write even if Hypercorn shields it.
            return _Connection(served.run, stream.socket.close)
        reader, writer = await asyncio.open_connection(sock=sock)
        loop = asyncio.get_running_loop()
        lifespan = LifespanState(self._state)
        server = _AsyncioServer(self._app, loop, self._config, context, lifespan, reader, writer)
        # Drops the bytes that a client has not read.
        return _Connection(server.run, writer.transport.abort)

    async def wind_down(self) -> None:
        """Close idle connections now, and the others after their current answer."""
        await self._context.terminated.set()


class _TrioServer(TrioTCPServer):
    async def _read_data(self) -> None:
        await super()._read_data()
        # The client is gone. Hypercorn would keep the connection until this timer ends.
        await self.idle_task.stop()


class _AsyncioServer(AsyncioTCPServer):
    async def _read_data(self) -> None:
        await super()._read_data()
        await self.idle_task.stop()  # as above


@attrs.frozen
class _Connection:
    """A client's connection.

    Attributes:
        run: Answers the requests until the connection ends.
        abort: Closes the connection now and drops unwritten bytes.
    """

    run: Callable[[], Awaitable[None]]
    abort: Callable[[], None]


def _most_connections() -> int:
    """Of one listener; these and the relay's leave some files to the feeds and to Redis."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return min(MAX_CONNECTIONS, files // _SHARE_OF_FILES)
