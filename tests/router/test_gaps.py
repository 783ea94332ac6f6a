"""What is missing, as it is told: the order of losses, returns and repairs."""

from __future__ import annotations

from typing import Any

from mdservice.model.timestamps import format_ns
from mdservice.router.gaps import Gaps

SYMBOLS = ["AAPL"]


def told(start_ns: int, end_ns: int, **more: Any) -> dict[str, Any]:
    return {"from": format_ns(start_ns), "to": format_ns(end_ns), "symbols": SYMBOLS, **more}


def filled(gaps: Gaps, until_ns: int, newest_ns: int, *, repaired: bool = True) -> Any:
    return gaps.filled(until_ns, newest_ns, 3, repaired=repaired)


def test_a_gap_goes_from_the_last_quote_to_the_return() -> None:
    gaps = Gaps()
    gaps.lost(10)
    assert gaps.resumed(50, SYMBOLS, repairing=True) == told(10, 50)
    assert filled(gaps, 60, 55) == told(10, 60, quotes=3)
    assert (gaps.told, gaps.repaired) == (1, 1)


def test_the_first_connection_has_none() -> None:
    gaps = Gaps()
    assert gaps.resumed(50, SYMBOLS, repairing=False) is None
    gaps.lost(None)
    assert gaps.resumed(60, SYMBOLS, repairing=False) is None
    assert gaps.told == 0


def test_without_a_symbol_that_is_still_followed_there_is_none() -> None:
    gaps = Gaps()
    gaps.lost(10)
    assert gaps.resumed(50, [], repairing=True) is None
    assert filled(gaps, 60, 55) is None
    assert (gaps.told, gaps.repaired) == (0, 0)
    gaps.lost(70)
    assert gaps.resumed(80, SYMBOLS, repairing=False) == told(70, 80)


def test_one_repair_mends_all_that_were_told_before_it() -> None:
    gaps = Gaps()
    gaps.lost(10)
    assert gaps.resumed(50, SYMBOLS, repairing=True) == told(10, 50)
    gaps.lost(10)  # nothing was accepted meanwhile: it waits for the repair
    assert gaps.resumed(80, SYMBOLS, repairing=True) == told(10, 80)
    assert filled(gaps, 90, 85) == told(10, 90, quotes=3)
    assert (gaps.told, gaps.repaired) == (2, 2)


def test_a_gap_that_is_not_repaired_stays_one_and_the_next_begins_behind_it() -> None:
    gaps = Gaps()
    gaps.lost(10)
    gaps.resumed(50, SYMBOLS, repairing=True)
    assert filled(gaps, 60, 55, repaired=False) is None
    gaps.lost(70)
    assert gaps.resumed(80, SYMBOLS, repairing=True) == told(70, 80)
    assert filled(gaps, 90, 85) == told(70, 90, quotes=3)
    assert (gaps.told, gaps.repaired) == (2, 1)


def test_without_a_repair_under_way_it_stays_one() -> None:
    gaps = Gaps()
    gaps.lost(10)
    gaps.resumed(50, SYMBOLS, repairing=False)
    assert filled(gaps, 60, 55) is None
    gaps.lost(70)
    assert gaps.resumed(80, SYMBOLS, repairing=False) == told(70, 80)


def test_a_repair_given_up_while_lost_again_ends_its_gap_and_leaves_the_next() -> None:
    gaps = Gaps()
    gaps.lost(10)
    gaps.resumed(50, SYMBOLS, repairing=True)
    gaps.lost(10)
    assert filled(gaps, 65, 60, repaired=False) is None
    assert gaps.resumed(80, SYMBOLS, repairing=True) == told(60, 80)
    assert filled(gaps, 90, 85) == told(60, 90, quotes=3)
    assert (gaps.told, gaps.repaired) == (2, 1)


def test_a_repair_given_up_before_the_return_hides_nothing_of_what_is_missing() -> None:
    gaps = Gaps()
    gaps.lost(10)
    assert filled(gaps, 65, 60, repaired=False) is None
    assert gaps.resumed(80, SYMBOLS, repairing=False) == told(10, 80)


def test_a_clock_that_goes_back_does_not_make_a_repair_end_before_its_gap() -> None:
    gaps = Gaps()
    gaps.lost(10)
    gaps.resumed(50, SYMBOLS, repairing=True)
    assert filled(gaps, 20, 15) == told(10, 50, quotes=3)
