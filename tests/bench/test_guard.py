"""What counts as a loss of speed."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from tests.bench import guard
from tests.bench.benchmark import ALPACA_PY, RAW, REFERENCE
from tests.bench.instructions import Stored
from tests.bench.results import Measured
from tests.bench.runs import Load, Outcome

_OUTCOME = Outcome(
    load=Load(1000, 1),
    sent=1000,
    in_per_s=1000,
    out_per_s=1000,
    heard=1000,
    conflated=0,
    latency_ms=(1.0, 2.0),
    cpu_s={},
    foreign_s=None,
    peak_rss_mb=None,
    rss_mb=(None, None),
    wrong=[],
)


def _round(
    number: int, a_ms: float, ours_ms: float, times: float, foreign_s: float = 0.0
) -> list[Measured]:
    """A and both drivers; these are so many times as fast."""

    def measured(name: str, ms: float, per_s: float) -> Measured:
        common = attrs.evolve(_OUTCOME, foreign_s=foreign_s)
        slow = attrs.evolve(common, latency_ms=(4.0, 9.0))
        paced = attrs.evolve(common, latency_ms=(ms, 9.0))
        flood = attrs.evolve(common, out_per_s=per_s, in_per_s=2 * per_s, sent=2 * per_s)
        if name == REFERENCE.name:
            return Measured(number, name, paced, flood)
        return Measured(number, name, slow, flood, [paced])

    ours = [measured(program.name, ours_ms, 100 * times) for program in (RAW, ALPACA_PY)]
    return [measured(REFERENCE.name, a_ms, 100), *ours]


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "STORED", tmp_path / "guard.json")
    counted = Stored({"python": "3.11"}, {"encode": 1000.0})
    guard.store({"flood": 40.0, "latency": 3.0}, {"python": "3.11", "cores": 2}, counted)


@pytest.mark.usefixtures("stored")
def test_less_than_the_tolerance_is_kept() -> None:
    assert guard.losses({"flood": 27.0, "latency": 9.0}) == []


@pytest.mark.usefixtures("stored")
def test_more_than_the_tolerance_is_lost_and_reported() -> None:
    now = {"flood": 25.0, "latency": 3.0}
    assert guard.losses(now) == ["flood"]
    assert "LOST" in guard.guard_table(now)


@pytest.mark.usefixtures("stored")
def test_instructions_are_stored_with_what_they_hold_for() -> None:
    assert guard.stored_instructions() == Stored({"python": "3.11"}, {"encode": 1000.0})


@pytest.mark.usefixtures("stored")
def test_new_counts_leave_the_ratios_as_they_are() -> None:
    counted = Stored({"python": "3.12"}, {"encode": 900.0})
    guard.store_instructions(counted)
    assert guard.stored_instructions() == counted
    assert guard.changes({"flood": 40.0, "latency": 3.0}) == {"flood": 0, "latency": 0}


def test_throughput_is_the_median_of_the_rounds_ratios() -> None:
    measured = [*_round(0, 1, 1, 20), *_round(1, 1, 1, 90), *_round(2, 1, 1, 30)]
    found = guard.ratios(measured)
    assert found["flood published, raw"] == 30
    assert found["flood taken in, raw"] == 60


def test_latency_that_was_high_by_chance_is_no_loss_once_it_was_lower() -> None:
    measured = _round(0, a_ms=1.2, ours_ms=1.3, times=1)
    assert guard.ratios(measured)["latency p50 at 10,000/s, raw"] < 1
    measured += _round(1, a_ms=1.0, ours_ms=0.5, times=1)
    assert guard.ratios(measured)["latency p50 at 10,000/s, raw"] == 2


def test_only_the_programs_of_what_seems_lost_are_measured_again() -> None:
    assert guard.concerned(["flood published, raw", "latency p50 at 10,000/s, raw"]) == [
        REFERENCE,
        RAW,
    ]
    assert guard.concerned(["flood published, alpaca-py"]) == [REFERENCE, ALPACA_PY]


def test_runs_that_something_disturbed_are_left_out() -> None:
    measured = [
        *_round(0, a_ms=0.4, ours_ms=0.8, times=3, foreign_s=0.3),
        *_round(1, a_ms=1.0, ours_ms=0.5, times=20),
    ]
    found = guard.ratios(measured)
    assert found["flood published, raw"] == 20
    assert found["latency p50 at 10,000/s, raw"] == 2
    assert "flood published, raw" in guard.judged(measured)


def test_nothing_is_judged_where_all_runs_were_disturbed() -> None:
    measured = _round(0, a_ms=1.0, ours_ms=0.8, times=3, foreign_s=0.3)
    assert guard.ratios(measured)["flood published, raw"] == 3
    assert guard.judged(measured) == []
