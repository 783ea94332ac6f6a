"""What is shown at one moment."""

from __future__ import annotations

from decimal import Decimal
from typing import Final, Literal

import attrs

__all__ = [
    "Entry",
    "EntryStatus",
    "Lot",
    "Sums",
    "View",
    "age_text",
    "money_text",
    "number_text",
    "percent_text",
    "price_text",
    "printable",
]


# Numbers as people read them.


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


EntryStatus = Literal["live", "stale", "unpriced", "old", "not asked"]
"""As in a P&L report; besides: ``old``, known from before the prices went away, and ``not
asked``, a symbol that nobody has subscribed to."""


@attrs.frozen
class Lot:
    """A position and what it is worth; None where it cannot be told.

    Attributes:
        qty: Below 0 for a short position.
        avg_entry_price: Per share.
        pnl: Exact.
        pnl_pct: Of what it cost.
    """

    qty: Decimal | None
    avg_entry_price: Decimal | None
    pnl: Decimal | None
    pnl_pct: Decimal | None


@attrs.frozen
class Entry:
    """A symbol, or one lot of it.

    Attributes:
        symbol: ``AAPL``.
        status: In one or two words.
        price: The mid, exact.
        bid: None where there is none.
        ask: Likewise.
        age_s: How old the quote is.
        change: By how much the price changed in the last moment; None where it did not.
        lot: None where it is not held.
    """

    symbol: str
    status: EntryStatus
    price: Decimal | None = None
    bid: Decimal | None = None
    ask: Decimal | None = None
    age_s: float | None = None
    change: Decimal | None = None
    lot: Lot | None = None


@attrs.frozen
class Sums:
    """Over all that is held.

    Attributes:
        pnl: Of the priced lots.
        pnl_pct: Of what these cost; None where that is 0.
        priced: Lots with a price, live and stale.
        unpriced: Lots without.
    """

    pnl: Decimal
    pnl_pct: Decimal | None
    priced: int
    unpriced: int


@attrs.frozen
class View:
    """Everything that a screen shows.

    Attributes:
        state: How the service is, in one or two words.
        well: Whether that is nothing to worry about.
        about: More of that, the most important first.
        warnings: Why what is shown may be out of date.
        hints: What to do about it.
        held: The first of the lots that are held.
        held_count: How many there are.
        sums: None where nothing is held.
        others: The first of the other symbols.
        others_count: How many there are.
    """

    state: str
    well: bool
    about: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    held: tuple[Entry, ...] = ()
    held_count: int = 0
    sums: Sums | None = None
    others: tuple[Entry, ...] = ()
    others_count: int = 0
