"""Past quotes and live ones of the same stretch of time, as one. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mdservice.model.quote import Quote

__all__ = ["merge"]


def merge(past: Sequence[Quote], live: Sequence[Quote]) -> list[Quote]:
    """All quotes once, in the order of their times.

    Where both have a symbol's time, they are counted against each other: a live quote that
    history has too is left out, as often as history has it, since several quotes may share a
    time. What only one of them has is kept: nothing is lost at the edge of a history that lags.

    Args:
        past: From history, in the order of their times within each symbol.
        live: From the stream, in the order in which they came.
    """
    in_past = Counter(_identity(quote) for quote in past)
    only_live = []
    for quote in live:
        identity = _identity(quote)
        if in_past[identity]:
            in_past[identity] -= 1
        else:
            only_live.append(quote)
    return sorted([*past, *only_live], key=_time)


def _identity(quote: Quote) -> tuple[object, ...]:
    return (
        quote.symbol,
        quote.ts_event_ns,
        quote.bid,
        quote.ask,
        quote.bid_size,
        quote.ask_size,
    )


def _time(quote: Quote) -> int:
    return quote.ts_event_ns
