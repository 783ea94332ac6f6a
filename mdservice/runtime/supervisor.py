"""Runs and watches the actors: restarts one that fails or stalls, within a limit."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Literal

import anyio
import attrs
from anyio.abc import TaskStatus

from mdservice.clock import Clock
from mdservice.errors import ActorFailed, ConfigurationError, FeedRefused
from mdservice.model.status import Readiness
from mdservice.observability.logging import get_logger
from mdservice.runtime.actor import Actor, Depth, Heartbeat
from mdservice.runtime.task_groups import first_error

__all__ = [
    "LIVE_WITHIN_S",
    "STALLED_AFTER_S",
    "TICK_S",
    "ActorState",
    "HealthWatchdog",
    "RestartPolicy",
    "Supervision",
    "Supervisor",
    "WatchdogSnapshot",
]

_log = get_logger(__name__)

ActorState = Literal["starting", "running", "restarting", "stopped", "failed"]

_UNRECOVERABLE = (ConfigurationError, FeedRefused)
"""Errors that a restart cannot fix, only a person."""

TICK_S = 0.5
STALLED_AFTER_S = 15.0
"""Longer than every time limit inside an actor, so that waiting does not count as a stall."""
LIVE_WITHIN_S = 5.0
"""The service counts as alive while the watchdog's last check is younger than this."""
_LAG_WARNING_S = 1.0
_LAG_WINDOW = 120


class Supervisor:
    """A nursery with one task for each actor, which runs and restarts it.

    Args:
        actors: The actors, in the order in which they start.
        clock: The time.
        policy: How often each may be restarted.
    """

    def __init__(
        self, actors: Sequence[Actor], clock: Clock, policy: RestartPolicy | None = None
    ) -> None:
        self._wards = {actor.name: _Ward(actor) for actor in actors}
        self._clock = clock
        self._policy = policy or RestartPolicy()
        self.started = False
        """Whether every actor has been ready."""
        self._draining = False
        self._ended = anyio.Event()

    @property
    def actors(self) -> Sequence[Actor]:
        """All of them, in order."""
        return [ward.actor for ward in self._wards.values()]

    @property
    def failed(self) -> str | None:
        """The actor that failed permanently and ended the service, or None."""
        return next((name for name, ward in self._wards.items() if ward.state == "failed"), None)

    def look_at(self, name: str) -> Supervision:
        """One actor's state, restarts, last error, and restarts because it did not move."""
        ward = self._wards[name]
        return Supervision(ward.state, ward.restarts, ward.last_error, ward.stalls)

    def restart(self, name: str, reason: str) -> None:
        """Restart an actor that has stopped moving."""
        ward = self._wards[name]
        if ward.scope is not None and ward.state == "running":
            ward.stalled = reason
            ward.stalls += 1
            ward.scope.cancel()

    def drain(self) -> None:
        """Begin the shutdown: from now on, an actor that returns has finished its work."""
        self._draining = True

    async def drained(self) -> None:
        """Wait until every actor with an inbox has done its work, or none runs any more."""
        await self._ended.wait()

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Start the actors one after the other, and keep them running until cancelled.

        ``started()`` is called once every actor has been ready.

        Raises:
            ExceptionGroup: With :class:`ActorFailed` after too many restarts, or with an error
                that a restart cannot fix.
        """
        try:
            async with anyio.create_task_group() as tasks:
                for ward in self._wards.values():
                    await tasks.start(self._keep, ward)
                self.started = True
                task_status.started()
        finally:
            self._ended.set()

    async def _keep(self, ward: _Ward, *, task_status: TaskStatus[None]) -> None:
        started = False
        while True:
            ward.stalled = None
            try:
                with anyio.CancelScope() as ward.scope:
                    async with anyio.create_task_group() as tasks:
                        ward.actor.heartbeat.restart()
                        await tasks.start(ward.actor.run)
                        ward.state = "running"
                        if not started:
                            started = True
                            task_status.started()
                error = self._why_it_ended(ward)
            except ExceptionGroup as group:
                error = first_error(group)
            if error is None:
                ward.state = "stopped"
                self._note_end()
                return
            await self._before_restart(ward, error)

    def _note_end(self) -> None:
        """See whether all actors with an inbox have ended; the watchdog ends only by cancel."""
        draining = (ward for ward in self._wards.values() if ward.actor.depth.size)
        if all(ward.state == "stopped" for ward in draining):
            self._ended.set()

    def _why_it_ended(self, ward: _Ward) -> Exception | None:
        if ward.stalled is not None:
            return ActorFailed(ward.stalled)
        return None if self._draining else ActorFailed(f"{ward.actor.name} ended by itself")

    async def _before_restart(self, ward: _Ward, error: Exception) -> None:
        ward.last_error = f"{type(error).__name__}: {error}"
        if isinstance(error, _UNRECOVERABLE):
            ward.state = "failed"
            raise error
        now = self._clock.monotonic()
        while ward.recent and ward.recent[0] < now - self._policy.period_s:
            ward.recent.popleft()
        if len(ward.recent) >= self._policy.most:
            ward.state = "failed"
            raise ActorFailed(
                f"{ward.actor.name} failed {len(ward.recent) + 1} times within "
                f"{self._policy.period_s:g} s, the last time with {ward.last_error}"
            ) from error
        delay_s = min(self._policy.limit_s, self._policy.first_s * 2 ** len(ward.recent))
        ward.recent.append(now)
        ward.restarts += 1
        ward.state = "restarting"
        _log.error(
            "actor_restarts",
            actor=ward.actor.name,
            reason=ward.last_error,
            restarts=ward.restarts,
            exc_info=None if isinstance(error, ActorFailed) else error,
        )
        await anyio.sleep(delay_s)


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
        """Set the supervisor whose actors to watch; it runs this actor too."""
        self._supervisor = supervisor

    def snapshot(self) -> WatchdogSnapshot:
        """The maximum lag of the last minute, and since the start."""
        return WatchdogSnapshot(
            round(max(self._lags) * 1000, 3),
            round(self._max_lag_s * 1000, 3),
        )

    def liveness(self) -> Readiness:
        """Alive while the last check is younger than :data:`LIVE_WITHIN_S`."""
        age_s = self.heartbeat.age_s()
        if age_s <= LIVE_WITHIN_S:
            return Readiness(ready=True)
        return Readiness(False, (f"the watchdog has not looked around for {age_s:.1f} s",))

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Check all actors every :data:`TICK_S` seconds until cancelled."""
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
        """Restart actors that are silent twice in a row: once, a blocked loop makes all silent."""
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


@attrs.frozen
class RestartPolicy:
    """How often an actor may fail.

    Attributes:
        most: The most restarts within ``period_s``; at one more failure the service ends.
        period_s: Seconds.
        first_s: The wait before the first restart; doubles with each within the period.
        limit_s: The longest wait.
    """

    most: int = 5
    period_s: float = 60.0
    first_s: float = 0.1
    limit_s: float = 5.0


@attrs.frozen
class Supervision:
    """One actor's state, as the supervisor knows it."""

    state: ActorState
    restarts: int
    last_error: str | None
    stalls: int


@attrs.define
class _Ward:
    actor: Actor
    state: ActorState = "starting"
    restarts: int = 0
    stalls: int = 0
    last_error: str | None = None
    scope: anyio.CancelScope | None = None
    stalled: str | None = None
    recent: deque[float] = attrs.field(factory=deque)


@attrs.frozen
class WatchdogSnapshot:
    """How late the event loop runs, milliseconds: in the last minute, and since the start."""

    loop_lag_ms: float
    loop_lag_max_ms: float
