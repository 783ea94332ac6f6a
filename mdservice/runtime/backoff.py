"""Exponential back-off with jitter."""

from __future__ import annotations

import random
from typing import Final

import attrs

__all__ = ["JITTER", "Backoff"]

JITTER: Final = random.Random()  # noqa: S311 - jitter, not a secret
"""The random numbers of everything that is given no others. Whoever seeds it, repeats a run."""


@attrs.define
class Backoff:
    """Exponential delays with jitter: each between half of a doubling bound and the bound.

    Jitter keeps many clients from reconnecting at the same moment. The minimum of half the bound
    keeps a single client from retrying too often.

    Attributes:
        first_s: The first bound, seconds.
        limit_s: The largest bound, seconds.
        rng: The random numbers for the jitter.
    """

    first_s: float = 0.5
    limit_s: float = 30.0
    rng: random.Random = JITTER
    failures: int = attrs.field(default=0, init=False)

    def next_s(self) -> float:
        """Count a failure; return the seconds to wait before the next attempt."""
        bound = min(self.limit_s, self.first_s * 2.0 ** min(self.failures, 32))
        self.failures += 1
        return bound * self.rng.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Reset after a success."""
        self.failures = 0
