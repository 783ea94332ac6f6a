"""The feed's way out: everything once and in order, whatever is cancelled meanwhile."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import Any

import anyio

from mdservice.feed.subscriptions import FeedTap
from mdservice.model.events import FeedItem
from mdservice.model.kinds import Kind
from mdservice.runtime.actor import Outbox

__all__ = ["SendQueue"]


class SendQueue:
    """Sends items to the router, each once and in the order of adding.

    Items go into the channel at once. Only what the channel has no room for is kept here: a wait
    for room that is cancelled leaves it, and the next one sends it first, so what one connection
    read is not lost with it. A connection leaves a handful of items at most, so that this does not
    grow.

    Args:
        outbox: The channel to the router.
        tap: Gets every item too, for the journal.
    """

    def __init__(self, outbox: Outbox[FeedItem], tap: FeedTap | None = None) -> None:
        self._outbox = outbox
        self._tap = tap
        self._waiting: deque[FeedItem] = deque()
        self._sending = anyio.Lock(fast_acquire=True)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, item: FeedItem) -> None:
        """Send an item, or keep it for :meth:`flush` where others wait or there is no room."""
        if self._tap is not None:
            self._tap.item(item)
        if not self._waiting:
            with suppress(anyio.WouldBlock):
                self._outbox.send_nowait(item)
                return
        self._waiting.append(item)

    def holding(self, kind: Kind[Any]) -> None:
        """Note that records of a kind are held back until the items of its repair are added."""
        if self._tap is not None:
            self._tap.holding(kind)

    async def flush(self) -> None:
        """Wait until everything is sent."""
        if not self._waiting:
            return
        async with self._sending:
            while self._waiting:
                await self._outbox.send(self._waiting[0])
                self._waiting.popleft()

    async def send(self, item: FeedItem) -> None:
        """Add an item, and wait until everything is sent."""
        self.add(item)
        await self.flush()

    def close(self) -> None:
        """Close the channel; what still waits is lost."""
        self._outbox.close()
