"""What is shown at one moment."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

import attrs

__all__ = ["Entry", "EntryStatus", "Lot", "Sums", "View"]

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
