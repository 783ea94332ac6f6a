"""Time, as an argument: monotonic seconds for waiting, UTC nanoseconds for stamping.

Pure parts take the numbers; actors take a :class:`Clock`. Tests pass a clock whose UTC
follows trio's virtual time (:class:`mdservice.testing.VirtualClock`).
"""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """Where an actor reads the time."""

    def monotonic(self) -> float:
        """Seconds that never go back; only differences mean anything."""
        ...

    def utc_ns(self) -> int:
        """Nanoseconds since 1970-01-01T00:00:00Z; may step when the machine's clock is set."""
        ...


class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        """Seconds of the system's monotonic clock."""
        return time.monotonic()

    def utc_ns(self) -> int:
        """Nanoseconds of the system's real-time clock."""
        return time.time_ns()
