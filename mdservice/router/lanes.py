"""A lane per symbol: order, repeats and numbers. Pure.

A lane is its last accepted quote: that tells the newest time, what a repeat looks like and
the last number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import attrs

from mdservice.model.quote import Quote

__all__ = ["Lanes", "Routed"]


@attrs.frozen
class Routed:
    """What became of some quotes.

    Attributes:
        accepted: Numbered, in the order in which they came.
        stale: How many were older than their symbol's last one, or repeated it exactly.
        ahead_ns: Of each quote that is too far in the future, how far.
    """

    accepted: list[Quote]
    stale: int
    ahead_ns: Sequence[int]


_MOST_AT_ONE_TIME = 1000
"""Quotes of one symbol and time that are told apart when history repeats them."""


class Lanes:
    """The latest accepted quote of each symbol."""

    def __init__(self) -> None:
        self._latest: dict[str, Quote] = {}
        self._before_at_same_time: dict[str, list[Quote]] = {}
        """Where a symbol's last time has several accepted quotes: those before the last."""

    def __len__(self) -> int:
        return len(self._latest)

    def latest(self, symbol: str) -> Quote | None:
        """The symbol's last accepted quote."""
        return self._latest.get(symbol)

    def newest_ns(self) -> int | None:
        """The time of the newest accepted quote of all, UTC nanoseconds."""
        return max((quote.ts_event_ns for quote in self._latest.values()), default=None)

    def all_latest(self) -> Sequence[Quote]:
        """The last accepted quote of every symbol."""
        return tuple(self._latest.values())

    def route(self, quotes: Iterable[Quote], now_ns: int, tolerance_ns: int) -> Routed:
        """Accept what is new and number it in place.

        A quote with a smaller time than its symbol's last is refused, and so is an exact
        repeat of it; the same time with other content is accepted, since several quotes may
        share a time. A quote from the future is refused without touching its lane, so that
        it cannot block the symbol.

        Args:
            quotes: In the order in which they came.
            now_ns: This machine's time, UTC nanoseconds.
            tolerance_ns: How far ahead of it a quote may be.
        """
        latest = self._latest
        shared = self._before_at_same_time
        horizon_ns = now_ns + tolerance_ns
        accepted: list[Quote] = []
        ahead_ns: list[int] = []
        stale = 0
        for quote in quotes:
            event_ns = quote.ts_event_ns
            if event_ns > horizon_ns:
                ahead_ns.append(event_ns - now_ns)
                continue
            last = latest.get(quote.symbol)
            if last is None:
                quote.seq = 1
            elif event_ns > last.ts_event_ns:
                quote.seq = last.seq + 1
                if shared:
                    shared.pop(quote.symbol, None)
            elif event_ns == last.ts_event_ns and _content(quote) != _content(last):
                quote.seq = last.seq + 1
                before = shared.setdefault(quote.symbol, [])
                if len(before) < _MOST_AT_ONE_TIME:
                    before.append(last)
            else:
                stale += 1
                continue
            latest[quote.symbol] = quote
            accepted.append(quote)
        return Routed(accepted, stale, ahead_ns)

    def not_out_yet(self, quotes: Iterable[Quote]) -> list[Quote]:
        """Of past quotes, those that came after what each lane has accepted.

        At the time of a lane's last quote the two are counted against each other, since
        several quotes may share a time: what is out already is left out as often as it is out.

        Args:
            quotes: In the order of their times within each symbol.
        """
        out = {symbol: self._at_last_time(symbol) for symbol in self._latest}
        found = []
        for quote in quotes:
            last = self._latest.get(quote.symbol)
            if last is not None and quote.ts_event_ns <= last.ts_event_ns:
                at_last = out[quote.symbol]
                if quote.ts_event_ns < last.ts_event_ns:
                    continue
                if at_last[_content(quote)]:
                    at_last[_content(quote)] -= 1
                    continue
            found.append(quote)
        return found

    def _at_last_time(self, symbol: str) -> Counter[Content]:
        before = self._before_at_same_time.get(symbol, [])
        return Counter(_content(quote) for quote in (*before, self._latest[symbol]))


Content = tuple[float, float, int | float, int | float]


def _content(quote: Quote) -> Content:
    """What makes two quotes of one symbol and time the same."""
    return quote.bid, quote.ask, quote.bid_size, quote.ask_size
