"""The account's day over HTTP: simulator, Valkey and gateway, on both event loops."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI

from mdservice.clock import SystemClock
from mdservice.gateway.make import make_tracker
from mdservice.gateway.router import DayAnswer, tracker_router
from mdservice.pnl.day import new_york_date
from mdservice.settings import Settings
from mdservice.simulator import SimQuote, Simulator, SimulatorConfig, open_simulator
from tests.integration.conftest import patient
from tests.integration.gateway.conftest import LIMIT_S, PNL, Gateway, exact

DAY = "/api/v1/account/pnl/day"
D = Decimal
CENT = D("0.01")
POSITIONS = {"AAPL": (10, "180.5"), "MSFT": (-20, "430"), "BTC/USD": ("0.5", 80_000)}
CALL = "AAPL261218C00200000"


class Desk:
    """A simulated account, and gateways of it."""

    def __init__(self, valkey: Any, simulator: Simulator) -> None:
        self.valkey = valkey
        self.simulator = simulator
        self.settings = Settings(
            positions="alpaca",
            positions_interval=0.05,
            trading_url=simulator.rest_url,
            api_key="key",
            secret_key="secret",
        )

    @asynccontextmanager
    async def gateway(self, *, lifespan: bool = True) -> AsyncIterator[Gateway]:
        app = FastAPI()
        tracker = make_tracker("alpaca", self.settings, redis_url=self.valkey.url)
        app.include_router(tracker_router(tracker))
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            gateway = Gateway(self.valkey, None, client, tracker)
            if not lifespan:
                try:
                    yield gateway
                finally:
                    await tracker.aclose()
                return
            async with app.router.lifespan_context(app):
                yield gateway

    @property
    def gained(self) -> Decimal:
        """What the account itself says."""
        balances = self.simulator.balances
        return balances.exact_equity - balances.last_equity


Body = Callable[[Desk], Awaitable[None]]


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest, valkey: Any) -> Callable[..., None]:
    def with_desk(body: Body, **settings: Any) -> None:
        async def main() -> None:
            config = {"rate": 0, "crypto_rate": 0, "options_rate": 0, "rest_rate_limit": None}
            with anyio.fail_after(patient(LIMIT_S)):
                async with open_simulator(SimulatorConfig(**{**config, **settings})) as simulator:
                    await body(Desk(valkey, simulator))

        anyio.run(main, backend=request.param)

    return with_desk


async def day(gateway: Gateway, status: int = 200) -> dict[str, Any]:
    answer = await gateway.http.get(DAY)
    assert answer.status_code == status, answer.text
    if status == 200:
        DayAnswer.model_validate_json(answer.text)
    return exact(answer.text)


async def until(
    gateway: Gateway, condition: Callable[[dict[str, Any]], Any], *, poll: bool = True
) -> dict[str, Any]:
    """The first answer for which it holds; the activities are read for each."""
    assert gateway.tracker.day is not None
    while True:
        await gateway.tracker.positions.refresh()
        if poll:
            await gateway.tracker.day.poll()
        found = await day(gateway)
        if condition(found):
            return found
        await anyio.sleep(0.02)


def settled(desk: Desk, count: int) -> Callable[[dict[str, Any]], bool]:
    """Whether the gateway has so many fills, and what the account holds now."""

    def is_settled(found: dict[str, Any]) -> bool:
        held = {one.symbol.replace("/", ""): one.qty for one in desk.simulator.positions}
        quantities = [one["qty"] == held.get(one["symbol"], 0) for one in found["symbols"]]
        return all(quantities) and sum(one["fills"] for one in found["symbols"]) == count

    return is_settled


def test_a_day_without_trades(run: Callable[..., None]) -> None:
    async def body(desk: Desk) -> None:
        desk.simulator.send_quotes([SimQuote("AAPL", 190, 191)])
        async with desk.gateway() as gateway:
            found = await until(gateway, lambda _: True)
            assert found.pop("total") == desk.gained
            change = found.pop("unrealized_change")
            assert change == desk.gained
            assert found == {
                "date": new_york_date(SystemClock().utc_ns()),
                "realized_pnl": 0,
                "fees": 0,
                "symbols": [],
            }
            rows = await gateway.pnl()
            assert rows["total_day_pnl"] == desk.gained
            assert rows["realized_day_pnl"] == 0
            assert sum(row["day_pnl"] for row in rows["positions"]) == desk.gained

    run(body, positions=POSITIONS)


def test_fills_fees_and_a_position_that_is_gone(run: Callable[..., None]) -> None:
    async def body(desk: Desk) -> None:
        simulator = desk.simulator
        async with desk.gateway() as gateway:
            await until(gateway, lambda _: True)
            simulator.trade("AAPL", -4, 200)
            simulator.trade("AAPL", 6, 210)
            simulator.trade("MSFT", 20, 420)
            simulator.trade("BTC/USD", "0.1", 90_000)
            simulator.trade(CALL, 2, "5.10")
            simulator.trade(CALL, -2, "5.60")
            found = await until(gateway, settled(desk, 6))
            assert found["realized_pnl"] == 4 * (200 - D("180.5")) + 20 * 10 + 100
            assert found["total"] == desk.gained
            fees = -sum(
                D(str(one.row["net_amount"]))
                for one in simulator.activities
                if one.activity_type == "FEE"
            )
            coins = D("0.1") * D("0.0025") * 90_000
            assert found["fees"] == fees + coins
            assert found["symbols"] == [
                {"symbol": "AAPL", "realized_pnl": D("78"), "fills": 2, "qty": 12},
                {"symbol": "MSFT", "realized_pnl": 200, "fills": 1, "qty": 0},
                {
                    "symbol": "BTCUSD",
                    "realized_pnl": 0,
                    "fills": 1,
                    "qty": D("0.59975"),
                },
                {"symbol": CALL, "realized_pnl": 100, "fills": 2, "qty": 0},
            ]
            assert gateway.tracker.day is not None
            assert gateway.tracker.day.warnings() == []
            rows = await gateway.pnl()
            assert rows["total_day_pnl"] == sum(row["day_pnl"] for row in rows["positions"])
            assert rows["realized_day_pnl"] == found["realized_pnl"]

    run(body, positions=POSITIONS, sale_fee="0.0000278", coin_fee="0.0025")


def test_a_restart_knows_what_was_sold_before(run: Callable[..., None], valkey: Any) -> None:
    async def body(desk: Desk) -> None:
        async with desk.gateway() as gateway:
            await until(gateway, lambda _: True)
            desk.simulator.trade("AAPL", -10, 200)
            first = await until(gateway, settled(desk, 1))
            assert first["realized_pnl"] == 10 * (200 - D("180.5"))
        async with desk.gateway() as gateway:
            assert await until(gateway, settled(desk, 1)) == first
            assert first["total"] == desk.gained
        with valkey.client() as client:
            client.delete(*client.keys("mdservice:day_start:*"))
        async with desk.gateway() as gateway:
            found = await until(gateway, settled(desk, 1))
            assert (found["realized_pnl"], found["total"]) == (None, None)
            assert found["unrealized_change"] is None
            assert found["warnings"] == [
                "AAPL: its average entry price at the start of the day is not known"
            ]
            rows = await gateway.pnl()
            assert "AAPL" not in [row["symbol"] for row in rows["positions"]]
            assert rows["total_day_pnl"] == sum(row["day_pnl"] for row in rows["positions"])
            assert rows["realized_day_pnl"] is None

    run(body, positions=POSITIONS)


def test_the_average_comes_from_the_fills_of_the_days_before(run: Callable[..., None]) -> None:
    """Nothing was remembered; what is left would be enough only before the position is gone."""

    async def body(desk: Desk) -> None:
        simulator = desk.simulator
        for qty, price in ((100, 10), (50, 9), (-50, 20), (50, 11)):
            simulator.trade("KO", qty, price)
        simulator.end_day()
        simulator.trade("KO", -150, 12)
        async with desk.gateway() as gateway:
            found = await until(gateway, settled(desk, 1))
            (symbol,) = found["symbols"]
            assert (symbol["symbol"], symbol["realized_pnl"]) == ("KO", 150 * 2)

    run(body, positions={})


def test_what_else_moved_cash_is_named(run: Callable[..., None]) -> None:
    async def body(desk: Desk) -> None:
        desk.simulator.move_cash(500, "CSD")
        desk.simulator.move_cash("-20.5", "CSW")
        desk.simulator.move_cash("1.02", "DIV", symbol="AAPL")
        desk.simulator.move_cash("-0.05", "FEE")
        async with desk.gateway() as gateway:
            found = await until(gateway, lambda found: found["fees"])
            assert (found["total"], found["fees"]) == (D("-0.05"), D("0.05"))
            moved = D(500) - D("20.5") + D("1.02")
            assert desk.gained == found["total"] + moved
            assert found["warnings"] == [
                "other activities changed the equity too, in dollars: CSD 500, CSW -20.5, DIV 1.02"
            ]
            assert gateway.tracker.day is not None
            assert gateway.tracker.day.difference == 0

    run(body, positions=POSITIONS)


def test_a_difference_is_reported_until_it_is_gone(run: Callable[..., None]) -> None:
    async def body(desk: Desk) -> None:
        account = desk.simulator._paper_account
        async with desk.gateway() as gateway:
            assert "warnings" not in await until(gateway, lambda _: True)
            account.cash += D("12.34")
            found = await until(gateway, lambda found: "warnings" in found)
            assert found["warnings"] == [
                "the equity changed by 12.34 dollars more than this P&L and the activities explain"
            ]
            account.cash -= D("12.34")
            await until(gateway, lambda found: "warnings" not in found)

    run(body, positions=POSITIONS)


def test_without_an_account_there_is_no_day(run: Callable[..., None]) -> None:
    async def body(desk: Desk) -> None:
        desk.settings = Settings(positions="alpaca", trading_url="http://127.0.0.1:1/", api_key="k", secret_key="s")  # fmt: skip
        async with desk.gateway() as gateway:
            assert "detail" in await day(gateway, 503)
        tracker = make_tracker(list, Settings(), redis_url=desk.valkey.url)
        app = FastAPI()
        app.include_router(tracker_router(tracker))
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            answer = await client.get(DAY)
            assert (answer.status_code, "ALPACA_API_KEY" in answer.text) == (503, True)
            assert (await client.get(PNL)).json()["realized_day_pnl"] is None
        await tracker.aclose()

    run(body)


def test_a_gateway_without_its_lifespan_answers_too(run: Callable[..., None]) -> None:
    async def body(desk: Desk) -> None:
        desk.simulator.trade("AAPL", -4, 200)
        async with desk.gateway(lifespan=False) as gateway:
            found = await day(gateway)
            assert (found["realized_pnl"], found["total"]) == (78, desk.gained)

    run(body, positions=POSITIONS)


@pytest.mark.parametrize("seed", range(3))
def test_random_days_agree_with_the_accounts_own_equity(
    run: Callable[..., None], seed: int
) -> None:
    """Orders over HTTP, at prices that move; each total is the change of the equity."""

    async def body(desk: Desk) -> None:
        chance = random.Random(seed)
        simulator = desk.simulator
        prices = {"AAPL": 187, "MSFT": 430, "KO": 60, "BTC/USD": 90_000, CALL: 5}
        order_ids = 0
        async with (
            desk.gateway() as gateway,
            httpx.AsyncClient(base_url=simulator.rest_url) as broker,
        ):
            await until(gateway, lambda _: True)
            for _ in range(25):
                symbol = chance.choice(list(prices))
                mid = prices[symbol] * chance.uniform(0.97, 1.03)
                simulator.send_quotes([SimQuote(symbol, round(mid, 2), round(mid * 1.001, 2))])
                qty = chance.randint(1, 15)
                answer = await broker.post(
                    "/v2/orders",
                    json={
                        "symbol": symbol,
                        "qty": str(qty if symbol != "BTC/USD" else qty / 100),
                        "side": chance.choice(["buy", "sell"]),
                        "type": "market",
                        "time_in_force": "gtc" if "/" in symbol else "day",
                    },
                )
                order_ids += answer.status_code == 200
            count = sum(one.activity_type == "FILL" for one in simulator.activities)
            assert count >= order_ids > 5
            has_all = settled(desk, count)
            found = await until(
                gateway,
                lambda found: has_all(found) and abs(found["total"] - desk.gained) <= CENT,
            )
            assert gateway.tracker.day is not None
            assert gateway.tracker.day.warnings() == []
            assert found["total"] == (
                found["realized_pnl"] + found["unrealized_change"] - found["fees"]
            )

    run(body, positions=POSITIONS, sale_fee="0.0000278", coin_fee="0.0025", fills_per_order=3)


def test_a_night_between_two_days(run: Callable[..., None]) -> None:
    async def body(desk: Desk) -> None:
        simulator = desk.simulator
        async with desk.gateway() as gateway:
            await until(gateway, lambda _: True)
            simulator.trade("AAPL", -4, 200)
            simulator.trade("KO", 10, 60)
            await until(gateway, settled(desk, 2))
            simulator.end_day()
            found = await until(gateway, lambda found: not found["symbols"])
            assert (found["realized_pnl"], found["total"]) == (0, desk.gained)
            simulator.trade("KO", -10, 66)
            found = await until(gateway, settled(desk, 1))
            assert (found["realized_pnl"], found["total"]) == (60, desk.gained)
        async with desk.gateway() as gateway:
            found = await until(gateway, settled(desk, 1))
            assert (found["realized_pnl"], found["total"]) == (60, desk.gained)

    run(body, positions=POSITIONS)
