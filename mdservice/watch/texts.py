"""Numbers as people read them."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

__all__ = ["age_text", "money_text", "number_text", "percent_text", "price_text", "printable"]

_LARGE: Final = Decimal("1e12")
_SMALL: Final = Decimal("1e-6")
_CENTS: Final = Decimal("0.005")
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3_600, 86_400
_TENTHS_BELOW_S = 10


def number_text(number: Decimal | None) -> str:
    """A quantity: ``1,250``, ``-2.5``; nine decimals at most, no zeros at their end."""
    return _exact(number, 0, 9)


def price_text(price: Decimal | None) -> str:
    """``187.135``, ``402.50``: from two to six decimals."""
    return _exact(price, 2, 6)


def money_text(amount: Decimal | None) -> str:
    """``+1,371.35``, rounded to cents; a sign unless that is 0."""
    if amount is None:
        return "-"
    if abs(amount) >= _LARGE:
        return f"{amount:+.4E}"
    return "0.00" if abs(amount) <= _CENTS else f"{amount:+,.2f}"


def percent_text(percent: Decimal | None) -> str:
    """``+24.76 %``; a sign unless that is 0."""
    return "-" if percent is None else f"{money_text(percent)} %"


def age_text(seconds: float | None) -> str:
    """``0.3 s``, ``12 s``, ``3 min``, ``5 h``, ``2 d``; cut, not rounded."""
    if seconds is None:
        return "-"
    seconds = max(0.0, seconds)
    if seconds < _TENTHS_BELOW_S:
        return f"{int(seconds * 10) / 10:.1f} s"
    if seconds < _MINUTE_S:
        return f"{int(seconds)} s"
    if seconds < _HOUR_S:
        return f"{int(seconds) // _MINUTE_S} min"
    if seconds < _DAY_S:
        return f"{int(seconds) // _HOUR_S} h"
    return f"{int(seconds) // _DAY_S} d"


def printable(text: str) -> str:
    """On one line, without what would steer a terminal."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))


def _exact(number: Decimal | None, least: int, most: int) -> str:
    """Grouped by thousands; numbers of many digits with an exponent."""
    if number is None:
        return "-"
    if number and not _SMALL <= abs(number) < _LARGE:
        return f"{number:.4E}"
    text = f"{number or Decimal(0):,.{most}f}"
    whole, _, decimals = text.partition(".")
    decimals = decimals.rstrip("0").ljust(least, "0")
    return f"{whole}.{decimals}" if decimals else whole
