"""Readers in this process. Each has its own bounded buffer and never delays the feed."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from mdservice.model.events import AccountEvent, FeedStatus, LatestChanged, RecordBatch, RoutedItem
from mdservice.model.kinds import NEWS, QUOTES, Kind
from mdservice.model.news import ARTICLES_KEPT, Article
from mdservice.publish.conflation import ConflatingBuffer

__all__ = ["READER_BACKLOG", "STATES_KEPT", "LocalReader", "LocalReaders"]

READER_BACKLOG = 10_000
"""The size of a reader's buffer. Beyond it, its oldest records are conflated."""
STATES_KEPT = 200
"""Changes of the feeds' states that are kept for those who ask later."""
_MOST_AT_ONCE = 500


class LocalReader:
    """Iterates over records, and optionally over changes of the feed's state, without end.

    A reader that falls more than :data:`READER_BACKLOG` items behind loses the oldest records, by
    the policy of their kind (:class:`~mdservice.model.kinds.Overflow`). ``seq`` shows it by a
    step.
    """

    def __init__(
        self, symbols: Iterable[str], kinds: Collection[Kind[Any]] = (QUOTES,), *, statuses: bool
    ) -> None:
        self.symbols = frozenset(symbols)
        self._kinds = frozenset(kinds)
        self._statuses = statuses
        self._buffer = ConflatingBuffer(READER_BACKLOG)
        self._taken: Iterator[Any] = iter(())
        """The items that the program gets next."""
        self._arrived = anyio.Event()
        self._closed = False

    @property
    def conflated(self) -> int:
        """Records that were lost to newer ones because this reader was too slow."""
        return self._buffer.conflated

    def offer(self, item: RoutedItem) -> None:
        """Keep the item if this reader wants it."""
        if isinstance(item, FeedStatus):
            if not self._statuses:
                return
        elif isinstance(item, (LatestChanged, AccountEvent)) or item.kind not in self._kinds:
            return  # a changed latest value is no event: the correction or cancellation is
        elif self.symbols:
            records = item.kind.of_symbols(item.records, self.symbols)
            if not records:
                return
            item = RecordBatch(item.kind, records)
        self._buffer.add(item)
        self._arrived.set()

    def close(self) -> None:
        """End the iteration once the buffer is empty."""
        self._closed = True
        self._arrived.set()

    def __aiter__(self) -> LocalReader:
        return self

    async def __anext__(self) -> Any:
        for item in self._taken:
            return item
        await checkpoint()  # a reader that never waits must let other tasks run
        while True:
            for item in self._taken:  # of another task that shares this reader
                return item
            if len(self._buffer):
                self._taken = chain.from_iterable(map(_items, self._buffer.take(_MOST_AT_ONCE)))
            elif self._closed:
                raise StopAsyncIteration
            else:
                await self._arrival()

    def batches(self) -> AsyncIterator[RecordBatch[Any] | FeedStatus]:
        """The same in batches of one kind. Iterate over these or over the records, not both."""
        return _Batches(self)

    async def take(self) -> list[RoutedItem]:
        """Wait for the next items.

        Raises:
            StopAsyncIteration: The reader was closed, and the buffer is empty.
        """
        await checkpoint()
        while not len(self._buffer):
            if self._closed:
                raise StopAsyncIteration
            await self._arrival()
        return self._buffer.take(_MOST_AT_ONCE)

    async def _arrival(self) -> None:
        if self._arrived.is_set():  # other tasks may wait for it too
            self._arrived = anyio.Event()
        await self._arrived.wait()


class _Batches:
    """Iterates over the batches and states of a reader."""

    def __init__(self, reader: LocalReader) -> None:
        self._reader = reader
        self._taken: deque[RecordBatch[Any] | FeedStatus] = deque()

    def __aiter__(self) -> _Batches:
        return self

    async def __anext__(self) -> RecordBatch[Any] | FeedStatus:
        while not self._taken:
            items = await self._reader.take()
            self._taken.extend(one for one in items if isinstance(one, (RecordBatch, FeedStatus)))
        return self._taken.popleft()


def _items(item: RoutedItem) -> Sequence[Any]:
    if isinstance(item, RecordBatch):
        return item.records
    return () if isinstance(item, (LatestChanged, AccountEvent)) else (item,)


class LocalReaders:
    """All readers in this process, the newest articles and the last changes of feeds' states."""

    def __init__(self) -> None:
        self._readers: set[LocalReader] = set()
        self._articles: deque[Article] = deque(maxlen=ARTICLES_KEPT)
        self._states: deque[FeedStatus] = deque(maxlen=STATES_KEPT)
        self._state_count = 0

    def __len__(self) -> int:
        return len(self._readers)

    def offer(self, item: RoutedItem) -> None:
        """Offer an item to every reader, without waiting."""
        if isinstance(item, RecordBatch) and item.kind is NEWS:
            self._articles.extend(item.records)
        elif isinstance(item, FeedStatus):
            self._states.append(item)
            self._state_count += 1
        for reader in self._readers:
            reader.offer(item)

    def states_since(self, count: int) -> tuple[list[FeedStatus], int]:
        """The kept changes of state after the first ``count``, and how many there were."""
        new = min(self._state_count - count, len(self._states))
        return list(self._states)[len(self._states) - new :], self._state_count

    def keep(self, articles: Iterable[Article]) -> None:
        """Keep articles of an earlier run, the oldest first."""
        self._articles = deque([*articles, *self._articles], ARTICLES_KEPT)

    def replace_articles(self, articles: Iterable[Article]) -> None:
        """Keep these articles instead, the oldest first."""
        self._articles = deque(articles, ARTICLES_KEPT)

    def articles(self, symbols: Iterable[str], limit: int) -> list[Article]:
        """The newest articles about any of the symbols, or without symbols of all, newest first."""
        wanted = frozenset(symbols)
        found: list[Article] = list(self._articles)
        if wanted:
            found = NEWS.of_symbols(found, wanted)
        return found[: -limit - 1 : -1]

    @contextmanager
    def open(
        self,
        symbols: Iterable[str] = (),
        *,
        kinds: Collection[Kind[Any]] = (QUOTES,),
        statuses: bool = False,
        first: Iterable[RecordBatch[Any]] = (),
    ) -> Iterator[LocalReader]:
        """A reader of all items from now on.

        Args:
            symbols: The symbols to read; empty for all.
            kinds: The kinds of records.
            statuses: Whether to include changes of the feed's state.
            first: Records that come first.
        """
        reader = LocalReader(symbols, kinds, statuses=statuses)
        for batch in first:
            reader.offer(batch)
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.discard(reader)

    def close(self) -> None:
        """End every reader's iteration."""
        for reader in self._readers:
            reader.close()
