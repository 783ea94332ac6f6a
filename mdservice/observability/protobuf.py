"""Prometheus' protobuf exposition: the format in which it takes native histograms.

No library for Python writes it. A scraper that wants native histograms asks for this format first:

::

    Accept: application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;
            encoding=delimited,application/openmetrics-text;q=0.5,…

Source: github.com/prometheus/client_model, ``io/prometheus/client/metrics.proto``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Final

from prometheus_client.core import HistogramMetricFamily, Metric

from mdservice.model.status import Histogram

__all__ = ["CONTENT_TYPE", "LatencyFamily", "encode_protobuf", "prefers_protobuf"]

CONTENT_TYPE: Final = (
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
)
_TYPES: Final = {"counter": 0, "gauge": 1, "histogram": 4}
_UNTYPED: Final = 3
_VALUE_FIELD: Final = {"counter": 3, "gauge": 2}
_UNTYPED_FIELD: Final = 5
_VARINT, _FIXED64, _BYTES = 0, 1, 2
"""The wire types."""


class LatencyFamily(HistogramMetricFamily):
    """One histogram without labels, in classic buckets and in native ones.

    The text formats have the classic buckets, protobuf has both.

    Args:
        name: Of the metric.
        documentation: Its meaning.
        histogram: Its values; None before there are any.
    """

    def __init__(self, name: str, documentation: str, histogram: Histogram | None) -> None:
        super().__init__(name, documentation, labels=[])
        self.histogram = histogram
        if histogram is not None:
            buckets = [
                ("+Inf" if bound == float("inf") else str(bound), count)
                for bound, count in histogram.counts.items()
            ]
            self.add_metric([], buckets, histogram.sum_s)


def prefers_protobuf(accept: str) -> bool:
    """Whether an ``Accept`` header prefers this format to every other."""
    protobuf, others = 0.0, 0.0
    for choice in accept.split(","):
        media_type, *rest = (part.strip().lower() for part in choice.split(";"))
        parameters = dict(part.partition("=")[::2] for part in rest)
        quality = 1.0
        with suppress(ValueError):
            quality = float(parameters.get("q", "1"))
        if media_type != "application/vnd.google.protobuf":
            others = max(others, quality)
        elif (
            parameters.get("encoding") == "delimited"
            and parameters.get("proto") == "io.prometheus.client.metricfamily"
        ):
            protobuf = max(protobuf, quality)
    return protobuf > 0 and protobuf >= others


def encode_protobuf(families: Iterable[Metric]) -> bytes:
    """Each family with samples as a ``MetricFamily``, behind its length."""
    encoded = bytearray()
    for family in families:
        if family.samples:
            message = _family(family)
            encoded += _varint(len(message)) + message
    return bytes(encoded)


def _family(family: Metric) -> bytes:
    name = family.name + ("_total" if family.type == "counter" else "")
    head = _text(1, name) + _text(2, family.documentation)
    head += _number(3, _TYPES.get(family.type, _UNTYPED))
    if isinstance(family, LatencyFamily) and family.histogram is not None:
        return head + _message(4, _message(7, _histogram(family.histogram)))
    field = _VALUE_FIELD.get(family.type, _UNTYPED_FIELD)
    samples = (each for each in family.samples if each.name == name)
    return head + b"".join(
        _message(4, _labels(each.labels) + _message(field, _double(1, each.value)))
        for each in samples
    )


def _labels(labels: Mapping[str, str]) -> bytes:
    return b"".join(_message(1, _text(1, name) + _text(2, text)) for name, text in labels.items())


def _histogram(histogram: Histogram) -> bytes:
    """The message ``Histogram``: the classic buckets, then the native ones."""
    count = max(histogram.counts.values(), default=0)
    parts = [_number(1, count), _double(2, histogram.sum_s)]
    parts.extend(
        _message(3, _number(1, below) + _double(2, bound))
        for bound, below in histogram.counts.items()
    )
    native = histogram.native
    parts += [
        _number(5, _zigzag(native.schema)),
        _double(6, native.zero_threshold_s),
        _number(7, count - sum(native.counts.values())),
    ]
    parts.extend(
        _message(12, _number(1, _zigzag(offset)) + _number(2, length))
        for offset, length in _spans(native.counts)
    )
    before = 0
    for number in sorted(native.counts):
        parts.append(_number(13, _zigzag(native.counts[number] - before)))
        before = native.counts[number]
    return b"".join(parts)


def _spans(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Runs of consecutive buckets: the gap to the run before, the first's from 0, and a length."""
    begin = end = last = 0
    for number in sorted(numbers):
        if number != end or begin == end:
            if begin != end:
                yield begin - last, end - begin
                last = end
            begin = number
        end = number + 1
    if begin != end:
        yield begin - last, end - begin


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value)


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | _FIXED64) + struct.pack("<d", value)


def _text(field: int, value: str) -> bytes:
    return _message(field, value.encode())


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while rest := value >> 7:
        encoded.append(value & 0x7F | 0x80)
        value = rest
    encoded.append(value)
    return bytes(encoded)


def _zigzag(value: int) -> int:
    return value << 1 if value >= 0 else (-value << 1) - 1
