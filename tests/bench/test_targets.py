"""What the table of targets says of a pace that was held, that was not, and that was disturbed."""

from __future__ import annotations

import attrs
import pytest

from tests.bench.benchmark import ALPACA_PY, RAW
from tests.bench.checks import Market
from tests.bench.results import FrameCase, Search
from tests.bench.runs import Load, Outcome
from tests.bench.starts import Starts
from tests.bench.suite import Everything, Sizes
from tests.bench.targets import Target, _every_quote

_HELD = Outcome(
    load=Load(200_000, 10),
    sent=2_000_000,
    in_per_s=200_000,
    out_per_s=200_000,
    heard=2_000_000,
    conflated=0,
    latency_ms=(5, 20),
    cpu_s={},
    foreign_s=0.1,
    peak_rss_mb=None,
    rss_mb=(None, None),
    wrong=[],
)


def _rows(pace: float, tried: Outcome) -> dict[str, Target]:
    search = Search(pace, 10, [tried])
    cases = [
        FrameCase(program.name, Market(per_frame=size), tried, search, (4000, 5000, 9000))
        for program, size in ((RAW, 10), (ALPACA_PY, 10), (RAW, 1), (RAW, 100))
    ]
    sizes = Sizes(tried, {}, {})
    found = Everything([], [400_000], [], cases, sizes, Starts(0, 0, {}), {})
    return {row.work: row for row in _every_quote(found)}


def test_pace_is_compared_with_the_median_of_what_a_did() -> None:
    row = _rows(200_000, _HELD)["every quote"]
    assert row.reached
    assert row.found == "40.0 times A (200,000/s for 10 s; A 5,000/s)"


def test_other_programs_that_are_missing_neither_reach_nor_miss() -> None:
    row = _rows(200_000, _HELD)["… against other programs"]
    assert row.reached is None
    assert "cryptofeed: skipped" in row.found


def test_pace_that_was_not_held_is_missed() -> None:
    row = _rows(0, _HELD)["every quote"]
    assert row.reached is False
    assert row.found == "no pace was held for 10 s"


@pytest.mark.parametrize(("foreign_s", "told"), [(0.1, False), (3.0, True)])
def test_what_was_disturbed_is_reported(foreign_s: float, *, told: bool) -> None:
    row = _rows(100_000, attrs.evolve(_HELD, foreign_s=foreign_s))["every quote"]
    assert ("DISTURBED" in row.found) == told


@pytest.mark.parametrize(
    "change", [{"conflated": 1}, {"out_per_s": 190_000}, {"wrong": ["an event is missing"]}]
)
def test_every_quote_means_at_that_pace_and_all_of_them(change: dict[str, object]) -> None:
    assert _HELD.every_quote
    assert not attrs.evolve(_HELD, **change).every_quote
