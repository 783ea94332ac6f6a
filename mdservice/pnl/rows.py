"""The rows and the totals of a P&L report."""

from __future__ import annotations

from decimal import Decimal
from typing import Generic, Literal, TypeVar

import msgspec

from mdservice.model.market import Market
from mdservice.model.position import AssetClass

__all__ = ["MarkName", "PnlReport", "Row", "Status"]

_T = TypeVar("_T")
Status = Literal["live", "closed", "stale", "unpriced"]
MarkName = Literal["mid", "last", "bid", "ask", "previous"]
"""What a price is: the mid, bid or ask of a quote, a last trade, or the price of the position's
source."""


class Row(msgspec.Struct, frozen=True, gc=False):
    """One lot at its symbol's price. All amounts are exact, in the currency of the feed.

    Attributes:
        symbol: As the source wrote it: ``AAPL``, ``BTCUSD``.
        qty: Negative for a short position; None if unreadable.
        avg_entry_price: None if unreadable.
        asset_class: ``us_equity``, ``crypto`` or ``us_option``.
        multiplier: Shares in one unit of ``qty``; None if unreadable.
        current_price: That of the mark: by the setting the mid of the newest usable quote, the last
            trade, or the side of the quote at which the position can be closed. Without one, the
            price from the position's source; None if unpriced.
        unrealized_pnl: (``current_price`` - ``avg_entry_price``) x ``qty`` x multiplier; None
            if unpriced.
        unrealized_pnl_pct: Of ``|qty|`` x ``avg_entry_price`` x multiplier, rounded half-even to
            4 places; None if that is 0 or the row is unpriced.
        market_value: ``current_price`` x ``qty`` x multiplier, negative if short; None if
            unpriced.
        day_pnl: The P&L of its symbol since the last close; of several lots of a symbol, each has
            its own part. None if unpriced, or if the price at the last close is not known.
        mark: What ``current_price`` is; None if unpriced.
        last_updated: The time of that quote or trade, RFC 3339; None for a price from the source.
            If unpriced, the time of the newest quote, or None.
        status: ``live``: the price is young enough; ``closed``: it is older, its market is closed,
            and it is the last session's last price; ``stale``: it is too old otherwise, the key
            that it had is gone, the newest quote is not usable, or the price is from the position's
            source; ``unpriced``.
        problem: Why the lot is never priced, or None.
    """

    symbol: str
    qty: Decimal | None
    avg_entry_price: Decimal | None
    asset_class: AssetClass
    multiplier: Decimal | None
    current_price: Decimal | None
    unrealized_pnl: Decimal | None
    unrealized_pnl_pct: Decimal | None
    market_value: Decimal | None
    day_pnl: Decimal | None
    last_updated: str | None
    mark: MarkName | None
    status: Status
    problem: str | None = None


class PnlReport(msgspec.Struct, Generic[_T], frozen=True, gc=False):
    """All rows, or those that changed, and the totals of all.

    Attributes:
        positions: The rows, each as a :class:`Row` or as its text. If the report is not whole, it
            has each changed symbol with all its lots, in their order; they replace all earlier rows
            of that symbol.
        total_unrealized_pnl: The exact sum over the priced rows, whatever their status.
        total_market_value: Likewise.
        total_day_pnl: The exact sum over all rows; None if one is not known. What was closed today
            has no row.
        realized_day_pnl: What today's fills realised; None where that is not known.
        market: The market's hours; None if they are not known.
        priced: The number of rows with a price, whatever their status.
        unpriced: The number of rows without a price.
        version: Pass it to get the changes since this report.
        whole: Whether it has all rows, in the order of their source.
    """

    positions: tuple[_T, ...]
    total_unrealized_pnl: Decimal
    total_market_value: Decimal
    total_day_pnl: Decimal | None
    realized_day_pnl: Decimal | None
    market: Market | None
    priced: int
    unpriced: int
    version: int
    whole: bool
