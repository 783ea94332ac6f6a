"""The mid rule: the exact decimal of two prices, never half of one side."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mdservice.model.quote import Quote, exact_mid, mid_e5, mid_number
from tests.examples import examples

quick = examples(300)
as_json = msgspec.json.Encoder(decimal_format="number").encode

exchange_prices = st.integers(0, 10**7).map(lambda cents: cents / 100) | st.integers(0, 10**10).map(
    lambda units: units / 10_000
)
weird_prices = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
large_prices = st.integers(10**13, 10**18).map(lambda units: units / 10_000)
prices = exchange_prices | large_prices | weird_prices


def reference(bid: float, ask: float) -> Fraction | None:
    """The contract's rule, on the decimal texts of the prices, with fractions."""
    sides = [Fraction(repr(side)) for side in (bid, ask) if side != 0]
    return sum(sides, Fraction()) / len(sides) if sides else None


def prices_at_the_edges(test: object) -> object:
    for bid, ask in [
        (0.1, 0.2),
        (5e-324, 5e-324),
        (5e-324, 1.7976931348623157e308),
        (1.7976931348623157e308, 1.7976931348623157e308),
        (999_999_999.9999, 999_999_999.9998),
        (999_999_999.9999, 1e9),
        (1e9, 1e9 + 0.0001),
        (1e-5, 1e-4),
        (1e22, 1e-7),
        (1e16, 2.0),
        (187.12, 0.0),
        (0.0, 0.00001),
    ]:
        test = example(bid, ask)(test)
    return test


@quick
@prices_at_the_edges
@given(prices, prices)
def test_mid_is_the_exact_decimal_for_any_two_floats(bid: float, ask: float) -> None:
    mid = exact_mid(bid, ask)
    assert (None if mid is None else Fraction(mid)) == reference(bid, ask)


@quick
@prices_at_the_edges
@given(prices, prices)
def test_mid_as_json_text_is_the_exact_decimal(bid: float, ask: float) -> None:
    text = as_json(mid_number(bid, ask)).decode()
    expected = reference(bid, ask)
    assert text == "null" if expected is None else Fraction(Decimal(text)) == expected


@quick
@given(st.integers(1, 10**13 - 1), st.integers(1, 10**13 - 1))
def test_prices_of_four_decimals_need_no_decimal_arithmetic(bid: int, ask: int) -> None:
    number = mid_number(bid / 10_000, ask / 10_000)
    assert isinstance(number, float)
    assert Fraction(repr(number)) == Fraction(bid + ask, 20_000)
    assert mid_e5(bid / 10_000, ask / 10_000) == (bid + ask) * 5


@quick
@prices_at_the_edges
@given(prices, prices)
def test_mid_in_hundred_thousandths_is_exact_where_it_is_known(bid: float, ask: float) -> None:
    mid = mid_e5(bid, ask)
    if mid is not None:
        assert Fraction(mid, 100_000) == reference(bid, ask)


@pytest.mark.parametrize(
    ("bid", "ask", "price"),
    [
        pytest.param(0.1, 0.2, "0.15", id="no float residue"),
        (187.12, 187.15, "187.135"),
        (0.0001, 0.0002, "0.00015"),
        pytest.param(187.12, 0.0, "187.12", id="bid only"),
        pytest.param(0.0, 187.15, "187.15", id="ask only"),
        pytest.param(187.2, 187.1, "187.15", id="crossed"),
        pytest.param(187.1, 187.1, "187.1", id="locked"),
        pytest.param(-0.0, 187.15, "187.15", id="a zero with a sign is no quote either"),
    ],
)
def test_price_follows_the_mid_rule(bid: float, ask: float, price: str) -> None:
    quote = Quote("AAPL", bid, ask, 1, 1, 0, 0)
    assert quote.price == Decimal(price)
    assert as_json(mid_number(bid, ask)).decode() == price


def test_no_side_has_no_price() -> None:
    assert Quote("AAPL", 0.0, 0.0, 0, 0, 0, 0).price is None
    assert mid_number(0.0, 0.0) is None


def test_a_quote_is_unnumbered_until_it_is_accepted() -> None:
    assert Quote("AAPL", 1.0, 2.0, 1, 1, 0, 0).seq == 0


def test_timestamp_keeps_all_nanoseconds() -> None:
    quote = Quote("AAPL", 1.0, 2.0, 1, 1, 1_795_189_904_208_912_345, 0)
    assert quote.timestamp == "2026-11-20T15:51:44.208912345Z"
