"""Bars that add up from trades, exactly.

Which trades count for what follows the SIPs' tables, as Alpaca's bars do: an odd lot, an average
price trade and a contingent trade count for volume, trade count and average price alone; one that
is sold out of sequence also for high and low. Corrections and cancellations leave bars as they are.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, time
from functools import lru_cache
from zoneinfo import ZoneInfo

import msgspec

from mdservice.simulator.stock_records import SimTrade

__all__ = ["MINUTE_NS", "BarBuilder", "SimBar", "Tally", "day_start_ns"]

_SECOND_NS = 1_000_000_000
MINUTE_NS = 60 * _SECOND_NS
_HOUR_NS = 60 * MINUTE_NS
_UPDATED_AFTER_NS = 30 * _SECOND_NS
_UNITS = 10**9
"""Prices are summed in billionths, of which every one in use is a whole number."""
_VWAP_DIGITS = 6
_NO_PRICE = frozenset(("I", "W", "7"))
_NO_OPEN_OR_CLOSE = frozenset(("Z",))
_NEW_YORK = ZoneInfo("America/New_York")


class SimBar(msgspec.Struct, frozen=True, gc=False):
    """One bar of a minute or a day.

    Attributes:
        symbol: ``AAPL``.
        open, high, low, close: Prices of trades.
        volume: Shares, or coins.
        trade_count: The number of trades.
        vwap: The volume-weighted average price, with six decimals.
        ts_event_ns: The start of the minute, or of the day in New York, UTC nanoseconds.
    """

    symbol: str
    open: float
    high: float
    low: float
    close: float
    volume: float
    trade_count: int
    vwap: float
    ts_event_ns: int = 0


class Tally:
    """Adds trades up to one bar.

    Args:
        start_ns: The start of the bar, UTC nanoseconds.
    """

    __slots__ = ("changed", "close", "count", "high", "low", "open", "start_ns", "value", "volume")

    def __init__(self, start_ns: int) -> None:
        self.start_ns = start_ns
        self.changed = False
        """Whether a trade came since :meth:`bar` was last called."""
        self.open: float | None = None
        self.close = self.high = self.low = 0.0
        self.count = self.volume = self.value = 0

    def add(self, trade: SimTrade) -> None:
        """Count a trade; those that make open and close come in the order of their times."""
        self.changed = True
        self.count += 1
        self.volume += trade.size
        self.value += round(trade.price * _UNITS) * trade.size
        if not _NO_PRICE.isdisjoint(trade.conditions):
            return
        price = trade.price
        self.high = max(self.high, price)
        self.low = min(self.low or price, price)
        if _NO_OPEN_OR_CLOSE.isdisjoint(trade.conditions):
            self.close = price
            if self.open is None:
                self.open = price

    def bar(self, symbol: str) -> SimBar | None:
        """The bar; None as long as no trade makes open and close."""
        self.changed = False
        if self.open is None:
            return None
        return SimBar(
            symbol,
            self.open,
            self.high,
            self.low,
            self.close,
            self.volume,
            self.count,
            round(self.value / self.volume / _UNITS, _VWAP_DIGITS),
            self.start_ns,
        )


class BarBuilder:
    """Makes the bars of every symbol from the trades as they are reported.

    A minute's bars come once it is over; half a minute later those of symbols of which a late
    trade came; and daily bars, with each minute's, of the symbols that were traded in it.
    """

    def __init__(self) -> None:
        self._minutes: dict[int, dict[str, Tally]] = {}
        self._days: dict[str, Tally] = {}
        self._ended = 0
        """The start of the first minute without bars."""
        self._settled = 0
        """The start of the first minute whose updates are still to come."""

    def add(self, trade: SimTrade) -> None:
        """Count a trade that was reported just now."""
        symbol, ts_ns = trade.symbol, trade.ts_event_ns
        start_ns = ts_ns - ts_ns % MINUTE_NS
        if start_ns >= self._settled:
            tallies = self._minutes.setdefault(start_ns, {})
            tally = tallies.get(symbol)
            if tally is None:
                tally = tallies[symbol] = Tally(start_ns)
            tally.add(trade)
        day_ns = day_start_ns(ts_ns)
        day = self._days.get(symbol)
        if day is None or day.start_ns < day_ns:
            day = self._days[symbol] = Tally(day_ns)
        if day.start_ns == day_ns:
            day.add(trade)

    @property
    def pending(self) -> bool:
        """Whether there are trades of which a bar, or its update, may still come."""
        return bool(self._minutes)

    def ended(self, now_ns: int) -> Iterator[SimBar]:
        """The bars of the minutes that are over and had no bars yet."""
        before = now_ns - now_ns % MINUTE_NS
        for start_ns in sorted(start for start in self._minutes if self._ended <= start < before):
            yield from self._bars(self._minutes[start_ns])
        self._ended = max(self._ended, before)

    def updated(self, now_ns: int) -> Iterator[SimBar]:
        """The bars of which a trade came late, of the minutes that ended half a minute ago."""
        settled = now_ns - _UPDATED_AFTER_NS
        before = settled - settled % MINUTE_NS
        for start_ns in sorted(start for start in self._minutes if start < before):
            yield from self._bars(self._minutes.pop(start_ns))
        self._settled = max(self._settled, before)

    def daily(self) -> Iterator[SimBar]:
        """The days' bars so far, of the symbols with a trade since the last call."""
        return self._bars(self._days)

    @staticmethod
    def _bars(tallies: dict[str, Tally]) -> Iterator[SimBar]:
        for symbol, tally in tallies.items():
            if tally.changed:
                bar = tally.bar(symbol)
                if bar is not None:
                    yield bar


def day_start_ns(ts_ns: int) -> int:
    """Midnight of the day in New York that has this moment; UTC nanoseconds."""
    return _new_york_midnight_ns(ts_ns // _HOUR_NS)


@lru_cache(maxsize=256)
def _new_york_midnight_ns(hour: int) -> int:
    day = datetime.fromtimestamp(hour * 3_600, UTC).astimezone(_NEW_YORK).date()
    return round(datetime.combine(day, time(), _NEW_YORK).timestamp()) * _SECOND_NS
