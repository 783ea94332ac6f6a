"""The columns of the table: what is in them, and which of them a terminal has room for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Final, Literal

import attrs

from mdservice.watch.texts import age_text, money_text, number_text, percent_text, price_text
from mdservice.watch.view import Entry

__all__ = ["COLUMNS", "GAP", "Column", "choose", "sign_style"]

GAP: Final = 2
_STATUS_STYLES: Final = {
    "live": "green",
    "stale": "yellow",
    "unpriced": "magenta",
    "old": "yellow",
    "not asked": "magenta",
}


@attrs.frozen
class Column:
    """One column.

    Attributes:
        name: Its heading.
        rank: Which columns come first into a terminal that has not room for all; those of the
            same rank come together.
        least: It is never narrower, so that it seldom changes.
        of_lots: Whether only what is held has it.
        text: An entry's text.
        style: An entry's colour.
        align: ``point``: the decimal points one below the other.
    """

    name: str
    rank: int
    least: int
    text: Callable[[Entry], str]
    style: Callable[[Entry], str] = lambda _entry: ""
    align: Literal["left", "right", "point"] = "right"
    of_lots: bool = False


def sign_style(amount: Decimal | None) -> str:
    """Green for a gain, red for a loss; the sign tells it too."""
    if not amount:
        return ""
    return "green" if amount > 0 else "red"


def _price(entry: Entry) -> str:
    change = entry.change
    arrow = " " if not change else "▲" if change > 0 else "▼"
    return f"{arrow} {price_text(entry.price)}"


def _change(entry: Entry) -> str:
    if not entry.change:
        return ""
    return f"{'+' if entry.change > 0 else ''}{price_text(entry.change)}"


COLUMNS: Final = (
    Column("symbol", 0, 6, lambda e: e.symbol, lambda _e: "bold", "left"),
    Column(
        "qty", 5, 5, lambda e: number_text(e.lot.qty) if e.lot else "", align="point", of_lots=True
    ),
    Column(
        "avg price",
        6,
        9,
        lambda e: price_text(e.lot.avg_entry_price) if e.lot else "",
        align="point",
        of_lots=True,
    ),
    Column("price", 1, 10, _price, lambda e: sign_style(e.change), "point"),
    Column("change", 9, 7, _change, lambda e: sign_style(e.change), "point"),
    Column("bid", 8, 8, lambda e: price_text(e.bid), align="point"),
    Column("ask", 8, 8, lambda e: price_text(e.ask), align="point"),
    Column("age", 7, 6, lambda e: age_text(e.age_s)),
    Column(
        "P&L",
        2,
        9,
        lambda e: money_text(e.lot.pnl) if e.lot else "",
        lambda e: sign_style(e.lot.pnl) if e.lot else "",
        of_lots=True,
    ),
    Column(
        "P&L %",
        4,
        9,
        lambda e: percent_text(e.lot.pnl_pct) if e.lot else "",
        lambda e: sign_style(e.lot.pnl_pct) if e.lot else "",
        of_lots=True,
    ),
    Column("status", 3, 8, lambda e: e.status, lambda e: _STATUS_STYLES[e.status], "left"),
)
"""From left to right."""


def choose(columns: Iterable[Column], widths: Mapping[str, int], room: int) -> Sequence[Column]:
    """The columns for which there is room, by rank, until one has none; in their own order.

    Args:
        columns: All, from left to right.
        widths: How wide each has to be.
        room: Cells of a line.
    """
    columns = list(columns)
    used, ranks = -GAP, set[int]()
    for rank in sorted({column.rank for column in columns}):
        needed = sum(GAP + widths[column.name] for column in columns if column.rank == rank)
        if used + needed > room:
            break
        used += needed
        ranks.add(rank)
    return [column for column in columns if column.rank in ranks]
