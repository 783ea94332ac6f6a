"""Positions and orders over REST, by httpx, on trio's virtual clock."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import anyio
import httpx
import pytest
import trio
from trio.testing import MockClock

from mdservice.simulator import SimQuote, Simulator, SimulatorConfig, open_simulator
from mdservice.simulator.transport import SimulatorTransport

NOW_NS = 1_795_189_904_000_000_000
POSITIONS, ORDERS = "/v2/positions", "/v2/orders"
MARKET = {"symbol": "AAPL", "side": "buy", "type": "market", "time_in_force": "day"}


class StoppedClock:
    def monotonic(self) -> float:
        return anyio.current_time()

    def utc_ns(self) -> int:
        return NOW_NS


@asynccontextmanager
async def opened(**settings: Any) -> AsyncIterator[tuple[Simulator, httpx.AsyncClient]]:
    config = SimulatorConfig(**{"rate": 0, **settings})
    with anyio.fail_after(900):
        async with (
            open_simulator(config, port=None, clock=StoppedClock()) as simulator,
            httpx.AsyncClient(
                transport=SimulatorTransport(simulator), base_url=simulator.rest_url
            ) as client,
        ):
            yield simulator, client


def held(simulator: Simulator) -> dict[str, str]:
    return {holding.symbol: f"{holding.qty.normalize():f}" for holding in simulator.positions}


async def test_positions_are_a_bare_list_of_strings(autojump_clock: MockClock) -> None:
    positions = {"AAPL": (10, 150), "TSLA": (-4, "350.5")}
    async with opened(positions=positions) as (simulator, client):
        simulator.send_quotes([SimQuote("AAPL", 187.12, 187.15), SimQuote("TSLA", 340, 341)])
        answer = await client.get(POSITIONS)
        assert answer.status_code == 200
        long, short = answer.json()
        asset_id = long.pop("asset_id")
        assert long == {
            "symbol": "AAPL",
            "exchange": "NASDAQ",
            "asset_class": "us_equity",
            "asset_marginable": True,
            "qty": "10",
            "qty_available": "10",
            "avg_entry_price": "150",
            "side": "long",
            "market_value": "1871.35",
            "cost_basis": "1500",
            "unrealized_pl": "371.35",
            "unrealized_plpc": "0.2475666666666667",
            "unrealized_intraday_pl": "0.05",
            "unrealized_intraday_plpc": "0.0000267193929354",
            "current_price": "187.135",
            "lastday_price": "187.13",
            "change_today": "0.0000267193929354",
        }
        assert {name: short[name] for name in ("qty", "side", "market_value", "cost_basis")} == {
            "qty": "-4",
            "side": "short",
            "market_value": "-1362",
            "cost_basis": "-1402",
        }
        assert (short["unrealized_pl"], short["unrealized_intraday_pl"]) == ("40", "2.8")
        assert short["unrealized_plpc"].startswith("0.0285306704707")
        for one in ("AAPL", asset_id):
            again = (await client.get(f"{POSITIONS}/{one}")).json()
            assert again == {**long, "asset_id": asset_id}


async def test_the_prices_are_those_of_the_start_before_the_first_quote(
    autojump_clock: MockClock,
) -> None:
    async with opened(positions={"SPY": (1, 0)}) as (_, client):
        (position,) = (await client.get(POSITIONS)).json()
        assert position["exchange"] == "ARCA"
        assert (position["current_price"], position["change_today"]) == ("612.4", "0")
        assert (position["unrealized_pl"], position["unrealized_plpc"]) == ("612.4", "0")


async def test_a_position_that_is_not_there_is_404(autojump_clock: MockClock) -> None:
    async with opened(positions={"BTC/USD": (1, 1)}) as (_, client):
        for method in ("GET", "DELETE"):
            answer = await client.request(method, f"{POSITIONS}/AAPL")
            assert (answer.status_code, answer.json()) == (
                404,
                {"code": 40410000, "message": "position does not exist"},
            )
        assert (await client.get(f"{POSITIONS}/BTC%2FUSD")).json()["symbol"] == "BTCUSD"


async def test_trades_show_at_once(autojump_clock: MockClock) -> None:
    async with opened() as (simulator, client):
        assert (await client.get(POSITIONS)).json() == []
        simulator.trade("AAPL", 3, 100)
        assert (await client.get(f"{POSITIONS}/AAPL")).json()["qty"] == "3"
        simulator.trade("AAPL", -5, 110)
        turned = (await client.get(f"{POSITIONS}/AAPL")).json()
        assert (turned["qty"], turned["avg_entry_price"]) == ("-2", "110")
        simulator.trade("AAPL", 2, 110)
        assert (await client.get(POSITIONS)).json() == []


async def test_an_order_is_filled_at_once_at_ask_or_bid(autojump_clock: MockClock) -> None:
    async with opened() as (simulator, client):
        simulator.send_quotes([SimQuote("AAPL", 187.12, 187.15)])
        answer = await client.post(ORDERS, json={**MARKET, "qty": "2.5"})
        order = answer.json()
        assert answer.status_code == 200
        assert (order["status"], order["filled_qty"], order["qty"]) == ("filled", "2.5", "2.5")
        assert (order["filled_avg_price"], order["side"]) == ("187.15", "buy")
        assert order["filled_at"] == "2026-11-20T15:51:44.000000000Z"
        assert order["client_order_id"] == order["id"]
        sell = {**MARKET, "qty": 1, "side": "sell", "client_order_id": "mine"}
        sold = (await client.post(ORDERS, json=sell)).json()
        assert (sold["filled_avg_price"], sold["client_order_id"]) == ("187.12", "mine")
        assert sold["id"] != order["id"]
        assert held(simulator) == {"AAPL": "1.5"}
        assert [t.qty for t in simulator.trades] == [Decimal("2.5"), Decimal(-1)]
        assert [r.method for r in simulator.rest_requests] == ["POST", "POST"]


async def test_an_order_of_money_buys_what_it_is_good_for(autojump_clock: MockClock) -> None:
    async with opened() as (simulator, client):
        simulator.send_quotes([SimQuote("AAPL", 2, 3)])
        order = (await client.post(ORDERS, json={**MARKET, "notional": 10})).json()
        assert (order["qty"], order["notional"], order["filled_qty"]) == (
            None,
            "10",
            "3.333333333",
        )
        assert held(simulator) == {"AAPL": "3.333333333"}


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"qty": 1, "type": "stop", "stop_price": "5"}, 422, 42210000),
        ({"qty": 1, "type": "limit"}, 422, 42210000),
        ({"qty": 1, "type": "limit", "limit_price": "0"}, 422, 42210000),
        ({"qty": 1, "type": "limit", "limit_price": "x"}, 400, 40010001),
        ({"qty": 1, "limit_price": "5"}, 422, 42210000),
        ({"qty": "0.5", "symbol": "AAPL261218C00200000"}, 422, 42210000),
        ({"notional": 5, "symbol": "AAPL261218C00200000"}, 422, 42210000),
        ({"qty": 1, "symbol": "BTCUSD"}, 422, 42210000),
        ({"qty": 1, "symbol": "ETH/BTC", "time_in_force": "gtc"}, 422, 42210000),
        (
            {"qty": 1, "symbol": "BTCUSD", "time_in_force": "gtc", "side": "sell"},
            403,
            40310000,
        ),
        ({"qty": 1, "order_class": "bracket"}, 422, 42210000),
        ({"qty": 1, "symbol": "no symbol"}, 422, 42210000),
        ({"qty": 1, "symbol": "*"}, 422, 42210000),
        ({"qty": 0}, 422, 42210000),
        ({"qty": -1}, 422, 42210000),
        ({"qty": 1, "notional": 1}, 422, 42210000),
        ({}, 422, 42210000),
        ({"notional": "0.000000001"}, 422, 42210000),
        ({"notional": "999999999999", "symbol": "CHEAP"}, 400, 40010001),
        ({"qty": "999999999999", "symbol": "HELD"}, 422, 42210000),
        ({"qty": "0.5", "side": "sell"}, 422, 42210000),
        ({"qty": "Infinity"}, 400, 40010001),
        ({"qty": "1e999999"}, 400, 40010001),
        ({"qty": "many"}, 400, 40010001),
        ({"qty": 1, "side": "hold"}, 400, 40010001),
        ({"qty": "5.5", "symbol": "SHORT"}, 403, 40310000),
        ({"qty": 11, "side": "sell", "symbol": "HELD"}, 403, 40310000),
    ],
)
async def test_an_order_that_cannot_be_done_is_refused(
    change: dict[str, Any], status: int, code: int, autojump_clock: MockClock
) -> None:
    async with opened(positions={"HELD": (10, 1), "SHORT": (-5, 1)}) as (simulator, client):
        simulator.send_quotes([SimQuote("CHEAP", 0.01, 0.02)])
        answer = await client.post(ORDERS, json={**MARKET, **change})
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert not simulator.trades
        assert (await client.get(POSITIONS)).status_code == 200


DEEP = b'{"symbol":%b}' % (b"[" * 20_000 + b"]" * 20_000)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"\xff"', b"null", b'{"symbol":"\xff"}', DEEP])
async def test_a_body_that_is_no_order_is_400(body: bytes, autojump_clock: MockClock) -> None:
    async with opened() as (_, client):
        answer = await client.post(ORDERS, content=body)
        assert answer.status_code == 400
        assert answer.json() == {"code": 40010001, "message": "request body format is invalid"}


async def test_other_bodies_that_cannot_be_read_are_400_too(autojump_clock: MockClock) -> None:
    async with opened() as (_, client):
        deep = b'{"x":%b}' % (b"[" * 20_000 + b"]" * 20_000)
        answer = await client.patch("/v2/account/configurations", content=deep)
        assert answer.status_code == 400
        limit = {**MARKET, "qty": 1, "type": "limit", "limit_price": 1}
        order = (await client.post(ORDERS, json=limit)).json()
        answer = await client.patch(f"{ORDERS}/{order['id']}", content=deep)
        assert answer.status_code == 400


async def test_a_part_of_a_contract_is_never_traded(autojump_clock: MockClock) -> None:
    option = "AAPL261218C00200000"
    async with opened(positions={option: (3, 1)}) as (simulator, client):
        answer = await client.delete(f"{POSITIONS}/{option}", params={"qty": "0.5"})
        assert (answer.status_code, answer.json()["code"]) == (422, 42210000)
        limit = {**MARKET, "qty": 1, "symbol": option, "type": "limit", "limit_price": "0.01"}
        order = (await client.post(ORDERS, json=limit)).json()
        answer = await client.patch(f"{ORDERS}/{order['id']}", json={"qty": "1.5"})
        assert (answer.status_code, answer.json()["code"]) == (422, 42210000)
        assert held(simulator) == {option: "3"}


async def test_a_position_is_closed_whole_or_in_part(autojump_clock: MockClock) -> None:
    async with opened(positions={"A": (10, 1), "B": (-8, 1)}) as (simulator, client):
        order = (await client.delete(f"{POSITIONS}/A", params={"qty": "2.5"})).json()
        assert (order["side"], order["filled_qty"], order["status"]) == ("sell", "2.5", "filled")
        await client.delete(f"{POSITIONS}/A", params={"percentage": "50"})
        assert held(simulator) == {"A": "3.75", "B": "-8"}
        assert (await client.delete(f"{POSITIONS}/B")).json()["side"] == "buy"
        assert held(simulator) == {"A": "3.75"}
        for params in ({"qty": "4"}, {"qty": "0"}, {"qty": "x"}, {"percentage": "101"}):
            assert (await client.delete(f"{POSITIONS}/A", params=params)).status_code in {
                400,
                403,
                422,
            }
        assert held(simulator) == {"A": "3.75"}


async def test_all_positions_are_closed(autojump_clock: MockClock) -> None:
    async with opened(positions={"A": (10, 1), "B": ("-8.5", 1)}) as (simulator, client):
        answer = await client.delete(POSITIONS)
        assert answer.status_code == 207
        closed = [(one["symbol"], one["status"], one["body"]["side"]) for one in answer.json()]
        assert closed == [("A", 200, "sell"), ("B", 200, "buy")]
        assert simulator.positions == ()
        assert (await client.delete(POSITIONS)).json() == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", POSITIONS),
        ("GET", f"{POSITIONS}/AAPL"),
        ("DELETE", POSITIONS),
        ("DELETE", f"{POSITIONS}/AAPL"),
        ("POST", ORDERS),
    ],
)
async def test_login_limit_and_faults_hold_here_too(
    method: str, path: str, autojump_clock: MockClock
) -> None:
    content = json.dumps({**MARKET, "qty": 1}) if method == "POST" else None
    right = {"APCA-API-KEY-ID": "key", "APCA-API-SECRET-KEY": "right"}
    settings = {"positions": {"AAPL": (1, 1)}, "key": "key", "secret": "right"}
    async with opened(**settings, rest_rate_limit=4) as (simulator, client):

        async def ask(**more: str) -> httpx.Response:
            return await client.request(method, path, content=content, headers={**right, **more})

        assert (await client.request(method, path, content=content)).status_code == 401
        assert (await ask(**{"APCA-API-SECRET-KEY": "wrong"})).status_code == 403
        simulator.refuse_rest(500, 0, "internal server error", path=path)
        assert (await ask()).status_code == 500
        assert not simulator.trades
        simulator.garble_rest(path=path)
        simulator.slow_rest(3, path=path)
        garbled = await ask()
        assert garbled.status_code in {200, 207}
        assert trio.current_time() == pytest.approx(3)
        with pytest.raises(ValueError):
            garbled.json()
        simulator.cut_rest(path=path)
        with pytest.raises(httpx.RemoteProtocolError):
            await ask()
        assert (await ask()).status_code == 429


async def test_other_methods_are_405(autojump_clock: MockClock) -> None:
    async with opened() as (_, client):
        for method, path in [
            ("POST", POSITIONS),
            ("POST", f"{POSITIONS}/AAPL"),
            ("PUT", ORDERS),
            ("POST", "/v2/account"),
            ("POST", "/v2/clock"),
        ]:
            assert (await client.request(method, path)).status_code == 405, (method, path)


async def test_a_body_that_never_comes_holds_nothing_up(autojump_clock: MockClock) -> None:
    async with opened() as (simulator, client):
        stream = simulator.connect()
        await stream.send(b"POST /v2/orders HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n{")
        assert (await client.get(POSITIONS)).status_code == 200
        await simulator.until(lambda s: not s._connections)
        assert trio.current_time() == pytest.approx(10)
        await stream.aclose()


async def test_a_price_without_bounds_harms_nothing(autojump_clock: MockClock) -> None:
    async with opened(positions={"A": (2, 1)}) as (simulator, client):
        for price in (1e15, 1e-12):
            simulator.send_quotes([SimQuote("A", price, price)])
            (position,) = (await client.get(POSITIONS)).json()
            assert Decimal(position["current_price"]) == Decimal(str(price))
        simulator.send_quotes([SimQuote("A", 1e15, 1e15)])
        order = {**MARKET, "symbol": "A", "qty": 1}
        assert (await client.post(ORDERS, json=order)).status_code == 422
        assert not simulator.trades
