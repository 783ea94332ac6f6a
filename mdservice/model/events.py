"""Facts that travel from the feed towards the sinks, and how the feed is doing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs

from mdservice.model.quote import Quote

__all__ = [
    "Backfill",
    "FeedItem",
    "FeedResumed",
    "FeedState",
    "FeedStatus",
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
        repaired: Whether ``past`` is all that was missed; otherwise the gap stays one.
    """

    past: Sequence[Quote]
    live: Sequence[Quote]
    until_ns: int
    repaired: bool


@attrs.frozen
class FeedResumed:
    """All symbols are subscribed: from now on nothing is missing.

    Attributes:
        at_ns: When, UTC nanoseconds.
        symbols: What the feed has acknowledged.
        repairing: Whether what was missed before is being fetched; a :class:`Backfill` follows.
    """

    at_ns: int
    symbols: Sequence[str]
    repairing: bool


RoutedItem = QuoteBatch | FeedStatus
"""What the router hands on: accepted quotes, and changes of the feed's state."""
FeedItem = RoutedItem | FeedResumed | Backfill
"""What the feed's channel carries."""
