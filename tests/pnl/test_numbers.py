"""Exact numbers in few digits."""

from __future__ import annotations

from decimal import Decimal

import pytest

from mdservice.pnl.numbers import in_units


@pytest.mark.parametrize(
    ("number", "units"),
    [
        ("0", 0),
        ("10", 10_000_000_000),
        ("1.5", 1_500_000_000),
        ("-0.000000001", -1),
        ("999999999.999999999", 999_999_999_999_999_999),
    ],
)
def test_a_number_of_few_digits_is_an_integer_of_its_last_decimal(number: str, units: int) -> None:
    assert in_units(Decimal(number), 9) == units


@pytest.mark.parametrize("number", ["1.0000000001", "0.0000000001", "1000000000", "-1E+9"])
def test_a_number_that_would_be_rounded_or_is_too_long_has_no_units(number: str) -> None:
    assert in_units(Decimal(number), 9) is None
