"""From a fill at the broker to the followed symbol, and to the P&L event at a reader.

The simulator, in this process, fills orders. The service follows its trading stream, subscribes to
what is new and publishes ``account.updated``. A gateway, ``mdservice gateway``, has its positions
from the same stream, or from the service; this process reads its stream of P&L. Each is a process,
and so is Valkey. One gateway runs at a time, and none while symbols are subscribed. Fills come one
at a time, and not in a stream's pause after its last event.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Literal

import attrs
import httpx
import msgspec

from mdservice.simulator import SimQuote, Simulator, SimulatorConfig, open_simulator
from tests.bench.pnl_gateway import PNL
from tests.bench.pnl_times import Times
from tests.bench.processes import Cores, running
from tests.bench.programs import Service, Surroundings
from tests.bench.tape import symbol_names

Source = Literal["Alpaca's stream", "the service"]
SOURCES: Final[tuple[Source, ...]] = ("Alpaca's stream", "the service")
"""Where a gateway's fills come from."""
_HELD: Final = 100
"""Positions at the start; the fills change these."""
_PAUSE_S, _SPREAD_S = 0.05, 0.02
"""Between an event and the next fill: beyond the stream's pause, and never in step with it."""
_QUOTES_EVERY_S: Final = 5.0
_START_LIMIT_S, _HEARD_LIMIT_S = 20.0, 5.0
_MOST_TOLD: Final = 3
_SERVING: Final = re.compile(r"http://127\.0\.0\.1:\d+")
_PAID: Final = Decimal(100)
_POLL_S: Final = 0.05


@attrs.frozen
class Fills:
    """From fills to what follows them.

    Attributes:
        what: Until what.
        figures: Of :meth:`tests.bench.pnl_times.Times.figures`.
    """

    what: str
    figures: dict[str, Any]


class _Row(msgspec.Struct):
    symbol: str
    qty: Decimal | None
    current_price: Decimal | None
    unrealized_pnl: Decimal | None


class _Change(msgspec.Struct):
    positions: list[_Row]


_decode = msgspec.json.Decoder(_Change).decode


class Watcher:
    """Follows the stream of one gateway."""

    def __init__(self) -> None:
        self.rows: dict[str, _Row] = {}
        self.following = asyncio.Event()
        self._wanted: tuple[str, Decimal] | None = None
        self._heard = asyncio.Event()
        self._heard_s = 0.0

    async def follow(self, client: httpx.AsyncClient) -> None:
        """Hear events until cancelled."""
        async with client.stream("GET", f"/{PNL}/stream") as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    now_s = time.monotonic()
                    for row in _decode(line.removeprefix("data: ")).positions:
                        self.rows[row.symbol] = row
                        if (row.symbol, row.qty) == self._wanted:
                            self._wanted, self._heard_s = None, now_s
                            self._heard.set()
                    self.following.set()

    def want(self, symbol: str, qty: Decimal) -> None:
        """Note when this position comes."""
        self._heard.clear()
        self._wanted = symbol, qty

    async def heard(self) -> float:
        """When it came, monotonic seconds."""
        async with asyncio.timeout(_HEARD_LIMIT_S):
            await self._heard.wait()
        return self._heard_s


async def from_fills(
    url: str, folder: Path, fills: int, opened: int
) -> tuple[list[Fills], list[str]]:
    """Start everything, and measure.

    Args:
        url: Of the Valkey server.
        folder: For logs and sockets.
        fills: How many change a position, for each source.
        opened: How many open one.

    Returns:
        The times, and what was not as it must be.
    """
    symbols = symbol_names(_HELD + opened)
    held, new = symbols[:_HELD], symbols[_HELD:]
    positions = dict.fromkeys(held, ("10", "100"))
    config = SimulatorConfig(rate=0, rest_rate_limit=None, positions=positions)
    found: list[Fills] = []
    async with open_simulator(config) as simulator:
        given = Surroundings(
            simulator.url, url, [], folder, Cores(None, None), rest_url=simulator.rest_url
        )
        service = Service("websockets", environment=(("MDSERVICE_POSITIONS", "alpaca"),))
        with service.running(given) as child:
            async with asyncio.timeout(_START_LIMIT_S):
                await simulator.until(lambda simulator: _subscribed(simulator) >= {*held})
            wrong: list[str] = []
            try:
                for source in SOURCES:
                    async with _running_gateway(given, simulator, source, held) as gateway:
                        times, reasons = await _changed(simulator, gateway, held, fills)
                    found.append(Fills(f"P&L event, {source}", times.figures()))
                    wrong += reasons
                # REST has a price of each, as it does of any real symbol.
                simulator.send_quotes(SimQuote(symbol, 100.0, 100.5) for symbol in new)
                times = await _opened(simulator, new)
                found.append(Fills("symbol subscribed", times.figures()))
            except Exception as exc:
                exc.add_note(f"the service logged at last:\n{child.last_words()}")
                raise
    return found, wrong


@asynccontextmanager
async def _running_gateway(
    given: Surroundings, simulator: Simulator, source: Source, held: list[str]
) -> AsyncIterator[Watcher]:
    """A gateway and a reader of its stream, with young prices of what is held; ended after it."""
    environment = {
        "ALPACA_API_KEY": "key",
        "ALPACA_SECRET_KEY": "secret",
        "MDSERVICE_REDIS_URL": given.redis_url,
        "MDSERVICE_SOCKET": str(given.socket),
        "MDSERVICE_TRADING_URL": simulator.rest_url,
        "MDSERVICE_GATEWAY_HTTP": f"127.0.0.1:{_free_port()}",
        "MDSERVICE_LOG_FORMAT": "json",
    }
    if source == SOURCES[0]:
        environment["MDSERVICE_GATEWAY_POSITIONS"] = "alpaca"
    with running(
        *("mdservice", "gateway"),
        core=None,
        others_core=None,
        log=given.folder / f"fills_{SOURCES.index(source)}.log",
        environment=environment,
    ) as gateway:
        try:
            message = (await asyncio.to_thread(gateway.hear, _START_LIMIT_S))["message"]
            address = _SERVING.search(message)
            if address is None:
                raise RuntimeError(f"the gateway announces {message!r}")
            async with (
                httpx.AsyncClient(base_url=address[0], timeout=_START_LIMIT_S) as client,
                asyncio.TaskGroup() as tasks,
            ):
                watcher = Watcher()
                following = tasks.create_task(watcher.follow(client))
                quoting = tasks.create_task(_quote(simulator, held))
                yield watcher
                following.cancel()
                quoting.cancel()
        except Exception as exc:
            exc.add_note(f"the gateway logged at last:\n{gateway.last_words()}")
            raise


async def _changed(
    simulator: Simulator, watcher: Watcher, held: list[str], count: int
) -> tuple[Times, list[str]]:
    """Buy a share of one after the other; the times until each is in an event."""
    chance = random.Random(count)
    async with asyncio.timeout(_START_LIMIT_S):
        while len(watcher.rows) < len(held) or None in (
            row.unrealized_pnl for row in watcher.rows.values()
        ):
            await asyncio.sleep(_POLL_S)
    times, wrong = Times(), []
    for number in range(count):
        symbol = held[number % len(held)]
        quantity = (watcher.rows[symbol].qty or 0) + 1
        watcher.want(symbol, quantity)
        times.begin()
        filled_s = time.monotonic()
        simulator.trade(symbol, 1, _PAID)
        times.note(await watcher.heard() - filled_s)
        row = watcher.rows[symbol]
        right = ((row.current_price or 0) - _PAID) * quantity
        if row.unrealized_pnl != right and len(wrong) < _MOST_TOLD:
            wrong.append(f"{symbol}: {row} with a P&L in place of {right}")
        await asyncio.sleep(_PAUSE_S + chance.random() * _SPREAD_S)
    return times, wrong


async def _opened(simulator: Simulator, symbols: list[str]) -> Times:
    """Buy what is new, one after the other; the times until the service has subscribed to it."""
    times = Times()
    for symbol in symbols:
        started_s = times.begin()
        simulator.trade(symbol, 1, _PAID)
        async with asyncio.timeout(_HEARD_LIMIT_S):
            await simulator.until(lambda simulator, new=symbol: new in _subscribed(simulator))
        times.end(started_s)
        await asyncio.sleep(_PAUSE_S)
    return times


async def _quote(simulator: Simulator, symbols: list[str]) -> None:
    """Keep the prices young."""
    turn = 0
    while True:
        turn += 1
        simulator.send_quotes(
            SimQuote(symbol, 100 + turn / 100, 100 + turn / 50) for symbol in symbols
        )
        await asyncio.sleep(_QUOTES_EVERY_S)


def _subscribed(simulator: Simulator) -> set[str]:
    return {
        symbol
        for connection in simulator.connections
        for symbol in connection.subscriptions.get("quotes", ())
    }


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
