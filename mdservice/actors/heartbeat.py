"""Signs of life of an actor's loops."""

from __future__ import annotations

from mdservice.clock import Clock

__all__ = ["Heartbeat"]


class Heartbeat:
    """When each loop of an actor last showed that it moves.

    A loop beats at least every second while it waits for its inbox. A loop that waits for
    the outside world (a socket, say) rests instead: there its silence means nothing.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._beats: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        """Forget all loops: the actor starts anew."""
        self._beats = {"main": self._clock.monotonic()}

    def beat(self, loop: str = "main") -> None:
        """The loop moves."""
        self._beats[loop] = self._clock.monotonic()

    def rest(self, loop: str = "main") -> None:
        """The loop waits for something outside; until its next beat it counts as alive."""
        self._beats.pop(loop, None)

    def age_s(self) -> float:
        """Seconds since the slowest loop's last beat; 0 where all rest."""
        if not self._beats:
            return 0.0
        return max(0.0, self._clock.monotonic() - min(self._beats.values()))
