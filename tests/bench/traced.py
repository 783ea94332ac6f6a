"""``mdservice run`` with a watch on its event loop, as a process.

``python -m tests.bench.traced FILE run`` writes to the file, at its end, what each turn of the loop
did between two waits of the feed: a JSON list of wakes, each
``{"wait_us": …, "write_us": …, "turns": …, "steps": [[task, µs], …]}`` up to the end of the step that
wrote to Redis. Wakes that wrote nothing are left out.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

import trio

from mdservice.cli import main

_LEAST_WAIT_US = 200
"""What counts as waiting for the feed, and not for a moment within the work."""
_MOST_WAKES = 5_000
_READER, _WRITER = "recv_events", "RedisWriter.run"


class Turns(trio.abc.Instrument):
    """Notes the steps of all tasks from each wake on."""

    def __init__(self) -> None:
        self.wakes: deque[dict[str, Any]] = deque(maxlen=_MOST_WAKES)
        self._waiting_ns = self._woken_ns = self._step_ns = time.perf_counter_ns()
        self._steps: list[tuple[str, float]] = []
        self._turns = 0
        self._wait_us = 0.0
        self._watching = False
        """Between a wake and its write."""

    def before_io_wait(self, timeout: float) -> None:
        self._waiting_ns = time.perf_counter_ns()

    def after_io_wait(self, timeout: float) -> None:
        now_ns = time.perf_counter_ns()
        wait_us = (now_ns - self._waiting_ns) / 1000
        if wait_us < _LEAST_WAIT_US:
            self._turns += 1
            return
        self._woken_ns, self._wait_us, self._turns = now_ns, wait_us, 1
        self._watching = True
        self._steps.clear()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._step_ns = time.perf_counter_ns()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if not self._watching:
            return
        now_ns = time.perf_counter_ns()
        self._steps.append((_short(task.name), (now_ns - self._step_ns) / 1000))
        if task.name.endswith(_WRITER):
            if self._steps[0][0] == _READER:
                write_us = (now_ns - self._woken_ns) / 1000
                self.wakes.append(
                    {
                        "wait_us": self._wait_us,
                        "write_us": write_us,
                        "turns": self._turns,
                        "steps": list(self._steps),
                    }
                )
            self._watching = False


def _short(name: str) -> str:
    """``mdservice.router.actor.Router.run`` → ``Router``; the reader by its method."""
    if "run_together" in name:  # the session's reading and asking, of which it reads here
        return "Session"
    words = name.split(".")
    return words[-2] if words[-1] == "run" else words[-1]


def watched(path: Path, arguments: list[str]) -> None:
    """Run the command, write down the turns of its loop at the end."""
    turns = Turns()
    trio.run = partial(trio.run, instruments=[turns])
    sys.argv = ["mdservice", *arguments]
    try:
        main()
    finally:
        path.write_text(json.dumps(list(turns.wakes)))


if __name__ == "__main__":
    watched(Path(sys.argv[1]), sys.argv[2:])
