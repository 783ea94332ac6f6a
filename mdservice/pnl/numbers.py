"""Exact decimals, the one rounded percentage, and their plain text."""

from __future__ import annotations

from decimal import (
    ROUND_05UP,
    ROUND_HALF_EVEN,
    Context,
    Decimal,
    DivisionByZero,
    Inexact,
    InvalidOperation,
    Overflow,
)
from math import inf
from typing import Final

__all__ = [
    "EXACT",
    "MOST_DIGITS",
    "ZERO",
    "from_e5",
    "in_units",
    "percentage",
    "plain",
    "short",
    "shortened",
    "shown",
    "sums_up",
    "to_price",
]

ZERO: Final = Decimal(0)
MOST_DIGITS: Final = 100
"""The maximum number of digits before, and after, the decimal point of a number in a sum."""

EXACT: Final = Context(
    prec=2000,
    rounding=ROUND_HALF_EVEN,
    Emin=-999_999,
    Emax=999_999,
    traps=[Inexact, InvalidOperation, DivisionByZero, Overflow],
)
"""For sums and products. Quantity, entry price and multiplier of :data:`MOST_DIGITS` each way and
the mid of any two doubles (309 digits before the point, 341 behind it) need fewer than 1,300
digits, and so do the sums of as many of them as fit into memory. If the digits did not suffice,
it would raise instead of rounding. Unused digits cost nothing."""

PLACES: Final = Decimal("0.0001")
_CENT, _TENTH_CENT, _E5 = Decimal("0.01"), Decimal("0.001"), Decimal("0.00001")
_multiply = EXACT.multiply
_MOST_UNITS: Final = 18
"""Digits."""
# 05UP keeps a trace of dropped digits, so that rounding a second time, to fewer digits, is right.
divide = Context(prec=50, rounding=ROUND_05UP).divide
quantize = Context(prec=45, rounding=ROUND_HALF_EVEN).quantize
_divide_long = Context(prec=2000, rounding=ROUND_05UP).divide
_quantize_long = Context(prec=1995, rounding=ROUND_HALF_EVEN).quantize


def percentage(amount: Decimal, hundredth: Decimal) -> Decimal | None:
    """An amount in per cent, half-even to 4 places; None if one per cent is 0.

    Args:
        amount: An amount of money.
        hundredth: One per cent of the reference amount.
    """
    if not hundredth:
        return None
    try:
        return quantize(divide(amount, hundredth), PLACES) or ZERO
    except InvalidOperation:  # more digits than the context allows
        return _quantize_long(_divide_long(amount, hundredth), PLACES) or ZERO


def in_units(number: Decimal, decimals: int) -> int | None:
    """A number of so many decimals as an integer; None where that is not one of few digits."""
    if number and not 0 <= number.adjusted() + decimals < _MOST_UNITS:
        return None
    scaled = EXACT.scaleb(number, decimals)
    return int(scaled) if scaled == EXACT.to_integral_value(scaled) else None


def from_e5(price: int) -> Decimal:
    """A price in hundred-thousandths as a decimal, with two decimals, three or five."""
    cents, rest = divmod(price, 1_000)
    if not rest:
        return _multiply(_CENT, cents)
    return _multiply(_E5, price) if rest % 100 else _multiply(_TENTH_CENT, price // 100)


def sums_up(number: Decimal) -> bool:
    """Whether a number is finite, with so few digits that sums with it are exact."""
    return (
        number.is_finite()
        and number.adjusted() < MOST_DIGITS
        and int(number.as_tuple().exponent) >= -MOST_DIGITS
    )


def shown(number: Decimal | None) -> Decimal | None:
    """The number, with 0 without its sign; None if it is not usable in sums.

    A number that is not finite is not valid JSON, and a huge exponent would fill the memory as
    plain text.
    """
    return (number or ZERO) if number is not None and sums_up(number) else None


def to_price(number: float | Decimal | None) -> Decimal | None:
    """The result of :func:`mdservice.model.quote.mid_number` as a decimal; None for None."""
    if type(number) is float and 0.0 < number < inf:  # the usual, fast path
        return Decimal(repr(number))
    if number is None:
        return None
    price = Decimal(repr(number)) if isinstance(number, float) else Decimal(number)
    return (price or ZERO) if price.is_finite() else None


def plain(number: Decimal) -> str:
    """A JSON number without an exponent, with its trailing zeros: ``150.00``; never ``-0``."""
    if not number:
        return "0"
    text = str(number)
    return format(number, "f") if "E" in text else text


def short(number: Decimal) -> str:
    """A JSON number without an exponent and without trailing zeros."""
    text = str(number)
    return shortened(text) if text[-1] == "0" or "E" in text else text


def shortened(text: str) -> str:
    """The text of a decimal as :func:`short` has it."""
    if "E" in text:
        text = plain(Decimal(text))
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
