"""The account: its cash, its positions, and what changed them.

Pure: the time is an argument.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from decimal import ROUND_UP, Decimal, localcontext
from typing import Any, Final
from zoneinfo import ZoneInfo

import attrs

from mdservice.model.timestamps import format_ns
from mdservice.simulator.assets import QUOTES, asset_of
from mdservice.simulator.kinds import Records
from mdservice.simulator.market import MarketRecord
from mdservice.simulator.positions import Holding, PositionBook
from mdservice.simulator.wire import EXACT, PLACES, TOO_LARGE, Number, plain, to_decimal

__all__ = ["CENT", "Activity", "Balances", "PaperAccount", "Trade"]

CENT = Decimal("0.01")
_NEW_YORK = ZoneInfo("America/New_York")
_DAY_NS = 86_400 * 10**9
_ACTIVITY_IDS = 2 << 64
_NONE: Final[MarketRecord[Any]] = MarketRecord(0)
"""Of a market that this simulation does not have."""


class PaperAccount:
    """Trades at the market's prices.

    Dollars are kept with every digit; answers round them to the cent.

    Args:
        positions: Those that are open at the start: shares and average price by symbol.
        records: The markets' records, of which the quotes are read.
        cash: Dollars at the start.
        sale_fee: The fee of a sale, as a part of its value.
        coin_fee: The fee of a purchase of crypto, as a part of the coins.
        trades_size: How many trades are kept.
        activities_size: How many activities are kept.
        traded: Called after each change.
    """

    def __init__(
        self,
        positions: Mapping[str, tuple[Decimal, Decimal]],
        records: Records,
        *,
        cash: Decimal = Decimal(0),
        sale_fee: Decimal = Decimal(0),
        coin_fee: Decimal = Decimal(0),
        trades_size: int,
        activities_size: int,
        traded: Callable[[], None],
    ) -> None:
        self.book = PositionBook({asset_of(name).symbol: held for name, held in positions.items()})
        self.trades: deque[Trade] = deque(maxlen=trades_size)
        """The newest trades, the oldest first."""
        self.activities: deque[Activity] = deque(maxlen=activities_size)
        """The newest ones, the oldest first."""
        self.cash = cash
        """Dollars; below 0 is a debt."""
        self._records = records
        self._sale_fee = sale_fee
        self._coin_fee = coin_fee
        self._traded = traded
        self._numbered = 0
        self._closes: dict[str, Decimal] = {}
        with localcontext(EXACT):
            self.last_equity = cash + sum(
                held.qty * self.lastday_price(held.symbol) * asset_of(held.symbol).multiplier
                for held in self.book
            )
        """Dollars at the end of the last day."""

    def price(self, symbol: str) -> Decimal:
        """Dollars per share: the mid of bid and ask, the only side, or the last day's close.

        A quote without both sides leaves the price of the one before it.
        """
        bid, ask = self._usable_quote(symbol)
        with localcontext(EXACT):
            return ((bid or ask) + (ask or bid)) / 2 or self.lastday_price(symbol)

    def fill_price(self, symbol: str, qty: Decimal) -> Decimal:
        """Dollars per share for a market order: the ask to buy, the bid to sell."""
        bid, ask = self._usable_quote(symbol)
        return (ask or bid if qty > 0 else bid or ask) or self.lastday_price(symbol)

    def is_offered(self, symbol: str, qty: Decimal) -> bool:
        """Whether the market has the side that a trade needs; so it has before any quote."""
        quote = self._quotes(symbol).latest(symbol)
        return quote is None or bool(quote.ask if qty > 0 else quote.bid)

    def lastday_price(self, symbol: str) -> Decimal:
        """Dollars per share at the end of the last day."""
        return self._closes.get(symbol, asset_of(symbol).start_price)

    def trade(self, symbol: str, qty: Decimal, price: Decimal, now_ns: int) -> Trade:
        """Buy shares, or sell them where ``qty`` is below 0; done at once.

        Args:
            symbol: As in :class:`~mdservice.simulator.assets.Asset`; a position need not be open.
            qty: Shares, coins or contracts, not 0.
            price: Dollars a share.
            now_ns: UTC nanoseconds.

        Raises:
            ValueError: ``qty`` is 0, the price is below 0, or the position would be too large.
        """
        self.book.trade(symbol, qty, price)
        with localcontext(EXACT):
            paid = qty * price * asset_of(symbol).multiplier
            self.cash -= paid
        trade = Trade(now_ns, symbol, qty, price)
        self.trades.append(trade)
        self._traded()
        return trade

    def charge(self, trade: Trade) -> None:
        """Charge the fee of a trade: dollars if it sold something, coins if it bought them.

        Source: Alpaca, "Crypto fees", for ``CFEE``.
        """
        if trade.qty < 0 and self._sale_fee:
            with localcontext(EXACT):
                value = -trade.qty * trade.price * asset_of(trade.symbol).multiplier
                fee = (value * self._sale_fee).quantize(CENT, ROUND_UP)
            self.move_cash(-fee, "FEE", trade.at_ns, description="fee of a sale")
        elif trade.qty > 0 and self._coin_fee and asset_of(trade.symbol).asset_class == "crypto":
            self._charge_coins(trade)

    def _charge_coins(self, trade: Trade) -> None:
        with localcontext(EXACT):
            coins = (trade.qty * self._coin_fee).quantize(PLACES, ROUND_UP)
        held = self.book.get(trade.symbol)
        if held is None or held.qty < coins:
            return
        self.book.trade(trade.symbol, -coins, trade.price)
        fields = {
            "date": f"{_new_york(trade.at_ns):%Y-%m-%d}",
            "net_amount": "0",
            "description": "Coin Pair Transaction Fee (Non USD)",
            "symbol": asset_of(trade.symbol).position_symbol,
            "qty": plain(-coins),
            "price": plain(trade.price),
            "status": "executed",
        }
        self.add_activity("CFEE", trade.at_ns, fields)
        self._traded()

    def move_cash(
        self,
        amount: Number,
        activity_type: str,
        now_ns: int,
        *,
        symbol: str | None = None,
        description: str = "",
    ) -> None:
        """Pay in dollars, or take them out where ``amount`` is below 0.

        Args:
            amount: Dollars.
            activity_type: Alpaca's name: ``CSD`` cash deposit, ``CSW`` withdrawal, ``DIV``
                dividend, ``INT`` interest, ``FEE``.
            now_ns: UTC nanoseconds.
            symbol: What it is for.
            description: Any text.

        Raises:
            ValueError: The amount is no number, or too large.
        """
        dollars = to_decimal(amount)
        with localcontext(EXACT):
            if abs(self.cash + dollars) >= TOO_LARGE:
                raise ValueError(f"{dollars} dollars are too many")
            self.cash += dollars
        fields: dict[str, object] = {
            "date": f"{_new_york(now_ns):%Y-%m-%d}",
            "net_amount": plain(dollars),
            "description": description,
            "status": "executed",
        }
        if symbol is not None:
            fields["symbol"] = asset_of(symbol).position_symbol
        self.add_activity(activity_type, now_ns, fields)
        self._traded()

    def add_activity(self, activity_type: str, at_ns: int, fields: Mapping[str, object]) -> None:
        """Keep an activity with Alpaca's fields.

        Its id begins with New York's time; that of one without a time with midnight.
        """
        self._numbered += 1
        stamp = _new_york(at_ns)
        clock = f"{stamp:%H%M%S}{at_ns // 1_000_000 % 1000:03d}"
        if "date" in fields:
            clock = "0" * len(clock)
        name = uuid.UUID(int=_ACTIVITY_IDS + self._numbered, version=4)
        activity_id = f"{stamp:%Y%m%d}{clock}::{name}"
        row = {"id": activity_id, "activity_type": activity_type, **fields}
        self.activities.append(Activity(activity_id, activity_type, at_ns, row))

    def date_back(self, now_ns: int) -> None:
        """Date all activities a day earlier if the newest has the date of that time.

        So a day can end at any hour, and what comes after it belongs to the next one.
        """
        if self.activities and self.activities[-1].date == f"{_new_york(now_ns):%Y-%m-%d}":
            for place, activity in enumerate(self.activities):
                self.activities[place] = _a_day_earlier(activity)

    def end_day(self) -> None:
        """Take the prices of now as the last day's, and the average prices of overnight."""
        for symbol in self._priced():
            self._closes[symbol] = self.price(symbol)
        self.book.end_day()
        self.last_equity = self.balances().exact_equity
        self._traded()

    def balances(self) -> Balances:
        """What the account is worth now."""
        long = short = Decimal(0)
        with localcontext(EXACT):
            for held in self.book:
                value = self.value(held)
                long, short = (long + value, short) if held.qty > 0 else (long, short + value)
            return Balances(self.cash, long, short, self.last_equity)

    def value(self, holding: Holding) -> Decimal:
        """Dollars; below 0 for a short position."""
        with localcontext(EXACT):
            price = self.price(holding.symbol)
            return holding.qty * price * asset_of(holding.symbol).multiplier

    def _priced(self) -> Iterable[str]:
        """All that has had a quote, or is held."""
        kinds = self._records.keys() & QUOTES.values()
        quoted = (self._records[kind].symbols for kind in kinds)
        return {held.symbol for held in self.book}.union(*quoted)

    def _usable_quote(self, symbol: str) -> tuple[Decimal, Decimal]:
        """Bid and ask of the newest quote that has one of them; 0 where there is none."""
        record = self._quotes(symbol)
        quote = record.latest(symbol)
        if quote is not None and not (quote.bid or quote.ask):
            quote = record.latest(symbol, lambda one: bool(one.bid or one.ask))
        if quote is None:
            return Decimal(0), Decimal(0)
        return Decimal(str(quote.bid)), Decimal(str(quote.ask))

    def _quotes(self, symbol: str) -> MarketRecord[Any]:
        return self._records.get(asset_of(symbol).quotes, _NONE)


@attrs.frozen
class Balances:
    """What the account is worth, with every digit.

    Attributes:
        cash: Dollars.
        long_value: Dollars, of the long positions.
        short_value: Dollars, of the short ones, 0 or less.
        last_equity: Dollars at the end of the last day.
    """

    cash: Decimal
    long_value: Decimal
    short_value: Decimal
    last_equity: Decimal

    @property
    def exact_equity(self) -> Decimal:
        """Dollars: cash and positions."""
        with localcontext(EXACT):
            return self.cash + self.long_value + self.short_value


@attrs.frozen
class Activity:
    """A row of ``/v2/account/activities``.

    Attributes:
        id: ``20261120105144208::…``: New York's time, and a UUID.
        activity_type: ``FILL``, ``FEE``, ``CSD``….
        at_ns: UTC nanoseconds.
        row: As it is answered.
    """

    id: str
    activity_type: str
    at_ns: int
    row: Mapping[str, object]

    @property
    def date(self) -> str:
        """New York's: ``2026-11-20``."""
        return f"{_new_york(self.at_ns):%Y-%m-%d}"


@attrs.frozen
class Trade:
    """A trade of the account.

    Attributes:
        at_ns: When, UTC nanoseconds.
        symbol: Its name.
        qty: Shares, coins or contracts, below 0 for those sold.
        price: Dollars a share.
    """

    at_ns: int
    symbol: str
    qty: Decimal
    price: Decimal


def _a_day_earlier(activity: Activity) -> Activity:
    at_ns = activity.at_ns - _DAY_NS
    stamp = f"{_new_york(at_ns):%Y%m%d}"
    row = {**activity.row, "id": stamp + activity.id[len(stamp) :]}
    if "transaction_time" in row:
        row["transaction_time"] = format_ns(at_ns)
    if "date" in row:
        row["date"] = f"{_new_york(at_ns):%Y-%m-%d}"
    return Activity(str(row["id"]), activity.activity_type, at_ns, row)


def _new_york(at_ns: int) -> datetime:
    return datetime.fromtimestamp(at_ns // 1_000_000_000, UTC).astimezone(_NEW_YORK)
