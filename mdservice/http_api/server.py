"""Listening for the API's callers, and ending in time."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import anyio
import attrs
from anyio.abc import TaskStatus
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from mdservice.errors import InvalidSymbol, MDServiceError, SubscriptionRefused
from mdservice.http_api import market_data, monitoring
from mdservice.http_api import monitoring as positions
from mdservice.http_api.connections import Connection, Server, server_for
from mdservice.http_api.handle import ServiceHandle
from mdservice.http_api.listeners import tcp_address, tcp_listeners, unix_listener
from mdservice.http_api.requests import App, BearerGate, BodyLimit
from mdservice.observability.metrics import metrics_registry, package_version

__all__ = ["ApiAddresses", "create_app", "serve_api", "serve_apps"]


# The application: every call, and how errors are answered.


_DESCRIPTION = """Market data of one Alpaca account, shared with every program on the desk.

Over the UNIX socket no token is needed. Over TCP, where a token is set, every call but the two
health calls wants `Authorization: Bearer <token>`."""


def create_app(service: ServiceHandle) -> FastAPI:
    """The HTTP API of a running service.

    Its description is at ``/openapi.json``. There is no page at ``/docs``: FastAPI's would load
    its scripts from another host, which a machine on a trading desk should not do.

    Args:
        service: Where all answers come from.
    """
    app = FastAPI(
        title="mdservice",
        version=package_version(),
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.state.metrics = metrics_registry(service.status)
    app.include_router(monitoring.router)
    app.include_router(market_data.router)
    app.include_router(positions.positions_router)
    app.add_exception_handler(InvalidSymbol, _invalid_symbol)
    app.add_exception_handler(SubscriptionRefused, _refused)
    app.add_exception_handler(MDServiceError, _unavailable)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(BodyLimit)
    return app


async def _invalid_symbol(_request: Request, error: Exception) -> JSONResponse:
    return _problem(422, str(error))


async def _refused(_request: Request, error: Exception) -> JSONResponse:
    return _problem(409, str(error))


async def _unavailable(_request: Request, error: Exception) -> JSONResponse:
    return _problem(503, str(error))


async def _failed(_request: Request, _error: Exception) -> JSONResponse:
    return _problem(500, "the service failed on this request: the reason is in its log")


def _problem(status: int, detail: str) -> JSONResponse:
    return JSONResponse({"detail": detail}, status)


_log = logging.getLogger("mdservice.http_api")

Listener = socket.socket
"""Inside :func:`serve_api` the name ``socket`` is the path's."""

MAX_CONNECTIONS = 256
"""At each listener; further callers wait in the system's queue. A count of its own for each
keeps TCP from taking the UNIX socket's place, over which the service is operated."""
_GRACE_S = 0.5
_RETRY_S = 0.1
_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


@attrs.frozen
class ApiAddresses:
    """Where the API answers.

    Attributes:
        socket: The UNIX socket.
        http: ``host:port`` with the true port, or None where TCP is off.
    """

    socket: Path
    http: str | None


async def serve_api(
    service: ServiceHandle,
    *,
    socket: Path,
    listener: Listener | None = None,
    http: str | None = None,
    token: str | None = None,
    task_status: TaskStatus[ApiAddresses] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the API until it is cancelled; ``started()`` gives the addresses.

    On cancellation, nothing new is accepted, event streams are ended, answers under way get
    half a second, and whatever is open then is closed; the socket's file is removed.

    Args:
        service: Where the answers come from.
        socket: The UNIX socket's path; callers need no token there.
        listener: Listening there already (:func:`mdservice.http_api.listeners.unix_listener`); then
            its file is the caller's to remove. Made here where not given.
        http: ``host:port`` to listen on too, port 0 for a free one, or None.
        token: What TCP callers have to send, or None.
        task_status: Told the addresses as soon as callers are taken in.

    Raises:
        SocketInUse: Another service has this path.
        ConfigurationError: The path or the TCP address cannot be used.
    """
    token = token or None
    with ExitStack() as stack:
        unix = listener or stack.enter_context(unix_listener(socket))
        tcp = await tcp_listeners(http, token=token) if http is not None else []
        for bound in tcp:
            stack.enter_context(bound)
        app: App = create_app(service)
        gated = app if token is None else BearerGate(app, token)
        addresses = ApiAddresses(socket, tcp_address(tcp[0]) if tcp else None)
        await serve_apps([(app, [unix]), (gated, tcp)], lambda: task_status.started(addresses))


async def serve_apps(
    served: Sequence[tuple[App, Sequence[Listener]]], started: Callable[[], None]
) -> None:
    """Serve applications until cancelled, then end as :func:`serve_api` does.

    Args:
        served: Each application with where it is listened for; their lifespans are not run.
        started: Called as soon as callers are taken in.
    """
    closing = anyio.Event()
    acceptors = [
        _Acceptor(listener, server_for(app, {"closing": closing}))
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
    connection: Connection | None = None

    def abort(self) -> None:
        if self.connection is not None:
            self.connection.abort()
        self.scope.cancel()


class _Acceptor:
    """Takes callers in at one listener, and knows every open connection."""

    def __init__(self, listener: socket.socket, server: Server) -> None:
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
