"""When to connect again, by what ended the last connection. Pure."""

from __future__ import annotations

import attrs

from mdservice.backoff import Backoff
from mdservice.errors import FeedRefused
from mdservice.feeds.alpaca.codes import (
    FATAL_WHEN_SUBSCRIBING,
    Reaction,
    reaction_to_code,
    reaction_to_http,
)

__all__ = ["Retries", "Retry"]

_SLOT_FIRST_S, _SLOT_LIMIT_S = 5.0, 30.0
_REFUSED_FIRST_S, _REFUSED_LIMIT_S = 30.0, 300.0


@attrs.frozen
class Retry:
    """The next try.

    Attributes:
        phase: What the connection is doing meanwhile, as in the status.
        delay_s: After how many seconds.
        for_good: Trying again will hardly mend it.
    """

    phase: str
    delay_s: float
    for_good: bool = False


class Retries:
    """Three back-offs: for failures, for a taken connection slot, for refusals for good.

    Args:
        failures: The first of them.
    """

    def __init__(self, failures: Backoff) -> None:
        self._failures = failures
        self._slot = Backoff(_SLOT_FIRST_S, _SLOT_LIMIT_S, failures.rng)
        self._refusals = Backoff(_REFUSED_FIRST_S, _REFUSED_LIMIT_S, failures.rng)

    def after_failure(self) -> Retry:
        """The connection failed or ended."""
        return Retry("waiting", self._failures.next_s())

    def after_refusal(self, exc: FeedRefused) -> Retry:
        """The feed answered and said no."""
        reaction = reaction_to_http(exc.code) if exc.http else reaction_to_code(exc.code)
        if reaction is Reaction.WAIT_FOR_SLOT:
            return Retry("waiting_for_slot", self._slot.next_s())
        if reaction is Reaction.FATAL or exc.code in FATAL_WHEN_SUBSCRIBING:
            return Retry("refused", self._refusals.next_s(), for_good=True)
        return self.after_failure()

    def reset(self) -> None:
        """Data came: things work."""
        for backoff in (self._failures, self._slot, self._refusals):
            backoff.reset()
