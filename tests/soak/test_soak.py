"""A soak of a minute: it runs, measures, and judges."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.__main__ import main


@pytest.mark.slow
def test_a_minute_of_load_is_measured_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["0.02", "--rate", "200", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert code == 0, said
    assert "rss_mb" in said
    assert (tmp_path / "soak.svg").read_text().startswith("<svg")
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) >= 10
    assert (tmp_path / "service.log").stat().st_size > 0
