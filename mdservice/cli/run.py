"""``mdservice run``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from mdservice.cli.options import announce, settings_from, settings_options, use_json_lines
from mdservice.observability.logging import configure_logging

__all__ = ["gateway", "run"]


# ``mdservice gateway``.


_GATEWAY_EPILOG = """\b
Examples:
  mdservice gateway                                  positions of the running service
  mdservice gateway --gateway-positions alpaca       those of the Alpaca account
  mdservice gateway --gateway-positions file:positions.json --gateway-http 127.0.0.1:9000
  curl http://127.0.0.1:8002/api/v1/positions/pnl/realtime

\b
Prices come from Redis: --redis-url, else that of the service at --socket.
"""


@click.command(epilog=_GATEWAY_EPILOG, short_help="Positions and real-time P&L over HTTP.")
@settings_options()
@click.pass_context
def gateway(ctx: click.Context, /, config: Path | None, **flags: str | None) -> None:
    """A small execution gateway: positions and their real-time P&L over HTTP.

    An existing gateway mounts the same routes: mdservice.gateway.pnl_router.
    """
    use_json_lines(ctx, config, flags)
    settings = settings_from(ctx, config, flags)
    import anyio

    from mdservice.app.run import run_gateway

    configure_logging(settings.log_format)
    anyio.run(partial(run_gateway, settings, announce=announce), backend="trio")


_EPILOG = """\b
Examples:
  mdservice run
  MDSERVICE_FEED=test ALPACA_API_KEY=… ALPACA_SECRET_KEY=… \\
    mdservice run --symbols FAKEPACA
  mdservice run --symbols AAPL,MSFT --redis-url redis://localhost:6379

\b
Keys, secrets and the API token have no flags: set ALPACA_API_KEY,
ALPACA_SECRET_KEY and MDSERVICE_API_TOKEN, or put them into the file.
Ctrl-C, SIGTERM or SIGHUP drains and ends; a second one ends at once.
"""


@click.command(epilog=_EPILOG, short_help="Run the service.")
@settings_options()
@click.pass_context
def run(ctx: click.Context, /, config: Path | None, **flags: str | None) -> None:
    """Run the service: the feed's quotes into Redis, and the HTTP API.

    With nothing set, the feed is a simulator and Redis an embedded server.
    """
    as_json = use_json_lines(ctx, config, flags)
    settings = settings_from(ctx, config, flags)
    settings.require_runnable()
    import anyio

    from mdservice.app.live_line import LiveLine
    from mdservice.app.run import serve

    live_line = LiveLine(redrawn=not as_json)
    configure_logging(settings.log_format, stream=live_line)
    anyio.run(partial(serve, settings, announce=announce, live_line=live_line), backend="trio")
