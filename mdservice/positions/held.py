"""The symbols that are held, the largest position first; for a while those just closed too."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from decimal import Decimal

from mdservice.model.position import Position

__all__ = ["GRACE_S", "HeldSymbols"]

GRACE_S = 30.0
"""How long a symbol is followed after its position was closed: it may be opened again."""


class HeldSymbols:
    """The symbols to follow, by what their positions cost.

    A position's size is what it cost and not what it is worth, so that the order, and what is
    left out at the feed's symbol limit, does not change with every quote.

    Args:
        grace_s: For how long a closed one is followed, seconds.
    """

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self._grace_s = grace_s
        self._held: tuple[str, ...] = ()
        self._closed: dict[str, float] = {}
        """Symbols with the time until which they are followed all the same."""

    def update(self, positions: Iterable[Position], now_s: float) -> tuple[str, ...]:
        """What to follow now, the most important symbol first.

        Args:
            positions: All of them; of those with a problem, and of empty ones, nothing is
                followed.
            now_s: Monotonic seconds.
        """
        sizes: defaultdict[str, Decimal] = defaultdict(Decimal)
        for position in positions:
            if position.problem is None and position.qty:
                cost = position.qty * (position.avg_entry_price or 0) * position.multiplier
                sizes[position.symbol] += abs(cost)
        for symbol in self._held:
            if symbol not in sizes:
                self._closed.setdefault(symbol, now_s + self._grace_s)
        self._closed = {
            symbol: until_s
            for symbol, until_s in self._closed.items()
            if symbol not in sizes and until_s > now_s
        }
        self._held = tuple(sorted(sizes, key=lambda symbol: (-sizes[symbol], symbol)))
        return (*self._held, *self._closed)
