"""Coverage-guided fuzzing: ``python -m tests.fuzz [TARGET] [SECONDS]``, in the environment of
``just fuzz``, which has atheris.

A target is a module of this folder with ``run(data)``, which raises where a reader fails in another
way than it documents, and ``seeds()``. An input that reaches new lines is kept in
``tests/fuzz/corpus/TARGET``; one that fails is written to ``tests/fuzz/findings``.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import mdservice
from tests.fuzz import CORPUS, TARGETS

_FINDINGS = Path(__file__).parent / "findings"
_LIMITS = ("-rss_limit_mb=2048", "-timeout=60", "-max_len=16384", "-print_final_stats=1")
_MOST_KEPT_BYTES = 4096
_PACKAGE = str(Path(mdservice.__file__).parent)

_Step = tuple[CodeType, int, int]
"""A line, and the one before it."""


def main(target: str = "all", seconds: str = "60", found: str = "") -> int:
    """Fuzz one target after the other, each in a process of its own, and keep what is new."""
    if found:
        return _fuzz(target, seconds, Path(found))
    names = TARGETS if target == "all" else (target,)
    if not set(names) <= set(TARGETS):
        print(f"there is no target {target}; known are {', '.join(TARGETS)}")
        return 2
    failed = [name for name in names if _run(name, seconds)]
    print(f"{len(failed)} of {len(names)} targets have findings {' '.join(failed)}")
    return 1 if failed else 0


def _run(name: str, seconds: str) -> bool:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as found:
        command = [sys.executable, "-m", "tests.fuzz", name, seconds, found]
        if subprocess.run(command, check=False).returncode != 0:
            return True
        _keep(name, Path(found))
    return False


def _fuzz(name: str, seconds: str, found: Path) -> int:
    import atheris

    with atheris.instrument_imports(include=["mdservice", "tests.fuzz", "websockets"]):
        module = import_module(f"tests.fuzz.{name}")
    for seed in module.seeds():
        (found / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    _FINDINGS.mkdir(exist_ok=True)
    places = [str(found), *([str(CORPUS / name)] if (CORPUS / name).exists() else [])]
    options = [*_LIMITS, f"-max_total_time={seconds}", f"-artifact_prefix={_FINDINGS}/{name}-"]
    atheris.Setup([name, *options, *places], module.run)
    atheris.Fuzz()
    return 0


def _keep(name: str, found: Path) -> None:
    """Copy the inputs that reach new lines into the corpus, the shortest first."""
    module = import_module(f"tests.fuzz.{name}")
    kept = CORPUS / name
    kept.mkdir(parents=True, exist_ok=True)
    known: set[_Step] = set()
    for data in [*module.seeds(), *(file.read_bytes() for file in kept.iterdir())]:
        known |= _steps(module.run, data)
    for file in sorted(found.iterdir(), key=lambda each: (each.stat().st_size, each.name)):
        data = file.read_bytes()
        if len(data) <= _MOST_KEPT_BYTES and not (steps := _steps(module.run, data)) <= known:
            known |= steps
            (kept / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def _steps(run: Callable[[bytes], None], data: bytes) -> set[_Step]:
    """What the package executes for an input."""
    steps: set[_Step] = set()
    before: dict[FrameType, int] = {}

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(_PACKAGE):
            return None
        if event == "line":
            steps.add((frame.f_code, before.get(frame, 0), frame.f_lineno))
            before[frame] = frame.f_lineno
        return trace

    sys.settrace(trace)
    try:
        run(data)
    finally:
        sys.settrace(None)
    return steps


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
