"""What the market has made: in order, and by symbol and time."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence

from mdservice.simulator.wire import SimQuote

__all__ = ["QuoteRecord"]

_COMPACT_FROM = 1_024


class _Series:
    """One symbol's quotes in the order of their times, those of one time as they came.

    What was forgotten stays in front until it is half of all, so that forgetting is cheap.
    """

    def __init__(self) -> None:
        self.times: list[int] = []
        self.quotes: list[SimQuote] = []
        self.first = 0

    def __len__(self) -> int:
        return len(self.times) - self.first

    def add(self, quote: SimQuote) -> None:
        ts_ns = quote.ts_event_ns
        if len(self) and ts_ns < self.times[-1]:
            place = bisect_right(self.times, ts_ns, self.first)
            self.times.insert(place, ts_ns)
            self.quotes.insert(place, quote)
        else:
            self.times.append(ts_ns)
            self.quotes.append(quote)

    def forget(self, quote: SimQuote) -> None:
        """Forget one that came before all others of its time."""
        place = bisect_left(self.times, quote.ts_event_ns, self.first)
        if place > self.first:
            del self.times[place], self.quotes[place]
            return
        self.first += 1
        if self.first >= _COMPACT_FROM and self.first * 2 >= len(self.times):
            del self.times[: self.first], self.quotes[: self.first]
            self.first = 0

    def before(self, ts_ns: int) -> int:
        """The place of the first quote that is not before this time."""
        return bisect_left(self.times, ts_ns, self.first)

    def after(self, ts_ns: int) -> int:
        """The place of the first quote that is after this time."""
        return bisect_right(self.times, ts_ns, self.first)


class QuoteRecord:
    """The newest quotes of the market; those beyond the size are forgotten, oldest first.

    Adding one is done in constant time unless times go back, finding a page in the logarithm
    of the symbol's quotes.

    Args:
        size: How many quotes it holds.
    """

    def __init__(self, size: int) -> None:
        self.quotes: deque[SimQuote] = deque(maxlen=size)
        """All of them as they came; only to be read."""
        self._size = size
        self._series: dict[str, _Series] = {}

    def add(self, quotes: Sequence[SimQuote]) -> None:
        """Keep these, in order."""
        if len(quotes) > self._size:
            quotes = quotes[len(quotes) - self._size :]
        for _ in range(len(self.quotes) + len(quotes) - self._size):
            self._forget(self.quotes.popleft())
        self.quotes.extend(quotes)
        for quote in quotes:
            series = self._series.get(quote.symbol)
            if series is None:
                series = self._series[quote.symbol] = _Series()
            series.add(quote)

    def between(
        self,
        symbol: str,
        start_ns: int,
        end_ns: int,
        *,
        most: int,
        newest_first: bool = False,
        resume: tuple[int, int] | None = None,
    ) -> list[SimQuote]:
        """The symbol's quotes from start to end, both included.

        Args:
            symbol: Any, known or not.
            start_ns: UTC nanoseconds.
            end_ns: UTC nanoseconds.
            most: How many at most.
            newest_first: Go from the end to the start.
            resume: Begin at this time, and leave out so many quotes of just that time.
        """
        series = self._series.get(symbol)
        if series is None:
            return []
        low, high = series.before(start_ns), series.after(end_ns)
        if resume is not None:
            ts_ns, done = resume
            if newest_first:
                high = min(high, max(series.after(ts_ns) - done, series.before(ts_ns)))
            else:
                low = max(low, min(series.before(ts_ns) + done, series.after(ts_ns)))
        if newest_first:
            return series.quotes[max(low, high - most) : high][::-1]
        return series.quotes[low : min(high, low + most)]

    def latest(self, symbol: str) -> SimQuote | None:
        """The symbol's newest quote by its time; None where there is none."""
        series = self._series.get(symbol)
        return series.quotes[-1] if series else None

    def _forget(self, quote: SimQuote) -> None:
        series = self._series[quote.symbol]
        series.forget(quote)
        if not series:
            del self._series[quote.symbol]
