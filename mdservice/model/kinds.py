"""The kinds of records that the service carries, each described once.

The pipeline works on records of a described kind: sequencer, publisher, conflation, store, first
prices, gap repair and in-process readers use only this description. A new kind needs a record
class, an entry here, an encoder and a decoder (CONTRIBUTING.md, "… a kind of record").
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from enum import Enum
from typing import Any, Final, Generic, Protocol, TypeVar

import attrs

from mdservice.errors import InvalidSymbol
from mdservice.model.payload import encode_quote, parse_price, quote_of
from mdservice.model.quote import Quote, identity
from mdservice.model.symbol import is_symbol

__all__ = ["KINDS", "QUOTES", "Kind", "Order", "Overflow", "R", "Record", "RecordDecoder", "Repair"]


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
        marker: The pub/sub channel of the message before this kind's events in each batch: which
            service sent how many. ``mdservice.batch``.
        ttl_s: Time to live of the key, seconds; None for the setting ``MDSERVICE_PRICE_TTL``.
        logged: Whether each event also goes to the event log, if one is configured.
        identity: The values by which a record from history equals one from the stream.
        order: What the sequencer does with a record that is not newer.
        overflow: What a full buffer drops.
        repair: How missed records are recovered.
        encode: Returns the record's JSON text: the bytes of key, event, log entry and HTTP
            answer.
        parse: Returns the fields of such a text, among them ``symbol``. Raises ValueError for any
            other text.
        build: Returns the record of these fields, with its own time as the time of reception.
            Raises ValueError for a field that cannot be read. A reader of a few symbols parses
            all texts, and builds only the wanted records.
    """

    channel: str
    key_prefix: str
    event: str
    marker: str
    ttl_s: int | None
    logged: bool
    identity: Callable[[R], Hashable]
    order: Order
    overflow: Overflow
    repair: Repair
    encode: Callable[[R], bytes]
    parse: Callable[[bytes], Any]
    build: Callable[[Any], R]

    def decode(self, payload: bytes) -> R:
        """The record of a text.

        Raises:
            ValueError: The text is something else.
        """
        return self.build(self.parse(payload))

    def __repr__(self) -> str:
        return f"<Kind {self.channel}>"


QUOTES: Final[Kind[Quote]] = Kind(
    channel="quotes",
    key_prefix="price:",
    event="price.updated",
    marker="mdservice.batch",
    ttl_s=None,
    logged=True,
    identity=identity,
    order=Order.DROP_OLDER,
    overflow=Overflow.LATEST_PER_SYMBOL,
    repair=Repair.FROM_HISTORY,
    encode=encode_quote,
    parse=parse_price,
    build=quote_of,
)

KINDS: Final[tuple[Kind[Any], ...]] = (QUOTES,)
"""Every kind that this service carries."""


class RecordDecoder(Generic[R]):
    """Decodes payloads, selects those of some symbols, and counts the invalid ones.

    Args:
        kind: The kind of the payloads.
        symbols: The symbols to select; empty means all.
    """

    def __init__(self, kind: Kind[R], symbols: Iterable[str] = ()) -> None:
        self._parse = kind.parse
        self._build = kind.build
        self._known = set(symbols)
        """The wanted symbols; without any, those that were checked."""
        self._only_known = bool(self._known)
        self.errors = 0
        """Payloads that are not a record of the kind, or whose symbol is not valid."""
        self.last_error: str | None = None
        """The error of the last of them."""

    def decode(self, payload: object) -> R | None:
        """The record; None for another symbol, and for an invalid payload, which is counted."""
        parse, build = self._parse, self._build  # local names are called faster than attributes
        try:
            fields = parse(payload)  # type: ignore[arg-type]  # anything else is a TypeError
            symbol = fields.symbol
            if symbol not in self._known:
                if self._only_known:
                    return None
                self._check(symbol)
            return build(fields)
        except (ValueError, TypeError, InvalidSymbol) as exc:
            self.errors += 1
            self.last_error = str(exc)
            return None

    def decode_all(self, payloads: Iterable[object]) -> list[R]:
        """The selected records of the payloads, in order."""
        decode = self.decode
        return [record for payload in payloads if (record := decode(payload)) is not None]

    def _check(self, symbol: str) -> None:
        if not is_symbol(symbol):
            raise InvalidSymbol(f"{symbol!r} is not a symbol")
        self._known.add(symbol)
