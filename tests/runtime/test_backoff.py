"""Delays between tries."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.runtime.backoff import Backoff


@given(st.integers(0, 2**32), st.integers(1, 60))
def test_each_delay_lies_between_half_and_all_of_a_bound_that_doubles(seed: int, n: int) -> None:
    backoff = Backoff(first_s=0.5, limit_s=30.0, rng=random.Random(seed))
    delays = [backoff.next_s() for _ in range(n)]
    bounds = [min(30.0, 0.5 * 2**failure) for failure in range(n)]
    assert all(bound / 2 <= s <= bound for s, bound in zip(delays, bounds, strict=True))


def test_starts_again_after_data_has_come() -> None:
    backoff = Backoff(first_s=1.0, limit_s=60.0)
    for _ in range(5):
        backoff.next_s()
    assert backoff.next_s() >= 16
    backoff.reset()
    assert backoff.next_s() <= 1.0


def test_the_limit_holds_after_very_many_failures() -> None:
    backoff = Backoff(first_s=0.5, limit_s=30.0)
    delays = [backoff.next_s() for _ in range(5000)]
    assert max(delays) <= 30.0
    assert min(delays[10:]) >= 15.0


def test_two_clients_do_not_come_back_together() -> None:
    delays = {Backoff(rng=random.Random(seed)).next_s() for seed in range(50)}
    assert len(delays) == 50
    assert max(delays) - min(delays) > 0.1


def test_a_seed_makes_it_reproducible() -> None:
    one, other = (Backoff(rng=random.Random(7)) for _ in range(2))
    assert [one.next_s() for _ in range(9)] == [other.next_s() for _ in range(9)]


def test_a_limit_below_the_first_bound_wins() -> None:
    assert Backoff(first_s=10.0, limit_s=2.0).next_s() == pytest.approx(1.5, abs=0.5)
