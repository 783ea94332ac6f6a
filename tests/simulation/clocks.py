"""Time that costs little to ask for: it is asked for a hundred times a simulated second."""

from __future__ import annotations

import trio
import trio.testing

from mdservice.testing import VirtualClock

_NS_PER_S = 1_000_000_000
BEGINS_NS = 1_795_186_800 * _NS_PER_S
"""10 o'clock in New York on 20 November 2026, a Friday."""


def jumping_clock() -> trio.testing.MockClock:
    """Trio's virtual clock that jumps at once, without a look at the real one each time."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    object.__setattr__(clock, "current_time", lambda: clock._virtual_base)
    return clock


class SimulatedClock(VirtualClock):
    """A clock of this simulation, asked straight rather than by way of the event loop."""

    def __init__(self, begins_ns: int = BEGINS_NS) -> None:
        super().__init__(begins_ns)
        self._time = trio.lowlevel.current_clock()

    def monotonic(self) -> float:
        return self._time.current_time()

    def utc_ns(self) -> int:
        return self._start_ns + int(self._time.current_time() * _NS_PER_S)
