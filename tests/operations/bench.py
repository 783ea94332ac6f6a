"""A service on virtual time in a market that a test runs, scraped every 15 s."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio

from mdservice.app.service import Service, open_service
from mdservice.app.topology import FeedParts
from mdservice.feed.liveness import Hours
from mdservice.http_api.server import create_app
from mdservice.model.feeds import STOCKS
from mdservice.model.quote import Quote
from mdservice.settings import Settings
from mdservice.simulator.wire import SimQuote
from mdservice.testing import FakeDriver, FakeHistory, MemoryPriceStore
from mdservice.testing.fake_positions import FakePositions
from tests.operations.promtool import SCRAPE_S, Scrapes
from tests.simulation.asgi import call
from tests.simulation.clocks import SimulatedClock

__all__ = ["Bench", "open_bench"]

SYMBOLS: Final = ("AAPL", "MSFT", "SPY")
SERVICE: Final = "mdservice"
_SIZE: Final = 100


class Bench:
    """The service, what it is connected to, and the scrapes of its metrics.

    Attributes:
        feed: The stock feed.
        history: Its history by REST, which has every quote of the market.
        store: The Redis.
        positions: The source of positions.
        clock: The time of the market, of the feed and of the scrapes.
        service_clock: The clock of the service's machine.
        service: The service; None while none runs.
        restart_after_s: While set, the service ends so long after each start and starts again.
        targets: By the name of its job: what a scrape asks for the text of its metrics, and None
            where it does not answer. A fault may add one.
        quotes_every_s: How often each symbol has a new quote; None for a market without any.
        quotes_at_once: How many quotes these are.
        muted: Whether the feed sends none of them.
        muted_symbols: The symbols of which it sends none.
        settings: Settings of the service, besides the usual.
        parts: What a row of the faults has prepared for its fault.
        hours: What the silence of the feed means now.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.clock = SimulatedClock()
        self.service_clock = SimulatedClock()
        self.feed = FakeDriver(clock=self.clock)
        self.history = FakeHistory()
        self.store = MemoryPriceStore(clock=self.clock)
        self.positions = FakePositions()
        self.service: Service | None = None
        self.restart_after_s: float | None = None
        self.targets: dict[str, Callable[[], Awaitable[str | None]]] = {SERVICE: self._metrics}
        self.quotes_every_s: float | None = 1.0
        self.quotes_at_once = 1
        self.muted = False
        self.muted_symbols: frozenset[str] = frozenset()
        self.settings = dict(settings)
        self.parts: dict[str, Any] = {}
        self.hours: Hours = "open"
        self.scrapes = Scrapes()
        self._app: Any = None
        self._quotes = 0

    @property
    def now_s(self) -> int:
        """When the last scrape was, in seconds since the first."""
        return (self.scrapes.count - 1) * SCRAPE_S

    async def scrape_for(self, seconds: float) -> None:
        """Scrape every 15 s for so long."""
        for _ in range(round(seconds / SCRAPE_S)):
            await anyio.sleep_until(self.scrapes.count * SCRAPE_S)
            self.scrapes.add({job: await ask() for job, ask in self.targets.items()})

    def quote(self, *, count: int = 1) -> None:
        """Let each symbol have new quotes, ``count`` of them."""
        now_ns = self.clock.utc_ns()
        made = [
            SimQuote(symbol, 100 + number % 100, 101 + number % 100, _SIZE, _SIZE, now_ns + place)
            for place, number in enumerate(range(self._quotes, self._quotes + count))
            for symbol in SYMBOLS
        ]
        self._quotes += count
        self.history.add(
            Quote(q.symbol, q.bid, q.ask, q.bid_size, q.ask_size, q.ts_event_ns, now_ns)
            for q in made[-len(SYMBOLS) :]
        )
        if not self.muted:
            self.feed.send_quotes([one for one in made if one.symbol not in self.muted_symbols])

    # Inside

    async def _metrics(self) -> str | None:
        if self.service is None:
            return None
        answer = await call(self._app, "GET", "/metrics")
        assert answer.status == 200
        return answer.body.decode()

    async def trade(self) -> None:
        """Run the market until cancelled."""
        while True:
            if self.quotes_every_s is not None:
                self.quote(count=self.quotes_at_once)
            await anyio.sleep(self.quotes_every_s or 1.0)

    async def serve(self) -> None:
        """Run the service until cancelled."""
        while True:
            async with self._open() as self.service:
                self._app = create_app(self.service)
                began_s = anyio.current_time()
                while (after_s := self.restart_after_s) is None or (
                    anyio.current_time() - began_s < after_s
                ):
                    await anyio.sleep(1)
            self.service = None

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[Service]:
        async def hours() -> Hours:
            return self.hours

        settings = Settings(symbols=",".join(SYMBOLS), relay=self.settings.get("relay"))
        for name, value in self.settings.items():
            object.__setattr__(settings, name, value)  # also beyond the limits of the settings
        async with open_service(
            settings,
            feeds=[FeedParts(STOCKS, [self.feed], self.history, hours, on_demand=False)],
            store=self.store,
            positions=self.positions,
            clock=self.service_clock,
            rng=random.Random(1),
        ) as service:
            yield service


@asynccontextmanager
async def open_bench(settings: Mapping[str, Any]) -> AsyncIterator[Bench]:
    """A service that has begun to run, in an open market.

    Args:
        settings: More settings of the service.
    """
    bench = Bench(settings)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.trade)
        tasks.start_soon(bench.serve)
        yield bench
        tasks.cancel_scope.cancel()
