"""Every kept input of each target, and some changes of it that are the same at each run."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from tests.fuzz import CORPUS, TARGETS

ROOT = Path(__file__).parents[2]
FUZZER = ROOT / ".venv-references" / "fuzz" / "bin" / "python"
CHANGES = 3
MOST_S = 2.0
"""Changed inputs take so long at most: how many there are depends on the machine, but not which."""
SECONDS = 3


@pytest.mark.parametrize("target", TARGETS)
def test_no_kept_input_breaks_its_reader(target: str) -> None:
    module = import_module(f"tests.fuzz.{target}")
    for data in [*module.seeds(), *kept(target)]:
        module.run(data)


@pytest.mark.thorough
@pytest.mark.parametrize("target", TARGETS)
def test_no_change_of_a_kept_input_breaks_its_reader(target: str) -> None:
    module, inputs = import_module(f"tests.fuzz.{target}"), kept(target)
    until_s = time.monotonic() + MOST_S
    for data in _changed(inputs, random.Random(target)):
        module.run(data)
        if time.monotonic() > until_s:
            break


def kept(target: str) -> list[bytes]:
    inputs = [file.read_bytes() for file in sorted((CORPUS / target).iterdir())]
    assert inputs
    return inputs


def _changed(inputs: list[bytes], chance: random.Random) -> Iterator[bytes]:
    """Inputs with a byte changed, a part removed or repeated, or the end of another one."""
    for _ in range(CHANGES):
        for data in inputs:
            place, other = chance.randrange(len(data) + 1), chance.randrange(len(data) + 1)
            first, last = sorted((place, other))
            yield data[:place] + chance.randbytes(1) + data[place + 1 :]
            yield data[:first] + data[last:]
            yield data[:last] + data[first:]
            yield data[:place] + chance.choice(inputs)[other:]


@pytest.mark.thorough
@pytest.mark.skipif(not FUZZER.exists(), reason="atheris is not installed: run just fuzz")
@pytest.mark.parametrize("target", TARGETS)
def test_a_few_seconds_of_fuzzing_find_nothing(target: str, tmp_path: Path) -> None:
    command = [FUZZER, "-m", "tests.fuzz", target, str(SECONDS), tmp_path]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=300)
    assert found.returncode == 0, found.stderr[-4000:].decode(errors="replace")
