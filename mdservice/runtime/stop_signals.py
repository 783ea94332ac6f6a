"""The signals that ask a program to end, and what the first and the second of them do."""

from __future__ import annotations

import errno
import os
import signal
import termios
from collections.abc import Callable, Sequence

import anyio
from anyio.abc import TaskStatus

from mdservice.observability.logging import get_logger

__all__ = ["leave_lost_terminal", "stop_on_signal", "stop_signals"]

_log = get_logger(__name__)

_AT_ONCE = 1
_ONE_SIGNAL_S = 0.05
"""timeout(1) and some shells deliver one signal twice: to the process and to its group."""


def stop_signals() -> Sequence[signal.Signals]:
    """SIGINT, SIGTERM and SIGHUP, which a closed terminal sends.

    A SIGHUP that is ignored stays so: nohup(1) starts a program that way. An ignored SIGINT does
    not: a script's shell ignores it for all of its background jobs, and a SIGINT that is sent to
    such a job should end it.
    """
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return (signal.SIGINT, signal.SIGTERM)
    return (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def leave_lost_terminal() -> None:
    """Send the rest of the output to the null device where its terminal has been closed.

    Each write to such a terminal fails, the interpreter's own at the end included.
    """
    for descriptor in (1, 2):
        try:
            termios.tcgetattr(descriptor)
        except termios.error as exc:
            if exc.args[0] == errno.EIO:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, descriptor)
                os.close(null)


async def stop_on_signal(
    running: anyio.CancelScope,
    at_once: Callable[[], None] | None = None,
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Cancel the scope on the first signal; end the process at once on a second one.

    Args:
        running: What drains when it is cancelled.
        at_once: Called before the process ends on a second signal; it must not block.
        task_status: Called once signals are received.
    """
    with anyio.open_signal_receiver(*stop_signals()) as signals:
        task_status.started()
        first_s = 0.0
        async for number in signals:
            if running.cancel_called and anyio.current_time() < first_s + _ONE_SIGNAL_S:
                continue
            if running.cancel_called:  # the guard ends an embedded server, the system the rest
                if at_once is not None:
                    at_once()
                os._exit(_AT_ONCE)
            first_s = anyio.current_time()
            leave_lost_terminal()
            _log.info("stopping", signal=signal.Signals(number).name)
            running.cancel()
