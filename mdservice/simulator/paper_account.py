"""The account's positions, what they are worth, and the trades that change them.

Pure: the time is an argument.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from decimal import Decimal, localcontext

import attrs

from mdservice.model.symbol import parse_symbol
from mdservice.simulator.market import start_cents
from mdservice.simulator.positions import Holding, PositionBook, StartPositions
from mdservice.simulator.record import QuoteRecord
from mdservice.simulator.wire import EXACT, Number, to_decimal

__all__ = ["PaperAccount", "Trade", "Trader", "start_price"]


# Who trades by himself: seeded trades that keep a portfolio moving.
#
# Pure: it sees the positions and says what to trade next.


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


@attrs.frozen
class Trade:
    """What was bought or sold.

    Attributes:
        at_ns: When, UTC nanoseconds.
        symbol: Its name.
        qty: Shares, below 0 for those sold.
        price: Dollars a share.
    """

    at_ns: int
    symbol: str
    qty: Decimal
    price: Decimal


class PaperAccount:
    """Trades at the market's prices.

    Args:
        positions: Those that are open at the start.
        record: The market's quotes.
        trades_size: How many trades are kept.
        traded: Called after each trade.
    """

    def __init__(
        self,
        positions: StartPositions,
        record: QuoteRecord,
        *,
        trades_size: int,
        traded: Callable[[], None],
    ) -> None:
        self.book = PositionBook(positions)
        self.trades: deque[Trade] = deque(maxlen=trades_size)
        """The newest ones, the oldest first."""
        self._record = record
        self._traded = traded

    def price(self, symbol: str) -> Decimal:
        """Dollars a share: the middle of bid and ask, the only side, or the start price."""
        bid, ask = self._sides(symbol)
        with localcontext(EXACT):
            return (bid + ask) / 2

    def fill_price(self, symbol: str, qty: Decimal) -> Decimal:
        """Dollars a share for a market order: the ask for who buys, the bid for who sells."""
        bid, ask = self._sides(symbol)
        return ask if qty > 0 else bid

    def trade(self, symbol: str, qty: Number, price: Number | None, now_ns: int) -> Trade:
        """Buy shares, or sell them where ``qty`` is below 0; done at once.

        Args:
            symbol: Any; a position need not be open.
            qty: Shares, not 0.
            price: Dollars a share; None for :meth:`price`.
            now_ns: UTC nanoseconds.

        Raises:
            InvalidSymbol: There is no such symbol.
            ValueError: ``qty`` is 0, the price is below 0, one of them is no number, or the
                position would be too large.
        """
        name = parse_symbol(symbol)
        shares = to_decimal(qty)
        dollars = self.price(name) if price is None else to_decimal(price)
        self.book.trade(name, shares, dollars)
        trade = Trade(now_ns, name, shares, dollars)
        self.trades.append(trade)
        self._traded()
        return trade

    def _sides(self, symbol: str) -> tuple[Decimal, Decimal]:
        """Bid and ask; a side without a price has the other's, and both the start price."""
        quote = self._record.latest(symbol)
        bid, ask = (quote.bid, quote.ask) if quote is not None else (0.0, 0.0)
        if not bid and not ask:
            return start_price(symbol), start_price(symbol)
        return Decimal(str(bid or ask)), Decimal(str(ask or bid))


def start_price(symbol: str) -> Decimal:
    """Dollars a share before the first quote, which is also the last day's close."""
    return Decimal(start_cents(symbol)) / 100
