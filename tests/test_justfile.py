"""The recipes that take arguments hand each of them on as it was given."""

from __future__ import annotations

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
