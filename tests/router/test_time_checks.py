"""A slow clock is distinguished from a stray quote: most of the last 100 have to be refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.model.quote import Quote
from mdservice.router.time_checks import FROZEN_AFTER_S, ClockCheck, TimeCheck
from tests.examples import examples

AHEAD_NS = 90 * 10**9


def check(*reads: tuple[int, int]) -> ClockCheck:
    """Reads as (good quotes, future quotes)."""
    clock_check = ClockCheck()
    for good, future in reads:
        clock_check.add(good + future, [AHEAD_NS] * future)
    return clock_check


@pytest.mark.parametrize(
    ("reads", "behind"),
    [
        pytest.param([], False, id="nothing has come"),
        pytest.param([(0, 1)], False, id="one stray quote"),
        pytest.param([(0, 99)], False, id="99 are not a hundred"),
        pytest.param([(0, 100)], True, id="a hundred in one read"),
        pytest.param([(0, 1)] * 100, True, id="a hundred one by one"),
        pytest.param([(1, 1)] * 50, False, id="half is not most"),
        pytest.param([(49, 51)], True, id="51 are"),
        pytest.param([(0, 100), (50, 0)], False, id="the good ones push them out"),
        pytest.param([(0, 100), (49, 0)], True, id="49 do not"),
        pytest.param([(1000, 0), (0, 51)], True, id="a large good read long ago"),
        pytest.param([(1000, 0), (0, 50)], False, id="not yet"),
        pytest.param([(0, 1000), (50, 0)], False, id="a large bad read long ago"),
        pytest.param([(500, 1)] * 20, False, id="strays now and then"),
    ],
)
def test_most_of_the_last_hundred(reads: list[tuple[int, int]], behind: bool) -> None:
    assert check(*reads).behind_s() == (90.0 if behind else None)


@examples(200)
@given(st.lists(st.tuples(st.integers(0, 150), st.booleans()), max_size=40))
def test_agrees_with_looking_at_the_last_hundred(reads: list[tuple[int, bool]]) -> None:
    """Each read all good or all from the future, as a clock that steps makes them."""
    clock_check = ClockCheck()
    quotes: list[bool] = []
    for size, future in reads:
        clock_check.add(size, [AHEAD_NS] * size if future else [])
        quotes += [future] * size
        last = quotes[-100:]
        behind = len(last) == 100 and sum(last) > 50
        assert clock_check.behind_s() == (90.0 if behind else None)


def test_says_by_how_much_whatever_a_stray_quote_says() -> None:
    clock_check = ClockCheck()
    clock_check.add(101, [*[61 * 10**9] * 50, *[63 * 10**9] * 50, 10**18])
    assert clock_check.behind_s() == 63.0


def test_what_it_remembers_is_bounded() -> None:
    clock_check = ClockCheck()
    for _ in range(10_000):
        clock_check.add(1, [])
        clock_check.add(0, [])
    assert len(clock_check._reads) <= 101


def at(event_ns: int) -> list[Quote]:
    return [Quote("AAPL", 1.0, 2.0, 1, 1, event_ns, event_ns)]


def test_times_that_go_on_are_never_frozen() -> None:
    check = TimeCheck()
    assert check.frozen_s() == 0
    for second in range(100):
        check.add(at(second + 1), float(second))
        assert check.frozen_s() == 0


def test_quotes_that_are_all_old_are_frozen_after_a_while_until_times_go_on() -> None:
    check = TimeCheck()
    check.add(at(7), 0.0)
    for second in range(1, 100):
        check.add([], float(second))
        still_s = second - 1.0
        assert check.frozen_s() == (still_s if still_s >= FROZEN_AFTER_S else 0)
    check.add(at(8), 100.0)
    assert check.frozen_s() == 0


def test_other_content_at_the_same_time_does_not_go_on_either() -> None:
    check = TimeCheck()
    for second in range(41):
        check.add(at(7), float(second))
    assert check.frozen_s() == 39


def test_a_repeat_after_a_quiet_time_is_no_standstill() -> None:
    check = TimeCheck()
    check.add(at(7), 0.0)
    check.add([], 1_000.0)
    assert check.frozen_s() == 0


def test_a_stray_time_ahead_makes_the_others_no_standstill() -> None:
    check = TimeCheck()
    check.add([Quote("AAPL", 1.0, 2.0, 1, 1, 55 * 10**9, 0)], 0.0)
    for second in range(1, 50):
        check.add([Quote("MSFT", 1.0, 2.0, 1, 1, second * 10**9, second * 10**9)], float(second))
        assert check.frozen_s() == 0
