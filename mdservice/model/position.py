"""A position, as its source sends it."""

from __future__ import annotations

from decimal import Decimal

import attrs

__all__ = ["Position"]


@attrs.frozen
class Position:
    """One lot of one symbol. A symbol may have several.

    Attributes:
        symbol: ``AAPL``. As the source wrote it where it is no symbol; then there is a problem.
        qty: Shares, fractions too; below 0 for a short position. None where it is unreadable.
        avg_entry_price: What a share was bought (or sold short) at. None where it is unreadable.
        multiplier: Shares in one unit of ``qty``; 1 for stocks.
        problem: Why its price is not followed, or None. Such a position is still reported.
        previous_price: What its source says that a share is worth, or was worth at the last close;
            None where it does not say so. It changes with the market, so positions that differ in
            it alone are equal.
    """

    symbol: str
    qty: Decimal | None
    avg_entry_price: Decimal | None
    multiplier: Decimal = Decimal(1)
    problem: str | None = None
    previous_price: Decimal | None = attrs.field(default=None, eq=False)
