"""The two encodings of Alpaca's stream, as the tape needs them: every quote of one length.

A quote is encoded once; what changes, prices and time, is patched in place with numpy.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

SPREAD_CENTS = 2
"""The ask is this much above the bid."""
_TIMESTAMP_64 = b"\xd7\xff"
_FLOAT_64 = 0xCB
_NANOSECONDS_SHIFT = 34
_SECOND_NS = 1_000_000_000
_PRICE_FORM = "100.00"
_TIME_FORM = "2026-11-20T15:51:44.208912345Z"
_MOST_CENTS = 99_999
_TENS = 10 ** np.arange(4, -1, -1)
_WHOLE, _DECIMALS = slice(0, 3), slice(4, 6)
"""Where the digits are in a price's text."""


class Encoding(Protocol):
    """How quotes and messages are written.

    Attributes:
        frame_byte: The first byte of a websocket frame that holds a message.
        between: After each quote but the last.
        closing: After the last quote; as long as ``between``.
        formats: Of the fields ``bid``, ``ask`` and ``time``, for numpy.
    """

    frame_byte: int
    between: bytes
    closing: bytes
    formats: tuple[Any, Any, Any]

    def opening(self, quotes: int) -> bytes:
        """What stands before the first quote of a message."""
        ...

    def quote(self, symbol: str) -> tuple[bytes, tuple[int, int, int]]:
        """A quote, and where its bid, its ask and its time are."""
        ...

    def stamp(self, fields: Any, cents: npt.NDArray[np.int64], now_ns: int) -> None:
        """Write bids, asks and the time into some frames."""
        ...

    def message(self, content: Any) -> bytes:
        """Any message."""
        ...


class Msgpack:
    """Binary, the time as a msgpack timestamp of 64 bits."""

    frame_byte = 0x82
    between = closing = b""
    formats = (">f8", ">f8", ">u8")

    def opening(self, quotes: int) -> bytes:
        return msgspec.msgpack.encode([None] * quotes)[:-quotes]

    def quote(self, symbol: str) -> tuple[bytes, tuple[int, int, int]]:
        bid = {"bx": "V", "bp": 1.0, "bs": 200}
        ask = {"ax": "V", "ap": 1.0, "as": 300}
        fields = {"T": "q", "S": symbol, **bid, **ask, "c": ["R"], "z": "C"}
        data = bytes([0x80 | len(fields) + 1])
        offsets = []
        for name, value in fields.items():
            data += msgspec.msgpack.encode(name)
            packed = msgspec.msgpack.encode(value)
            if packed[0] == _FLOAT_64:
                offsets.append(len(data) + 1)
            data += packed
        data += msgspec.msgpack.encode("t") + _TIMESTAMP_64
        return data + bytes(8), (offsets[0], offsets[1], len(data))

    def stamp(self, fields: Any, cents: npt.NDArray[np.int64], now_ns: int) -> None:
        fields["bid"] = cents / 100
        fields["ask"] = (cents + SPREAD_CENTS) / 100
        seconds, nanoseconds = divmod(now_ns, _SECOND_NS)
        fields["time"] = nanoseconds << _NANOSECONDS_SHIFT | seconds

    def message(self, content: Any) -> bytes:
        return msgspec.msgpack.encode(content)


class Json:
    """Text, the time as RFC 3339 with nanoseconds; prices have three digits and two decimals."""

    frame_byte = 0x81
    between, closing = b",", b"]"
    formats = (
        ("u1", (len(_PRICE_FORM),)),
        ("u1", (len(_PRICE_FORM),)),
        ("u1", (len(_TIME_FORM),)),
    )

    def opening(self, quotes: int) -> bytes:
        return b"["

    def quote(self, symbol: str) -> tuple[bytes, tuple[int, int, int]]:
        text = (
            f'{{"T":"q","S":"{symbol}","bx":"V","bp":{_PRICE_FORM},"bs":200,'
            f'"ax":"V","ap":{_PRICE_FORM},"as":300,"c":["R"],"z":"C","t":"{_TIME_FORM}"}}'
        )
        bid = text.index(_PRICE_FORM)
        return text.encode(), (bid, text.index(_PRICE_FORM, bid + 1), text.index(_TIME_FORM))

    def stamp(self, fields: Any, cents: npt.NDArray[np.int64], now_ns: int) -> None:
        _write_price(fields["bid"], cents)
        _write_price(fields["ask"], cents + SPREAD_CENTS)
        seconds, nanoseconds = divmod(now_ns, _SECOND_NS)
        text = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{nanoseconds:09}Z"
        fields["time"] = np.frombuffer(text.encode(), np.uint8)

    def message(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


def _write_price(field: Any, cents: npt.NDArray[np.int64]) -> None:
    if int(cents.max()) > _MOST_CENTS:
        raise ValueError("the tape has come to its end: a price would need more digits")
    digits = cents[..., None] // _TENS % 10 + ord("0")
    field[..., _WHOLE] = digits[..., :3]
    field[..., _DECIMALS] = digits[..., 3:]


ENCODINGS: dict[str, Encoding] = {"msgpack": Msgpack(), "json": Json()}
