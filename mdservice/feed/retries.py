"""When to connect again, by what ended the last connection. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence

import attrs

from mdservice.errors import FeedRefused
from mdservice.feed.driver import Driver
from mdservice.model.status import FeedPhase
from mdservice.runtime.backoff import Backoff

__all__ = ["HELD_S", "DriverSelection", "Retries", "Retry"]

_FAILURES_BEFORE_CHANGE = 2

HELD_S = 60.0
"""A connection that was subscribed for so long has worked, whether data came or not. Longer than
the longest wait, so a feed that soon hangs up again is not asked more often than that."""

_SLOT_OFTEN_S, _SLOT_OFTEN_FOR_S = 5.0, 60.0
"""A session that has just ended frees its slot within seconds, a dead one within 90 s."""
_SLOT_LATER_S, _SLOT_LIMIT_S = 10.0, 30.0
_SLOT_JITTER = 0.2
_WRONG_URL_FAST = 3
"""So many upgrades may be answered 404 while a server starts; then the URL is probably wrong."""
_WRONG_URL_FIRST_S, _WRONG_URL_LIMIT_S = 30.0, 30.0
_REFUSED_FIRST_S, _REFUSED_LIMIT_S = 30.0, 300.0


class Retries:
    """Back-offs: for failures, a taken connection slot, a wrong URL, and refusals for good.

    Args:
        failures: The first of them.
    """

    def __init__(self, failures: Backoff) -> None:
        self._failures = failures
        self._slot = _SlotWaits(failures.rng)
        self._wrong_urls = 0
        self._wrong_url = Backoff(_WRONG_URL_FIRST_S, _WRONG_URL_LIMIT_S, failures.rng)
        self._refusals = Backoff(_REFUSED_FIRST_S, _REFUSED_LIMIT_S, failures.rng)
        self._subscribed_s: float | None = None

    def after_failure(self, now_s: float) -> Retry:
        """The connection failed or ended.

        Args:
            now_s: When, monotonic seconds.
        """
        self._ended(now_s)
        return Retry("waiting", self._failures.next_s())

    def after_refusal(self, exc: FeedRefused, now_s: float) -> Retry:
        """The feed answered and said no.

        Args:
            exc: What it said.
            now_s: When, monotonic seconds.
        """
        self._ended(now_s)
        if exc.remedy == "wait_for_slot":
            return Retry("waiting_for_slot", self._slot.next_s(now_s))
        if exc.remedy == "fix":
            return Retry("refused", self._refusals.next_s(), for_good=True)
        if exc.remedy == "check_url":
            self._wrong_urls += 1
            if self._wrong_urls > _WRONG_URL_FAST:
                return Retry("waiting", self._wrong_url.next_s())
        return self.after_failure(now_s)

    def subscribed(self, now_s: float) -> None:
        """All subscriptions are acknowledged: the account's slot is ours.

        Args:
            now_s: Since when, monotonic seconds.
        """
        self._subscribed_s = now_s
        self._let_in()

    def reset(self) -> None:
        """Data came: things work."""
        self._failures.reset()
        self._let_in()
        self._refusals.reset()

    def _let_in(self) -> None:
        self._slot.reset()
        self._wrong_urls = 0
        self._wrong_url.reset()

    def _ended(self, now_s: float) -> None:
        """A connection that held is a success, also in a market without data."""
        if self._subscribed_s is not None and now_s - self._subscribed_s >= HELD_S:
            self.reset()
        self._subscribed_s = None


@attrs.frozen
class Retry:
    """The next try.

    Attributes:
        phase: What the connection is doing meanwhile, as in the status.
        delay_s: After how many seconds.
        for_good: Trying again will hardly fix it.
    """

    phase: FeedPhase
    delay_s: float
    for_good: bool = False


class _SlotWaits:
    """The waits for a taken connection slot: about 5 s for a minute, then longer ones."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._later = Backoff(_SLOT_LATER_S, _SLOT_LIMIT_S, rng)
        self._since_s: float | None = None

    def next_s(self, now_s: float) -> float:
        if self._since_s is None:
            self._since_s = now_s
        if now_s - self._since_s < _SLOT_OFTEN_FOR_S:
            return _SLOT_OFTEN_S * self._rng.uniform(1 - _SLOT_JITTER, 1 + _SLOT_JITTER)
        return self._later.next_s()

    def reset(self) -> None:
        self._since_s = None
        self._later.reset()


class DriverSelection:
    """The drivers to choose from, in the order of preference: the contract's rule for ``auto``.

    Two failed starts change the driver. Refusals by code or HTTP status are answers, so the
    driver works and they never count. While no driver gets through, the drivers alternate under
    one back-off. Once the second one has logged in, it stays until the next start.

    Args:
        drivers: One, where the settings name it; two for ``auto``.
    """

    def __init__(self, drivers: Sequence[Driver]) -> None:
        if not drivers:
            raise ValueError("at least one driver is needed")
        self._drivers = tuple(drivers)
        self._index = 0
        self._failures = 0
        self._settled = len(drivers) == 1
        self._change_reported = False

    @property
    def current(self) -> Driver:
        """The driver to try next, or in use."""
        return self._drivers[self._index]

    def start_failed(self, *, unusable: bool = False) -> None:
        """A start of the current driver failed in transport.

        Args:
            unusable: The driver itself cannot work here; it is not worth a second try.
        """
        if self._settled:
            return
        self._failures += 1
        if unusable or self._failures >= _FAILURES_BEFORE_CHANGE:
            self._index = (self._index + 1) % len(self._drivers)
            self._failures = 0

    def logged_in(self) -> bool:
        """The current driver logged in.

        Returns:
            Whether this is a change of driver that has not been published yet.
        """
        self._failures = 0
        if self._index == 0 or self._change_reported:
            return False
        self._settled = True
        self._change_reported = True
        return True
