"""The kinds of records that the service carries, each described once.

The pipeline works on records of a described kind: sequencer, publisher, conflation, store, first
prices, gap repair and in-process readers use only this description. A new kind needs a record
class, an entry here, an encoder and a decoder (CONTRIBUTING.md, "… a kind of record").
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
    """The attributes that the pipeline needs of every record.

    Attributes:
        symbol: ``AAPL``.
        ts_event_ns: The exchange's time, UTC nanoseconds.
        ts_recv_ns: When this machine received it, UTC nanoseconds.
        seq: Its number among the accepted records of its symbol and kind since the service
            started, from 1; 0 until it is accepted. The sequencer sets it in place.
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
    """What a full buffer drops."""

    LATEST_PER_SYMBOL = "latest per symbol"
    """Keep only the newest record of each symbol; count each dropped one."""


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
        key_prefix: The part before the symbol in the key of the latest record: ``price:``.
        event: The pub/sub channel of accepted records: ``price.updated``.
        ttl_s: Time to live of the key, seconds; None for the setting ``MDSERVICE_PRICE_TTL``.
        logged: Whether each event also goes to the event log, if one is configured.
        identity: The values by which a record from history equals one from the stream.
        order: What the sequencer does with a record that is not newer.
        overflow: What a full buffer drops.
        repair: How missed records are recovered.
        encode: Returns the record's JSON text: the bytes of key, event, log entry and HTTP
            answer.
        decode: Returns the record of such a text, with its own time as the time of reception.
            Raises ValueError for any other text.
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
