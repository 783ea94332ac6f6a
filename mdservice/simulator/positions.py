"""The positions of an account, and what a trade does to them.

Pure: prices are arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal, localcontext

import attrs

from mdservice.model.symbol import EVERY_SYMBOL, parse_symbol
from mdservice.simulator.wire import EXACT, TOO_LARGE, Number, to_decimal

__all__ = ["DEMO_POSITIONS", "Holding", "PositionBook", "StartPositions", "parse_positions"]

StartPositions = Mapping[str, tuple[Number, Number]] | Iterable[tuple[str, tuple[Number, Number]]]
"""Shares and average price in dollars by symbol; shares below 0 are a short position."""

DEMO_POSITIONS: Mapping[str, tuple[str, str]] = {
    "AAPL": ("120", "182.4"),
    "MSFT": ("-35", "431.2"),
    "NVDA": ("200", "171.255"),
    "AMZN": ("75", "205.1"),
    "GOOGL": ("-60", "174.9"),
    "META": ("12.5", "590.25"),
    "TSLA": ("-40", "349.85"),
    "SPY": ("25", "605.75"),
}
"""A portfolio to look at: long and short, ahead and behind, one with a part of a share."""

_AVERAGE_PLACES = Decimal("1e-9")


@attrs.frozen
class Holding:
    """One open position.

    Attributes:
        symbol: Its name.
        qty: Shares, never 0; below 0 for a short position.
        avg_entry_price: Dollars a share, to 9 places.
    """

    symbol: str
    qty: Decimal
    avg_entry_price: Decimal


def parse_positions(positions: StartPositions) -> dict[str, tuple[Decimal, Decimal]]:
    """Positions to start with, in exact numbers.

    Raises:
        InvalidSymbol: A name is no symbol.
        ValueError: The symbol is ``*``, there are no shares, or the price is below 0.
    """
    parsed: dict[str, tuple[Decimal, Decimal]] = {}
    for name, (shares, average) in dict(positions).items():
        symbol, qty, price = parse_symbol(name), to_decimal(shares), to_decimal(average)
        _check(symbol, qty, price)
        parsed[symbol] = qty, price
    return parsed


class PositionBook:
    """The open positions, in the order in which they were opened.

    Args:
        positions: Those that are open already.
    """

    def __init__(self, positions: StartPositions = ()) -> None:
        self._held = {
            symbol: Holding(symbol, qty, price)
            for symbol, (qty, price) in parse_positions(positions).items()
        }

    def __iter__(self) -> Iterator[Holding]:
        return iter(tuple(self._held.values()))

    def __len__(self) -> int:
        return len(self._held)

    def get(self, symbol: str) -> Holding | None:
        """The symbol's position; None where there is none."""
        return self._held.get(symbol)

    def trade(self, symbol: str, qty: Decimal, price: Decimal) -> Holding | None:
        """Buy shares, or sell them where ``qty`` is below 0.

        What adds to a position averages its price; what reduces it leaves the average alone;
        what goes through 0 opens the rest at the trade's price.

        Args:
            symbol: In upper case.
            qty: Shares, not 0.
            price: Dollars a share, not below 0.

        Returns:
            The position after it; None where it is closed.

        Raises:
            ValueError: The symbol is ``*``, ``qty`` is 0, the price is below 0, or the position
                would grow to 10^12 shares.

        Source: Alpaca's "Position average entry price calculation": weighted average within
        the day. What it does at the end of the day, first in, first out, is not simulated.
        """
        _check(symbol, qty, price)
        before = self._held.get(symbol)
        with localcontext(EXACT):
            after = qty if before is None else before.qty + qty
            if not after:
                del self._held[symbol]
                return None
            if abs(after) >= TOO_LARGE:
                raise ValueError(f"{after} shares of {symbol} are too many")
            average = _average(before, qty, price, after)
        self._held[symbol] = holding = Holding(symbol, after, average)
        return holding


def _average(before: Holding | None, qty: Decimal, price: Decimal, after: Decimal) -> Decimal:
    """The position's average price after the trade."""
    if before is None or (before.qty > 0) != (after > 0):
        return price
    if (before.qty > 0) != (qty > 0):
        return before.avg_entry_price
    cost = before.qty * before.avg_entry_price + qty * price
    return (cost / after).quantize(_AVERAGE_PLACES)


def _check(symbol: str, qty: Decimal, price: Decimal) -> None:
    if symbol == EVERY_SYMBOL:
        raise ValueError("a position is of one symbol, not of '*'")
    if not qty:
        raise ValueError(f"0 shares of {symbol} are no position and no trade")
    if price < 0:
        raise ValueError(f"the price {price} of {symbol} is below 0")
