"""The account over REST, by httpx, on trio's virtual clock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import anyio
import httpx
import pytest
from trio.testing import MockClock

from mdservice.simulator import SimQuote, Simulator, SimulatorConfig, open_simulator
from mdservice.simulator.transport import SimulatorTransport

D = Decimal
DAY_NS = 86_400_000_000_000
ACCOUNT, ACTIVITIES = "/v2/account", "/v2/account/activities"
CONFIGURATIONS = "/v2/account/configurations"
CALL = "AAPL261218C00200000"


class SetClock:
    """A clock that the test sets: 2026-11-20T15:51:44.208Z, 10:51 in New York."""

    def __init__(self) -> None:
        self.now_ns = 1_795_189_904_208_000_000

    def monotonic(self) -> float:
        return anyio.current_time()

    def utc_ns(self) -> int:
        return self.now_ns


@asynccontextmanager
async def opened(
    clock: SetClock | None = None, **settings: Any
) -> AsyncIterator[tuple[Simulator, httpx.AsyncClient]]:
    config = SimulatorConfig(**{"rate": 0, "rest_rate_limit": None, **settings})
    with anyio.fail_after(900):
        async with (
            open_simulator(config, port=None, clock=clock or SetClock()) as simulator,
            httpx.AsyncClient(
                transport=SimulatorTransport(simulator), base_url=simulator.rest_url
            ) as client,
        ):
            yield simulator, client


async def ask(client: httpx.AsyncClient, path: str, **params: Any) -> Any:
    answer = await client.get(path, params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_equity_is_cash_and_positions_at_the_markets_prices(
    autojump_clock: MockClock,
) -> None:
    positions = {"AAPL": (10, 150), "TSLA": (-4, "350.5"), "BTCUSD": ("0.5", 60_000), CALL: (2, 4)}
    async with opened(positions=positions, cash="1000.505") as (simulator, client):
        before = await ask(client, ACCOUNT)
        assert before["equity"] == before["last_equity"]
        simulator.send_quotes([SimQuote("AAPL", 187.12, 187.15), SimQuote("TSLA", 340, 341)])
        rows = await ask(client, "/v2/positions")
        assert [row["symbol"] for row in rows] == ["AAPL", "TSLA", "BTCUSD", CALL]
        assert [row["asset_class"] for row in rows] == [
            *("us_equity", "us_equity", "crypto", "us_option")
        ]
        values = [D(row["market_value"]) for row in rows]
        lastday = [
            D(row["qty"]) * D(row["lastday_price"]) * (100 if row["symbol"] == CALL else 1)
            for row in rows
        ]
        account = await ask(client, ACCOUNT)
        assert account["cash"] == "1000.5"
        assert D(account["equity"]) == round(D("1000.505") + sum(values), 2)
        assert D(account["last_equity"]) == round(D("1000.505") + sum(lastday), 2)
        assert D(account["long_market_value"]) == round(sum(v for v in values if v > 0), 2)
        assert account["short_market_value"] == "-1362"
        assert D(account["buying_power"]) == 2 * D(account["non_marginable_buying_power"])
        day = sum(D(row["unrealized_intraday_pl"]) for row in rows)
        change = D(account["equity"]) - D(account["last_equity"])
        assert abs(change - day) <= D("0.01")


async def test_a_market_without_quotes_leaves_equity_and_fills_no_limit_order(
    autojump_clock: MockClock,
) -> None:
    async with opened(positions={"AAPL": (10, 150)}, cash=0) as (simulator, client):
        simulator.send_quotes([SimQuote("AAPL", 190, 192)])
        simulator.send_quotes([SimQuote("AAPL", 0, 0)])
        assert (await ask(client, ACCOUNT))["equity"] == "1910"
        limit = {"symbol": "AAPL", "qty": 1, "side": "buy", "type": "limit", "limit_price": 200}
        answer = await client.post("/v2/orders", json={**limit, "time_in_force": "gtc"})
        assert answer.json()["status"] == "new"


async def test_the_end_of_the_day_moves_last_prices_and_averages(
    autojump_clock: MockClock,
) -> None:
    async with opened() as (simulator, client):
        simulator.trade("AAPL", 10, 100)
        simulator.end_day()
        simulator.trade("AAPL", 10, 120)
        simulator.trade("AAPL", -10, 130)
        simulator.send_quotes([SimQuote("AAPL", 139, 141), SimQuote("KO", 60, 61)])
        (row,) = await ask(client, "/v2/positions")
        assert (row["avg_entry_price"], row["lastday_price"]) == ("110", "187.13")
        simulator.end_day()
        (row,) = await ask(client, "/v2/positions")
        assert (row["avg_entry_price"], row["lastday_price"]) == ("120", "140")
        assert (row["qty"], row["current_price"], row["change_today"]) == ("10", "140", "0")
        account = await ask(client, ACCOUNT)
        assert account["equity"] == account["last_equity"] == "100500"
        balances = simulator.balances
        assert (balances.cash, balances.long_value) == (D(99_100), D(1_400))
        assert balances.exact_equity == balances.last_equity == D(100_500)
        simulator.trade("KO", 1, 62)
        assert (await ask(client, "/v2/positions/KO"))["lastday_price"] == "60.5"


async def test_a_day_can_end_at_any_hour(autojump_clock: MockClock) -> None:
    async with opened() as (simulator, client):
        simulator.trade("AAPL", 1, 100)
        simulator.move_cash(5)
        simulator.end_day()
        simulator.trade("AAPL", 1, 100)
        simulator.end_day()
        simulator.end_day()
        simulator.trade("AAPL", 1, 100)
        rows = await ask(client, ACTIVITIES, direction="asc")
        dates = [row["id"][:8] for row in rows]
        assert dates == ["20261118", "20261118", "20261119", "20261120"]
        assert rows[0]["transaction_time"] == "2026-11-18T15:51:44.208000000Z"
        assert rows[1]["date"] == "2026-11-18"
        assert await ask(client, ACTIVITIES, date="2026-11-20") == rows[3:]


async def test_what_moves_cash_is_an_activity(autojump_clock: MockClock) -> None:
    async with opened(sale_fee="0.00002") as (simulator, client):
        simulator.trade("AAPL", 3, 100)
        simulator.trade("AAPL", -1, "100.25")
        simulator.move_cash("-0.05", "FEE", description="monthly")
        simulator.move_cash(20, "DIV", symbol="AAPL")
        assert (await ask(client, ACCOUNT))["cash"] == "99820.19"
        rows = await ask(client, ACTIVITIES, direction="asc")
        assert [row["activity_type"] for row in rows] == ["FILL", "FILL", "FEE", "FEE", "DIV"]
        assert [row.get("net_amount") for row in rows] == [None, None, "-0.01", "-0.05", "20"]
        sale = rows[1]
        assert sale.pop("id").startswith("20261120105144208::")
        assert sale.pop("order_id") == simulator.orders[1].id
        assert sale == {
            "activity_type": "FILL",
            "transaction_time": "2026-11-20T15:51:44.208000000Z",
            "type": "fill",
            "price": "100.25",
            "qty": "1",
            "side": "sell",
            "symbol": "AAPL",
            "leaves_qty": "0",
            "cum_qty": "1",
            "order_status": "filled",
        }
        assert rows[4]["id"].startswith("20261120000000000::")
        assert (rows[4]["date"], rows[4]["symbol"]) == ("2026-11-20", "AAPL")


async def test_a_purchase_of_crypto_costs_coins(autojump_clock: MockClock) -> None:
    async with opened(coin_fee="0.0025", sale_fee="0.0025") as (simulator, client):
        simulator.trade("BTC/USD", "0.5", 90_000)
        simulator.trade("BTC/USD", "-0.1", 90_000)
        simulator.trade("AAPL", 1, 100)
        rows = await ask(client, ACTIVITIES, direction="asc", category="non_trade_activity")
        assert [(row["activity_type"], row["net_amount"]) for row in rows] == [
            ("CFEE", "0"),
            ("FEE", "-22.5"),
        ]
        fee = rows[0]
        assert (fee["symbol"], fee["qty"], fee["price"]) == ("BTCUSD", "-0.00125", "90000")
        coins, _ = await ask(client, "/v2/positions")
        assert (coins["qty"], coins["avg_entry_price"]) == ("0.39875", "90000")


async def test_activities_come_in_pages_by_type_and_time(autojump_clock: MockClock) -> None:
    clock = SetClock()
    async with opened(clock) as (simulator, client):
        for day in range(3):
            for _ in range(5):
                simulator.trade("AAPL", 1, 100 + day)
            simulator.move_cash(-1, "FEE")
            clock.now_ns += DAY_NS
        every = await ask(client, ACTIVITIES, direction="asc")
        assert len({row["id"] for row in every}) == len(every) == 18
        assert await ask(client, ACTIVITIES) == every[::-1]
        for direction, expected in (("asc", every), ("desc", every[::-1])):
            seen: list[Any] = []
            while page := await ask(
                client,
                ACTIVITIES,
                direction=direction,
                page_size=4,
                **({"page_token": seen[-1]["id"]} if seen else {}),
            ):
                assert len(page) == min(4, 18 - len(seen))
                seen += page
            assert seen == expected
        fills = [row for row in every if row["activity_type"] == "FILL"]
        fees = [row for row in every if row["activity_type"] == "FEE"]
        asc = {"direction": "asc"}
        assert await ask(client, ACTIVITIES, activity_types="FILL", **asc) == fills
        assert await ask(client, f"{ACTIVITIES}/FEE", **asc) == fees
        assert await ask(client, ACTIVITIES, activity_types="FEE,FILL", **asc) == every
        assert await ask(client, ACTIVITIES, category="trade_activity", **asc) == fills
        assert await ask(client, ACTIVITIES, category="non_trade_activity", **asc) == fees
        assert await ask(client, ACTIVITIES, date="2026-11-21", **asc) == every[6:12]
        assert await ask(client, ACTIVITIES, after="2026-11-20T15:51:44.208Z", **asc) == every[6:]
        assert await ask(client, ACTIVITIES, until="2026-11-21", **asc) == every[:6]
        assert await ask(client, ACTIVITIES, after="2026-11-21", **asc) == every[6:]
        first = {"activity_types": "FILL", "page_size": 3, **asc}
        page = await ask(client, ACTIVITIES, **first)
        assert page == fills[:3]
        assert await ask(client, ACTIVITIES, page_token=page[-1]["id"], **first) == fills[3:6]


@pytest.mark.parametrize(
    "params",
    [
        {"page_size": 101},
        {"page_size": 0},
        {"page_token": "none"},
        {"direction": "up"},
        {"date": "today"},
        {"after": "today"},
    ],
)
async def test_activities_that_cannot_be_understood_are_400(
    params: dict[str, Any], autojump_clock: MockClock
) -> None:
    async with opened() as (_, client):
        assert (await client.get(ACTIVITIES, params=params)).status_code == 400


async def test_configurations_change_what_the_body_names(autojump_clock: MockClock) -> None:
    async with opened(trade_every_s=1) as (simulator, client):
        default = await ask(client, CONFIGURATIONS)
        assert default["suspend_trade"] is False
        answer = await client.patch(CONFIGURATIONS, json={"suspend_trade": True, "other": 1})
        assert (answer.status_code, answer.json()) == (200, {**default, "suspend_trade": True})
        assert (await ask(client, ACCOUNT))["trade_suspended_by_user"] is True
        for body in (b"{", b"[]", b'{"suspend_trade":"yes"}', b'"\xff"'):
            assert (await client.patch(CONFIGURATIONS, content=body)).status_code == 400
        assert (await ask(client, CONFIGURATIONS))["suspend_trade"] is True
        count = len(simulator.trades)
        await anyio.sleep(20)
        assert len(simulator.trades) == count
        body = {"symbol": "AAPL", "qty": "1", "side": "buy", "type": "market"}
        order = await client.post("/v2/orders", json={**body, "time_in_force": "day"})
        assert (order.status_code, order.json()["code"]) == (403, 40310000)
        await client.patch(CONFIGURATIONS, json={"suspend_trade": False})
        order = await client.post("/v2/orders", json={**body, "time_in_force": "day"})
        assert order.status_code == 200


async def test_orders_are_listed_changed_and_canceled(autojump_clock: MockClock) -> None:
    limit = {"side": "buy", "type": "limit", "limit_price": "1", "time_in_force": "gtc"}
    clock = SetClock()
    async with opened(clock, positions={"AAPL": (3, 1)}) as (simulator, client):
        made = []
        for symbol in ("AAPL", "BTCUSD", "KO"):
            clock.now_ns += 1_000_000_000
            answer = await client.post("/v2/orders", json={**limit, "symbol": symbol, "qty": "2"})
            made.append(answer.json())
        assert await ask(client, "/v2/orders") == made[::-1]
        assert await ask(client, "/v2/orders", direction="asc", limit=2) == made[:2]
        assert await ask(client, "/v2/orders", symbols="BTCUSD,KO") == [made[2], made[1]]
        assert await ask(client, "/v2/orders", side="sell") == []
        assert await ask(client, "/v2/orders", after=made[0]["created_at"]) == [made[2], made[1]]
        assert await ask(client, f"/v2/orders/{made[0]['id']}") == made[0]
        named = {"client_order_id": "x", "qty": "5"}
        changed = (await client.patch(f"/v2/orders/{made[0]['id']}", json=named)).json()
        assert (changed["qty"], changed["replaces"]) == ("5", made[0]["id"])
        found = await ask(client, "/v2/orders:by_client_order_id", client_order_id="x")
        assert found == changed
        gone = await client.delete(f"/v2/orders/{made[1]['id']}")
        assert (gone.status_code, gone.content) == (204, b"")
        assert (await client.delete(f"/v2/orders/{made[1]['id']}")).status_code == 422
        assert (await client.delete("/v2/orders/none")).status_code == 404
        assert (await client.patch(f"/v2/orders/{changed['id']}", content=b"{")).status_code == 400
        for change in ({"qty": "0"}, {"limit_price": "-1"}):
            refused = await client.patch(f"/v2/orders/{changed['id']}", json=change)
            assert refused.status_code == 422
        await client.post(
            "/v2/orders",
            json={**limit, "symbol": "AAPL", "side": "sell", "qty": 3, "limit_price": 999},
        )
        assert (await ask(client, "/v2/positions/AAPL"))["qty_available"] == "0"
        blocked = await client.delete("/v2/positions")
        assert [(one["symbol"], one["status"]) for one in blocked.json()] == [("AAPL", 403)]
        closed = await client.delete("/v2/positions", params={"cancel_orders": "true"})
        assert [(one["symbol"], one["status"]) for one in closed.json()] == [("AAPL", 200)]
        assert await ask(client, "/v2/orders") == []
        statuses = [order["status"] for order in await ask(client, "/v2/orders", status="closed")]
        assert (
            statuses
            == ["filled", "canceled", "canceled", "canceled", "canceled", "replaced"][
                : len(statuses)
            ]
        )
        assert (await client.delete("/v2/orders")).status_code == 207
        assert simulator.positions == ()


async def test_a_contract_says_what_an_option_is(autojump_clock: MockClock) -> None:
    async with opened() as (_, client):
        found = await ask(client, f"/v2/options/contracts/{CALL}")
        assert (found["symbol"], found["type"], found["strike_price"]) == (CALL, "call", "200")
        assert (found["expiration_date"], found["underlying_symbol"]) == ("2026-12-18", "AAPL")
        assert (found["multiplier"], found["size"]) == ("100", "100")
        for name in ("AAPL", "AAPL269918C00200000", CALL.replace("C00200000", "C00000000")):
            assert (await client.get(f"/v2/options/contracts/{name}")).status_code == 404
