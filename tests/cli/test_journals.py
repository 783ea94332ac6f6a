"""``mdservice replay`` and what it understands."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from mdservice.cli import cli
from mdservice.cli.journals import Moment


def invoke(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, list(args))
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("2027-01-15T08:00", 1_800_000_000_000_000_000),
        ("2027-01-15T08:00:00.5Z", 1_800_000_000_500_000_000),
        ("2027-01-15T03:00:00-05:00", 1_800_000_000_000_000_000),
        ("2027-01-15", 1_799_971_200_000_000_000),
    ],
)
def test_a_time_is_utc_unless_it_says_otherwise(text: str, ns: int) -> None:
    assert Moment().convert(text, None, None) == ns


@pytest.mark.parametrize(
    "arguments",
    [
        ["--from", "yesterday"],
        ["--to", "25:00"],
        ["--speed", "0"],
        ["--speed", "fast"],
        ["--speed", "-1"],
        ["--port", "70000"],
    ],
)
def test_a_bad_value_is_a_matter_of_usage(arguments: list[str], tmp_path: Path) -> None:
    assert invoke("replay", str(tmp_path), *arguments)[0] == 2


def test_a_folder_is_needed() -> None:
    assert invoke("replay")[0] == 2


def test_a_folder_without_a_journal_fails_with_the_reason(tmp_path: Path) -> None:
    code, output = invoke("replay", str(tmp_path))
    assert code == 1
    assert "MDSERVICE_JOURNAL" in output
