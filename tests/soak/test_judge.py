"""The judgement of a soak: what grows is found, what only moves is not."""

from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree as ET

import pytest

from tests.soak.faults import FAULTS, Fault
from tests.soak.judge import Sample, Step, unexplained, verdict
from tests.soak.picture import picture

_HOUR_S = 3_600


def _samples(
    rss_mb: Callable[[float], float] = lambda _: 100.0,
    descriptors: Callable[[float], int] = lambda _: 40,
    threads: Callable[[float], int] = lambda _: 7,
) -> list[Sample]:
    """Two hours; each figure is a function of the part of the run that has passed."""
    return [
        Sample(
            at_s=float(at_s),
            program="service",
            rss_mb=rss_mb(at_s / (2 * _HOUR_S)),
            descriptors=descriptors(at_s / (2 * _HOUR_S)),
            threads=threads(at_s / (2 * _HOUR_S)),
            cpu=0.1,
            latency_ms=(1.0, 5.0),
        )
        for at_s in range(0, 2 * _HOUR_S, 10)
    ]


def test_a_flat_run_is_good() -> None:
    assert verdict(_samples(), [], [], {}) == []


def test_what_fills_at_the_beginning_is_no_growth() -> None:
    assert verdict(_samples(rss_mb=lambda part: 60 + min(part, 0.2) * 400), [], [], {}) == []


def test_a_peak_in_between_is_no_growth() -> None:
    def descriptors(part: float) -> int:
        return 400 if 0.5 < part < 0.52 else 40

    assert verdict(_samples(descriptors=descriptors), [], [], {}) == []


@pytest.mark.parametrize(
    ("figure", "samples"),
    [
        ("rss_mb", _samples(rss_mb=lambda part: 100 + 40 * part)),
        ("descriptors", _samples(descriptors=lambda part: 40 + int(40 * part))),
        ("threads", _samples(threads=lambda part: 7 + int(10 * part))),
    ],
)
def test_steady_growth_is_found(figure: str, samples: list[Sample]) -> None:
    (wrong,) = verdict(samples, [], [], {})
    assert figure in wrong
    assert "service" in wrong


def test_a_program_that_ended_is_found() -> None:
    (wrong,) = verdict(_samples(), [], [], {"gateway": 70})
    assert "gateway" in wrong
    assert "70" in wrong


def test_events_missed_around_a_fault_of_redis_are_explained() -> None:
    faults = [Fault("redis killed", 100.0, 104.0)]
    assert unexplained([Step(103.0, "AAPL", 5), Step(110.0, "AAPL", 5)], faults) == []


@pytest.mark.parametrize(
    "faults",
    [
        [],
        [Fault("redis killed", 500.0, 504.0)],
        [Fault("redis killed", 100.0, 104.0)],
        [Fault("gateway stopped", 290.0, 304.0)],
    ],
)
def test_events_missed_at_another_time_are_not(faults: list[Fault]) -> None:
    steps = [Step(300.0, "AAPL", 5)]
    assert unexplained(steps, faults) == steps
    assert verdict(_samples(), steps, faults, {}) != []


def test_the_picture_has_every_program_and_fault() -> None:
    faults = [Fault(name, 60.0 * place, 60.0 * place + 5) for place, name in enumerate(FAULTS)]
    tree = ET.fromstring(picture(_samples(), faults))
    titles = {element.text for element in tree.iter() if element.tag.endswith("title")}
    assert titles == set(FAULTS)
    lines = [element for element in tree.iter() if element.tag.endswith("polyline")]
    assert any(line.get("points") for line in lines)
    assert ET.fromstring(picture([], [])) is not None
