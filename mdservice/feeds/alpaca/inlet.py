"""Whole websocket messages, all that have come with one read, in the place of the library's queue.

The library hands over one message at a time, and each costs two hops over a channel: more than
all of the decoding. What comes with one read of the socket is taken here in one go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import anyio
from anyio.lowlevel import checkpoint
from websockets.frames import Frame as WireFrame
from websockets.frames import Opcode

from mdservice.feeds.driver import Frame

__all__ = ["MOST_BYTES_AT_ONCE", "FrameInlet"]

MOST_BYTES_AT_ONCE: Final = 65_536
"""What is taken at once; a thousand quotes or so, and a few milliseconds of the event loop."""


class FrameInlet:
    """Takes data frames, puts fragments together, gives out messages.

    Has the methods that the library's own ``Assembler`` has, as far as they are used: ``put`` and
    ``close`` are called by the connection, ``get`` by its ``recv``.

    Args:
        most: Messages that may wait; beyond it reading is paused.
        pause: Stops the reading of the socket.
        resume: Goes on with it.
    """

    def __init__(self, most: int, pause: Callable[[], Any], resume: Callable[[], Any]) -> None:
        self._most = most
        self._pause = pause
        self._resume = resume
        self._paused = False
        self._messages: deque[tuple[bytes, bool]] = deque()
        self._started: Opcode | None = None
        """What the fragments will be, while there are some."""
        self._fragments = bytearray()
        self._arrived = anyio.Event()
        self._waiting = False
        self._closed = False
        self._discarding = False

    def put(self, frame: WireFrame) -> None:
        """A data frame came.

        Raises:
            EOFError: After :meth:`close`.
        """
        if self._closed:
            raise EOFError
        if self._started is not None or not frame.fin:
            if self._started is None:
                self._started = frame.opcode
            self._fragments += frame.data
            if not frame.fin:
                return
            opcode, data = self._started, bytes(self._fragments)
            self._started, self._fragments = None, bytearray()
        else:
            opcode, data = frame.opcode, bytes(frame.data)
        self.put_messages([(data, opcode is Opcode.TEXT)])

    def put_messages(self, messages: Sequence[tuple[bytes, bool]]) -> None:
        """Whole messages came, each with whether it is text.

        Raises:
            EOFError: After :meth:`close`.
        """
        if self._closed:
            raise EOFError
        if self._discarding:
            return
        self._messages.extend(messages)
        if self._waiting:
            self._arrived.set()
        if len(self._messages) > self._most and not self._paused:
            self._paused = True
            self._pause()

    def discard(self) -> None:
        """Throw away what waits and what still comes: the connection is being closed."""
        self._discarding = True
        self._messages.clear()
        self._read_on()

    def close(self) -> None:
        """No more will come; what waits can still be taken."""
        self._closed = True
        self._arrived.set()
        self._read_on()  # the socket's end has to be seen

    def _read_on(self) -> None:
        if self._paused:
            self._paused = False
            self._resume()

    async def get(self, _decode: None = None) -> Frame:
        """The next message; cancelling loses none. The library's ``recv`` calls it.

        Raises:
            EOFError: There are no more.
            UnicodeDecodeError: It is text and no UTF-8.
        """
        await self._some()
        return self._taken()

    async def get_some(self) -> Sequence[Frame]:
        """All messages that wait, at least one; cancelling loses none.

        Raises:
            EOFError: There are no more.
            UnicodeDecodeError: The first of them is text and no UTF-8; it stays for :meth:`get`.
        """
        await self._some()
        found: list[Frame] = []
        size = 0
        while self._messages and size < MOST_BYTES_AT_ONCE:
            size += len(self._messages[0][0])
            try:
                found.append(self._taken())
            except UnicodeDecodeError:
                if not found:
                    raise
                break
        return found

    async def _some(self) -> None:
        """Wait for a message; where one waits already, let the others run."""
        if self._messages:
            await checkpoint()
        while not self._messages:
            if self._closed:
                raise EOFError
            self._arrived = anyio.Event()
            self._waiting = True
            try:
                await self._arrived.wait()
            finally:
                self._waiting = False

    def _taken(self) -> Frame:
        data, is_text = self._messages[0]
        message: Frame = data.decode() if is_text else data
        self._messages.popleft()
        if self._paused and len(self._messages) <= self._most // 4:
            self._paused = False
            self._resume()
        return message
