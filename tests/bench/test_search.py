"""The pace that is found is the highest that holds, and the one that is told was held for long."""

from __future__ import annotations

import pytest

from tests.bench.search import HOLDS, find, prove


@pytest.mark.parametrize("capacity", [105_000, 155_000, 199_000])
def test_finds_the_highest_pace_that_holds(capacity: float) -> None:
    tried: list[float] = []

    def holds(pace: float) -> bool:
        tried.append(pace)
        return pace <= capacity

    found = find(holds, 100_000, 200_000, steps=5)
    assert capacity - 100_000 / 2**5 - 1000 <= found <= capacity
    assert len(tried) == 5


def test_nothing_is_found_where_nothing_holds() -> None:
    assert find(lambda _pace: False, 100_000, 200_000, steps=4) == 0


def test_steps_down_until_a_pace_holds_for_long() -> None:
    tried: list[float] = []

    def holds(pace: float) -> bool:
        tried.append(pace)
        return pace <= 191_000

    assert prove(holds, 200_000) == 190_000
    assert tried == [200_000, 190_000]


def test_pace_that_never_holds_for_long_counts_as_none() -> None:
    tried: list[float] = []
    assert prove(lambda pace: bool(tried.append(pace)), 200_000) == 0
    assert len(tried) == len(HOLDS)
