"""What a history is: where the quotes come from that a lost connection has missed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mdservice.model.quote import Quote

__all__ = ["QuoteHistory"]


class QuoteHistory(Protocol):
    """Past quotes of the feed that the connection streams."""

    async def quotes(self, symbols: Sequence[str], start_ns: int, end_ns: int) -> Sequence[Quote]:
        """All quotes of these symbols from start to end, both included, UTC nanoseconds.

        In the order of their times within each symbol; ``seq`` is 0.

        Raises:
            HistoryRefused: It has no history for this feed, time or plan, or none for a while.
            HistoryUnavailable: It did not answer; worth another try.
        """
        ...

    async def latest(self, symbols: Sequence[str]) -> Sequence[Quote]:
        """The newest quote of each symbol; symbols without one are left out.

        Raises:
            HistoryRefused, HistoryUnavailable
        """
        ...
