"""What the HTTP API needs of the service."""

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
    """What became of a change of the subscribed symbols."""

    @property
    def status(self) -> Literal["subscribed", "unsubscribed", "pending"]:
        """``pending`` while the feed is away: the change is made when it is back."""
        ...

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols that were asked for, in upper case, each once."""
        ...


class ServiceHandle(Protocol):
    """The running service, as the calls of the API use it.

    All of it is used from the service's own event loop, and the plain methods return at once.
    """

    async def subscribe(self, *symbols: str, source: str = "api") -> SubscriptionOutcome:
        """Ask the feed for symbols.

        Raises:
            InvalidSymbol: One of them is no symbol.
            SubscriptionRefused: The feed said no; nothing has changed.
        """
        ...

    async def unsubscribe(self, *symbols: str, source: str = "api") -> SubscriptionOutcome:
        """No longer follow symbols on behalf of a source; ``api`` ends the settings' too.

        Raises:
            InvalidSymbol: One of them is no symbol.
        """
        ...

    def subscriptions(self) -> dict[str, list[str]]:
        """Who wants which symbol: ``{"AAPL": ["api", "settings"]}``."""
        ...

    def channels(self) -> dict[str, list[str]]:
        """What the feed has acknowledged: ``{"AAPL": ["quotes"]}``."""
        ...

    def left_out(self) -> dict[str, dict[str, str]]:
        """What the feed does not give: ``{"MSFT": {"quotes": "symbol limit exceeded"}}``."""
        ...

    def positions(self) -> Sequence[Position]:
        """The positions whose symbols are followed, as last told."""
        ...

    def latest(self, symbol: str) -> Quote | None:
        """The last accepted quote of a symbol, or None."""
        ...

    def prices(self, symbols: Iterable[str] | None = None) -> list[Quote]:
        """The last accepted quotes of these symbols, or of all; unknown ones are left out."""
        ...

    def events(
        self, *symbols: str
    ) -> AbstractAsyncContextManager[AsyncIterator[Quote | FeedStatus]]:
        """Accepted quotes of these symbols, or of all, and every change of the feed's state.

        First comes the latest quote of each of the symbols, then what follows it: none is
        missing or repeated between the two.

        What a slow reader cannot take in time is conflated to the latest per symbol; a reader
        never holds up the feed.
        """
        ...

    def status(self) -> Status:
        """A snapshot of the whole service."""
        ...

    def readiness(self) -> Readiness:
        """Whether the feed and Redis can be relied on."""
        ...

    def liveness(self) -> Readiness:
        """Whether the event loop and the watchdog run."""
        ...
