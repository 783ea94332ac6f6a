"""The trading stream over real sockets, on trio and asyncio."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from mdservice.clock import SystemClock
from mdservice.model.position import Position
from mdservice.pnl.numbers import short
from mdservice.positions.cache import PositionCache
from mdservice.positions.trade_updates import TradeUpdate
from mdservice.positions.trading_stream import TradeUpdatesFollower, TradingStream
from mdservice.simulator import SimulatorConfig, open_simulator
from tests.integration.conftest import patient

LIMIT_S = 60.0


class AccountPositions:
    """What the simulator's account holds, as REST would answer."""

    address = "the simulator"

    def __init__(self, simulator: Any) -> None:
        self._simulator = simulator

    async def fetch(self) -> list[Position]:
        return [
            Position(held.symbol, held.qty, held.avg_entry_price)
            for held in self._simulator.positions
        ]

    async def aclose(self) -> None:
        """Nothing is open."""


class Bench:
    """A follower of a simulator in this process."""

    def __init__(self, simulator: Any) -> None:
        self.simulator = simulator
        clock = SystemClock()
        self.positions = PositionCache(AccountPositions(simulator), 1000.0, clock)
        stream = TradingStream(
            simulator.stream_url("trading"), "k", "s", ping_interval_s=0.5, ping_timeout_s=0.4
        )
        self.follower = TradeUpdatesFollower(stream, self.positions, self._note, clock)

    async def _note(self, update: TradeUpdate) -> None:
        self.last = update

    def qty(self) -> str | None:
        position = self.positions.position("AAPL")
        return None if position is None or position.qty is None else short(position.qty)

    async def poll(self) -> None:
        while True:
            await self.positions.refresh_when_due()

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await anyio.sleep(0.01)

    async def follows(self, connection: int) -> None:
        await self.until(
            lambda: any(
                one.number >= connection and one.subscriptions["streams"]
                for one in self.simulator.trading_connections
            )
        )
        await self.until(lambda: self.follower.snapshot().state == "following")


def run(backend: str, body: Callable[[Bench], Awaitable[None]], **config: Any) -> None:
    async def main() -> None:
        settings = SimulatorConfig(rate=0, positions={"AAPL": ("10", "100")}, **config)
        with anyio.fail_after(patient(LIMIT_S)):
            async with open_simulator(settings) as simulator:
                bench = Bench(simulator)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(bench.poll)
                    tasks.start_soon(bench.follower.run)
                    await bench.follows(1)
                    await body(bench)
                    tasks.cancel_scope.cancel()
                await bench.until(lambda: not simulator.trading_connections)

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("text_updates", [False, True])
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_fills_are_applied(backend: str, text_updates: bool) -> None:
    async def body(bench: Bench) -> None:
        for count in range(1, 4):
            bench.simulator.trade("AAPL", 5, 130)
            await bench.until(lambda count=count: bench.qty() == str(10 + 5 * count))
        bench.simulator.trade("AAPL", -25, 130)
        await bench.until(lambda: bench.positions.positions == ())

    run(backend, body, text_updates=text_updates)


@pytest.mark.parametrize("fault", ["reset", "half-close", "close", "freeze"])
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_lost_stream_is_found_and_followed_again(backend: str, fault: Any) -> None:
    async def body(bench: Bench) -> None:
        (first,) = bench.simulator.trading_connections
        if fault == "freeze":
            bench.simulator.freeze(feed="trading")
        else:
            bench.simulator.drop(fault, feed="trading")
        bench.simulator.trade("AAPL", 5, 130)
        await bench.follows(first.number + 1)
        await bench.until(lambda: bench.qty() == "15")
        bench.simulator.trade("AAPL", 5, 130)
        await bench.until(lambda: bench.qty() == "20")
        assert bench.follower.snapshot().reconnects == 1
        assert bench.follower.warning() is None

    run(backend, body)
