"""The actor that watches the others, and the event loop itself."""

from __future__ import annotations

from collections import deque

import anyio
import attrs
from anyio.abc import TaskStatus

from mdservice.clock import Clock
from mdservice.model.status import Readiness
from mdservice.observability.logging import get_logger
from mdservice.runtime.actor import Depth, Heartbeat
from mdservice.runtime.supervisor import Supervisor

__all__ = ["LIVE_WITHIN_S", "STALLED_AFTER_S", "TICK_S", "HealthWatchdog", "WatchdogSnapshot"]

_log = get_logger(__name__)

TICK_S = 0.5
STALLED_AFTER_S = 15.0
"""Above every time limit inside an actor, so that waiting for one is no stall."""
LIVE_WITHIN_S = 5.0
"""The service counts as alive while the watchdog's last look is younger."""
_LAG_WARNING_S = 1.0
_LAG_WINDOW = 120


@attrs.frozen
class WatchdogSnapshot:
    """How late the event loop runs what is due, milliseconds: lately, and at most."""

    loop_lag_ms: float
    loop_lag_max_ms: float


class HealthWatchdog:
    """Restarts an actor whose loops no longer beat, and measures the event loop's lag.

    Args:
        clock: The time.
    """

    name = "health_watchdog"
    depth = Depth(0, 0)

    def __init__(self, clock: Clock) -> None:
        self.heartbeat = Heartbeat(clock)
        self._clock = clock
        self._supervisor: Supervisor | None = None
        self._lags: deque[float] = deque([0.0], maxlen=_LAG_WINDOW)
        self._max_lag_s = 0.0
        self._suspects: set[str] = set()

    def watch(self, supervisor: Supervisor) -> None:
        """Whom to watch; the supervisor keeps this actor too."""
        self._supervisor = supervisor

    def snapshot(self) -> WatchdogSnapshot:
        """The lag over the last minute, and ever."""
        return WatchdogSnapshot(
            round(max(self._lags) * 1000, 3),
            round(self._max_lag_s * 1000, 3),
        )

    def liveness(self) -> Readiness:
        """Alive: the last look around is younger than :data:`LIVE_WITHIN_S`."""
        age_s = self.heartbeat.age_s()
        if age_s <= LIVE_WITHIN_S:
            return Readiness(ready=True)
        return Readiness(False, (f"the watchdog has not looked around for {age_s:.1f} s",))

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Look around every :data:`TICK_S` seconds until cancelled."""
        task_status.started()
        while True:
            due = self._clock.monotonic() + TICK_S
            await anyio.sleep(TICK_S)
            lag_s = max(0.0, self._clock.monotonic() - due)
            self.heartbeat.beat()
            self._lags.append(lag_s)
            self._max_lag_s = max(self._max_lag_s, lag_s)
            if lag_s > _LAG_WARNING_S:
                _log.warning("event_loop_was_blocked", lag_s=round(lag_s, 3))
            self._look_for_stalls()

    def _look_for_stalls(self) -> None:
        """Twice in a row, since after a blocked loop every heartbeat is old once."""
        if self._supervisor is None:
            return
        old = {
            actor.name: actor.heartbeat.age_s()
            for actor in self._supervisor.actors
            if actor is not self and actor.heartbeat.age_s() > STALLED_AFTER_S
        }
        for name in self._suspects & old.keys():
            reason = f"{name} has not moved for {old[name]:.0f} s"
            _log.error("actor_stalled", actor=name, age_s=round(old[name], 1))
            self._supervisor.restart(name, reason)
        self._suspects = set(old)
