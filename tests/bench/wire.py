"""The feed's frames for programs that run in an environment of their own: msgspec is all it needs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

LOGIN = msgspec.json.encode({"action": "auth", "key": "key", "secret": "secret"})
_HEAD_BYTES, _NANOSECONDS_SHIFT, _SECOND_NS = 2, 34, 1_000_000_000


class Quote(msgspec.Struct, gc=False):
    """Of a frame's messages, what a reference passes on; of a control message ``T`` alone."""

    T: str
    S: str = ""
    bp: float = 0
    ap: float = 0
    bs: int = 0
    as_: int = msgspec.field(default=0, name="as")
    t: msgspec.Raw = msgspec.Raw()

    def time_ns(self) -> int:
        """Of a msgpack timestamp of 64 bits, which is what the tape has."""
        value = int.from_bytes(bytes(self.t)[_HEAD_BYTES:], "big")
        seconds = value & (1 << _NANOSECONDS_SHIFT) - 1
        return seconds * _SECOND_NS + (value >> _NANOSECONDS_SHIFT)


_decode = msgspec.msgpack.Decoder(list[Quote]).decode


def decode_quotes(frame: bytes) -> list[Quote]:
    """The quotes of a frame."""
    messages = _decode(frame)
    return messages if messages[0].T == "q" else []


def subscription(symbols: Sequence[str]) -> bytes:
    """What asks for the quotes of some symbols."""
    return msgspec.json.encode({"action": "subscribe", "quotes": symbols})
