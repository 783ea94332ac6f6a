"""The part of the service that the HTTP API uses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Protocol

from mdservice.model.events import FeedStatus, RecordBatch
from mdservice.model.kinds import Kind, R
from mdservice.model.news import Article
from mdservice.model.position import Position
from mdservice.model.status import Readiness, Status

__all__ = ["ServiceHandle", "SubscriptionOutcome"]


class SubscriptionOutcome(Protocol):
    """The result of a change of the subscriptions."""

    @property
    def status(self) -> Literal["subscribed", "unsubscribed", "pending"]:
        """``pending`` while the feed is down: the change is made when it is back."""
        ...

    @property
    def symbols(self) -> tuple[str, ...]:
        """The requested symbols, in upper case, without repeats."""
        ...


class ServiceHandle(Protocol):
    """A running service, as the HTTP API uses it.

    Call it only in the service's own event loop. Plain methods return at once.
    """

    async def subscribe(
        self, *symbols: str, channels: Iterable[str] | None = None, source: str = "api"
    ) -> SubscriptionOutcome:
        """Subscribe to channels of symbols; without channels, to those of the settings.

        Raises:
            InvalidSymbol: One of them is not a symbol.
            InvalidChannel: A channel is unknown, or a symbol has none of them.
            SubscriptionRefused: The feed refused; nothing has changed.
        """
        ...

    async def unsubscribe(
        self, *symbols: str, channels: Iterable[str] | None = None, source: str = "api"
    ) -> SubscriptionOutcome:
        """Remove symbols from those that a source wants, or some of their channels.

        ``api`` also removes the settings'.

        Raises:
            InvalidSymbol: One of them is not a symbol.
            InvalidChannel: A channel is unknown, or a symbol has none of them.
        """
        ...

    def subscriptions(self) -> dict[str, list[str]]:
        """The sources that want each symbol: ``{"AAPL": ["api", "settings"]}``."""
        ...

    def channels(self) -> dict[str, list[str]]:
        """The acknowledged subscriptions: ``{"AAPL": ["quotes"]}``."""
        ...

    def left_out(self) -> dict[str, dict[str, str]]:
        """The unfulfilled symbols: ``{"MSFT": {"quotes": "symbol limit exceeded"}}``."""
        ...

    def positions(self) -> Sequence[Position]:
        """The last known positions."""
        ...

    def latest_record(self, kind: Kind[R], symbol: str) -> R | None:
        """The latest record of one kind and symbol, or None."""
        ...

    def latest_records(self, kind: Kind[R], symbols: Iterable[str] | None = None) -> list[R]:
        """The latest records of one kind, of these symbols or all; symbols without are omitted."""
        ...

    def news(self, symbols: Iterable[str], limit: int) -> list[Article]:
        """The newest articles about any of the symbols, or without symbols of all, newest first."""
        ...

    def batches(
        self, *symbols: str, channels: Iterable[str]
    ) -> AbstractAsyncContextManager[AsyncIterator[RecordBatch[Any] | FeedStatus]]:
        """Accepted records of these symbols, or of all, and every change of a feed's state.

        The latest value of each symbol and channel comes first, then every later record. None is
        missing or repeated between the two.

        For a slow reader, records are conflated or dropped by their kind. A reader never delays
        the feeds.
        """
        ...

    def states_since(self, count: int) -> tuple[list[FeedStatus], int]:
        """The last changes of the feeds' states after the first ``count``, the oldest first.

        Returns:
            Those that are kept, and how many there have been since the start.
        """
        ...

    def status(self) -> Status:
        """A snapshot of the whole service."""
        ...

    def readiness(self) -> Readiness:
        """Whether the service is ready, and the reasons if not."""
        ...

    def liveness(self) -> Readiness:
        """Whether the event loop and the watchdog run."""
        ...
