"""Alpaca's frames to quotes and control messages, and requests to frames.

Pure: no event loop, no clock. Only a broken message or a broken frame itself is lost, and counted.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from mdservice.errors import FeedError
from mdservice.feed.alpaca.error_codes import error_in_stream
from mdservice.feed.alpaca.messages import (
    ErrorMessage,
    Message,
    QuoteMessage,
    Subscription,
    Success,
    without_lone_surrogates,
)
from mdservice.feed.driver import Received, RequestRefused
from mdservice.feed.subscriptions import Followed
from mdservice.model.kinds import QUOTES
from mdservice.model.quote import Quote
from mdservice.model.symbol import is_symbol
from mdservice.model.timestamps import EARLIEST_NS, LATEST_NS, parse_rfc3339

__all__ = ["Codec", "ControlMessage", "Encoding", "Frame"]

Encoding = Literal["json", "msgpack"]
Frame = bytes | str
"""One websocket message: text for JSON, bytes for msgpack."""
ControlMessage = Success | ErrorMessage | Subscription

_KNOWN_TAGS = frozenset("qtbduslcxi") | {"success", "error", "subscription"}
# TypeError: a text frame on a msgpack connection
_BROKEN = (msgspec.DecodeError, UnicodeError, RecursionError, TypeError)
_SECOND_NS = 1_000_000_000
_TIMESTAMP_64 = struct.Struct(">HQ")
_TIMESTAMP_64_HEAD = 0xD7FF
_NANOSECONDS_SHIFT = 34
_SECONDS_MASK = (1 << _NANOSECONDS_SHIFT) - 1


class _Acknowledgement(msgspec.Struct):
    """A :class:`Subscription` with an entry that is not a symbol."""

    T: Literal["subscription"]
    quotes: list[msgspec.Raw]


class Codec:
    """Decodes and encodes one connection's frames.

    Args:
        encoding: How the frames are encoded.
        followed: The symbols whose quotes are accepted; None accepts every valid symbol.

    Attributes:
        ended: Why the feed ends the connection; None until it sends an error that does.
    """

    def __init__(self, encoding: Encoding, followed: Followed | None = None) -> None:
        self.encoding = encoding
        self.ended: FeedError | None = None
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

    def decode(self, frames: Sequence[Frame], received_ns: int) -> Received:
        """Decode frames that came together.

        The first error message that ends the connection is kept in ``ended``.

        Args:
            frames: Websocket messages as they came.
            received_ns: When they came, UTC nanoseconds; stamped on every quote.
        """
        received = Received()
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
                messages += self._decode_piecewise(frame, received)
        return messages

    def _sort(self, messages: list[Message], received_ns: int, received: Received) -> None:
        time_ns = self._time_ns
        quotes: list[Quote] = []
        append = quotes.append
        passed = self._passed
        for message in messages:
            if type(message) is QuoteMessage:
                try:
                    symbol = passed[message.S]
                except KeyError:
                    symbol = message.S
                    if not self._pass(symbol, received):
                        continue
                try:
                    event_ns = time_ns(message.t)
                except (ValueError, OverflowError, msgspec.DecodeError):
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
            elif isinstance(message, ControlMessage):
                self._take_control(message, received)
            else:
                received.others += 1
        if quotes:
            received.records[QUOTES] = quotes

    def _pass(self, symbol: str, received: Received) -> bool:
        """Whether to accept a quote of this symbol; counts it if not."""
        if not is_symbol(symbol):
            received.errors += 1
            return False
        if self._followed is not None and not self._followed.takes(symbol):
            received.unfollowed += 1
            return False
        return True

    def _take_control(self, message: ControlMessage, received: Received) -> None:
        if self.ended is not None:
            return  # it is of a connection that has ended
        if isinstance(message, Subscription):
            # At once, since the quotes after it belong to the new subscription.
            received.acknowledge(message.quotes or (), self._followed)
        elif isinstance(message, ErrorMessage):
            error = error_in_stream(message.code, message.msg)
            if isinstance(error, RequestRefused):
                received.controls.append(error)
            else:
                self.ended = error

    def _decode_piecewise(self, frame: Frame, received: Received) -> list[Message]:
        """The good messages of a frame that does not decode as a whole."""
        try:
            parts = self._parts(frame)
        except (*_BROKEN, ValueError):
            received.errors += 1
            return []
        messages: list[Message] = []
        for part in parts:
            try:
                messages.append(self._decode_one(part))
            except _BROKEN:
                acknowledgement = self._readable(part, received)
                if acknowledgement is not None:
                    messages.append(acknowledgement)
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
            raws = self._decode_acknowledgement(part).quotes
        except _BROKEN:
            return None
        symbols = []
        for raw in raws:
            try:
                symbols.append(self._decode_text(raw))
            except _BROKEN:
                received.errors += 1
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
