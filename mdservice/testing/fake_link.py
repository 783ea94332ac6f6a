"""One connection of a :class:`~mdservice.testing.fake_driver.FakeDriver`, from both sides."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import anyio
import anyio.lowlevel

from mdservice.errors import FeedUnavailable
from mdservice.feeds.driver import Encoding, Frame
from mdservice.simulator.codes import error_message
from mdservice.simulator.session import Reply, Session
from mdservice.simulator.wire import OutFrame, encode_messages

__all__ = ["FakeLink"]

_MOST_FRAMES: Final = 100_000
_SLOW_CLIENT: Final = 407
_MASKED: Final = ("key", "secret")


class FakeLink:
    """One open connection, from both sides; made by :meth:`FakeDriver.connect`.

    Attributes:
        number: Counts the driver's attempts to connect, from 1.
        encoding: Of the frames.
        sent: Every message of the client, in order, the login included, secrets masked.
        is_open: False once the client has left its block.
    """

    def __init__(
        self, number: int, encoding: Encoding, session: Session, notify: Callable[[], None]
    ) -> None:
        self.number = number
        self.encoding = encoding
        self.sent: list[Mapping[str, Any]] = []
        self.is_open = False
        self._tell_driver = notify
        self._session = session
        self._frames: deque[Frame] = deque()
        self._ended: str | None = None
        self._changed = anyio.Event()

    # As the client sees it.

    async def send(self, message: Mapping[str, Any]) -> None:
        """See :meth:`mdservice.feeds.driver.Link.send`."""
        await anyio.lowlevel.checkpoint()
        if self._ended is not None:
            raise FeedUnavailable(self._ended)
        reply = self._take(message)
        for answer in reply.messages:
            self.feed(encode_messages([answer], self.encoding))
        if reply.close_code is not None:
            self.end(f"the feed closed the connection with {reply.close_code}")

    async def receive(self) -> Sequence[Frame]:
        """See :meth:`mdservice.feeds.driver.Link.receive`."""
        await anyio.lowlevel.checkpoint()
        while not self._frames:
            if self._ended is not None:
                raise FeedUnavailable(self._ended)
            await self._changed.wait()
        frames = tuple(self._frames)
        self._frames.clear()
        return frames

    # As the test sees it.

    @property
    def authenticated(self) -> bool:
        """It has logged in."""
        return self._session.authenticated

    @property
    def subscriptions(self) -> Mapping[str, tuple[str, ...]]:
        """The symbols of each channel."""
        return self._session.subscriptions

    @property
    def requests(self) -> list[tuple[str, list[str]]]:
        """Action and symbols of each change of the quotes' subscriptions, in order."""
        return [(m["action"], m["quotes"]) for m in self.sent if "quotes" in m]

    def log_in(self, message: Mapping[str, Any]) -> Reply:
        """The server's answer to the credentials; once it is positive the link is open."""
        reply = self._take(message)
        self.is_open = self._session.authenticated
        return reply

    def feed(self, *frames: Frame | OutFrame) -> None:
        """Let frames come; a client that leaves too many of them is cut off as slow (407)."""
        if self._ended is not None:
            return
        if len(self._frames) + len(frames) > _MOST_FRAMES:
            self._frames.clear()
            frames = (encode_messages([error_message(_SLOW_CLIENT)], self.encoding),)
            self._ended = "the feed cut a slow client off"
        self._frames.extend(
            _as_frame(frame) if isinstance(frame, OutFrame) else frame for frame in frames
        )
        self._notify()

    def wants(self, symbol: str) -> bool:
        """Whether quotes of the symbol are subscribed to."""
        return self.is_open and self._session.wants(symbol)

    def end(self, reason: str = "the feed closed the connection", *, lose: bool = False) -> None:
        """End the connection from the server's side.

        Args:
            reason: The client's error says so.
            lose: Whether what the client has not received is lost.
        """
        if lose:
            self._frames.clear()
        self._ended = self._ended or reason
        self._notify()

    def leave(self) -> None:
        """The client has left its block."""
        self.is_open = False
        self._session.end(anyio.current_time(), clean=True)
        self.end("this side closed the connection", lose=True)
        self._tell_driver()

    def _take(self, message: Mapping[str, Any]) -> Reply:
        shown = {name: "***" if name in _MASKED else value for name, value in message.items()}
        self.sent.append(shown)
        reply = self._session.receive(message, anyio.current_time())
        self._tell_driver()
        return reply

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


def _as_frame(frame: OutFrame) -> Frame:
    return frame.data.decode() if frame.text else frame.data
