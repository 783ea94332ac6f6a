"""Finds the alert rules that were crossed. Pure.

Each crossing is reported once. A value that comes back is not an alert; it only allows the next
crossing. A value that is beyond the level at the first check has crossed, so a restarted program
reports it again.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

import attrs
import msgspec

from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.model.timestamps import format_ns
from mdservice.pnl.engine import PnlEngine
from mdservice.pnl.holding import Holding
from mdservice.pnl.measures import age_s, of_holding, of_totals
from mdservice.pnl.numbers import short
from mdservice.pnl.rules import TOTAL, AlertRule, Direction, Kind, RuleTable

__all__ = ["Alert", "AlertRules", "encode_alert", "subject_of"]

_encode = msgspec.json.encode


@attrs.frozen
class Alert:
    """One crossing.

    Attributes:
        rule: The rule's text.
        symbol: The symbol, or ``total``.
        kind: What the rule measures.
        direction: ``above``, ``below`` or ``stale``.
        level: The crossed level; None for ``stale``.
        value: The value beyond it: money, per cent, a price or a quantity; for ``stale`` the age
            of the quote in seconds.
        at_ns: The time of the check, UTC nanoseconds.
    """

    rule: str
    symbol: str
    kind: Kind
    direction: Direction
    level: Decimal | None
    value: Decimal
    at_ns: int

    @classmethod
    def of(cls, rule: AlertRule, symbol: str, value: Decimal, at_ns: int) -> Alert:
        """The crossing of a rule."""
        return cls(rule.text, symbol, rule.kind, rule.direction, rule.level, value, at_ns)


class AlertRules:
    """The rules, and which of them are crossed for which symbol.

    The P&L of a symbol is the sum of its lots. A missing value, such as the P&L of an unpriced
    symbol, neither crosses nor comes back. A closed position is forgotten: after it is opened
    again, it crosses again. A rule on a symbol that is not held waits.

    Unusable quotes (neither side, or too wide a spread) are ignored: no rule crosses or comes back
    because of them. ``stale`` depends on the age of the last usable quote. A price that is
    ``closed`` is as good as a live one. Another price from the position's source counts only in the
    total.

    The total is that of the priced rows, as reported. While a symbol has no price because none of
    its quotes was usable, the total can cross but not come back, since it might not have come back
    with that price.

    Args:
        rules: From :func:`mdservice.pnl.rules.parse_rule`; repeats are dropped.
    """

    def __init__(self, rules: Iterable[AlertRule]) -> None:
        self._table = RuleTable(rules)
        self.rules = self._table.rules
        self._crossed: dict[str, set[str]] = {}
        """The texts of the crossed rules by symbol or ``total``."""
        self._seen = 0

    def check(self, engine: PnlEngine, now_ns: int, *, total: bool = True) -> list[Alert]:
        """The crossings since the last check, in the order in which the symbols changed.

        With ``total`` false, the rules of the total are not checked, because it is incomplete.

        It checks only changes. Call it after each event, and at :attr:`PnlEngine.wake_ns` for
        prices that become stale, always with the same engine. After several events, it sees only
        their result.
        """
        if not self.rules or (
            self._seen == engine.version
            and (engine.wake_ns is None or now_ns < engine.wake_ns)
            and not engine.has_aged
        ):
            return []
        alerts: list[Alert] = []
        changed = engine.changed(self._seen, now_ns)
        if engine.has_aged:
            changed += [aged for aged in engine.take_aged() if aged.version <= self._seen]
        if engine.whole_due(self._seen):
            for symbol in [s for s in self._crossed if s != TOTAL and engine.holding(s) is None]:
                del self._crossed[symbol]
        for holding in changed:
            if holding.opened > self._seen:
                self._crossed.pop(holding.symbol, None)
            for rule in self._table.of_symbol(holding.symbol):
                self._check_holding(rule, holding, now_ns, alerts)
        if total:
            self._check_total(engine, now_ns, alerts)
        self._seen = engine.version
        return alerts

    def _check_holding(
        self, rule: AlertRule, holding: Holding, now_ns: int, alerts: list[Alert]
    ) -> None:
        status, mark = holding.status, holding.mark
        if status == "unpriced" or (mark is None and not holding.closed):
            return
        if rule.kind == "stale":
            if mark is None:
                return
            beyond = not holding.live and not holding.closed
            back = status in {"live", "closed"}
            value = age_s(mark.ts_event_ns, now_ns)
        else:
            found = of_holding(rule.kind, holding)
            if found is None:
                return
            value, beyond, back = found, rule.beyond(found), rule.back(found)
        if self._crosses(rule, holding.symbol, beyond=beyond, back=back):
            alerts.append(Alert.of(rule, subject_of(rule, holding), value, now_ns))

    def _check_total(self, engine: PnlEngine, now_ns: int, alerts: list[Alert]) -> None:
        if not engine.positions:
            self._crossed.pop(TOTAL, None)
        totals = engine.totals
        if not totals.priced:
            return
        for rule in self._table.of_total:
            value = of_totals(rule.kind, totals)
            if value is None:
                continue
            back = rule.back(value) and not totals.lost
            if self._crosses(rule, TOTAL, beyond=rule.beyond(value), back=back):
                alerts.append(Alert.of(rule, TOTAL, value, now_ns))

    def _crosses(self, rule: AlertRule, symbol: str, *, beyond: bool, back: bool) -> bool:
        """Note the side of the value; return whether it has just crossed."""
        crossed = self._crossed.get(symbol)
        if beyond:
            if crossed is None:
                self._crossed[symbol] = {rule.text}
                return True
            new = rule.text not in crossed
            crossed.add(rule.text)
            return new
        if back and crossed is not None:
            crossed.discard(rule.text)
        return False


def subject_of(rule: AlertRule, holding: Holding) -> str:
    """The symbol that the rule names; of a rule for each, as the source of the lots writes it."""
    return holding.name if rule.symbol == EVERY_SYMBOL else rule.symbol


def encode_alert(alert: Alert) -> bytes:
    """The message of the channel ``pnl.alert``.

    ``{"rule":"AAPL pnl < -500","symbol":"AAPL","kind":"pnl","direction":"below","level":-500,
    "value":-512.35,"at":"2026-11-20T15:51:44.208912345Z"}``
    """
    return _encode(
        {
            "rule": alert.rule,
            "symbol": alert.symbol,
            "kind": alert.kind,
            "direction": alert.direction,
            "level": None if alert.level is None else _raw(alert.level),
            "value": _raw(alert.value),
            "at": format_ns(alert.at_ns),
        }
    )


def _raw(number: Decimal) -> msgspec.Raw:
    return msgspec.Raw(short(number).encode())
