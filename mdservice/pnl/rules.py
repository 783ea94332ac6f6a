"""Parses the rules of alerts and limits, and finds those of a symbol."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from decimal import Decimal
from itertools import chain
from typing import Final, Literal, get_args

import attrs

from mdservice.errors import InvalidSymbol
from mdservice.model.symbol import EVERY_SYMBOL, parse_symbol, spellings
from mdservice.pnl.numbers import EXACT, ZERO, plain

__all__ = ["TOTAL", "AlertRule", "Direction", "Kind", "RuleTable", "parse_rule"]

TOTAL: Final = "total"
"""The word for the total of all positions, in place of a symbol, in any case."""

Kind = Literal["pnl", "pct", "price", "stale", "qty", "value", "day_pnl", "exposure"]
Direction = Literal["above", "below", "stale"]

_EXAMPLES = "AAPL pnl < -500, total pct < -2.5, TSLA price > 300 hysteresis 5, * stale"
_KINDS: Final[dict[str, Kind]] = {kind: kind for kind in get_args(Kind)}
_NAMES: Final = ", ".join(_KINDS)
_OF_TOTAL: Final = frozenset({"pnl", "pct", "value", "day_pnl", "exposure"})
_TRIP: Final = "trip"
_DIRECTIONS: Final[dict[str, Direction]] = {"<": "below", ">": "above"}
_NUMBER = re.compile(r"[+-]?(\d{1,30}(\.\d{0,30})?|\.\d{1,30})", re.ASCII)
_OPERATOR = re.compile(r"[<>=]+")
_SHOWN = 80


@attrs.frozen
class AlertRule:
    """A rule of an alert or a limit.

    Attributes:
        text: The rule as written, with normal spaces and case.
        symbol: ``AAPL``, :data:`TOTAL`, or ``*`` for each held symbol.
        kind: What it measures: ``pnl`` (money), ``pct`` (as it is reported, 4 places), ``price``,
            ``stale``, ``qty`` (signed), ``value`` (the absolute market value), ``day_pnl``, or
            ``exposure`` (the total's sum of absolute market values).
        direction: ``below`` or ``above`` the level; ``stale`` for that kind.
        level: The level to cross; None for ``stale``.
        hysteresis: How far a value must come back over the level before it can cross again.
        trip: Whether the rule says that a crossing trips the breaker; of a limit, each does.
    """

    text: str
    symbol: str
    kind: Kind
    direction: Direction
    level: Decimal | None = None
    hysteresis: Decimal = ZERO
    trip: bool = False

    def beyond(self, value: Decimal) -> bool:
        """Whether the value is beyond the level. The level itself is not."""
        if self.level is None:
            return False
        return value < self.level if self.direction == "below" else value > self.level

    def back(self, value: Decimal) -> bool:
        """Whether the value came back by more than the hysteresis, so that it can cross again.

        Without hysteresis, it must come back strictly over the level. So a value that moves
        between the level and values beyond it crosses once.
        """
        if self.level is None:
            return False
        if self.direction == "below":
            return value > EXACT.add(self.level, self.hysteresis)
        return value < EXACT.subtract(self.level, self.hysteresis)


class RuleTable:
    """Rules by their symbol.

    Args:
        rules: From :func:`parse_rule`; repeats are dropped.

    Attributes:
        rules: In their order.
        of_total: Those of the total.
    """

    def __init__(self, rules: Iterable[AlertRule]) -> None:
        self.rules = tuple({rule.text: rule for rule in rules}.values())
        self._of_symbol: dict[str, list[AlertRule]] = {}
        for rule in self.rules:
            for symbol in spellings(rule.symbol):
                self._of_symbol.setdefault(symbol, []).append(rule)
        self.of_total = self._of_symbol.pop(TOTAL, [])
        self._of_each = self._of_symbol.pop(EVERY_SYMBOL, [])

    def of_symbol(self, symbol: str) -> Iterator[AlertRule]:
        """Those of a symbol of the feed, its own first."""
        return chain(self._of_symbol.get(symbol, ()), self._of_each)


def parse_rule(text: str, what: str = "alert rule") -> AlertRule:
    """``AAPL pnl < -500``, ``total pct < -2.5 hysteresis 1``, ``* value > 5000 trip``, ``* stale``.

    Args:
        text: The rule.
        what: What the error calls it.

    Raises:
        ValueError: The rule is invalid; the text has examples.
    """
    words = _OPERATOR.sub(lambda found: f" {found[0]} ", text).split()
    try:
        return _parse(words)
    except (ValueError, InvalidSymbol) as exc:
        shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
        raise ValueError(f"{what} {shown!r}: {exc}; for instance: {_EXAMPLES}") from exc


def _parse(words: list[str]) -> AlertRule:
    if not words:
        raise ValueError("it is empty")
    symbol = TOTAL if words[0].lower() == TOTAL else parse_symbol(words[0])
    if len(words) == 1:
        raise ValueError(f"one of {_NAMES} is expected after the symbol")
    kind = _KINDS.get(words[1].lower())
    if kind is None:
        raise ValueError(f"{_cut(words[1])} is not one of {_NAMES}")
    if symbol == TOTAL and kind not in _OF_TOTAL:
        raise ValueError(f"the total has no {kind}; * {kind} is for each held symbol")
    if symbol != TOTAL and kind == "exposure":
        raise ValueError("only the total has an exposure; value is that of a symbol")
    rest = words[2:]
    trip = bool(rest) and rest[-1].lower() == _TRIP
    if trip:
        del rest[-1]
    if kind == "stale":
        if rest:
            raise ValueError(f"nothing but trip comes after stale, not {_cut(rest[0])}")
        rule = AlertRule(f"{symbol} {kind}", symbol, kind, "stale")
    else:
        rule = _parse_level(symbol, kind, rest)
    return attrs.evolve(rule, text=f"{rule.text} {_TRIP}", trip=True) if trip else rule


def _parse_level(symbol: str, kind: Kind, words: list[str]) -> AlertRule:
    if not words or words[0] not in _DIRECTIONS:
        found = f", not {_cut(words[0])}" if words else ""
        raise ValueError(f"< or > is expected after {kind}{found}")
    operator, *words = words
    if not words:
        raise ValueError(f"a number is expected after {operator}")
    level = _number(words[0])
    text = f"{symbol} {kind} {operator} {plain(level)}"
    if not words[1:]:
        return AlertRule(text, symbol, kind, _DIRECTIONS[operator], level)
    if words[1].lower() != "hysteresis":
        raise ValueError(f"only hysteresis or trip may follow the level, not {_cut(words[1])}")
    if len(words) != 3:  # noqa: PLR2004  # level, the word, its number
        raise ValueError("one number is expected after hysteresis")
    hysteresis = _number(words[2])
    if hysteresis < 0:
        raise ValueError("the hysteresis is below 0")
    text = f"{text} hysteresis {plain(hysteresis)}"
    return AlertRule(text, symbol, kind, _DIRECTIONS[operator], level, hysteresis)


def _number(word: str) -> Decimal:
    if _NUMBER.fullmatch(word) is None:
        raise ValueError(f"{_cut(word)} is not a plain number such as -500 or 2.5")
    return Decimal(word) or ZERO


def _cut(word: str) -> str:
    return repr(word if len(word) <= _SHOWN else word[:_SHOWN] + "…")
