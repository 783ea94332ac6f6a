"""Tells a machine whose clock is behind from a stray quote with a wrong time. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median

__all__ = ["ClockCheck"]

_WINDOW = 100


class ClockCheck:
    """Looks at how many of the last 100 quotes were refused as future ones."""

    def __init__(self) -> None:
        self._reads: deque[tuple[int, Sequence[int]]] = deque()
        self._quotes = 0
        self._future = 0

    def add(self, quotes: int, ahead_ns: Sequence[int]) -> None:
        """One more read of the feed.

        Args:
            quotes: How many quotes it held.
            ahead_ns: How far ahead of this machine's clock the refused ones were.
        """
        if not quotes:
            return
        self._reads.append((quotes, ahead_ns))
        self._quotes += quotes
        self._future += len(ahead_ns)
        while self._quotes - self._reads[0][0] >= _WINDOW:
            gone, gone_ahead = self._reads.popleft()
            self._quotes -= gone
            self._future -= len(gone_ahead)

    def behind_s(self) -> float | None:
        """Seconds by which this machine's clock is behind, or None while it seems right.

        A few refused quotes prove nothing: at least a hundred must have come, most of them
        refused.
        """
        if self._quotes < _WINDOW:
            return None
        # The oldest read reaches out of the window; its part within counts, as if even.
        quotes, ahead_ns = self._reads[0]
        future = self._future - len(ahead_ns) * (self._quotes - _WINDOW) / quotes
        if future * 2 <= _WINDOW:
            return None
        return median(ns for _, ahead in self._reads for ns in ahead) / 1e9
