"""Sums over all holdings, kept up to date by what each event changes."""

from __future__ import annotations

from decimal import Decimal

import attrs

from mdservice.pnl.holding import Holding
from mdservice.pnl.numbers import EXACT, ZERO, percentage

__all__ = ["Totals"]

_fma, _subtract = EXACT.fma, EXACT.subtract


@attrs.define(eq=False)
class Totals:
    """The engine alone changes them.

    Attributes:
        unrealized_pnl: The exact sum over the priced rows, live and stale.
        priced: Rows with a price, live and stale.
        unpriced: Rows without.
        waiting: Held symbols that have not had any usable quote yet. The sums lack them, or have
            them at the price that the positions' source tells.
        lost: Held symbols that have had quotes, but none usable, so that the sums lack them.
        hundredth: One per cent of what the priced rows cost.
    """

    unrealized_pnl: Decimal = ZERO
    priced: int = 0
    unpriced: int = 0
    waiting: int = 0
    lost: int = 0
    hundredth: Decimal = ZERO

    @property
    def unrealized_pnl_pct(self) -> Decimal | None:
        """Of what the priced rows cost, half-even to 4 places; None where that is 0."""
        return percentage(self.unrealized_pnl, self.hundredth)

    def enter(self, holding: Holding) -> None:
        """Count a holding; lots and price may not change until it leaves again."""
        self.unpriced += len(holding.positions)
        self.waiting += holding.waiting
        if holding.price is None:
            self.lost += holding.lost
            return
        self.priced += holding.priceable
        self.unpriced -= holding.priceable
        self.unrealized_pnl = EXACT.add(self.unrealized_pnl, holding.pnl)
        self.hundredth = EXACT.add(self.hundredth, holding.hundredth)

    def leave(self, holding: Holding) -> None:
        """Count it no more."""
        self.unpriced -= len(holding.positions)
        self.waiting -= holding.waiting
        if holding.price is None:
            self.lost -= holding.lost
            return
        self.priced -= holding.priceable
        self.unpriced += holding.priceable
        self.unrealized_pnl = EXACT.subtract(self.unrealized_pnl, holding.pnl)
        self.hundredth = EXACT.subtract(self.hundredth, holding.hundredth)

    def step(self, holding: Holding, before: Decimal, price: Decimal) -> None:
        """The price of a holding that is counted goes from one to another."""
        self.unrealized_pnl = _fma(holding.units, _subtract(price, before), self.unrealized_pnl)
