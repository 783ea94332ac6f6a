"""``mdservice run``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from mdservice.cli.failures import announce, use_json_lines
from mdservice.cli.options import settings_from, settings_options
from mdservice.logs import configure_logging

__all__ = ["run"]

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

    from mdservice.live_line import LiveLine
    from mdservice.run import serve

    live_line = LiveLine(redrawn=not as_json)
    configure_logging(settings.log_format, stream=live_line)
    anyio.run(partial(serve, settings, announce=announce, live_line=live_line), backend="trio")
