"""Each fault raises its own alerts and no other, by Prometheus' own judgement of real scrapes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import trio

from tests.operations.bench import open_bench
from tests.operations.faults import FAULTS, Row
from tests.operations.promtool import RULES, Firing, Scrapes, judge, needs_promtool
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
        await bench.scrape_for(row.over_s)
        cases.append((bench.now_s, {}))
    return bench.scrapes, cases


@needs_promtool
@pytest.mark.parametrize("row", FAULTS, ids=lambda row: row.name)
def test_a_fault_raises_its_own_alert_and_no_other(row: Row, tmp_path: Path) -> None:
    scrapes, cases = trio.run(scrape, row, clock=jumping_clock())
    if wrong := judge(scrapes, cases, tmp_path):
        pytest.fail(wrong)


@needs_promtool
def test_prometheus_finds_no_fault_in_the_rules() -> None:
    command = ["promtool", "check", "rules", "--lint-fatal", str(RULES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
