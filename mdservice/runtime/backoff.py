"""Exponential back-off with jitter."""

from __future__ import annotations

import random

import attrs

__all__ = ["Backoff"]


@attrs.define
class Backoff:
    """Exponential delays with jitter: each between half and all of a bound that doubles.

    Jitter keeps many clients from coming back at the same moment; that at least half of
    the bound is waited keeps a single one from hammering.

    Attributes:
        first_s: The first bound, seconds.
        limit_s: The largest bound, seconds.
        rng: Where the jitter comes from.
    """

    first_s: float = 0.5
    limit_s: float = 30.0
    rng: random.Random = attrs.field(factory=random.Random)
    failures: int = attrs.field(default=0, init=False)

    def next_s(self) -> float:
        """Count one more failure; the seconds to wait before the next try."""
        bound = min(self.limit_s, self.first_s * 2.0 ** min(self.failures, 32))
        self.failures += 1
        return bound * self.rng.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Reset after a success."""
        self.failures = 0
