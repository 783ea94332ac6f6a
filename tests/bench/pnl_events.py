"""How many events per second the P&L takes: the engine alone, and a running tracker behind Valkey.

The engine alone is handed quotes, each with another price, one after the other; with rules or
limits, they are checked after each, as in a gateway. Through a tracker they are published into Valkey, so
many at a time that some always wait and none has to be conflated.
"""

from __future__ import annotations

import time
from itertools import chain
from typing import Final

import anyio
import anyio.to_thread
import attrs
import msgspec

from mdservice.gateway.make import make_tracker
from mdservice.gateway.tracker import PnlTracker
from mdservice.model.payload import encode_quote
from mdservice.model.position import Position
from mdservice.pnl.alerts import AlertRules
from mdservice.pnl.engine import PnlEngine
from mdservice.pnl.limits import Limits
from mdservice.pnl.rules import parse_rule
from mdservice.positions.parse import parse_positions
from mdservice.redis_io.commands import pack
from mdservice.settings import Settings
from tests.bench.pnl_account import Account, Writer
from tests.bench.pnl_checks import LIMITS

SIZES: Final = (100, 10_000)
RULES: Final = (
    "* pnl < -1000000",
    "* pct < -99",
    "* stale",
    "AAAB price > 1000000",
    "total pnl < -1000000000",
    "total pct < -99",
)
"""None is ever crossed; three of them are looked at for each event's symbol, two for the total."""
_JUDGED: Final = (((), ()), (RULES, ()), ((), LIMITS))
"""The alert rules and the limits of each measurement."""
_LIMIT_S = 20.0
_CHUNK, _MOST_WAITING = 1_000, 4_000
_POLL_S = 0.002


@attrs.frozen
class Events:
    """One measurement.

    Attributes:
        where: ``engine`` or ``Valkey, tracker, engine``.
        positions: Held symbols.
        rules: How many alert rules.
        limits: How many limits.
        events: How many were taken.
        per_s: Events per second.
        wrong: What was not as it must be.
    """

    where: str
    positions: int
    rules: int
    limits: int
    events: int
    per_s: float
    wrong: list[str]


def engine_alone(events: int) -> list[Events]:
    """Without any input or output."""
    return [_engine(Account(0, count), *judged, events) for count in SIZES for judged in _JUDGED]


def _engine(
    account: Account, rules: tuple[str, ...], limits: tuple[str, ...], events: int
) -> Events:
    engine = PnlEngine(stale_after_s=60, price_ttl_s=300)
    engine.set_positions(_positions(account))
    judge = Limits(map(parse_rule, limits)) if limits else AlertRules(map(parse_rule, rules))
    turns = max(2, events // account.count + 1)
    first = list(account.quotes(1))
    quotes = list(chain.from_iterable(account.quotes(turn) for turn in range(2, turns + 1)))
    now_ns = time.time_ns()
    for quote in first:
        engine.update(quote, now_ns)
    told = len(judge.check(engine, now_ns))
    version, update, check, time_ns = engine.version, engine.update, judge.check, time.time_ns
    started_s = time.perf_counter()
    if rules or limits:
        for quote in quotes:
            if update(quote, time_ns()):
                told += len(check(engine, time_ns()))
    else:
        for quote in quotes:
            update(quote, time_ns())
    took_s = time.perf_counter() - started_s
    wrong = _wrong(account, engine, turns)
    if engine.version != version + len(quotes) or told:
        wrong.append(f"{engine.version - version} of {len(quotes)} changed a row, {told} alerts")
    sizes = account.count, len(rules), len(limits), len(quotes)
    return Events("engine", *sizes, len(quotes) / took_s, wrong)


async def through_a_book(url: str, writer: Writer, events: int) -> list[Events]:
    """From Valkey, in this process, the writer too."""
    found = []
    for count in SIZES:
        for judged in _JUDGED:
            found.append(await _book(url, writer, Account(0, count), *judged, events))
    return found


async def _book(
    url: str,
    writer: Writer,
    account: Account,
    rules: tuple[str, ...],
    limits: tuple[str, ...],
    events: int,
) -> Events:
    turns = max(2, events // account.count + 1)
    writer.write(account, 1, publish=False)
    rows = account.rows()
    tracker = make_tracker(rows.copy, Settings(), redis_url=url, alerts=rules, limits=limits)
    commands = _commands(account, turns)
    async with tracker.running():
        with anyio.fail_after(_LIMIT_S):
            while tracker.totals().priced < account.count:
                await anyio.sleep(_POLL_S)
            started_s = time.perf_counter()
            await _publish(writer, commands, tracker)
            took_s = time.perf_counter() - started_s
        wrong = _wrong(account, tracker._engine, turns)
        status = tracker.prices_status()
        if status is None or status.missed or status.conflated:
            wrong.append(f"events were missed: {status}")
    sizes = account.count, len(rules), len(limits), len(commands)
    return Events("Valkey, tracker, engine", *sizes, len(commands) / took_s, wrong)


async def _publish(writer: Writer, commands: list[bytes], tracker: PnlTracker) -> None:
    """Until all are taken: each changes a row, and so the engine's version."""
    engine, sent = tracker._engine, 0
    version = engine.version
    while (taken := engine.version - version) < len(commands):
        if sent < len(commands) and sent - taken < _MOST_WAITING:
            await anyio.to_thread.run_sync(writer.send, commands[sent : sent + _CHUNK])
            sent += _CHUNK
        else:
            await anyio.sleep(_POLL_S)


def _commands(account: Account, turns: int) -> list[bytes]:
    """All events but those of the first turn, packed beforehand."""
    payloads = [
        encode_quote(quote) for turn in range(2, turns + 1) for quote in account.quotes(turn)
    ]
    return [pack(b"PUBLISH", b"price.updated", payload) for payload in payloads]


def _wrong(account: Account, engine: PnlEngine, turn: int) -> list[str]:
    """Every symbol's last price, and the total, by hand."""
    found = []
    for place, symbol in enumerate(account.symbols):
        holding = engine.holding(symbol)
        price = None if holding is None else holding.price
        if price != account.mid(place, turn) and not found:
            found.append(f"{symbol}: {price} in place of {account.mid(place, turn)}")
    total = engine.totals.unrealized_pnl
    if total != account.total(turn):
        found.append(f"total {total} in place of {account.total(turn)}")
    return found


def _positions(account: Account) -> list[Position]:
    return parse_positions(msgspec.json.encode(account.rows()))
