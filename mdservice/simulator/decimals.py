"""Exact numbers: of shares, and of dollars."""

from __future__ import annotations

from decimal import Context, Decimal, InvalidOperation, localcontext

__all__ = ["EXACT", "TOO_LARGE", "Number", "plain", "to_decimal"]

Number = Decimal | int | float | str
"""What a caller may give; a float counts as it is printed, so 0.1 is 0.1."""

EXACT = Context(prec=60)
"""Keeps every digit of the products and sums of what :func:`to_decimal` lets through."""

_PLACES = Decimal("1e-9")
TOO_LARGE = Decimal(10) ** 12
"""Numbers stay below it, positions too."""


def to_decimal(number: Number) -> Decimal:
    """The number with at most 9 decimal places, which is what Alpaca takes.

    Raises:
        ValueError: It is none, not finite, or 10^12 or more.
    """
    try:
        value = Decimal(str(number))
    except InvalidOperation:
        raise ValueError(f"{number!r} is not a number") from None
    if not value.is_finite() or abs(value) >= TOO_LARGE:
        raise ValueError(f"{number!r} is not a number below {TOO_LARGE:f}")
    return value.quantize(_PLACES, context=EXACT)


def plain(value: Decimal) -> str:
    """``187.5``: no exponent, no zeros at the end, no minus before 0."""
    with localcontext(EXACT):
        return f"{value.normalize() + 0:f}"
