"""``/status`` as lines of at most 80 columns for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import click

__all__ = ["WIDTH", "status_lines"]

WIDTH = 80
_LABEL = 10
_SHOWN = 8
_COLOURS = {"running": "green", "starting": "yellow", "degraded": "red", "draining": "yellow"}
_MINUTE_S = 60
_HOUR_S = 3_600
_DAY_S = 86_400


def status_lines(status: Mapping[str, Any]) -> Iterator[str]:
    """The table, line by line; terminal colours, which ``click.echo`` takes off elsewhere.

    What a newer or older service leaves out is shown as ``-``.
    """
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
    yield from _feed(_part(status, "feed"))
    yield from _redis(_part(status, "redis"))
    yield from _positions(_part(status, "positions"))
    yield from _latencies(_part(status, "latency_ms"))
    yield ""
    yield from _counters(_part(status, "counters"))
    yield ""
    yield from _actors(_part(status, "actors"))


def _feed(feed: Mapping[str, Any]) -> Iterator[str]:
    connected = "connected" if feed.get("connected") else "not connected"
    parts = [
        f"{feed.get('name', '-')} by {feed.get('driver', '-')}",
        connected,
        f"{_number(feed.get('reconnects'))} reconnects",
    ]
    phase = feed.get("phase")
    if phase and phase not in ("streaming", connected):
        parts.insert(2, str(phase).replace("_", " "))
    yield from _row("feed", ", ".join(parts))
    if feed.get("last_error"):
        yield from _row("", f"last error: {feed['last_error']}")
    left_out = _part(feed, "left_out")
    if left_out:
        yield from _row("", f"without {', '.join(map(str, left_out))}")
        for reason in dict.fromkeys(left_out.values()):
            yield from _row("", f"left out: {reason}")
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
    when = "not told yet" if told is None else f"told {_age(told)} ago"
    held, followed = _number(positions.get("held")), _number(positions.get("followed"))
    source = positions.get("source", "-")
    yield from _row("positions", f"{held} held, {followed} symbols followed, {when}, {source}")
    if positions.get("last_error"):
        yield from _row("", f"last error: {positions['last_error']}")
    left_out = positions.get("left_out") or ()
    if left_out:
        yield from _row("", f"not followed, the feed gives no more: {_names(left_out)}")
    for symbol, problem in list(_part(positions, "problems").items())[:_SHOWN]:
        yield from _row("", f"{symbol}: {problem}")


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
    cells = [f"{name:<24}{_number(value):>12}" for name, value in counters.items()]
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
