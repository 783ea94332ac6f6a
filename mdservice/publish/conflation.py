"""A bounded buffer that drops old records before new ones, and counts them. Pure.

Up to its limit it is a queue. Beyond the limit it conflates the oldest records: only the newest of
each symbol and kind stays, at its place in the order (:attr:`Overflow.LATEST_PER_SYMBOL`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

from mdservice.model.events import FeedStatus, RecordBatch, RoutedItem
from mdservice.model.kinds import Kind

__all__ = ["ConflatingBuffer", "records_of"]

_MOST_STATUSES = 1000


class ConflatingBuffer:
    """Records and feed states in order, at most ``limit`` of them.

    With more symbols than that, it keeps one record per symbol and kind.

    Args:
        limit: How many are kept before the oldest are conflated.

    Attributes:
        conflated: How many were lost to newer ones.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.conflated = 0
        self._oldest: dict[tuple[Kind[Any] | None, str | int], Any] = {}
        """What was conflated, all older than the queue: one record per kind and symbol; feed states
        are of no kind and have a number."""
        self._queue: deque[RoutedItem] = deque()
        self._queued = 0
        """Records and states in the queue."""
        self._gone = 0
        """How many records of the queue's first batch are no longer there."""
        self._statuses = 0

    def __len__(self) -> int:
        return len(self._oldest) + self._queued

    def add(self, item: RoutedItem) -> None:
        """Append a batch or a state; without room, conflate the oldest records."""
        count = len(item.records) if isinstance(item, RecordBatch) else 1
        if count:
            self._queue.append(item)
            self._queued += count
        excess = len(self) - self.limit
        while excess > 0 and self._queue:
            excess -= self._conflate(excess)

    def _conflate(self, most: int) -> int:
        """Conflate that many of the oldest records; return how many were dropped."""
        oldest = self._oldest
        kept_before = len(oldest)
        head = self._queue[0]
        if isinstance(head, FeedStatus):
            some = self._take_from_head(1)
            self._statuses += 1  # all are kept, within reason
            one: tuple[None, int] = None, self._statuses % _MOST_STATUSES
            oldest.pop(one, None)
            oldest[one] = head
        else:
            some, kind = self._take_from_head(most), head.kind
            for record in some:
                key = kind, record.symbol
                oldest.pop(key, None)
                oldest[key] = record
        lost = len(some) - (len(oldest) - kept_before)
        self.conflated += lost
        return lost

    def _take_from_head(self, most: int) -> list[Any]:
        """Remove the first records of the queue's first batch, or the state that is there."""
        head = self._queue[0]
        some: list[Any] = [head]
        if isinstance(head, RecordBatch):
            some = list(head.records[self._gone : self._gone + most])
            self._gone += len(some)
            if self._gone < len(head.records):
                self._queued -= len(some)
                return some
        self._queue.popleft()
        self._gone = 0
        self._queued -= len(some)
        return some

    def take(self, most: int) -> list[RoutedItem]:
        """Remove and return the first records and states, at most ``most`` of both together."""
        taken: list[RoutedItem] = []
        # All keys at once: a dict finds its first key by going over all that were removed.
        keys = list(islice(self._oldest, most)) if self._oldest else []
        for kind, group in groupby(keys, key=itemgetter(0)):
            items = [self._oldest.pop(key) for key in group]
            if kind is None:
                taken += items
            else:
                taken.append(RecordBatch(kind, items))
        left = most - len(keys)
        while self._queue and left > 0:
            head = self._queue[0]
            if isinstance(head, FeedStatus):
                taken.append(head)
                left -= len(self._take_from_head(1))
            elif not self._gone and len(head.records) <= left:
                taken.append(self._queue.popleft())  # as it is: nothing is copied
                self._queued -= len(head.records)
                left -= len(head.records)
            else:
                some = self._take_from_head(left)
                taken.append(RecordBatch(head.kind, some))
                left -= len(some)
        return taken


def records_of(items: Iterable[RoutedItem]) -> list[Any]:
    """The records of all batches, in order, without feed states."""
    batches = (item for item in items if isinstance(item, RecordBatch))
    return [record for batch in batches for record in batch.records]
