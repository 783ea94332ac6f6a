"""The kinds of records that the service carries, each described once.

The pipeline works on records of a described kind: sequencer, publisher, conflation, store, first
prices, gap repair and in-process readers use only this description. A new kind needs a record
class, an entry here, an encoder and a decoder (CONTRIBUTING.md, "… a kind of record").
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from collections.abc import Set as AbstractSet
from enum import Enum
from typing import Any, Final, Generic, Protocol, TypeVar

import attrs

from mdservice.errors import InvalidSymbol
from mdservice.model.bar import BARS_FORM, Bar, bar_identity
from mdservice.model.news import NEWS_FORM, Article, article_identity
from mdservice.model.order_book import ORDERBOOKS_FORM, OrderBook, order_book_identity
from mdservice.model.payload import encode_quote, parse_price, quote_of
from mdservice.model.quote import Quote, identity
from mdservice.model.symbol import is_symbol, without_slash
from mdservice.model.trade import (
    CANCELS_FORM,
    CORRECTIONS_FORM,
    TRADES_FORM,
    Cancel,
    Correction,
    Trade,
    cancel_identity,
    correction_identity,
    trade_identity,
)
from mdservice.model.trading_status import (
    IMBALANCES_FORM,
    LULDS_FORM,
    STATUSES_FORM,
    Imbalance,
    LimitBand,
    TradingStatus,
    imbalance_identity,
    limit_band_identity,
    trading_status_identity,
)
from mdservice.model.written import WrittenForm

__all__ = [
    "BARS",
    "CANCELS",
    "CORRECTIONS",
    "DAILY_BARS",
    "FIRST_KINDS",
    "IMBALANCES",
    "KINDS",
    "LULDS",
    "NEWS",
    "ORDERBOOKS",
    "QUOTES",
    "STATUSES",
    "TRADES",
    "Kind",
    "Order",
    "Overflow",
    "R",
    "Record",
    "RecordDecoder",
    "Repair",
    "Stream",
]


class Record(Protocol):
    """The attributes that the pipeline needs of every record.

    Attributes:
        symbol: ``AAPL``.
        ts_event_ns: The exchange's time, UTC nanoseconds.
        ts_recv_ns: When this machine received it, UTC nanoseconds.
        seq: Its number among the accepted records of its symbol and kind since the service
            started, from 1; 0 until it is accepted. The sequencer sets it in place.
        wire: The message as the feed sent it, a JSON object or a msgpack map; a row of the REST API
            as a message, a JSON object. None unless the feed keeps messages for the relay.
    """

    symbol: str
    ts_event_ns: int
    ts_recv_ns: int
    seq: int
    wire: bytes | None


R = TypeVar("R", bound=Record)


class Order(Enum):
    """Which records of a symbol are accepted, and which is its latest value."""

    DROP_OLDER = "drop older"
    """Reject an older record and an exact repeat; accept other content at the same time."""
    KEEP_ALL = "keep all"
    """Accept every record once, late ones too; the latest value is the newest by time."""
    REPLACE_SAME_TIME = "replace same time"
    """Accept every record once; one with the time of a published one and other content is an
    update of that one. The latest value is the newest by time."""
    MERGE = "merge"
    """Apply each change to the symbol's whole value, and accept the result."""


class Overflow(Enum):
    """What a full buffer drops."""

    LATEST_PER_SYMBOL = "latest per symbol"
    """Keep only the newest record of each symbol; count each dropped one as conflated."""
    LATEST_PER_SYMBOL_AND_TIME = "latest per symbol and time"
    """Keep only the newest record of each symbol and time; likewise."""
    DROP_OLDEST = "drop oldest"
    """Drop the oldest events and count them; their latest values are still written."""
    KEEP = "keep"
    """Keep every record."""


class Repair(Enum):
    """How records that a lost connection missed are recovered."""

    FROM_HISTORY = "from history"
    """Repaired: each of them is fetched and published once, then ``gap_repaired`` is published."""
    LATEST = "latest value"
    """Refreshed: the latest values are fetched; the gap stays, with ``"refreshed": true``."""
    SUBSCRIBE_AGAIN = "subscribe again"
    """Refreshed: subscribing again brings the whole value; the gap stays, likewise."""
    TOLD = "told"
    """There is no history: the gap is published, and stays."""


@attrs.frozen
class Stream:
    """A Redis stream that keeps the records of a kind, instead of a key for each symbol.

    Attributes:
        name: Its name without the prefix: ``news``.
        maxlen: About how many entries it keeps.
        entry_id: Returns the text of the field ``id`` of a record's entry; ``data`` is its JSON
            text.
    """

    name: str
    maxlen: int
    entry_id: Callable[[Any], str]


@attrs.frozen(eq=False)
class Kind(Generic[R]):
    """One kind of record: its names, its policies and its two conversions.

    Two kinds are never equal, so a kind is a cheap key of a dict.

    Attributes:
        channel: Alpaca's name of its stream: ``quotes``. Gaps and counts are reported under it.
        key_prefix: The part before the symbol in the key of the latest record: ``price:``. Empty
            for a kind without keys.
        event: The pub/sub channel of accepted records: ``price.updated``.
        marker: The pub/sub channel of the message before this kind's events in each batch: which
            service sent how many. ``mdservice.batch``.
        ttl_s: Time to live of the key, seconds; None for the setting ``MDSERVICE_PRICE_TTL``.
        logged: Whether each event also goes to the event log, if one is configured.
        identity: The values by which a record from history equals one from the stream.
        order: Which records are accepted.
        overflow: What a full buffer drops.
        repair: How missed records are recovered. A feed may have less; see
            :mod:`mdservice.model.feeds`.
        encode: Returns the record's JSON text: the bytes of key, event, log entry and HTTP
            answer.
        parse: Returns the fields of such a text, among them ``symbol``. Raises ValueError for any
            other text.
        build: Returns the record of these fields, with its own time as the time of reception.
            Raises ValueError for a field that cannot be read. A reader of a few symbols parses
            all texts, and builds only the wanted records.
        topics: The channels to subscribe for it. Empty for its own channel alone. Corrections
            come with ``trades``; updated bars are of the same kind as bars.
        stream: The Redis stream that keeps its records, or None.
        span_s: The period that a record is about, from its own time on, seconds: 60 for a bar.
        late_s: How late a record may come, seconds. A repair asks history from this much earlier.
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
    topics: tuple[str, ...] = attrs.field(
        default=attrs.Factory(lambda kind: (kind.channel,), takes_self=True)
    )
    stream: Stream | None = None
    span_s: float = 0.0
    late_s: float = 5.0

    @property
    def has_key(self) -> bool:
        """Whether each symbol's latest record has a key."""
        return bool(self.key_prefix)

    @property
    def lists_symbols(self) -> bool:
        """Whether a record is about several symbols, its ``symbols``, and not about one."""
        return self.stream is not None

    def of_symbols(self, records: Iterable[R], symbols: frozenset[str]) -> list[R]:
        """The records that are about at least one of the symbols, in order.

        Alpaca's news writes pairs without a slash, so it is found by ``BTC/USD`` and ``BTCUSD``.
        """
        if self.lists_symbols:
            wanted = frozenset(map(without_slash, symbols))
            return [one for one in records if _is_about(one, wanted)]
        return [record for record in records if record.symbol in symbols]

    @property
    def may_be_late(self) -> bool:
        """Whether an accepted record may be older than its symbol's latest value.

        The records of such a kind have an attribute ``newest``, which the sequencer sets to False
        on a late one: that is an event, but no value of the key.
        """
        return self.has_key and self.order in (Order.KEEP_ALL, Order.REPLACE_SAME_TIME)

    @property
    def is_companion(self) -> bool:
        """Whether its records only come with another kind's topics, as corrections do."""
        return self.channel not in self.topics

    def decode(self, payload: bytes) -> R:
        """The record of a text.

        Raises:
            ValueError: The text is something else.
        """
        return self.build(self.parse(payload))

    def __repr__(self) -> str:
        return f"<Kind {self.channel}>"


_DAY_S = 86_400

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


def _daily_bar(fields: Any) -> Bar:
    bar = BARS_FORM.build(fields)
    bar.daily = True
    return bar


def _kind(
    channel: str,
    event: str,
    form: WrittenForm[R],
    *,
    identity: Callable[[R], Hashable],
    order: Order,
    overflow: Overflow,
    repair: Repair,
    key_prefix: str = "",
    ttl_s: int | None = None,
    topics: tuple[str, ...] = (),
    stream: Stream | None = None,
    span_s: float = 0.0,
    late_s: float = 5.0,
    build: Callable[[Any], R] | None = None,
) -> Kind[R]:
    """A kind whose text is derived from its class."""
    return Kind(
        channel=channel,
        key_prefix=key_prefix,
        event=event,
        marker=f"mdservice.batch.{channel}",
        ttl_s=ttl_s,
        logged=False,
        identity=identity,
        order=order,
        overflow=overflow,
        repair=repair,
        encode=form.encode,
        parse=form.parse,
        build=build or form.build,
        topics=topics or (channel,),
        stream=stream,
        span_s=span_s,
        late_s=late_s,
    )


TRADES: Final[Kind[Trade]] = _kind(
    "trades",
    "trade.updated",
    TRADES_FORM,
    key_prefix="trade:",
    identity=trade_identity,
    order=Order.KEEP_ALL,
    overflow=Overflow.DROP_OLDEST,
    repair=Repair.FROM_HISTORY,
    late_s=30.0,  # exchanges and dealers report a trade as late if it comes after 10 s
)
CORRECTIONS: Final[Kind[Correction]] = _kind(
    "corrections",
    "trade.corrected",
    CORRECTIONS_FORM,
    identity=correction_identity,
    order=Order.KEEP_ALL,
    overflow=Overflow.KEEP,
    repair=Repair.TOLD,
    topics=("trades",),
)
CANCELS: Final[Kind[Cancel]] = _kind(
    "cancelErrors",
    "trade.canceled",
    CANCELS_FORM,
    identity=cancel_identity,
    order=Order.KEEP_ALL,
    overflow=Overflow.KEEP,
    repair=Repair.TOLD,
    topics=("trades",),
)
BARS: Final[Kind[Bar]] = _kind(
    "bars",
    "bar.updated",
    BARS_FORM,
    key_prefix="bar:",
    ttl_s=_DAY_S,
    identity=bar_identity,
    order=Order.REPLACE_SAME_TIME,
    overflow=Overflow.LATEST_PER_SYMBOL_AND_TIME,
    repair=Repair.FROM_HISTORY,
    topics=("bars", "updatedBars"),
    span_s=60.0,
    late_s=35.0,  # an updated bar comes half a minute after the bar itself
)
DAILY_BARS: Final[Kind[Bar]] = _kind(
    "dailyBars",
    "daily_bar.updated",
    BARS_FORM,
    key_prefix="daily_bar:",
    ttl_s=5 * _DAY_S,
    identity=bar_identity,
    order=Order.REPLACE_SAME_TIME,
    overflow=Overflow.LATEST_PER_SYMBOL_AND_TIME,
    repair=Repair.LATEST,
    span_s=_DAY_S,
    build=_daily_bar,
)
STATUSES: Final[Kind[TradingStatus]] = _kind(
    "statuses",
    "trading_status.updated",
    STATUSES_FORM,
    key_prefix="trading_status:",
    ttl_s=_DAY_S,
    identity=trading_status_identity,
    order=Order.KEEP_ALL,
    overflow=Overflow.KEEP,
    repair=Repair.TOLD,
)
LULDS: Final[Kind[LimitBand]] = _kind(
    "lulds",
    "luld.updated",
    LULDS_FORM,
    key_prefix="luld:",
    ttl_s=_DAY_S,
    identity=limit_band_identity,
    order=Order.DROP_OLDER,
    overflow=Overflow.LATEST_PER_SYMBOL,
    repair=Repair.TOLD,
)
IMBALANCES: Final[Kind[Imbalance]] = _kind(
    "imbalances",
    "imbalance.updated",
    IMBALANCES_FORM,
    key_prefix="imbalance:",
    identity=imbalance_identity,
    order=Order.KEEP_ALL,
    overflow=Overflow.KEEP,
    repair=Repair.TOLD,
)
ORDERBOOKS: Final[Kind[OrderBook]] = _kind(
    "orderbooks",
    "orderbook.updated",
    ORDERBOOKS_FORM,
    key_prefix="orderbook:",
    identity=order_book_identity,
    order=Order.MERGE,
    overflow=Overflow.LATEST_PER_SYMBOL,
    repair=Repair.SUBSCRIBE_AGAIN,
)
NEWS: Final[Kind[Article]] = _kind(
    "news",
    "news.published",
    NEWS_FORM,
    identity=article_identity,
    order=Order.KEEP_ALL,
    overflow=Overflow.KEEP,
    repair=Repair.FROM_HISTORY,
    stream=Stream("news", 10_000, lambda article: str(article.id)),
)

KINDS: Final[tuple[Kind[Any], ...]] = (
    QUOTES,
    TRADES,
    CORRECTIONS,
    CANCELS,
    BARS,
    DAILY_BARS,
    STATUSES,
    LULDS,
    IMBALANCES,
    ORDERBOOKS,
    NEWS,
)
"""Every kind of record that the service carries."""

FIRST_KINDS: Final[tuple[Kind[Any], ...]] = (QUOTES, TRADES)
"""The kinds whose latest record a symbol gets from REST as soon as it is subscribed."""


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

    @staticmethod
    def of(kind: Kind[R], symbols: Iterable[str] = ()) -> RecordDecoder[R]:
        """The decoder for a kind."""
        return _ListedDecoder(kind, symbols) if kind.lists_symbols else RecordDecoder(kind, symbols)

    def decode_all(self, payloads: Iterable[object]) -> list[R]:
        """The selected records of the payloads, in order."""
        decode = self.decode
        return [record for payload in payloads if (record := decode(payload)) is not None]

    def _check(self, symbol: str) -> None:
        if not is_symbol(symbol):
            raise InvalidSymbol(f"{symbol!r} is not a symbol")
        self._known.add(symbol)


def _is_about(record: Any, wanted: AbstractSet[str]) -> bool:
    """Whether it lists one of the symbols, which are without slashes."""
    return not wanted.isdisjoint(map(without_slash, record.symbols))


class _ListedDecoder(RecordDecoder[R]):
    """Selects the records that are about at least one of the symbols."""

    def __init__(self, kind: Kind[R], symbols: Iterable[str] = ()) -> None:
        super().__init__(kind, map(without_slash, symbols))

    def decode(self, payload: object) -> R | None:
        try:
            fields = self._parse(payload)  # type: ignore[arg-type]  # anything else is a TypeError
            if self._only_known and not _is_about(fields, self._known):
                return None
            return self._build(fields)
        except (ValueError, TypeError) as exc:
            self.errors += 1
            self.last_error = str(exc)
            return None
