"""Signs of life of an actor's loops."""

from __future__ import annotations

import pytest

from mdservice.runtime.actor import Heartbeat


class HandClock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s

    def utc_ns(self) -> int:
        raise AssertionError("a heartbeat has nothing to do with the wall clock")


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


def test_is_born_alive_and_ages(clock: HandClock) -> None:
    heartbeat = Heartbeat(clock)
    assert heartbeat.age_s() == 0
    clock.now_s += 2.5
    assert heartbeat.age_s() == 2.5


def test_a_beat_makes_it_young_again(clock: HandClock) -> None:
    heartbeat = Heartbeat(clock)
    clock.now_s += 10
    heartbeat.beat()
    assert heartbeat.age_s() == 0


def test_the_slowest_loop_counts(clock: HandClock) -> None:
    heartbeat = Heartbeat(clock)
    heartbeat.beat("reader")
    clock.now_s += 4
    heartbeat.beat()
    clock.now_s += 1
    assert heartbeat.age_s() == 5, "the reader's"
    heartbeat.beat("reader")
    assert heartbeat.age_s() == 1, "the main loop's"


def test_a_resting_loop_is_alive_until_its_next_beat(clock: HandClock) -> None:
    heartbeat = Heartbeat(clock)
    heartbeat.rest()
    clock.now_s += 1000
    assert heartbeat.age_s() == 0
    heartbeat.beat()
    clock.now_s += 3
    assert heartbeat.age_s() == 3


def test_rest_of_one_loop_hides_no_other(clock: HandClock) -> None:
    heartbeat = Heartbeat(clock)
    heartbeat.rest("reader")
    heartbeat.rest("never seen")
    clock.now_s += 7
    assert heartbeat.age_s() == 7


def test_a_restarted_actor_is_young_and_its_old_loops_are_forgotten(clock: HandClock) -> None:
    heartbeat = Heartbeat(clock)
    heartbeat.beat("reader")
    clock.now_s += 20
    heartbeat.restart()
    assert heartbeat.age_s() == 0
    clock.now_s += 1
    heartbeat.beat()
    assert heartbeat.age_s() == 0, "no reader is waited for"


def test_a_clock_that_goes_back_gives_no_negative_age(clock: HandClock) -> None:
    heartbeat = Heartbeat(clock)
    clock.now_s -= 5
    assert heartbeat.age_s() == 0
