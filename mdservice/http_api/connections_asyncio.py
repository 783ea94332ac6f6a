"""Hypercorn's connections on asyncio."""

from __future__ import annotations

import asyncio
import socket

from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.typing import AppWrapper, ConnectionState, LifespanState

__all__ = ["AsyncioServer"]


class AsyncioServer:
    """See :class:`mdservice.http_api.connections.Server`."""

    def __init__(self, app: AppWrapper, config: Config, state: ConnectionState) -> None:
        self._app = app
        self._config = config
        self._state = LifespanState(state)
        self._context = WorkerContext(None)

    async def connect(self, sock: socket.socket) -> _AsyncioConnection:
        """Take the socket over."""
        reader, writer = await asyncio.open_connection(sock=sock)
        loop = asyncio.get_running_loop()
        server = _Protocol(
            self._app, loop, self._config, self._context, self._state, reader, writer
        )
        return _AsyncioConnection(server, writer)

    async def wind_down(self) -> None:
        """Tell the connections."""
        await self._context.terminated.set()


class _Protocol(TCPServer):
    async def _read_data(self) -> None:
        await super()._read_data()
        # The client has gone. Hypercorn would keep the connection until this timer ends.
        await self.idle_task.stop()


class _AsyncioConnection:
    def __init__(self, server: TCPServer, writer: asyncio.StreamWriter) -> None:
        self._server = server
        self._writer = writer

    async def run(self) -> None:
        await self._server.run()

    def abort(self) -> None:
        # Drops what a client that does not read has left in the buffer.
        self._writer.transport.abort()
