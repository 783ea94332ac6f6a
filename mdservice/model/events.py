"""Messages from the feed to the sinks: records, and changes of the feed's state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Literal

import attrs
import msgspec

from mdservice.model.feeds import FeedName, Topic
from mdservice.model.kinds import Kind, R
from mdservice.model.timestamps import format_ns

__all__ = [
    "AccountEvent",
    "Backfill",
    "FeedItem",
    "FeedLost",
    "FeedResumed",
    "FeedState",
    "FeedStatus",
    "FirstRecords",
    "LateRecords",
    "LatestChanged",
    "RecordBatch",
    "Refreshed",
    "RoutedItem",
    "encode_status",
]

FeedState = Literal[
    "connected", "disconnected", "gap", "gap_repaired", "fallback", "stale", "fatal", "takeover"
]


@attrs.frozen
class FeedStatus:
    """One change of the feed's state, as readers of ``feed.status`` see it.

    Attributes:
        state: The new state.
        at_ns: When it changed, UTC nanoseconds.
        details: Further fields of the message, JSON-ready (``driver``, ``from``, ``reason`` …).
        feed: Which feed.
    """

    state: FeedState
    at_ns: int
    details: Mapping[str, Any] = attrs.field(factory=dict)
    feed: FeedName = "stocks"


def encode_status(status: FeedStatus) -> bytes:
    """``{"state":"connected","at":"2026-…Z","feed":"stocks",…details}``, as on ``feed.status``."""
    at = format_ns(status.at_ns)
    message = {"state": status.state, "at": at, "feed": status.feed, **status.details}
    return _encoder.encode(message)


_encoder = msgspec.json.Encoder()


@attrs.frozen
class RecordBatch(Generic[R]):
    """Records of one kind in the order in which they came, such as those of one socket read."""

    kind: Kind[R]
    records: Sequence[R]


@attrs.frozen
class LatestChanged(Generic[R]):
    """A symbol's latest value has changed without an event of its kind.

    So a correction changes the latest trade, and a cancellation may remove it.

    Attributes:
        kind: The kind of the value.
        symbol: Whose value it is.
        record: The new value; None if there is none any more.
    """

    kind: Kind[R]
    symbol: str
    record: R | None


@attrs.frozen
class Backfill(Generic[R]):
    """The result of a gap repair after a lost connection.

    Attributes:
        kind: The kind of the records.
        past: Records from history, in the order of their times within each symbol.
        live: Records of the new connection that waited for ``past``, in the order of arrival.
        until_ns: When the repair ended, UTC nanoseconds.
        complete: The symbols for which ``past`` has every missed record. The gap of other
            symbols stays.
    """

    kind: Kind[R]
    past: Sequence[R]
    live: Sequence[R]
    until_ns: int
    complete: frozenset[str] = frozenset()


@attrs.frozen
class FeedLost:
    """The connection has ended: from now on records of every kind are missing.

    Attributes:
        at_ns: When it ended, UTC nanoseconds.
        topics: What was subscribed on it.
        reason: Why it ended.
    """

    at_ns: int
    topics: frozenset[Topic]
    reason: str


@attrs.frozen
class FeedResumed:
    """Symbols are subscribed again: from now on they miss no record of one kind.

    Attributes:
        kind: The kind of the records.
        at_ns: When, UTC nanoseconds.
        symbols: The symbols that the feed has acknowledged.
        left_out: Wanted symbols that the feed does not grant; their records are still missing.
        repairing: Whether the missed records are being fetched; a :class:`Backfill` follows.
        refreshing: Whether the latest values are being fetched; :class:`Refreshed` follows.
    """

    kind: Kind[Any]
    at_ns: int
    symbols: frozenset[str]
    repairing: bool
    left_out: frozenset[str] = frozenset()
    refreshing: bool = False


@attrs.frozen
class Refreshed:
    """The latest values after a lost connection are out; what came between stays missing.

    Attributes:
        kind: The kind of the records.
        at_ns: When, UTC nanoseconds.
        symbols: The symbols whose latest value is up to date.
        failed: The symbols of the outage whose latest value could not be had.
    """

    kind: Kind[Any]
    at_ns: int
    symbols: frozenset[str]
    failed: frozenset[str] = frozenset()


@attrs.frozen
class LateRecords(Generic[R]):
    """Past records that came too late for a repair, since history did not have them yet.

    Attributes:
        kind: The kind of the records.
        records: In the order of their times within each symbol.
        from_ns: The time of the last record published before the repair, UTC nanoseconds.
        to_ns: The end of the repaired period, UTC nanoseconds.
        unknown: Symbols for which history no longer answered whether anything is missing.
    """

    kind: Kind[R]
    records: Sequence[R]
    from_ns: int
    to_ns: int
    unknown: frozenset[str] = frozenset()


@attrs.frozen
class FirstRecords(Generic[R]):
    """The latest records of symbols that were subscribed just now, from REST.

    Attributes:
        kind: The kind of the records.
        records: At most one for each symbol.
        asked_ns: When each symbol was requested, UTC nanoseconds. Records from the stream since
            then are newer.
    """

    kind: Kind[R]
    records: Sequence[R]
    asked_ns: Mapping[str, int]


@attrs.frozen
class AccountEvent:
    """An event of the account, as readers of ``account.updated`` get it.

    Attributes:
        payload: Its JSON.
    """

    payload: bytes


RoutedItem = RecordBatch[Any] | LatestChanged[Any] | FeedStatus | AccountEvent
"""What the publisher takes: accepted records, changed latest values, changes of the feed's state;
and, not from a router, events of the account."""
FeedItem = (
    RoutedItem
    | FeedLost
    | FeedResumed
    | Refreshed
    | Backfill[Any]
    | LateRecords[Any]
    | FirstRecords[Any]
)
"""The items of the feed's channel."""
