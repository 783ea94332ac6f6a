"""Frames to quotes and control messages, and control messages to frames.

Pure: no event loop, no clock. One broken message costs itself; one broken frame costs the
frame; both are counted.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import attrs
import msgspec

from mdservice.feed.alpaca.messages import (
    ErrorMessage,
    Message,
    QuoteMessage,
    Subscription,
    Success,
    without_lone_surrogates,
)
from mdservice.feed.driver import Encoding, Frame
from mdservice.model.quote import Quote
from mdservice.model.symbol import EVERY_SYMBOL, is_symbol
from mdservice.model.timestamps import EARLIEST_NS, LATEST_NS, parse_rfc3339

__all__ = ["MOST_SYMBOLS", "Codec", "Control", "Decoded", "Followed"]

Control = Success | ErrorMessage | Subscription

_KNOWN_TAGS = frozenset("qtbduslcxi") | {"success", "error", "subscription"}
# TypeError: a text frame on a msgpack connection
_BROKEN = (msgspec.DecodeError, UnicodeError, RecursionError, TypeError)
MOST_SYMBOLS = 50_000
"""Of which quotes are taken under ``*``, several times what a feed has.

A feed that makes symbols up costs no more memory than these.
"""
_SECOND_NS = 1_000_000_000
_TIMESTAMP_64 = struct.Struct(">HQ")
_TIMESTAMP_64_HEAD = 0xD7FF
_NANOSECONDS_SHIFT = 34
_SECONDS_MASK = (1 << _NANOSECONDS_SHIFT) - 1


class _Acknowledgement(msgspec.Struct):
    """A :class:`Subscription` in which something is no symbol."""

    T: Literal["subscription"]
    quotes: list[msgspec.Raw]


class Followed:
    """Whose quotes are taken: those that were asked for and, mostly, acknowledged.

    A quote may come before the acknowledgement of its symbol, so while a request is under way
    what it asks for counts too. What the feed acknowledges without a request does not, nor does
    another spelling of what was asked for.

    Args:
        under_every: The symbols that quotes have come of under ``*``. Kept over all connections
            of a feed, since what they fill is kept too: no more than :data:`MOST_SYMBOLS`.
    """

    def __init__(self, under_every: set[str] | None = None) -> None:
        self.passed: dict[str, str] = {}
        """Symbols that are valid and followed, each with itself: looked at once.

        Every quote gets the string that is kept here: later look-ups find it by identity, which
        wins back what this one costs.
        """
        self._under_every = set() if under_every is None else under_every
        self._requested: set[str] = set()
        self._asked: frozenset[str] = frozenset()
        self._acknowledged: frozenset[str] = frozenset()

    def ask(self, symbols: Iterable[str]) -> None:
        """A request to subscribe these goes out."""
        self._asked = frozenset(symbols)
        self._requested |= self._asked

    def answered(self) -> None:
        """The request is answered: from now on the acknowledgement alone counts."""
        self._asked = frozenset()
        self.passed.clear()

    def give_up(self, symbols: Iterable[str]) -> None:
        """They are unsubscribed."""
        self._requested.difference_update(symbols)
        self.passed.clear()

    def acknowledge(self, symbols: Iterable[str]) -> None:
        """The feed says that it sends these."""
        before, self._acknowledged = self._acknowledged, frozenset(symbols)
        if before - self._acknowledged:
            self.passed.clear()

    def takes(self, symbol: str) -> bool:
        """Whether a quote of this valid symbol is taken; asked where it is not in ``passed``."""
        if not self._has(symbol):
            if not self._has(EVERY_SYMBOL):
                return False
            if symbol not in self._under_every:
                if len(self._under_every) >= MOST_SYMBOLS:
                    return False
                self._under_every.add(symbol)
        self.passed[symbol] = symbol
        return True

    def _has(self, symbol: str) -> bool:
        return symbol in self._requested and (symbol in self._acknowledged or symbol in self._asked)


@attrs.define
class Decoded:
    """What some frames held.

    Attributes:
        quotes: Every good quote, in the order of the frames.
        controls: Every control message, likewise.
        errors: Messages and whole frames that broke the schema.
        others: Good messages that are neither, and messages of a type not known here.
        unfollowed: Good quotes of symbols that are not followed; they are left out.
    """

    quotes: list[Quote] = attrs.field(factory=list)
    controls: list[Control] = attrs.field(factory=list)
    errors: int = 0
    others: int = 0
    unfollowed: int = 0


class Codec:
    """Decodes and encodes one connection's frames.

    Args:
        encoding: How the frames are encoded.
        followed: Whose quotes are taken; None takes those of every valid symbol.
    """

    def __init__(self, encoding: Encoding, followed: Followed | None = None) -> None:
        self.encoding = encoding
        self._followed = followed
        self._passed: dict[str, str] = {} if followed is None else followed.passed
        module = msgspec.json if encoding == "json" else msgspec.msgpack
        self._encode = module.Encoder().encode
        self._decode_frame = module.Decoder(list[Message]).decode
        self._decode_parts = module.Decoder(list[msgspec.Raw]).decode
        self._decode_one = module.Decoder(Message).decode
        self._decode_any = module.Decoder().decode
        self._decode_acknowledgement = module.Decoder(_Acknowledgement).decode
        self._decode_text = module.Decoder(str).decode
        self._time_ns = _json_time_ns if encoding == "json" else _msgpack_time_ns

    def encode(self, message: Mapping[str, Any]) -> Frame:
        """A control message as a frame of this connection."""
        data: bytes = self._encode(message)
        return data.decode() if self.encoding == "json" else data

    def decode(self, frames: Sequence[Frame], received_ns: int) -> Decoded:
        """Decode frames that came together.

        Args:
            frames: Websocket messages as they came.
            received_ns: When they came, UTC nanoseconds; stamped on every quote.
        """
        decoded = Decoded()
        messages: list[Message] = []
        for frame in frames:
            try:
                messages += self._decode_frame(frame)
            except _BROKEN:
                messages += self._decode_piecewise(frame, decoded)
        self._sort(messages, received_ns, decoded)
        return decoded

    def _sort(self, messages: list[Message], received_ns: int, decoded: Decoded) -> None:
        time_ns = self._time_ns
        append = decoded.quotes.append
        passed = self._passed
        for message in messages:
            if type(message) is QuoteMessage:
                try:
                    symbol = passed[message.S]
                except KeyError:
                    symbol = message.S
                    if not self._pass(symbol, decoded):
                        continue
                try:
                    event_ns = time_ns(message.t)
                except (ValueError, OverflowError, msgspec.DecodeError):
                    decoded.errors += 1
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
            elif isinstance(message, Control):
                if isinstance(message, Subscription):
                    self._acknowledge(message, decoded)
                decoded.controls.append(message)
            else:
                decoded.others += 1

    def _pass(self, symbol: str, decoded: Decoded) -> bool:
        """Whether a quote of this symbol is taken; counts it where it is not."""
        if not is_symbol(symbol):
            decoded.errors += 1
            return False
        if self._followed is not None and not self._followed.takes(symbol):
            decoded.unfollowed += 1
            return False
        return True

    def _acknowledge(self, message: Subscription, decoded: Decoded) -> None:
        """An acknowledged symbol that is none costs itself, and not the acknowledgement."""
        symbols = message.quotes or []
        valid = [symbol for symbol in symbols if symbol == EVERY_SYMBOL or is_symbol(symbol)]
        if len(valid) < len(symbols):
            decoded.errors += len(symbols) - len(valid)
            message.quotes = valid
        if self._followed is not None:  # here, since the quotes behind it are of that state
            self._followed.acknowledge(valid)

    def _decode_piecewise(self, frame: Frame, decoded: Decoded) -> list[Message]:
        """The good messages of a frame that does not decode as a whole."""
        try:
            parts = self._parts(frame)
        except (*_BROKEN, ValueError):
            decoded.errors += 1
            return []
        messages: list[Message] = []
        for part in parts:
            try:
                messages.append(self._decode_one(part))
            except _BROKEN:
                acknowledgement = self._readable(part, decoded)
                if acknowledgement is not None:
                    messages.append(acknowledgement)
                elif self._is_of_unknown_type(part):
                    decoded.others += 1
                else:
                    decoded.errors += 1
        return messages

    def _parts(self, frame: Frame) -> list[msgspec.Raw]:
        try:
            parts: list[msgspec.Raw] = self._decode_parts(frame)
        except _BROKEN:
            if self.encoding != "json":
                raise
            parts = self._decode_parts(without_lone_surrogates(frame))
        return parts

    def _readable(self, part: msgspec.Raw, decoded: Decoded) -> Subscription | None:
        """What can be read of an acknowledgement, where the message is one."""
        try:
            raws = self._decode_acknowledgement(part).quotes
        except _BROKEN:
            return None
        symbols = []
        for raw in raws:
            try:
                symbols.append(self._decode_text(raw))
            except _BROKEN:
                decoded.errors += 1
        return Subscription(symbols)

    def _is_of_unknown_type(self, part: msgspec.Raw) -> bool:
        try:
            value = self._decode_any(part)
        except _BROKEN:
            return False
        tag = value.get("T") if isinstance(value, dict) else None
        return isinstance(tag, str) and tag not in _KNOWN_TAGS


def _json_time_ns(raw: msgspec.Raw) -> int:
    return parse_rfc3339(msgspec.json.decode(raw, type=str))


def _msgpack_time_ns(raw: msgspec.Raw) -> int:
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
