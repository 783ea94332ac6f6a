"""Each fault raises its own alerts and no other, by Prometheus' own judgement of real scrapes."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from mdservice.feed.liveness import Hours
from tests.operations.bench import open_bench
from tests.operations.faults import FAULTS, Row
from tests.operations.promtool import (
    ALERTS,
    EXPRESSIONS,
    LIMIT_S,
    RULES,
    SCRAPE_S,
    Firing,
    Scrapes,
    judge,
    needs_promtool,
)
from tests.simulation.clocks import jumping_clock

_CALM_S = 120
"""How long the service runs without a fault before."""


async def scrape(row: Row) -> tuple[Scrapes, list[tuple[int, Firing]]]:
    """Run a service through a fault; what it showed, and which alerts have to fire when."""
    cases: list[tuple[int, Firing]] = []
    async with open_bench(row.settings) as bench, row.prepare(bench):
        await bench.scrape_for(_CALM_S)
        cases.append((bench.now_s, {}))
        async with row.fault(bench):
            await bench.scrape_for(row.within_s)
            cases.append((bench.now_s, row.firing))
            await bench.scrape_for(row.lasts_s)
        await bench.scrape_for(row.over_s)
        cases.append((bench.now_s, {}))
    return bench.scrapes, cases


@needs_promtool
@pytest.mark.parametrize("row", FAULTS, ids=lambda row: row.name)
def test_a_fault_raises_its_own_alert_and_no_other(row: Row, tmp_path: Path) -> None:
    scrapes, cases = trio.run(scrape, row, clock=jumping_clock())
    if wrong := judge(scrapes, cases, tmp_path):
        pytest.fail(wrong)


_HOUR_S = 3600
_DAY: tuple[tuple[Hours, float, float | None], ...] = (
    ("closed", 4, None),
    ("extended", 5.5, 20.0),
    ("open", 6.5, 2.0),
    ("extended", 4, 20.0),
    ("closed", 4, None),
)
"""A working day in New York: what silence means, for how many hours, and the seconds between two
quotes of a symbol."""


async def scrape_quiet_day(longest_h: float) -> tuple[Scrapes, list[range]]:
    """Run a service through a day; its scrapes, and those of each part of the day.

    Once in each part the feed and Redis lose their connection for a moment.

    Args:
        longest_h: Of each part, no more hours than these.
    """
    parts = []
    async with open_bench({}) as bench:
        for hours, length_h, quotes_every_s in _DAY:
            first = bench.scrapes.count
            bench.hours, bench.quotes_every_s = hours, quotes_every_s
            length_s = min(length_h, longest_h) * _HOUR_S
            await bench.scrape_for(length_s / 4)
            bench.feed.drop()
            bench.store.drop_connection()
            await bench.scrape_for(length_s * 3 / 4)
            parts.append(range(first, bench.scrapes.count))
    return bench.scrapes, parts


def _lasting(part: range, hours: float) -> Iterator[range]:
    """A part of the day that lasts so long, by its second half again and again."""
    yield part
    left = round(hours * _HOUR_S / SCRAPE_S) - len(part)
    half = part[len(part) // 2 :]
    while left > 0:
        yield half[:left]
        left -= len(half)


@needs_promtool
@pytest.mark.parametrize("longest_h", [0.5, pytest.param(24, marks=pytest.mark.slow)])
def test_a_quiet_week_raises_none(longest_h: float, tmp_path: Path) -> None:
    scrapes, parts = trio.run(scrape_quiet_day, longest_h, clock=jumping_clock())
    lengths_h = [length_h for _, length_h, _ in _DAY]
    day = [
        each
        for part, length_h in zip(parts, lengths_h, strict=True)
        for each in _lasting(part, length_h)
    ]
    week = scrapes.again([*day * 5, *_lasting(parts[-1], 48)])
    assert week.count == 7 * 24 * _HOUR_S / SCRAPE_S
    if wrong := judge(week, [], tmp_path, every_s=60):
        pytest.fail(wrong)


def test_every_alert_is_raised_by_a_fault() -> None:
    assert {name for row in FAULTS for name in row.firing} == set(ALERTS)


def test_the_rules_name_metrics_that_exist() -> None:
    reference = (RULES.parents[2] / "reference" / "metrics.md").read_text()
    known = set(re.findall(r"^\| `(mdservice_\w+)` \|", reference, re.MULTILINE))
    named = set(re.findall(r"\bmdservice_\w+", " ".join(EXPRESSIONS)))
    assert {re.sub("_(sum|count|bucket)$", "", name) for name in named} <= known


def test_the_runbook_explains_every_alert_and_no_other() -> None:
    runbook = RULES.parents[1] / "runbook.md"
    assert re.findall(r"^### (\w+)$", runbook.read_text(), re.MULTILINE) == list(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"].keys() == {"summary", "runbook"}
        place = f"{runbook.relative_to(RULES.parents[3])}#{name.lower()}"
        assert rule["annotations"]["runbook"] == place


@needs_promtool
def test_prometheus_finds_no_fault_in_the_rules() -> None:
    command = ["promtool", "check", "rules", "--lint-fatal", str(RULES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
