"""Decimals that are never rounded, the one percentage that is, and their plain text."""

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
from typing import Final

__all__ = [
    "EXACT",
    "MOST_DIGITS",
    "ZERO",
    "percentage",
    "plain",
    "short",
    "shown",
    "sums_up",
    "to_price",
]

ZERO: Final = Decimal(0)
MOST_DIGITS: Final = 100
"""Digits before, and digits after, the decimal point of a number that is summed up."""

EXACT: Final = Context(
    prec=2000,
    rounding=ROUND_HALF_EVEN,
    Emin=-999_999,
    Emax=999_999,
    traps=[Inexact, InvalidOperation, DivisionByZero, Overflow],
)
"""For sums and products. Quantity, entry price and multiplier of :data:`MOST_DIGITS` each way and
the mid of any two doubles (309 digits before the point, 341 behind it) need fewer than 1,300
digits, and so do the sums of as many of them as fit into memory. Were it not enough, it would
raise instead of rounding. Unused digits cost nothing."""

_PLACES: Final = Decimal("0.0001")
# 05UP keeps a trace of what was cut off, so that rounding a second time, to fewer digits, is right.
_divide = Context(prec=50, rounding=ROUND_05UP).divide
_quantize = Context(prec=45, rounding=ROUND_HALF_EVEN).quantize
_divide_long = Context(prec=2000, rounding=ROUND_05UP).divide
_quantize_long = Context(prec=1995, rounding=ROUND_HALF_EVEN).quantize


def percentage(amount: Decimal, hundredth: Decimal) -> Decimal | None:
    """How many hundredths an amount is, half-even to 4 places; None where that is 0.

    Args:
        amount: Of money.
        hundredth: One per cent of what it is compared with.
    """
    if not hundredth:
        return None
    try:
        return _quantize(_divide(amount, hundredth), _PLACES) or ZERO
    except InvalidOperation:  # more digits than the quotient was given
        return _quantize_long(_divide_long(amount, hundredth), _PLACES) or ZERO


def sums_up(number: Decimal) -> bool:
    """Whether a number is one, and of so few digits that sums with it are exact."""
    return (
        number.is_finite()
        and number.adjusted() < MOST_DIGITS
        and int(number.as_tuple().exponent) >= -MOST_DIGITS
    )


def shown(number: Decimal | None) -> Decimal | None:
    """The number, 0 without its sign; None where it is none, or one that is not summed up.

    What is not finite is no JSON number, and a huge exponent would fill the memory as plain text.
    """
    return (number or ZERO) if number is not None and sums_up(number) else None


def to_price(number: float | Decimal | None) -> Decimal | None:
    """What :func:`mdservice.model.quote.mid_number` gave, as a decimal; None for no number."""
    if number is None:
        return None
    price = Decimal(repr(number)) if isinstance(number, float) else Decimal(number)
    return (price or ZERO) if price.is_finite() else None


def plain(number: Decimal) -> str:
    """A JSON number without an exponent, zeros at its end kept: ``150.00``; never ``-0``."""
    if not number:
        return "0"
    text = str(number)
    return format(number, "f") if "E" in text else text


def short(number: Decimal) -> str:
    """A JSON number without an exponent and without zeros at the end of its decimals."""
    # Not by way of plain(): three of these per row and event are a good part of its cost.
    if not number:
        return "0"
    text = str(number)
    if "E" in text:
        text = format(number, "f")
    if text[-1] == "0" and "." in text:
        return text.rstrip("0").rstrip(".")
    return text
