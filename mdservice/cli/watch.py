"""``mdservice watch``."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mdservice.cli.options import settings_from, settings_options

if TYPE_CHECKING:
    from mdservice.watch.loop import Watcher

__all__ = ["watch"]

_EPILOG = """\b
Examples:
  mdservice watch                 all positions and prices of the running service
  mdservice watch AAPL MSFT       only these
  mdservice watch --once          the table once, for scripts
  mdservice watch | grep AAPL     plain lines, one for each change

\b
Positions are those of the service at --socket, or --gateway-positions; prices
come from its Redis, or --redis-url.
"""


@click.command(epilog=_EPILOG, short_help="Live prices and P&L in the terminal.")
@click.argument("symbols", nargs=-1, metavar="[SYM]...")
@click.option("--once", is_flag=True, help="Show the table once and end.")
@settings_options(
    "socket",
    "redis_url",
    "positions",
    "gateway_positions",
    "positions_interval",
    "stale_after",
    "price_ttl",
    "feed",
    "trading_url",
)
@click.pass_context
def watch(
    ctx: click.Context,
    /,
    config: Path | None,
    symbols: tuple[str, ...],
    once: bool,  # noqa: FBT001 - click's callback
    **flags: str | None,
) -> None:
    """Live prices and P&L in the terminal, of positions and of all other symbols.

    Without a terminal it prints a line for each change, once a second at most.
    """
    settings = settings_from(ctx, config, flags)
    import anyio
    from rich.console import Console

    from mdservice.actors.groups import leaves
    from mdservice.clock import SystemClock
    from mdservice.gateway.serve import make_gateway
    from mdservice.model.symbol import parse_symbols
    from mdservice.watch.loop import Watcher

    chosen = parse_symbols(symbols)
    if settings.redis_url is None:
        from mdservice.api_client import ask

        ask(settings.socket, "GET", "/health/live")  # NoAnswer says what to do
    watcher = Watcher(make_gateway(settings), settings, chosen, Console(), SystemClock())
    nobody_reads: BaseException | None = None
    try:
        anyio.run(partial(_until_signal, watcher, once=once), backend="trio")
    except* BrokenPipeError as group:
        nobody_reads = next(leaves(group))
    if nobody_reads is not None:
        raise nobody_reads  # click ends quietly


async def _until_signal(watcher: Watcher, *, once: bool) -> None:
    """Ctrl-C is how it ends; a pipe that nobody reads is no failure either."""
    import anyio

    async with anyio.create_task_group() as tasks:

        async def end_on_signal() -> None:
            with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async for _signal in signals:
                    tasks.cancel_scope.cancel()

        tasks.start_soon(end_on_signal)
        await watcher.run(once=once)
        tasks.cancel_scope.cancel()
