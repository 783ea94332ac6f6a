"""The tape: trades at the current quotes, their corrections, halts, and bars.

Pure: the time is an argument.

Source of the codes: UTP's and CTA's specifications, as Alpaca's documentation lists them.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final, Literal

import attrs
import msgspec

from mdservice.simulator.bars import MINUTE_NS, BarBuilder
from mdservice.simulator.market import tape_of
from mdservice.simulator.stock_records import (
    SimCancel,
    SimCorrection,
    SimImbalance,
    SimLimits,
    SimStatus,
    SimTrade,
)
from mdservice.simulator.wire import SimQuote

__all__ = ["Made", "Tape", "TapeRules", "cancel_of"]

_SECOND_NS = 1_000_000_000
_NEVER_NS = 2**63
_AFTER_QUOTE_NS = 100
"""Between a quote and a trade at it; shorter than between two quotes."""
_CENTS = 100
_ODD_LOT, _SWEEP, _AVERAGE, _CONTINGENT = 64, 102, 105, 108
"""Bounds of one byte: a quarter of the trades are odd lots, a seventh sweeps, a few one-off."""
_LATE_S, _CHANGED_S, _IMBALANCE_S = (1.0, 20.0), (1.0, 10.0), 5.0
_BAND, _BAND_MOVES_AT = 0.05, 0.01
_FULL = 1 << 16

_Reason = tuple[str, str]
_UTP_REASONS: Final[Sequence[_Reason]] = (
    ("LUDP", "Volatility Trading Pause"),
    ("T1", "Halt News Pending"),
)
_CTA_REASONS: Final[Sequence[_Reason]] = (
    ("M", "Volatility Trading Pause"),
    ("P", "News Pending"),
)
_OPENING, _INTRADAY, _HALTED, _REOPENING = "A", "B", "D", "E"


@attrs.frozen
class TapeRules:
    """What happens how often; see :class:`~mdservice.simulator.config.SimulatorConfig`."""

    seed: int = 1
    exchanges: tuple[str, ...] = ("V",)
    trades_per_quote: float = 0.15
    late_trade_ratio: float = 0.002
    correction_ratio: float = 0.0005
    cancel_ratio: float = 0.0005
    imbalance_ratio: float = 0.002
    halt_every_s: float | None = 600.0
    halt_s: float = 20.0


Made = tuple[str, Sequence[object]]
"""A channel, and records for it."""


class Tape:
    """Makes what a market of stocks reports besides its quotes.

    A symbol's trades depend on the seed and on its quotes, never on other symbols or on how time
    is cut into slices. Each lies between bid and ask of the quote before it, and none in a halt.

    Args:
        rules: What happens how often.
    """

    def __init__(self, rules: TapeRules) -> None:
        self.symbols: AbstractSet[str] = frozenset()
        """The symbols that are traded."""
        self._opened: set[str] = set()
        self._opening: list[str] = []
        self._rules = rules
        self._trade_below = round(rules.trades_per_quote * _FULL)
        self._draws: dict[str, random.Random] = {}
        self._chance = random.Random(f"{rules.seed}/tape")  # noqa: S311 - reproducible, no secret
        self._ids: dict[tuple[str, str], int] = {}
        self._bars = BarBuilder()
        self._minute_ns = 0
        self._later: list[tuple[int, int, _Later]] = []
        self._planned = 0
        self._closed_to_ns: dict[str, int] = {}
        """Quotes up to this time make no trades: those of a halt."""
        self._halted: dict[str, _HaltedSymbol] = {}
        self._next_halt_ns: int | None = None
        self._bands: dict[str, float] = {}
        """The reference price of each symbol's price band."""
        self._last_price: dict[str, float] = {}
        self._last_ns = 0
        """The time of the latest trade."""

    @property
    def active(self) -> bool:
        """Whether there is something to make, now or later."""
        return bool(self.symbols or self._later or self._halted or self._bars.pending)

    def follow(self, symbols: AbstractSet[str]) -> None:
        """Trade these from now on. The first time, a symbol's trading opens with a status."""
        self.symbols = symbols
        self._opening += sorted(symbols - self._opened)
        self._opened |= symbols

    def make(self, quotes: Iterable[SimQuote], now_ns: int) -> Iterator[Made]:
        """The records that follow from these quotes, and those due since the last call."""
        if self._opening:
            yield "statuses", [_resumption(symbol, ("", ""), now_ns) for symbol in self._opening]
            self._opening = []
        yield from self._start_halts(now_ns)
        bands: list[SimLimits] = []
        trades: list[SimTrade] = []
        imbalances: list[SimImbalance] = []
        for quote in quotes:
            if quote.symbol in self.symbols:
                trade = self._trade(quote, bands, imbalances)
                if trade is not None:
                    trades.append(trade)
        if bands:
            yield "lulds", bands
        if trades:
            yield "trades", trades
        yield from self._report_later(now_ns)
        self._imbalances_in_halts(now_ns, imbalances)
        if imbalances:
            yield "imbalances", imbalances
        yield from self.end_halts(now_ns)
        yield from self._report_bars(now_ns)

    def halt(self, symbol: str, now_ns: int, for_s: float) -> Iterator[Made]:
        """Halt a symbol for some seconds, unless it is halted already."""
        if symbol in self._halted:
            return
        until_ns = now_ns + round(for_s * _SECOND_NS) if for_s < _NEVER_NS else _NEVER_NS
        tape = tape_of(symbol)
        reason = self._chance.choice(_UTP_REASONS if tape == "C" else _CTA_REASONS)
        ts_ns = max(now_ns, self._last_ns + 1)
        self._halted[symbol] = _HaltedSymbol(until_ns, reason, now_ns)
        self._closed_to_ns[symbol] = _NEVER_NS
        code, message = ("H", "Trading Halt") if tape == "C" else ("2", "Trading Halt")
        yield "statuses", [SimStatus(symbol, code, message, *reason, ts_ns, tape)]
        if symbol in self._bands:
            yield "lulds", [self._band(symbol, _HALTED, ts_ns)]

    def end_halts(self, now_ns: int, symbol: str | None = None) -> Iterator[Made]:
        """Resume trading where a halt is over, or in this symbol in any case."""
        for name, halt in list(self._halted.items()):
            if halt.until_ns > now_ns and name != symbol:
                continue
            del self._halted[name]
            self._closed_to_ns[name] = now_ns
            yield "statuses", [_resumption(name, halt.reason, now_ns)]
            if name in self._bands:
                self._bands[name] = self._last_price.get(name, self._bands[name])
                yield "lulds", [self._band(name, _REOPENING, now_ns)]

    def correct(self, trade: SimTrade, price: float, now_ns: int) -> SimCorrection:
        """The correction of a trade to this price, under a new id."""
        return SimCorrection(
            trade.symbol,
            trade.exchange,
            trade.id,
            trade.price,
            trade.size,
            trade.conditions,
            self._next_id(trade.symbol, trade.exchange, now_ns),
            price,
            trade.size,
            trade.conditions,
            now_ns,
            trade.tape,
        )

    # Trades.

    def _trade(
        self, quote: SimQuote, bands: list[SimLimits], imbalances: list[SimImbalance]
    ) -> SimTrade | None:
        """The trade at a quote, where there is one; one that is reported late waits."""
        rules, symbol = self._rules, quote.symbol
        draw = self._draws.get(symbol)
        if draw is None:
            draw = self._draws[symbol] = random.Random(f"{rules.seed}/trades:{symbol}")  # noqa: S311
        if draw.getrandbits(16) >= self._trade_below or not (quote.bid and quote.ask):
            return None
        if quote.ts_event_ns <= self._closed_to_ns.get(symbol, 0):
            return None
        if symbol not in self._bands:
            imbalances.append(SimImbalance(symbol, quote.bid, quote.ts_event_ns, quote.tape))
        self._check_band(quote, bands)
        bits = draw.getrandbits(48)
        bid, ask = round(quote.bid * _CENTS), round(quote.ask * _CENTS)
        size, conditions = _size_and_conditions(bits >> 16 & 0xFF, bits >> 24 & 0xFF, quote.tape)
        exchange = rules.exchanges[(bits >> 32 & 0xFF) % len(rules.exchanges)]
        price = _price(bid, ask, bits & 0xFF, bits >> 8 & 0xFF)
        ts_ns = quote.ts_event_ns + _AFTER_QUOTE_NS
        trade = SimTrade(symbol, price, size, 0, ts_ns, exchange, conditions, quote.tape)
        if draw.random() < rules.late_trade_ratio:
            late = msgspec.structs.replace(trade, conditions=("Z",))
            self._plan(ts_ns, draw.uniform(*_LATE_S), _Later("report", late))
            return None
        trade = self._report(trade, ts_ns)
        self._last_price[symbol], self._last_ns = price, ts_ns
        if draw.random() < rules.correction_ratio:
            other = quote.ask if price != quote.ask else quote.bid
            self._plan(ts_ns, draw.uniform(*_CHANGED_S), _Later("correct", trade, other))
        elif draw.random() < rules.cancel_ratio:
            self._plan(ts_ns, draw.uniform(*_CHANGED_S), _Later("cancel", trade))
        if draw.random() < rules.imbalance_ratio:
            imbalances.append(SimImbalance(symbol, price, ts_ns, quote.tape))
        return trade

    def _report(self, trade: SimTrade, now_ns: int) -> SimTrade:
        """Give a trade its id, and count it in the bars."""
        number = self._next_id(trade.symbol, trade.exchange, now_ns)
        trade = msgspec.structs.replace(trade, id=number)
        self._bars.add(trade)
        return trade

    def _next_id(self, symbol: str, exchange: str, now_ns: int) -> int:
        """Rises, also from one simulator to the next: microseconds."""
        number = max(now_ns // 1_000, self._ids.get((symbol, exchange), 0) + 1)
        self._ids[symbol, exchange] = number
        return number

    def _plan(self, ts_ns: int, delay_s: float, later: _Later) -> None:
        self._planned += 1
        due_ns = ts_ns + round(delay_s * _SECOND_NS)
        heapq.heappush(self._later, (due_ns, self._planned, later))

    def _report_later(self, now_ns: int) -> Iterator[Made]:
        while self._later and self._later[0][0] <= now_ns:
            due_ns, _, later = heapq.heappop(self._later)
            trade = later.trade
            match later.what:
                case "report":
                    yield "trades", [self._report(trade, due_ns)]
                case "correct":
                    yield "corrections", [self.correct(trade, later.price, due_ns)]
                case "cancel":
                    yield "cancelErrors", [cancel_of(trade, due_ns)]

    # Price bands, halts and imbalances.

    def _check_band(self, quote: SimQuote, bands: list[SimLimits]) -> None:
        symbol, middle = quote.symbol, (quote.bid + quote.ask) / 2
        reference = self._bands.get(symbol)
        if reference is None or abs(middle - reference) > reference * _BAND_MOVES_AT:
            self._bands[symbol] = middle
            indicator = _OPENING if reference is None else _INTRADAY
            bands.append(self._band(symbol, indicator, quote.ts_event_ns))

    def _band(self, symbol: str, indicator: str, ts_ns: int) -> SimLimits:
        reference = self._bands[symbol]
        up, down = round(reference * (1 + _BAND), 2), round(reference * (1 - _BAND), 2)
        return SimLimits(symbol, up, down, indicator, ts_ns, tape_of(symbol))

    def _start_halts(self, now_ns: int) -> Iterator[Made]:
        every_s = self._rules.halt_every_s
        if every_s is None:
            return
        if self._next_halt_ns is None or self._next_halt_ns <= now_ns:
            if self._next_halt_ns is not None and self.symbols:
                symbol = self._chance.choice(sorted(self.symbols))
                yield from self.halt(symbol, now_ns, self._rules.halt_s)
            self._next_halt_ns = now_ns + round(self._chance.expovariate(1 / every_s) * _SECOND_NS)

    def _imbalances_in_halts(self, now_ns: int, imbalances: list[SimImbalance]) -> None:
        for symbol, halt in self._halted.items():
            price = self._last_price.get(symbol)
            if price is not None and halt.imbalance_ns <= now_ns:
                halt.imbalance_ns = now_ns + round(_IMBALANCE_S * _SECOND_NS)
                imbalances.append(SimImbalance(symbol, price, now_ns, tape_of(symbol)))

    # Bars.

    def _report_bars(self, now_ns: int) -> Iterator[Made]:
        if bars := list(self._bars.updated(now_ns)):
            yield "updatedBars", bars
        minute_ns = now_ns - now_ns % MINUTE_NS
        if minute_ns <= self._minute_ns:
            return
        first, self._minute_ns = not self._minute_ns, minute_ns
        if first:
            return
        if bars := list(self._bars.ended(now_ns)):
            yield "bars", bars
        if bars := list(self._bars.daily()):
            yield "dailyBars", bars


@attrs.frozen
class _Later:
    """A report about a trade that is sent later; ``price`` is the right one."""

    what: Literal["report", "correct", "cancel"]
    trade: SimTrade
    price: float = 0.0


@attrs.define
class _HaltedSymbol:
    until_ns: int
    reason: _Reason
    imbalance_ns: int


def _resumption(symbol: str, reason: _Reason, now_ns: int) -> SimStatus:
    tape = tape_of(symbol)
    code, message = ("T", "Trading Resumption") if tape == "C" else ("3", "Resume")
    return SimStatus(symbol, code, message, *reason, now_ns, tape)


def cancel_of(trade: SimTrade, now_ns: int) -> SimCancel:
    """The cancellation of a trade; one in four is an error."""
    action: Literal["C", "E"] = "C" if trade.id % 4 else "E"
    return SimCancel(
        trade.symbol,
        trade.id,
        trade.exchange,
        trade.price,
        trade.size,
        action,
        now_ns,
        trade.tape,
    )


def _price(bid: int, ask: int, where: int, inside: int) -> float:
    """Two trades in five at the bid, two at the ask, the others between or there too."""
    if where < 2 * 256 // 5:
        return bid / _CENTS
    if where < 4 * 256 // 5:
        return ask / _CENTS
    return (bid + inside % (ask - bid + 1)) / _CENTS


_REGULAR: Mapping[str, str] = {"A": " ", "B": " ", "C": "@"}


def _size_and_conditions(what: int, size: int, tape: str) -> tuple[int, tuple[str, ...]]:
    regular = _REGULAR[tape]
    if what < _ODD_LOT:
        return 1 + size % 99, (regular, "I")
    shares = 100 * (1 + size % 9)
    if what < _SWEEP:
        return shares, (regular, "F")
    if what < _AVERAGE:
        return shares, ("W",)
    if what < _CONTINGENT:
        return shares, (regular, "7")
    return shares, (regular,)
