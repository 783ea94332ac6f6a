"""Whatever an answer or a file holds: positions, each in its place, or an error of ours."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mdservice.errors import PositionsError
from mdservice.model.position import Position
from mdservice.positions.parse import parse_positions

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
rows = st.fixed_dictionaries(
    {},
    optional={
        "symbol": st.sampled_from(["AAPL", "*", "brk.b"]) | json_values,
        "qty": st.decimals().map(str) | json_values,
        "avg_entry_price": st.decimals().map(str) | json_values,
        "side": st.sampled_from(["long", "short"]) | json_values,
        "multiplier": json_values,
        "asset_class": json_values,
        "other": json_values,
    },
)


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_anything_is_positions_or_an_error_of_ours(content: bytes) -> None:
    try:
        found = parse_positions(content)
    except PositionsError:
        return
    assert all(isinstance(position, Position) for position in found)


@given(st.lists(rows | json_values))
def test_each_row_has_a_position_in_its_place(document: list[Any]) -> None:
    try:
        content = json.dumps(document, allow_nan=False).encode()
    except ValueError:
        return
    found = parse_positions(content)
    assert len(found) == len(document)
    for row, position in zip(document, found, strict=True):
        assert position.symbol
        assert len(position.symbol) <= 33
        assert position.multiplier.is_finite()
        if position.problem is None:
            assert isinstance(row, dict)
            assert position.symbol == row["symbol"].strip().upper() != "*"
            assert position.qty is not None
            assert position.avg_entry_price is not None
            assert position.avg_entry_price >= 0
        for number in (position.qty, position.avg_entry_price):
            assert number is None or (number.is_finite() and len(f"{number:f}") < 100)


@given(
    st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**20), max_value=10**20, places=9),
    st.decimals(allow_nan=False, allow_infinity=False, min_value=0, max_value=10**9, places=12),
    st.booleans(),
)  # fmt: skip
def test_what_goes_in_comes_out_to_the_last_digit(
    qty: Decimal, price: Decimal, as_text: bool
) -> None:
    quote = '"' if as_text else ""
    text = (
        f'[{{"symbol":"A","qty":{quote}{qty:f}{quote},"avg_entry_price":{quote}{price:f}{quote}}}]'
    )
    (position,) = parse_positions(text.encode())
    assert (position.qty, position.avg_entry_price) == (qty, price)
