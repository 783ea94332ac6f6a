"""``just mutants [PACKAGE …] [--count N] [--seed N]``: do the tests notice a changed program?

A mutant is a copy of the project with one small change in one module: ``<`` for ``<=``, another
number, a negated condition, a loop that never runs. It is killed if the tests of its package
fail, or else those of ``just test``. Each survivor is shown with its change.

The changes are cosmic-ray's, chosen at random with a seed, one place in the source at most once.
Left out: annotations, which nothing evaluates, and ``==`` for ``is``.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from difflib import unified_diff
from itertools import islice
from pathlib import Path

import attrs
from cosmic_ray.ast import ast_nodes, get_ast_from_path
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

_REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("feed", "router", "publish", "redis_io", "pnl", "relay")
_COPIED = ("mdservice", "tests", "docs", "pyproject.toml", "README.md", "Justfile", ".ci")
_LIMIT_S = 900
"""A mutant whose tests take longer than this runs without end, and counts as killed."""
_SAME = ("NoOp", "Is_Eq", "IsNot_NotEq", "Eq_Is", "NotEq_IsNot")
_OTHER_FOLDERS = (
    "integration",
    "contracts",
    "simulation",
    "docs",
    "operations",
    "mutants",
    "bench",
)

_REAL_SERVER = (
    "tests/contracts/test_price_store.py",
    "tests/integration/test_redis_connection.py",
    "tests/integration/test_redis_store.py",
    "tests/integration/test_redis_store_fence.py",
    "tests/integration/test_embedded_valkey.py",
)
_MORE = {"redis_io": _REAL_SERVER}
"""The tests of a package that are elsewhere than in its folder."""

Place = tuple[int, int]


@attrs.frozen
class Mutant:
    """One change.

    Attributes:
        module: The path, from the project's root.
        line: Where.
        operator: cosmic-ray's name of the change.
        occurrence: Its number among the places in the module where the operator fits.
    """

    module: str
    line: int
    operator: str
    occurrence: int


def _annotations(source: str) -> list[tuple[Place, Place]]:
    """The begin and end of each annotation."""
    found: list[ast.expr] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            found.append(node.annotation)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns is not None:
            found.append(node.returns)
    return [
        ((each.lineno, each.col_offset), (each.end_lineno or 0, each.end_col_offset or 0))
        for each in found
    ]


def mutants(package: str, rng: random.Random) -> Iterator[Mutant]:
    """One mutant for each place in the package that can be changed, in random order."""
    places: dict[tuple[str, Place], list[Mutant]] = defaultdict(list)
    for path in sorted((_REPOSITORY / "mdservice" / package).rglob("*.py")):
        module = str(path.relative_to(_REPOSITORY))
        annotations = _annotations(path.read_text())
        tree = get_ast_from_path(path)
        nodes = list(ast_nodes(tree))
        for name in operator_names():
            operator = get_operator(name)
            if name.endswith(_SAME) or operator.arguments():
                continue
            positions = (
                start for node in nodes for start, _end in operator().mutation_positions(node)
            )
            for occurrence, start in enumerate(positions):
                if not any(begin <= start < end for begin, end in annotations):
                    mutant = Mutant(module, start[0], name, occurrence)
                    places[module, start].append(mutant)
    order = sorted(places)
    rng.shuffle(order)
    for place in order:
        yield rng.choice(places[place])


@attrs.frozen
class Copy:
    """A copy of the project in which one module at a time is changed."""

    folder: Path

    @classmethod
    def made_in(cls, folder: Path) -> Copy:
        """Copy what the tests need."""
        ignored = shutil.ignore_patterns("__pycache__")
        for name in _COPIED:
            source = _REPOSITORY / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=ignored)
            elif source.exists():
                shutil.copy(source, folder / name)
        return cls(folder)

    def is_killed(self, mutant: Mutant) -> tuple[bool, str]:
        """Whether the tests fail with it; and the change."""
        path = self.folder / mutant.module
        original = path.read_text()
        changed = mutate_code(original, get_operator(mutant.operator)(), mutant.occurrence)
        assert changed is not None
        package = mutant.module.split("/")[1]
        path.write_text(changed)
        try:
            own = [f"tests/{package}", *_MORE.get(package, ())]
            killed = not (self._passes(own) and self._passes(self._fast()))
        finally:
            path.write_text(original)
        before, after = original.splitlines(), changed.splitlines()
        lines = [
            line
            for line in unified_diff(before, after, lineterm="", n=0)
            if line[:1] in "+-" and line[:3] not in ("+++", "---")
        ]
        return killed, "\n".join(lines)

    def _fast(self) -> list[str]:
        """The arguments of ``just test``, without benchmarks."""
        return ["tests", *(f"--ignore=tests/{each}" for each in _OTHER_FOLDERS)]

    def _passes(self, tests: Sequence[str]) -> bool:
        python = str(_REPOSITORY / ".venv" / "bin" / "python")
        options = ["-q", "-x", "-n", "2", "--dist", "worksteal", "-p", "no:cacheprovider"]
        options += ["--hypothesis-profile=quick", "-m", "not thorough and not slow"]
        process = subprocess.Popen(
            [python, "-m", "pytest", *tests, *options],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return process.wait(_LIMIT_S) == 0
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            return False


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run; 1 if a package has less than nine of ten killed."""
    parser = argparse.ArgumentParser(prog="just mutants", description=__doc__.split("\n")[0])
    parser.add_argument("packages", nargs="*", default=PACKAGES, metavar="PACKAGE")
    parser.add_argument("--count", type=int, default=20, help="how many of each package")
    parser.add_argument("--seed", type=int, default=1, help="chooses them")
    options = parser.parse_args()
    unknown = set(options.packages) - set(PACKAGES)
    if unknown:
        parser.error(f"no such package: {', '.join(sorted(unknown))}; there are {PACKAGES}")
    rates: dict[str, tuple[int, int]] = {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Copy.made_in(Path(folder))
        for package in options.packages:
            rng = random.Random(f"{options.seed} {package}")
            chosen = list(islice(mutants(package, rng), options.count))
            killed = 0
            for number, mutant in enumerate(chosen, 1):
                began_s = time.monotonic()
                dead, change = copy.is_killed(mutant)
                killed += dead
                took_s = time.monotonic() - began_s
                state = "killed" if dead else "SURVIVED"
                _say(
                    f"{package} {number}/{len(chosen)} {state} in {took_s:.0f} s: "
                    f"{mutant.module}:{mutant.line} {mutant.operator}"
                )
                if not dead:
                    _say(change)
            rates[package] = killed, len(chosen)
    for package, (killed, count) in rates.items():
        _say(f"{package:10} {killed} of {count} killed")
    return 0 if all(killed >= 0.9 * count for killed, count in rates.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
