"""Judges limits: which are crossed, which cannot be judged, and what an order would change. Pure.

Numbers are exact. A limit is crossed beyond its level; the level itself is within it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction
from itertools import chain
from typing import Any, Final, Literal

import attrs
import msgspec

from mdservice.model.position import asset_class_of, default_multiplier
from mdservice.model.quote import Quote
from mdservice.model.symbol import EVERY_SYMBOL, spellings
from mdservice.pnl.alerts import Alert, subject_of
from mdservice.pnl.breaker import Breaker, encode_breaker
from mdservice.pnl.engine import PnlEngine
from mdservice.pnl.holding import Holding, Totals
from mdservice.pnl.measures import age_s, of_holding, of_totals
from mdservice.pnl.numbers import EXACT, ZERO, percentage, short
from mdservice.pnl.rules import TOTAL, AlertRule, Kind, RuleTable, parse_rule

__all__ = ["LimitState", "Limits", "Order", "encode_risk", "has_price"]

_SIZES: Final = frozenset({"qty", "value"})
_MOST_NAMED: Final = 20
"""How many symbols the reasons for blindness name."""
_SHOWN: Final = Context(prec=30, rounding=ROUND_HALF_EVEN)


@attrs.frozen
class Order:
    """An order that a program asks about.

    Attributes:
        symbol: ``AAPL``.
        side: ``buy`` or ``sell``.
        qty: Above 0, in the unit of a position.
        price: The price of a limit order; None for the market's.
    """

    symbol: str
    side: Literal["buy", "sell"]
    qty: Decimal
    price: Decimal | None = None


@attrs.frozen
class LimitState:
    """A limit of one symbol, or of the total.

    Attributes:
        rule: The limit's text.
        subject: The symbol or ``total``; ``*`` for such a limit if nothing is held.
        value: What it measures now; of ``stale`` the age of the price in seconds. None where that
            is not known, or where the price is the source's.
        used: ``value`` as a fraction of the limit, half-even to 10 places: above 1 it is crossed.
            Never below 0. Of a limit towards 0, such as ``price < 100``, the limit as a fraction of
            the value. None if the limit is blind.
    """

    rule: str
    subject: str
    value: Decimal | None
    used: Decimal | None


class Limits:
    """The limits, and which of them are crossed.

    A limit on a symbol that is not held waits. A limit is blind while it cannot be judged: a
    position is unreadable, or a price that it needs is not usable, because it is missing, stale,
    one-sided or too wide. Blind limits neither cross nor come back. A limit that measures ``qty``
    needs no price. A limit of the total needs the prices of all positions.

    Args:
        rules: From :func:`mdservice.pnl.rules.parse_rule`; repeats are dropped.
    """

    def __init__(self, rules: Iterable[AlertRule]) -> None:
        self._table = RuleTable(rules)
        self.rules = self._table.rules
        self._crossed: dict[str, dict[str, Alert]] = {}
        """The last crossing by symbol or ``total``, and by rule."""
        self._blind: dict[str, str] = {}
        """Held symbols with a limit of their own that is blind, and the reason."""
        self._unusable: dict[str, str] = {}
        """Held symbols that make the limits of the total blind, and the reason."""
        self._ageing: dict[str, Holding] = {}
        """Held symbols whose price can become too old without a changed row."""
        self._day_unknown: str | None = None
        """Why the limits of the total's day cannot be judged, or None."""
        self._seen = 0

    def check(self, engine: PnlEngine, now_ns: int) -> list[Alert]:
        """The limits that were crossed since the last check, in the order of the changes.

        The cost is proportional to the number of changed symbols. Call it after each event, at
        :attr:`PnlEngine.wake_ns`, and before each other method, always with the same engine.
        """
        if not self.rules or (
            self._seen == engine.version
            and (engine.wake_ns is None or now_ns < engine.wake_ns)
            and not self._ageing
        ):
            return []
        crossings: list[Alert] = []
        changed = {holding.symbol: holding for holding in engine.changed(self._seen, now_ns)}
        if engine.whole_due(self._seen):
            self._forget(engine)
        for holding in (changed | self._ageing).values():
            self._check_holding(holding, now_ns, crossings)
        self._check_total(engine, now_ns, crossings)
        self._seen = engine.version
        return crossings

    @property
    def is_blind(self) -> bool:
        """Whether a limit cannot be judged."""
        return bool(self._blind or (self._table.of_total and self._unusable) or self._day_unknown)

    def blind(self) -> list[str]:
        """Why limits cannot be judged; empty if all can be."""
        found = {**(self._unusable if self._table.of_total else {}), **self._blind}
        reasons = [f"{symbol}: {reason}" for symbol, reason in found.items()]
        if len(reasons) > _MOST_NAMED:
            reasons[_MOST_NAMED:] = [f"and {len(reasons) - _MOST_NAMED} more symbols"]
        if self._day_unknown:
            reasons.append(f"total: {self._day_unknown}")
        return reasons

    def crossed(self) -> list[Alert]:
        """The limits that hold: crossed, and not come back."""
        return [crossing for of in self._crossed.values() for crossing in of.values()]

    def has(self, rule: str) -> bool:
        """Whether there is a limit with this text."""
        return any(rule == one.text for one in self.rules)

    def is_judged(self, subject: str) -> bool:
        """Whether the limits of a symbol, or of the ``total``, can be judged."""
        if subject == TOTAL:
            return not self._unusable and not self._day_unknown
        return self._blind.keys().isdisjoint(spellings(subject))

    def states(self, engine: PnlEngine, now_ns: int) -> list[LimitState]:
        """Every limit, with one entry for each symbol that it is for."""
        found = []
        held = [holding for s in engine.held_symbols if (holding := engine.holding(s)) is not None]
        for rule in self.rules:
            if rule.symbol == TOTAL:
                found.append(self._state_of_total(rule, engine))
            elif rule.symbol == EVERY_SYMBOL:
                found += [_state(rule, holding, now_ns) for holding in held]
                if not held:
                    found.append(LimitState(rule.text, EVERY_SYMBOL, None, ZERO))
            elif (holding := engine.holding(rule.symbol)) is not None:
                found.append(_state(rule, holding, now_ns))
            else:
                value = None if rule.kind in {"price", "stale", "pct"} else ZERO
                found.append(LimitState(rule.text, rule.symbol, value, ZERO))
        return found

    def objections(
        self, order: Order, breaker: Breaker, engine: PnlEngine, now_ns: int
    ) -> list[str]:
        """Why an order is not allowed; empty if it is.

        The order is judged on the position as it would be, filled as a whole: at its price, or at
        the market's, and valued at the market's. For ``value`` and ``exposure`` the higher of the
        two counts. A part of a position that is closed leaves the average entry price as it is.

        While the breaker is tripped, only an order that reduces the position whose ``qty`` or
        ``value`` has tripped it is allowed.
        """
        if not self.rules and not breaker.tripped:
            return []
        reasons = self.blind()
        holding = engine.at(order.symbol, now_ns)
        reason = "no price is known" if holding is None else _unusable(holding)
        if holding is None or reason is not None:
            reasons.append(f"{order.symbol}: {reason}")
            reasons = list(dict.fromkeys(reasons))  # a limit may be blind for the same reason
        if breaker.tripped and not (holding is not None and _reduces(order, holding, breaker)):
            value = "" if breaker.value is None else f" with {short(breaker.value)}"
            reasons.append(f"the breaker is tripped: {breaker.rule} by {breaker.subject}{value}")
        if reasons or holding is None or breaker.tripped:
            return reasons
        return list(self._crossed_by(order, holding, engine))

    def _forget(self, engine: PnlEngine) -> None:
        """Forget what is known of symbols that are not held any more."""
        known: dict[str, Any]
        for known in (self._crossed, self._blind, self._unusable, self._ageing):
            for symbol in [s for s in known if s != TOTAL and engine.holding(s) is None]:
                del known[symbol]

    def _check_holding(self, holding: Holding, now_ns: int, crossings: list[Alert]) -> None:
        symbol = holding.symbol
        if holding.opened > self._seen:
            self._crossed.pop(symbol, None)
        _note(self._unusable, symbol, _unreadable(holding) or _unusable(holding))
        reason = None
        ages = False
        for rule in self._table.of_symbol(symbol):
            why = _blindness(rule, holding)
            reason = reason or why
            ages = ages or rule.kind == "stale"
            if why is None and (value := _value(rule, holding, now_ns)) is not None:
                beyond = _is_beyond(rule, value, holding)
                if self._crosses(rule, symbol, value, beyond=beyond):
                    crossing = Alert.of(rule, subject_of(rule, holding), value, now_ns)
                    self._cross(symbol, crossing, crossings)
        _note(self._blind, symbol, reason)
        if ages and holding.live and holding.quote is not holding.mark:
            self._ageing[symbol] = holding
        else:
            self._ageing.pop(symbol, None)

    def _check_total(self, engine: PnlEngine, now_ns: int, crossings: list[Alert]) -> None:
        self._day_unknown = None
        for rule in self._table.of_total:
            value = of_totals(rule.kind, engine.totals)
            # What positions lost that were closed today still counts for the day.
            if rule.kind == "day_pnl" and value is None:
                known = engine.totals.fills_known is not False
                what = "the last close of a position is" if known else "today's fills are"
                self._day_unknown = f"{what} not known"
            elif rule.kind != "day_pnl" and not engine.positions:
                self._crossed.get(TOTAL, {}).pop(rule.text, None)
            elif self._unusable or value is None:
                continue
            elif self._crosses(rule, TOTAL, value, beyond=rule.beyond(value)):
                self._cross(TOTAL, Alert.of(rule, TOTAL, value, now_ns), crossings)

    def _crosses(self, rule: AlertRule, subject: str, value: Decimal, *, beyond: bool) -> bool:
        """Whether the value has just crossed; a value that is back is forgotten."""
        crossed = self._crossed.get(subject)
        if beyond:
            return crossed is None or rule.text not in crossed
        if crossed and (not rule.hysteresis or rule.back(value)):
            crossed.pop(rule.text, None)
        return False

    def _cross(self, symbol: str, crossing: Alert, crossings: list[Alert]) -> None:
        self._crossed.setdefault(symbol, {})[crossing.rule] = crossing
        crossings.append(crossing)

    def _state_of_total(self, rule: AlertRule, engine: PnlEngine) -> LimitState:
        if not engine.positions and rule.kind != "day_pnl":
            return LimitState(rule.text, TOTAL, None if rule.kind == "pct" else ZERO, ZERO)
        value = None if self._unusable else of_totals(rule.kind, engine.totals)
        return LimitState(rule.text, TOTAL, value, None if value is None else _used(rule, value))

    def _crossed_by(self, order: Order, holding: Holding, engine: PnlEngine) -> Iterator[str]:
        """The limits that the position, or the total, would be beyond."""
        would, totals = _would_be(order, holding), engine.totals
        day = holding.day_pnl if holding.positions else holding.day_pnl or ZERO
        measures = {holding.symbol: _measures(would, _Rest(day_pnl=day))}
        if self._table.of_total:
            measures[TOTAL] = _measures(would, _rest(holding, totals, totals.day_pnl))
        for rule in chain(self._table.of_symbol(holding.symbol), self._table.of_total):
            subject = TOTAL if rule.symbol == TOTAL else holding.symbol
            value = measures[subject].get(rule.kind)
            if value is None or rule.level is None:
                continue
            level = Fraction(rule.level)
            if value < level if rule.direction == "below" else value > level:
                shown = TOTAL if subject == TOTAL else subject_of(rule, holding)
                yield f"{rule.text}: {shown} would be at {_shown(value)}"


def has_price(holding: Holding | None) -> bool:
    """Whether the price of a symbol can be used for limits."""
    return holding is not None and _unusable(holding) is None


def encode_risk(breaker: Breaker, states: Sequence[LimitState], blind: Sequence[str]) -> bytes:
    """``{"breaker":{…},"limits":[{"rule":…,"subject":…,"value":…,"used":…}],"blind":[…]}``."""
    limits = [
        {
            "rule": state.rule,
            "subject": state.subject,
            "value": None if state.value is None else msgspec.Raw(short(state.value).encode()),
            "used": None if state.used is None else msgspec.Raw(short(state.used).encode()),
        }
        for state in states
    ]
    return msgspec.json.encode(
        {"breaker": msgspec.Raw(encode_breaker(breaker)), "limits": limits, "blind": blind}
    )


@attrs.frozen
class _WouldBe:
    """A position after an order.

    Attributes:
        price: The market's.
        qty: In the unit of a position.
        pnl: Unrealised.
        cost: Never below 0.
        market_value: Negative if short; at the higher of the order's price and the market's.
        gain: What the order's price gains, or loses, against the market's.
    """

    price: Fraction
    qty: Fraction
    pnl: Fraction
    cost: Fraction
    market_value: Fraction
    gain: Fraction


@attrs.frozen
class _Rest:
    """What the other positions add: 0 for a limit of the symbol alone.

    Attributes:
        day_pnl: That of all, the symbol of the order included; None where it is not known.
    """

    day_pnl: Decimal | None
    pnl: Fraction = Fraction()
    cost: Fraction = Fraction()
    market_value: Fraction = Fraction()
    exposure: Fraction = Fraction()


def _rest(holding: Holding, totals: Totals, day_pnl: Decimal | None) -> _Rest:
    pnl, cost = Fraction(totals.unrealized_pnl), Fraction(totals.hundredth) * 100
    value, exposure = Fraction(totals.market_value), Fraction(totals.exposure)
    if holding.positions:
        own = Fraction(holding.market_value)
        pnl -= Fraction(holding.pnl)
        cost -= Fraction(holding.hundredth) * 100
        value, exposure = value - own, exposure - abs(own)
    return _Rest(day_pnl, pnl, cost, value, exposure)


def _measures(would: _WouldBe, rest: _Rest) -> Mapping[Kind, Fraction | None]:
    """All that an order can change; None where it is not known, or has no meaning."""
    pnl, cost = would.pnl + rest.pnl, would.cost + rest.cost
    return {
        "pnl": pnl,
        "pct": round(pnl * 100 / cost, 4) if cost else None,
        "price": would.price,
        "qty": would.qty,
        "value": abs(would.market_value + rest.market_value),
        "exposure": abs(would.market_value) + rest.exposure,
        "day_pnl": None if rest.day_pnl is None else Fraction(rest.day_pnl) + would.gain,
    }


def _would_be(order: Order, holding: Holding) -> _WouldBe:
    qty = Fraction(order.qty if order.side == "buy" else EXACT.minus(order.qty))
    change = qty * Fraction(_multiplier(holding))
    units = Fraction(holding.units) if holding.positions else Fraction(0)
    paid = -Fraction(holding.minus_paid) if holding.positions else Fraction(0)
    after = units + change
    price = Fraction(holding.price_if(short=after < 0) or ZERO)
    fill = price if order.price is None else Fraction(order.price)
    if units * change >= 0:
        paid += change * fill
    elif abs(change) <= abs(units):
        paid = paid * after / units
    else:
        paid = after * fill
    return _WouldBe(
        price=price,
        qty=Fraction(holding.qty) + qty,
        pnl=after * price - paid,
        cost=abs(paid),
        market_value=after * max(price, fill),
        gain=change * (price - fill),
    )


def _multiplier(holding: Holding) -> Decimal:
    if holding.positions:
        return holding.positions[0].multiplier
    return default_multiplier(asset_class_of(holding.symbol))


def _reduces(order: Order, holding: Holding, breaker: Breaker) -> bool:
    """Whether an order reduces the position whose size has tripped the breaker."""
    if breaker.subject is None or breaker.rule is None:
        return False
    if holding.symbol not in spellings(breaker.subject):
        return False
    try:
        kind = parse_rule(breaker.rule).kind
    except ValueError:
        return False
    long = holding.qty > 0
    return (
        kind in _SIZES
        and order.side == ("sell" if long else "buy")
        and order.qty <= EXACT.abs(holding.qty)
    )


def _unreadable(holding: Holding) -> str | None:
    """Why a held symbol is not wholly known, or None."""
    if holding.priceable == len(holding.positions):
        return None
    return "a position in it cannot be read"


def _unusable(holding: Holding) -> str | None:
    """Why the price of a symbol must not be used, or None. One that is ``closed`` may be."""
    mark = holding.mark
    if holding.closed:
        return None
    if mark is None:
        return "no price is known" if holding.quote is None else "no quote was usable yet"
    if holding.quote is not mark:
        return "the newest quote has no side, or too wide a spread"
    if isinstance(mark, Quote) and not (mark.bid and mark.ask):
        return "the newest quote has one side only"
    return None if holding.live else "the price is stale"


def _blindness(rule: AlertRule, holding: Holding) -> str | None:
    """Why a limit of a symbol cannot be judged, or None."""
    reason = _unreadable(holding)
    if reason is not None or rule.kind == "qty":
        return reason
    if rule.kind == "stale":
        return "no price is known" if holding.mark is None and not holding.closed else None
    reason = _unusable(holding)
    if reason is None and rule.kind == "day_pnl" and holding.day_pnl is None:
        return holding.day.problem or "the last close is not known"
    return reason


def _value(rule: AlertRule, holding: Holding, now_ns: int) -> Decimal | None:
    if rule.kind != "stale":
        return of_holding(rule.kind, holding)
    return None if holding.mark is None else age_s(holding.mark.ts_event_ns, now_ns)


def _is_beyond(rule: AlertRule, value: Decimal, holding: Holding) -> bool:
    return _is_stale(holding) if rule.kind == "stale" else rule.beyond(value)


def _is_stale(holding: Holding) -> bool:
    return not holding.live and not holding.closed


def _state(rule: AlertRule, holding: Holding, now_ns: int) -> LimitState:
    value = None
    blind = _blindness(rule, holding) is not None
    if not blind:
        value = _value(rule, holding, now_ns)
    if value is None:
        # The source's price has no age, and is not stale while the market is closed.
        used = ZERO if rule.kind == "stale" and not blind else None
        return LimitState(rule.text, subject_of(rule, holding), None, used)
    used = Decimal(_is_stale(holding)) if rule.kind == "stale" else _used(rule, value)
    return LimitState(rule.text, subject_of(rule, holding), value, used)


def _used(rule: AlertRule, value: Decimal) -> Decimal:
    level = rule.level or ZERO
    if not level:
        return Decimal(rule.beyond(value))
    if (level > 0) is (rule.direction == "above"):
        part, whole = value, level
    elif (value > 0) is not (level > 0) or not value:
        return Decimal(1)  # towards 0, and past it
    else:
        part, whole = level, value
    # As a percentage to 4 places of 10,000 times as much, which has 10 places as a fraction
    found = percentage(EXACT.scaleb(part, 4), EXACT.scaleb(whole, -2)) or ZERO
    return max(EXACT.scaleb(found, -6), ZERO)


def _note(reasons: dict[str, str], symbol: str, reason: str | None) -> None:
    if reason is not None:
        reasons[symbol] = reason
    else:
        reasons.pop(symbol, None)


def _shown(value: Fraction) -> str:
    number = _SHOWN.divide(Decimal(value.numerator), Decimal(value.denominator))
    return short(number)
