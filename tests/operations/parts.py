"""Parts of an installation that a fault needs: a gateway, a journal's disk, a client of the relay."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from decimal import Decimal
from email.utils import formatdate
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import anyio
import httpx

from mdservice.gateway.make import make_tracker
from mdservice.gateway.serve import gateway_app
from mdservice.journal import recorder
from mdservice.journal.recorder import _Writer
from mdservice.model.events import RecordBatch
from mdservice.model.feeds import STOCKS, Topic
from mdservice.model.kinds import TRADES
from mdservice.model.position import Position
from mdservice.model.quote import Quote
from mdservice.relay.fanout import MOST_BEHIND, MOST_WAITING
from mdservice.relay.server import Client, Relay
from mdservice.relay.session import Session
from mdservice.runtime.market_clock import MarketClock
from mdservice.runtime.network import HttpClient
from mdservice.settings import Settings
from mdservice.testing import FakePositions
from tests.gateway.judging import FakeKeys
from tests.operations.bench import Bench
from tests.records import make_record
from tests.simulation.asgi import call

__all__ = [
    "GATEWAY",
    "Disk",
    "Gateway",
    "connect_deaf_client",
    "gateway",
    "journal",
    "market_clock",
]

GATEWAY: Final = "mdservice-gateway"
_COST: Final = 150


class Gateway:
    """A gateway with one position and one limit, whose breaker is in memory."""

    def __init__(self, bench: Bench) -> None:
        self._clock = bench.clock
        self._tracker: Any = make_tracker(
            FakePositions([Position("AAPL", Decimal(1), Decimal(_COST))]),
            Settings(),
            redis_url="redis://127.0.0.1:1",
            limits=["total pnl < -5"],
            clock=bench.clock,
        )
        self._tracker.risk._redis = FakeKeys().of(self)
        self._app = gateway_app(self._tracker)

    async def metrics(self) -> str:
        """The text of its metrics."""
        return (await call(self._app, "GET", "/metrics")).body.decode()

    def price(self, change: float) -> None:
        """Let the price of the position be so much above what was paid."""
        price, now_ns = _COST + change, self._clock.utc_ns()
        self._tracker.engine.update(Quote("AAPL", price, price, 1, 1, now_ns, now_ns), now_ns)
        self._tracker.risk.look()

    async def reset(self) -> None:
        """Close the breaker."""
        await self._tracker.risk.reset([])

    async def run(self) -> None:
        """Keep the breaker until cancelled."""
        await self._tracker.current_positions()
        self.price(0)
        await self._tracker.risk.run()


@asynccontextmanager
async def gateway(bench: Bench) -> AsyncIterator[None]:
    """A gateway beside the service, which Prometheus scrapes too."""
    beside = bench.parts[GATEWAY] = Gateway(bench)
    bench.targets[GATEWAY] = beside.metrics
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(beside.run)
        yield
        tasks.cancel_scope.cancel()


class Disk:
    """What takes the journal's files, or fails.

    Attributes:
        error: While set, it takes nothing.
    """

    def __init__(self) -> None:
        self.error: OSError | None = None
        self._write = recorder._write_all

    def write(self, file: Any, data: bytearray) -> None:
        """Take bytes for a file."""
        if self.error is not None:
            raise self.error
        self._write(file, data)


@asynccontextmanager
async def journal(bench: Bench) -> AsyncIterator[None]:
    """A journal, for a service that has not begun.

    Its thread would run in real time, so a task does the thread's work.
    """
    disk = bench.parts["disk"] = Disk()
    with (
        tempfile.TemporaryDirectory(prefix="md-journal-") as folder,
        patch.object(_Writer, "start", lambda _: None),
        patch.object(_Writer, "alive", property(lambda _: True)),
        patch.object(recorder, "_write_all", disk.write),
        patch.object(recorder, "_RETRY_S", 0),
    ):
        bench.settings["journal"] = Path(folder)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_write, bench)
            yield
            tasks.cancel_scope.cancel()


async def _write(bench: Bench) -> None:
    topology: Any = None
    try:
        while True:
            await anyio.sleep(1)
            if bench.service is not None:
                topology = bench.service._topology
                topology.journal._writer._turn()
    finally:
        if topology is not None:
            topology.journal._writer._close()


@asynccontextmanager
async def market_clock(bench: Bench) -> AsyncIterator[None]:
    """Alpaca's trading API, whose answers have the right time, for a service that has not begun."""

    def answer(_request: httpx.Request) -> httpx.Response:
        date = formatdate(bench.clock.utc_ns() / 1e9, usegmt=True)
        return httpx.Response(200, headers={"Date": date}, content=b'{"is_open":true}')

    http = HttpClient(httpx.MockTransport(answer))
    market = MarketClock("https://paper-api.alpaca.markets", {}, http, "is not known")
    async with aclosing(http), anyio.create_task_group() as tasks:
        tasks.start_soon(market.follow, bench.service_clock, lambda _: None)
        while bench.service is None:
            await anyio.sleep(1)
        bench.service._market_clock = market
        yield
        tasks.cancel_scope.cancel()


class _FullSocket:
    """The connection of a client that reads nothing."""

    open = True
    blocked = True

    def __init__(self, relay: Relay) -> None:
        self.line = self
        self.client: Client | None = None
        self._relay = relay

    def close(self, _code: int = 1000) -> None:
        """Say goodbye, which the client does not read."""

    def cut(self) -> None:
        """Close the socket."""
        if self.client is not None:
            self._relay._forget(self.client)

    async def drain(self) -> None:
        """Wait until the client reads."""
        await anyio.sleep_forever()


def connect_deaf_client(bench: Bench) -> None:
    """Let a client on another machine subscribe to trades, and read nothing of a burst of them."""
    assert bench.service is not None
    relay = bench.service._topology.relay
    assert relay is not None
    socket: Any = _FullSocket(relay)
    socket.client = Client(
        number=0,
        name="deaf",
        address="192.0.2.1:50412",
        path="/v2/iex",
        runs="remote",
        websocket=socket,
        session=Session(STOCKS, served=True, encoding="json", keys={}),
        ready=relay._enqueue,
        now_s=anyio.current_time(),
    )
    relay._clients[0] = socket.client
    relay._fan_outs[STOCKS].add(socket.client, [Topic("trades", "AAPL")])
    count = MOST_WAITING + MOST_BEHIND + 1
    trades = [make_record(TRADES, "AAPL", number) for number in range(1, count + 1)]
    relay.offer(STOCKS, RecordBatch(TRADES, trades))
