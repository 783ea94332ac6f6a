"""Past quotes and live ones of the same stretch of time, as one. Pure."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence

from mdservice.model.quote import Identity, Quote, identity

__all__ = ["merge"]


def merge(past: Sequence[Quote], live: Sequence[Quote]) -> list[Quote]:
    """All quotes once, in the order of their times, those of one time in history's order.

    Where both have a symbol's time, they are counted against each other, since several quotes
    may share a time: what both have is taken from the stream, as often as both have it, at the
    place that history gives it. What only one of them has is kept: nothing is lost at the edge
    of a history that lags.

    Args:
        past: From history, in the order of their times within each symbol.
        live: From the stream, in the order in which they came.
    """
    in_live: defaultdict[Identity, deque[Quote]] = defaultdict(deque)
    for quote in live:
        in_live[identity(quote)].append(quote)
    merged = []
    in_both = set()
    for quote in past:
        same = in_live.get(identity(quote))
        if same:
            in_both.add(id(same[0]))
            merged.append(same.popleft())
        else:
            merged.append(quote)
    merged += [quote for quote in live if id(quote) not in in_both]
    return sorted(merged, key=_time)


def _time(quote: Quote) -> int:
    return quote.ts_event_ns
