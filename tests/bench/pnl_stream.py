"""From a quote at the exchange to the changed P&L at a reader of the stream.

The simulator, in this process, sends a quote; the service (raw driver) writes and publishes it, a
gateway on uvicorn computes, this process hears the event: four processes with Valkey. Quotes are
sent one at a time, and each account's next one later than its stream's pause, so that it is
not measured; several accounts, mounted side by side, take turns.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import attrs
import httpx
import msgspec

from mdservice.simulator import SimQuote, Simulator, SimulatorConfig, open_simulator
from tests.bench.pnl_account import Account, Row
from tests.bench.pnl_gateway import path_of
from tests.bench.pnl_times import percentiles
from tests.bench.processes import Cores, running
from tests.bench.programs import Service, Surroundings

MARKETS: Final = ("quiet", "other symbols", "held symbols")
"""What goes on besides: nothing; 1,000 quotes a second of symbols that no account holds, or of those
that the accounts hold, so that their streams are nearly always in their pause."""
_RATE = 1_000
_TICK_S = 0.01
_HELD, _MEASURED = 100, 10
"""Positions of an account; the first so many are those whose quotes are measured."""
_OTHERS = 500
_PAUSE_S, _SPREAD_S = 0.11, 0.02
"""Between an event and the next quote: beyond the stream's pause, and never in step with it."""
_PAUSED_SPREAD_S = 0.1
_START_LIMIT_S = 15.0
_HEARD_LIMIT_S = 5.0
_SETTLE_LIMIT_S = 5.0
_MOST_TOLD = 3


@attrs.frozen
class Latencies:
    """From a quote to the event with its P&L.

    Attributes:
        market: One of :data:`MARKETS`.
        background_per_s: What was sent besides.
        figures: Of :func:`tests.bench.pnl_times.percentiles`.
    """

    market: str
    background_per_s: float
    figures: dict[str, Any]


class _Change(msgspec.Struct):
    positions: list[Row]
    total_unrealized_pnl: Decimal
    priced: int


_decode = msgspec.json.Decoder(_Change).decode


class Watcher:
    """Follows the stream of one account, and checks every event as it comes.

    Args:
        account: Whose.
        simulator: Where its quotes are sent.
    """

    def __init__(self, account: Account, simulator: Simulator) -> None:
        self.account = account
        self.wrong: list[str] = []
        self.turns = [1] * account.count
        """The last one sent of each symbol."""
        self._simulator = simulator
        self._rows: dict[str, Row] = {}
        self._wanted: tuple[str, Decimal] | None = None
        self._heard_s = 0.0
        self._heard = asyncio.Event()

    async def follow(self, client: httpx.AsyncClient) -> None:
        """Hear events until cancelled."""
        async with client.stream("GET", path_of(self.account) + "/stream") as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    self._take(line.removeprefix("data: "), time.monotonic())

    def _take(self, data: str, now_s: float) -> None:
        change = _decode(data)
        for row in change.positions:
            self._rows[row.symbol] = row
            if (row.symbol, row.current_price) == self._wanted:
                self._wanted, self._heard_s = None, now_s
                self._heard.set()
        total = sum((row.unrealized_pnl or Decimal(0) for row in self._rows.values()), Decimal(0))
        priced = sum(row.current_price is not None for row in self._rows.values())
        told = (change.total_unrealized_pnl, change.priced)
        if told != (total, priced) and len(self.wrong) < _MOST_TOLD:
            self.wrong.append(f"total and priced {told} in place of {(total, priced)}")

    async def measure(self, place: int) -> float:
        """Send one quote; seconds until its event is heard."""
        account, symbol = self.account, self.account.symbols[place]
        self.turns[place] += 1
        self._heard.clear()
        self._wanted = (symbol, account.mid(place, self.turns[place]))
        sent_s = time.monotonic()
        self.send([place])
        async with asyncio.timeout(_HEARD_LIMIT_S):
            await self._heard.wait()
        return self._heard_s - sent_s

    def send(self, places: list[int]) -> None:
        """The quotes of these symbols in their turns, in one frame."""
        account = self.account
        self._simulator.send_quotes(
            SimQuote(account.symbols[place], *account.prices(place, self.turns[place]))
            for place in places
        )

    async def settled(self) -> None:
        """Wait until every position is at the last price that was sent; else it is wrong."""
        deadline_s = time.monotonic() + _SETTLE_LIMIT_S
        while missing := self._missing():
            if time.monotonic() > deadline_s:
                self.wrong.append(f"{missing} of {self.account.count} are not at their last price")
                return
            await asyncio.sleep(_TICK_S)

    def _missing(self) -> int:
        account = self.account
        return sum(
            (row := self._rows.get(symbol)) is None
            or row.unrealized_pnl != account.pnl(place, self.turns[place])
            or row.status != "live"
            for place, symbol in enumerate(account.symbols)
        )


async def from_quote_to_pnl(
    url: str, folder: Path, accounts: int, quotes: dict[str, int]
) -> tuple[list[Latencies], list[str]]:
    """Start everything, measure in each market.

    Args:
        url: Of the Valkey server.
        folder: For logs and sockets.
        accounts: How many take turns.
        quotes: How many are sent, by market.

    Returns:
        The latencies, and what was not as it must be.
    """
    held = [Account(place * _HELD, _HELD) for place in range(accounts)]
    others = Account(accounts * _HELD, _OTHERS)
    symbols = [symbol for account in (*held, others) for symbol in account.symbols]
    async with (
        open_simulator(SimulatorConfig(rate=0, rest_rate_limit=None)) as simulator,
        _programs(url, folder, simulator, symbols, held) as client,
        asyncio.TaskGroup() as tasks,
    ):
        watchers = [Watcher(account, simulator) for account in held]
        following = [tasks.create_task(watcher.follow(client)) for watcher in watchers]
        other = Watcher(others, simulator)
        for watcher in (*watchers, other):
            watcher.send(list(range(watcher.account.count)))
        for watcher in watchers:
            await watcher.settled()
        found = []
        for market, count in quotes.items():
            background = _background(market, watchers, other)
            found.append(await _measure(market, watchers, background, count // accounts))
            for watcher in watchers:
                await watcher.settled()
        for task in following:
            task.cancel()
    return found, [reason for watcher in watchers for reason in watcher.wrong]


@asynccontextmanager
async def _programs(
    url: str, folder: Path, simulator: Simulator, symbols: list[str], held: list[Account]
) -> AsyncIterator[httpx.AsyncClient]:
    """The service, subscribed to all symbols, and the gateway; ended after the block."""
    cores = Cores(None, None)
    given = Surroundings(simulator.url, url, symbols, folder, cores, rest_url=simulator.rest_url)
    names = [f"{account.first}:{account.count}" for account in held]
    gateway_running = running(
        "tests.bench.pnl_gateway",
        *(url, *names),
        core=None,
        others_core=None,
        log=folder / "stream_gateway.log",
    )
    with Service("websockets").running(given) as service, gateway_running as gateway:
        try:
            async with asyncio.timeout(_START_LIMIT_S):
                port = (await asyncio.to_thread(gateway.hear, _START_LIMIT_S))["port"]
                await simulator.until(lambda simulator: _subscribed(simulator, len(symbols)))
            base = f"http://127.0.0.1:{port}"
            async with httpx.AsyncClient(base_url=base, timeout=_START_LIMIT_S) as client:
                yield client
        except Exception as exc:
            exc.add_note(f"the service logged at last:\n{service.last_words()}")
            exc.add_note(f"the gateway logged at last:\n{gateway.last_words()}")
            raise


def _subscribed(simulator: Simulator, count: int) -> bool:
    return any(
        len(connection.subscriptions.get("quotes", ())) == count
        for connection in simulator.connections
    )


def _background(market: str, watchers: list[Watcher], other: Watcher) -> list[tuple[Watcher, int]]:
    """Whose quotes go on meanwhile, in turn."""
    if market == "quiet":
        return []
    if market == "other symbols":
        return [(other, place) for place in range(other.account.count)]
    return [(watcher, place) for place in range(_MEASURED, _HELD) for watcher in watchers]


async def _measure(
    market: str, watchers: list[Watcher], background: list[tuple[Watcher, int]], each: int
) -> Latencies:
    sent: list[int] = []
    started_s = time.monotonic()
    spread_s = _PAUSED_SPREAD_S if market == "held symbols" else _SPREAD_S
    paced = asyncio.create_task(_keep_pace(background, sent))
    try:
        async with asyncio.TaskGroup() as tasks:
            accounts = [
                tasks.create_task(_take_turns(watcher, each, spread_s, number / len(watchers)))
                for number, watcher in enumerate(watchers)
            ]
    finally:
        paced.cancel()
    per_s = len(sent) / (time.monotonic() - started_s)
    seconds = [latency for account in accounts for latency in account.result()]
    return Latencies(market, per_s, percentiles(seconds))


async def _take_turns(watcher: Watcher, count: int, spread_s: float, offset: float) -> list[float]:
    chance = random.Random(watcher.account.first)
    found = []
    await asyncio.sleep(_PAUSE_S * (1 + offset))
    for number in range(count):
        found.append(await watcher.measure(number % _MEASURED))
        await asyncio.sleep(_PAUSE_S + chance.random() * spread_s)
    return found


async def _keep_pace(background: list[tuple[Watcher, int]], sent: list[int]) -> None:
    """Send the background's quotes, one after the other, at an even pace."""
    started_s = time.monotonic()
    while background:
        due = int((time.monotonic() - started_s) * _RATE)
        for index in range(len(sent), due):
            watcher, place = background[index % len(background)]
            watcher.turns[place] += 1
            watcher.send([place])
            sent.append(place)
        await asyncio.sleep(_TICK_S)
