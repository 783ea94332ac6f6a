"""The part of the service that the HTTP API uses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol

from mdservice.model.events import FeedStatus
from mdservice.model.position import Position
from mdservice.model.quote import Quote
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

    async def subscribe(self, *symbols: str, source: str = "api") -> SubscriptionOutcome:
        """Subscribe to symbols.

        Raises:
            InvalidSymbol: One of them is not a symbol.
            SubscriptionRefused: The feed refused; nothing has changed.
        """
        ...

    async def unsubscribe(self, *symbols: str, source: str = "api") -> SubscriptionOutcome:
        """Remove symbols from those that a source wants; ``api`` also removes the settings'.

        Raises:
            InvalidSymbol: One of them is not a symbol.
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

    def latest(self, symbol: str) -> Quote | None:
        """The last accepted quote of a symbol, or None."""
        ...

    def prices(self, symbols: Iterable[str] | None = None) -> list[Quote]:
        """The last accepted quotes of these symbols, or of all; unknown symbols are omitted."""
        ...

    def events(
        self, *symbols: str
    ) -> AbstractAsyncContextManager[AsyncIterator[Quote | FeedStatus]]:
        """Accepted quotes of these symbols, or of all, and every change of the feed's state.

        The latest quote of each symbol comes first, then every later one. None is missing or
        repeated between the two.

        For a slow reader, quotes are conflated to the latest per symbol. A reader never delays
        the feed.
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
