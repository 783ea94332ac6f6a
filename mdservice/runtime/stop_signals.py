"""The signals that end a program: the first one lets it drain, a second one ends it at once."""

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
"""A repeat within these seconds is ignored: timeout(1) and some shells signal process and group."""


def stop_signals() -> Sequence[signal.Signals]:
    """SIGINT, SIGTERM and SIGHUP, which a closed terminal sends.

    An ignored SIGHUP stays ignored, since nohup(1) starts a program that way. An ignored SIGINT
    does not: a script's shell ignores it for all its background jobs, but a SIGINT sent to such a
    job should end it.
    """
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return (signal.SIGINT, signal.SIGTERM)
    return (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def leave_lost_terminal() -> None:
    """Redirect the output to the null device if its terminal has been closed.

    Every write to such a terminal fails, also the interpreter's own at exit.
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
        running: The scope whose tasks drain when it is cancelled.
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
