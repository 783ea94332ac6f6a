"""The P&L of one day in New York: its fills, and Alpaca's rule of average entry prices. Pure.

Within a day, the average entry price is the weighted average of the open quantity, and what reduces
a position is measured against it. From the next day on it follows compressed FIFO: all that a day
added is one lot at its average price, and the oldest lot is sold first. So an average price may
change overnight, and a day's realised P&L is measured against the average at its start.

The day's P&L of a symbol does not depend on averages: it is the value now, less the value at the
last close, less the money spent on it. Its unrealised part is what is not realised.

Source: Alpaca, "Position average entry price calculation".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal
from itertools import groupby
from typing import Final
from zoneinfo import ZoneInfo

import attrs
import msgspec

from mdservice.model.position import Position, asset_class_of, default_multiplier
from mdservice.model.symbol import without_slash
from mdservice.model.timestamps import new_york_day
from mdservice.pnl.numbers import EXACT, ZERO, sums_up

__all__ = [
    "NOTHING_TODAY",
    "NOT_KNOWN",
    "Booking",
    "DayBook",
    "Fill",
    "Start",
    "SymbolDay",
    "average_at_start",
    "midnight_ns",
    "new_york_date",
]

_NEW_YORK: Final = ZoneInfo("America/New_York")
_S_NS: Final = 1_000_000_000
_ROUNDED: Final = Context(prec=80, rounding=ROUND_HALF_EVEN, Emin=-999_999, Emax=999_999)
"""For averages, which may be periodic; what is rounded here is far behind any printed digit."""
_PLACES: Final = 18
_LAST_PLACE: Final = Decimal(1).scaleb(-_PLACES)
_Trade = tuple[str, Decimal, Decimal]
"""A key, a quantity and a price."""
_ONE: Final = Decimal(1)


def new_york_date(at_ns: int) -> str:
    """The date in New York: ``2026-11-20``."""
    text = f"{new_york_day(at_ns):08d}"
    return f"{text[:4]}-{text[4:6]}-{text[6:]}"


def midnight_ns(date: str, days: int = 0) -> int:
    """When that date, or one some days later, begins in New York, UTC nanoseconds."""
    day = datetime.fromisoformat(date) + timedelta(days=days)
    return int(day.replace(tzinfo=_NEW_YORK).timestamp()) * _S_NS


@attrs.frozen
class Fill:
    """A trade of the account, or another change of a position at a known price.

    Attributes:
        symbol: As its source wrote it.
        qty: Shares, coins or contracts; below 0 for those sold.
        price: Dollars a share.
        at_ns: UTC nanoseconds.
        id: Its source's own: of the activity, or of the execution.
        realizes: Whether what it reduces is realised; not so for coins that were taken as a fee.
    """

    symbol: str
    qty: Decimal
    price: Decimal
    at_ns: int
    id: str
    realizes: bool = True


@attrs.frozen
class Booking:
    """An activity of the account that is not a trade.

    Attributes:
        id: Alpaca's.
        activity_type: ``FEE``, ``CSD``, ``DIV``….
        date: New York's; empty where it has none.
        amount: Dollars that it added to the cash, other than a fee.
        fee: Dollars of fees; below 0 for those given back; None if unreadable.
        fill: The change of a position at a known price, or None.
        changes: The symbol whose position it changed otherwise, or None.
    """

    id: str
    activity_type: str
    date: str = ""
    amount: Decimal = ZERO
    fee: Decimal | None = ZERO
    fill: Fill | None = None
    changes: str | None = None


class Start(msgspec.Struct, frozen=True):
    """A position at the start of the day.

    Attributes:
        symbol: As the positions write it.
        qty: Signed; None where only the price is known.
        avg_entry_price: Dollars a share; None where only the price is known.
        lastday_price: Dollars a share at the last close, or None.
        multiplier: Shares in one unit of ``qty``.
    """

    symbol: str
    qty: Decimal | None = None
    avg_entry_price: Decimal | None = None
    lastday_price: Decimal | None = None
    multiplier: Decimal = _ONE


@attrs.frozen
class SymbolDay:
    """What a day changed in one symbol.

    Attributes:
        symbol: As the positions write it.
        units: Shares bought, less those sold; quantity times multiplier.
        spent: Dollars paid for those bought, less those received.
        realized: Dollars; None where it is not known.
        fills: How many trades there were.
        qty: What is held now, signed.
        lastday_price: Dollars a share at the last close, as far as it is known.
        problem: Why the day's P&L is not known, whatever the prices are; or None.
        needs_average: Whether ``realized`` waits for the average price at the start of the day.
        start_qty: What was held at the start of the day.
    """

    symbol: str
    units: Decimal = ZERO
    spent: Decimal = ZERO
    realized: Decimal | None = ZERO
    fills: int = 0
    qty: Decimal = ZERO
    lastday_price: Decimal | None = None
    problem: str | None = None
    needs_average: bool = False
    start_qty: Decimal = ZERO

    @property
    def closed_pnl(self) -> Decimal | None:
        """The day's P&L if nothing is held now; None where it is not known."""
        if self.problem is not None:
            return None
        if not self.units:
            return EXACT.minus(self.spent)
        if self.lastday_price is None:
            return None
        return EXACT.subtract(EXACT.multiply(self.units, self.lastday_price), self.spent)


NOTHING_TODAY: Final = SymbolDay("")
"""Of a symbol without fills."""
NOT_KNOWN: Final = SymbolDay("", realized=None, problem="today's fills are not known")
"""Of every symbol while the fills are not known."""


class DayBook:
    """The fills and the other activities of one date, each counted once.

    Fills come from the stream at once, and from the list of activities a little later. The ids of
    the two differ, so they are counted as a multiset: of fills with the same symbol, quantity and
    price, as many count as the source with the most of them has.

    Keys are symbols without a slash: ``BTCUSD``. An activity has no asset class, and needs none: a
    US ticker has at most five letters, a pair of Alpaca at least six, an option more.

    Args:
        date: New York's: ``2026-11-20``.
        starts: What an earlier book of that date knew, by key.
    """

    def __init__(self, date: str, starts: Mapping[str, Start] | None = None) -> None:
        self.date = date
        self.starts: dict[str, Start] = dict(starts or {})
        """What the positions were at the start of the day, as far as known, by key."""
        self._symbols: dict[str, _SymbolFills] = {}
        self._bookings: dict[tuple[str, str], Booking] = {}
        self._changed_by: dict[str, str] = {}
        self._ids: set[str] = set()
        self._listed: Counter[_Trade] = Counter()
        self._streamed: Counter[_Trade] = Counter()
        self._unlisted: dict[_Trade, list[Fill]] = {}
        """Counted fills from the stream that the list did not have yet."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the symbols that changed today, in the order of their first change."""
        return tuple(dict.fromkeys([*self._symbols, *self._changed_by]))

    def add(self, fill: Fill, *, streamed: bool = False) -> bool:
        """Count a fill of this date; return whether it is new, or comes at another place.

        Args:
            fill: The fill; the same id may come again.
            streamed: Whether it is from the stream, not from the list of activities.
        """
        if fill.id in self._ids or new_york_date(fill.at_ns) != self.date:
            return False
        self._ids.add(fill.id)
        trade = without_slash(fill.symbol), fill.qty, fill.price
        mine, others = (self._streamed, self._listed)[:: 1 if streamed else -1]
        mine[trade] += 1
        if mine[trade] <= others[trade]:
            return not streamed and self._list(trade, fill)
        if streamed:
            self._unlisted.setdefault(trade, []).append(fill)
        self._symbols.setdefault(trade[0], _SymbolFills()).add(fill, streamed=streamed)
        return True

    def _list(self, trade: _Trade, fill: Fill) -> bool:
        """Take the list's time for a fill from the stream; return whether the order changed.

        Where the stream has lost an equal fill, the one that it had may be another one.
        """
        known = self._unlisted[trade].pop(0)
        return self._symbols[trade[0]].replace(known, fill)

    def drop_unlisted(self, until_ns: int) -> set[str]:
        """Drop fills from the stream up to that time that the list of activities does not have.

        Returns:
            The keys of their symbols.
        """
        changed = set()
        for trade, fills in self._unlisted.items():
            for fill in [fill for fill in fills if fill.at_ns <= until_ns]:
                fills.remove(fill)
                self._streamed[trade] -= 1
                self._symbols[trade[0]].remove(fill)
                changed.add(trade[0])
        return changed

    def book(self, bookings: Iterable[Booking]) -> set[str]:
        """Count activities that are not trades; return the keys of the symbols that changed."""
        changed = set()
        for booking in bookings:
            # Alpaca's documentation shows an exercise and its trade with the same id.
            if (booking.id, booking.activity_type) in self._bookings:
                continue
            self._bookings[booking.id, booking.activity_type] = booking
            if booking.fill is not None:
                of_symbol = self._symbols.setdefault(
                    without_slash(booking.fill.symbol), _SymbolFills()
                )
                of_symbol.add(booking.fill, is_trade=False)
                changed.add(without_slash(booking.fill.symbol))
            if booking.changes is not None:
                self._changed_by[without_slash(booking.changes)] = booking.activity_type
                changed.add(without_slash(booking.changes))
        return changed

    @property
    def fees(self) -> Decimal | None:
        """Dollars, at least 0; None where one cannot be read."""
        total = self._sum_of_fees()
        return None if total is None else max(ZERO, total)

    def moved(self) -> dict[str, Decimal]:
        """The dollars that other activities added to the cash, by their type."""
        found: dict[str, Decimal] = {}
        for booking in self._bookings.values():
            if booking.amount:
                before = found.get(booking.activity_type, ZERO)
                found[booking.activity_type] = EXACT.add(before, booking.amount)
        surplus = self._sum_of_fees()
        if surplus is not None and surplus < 0:
            found["FEE"] = EXACT.subtract(found.get("FEE", ZERO), surplus)
        return {name: amount for name, amount in found.items() if amount}

    def _sum_of_fees(self) -> Decimal | None:
        total = ZERO
        for booking in self._bookings.values():
            if booking.fee is None:
                return None
            total = EXACT.add(total, booking.fee)
        return total

    def note(self, positions: Iterable[Position], *, newer: bool = False) -> bool:
        """Remember what positions are at the start of the day; return whether that changed.

        A position without a fill today is still as it was at the start.

        Args:
            positions: All of them.
            newer: Whether they may include a fill that the book does not have yet. Then a position
                counts only if its quantity is that of the start, and its last close another one:
                fills that add up to nothing leave another average price too.
        """
        changed = False
        for key, lots in _by_key(positions).items():
            known = self.starts.get(key, Start(lots[0].symbol))
            lastday, multiplier = _lastday_price(lots) or known.lastday_price, lots[0].multiplier
            if key in self._symbols or key in self._changed_by:
                now = msgspec.structs.replace(known, lastday_price=lastday, multiplier=multiplier)
            else:
                qty, cost = _held(lots)
                if newer and (qty != known.qty or lastday == known.lastday_price):
                    continue
                average = _divide(cost, qty) if qty else None
                now = Start(lots[0].symbol, qty, average, lastday, multiplier)
            if now != known:
                self.starts[key] = now
                changed = True
        return changed

    def learn_average(self, key: str, qty: Decimal, average: Decimal) -> None:
        """Remember the average price at the start of the day of a symbol that has fills."""
        known = self._start_of(key)
        self.starts[key] = msgspec.structs.replace(known, qty=qty, avg_entry_price=average)

    def learn_close(self, key: str, price: Decimal) -> None:
        """Remember the price at the last close of a symbol that has fills; dollars a share."""
        self.starts[key] = msgspec.structs.replace(self._start_of(key), lastday_price=price)

    def _start_of(self, key: str) -> Start:
        known = self.starts.get(key)
        if known is not None:
            return known
        symbol = self._symbols[key].symbol
        return Start(symbol, multiplier=default_multiplier(asset_class_of(symbol)))

    def symbol_day(self, key: str, lots: Sequence[Position]) -> SymbolDay:
        """The day of one symbol, given all its positions now; empty for none."""
        start = self.starts.get(key)
        fills = self._symbols.get(key) or _SymbolFills()
        symbol = lots[0].symbol if lots else start.symbol if start is not None else fills.symbol
        problem = self._problem(key, lots)
        qty, cost = (ZERO, ZERO) if problem else _held(lots)
        if lots:
            multiplier = lots[0].multiplier
        elif start is not None:
            multiplier = start.multiplier
        else:
            multiplier = default_multiplier(asset_class_of(symbol))
        start_qty = EXACT.subtract(qty, fills.qty)
        average = None
        if start is not None and start.qty == start_qty:
            average = start.avg_entry_price
        replay = fills.replay(start_qty)
        realized = replay.realized(average, cost) if problem is None else None
        return SymbolDay(
            symbol or key,
            EXACT.multiply(fills.qty, multiplier),
            EXACT.multiply(fills.spent, multiplier),
            None if realized is None else EXACT.multiply(realized, multiplier),
            fills.trades,
            qty,
            _lastday_price(lots) or (None if start is None else start.lastday_price),
            problem,
            problem is None and realized is None,
            start_qty,
        )

    def _problem(self, key: str, lots: Sequence[Position]) -> str | None:
        if (activity := self._changed_by.get(key)) is not None:
            return f"{activity} changed the position"
        for lot in lots:
            if lot.problem is not None or not _is_usable(lot):
                return lot.problem or "the position is not usable"
        return None


@attrs.define
class _Replay:
    """A position while a day's fills are applied, for an average ``a`` at the start.

    Its cost is ``per_average`` x a + ``cost``, and so is what was realised.
    """

    qty: Decimal
    per_average: Decimal
    cost: Decimal = ZERO
    realized_per_average: Decimal = ZERO
    realized_cost: Decimal = ZERO

    def apply(self, fill: Fill) -> None:
        traded, price = fill.qty, fill.price
        if self.qty and (self.qty > 0) != (traded > 0):
            closed = self.qty if abs(traded) >= abs(self.qty) else EXACT.minus(traded)
            of_average, of_cost = self.per_average, self.cost
            if closed != self.qty:
                of_average = _divide(_ROUNDED.multiply(of_average, closed), self.qty)
                of_cost = _divide(_ROUNDED.multiply(of_cost, closed), self.qty)
            received = _ROUNDED.multiply(closed, price)
            if fill.realizes:
                gain = _ROUNDED.subtract(received, of_cost)
                self.realized_cost = _ROUNDED.add(self.realized_cost, gain)
                self.realized_per_average = _ROUNDED.subtract(self.realized_per_average, of_average)
            self.per_average = _ROUNDED.subtract(self.per_average, of_average)
            self.cost = _ROUNDED.subtract(self.cost, of_cost)
            self.qty = EXACT.subtract(self.qty, closed)
            traded = EXACT.add(traded, closed)
        if traded:
            self.qty = EXACT.add(self.qty, traded)
            self.cost = _ROUNDED.add(self.cost, _ROUNDED.multiply(traded, price))

    def realized(self, average: Decimal | None, cost_now: Decimal) -> Decimal | None:
        """What was realised, with the average at the start, or else with the cost now."""
        found = self.realized_cost
        if self.realized_per_average:
            if average is None:
                if not self.per_average:
                    return None
                average = _divide(_ROUNDED.subtract(cost_now, self.cost), self.per_average)
            found = _ROUNDED.add(found, _ROUNDED.multiply(self.realized_per_average, average))
        return _tidy(found)


class _SymbolFills:
    """The fills of one symbol in the order of their time."""

    def __init__(self) -> None:
        self.qty = self.spent = ZERO
        self.symbol = ""
        self.trades = 0
        self._ordered: list[Fill] = []
        self._unlisted: set[str] = set()
        """The ids of those from the stream that the list did not have yet."""
        self._booked: set[str] = set()
        """The ids of those that are no trades."""
        self._replayed: tuple[Decimal, _Replay] | None = None

    def add(self, fill: Fill, *, is_trade: bool = True, streamed: bool = False) -> None:
        """Add a fill at its time.

        Among those of one time, fills from the list come first, in its order; then fills that only
        the stream has brought so far, in its order; then what is no trade.
        """
        if streamed:
            self._unlisted.add(fill.id)
        if not is_trade:
            self._booked.add(fill.id)
        self.symbol = self.symbol or fill.symbol
        self.qty = EXACT.add(self.qty, fill.qty)
        self.spent = EXACT.add(self.spent, EXACT.multiply(fill.qty, fill.price))
        self.trades += is_trade
        place = self._insert(fill)
        if place < len(self._ordered) - 1:
            self._replayed = None
        elif self._replayed is not None:
            self._replayed[1].apply(fill)

    def _insert(self, fill: Fill) -> int:
        """Insert a fill behind those that do not come after it; return its place."""
        rank = self._rank(fill)
        place = len(self._ordered)
        while place and self._rank(self._ordered[place - 1]) > rank:
            place -= 1
        self._ordered.insert(place, fill)
        return place

    def _rank(self, fill: Fill) -> tuple[int, bool, bool]:
        return fill.at_ns, fill.id in self._booked, fill.id in self._unlisted

    def replace(self, known: Fill, fill: Fill) -> bool:
        """Replace one from the stream by its equal from the list, which may have another time.

        Returns:
            Whether the order changed.
        """
        place = self._ordered.index(known)
        del self._ordered[place]
        self._unlisted.discard(known.id)
        if self._insert(fill) == place:
            return False
        self._replayed = None
        return True

    def remove(self, fill: Fill) -> None:
        self._unlisted.discard(fill.id)
        self._ordered.remove(fill)
        self.qty = EXACT.subtract(self.qty, fill.qty)
        self.spent = EXACT.subtract(self.spent, EXACT.multiply(fill.qty, fill.price))
        self.trades -= 1
        self._replayed = None

    def replay(self, start_qty: Decimal) -> _Replay:
        """The position after all fills; applies only what came since the last call."""
        if self._replayed is None or self._replayed[0] != start_qty:
            state = _Replay(start_qty, start_qty)
            for fill in self._ordered:
                state.apply(fill)
            self._replayed = start_qty, state
        return self._replayed[1]


def average_at_start(older: Sequence[Fill], qty: Decimal) -> Decimal | None:
    """The average price of a position at the start of a day, from the fills of the days before.

    Args:
        older: The symbol's fills in the order of their time, back to when it was last not held, or
            further.
        qty: What is held at the start of the day.

    Returns:
        Dollars a share; None where the fills do not reach back so far.
    """
    before, first = qty, len(older)
    while before:
        if not first:
            return None
        first -= 1
        earlier = EXACT.subtract(before, older[first].qty)
        if earlier and (earlier > 0) != (before > 0):
            break  # this fill turned the position: its rest opened it
        before = earlier
    held = ZERO if not before else EXACT.subtract(before, older[first].qty)
    lots = [(held, ZERO)] if held else []
    for _, of_day in groupby(older[first:], lambda fill: new_york_day(fill.at_ns)):
        lots = _after_day(lots, of_day)
    total, cost = _sum(lots)
    return _divide(cost, total) if total == qty and qty else None


_Lots = list[tuple[Decimal, Decimal]]
"""Signed quantities and their signed cost, the oldest first."""


def _after_day(lots: _Lots, fills: Iterable[Fill]) -> _Lots:
    """The lots after a day: all that it added is one lot, and then the oldest are sold first."""
    held, _ = _sum(lots)
    added = cost = closed = ZERO
    for fill in fills:
        traded = fill.qty
        if held and (held > 0) != (traded > 0):
            part = held if abs(traded) >= abs(held) else EXACT.minus(traded)
            closed, held = EXACT.add(closed, part), EXACT.subtract(held, part)
            traded = EXACT.add(traded, part)
            if not held:
                lots, added, cost, closed = [], ZERO, ZERO, ZERO
        if traded:
            held, added = EXACT.add(held, traded), EXACT.add(added, traded)
            cost = _ROUNDED.add(cost, _ROUNDED.multiply(traded, fill.price))
    left: _Lots = []
    for lot, paid in [*lots, (added, cost)]:
        part = lot if abs(closed) >= abs(lot) else closed
        closed = EXACT.subtract(closed, part)
        if part != lot:
            rest = EXACT.subtract(lot, part)
            left.append((rest, _divide(_ROUNDED.multiply(paid, rest), lot)))
    return left


def _sum(lots: _Lots) -> tuple[Decimal, Decimal]:
    qty = cost = ZERO
    for lot, paid in lots:
        qty, cost = EXACT.add(qty, lot), _ROUNDED.add(cost, paid)
    return qty, cost


def _by_key(positions: Iterable[Position]) -> dict[str, list[Position]]:
    found: dict[str, list[Position]] = {}
    for position in positions:
        if position.problem is None and _is_usable(position):
            found.setdefault(without_slash(position.symbol), []).append(position)
    return found


def _is_usable(lot: Position) -> bool:
    numbers = lot.qty, lot.avg_entry_price, lot.multiplier
    return all(number is not None and sums_up(number) for number in numbers)


def _held(lots: Iterable[Position]) -> tuple[Decimal, Decimal]:
    """The quantity of all lots, and its signed cost without the multiplier."""
    qty = cost = ZERO
    for lot in lots:
        if lot.qty is not None and lot.avg_entry_price is not None:
            qty = EXACT.add(qty, lot.qty)
            cost = EXACT.add(cost, EXACT.multiply(lot.qty, lot.avg_entry_price))
    return qty, cost


def _lastday_price(lots: Iterable[Position]) -> Decimal | None:
    for lot in lots:
        price = lot.lastday_price
        if price is not None and sums_up(price):
            return price
    return None


def _divide(number: Decimal, by: Decimal) -> Decimal:
    return _ROUNDED.divide(number, by)


def _tidy(number: Decimal) -> Decimal:
    """Without the rounding of a periodic average, and without zeros at the end."""
    if int(number.as_tuple().exponent) < -_PLACES:
        number = number.quantize(_LAST_PLACE, context=_ROUNDED)
    return number.normalize(_ROUNDED) or ZERO
