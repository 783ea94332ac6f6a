"""Every market of the simulation."""

from __future__ import annotations

from typing import Final

from mdservice.simulator.crypto import CRYPTO_MARKET
from mdservice.simulator.kinds import SimMarket
from mdservice.simulator.news import NEWS_MARKET
from mdservice.simulator.options import OPTIONS_MARKET
from mdservice.simulator.stocks import STOCK_MARKET

__all__ = ["MARKETS"]

MARKETS: Final[tuple[SimMarket, ...]] = (
    STOCK_MARKET,
    CRYPTO_MARKET,
    OPTIONS_MARKET,
    NEWS_MARKET,
)
