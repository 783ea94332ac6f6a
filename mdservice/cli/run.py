"""``mdservice run``."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path

import click

from mdservice.cli.options import settings_from, settings_options
from mdservice.logs import configure_logging, masked

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
    settings = settings_from(ctx, config, flags)
    settings.require_runnable()
    import anyio

    from mdservice.live_line import LiveLine
    from mdservice.run import serve

    live_line = LiveLine()
    configure_logging(settings.log_format, stream=live_line)
    anyio.run(partial(serve, settings, announce=_announce, live_line=live_line), backend="trio")


def _announce(line: str) -> None:
    """Tell the person at the terminal; that nobody reads any more does not end the service."""
    with contextlib.suppress(OSError, ValueError):
        click.echo(masked(line))
