"""The market's record, against a slow one that sorts everything each time."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.simulator import SimQuote
from mdservice.simulator.record import QuoteRecord


def quote(symbol: str, ts_ns: int, bid: float = 1.0) -> SimQuote:
    return SimQuote(symbol, bid, bid + 1, ts_event_ns=ts_ns)


@given(
    size=st.integers(0, 30),
    batches=st.lists(
        st.lists(st.tuples(st.sampled_from("AB"), st.integers(1, 9)), max_size=8), max_size=20
    ),
    start=st.integers(0, 10),
    length=st.integers(-1, 10),
    most=st.integers(0, 20),
    newest_first=st.booleans(),
)
def test_finds_what_a_sorted_list_has(
    size: int,
    batches: list[list[tuple[str, int]]],
    start: int,
    length: int,
    most: int,
    newest_first: bool,
) -> None:
    record, kept = QuoteRecord(size), deque[SimQuote](maxlen=size)
    number = 0
    for batch in batches:
        quotes = [quote(symbol, ts, float(number + n)) for n, (symbol, ts) in enumerate(batch)]
        number += len(batch)
        record.add(quotes)
        kept.extend(quotes)
    assert record.quotes == kept
    for symbol in "ABC":
        ordered = sorted(
            (q for q in kept if q.symbol == symbol), key=lambda q: (q.ts_event_ns, q.bid)
        )
        inside = [q for q in ordered if start <= q.ts_event_ns <= start + length]
        if newest_first:
            inside.reverse()
        found = record.between(symbol, start, start + length, most=most, newest_first=newest_first)
        assert found == inside[:most]
        assert record.latest(symbol) == (ordered[-1] if ordered else None)


@pytest.mark.parametrize("newest_first", [False, True])
def test_resumes_within_quotes_of_one_time(newest_first: bool) -> None:
    record = QuoteRecord(10)
    record.add([quote("A", ts, bid) for bid, ts in enumerate([1, 2, 2, 2, 3])])
    found = record.between("A", 1, 3, most=9, newest_first=newest_first, resume=(2, 2))
    assert [q.bid for q in found] == ([1, 0] if newest_first else [3, 4])


def test_quotes_that_were_forgotten_meanwhile_hide_no_later_one() -> None:
    record = QuoteRecord(3)
    record.add([quote("A", ts) for ts in (1, 1, 1, 2, 3, 4)])
    assert [q.ts_event_ns for q in record.between("A", 1, 9, most=9, resume=(1, 3))] == [2, 3, 4]


def test_a_batch_beyond_the_size_leaves_its_end() -> None:
    record = QuoteRecord(2)
    record.add([quote("A", 1), quote("B", 2), quote("B", 3), quote("B", 4)])
    assert [q.ts_event_ns for q in record.quotes] == [3, 4]
    assert record.latest("A") is None


def test_memory_stays_bounded_over_many_quotes() -> None:
    record = QuoteRecord(2_000)
    for start in range(0, 50_000, 500):
        record.add([quote(f"S{n % 3}", n) for n in range(start, start + 500)])
        record.add([quote(f"ONCE{start}", start)])
    assert len(record.quotes) == 2_000
    held = [len(series.quotes) for series in record._series.values()]
    assert sum(held) <= 2 * 2_000 + 1_024 * len(held)
    assert len(held) < 10


class CountedTime(int):
    """A time that counts what it is compared with."""

    compared = 0

    def __lt__(self, other: object) -> bool:
        CountedTime.compared += 1
        return int(self) < other

    def __gt__(self, other: object) -> bool:
        CountedTime.compared += 1
        return int(self) > other


def test_a_page_out_of_a_hundred_thousand_is_found_by_bisection() -> None:
    record = QuoteRecord(100_000)
    record.add([quote("A", ts) for ts in range(100_000)])
    for start in (0, 50_000, 99_990):
        CountedTime.compared = 0
        found = record.between("A", CountedTime(start), CountedTime(start + 9), most=100)
        assert [q.ts_event_ns for q in found] == list(range(start, start + 10))
        assert 10 < CountedTime.compared <= 2 * 18
