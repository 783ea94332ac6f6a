"""A bounded buffer that drops old records before new ones, and counts them. Pure.

Up to its limit it is a queue. Beyond the limit it reduces the oldest records as the policy of their
kind says (:class:`~mdservice.model.kinds.Overflow`): quotes are conflated to the newest of each
symbol, trades are dropped, and statuses are kept. What stays keeps its place in the order.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence
from itertools import groupby, islice
from operator import itemgetter
from typing import Any, Final

from mdservice.model.events import AccountEvent, LatestChanged, RecordBatch, RoutedItem
from mdservice.model.kinds import Kind, Overflow

__all__ = ["ConflatingBuffer", "records_of"]

_MOST_KEPT: Final = 100_000
"""How many records of one kind are kept beyond the limit, some tens of megabytes of memory.
Statuses, corrections, cancels and news do not reach it in days; the bars of a whole market do so in
a quarter of an hour."""
_MOST_STATUSES: Final = 1000
_MOST_ACCOUNT: Final = 10_000
"""How many events of the account are kept beyond the limit."""

# Local names: an enum's members are slow to look up.
_LATEST_PER_SYMBOL: Final = Overflow.LATEST_PER_SYMBOL
_LATEST_PER_SYMBOL_AND_TIME: Final = Overflow.LATEST_PER_SYMBOL_AND_TIME
_DROP_OLDEST: Final = Overflow.DROP_OLDEST

_Key = tuple[Any, ...]
"""The kind, then the symbol, the symbol and time, or a number. Items that are no records have None
as the kind."""


class ConflatingBuffer:
    """Records, changed latest values and feed states in order, at most ``limit`` of them.

    It exceeds the limit by what a policy keeps: one record of each symbol and kind, and up to
    ``most_kept`` records of each kind that is kept. Where an event is dropped, its latest value
    is kept as a :class:`~mdservice.model.events.LatestChanged`.

    Args:
        limit: How many are kept before the oldest are reduced.
        most_kept: How many records of one kind are then kept, where the policy keeps each one.

    Attributes:
        conflated_of: How many records were replaced by newer ones, by kind.
        dropped_of: How many events were dropped although no newer one replaces them, by kind.
        account_dropped: How many events of the account were dropped.
    """

    def __init__(self, limit: int, most_kept: int = _MOST_KEPT) -> None:
        self.limit = limit
        self._most_kept = most_kept
        self.conflated_of: dict[Kind[Any], int] = {}
        self.dropped_of: Counter[Kind[Any]] = Counter()
        self.account_dropped = 0
        self._values: dict[tuple[Kind[Any], str], LatestChanged[Any]] = {}
        """The latest values of records that were dropped because too many were kept. Everything
        else of their kind is newer."""
        self._oldest: dict[_Key, Any] = {}
        """What is left of the oldest items, all older than the queue."""
        self._kept: dict[Kind[Any], OrderedDict[_Key, None]] = {}
        """The keys in ``_oldest`` that ``most_kept`` bounds, oldest first."""
        self._queue: deque[RoutedItem] = deque()
        self._queued = 0
        """Records and other items in the queue."""
        self._gone = 0
        """How many records of the queue's first batch are no longer there."""
        self._statuses = 0
        self._statuses_lost = 0
        self._account_events = 0
        self._number = 0

    def __len__(self) -> int:
        return len(self._values) + len(self._oldest) + self._queued

    @property
    def conflated(self) -> int:
        """How many events were replaced by newer ones, feed states among them."""
        return sum(self.conflated_of.values()) + self._statuses_lost

    def add(self, item: RoutedItem) -> None:
        """Append an item; without room, reduce the oldest."""
        count = len(item.records) if isinstance(item, RecordBatch) else 1
        if count:
            self._queue.append(item)
            self._queued += count
        # Not len(self): this is done for each read of the feed's socket.
        excess = self._queued + len(self._oldest) + len(self._values) - self.limit
        while excess > 0 and self._queue:
            excess -= self._shrink(excess)

    def _shrink(self, most: int) -> int:
        """Apply the policy to that many of the oldest; return how many fewer there are."""
        head = self._queue[0]
        some = self._take_from_head(most)
        if isinstance(head, RecordBatch) and head.kind.overflow is _LATEST_PER_SYMBOL:
            return self._keep_latest(head.kind, some)
        before = len(self._values) + len(self._oldest)
        if isinstance(head, RecordBatch):
            if head.kind.overflow is _LATEST_PER_SYMBOL_AND_TIME:
                self._keep_latest_of_time(head.kind, some)
            elif head.kind.overflow is _DROP_OLDEST:
                self._drop(head.kind, some)
            else:
                self._keep(head.kind, some)
        elif isinstance(head, LatestChanged):
            self._put((None, head.kind, head.symbol), head)
        elif isinstance(head, AccountEvent):
            self._account_events += 1
            key = (None, AccountEvent, self._account_events % _MOST_ACCOUNT)
            self.account_dropped += self._put(key, head)
        else:
            self._statuses += 1  # all are kept, within reason
            self._statuses_lost += self._put((None, self._statuses % _MOST_STATUSES), head)
        return len(some) + before - len(self._values) - len(self._oldest)

    def _keep_latest(self, kind: Kind[Any], records: Sequence[Any]) -> int:
        oldest = self._oldest
        kept_before = len(oldest)
        for record in records:
            key = kind, record.symbol
            oldest.pop(key, None)
            oldest[key] = record
        lost = len(records) - (len(oldest) - kept_before)
        self.conflated_of[kind] = self.conflated_of.get(kind, 0) + lost
        return lost

    def _keep_latest_of_time(self, kind: Kind[Any], records: Sequence[Any]) -> None:
        kept = self._kept.setdefault(kind, OrderedDict())
        lost = 0
        for record in records:
            key = kind, record.symbol, record.ts_event_ns
            lost += self._put(key, record)
            kept[key] = None
            kept.move_to_end(key)
            self._limit_kept(kind, kept)
        self.conflated_of[kind] = self.conflated_of.get(kind, 0) + lost

    def _keep(self, kind: Kind[Any], records: Sequence[Any]) -> None:
        kept = self._kept.setdefault(kind, OrderedDict())
        for record in records:
            self._number += 1
            key = kind, self._number
            self._oldest[key] = record
            kept[key] = None
            self._limit_kept(kind, kept)

    def _limit_kept(self, kind: Kind[Any], kept: OrderedDict[_Key, None]) -> None:
        """Drop the oldest if too many are kept."""
        if len(kept) > self._most_kept:
            key, _ = kept.popitem(last=False)
            record = self._oldest.pop(key)
            self.dropped_of[kind] += 1
            for last in _newest_of(kind, (record,)):
                self._values.pop((kind, last.symbol), None)
                self._values[kind, last.symbol] = LatestChanged(kind, last.symbol, last)

    def _drop(self, kind: Kind[Any], records: Sequence[Any]) -> None:
        self.dropped_of[kind] += len(records)
        for last in _newest_of(kind, records):
            self._put((None, kind, last.symbol), LatestChanged(kind, last.symbol, last))

    def _put(self, key: _Key, item: Any) -> bool:
        """Put it behind the oldest; return whether it replaces another."""
        replaces = self._oldest.pop(key, None) is not None
        self._oldest[key] = item
        return replaces

    def _take_from_head(self, most: int) -> list[Any]:
        """Remove the first records of the queue's first batch, or the other item there."""
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
        """Remove and return the first items, at most ``most`` records and others together."""
        taken: list[RoutedItem] = []
        if self._values:
            taken += [self._values.pop(key) for key in list(islice(self._values, most))]
        # All keys at once: a dict finds its first key by going over all that were removed.
        keys = list(islice(self._oldest, most - len(taken))) if self._oldest else []
        left = most - len(taken) - len(keys)
        for kind, group in groupby(keys, key=itemgetter(0)):
            if kind is None:
                taken += [self._oldest.pop(key) for key in group]
                continue
            names = list(group)
            for key in names if self._kept.get(kind) else ():
                del self._kept[kind][key]
            taken.append(RecordBatch(kind, [self._oldest.pop(key) for key in names]))
        while self._queue and left > 0:
            head = self._queue[0]
            if not isinstance(head, RecordBatch):
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


def _newest_of(kind: Kind[Any], records: Iterable[Any]) -> Iterable[Any]:
    """The records that become their symbols' latest values, in order; none without keys."""
    if not kind.has_key:
        return ()
    return [record for record in records if record.newest] if kind.may_be_late else records


def records_of(items: Iterable[RoutedItem]) -> list[Any]:
    """The records of all batches, in order, without other items."""
    batches = (item for item in items if isinstance(item, RecordBatch))
    return [record for batch in batches for record in batch.records]
