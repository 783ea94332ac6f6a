"""The contract on positions and P&L, read slowly: lists, fractions, the whole past each time."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

import attrs

from mdservice.model.market import Market
from mdservice.model.position import Position
from mdservice.model.quote import Quote
from mdservice.model.symbol import is_option
from mdservice.model.timestamps import format_ns
from mdservice.model.trade import Trade
from mdservice.pnl.day import SymbolDay
from mdservice.pnl.rows import PnlReport, Row

S_NS = 10**9
DAY_NS = 86_400 * S_NS
CLOSES_NS = 1_795_208_400 * S_NS
"""The close of 20 November 2026, a Friday; the day before was a session too."""

PlainRow = tuple[object, ...]


def plain_row(row: Row) -> PlainRow:
    """A row with fractions for decimals, which compare by value only."""
    return tuple(
        Fraction(value) if isinstance(value, Decimal) else value
        for value in (getattr(row, name) for name in Row.__struct_fields__)
    )


@attrs.frozen
class Whole:
    rows: list[PlainRow]
    total: Fraction
    value: Fraction
    day: Fraction | None
    market: Market | None
    priced: int
    unpriced: int

    @classmethod
    def of(cls, report: PnlReport) -> Whole:
        rows = [plain_row(row) for row in report.positions]
        total = Fraction(report.total_unrealized_pnl)
        value, day = Fraction(report.total_market_value), report.total_day_pnl
        whole_day = None if day is None else Fraction(day)
        return cls(rows, total, value, whole_day, report.market, report.priced, report.unpriced)


def mid(quote: Quote) -> Fraction | None:
    sides = [Fraction(repr(side)) for side in (quote.bid, quote.ask) if side != 0]
    return sum(sides, Fraction()) / len(sides) if sides else None


def usable(quote: Quote) -> bool:
    """Not one with neither side, nor with sides that are more than 10 % of the mid apart.

    The spread of an option is not limited.
    """
    price = mid(quote)
    if price is None or 0 in (quote.bid, quote.ask) or is_option(quote.symbol):
        return price is not None
    return abs(Fraction(repr(quote.ask)) - Fraction(repr(quote.bid))) <= price / 10


def counts(trade: Trade) -> bool:
    """Of the conditions that the tests use, all but odd lots are of a stock's last trade."""
    return "I" not in trade.conditions or "/" in trade.symbol


def readable(number: Decimal | None) -> Fraction | None:
    if number is None or not number.is_finite() or abs(number.adjusted()) > 100:
        return None
    return Fraction(number)


@attrs.define
class Reference:
    """What was told so far; everything else is worked out when it is asked for."""

    stale_after_s: int
    ttl_s: int
    kind: str = "mid"
    positions: list[Position] = attrs.Factory(list)
    trades: list[Trade] = attrs.Factory(list)
    """Those that count, in the order in which they came."""
    trades_heard: list[tuple[str, int]] = attrs.Factory(list)
    heard: list[tuple[Quote, int]] = attrs.Factory(list)
    gone: dict[str, int] = attrs.Factory(dict)
    """How much of ``heard`` there was when the symbol's key was last told to be gone."""
    gone_trades: dict[str, int] = attrs.Factory(dict)
    market: Market | None = None
    session: tuple[int, int] | None = None
    """When the last session began and closed, while the market is closed."""
    sessions: dict[str | None, tuple[int, int]] = attrs.Factory(dict)
    """That of each time without a session, by the open that ends it."""

    def update(self, quote: Quote, now_ns: int) -> None:
        newest, _ = self.newest(quote.symbol) or (None, 0)
        known = self.spare(quote.symbol) if self.kind == "last" else newest
        if known is None or quote.ts_event_ns >= known.ts_event_ns:
            self.heard.append((quote, now_ns))

    def expire(self, symbols: Sequence[str]) -> None:
        for symbol in symbols:
            self.gone[symbol] = len(self.heard)
            self.gone_trades[symbol] = len(self.trades_heard)

    def trade(self, trade: Trade, now_ns: int) -> None:
        self.trades_heard.append((trade.symbol, now_ns))
        if counts(trade):
            self.trades.append(trade)

    def change(self, seq: int, right: Trade | None) -> None:
        """A trade was canceled, or corrected."""
        known = [trade for trade in self.trades if trade.seq == seq]
        for trade in known:
            place = self.trades.index(trade)
            self.trades[place : place + 1] = [right] if right is not None and counts(right) else []

    def set_market(self, market: Market | None, now_ns: int) -> None:
        self.market, self.session = market, None
        if market is not None and not market.is_open:
            if market.next_open not in self.sessions:
                closes_ns = CLOSES_NS if now_ns + 60 * S_NS >= CLOSES_NS else CLOSES_NS - DAY_NS
                self.sessions = {market.next_open: (closes_ns - DAY_NS, min(closes_ns, now_ns))}
            self.session = self.sessions[market.next_open]

    def newest(self, symbol: str) -> tuple[Quote, int] | None:
        of_symbol = [entry for entry in self.heard if entry[0].symbol == symbol]
        return of_symbol[-1] if of_symbol else None

    def usable_of(self, symbol: str) -> list[Quote]:
        return [quote for quote, _ in self.heard if quote.symbol == symbol and usable(quote)]

    def mark(self, symbol: str) -> Quote | Trade | None:
        if self.kind == "last":
            trades = [trade for trade in self.trades if trade.symbol == symbol]
            return max(reversed(trades), key=lambda trade: trade.ts_event_ns, default=None)
        found = self.usable_of(symbol)
        if self.kind == "exit":
            found = [quote for quote in found if 0 not in self.needed(symbol, quote)]
        return found[-1] if found else None

    def needed(self, symbol: str, quote: Quote) -> list[float]:
        """The sides that its lots can be closed at; both without any lots."""
        signs = [(each.qty or 0) * each.multiplier for each in self.good(symbol)]
        long, short = any(sign > 0 for sign in signs), any(sign < 0 for sign in signs)
        if long is short:
            return [quote.bid, quote.ask]
        return [quote.bid if long else quote.ask]

    def newest_record(self, symbol: str) -> tuple[Quote | Trade | None, int]:
        """What the price depends on, and when something of that kind last came."""
        if self.kind != "last":
            return self.newest(symbol) or (None, 0)
        heard = [heard_ns for name, heard_ns in self.trades_heard if name == symbol]
        return self.mark(symbol), heard[-1] if heard else 0

    def spare(self, symbol: str) -> Quote | None:
        found = self.usable_of(symbol)
        return found[-1] if found and self.kind != "mid" else None

    def price(self, position: Position) -> tuple[Fraction | None, str | None]:
        """The price of a lot, and what it is."""
        symbol = position.priced_by
        mark = self.mark(symbol)
        if isinstance(mark, Trade):
            return Fraction(repr(mark.price)), "last"
        if mark is not None and self.kind == "exit":
            sign = (position.qty or 0) * position.multiplier
            needs_ask = sign < 0 or self.needed(symbol, mark) == [mark.ask]
            if sign < 0 or (sign == 0 and needs_ask and self.only_short(symbol)):
                return Fraction(repr(mark.ask)), "ask"
            return Fraction(repr(mark.bid)), "bid"
        if mark is not None:
            return mid(mark), "mid"
        if (previous := self.previous(symbol)) is not None:
            return previous, "previous"
        spare = self.spare(symbol)
        return (None, None) if spare is None else (mid(spare), "mid")

    def only_short(self, symbol: str) -> bool:
        signs = [(each.qty or 0) * each.multiplier for each in self.good(symbol)]
        return any(sign < 0 for sign in signs) and not any(sign > 0 for sign in signs)

    def good(self, symbol: str) -> list[Position]:
        return [
            position
            for position in self.positions
            if position.priced_by == symbol
            and position.problem is None
            and None not in (readable(position.qty), readable(position.avg_entry_price))
        ]

    def previous(self, symbol: str) -> Fraction | None:
        current = [readable(each.current_price) for each in self.good(symbol)]
        known = [price for price in current if price is not None]
        return known[0] if known else self.lastday(symbol)

    def lastday(self, symbol: str) -> Fraction | None:
        closes = [readable(each.lastday_price) for each in self.good(symbol)]
        known = [price for price in closes if price is not None]
        return known[0] if known else None

    def young(self, symbol: str, now_ns: int) -> bool:
        mark, (_, heard_ns) = self.mark(symbol), self.newest_record(symbol)
        later = self.heard[self.gone.get(symbol, 0) :]
        names = self.trades_heard[self.gone_trades.get(symbol, 0) :]
        return (
            mark is not None
            and (any(other is mark for other, _ in later) or symbol in dict(names))
            and now_ns - mark.ts_event_ns <= self.stale_after_s * S_NS
            and now_ns - heard_ns < self.ttl_s * S_NS
        )

    def status(self, position: Position, now_ns: int) -> str:
        symbol = position.priced_by
        mark, (quote, heard_ns) = self.mark(symbol), self.newest_record(symbol)
        young = self.young(symbol, now_ns)
        if young and quote is mark:
            return "live"
        if self.session is None or position.asset_class == "crypto" or young:
            return "stale"
        if mark is None or quote is None:
            return "closed" if self.previous(symbol) is not None else "stale"
        begins_ns, closes_ns = self.session
        of_session = mark.ts_event_ns >= begins_ns and heard_ns >= closes_ns
        is_last = quote is mark or quote.ts_event_ns >= closes_ns
        return "closed" if of_session and is_last else "stale"

    def row(self, position: Position, now_ns: int) -> PlainRow:
        symbol = position.symbol
        qty, avg = readable(position.qty), readable(position.avg_entry_price)
        priced_by = position.priced_by
        quote, _ = self.newest_record(priced_by)
        multiplier = readable(position.multiplier)
        head = symbol, qty, avg, position.asset_class, multiplier
        if position.problem is not None or qty is None or avg is None or multiplier is None:
            return *head, None, None, None, None, None, None, None, "unpriced"
        mark = self.mark(priced_by)
        price, name = self.price(position)
        of: Quote | Trade | None = quote if price is None else mark
        if price is not None and mark is None and name == "mid":
            of = self.spare(priced_by)
        when = None if of is None else format_ns(of.ts_event_ns)
        if price is None:
            return *head, None, None, None, None, None, when, None, "unpriced"
        pnl = (price - avg) * qty * multiplier
        base = abs(qty) * avg * multiplier
        percent = round(pnl * 100 / base, 4) if base else None
        value = price * qty * multiplier
        lastday = self.lastday(priced_by)
        day = None if lastday is None else (price - lastday) * qty * multiplier
        status = self.status(position, now_ns)
        return *head, price, pnl, percent, value, day, when, name, status

    def whole(self, now_ns: int) -> Whole:
        rows = [self.row(position, now_ns) for position in self.positions]
        priced = [row for row in rows if row[-1] != "unpriced"]
        total = sum((Fraction(str(row[6])) for row in priced), Fraction())
        value = sum((Fraction(str(row[8])) for row in priced), Fraction())
        days = [row[9] for row in rows]
        day = None if None in days else sum(map(Fraction, map(str, days)), Fraction())
        unpriced = len(rows) - len(priced)
        return Whole(rows, total, value, day, self.market, len(priced), unpriced)

    def day(
        self, days: dict[str, SymbolDay] | None
    ) -> tuple[dict[str, Fraction | None], Fraction | None, Fraction | None]:
        """The day's P&L by symbol without a slash, its sum, and what was realised.

        A value now, less that at the last close, less what was spent since.
        """
        lots: dict[str, list[Position]] = {}
        for position in self.positions:
            lots.setdefault(position.priced_by.replace("/", ""), []).append(position)
        keys = {*lots, *(days or {})}
        if days is None:
            return dict.fromkeys(keys), None, None
        found: dict[str, Fraction | None] = {}
        for key in keys:
            day = days.get(key, SymbolDay(key))
            rows = [self.row(position, 0) for position in lots.get(key, [])]
            units = Fraction()
            for row in rows:
                units += Fraction(str(row[1] or 0)) * Fraction(str(row[4] or 0))
            closes = [self.lastday(each.priced_by) for each in lots.get(key, [])]
            if day.units:
                closes.append(readable(day.lastday_price))
            close = next((one for one in closes if one is not None), None)
            before = units - Fraction(day.units)
            value = sum((Fraction(str(row[8] or 0)) for row in rows), Fraction())
            bought = len(rows) < 2 and day.units and not before
            if not rows and not day.units:
                bought = True
            if (
                day.problem is not None
                or any(row[5] is None for row in rows)
                or (close is None and not bought)
            ):
                found[key] = None
            elif len(rows) > 1 and self.lastday(lots[key][0].priced_by) is None:
                found[key] = None  # each row has a part of its own
            else:
                found[key] = value - before * (close or 0) - Fraction(day.spent)
        total = None
        if None not in found.values():
            total = sum((pnl or Fraction() for pnl in found.values()), Fraction())
        realized = [day.realized for day in days.values()]
        if None in realized:
            return found, total, None
        return found, total, sum((Fraction(str(one)) for one in realized), Fraction())

    def exposure(self) -> Fraction:
        """The sum of the symbols' absolute market values."""
        of_symbol: dict[str, Fraction] = {}
        for position in self.positions:
            value = self.row(position, 0)[8]
            if isinstance(value, Fraction):
                key = position.priced_by
                of_symbol[key] = of_symbol.get(key, Fraction()) + value
        return sum(map(abs, of_symbol.values()), Fraction())


Traded = tuple[Fraction, Fraction]
"""A signed quantity and its price."""


def realized(trades: Sequence[Traded], qty: Fraction, average: Fraction) -> Fraction:
    """What the trades of one day realise, against the weighted average of what is open."""
    total = Fraction()
    for traded, price in trades:
        closed = Fraction()
        if qty * traded < 0:
            closed = min(abs(qty), abs(traded)) * (1 if qty > 0 else -1)
            total += closed * (price - average)
            qty -= closed
        opened = traded + closed
        if opened:
            average = (qty * average + opened * price) / (qty + opened)
            qty += opened
    return total


def overnight(days: Sequence[Sequence[Traded]]) -> tuple[Fraction, Fraction]:
    """The quantity, and the average price on the next morning, from days that begin with nothing.

    Each day, all that was bought since the position was last closed is one lot; then what was sold
    leaves the oldest lots.
    """
    lots: list[Traded] = []
    for day in days:
        held = sum((qty for qty, _ in lots), Fraction())
        bought: list[Traded] = []
        sold = Fraction()
        for traded, price in day:
            closed = Fraction()
            if held * traded < 0:
                closed = min(abs(held), abs(traded)) * (1 if held > 0 else -1)
                sold, held = sold + closed, held - closed
                if not held:
                    lots, bought, sold = [], [], Fraction()
            if traded + closed:
                bought.append((traded + closed, price))
                held += traded + closed
        if bought:
            qty = sum((qty for qty, _ in bought), Fraction())
            lots.append((qty, sum((part * price for part, price in bought), Fraction()) / qty))
        while sold:
            qty, price = lots.pop(0)
            if abs(qty) > abs(sold):
                lots.insert(0, (qty - sold, price))
                break
            sold -= qty
    qty = sum((qty for qty, _ in lots), Fraction())
    cost = sum((part * price for part, price in lots), Fraction())
    return qty, cost / qty if qty else Fraction()
