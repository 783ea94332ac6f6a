"""A position, as its source sends it."""

from __future__ import annotations

from decimal import Decimal
from typing import Final, Literal

import attrs

from mdservice.model.symbol import is_option, pair_of

__all__ = ["AssetClass", "Position", "asset_class_of", "default_multiplier", "feed_symbol"]

AssetClass = Literal["us_equity", "crypto", "us_option"]
"""Alpaca's names."""

_ONE: Final = Decimal(1)
_OPTION_MULTIPLIER: Final = Decimal(100)
_DOLLARS: Final = "/USD"


def asset_class_of(symbol: str, asset_class: AssetClass = "us_equity") -> AssetClass:
    """The class of a symbol: a slash means crypto, the OCC form an option.

    Args:
        symbol: ``AAPL``.
        asset_class: The class of a symbol that has neither.
    """
    if "/" in symbol:
        return "crypto"
    return "us_option" if is_option(symbol) else asset_class


def default_multiplier(asset_class: AssetClass) -> Decimal:
    """Shares in one unit of a position, where its source does not say: 100 for an option."""
    return _OPTION_MULTIPLIER if asset_class == "us_option" else _ONE


def feed_symbol(symbol: str, asset_class: AssetClass) -> str:
    """The symbol under which the feed has the prices: ``BTC/USD`` for ``BTCUSD`` in crypto."""
    if asset_class != "crypto" or "/" in symbol:
        return symbol
    return pair_of(symbol) or f"{symbol}{_DOLLARS}"


@attrs.frozen
class Position:
    """One lot of one symbol. A symbol may have several.

    Attributes:
        symbol: As the source wrote it: ``AAPL``, ``BTCUSD``. An invalid one has a problem.
        qty: Shares, coins or contracts, fractions too; below 0 for a short position. None if it is
            unreadable.
        avg_entry_price: The price of a share when bought (or sold short). None if unreadable.
        multiplier: Shares in one unit of ``qty``: by default 100 for an option, else 1.
        problem: Why its price is not followed, or None. Such a position is still reported.
        current_price: The price of a share that the source has now; None if it gives none. It
            changes with the market, so equality of positions ignores it.
        lastday_price: The price of a share at the last close; None if the source gives none.
        asset_class: By default that of the symbol's form.
        priced_by: The symbol under which the feed has its prices: ``BTC/USD`` for ``BTCUSD``,
            else the symbol.
    """

    symbol: str
    qty: Decimal | None
    avg_entry_price: Decimal | None
    multiplier: Decimal = attrs.field()
    problem: str | None = None
    current_price: Decimal | None = attrs.field(default=None, eq=False)
    lastday_price: Decimal | None = None
    asset_class: AssetClass = attrs.field()
    priced_by: str = attrs.field(init=False, eq=False, repr=False)

    @multiplier.default
    def _of_class(self) -> Decimal:
        return default_multiplier(asset_class_of(self.symbol))

    @asset_class.default
    def _of_symbol(self) -> AssetClass:
        return asset_class_of(self.symbol)

    @priced_by.default
    def _in_feed(self) -> str:
        return feed_symbol(self.symbol, self.asset_class)
