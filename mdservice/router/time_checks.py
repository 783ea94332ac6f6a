"""What the times of records say: a feed whose times stand still, a clock that is behind. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median

from mdservice.model.kinds import Record

__all__ = ["FROZEN_AFTER_S", "ClockCheck", "TimeCheck"]

FROZEN_AFTER_S = 30.0
"""The records of one burst may come late and out of order, which is normal."""

_WINDOW = 100


class TimeCheck:
    """Tells a feed whose records come while their times stand still: its prices are frozen.

    Source: users of other clients have seen it (ccxt 23214); pings and message counts look well
    then.
    """

    def __init__(self) -> None:
        self._newest_ns = 0
        self._still_since_s: float | None = None
        self._last_s = 0.0

    def add(self, accepted: Sequence[Record], now_s: float) -> None:
        """Note accepted records.

        Args:
            accepted: Quotes that were not older than the last one of their symbol, in order.
            now_s: Monotonic seconds.
        """
        self._last_s = now_s
        newest_ns = 0
        if accepted:  # one wrong time in the future must not make the others look old
            newest_ns = min(accepted[-1].ts_event_ns, accepted[-1].ts_recv_ns)
        if newest_ns > self._newest_ns:
            self._newest_ns = newest_ns
            self._still_since_s = None
        elif self._still_since_s is None:
            self._still_since_s = now_s

    def frozen_s(self) -> float:
        """How long the times have stood still although records come, seconds; 0 if they move."""
        still_s = 0.0 if self._still_since_s is None else self._last_s - self._still_since_s
        return still_s if still_s >= FROZEN_AFTER_S else 0.0


class ClockCheck:
    """Tells a machine whose clock is behind from a stray record with a wrong time.

    Counts how many of the last 100 records were rejected as future ones.
    """

    def __init__(self) -> None:
        self._reads: deque[tuple[int, Sequence[int]]] = deque()
        self._records = 0
        self._future = 0

    def add(self, records: int, ahead_ns: Sequence[int]) -> None:
        """Note one read of the feed.

        Args:
            records: The number of its records.
            ahead_ns: How far ahead of this machine's clock the rejected ones were.
        """
        if not records:
            return
        self._reads.append((records, ahead_ns))
        self._records += records
        self._future += len(ahead_ns)
        while self._records - self._reads[0][0] >= _WINDOW:
            gone, gone_ahead = self._reads.popleft()
            self._records -= gone
            self._future -= len(gone_ahead)

    def behind_s(self) -> float | None:
        """Seconds by which this machine's clock is behind, or None if it seems right.

        A few rejected records prove nothing: at least a hundred must have come, and most of them
        must be rejected.
        """
        if self._records < _WINDOW:
            return None
        # The oldest read is only partly in the window; count that part of its quotes.
        records, ahead_ns = self._reads[0]
        future = self._future - len(ahead_ns) * (self._records - _WINDOW) / records
        if future * 2 <= _WINDOW:
            return None
        return median(ns for _, ahead in self._reads for ns in ahead) / 1e9
