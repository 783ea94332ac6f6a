"""What the blaster sends: one quote of every symbol in turn, encoded beforehand.

A cycle is one quote of each symbol, as whole websocket frames in one buffer. Sending costs
no encoding: prices and times are patched in place, for all frames at once. The bid of a
symbol rises by a cent a cycle, so that any price tells which quote it came from.
"""

from __future__ import annotations

import string

import numpy as np
import numpy.typing as npt

from tests.bench.encodings import SPREAD_CENTS, Encoding

__all__ = ["FIRST_CENTS", "SPREAD_CENTS", "Tape", "bid_cents", "quotes_of", "symbol_names"]

FIRST_CENTS = 10_000


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
        encoding: How they are written.
    """

    def __init__(self, symbols: list[str], per_frame: int, encoding: Encoding) -> None:
        if len(symbols) % per_frame:
            raise ValueError(f"{len(symbols)} symbols do not fill frames of {per_frame}")
        quotes, places = zip(*map(encoding.quote, symbols), strict=True)
        quote_bytes = len(quotes[0]) + len(encoding.between)
        opening = encoding.opening(per_frame)
        payload_bytes = len(opening) + per_frame * quote_bytes
        head = _frame_head(encoding.frame_byte, payload_bytes) + opening
        self.per_frame = per_frame
        self.frames_in_cycle = len(symbols) // per_frame
        self.frame_bytes = len(head) + per_frame * quote_bytes
        self.frames_sent = 0
        self._buffer = bytearray(
            b"".join(
                head + encoding.between.join(quotes[start : start + per_frame]) + encoding.closing
                for start in range(0, len(symbols), per_frame)
            )
        )
        quote = np.dtype(
            {
                "names": ["bid", "ask", "time"],
                "formats": encoding.formats,
                "offsets": places[0],
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
        self._encoding = encoding
        self._fields = np.frombuffer(self._buffer, dtype=frame)["quotes"]
        indexes = np.arange(len(symbols), dtype=np.int64).reshape(-1, per_frame)
        self._cents: npt.NDArray[np.int64] = indexes + FIRST_CENTS

    def next_frames(self, most: int, now_ns: int) -> bytes:
        """The next frames, at most this many and not beyond the cycle's end, stamped."""
        cycle, first = divmod(self.frames_sent, self.frames_in_cycle)
        last = min(first + most, self.frames_in_cycle)
        self._encoding.stamp(self._fields[first:last], self._cents[first:last] + cycle, now_ns)
        self.frames_sent += last - first
        return bytes(memoryview(self._buffer)[first * self.frame_bytes : last * self.frame_bytes])


def quotes_of(symbol_index: int, frames_sent: int, symbols: int, per_frame: int) -> int:
    """How many quotes of a symbol are in the first frames of a tape."""
    cycles, frames = divmod(frames_sent, symbols // per_frame)
    return cycles + (symbol_index // per_frame < frames)


def _frame_head(first: int, payload_bytes: int) -> bytes:
    """The head of an unmasked websocket frame. Source: RFC 6455, section 5.2."""
    if payload_bytes < 126:
        return bytes([first, payload_bytes])
    if payload_bytes < 1 << 16:
        return bytes([first, 126]) + payload_bytes.to_bytes(2, "big")
    return bytes([first, 127]) + payload_bytes.to_bytes(8, "big")
