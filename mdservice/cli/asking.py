"""The commands that ask a running service: health, status, subscribe, unsubscribe."""

from __future__ import annotations

import json
from pathlib import Path

import click

from mdservice.api_client import Answer, NoAnswer, ask
from mdservice.cli.failures import FAILED
from mdservice.cli.options import settings_from, settings_options
from mdservice.errors import InvalidSymbol, MDServiceError
from mdservice.model.symbol import parse_symbols

__all__ = ["health", "status", "subscribe", "unsubscribe"]

_NO_ANSWER = 2
_HEALTH_TIMEOUT_S = 3.0
_API = "/api/v1/market-data"


@click.command(
    short_help="Say whether the service can be relied on.",
    epilog="\b\nExample, for a container:\n  HEALTHCHECK CMD mdservice health\n",
)
@settings_options("socket")
@click.pass_context
def health(ctx: click.Context, config: Path | None, socket: str | None) -> None:
    """Say in one line whether the service can be relied on.

    Exit code 0: ready. 1: alive, but not ready. 2: no answer.
    """
    path = settings_from(ctx, config, {"socket": socket}).socket
    try:
        ready = ask(path, "GET", "/health/ready", timeout_s=_HEALTH_TIMEOUT_S)
        if ready.ok:
            click.echo("ready")
            return
        live = ask(path, "GET", "/health/live", timeout_s=_HEALTH_TIMEOUT_S)
    except NoAnswer as exc:
        click.echo(f"no answer: {exc}")
        ctx.exit(_NO_ANSWER)
    state = "alive but not ready" if live.ok else "not well"
    click.echo(f"{state}: {_reasons(ready if live.ok else live)}")
    ctx.exit(FAILED)


def _reasons(answer: Answer) -> str:
    reasons = answer.content.get("reasons")
    if isinstance(reasons, list) and reasons:
        return "; ".join(str(reason) for reason in reasons)
    return answer.reason


@click.command(
    short_help="Show how the service is doing.",
    epilog="\b\nExamples:\n  mdservice status\n  mdservice status --json | jq .counters\n",
)
@click.option("--json", "as_json", is_flag=True, help="Everything, as one JSON object.")
@settings_options("socket")
@click.pass_context
def status(ctx: click.Context, config: Path | None, socket: str | None, *, as_json: bool) -> None:
    """Show the state, the actors, the channels, the counters and the latencies."""
    answer = ask(settings_from(ctx, config, {"socket": socket}).socket, "GET", "/status")
    if not answer.ok:
        raise MDServiceError(f"the service refused to tell its status: {answer.reason}")
    if as_json:
        click.echo(json.dumps(answer.content, indent=2))
        return
    from mdservice.cli.status_table import status_lines

    for line in status_lines(answer.content):
        click.echo(line)


@click.command(
    short_help="Ask the feed for symbols.",
    epilog="\b\nExamples:\n  mdservice subscribe AAPL MSFT\n  mdservice subscribe '*'\n",
)
@click.argument("symbols", metavar="SYM...", nargs=-1, required=True)
@settings_options("socket")
@click.pass_context
def subscribe(
    ctx: click.Context, config: Path | None, socket: str | None, symbols: tuple[str, ...]
) -> None:
    """Ask the feed for symbols while the service runs: all of them, or none."""
    path = settings_from(ctx, config, {"socket": socket}).socket
    _change(path, "subscribe", symbols)


@click.command(
    short_help="Take symbols back.", epilog="\b\nExample:\n  mdservice unsubscribe MSFT\n"
)
@click.argument("symbols", metavar="SYM...", nargs=-1, required=True)
@settings_options("socket")
@click.pass_context
def unsubscribe(
    ctx: click.Context, config: Path | None, socket: str | None, symbols: tuple[str, ...]
) -> None:
    """Take back what was subscribed to; what positions want stays."""
    path = settings_from(ctx, config, {"socket": socket}).socket
    _change(path, "unsubscribe", symbols)


def _change(path: Path, call: str, given: tuple[str, ...]) -> None:
    texts = [text for argument in given for text in argument.split(",") if text.strip()]
    try:
        symbols = parse_symbols(texts)
    except InvalidSymbol as exc:
        raise click.BadParameter(str(exc), param_hint="SYM") from exc
    if not symbols:
        raise click.BadParameter("no symbol was given", param_hint="SYM")
    answer = ask(path, "POST", f"{_API}/{call}", {"symbols": symbols}, timeout_s=30.0)
    if not answer.ok:
        raise MDServiceError(f"{call} failed: {answer.reason}")
    done = answer.content.get("status", call)
    later = " (the feed is away: done when it is back)" if done == "pending" else ""
    click.echo(f"{done}: {', '.join(answer.content.get('symbols', symbols))}{later}")
