"""Data faults and the script, without any connection."""

from __future__ import annotations

import pytest

from mdservice.simulator.faults import (
    CutRest,
    DataFaults,
    Drop,
    Duplicate,
    Freeze,
    Garble,
    GarbleRest,
    Lose,
    Mute,
    Planned,
    RefuseRest,
    Reorder,
    RestFaults,
    Slow,
    SlowRest,
    Spoil,
    seeded_faults,
)
from mdservice.simulator.wire import SimQuote, encode_quotes

A, B, C = (SimQuote(name, 1.0, 2.0) for name in "ABC")


def test_a_script_is_drawn_from_its_seed() -> None:
    script = seeded_faults(3, count=20, over_s=60)
    assert script == seeded_faults(3, count=20, over_s=60)
    assert script != seeded_faults(4, count=20, over_s=60)
    moments = [planned.after_s or 0.0 for planned in script]
    assert moments == sorted(moments)
    assert 0 <= moments[0] <= moments[-1] <= 60
    assert {type(p.fault) for p in seeded_faults(3, count=20, over_s=1, kinds=[Drop()])} == {Drop}


def test_a_planned_fault_has_one_moment() -> None:
    with pytest.raises(ValueError, match="after_s or after_quotes"):
        Planned(Drop())
    with pytest.raises(ValueError, match="after_s or after_quotes"):
        Planned(Drop(), after_s=1, after_quotes=1)


def test_timed_faults_end_by_themselves() -> None:
    faults = DataFaults()
    faults.add(Mute(2), 10)
    faults.add(Freeze(3), 10)
    faults.add(Slow(0.5, 4), 10)
    assert faults.muted(11.9)
    assert not faults.muted(12)
    assert faults.frozen_for(11) == 2
    assert faults.frozen_for(13) <= 0
    assert faults.delay_s(13.9) == 0.5
    assert faults.delay_s(14) == 0


def test_reordering_reverses_a_frame() -> None:
    faults = DataFaults()
    faults.add(Reorder(), 0)
    assert faults.reorder("quotes", [A, B, C]) == [C, B, A]
    assert faults.reorder("quotes", [A, B, C]) == [A, B, C]


def test_a_single_quote_changes_places_with_the_next_frame() -> None:
    faults = DataFaults()
    faults.add(Reorder(), 0)
    assert faults.reorder("quotes", [A]) == []
    assert faults.reorder("quotes", [B]) == [B, A]
    assert faults.reorder("quotes", [C]) == [C]


def test_counted_faults_are_used_up() -> None:
    faults = DataFaults()
    frame = encode_quotes([A], "json")
    faults.add(Garble(2), 0)
    faults.add(Duplicate(), 0)
    faults.add(Spoil(), 0)
    faults.add(Lose(2), 0)
    assert faults.copies(frame) == faults.copies(frame) == []
    first, second = faults.copies(frame)
    assert first == second
    assert first.data == frame.data[: len(frame.data) // 2]
    assert faults.copies(frame) == [first]
    assert faults.copies(frame) == [frame]
    assert [faults.spoil(), faults.spoil()] == [True, False]


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
