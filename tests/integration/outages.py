"""What the outage tests share: a market that goes on, a network that fails, an ear at Redis.

A line is a simulator, a network before it and a service, all on the test's event loop; Valkey is a
process, and so are all sockets real. What is checked is always the whole of it: every quote that
the market made is an event once, in order, with the next number, and the key holds the last.
"""

from __future__ import annotations

import json
import random
import socket
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any

import anyio
import attrs
import hiredis

from mdservice.app.service import Service, open_service
from mdservice.model.timestamps import parse_rfc3339
from mdservice.settings import Settings
from mdservice.simulator import SimQuote, Simulator, SimulatorConfig, open_simulator
from tests.integration.conftest import patient
from tests.integration.network import Network

LIMIT_S = 60
LINES = [("websockets", "trio"), ("alpaca-py", "asyncio")]
"""Each driver, each event loop."""
_MARK = "outages.mark"
_SUBSCRIBE = f"SUBSCRIBE price.updated feed.status {_MARK}\r\n".encode()
_READ_BYTES = 65_536
_NOTHING = object()


class _Soonest(random.Random):
    """For delays that are as short as jitter makes them."""

    def uniform(self, a: float, _b: float) -> float:
        return a


async def until(condition: Callable[[], Any], within_s: float = 30) -> None:
    """Poll until the condition holds."""
    with anyio.fail_after(patient(within_s)):
        while not condition():
            await anyio.sleep(0.01)


def run(body: Callable[[], Awaitable[None]], backend: str) -> None:
    """Run a test's body on an event loop, within a limit."""

    async def limited() -> None:
        with anyio.fail_after(patient(LIMIT_S)):
            await body()

    anyio.run(limited, backend=backend)


class Ear:
    """Hears what one life of a server publishes, in a thread; it never connects again."""

    def __init__(self, path: Path) -> None:
        self.states: list[dict[str, Any]] = []
        self.raw: dict[str, list[bytes]] = defaultdict(list)
        self._marks = 0
        self._subscribed = threading.Semaphore(0)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._socket.sendall(_SUBSCRIBE)
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()
        for _ in range(3):
            assert self._subscribed.acquire(timeout=patient(10))

    def _listen(self) -> None:
        reader = hiredis.Reader(notEnoughData=_NOTHING)
        with suppress(OSError):
            while data := self._socket.recv(_READ_BYTES):
                reader.feed(data)
                while (message := reader.gets()) is not _NOTHING:
                    self._take(*message)

    def _take(self, kind: bytes, channel: bytes, content: Any) -> None:
        if kind == b"subscribe":
            self._subscribed.release()
        elif channel == _MARK.encode():
            self._marks += 1
        elif channel == b"feed.status":
            self.states.append(json.loads(content))
        else:
            self.raw[json.loads(content)["symbol"]].append(content)

    def events(self, symbol: str) -> list[dict[str, Any]]:
        return [json.loads(raw) for raw in list(self.raw[symbol])]

    def last_seq(self, symbol: str) -> int:
        raw = self.raw[symbol]
        return int(json.loads(raw[-1])["seq"]) if raw else 0

    def told(self, *names: str) -> list[str]:
        return [m["state"] for m in list(self.states) if not names or m["state"] in names]

    async def hear_all(self, server: Any) -> None:
        """Return once everything that has been published so far is heard."""
        end = self._marks + 1
        with server.client() as client:
            client.publish(_MARK, b"")
        await until(lambda: self._marks == end)

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()


def restart_heard(server: Any) -> Ear:
    """Start a killed server, with an ear at it before anybody else finds it."""
    path = server.path
    server.path = path.with_name("n")
    try:
        server.start()
        ear = Ear(server.path)
        server.path.rename(path)
    finally:
        server.path = path
    return ear


@attrs.define
class Line:
    """A market with its network, a service, and what is checked of them."""

    server: Any
    symbols: tuple[str, ...]
    simulator: Simulator
    network: Network
    service: Service
    sent: int = 0
    going: bool = True

    async def feed(self, every_s: float) -> None:
        """A quote of every symbol ever so often, numbered by its bid."""
        while True:
            await anyio.sleep(every_s)
            if self.going:
                self.send()

    def send(self, count: int = 1) -> None:
        for number in range(self.sent + 1, self.sent + count + 1):
            self.simulator.send_quotes([SimQuote(s, number, number + 1) for s in self.symbols])
        self.sent += count

    async def more(self, count: int = 50) -> None:
        """Let the market go on for so many quotes of each symbol."""
        end = self.sent + count
        await until(lambda: self.sent >= end)

    async def written(self) -> None:
        """Wait until some quotes of each symbol are written."""
        await self.more()
        end = self.sent * len(self.symbols)
        await until(lambda: self.service.status().counters.events_published >= end)

    async def more_accepted(self, count: int = 100) -> None:
        """Let the service accept so many more, which it does whatever Redis does."""
        counters = self.service.status().counters
        end = counters.quotes_accepted + count
        await until(lambda: self.service.status().counters.quotes_accepted >= end)

    async def all_accepted(self) -> None:
        """Let the service take everything that was sent."""
        total = self.sent * len(self.symbols)
        await until(lambda: self.service.status().counters.quotes_accepted == total)

    async def not_ready(self, because: str = "") -> None:
        """Wait until it is not ready, for a reason that has this in it."""

        def said() -> bool:
            told = self.service.readiness()
            return not told.ready and because in "; ".join(told.reasons)

        await until(said)

    async def ready(self) -> None:
        await until(lambda: self.service.readiness().ready)

    async def stop(self, ear: Ear) -> None:
        """End the market, and wait until all of it is out and heard."""
        self.going = False
        with anyio.move_on_after(patient(20)):
            await until(lambda: all(ear.last_seq(s) >= self.sent for s in self.symbols))
            await until(lambda: self.service.status().redis.backlog == 0)
            await ear.hear_all(self.server)

    def made(self, symbol: str) -> list[tuple[int, float, int]]:
        """What the market made of a symbol: the number, the bid, the time."""
        quotes = [quote for quote in self.simulator.history if quote.symbol == symbol]
        return [(n, quote.bid, quote.ts_event_ns) for n, quote in enumerate(quotes, 1)]

    async def repaired(self, gaps: int = 1) -> None:
        """Wait until so many gaps are, and all is well."""
        await until(lambda: self.service.status().counters.gaps_repaired == gaps)
        await self.ready()

    def check_complete(self, *ears: Ear) -> None:
        """Every quote is an event once and in order, and the last one the price."""
        for symbol in self.symbols:
            events = [event for ear in ears for event in ear.events(symbol)]
            out = [(e["seq"], e["bid"], parse_rfc3339(e["timestamp"])) for e in events]
            made = self.made(symbol)
            assert len(made) == self.sent
            pairs = enumerate(zip_longest(made, out))
            wrong = next(((at, *pair) for at, pair in pairs if pair[0] != pair[1]), None)
            assert wrong is None, (
                f"{symbol}: made {len(made)}, out {len(out)}; first otherwise: {wrong}"
            )
            with self.server.client() as client:
                assert client.get(f"price:{symbol}") == ears[-1].raw[symbol][-1]
        counters = self.service.status().counters
        total = self.sent * len(self.symbols)
        assert counters.quotes_accepted == counters.events_published == total
        assert counters.events_conflated == counters.decode_errors == 0


@asynccontextmanager
async def open_line(
    server: Any, folder: Path, driver: str, symbols: str = "AAPL,MSFT,SPY", **more: Any
) -> AsyncIterator[Line]:
    """Run a line until the end of the block; it is ready, and the market goes.

    Args:
        server: The Valkey server.
        folder: For the service's socket, short.
        driver: Of the service.
        symbols: Of market and service.
        more: ``config`` for the simulator, ``prepare`` to be called with it, ``rest_too`` where
            the network carries REST as well, ``every_s`` between two quotes of a symbol, and
            settings of the service.
    """
    config = SimulatorConfig(**{"rate": 0, "rest_rate_limit": None, **more.pop("config", {})})
    rest_too = more.pop("rest_too", False)
    prepare = more.pop("prepare", None)
    every_s = more.pop("every_s", 0.005)
    async with open_simulator(config) as simulator:
        with closing(Network(simulator.port or 0)) as network:
            rest_url = f"http://127.0.0.1:{network.port}" if rest_too else simulator.rest_url
            if prepare is not None:
                prepare(simulator)
            settings = Settings(
                **{
                    "api_key": "key",
                    "secret_key": "secret",
                    "feed": "iex",
                    "feed_url": f"ws://127.0.0.1:{network.port}/v2/iex",
                    "rest_url": rest_url,
                    "trading_url": rest_url,
                    "driver": driver,
                    "symbols": symbols,
                    "redis_url": server.url,
                    "socket": folder / f"s{simulator.port}",
                    **more,
                }
            )
            async with (
                open_service(settings, rng=_Soonest()) as service,
                anyio.create_task_group() as tasks,
            ):
                line = Line(server, tuple(symbols.split(",")), simulator, network, service)
                await line.ready()
                tasks.start_soon(line.feed, every_s)
                yield line
                tasks.cancel_scope.cancel()
