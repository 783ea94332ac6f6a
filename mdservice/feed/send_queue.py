"""The feed's way out: everything once and in order, whatever is cancelled meanwhile."""

from __future__ import annotations

from collections import deque

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from mdservice.model.events import FeedItem
from mdservice.runtime.actor import forward

__all__ = ["SendQueue"]


class SendQueue:
    """Sends items to the router.

    Each item is sent once, in the order of adding. If a wait for room is cancelled, the item stays
    here and the next call sends it first, so what a connection has read is not lost with it. A
    connection leaves a handful of items at most, so the queue does not grow.

    Args:
        outbox: The channel to the router.
    """

    def __init__(self, outbox: MemoryObjectSendStream[FeedItem]) -> None:
        self._outbox = outbox
        self._waiting: deque[FeedItem] = deque()
        self._sending = anyio.Lock(fast_acquire=True)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, item: FeedItem) -> None:
        """Keep an item for the next :meth:`flush`, behind those that wait already."""
        self._waiting.append(item)

    async def flush(self) -> None:
        """Send everything that waits."""
        async with self._sending:
            while self._waiting:
                await forward(self._outbox, self._waiting[0])
                self._waiting.popleft()

    async def send(self, item: FeedItem) -> None:
        """Add an item and send everything that waits."""
        self.add(item)
        await self.flush()

    def close(self) -> None:
        """Close the channel; what still waits is lost."""
        self._outbox.close()
