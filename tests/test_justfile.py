"""The recipes that take arguments hand each of them on as it was given."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
JUST = Path(sys.executable).parent / "just"
GIVEN = ["--alerts", "AAPL pnl < -500; * stale", "it's", "a or b"]


@pytest.mark.parametrize("recipe", ["run", "test", "test-all", "bench", "bench-pnl"])
def test_arguments_with_spaces_and_signs_of_the_shell_arrive_whole(recipe: str) -> None:
    answer = subprocess.run(
        [JUST, "--no-deps", "--set", "python", r"printf '%s\n'", recipe, *GIVEN],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.stdout.splitlines()[-len(GIVEN) :] == GIVEN, answer.stderr


def test_every_folder_of_tests_is_run_once_by_what_ci_runs() -> None:
    """With coverage the parts, and without it what these leave out."""

    def written(variable: str, *recipe: str) -> str:
        command = [JUST, "--no-deps", "--dry-run", *recipe]
        if variable:
            command = [JUST, "--evaluate", variable]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return found.stdout + found.stderr

    left_out = re.findall(r"--ignore=(\S+)", written("parts"))
    assert left_out
    assert sorted(re.findall(r"\btests/\S+", written("", "test-programs"))) == sorted(left_out)
