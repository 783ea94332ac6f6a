"""Records as messages of Alpaca's streaming protocol, for the clients of the relay. Pure.

A message is the feed's own bytes where the record has them. Into the other encoding it is converted
once, for all clients together.

Source: Alpaca, "Streaming Market Data"; MessagePack specification, "Timestamp extension type".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import attrs
import msgspec

from mdservice.feed.alpaca.codec import Encoding, msgpack_time_text
from mdservice.model.kinds import (
    BARS,
    CANCELS,
    CORRECTIONS,
    DAILY_BARS,
    IMBALANCES,
    LULDS,
    NEWS,
    ORDERBOOKS,
    QUOTES,
    STATUSES,
    TRADES,
    Kind,
    R,
)
from mdservice.model.news import Article
from mdservice.model.symbol import is_option
from mdservice.model.timestamps import format_short_ns, parse_rfc3339

__all__ = ["Encoding", "Message", "messages_of", "payload"]

_BAR: Final = {
    "o": "open", "h": "high", "l": "low", "c": "close", "v": "volume", "n": "trade_count",
    "vw": "vwap",
}  # fmt: skip
_ARTICLE: Final = (
    "id", "headline", "summary", "author", "created_at", "updated_at", "content", "url", "symbols",
    "source",
)  # fmt: skip
_FORMS: Final[Mapping[Kind[Any], tuple[str, Mapping[str, str]]]] = {
    QUOTES: ("q", {"bp": "bid", "bs": "bid_size", "ap": "ask", "as": "ask_size"}),
    TRADES: (
        "t",
        {
            "i": "id", "x": "exchange", "p": "price", "s": "size", "c": "conditions", "z": "tape",
            "tks": "taker_side",
        },
    ),
    CORRECTIONS: (
        "c",
        {
            "x": "exchange", "oi": "original_id", "op": "original_price", "os": "original_size",
            "oc": "original_conditions", "ci": "corrected_id", "cp": "corrected_price",
            "cs": "corrected_size", "cc": "corrected_conditions", "z": "tape",
        },
    ),
    CANCELS: (
        "x",
        {"i": "id", "x": "exchange", "p": "price", "s": "size", "a": "action", "z": "tape"},
    ),
    BARS: ("b", _BAR),
    DAILY_BARS: ("d", _BAR),
    STATUSES: (
        "s",
        {
            "sc": "status_code", "sm": "status_message", "rc": "reason_code",
            "rm": "reason_message", "z": "tape",
        },
    ),
    LULDS: ("l", {"u": "limit_up", "d": "limit_down", "i": "indicator", "z": "tape"}),
    IMBALANCES: ("i", {"p": "price", "z": "tape"}),
    ORDERBOOKS: ("o", {"b": "bids", "a": "asks"}),
    NEWS: ("n", dict(zip(_ARTICLE, _ARTICLE, strict=True))),
}  # fmt: skip
"""Alpaca's ``T`` of each kind, and of each field the name and the attribute of the record.

Symbol and time are not named here; all kinds but news have them."""

_ACTIONS: Final = {"cancel": "C", "error": "E"}
_TAKER_SIDES: Final = {"buy": "B", "sell": "S", None: "-"}
_TIMES: Final = ("t", "created_at", "updated_at")
_LATEST_ONLY: Final = (QUOTES, ORDERBOOKS)
_LEAST_EXPONENT: Final = 1e21
"""From here on a Go program, such as Alpaca's server, writes whole numbers with an exponent."""

_SECOND_NS: Final = 1_000_000_000
_TIMESTAMP: Final = -1
_SECONDS_BITS: Final = 34

_MOST_IN_FIXARRAY: Final = 15
_MOST_IN_ARRAY16: Final = 0xFFFF

_UNREADABLE: Final = (msgspec.MsgspecError, ValueError, TypeError, RecursionError)

_encode_json = msgspec.json.Encoder().encode
_encode_msgpack = msgspec.msgpack.Encoder().encode
_decode_json = msgspec.json.Decoder(dict[str, Any]).decode
_decode_msgpack = msgspec.msgpack.Decoder(dict[str, Any]).decode
_raw_of_json = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_raw_of_msgpack = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode


class _Tagged(msgspec.Struct):
    T: str = ""


class _Times(msgspec.Struct):
    t: msgspec.Raw = msgspec.Raw()
    created_at: msgspec.Raw = msgspec.Raw()
    updated_at: msgspec.Raw = msgspec.Raw()


_tag_of_json = msgspec.json.Decoder(_Tagged).decode
_tag_of_msgpack = msgspec.msgpack.Decoder(_Tagged).decode
_times_of_msgpack = msgspec.msgpack.Decoder(_Times).decode


class Message:
    """One record as clients get it: one object per record, shared by all of them.

    ``T`` is the first key in every case, which Alpaca's Go SDK requires.

    Args:
        kind: The kind of the record.
        record: An accepted record. Where it has no ``wire``, the message is made of its values, and
            lacks what the record does not have.

    Attributes:
        channel: The channel by which clients subscribe it: ``quotes``; ``trades`` also for
            corrections and cancellations; ``bars`` or ``updatedBars``.
        symbol: ``AAPL``; empty for news.
        symbols: The symbols of an article; empty for others.
        latest_only: Whether a slow client gets only the newest message of each symbol.
        size: About how many bytes it has encoded.
    """

    __slots__ = (
        "_json",
        "_kind",
        "_msgpack",
        "_record",
        "_whole",
        "_wire",
        "channel",
        "latest_only",
        "size",
        "symbol",
        "symbols",
    )

    def __init__(self, kind: Kind[R], record: R) -> None:
        self._kind = kind
        self._record: Any = record
        self._whole: Message | None = None
        self._json: bytes | None = None
        self._msgpack: bytes | None = None
        self._wire = wire = None if record.wire is None else _tag_first(record.wire)
        if wire is None:
            wire = self.encoded("json")
        elif _is_json(wire):
            self._json = wire
        else:
            self._msgpack = wire
        self.size = len(wire)
        self.channel = kind.topics[0]
        self.latest_only = kind in _LATEST_ONLY
        self.symbol = record.symbol
        self.symbols: tuple[str, ...] = ()
        if isinstance(record, Article):
            self.symbol, self.symbols = "", record.symbols
        elif kind is BARS and self._tag() == "u":
            self.channel = "updatedBars"

    def _tag(self) -> str:
        if self._json is not None:
            return _tag_of_json(self._json).T
        return "" if self._msgpack is None else _tag_of_msgpack(self._msgpack).T

    def encoded(self, encoding: Encoding) -> bytes:
        """The message as one JSON object or one msgpack map, without an array around it."""
        if encoding == "json":
            if self._json is None:
                self._json = self._converted("json")
            return self._json
        if self._msgpack is None:
            self._msgpack = self._converted("msgpack")
        return self._msgpack

    def _converted(self, encoding: Encoding) -> bytes:
        write = _json_of if encoding == "json" else _msgpack_of
        if self._wire is not None:
            with suppress(*_UNREADABLE):  # a field that only the other encoding can have
                return write(_values_of(self._wire))
        return write(_fields_of(self._kind, self._record))

    def whole(self) -> Message:
        """Of an order book the whole book with ``"r":true``; of other records the same message.

        For a client that has missed a change of the book.
        """
        if self._kind is not ORDERBOOKS or self._record.wire is None:
            return self
        if self._whole is None:
            self._whole = Message(ORDERBOOKS, attrs.evolve(self._record, wire=None))
        return self._whole


def messages_of(kind: Kind[R], records: Sequence[R]) -> list[Message]:
    """The messages of accepted records of one kind, in the same order."""
    return [Message(kind, record) for record in records]


def payload(messages: Sequence[Message], encoding: Encoding) -> bytes:
    """The array of the messages: the payload of one websocket frame."""
    parts = [message.encoded(encoding) for message in messages]
    if encoding == "json":
        return b"[" + b",".join(parts) + b"]"
    return _array_head(len(parts)) + b"".join(parts)


def _array_head(count: int) -> bytes:
    if count <= _MOST_IN_FIXARRAY:
        return bytes((0x90 | count,))
    if count <= _MOST_IN_ARRAY16:
        return b"\xdc" + count.to_bytes(2, "big")
    return b"\xdd" + count.to_bytes(4, "big")


def _is_json(wire: bytes) -> bool:
    return wire[0] == ord("{")


def _tag_first(wire: bytes) -> bytes | None:
    """The same message with ``T`` as its first key, and every value as it was sent.

    None where that cannot be made, for a field that the service does not read.
    """
    is_json = _is_json(wire)
    if wire.startswith(b'{"T":"') if is_json else wire[1:3] == b"\xa1T":
        return wire
    try:
        fields = _raw_of_json(wire) if is_json else _raw_of_msgpack(wire)
        ordered = {"T": fields.pop("T"), **fields}
        return _encode_json(ordered) if is_json else _encode_msgpack(ordered)
    except _UNREADABLE:
        return None


def _fields_of(kind: Kind[Any], record: Any) -> dict[str, Any]:
    """The message of a record by its values, with times as text."""
    tag, names = _FORMS[kind]
    message: dict[str, Any] = {"T": tag}
    if kind is not NEWS:
        message["S"] = record.symbol
    for name, attribute in names.items():
        value = getattr(record, attribute)
        if value is not None:
            message[name] = value
    if kind is BARS and record.updated:
        message["T"] = "u"
    elif kind is TRADES:
        _write_trade(message, record)
    elif kind is CANCELS and record.action is not None:
        message["a"] = _ACTIONS[record.action]
    elif kind is ORDERBOOKS:
        message["r"] = True
        for side in "ba":
            message[side] = [{"p": price, "s": size} for price, size in message[side]]
    if kind is not NEWS:
        message["t"] = format_short_ns(record.ts_event_ns)
    return message


def _write_trade(message: dict[str, Any], trade: Any) -> None:
    """Conditions and the taker's side as the trade's asset class has them."""
    message.pop("tks", None)
    if "/" in trade.symbol:
        if trade.taker_side is not msgspec.UNSET:
            message["tks"] = _TAKER_SIDES[trade.taker_side]
        if not trade.conditions:
            del message["c"]
    elif is_option(trade.symbol):
        message["c"] = "".join(trade.conditions)


def _values_of(wire: bytes) -> dict[str, Any]:
    """The values of the feed's message, with times as text."""
    if _is_json(wire):
        return _decode_json(wire)
    message = _decode_msgpack(wire)  # which cuts times to microseconds
    times = _times_of_msgpack(wire)
    for name in _TIMES:
        if name in message:
            message[name] = msgpack_time_text(getattr(times, name))
    return message


def _json_of(message: dict[str, Any]) -> bytes:
    """A message in JSON, with 187.0 as 187, as Alpaca writes it."""
    for name, value in message.items():
        kind = type(value)
        if kind is float or kind is list:
            message[name] = _whole_number(value)
    return _encode_json(message)


def _whole_number(value: Any) -> Any:
    """A number as JSON has it, also those in a list of levels."""
    if isinstance(value, float):
        whole = value.is_integer() and -_LEAST_EXPONENT < value < _LEAST_EXPONENT
        return int(value) if whole else value
    if isinstance(value, list):
        return [_whole_number(one) for one in value]
    if isinstance(value, dict):
        return {name: _whole_number(one) for name, one in value.items()}
    return value


def _msgpack_of(message: dict[str, Any]) -> bytes:
    """A message with times as text in msgpack, with times as timestamps."""
    for name in _TIMES:
        text = message.get(name)
        if isinstance(text, str):
            message[name] = _timestamp(text)
    try:
        return _encode_msgpack(message)
    except OverflowError:  # a whole number of more than 64 bits, which msgpack does not have
        return _encode_msgpack(_with_small_numbers(message))


def _timestamp(text: str) -> msgspec.msgpack.Ext | str:
    """A time as msgpack's timestamp with all nanoseconds; any other text as it is."""
    try:
        second, fraction = divmod(parse_rfc3339(text), _SECOND_NS)
    except ValueError:
        return text
    if second >> _SECONDS_BITS:  # before 1970, or after 2514
        data = fraction.to_bytes(4, "big") + second.to_bytes(8, "big", signed=True)
    else:
        data = (fraction << _SECONDS_BITS | second).to_bytes(8, "big")
    return msgspec.msgpack.Ext(_TIMESTAMP, data)


def _with_small_numbers(value: Any) -> Any:
    """A value with whole numbers of more than 64 bits as text, so that no digit is lost."""
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return str(value)
    if isinstance(value, dict):
        return {name: _with_small_numbers(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_with_small_numbers(one) for one in value]
    return value
