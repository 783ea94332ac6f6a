"""``mdservice check``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mdservice.cli.options import (
    CONFIGURATION,
    FAILED,
    run_async,
    settings_from,
    settings_options,
)
from mdservice.observability.logging import masked
from mdservice.observability.masking import printable

if TYPE_CHECKING:
    from mdservice.cli.checks import CheckResult

__all__ = ["check"]

_COLOURS = {"ok": "green", "warn": "yellow", "FAIL": "red", "skip": "yellow"}
_EPILOG = """\b
Examples:
  mdservice check
  mdservice check --feed sip --config /etc/mdservice.toml
"""


@click.command(epilog=_EPILOG, short_help="Test every setting; say what is wrong.")
@settings_options()
@click.pass_context
def check(ctx: click.Context, /, config: Path | None, **flags: str | None) -> None:
    """Test every setting, and say what is wrong and how to fix it.

    Connects to the feed, the REST APIs, Redis and the source of positions. While a service runs at
    the socket, connects to its relay and not to the feed.
    """
    settings = settings_from(ctx, config, flags)
    settings.require_runnable()

    from mdservice.cli.checks import run_checks

    results = run_async(partial(run_checks, settings, show=_show, waiting=_waiting))
    failed = [result for result in results if result.outcome == "FAIL"]
    if not failed:
        return
    ctx.exit(CONFIGURATION if any(result.configuration for result in failed) else FAILED)


def _show(result: CheckResult) -> None:
    outcome = click.style(f"{result.outcome:<5}", fg=_COLOURS[result.outcome])
    advice = f" → {result.advice}" if result.advice else ""
    text = " ".join(f"{result.detail}{advice}".split())
    click.echo(f"{outcome} {result.name:<12} {printable(masked(text))}")


def _waiting(name: str, limit_s: float) -> None:
    """Print to stderr, since stdout has one line for each check."""
    click.echo(f"...   {name:<12} still waiting for an answer, {limit_s:g} s at most", err=True)
