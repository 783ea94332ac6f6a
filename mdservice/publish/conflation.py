"""A bounded buffer that loses old quotes before new ones, and counts them. Pure.

Up to its limit it is a queue. Beyond that the oldest quotes are conflated: of each symbol
only the newest of them is kept, at its place in the order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice

from mdservice.model.events import FeedStatus
from mdservice.model.quote import Quote

__all__ = ["ConflatingBuffer"]

_MOST_STATUSES = 1000


class ConflatingBuffer:
    """Quotes and feed states in order, at most ``limit`` of them.

    Where there are more symbols than that: one quote per symbol.

    Args:
        limit: How many items are kept before the oldest are conflated.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.conflated = 0
        self._oldest: dict[str | int, Quote | FeedStatus] = {}
        """What was conflated: at most one quote per symbol, all older than the queue."""
        self._queue: deque[Quote | FeedStatus] = deque()
        self._statuses = 0

    def __len__(self) -> int:
        return len(self._oldest) + len(self._queue)

    def extend(self, items: Iterable[Quote | FeedStatus]) -> None:
        """Append items, conflating the oldest where there is no room."""
        self._queue.extend(items)
        excess = len(self) - self.limit
        while excess > 0 and self._queue:
            item = self._queue.popleft()
            key = item.symbol if isinstance(item, Quote) else self._status_key()
            if self._oldest.pop(key, None) is not None:
                self.conflated += 1
                excess -= 1
            self._oldest[key] = item

    def _status_key(self) -> int:
        """States are kept one and all, within reason; a number is no symbol."""
        self._statuses += 1
        return self._statuses % _MOST_STATUSES

    def take(self, most: int) -> list[Quote | FeedStatus]:
        """Remove and return the first items, at most ``most``."""
        # All keys at once: a dict finds its first key by going over all that were removed.
        taken = [self._oldest.pop(key) for key in list(islice(self._oldest, most))]
        if not taken and most >= len(self._queue):
            taken.extend(self._queue)
            self._queue.clear()
            return taken
        while self._queue and len(taken) < most:
            taken.append(self._queue.popleft())
        return taken
