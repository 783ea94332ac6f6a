"""One accepted connection, served by Hypercorn on the runtime that runs.

Hypercorn's own ``serve()`` is not used: with a client that has stopped reading it never ends on
trio, where its writes are shielded, and ends in an error on asyncio (seen with 0.18). Here the
sockets are ours, so that they can be closed under it.
"""

from __future__ import annotations

import logging
import socket
from typing import Any, Protocol

import sniffio
from hypercorn.config import Config
from hypercorn.typing import AppWrapper, ConnectionState
from hypercorn.utils import wrap_app

from mdservice.http_api.requests import App

__all__ = ["Connection", "Server", "server_for"]

_MAX_HEAD_BYTES = 64 * 1024
"""Request line and headers; a long ``?symbols=`` fits."""


class Connection(Protocol):
    """A client's connection."""

    async def run(self) -> None:
        """Answer its requests until it ends. Cancellation closes it, unless a write is stuck."""
        ...

    def abort(self) -> None:
        """Close it now, whatever was still to be written."""
        ...


class Server(Protocol):
    """What one application's connections share."""

    async def connect(self, sock: socket.socket) -> Connection:
        """Take an accepted, non-blocking socket over."""
        ...

    async def wind_down(self) -> None:
        """Close idle connections now, and the others after the answer that is under way."""
        ...


def server_for(app: App, state: dict[str, Any]) -> Server:
    """The server for the runtime that runs; requests see ``state`` in their scope."""
    config = Config()
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    config.include_server_header = False
    config.h11_max_incomplete_size = _MAX_HEAD_BYTES
    wrapped: AppWrapper = wrap_app(app, config.wsgi_max_body_size, "asgi")  # type: ignore[arg-type]
    shared = ConnectionState(state)
    if sniffio.current_async_library() == "trio":
        from mdservice.http_api.connections_trio import TrioServer

        return TrioServer(wrapped, config, shared)
    from mdservice.http_api.connections_asyncio import AsyncioServer

    return AsyncioServer(wrapped, config, shared)
