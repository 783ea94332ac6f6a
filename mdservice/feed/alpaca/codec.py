"""Alpaca's frames to records and control messages, and requests to frames.

Pure: no event loop, no clock. Only a broken message or a broken frame itself is lost, and counted.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, get_args

import msgspec

from mdservice.errors import FeedError
from mdservice.feed.alpaca.error_codes import error_in_stream
from mdservice.feed.alpaca.messages import (
    ArticleMessage,
    BarMessage,
    BookMessage,
    CancelMessage,
    CorrectionMessage,
    DailyBarMessage,
    ErrorMessage,
    ImbalanceMessage,
    LimitBandMessage,
    Message,
    QuoteMessage,
    StatusMessage,
    Subscription,
    Success,
    TradeMessage,
    UpdatedBarMessage,
    without_lone_surrogates,
)
from mdservice.feed.alpaca.records import (
    article_of,
    bar_of,
    book_of,
    cancel_of,
    correction_of,
    daily_bar_of,
    imbalance_of,
    limit_band_of,
    status_of,
    trade_of,
)
from mdservice.feed.driver import Received, RequestRefused
from mdservice.feed.subscriptions import Followed
from mdservice.model.feeds import STOCKS, Feed, Topic
from mdservice.model.kinds import (
    BARS,
    CANCELS,
    CORRECTIONS,
    DAILY_BARS,
    IMBALANCES,
    KINDS,
    LULDS,
    NEWS,
    ORDERBOOKS,
    QUOTES,
    STATUSES,
    TRADES,
    Kind,
)
from mdservice.model.news import Article
from mdservice.model.quote import Quote
from mdservice.model.symbol import EVERY_SYMBOL, is_symbol, without_slash
from mdservice.model.timestamps import EARLIEST_NS, LATEST_NS, format_short_ns, parse_rfc3339

__all__ = [
    "CHANNELS",
    "Codec",
    "ControlMessage",
    "Encoding",
    "Frame",
    "json_time_ns",
    "json_time_text",
    "msgpack_time_ns",
    "msgpack_time_text",
    "request",
]

Encoding = Literal["json", "msgpack"]
Frame = bytes | str
"""One websocket message: text for JSON, bytes for msgpack."""
ControlMessage = Success | ErrorMessage | Subscription

CHANNELS: Final = Subscription.__struct_fields__
"""The channels that can be subscribed, in the order in which requests name them."""

_KNOWN_TAGS = frozenset(message.__struct_config__.tag for message in get_args(Message))
# TypeError: a text frame on a msgpack connection
_BROKEN = (msgspec.DecodeError, UnicodeError, RecursionError, TypeError)
_NO_TIME = (ValueError, OverflowError, msgspec.DecodeError)
_SECOND_NS = 1_000_000_000
_TIMESTAMP_64 = struct.Struct(">HQ")
_TIMESTAMP_64_HEAD = 0xD7FF
_TIMESTAMPS = (b"\xd6\xff", b"\xd7\xff", b"\xc7\x0c\xff")
_NANOSECONDS_SHIFT = 34
_SECONDS_MASK = (1 << _NANOSECONDS_SHIFT) - 1


_Reading = tuple[str, Kind[Any], Callable[[Any, str, int, int], Any]]
_READINGS: Final[dict[type, _Reading]] = {
    TradeMessage: ("trades", TRADES, trade_of),
    CorrectionMessage: ("trades", CORRECTIONS, correction_of),
    CancelMessage: ("trades", CANCELS, cancel_of),
    BarMessage: ("bars", BARS, bar_of),
    UpdatedBarMessage: ("updatedBars", BARS, bar_of),
    DailyBarMessage: ("dailyBars", DAILY_BARS, daily_bar_of),
    StatusMessage: ("statuses", STATUSES, status_of),
    LimitBandMessage: ("lulds", LULDS, limit_band_of),
    ImbalanceMessage: ("imbalances", IMBALANCES, imbalance_of),
    BookMessage: ("orderbooks", ORDERBOOKS, book_of),
}
"""The subscribed channel, the kind and the record of each type of message about one symbol.

Quotes are not here: they are the bulk of all messages, and have a shorter way.
"""

_Acknowledgement = msgspec.defstruct(
    "_Acknowledgement",
    [("T", Literal["subscription"])]
    + [(channel, list[msgspec.Raw] | None, None) for channel in CHANNELS],
)
"""A :class:`Subscription` with an entry that is not a symbol."""


def request(
    action: Literal["subscribe", "unsubscribe"], topics: Iterable[Topic]
) -> dict[str, str | list[str]]:
    """One message for all topics: ``{"action":"subscribe","trades":["A"],"quotes":["A","B"]}``."""
    symbols: dict[str, list[str]] = {}
    for topic in topics:
        symbols.setdefault(topic.channel, []).append(topic.symbol)
    return {"action": action, **{c: symbols[c] for c in CHANNELS if c in symbols}}


class Codec:
    """Decodes and encodes one connection's frames.

    Args:
        encoding: How the frames are encoded.
        followed: The topics whose records are accepted; None accepts every valid symbol.
        feed: Which feed it is, for the advice in errors.

    Attributes:
        ended: Why the feed ends the connection; None until it sends an error that does.
    """

    def __init__(
        self, encoding: Encoding, followed: Followed | None = None, feed: Feed = STOCKS
    ) -> None:
        self.encoding = encoding
        self.ended: FeedError | None = None
        self._followed = followed
        self._feed = feed
        self._acknowledged: dict[str, dict[str, Topic]] = {channel: {} for channel in CHANNELS}
        """By channel and symbol what the last acknowledgement had."""
        self._passed = self._passed_of(QUOTES.channel)
        self._readings = {
            message: (channel, self._passed_of(channel), kind, record_of)
            for message, (channel, kind, record_of) in _READINGS.items()
        }
        module = msgspec.json if encoding == "json" else msgspec.msgpack
        self._encode = module.Encoder().encode
        self._decode_frame = module.Decoder(list[Message]).decode
        self._decode_parts = module.Decoder(list[msgspec.Raw]).decode
        self._decode_one = module.Decoder(Message).decode
        self._decode_any = module.Decoder().decode
        self._decode_acknowledgement = module.Decoder(_Acknowledgement).decode
        self._decode_text = module.Decoder(str).decode
        self._time_ns = json_time_ns if encoding == "json" else msgpack_time_ns
        self._time_text = json_time_text if encoding == "json" else msgpack_time_text

    def encode(self, message: Mapping[str, Any]) -> Frame:
        """A control message as a frame of this connection."""
        data: bytes = self._encode(message)
        return data.decode() if self.encoding == "json" else data

    def decode(self, frames: Sequence[Frame], received_ns: int) -> Received:
        """Decode frames that came together.

        The first error message that ends the connection is kept in ``ended``. The kinds are in
        the order of ``KINDS``, so that a trade precedes its correction.

        Args:
            frames: Websocket messages as they came.
            received_ns: When they came, UTC nanoseconds; stamped on every record.
        """
        received = Received()
        if self._followed is not None and self._followed.keep_wire:
            self._sort_with_wire(self._with_wire(frames, received), received_ns, received)
        else:
            self._sort(self._messages(frames, received), received_ns, received)
        return received

    def control_messages(self, frame: Frame) -> list[ControlMessage]:
        """The control messages of one frame as they came, for the login."""
        messages = self._messages([frame], Received())
        return [message for message in messages if isinstance(message, ControlMessage)]

    def _messages(self, frames: Sequence[Frame], received: Received) -> list[Message]:
        messages: list[Message] = []
        for frame in frames:
            try:
                messages += self._decode_frame(frame)
            except _BROKEN:
                messages += [message for message, _ in self._decode_piecewise(frame, received)]
        return messages

    def _sort(self, messages: list[Message], received_ns: int, received: Received) -> None:
        time_ns = self._time_ns
        quotes: list[Quote] = []
        append = quotes.append
        passed = self._passed
        records: dict[Kind[Any], list[Any]] = {}
        for message in messages:
            if type(message) is QuoteMessage:
                try:
                    symbol = passed[message.S]
                except KeyError:
                    symbol = message.S
                    if not self._pass(QUOTES.channel, symbol, received):
                        continue
                try:
                    event_ns = time_ns(message.t)
                except _NO_TIME:
                    received.errors += 1
                    continue
                append(
                    Quote(
                        symbol,
                        message.bp,
                        message.ap,
                        message.bs,
                        message.ask_size,
                        event_ns,
                        received_ns,
                    )
                )
            else:
                self._sort_other(message, received_ns, received, records)
        self._put(quotes, records, received)

    def _with_wire(
        self, frames: Sequence[Frame], received: Received
    ) -> Iterator[tuple[Message, msgspec.Raw]]:
        """The messages, and the bytes of each in its frame."""
        for given in frames:
            frame = given
            if self.encoding == "json" and isinstance(given, bytes):
                # A binary frame may have what is no text, which the relay sends as text.
                frame = given.decode("utf-8", "replace")
            try:
                messages = self._decode_frame(frame)
            except _BROKEN:
                yield from self._decode_piecewise(frame, received)
            else:
                yield from zip(messages, self._decode_parts(frame), strict=True)

    def _sort_with_wire(
        self,
        messages: Iterable[tuple[Message, msgspec.Raw]],
        received_ns: int,
        received: Received,
    ) -> None:
        """The same as :meth:`_sort`; each record keeps the bytes of its message as its ``wire``.

        It copies them, since a ``Raw`` keeps its whole frame in memory. It repeats the way of
        quotes: a loop for both would slow down the one without bytes.
        """
        time_ns = self._time_ns
        quotes: list[Quote] = []
        append = quotes.append
        passed = self._passed
        records: dict[Kind[Any], list[Any]] = {}
        for message, raw in messages:
            if type(message) is QuoteMessage:
                try:
                    symbol = passed[message.S]
                except KeyError:
                    symbol = message.S
                    if not self._pass(QUOTES.channel, symbol, received):
                        continue
                try:
                    event_ns = time_ns(message.t)
                except _NO_TIME:
                    received.errors += 1
                    continue
                append(
                    Quote(
                        symbol,
                        message.bp,
                        message.ap,
                        message.bs,
                        message.ask_size,
                        event_ns,
                        received_ns,
                        0,
                        bytes(raw),
                    )
                )
            else:
                record = self._sort_other(message, received_ns, received, records)
                if record is not None:
                    record.wire = bytes(raw)
        self._put(quotes, records, received)

    @staticmethod
    def _put(quotes: list[Quote], records: dict[Kind[Any], list[Any]], received: Received) -> None:
        if quotes:
            received.records[QUOTES] = quotes
        if records:
            received.records |= {kind: records[kind] for kind in KINDS if kind in records}

    def _sort_other(
        self,
        message: Any,
        received_ns: int,
        received: Received,
        records: dict[Kind[Any], list[Any]],
    ) -> Any:
        """Take a message; return its record, or None where it has none or is not accepted."""
        reading = self._readings.get(type(message))
        if reading is None:
            if isinstance(message, ArticleMessage):
                return self._take_article(message, received_ns, received, records)
            self._take_control(message, received)
            return None
        channel, passed, kind, record_of = reading
        symbol = passed.get(message.S)
        if symbol is None:
            symbol = message.S
            if not self._pass(channel, symbol, received):
                return None
        try:
            event_ns = self._time_ns(message.t)
        except _NO_TIME:
            received.errors += 1
            return None
        record = record_of(message, symbol, event_ns, received_ns)
        records.setdefault(kind, []).append(record)
        return record

    def _passed_of(self, channel: str) -> dict[str, str]:
        return {} if self._followed is None else self._followed.passed(channel)

    def _pass(self, channel: str, symbol: str, received: Received) -> bool:
        """Whether to accept a record of this symbol; counts it if not."""
        if not is_symbol(symbol):
            received.errors += 1
            return False
        if self._followed is not None and not self._followed.takes(channel, symbol):
            received.unfollowed += 1
            return False
        return True

    def _take_article(
        self,
        message: ArticleMessage,
        received_ns: int,
        received: Received,
        records: dict[Kind[Any], list[Any]],
    ) -> Article | None:
        """Take an article if one of its symbols, or every symbol, is followed."""
        try:
            article = article_of(
                message,
                self._time_text(message.created_at),
                self._time_text(message.updated_at),
                received_ns,
            )
        except _NO_TIME:
            received.errors += 1
            return None
        received.errors += len(message.symbols or ()) - len(article.symbols)
        takes = None if self._followed is None else self._followed.takes
        if takes is None or any(
            takes(NEWS.channel, one) or takes(NEWS.channel, without_slash(one))
            for one in (EVERY_SYMBOL, *article.symbols)
        ):
            records.setdefault(NEWS, []).append(article)
            return article
        received.unfollowed += 1
        return None

    def _take_control(self, message: ControlMessage, received: Received) -> None:
        if self.ended is not None:
            return  # it is of a connection that has ended
        if isinstance(message, Subscription):
            # At once, since the quotes after it belong to the new subscription.
            received.acknowledged(self._subscribed_by(message, received), self._followed)
        elif isinstance(message, ErrorMessage):
            error = error_in_stream(message.code, message.msg, self._feed)
            if isinstance(error, RequestRefused):
                received.controls.append(error)
            else:
                self.ended = error

    def _subscribed_by(self, message: Subscription, received: Received) -> frozenset[Topic]:
        """All topics of an acknowledgement.

        A large subscription takes many requests, and each answer names all topics so far. So only
        those that have changed are looked at one by one.
        """
        for channel, known in self._acknowledged.items():
            symbols = frozenset(getattr(message, channel) or ())
            gone = known.keys() - symbols
            for symbol in gone:
                del known[symbol]
            for symbol in symbols.difference(known):
                if symbol == EVERY_SYMBOL or is_symbol(symbol):
                    known[symbol] = Topic(channel, symbol)
                else:
                    received.errors += 1
        return frozenset().union(*(known.values() for known in self._acknowledged.values()))

    def _decode_piecewise(
        self, frame: Frame, received: Received
    ) -> list[tuple[Message, msgspec.Raw]]:
        """The good messages of a frame that does not decode as a whole, with their bytes."""
        try:
            parts = self._parts(frame)
        except (*_BROKEN, ValueError):
            received.errors += 1
            return []
        messages: list[tuple[Message, msgspec.Raw]] = []
        for part in parts:
            try:
                messages.append((self._decode_one(part), part))
            except _BROKEN:
                acknowledgement = self._readable(part, received)
                if acknowledgement is not None:
                    messages.append((acknowledgement, part))
                elif self._is_of_unknown_type(part):
                    received.others += 1
                else:
                    received.errors += 1
        return messages

    def _parts(self, frame: Frame) -> list[msgspec.Raw]:
        try:
            parts: list[msgspec.Raw] = self._decode_parts(frame)
        except _BROKEN:
            if self.encoding != "json":
                raise
            parts = self._decode_parts(without_lone_surrogates(frame))
        return parts

    def _readable(self, part: msgspec.Raw, received: Received) -> Subscription | None:
        """The readable part of an acknowledgement, if the message is one."""
        try:
            acknowledgement = self._decode_acknowledgement(part)
        except _BROKEN:
            return None
        return Subscription(
            *(self._readable_symbols(getattr(acknowledgement, c), received) for c in CHANNELS)
        )

    def _readable_symbols(
        self, raws: Iterable[msgspec.Raw] | None, received: Received
    ) -> list[str]:
        symbols = []
        for raw in raws or ():
            try:
                symbols.append(self._decode_text(raw))
            except _BROKEN:
                received.errors += 1
        return symbols

    def _is_of_unknown_type(self, part: msgspec.Raw) -> bool:
        try:
            value = self._decode_any(part)
        except _BROKEN:
            return False
        tag = value.get("T") if isinstance(value, dict) else None
        return isinstance(tag, str) and tag not in _KNOWN_TAGS


def json_time_ns(raw: msgspec.Raw) -> int:
    """The JSON text of a time as UTC nanoseconds.

    Raises:
        ValueError: It is no time.
        msgspec.DecodeError: It is no text.
    """
    return parse_rfc3339(msgspec.json.decode(raw, type=str))


def json_time_text(raw: msgspec.Raw) -> str | None:
    """The JSON text of a time as it was sent; None where nothing was.

    Raises:
        msgspec.DecodeError: It is something else.
    """
    text: str | None = msgspec.json.decode(raw, type=str | None) if raw else None
    return text


def msgpack_time_ns(raw: msgspec.Raw) -> int:
    """A msgpack timestamp as UTC nanoseconds; the 64-bit form is what Alpaca sends.

    Source: MessagePack specification, "Timestamp extension type".
    """
    if len(raw) == _TIMESTAMP_64.size:
        head: int
        value: int
        head, value = _TIMESTAMP_64.unpack(raw)
        nanoseconds = value >> _NANOSECONDS_SHIFT
        if head == _TIMESTAMP_64_HEAD and nanoseconds < _SECOND_NS:
            return (value & _SECONDS_MASK) * _SECOND_NS + nanoseconds
    return _other_msgpack_time_ns(bytes(raw))


def _other_msgpack_time_ns(data: bytes) -> int:
    """The 32-bit and 96-bit forms, and RFC 3339 text."""
    if data.startswith(b"\xd6\xff"):
        return int.from_bytes(data[2:], "big") * _SECOND_NS
    if data.startswith(b"\xc7\x0c\xff"):
        nanoseconds = int.from_bytes(data[3:7], "big")
        ns = int.from_bytes(data[7:], "big", signed=True) * _SECOND_NS + nanoseconds
        if nanoseconds >= _SECOND_NS or not EARLIEST_NS <= ns <= LATEST_NS:
            raise ValueError(f"not a time: {data.hex()}")
        return ns
    return parse_rfc3339(msgspec.msgpack.decode(data, type=str))


def msgpack_time_text(raw: msgspec.Raw) -> str | None:
    """A msgpack timestamp as Alpaca writes it in JSON; a text as it is; None where none was sent.

    Raises:
        ValueError: It is something else, or no time of the years 1 to 9999.
    """
    data = bytes(raw)
    if data.startswith(_TIMESTAMPS):
        return format_short_ns(msgpack_time_ns(raw))
    text: str | None = msgspec.msgpack.decode(data, type=str | None) if data else None
    return text
