"""Each fault raises its own alerts and no other, by Prometheus' own judgement of real scrapes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import trio

from tests.operations.bench import open_bench
from tests.operations.faults import FAULTS, Row
from tests.operations.promtool import (
    ALERTS,
    EXPRESSIONS,
    LIMIT_S,
    RULES,
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
