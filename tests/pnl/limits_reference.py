"""The contract on limits, read slowly: fractions, from the rows of the reference of P&L."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction

import attrs

from mdservice.model.position import Position
from mdservice.pnl.day import SymbolDay
from mdservice.pnl.limits import LimitState, Order
from mdservice.pnl.rules import TOTAL, AlertRule

from .reference import S_NS, PlainRow, Reference, readable

State = tuple[str, str, Fraction | None, Fraction | None]
_ONE = Fraction(1)


def plain_state(state: LimitState) -> State:
    """With fractions for decimals."""
    numbers = (None if each is None else Fraction(each) for each in (state.value, state.used))
    return state.rule, state.subject, *numbers


@attrs.frozen
class Sum:
    """What all lots of a symbol come to, or those of all symbols."""

    pnl: Fraction = Fraction()
    cost: Fraction = Fraction()
    value: Fraction = Fraction()
    exposure: Fraction = Fraction()
    day: Fraction | None = Fraction()

    def __add__(self, other: Sum) -> Sum:
        day = None if self.day is None or other.day is None else self.day + other.day
        return Sum(
            self.pnl + other.pnl,
            self.cost + other.cost,
            self.value + other.value,
            self.exposure + other.exposure,
            day,
        )

    @property
    def percent(self) -> Fraction | None:
        return round(self.pnl * 100 / self.cost, 4) if self.cost else None


@attrs.frozen
class LimitsReference:
    """Judges the positions of a reference at a time.

    Attributes:
        rules: The limits.
        book: The positions and their prices.
        now_ns: The time.
        days: What today's fills changed, by the symbol without a slash; None if that is unknown.
    """

    rules: list[AlertRule]
    book: Reference
    now_ns: int
    days: dict[str, SymbolDay] | None = attrs.Factory(dict)

    def lots(self, symbol: str) -> list[Position]:
        return [lot for lot in self.book.positions if lot.priced_by == symbol]

    def name(self, symbol: str) -> str:
        """As the source of its lots writes it."""
        return self.lots(symbol)[0].symbol

    def held(self) -> list[str]:
        return list(dict.fromkeys(lot.priced_by for lot in self.book.positions))

    def rows(self, symbol: str) -> list[PlainRow]:
        """Of the lots that can be priced."""
        good = self.book.good(symbol)
        return [
            self.book.row(lot, self.now_ns) for lot in good if readable(lot.multiplier) is not None
        ]

    def readable(self, symbol: str) -> bool:
        return len(self.rows(symbol)) == len(self.lots(symbol))

    def is_closed(self, symbol: str) -> bool:
        """Whether its price is the last one of a market that is closed."""
        rows, lots = self.rows(symbol), self.lots(symbol)
        if rows:
            return any(row[-1] == "closed" for row in rows)
        # Whether its lots can be read changes nothing about the price.
        known = self.book.mark(symbol) is not None
        as_held = lots[0] if lots else Position(symbol, Decimal(1), Decimal(1))
        return known and self.book.status(as_held, self.now_ns) == "closed"

    def usable(self, symbol: str) -> bool:
        """Whether the price may be used."""
        if self.is_closed(symbol):
            return True
        mark, (quote, _) = self.book.mark(symbol), self.book.newest(symbol) or (None, 0)
        return (
            mark is not None
            and quote is mark
            and 0 not in (mark.bid, mark.ask)
            and self.book.young(symbol, self.now_ns)
        )

    def sum(self, symbol: str) -> Sum:
        rows = [row for row in self.rows(symbol) if row[5] is not None]
        cost = sum((abs(_f(row[1])) * _f(row[2]) * _f(row[4]) for row in rows), Fraction())
        value = sum((_f(row[8]) for row in rows), Fraction())
        day = self.book.day(self.days)[0][symbol.replace("/", "")]
        return Sum(sum((_f(row[6]) for row in rows), Fraction()), cost, value, abs(value), day)

    def total(self) -> Sum:
        """That of all that is held; its day has what was closed today too."""
        total = sum(map(self.sum, self.held()), Sum())
        return attrs.evolve(total, day=self.book.day(self.days)[1])

    def value(self, rule: AlertRule, symbol: str) -> tuple[bool, Fraction | None]:
        """Whether a limit of a symbol is blind, and what it measures."""
        if not self.readable(symbol):
            return True, None
        rows, mark = self.rows(symbol), self.book.mark(symbol)
        if rule.kind == "qty":
            return False, sum((_f(row[1]) for row in rows), Fraction())
        if rule.kind == "stale":
            if mark is None:
                return not self.is_closed(symbol), None
            return False, Fraction(self.now_ns - mark.ts_event_ns, S_NS)
        if not self.usable(symbol):
            return True, None
        of = self.sum(symbol)
        measured: Mapping[str, Fraction | None] = {
            "pnl": of.pnl,
            "pct": of.percent,
            "price": next((_f(row[5]) for row in rows if row[5] is not None), None),
            "value": abs(of.value),
            "day_pnl": of.day,
        }
        value = measured[rule.kind]
        return rule.kind == "day_pnl" and value is None, value

    def states(self) -> list[State]:
        found: list[State] = []
        held = self.held()
        for rule in self.rules:
            if rule.symbol == TOTAL:
                found.append(self._state_of_total(rule))
            elif rule.symbol == "*":
                found += [self._state(rule, symbol, self.name(symbol)) for symbol in held]
                if not held:
                    found.append((rule.text, "*", None, Fraction()))
            elif rule.symbol in held:
                found.append(self._state(rule, rule.symbol, rule.symbol))
            else:
                value = None if rule.kind in {"price", "stale", "pct"} else Fraction()
                found.append((rule.text, rule.symbol, value, Fraction()))
        return found

    def _state(self, rule: AlertRule, symbol: str, subject: str) -> State:
        blind, value = self.value(rule, symbol)
        if rule.kind == "stale" and not blind:
            old = not self.is_closed(symbol) and not self.book.young(symbol, self.now_ns)
            return rule.text, subject, value, Fraction(old)
        return rule.text, subject, value, None if value is None else used(rule, value)

    def _state_of_total(self, rule: AlertRule) -> State:
        if not self.book.positions and rule.kind != "day_pnl":
            value = None if rule.kind == "pct" else Fraction()
            return rule.text, TOTAL, value, Fraction()
        value = None
        if all(map(self.readable, self.held())) and all(map(self.usable, self.held())):
            value = _of_total(rule, self.total())
        return rule.text, TOTAL, value, None if value is None else used(rule, value)

    def crossed(self) -> set[tuple[str, str]]:
        """The limits of what is held that are beyond their level now."""
        names = map(self.name, self.held())
        held = {*self.held(), *names, TOTAL} if self.book.positions else set()
        by_text = {rule.text: rule for rule in self.rules}
        return {
            (text, subject)
            for text, subject, value, part in self.states()
            if subject in held
            and value is not None
            and (part if by_text[text].kind == "stale" else is_beyond(by_text[text], value))
        }

    def is_blind(self) -> bool:
        """Whether any limit cannot be judged."""
        held = self.held()
        for rule in self.rules:
            if rule.symbol == TOTAL:
                if not all(self.readable(symbol) and self.usable(symbol) for symbol in held):
                    return True
                if rule.kind == "day_pnl" and self.total().day is None:
                    return True
            of = held if rule.symbol == "*" else [rule.symbol] if rule.symbol in held else []
            if any(self.value(rule, symbol)[0] for symbol in of):
                return True
        return False

    def beyond(self, order: Order) -> set[str]:
        """The limits that the position, or the total, would be beyond after an order."""
        symbol, rows = order.symbol, self.rows(order.symbol)
        mark = self.book.mark(symbol)
        lots = self.lots(symbol)
        price = _f(rows[0][5]) if rows else Fraction() if mark is None else _mid(mark)
        fill = price if order.price is None else Fraction(order.price)
        sign = 1 if order.side == "buy" else -1
        multiplier = _f(readable(lots[0].multiplier)) if lots else _ONE
        change = sign * Fraction(order.qty) * multiplier
        units = sum((_f(row[1]) * _f(row[4]) for row in rows), Fraction())
        before = self.sum(symbol) if rows else Sum()
        paid = units * price - before.pnl
        after = units + change
        if units == 0 or (units > 0) == (change > 0):
            paid += change * fill
        elif abs(change) <= abs(units):
            paid *= after / units
        else:
            paid = after * fill
        day = None if before.day is None else before.day + change * (price - fill)
        worth = after * max(price, fill)
        would = Sum(after * price - paid, abs(paid), worth, abs(worth), day)
        qty = sum((_f(row[1]) for row in rows), Fraction()) + sign * Fraction(order.qty)
        rest = sum((self.sum(other) for other in self.held() if other != symbol), Sum())
        found = set()
        for rule in self.rules:
            if rule.symbol == TOTAL:
                value = _of_total(rule, rest + would)
            elif rule.symbol in ("*", symbol):
                value = {
                    "qty": qty,
                    "price": price,
                    "pnl": would.pnl,
                    "pct": would.percent,
                    "value": abs(would.value),
                    "day_pnl": would.day,
                }.get(rule.kind)
            else:
                continue
            if value is not None and is_beyond(rule, value):
                found.add(rule.text)
        return found


def _of_total(rule: AlertRule, total: Sum) -> Fraction | None:
    measured: Mapping[str, Fraction | None] = {
        "pnl": total.pnl,
        "pct": total.percent,
        "value": abs(total.value),
        "exposure": total.exposure,
        "day_pnl": total.day,
    }
    return measured[rule.kind]


def is_beyond(rule: AlertRule, value: Fraction) -> bool:
    assert rule.level is not None
    level = Fraction(rule.level)
    return value < level if rule.direction == "below" else value > level


def used(rule: AlertRule, value: Fraction) -> Fraction:
    """The part of a limit that is used; of one towards 0, the limit's part of the value."""
    assert rule.level is not None
    level = Fraction(rule.level)
    if not level:
        return Fraction(is_beyond(rule, value))
    away = (level > 0) == (rule.direction == "above")
    if not away and value * level <= 0:
        return _ONE
    return max(round(value / level if away else level / value, 10), Fraction())


def _f(number: object) -> Fraction:
    assert isinstance(number, Fraction)
    return number


def _mid(quote: object) -> Fraction:
    from .reference import mid

    found = mid(quote)  # type: ignore[arg-type]
    assert found is not None
    return found
