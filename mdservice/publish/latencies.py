"""How long records take to the store, and how long the store takes. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain, islice
from math import frexp
from typing import Final

import attrs

from mdservice.model.kinds import Record
from mdservice.model.status import Histogram, Latencies, Latency, NativeBuckets

__all__ = ["Durations", "LatencyWindow", "samples"]

_WINDOW = 4096
_SAMPLES_PER_BATCH = 16
_MS_NS = 1e6
_MS_S = 1000.0
_BOUNDS_MS: Final = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 60_000)
_BOUNDS_S: Final = (*(bound / _MS_S for bound in _BOUNDS_MS), float("inf"))
_NATIVE: Final = NativeBuckets()
_FRACTIONS: Final = tuple(
    2.0 ** (step / 2**_NATIVE.schema - 1) for step in range(2**_NATIVE.schema)
)
"""The bounds of the native buckets between two powers of two, as :func:`math.frexp` has them."""
_ZERO_MS: Final = _NATIVE.zero_threshold_s * _MS_S


class LatencyWindow:
    """How long records take to the store: the last few thousand latencies, and all in buckets.

    Of a large batch, it samples some evenly spaced records.
    """

    def __init__(self) -> None:
        self._paths = {path.name: Durations() for path in attrs.fields(Latencies)}

    def add(self, records: Iterable[Record], written_ns: int) -> None:
        """Note records whose write was acknowledged.

        Args:
            records: The samples that :func:`samples` chose.
            written_ns: The time of the acknowledgement, UTC nanoseconds.
        """
        feed, receive, lag = self._paths.values()
        for record in records:
            feed.add((written_ns - record.ts_event_ns) / _MS_NS)
            receive.add((written_ns - record.ts_recv_ns) / _MS_NS)
            lag.add((record.ts_recv_ns - record.ts_event_ns) / _MS_NS)

    def summary(self) -> Latencies:
        """Percentiles of the window, in milliseconds."""
        return Latencies(*(_percentiles(path.window) for path in self._paths.values()))

    def histograms(self) -> dict[str, Histogram]:
        """All samples since the start, by the name of their path.

        A time below 0, of a clock that is behind, counts in the first bucket and as 0 in the sum.
        """
        return {name: path.histogram() for name, path in self._paths.items()}


class Durations:
    """Durations of one kind: the last few thousand, and all since the start in buckets."""

    def __init__(self) -> None:
        self.window: deque[float] = deque(maxlen=_WINDOW)
        self._buckets = [0] * len(_BOUNDS_S)
        self._native: dict[int, int] = {}
        self._sum_ms = 0.0

    def add(self, ms: float) -> None:
        """Note one, in milliseconds."""
        self.window.append(ms)
        self._buckets[bisect_left(_BOUNDS_MS, ms)] += 1
        self._sum_ms += max(0.0, ms)
        if ms > _ZERO_MS:
            fraction, exponent = frexp(ms / _MS_S)
            bucket = bisect_left(_FRACTIONS, fraction) + (exponent - 1) * len(_FRACTIONS)
            self._native[bucket] = self._native.get(bucket, 0) + 1

    def histogram(self) -> Histogram:
        """All since the start."""
        counts = dict(zip(_BOUNDS_S, accumulate(self._buckets), strict=True))
        return Histogram(counts, self._sum_ms / _MS_S, NativeBuckets(dict(self._native)))


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


def samples(batches: Sequence[Sequence[Record]]) -> list[Record]:
    """Some of the records, always with the first, which has waited longest."""
    step = max(1, sum(map(len, batches)) // _SAMPLES_PER_BATCH)
    return list(islice(chain.from_iterable(batches), 0, None, step))
