"""The commands that ask a running service: health, status, subscribe, unsubscribe."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import click

from mdservice.cli.options import FAILED, settings_from, settings_options
from mdservice.client.http import Answer, NoAnswer, ask
from mdservice.errors import InvalidChannel, InvalidSymbol, MDServiceError
from mdservice.model.feeds import CHANNELS, parse_channels
from mdservice.model.symbol import pair_without_slash, parse_symbols
from mdservice.observability.masking import printable

__all__ = ["WIDTH", "health", "status", "status_lines", "subscribe", "unsubscribe"]

WIDTH = 80
_LABEL = 10
_CELL = 36
_SHOWN = 8
_CLIENTS_SHOWN = 40
_COLOURS = {"running": "green", "starting": "yellow", "degraded": "red", "draining": "yellow"}
_MINUTE_S = 60
_HOUR_S = 3_600
_DAY_S = 86_400
_NO_ANSWER = 2
_HEALTH_TIMEOUT_S = 3.0
_API = "/api/v1/market-data"


@click.command(
    short_help="Say whether the service is ready.",
    epilog="\b\nExample, for a container:\n  HEALTHCHECK CMD mdservice health\n",
)
@settings_options("socket")
@click.pass_context
def health(ctx: click.Context, config: Path | None, socket: str | None) -> None:
    """Say in one line whether the service is ready.

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
        click.echo(printable(f"no answer: {exc}"))
        ctx.exit(_NO_ANSWER)
    state = "alive but not ready" if live.ok else "not well"
    click.echo(printable(f"{state}: {_reasons(ready if live.ok else live)}"))
    ctx.exit(FAILED)


def _reasons(answer: Answer) -> str:
    reasons = answer.content.get("reasons")
    if isinstance(reasons, list) and reasons:
        return "; ".join(str(reason) for reason in reasons)
    return answer.reason


@click.command(
    short_help="Show the status of the service.",
    epilog="\b\nExamples:\n  mdservice status\n  mdservice status --json | jq .counters\n",
)
@click.option("--json", "as_json", is_flag=True, help="Everything, as one JSON object.")
@settings_options("socket")
@click.pass_context
def status(ctx: click.Context, config: Path | None, socket: str | None, *, as_json: bool) -> None:
    """Show the state, the actors, the channels, the counters and the latencies."""
    answer = ask(settings_from(ctx, config, {"socket": socket}).socket, "GET", "/status")
    if not answer.ok:
        raise MDServiceError(f"the service refused to report its status: {answer.reason}")
    if as_json:
        click.echo(json.dumps(answer.content, indent=2))
        return

    for line in status_lines(answer.content):
        click.echo(line)


_channels_option = click.option(
    "--channels",
    metavar="NAME,NAME",
    help=f"Channels, with commas between: {', '.join(CHANNELS)}.",
)


@click.command(
    short_help="Subscribe to symbols.",
    epilog="\b\nExamples:\n  mdservice subscribe AAPL BTC/USD\n  mdservice subscribe '*'\n"
    "  mdservice subscribe AAPL --channels quotes,trades\n",
)
@click.argument("symbols", metavar="SYM...", nargs=-1, required=True)
@_channels_option
@settings_options("socket")
@click.pass_context
def subscribe(
    ctx: click.Context,
    config: Path | None,
    socket: str | None,
    symbols: tuple[str, ...],
    channels: str | None,
) -> None:
    """Subscribe to symbols while the service runs: to all of them, or to none.

    Without --channels, to the channels of the service's settings.
    """
    path = settings_from(ctx, config, {"socket": socket}).socket
    for symbol in _change(path, "subscribe", symbols, channels):
        if pair := pair_without_slash(symbol):
            click.echo(
                f"note: {symbol} is taken for a stock's symbol; the crypto pair is {pair}: "
                f"mdservice subscribe {pair}",
                err=True,
            )


@click.command(
    short_help="Unsubscribe from symbols.",
    epilog="\b\nExamples:\n  mdservice unsubscribe MSFT\n"
    "  mdservice unsubscribe AAPL --channels trades\n",
)
@click.argument("symbols", metavar="SYM...", nargs=-1, required=True)
@_channels_option
@settings_options("socket")
@click.pass_context
def unsubscribe(
    ctx: click.Context,
    config: Path | None,
    socket: str | None,
    symbols: tuple[str, ...],
    channels: str | None,
) -> None:
    """Unsubscribe from symbols, or with --channels from some of their channels.

    Symbols of open positions stay subscribed.
    """
    path = settings_from(ctx, config, {"socket": socket}).socket
    _change(path, "unsubscribe", symbols, channels)


def _change(path: Path, call: str, given: tuple[str, ...], channels: str | None) -> tuple[str, ...]:
    """Make the call and print its answer; return the symbols that were given."""
    texts = [text for argument in given for text in argument.split(",") if text.strip()]
    try:
        symbols = parse_symbols(texts)
    except InvalidSymbol as exc:
        raise click.BadParameter(str(exc), param_hint="SYM") from exc
    if not symbols:
        raise click.BadParameter("no symbol was given", param_hint="SYM")
    body: dict[str, Any] = {"symbols": symbols}
    if channels is not None:
        body["channels"] = _named(channels)
    answer = ask(path, "POST", f"{_API}/{call}", body, timeout_s=30.0)
    if not answer.ok:
        raise MDServiceError(f"{call} failed: {answer.reason}")
    done = answer.content.get("status", call)
    later = " (the feed is down: done when it is back)" if done == "pending" else ""
    click.echo(f"{done}: {', '.join(answer.content.get('symbols', symbols))}{later}")
    return symbols


def _named(channels: str) -> tuple[str, ...]:
    try:
        named = parse_channels(text for text in channels.split(",") if text.strip())
    except InvalidChannel as exc:
        raise click.BadParameter(str(exc), param_hint="--channels") from exc
    if not named:
        raise click.BadParameter("no channel was given", param_hint="--channels")
    return named


def _printable(value: Any) -> Any:
    """The same without what could steer the terminal, in any text."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable(str(name)): _printable(inner) for name, inner in value.items()}
    return list(map(_printable, value)) if isinstance(value, list | tuple) else value


def status_lines(status: Mapping[str, Any]) -> Iterator[str]:
    """``/status`` as a table for people, line by line.

    It has terminal colours, which ``click.echo`` takes off elsewhere.

    A value that a newer or older service does not have is shown as ``-``.
    """
    status = _printable(status)
    state = str(status.get("state", "-"))
    told = click.style(state, fg=_COLOURS.get(state), bold=True)
    up = _duration(status.get("uptime_s"))
    yield f"{'service':<{_LABEL}}{told}, up {up}, {_number(status.get('symbols'))} symbols"
    if status.get("simulator"):
        yield from _row("", "simulated prices: no real account is in use")
    if status.get("stale_symbols"):
        yield from _row("", f"{_number(status['stale_symbols'])} symbols have a stale price")
    for reason in status.get("reasons") or ():
        yield from _row("", str(reason))
    yield from _feed("feed", _part(status, "feed"))
    for name, feed in _part(status, "feeds").items():
        if name != "stocks" and isinstance(feed, Mapping) and _is_used(feed):
            yield from _feed(str(name), feed)
    yield from _redis(_part(status, "redis"))
    yield from _positions(_part(status, "positions"))
    relay = _part(status, "relay")
    clients = [each for each in relay.get("clients") or () if isinstance(each, Mapping)]
    yield from _relay(relay, len(clients))
    yield from _journal(_part(status, "journal"))
    yield from _latencies(_part(status, "latency_ms"))
    yield ""
    yield from _counters(_part(status, "counters"))
    yield ""
    yield from _actors(_part(status, "actors"))
    if clients:
        yield ""
        yield from _relay_clients(clients)


def _is_used(feed: Mapping[str, Any]) -> bool:
    """Whether something of a feed is wanted; the others are not connected."""
    return bool(feed.get("wanted") or feed.get("connected"))


def _feed(label: str, feed: Mapping[str, Any]) -> Iterator[str]:
    connected = "connected" if feed.get("connected") else "not connected"
    parts = [
        f"{feed.get('name', '-')} by {feed.get('driver', '-')}",
        connected,
        f"{_number(feed.get('reconnects'))} reconnects",
    ]
    phase = feed.get("phase")
    if phase and phase not in ("streaming", connected):
        parts.insert(2, str(phase).replace("_", " "))
    yield from _row(label, ", ".join(parts))
    if feed.get("last_error"):
        yield from _row("", f"last error: {feed['last_error']}")
    left_out = _part(feed, "left_out")
    for reason in dict.fromkeys(left_out.values()):
        symbols = ", ".join(str(one) for one in left_out if left_out[one] == reason)
        yield from _row("", f"left out: {symbols} ({reason})")
    for symbol, reason in list(_part(feed, "repairs_refused").items())[:_SHOWN]:
        yield from _row("", f"no repairs of {symbol}: {reason}")
    if feed.get("repair_error"):
        yield from _row("", f"no repairs: {feed['repair_error']}")
    if feed.get("without_quotes"):
        yield from _row("", _silent(feed))
    if frozen_s := feed.get("times_frozen_s"):
        yield from _row("", f"quotes come, but their times have stood still for {_age(frozen_s)}")


def _silent(feed: Mapping[str, Any]) -> str:
    shown = _names(feed.get("without_quotes_first") or ())
    return f"{_number(feed['without_quotes'])} symbols have had no quote yet: {shown}"


def _redis(redis: Mapping[str, Any]) -> Iterator[str]:
    connected = "connected" if redis.get("connected") else "not connected"
    backlog = redis.get("backlog")
    waiting = f", {_number(backlog)} events waiting" if backlog else ""
    yield from _row("redis", f"{connected}{waiting}, {redis.get('url', '-')}")
    if redis.get("last_error"):
        yield from _row("", f"last error: {redis['last_error']}")
    if redis.get("command_errors"):
        failed = f"{_number(redis['command_errors'])} commands failed inside writes"
        yield from _row("", f"{failed}: {redis.get('last_command_error')}")


def _positions(positions: Mapping[str, Any]) -> Iterator[str]:
    if not positions:
        return
    told = positions.get("age_s")
    when = "not known yet" if told is None else f"updated {_age(told)} ago"
    held, followed = _number(positions.get("held")), _number(positions.get("followed"))
    source = positions.get("source", "-")
    yield from _row("positions", f"{held} held, {followed} symbols subscribed, {when}, {source}")
    if positions.get("last_error"):
        yield from _row("", f"last error: {positions['last_error']}")
    left_out = positions.get("left_out") or ()
    if left_out:
        yield from _row("", f"not subscribed, the feed allows no more: {_names(left_out)}")
    for symbol, problem in list(_part(positions, "problems").items())[:_SHOWN]:
        yield from _row("", f"{symbol}: {problem}")


def _relay(relay: Mapping[str, Any], clients: int) -> Iterator[str]:
    if not relay:
        return
    connected = f"{_number(clients)} client{'s' * (clients > 1)}" if clients else "no clients"
    totals = f"{_number(relay.get('messages'))} messages, {_number(relay.get('conflated'))} "
    totals += f"conflated, {_number(relay.get('cut'))} cut off"
    yield from _row("relay", f"{relay.get('address', '-')}, {connected}, {totals}")


def _journal(journal: Mapping[str, Any]) -> Iterator[str]:
    if not journal:
        return
    size = journal.get("bytes")
    megabytes = f"{size / 1e6:,.1f}" if isinstance(size, (int, float)) else "-"
    yield from _row(
        "journal",
        f"{journal.get('folder', '-')}, {_number(journal.get('written'))} messages, "
        f"{megabytes} MB, {_number(journal.get('dropped'))} dropped",
    )


def _relay_clients(clients: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each client, those with the largest backlog first."""
    yield f"{'client':<21}{'address':<22}{'stream':<13}{'pairs':>7}{'rate/s':>9}{'waiting':>8}"
    slowest = sorted(clients, key=lambda client: -int(client.get("backlog") or 0))
    for client in slowest[:_CLIENTS_SHOWN]:
        stream = str(client.get("path", "-")).split("/", 2)[-1]  # without the version
        yield (
            f"{_cut_name(str(client.get('name', '-')), 20):<21}"
            f"{_cut(str(client.get('address', '-')), 21):<22}"
            f"{_cut(stream, 12):<13}"
            f"{_number(client.get('symbols')):>7}"
            f"{_rate(client.get('rate')):>9}"
            f"{_number(client.get('backlog')):>8}"
        )
        if client.get("conflated"):
            yield from _row("", f"slow: {_number(client['conflated'])} messages conflated")
    if len(clients) > _CLIENTS_SHOWN:
        more = len(clients) - _CLIENTS_SHOWN
        yield from _row("", f"and {_number(more)} more; mdservice status --json has all of them")


def _rate(rate: object) -> str:
    if not isinstance(rate, (int, float)):
        return "-"
    return f"{rate:,.1f}" if rate < 1_000 else f"{rate:,.0f}"  # noqa: PLR2004 - enough digits


def _names(symbols: Sequence[Any]) -> str:
    return ", ".join(map(str, symbols[:_SHOWN])) + (", …" if len(symbols) > _SHOWN else "")


def _latencies(latencies: Mapping[str, Any]) -> Iterator[str]:
    label = "latency"
    for name in ("feed_to_redis", "receive_to_redis", "feed_to_receive"):
        numbers = _part(latencies, name)
        told = "".join(f"  {key} {_ms(numbers.get(key)):>9}" for key in ("p50", "p99", "max"))
        yield f"{label:<{_LABEL}}{name.replace('_', ' '):<17}{told}"
        label = ""


def _counters(counters: Mapping[str, Any]) -> Iterator[str]:
    cells = [
        f"{name} {_number(value):>{_CELL - 1 - len(name)}}" for name, value in counters.items()
    ]
    for left, right in zip_longest(cells[::2], cells[1::2], fillvalue=""):
        yield f"{left}    {right}".rstrip()


def _actors(actors: Mapping[str, Any]) -> Iterator[str]:
    yield f"{'actor':<26}{'state':<12}{'restarts':>9}{'heartbeat':>12}{'inbox':>20}"
    for name, actor in actors.items():
        inbox = _part(actor, "inbox")
        used = f"{_number(inbox.get('used'))}/{_number(inbox.get('size'))}"
        heartbeat = _age(actor.get("heartbeat_age_s"))
        yield (
            f"{_cut(str(name), 25):<26}{_cut(str(actor.get('state', '-')), 11):<12}"
            f"{_number(actor.get('restarts')):>9}{heartbeat:>12}{used:>20}"
        ).rstrip()
        if actor.get("last_error"):
            yield from _row("", f"last error: {actor['last_error']}")


def _row(label: str, text: str) -> Sequence[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        WIDTH,
        initial_indent=f"{label:<{_LABEL}}",
        subsequent_indent=" " * _LABEL,
    )


def _part(status: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = status.get(name)
    return part if isinstance(part, Mapping) else {}


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _cut_name(name: str, width: int) -> str:
    """A client's name, cut in front of the number at its end."""
    if len(name) <= width:
        return name
    number = "".join(name.rpartition(" (")[1:])[: width // 2]
    return f"{name[: width - 1 - len(number)]}…{number}"


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else "-" if value is None else str(value)


def _ms(value: object) -> str:
    if not isinstance(value, (int, float)):
        return "-"
    return f"{value:,.2f} ms" if value < 1_000 else f"{value / 1_000:,.1f} s"  # noqa: PLR2004 - milliseconds in a second


def _age(seconds: object) -> str:
    if isinstance(seconds, (int, float)) and seconds < _MINUTE_S:
        return f"{seconds:.1f} s"
    return _duration(seconds)


def _duration(seconds: object) -> str:
    if not isinstance(seconds, (int, float)):
        return "-"
    whole = int(seconds)
    if whole < _MINUTE_S:
        return f"{whole} s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min {whole % _MINUTE_S} s"
    if whole < _DAY_S:
        return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S} min"
    return f"{whole // _DAY_S} d {whole % _DAY_S // _HOUR_S} h"
