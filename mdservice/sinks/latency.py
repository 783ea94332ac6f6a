"""How long quotes take to the store: a window of samples, summed up when asked. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from mdservice.model.quote import Quote
from mdservice.model.status import Latencies, Latency

__all__ = ["LatencyWindow"]

_WINDOW = 4096
_SAMPLES_PER_BATCH = 16
_MS_NS = 1e6


class LatencyWindow:
    """The last few thousand latencies; of a large batch some evenly spaced quotes stand in."""

    def __init__(self) -> None:
        self._feed: deque[float] = deque(maxlen=_WINDOW)
        self._receive: deque[float] = deque(maxlen=_WINDOW)
        self._lag: deque[float] = deque(maxlen=_WINDOW)

    def add(self, quotes: Sequence[Quote], written_ns: int) -> None:
        """Quotes whose write was acknowledged.

        Args:
            quotes: In order; the first has waited longest and is always a sample.
            written_ns: When the acknowledgement came, UTC nanoseconds.
        """
        step = max(1, len(quotes) // _SAMPLES_PER_BATCH)
        for quote in quotes[::step]:
            self._feed.append((written_ns - quote.ts_event_ns) / _MS_NS)
            self._receive.append((written_ns - quote.ts_recv_ns) / _MS_NS)
            self._lag.append((quote.ts_recv_ns - quote.ts_event_ns) / _MS_NS)

    def summary(self) -> Latencies:
        """Percentiles of the window, in milliseconds."""
        return Latencies(*map(_percentiles, (self._feed, self._receive, self._lag)))


def _percentiles(samples: deque[float]) -> Latency:
    if not samples:
        return Latency()
    ordered = sorted(samples)
    last = len(ordered) - 1
    return Latency(
        p50=round(ordered[last // 2], 3),
        p99=round(ordered[last * 99 // 100], 3),
        max=round(ordered[last], 3),
    )
