"""alpaca-py's own TradingStream and TradingClient together, unchanged, each in threads."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest
from alpaca.trading.client import TradingClient
from alpaca.trading.enums import (
    AssetClass,
    OrderClass,
    OrderSide,
    OrderStatus,
    OrderType,
    QueryOrderStatus,
    TimeInForce,
    TradeEvent,
)
from alpaca.trading.models import TradeActivity, TradeUpdate
from alpaca.trading.requests import (
    GetOrdersRequest,
    LimitOrderRequest,
    MarketOrderRequest,
    OptionLegRequest,
    ReplaceOrderRequest,
)
from alpaca.trading.stream import TradingStream

from mdservice.simulator import SimQuote, Simulator, SimulatorConfig, open_simulator
from mdservice.simulator.crypto import QUOTES as PAIR_QUOTES
from mdservice.simulator.crypto import SimPairQuote
from mdservice.simulator.options import QUOTES as OPTION_QUOTES
from mdservice.simulator.options import SimOptionQuote
from tests.integration.conftest import patient

LIMIT_S = 60
CALL, PUT = "AAPL261218C00200000", "AAPL261218P00150000"


@pytest.fixture(params=["trio", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Runs a test's body beside a simulator, on either event loop."""

    def with_simulator(body: Callable[[Simulator], Any], **settings: Any) -> None:
        async def main() -> None:
            with anyio.fail_after(patient(LIMIT_S)):
                config = SimulatorConfig(**{"rate": 0, **settings})
                async with open_simulator(config) as simulator:
                    await body(simulator)

        anyio.run(main, backend=request.param)

    return with_simulator


class Listener:
    """The SDK's stream and what its handler was given."""

    def __init__(self, simulator: Simulator, *, raw_data: bool = False, key: str = "key") -> None:
        self.stream = TradingStream(
            key, "secret", raw_data=raw_data, url_override=simulator.stream_url("trading")
        )
        self.updates: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.stream.subscribe_trade_updates(self.handle)
        self.thread = threading.Thread(target=self.stream.run)

    async def handle(self, update: Any) -> None:
        self.updates.put(update)

    async def next(self) -> Any:
        return await anyio.to_thread.run_sync(partial(self.updates.get, timeout=LIMIT_S))

    async def expect(self, event: TradeEvent, **order: Any) -> TradeUpdate:
        update: TradeUpdate = await self.next()
        assert update.event == event
        assert {name: getattr(update.order, name) for name in order} == order
        return update


@asynccontextmanager
async def listening(simulator: Simulator, **options: Any) -> AsyncIterator[Listener]:
    """Let the thread end with the block, whatever happens in it."""
    listener = Listener(simulator, **options)
    listener.thread.start()
    try:
        await simulator.until(
            lambda s: any(c.subscriptions["streams"] for c in s.trading_connections)
        )
        yield listener
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(listener.stream.stop)
            # The SDK looks at this only every 5 s, unless a message comes.
            simulator.send_messages([{"stream": "listening"}], feed="trading")
            await anyio.to_thread.run_sync(partial(listener.thread.join, LIMIT_S))


def trading(simulator: Simulator, **options: Any) -> TradingClient:
    return TradingClient("key", "secret", url_override=simulator.rest_url, **options)


async def call(function: Callable[..., Any], *args: Any) -> Any:
    """In a thread; the simulator goes on meanwhile."""
    return await anyio.to_thread.run_sync(partial(function, *args))


def limit(symbol: str, side: str, qty: float, price: float, **more: Any) -> LimitOrderRequest:
    return LimitOrderRequest(
        **{
            "symbol": symbol,
            "side": side,
            "qty": qty,
            "time_in_force": TimeInForce.DAY,
            "limit_price": price,
            **more,
        }
    )


@pytest.mark.parametrize("text_updates", [True, False])
def test_a_market_order_is_new_and_then_filled(
    run: Callable[..., None], text_updates: bool
) -> None:
    async def body(simulator: Simulator) -> None:
        simulator.send_quotes([SimQuote("KO", 62.5, 62.75)])
        async with listening(simulator) as listener:
            order = await call(
                trading(simulator).submit_order,
                MarketOrderRequest(symbol="KO", side="buy", qty=4, time_in_force="day"),
            )
            assert order.status is OrderStatus.FILLED
            await listener.expect(TradeEvent.NEW, id=order.id, status=OrderStatus.NEW)
            fill = await listener.expect(
                TradeEvent.FILL, id=order.id, symbol="KO", status=OrderStatus.FILLED
            )
            assert (fill.price, fill.qty, fill.position_qty) == (62.75, 4, 4)

    run(body, text_updates=text_updates)


def test_a_limit_order_rests_is_partly_filled_replaced_and_canceled(
    run: Callable[..., None],
) -> None:
    async def body(simulator: Simulator) -> None:
        simulator.send_quotes([SimQuote("KO", 62.5, 62.75)])
        client = trading(simulator)
        async with listening(simulator) as listener:
            order = await call(client.submit_order, limit("KO", "buy", 10, 60.5))
            assert (order.status, order.type) == (OrderStatus.NEW, OrderType.LIMIT)
            await listener.expect(TradeEvent.NEW, id=order.id, limit_price="60.5")
            simulator.fill_order(str(order.id), 4)
            part = await listener.expect(
                TradeEvent.PARTIAL_FILL, status=OrderStatus.PARTIALLY_FILLED, filled_qty="4"
            )
            assert (part.qty, part.position_qty, part.price) == (4, 4, 62.75)
            new = await call(
                client.replace_order_by_id, order.id, ReplaceOrderRequest(limit_price=61)
            )
            old = await listener.expect(TradeEvent.REPLACED, id=order.id, replaced_by=new.id)
            assert old.order.replaced_at is not None
            await listener.expect(TradeEvent.NEW, id=new.id, replaces=order.id, qty="6")
            (found,) = await call(client.get_orders)
            assert found.id == new.id
            simulator.send_quotes([SimQuote("KO", 60.5, 60.75)])
            filled = await listener.expect(TradeEvent.FILL, id=new.id, filled_avg_price="60.75")
            assert filled.position_qty == 10
            third = await call(client.submit_order, limit("KO", "sell", 10, 99))
            await listener.expect(TradeEvent.NEW, id=third.id)
            await call(client.cancel_order_by_id, third.id)
            await listener.expect(
                TradeEvent.CANCELED, id=third.id, status=OrderStatus.CANCELED, filled_qty="0"
            )
            assert await call(client.get_orders) == []
            closed = await call(client.get_orders, GetOrdersRequest(status=QueryOrderStatus.CLOSED))
            assert [each.id for each in closed] == [third.id, new.id, order.id]
            assert (await call(client.get_order_by_id, third.id)).status is OrderStatus.CANCELED

    run(body)


def test_orders_expire_and_are_rejected_and_canceled_together(run: Callable[..., None]) -> None:
    async def body(simulator: Simulator) -> None:
        client = trading(simulator)
        async with listening(simulator) as listener:
            day = await call(client.submit_order, limit("KO", "buy", 1, 1))
            gtc = await call(
                client.submit_order, limit("KO", "buy", 1, 1, time_in_force=TimeInForce.GTC)
            )
            for order in (day, gtc):
                await listener.expect(TradeEvent.NEW, id=order.id)
            simulator.end_day()
            await listener.expect(TradeEvent.EXPIRED, id=day.id, status=OrderStatus.EXPIRED)
            simulator.reject_orders()
            rejected = await call(client.submit_order, limit("KO", "buy", 1, 1))
            await listener.expect(TradeEvent.REJECTED, id=rejected.id, status=OrderStatus.REJECTED)
            (canceled,) = await call(client.cancel_orders)
            assert (canceled.id, canceled.status) == (gtc.id, 200)
            await listener.expect(TradeEvent.CANCELED, id=gtc.id)
            never = await call(
                client.submit_order, limit("KO", "buy", 1, 1, time_in_force=TimeInForce.IOC)
            )
            assert never.status is OrderStatus.CANCELED
            await listener.expect(TradeEvent.NEW, id=never.id)
            await listener.expect(TradeEvent.CANCELED, id=never.id)

    run(body)


def test_crypto_has_a_slash_in_orders_and_none_in_positions(run: Callable[..., None]) -> None:
    async def body(simulator: Simulator) -> None:
        simulator.send_records(PAIR_QUOTES, [SimPairQuote("BTC/USD", 64_000, 64_010)])
        client = trading(simulator)
        async with listening(simulator) as listener:
            buy = MarketOrderRequest(symbol="BTC/USD", side="buy", qty=0.25, time_in_force="gtc")
            order = await call(client.submit_order, buy)
            await listener.expect(TradeEvent.NEW, id=order.id)
            fill = await listener.expect(
                TradeEvent.FILL, symbol="BTC/USD", asset_class=AssetClass.CRYPTO
            )
            assert (fill.price, fill.position_qty) == (64_010, 0.25)
            (position,) = await call(client.get_all_positions)
            assert (position.symbol, position.asset_class) == ("BTCUSD", AssetClass.CRYPTO)
            assert (position.qty, position.current_price) == ("0.25", "64005")
            assert position.market_value == "16001.25"
            await call(client.close_position, "BTCUSD")
            await listener.expect(TradeEvent.NEW)
            closed = await listener.expect(TradeEvent.FILL, symbol="BTC/USD")
            assert (closed.price, closed.position_qty) == (64_000, 0)

    run(body)


@pytest.mark.parametrize("raw_data", [True, False])
def test_a_multi_leg_order_has_positions_of_every_leg(
    run: Callable[..., None], raw_data: bool
) -> None:
    async def body(simulator: Simulator) -> None:
        simulator.send_records(
            OPTION_QUOTES, [SimOptionQuote(CALL, 5.0, 5.2), SimOptionQuote(PUT, 2.0, 2.1)]
        )
        client = trading(simulator)
        async with listening(simulator, raw_data=raw_data) as listener:
            spread = LimitOrderRequest(
                qty=3,
                order_class=OrderClass.MLEG,
                time_in_force=TimeInForce.DAY,
                limit_price=3.2,
                legs=[
                    OptionLegRequest(symbol=CALL, ratio_qty=1, side=OrderSide.BUY),
                    OptionLegRequest(symbol=PUT, ratio_qty=2, position_intent="sell_to_open"),
                ],
            )
            order = await call(client.submit_order, spread)
            assert order.status is OrderStatus.FILLED
            assert [leg.filled_avg_price for leg in order.legs] == ["5.2", "2"]
            new, fill = await listener.next(), await listener.next()
            if raw_data:
                data = fill["data"]
                assert data["position_qtys"] == {CALL: "3", PUT: "-6"}
                assert [leg["position_qty"] for leg in data["legs"]] == ["3", "-6"]
                assert (data["order"]["symbol"], data["price"]) == ("", "1.2")
                assert "position_qty" not in data
            else:
                assert (new.event, fill.event) == (TradeEvent.NEW, TradeEvent.FILL)
                assert (fill.order.symbol, fill.position_qty) == (None, None)
                assert [leg.symbol for leg in fill.order.legs] == [CALL, PUT]
            positions = await call(client.get_all_positions)
            assert {p.symbol: (p.qty, p.asset_class.value) for p in positions} == {
                CALL: ("3", "us_option"),
                PUT: ("-6", "us_option"),
            }
            assert [p.market_value for p in positions] == ["1530", "-1230"]

    run(body)


def test_the_account_and_its_activities(run: Callable[..., None]) -> None:
    async def body(simulator: Simulator) -> None:
        simulator.send_quotes([SimQuote("KO", 62.5, 62.75)])
        client = trading(simulator)
        for side in (OrderSide.BUY, OrderSide.SELL):
            order = MarketOrderRequest(symbol="KO", side=side, qty=100, time_in_force="day")
            await call(client.submit_order, order)
        account = await call(client.get_account)
        # 25 dollars of spread and a fee of 0.07 dollars
        assert (account.cash, account.equity) == ("99974.93", "99974.93")
        assert account.last_equity == "100000"
        assert not account.trade_suspended_by_user
        rows = await call(client.get, "/account/activities", {"direction": "asc"})
        assert [row["activity_type"] for row in rows] == ["FILL", "FILL", "FEE"]
        fills = [TradeActivity(**{**row, "account_id": str(account.id)}) for row in rows[:2]]
        assert [(fill.side, fill.price, fill.qty) for fill in fills] == [
            (OrderSide.BUY, 62.75, 100),
            (OrderSide.SELL, 62.5, 100),
        ]
        assert Decimal(rows[2]["net_amount"]) == Decimal("-0.07")
        configuration = await call(client.get_account_configurations)
        configuration.suspend_trade = True
        assert (await call(client.set_account_configurations, configuration)).suspend_trade
        assert (await call(client.get_account)).trade_suspended_by_user
        with pytest.raises(Exception, match="rejected by user request"):
            await call(client.submit_order, limit("KO", "buy", 1, 1))

    run(body, sale_fee="0.00001")


def test_a_refused_login_is_reported_and_tried_again(
    run: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    async def body(simulator: Simulator) -> None:
        simulator.refuse_next(402, feed="trading")
        with caplog.at_level(logging.ERROR):
            async with listening(simulator) as listener:
                simulator.trade("KO", 1)
                await listener.expect(TradeEvent.NEW)
                await listener.expect(TradeEvent.FILL)
        assert "failed to authenticate" in caplog.text

    run(body)


def test_the_stream_comes_back_after_a_cut(run: Callable[..., None]) -> None:
    async def body(simulator: Simulator) -> None:
        async with listening(simulator) as listener:
            (first,) = simulator.trading_connections
            simulator.drop(feed="trading")
            simulator.trade("KO", 1)  # this update is lost
            await simulator.until(
                lambda s: any(
                    c.number > first.number and c.subscriptions["streams"]
                    for c in s.trading_connections
                )
            )
            simulator.trade("KO", 1)
            await listener.expect(TradeEvent.NEW)
            assert (await listener.expect(TradeEvent.FILL)).position_qty == 2

    run(body)
