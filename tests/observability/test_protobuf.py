"""The protobuf exposition, read by a decoder of the wire format."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from math import inf
from typing import Any

import pytest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from mdservice.model.status import Histogram, NativeBuckets
from mdservice.observability.protobuf import LatencyFamily, encode_protobuf, prefers_protobuf

PROTOBUF = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
)


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        match tag & 7:
            case 0:
                value, at = varint(data, at)
                yield tag >> 3, value
            case 1:
                yield tag >> 3, struct.unpack_from("<d", data, at)[0]
                at += 8
            case 2:
                size, at = varint(data, at)
                yield tag >> 3, data[at : at + size]
                at += size
            case wire_type:
                raise AssertionError(f"wire type {wire_type}")


def families(data: bytes) -> Iterator[list[tuple[int, Any]]]:
    at = 0
    while at < len(data):
        size, at = varint(data, at)
        yield list(fields(data[at : at + size]))
        at += size


def every(data: list[tuple[int, Any]], field: int) -> list[Any]:
    return [value for name, value in data if name == field]


def signed(value: int) -> int:
    return value >> 1 ^ -(value & 1)


def test_counters_and_gauges_have_their_labels_and_values() -> None:
    counter = CounterMetricFamily("gaps", "Missing quotes.", labels=["feed", "channel"])
    counter.add_metric(["stocks", "quotes"], 3)
    counter.add_metric(["crypto", ""], 300)
    one, two = families(encode_protobuf([counter, GaugeMetricFamily("up", "Ä", value=0.5)]))
    assert one[:3] == [(1, b"gaps_total"), (2, b"Missing quotes."), (3, 0)]
    first, second = (list(fields(metric)) for metric in every(one, 4))
    assert [list(fields(label)) for label in every(first, 1)] == [
        [(1, b"feed"), (2, b"stocks")],
        [(1, b"channel"), (2, b"quotes")],
    ]
    assert list(fields(every(first, 3)[0])) == [(1, 3.0)]
    assert list(fields(every(second, 3)[0])) == [(1, 300.0)]
    assert two[:3] == [(1, b"up"), (2, "Ä".encode()), (3, 1)]
    assert list(fields(every(list(fields(every(two, 4)[0])), 2)[0])) == [(1, 0.5)]


def test_a_family_without_samples_is_left_out() -> None:
    assert encode_protobuf([LatencyFamily("latency", "…", None)]) == b""


@pytest.mark.parametrize(
    ("counts", "spans", "deltas"),
    [
        ({}, [], []),
        ({0: 5}, [(0, 1)], [5]),
        ({-1: 5, 0: 2}, [(-1, 2)], [5, -3]),
        ({7: 1, -300: 4, -299: 4, 3: 200}, [(-300, 2), (301, 1), (3, 1)], [4, 0, 196, -199]),
    ],
)
def test_a_histogram_has_classic_and_native_buckets(
    counts: dict[int, int], spans: list[tuple[int, int]], deltas: list[int]
) -> None:
    total = sum(counts.values()) + 2
    histogram = Histogram({0.5: 1, inf: total}, 1.25, NativeBuckets(counts))
    (family,) = families(encode_protobuf([LatencyFamily("latency", "…", histogram)]))
    assert family[2] == (3, 4)
    (metric,) = every(family, 4)
    found = list(fields(every(list(fields(metric)), 7)[0]))
    assert (every(found, 1), every(found, 2)) == ([total], [1.25])
    assert [list(fields(bucket)) for bucket in every(found, 3)] == [
        [(1, 1), (2, 0.5)],
        [(1, total), (2, inf)],
    ]
    assert (signed(every(found, 5)[0]), every(found, 6), every(found, 7)) == (3, [2.0**-20], [2])
    assert spans == [
        (signed(offset), length)
        for span in every(found, 12)
        for (_, offset), (_, length) in [list(fields(span))]
    ]
    assert deltas == [signed(delta) for delta in every(found, 13)]


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain;version=0.0.4", False),
        (PROTOBUF, True),
        (f"{PROTOBUF},application/openmetrics-text;version=1.0.0,*/*;q=0.1", True),
        (f"application/openmetrics-text;version=1.0.0;q=0.6,{PROTOBUF};q=0.5,*/*;q=0.1", False),
        (f"{PROTOBUF};q=0", False),
        (f"{PROTOBUF};q=none", True),
        ("application/vnd.google.protobuf;encoding=text", False),
        ("application/vnd.google.protobuf;proto=other;encoding=delimited", False),
    ],
)
def test_a_scraper_gets_protobuf_only_where_it_prefers_that(accept: str, expected: bool) -> None:
    assert prefers_protobuf(accept) is expected
