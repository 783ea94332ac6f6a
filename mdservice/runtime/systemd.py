"""Notifications to systemd, for units of ``Type=notify`` with ``WatchdogSec=``."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from typing import Final

import anyio

from mdservice.observability.logging import get_logger

__all__ = ["Systemd"]

_log = get_logger(__name__)

_LOOK_S: Final = 2.0
"""How often the status is sent, where it has changed."""
_PER_LIMIT: Final = 3
"""Signs of life within the limit of the watchdog; systemd asks for at least two."""


class Systemd:
    """Tells systemd that the process is ready, alive and stopping; elsewhere it does nothing.

    Source: sd_notify(3), sd_watchdog_enabled(3).

    Args:
        environ: The environment: ``NOTIFY_SOCKET``, ``WATCHDOG_USEC``, ``WATCHDOG_PID``. Without
            ``NOTIFY_SOCKET``, systemd does not expect notifications.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._limit_s = _watchdog_limit_s(environ)
        self._failed = False

    async def keep_informed(self, alive: Callable[[], bool], status: Callable[[], str]) -> None:
        """Send ``READY=1`` at once, then the status and signs of life, until cancelled.

        Then ``STOPPING=1``.

        Args:
            alive: Returns whether all is well. While it is not, no sign of life is sent, so that
                systemd ends the process after ``WatchdogSec=`` and starts another.
            status: Returns one line for ``systemctl status``.
        """
        if not self._address:
            return
        pause_s = _LOOK_S if self._limit_s is None else min(_LOOK_S, self._limit_s / _PER_LIMIT)
        shown, first = None, ["READY=1"]
        try:
            while True:
                line = " ".join(status().split())
                fields = [*first, *([f"STATUS={line}"] if line != shown else [])]
                if self._limit_s is not None and alive():
                    fields.append("WATCHDOG=1")
                if fields and self._send("\n".join(fields)):
                    shown, first = line, []
                await anyio.sleep(pause_s)
        finally:
            self._send("STOPPING=1")

    def _send(self, text: str) -> bool:
        """Send a datagram; whether systemd has it. Never waits."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unix:
                unix.setblocking(False)
                unix.sendto(text.encode(), self._address)
        except OSError as exc:
            if not self._failed:
                self._failed = True
                _log.warning("systemd_not_reached", reason=f"{type(exc).__name__}: {exc}")
            return False
        self._failed = False
        return True


def _watchdog_limit_s(environ: Mapping[str, str]) -> float | None:
    """Seconds within which systemd wants a sign of life of this process, or None."""
    limit_us, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not limit_us.isascii() or not limit_us.isdigit() or int(limit_us) == 0:
        return None
    if pid and pid != str(os.getpid()):
        return None  # meant for another process, which has passed its environment on
    return int(limit_us) / 1e6
