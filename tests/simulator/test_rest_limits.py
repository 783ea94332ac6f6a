"""The calls of a minute, the market's hours, and the planned faults: all without a clock."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

from mdservice.model.timestamps import parse_rfc3339
from mdservice.simulator import CutRest, GarbleRest, RefuseRest, SlowRest
from mdservice.simulator.rest import RestFaults
from mdservice.simulator.rest.api import RateLimit, encode_clock


def test_counts_down_and_starts_anew_after_a_minute() -> None:
    limit = RateLimit(2)
    quotas = [limit.take("key", now_s) for now_s in (10.0, 40.0, 69.0, 70.0)]
    assert [(q.allowed, q.remaining, q.reset_in_s) for q in quotas] == [
        (True, 1, 60),
        (True, 0, 30),
        (False, 0, 1),
        (True, 1, 60),
    ]


def test_each_key_has_its_own_calls_and_their_number_is_bounded() -> None:
    limit = RateLimit(1)
    assert all(limit.take(f"key{n}", 0.0).allowed for n in range(5_000))
    assert not limit.take("key4999", 1.0).allowed
    assert len(limit._windows) <= 1_000


@pytest.mark.parametrize(
    ("now", "is_open", "next_open", "next_close"),
    [
        # Friday morning in winter, in the hours and against them
        ("2026-11-20T15:51:44Z", True, "2026-11-23T09:30:00-05:00", "2026-11-20T16:00:00-05:00"),
        ("2026-11-20T15:51:44Z", False, "2026-11-23T09:30:00-05:00", "2026-11-23T16:00:00-05:00"),
        # Saturday, and the clocks go back on Sunday
        ("2026-10-31T15:00:00Z", False, "2026-11-02T09:30:00-05:00", "2026-11-02T16:00:00-05:00"),
        # before the open, in summer
        ("2026-07-01T12:00:00Z", False, "2026-07-01T09:30:00-04:00", "2026-07-01T16:00:00-04:00"),
    ],
)
def test_the_clock_tells_what_it_is_told_and_the_next_times(
    now: str, is_open: bool, next_open: str, next_close: str
) -> None:
    answer = json.loads(encode_clock(parse_rfc3339(now), is_open=is_open))
    stamp = answer.pop("timestamp")
    assert datetime.fromisoformat(stamp) == datetime.fromisoformat(now)
    assert stamp[-6:] in {"-05:00", "-04:00"}
    assert answer == {"is_open": is_open, "next_open": next_open, "next_close": next_close}


def test_the_clocks_nanoseconds_are_whole() -> None:
    answer = json.loads(encode_clock(parse_rfc3339("2026-11-20T15:51:44.000000012Z"), is_open=True))
    assert answer["timestamp"] == "2026-11-20T10:51:44.000000012-05:00"


def test_faults_meet_the_requests_they_mean_as_often_as_planned() -> None:
    faults = RestFaults()
    faults.plan(RefuseRest(500, path="/a", times=2))
    faults.plan(RefuseRest(503))
    faults.plan(SlowRest(1.0))
    statuses = [
        getattr(faults.take(RefuseRest, path), "status", None) for path in ("/b", "/a", "/a", "/a")
    ]
    assert statuses == [503, 500, 500, None]
    assert faults.take(CutRest, "/a") is None
    assert faults.take(SlowRest, "/a") == SlowRest(1.0)
    faults.plan(GarbleRest())
    faults.clear()
    assert faults.take(GarbleRest, "/a") is None


def test_what_is_no_http_status_is_refused_when_planned() -> None:
    with pytest.raises(ValueError, match="599"):
        RefuseRest(599)
    with pytest.raises(ValueError, match="times"):
        CutRest(times=0)


def test_planned_faults_are_bounded() -> None:
    faults = RestFaults()
    for _ in range(1_000):
        faults.plan(CutRest())
    with pytest.raises(ValueError, match="1000"):
        faults.plan(CutRest())
