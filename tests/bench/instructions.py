"""How many instructions each step of a quote takes: the same on a busy machine as on a quiet one.

Counted by callgrind (``apt-get install valgrind``) in one process that does fixed work, see
:mod:`tests.bench.counted`. What two loads of different size have in common falls out:
(count of many - count of few) / (many - few). The counts hold for the Python and the packages they
were counted with; with others they are not compared.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import attrs

from tests.bench.counted import FEW, MANY, TASKS
from tests.bench.processes import plain_environment
from tests.bench.results import aligned

TOLERANCE = 0.03
"""More instructions than the stored ones by more than this part are a loss."""
_LIMIT_S = 120
_TOTAL = re.compile(r"^totals: (\d+)", re.MULTILINE)
_PACKAGES = ("msgspec", "attrs")
"""Beside Python's, whose instructions are counted."""


def holds_for() -> dict[str, str]:
    """What the counts depend on: versions whose change changes them too."""
    python = ".".join(map(str, sys.version_info[:2]))
    packages = {name: ".".join(version(name).split(".")[:2]) for name in _PACKAGES}
    return {"python": python, **packages}


def missing() -> str | None:
    """Why nothing can be counted here; None where it can."""
    return None if shutil.which("valgrind") else "valgrind is not installed"


def count() -> dict[str, float]:
    """Instructions per quote of each task."""
    with tempfile.TemporaryDirectory(prefix="mdbench-") as folder:
        done = subprocess.run(
            [
                *("valgrind", "--tool=callgrind", "--dump-before=getppid"),
                f"--callgrind-out-file={folder}/out",
                *(sys.executable, "-m", "tests.bench.counted"),
            ],
            check=False,
            capture_output=True,
            cwd=folder,
            env={**plain_environment(), "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
            timeout=_LIMIT_S,
        )
        if done.returncode:
            raise RuntimeError(done.stderr.decode(errors="replace")[-2000:])
        return per_quote(_dumps(Path(folder)))


def _dumps(folder: Path) -> list[int]:
    """What was counted up to each mark since the one before."""
    dumps = {}
    for path in folder.glob("out.*"):
        found = _TOTAL.search(path.read_text(errors="replace"))
        if found:
            dumps[int(path.suffix[1:])] = int(found[1])
    return [dumps[number] for number in sorted(dumps)]


def per_quote(dumps: list[int]) -> dict[str, float]:
    """Four marks a task, before and after the few quotes and before and after the many."""
    if len(dumps) != 4 * len(TASKS):
        raise RuntimeError(f"{len(dumps)} counts for {len(TASKS)} tasks")
    few, many = dumps[1::4], dumps[3::4]
    return {
        name: round((most - least) / (MANY - FEW), 1)
        for name, least, most in zip(TASKS, few, many, strict=True)
    }


@attrs.frozen
class Stored:
    """Counts to compare with.

    Attributes:
        holds_for: See :func:`holds_for`.
        per_quote: By task.
    """

    holds_for: dict[str, str]
    per_quote: dict[str, float]

    def skipped(self) -> str | None:
        """Why these are not to be compared with here; None where they are."""
        if missing():
            return missing()
        now = holds_for()
        if now != self.holds_for:
            return f"counted with {_words(self.holds_for)}; here is {_words(now)}"
        return None

    def losses(self, now: dict[str, float]) -> list[str]:
        """Which tasks take more instructions than they did."""
        return [
            name
            for name, before in self.per_quote.items()
            if now.get(name, 0) > before * (1 + TOLERANCE)
        ]

    def table(self, now: dict[str, float]) -> str:
        """Stored, now, and whether that is a loss."""
        rows = [("instructions per quote", "stored", "now", "change", "")]
        lost = self.losses(now)
        for name, after in now.items():
            before = self.per_quote.get(name)
            if before is None:
                rows.append((name, "-", f"{after:,.0f}", "", "new"))
                continue
            change = f"{100 * (after / before - 1):+.1f} %"
            verdict = "LOST" if name in lost else "kept"
            rows.append((name, f"{before:,.0f}", f"{after:,.0f}", change, verdict))
        return aligned(rows)


def _words(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())
