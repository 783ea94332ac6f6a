"""What a point of a curve says of its runs."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from tests.bench import curves, curves_picture
from tests.bench.curves import Point, Setting
from tests.bench.runs import Load, Outcome


def _outcome(rate: float, out_per_s: float, cpu_s: dict[str, float], foreign_s: float) -> Outcome:
    """Of two seconds."""
    return Outcome(
        load=Load(rate, 2),
        sent=40_000,
        in_per_s=20_000,
        out_per_s=out_per_s,
        heard=40_000,
        conflated=0,
        latency_ms=(0.5, 1.0),
        cpu_s=cpu_s,
        foreign_s=foreign_s,
        peak_rss_mb=1,
        rss_mb=(1, 1),
        wrong=[],
    )


def test_point_is_of_the_run_that_was_disturbed_least() -> None:
    runs = [
        (
            _outcome(20_000, 20_000, {"program": used}, 0.0),
            _outcome(0, out_per_s, {"program": 1.0}, foreign_s),
        )
        for used, out_per_s, foreign_s in ((0.2, 100, 0.5), (0.4, 300, 0.01))
    ]
    found = curves.point(Setting(), runs)
    assert found.out_per_s == 300
    assert found.cost_us == {"program": pytest.approx(10)}
    assert found.cpu == {"program": pytest.approx(0.5)}


@pytest.mark.parametrize(
    ("cpu", "full"),
    [
        ({"program": 0.99, "redis": 0.5, "feed": 0.1}, "program's"),
        ({"program": 0.99, "redis": 0.8, "feed": 0.2}, "program's and others'"),
        ({"program": 0.5, "redis": 0.5}, "none"),
    ],
)
def test_says_which_core_is_full(cpu: dict[str, float], full: str) -> None:
    assert Point(Setting(), 1, 1, (None, None), {}, cpu).limit == full


def test_each_curve_varies_one_thing() -> None:
    for name, curve in curves.settings().items():
        values = [curves.value_of(name, setting) for setting in curve]
        assert values == sorted(set(values))
        others = [other for other in curves.settings() if other != name]
        for other in others:
            assert len({curves.value_of(other, setting) for setting in curve}) == 1


def test_picture_is_well_formed_and_has_every_point() -> None:
    point = Point(Setting(), 400_000, 200_000, (None, None), {}, {"program": 1.0, "redis": 0.2})
    text = curves_picture.picture({name: [point, point] for name in curves.settings()})
    root = ET.fromstring(text)
    assert len(root.findall(".//{*}circle")) == 3 * 2 * 2
