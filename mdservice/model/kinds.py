"""The kinds of records that the service carries, each described once.

The pipeline works on records of a described kind: sequencer, publisher, conflation, store, first
prices, gap repair and in-process readers know nothing else of them. A new kind is its record, its
entry here, its encoder and its decoder (CONTRIBUTING.md, "… a kind of record").
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from enum import Enum
from typing import Any, Final, Generic, Protocol, TypeVar

import attrs

from mdservice.model.payload import decode_quote, encode_quote
from mdservice.model.quote import Quote, identity

__all__ = ["KINDS", "QUOTES", "Kind", "Order", "Overflow", "R", "Record", "Repair"]


class Record(Protocol):
    """What the pipeline uses of every record.

    Attributes:
        symbol: ``AAPL``.
        ts_event_ns: The exchange's time, UTC nanoseconds.
        ts_recv_ns: When this machine received it, UTC nanoseconds.
        seq: Which accepted record of its symbol and kind this is since the service started, from
            1; 0 while it has not been accepted. The sequencer sets it in place.
    """

    symbol: str
    ts_event_ns: int
    ts_recv_ns: int
    seq: int


R = TypeVar("R", bound=Record)


class Order(Enum):
    """What the sequencer does with a record that is not newer than its symbol's last one."""

    DROP_OLDER = "drop older"
    """Reject an older record and an exact repeat; accept other content at the same time."""


class Overflow(Enum):
    """What a full buffer gives up."""

    LATEST_PER_SYMBOL = "latest per symbol"
    """All but the newest record of each symbol, the oldest first; each one lost is counted."""


class Repair(Enum):
    """How records that a lost connection missed are recovered."""

    FROM_HISTORY = "from history"
    """Each of them is fetched and published once, then ``gap_repaired`` is published."""


@attrs.frozen(eq=False)
class Kind(Generic[R]):
    """One kind of record: its names, its policies and its two conversions.

    Two kinds are never equal, so a kind is a cheap key of a dict.

    Attributes:
        channel: Alpaca's name of the stream: ``quotes``.
        key_prefix: What precedes the symbol in the key of the latest record: ``price:``.
        event: The pub/sub channel of accepted records: ``price.updated``.
        ttl_s: How long the key lives, seconds; None for the setting ``MDSERVICE_PRICE_TTL``.
        logged: Whether the event log, where one is configured, gets each event.
        identity: What makes a record from history the same as one from the stream.
        order: How the sequencer judges a record that is not newer.
        overflow: What a full buffer gives up.
        repair: How missed records are recovered.
        encode: The record's JSON text. Key, event, log entry and HTTP answer are these bytes.
        decode: The record of such a text, counted as received at its own time. Raises ValueError
            where the text is something else.
    """

    channel: str
    key_prefix: str
    event: str
    ttl_s: int | None
    logged: bool
    identity: Callable[[R], Hashable]
    order: Order
    overflow: Overflow
    repair: Repair
    encode: Callable[[R], bytes]
    decode: Callable[[bytes], R]

    def __repr__(self) -> str:
        return f"<Kind {self.channel}>"


QUOTES: Final[Kind[Quote]] = Kind(
    channel="quotes",
    key_prefix="price:",
    event="price.updated",
    ttl_s=None,
    logged=True,
    identity=identity,
    order=Order.DROP_OLDER,
    overflow=Overflow.LATEST_PER_SYMBOL,
    repair=Repair.FROM_HISTORY,
    encode=encode_quote,
    decode=decode_quote,
)

KINDS: Final[tuple[Kind[Any], ...]] = (QUOTES,)
"""Every kind that this service carries."""
