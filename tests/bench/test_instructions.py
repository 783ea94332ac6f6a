"""What is made of counted instructions."""

from __future__ import annotations

import pytest

from tests.bench import instructions
from tests.bench.counted import FEW, MANY, TASKS
from tests.bench.instructions import Stored, holds_for, per_quote

_PREPARING, _ONCE = 7_777, 500


def test_what_both_loads_have_in_common_falls_out() -> None:
    dumps = []
    for number in range(len(TASKS)):
        each = 100 * (number + 1)
        dumps += [_PREPARING, _ONCE + each * FEW, _PREPARING, _ONCE + each * MANY]
    assert per_quote(dumps) == {name: 100 * (at + 1) for at, name in enumerate(TASKS)}


def test_counts_that_are_missing_are_no_result() -> None:
    with pytest.raises(RuntimeError, match="counts"):
        per_quote([1] * (4 * len(TASKS) - 1))


def test_a_few_per_cent_more_are_a_loss() -> None:
    stored = Stored(holds_for(), {"encode": 1000.0, "pack": 1000.0})
    now = {"encode": 1031.0, "pack": 1029.0, "new": 5.0}
    assert stored.losses(now) == ["encode"]
    assert "LOST" in stored.table(now)


def test_counts_of_other_versions_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions, "missing", lambda: None)
    assert Stored(holds_for(), {}).skipped() is None
    reason = Stored({**holds_for(), "python": "3.1"}, {}).skipped()
    assert reason is not None
    assert "python 3.1," in reason


def test_without_the_counting_tool_it_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions.shutil, "which", lambda _name: None)
    assert Stored(holds_for(), {}).skipped() == "valgrind is not installed"


@pytest.mark.parametrize("name", TASKS)
def test_every_task_can_be_done(name: str) -> None:
    TASKS[name](20)()
