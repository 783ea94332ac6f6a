"""Frames to quotes and control messages, and control messages to frames.

Pure: no event loop, no clock. One broken message costs itself; one broken frame costs the
frame; both are counted.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import msgspec

from mdservice.feeds.alpaca.messages import (
    ErrorMessage,
    Message,
    QuoteMessage,
    Subscription,
    Success,
)
from mdservice.feeds.driver import Encoding, Frame
from mdservice.model.quote import Quote
from mdservice.model.timestamps import EARLIEST_NS, LATEST_NS, parse_rfc3339

__all__ = ["Codec", "Control", "Decoded"]

Control = Success | ErrorMessage | Subscription

_KNOWN_TAGS = frozenset("qtbduslcxi") | {"success", "error", "subscription"}
# TypeError: a text frame on a msgpack connection
_BROKEN = (msgspec.DecodeError, UnicodeError, RecursionError, TypeError)
_SECOND_NS = 1_000_000_000
_TIMESTAMP_64 = struct.Struct(">HQ")
_TIMESTAMP_64_HEAD = 0xD7FF
_NANOSECONDS_SHIFT = 34
_SECONDS_MASK = (1 << _NANOSECONDS_SHIFT) - 1


@attrs.define
class Decoded:
    """What some frames held.

    Attributes:
        quotes: Every good quote, in the order of the frames.
        controls: Every control message, likewise.
        errors: Messages and whole frames that broke the schema.
        others: Good messages that are neither, and messages of a type not known here.
    """

    quotes: list[Quote] = attrs.field(factory=list)
    controls: list[Control] = attrs.field(factory=list)
    errors: int = 0
    others: int = 0


class Codec:
    """Decodes and encodes one connection's frames.

    Args:
        encoding: How the frames are encoded.
    """

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        module = msgspec.json if encoding == "json" else msgspec.msgpack
        self._encode = module.Encoder().encode
        self._decode_frame = module.Decoder(list[Message]).decode
        self._decode_parts = module.Decoder(list[msgspec.Raw]).decode
        self._decode_one = module.Decoder(Message).decode
        self._decode_any = module.Decoder().decode
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
        for message in messages:
            if type(message) is QuoteMessage:
                try:
                    event_ns = time_ns(message.t)
                except (ValueError, OverflowError, msgspec.DecodeError):
                    decoded.errors += 1
                    continue
                append(
                    Quote(
                        message.S,
                        message.bp,
                        message.ap,
                        message.bs,
                        message.ask_size,
                        event_ns,
                        received_ns,
                    )
                )
            elif isinstance(message, Control):
                decoded.controls.append(message)
            else:
                decoded.others += 1

    def _decode_piecewise(self, frame: Frame, decoded: Decoded) -> list[Message]:
        """The good messages of a frame that does not decode as a whole."""
        try:
            parts = self._decode_parts(frame)
        except _BROKEN:
            decoded.errors += 1
            return []
        messages: list[Message] = []
        for part in parts:
            try:
                messages.append(self._decode_one(part))
            except _BROKEN:
                if self._is_of_unknown_type(part):
                    decoded.others += 1
                else:
                    decoded.errors += 1
        return messages

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
