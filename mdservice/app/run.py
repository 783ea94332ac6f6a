"""The service as a program: ``mdservice run``."""

from __future__ import annotations

import resource
from collections.abc import Callable
from functools import partial

import anyio

from mdservice.app.live_line import LiveLine
from mdservice.app.service import Service, open_service
from mdservice.clock import SystemClock
from mdservice.gateway.make import make_tracker
from mdservice.gateway.risk_observer import RiskObserver
from mdservice.gateway.router import PNL_PATH, Answers
from mdservice.gateway.serve import gateway_positions, make_gateway, serve_gateway
from mdservice.gateway.tracker import PnlTracker
from mdservice.http_api.listeners import unix_listener
from mdservice.http_api.server import ApiAddresses, serve_api
from mdservice.observability.logging import get_logger
from mdservice.observability.masking import mask_url
from mdservice.runtime.network import HttpClient
from mdservice.runtime.stop_signals import stop_on_signal
from mdservice.runtime.systemd import Systemd
from mdservice.settings import Settings
from mdservice.settings.feeds import STREAM_PATHS
from mdservice.settings.parsers import EVERY_HOST, host_and_port

__all__ = ["raise_file_limit", "relay_line", "run_gateway", "serve"]

_log = get_logger(__name__)

_MOST_FILES = 65_536
_CLOSE_S = 1.0


async def serve(
    settings: Settings, *, announce: Callable[[str], None], live_line: LiveLine
) -> None:
    """Run until SIGINT, SIGTERM or SIGHUP, then drain and return; a second signal exits at once.

    The API's socket is taken first. A second service stops there, before it takes the account's
    one connection from the first. The API answers until the shutdown is complete.

    Args:
        settings: The settings of the service.
        announce: Prints one line for the user.
        live_line: Shows counts of quotes and events.

    Raises:
        SocketInUse: Another service has the API's socket.
        MDServiceError: As :func:`mdservice.open_service` does.
    """
    raise_file_limit()
    with unix_listener(settings.socket) as listener:
        async with anyio.create_task_group() as tasks:
            running = anyio.CancelScope()
            await tasks.start(stop_on_signal, running)
            with running:
                # The gateway ends before the service, the API after it.
                async with open_service(settings) as service, anyio.create_task_group() as beside:
                    book = _book(service, settings)
                    account = None if book is None else Answers(book)
                    if book is not None and not _has_gateway(settings):
                        http = HttpClient()
                        beside.start_soon(_close_at_the_end, book, http)
                        observer = RiskObserver(book, service.resolved, SystemClock(), http)
                        account = Answers(book, observer)
                    addresses = await tasks.start(
                        partial(
                            serve_api,
                            service,
                            socket=settings.socket,
                            listener=listener,
                            http=settings.http,
                            token=settings.api_token,
                            account=account,
                            any_port=settings.http_is_default,
                        )
                    )
                    _introduce(service, settings, addresses, announce)
                    beside.start_soon(
                        Systemd().keep_informed,
                        partial(_is_alive, service),
                        partial(_line, service),
                    )
                    totals = None
                    if book is not None and _has_gateway(settings):
                        serve = partial(serve_gateway, book, service.resolved, any_port=True)
                        announce(_pnl_line(await beside.start(serve)))
                        totals = book.totals
                    await live_line.show(service, totals)
            tasks.cancel_scope.cancel()


def _book(service: Service, settings: Settings) -> PnlTracker | None:
    """What the page shows of positions: on the simulator the gateway's own P&L.

    With a real account, or in a standby group, it shows the limits and the breaker, and another
    program, the gateway, trips it. Without positions, None.
    """
    if _has_gateway(settings):
        return make_gateway(service.resolved)
    if settings.positions == "none":
        return None
    return make_tracker("none", service.resolved, judges=False)


def _has_gateway(settings: Settings) -> bool:
    """Whether a gateway runs beside the service; a group has one at most, another program."""
    return settings.simulated and settings.group is None


async def _close_at_the_end(book: PnlTracker, http: HttpClient) -> None:
    try:
        await anyio.sleep_forever()
    finally:
        with anyio.move_on_after(_CLOSE_S, shield=True):
            await book.aclose()
            await http.aclose()


def raise_file_limit() -> None:
    """Let the process open as many files as it may, since each client of the relay is one.

    The usual soft limit, 1,024, is meant for programs that call ``select``.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def run_gateway(settings: Settings, *, announce: Callable[[str], None]) -> None:
    """Run the gateway alone until SIGINT, SIGTERM or SIGHUP.

    Args:
        settings: The settings of the gateway.
        announce: Prints one line for the user.

    Raises:
        ConfigurationError: It would ask itself for positions, or cannot listen.
    """
    async with anyio.create_task_group() as tasks:
        running = anyio.CancelScope()
        await tasks.start(stop_on_signal, running)
        with running:
            async with anyio.create_task_group() as serving:
                book = make_gateway(settings)
                address = await serving.start(serve_gateway, book, settings)
                announce(_pnl_line(address))
                source = gateway_positions(settings)
                shown = f"positions from {_shown_source(source, settings)}"
                announce(shown)
                # The event loop runs, else this would not be asked.
                serving.start_soon(Systemd().keep_informed, lambda: True, lambda: shown)
        tasks.cancel_scope.cancel()


def _is_alive(service: Service) -> bool:
    return service.liveness().ready


def _line(service: Service) -> str:
    """The state for ``systemctl status``."""
    status = service.status()
    reasons = f": {'; '.join(status.reasons)}" if status.reasons else f", symbols: {status.symbols}"
    return f"{status.state}{reasons}"


_MOST_NAMED = 8
"""How many symbols the announcement names."""


def _pnl_line(address: str) -> str:
    return f"p&l    http://{address}{PNL_PATH}"


def _shown_source(source: str, settings: Settings) -> str:
    return f"the service at {settings.socket}" if source == "none" else mask_url(source)


def _introduce(
    service: Service, settings: Settings, addresses: ApiAddresses, announce: Callable[[str], None]
) -> None:
    status = service.status()
    if settings.simulated:
        announce("This is the simulator. For a real account set ALPACA_API_KEY, ALPACA_SECRET_KEY.")
    embedded = " (embedded)" if settings.redis_url is None else ""
    wanted = list(service.subscriptions())
    more = f" and {len(wanted) - _MOST_NAMED} more" if len(wanted) > _MOST_NAMED else ""
    symbols = ", ".join(wanted[:_MOST_NAMED]) or "none yet"
    announce(f"feed   {status.feed.name}: {symbols}{more}")
    if status.standby is not None:
        leads = "leads" if status.standby.leads else f"stands by for {status.standby.leader}"
        announce(f"group  {status.standby.group}: {leads}")
    announce(f"redis  {status.redis.url}{embedded}")
    tcp = f" and http://{addresses.http}" if addresses.http else ""
    announce(f"api    {addresses.socket}{tcp}; ask with `mdservice status`")
    if addresses.http:
        announce(f"page   http://{addresses.http}/")
    relay = relay_line(service.resolved)
    if relay is not None:
        announce(relay)
    if settings.journal is not None:
        announce(f"record {settings.journal}; read it with `mdservice replay` and `export`")


def relay_line(resolved: Settings) -> str | None:
    """What the start says about the relay; None where it is off.

    Args:
        resolved: The settings, with the address where the relay listens.
    """
    if resolved.relay_url is None:
        return None
    path = STREAM_PATHS["stocks"].get(resolved.feed, "/v2/iex")
    host, _port = host_and_port(str(resolved.relay))
    named = ", with this machine's name" if host in EVERY_HOST else ""
    return f"relay  {resolved.relay_url}{path} (the URL for any Alpaca client{named})"
