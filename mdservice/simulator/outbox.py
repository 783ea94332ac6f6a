"""What waits to be sent to one client: bounded, and turned into bytes only when it goes.

Frames wait unserialised, so that they can still be thrown away: a compressed one could not,
since those after it build upon it.
"""

from __future__ import annotations

from collections import deque

import attrs
from websockets.protocol import State
from websockets.server import ServerProtocol

from mdservice.simulator.wire import OutFrame

__all__ = ["Outbox"]

_WRITE_BYTES = 64 * 1024


@attrs.frozen
class _HangUp:
    """Here this direction ends; with a closing handshake where there is a code."""

    code: int | None


class Outbox:
    """The send buffer of one connection.

    Args:
        protocol: Serialises the frames.
        limit_bytes: How many bytes of payload may wait.
    """

    def __init__(self, protocol: ServerProtocol, limit_bytes: int) -> None:
        self.pending_bytes = 0
        """Bytes of payload that wait."""
        self._protocol = protocol
        self._limit_bytes = limit_bytes
        self._items: deque[OutFrame | _HangUp] = deque()

    def __bool__(self) -> bool:
        return bool(self._items)

    def put(self, frame: OutFrame) -> bool:
        """Add a frame; False, and nothing is added, where there is no room for it."""
        if self.pending_bytes + len(frame.data) > self._limit_bytes:
            return False
        self._items.append(frame)
        self.pending_bytes += len(frame.data)
        return True

    def hang_up(self, code: int | None) -> None:
        """End after what waits: by a closing handshake, or by an end of file for None."""
        self._items.append(_HangUp(code))

    def replace(self, last: OutFrame, code: int) -> None:
        """Throw away what waits; send this frame and the closing handshake in its place."""
        self._items.clear()
        self._items.append(last)
        self.pending_bytes = len(last.data)
        self.hang_up(code)

    def take(self, *, single: bool = False) -> list[bytes]:
        """Bytes to send, in pieces; ``b""`` is the end of this direction.

        Takes what the protocol itself has to say (handshake, pong, close), and frames up to
        some 64 KiB, or only one.
        """
        protocol = self._protocol
        size = 0
        while self._items and size < (1 if single else _WRITE_BYTES):
            item = self._items.popleft()
            if isinstance(item, OutFrame):
                self.pending_bytes -= len(item.data)
                size += len(item.data)
                if protocol.state is State.OPEN:
                    send = protocol.send_text if item.text else protocol.send_binary
                    send(item.data)
            elif item.code is None:
                return [*protocol.data_to_send(), b""]
            elif protocol.state is State.OPEN:
                protocol.send_close(item.code)
        return protocol.data_to_send()
