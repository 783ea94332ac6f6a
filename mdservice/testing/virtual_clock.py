"""A clock whose UTC follows the event loop's time, so that trio's virtual time moves it."""

from __future__ import annotations

from typing import Final

import anyio

__all__ = ["VirtualClock"]

_NS_PER_S: Final = 1_000_000_000
# 2026-11-20T15:00:00Z, a Friday in market hours.
_START_NS: Final = 1_795_186_800 * _NS_PER_S


class VirtualClock:
    """A :class:`~mdservice.clock.Clock` to be read inside a running event loop.

    On trio's ``MockClock`` time starts at 0, so the first stamp of a test is ``start_ns``.

    Args:
        start_ns: UTC nanoseconds at the loop's time 0.
    """

    def __init__(self, start_ns: int = _START_NS) -> None:
        self._start_ns = start_ns

    def monotonic(self) -> float:
        """The event loop's time, in seconds."""
        return anyio.current_time()

    def utc_ns(self) -> int:
        """UTC nanoseconds."""
        return self._start_ns + int(anyio.current_time() * _NS_PER_S)

    def step(self, seconds: float) -> None:
        """Set the machine's clock forward or back, as NTP does; monotonic time does not move."""
        self._start_ns += int(seconds * _NS_PER_S)
