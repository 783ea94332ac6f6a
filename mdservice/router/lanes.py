"""A lane per symbol: order, repeats and numbers. Pure.

A lane is its last accepted quote: that tells the newest time, what a repeat looks like and
the last number.
"""

from __future__ import annotations

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


class Lanes:
    """The latest accepted quote of each symbol."""

    def __init__(self) -> None:
        self._latest: dict[str, Quote] = {}

    def __len__(self) -> int:
        return len(self._latest)

    def latest(self, symbol: str) -> Quote | None:
        """The symbol's last accepted quote."""
        return self._latest.get(symbol)

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
            elif event_ns > last.ts_event_ns or (
                event_ns == last.ts_event_ns and not _same_content(quote, last)
            ):
                quote.seq = last.seq + 1
            else:
                stale += 1
                continue
            latest[quote.symbol] = quote
            accepted.append(quote)
        return Routed(accepted, stale, ahead_ns)


def _same_content(quote: Quote, other: Quote) -> bool:
    return (
        quote.bid == other.bid
        and quote.ask == other.ask
        and quote.bid_size == other.bid_size
        and quote.ask_size == other.ask_size
    )
