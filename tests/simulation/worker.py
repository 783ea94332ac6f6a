"""One seed in a process of its own."""

from __future__ import annotations

import logging
import signal
import traceback
from typing import Any, NoReturn

from tests.simulation.plan import Outcome
from tests.simulation.world import simulate

_SEED_LIMIT_S = 120


class _TooLongError(Exception):
    pass


def _too_long(*_: Any) -> NoReturn:
    raise _TooLongError(f"took over {_SEED_LIMIT_S} s of real time")


def run_quietly(
    only: tuple[str, ...], account: bool | None, group: bool | None, seed: int
) -> Outcome:
    """One seed in a worker; whatever it raises is a violation."""
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(_SEED_LIMIT_S)
    try:
        return simulate(seed, only=only, account=account, group=group)
    except BaseException:
        return Outcome(seed, [traceback.format_exc()])
    finally:
        signal.alarm(0)
