"""What the blaster sends: one quote of every symbol in turn, encoded beforehand.

A cycle is one quote of each symbol, as whole websocket frames in one buffer. Sending costs
no encoding: prices and times are patched in place, for all frames at once. The bid of a
symbol rises by a cent a cycle, so that any price tells which quote it came from.
"""

from __future__ import annotations

import string

import msgspec
import numpy as np
import numpy.typing as npt

FIRST_CENTS = 10_000
SPREAD_CENTS = 2
_BINARY_FINAL = 0x82
_TIMESTAMP_64 = b"\xd7\xff"
_FLOAT_64 = 0xCB
_NANOSECONDS_SHIFT = 34
_SECOND_NS = 1_000_000_000


def symbol_names(count: int) -> list[str]:
    """``AAAA``, ``AAAB``, …: all of one length, so that all frames are."""
    letters = string.ascii_uppercase
    names = []
    for index in range(count):
        rest, name = index, ""
        for _ in range(4):
            rest, letter = divmod(rest, len(letters))
            name = letters[letter] + name
        names.append(name)
    return names


def bid_cents(symbol_index: int, cycle: int) -> int:
    """The bid of a symbol in a cycle; the ask is :data:`SPREAD_CENTS` above it."""
    return FIRST_CENTS + symbol_index + cycle


class Tape:
    """The endless sequence of frames.

    Args:
        symbols: In the order in which they are quoted.
        per_frame: Quotes in a frame; divides the number of symbols.
    """

    def __init__(self, symbols: list[str], per_frame: int) -> None:
        if len(symbols) % per_frame:
            raise ValueError(f"{len(symbols)} symbols do not fill frames of {per_frame}")
        encoded = [_encode_quote(symbol) for symbol in symbols]
        quote_bytes, offsets = len(encoded[0][0]), encoded[0][1]
        array = msgspec.msgpack.encode([None] * per_frame)[: -per_frame or None]
        head = _frame_head(len(array) + per_frame * quote_bytes) + array
        self.per_frame = per_frame
        self.frames_in_cycle = len(symbols) // per_frame
        self.frame_bytes = len(head) + per_frame * quote_bytes
        self.frames_sent = 0
        quotes = [data for data, _ in encoded]
        self._buffer = bytearray(
            b"".join(
                head + b"".join(quotes[start : start + per_frame])
                for start in range(0, len(symbols), per_frame)
            )
        )
        quote = np.dtype(
            {
                "names": ["bid", "ask", "time"],
                "formats": [">f8", ">f8", ">u8"],
                "offsets": [offsets["bp"], offsets["ap"], offsets["t"]],
                "itemsize": quote_bytes,
            }
        )
        frame = np.dtype(
            {
                "names": ["quotes"],
                "formats": [(quote, (per_frame,))],
                "offsets": [len(head)],
                "itemsize": self.frame_bytes,
            }
        )
        fields = np.frombuffer(self._buffer, dtype=frame)["quotes"]
        self._bid, self._ask, self._time = fields["bid"], fields["ask"], fields["time"]
        indexes = np.arange(len(symbols), dtype=np.int64).reshape(-1, per_frame)
        self._cents: npt.NDArray[np.int64] = indexes + FIRST_CENTS

    def next_frames(self, most: int, now_ns: int) -> bytes:
        """The next frames, at most this many and not beyond the cycle's end, stamped."""
        cycle, first = divmod(self.frames_sent, self.frames_in_cycle)
        last = min(first + most, self.frames_in_cycle)
        cents = self._cents[first:last] + cycle
        self._bid[first:last] = cents / 100
        self._ask[first:last] = (cents + SPREAD_CENTS) / 100
        seconds, nanoseconds = divmod(now_ns, _SECOND_NS)
        self._time[first:last] = nanoseconds << _NANOSECONDS_SHIFT | seconds
        self.frames_sent += last - first
        return bytes(memoryview(self._buffer)[first * self.frame_bytes : last * self.frame_bytes])


def quotes_of(symbol_index: int, frames_sent: int, symbols: int, per_frame: int) -> int:
    """How many quotes of a symbol are in the first frames of a tape."""
    cycles, frames = divmod(frames_sent, symbols // per_frame)
    return cycles + (symbol_index // per_frame < frames)


def _encode_quote(symbol: str) -> tuple[bytes, dict[str, int]]:
    """A quote as Alpaca sends it, and where its changing fields are, behind their type bytes."""
    bid = {"bx": "V", "bp": 1.0, "bs": 200}
    ask = {"ax": "V", "ap": 1.0, "as": 300}
    fields = {"T": "q", "S": symbol, **bid, **ask, "c": ["R"], "z": "C"}
    data = bytes([0x80 | len(fields) + 1])
    offsets = {}
    for name, value in fields.items():
        data += msgspec.msgpack.encode(name)
        packed = msgspec.msgpack.encode(value)
        if packed[0] == _FLOAT_64:
            offsets[name] = len(data) + 1
        data += packed
    data += msgspec.msgpack.encode("t") + _TIMESTAMP_64
    offsets["t"] = len(data)
    return data + bytes(8), offsets


def _frame_head(payload_bytes: int) -> bytes:
    """The head of an unmasked binary websocket frame. Source: RFC 6455, section 5.2."""
    if payload_bytes < 126:
        return bytes([_BINARY_FINAL, payload_bytes])
    if payload_bytes < 1 << 16:
        return bytes([_BINARY_FINAL, 126]) + payload_bytes.to_bytes(2, "big")
    return bytes([_BINARY_FINAL, 127]) + payload_bytes.to_bytes(8, "big")
