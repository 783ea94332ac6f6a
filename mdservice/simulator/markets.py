"""Every market of the simulation."""

from __future__ import annotations

from typing import Final

from mdservice.simulator.kinds import SimMarket
from mdservice.simulator.stocks import STOCK_MARKET

__all__ = ["MARKETS"]

MARKETS: Final[tuple[SimMarket, ...]] = (STOCK_MARKET,)
