"""Nanoseconds to RFC 3339 and back, nothing lost."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mdservice.model import timestamps
from mdservice.model.timestamps import (
    EARLIEST_NS,
    LATEST_NS,
    format_ns,
    new_york_day,
    parse_rfc3339,
    parse_written,
)
from tests.examples import examples

EXAMPLE = "2026-11-20T15:51:44.208912345Z"
EXAMPLE_S = 1_795_189_904
EXAMPLE_NS = EXAMPLE_S * 10**9 + 208_912_345
WHOLE_FORM = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", re.ASCII)

quick = examples(200)
any_ns = st.integers(EARLIEST_NS, LATEST_NS)


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00.000000001Z", 1),
        ("1969-12-31T23:59:59.999999999Z", -1),
        (EXAMPLE, EXAMPLE_NS),
        pytest.param("2026-11-20T15:51:44Z", EXAMPLE_S * 10**9, id="no fraction"),
        pytest.param("2026-11-20T15:51:44.2Z", EXAMPLE_S * 10**9 + 200_000_000, id="zeros cut"),
        pytest.param("2026-11-20T15:51:44.2089123459999Z", EXAMPLE_NS, id="beyond nine digits"),
        pytest.param("2026-11-20T10:51:44.208912345-05:00", EXAMPLE_NS, id="behind UTC"),
        pytest.param("2026-11-20T21:21:44.208912345+05:30", EXAMPLE_NS, id="ahead of UTC"),
        pytest.param("2026-11-20t15:51:44.208912345z", EXAMPLE_NS, id="lower case"),
        pytest.param("0001-01-01T00:00:00Z", EARLIEST_NS, id="Go's zero time"),
        pytest.param("9999-12-31T23:59:59.999999999Z", LATEST_NS, id="the last one"),
    ],
)
def test_parses_what_rfc_3339_allows(text: str, ns: int) -> None:
    assert parse_rfc3339(text) == ns
    assert parse_rfc3339(text) == ns, "also when the second is known already"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Z",
        "yesterday",
        "2026-11-20",
        "1795189904208912345",
        pytest.param("2026-11-20T15:51:44", id="no offset"),
        pytest.param("2026-11-20T15:51:44.208912345", id="no offset but a fraction"),
        "2026-11-20T15:51:44.Z",
        "2026-11-20T15:51:44.-1Z",
        "2026-11-20T15:51:44.1_0Z",
        "2026-11-20T15:51:44. 10Z",
        "2026-11-20T15:51:44.12ZZ",
        "2026-11-20T15:51:44,12Z",
        "2026-11-20T15:51:44.12Z\n",
        pytest.param("2026-11-20T15:51:44.\u0661\u0662Z", id="digits that are not ASCII"),
        pytest.param("2026-11-20T15:51:44.\u00b2Z", id="superscript"),
        "2026-13-20T15:51:44Z",
        "2026-02-30T15:51:44Z",
        "2026-11-20T25:51:44Z",
        "2026-11-20T15:51:44+25:00",
        "0000-01-01T00:00:00Z",
        pytest.param("0001-01-01T00:00:00+00:01", id="in UTC before the year 1"),
        pytest.param("9999-12-31T23:59:59-00:01", id="in UTC after the year 9999"),
    ],
)
def test_refuses_everything_else(text: str) -> None:
    parse_rfc3339(EXAMPLE)  # its second is known now, which takes another way through the code
    with pytest.raises(
        ValueError, match=r"year|month|day|hour|minute|offset|RFC 3339|range|isoformat"
    ):
        parse_rfc3339(text)


@quick
@given(any_ns)
@example(EARLIEST_NS)
@example(LATEST_NS)
@example(-1)
def test_round_trip_keeps_every_nanosecond(ns: int) -> None:
    text = format_ns(ns)
    assert WHOLE_FORM.fullmatch(text)
    assert parse_rfc3339(text) == ns
    assert format_ns(parse_rfc3339(text)) == text


@quick
@given(any_ns)
def test_agrees_with_the_standard_library_to_the_microsecond(ns: int) -> None:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=ns // 1000)
    expected = moment.isoformat(timespec="microseconds").removesuffix("+00:00")
    assert format_ns(ns) == f"{expected}{ns % 1000:03d}Z"


@quick
@given(any_ns, any_ns)
def test_texts_sort_as_their_times_do(one: int, other: int) -> None:
    assert (format_ns(one) < format_ns(other)) == (one < other)


@quick
@given(any_ns)
def test_cut_zeros_mean_the_same(ns: int) -> None:
    short = format_ns(ns).removesuffix("Z").rstrip("0").removesuffix(".")
    assert parse_rfc3339(f"{short}Z") == ns


@quick
@given(
    st.integers(EARLIEST_NS + 10**14, LATEST_NS - 10**14),
    st.integers(-23 * 60 - 59, 23 * 60 + 59),
)
def test_any_offset_means_the_same_moment(ns: int, minutes: int) -> None:
    utc = datetime.fromisoformat(format_ns(ns)[:19] + "+00:00")
    local = utc.astimezone(timezone(timedelta(minutes=minutes))).isoformat()
    assert parse_rfc3339(f"{local[:19]}.{ns % 10**9:09d}{local[19:]}") == ns


@quick
@given(st.text(max_size=40) | st.text("0123456789-:.TZ+ _", max_size=24).map(EXAMPLE[:19].__add__))
def test_any_other_text_is_a_value_error(text: str) -> None:
    parse_rfc3339(EXAMPLE)
    try:
        ns = parse_rfc3339(text)
    except ValueError:
        return
    assert EARLIEST_NS <= ns <= LATEST_NS


def test_remembers_a_bounded_number_of_seconds() -> None:
    for second in range(2000):
        parse_rfc3339(format_ns(second * 10**9))
    assert len(timestamps._prefix_of_second) <= 256
    assert len(timestamps._ns_of_prefix) <= 256


def test_a_time_that_is_no_integer_is_refused() -> None:
    with pytest.raises((TypeError, ValueError)):
        format_ns(1.7e18)  # type: ignore[arg-type]


@given(any_ns)
@example(EARLIEST_NS)
@example(LATEST_NS)
@quick
def test_every_time_has_a_date_in_new_york(ns: int) -> None:
    assert 1_01_01 <= new_york_day(ns) <= 9999_12_31


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("2026-11-20T04:59:59.999999999Z", 2026_11_19),
        ("2026-11-20T05:00:00Z", 2026_11_20),
        ("2026-07-01T03:59:59Z", 2026_06_30),
    ],
)
def test_the_date_is_that_of_new_york(text: str, day: int) -> None:
    assert new_york_day(parse_rfc3339(text)) == day


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-20T15:51:44.208912345Z",
        "2026-11-20t15:51:44.208912345Z",
        "2026-11-20 15:51:44.208912345Z",
        "2026-11-20T15:51:44.208912345z",
        "2026-11-20T15:51:44.20891234Z",
        "2026-11-20T15:51:44.2089123451Z",
        "2026-11-20T15:51:44.208912345+00:00",
        "2026-11-20T15:51:44.20891234\u0665Z",
    ],
)
def test_only_a_text_in_its_own_form_is_read_as_written(text: str) -> None:
    try:
        ns = parse_rfc3339(text)
    except ValueError:
        assert parse_written(text) is None
        return
    assert parse_written(text) == (ns if format_ns(ns) == text else None)
