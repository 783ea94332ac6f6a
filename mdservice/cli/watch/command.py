"""``mdservice watch``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from mdservice.cli.options import FAILED, run_async, settings_from, settings_options
from mdservice.errors import InvalidSymbol
from mdservice.model.symbol import EVERY_SYMBOL, parse_symbols
from mdservice.settings import Settings

__all__ = ["watch"]

_EPILOG = """\b
Examples:
  mdservice watch                      all positions, then all other prices
  mdservice watch AAPL MSFT            these two, held or not
  mdservice watch | grep AAPL          lines of text, one for each change
  mdservice watch --once               the table once, for scripts
  mdservice watch --redis-url redis://prices:6379 --positions file:positions.json

\b
Without flags, Redis and the positions are those of the service at --socket.
With --once, exit code 1 means that the prices shown may be out of date.
"""


@click.command(epilog=_EPILOG, short_help="Show live prices and P&L in the terminal.")
@click.argument("shown", metavar="[SYM]...", nargs=-1)
@click.option("--once", is_flag=True, help="Show the table once and exit.")
@settings_options()
@click.pass_context
def watch(
    ctx: click.Context,
    /,
    config: Path | None,
    shown: tuple[str, ...],
    *,
    once: bool,
    **flags: str | None,
) -> None:
    """Show live prices and P&L of a running service in the terminal.

    Positions come first, the largest at the top, with their sums, the limits and the breaker. The
    arrow keys, PgUp, PgDn, Home and End scroll, s sorts by the next column, r reverses the order, q
    or Ctrl-C ends it. Limits are those of the settings; without any, those of the gateway.
    """
    chosen = _symbols((*shown, flags.get("symbols") or ""))
    settings = settings_from(ctx, config, flags)
    try:
        well = _run(settings, chosen, once=once)
    except KeyboardInterrupt:  # before the event loop handles it
        return
    if once and not well:
        ctx.exit(FAILED)


def _run(settings: Settings, chosen: tuple[str, ...], *, once: bool) -> bool:
    from mdservice.cli.watch.show import watch as show

    return run_async(partial(show, settings, chosen, once=once))


def _symbols(given: tuple[str, ...]) -> tuple[str, ...]:
    """The symbols to show; empty for all."""
    try:
        symbols = parse_symbols(t for text in given for t in text.split(",") if t.strip())
    except InvalidSymbol as exc:
        raise click.BadParameter(str(exc), param_hint="SYM") from exc
    return () if EVERY_SYMBOL in symbols else symbols
