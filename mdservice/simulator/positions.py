"""The account's positions, and a trader that draws trades from a seed.

Pure: prices are arguments.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal, localcontext

import attrs

from mdservice.model.symbol import EVERY_SYMBOL, parse_symbol
from mdservice.simulator.wire import EXACT, PLACES, TOO_LARGE, Number, to_decimal

__all__ = [
    "DEMO_POSITIONS",
    "Holding",
    "PositionBook",
    "StartPositions",
    "Trader",
    "parse_positions",
]

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
"""An example portfolio: long and short, gains and losses, and one fraction of a share."""

_KINDS = ("open", "add", "reduce", "flip", "close")
_WEIGHTS = (2, 3, 3, 1, 2)
_FEW, _MANY = 4, 10
_SPARE = 2
_LOT = 5
_MOST_LOTS = 20
_MOST_ADDED = 20
_SHORT_RATIO, _FRACTION_RATIO = 0.4, 0.25
_QUARTER = Decimal("0.25")


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
        self._lots = {
            held.symbol: _Lots([(held.qty, held.avg_entry_price)]) for held in self._held.values()
        }

    def __iter__(self) -> Iterator[Holding]:
        return iter(tuple(self._held.values()))

    def __len__(self) -> int:
        return len(self._held)

    def get(self, symbol: str) -> Holding | None:
        """The symbol's position, or None."""
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
        the day; :meth:`end_day` is what it does afterwards.
        """
        after = self.qty_after(symbol, qty, price)
        before = self._held.get(symbol)
        if not after:
            del self._held[symbol], self._lots[symbol]
            return None
        with localcontext(EXACT):
            average = _average(before, qty, price, after)
            if before is None or (before.qty > 0) != (after > 0):
                self._lots[symbol] = _Lots([], after, after * price)
            elif (before.qty > 0) == (qty > 0):
                self._lots[symbol].added += qty
                self._lots[symbol].cost += qty * price
            else:
                self._lots[symbol].closed += qty
        self._held[symbol] = holding = Holding(symbol, after, average)
        return holding

    def qty_after(self, symbol: str, qty: Decimal, price: Decimal) -> Decimal:
        """Shares held after such a trade; nothing changes.

        Raises:
            ValueError: As :meth:`trade`.
        """
        _check(symbol, qty, price)
        before = self._held.get(symbol)
        with localcontext(EXACT):
            after = qty if before is None else before.qty + qty
        if abs(after) >= TOO_LARGE:
            raise ValueError(f"{after} shares of {symbol} are too many")
        return after

    def end_day(self) -> None:
        """Set every average price to that of the lots that are left, first in, first out.

        All that one day added to a position is one lot at its average price, also what came after
        a sale of that day.

        Source: Alpaca's "Position average entry price calculation": compressed FIFO for
        positions of earlier days, as in its example 2.
        """
        for symbol, lots in self._lots.items():
            with localcontext(EXACT):
                lots.end_day()
                cost = sum((qty * price for qty, price in lots.old), Decimal(0))
                average = (cost / sum(qty for qty, _ in lots.old)).quantize(PLACES)
            self._held[symbol] = attrs.evolve(self._held[symbol], avg_entry_price=average)


@attrs.define
class _Lots:
    """A position by the days on which it came.

    Attributes:
        old: Shares and average price of each earlier day, the oldest first.
        added: Shares that this day added since the position was last opened.
        cost: What they cost.
        closed: Shares that it took away since then, with the opposite sign.
    """

    old: list[tuple[Decimal, Decimal]]
    added: Decimal = Decimal(0)
    cost: Decimal = Decimal(0)
    closed: Decimal = Decimal(0)

    def end_day(self) -> None:
        """Make one lot of what the day added, and take what it closed from the oldest."""
        if self.added:
            self.old.append((self.added, self.cost / self.added))
        while self.closed:
            qty, price = self.old.pop(0)
            if abs(self.closed) < abs(qty):
                self.old.insert(0, (qty + self.closed, price))
                break
            self.closed += qty
        self.added = self.cost = self.closed = Decimal(0)


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


def _average(before: Holding | None, qty: Decimal, price: Decimal, after: Decimal) -> Decimal:
    """The position's average price after the trade."""
    if before is None or (before.qty > 0) != (after > 0):
        return price
    if (before.qty > 0) != (qty > 0):
        return before.avg_entry_price
    cost = before.qty * before.avg_entry_price + qty * price
    return (cost / after).quantize(PLACES)


def _check(symbol: str, qty: Decimal, price: Decimal) -> None:
    if symbol == EVERY_SYMBOL:
        raise ValueError("a position is of one symbol, not of '*'")
    if not qty:
        raise ValueError(f"0 shares of {symbol} are no position and no trade")
    if price < 0:
        raise ValueError(f"the price {price} of {symbol} is below 0")


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
        """The next trade: a symbol and a number of shares; below 0 sells."""
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
        """The number of shares to open a position with."""
        size = Decimal(_LOT * self._random.randint(1, _MOST_LOTS))
        if self._random.random() < _SHORT_RATIO:
            return -size
        if self._random.random() < _FRACTION_RATIO:
            size += _QUARTER * self._random.randint(1, 3)
        return size

    def _change(self, kind: str, held: Holding) -> Decimal:
        """The number of shares for this change of the position."""
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
