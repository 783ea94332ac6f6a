"""What is told about positions at live prices."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

import msgspec

__all__ = ["PnlReport", "Row", "Status"]

Status = Literal["live", "stale", "unpriced"]


class Row(msgspec.Struct, frozen=True, gc=False):
    """One lot at its symbol's price. All amounts are exact, in the currency of the feed.

    Attributes:
        symbol: ``AAPL``.
        qty: Below 0 for a short position; None where it is unreadable.
        avg_entry_price: None where it is unreadable.
        current_price: The mid of the newest usable quote; without one the price that the
            position's source tells; None where unpriced.
        unrealized_pnl: (``current_price`` - ``avg_entry_price``) x ``qty`` x multiplier; None
            where unpriced.
        unrealized_pnl_pct: Of ``|qty|`` x ``avg_entry_price`` x multiplier, rounded half-even to
            4 places; None where that is 0 or the row is unpriced.
        last_updated: The time of that quote, RFC 3339; None for a price of the source. Where
            unpriced, the time of the newest quote; None without one.
        status: ``live``; ``stale``: the price is too old, its key is gone, the newest quote is not
            usable, or the position's source tells it; ``unpriced``.
        problem: Why the lot is never priced, or None.
    """

    symbol: str
    qty: Decimal | None
    avg_entry_price: Decimal | None
    current_price: Decimal | None
    unrealized_pnl: Decimal | None
    unrealized_pnl_pct: Decimal | None
    last_updated: str | None
    status: Status
    problem: str | None = None


class PnlReport(msgspec.Struct, frozen=True, gc=False):
    """All rows, or those that changed, and the totals of all.

    Attributes:
        positions: Rows. Where the report is not whole: each changed symbol with all its lots, in
            their order; they take the place of all former rows of that symbol.
        total_unrealized_pnl: The exact sum over the priced rows, live and stale.
        priced: Rows with a price, live and stale.
        unpriced: Rows without.
        version: To ask for what changed since.
        whole: Whether it has all rows, in the order of their source.
    """

    positions: tuple[Row, ...]
    total_unrealized_pnl: Decimal
    priced: int
    unpriced: int
    version: int
    whole: bool
