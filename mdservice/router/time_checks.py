"""What the times of records say: a feed whose times stand still, a clock that is behind. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median

from mdservice.model.kinds import Record

__all__ = ["FROZEN_AFTER_S", "ClockCheck", "TimeCheck"]

FROZEN_AFTER_S = 30.0
"""Records of one burst may come late and out of order; that is no standstill."""

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
        """Records came.

        Args:
            accepted: Those that were not older than their symbol's last one, in order.
            now_s: Monotonic seconds.
        """
        self._last_s = now_s
        newest_ns = 0
        if accepted:  # a stray time ahead of its coming must not make the others look old
            newest_ns = min(accepted[-1].ts_event_ns, accepted[-1].ts_recv_ns)
        if newest_ns > self._newest_ns:
            self._newest_ns = newest_ns
            self._still_since_s = None
        elif self._still_since_s is None:
            self._still_since_s = now_s

    def frozen_s(self) -> float:
        """For how long records have come whose times do not go on, seconds; 0 where they do."""
        still_s = 0.0 if self._still_since_s is None else self._last_s - self._still_since_s
        return still_s if still_s >= FROZEN_AFTER_S else 0.0


class ClockCheck:
    """Tells a machine whose clock is behind from a stray record with a wrong time.

    Looks at how many of the last 100 records were refused as future ones.
    """

    def __init__(self) -> None:
        self._reads: deque[tuple[int, Sequence[int]]] = deque()
        self._records = 0
        self._future = 0

    def add(self, records: int, ahead_ns: Sequence[int]) -> None:
        """One more read of the feed.

        Args:
            records: How many records it held.
            ahead_ns: How far ahead of this machine's clock the refused ones were.
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
        """Seconds by which this machine's clock is behind, or None while it seems right.

        A few refused records prove nothing: at least a hundred must have come, most of them
        refused.
        """
        if self._records < _WINDOW:
            return None
        # The oldest read reaches out of the window; its part within counts, as if even.
        records, ahead_ns = self._reads[0]
        future = self._future - len(ahead_ns) * (self._records - _WINDOW) / records
        if future * 2 <= _WINDOW:
            return None
        return median(ns for _, ahead in self._reads for ns in ahead) / 1e9
