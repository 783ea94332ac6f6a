"""Trades of a running simulator, on trio's virtual clock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import anyio
import pytest
import trio
from trio.testing import MockClock

from mdservice.errors import InvalidSymbol
from mdservice.simulator import (
    DEMO_POSITIONS,
    Holding,
    SimQuote,
    Simulator,
    SimulatorConfig,
    Trade,
    open_simulator,
)

D = Decimal
NOW_NS = 1_795_189_904_000_000_000


class StoppedClock:
    def monotonic(self) -> float:
        return anyio.current_time()

    def utc_ns(self) -> int:
        return NOW_NS


@asynccontextmanager
async def opened(**settings: Any) -> AsyncIterator[Simulator]:
    config = SimulatorConfig(**{"rate": 0, **settings})
    async with open_simulator(config, port=None, clock=StoppedClock()) as simulator:
        yield simulator


async def test_starts_with_nothing_unless_told() -> None:
    async with opened() as simulator:
        assert simulator.positions == ()
    async with opened(positions={"aapl": (2, 150.5)}) as simulator:
        assert simulator.positions == (Holding("AAPL", D(2), D("150.5")),)


async def test_a_trade_without_a_price_is_done_at_the_middle_of_the_market() -> None:
    async with opened() as simulator:
        assert simulator.trade("AAPL", 1) == Trade(NOW_NS, "AAPL", D(1), D("187.13"))
        simulator.send_quotes([SimQuote("AAPL", 0.1, 0.2)])
        assert simulator.trade("AAPL", 1).price == D("0.15")
        simulator.send_quotes([SimQuote("AAPL", 0, 0.2)])
        assert simulator.trade("AAPL", 1).price == D("0.2")
        simulator.send_quotes([SimQuote("AAPL", 0.3, 0)])
        assert simulator.trade("AAPL", 1).price == D("0.3")
        simulator.send_quotes([SimQuote("AAPL", 0, 0)])
        assert simulator.trade("AAPL", 1).price == D("187.13")
        assert simulator.positions[0].qty == 5


async def test_trades_open_turn_and_close() -> None:
    async with opened(received_size=3) as simulator:
        for qty, price in [(10, 100), ("-15.0", "120.5"), (2.5, 90.1), (2.5, 1)]:
            simulator.trade("msft", qty, price)
        assert simulator.positions == ()
        assert [(t.symbol, t.qty, t.price) for t in simulator.trades] == [
            ("MSFT", D("-15"), D("120.5")),
            ("MSFT", D("2.5"), D("90.1")),
            ("MSFT", D("2.5"), D(1)),
        ]


@pytest.mark.parametrize(
    ("symbol", "qty", "price", "error"),
    [
        ("A B", 1, 1, InvalidSymbol),
        ("*", 1, 1, ValueError),
        ("A", 0, 1, ValueError),
        ("A", 1, -1, ValueError),
        ("A", "x", 1, ValueError),
    ],
)
async def test_a_trade_that_cannot_be_changes_nothing(
    symbol: str, qty: Any, price: Any, error: type[Exception]
) -> None:
    async with opened() as simulator:
        with pytest.raises(error):
            simulator.trade(symbol, qty, price)
        assert simulator.positions == ()
        assert not simulator.trades


async def test_who_waits_for_a_position_is_woken(autojump_clock: MockClock) -> None:
    async with opened() as simulator, anyio.create_task_group() as tasks:
        with anyio.fail_after(5):

            async def buy() -> None:
                await trio.sleep(1)
                simulator.trade("AAPL", 1)

            tasks.start_soon(buy)
            await simulator.until(lambda s: bool(s.positions))
            assert trio.current_time() == 1


async def test_the_trader_trades_at_bid_and_ask(autojump_clock: MockClock) -> None:
    async with opened(positions=DEMO_POSITIONS, trade_every_s=20) as simulator:
        simulator.send_quotes([SimQuote(symbol, 5, 6) for symbol in SYMBOLS])
        await trio.sleep(20.5 + 19 * 20)
        assert len(simulator.trades) == 20
        for trade in simulator.trades:
            assert trade.price == (6 if trade.qty > 0 else 5)
        first = list(simulator.trades)
    async with opened(positions=DEMO_POSITIONS, trade_every_s=20) as simulator:
        simulator.send_quotes([SimQuote(symbol, 5, 6) for symbol in SYMBOLS])
        await trio.sleep(20.5 + 19 * 20)
        assert list(simulator.trades) == first


SYMBOLS = (*DEMO_POSITIONS, "AMD", "QQQ", "INTC", "BAC")


async def test_nobody_trades_unasked(autojump_clock: MockClock) -> None:
    async with opened(positions=DEMO_POSITIONS) as simulator:
        await trio.sleep(1_000)
        assert not simulator.trades


def test_a_setting_that_cannot_be_is_refused() -> None:
    for settings in ({"trade_every_s": 0}, {"positions": {"A": (0, 1)}}):
        with pytest.raises(ValueError):
            SimulatorConfig(**settings)
