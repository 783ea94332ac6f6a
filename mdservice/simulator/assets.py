"""What the account can hold: stocks, crypto and options, by their symbols."""

from __future__ import annotations

import uuid
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final, Literal

import attrs

from mdservice.model.symbol import is_option, parse_symbol
from mdservice.simulator import crypto, options, stocks
from mdservice.simulator.kinds import SimKind
from mdservice.simulator.market import start_cents, tape_of
from mdservice.simulator.wire import to_decimal

__all__ = ["QUOTES", "Asset", "AssetClass", "asset_of"]

AssetClass = Literal["us_equity", "crypto", "us_option"]

_IDS: Final = uuid.UUID("6f1d3f0e-5d0b-5c36-9a52-7c0c5f3f6b11")
_PAIRS: Final = {pair.replace("/", ""): pair for pair in crypto.PAIRS}
QUOTES: Final[dict[AssetClass, SimKind[Any]]] = {
    "us_equity": stocks.QUOTES,
    "crypto": crypto.QUOTES,
    "us_option": options.QUOTES,
}
"""The kind of the quotes that price a class."""
_EXCHANGES: Final = {"A": "NYSE", "B": "ARCA", "C": "NASDAQ"}
_SHARES_A_CONTRACT: Final = 100
_YEARS_LEFT: Final = 0.1
_LEAST_PRICE: Final = Decimal("0.01")


@attrs.frozen
class Asset:
    """Something that the account can hold.

    Attributes:
        symbol: As market data and orders write it: ``AAPL``, ``BTC/USD``,
            ``AAPL261218C00200000``.
        asset_class: Alpaca's name of its class.
        start_price: Dollars before the first quote; also the close of the day before the start.
        multiplier: Shares or coins in one unit of quantity: 100 in a contract of options.
        exchange: ``NASDAQ``, ``CRYPTO``; empty for options.
    """

    symbol: str
    asset_class: AssetClass
    start_price: Decimal
    multiplier: int
    exchange: str

    @property
    def id(self) -> str:
        """A UUID, always the same."""
        return str(uuid.uuid5(_IDS, self.symbol))

    @property
    def position_symbol(self) -> str:
        """As positions write it: ``BTCUSD`` for ``BTC/USD``."""
        return self.symbol.replace("/", "")

    @property
    def quotes(self) -> SimKind[Any]:
        """The kind of its quotes."""
        return QUOTES[self.asset_class]

    @property
    def is_whole(self) -> bool:
        """Whether there are no parts of one."""
        return self.asset_class == "us_option"


@lru_cache(maxsize=10_000)
def asset_of(name: str) -> Asset:
    """The asset of a symbol, also of a pair without its slash.

    Raises:
        InvalidSymbol: There is no such symbol.
    """
    symbol = parse_symbol(name)
    symbol = _PAIRS.get(symbol, symbol)
    if "/" in symbol:
        return Asset(symbol, "crypto", to_decimal(crypto.start_price(symbol)), 1, "CRYPTO")
    if is_option(symbol):
        return Asset(symbol, "us_option", _premium(symbol), _SHARES_A_CONTRACT, "")
    start = Decimal(start_cents(symbol)) / 100
    return Asset(symbol, "us_equity", start, 1, _EXCHANGES[tape_of(symbol)])


def _premium(symbol: str) -> Decimal:
    """A plausible price of an option, the same on every day: five weeks before its last."""
    try:
        contract = options.Contract.parse(symbol)
    except ValueError:  # no such date
        return _LEAST_PRICE
    spot = start_cents(contract.root) / 100
    price = options.model_price(contract, spot, _YEARS_LEFT, options.volatility(contract))
    return max(_LEAST_PRICE, to_decimal(price).quantize(_LEAST_PRICE))
