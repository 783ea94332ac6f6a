"""``mdservice gateway``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from mdservice.cli.failures import announce, use_json_lines
from mdservice.cli.options import settings_from, settings_options
from mdservice.logs import configure_logging

__all__ = ["gateway"]

_EPILOG = """\b
Examples:
  mdservice gateway                                  positions of the running service
  mdservice gateway --gateway-positions alpaca       those of the Alpaca account
  mdservice gateway --gateway-positions file:positions.json --gateway-http 127.0.0.1:9000
  curl http://127.0.0.1:8002/api/v1/positions/pnl/realtime

\b
Prices come from Redis: --redis-url, else that of the service at --socket.
"""


@click.command(epilog=_EPILOG, short_help="Positions and real-time P&L over HTTP.")
@settings_options()
@click.pass_context
def gateway(ctx: click.Context, /, config: Path | None, **flags: str | None) -> None:
    """A small execution gateway: positions and their real-time P&L over HTTP.

    An existing gateway mounts the same routes: mdservice.gateway.pnl_router.
    """
    use_json_lines(ctx, config, flags)
    settings = settings_from(ctx, config, flags)
    import anyio

    from mdservice.run import run_gateway

    configure_logging(settings.log_format)
    anyio.run(partial(run_gateway, settings, announce=announce), backend="trio")
