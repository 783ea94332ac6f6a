"""Stops the tasks of one program at their next step, as ``SIGSTOP`` stops a process.

Time goes on for it: what it waited for comes, and its deadlines pass. It only finds that out once it
continues.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio

# Private, so a test of this folder pins it.
_context: Any = trio._core._run.GLOBAL_RUN_CONTEXT

Task = trio.lowlevel.Task


class Freezer:
    """Which programs are stopped, each named by the task below which all of it runs."""

    def __init__(self) -> None:
        self.stopped: set[Task] = set()
        self.held: list[Task] = []
        """Tasks that could run, and may not."""
        self._queue: _RunQueue

    def stop(self, root: Task) -> None:
        """Stop a program; a task whose turn has begun ends its step first."""
        self.stopped.add(root)
        waiting = list(self._queue)
        self._queue.clear()
        for task in waiting:
            self._queue.append(task)

    def resume(self, root: Task) -> None:
        """Let a program continue."""
        self.stopped.discard(root)
        held, self.held = self.held, []
        for task in held:
            self._queue.append(task)

    def holds(self, task: Task) -> bool:
        """Whether a task may not run."""
        above: Task | None = task
        while above is not None:
            if above in self.stopped:
                return True
            nursery = above.parent_nursery
            above = nursery.parent_task if nursery is not None else None
        return False


class _RunQueue(deque[Task]):
    """Trio's queue of the tasks that can run, without those that may not."""

    def __init__(self, freezer: Freezer, tasks: deque[Task]) -> None:
        super().__init__(tasks)
        self._freezer = freezer

    def append(self, task: Task) -> None:
        if self._freezer.stopped and self._freezer.holds(task):
            self._freezer.held.append(task)
        else:
            super().append(task)


@contextmanager
def open_freezer() -> Iterator[Freezer]:
    """Within the block, programs of this event loop can be stopped."""
    runner, freezer = _context.runner, Freezer()
    freezer._queue = runner.runq = _RunQueue(freezer, runner.runq)
    try:
        yield freezer
    finally:
        freezer.stopped.clear()
        runner.runq = deque([*freezer._queue, *freezer.held])
