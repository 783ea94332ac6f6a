"""One symbol with its lots, its newest usable quote and its rows; and the sums over all symbols."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Final

import attrs

from mdservice.model.position import AssetClass, Position, asset_class_of
from mdservice.model.quote import Quote
from mdservice.model.timestamps import format_ns
from mdservice.model.trade import Trade
from mdservice.pnl.day import NOTHING_TODAY, SymbolDay
from mdservice.pnl.numbers import (
    EXACT,
    MOST_DIGITS,
    ZERO,
    from_e5,
    in_units,
    percentage,
    shown,
    sums_up,
    to_price,
)
from mdservice.pnl.rows import MarkName, Row, Status

__all__ = ["Figures", "Holding", "Lot", "RowHead", "Totals"]

RowHead = tuple[str, Decimal | None, Decimal | None, AssetClass, Decimal | None]
"""Symbol, quantity, entry price, class and multiplier of a :class:`~mdservice.pnl.rows.Row`."""
Figures = tuple[
    Decimal | None,
    Decimal | None,
    Decimal | None,
    Decimal | None,
    Decimal | None,
    str | None,
    MarkName | None,
    Status,
    str | None,
]
"""The other fields of a row, from its price on."""

_fma, _add, _subtract, _multiply = EXACT.fma, EXACT.add, EXACT.subtract, EXACT.multiply


_BID, _ASK, _BOTH = range(3)


@attrs.define(eq=False)
class Holding:
    """One symbol. Only the engine changes it.

    Attributes:
        symbol: That of the feed: ``AAPL``, ``BTC/USD``.
        positions: Its lots in the source's order; empty if it is not held.
        priceable: The number of lots without a problem.
        quote: The newest quote, or None; with last trades as prices, that of ``mark``.
        mark: The newest usable quote, or last trade, which is the price; or None.
        spare: The newest usable quote where the mid is not the price anyway, or the last trade
            where no quote was usable. It is the price as long as there is neither a mark nor a
            price from the source.
        trades: The newest trades that count as last ones, by time; only where they are the price.
        from_elsewhere: The last mark that was not from Redis, or None.
        heard_ns: When the last quote came, or the known one was confirmed.
        live: Whether the mark was young enough at the last check.
        closed: Whether the price is the last one of the last session, and its market is closed.
        due_ns: When the engine checks it next, or None for never.
        price_e5: Its price in hundred-thousandths, if it is a mid that
            :func:`mdservice.model.quote.mid_e5` knows.
        gap: By how much the price of the short lots is higher, if it is another one.
        source_price: The price from the lots' source, or None.
        units: Shares in the priceable lots.
        units_e9: The same in thousand-millionths, where that is a small enough integer, or None.
        short: Whether they are fewer than 0.
        minus_paid: Minus their cost.
        hundredth: One per cent of their cost.
        day: What today's fills changed.
        day_base: What its market value is measured against for the day's P&L: the value at the last
            close of what was held then, and the money spent since. None if it is not known.
        opened: The version at which it became held.
        version: The version of the last change of a row.
        fresh: Whether the last rows are still right.
        texts: The rows as text, if something has written them.
        fresh_texts: Whether these are still right.
        heads: The parts of the texts that do not depend on the price; empty if the lots have
            changed.
        sole: Its lot, if it has only one, without a problem.
        first_base: The part of :attr:`day_base` for the first lot without a problem.
        exits: The newest usable quotes with a bid, with an ask, and with both; only where the price
            is that at which a position can be closed.
    """

    symbol: str
    positions: tuple[Position, ...] = ()
    priceable: int = 0
    quote: Quote | Trade | None = None
    mark: Quote | Trade | None = None
    spare: Quote | Trade | None = None
    trades: list[Trade] = attrs.Factory(list)
    from_elsewhere: Quote | Trade | None = None
    heard_ns: int = 0
    live: bool = False
    closed: bool = False
    due_ns: int | None = None
    price_e5: int | None = None
    gap: Decimal = ZERO
    source_price: Decimal | None = None
    units: Decimal = ZERO
    units_e9: int | None = 0
    short: bool = False
    minus_paid: Decimal = ZERO
    hundredth: Decimal = ZERO
    day: SymbolDay = NOTHING_TODAY
    day_base: Decimal | None = ZERO
    opened: int = 0
    version: int = 0
    fresh: bool = False
    texts: list[str] = attrs.Factory(list)
    fresh_texts: bool = False
    heads: tuple[str, ...] = ()
    sole: Lot | None = None
    first_base: Decimal | None = None
    exits: list[Quote | None] | None = None
    _price: Decimal | None = None
    _lots: tuple[Lot, ...] = ()
    _first: Lot | None = None
    """The lot whose row has what today's fills add."""
    _exit: int = _BOTH
    """Which of them its lots need."""
    _short_units: Decimal = ZERO
    _rows: list[Row] = attrs.Factory(list)

    @property
    def price(self) -> Decimal | None:
        """The exact price of the mark; without a mark that of the lots' source, or None.

        With lots in both directions, that of the long ones.
        """
        if self._price is None and self.price_e5 is not None:
            self._price = from_e5(self.price_e5)
        return self._price

    def has_price(self, price: Decimal | None, price_e5: int | None) -> bool:
        """Whether its price is this one; as :meth:`set_price`."""
        if price_e5 is None or self.price_e5 is None:
            wanted = from_e5(price_e5) if price is None and price_e5 is not None else price
            return wanted == self.price
        return price_e5 == self.price_e5

    def set_price(self, price: Decimal | None, price_e5: int | None = None) -> None:
        """Replace the price.

        Args:
            price: The price; None for that of ``price_e5``, or if there is none.
            price_e5: As the attribute.
        """
        self._price, self.price_e5 = price, price_e5

    @property
    def pnl(self) -> Decimal:
        """The exact sum over the priceable lots; 0 without a price."""
        if self.price is None:
            return ZERO
        return _add(self.market_value, self.minus_paid) or ZERO

    @property
    def name(self) -> str:
        """Its symbol as the source of its lots writes it, such as ``BTCUSD``."""
        return self.positions[0].symbol if self.positions else self.symbol

    @property
    def qty(self) -> Decimal:
        """The exact sum over the priceable lots, negative for a short position."""
        qty = ZERO
        for lot in self._lots:
            if lot.problem is None and lot.qty is not None:
                qty = EXACT.add(qty, lot.qty)
        return qty

    @property
    def market_value(self) -> Decimal:
        """The exact value of the priceable lots, negative if short; 0 without a price."""
        if self.price is None:
            return ZERO
        value = _multiply(self.units, self.price)
        return (_fma(self._short_units, self.gap, value) if self.gap else value) or ZERO

    @property
    def day_pnl(self) -> Decimal | None:
        """Its P&L since the last close, with what was realised.

        None without a price, or where the close or today's fills are not known.
        """
        if self.price is None or self.day_base is None:
            return None
        return _subtract(self.market_value, self.day_base) or ZERO

    @property
    def shown(self) -> object:
        """What its rows show of the price; equal as long as they stay the same."""
        of = self._of
        return self.price, self.gap, self.status, None if of is None else of.ts_event_ns

    @property
    def _of(self) -> Quote | Trade | None:
        """The record whose time the rows show."""
        of = self.quote if self.price is None else self.mark
        return self.spare if of is None and self.source_price is None else of

    @property
    def lost(self) -> bool:
        """Whether it has no price because none of its quotes was usable."""
        return self.price is None and self.quote is not None and self.priceable > 0

    @property
    def waiting(self) -> bool:
        """Whether it has had no usable quote yet."""
        return self.mark is None and self.priceable > 0

    @property
    def status(self) -> Status:
        """What its priceable lots are."""
        if self.price is None or not self.priceable:
            return "unpriced"
        if self.live and self.quote is self.mark:
            return "live"
        return "closed" if self.closed else "stale"

    @property
    def has_hours(self) -> bool:
        """Whether its market closes; that of crypto never does."""
        if self.positions:
            return self.positions[0].asset_class != "crypto"
        return asset_class_of(self.symbol) != "crypto"

    def has_other_prices(self, positions: Sequence[Position]) -> bool:
        """Whether its price is from the source, and equal lots now have another price."""
        return self.mark is None and any(
            known.current_price != position.current_price
            for known, position in zip(self.positions, positions, strict=True)
        )

    def hold(self, positions: Sequence[Position]) -> None:
        """Replace the lots."""
        self.positions = tuple(positions)
        good = _good(positions)
        lastday = _known(each.lastday_price for each in good)
        self._lots = tuple(_lot(position, lastday) for position in positions)
        self.heads = ()
        lots = [lot for lot in self._lots if lot.problem is None]
        self.priceable = len(lots)
        self._first = lots[0] if lots else None
        self.sole = self._first if len(self._lots) == 1 else None
        price = _known(each.current_price for each in good)
        self.source_price = lastday if price is None else price
        units = short_units = minus_paid = hundredth = ZERO
        for lot in lots:
            if lot.units < 0:
                short_units = _add(short_units, lot.units)
            units = _add(units, lot.units)
            minus_paid = _add(minus_paid, lot.minus_paid)
            hundredth = _add(hundredth, lot.hundredth)
        self.units, self.short = units, units < 0
        self.units_e9 = in_units(units, 9)
        self.minus_paid, self.hundredth = minus_paid, hundredth
        self._short_units = short_units
        if self.exits is not None:
            self._choose_exit()
        if self.mark is None:
            self.set_unmarked()
        self.set_day(self.day)

    def set_unmarked(self) -> None:
        """Take the price of the source, or else that of the spare, since there is no mark."""
        self.mark, self.gap, price, spare = None, ZERO, self.source_price, self.spare
        if price is None and spare is not None:
            price = spare.price if isinstance(spare, Quote) else to_price(spare.price)
        self.set_price(price)

    def take_exit(self, quote: Quote) -> None:
        """Take the newest usable quote where the price is that at which to close a position."""
        self.spare = quote
        exits = self.exits or [None, None, None]
        for place, has in enumerate((quote.bid, quote.ask, quote.bid and quote.ask)):
            if has:
                exits[place] = quote
        self.exits = exits
        self._choose_exit()
        if self.mark is None:
            self.set_unmarked()

    def _choose_exit(self) -> None:
        long = any(lot.problem is None and lot.units > 0 for lot in self._lots)
        short = bool(self._short_units)
        self._exit = _BOTH if long is short else _ASK if short else _BID
        mark = None if self.exits is None else self.exits[self._exit]
        if mark is None:
            self.mark = None
            return
        bid, ask = Decimal(repr(mark.bid)), Decimal(repr(mark.ask))
        self.mark, self.gap = mark, ZERO
        self.set_price(ask if self._exit == _ASK else bid)
        if long and short:
            self.gap = _subtract(ask, bid)

    def price_if(self, *, short: bool) -> Decimal | None:
        """The price if the position were short, or long."""
        mark = self.mark
        if self.exits is None or not isinstance(mark, Quote):
            return self.price
        side = mark.ask if short else mark.bid
        return Decimal(repr(side)) if side else self.price

    def set_day(self, day: SymbolDay) -> None:
        """Replace what today's fills changed."""
        self.day, self.fresh, self.fresh_texts = day, False, False
        self.first_base = self.day_base = None
        if day.problem is not None:
            return
        first = self._first
        if first is None:
            pnl = None if self.positions else day.closed_pnl
            self.day_base = None if pnl is None else EXACT.minus(pnl)
            return
        before = _subtract(first.units, day.units)
        if first.lastday is not None:
            self.first_base = _fma(before, first.lastday, day.spent)
        elif day.lastday_price is not None and day.units:
            self.first_base = _fma(before, day.lastday_price, day.spent)
        elif day.units and not before:
            self.first_base = day.spent  # all of it was bought today
        bases = [lot.base for lot in self._lots if lot.problem is None and lot is not first]
        bases.append(self.first_base)
        if self.priceable == len(self.positions) and None not in bases:
            self.day_base = ZERO
            for base in bases:
                self.day_base = _add(self.day_base, base or ZERO)

    def rows(self) -> list[Row]:
        """One row per lot, not to be changed: the same objects until something changes."""
        rows = self._rows
        if not self.fresh:
            # In place: many new lists would make the garbage collector scan all objects.
            rows[:] = [Row(*lot.head + self.figures(lot)) for lot in self._lots]
            self.fresh = True
        return rows

    @property
    def lots(self) -> tuple[Lot, ...]:
        """Its lots."""
        return self._lots

    def figures(self, lot: Lot) -> Figures:
        """The fields of a lot's row that depend on the price."""
        if lot.problem is not None:
            return (*_NO_PRICE, None, None, "unpriced", lot.problem)
        of, price = self._of, self.price
        when = None if of is None else format_ns(of.ts_event_ns)
        if price is None:
            return (*_NO_PRICE, when, None, "unpriced", None)
        mark = self._mark_name()
        if mark == "bid" and lot.units < 0:  # a short lot beside long ones
            price, mark = _add(price, self.gap), "ask"
        value = _multiply(lot.units, price)
        pnl = _add(value, lot.minus_paid) or ZERO
        percent = percentage(pnl, lot.hundredth)
        base = self.first_base if lot is self._first else lot.base
        day_pnl = None
        if base is not None and self.day.problem is None:
            day_pnl = _subtract(value, base) or ZERO
        return price, pnl, percent, value or ZERO, day_pnl, when, mark, self.status, None

    def _mark_name(self) -> MarkName:
        """What :attr:`price` is."""
        if self.mark is None:
            if self.source_price is not None:
                return "previous"
            return "last" if isinstance(self.spare, Trade) else "mid"
        if self.exits is not None:
            return "ask" if self._exit == _ASK else "bid"
        return "last" if self.trades else "mid"


@attrs.define(eq=False)
class Totals:
    """Sums over all holdings, kept up to date by what each event changes; the engine alone does it.

    Attributes:
        minus_paid: Minus the exact cost of the priced rows, whatever their status.
        priced: The number of rows with a price, whatever their status.
        unpriced: The number of rows without a price.
        waiting: Held symbols without a usable quote yet. The sums omit them, or include them at
            the price from the positions' source.
        lost: Held symbols whose quotes were all unusable, so the sums omit them.
        hundredth: One per cent of the cost of the priced rows.
        long_steps_e14: By how much prices have changed the first of the two sums since it was read.
        short_steps_e14: Likewise the second.
        day_base: What the market value is measured against for the day's P&L.
        day_unknown: Held symbols whose P&L since the last close is not known.
        fills_known: Whether today's fills are known; None where they are not followed, so that the
            day's P&L is that of positions without any.
    """

    minus_paid: Decimal = ZERO
    priced: int = 0
    unpriced: int = 0
    waiting: int = 0
    lost: int = 0
    hundredth: Decimal = ZERO
    long_steps_e14: int = 0
    short_steps_e14: int = 0
    day_base: Decimal = ZERO
    day_unknown: int = 0
    fills_known: bool | None = None
    _long_value: Decimal = ZERO
    _short_value: Decimal = ZERO
    _realized: Decimal = ZERO
    _unknown_realized: int = 0
    _closed: Decimal = ZERO
    _unknown_closed: int = 0

    @property
    def market_value(self) -> Decimal:
        """The exact sum of the symbols' market values."""
        return _add(self.long_value, self.short_value) or ZERO

    @property
    def exposure(self) -> Decimal:
        """The exact sum of their absolute market values."""
        return _subtract(self.long_value, self.short_value) or ZERO

    @property
    def rows_day_pnl(self) -> Decimal | None:
        """The exact sum of the held symbols' P&L since the last close; None if one is not known."""
        if self.day_unknown or self.fills_known is False:
            return None
        return _subtract(self.market_value, self.day_base) or ZERO

    @property
    def day_pnl(self) -> Decimal | None:
        """The same with the symbols that were closed today; without fees."""
        rows = self.rows_day_pnl
        if rows is None or self._unknown_closed:
            return None
        return _add(rows, self._closed) or ZERO

    @property
    def realized_day_pnl(self) -> Decimal | None:
        """The exact sum of what today's fills realised; None where that is not known."""
        if self._unknown_realized or not self.fills_known:
            return None
        return self._realized or ZERO

    def enter_day(self, day: SymbolDay, *, held: bool) -> None:
        """Add what today's fills of a symbol realised; without a position, its whole day."""
        if day.realized is None:
            self._unknown_realized += 1
        else:
            self._realized = _add(self._realized, day.realized)
        if held:
            return
        if (pnl := day.closed_pnl) is None:
            self._unknown_closed += 1
        else:
            self._closed = _add(self._closed, pnl)

    def leave_day(self, day: SymbolDay, *, held: bool) -> None:
        """Remove it."""
        if day.realized is None:
            self._unknown_realized -= 1
        else:
            self._realized = _subtract(self._realized, day.realized)
        if held:
            return
        if (pnl := day.closed_pnl) is None:
            self._unknown_closed -= 1
        else:
            self._closed = _subtract(self._closed, pnl)

    @property
    def unrealized_pnl(self) -> Decimal:
        """The exact sum over the priced rows, whatever their status."""
        return _add(self.market_value, self.minus_paid) or ZERO

    @property
    def unrealized_pnl_pct(self) -> Decimal | None:
        """Per cent of the cost of the priced rows, half-even to 4 places; None if that is 0."""
        return percentage(self.unrealized_pnl, self.hundredth)

    def enter(self, holding: Holding) -> None:
        """Add a holding. Its lots and price must not change until it is removed."""
        self.unpriced += len(holding.positions)
        self.waiting += holding.waiting
        if holding.positions:
            self._enter_base(holding, 1)
        if holding.price is None:
            self.lost += holding.lost
            return
        self.priced += holding.priceable
        self.unpriced -= holding.priceable
        self.minus_paid = EXACT.add(self.minus_paid, holding.minus_paid)
        self.hundredth = EXACT.add(self.hundredth, holding.hundredth)
        value = holding.market_value
        if value < 0:
            self.short_value = _add(self.short_value, value)
        else:
            self.long_value = _add(self.long_value, value)

    def _enter_base(self, holding: Holding, sign: int) -> None:
        base = holding.day_base
        if holding.price is None or base is None:
            self.day_unknown += sign
        else:
            self.day_base = (_add if sign > 0 else _subtract)(self.day_base, base)

    def leave(self, holding: Holding) -> None:
        """Remove a holding."""
        self.unpriced -= len(holding.positions)
        self.waiting -= holding.waiting
        if holding.positions:
            self._enter_base(holding, -1)
        if holding.price is None:
            self.lost -= holding.lost
            return
        self.priced -= holding.priceable
        self.unpriced += holding.priceable
        self.minus_paid = EXACT.subtract(self.minus_paid, holding.minus_paid)
        self.hundredth = EXACT.subtract(self.hundredth, holding.hundredth)
        value = holding.market_value
        if value < 0:
            self.short_value = _subtract(self.short_value, value)
        else:
            self.long_value = _subtract(self.long_value, value)

    def step(self, holding: Holding, before: Decimal, price: Decimal) -> None:
        """Change the price of a holding in the sums; neither price is below 0."""
        units, change = holding.units, _subtract(price, before)
        if holding.short:
            self.short_value = _fma(units, change, self.short_value)
        else:
            self.long_value = _fma(units, change, self.long_value)

    @property
    def long_value(self) -> Decimal:
        """The exact sum of the symbols' market values that are not below 0."""
        if self.long_steps_e14:
            steps = EXACT.scaleb(Decimal(self.long_steps_e14), -14)
            self._long_value, self.long_steps_e14 = _add(self._long_value, steps), 0
        return self._long_value

    @long_value.setter
    def long_value(self, value: Decimal) -> None:
        self._long_value, self.long_steps_e14 = value, 0

    @property
    def short_value(self) -> Decimal:
        """That of those below 0."""
        if self.short_steps_e14:
            steps = EXACT.scaleb(Decimal(self.short_steps_e14), -14)
            self._short_value, self.short_steps_e14 = _add(self._short_value, steps), 0
        return self._short_value

    @short_value.setter
    def short_value(self, value: Decimal) -> None:
        self._short_value, self.short_steps_e14 = value, 0


@attrs.frozen
class Lot:
    """A position with the parts of its P&L that do not depend on the price.

    Attributes:
        head: The first fields of its row, which do not depend on the price.
        qty: That of the position, with 0 without its sign.
        problem: Why it is never priced, or None. With a problem, the following are 0.
        units: Shares: ``qty`` x multiplier.
        minus_paid: -``units`` x ``avg_entry_price``; P&L is ``units`` x price + ``minus_paid``.
        hundredth: One per cent of ``|qty|`` x ``avg_entry_price`` x multiplier.
        lastday: The price of a share at the last close; None if it is not known.
        base: ``units`` x ``lastday``.
    """

    head: RowHead
    qty: Decimal | None
    problem: str | None
    units: Decimal = ZERO
    minus_paid: Decimal = ZERO
    hundredth: Decimal = ZERO
    lastday: Decimal | None = None
    base: Decimal | None = None


_NO_PRICE: Final = (None,) * 5
"""The fields of a row from the price on, without one."""


def _lot(position: Position, lastday: Decimal | None) -> Lot:
    qty, avg, multiplier = map(shown, (position.qty, position.avg_entry_price, position.multiplier))
    head = position.symbol, qty, avg, position.asset_class, multiplier
    problem = position.problem or _problem(position)
    if problem is not None or qty is None or avg is None:
        return Lot(head, qty, problem)
    # Adding 0 makes 100 of 1E+2: a row relies on the decimals of a product.
    units = _add(_multiply(qty, position.multiplier), ZERO)
    minus_paid = EXACT.minus(_multiply(units, avg))
    hundredth = EXACT.scaleb(minus_paid if qty < 0 else EXACT.minus(minus_paid), -2)
    base = None if lastday is None else _multiply(units, lastday)
    return Lot(head, qty, None, units, minus_paid, hundredth, lastday, base)


def _problem(position: Position) -> str | None:
    for name, number in (
        ("qty", position.qty),
        ("avg_entry_price", position.avg_entry_price),
        ("multiplier", position.multiplier),
    ):
        if number is None:
            return f"{name} is missing or not a number"
        if not sums_up(number):
            return f"{name} is not a number of at most {MOST_DIGITS} digits each side of the point"
    return None


def _good(positions: Iterable[Position]) -> list[Position]:
    """Those that can be priced."""
    return [each for each in positions if each.problem is None and _problem(each) is None]


def _known(prices: Iterable[Decimal | None]) -> Decimal | None:
    """The first price that is known."""
    return next((each for each in prices if each is not None and sums_up(each)), None)
