"""Readers in this process: each has a bounded buffer of its own and never holds up the feed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import anyio
from anyio.lowlevel import checkpoint

from mdservice.model.events import FeedStatus, QuoteBatch, RoutedItem
from mdservice.model.quote import Quote
from mdservice.publish.conflation import ConflatingBuffer

__all__ = ["READER_BACKLOG", "LocalReader", "LocalReaders"]

READER_BACKLOG = 10_000
"""Items that wait for a slow reader; beyond that its oldest quotes are conflated."""
_MOST_AT_ONCE = 500


class LocalReader:
    """Iterates over quotes, and over changes of the feed's state if asked for, without end.

    A reader that falls behind by more than :data:`READER_BACKLOG` items loses the oldest
    quotes except the newest of each symbol: :attr:`conflated` counts them, and ``seq`` steps.
    """

    def __init__(self, symbols: Iterable[str], *, statuses: bool) -> None:
        self.symbols = frozenset(symbols)
        self._statuses = statuses
        self._buffer = ConflatingBuffer(READER_BACKLOG)
        self._taken: deque[Quote | FeedStatus] = deque()
        self._arrived = anyio.Event()
        self._closed = False

    @property
    def conflated(self) -> int:
        """Quotes that this reader was too slow for."""
        return self._buffer.conflated

    def offer(self, item: RoutedItem) -> None:
        """Keep what concerns this reader."""
        if isinstance(item, FeedStatus):
            if self._statuses:
                self._buffer.extend((item,))
                self._arrived.set()
            return
        quotes: Iterable[Quote] = item.quotes
        if self.symbols:
            quotes = [quote for quote in quotes if quote.symbol in self.symbols]
        if quotes:
            self._buffer.extend(quotes)
            self._arrived.set()

    def close(self) -> None:
        """End the iteration once the buffer is empty."""
        self._closed = True
        self._arrived.set()

    def __aiter__(self) -> LocalReader:
        return self

    async def __anext__(self) -> Quote | FeedStatus:
        if not self._taken:
            await checkpoint()  # one that never waits must not starve the others
        while not self._taken:
            if len(self._buffer):
                self._taken.extend(self._buffer.take(_MOST_AT_ONCE))
            elif self._closed:
                raise StopAsyncIteration
            else:
                if self._arrived.is_set():  # others may wait for it too
                    self._arrived = anyio.Event()
                await self._arrived.wait()
        return self._taken.popleft()


class LocalReaders:
    """All readers in this process."""

    def __init__(self) -> None:
        self._readers: set[LocalReader] = set()

    def __len__(self) -> int:
        return len(self._readers)

    def offer(self, item: RoutedItem) -> None:
        """Give an item to every reader; never waits."""
        for reader in self._readers:
            reader.offer(item)

    @contextmanager
    def open(
        self,
        symbols: Iterable[str] = (),
        *,
        statuses: bool = False,
        first: Iterable[Quote] = (),
    ) -> Iterator[LocalReader]:
        """A reader that hears all from now on.

        Args:
            symbols: Which; empty means all.
            statuses: Whether to hear changes of the feed's state too.
            first: Quotes to begin with.
        """
        reader = LocalReader(symbols, statuses=statuses)
        reader.offer(QuoteBatch(tuple(first)))
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.discard(reader)

    def close(self) -> None:
        """End every reader's iteration."""
        for reader in self._readers:
            reader.close()
