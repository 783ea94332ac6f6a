"""So many calls a minute.

Pure: the time is an argument.
"""

from __future__ import annotations

import attrs

__all__ = ["Quota", "RateLimit"]

_WINDOW_S = 60.0
_MOST_KEYS = 1_000


@attrs.frozen
class Quota:
    """What a key has left after a call.

    Attributes:
        allowed: Whether the call may be answered.
        remaining: Calls left until the reset.
        reset_in_s: Seconds until all calls are there again.
    """

    allowed: bool
    remaining: int
    reset_in_s: float


class RateLimit:
    """Counts the calls of each key in windows of a minute, which begin with a first call.

    Args:
        per_minute: Calls allowed in each.
    """

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._windows: dict[str, tuple[float, int]] = {}

    def take(self, key: str, now_s: float) -> Quota:
        """Count one call; a refused one counts for nothing."""
        ends_s, used = self._windows.get(key, (now_s, 0))
        if ends_s <= now_s:
            self._forget_ended(now_s)
            ends_s, used = now_s + _WINDOW_S, 0
        allowed = used < self.per_minute
        used += allowed
        self._windows[key] = ends_s, used
        return Quota(allowed, self.per_minute - used, ends_s - now_s)

    def _forget_ended(self, now_s: float) -> None:
        if len(self._windows) < _MOST_KEYS:
            return
        self._windows = {key: window for key, window in self._windows.items() if window[0] > now_s}
        if len(self._windows) >= _MOST_KEYS:
            del self._windows[next(iter(self._windows))]
