"""A small execution gateway: positions and their real-time P&L over HTTP."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import ExitStack
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Final
from urllib.parse import urlsplit

import anyio
from anyio.abc import TaskStatus
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from mdservice.errors import ConfigurationError, PositionsError
from mdservice.gateway.make import make_tracker
from mdservice.gateway.metrics import TrackerCollector
from mdservice.gateway.router import NOT_KNOWN, Answers, tracker_router
from mdservice.gateway.tracker import PnlTracker
from mdservice.http_api.connections import serve_apps
from mdservice.http_api.listeners import tcp_address, tcp_listeners
from mdservice.http_api.requests import App, BearerGate, BodyLimit, OwnPagesOnly
from mdservice.http_api.schemas import METRICS, PositionsAnswer
from mdservice.observability.metrics import metrics_registry, package_version, render_metrics
from mdservice.settings import Settings
from mdservice.settings.parsers import host_and_port, is_loopback

__all__ = ["gateway_app", "gateway_positions", "make_gateway", "serve_gateway"]

_SETTING: Final = "MDSERVICE_GATEWAY_HTTP"
_PORTS: Final = {"http": 80, "https": 443}


def gateway_app(tracker: PnlTracker) -> FastAPI:
    """The gateway's application: the P&L router and the positions."""
    app = FastAPI(
        title="mdservice gateway",
        version=package_version(),
        description="Positions and their real-time P&L.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    answers = Answers(tracker)

    @app.get(
        "/api/v1/positions",
        response_model=PositionsAnswer,
        responses=NOT_KNOWN,
        tags=["positions"],
    )
    async def positions() -> Response:
        """The last known positions."""
        try:
            return Response(await answers.positions(), media_type="application/json")
        except PositionsError as exc:
            return JSONResponse({"detail": str(exc)}, 503)

    @app.get("/health/live", tags=["monitoring"])
    async def live() -> dict[str, bool]:
        """Whether the gateway runs: `{"live": true}`."""
        return {"live": True}

    app.state.metrics = metrics_registry(TrackerCollector(tracker))

    @app.get("/metrics", response_class=Response, responses=METRICS, tags=["monitoring"])
    async def metrics(request: Request) -> Response:
        """The metrics of the gateway for Prometheus, named `mdservice_*`."""
        accept = request.headers.get("accept", "")
        text, content_type = render_metrics(request.app.state.metrics, accept)
        return Response(text, headers={"content-type": content_type})

    app.include_router(tracker_router(tracker))
    return app


def gateway_positions(settings: Settings) -> str:
    """The source of the gateway's positions.

    Raises:
        ConfigurationError: The source is the gateway itself.
    """
    source = settings.gateway_positions or settings.positions
    if source.startswith(("http://", "https://")) and _is_own(source, settings.gateway_http):
        name = "gateway_positions" if settings.gateway_positions else "positions"
        raise ConfigurationError(
            f"{name}: the gateway would ask itself for its positions at {settings.gateway_http}: "
            "set MDSERVICE_GATEWAY_POSITIONS to another source, such as alpaca"
        )
    return source


def _is_own(url: str, http: str) -> bool:
    """Whether the URL leads to this address, in any spelling."""
    parts = urlsplit(url)
    host, port = host_and_port(http)
    if (parts.port or _PORTS[parts.scheme]) != port:
        return False
    local = ipaddress.ip_address("127.0.0.1")
    own = _addresses(host)
    # As a destination, the unspecified address is this machine too.
    asked = {local if a.is_unspecified else a for a in _addresses(parts.hostname or "")}
    if any(address.is_unspecified for address in own):
        own |= _addresses(socket.gethostname())
        return any(address in own or address.is_loopback for address in asked)
    loopback = any(address.is_loopback for address in own)
    return any(address in own or (loopback and address.is_loopback) for address in asked)


def _addresses(host: str) -> set[IPv4Address | IPv6Address]:
    """The addresses of a host name; empty if it is unknown."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)  # noqa: TID251 - at start
    except (OSError, UnicodeError):
        return set()
    addresses = set()
    for *_, socket_address in found:
        address = ipaddress.ip_address(str(socket_address[0]).partition("%")[0])
        addresses.add(getattr(address, "ipv4_mapped", None) or address)
    return addresses


def make_gateway(settings: Settings) -> PnlTracker:
    """The tracker that the gateway serves. It does not connect yet.

    Raises:
        ConfigurationError: It would ask itself for its positions.
    """
    return make_tracker(gateway_positions(settings), settings)


async def serve_gateway(
    tracker: PnlTracker,
    settings: Settings,
    *,
    any_port: bool = False,
    task_status: TaskStatus[str] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the gateway until cancelled; ``started()`` gives its ``host:port``.

    Beyond loopback it requires the API's token, as the API does.

    Args:
        tracker: The tracker to serve; it runs meanwhile.
        settings: The address and the token.
        any_port: Use a free port if the port of the settings is in use.
        task_status: Gets the address when connections are accepted.

    Raises:
        ConfigurationError: It cannot listen there.
    """
    host, _port = host_and_port(settings.gateway_http)
    with ExitStack() as stack:
        listeners = await tcp_listeners(
            settings.gateway_http, token=settings.api_token, setting=_SETTING, any_port=any_port
        )
        for listener in listeners:
            stack.callback(listener.close)
        app: App = BodyLimit(gateway_app(tracker))
        if settings.api_token is not None and not is_loopback(host):
            app = BearerGate(app, settings.api_token)
        else:
            app = OwnPagesOnly(app, settings.gateway_http)
        address = tcp_address(listeners[0])
        async with tracker.running():
            await serve_apps([(app, listeners)], partial(task_status.started, address))
