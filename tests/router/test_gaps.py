"""What is missing, as it is told: the order of losses, returns and repairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mdservice.model.timestamps import format_ns
from mdservice.router.gaps import Gaps

SYMBOLS = ["AAPL"]


def told(start_ns: int, end_ns: int, symbols: Sequence[str] = SYMBOLS, **more: Any) -> Any:
    return {"from": format_ns(start_ns), "to": format_ns(end_ns), "symbols": list(symbols), **more}


def resumed(
    gaps: Gaps,
    at_ns: int,
    symbols: Sequence[str] = SYMBOLS,
    *,
    left_out: Sequence[str] = (),
    repairing: bool = True,
    **last_ns: int,
) -> list[Any]:
    return gaps.resumed(at_ns, symbols, left_out, last_ns.get, repairing=repairing)


def filled(
    gaps: Gaps,
    until_ns: int,
    newest_ns: int,
    complete: Sequence[str] = SYMBOLS,
) -> list[Any]:
    return gaps.filled(until_ns, newest_ns, {"AAPL": 3, "MSFT": 1}, complete)


def test_a_gap_goes_from_the_last_quote_to_the_return() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, SYMBOLS)
    assert resumed(gaps, 50) == [told(10, 50)]
    assert filled(gaps, 60, 55) == [told(10, 60, quotes=3)]
    assert (gaps.told, gaps.repaired) == (1, 1)


def test_the_first_connection_has_none() -> None:
    gaps = Gaps("quotes")
    assert resumed(gaps, 50, repairing=False) == []
    gaps.lost(None, SYMBOLS)
    assert resumed(gaps, 60, repairing=False) == []
    assert gaps.told == 0


def test_a_symbol_that_was_not_followed_before_has_none() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, SYMBOLS)
    assert resumed(gaps, 50, ["AAPL", "NEW"]) == [told(10, 50)]


def test_a_symbol_that_is_wanted_no_longer_has_none_even_when_it_is_wanted_again() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, SYMBOLS)
    assert resumed(gaps, 50, []) == []
    assert filled(gaps, 60, 55) == []
    assert resumed(gaps, 65) == []
    assert (gaps.told, gaps.repaired) == (0, 0)
    gaps.lost(70, SYMBOLS)
    assert resumed(gaps, 80, repairing=False) == [told(70, 80)]


def test_every_symbol_that_is_missing_is_back_with_star() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, ["AAPL", "MSFT"])
    assert resumed(gaps, 50, ["*"]) == [told(10, 50, ["AAPL", "MSFT"])]
    assert filled(gaps, 60, 55, []) == []


def test_a_symbol_left_out_goes_on_being_missing_until_it_is_back() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, ["AAPL", "MSFT"])
    assert resumed(gaps, 50, left_out=["MSFT"]) == [told(10, 50)]
    assert filled(gaps, 60, 55) == [told(10, 60, quotes=3)]
    gaps.lost(70, SYMBOLS)
    both = [told(10, 80, ["MSFT"]), told(70, 80)]
    assert resumed(gaps, 80, ["AAPL", "MSFT"]) == both
    assert filled(gaps, 90, 85, ["AAPL", "MSFT"]) == [
        told(10, 90, ["MSFT"], quotes=1),
        told(70, 90, quotes=3),
    ]
    assert (gaps.told, gaps.repaired) == (3, 3)


def test_where_quotes_went_out_over_it_a_gap_can_no_longer_be_repaired() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, ["AAPL", "MSFT"])
    filled(gaps, 60, 55, [])  # given up before the return was told: what waited went out
    assert resumed(gaps, 80, ["AAPL", "MSFT"], AAPL=55, MSFT=9) == [
        told(10, 80),
        told(10, 80, ["MSFT"]),
    ]
    assert filled(gaps, 90, 85, ["AAPL", "MSFT"]) == [told(10, 90, ["MSFT"], quotes=1)]
    assert (gaps.told, gaps.repaired) == (2, 1)


def test_nor_where_it_was_left_out_in_the_meantime() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, ["AAPL", "MSFT"])
    resumed(gaps, 50, ["AAPL", "MSFT"])
    gaps.lost(10, ["AAPL", "MSFT"])
    resumed(gaps, 60, left_out=["MSFT"])
    filled(gaps, 70, 65)
    assert resumed(gaps, 80, ["AAPL", "MSFT"], MSFT=55) == [told(10, 80, ["MSFT"])]
    assert filled(gaps, 90, 85, ["MSFT"]) == []


def test_a_symbol_that_comes_back_on_the_same_connection_is_told_at_once() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, ["AAPL", "MSFT"])
    resumed(gaps, 50, left_out=["MSFT"])
    assert resumed(gaps, 55, ["AAPL", "MSFT"], repairing=False) == [told(10, 55, ["MSFT"])]
    assert filled(gaps, 60, 58) == [told(10, 60, quotes=3)], "the other's repair goes on"
    assert (gaps.told, gaps.repaired) == (2, 1)


def test_only_the_symbols_that_are_complete_are_repaired() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, ["AAPL", "MSFT"])
    resumed(gaps, 50, ["AAPL", "MSFT"])
    assert filled(gaps, 60, 55, ["MSFT"]) == [told(10, 60, ["MSFT"], quotes=1)]
    assert (gaps.told, gaps.repaired) == (1, 0), "as a whole it stays one"


def test_one_repair_mends_all_that_were_told_before_it() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, SYMBOLS)
    assert resumed(gaps, 50) == [told(10, 50)]
    gaps.lost(10, SYMBOLS)  # nothing was accepted meanwhile: it waits for the repair
    assert resumed(gaps, 80) == [told(10, 80)]
    assert filled(gaps, 90, 85) == [told(10, 90, quotes=3)]
    assert (gaps.told, gaps.repaired) == (2, 2)


def test_a_gap_that_is_not_repaired_stays_one_and_the_next_begins_behind_it() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, SYMBOLS)
    resumed(gaps, 50)
    assert filled(gaps, 60, 55, []) == []
    gaps.lost(70, SYMBOLS)
    assert resumed(gaps, 80) == [told(70, 80)]
    assert filled(gaps, 90, 85) == [told(70, 90, quotes=3)]
    assert (gaps.told, gaps.repaired) == (2, 1)


def test_without_a_repair_under_way_it_stays_one() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, SYMBOLS)
    resumed(gaps, 50, repairing=False)
    assert filled(gaps, 60, 55) == []
    gaps.lost(70, SYMBOLS)
    assert resumed(gaps, 80, repairing=False) == [told(70, 80)]


def test_a_repair_given_up_while_lost_again_ends_its_gap_and_leaves_the_next() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, SYMBOLS)
    resumed(gaps, 50)
    gaps.lost(10, SYMBOLS)
    assert filled(gaps, 65, 60, []) == []
    assert resumed(gaps, 80) == [told(60, 80)]
    assert filled(gaps, 90, 85) == [told(60, 90, quotes=3)]
    assert (gaps.told, gaps.repaired) == (2, 1)


def test_a_repair_given_up_before_the_return_hides_nothing_of_what_is_missing() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, SYMBOLS)
    assert filled(gaps, 65, 60, []) == []
    assert resumed(gaps, 80, repairing=False) == [told(10, 80)]


def test_under_a_clock_that_is_behind_a_gap_does_not_end_before_it_begins() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, SYMBOLS)
    assert resumed(gaps, 5) == [told(10, 10)]


def test_a_clock_that_goes_back_does_not_make_a_repair_end_before_its_gap() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, SYMBOLS)
    resumed(gaps, 50)
    assert filled(gaps, 20, 15) == [told(10, 50, quotes=3)]


def test_a_symbol_that_a_repair_left_out_goes_on_from_its_own_last_quote() -> None:
    gaps = Gaps("quotes")
    both = ["AAPL", "MSFT"]
    gaps.lost(10, both)
    resumed(gaps, 50, both)
    assert filled(gaps, 60, 55, ["AAPL"]) == [told(10, 60, quotes=3)]
    last = {"AAPL": 55, "MSFT": 40}
    gaps.lost(55, both, last.get)  # the stream was behind what history brought of AAPL
    assert resumed(gaps, 80, both) == [told(40, 80, ["MSFT"]), told(55, 80)]
    filled(gaps, 90, 85, both)
    gaps.lost(85, both, last.get)
    assert resumed(gaps, 99, both) == [told(85, 99, both)]
