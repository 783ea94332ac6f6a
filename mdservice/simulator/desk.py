"""The account's positions, what they are worth, and the trades that change them.

Pure: the time is an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from decimal import Decimal, localcontext

import attrs

from mdservice.model.symbol import parse_symbol
from mdservice.simulator.decimals import EXACT, Number, to_decimal
from mdservice.simulator.positions import PositionBook, StartPositions
from mdservice.simulator.record import QuoteRecord
from mdservice.simulator.universe import start_cents

__all__ = ["Desk", "Trade", "start_price"]


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


class Desk:
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
