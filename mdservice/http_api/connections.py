"""Accepts connections for ASGI applications, and has Hypercorn serve each of them.

Hypercorn's own ``serve()`` is not used: with a client that has stopped reading it never ends on
trio, where its writes are shielded, and ends in an error on asyncio (seen with 0.18). Here the
sockets are ours, so that they can be closed under it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
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
"""At each listener; further callers wait in the system's queue. A count of its own for each
keeps TCP from taking the UNIX socket's place, over which the service is operated."""
_MAX_HEAD_BYTES = 64 * 1024
"""Request line and headers; a long ``?symbols=`` fits."""
_GRACE_S = 0.5
_RETRY_S = 0.1
_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

_log = logging.getLogger("mdservice.http_api")


async def serve_apps(
    served: Sequence[tuple[App, Sequence[socket.socket]]], started: Callable[[], None]
) -> None:
    """Serve applications until cancelled.

    On cancellation, nothing new is accepted, event streams are ended, answers under way get
    half a second, and whatever is open then is closed.

    Args:
        served: Each application with where it is listened for; their lifespans are not run.
        started: Called as soon as callers are taken in.
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
    """Takes callers in at one listener, and knows every open connection."""

    def __init__(self, listener: socket.socket, server: _Server) -> None:
        self._listener = listener
        self._server = server
        self._slots = anyio.Semaphore(MAX_CONNECTIONS)
        self._open: set[_Caller] = set()
        self._one_closed = anyio.Event()

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
                continue  # The caller has gone again.
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                _log.error("The API cannot accept a connection: %s", error.strerror)
                await anyio.sleep(_RETRY_S)
                continue
            sock.setblocking(False)
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
    """What one application's connections share.

    Args:
        app: The application.
        state: Each request has it as ``scope["state"]``.
    """

    def __init__(self, app: App, state: dict[str, Any]) -> None:
        config = Config()
        config.accesslog = None
        config.errorlog = logging.getLogger("hypercorn.error")
        config.include_server_header = False
        config.h11_max_incomplete_size = _MAX_HEAD_BYTES
        self._config = config
        self._app: AppWrapper = wrap_app(app, config.wsgi_max_body_size, "asgi")  # type: ignore[arg-type]
        self._state = state
        self._context = (
            TrioContext(None) if sniffio.current_async_library() == "trio" else AsyncioContext(None)
        )

    async def connect(self, sock: socket.socket) -> _Connection:
        """Take an accepted, non-blocking socket over."""
        context = self._context
        if isinstance(context, TrioContext):
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
            state = ConnectionState(self._state)
            served = _TrioServer(self._app, self._config, context, state, stream)  # type: ignore[arg-type]
            # Closing wakes a write even where Hypercorn shields it.
            return _Connection(served.run, stream.socket.close)
        reader, writer = await asyncio.open_connection(sock=sock)
        loop = asyncio.get_running_loop()
        lifespan = LifespanState(self._state)
        server = _AsyncioServer(self._app, loop, self._config, context, lifespan, reader, writer)
        # Drops what a client that does not read has left in the buffer.
        return _Connection(server.run, writer.transport.abort)

    async def wind_down(self) -> None:
        """Close idle connections now, and the others after the answer that is under way."""
        await self._context.terminated.set()


class _TrioServer(TrioTCPServer):
    async def _read_data(self) -> None:
        await super()._read_data()
        # The client has gone. Hypercorn would keep the connection until this timer ends.
        await self.idle_task.stop()


class _AsyncioServer(AsyncioTCPServer):
    async def _read_data(self) -> None:
        await super()._read_data()
        await self.idle_task.stop()  # as above


@attrs.frozen
class _Connection:
    """A client's connection.

    Attributes:
        run: Answers its requests until it ends.
        abort: Closes it now, whatever was still to be written.
    """

    run: Callable[[], Awaitable[None]]
    abort: Callable[[], None]
