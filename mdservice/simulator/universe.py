"""Which symbols the simulated market knows, and what they start at."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

__all__ = ["UNIVERSE", "start_cents", "tape_of"]

UNIVERSE: Mapping[str, int] = {
    "NVDA": 17_850,
    "TSLA": 34_120,
    "AAPL": 18_713,
    "SPY": 61_240,
    "AMD": 15_475,
    "AMZN": 20_390,
    "MSFT": 42_855,
    "META": 58_610,
    "GOOGL": 17_645,
    "QQQ": 52_930,
    "INTC": 2_415,
    "BAC": 4_380,
    "NFLX": 90_525,
    "F": 1_095,
    "PLTR": 8_240,
    "JPM": 24_315,
    "AVGO": 22_960,
    "XOM": 11_580,
    "DIS": 11_160,
    "KO": 6_275,
    "PFE": 2_590,
    "WMT": 9_345,
    "CSCO": 5_990,
    "BA": 17_420,
    "V": 31_190,
    "JNJ": 15_535,
    "PG": 16_880,
    "IWM": 22_710,
    "COST": 92_470,
    "BRK.B": 46_835,
}
"""Start prices in cents, by symbol, the busiest first. Invented, of a plausible size."""

_NASDAQ = frozenset(
    (
        *("NVDA", "TSLA", "AAPL", "AMD", "AMZN", "MSFT", "META", "GOOGL", "QQQ", "INTC"),
        *("NFLX", "PLTR", "AVGO", "CSCO", "COST"),
    )
)
_ARCA = frozenset(("SPY", "IWM"))
_LOWEST_CENTS = 500
_RANGE_CENTS = 49_500


def start_cents(symbol: str) -> int:
    """The start price of a symbol: from the table, else from a hash of its name.

    A symbol that the table does not know starts between 5.00 and 499.99, always at the same
    price, whatever the seed.
    """
    known = UNIVERSE.get(symbol)
    if known is not None:
        return known
    digest = hashlib.sha256(symbol.encode()).digest()
    return _LOWEST_CENTS + int.from_bytes(digest[:8], "big") % _RANGE_CENTS


def tape_of(symbol: str) -> str:
    """The tape that reports the symbol: ``C`` Nasdaq, ``B`` Arca, ``A`` New York."""
    if symbol in _NASDAQ:
        return "C"
    return "B" if symbol in _ARCA else "A"
