"""Kinds in the order of arrival: late records, restarts, corrections; and news by identity."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.client.sequence import IdentityCheck, SequenceCheck, TradeCheck, sequence_check
from mdservice.model.kinds import (
    BARS,
    CANCELS,
    CORRECTIONS,
    IMBALANCES,
    KINDS,
    NEWS,
    ORDERBOOKS,
    QUOTES,
    STATUSES,
    TRADES,
)
from mdservice.model.trade import Cancel, Correction, Trade
from tests.records import make_record

LATE_KINDS = (TRADES, BARS, STATUSES, IMBALANCES)


def trade(seq: int, at_ns: int = 0, symbol: str = "A") -> Trade:
    return make_record(TRADES, symbol, seq, at_ns)


def seqs(records: list[Any]) -> list[int]:
    return [record.seq for record in records]


def test_each_kind_has_the_check_of_its_order() -> None:
    checks = {kind: type(sequence_check(kind)) for kind in KINDS}
    assert checks[QUOTES] is SequenceCheck
    assert checks[TRADES] is TradeCheck
    assert checks[NEWS] is IdentityCheck


@pytest.mark.parametrize("kind", LATE_KINDS)
def test_a_late_record_is_an_event_but_not_the_latest_value(kind: Any) -> None:
    check = sequence_check(kind)
    given_ = [make_record(kind, "A", seq, at) for seq, at in ((1, 10), (2, 5), (3, 10), (4, 9))]
    assert check.newer(given_, in_order=True) == given_
    assert check.latest("A") == given_[2], "of two at one time, the later arrival"
    assert (check.missed, check.starts, check.left_out) == (0, 0, 0)


def test_the_last_book_is_the_latest_value_whatever_its_time() -> None:
    check = sequence_check(ORDERBOOKS)
    books = [make_record(ORDERBOOKS, "BTC/USD", seq, at) for seq, at in ((1, 10), (2, 5))]
    assert check.newer(books, in_order=True) == books
    assert check.latest("BTC/USD") == books[1]


def test_a_step_is_counted_and_a_repeat_of_the_run_is_dropped() -> None:
    check = sequence_check(TRADES)
    given_ = [trade(1), trade(4), trade(4), trade(2), trade(5)]
    assert seqs(check.newer(given_, in_order=True, run="one")) == [1, 4, 5]
    assert (check.missed, check.steps, check.left_out) == (2, 1, 2)


@pytest.mark.parametrize("at_ns", [3, 50])
def test_a_new_run_begins_again_by_its_id_even_with_a_late_record(at_ns: int) -> None:
    check = sequence_check(TRADES)
    check.newer([trade(8, 10), trade(9, 11)], in_order=True, run="one")
    assert seqs(check.newer([trade(3, at_ns)], in_order=False, run="two")) == [3]
    assert (check.missed, check.starts) == (2, 1)


def test_without_ids_a_new_run_shows_by_its_later_time_or_by_the_order() -> None:
    check = sequence_check(TRADES)
    check.newer([trade(9, 11)], in_order=True)
    assert not check.newer([trade(3, 5)], in_order=False), "perhaps from before the key"
    assert seqs(check.newer([trade(1, 12)], in_order=False)) == [1]
    first = attrs.evolve(trade(1, 4), id=77)
    assert seqs(check.newer([trade(2, 3), first], in_order=True)) == [2, 1]
    assert check.starts == 2


@pytest.mark.parametrize("kind", LATE_KINDS)
def test_late_records_before_the_first_event_were_not_missed(kind: Any) -> None:
    """The key of the newest is read after late ones that were accepted behind it."""
    check = sequence_check(kind)
    check.newer_keys([make_record(kind, "A", 5, 100)])
    assert seqs(check.newer([make_record(kind, "A", 8, 101)], in_order=False, run="one")) == [8]
    assert check.missed == 0
    check.newer([make_record(kind, "A", 10, 102)], in_order=True, run="one")
    assert check.missed == 1


def test_a_missed_latest_value_comes_from_its_key_after_a_late_event() -> None:
    check = sequence_check(TRADES)
    check.newer([trade(10, 100)], in_order=True, run="one")
    check.newer([trade(13, 90)], in_order=False, run="one")
    assert check.missed == 2
    assert seqs(check.newer_keys([trade(12, 110)], run="one")) == [12]
    assert (check.missed, check.starts) == (1, 0)
    assert seqs(check.newer([trade(14, 120)], in_order=True, run="one")) == [14]
    assert check.missed == 1


def test_a_key_that_is_older_than_the_latest_event_is_not_delivered() -> None:
    check = sequence_check(TRADES)
    check.newer([trade(10, 100), trade(11, 100)], in_order=True, run="one")
    assert not check.newer_keys([trade(9, 90)], run="one")
    assert not check.newer_keys([trade(10, 100)], run="one"), "before the other of its time"
    assert not check.newer_keys([trade(11, 100)], run="one")
    assert check.left_out == 3


def test_a_key_of_a_new_run_begins_again() -> None:
    check = sequence_check(TRADES)
    check.newer([trade(10, 100)], in_order=True, run="one")
    assert seqs(check.newer_keys([trade(2, 110)], run="two")) == [2]
    assert seqs(check.newer([trade(3, 111)], in_order=True, run="two")) == [3]
    assert (check.starts, check.missed) == (1, 1)


def correction(of: Trade, price: float, at_ns: int = 0) -> Correction:
    return Correction(
        of.symbol, of.exchange, of.tape, of.id, of.price, of.size, of.conditions,
        99, price, 7, ("X",), at_ns or of.ts_event_ns + 5, 0, 1,
    )  # fmt: skip


def cancel(of: Trade, at_ns: int = 0) -> Cancel:
    at = at_ns or of.ts_event_ns + 5
    return Cancel(of.symbol, of.exchange, of.tape, of.id, of.price, of.size, "cancel", at, 0, 1)


def trades_until(seq: int) -> TradeCheck:
    check = TradeCheck(TRADES)
    check.newer([trade(number) for number in range(1, seq + 1)], in_order=True, run="one")
    check.reading_keys()
    return check


def test_a_corrected_latest_trade_is_known_as_its_key_shows_it() -> None:
    check = trades_until(3)
    check.correct([correction(trade(3), 5.5)])
    corrected = attrs.evolve(trade(3), id=99, price=5.5, size=7, conditions=("X",))
    assert check.latest("A") == corrected
    assert not check.newer_keys([corrected], run="one")
    check.reading_keys()
    assert not check.newer_keys([corrected], run="one")
    assert check.latest("A") == corrected


@pytest.mark.parametrize("change", ["correct", "cancel"])
def test_a_change_of_another_trade_changes_nothing(change: str) -> None:
    check = trades_until(3)
    day_ns = 86_400 * 10**9
    for other in (trade(2), attrs.evolve(trade(3), exchange="Q"), trade(3, symbol="B")):
        if change == "correct":
            check.correct([correction(other, 5.5), correction(trade(3), 5.5, 2 * day_ns)])
        else:
            check.cancel([cancel(other), cancel(trade(3), 2 * day_ns)])
    assert check.latest("A") == trade(3)
    assert check.reasons == 0


def test_after_a_cancellation_the_key_has_the_latest_trade_which_does_not_come_again() -> None:
    check = trades_until(3)
    check.cancel([cancel(trade(3))])
    assert check.latest("A") is None
    assert check.reasons == 1, "the keys are read again"
    assert not check.newer_keys([trade(3)], run="one"), "the key was read before"
    assert check.latest("A") is None
    check.reading_keys()
    assert not check.newer_keys([trade(2)], run="one")
    assert check.latest("A") == trade(2)
    assert seqs(check.newer([trade(4)], in_order=True, run="one")) == [4]


def test_a_key_from_before_a_cancellation_does_not_bring_a_known_trade_again() -> None:
    """Two latest trades are canceled while a key with an even older one is being read."""
    check = trades_until(3)
    check.cancel([cancel(trade(3))])
    check.newer([trade(4), trade(5)], in_order=True, run="one")
    check.cancel([cancel(trade(5))])
    assert not check.newer_keys([trade(2)], run="one")
    check.reading_keys()
    assert not check.newer_keys([trade(4)], run="one")
    assert check.latest("A") == trade(4)
    assert check.missed == 0


def test_two_cancellations_in_a_row_wait_for_the_keys_after_both() -> None:
    check = trades_until(3)
    check.cancel([cancel(trade(3))])
    check.reading_keys()
    check.cancel([cancel(trade(2))])
    assert check.reasons == 2
    assert not check.newer_keys([trade(2)], run="one"), "it was read before the second one"
    assert check.latest("A") is None
    check.reading_keys()
    assert not check.newer_keys([trade(1)], run="one")
    assert check.latest("A") == trade(1)


def test_a_late_trade_behind_a_cancellation_does_not_bring_known_ones_again() -> None:
    check = trades_until(3)
    check.cancel([cancel(trade(3))])
    check.newer([trade(4, at_ns=1)], in_order=True, run="one")
    check.reading_keys()
    assert not check.newer_keys([trade(2)], run="one")
    assert check.latest("A") == trade(2)


def test_a_newer_key_comes_although_an_older_trade_was_corrected_meanwhile() -> None:
    check = trades_until(3)
    check.correct([correction(trade(3), 5.5)])
    assert seqs(check.newer_keys([trade(5)], run="one")) == [5]
    assert check.missed == 1


def test_a_correction_that_was_missed_comes_by_the_key() -> None:
    check = trades_until(3)
    corrected = attrs.evolve(trade(3), id=99, price=5.5)
    assert check.newer_keys([corrected], run="one") == [corrected]
    assert check.latest("A") == corrected
    assert check.missed == 0


@pytest.mark.parametrize("kind", [CORRECTIONS, CANCELS])
def test_changes_of_trades_have_their_own_count(kind: Any) -> None:
    check = sequence_check(kind)
    check.newer([make_record(kind, "A", seq) for seq in (1, 2, 5)], in_order=True, run="one")
    assert (check.missed, check.steps) == (2, 1)


# ---- A service, a reader that is cut off, and any order of times


@st.composite
def lives(draw: st.DrawFn) -> tuple[list[Trade], int, int, int]:
    """Accepted trades, and three numbers of them in order: the cut, the subscription, the read."""
    times = draw(st.lists(st.integers(1, 9), min_size=1, max_size=25))
    accepted = [trade(seq, at) for seq, at in enumerate(times, 1)]
    cut, subscribed, read = sorted(draw(st.integers(1, len(times))) for _ in range(3))
    return accepted, cut, subscribed, read


def key_at(accepted: list[Trade], end: int) -> Trade:
    """The newest by time of the first trades, the later arrival of one time."""
    return max(accepted[:end], key=lambda one: (one.ts_event_ns, one.seq))


@given(lives())
def test_after_a_cut_each_trade_came_once_or_is_counted(
    life: tuple[list[Trade], int, int, int],
) -> None:
    accepted, cut, subscribed, read = life
    check = sequence_check(TRADES)
    got = check.newer(accepted[:cut], in_order=True, run="one")
    got += check.newer(accepted[subscribed:read], in_order=False, run="one")
    got += check.newer_keys([key_at(accepted, read)], run="one")
    got += check.newer(accepted[read:], in_order=True, run="one")
    assert len({one.seq for one in got}) == len(got)
    assert check.latest("A") == key_at(accepted, len(accepted))
    last = max(one.seq for one in got)
    assert len(got) + check.missed == last
    assert check.starts == 0
    if subscribed < len(accepted):
        assert last == len(accepted)


@given(lives())
def test_a_new_reader_gets_the_key_and_each_trade_behind_it(
    life: tuple[list[Trade], int, int, int],
) -> None:
    """Events wait for the key at the start; those of the time before it are known by it."""
    accepted, _, subscribed, read = life
    check = sequence_check(TRADES)
    key = key_at(accepted, read)
    got = check.newer_keys([key])
    got += check.newer(accepted[subscribed:read], in_order=False)
    got += check.newer(accepted[read:], in_order=True, run="one")
    assert got[0] == key
    behind = [one for one in accepted[subscribed:] if one.seq > key.seq]
    assert seqs(got[1:]) == seqs(behind)
    assert (check.missed, check.starts) == (0, 0)
    assert check.latest("A") == key_at(accepted, len(accepted))


# ---- News


def article(number: int, version: int = 1) -> Any:
    return attrs.evolve(make_record(NEWS, "A", number), ts_event_ns=version)


def test_each_version_of_an_article_comes_once() -> None:
    check = IdentityCheck(NEWS)
    new, again = article(1), article(1, 2)
    assert check.newer_keys([new]) == [new]
    assert check.newer([new, again, again], in_order=True) == [again]
    assert check.left_out == 2


def test_an_article_is_no_end_for_reading_back_while_others_may_be_missing_before_it() -> None:
    check = IdentityCheck(NEWS)
    check.newer([article(1)], in_order=True)
    check.newer([article(3)], in_order=False)
    assert check.knows(article(1))
    assert not check.knows(article(3))
    assert check.newer_keys([article(2), article(3)]) == [article(2)]
    assert check.knows(article(3))
