"""What counts as a loss of speed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import guard


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "STORED", tmp_path / "guard.json")
    guard.store({"flood": 40.0, "latency": 3.0}, {"python": "3.11", "cores": 2})


@pytest.mark.usefixtures("stored")
def test_less_than_the_tolerance_is_kept() -> None:
    assert guard.losses({"flood": 27.0, "latency": 9.0}) == []


@pytest.mark.usefixtures("stored")
def test_more_than_the_tolerance_is_lost_and_told() -> None:
    now = {"flood": 25.0, "latency": 3.0}
    assert guard.losses(now) == ["flood"]
    assert "LOST" in guard.guard_table(now)
