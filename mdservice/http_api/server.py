"""The application of the API, served on the UNIX socket and optionally over TCP."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from socket import socket as Socket  # noqa: N812 - :func:`serve_api` names the path ``socket``

import anyio
import attrs
from anyio.abc import TaskStatus
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from mdservice.errors import InvalidChannel, InvalidSymbol, MDServiceError, SubscriptionRefused
from mdservice.http_api import market_data, monitoring, page
from mdservice.http_api.connections import serve_apps
from mdservice.http_api.handle import ServiceHandle
from mdservice.http_api.listeners import tcp_address, tcp_listeners, unix_listener
from mdservice.http_api.page import Account
from mdservice.http_api.requests import App, BearerGate, BodyLimit, OwnPagesOnly
from mdservice.observability.metrics import StatusCollector, metrics_registry, package_version

__all__ = ["ApiAddresses", "create_app", "serve_api"]


_DESCRIPTION = """Market data of one Alpaca account, shared with all programs.

The UNIX socket needs no token. Over TCP, if a token is set, every call except the two health calls
needs `Authorization: Bearer <token>`."""


def create_app(service: ServiceHandle, account: Account | None = None) -> FastAPI:
    """The HTTP API of a running service.

    ``/openapi.json`` describes it. There is no page at ``/docs``, because FastAPI's page loads
    scripts from another host, which a trading machine should not do.

    Args:
        service: The service that is served.
        account: The positions and limits that the page at ``/`` shows, or None.
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
    app.state.account = account
    app.state.metrics = metrics_registry(StatusCollector(service.status))
    app.include_router(monitoring.router)
    app.include_router(market_data.router)
    app.include_router(monitoring.positions_router)
    app.include_router(page.router)
    app.add_exception_handler(InvalidSymbol, _invalid)
    app.add_exception_handler(InvalidChannel, _invalid)
    app.add_exception_handler(RequestValidationError, _invalid_parameter)
    app.add_exception_handler(SubscriptionRefused, _refused)
    app.add_exception_handler(MDServiceError, _unavailable)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(BodyLimit)
    return app


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    return _problem(422, str(error))


async def _invalid_parameter(_request: Request, error: Exception) -> JSONResponse:
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {}
    place = ".".join(str(part) for part in first.get("loc", ())[1:])
    return _problem(422, f"{place}: {first.get('msg', 'not valid')}")


async def _refused(_request: Request, error: Exception) -> JSONResponse:
    return _problem(409, str(error))


async def _unavailable(_request: Request, error: Exception) -> JSONResponse:
    return _problem(503, str(error))


async def _failed(_request: Request, _error: Exception) -> JSONResponse:
    return _problem(500, "the service failed on this request: see its log for the reason")


def _problem(status: int, detail: str) -> JSONResponse:
    return JSONResponse({"detail": detail}, status)


@attrs.frozen
class ApiAddresses:
    """The addresses of the API.

    Attributes:
        socket: The UNIX socket.
        http: ``host:port`` with the real port, or None without TCP.
    """

    socket: Path
    http: str | None


async def serve_api(
    service: ServiceHandle,
    *,
    socket: Path,
    listener: Socket | None = None,
    http: str | None = None,
    token: str | None = None,
    account: Account | None = None,
    any_port: bool = False,
    task_status: TaskStatus[ApiAddresses] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the API until it is cancelled; ``started()`` gives the addresses.

    When cancelled, it accepts no new connections and ends event streams. Answers in progress get
    half a second; then all connections are closed, and the socket's file is removed.

    Args:
        service: The service that is served.
        socket: The path of the UNIX socket, which needs no token.
        listener: A socket that already listens there
            (:func:`mdservice.http_api.listeners.unix_listener`); the caller then removes its file.
        http: ``host:port`` to listen on too, port 0 for a free one, or None.
        token: The token that TCP clients must send, or None.
        account: The positions and limits that the page shows, or None.
        any_port: Use a free port if the port of ``http`` is in use.
        task_status: Gets the addresses when connections are accepted.

    Raises:
        SocketInUse: Another service has this path.
        ConfigurationError: The path or the TCP address cannot be used.
    """
    token = token or None
    with ExitStack() as stack:
        unix = listener or stack.enter_context(unix_listener(socket))
        tcp = []
        if http is not None:
            tcp = await tcp_listeners(http, token=token, any_port=any_port)
        for bound in tcp:
            stack.enter_context(bound)
        app = create_app(service, account)
        gated: App = OwnPagesOnly(app, http or "") if token is None else BearerGate(app, token)
        addresses = ApiAddresses(socket, tcp_address(tcp[0]) if tcp else None)
        served: list[tuple[App, list[Socket]]] = [(app, [unix]), (gated, tcp)]
        await serve_apps(served, lambda: task_status.started(addresses))
