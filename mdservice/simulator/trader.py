"""Who trades by himself: seeded trades that keep a portfolio moving.

Pure: it sees the positions and says what to trade next.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from decimal import Decimal

from mdservice.simulator.positions import Holding, PositionBook

__all__ = ["Trader"]

_KINDS = ("open", "add", "reduce", "flip", "close")
_WEIGHTS = (2, 3, 3, 1, 2)
_FEW, _MANY = 4, 10
_SPARE = 2
_LOT = 5
_MOST_LOTS = 20
_MOST_ADDED = 20
_SHORT_RATIO, _FRACTION_RATIO = 0.4, 0.25
_QUARTER = Decimal("0.25")


class Trader:
    """Opens, adds to, reduces, flips and closes positions, drawn from a seed.

    It keeps between 4 and 10 positions open, or up to two more than at the start where that
    is more. The same seed and the same positions give the same trades. Short positions that it
    opens are of whole shares, as Alpaca wants them.

    Args:
        seed: The simulator's seed.
        symbols: What it may open positions of, besides what is held.
        start: How many positions are open at the start.
    """

    def __init__(self, seed: int, symbols: Iterable[str], start: int = 0) -> None:
        self._random = random.Random(f"{seed}/trades")  # noqa: S311 - reproducible, no secret
        self._symbols = tuple(dict.fromkeys(symbols))
        self._most = max(_MANY, start + _SPARE)

    def next(self, book: PositionBook) -> tuple[str, Decimal]:
        """What to trade: a symbol, and shares, below 0 to sell them."""
        new = [symbol for symbol in self._symbols if book.get(symbol) is None]
        kind = self._kind(len(book), can_open=bool(new))
        if kind == "open":
            return self._random.choice(new), self._size()
        held = self._random.choice(sorted(book, key=lambda holding: holding.symbol))
        return held.symbol, self._change(kind, held)

    def _kind(self, count: int, *, can_open: bool) -> str:
        if can_open and count < _FEW:
            return "open"
        if count >= self._most:
            return self._random.choice(("reduce", "close"))
        kind = self._random.choices(_KINDS, _WEIGHTS)[0]
        return "add" if kind == "open" and not can_open else kind

    def _size(self) -> Decimal:
        """Shares to open with."""
        size = Decimal(_LOT * self._random.randint(1, _MOST_LOTS))
        if self._random.random() < _SHORT_RATIO:
            return -size
        if self._random.random() < _FRACTION_RATIO:
            size += _QUARTER * self._random.randint(1, 3)
        return size

    def _change(self, kind: str, held: Holding) -> Decimal:
        """Shares that do this to the position."""
        sign = 1 if held.qty > 0 else -1
        match kind:
            case "add":
                return Decimal(sign * self._random.randint(1, _MOST_ADDED))
            case "reduce":
                part = abs(held.qty) * self._random.randint(1, 3) // 4
                # Too little to be parted is closed.
                return -sign * part if part else -held.qty
            case "flip":
                return -held.qty - sign * _LOT * self._random.randint(1, _MOST_LOTS)
            case _:
                return -held.qty
