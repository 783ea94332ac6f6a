"""Orders and what they do to the account."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.simulator.assets import QUOTES
from mdservice.simulator.crypto import SimPairQuote
from mdservice.simulator.http import RefusedRequest
from mdservice.simulator.market import MarketRecord
from mdservice.simulator.options import SimOptionQuote
from mdservice.simulator.orders import Order, OrderChange, Orders, parse_order
from mdservice.simulator.paper_account import PaperAccount
from mdservice.simulator.wire import SimQuote

D = Decimal
NOW_NS = 1_795_189_904_000_000_000
CALL, PUT = "AAPL261218C00200000", "AAPL261218P00150000"


class Bench:
    """An account, its orders, and every update."""

    def __init__(
        self,
        positions: dict[str, tuple[Any, Any]] | None = None,
        *,
        sale_fee: str = "0",
        **settings: Any,
    ) -> None:
        self.records: dict[Any, MarketRecord[Any]] = {
            kind: MarketRecord(100) for kind in QUOTES.values()
        }
        self.account = PaperAccount(
            {name: (D(qty), D(price)) for name, (qty, price) in (positions or {}).items()},
            self.records,
            cash=D(10_000),
            sale_fee=D(sale_fee),
            trades_size=1_000,
            activities_size=1_000,
            traded=lambda: None,
        )
        self.updates: list[Any] = []
        self.orders = Orders(self.account, updated=self.updates.append, **settings)

    def quote(self, symbol: str, bid: float, ask: float) -> None:
        if "/" in symbol:
            kind, quote = QUOTES["crypto"], SimPairQuote(symbol, bid, ask, ts_event_ns=NOW_NS)
        elif symbol in {CALL, PUT}:
            kind, quote = QUOTES["us_option"], SimOptionQuote(symbol, bid, ask, ts_event_ns=NOW_NS)
        else:
            kind, quote = QUOTES["us_equity"], SimQuote(symbol, bid, ask, ts_event_ns=NOW_NS)
        self.records[kind].add([quote])
        self.orders.match([symbol], NOW_NS)

    def submit(self, symbol: str, side: str, qty: Any, **more: Any) -> Order:
        body = {
            "symbol": symbol,
            "side": side,
            "qty": str(qty),
            "type": "limit" if "limit_price" in more else "market",
            "time_in_force": "gtc",
            **more,
        }
        return self.orders.submit(parse_order(json.dumps(body).encode()), NOW_NS)

    @property
    def events(self) -> list[tuple[str, str | None]]:
        """Event and position of each update, which are forgotten."""
        seen = [(update["event"], update.get("position_qty")) for update in self.updates]
        self.updates.clear()
        return seen

    def held(self, symbol: str) -> Decimal:
        holding = self.account.book.get(symbol)
        return D(0) if holding is None else holding.qty


def test_an_order_is_filled_in_as_many_parts_as_configured() -> None:
    bench = Bench(fills_per_order=4)
    bench.quote("A", 9, 10)
    order = bench.submit("A", "buy", 10)
    assert bench.events == [
        ("new", None),
        ("partial_fill", "2"),
        ("partial_fill", "5"),
        ("partial_fill", "7"),
        ("fill", "10"),
    ]
    assert (order.status, order.filled_qty, order.cost) == ("filled", 10, 100)
    assert [a.row["type"] for a in bench.account.activities] == ["partial_fill"] * 3 + ["fill"]
    assert [a.row["leaves_qty"] for a in bench.account.activities] == ["8", "5", "3", "0"]
    bench.submit("A", "sell", 2)
    assert bench.events == [("new", None), ("partial_fill", "9"), ("fill", "8")]


def test_an_order_that_waits_is_filled_part_by_part_and_may_be_canceled_between() -> None:
    bench = Bench(fills_per_order=2, waits=True)
    order = bench.submit("A", "sell", "3")
    assert bench.events == [("new", None)]
    bench.orders.fill_next(NOW_NS)
    assert bench.events == [("partial_fill", "-1")]
    assert bench.orders.open == (order,)
    bench.orders.cancel(order, NOW_NS)
    assert (order.status, order.filled_qty) == ("canceled", 1)
    bench.orders.fill_next(NOW_NS)
    assert bench.events == [("canceled", None)]
    for again in (
        lambda: bench.orders.cancel(order, NOW_NS),
        lambda: bench.orders.replace(order, OrderChange(qty=D(5)), NOW_NS),
    ):
        with pytest.raises(RefusedRequest, match="canceled") as caught:
            again()
        assert caught.value.status == 422


@pytest.mark.parametrize(
    ("side", "limit", "quotes", "price"),
    [
        ("buy", 10, [(10, 11), (0, 0.5), (9, 10)], "0.5"),
        ("buy", 10, [(10, 11), (9.5, 9.75)], "9.75"),
        ("sell", 10, [(9, 9.5), (11, 0)], "11"),
        ("sell", 10, [(9, 9.5), (0, 12), (10.25, 12)], "10.25"),
        ("buy", 10, [(11, 12), (9, 0), (9, 9.5)], "9.5"),
    ],
)
def test_a_limit_order_is_filled_at_the_first_quote_within_its_limit(
    side: str, limit: float, quotes: list[tuple[float, float]], price: str
) -> None:
    bench = Bench()
    bench.quote("A", 1 if side == "sell" else 100, 2 if side == "sell" else 101)
    order = bench.submit("A", side, 1, limit_price=limit)
    assert order.status == "new"
    for bid, ask in quotes:
        bench.quote("B", 1, 1)
        bench.quote("A", bid, ask)
    assert (order.status, order.cost) == ("filled", D(price))


def test_shares_of_open_orders_are_not_for_another_one() -> None:
    bench = Bench({"A": (10, 5)})
    first = bench.submit("A", "sell", 6, limit_price=1_000)
    with pytest.raises(RefusedRequest, match=r"requested: 5, available: 4"):
        bench.submit("A", "sell", 5)
    assert bench.submit("A", "sell", 4).status == "filled"
    bigger = OrderChange(qty=D(7))
    with pytest.raises(RefusedRequest, match=r"requested: 7, available: 6"):
        bench.orders.replace(first, bigger, NOW_NS)
    assert first.is_open
    new = bench.orders.replace(first, OrderChange(limit_price=D(1)), NOW_NS)
    assert (first.status, first.replaced_by, new.replaces) == ("replaced", new.id, first.id)
    assert (new.status, bench.held("A")) == ("filled", 0)


def test_ioc_and_fok_orders_do_not_rest() -> None:
    bench = Bench()
    bench.quote("A", 9, 10)
    for time_in_force in ("ioc", "fok"):
        order = bench.submit("A", "buy", 1, limit_price=5, time_in_force=time_in_force)
        assert order.status == "canceled"
        order = bench.submit("A", "buy", 1, limit_price=10, time_in_force=time_in_force)
        assert order.status == "filled"
    assert not bench.orders.open


def test_the_day_ends_orders_for_the_day() -> None:
    bench = Bench()
    day, gtc = (
        bench.submit("A", "buy", 1, limit_price=1, time_in_force=time) for time in ("day", "gtc")
    )
    bench.orders.expire_day(NOW_NS)
    assert (day.status, gtc.status) == ("expired", "new")


def test_a_suspended_account_takes_no_orders_but_keeps_those_it_has() -> None:
    bench = Bench({"A": (1, 1)})
    order = bench.submit("A", "buy", 1, limit_price=1)
    bench.orders.configuration.suspend_trade = True
    with pytest.raises(RefusedRequest, match="user request") as caught:
        bench.submit("A", "sell", 1)
    assert caught.value.status == 403
    with pytest.raises(RefusedRequest, match="user request"):
        bench.orders.replace(order, OrderChange(limit_price=D(2)), NOW_NS)
    bench.quote("A", 0.5, 1)
    assert order.status == "filled"
    bench.orders.configuration.suspend_trade = False
    bench.orders.configuration.no_shorting = True
    with pytest.raises(RefusedRequest, match="short"):
        bench.submit("B", "sell", 1)
    assert bench.submit("A", "sell", 1).status == "filled"


def test_a_rejected_order_is_taken_first() -> None:
    bench = Bench()
    bench.orders.reject_next(2)
    first = bench.submit("A", "buy", 1)
    second = bench.submit("A", "buy", 1)
    assert (first.status, second.status) == ("rejected", "rejected")
    assert bench.submit("A", "buy", 1).status == "filled"
    assert bench.events == [("rejected", None)] * 2 + [("new", None), ("fill", "1")]
    assert bench.orders.get(first.id) is first


def test_ended_orders_are_forgotten_open_ones_are_not() -> None:
    bench = Bench(size=2)
    resting = bench.submit("A", "buy", 1, limit_price=1, client_order_id="mine")
    done = [bench.submit("A", "buy", 1) for _ in range(3)]
    assert [order.id for order in bench.orders] == [resting.id, done[1].id, done[2].id]
    with pytest.raises(RefusedRequest) as caught:
        bench.orders.get(done[0].id)
    assert (caught.value.status, caught.value.code) == (404, 40410000)
    assert bench.orders.by_client_id("mine") is resting
    with pytest.raises(RefusedRequest, match="unique"):
        bench.submit("A", "buy", 1, client_order_id="mine")


def test_there_is_an_end_to_open_orders() -> None:
    bench = Bench()
    with pytest.raises(RefusedRequest, match="too many"):
        for _ in range(10_000):
            bench.submit("A", "buy", 1, limit_price=1)


def test_crypto_and_options_count_in_coins_and_contracts() -> None:
    bench = Bench()
    bench.quote("BTC/USD", 64_000, 64_010)
    bench.quote(CALL, 5, 5.25)
    bench.submit("BTCUSD", "buy", "0.1")
    bench.submit(CALL, "sell", 3)
    assert bench.account.cash == D(10_000) - D("6401.0") + 1_500
    assert {held.symbol: held.qty for held in bench.account.book} == {
        "BTC/USD": D("0.1"),
        CALL: D(-3),
    }
    balances = bench.account.balances()
    assert balances.long_value == D("6400.5")
    assert balances.short_value == D("-1537.5")
    with pytest.raises(RefusedRequest, match="insufficient"):
        bench.submit("BTCUSD", "sell", "0.2")


def test_legs_are_filled_together_at_their_net_price() -> None:
    bench = Bench()
    bench.quote(CALL, 5, 5.2)
    bench.quote(PUT, 2, 2.1)
    body = {
        "order_class": "mleg",
        "qty": "3",
        "type": "limit",
        "limit_price": "1",
        "time_in_force": "day",
        "legs": [
            {"symbol": CALL, "ratio_qty": "1", "side": "buy"},
            {"symbol": PUT, "ratio_qty": "2", "side": "sell"},
        ],
    }
    order = bench.orders.submit(parse_order(json.dumps(body).encode()), NOW_NS)
    assert bench.events == [("new", None)]
    bench.quote(CALL, 4.5, 4.75)
    (fill,) = bench.updates
    assert fill["event"] == "fill"
    assert (fill["price"], fill["qty"]) == ("0.75", "3")
    assert fill["position_qtys"] == {CALL: "3", PUT: "-6"}
    assert fill["order"]["symbol"] == fill["order"]["side"] == ""
    assert [leg["filled_qty"] for leg in fill["order"]["legs"]] == ["3", "6"]
    assert [leg["ratio_qty"] for leg in fill["order"]["legs"]] == ["1", "2"]
    assert order.status == "filled"
    assert [(a.row["symbol"], a.row["side"]) for a in bench.account.activities] == [
        (CALL, "buy"),
        (PUT, "sell_short"),
    ]
    assert bench.account.cash == D(10_000) - 3 * D("0.75") * 100
    with pytest.raises(ValueError, match="cannot be filled"):
        bench.orders.fill(order, D(1), None, NOW_NS)


@pytest.mark.parametrize(
    "change",
    [
        {"legs": []},
        {"legs": [{"symbol": CALL, "ratio_qty": "1", "side": "buy"}]},
        {"legs": [{"symbol": s, "ratio_qty": "1", "side": "buy"} for s in (CALL, CALL)]},
        {"legs": [{"symbol": s, "ratio_qty": "1", "side": "buy"} for s in (CALL, "AAPL")]},
        {"legs": [{"symbol": s, "ratio_qty": "0.5", "side": "buy"} for s in (CALL, PUT)]},
        {"legs": [{"symbol": s, "ratio_qty": "1"} for s in (CALL, PUT)]},
        {"symbol": "AAPL"},
        {"qty": None},
        {"qty": "1.5"},
        {"type": "limit"},
    ],
)
def test_legs_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    legs = [{"symbol": symbol, "ratio_qty": "1", "side": "buy"} for symbol in (CALL, PUT)]
    body = {
        "order_class": "mleg",
        "qty": "1",
        "type": "market",
        "time_in_force": "day",
        "legs": legs,
    }
    assert parse_order(json.dumps(body).encode()).legs
    with pytest.raises(RefusedRequest) as caught:
        parse_order(json.dumps({**body, **change}).encode())
    assert caught.value.status == 422


_steps = st.lists(
    st.tuples(
        st.sampled_from(("A", "B", "BTC/USD", CALL)),
        st.sampled_from(("buy", "sell")),
        st.integers(1, 50),
        st.integers(1, 40_000),
        st.sampled_from((None, 50, 300)),
        st.booleans(),
    ),
    max_size=30,
)


@given(_steps, st.integers(1, 4))
def test_cash_positions_and_activities_add_up(
    steps: list[tuple[str, str, int, int, int | None, bool]], parts: int
) -> None:
    bench = Bench({"A": (5, 3), "BTC/USD": (2, 10)}, sale_fee="0.0001", fills_per_order=parts)
    last_equity = bench.account.last_equity
    for symbol, side, qty, cents, limit, ends in steps:
        bench.quote(symbol, cents / 100, cents / 100 + 0.01)
        more = {} if limit is None else {"limit_price": limit}
        try:
            bench.submit(symbol, side, qty, **more)
        except RefusedRequest:
            continue
        if ends:
            bench.account.end_day()
            last_equity = bench.account.balances().exact_equity
    account = bench.account
    cash, held = D(10_000), {"A": D(5), "BTC/USD": D(2)}
    for activity in account.activities:
        row: Any = activity.row
        if activity.activity_type == "FEE":
            cash += D(row["net_amount"])
            continue
        sign = 1 if row["side"] == "buy" else -1
        symbol, qty = row["symbol"], sign * D(row["qty"])
        held[symbol] = held.get(symbol, D(0)) + qty
        cash -= qty * D(row["price"]) * (100 if symbol == CALL else 1)
    assert account.cash == cash
    assert {h.symbol: h.qty for h in account.book} == {s: q for s, q in held.items() if q}
    assert account.last_equity == last_equity
    # Every position that an update reports is the one that its fills add up to.
    totals = {"A": D(5), "BTC/USD": D(2)}
    for update in bench.updates:
        if "position_qty" in update:
            symbol = update["order"]["symbol"]
            sign = 1 if update["order"]["side"] == "buy" else -1
            totals[symbol] = totals.get(symbol, D(0)) + sign * D(update["qty"])
            assert D(update["position_qty"]) == totals[symbol]


def test_an_order_may_be_filled_by_hand_whatever_its_limit() -> None:
    bench = Bench()
    order = bench.submit("A", "buy", 5, limit_price=1)
    bench.orders.fill(order, D(2), D("7.5"), NOW_NS)
    bench.orders.fill(order, D(1), None, NOW_NS)
    assert bench.events == [("new", None), ("partial_fill", "2"), ("partial_fill", "3")]
    for qty in (D(0), D(3)):
        with pytest.raises(ValueError, match="cannot be filled"):
            bench.orders.fill(order, qty, None, NOW_NS)
    bench.orders.fill(order, D(2), D(9), NOW_NS)
    assert order.status == "filled"
    waiting = Bench(waits=True)
    market = waiting.submit("A", "buy", 1)
    with pytest.raises(RefusedRequest, match="limit_price"):
        waiting.orders.replace(market, OrderChange(limit_price=D(1)), NOW_NS)


def test_an_order_that_would_make_a_position_too_large_rests() -> None:
    bench = Bench()
    bench.quote("A", 9, 10)
    order = bench.submit("A", "buy", "999999999999", limit_price=5)
    bench.orders.trade("A", D(1), D(1), NOW_NS)
    bench.quote("A", 3, 4)
    assert order.is_open
    bench.orders.trade("A", D(-1), D(1), NOW_NS)
    bench.quote("A", 3, 4)
    assert order.status == "filled"


def test_prices_have_nine_places_everywhere_and_a_bound() -> None:
    bench = Bench()
    bench.quote("A", 0.000_000_001, 0.000_000_002)
    resting = bench.submit("A", "buy", 1, limit_price="0.000000001")
    trade = bench.orders.trade("A", D(1), bench.account.price("A"), NOW_NS)
    assert trade.price == D("0.000000002")
    assert bench.updates[-1]["price"] == bench.account.activities[-1].row["price"] == "0.000000002"
    bench.quote("A", 1e15, 1e15)
    assert resting.is_open


def test_a_multi_leg_order_is_filled_in_parts_and_canceled_with_its_legs() -> None:
    bench = Bench(waits=True, fills_per_order=3)
    legs = [
        {"symbol": CALL, "ratio_qty": "1", "position_intent": "buy_to_open"},
        {"symbol": PUT, "ratio_qty": "2", "position_intent": "sell_to_open"},
    ]
    body = {
        "order_class": "mleg",
        "qty": "3",
        "type": "market",
        "time_in_force": "day",
        "legs": legs,
    }
    order = bench.orders.submit(parse_order(json.dumps(body).encode()), NOW_NS)
    bench.orders.fill_next(NOW_NS)
    part = bench.updates[-1]
    assert (part["event"], part["position_qtys"]) == ("partial_fill", {CALL: "1", PUT: "-2"})
    assert [leg["status"] for leg in part["order"]["legs"]] == ["partially_filled"] * 2
    with pytest.raises(ValueError, match="legs"):
        bench.orders.fill(order, D(1), D(1), NOW_NS)
    bench.orders.cancel(order, NOW_NS)
    canceled = bench.updates[-1]
    assert [leg["status"] for leg in canceled["order"]["legs"]] == ["canceled"] * 2
    assert (bench.held(CALL), bench.held(PUT)) == (1, -2)
