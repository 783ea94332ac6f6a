"""One program on trio's virtual clock, in which the seed decides who runs first."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import trio

from mdservice.runtime.backoff import JITTER
from tests.simulation.clocks import jumping_clock

T = TypeVar("T")

# What Hypothesis sets too; private, so a test of this folder pins it.
_scheduler: Any = trio._core._run


@contextmanager
def seeded_scheduling(seed: int) -> Iterator[None]:
    """Within the block trio draws the order of the tasks from the seed."""
    allowed, state = _scheduler._ALLOW_DETERMINISTIC_SCHEDULING, _scheduler._r.getstate()
    _scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    _scheduler._r.seed(seed)
    try:
        yield
    finally:
        _scheduler._ALLOW_DETERMINISTIC_SCHEDULING = allowed
        _scheduler._r.setstate(state)


@contextmanager
def _no_collection_in_the_middle() -> Iterator[None]:
    """When garbage is collected depends on all that the process did before.

    What is left now, the imported modules above all, is not gone over again.
    """
    gc.collect()
    gc.freeze()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def run_seeded(seed: int, function: Callable[[], Awaitable[T]]) -> T:
    """Run an async function; time goes on only when every task waits for it."""
    JITTER.seed(seed)
    with seeded_scheduling(seed), _no_collection_in_the_middle():
        return trio.run(function, clock=jumping_clock())
