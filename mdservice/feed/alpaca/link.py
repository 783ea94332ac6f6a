"""An open connection that speaks Alpaca's protocol, whatever carries its frames."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mdservice.feed.alpaca.codec import Codec, Encoding, Frame, request
from mdservice.feed.driver import Received
from mdservice.feed.subscriptions import Followed
from mdservice.model.feeds import STOCKS, Feed, Topic

__all__ = ["AlpacaLink"]


class AlpacaLink(ABC):
    """A :class:`~mdservice.feed.driver.Link` over frames; each driver sends and receives these.

    Args:
        encoding: The encoding of the frames, both ways.
        followed: The topics whose records are accepted.
        utc_ns: Returns the time of reception, UTC nanoseconds.
        feed: Which feed.
    """

    def __init__(
        self,
        encoding: Encoding,
        followed: Followed,
        utc_ns: Callable[[], int],
        feed: Feed = STOCKS,
    ) -> None:
        self._codec = Codec(encoding, followed, feed)
        self._utc_ns = utc_ns
        self._tap = followed.tap
        if self._tap is not None:
            self._tap.opened(encoding)

    @property
    def encoding(self) -> Encoding:
        """How its frames are encoded."""
        return self._codec.encoding

    @abstractmethod
    async def send_frame(self, frame: Frame) -> None:
        """Send one frame.

        Raises:
            FeedUnavailable: The connection has ended.
        """

    @abstractmethod
    async def receive_frames(self) -> Sequence[Frame]:
        """Wait for frames, at least one, and return those that have come, in order.

        A cancelled call loses no frame. If frames wait already, it still lets other tasks run.

        Raises:
            FeedUnavailable: The connection has ended, and all of its frames were returned.
        """

    async def send(self, message: Mapping[str, Any]) -> None:
        """Send one message, such as the login's."""
        await self.send_frame(self._codec.encode(message))

    async def subscribe(self, topics: Sequence[Topic]) -> None:
        """See :meth:`mdservice.feed.driver.Link.subscribe`."""
        await self.send(request("subscribe", topics))

    async def unsubscribe(self, topics: Sequence[Topic]) -> None:
        """See :meth:`mdservice.feed.driver.Link.unsubscribe`."""
        await self.send(request("unsubscribe", topics))

    async def receive(self) -> Received:
        """See :meth:`mdservice.feed.driver.Link.receive`."""
        if self._codec.ended is not None:
            raise self._codec.ended
        frames = await self.receive_frames()
        received_ns = self._utc_ns()
        if self._tap is not None:
            self._tap.frames(frames, received_ns)
        return self._codec.decode(frames, received_ns)
