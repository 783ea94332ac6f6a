"""References that are not installed are said to be skipped; the best of the others counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import references
from tests.bench.references import CRYPTOFEED, NAUTILUS, Flooded, figures, reference_table


def test_figures_are_medians_by_name() -> None:
    floods = [Flooded("one", 10 * n, n, []) for n in (1, 2, 9)] + [Flooded("other", 5, 4, [])]
    assert figures(floods) == {"one": (20, 2), "other": (5, 4)}


def test_table_says_what_is_skipped_and_how_to_install_it() -> None:
    lines = reference_table([Flooded(NAUTILUS.name, 70_000, 60_000, [])]).splitlines()
    (measured,) = [line for line in lines if line.startswith(NAUTILUS.name)]
    (skipped,) = [line for line in lines if line.startswith(CRYPTOFEED.name)]
    assert "60,000" in measured
    assert "skipped" not in measured
    assert "skipped" in skipped
    assert "just bench-references" in skipped


def test_python_of_a_reference_is_the_one_named_or_the_one_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(NAUTILUS.variable, raising=False)
    monkeypatch.setattr(references, "_ENVIRONMENTS", tmp_path)
    assert NAUTILUS.python() is None
    installed = tmp_path / NAUTILUS.package / "bin" / "python"
    installed.parent.mkdir(parents=True)
    installed.touch()
    assert NAUTILUS.python() == str(installed)
    monkeypatch.setenv(NAUTILUS.variable, "/elsewhere/python")
    assert NAUTILUS.python() == "/elsewhere/python"
