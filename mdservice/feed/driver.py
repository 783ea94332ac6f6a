"""What a feed driver is: one connection, opened with login, and nothing else.

A driver knows how bytes come and go. Who reconnects, when, what is subscribed and what the
bytes mean is the business of :class:`mdservice.feed.connection.FeedConnection`, the same
for every driver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, Literal, Protocol

import attrs

from mdservice.errors import FeedUnavailable

__all__ = [
    "CLOSE_TIMEOUT_S",
    "LONGEST_OPEN_TIMEOUT_S",
    "OPEN_TIMEOUT_S",
    "Driver",
    "Encoding",
    "Frame",
    "Link",
    "LoginLimit",
]

Encoding = Literal["json", "msgpack"]
Frame = bytes | str
"""One websocket message: text for JSON, bytes for msgpack."""

OPEN_TIMEOUT_S = 3.0
"""How long connecting and logging in may take together, at first."""
LONGEST_OPEN_TIMEOUT_S = 15.0
"""How long they may take after several tries that ran out of time."""
CLOSE_TIMEOUT_S = 1.0
"""How long closing may take before the socket is dropped."""
_RAN_OUT = 0.95
"""The part of the limit after which a failed try counts as too slow; clocks differ a little."""


@attrs.define
class LoginLimit:
    """How long connecting and logging in may take: short at first, doubled where it is too short.

    It is short so that ``auto`` soon changes drivers, and grows so that a slow name server or a
    far proxy does not keep the service out for ever. The drivers of one feed share it. It covers
    all steps of a login: the name, TCP, a proxy, TLS, the upgrade, the greeting and the
    authentication.

    Attributes:
        seconds: The limit of the next try.
    """

    seconds: float = attrs.field(factory=lambda: OPEN_TIMEOUT_S)

    @contextmanager
    def one_try(self, time_s: Callable[[], float]) -> Iterator[float]:
        """One try to connect and log in; gives the seconds that it may take.

        Args:
            time_s: The event loop's clock, seconds.
        """
        limit_s, started_s = self.seconds, time_s()
        try:
            yield limit_s
        except FeedUnavailable:
            if time_s() - started_s >= limit_s * _RAN_OUT:
                self.seconds = max(limit_s, min(LONGEST_OPEN_TIMEOUT_S, limit_s * 2))
            raise
        self.seconds = OPEN_TIMEOUT_S


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
        """Connect and log in, for as long as the block lasts.

        Gives up after :data:`OPEN_TIMEOUT_S`; a driver for slow ways takes a :class:`LoginLimit`.

        Closed at its end within :data:`CLOSE_TIMEOUT_S`, also when cancelled.

        Raises:
            FeedUnavailable: It cannot be reached, or does not answer in time.
            FeedRefused: It answered and said no.
            ConfigurationError: The driver itself cannot work here (not installed, say).
        """
        ...
