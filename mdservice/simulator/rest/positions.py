"""Positions as Alpaca's trading API tells them.

Pure: prices are arguments.
"""

from __future__ import annotations

import uuid
from decimal import Decimal, localcontext

from mdservice.simulator.decimals import EXACT, plain
from mdservice.simulator.positions import Holding
from mdservice.simulator.universe import tape_of

__all__ = ["asset_id", "describe_position"]

_ASSETS = uuid.UUID("6f1d3f0e-5d0b-5c36-9a52-7c0c5f3f6b11")
_EXCHANGES = {"A": "NYSE", "B": "ARCA", "C": "NASDAQ"}
_RATIO_PLACES = Decimal("1e-16")


def asset_id(symbol: str) -> str:
    """The symbol's asset: a UUID, always the same."""
    return str(uuid.uuid5(_ASSETS, symbol))


def describe_position(holding: Holding, price: Decimal, lastday: Decimal) -> dict[str, object]:
    """One position as JSON; every number is a string.

    A short position has ``qty``, ``market_value`` and ``cost_basis`` below 0. The shares count
    as held since the last day, so what the day brought is measured from its close.

    Args:
        holding: The position.
        price: Dollars a share now.
        lastday: Dollars a share at the last day's close.

    Source: Alpaca's OpenAPI description of "Positions", and the negative numbers of a short
    position from its users' reports. That ratios have up to 16 places is inferred.
    """
    with localcontext(EXACT):
        value = holding.qty * price
        cost = holding.qty * holding.avg_entry_price
        close = holding.qty * lastday
        return {
            "asset_id": asset_id(holding.symbol),
            "symbol": holding.symbol,
            "exchange": _EXCHANGES[tape_of(holding.symbol)],
            "asset_class": "us_equity",
            "asset_marginable": True,
            "qty": plain(holding.qty),
            "avg_entry_price": plain(holding.avg_entry_price),
            "side": "long" if holding.qty > 0 else "short",
            "market_value": plain(value),
            "cost_basis": plain(cost),
            "unrealized_pl": plain(value - cost),
            "unrealized_plpc": _ratio(value - cost, cost),
            "unrealized_intraday_pl": plain(value - close),
            "unrealized_intraday_plpc": _ratio(value - close, close),
            "current_price": plain(price),
            "lastday_price": plain(lastday),
            "change_today": _ratio(price - lastday, lastday),
            "qty_available": plain(holding.qty),
        }


def _ratio(part: Decimal, whole: Decimal) -> str:
    """The part of the whole's size, by a factor of 1; 0 of nothing."""
    return plain((part / abs(whole)).quantize(_RATIO_PLACES)) if whole else "0"
