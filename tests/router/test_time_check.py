"""Times that stand still while quotes flow are told from a quiet market and from a burst."""

from __future__ import annotations

from mdservice.model.quote import Quote
from mdservice.router.time_checks import FROZEN_AFTER_S, TimeCheck


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
