"""What rules measure: of a symbol, and of the total."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Final

from mdservice.pnl.holding import Holding, Totals
from mdservice.pnl.numbers import EXACT, percentage
from mdservice.pnl.rules import Kind

__all__ = ["age_s", "of_holding", "of_totals"]

_OF_HOLDING: Final[Mapping[Kind, Callable[[Holding], Decimal | None]]] = {
    "pnl": lambda holding: holding.pnl,
    "pct": lambda holding: percentage(holding.pnl, holding.hundredth),
    "price": lambda holding: holding.price,
    "qty": lambda holding: holding.qty,
    "value": lambda holding: EXACT.abs(holding.market_value),
    "day_pnl": lambda holding: holding.day_pnl,
}
_OF_TOTALS: Final[Mapping[Kind, Callable[[Totals], Decimal | None]]] = {
    "pnl": lambda totals: totals.unrealized_pnl,
    "pct": lambda totals: totals.unrealized_pnl_pct,
    "value": lambda totals: EXACT.abs(totals.market_value),
    "exposure": lambda totals: totals.exposure,
    "day_pnl": lambda totals: totals.day_pnl,
}


def of_holding(kind: Kind, holding: Holding) -> Decimal | None:
    """The measure of a held symbol at its price, other than ``stale``; None if it has none."""
    return _OF_HOLDING[kind](holding)


def of_totals(kind: Kind, totals: Totals) -> Decimal | None:
    """The measure of all positions; None if it has none."""
    return _OF_TOTALS[kind](totals)


def age_s(ts_event_ns: int, now_ns: int) -> Decimal:
    """The age of a quote, exact seconds."""
    return EXACT.scaleb(Decimal(now_ns - ts_event_ns), -9)
