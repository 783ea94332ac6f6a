"""Numbers as people read them."""

from __future__ import annotations

from decimal import Decimal

import pytest

from mdservice.cli.watch.view import (
    age_text,
    money_text,
    number_text,
    percent_text,
    price_text,
    printable,
)


@pytest.mark.parametrize(
    ("price", "text"),
    [
        ("187.135", "187.135"), ("402.5", "402.50"), ("402", "402.00"), ("0", "0.00"),
        ("1234567.1", "1,234,567.10"), ("0.0001235", "0.000124"), ("1e-9", "1.0000E-9"),
        ("1e400", "1.0000E+400"), ("-37.63", "-37.63"),
    ],
)  # fmt: skip
def test_prices_have_from_two_to_six_decimals(price: str, text: str) -> None:
    assert price_text(Decimal(price)) == text


@pytest.mark.parametrize(
    ("qty", "text"),
    [
        ("10", "10"),
        ("1E+3", "1,000"),
        ("-2.50", "-2.5"),
        ("0", "0"),
        ("0.123456789", "0.123456789"),
    ],
)
def test_quantities_have_no_zeros_at_their_end(qty: str, text: str) -> None:
    assert number_text(Decimal(qty)) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("371.35", "+371.35"), ("-1371.355", "-1,371.36"), ("0", "0.00"), ("-0.004", "0.00"),
        ("-0.006", "-0.01"), ("-1e100", "-1.0000E+100"),
    ],
)  # fmt: skip
def test_amounts_have_a_sign_and_cents(amount: str, text: str) -> None:
    assert money_text(Decimal(amount)) == text


def test_what_is_not_known_is_a_dash() -> None:
    assert [f(None) for f in (price_text, number_text, money_text, percent_text, age_text)] == (
        ["-"] * 5
    )
    assert percent_text(Decimal("24.7567")) == "+24.76 %"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0.0 s"), (0.39, "0.3 s"), (9.99, "9.9 s"), (10, "10 s"), (59.9, "59 s"),
        (60, "1 min"), (3599, "59 min"), (3600, "1 h"), (86399, "23 h"), (200_000, "2 d"),
    ],
)  # fmt: skip
def test_ages_are_short(seconds: float, text: str) -> None:
    assert age_text(seconds) == text


def test_nothing_steers_the_terminal() -> None:
    assert printable("A\x1b[2J\nB\t C\x07") == "A?[2J B C?"
