"""How long records take: percentiles of the last ones, and histograms of all."""

from __future__ import annotations

from math import inf

import pytest

from mdservice.model.quote import Quote
from mdservice.model.status import Latencies, Latency
from mdservice.publish.latencies import LatencyWindow, samples

MS_NS = 1_000_000
WRITTEN_NS = 1_795_189_904 * 10**9


def quote(feed_ms: float, receive_ms: float) -> Quote:
    """Its own time and its reception, so many milliseconds before it is written."""
    event_ns = WRITTEN_NS - int(feed_ms * MS_NS)
    return Quote("AAPL", 1.0, 2.0, 1, 1, event_ns, WRITTEN_NS - int(receive_ms * MS_NS))


def test_there_is_none_before_the_first() -> None:
    assert LatencyWindow().summary() == Latencies(Latency(), Latency())
    window = LatencyWindow()
    window.add([], WRITTEN_NS)
    assert window.summary() == Latencies(Latency(), Latency())


def test_all_are_in_milliseconds_from_their_own_start() -> None:
    window = LatencyWindow()
    window.add([quote(12.5, 0.25)], WRITTEN_NS)
    assert window.summary() == Latencies(*(Latency(ms, ms, ms) for ms in (12.5, 0.25, 12.25)))


@pytest.mark.parametrize(
    ("count", "p50", "p99", "largest"),
    [
        (1, 1.0, 1.0, 1.0),
        (2, 1.0, 1.0, 2.0),
        (100, 50.0, 99.0, 100.0),
        (1001, 501.0, 991.0, 1001.0),
    ],
)
def test_percentiles_do_not_depend_on_the_order(
    count: int, p50: float, p99: float, largest: float
) -> None:
    window = LatencyWindow()
    for ms in [*range(count, 0, -2), *range(count - 1, 0, -2)]:
        window.add([quote(ms, ms / 2)], WRITTEN_NS)
    assert window.summary().feed_to_redis == Latency(p50, p99, largest)
    assert window.summary().receive_to_redis == Latency(p50 / 2, p99 / 2, largest / 2)


def test_old_samples_leave_the_window() -> None:
    window = LatencyWindow()
    window.add([quote(1000, 1000)], WRITTEN_NS)
    for _ in range(5000):
        window.add([quote(1, 1)], WRITTEN_NS)
    assert window.summary().feed_to_redis.max == 1.0


def test_the_first_of_a_large_batch_is_always_a_sample() -> None:
    window = LatencyWindow()
    some = [[quote(900, 800)], [quote(1, 1) for _ in range(1999)]]
    window.add(samples(some), WRITTEN_NS)
    assert window.summary().feed_to_redis.max == 900.0
    assert window.summary().receive_to_redis.max == 800.0


def test_one_large_batch_does_not_fill_the_window() -> None:
    window = LatencyWindow()
    for _ in range(64):
        window.add([quote(5, 5)], WRITTEN_NS)
    window.add(samples([[quote(1, 1)] * 2000]), WRITTEN_NS)
    assert window.summary().feed_to_redis.p50 == 5.0


def test_every_sample_counts_in_the_buckets_that_hold_it() -> None:
    window = LatencyWindow()
    assert window.histograms()["receive_to_redis"].counts[inf] == 0
    for ms in (0.5, 0.6, 100.0, 3_600_000.0, -3.0):  # the last one by a clock that is behind
        window.add([quote(0, ms)], WRITTEN_NS)
    found = window.histograms()["receive_to_redis"]
    assert found.counts[0.0005] == 2
    assert found.counts[0.001] == 3
    assert found.counts[0.05] == 3
    assert found.counts[0.1] == 4
    assert found.counts[60.0] == 4
    assert found.counts[inf] == 5
    assert found.sum_s == pytest.approx(3600.1011)
    assert list(found.counts) == sorted(found.counts)


def test_every_sample_counts_in_its_native_bucket() -> None:
    window = LatencyWindow()
    width = 2 ** (1 / 8)
    for ms in (1000.0, 1000.001, 999.999, 2000.0, 1000 / 1024, 0.0005, 0.0, -3.0):
        window.add([quote(0, ms)], WRITTEN_NS)
    found = window.histograms()["receive_to_redis"]
    assert found.native.counts == {0: 2, 1: 1, 8: 1, -80: 1}
    assert found.counts[inf] - sum(found.native.counts.values()) == 3
    for s in (0.00001, 0.0123, 0.9, 1.1, 77.7, 90_000.0):
        window = LatencyWindow()
        window.add([quote(0, 1000 * s)], WRITTEN_NS)
        ((bucket, count),) = window.histograms()["receive_to_redis"].native.counts.items()
        assert count == 1
        assert width ** (bucket - 1) < s < width**bucket


def test_a_histogram_forgets_nothing() -> None:
    window = LatencyWindow()
    for _ in range(6000):
        window.add([quote(1, 1)], WRITTEN_NS)
    assert window.histograms()["feed_to_redis"].counts[inf] == 6000
