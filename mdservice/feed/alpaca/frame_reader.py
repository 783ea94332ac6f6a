"""Takes whole messages out of the bytes of one socket read, before the library parses them.

Nearly all that a feed sends are messages of one unmasked frame. The library runs several
generators for each, which takes longer than decoding ten quotes. This module takes out the plain
messages and passes pings and pongs to the library one by one. From the first other frame on, the
library gets all bytes. So only the library implements the full protocol.

::

    response │ message message ping message … │ fragment, close, or anything odd …
    library  │ here    here    lib. here      │ library, for the rest of the connection
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from websockets.client import ClientProtocol
from websockets.protocol import State

__all__ = ["FrameReader"]

_TEXT, _BINARY = 0x81, 0x82
"""The first byte of a message that is one frame: FIN is set, and no extension bit."""
_PING, _PONG = 0x89, 0x8A
_MESSAGES: Final = (_BINARY, _TEXT)
_PLAIN: Final = (_BINARY, _TEXT, _PING, _PONG)
_MOST_IN_SHORT: Final = 125
"""Bytes in a frame whose length is in its second byte, and in any ping or pong."""
_SHORT_HEAD: Final = 2
_LENGTH_16, _LENGTH_64 = 126, 127
_HEADS: Final = {_LENGTH_16: 4, _LENGTH_64: 10}
"""The size of a frame's head whose length has 16 or 64 bits.

Source: RFC 6455, section 5.2.
"""
_RESPONSE_END: Final = b"\r\n\r\n"


class FrameReader:
    """Takes the place of a client protocol's ``receive_data``.

    Args:
        protocol: The library's, not yet open.
        most_bytes: The limit of one message; the library refuses a longer one.
        put: Receives messages in order, each with whether it is text, and their bytes in all.
    """

    def __init__(
        self,
        protocol: ClientProtocol,
        most_bytes: int,
        put: Callable[[Sequence[tuple[bytes, bool]], int], None],
    ) -> None:
        self._protocol = protocol
        self._library = protocol.receive_data
        self._most_bytes = most_bytes
        self._put = put
        self._opening = True
        self._response_tail = b""
        self._rest = bytearray()
        """The beginning of a frame …"""
        self._rest_needs = 0
        """… and how many bytes there have to be before it is worth a look."""
        self._given_over = False

    def receive_data(self, data: bytes | bytearray) -> None:
        """Receive bytes in order; like the library's method, never raises for invalid bytes."""
        if self._opening:
            data = self._open(bytes(data))
        if not data:
            return
        if not self._given_over and self._protocol.state is not State.OPEN:
            self._give_over()
        if self._given_over:
            self._library(data)
        elif self._rest:
            self._rest += data
            if len(self._rest) >= self._rest_needs:
                whole = bytes(self._rest)
                self._rest.clear()
                self._cut(whole)
        else:
            self._cut(bytes(data))

    def _open(self, data: bytes) -> bytes:
        """Pass the upgrade response to the library; return the bytes after it."""
        seen = self._response_tail + data
        end = seen.find(_RESPONSE_END)
        if end < 0:
            self._response_tail = seen[1 - len(_RESPONSE_END) :]
            self._library(data)
            if self._protocol.state is not State.CONNECTING:
                # The library saw the response end earlier, so the start of a frame is not known.
                self._opening, self._given_over = False, True
            return b""
        self._opening = False
        size = end + len(_RESPONSE_END) - len(self._response_tail)
        self._library(data[:size])
        return data[size:]

    def _give_over(self) -> None:
        self._given_over = True
        if self._rest:
            self._library(bytes(self._rest))
            self._rest.clear()

    def _cut(self, data: bytes) -> None:
        """Take the messages out of bytes that begin with a frame; keep the start of the last."""
        messages: list[tuple[bytes, bool]] = []
        position, size, taken = 0, len(data), 0
        needs = _SHORT_HEAD
        while size - position >= _SHORT_HEAD:
            kind, length = data[position], data[position + 1]
            start, most = position + _SHORT_HEAD, _MOST_IN_SHORT
            if length in _HEADS:
                start = position + _HEADS[length]
                if start > size and kind in _PLAIN:
                    needs = start - position
                    break
                length = int.from_bytes(data[position + _SHORT_HEAD : start], "big")
                most = self._most_bytes if kind in _MESSAGES else _MOST_IN_SHORT
            if kind not in _PLAIN or length > most:  # a mask counts as a bit of the length
                self._given_over = True
                break
            end = start + length
            if end > size:
                needs = end - position
                break
            if kind in _MESSAGES:
                messages.append((data[start:end], kind == _TEXT))
                taken += length
            else:
                self._library(data[position:end])
            position = end
        if messages:
            self._put(messages, taken)
        if self._given_over:
            self._library(data[position:])
        else:
            self._rest += data[position:]
            self._rest_needs = needs
