"""A position, as its source sends it."""

from __future__ import annotations

from decimal import Decimal

import attrs

__all__ = ["Position"]


@attrs.frozen
class Position:
    """One lot of one symbol. A symbol may have several.

    Attributes:
        symbol: ``AAPL``. An invalid symbol is kept as the source wrote it, with a problem.
        qty: Shares, fractions too; below 0 for a short position. None if it is unreadable.
        avg_entry_price: The price of a share when bought (or sold short). None if unreadable.
        multiplier: Shares in one unit of ``qty``; 1 for stocks.
        problem: Why its price is not followed, or None. Such a position is still reported.
        previous_price: The source's price of a share, present or at the last close; None if it
            gives none. It changes with the market, so equality of positions ignores it.
    """

    symbol: str
    qty: Decimal | None
    avg_entry_price: Decimal | None
    multiplier: Decimal = Decimal(1)
    problem: str | None = None
    previous_price: Decimal | None = attrs.field(default=None, eq=False)
