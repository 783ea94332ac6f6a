"""Hypercorn's connections on trio."""

from __future__ import annotations

import socket

import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState

__all__ = ["TrioServer"]


class TrioServer:
    """See :class:`mdservice.http_api.connections.Server`."""

    def __init__(self, app: AppWrapper, config: Config, state: ConnectionState) -> None:
        self._app = app
        self._config = config
        self._state = state
        self._context = WorkerContext(None)

    async def connect(self, sock: socket.socket) -> _TrioConnection:
        """Take the socket over."""
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        server = _Protocol(self._app, self._config, self._context, self._state, stream)  # type: ignore[arg-type]
        return _TrioConnection(server, stream)

    async def wind_down(self) -> None:
        """Tell the connections."""
        await self._context.terminated.set()


class _Protocol(TCPServer):
    async def _read_data(self) -> None:
        await super()._read_data()
        # The client has gone. Hypercorn would keep the connection until this timer ends.
        await self.idle_task.stop()


class _TrioConnection:
    def __init__(self, server: TCPServer, stream: trio.SocketStream) -> None:
        self._server = server
        self._stream = stream

    async def run(self) -> None:
        await self._server.run()

    def abort(self) -> None:
        # Wakes a write even where Hypercorn shields it.
        self._stream.socket.close()
