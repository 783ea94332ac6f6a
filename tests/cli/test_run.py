"""The line that tells what a simulator sends."""

from __future__ import annotations

import gc
import sys
from typing import Any

import anyio
import pytest

from mdservice.cli import GC_THRESHOLD, main
from mdservice.cli.options import run_async
from mdservice.cli.run import _about_positions, _show_progress
from mdservice.simulator import DEMO_POSITIONS, SimulatorConfig, open_simulator


async def lines_after(seconds: float) -> None:
    config = SimulatorConfig(rate=100, shape="flat")
    async with (
        open_simulator(config, port=None) as simulator,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(_show_progress, simulator)
        await anyio.sleep(seconds)
        tasks.cancel_scope.cancel()


async def test_now_and_then_a_line(autojump_clock: Any, capsys: pytest.CaptureFixture[str]) -> None:
    await lines_after(25)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["0 connected, 0 quotes made, 0 a second"] * 2


async def test_one_line_that_changes_on_a_terminal(
    autojump_clock: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    await lines_after(2.5)
    output = capsys.readouterr().out
    assert output.count("\r0 connected") == 2
    assert "\n" not in output


@pytest.mark.parametrize(
    ("every_s", "told"), [(None, "no trades"), (20, "a trade every 20 s"), (0.5, "every 0.5 s")]
)
async def test_the_positions_and_how_often_they_change(every_s: float | None, told: str) -> None:
    config = SimulatorConfig(rate=0, positions=DEMO_POSITIONS, trade_every_s=every_s)
    async with open_simulator(config, port=None) as simulator:
        line = _about_positions(simulator)
    assert line.startswith("positions at http://simulator:80/v2/positions: 8, ")
    assert line.endswith(told)


def test_cycles_are_searched_for_rarely_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    before = gc.get_threshold()
    monkeypatch.setattr(sys, "argv", ["mdservice", "--version"])
    try:
        with pytest.raises(SystemExit):
            main()
        assert gc.get_threshold() == GC_THRESHOLD != before
    finally:
        gc.set_threshold(*before)


def test_what_is_imported_is_left_out_of_the_search_for_cycles() -> None:
    async def imported() -> int:
        return gc.get_freeze_count()

    gc.unfreeze()
    assert run_async(imported) > len(sys.modules)
