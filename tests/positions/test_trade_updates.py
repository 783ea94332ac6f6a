"""The events of the trading stream, and the messages about them."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.model.position import Position
from mdservice.model.timestamps import parse_rfc3339
from mdservice.positions.trade_updates import (
    KNOWN_EVENTS,
    TradeUpdate,
    decode_account_update,
    encode_account_update,
    parse_trade_updates,
    position_after,
)

WHEN = "2026-11-20T15:51:44.208912345Z"
DEEP = b"[" * 100_000 + b"]" * 100_000
ORDER = {"id": "order-1", "symbol": "AAPL", "side": "buy", "asset_class": "us_equity"}
FILL: dict[str, Any] = {
    "event": "fill",
    "execution_id": "execution-1",
    "order": ORDER,
    "timestamp": WHEN,
    "price": "187.13",
    "qty": "10",
    "position_qty": "30",
}


def parse(event: object) -> list[TradeUpdate]:
    return parse_trade_updates(msgspec.Raw(json.dumps(event).encode()))


def test_a_fill_has_the_whole_position_after_it() -> None:
    assert parse(FILL) == [
        TradeUpdate(
            "fill",
            parse_rfc3339(WHEN),
            "AAPL",
            "order-1",
            "execution-1",
            "buy",
            Decimal(10),
            Decimal("187.13"),
            Decimal(30),
            "us_equity",
        )
    ]


@pytest.mark.parametrize("event", [*sorted(KNOWN_EVENTS - {"fill", "partial_fill"}), "new_kind"])
def test_any_other_event_is_read_without_a_position(event: str) -> None:
    (update,) = parse({"event": event, "order": ORDER, "timestamp": WHEN})
    assert (update.event, update.symbol) == (event, "AAPL")
    assert update.position_qty is None


def test_an_order_with_legs_has_one_update_for_each() -> None:
    call, put = "AAPL281215C00200000", "AAPL281215P00200000"
    legs = [
        {"order_id": "leg-1", "symbol": call, "side": "buy", "price": "3.5", "qty": "2"},
        {"order_id": "leg-2", "symbol": put, "side": "sell", "price": "1.25", "qty": "2"},
    ]
    order = {**ORDER, "symbol": "", "side": "", "asset_class": ""}
    updates = parse({**FILL, "order": order, "legs": legs, "position_qtys": {call: "2", put: "-4"}})
    assert [
        (each.symbol, each.order_id, each.side, each.price, each.position_qty, each.asset_class)
        for each in updates
    ] == [
        (call, "leg-1", "buy", Decimal("3.5"), Decimal(2), "us_option"),
        (put, "leg-2", "sell", Decimal("1.25"), Decimal(-4), "us_option"),
    ]


def test_the_orders_own_legs_say_what_the_event_does_not() -> None:
    call = "AAPL281215C00200000"
    order = {
        **ORDER,
        "symbol": "",
        "legs": [{"id": "leg-1", "symbol": call, "side": "sell", "asset_class": "us_option"}],
    }
    (update,) = parse({"event": "new", "order": order, "timestamp": WHEN})
    assert (update.symbol, update.order_id, update.side) == (call, "leg-1", "sell")
    (update,) = parse({**FILL, "order": order, "position_qtys": {call: "-1"}, "position_qty": None})
    assert (update.symbol, update.side, update.position_qty) == (call, "sell", -1)


@pytest.mark.parametrize(
    "broken",
    [
        [],
        {},
        {"event": "fill"},
        {**FILL, "order": None},
        {**FILL, "event": ""},
        {**FILL, "timestamp": None},
        {**FILL, "timestamp": "yesterday"},
        {**FILL, "position_qty": None},
        {**FILL, "position_qty": "many"},
        {**FILL, "price": "NaN"},
        {**FILL, "qty": "1e999"},
        {**FILL, "order": {**ORDER, "symbol": ""}},
        {**FILL, "order": {**ORDER, "symbol": "A B"}},
        {**FILL, "order": {**ORDER, "symbol": ""}, "position_qtys": {"A B": "1"}},
    ],
)
def test_what_cannot_be_used_is_an_error(broken: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(broken)


def test_an_event_that_is_nested_too_deeply_is_an_error() -> None:
    with pytest.raises(ValueError, match="recursion"):
        parse_trade_updates(msgspec.Raw(b'{"event":"new","x":%b}' % DEEP))


def test_a_time_is_found_where_there_is_one() -> None:
    order = {**ORDER, "updated_at": WHEN}
    assert parse({**FILL, "timestamp": None, "at": WHEN}) == parse(FILL)
    assert parse({**FILL, "timestamp": "", "order": order}) == parse(FILL)


@pytest.mark.parametrize(
    ("qty", "average", "position_qty", "price", "after"),
    [
        ("10", "100", "15", "130", "110"),
        ("10", "100", "4", "130", "100"),
        ("-10", "100", "-15", "130", "110"),
        ("-10", "100", "-4", "130", "100"),
        ("10", "100", "-5", "130", "130"),
        ("-10", "100", "5", "130", "130"),
        ("1", "1", "3", "2", "1.666666667"),
    ],
)
def test_the_average_price_follows_the_weighted_rule(
    qty: str, average: str, position_qty: str, price: str, after: str
) -> None:
    held = Position("AAPL", Decimal(qty), Decimal(average), lastday_price=Decimal(99))
    update = TradeUpdate(
        "fill", 0, "AAPL", position_qty=Decimal(position_qty), price=Decimal(price)
    )
    found = position_after(held, update)
    assert found == Position(
        "AAPL", Decimal(position_qty), Decimal(after), lastday_price=Decimal(99)
    )


def test_a_quantity_of_0_is_no_position() -> None:
    held = Position("AAPL", Decimal(1), Decimal(1))
    assert position_after(held, TradeUpdate("fill", 0, "AAPL", position_qty=Decimal(0))) is None


numbers = st.none() | st.decimals(-(10**9), 10**9, allow_nan=False, places=9)
texts = st.sampled_from(["", "buy", 'q"uote', "ü"])


@given(
    st.builds(
        TradeUpdate,
        event=st.sampled_from(["fill", "new"]),
        timestamp_ns=st.integers(0, 2 * 10**18),
        symbol=st.sampled_from(["", "AAPL"]),
        order_id=texts,
        execution_id=texts,
        side=texts,
        qty=numbers,
        price=numbers,
        position_qty=numbers,
    ),
    st.none()
    | st.builds(
        Position,
        st.just("BTCUSD"),
        st.decimals(1, 10, places=3),
        st.decimals(1, 10, places=3),
        asset_class=st.just("crypto"),
    ),
)
def test_a_message_is_read_as_it_was_written(update: TradeUpdate, held: Position | None) -> None:
    found, position = decode_account_update(encode_account_update(update, held))
    assert position == held
    expected = {name: getattr(update, name) for name in ("event", "timestamp_ns", "qty", "price")}
    assert {name: getattr(found, name) for name in expected} == expected
    assert (found.symbol, found.order_id, found.side) == (
        update.symbol,
        update.order_id,
        update.side,
    )


def test_a_message_has_the_row_of_the_positions_answer() -> None:
    (update,) = parse(FILL)
    position = Position("AAPL", Decimal(30), Decimal("150.50"))
    assert json.loads(encode_account_update(update, position)) == {
        "event": "fill",
        "timestamp": WHEN,
        "symbol": "AAPL",
        "order_id": "order-1",
        "execution_id": "execution-1",
        "side": "buy",
        "qty": 10,
        "price": 187.13,
        "position_qty": 30,
        "position": {
            "symbol": "AAPL",
            "qty": 30,
            "avg_entry_price": 150.5,
            "asset_class": "us_equity",
            "multiplier": 1,
            "current_price": None,
            "lastday_price": None,
        },
    }


@pytest.mark.parametrize(
    "payload", [b"", b"{}", b"[]", b'{"event":"fill","timestamp":"now"}', b'{"x":%b}' % DEEP]
)
def test_another_message_is_an_error(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_account_update(payload)
