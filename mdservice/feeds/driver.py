"""What a feed driver is: one connection, opened with login, and nothing else.

A driver knows how bytes come and go. Who reconnects, when, what is subscribed and what the
bytes mean is the business of :class:`mdservice.feeds.connection.FeedConnection`, the same
for every driver.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Protocol

__all__ = ["CLOSE_TIMEOUT_S", "OPEN_TIMEOUT_S", "Driver", "Encoding", "Frame", "Link"]

Encoding = Literal["json", "msgpack"]
Frame = bytes | str
"""One websocket message: text for JSON, bytes for msgpack."""

OPEN_TIMEOUT_S = 3.0
"""How long connecting and logging in may take together."""
CLOSE_TIMEOUT_S = 1.0
"""How long closing may take before the socket is dropped."""


class Link(Protocol):
    """An open, authenticated connection."""

    @property
    def encoding(self) -> Encoding:
        """How its frames are encoded, both ways."""
        ...

    async def send(self, message: Mapping[str, Any]) -> None:
        """Send one control message such as ``{"action": "subscribe", "quotes": ["AAPL"]}``.

        Raises:
            FeedUnavailable: The connection has ended.
        """
        ...

    async def receive(self) -> Sequence[Frame]:
        """Wait for data; return frames that have come, at least one, in order.

        A cancelled call loses no frame. Where some wait already, it still lets other tasks run:
        nothing else holds back the loop that calls it.

        Raises:
            FeedUnavailable: The connection has ended, and all of its frames were returned.
        """
        ...


class Driver(Protocol):
    """A way to reach the feed."""

    @property
    def name(self) -> str:
        """As in the settings and the status: ``alpaca-py`` or ``websockets``."""
        ...

    def connect(self) -> AbstractAsyncContextManager[Link]:
        """Connect and log in within :data:`OPEN_TIMEOUT_S`, for as long as the block lasts.

        Closed at its end within :data:`CLOSE_TIMEOUT_S`, also when cancelled.

        Raises:
            FeedUnavailable: It cannot be reached, or does not answer in time.
            FeedRefused: It answered and said no.
            ConfigurationError: The driver itself cannot work here (not installed, say).
        """
        ...
