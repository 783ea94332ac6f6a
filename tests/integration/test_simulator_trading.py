"""alpaca-py's own trading client, unchanged, each call in a worker thread."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest
from alpaca.common.exceptions import APIError
from alpaca.trading.client import TradingClient
from alpaca.trading.enums import OrderSide, OrderStatus, PositionSide, TimeInForce
from alpaca.trading.requests import ClosePositionRequest, MarketOrderRequest, StopOrderRequest

from mdservice.simulator import (
    DEMO_POSITIONS,
    SimQuote,
    Simulator,
    SimulatorConfig,
    open_simulator,
)
from tests.integration.conftest import patient

LIMIT_S = 60
DEMO = {symbol: qty for symbol, (qty, _) in DEMO_POSITIONS.items()}


@pytest.fixture(params=["trio", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Runs a test's body beside a simulator, on either event loop."""

    def with_simulator(body: Callable[[Simulator], Any], **settings: Any) -> None:
        async def main() -> None:
            with anyio.fail_after(patient(LIMIT_S)):
                config = SimulatorConfig(**{"rate": 0, "positions": DEMO_POSITIONS, **settings})
                async with open_simulator(config) as simulator:
                    await body(simulator)

        anyio.run(main, backend=request.param)

    return with_simulator


def trading(simulator: Simulator, **options: Any) -> TradingClient:
    return TradingClient("key", "secret", url_override=simulator.rest_url, **options)


async def call(function: Callable[..., Any], *args: Any) -> Any:
    """In a thread; the simulator goes on meanwhile."""
    return await anyio.to_thread.run_sync(partial(function, *args))


def market(symbol: str, side: OrderSide, **amount: float) -> MarketOrderRequest:
    return MarketOrderRequest(symbol=symbol, side=side, time_in_force=TimeInForce.DAY, **amount)


def test_get_all_positions_raw_and_as_models(run: Callable[..., None]) -> None:
    async def body(simulator: Simulator) -> None:
        raw = await call(trading(simulator, raw_data=True).get_all_positions)
        assert {position["symbol"]: position["qty"] for position in raw} == DEMO
        models = await call(trading(simulator).get_all_positions)
        assert {position.symbol: position.qty for position in models} == DEMO
        for position, model in zip(raw, models, strict=True):
            numbers = {name: v for name, v in position.items() if name != "asset_marginable"}
            assert all(isinstance(value, str) for value in numbers.values())
            assert model.side is (PositionSide.SHORT if model.qty[0] == "-" else PositionSide.LONG)
            assert str(model.asset_id) == position["asset_id"]
            known = {name: value for name, value in model.model_dump(mode="json").items() if value}
            assert known == {name: value for name, value in position.items() if value}

    run(body)


@pytest.mark.parametrize("raw_data", [True, False])
def test_get_open_position(run: Callable[..., None], raw_data: bool) -> None:
    async def body(simulator: Simulator) -> None:
        client = trading(simulator, raw_data=raw_data)
        found = await call(client.get_open_position, "TSLA")
        assert (found["qty"] if raw_data else found.qty) == "-40"
        asset_id = found["asset_id"] if raw_data else found.asset_id
        assert await call(client.get_open_position, asset_id) == found
        with pytest.raises(APIError) as caught:
            await call(client.get_open_position, "KO")
        assert (caught.value.status_code, caught.value.code) == (404, 40410000)
        assert caught.value.message == "position does not exist"

    run(body)


def test_submit_order_fills_a_market_order(run: Callable[..., None]) -> None:
    async def body(simulator: Simulator) -> None:
        simulator.send_quotes([SimQuote("KO", 62.5, 62.75)])
        client = trading(simulator)
        order = await call(client.submit_order, market("KO", OrderSide.BUY, qty=1.5))
        assert order.status is OrderStatus.FILLED
        assert (order.filled_qty, order.filled_avg_price) == ("1.5", "62.75")
        spent = await call(client.submit_order, market("KO", OrderSide.BUY, notional=502))
        assert (spent.notional, spent.filled_qty) == ("502", "8")
        raw = trading(simulator, raw_data=True)
        sold = await call(raw.submit_order, market("KO", OrderSide.SELL, qty=9))
        assert (sold["status"], sold["filled_avg_price"]) == ("filled", "62.5")
        position = await call(client.get_open_position, "KO")
        assert (position.qty, position.avg_entry_price) == ("0.5", "62.75")

    run(body, positions={})


def test_submit_order_is_refused_as_by_alpaca(run: Callable[..., None]) -> None:
    async def body(simulator: Simulator) -> None:
        client = trading(simulator)
        with pytest.raises(APIError) as caught:
            await call(client.submit_order, market("META", OrderSide.SELL, qty=20))
        assert (caught.value.status_code, caught.value.code) == (403, 40310000)
        assert "(requested: 20, available: 12.5)" in caught.value.message
        stop = StopOrderRequest(
            symbol="META", qty=1, side="buy", time_in_force="day", stop_price=900
        )
        with pytest.raises(APIError) as caught:
            await call(client.submit_order, stop)
        assert caught.value.status_code == 422
        assert not simulator.trades

    run(body)


@pytest.mark.parametrize("raw_data", [True, False])
def test_close_position_and_close_all_positions(run: Callable[..., None], raw_data: bool) -> None:
    async def body(simulator: Simulator) -> None:
        client = trading(simulator, raw_data=raw_data)
        part = await call(client.close_position, "NVDA", ClosePositionRequest(qty="50"))
        assert (part["filled_qty"] if raw_data else part.filled_qty) == "50"
        await call(client.close_position, "MSFT")
        assert [h.symbol for h in simulator.positions] == [s for s in DEMO if s != "MSFT"]
        closed = await call(client.close_all_positions, True)
        symbols = [one["symbol"] if raw_data else one.symbol for one in closed]
        assert symbols == [symbol for symbol in DEMO if symbol != "MSFT"]
        statuses = {one["body"]["status"] if raw_data else one.body.status for one in closed}
        assert statuses == {"filled"}
        assert await call(client.get_all_positions) == []

    run(body)


def test_the_clock_the_positions_and_the_trader_go_together(run: Callable[..., None]) -> None:
    async def body(simulator: Simulator) -> None:
        client = trading(simulator)
        assert (await call(client.get_clock)).is_open
        await simulator.until(lambda s: len(s.trades) >= 3)
        positions = await call(client.get_all_positions)
        assert {p.symbol: p.qty for p in positions} != DEMO

    run(body, trade_every_s=0.01)
