"""What all clients of the relay together want of the feeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol

import anyio

from mdservice.errors import SubscriptionRefused
from mdservice.model.feeds import Feed, Topic
from mdservice.model.kinds import Kind
from mdservice.observability.logging import get_logger

__all__ = ["RELEASED_AFTER_S", "SOURCE", "Upstream", "Wishes"]

_log = get_logger(__name__)

SOURCE: Final = "relay"
"""The name of the clients of the relay among those who want a symbol."""
RELEASED_AFTER_S: Final = 30.0
"""How long a topic stays subscribed after its last client has left."""


class Upstream(Protocol):
    """The service, as the relay sees it."""

    async def subscribe(self, feed: Feed, topics: Sequence[Topic]) -> None:
        """Let the feed send these topics; in an outage, as soon as it is back.

        Raises:
            SubscriptionRefused: The feed has refused all of them.
        """
        ...

    async def unsubscribe(self, feed: Feed, topics: Sequence[Topic]) -> None:
        """The relay no longer wants these topics."""
        ...

    def latest(self, feed: Feed, kind: Kind[Any], symbol: str) -> Sequence[Any]:
        """The latest record of a symbol, or of all symbols for ``*``."""
        ...


class Wishes:
    """The topics of one feed that clients want, each counted.

    Args:
        feed: The feed.
        upstream: Gets what changes.
    """

    def __init__(self, feed: Feed, upstream: Upstream) -> None:
        self._feed = feed
        self._upstream = upstream
        self._counts: Counter[Topic] = Counter()
        self._held: dict[Topic, float | None] = {}
        """The topics that were asked of the feed; with the time at which they are released."""
        self._unknown: set[Topic] = set()
        """Those of which the last request was cancelled, so that the feed may have them."""
        self._changing = anyio.Lock()

    def count(self, topics: Iterable[Topic]) -> None:
        """Count topics for one more client."""
        for topic in topics:
            self._counts[topic] += 1
            if topic in self._held:
                self._held[topic] = None

    async def ask(self, topics: Iterable[Topic]) -> None:
        """Ask the feed for those of the counted topics that it does not send yet.

        Raises:
            SubscriptionRefused: The feed has refused all of them.
        """
        async with self._changing:
            new = tuple(topic for topic in topics if topic not in self._held)
            if not new:
                return
            self._unknown.update(new)
            try:
                await self._upstream.subscribe(self._feed, new)
            except SubscriptionRefused:
                self._unknown.difference_update(new)
                raise
            self._unknown.difference_update(new)
            released_s = anyio.current_time() + RELEASED_AFTER_S
            for topic in new:  # the client may have left meanwhile
                self._held[topic] = None if topic in self._counts else released_s

    def remove(self, topics: Iterable[Topic]) -> None:
        """Count topics for one client less; those of the last client are released later."""
        for topic in topics:
            self._counts[topic] -= 1
            if not self._counts[topic]:
                del self._counts[topic]
                if topic in self._held:
                    self._held[topic] = anyio.current_time() + RELEASED_AFTER_S

    def remove_all(self) -> None:
        """Every client has left."""
        self.remove(list(self._counts.elements()))

    async def release(self) -> None:
        """Unsubscribe the topics whose time has come."""
        if not self._unknown and not self._due():
            return
        async with self._changing:
            due = self._due()
            self._unknown.update(due)
            if not self._unknown:
                return
            for topic in due:
                del self._held[topic]
            await self._upstream.unsubscribe(self._feed, tuple(self._unknown))
            _log.info("relay_topics_released", feed=self._feed.name, count=len(self._unknown))
            self._unknown.clear()

    def _due(self) -> Sequence[Topic]:
        now_s = anyio.current_time()
        return [topic for topic, at in self._held.items() if at is not None and at <= now_s]
