"""Between the task that reads and the one that iterates: bounded, and the reader never waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import cast

import anyio
import anyio.lowlevel

from mdservice.model.quote import Quote
from mdservice.sinks.conflation import ConflatingBuffer

__all__ = ["BACKLOG", "Handover"]

BACKLOG = 10_000
"""Updates that wait for a slow program; beyond that the oldest are conflated."""
_MOST_AT_ONCE = 500


class Handover:
    """Takes updates from the reading task and gives them out one by one.

    What comes by :meth:`offer` is conflated beyond :data:`BACKLOG`. What comes by
    :meth:`offer_entries` is not: the giver waits for :meth:`emptied` before it reads on.
    """

    def __init__(self) -> None:
        self.position: str | None = None
        """The log's id up to which everything has been given out."""
        self._buffer = ConflatingBuffer(BACKLOG)
        self._taken: deque[Quote] = deque()
        self._positions: deque[str | None] = deque()
        self._arrived = anyio.Event()
        self._emptied = anyio.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._buffer) + len(self._taken)

    @property
    def conflated(self) -> int:
        """Updates that the program was too slow for."""
        return self._buffer.conflated

    def offer(self, quotes: Sequence[Quote]) -> None:
        """Keep updates, conflating the oldest where there is no room."""
        if quotes:
            self._buffer.extend(quotes)
            self._arrived.set()

    def offer_entries(
        self, quotes: Sequence[Quote], positions: Sequence[str | None], end: str | None
    ) -> None:
        """Keep updates with their places in the log.

        Args:
            quotes: Updates, in order.
            positions: Up to where everything has been given out with each; None where that
                place does not change.
            end: The same for the last one, or at once where there is none.
        """
        if not quotes:
            self.position = end or self.position
            return
        self._taken.extend(quotes)
        self._positions.extend([*positions[:-1], end])
        self._arrived.set()

    async def emptied(self) -> None:
        """Wait until everything has been given out."""
        while len(self):
            if self._emptied.is_set():
                self._emptied = anyio.Event()
            await self._emptied.wait()

    def close(self) -> None:
        """End the iteration once everything has been given out."""
        self._closed = True
        self._arrived.set()

    async def take(self) -> Quote:
        """The next update.

        Raises:
            StopAsyncIteration: The reader was closed, and all is given out.
        """
        if not self._taken:
            await anyio.lowlevel.checkpoint()  # one that never waits must not starve the others
            await self._refill()
        quote = self._taken.popleft()
        if self._positions:
            self.position = self._positions.popleft() or self.position
        if not self._taken:
            self._emptied.set()
        return quote

    async def _refill(self) -> None:
        while not self._taken:
            if len(self._buffer):
                # Only quotes are ever put in.
                self._taken.extend(cast("list[Quote]", self._buffer.take(_MOST_AT_ONCE)))
            elif self._closed:
                raise StopAsyncIteration
            else:
                if self._arrived.is_set():
                    self._arrived = anyio.Event()
                await self._arrived.wait()
