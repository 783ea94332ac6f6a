"""Child processes that talk in lines of JSON: started on a core, waited for, ended by their id."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import msgspec

REPOSITORY = Path(__file__).resolve().parents[2]
_CORE_TIMES = Path("/proc/stat")
_READ_BYTES = 65_536
_END_LIMIT_S = 8.0
_SHOWN_LINES = 20


@attrs.frozen
class Cores:
    """Which core the program under test has, and which everything else; None where only one is."""

    program: int | None
    others: int | None

    @classmethod
    def of_this_machine(cls) -> Cores:
        if not hasattr(os, "sched_getaffinity"):
            return cls(None, None)
        usable = sorted(os.sched_getaffinity(0))
        return cls(usable[0], usable[1]) if len(usable) > 1 else cls(None, None)


@attrs.frozen
class Usage:
    """What a process has used so far; None where the system does not tell."""

    cpu_s: float | None
    peak_rss_mb: float | None
    rss_mb: float | None


def usage_of(pid: int) -> Usage:
    """A living process's use, all threads together."""
    folder = Path("/proc", str(pid))
    if not folder.exists():
        return Usage(None, None, None)
    ticks = _ticks(folder / "stat")
    status = (folder / "status").read_text().splitlines()
    words = dict(line.split(":", 1) for line in status if line.startswith("Vm"))
    peak_mb, rss_mb = (int(words[name].split()[0]) / 1024 for name in ("VmHWM", "VmRSS"))
    return Usage(ticks / os.sysconf("SC_CLK_TCK"), peak_mb, rss_mb)


def other_threads_s(pid: int) -> float:
    """The processor time of a living process's threads but the main one, seconds; 0 if not known."""
    tasks = Path("/proc", str(pid), "task")
    found = [each / "stat" for each in tasks.glob("*") if each.name != str(pid)]
    ticks = 0
    for path in found:
        with suppress(OSError):  # it has ended meanwhile
            ticks += _ticks(path)
    return ticks / os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that these have; none if not known."""
    found: list[int] = []
    for path in Path("/proc", str(pid), "task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, path.read_text().split()):
                found += (child, *descendants(child))
    return found


def _ticks(stat: Path) -> int:
    # The program's name, in brackets, may hold anything.
    times = stat.read_text().rpartition(")")[2].split()
    return int(times[11]) + int(times[12])


def core_busy_s(core: int | None) -> float | None:
    """For how long a core has been busy, with whatever; None where the system does not tell."""
    if core is None or not _CORE_TIMES.exists():
        return None
    for line in _CORE_TIMES.read_text().splitlines():
        name, *times = line.split()
        if name == f"cpu{core}":
            user, nice, system, _idle, _iowait, *interrupts_and_steal = map(int, times[:8])
            ticks = user + nice + system + sum(interrupts_and_steal)
            return ticks / os.sysconf("SC_CLK_TCK")
    return None


def pin(core: int | None) -> None:
    """Keep this process, and what it starts from now on, on a core."""
    if core is not None:
        os.sched_setaffinity(0, {core})


@contextmanager
def all_cores(cores: Cores) -> Iterator[None]:
    """Let this process, and what it starts in the block, use both cores; then the others' again."""
    both = {core for core in (cores.program, cores.others) if core is not None}
    if both:
        os.sched_setaffinity(0, both)
    try:
        yield
    finally:
        pin(cores.others)


class Child:
    """A running ``python -m`` process.

    Args:
        process: With pipes for input and output.
        log: Where its errors go.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.pid = process.pid
        self._process = process
        self._log = log
        self._buffer = b""

    def tell(self, message: Mapping[str, Any]) -> None:
        """Write one line to it."""
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(message) + b"\n")
        self._process.stdin.flush()

    def hear(self, limit_s: float) -> dict[str, Any]:
        """Read the next line that it writes.

        Raises:
            RuntimeError: None came in time, or the process ended.
        """
        assert self._process.stdout is not None
        deadline = time.monotonic() + limit_s
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            left_s = deadline - time.monotonic()
            ready, _, _ = select.select([descriptor], [], [], max(0.0, left_s))
            data = os.read(descriptor, _READ_BYTES) if ready else b""
            if not data:
                reason = "ended" if ready else f"said nothing for {limit_s:g} s"
                raise RuntimeError(f"{self._process.args!r} {reason}\n{self.last_words()}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = msgspec.json.decode(line)
        return message

    def check_alive(self) -> None:
        """Raise RuntimeError where it has ended."""
        if self._process.poll() is not None:
            raise RuntimeError(
                f"{self._process.args!r} ended with {self._process.returncode}\n{self.last_words()}"
            )

    def last_words(self) -> str:
        """The end of what it wrote to its log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-_SHOWN_LINES:])

    def end(self) -> int:
        """Close its input, ask it to end, kill it where it does not; returns the exit code."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.terminate()
        try:
            return self._process.wait(_END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


@contextmanager
def running(
    module: str,
    *arguments: str,
    core: int | None,
    others_core: int | None,
    log: Path,
    environment: Mapping[str, str] | None = None,
    python: str | None = None,
) -> Iterator[Child]:
    """Run a module of this repository in a process of its own for as long as the block lasts.

    Args:
        module: As after ``python -m``.
        arguments: What follows it.
        core: Where it runs.
        others_core: Where this process goes back to.
        log: A file for its errors; its folder is its working directory.
        environment: In addition to a plain one.
        python: Another interpreter than this one.
    """
    pin(core)  # inherited, so that it holds from the child's first moment
    try:
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [python or sys.executable, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=log.parent,
                env={**plain_environment(), **(environment or {})},
            )
    finally:
        pin(others_core)
    child = Child(process, log)
    try:
        yield child
    finally:
        child.end()


def plain_environment() -> dict[str, str]:
    """This process's, without anybody's settings of the service."""
    foreign = ("MDSERVICE_", "ALPACA_", "APCA_", "REDIS_URL")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "PYTHONPATH": str(REPOSITORY)}
