"""Facts that travel from the feed towards the sinks, and how the feed is doing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs

from mdservice.model.quote import Quote

__all__ = [
    "Backfill",
    "FeedItem",
    "FeedLost",
    "FeedResumed",
    "FeedState",
    "FeedStatus",
    "FirstQuotes",
    "LateQuotes",
    "QuoteBatch",
    "RoutedItem",
]

FeedState = Literal[
    "connected", "disconnected", "gap", "gap_repaired", "fallback", "stale", "fatal"
]


@attrs.frozen
class FeedStatus:
    """One change of the feed's state, as readers of ``feed.status`` see it.

    Attributes:
        state: What the feed is now.
        at_ns: When, UTC nanoseconds.
        details: Further fields of the message, JSON-ready (``driver``, ``from``, ``reason`` …).
    """

    state: FeedState
    at_ns: int
    details: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen
class QuoteBatch:
    """Quotes that one read of the feed brought, in the order in which they came."""

    quotes: Sequence[Quote]


@attrs.frozen
class Backfill:
    """What a repair brings after a lost connection.

    Attributes:
        past: Quotes from history, in the order of their times within each symbol.
        live: Quotes of the new connection that waited for them, in the order of coming.
        until_ns: When the repair ended, UTC nanoseconds.
        complete: The symbols of which ``past`` is all that was missed; the gap of others stays.
    """

    past: Sequence[Quote]
    live: Sequence[Quote]
    until_ns: int
    complete: frozenset[str] = frozenset()


@attrs.frozen
class FeedLost:
    """The connection has ended: from now on quotes are missing.

    Attributes:
        at_ns: When, UTC nanoseconds.
        symbols: What was subscribed on it.
        reason: Why.
    """

    at_ns: int
    symbols: frozenset[str]
    reason: str


@attrs.frozen
class FeedResumed:
    """Symbols are subscribed again: of these nothing is missing from now on.

    Attributes:
        at_ns: When, UTC nanoseconds.
        symbols: What the feed has acknowledged.
        left_out: What is wanted and not given: of these quotes go on being missing.
        repairing: Whether what was missed before is being fetched; a :class:`Backfill` follows.
    """

    at_ns: int
    symbols: frozenset[str]
    repairing: bool
    left_out: frozenset[str] = frozenset()


@attrs.frozen
class LateQuotes:
    """Past quotes that a repair should have brought, and that history had not told it yet.

    Attributes:
        quotes: In the order of their times within each symbol.
        from_ns: The time of the last quote that was out before the repair, UTC nanoseconds.
        to_ns: Until when it should have brought everything, UTC nanoseconds.
        unknown: Symbols of which history no longer answered whether anything is missing.
    """

    quotes: Sequence[Quote]
    from_ns: int
    to_ns: int
    unknown: frozenset[str] = frozenset()


@attrs.frozen
class FirstQuotes:
    """The latest quotes of symbols that were subscribed just now, from REST.

    Attributes:
        quotes: One of each symbol at most.
        asked_ns: When each symbol was wanted, UTC nanoseconds. What the stream has brought since
            then is newer.
    """

    quotes: Sequence[Quote]
    asked_ns: Mapping[str, int]


RoutedItem = QuoteBatch | FeedStatus
"""What the router hands on: accepted quotes, and changes of the feed's state."""
FeedItem = RoutedItem | FeedLost | FeedResumed | Backfill | LateQuotes | FirstQuotes
"""What the feed's channel carries."""
