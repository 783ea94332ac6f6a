"""One seed in a process of its own."""

from __future__ import annotations

import logging
import signal
import traceback
from typing import Any, NoReturn

from tests.simulation.plan import Outcome
from tests.simulation.world import simulate

_PROCESSOR_LIMIT_S = 120
"""Of a seed that never ends."""
_REAL_LIMIT_S = 600
"""In real time, for a seed that only waits: on a busy machine others may take long too."""
_LIMITS = (
    (signal.ITIMER_PROF, signal.SIGPROF, _PROCESSOR_LIMIT_S),
    (signal.ITIMER_REAL, signal.SIGALRM, _REAL_LIMIT_S),
)


class _TooLongError(Exception):
    pass


def _too_long(number: int, *_: Any) -> NoReturn:
    if number == signal.SIGPROF:
        raise _TooLongError(f"took over {_PROCESSOR_LIMIT_S} s of processor time")
    raise _TooLongError(f"took over {_REAL_LIMIT_S} s of real time")


def run_quietly(
    only: tuple[str, ...], account: bool | None, group: bool | None, seed: int
) -> Outcome:
    """One seed in a worker; whatever it raises is a violation."""
    logging.disable(logging.CRITICAL)
    for timer, number, limit_s in _LIMITS:
        signal.signal(number, _too_long)
        signal.setitimer(timer, limit_s)
    try:
        return simulate(seed, only=only, account=account, group=group)
    except BaseException:
        return Outcome(seed, [traceback.format_exc()])
    finally:
        for timer, *_ in _LIMITS:
            signal.setitimer(timer, 0)
