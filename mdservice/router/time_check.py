"""Tells a feed whose messages flow while their times stand still: its prices are frozen. Pure.

Source: users of other clients have seen it (ccxt 23214); pings and message counts look well then.
"""

from __future__ import annotations

from collections.abc import Sequence

from mdservice.model.quote import Quote

__all__ = ["FROZEN_AFTER_S", "TimeCheck"]

FROZEN_AFTER_S = 30.0
"""Quotes of one burst may come late and out of order; that is no standstill."""


class TimeCheck:
    """Follows the newest exchange time of all symbols."""

    def __init__(self) -> None:
        self._newest_ns = 0
        self._still_since_s: float | None = None
        self._last_s = 0.0

    def add(self, accepted: Sequence[Quote], now_s: float) -> None:
        """Quotes came.

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
        """For how long quotes have come whose times do not go on, seconds; 0 where they do."""
        still_s = 0.0 if self._still_since_s is None else self._last_s - self._still_since_s
        return still_s if still_s >= FROZEN_AFTER_S else 0.0
