"""What is newer, what was missed, what began again."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.client.sequence import SequenceCheck, Verdict, judge
from mdservice.model.kinds import QUOTES
from mdservice.model.quote import Quote, identity

OLD = Verdict(newer=False)


def quote(ts: int, seq: int, symbol: str = "A", bid: float = 1.0) -> Quote:
    return Quote(symbol, bid, 2.0, 1, 1, ts, ts, seq)


@pytest.mark.parametrize(
    ("coming", "verdict"),
    [
        (quote(10, 6), Verdict(newer=True)),
        (quote(11, 6), Verdict(newer=True)),
        (quote(11, 9), Verdict(newer=True, missed=3)),
        (quote(10, 9), Verdict(newer=True, missed=3)),
        (quote(9, 6), OLD),  # never back in time, whatever its number
        (quote(9, 1), OLD),
        (quote(10, 5), OLD),
        (quote(11, 1), Verdict(newer=True, restarted=True)),
        (quote(11, 5), Verdict(newer=True, missed=4, restarted=True)),
        (quote(11, 0), Verdict(newer=True, restarted=True)),
        (quote(11, -5), Verdict(newer=True, restarted=True)),
        # At the same time the first of a new run, unless it is the same quote once more.
        (quote(10, 1, bid=3.0), Verdict(newer=True, restarted=True)),
        (quote(10, 1), OLD),
    ],
)
def test_what_a_quote_is_to_the_known_one(coming: Quote, verdict: Verdict) -> None:
    assert judge(quote(10, 5), coming, in_order=True, identity=identity) == verdict


def test_behind_a_key_a_smaller_number_at_the_same_time_is_an_earlier_quote() -> None:
    assert judge(quote(10, 5), quote(10, 4, bid=3.0), in_order=False, identity=identity) == OLD
    assert judge(quote(10, 5), quote(11, 4), in_order=False, identity=identity).restarted


def test_counts_what_it_notices() -> None:
    order = SequenceCheck(QUOTES)
    given_ = [quote(1, 3), quote(2, 4), quote(2, 4), quote(5, 7), quote(6, 2), quote(1, 1, "B")]
    newer = order.newer(given_, in_order=True)
    assert [(q.symbol, q.seq) for q in newer] == [("A", 3), ("A", 4), ("A", 7), ("A", 2), ("B", 1)]
    assert (order.missed, order.steps, order.starts, order.left_out) == (3, 1, 1, 1)
    assert order.latest("A") == quote(6, 2)
    assert order.latest("C") is None
    assert len(order) == 2


times = st.lists(st.integers(0, 2), min_size=1, max_size=30)


def run_of_the_service(steps: list[int], start_ns: int = 0) -> list[Quote]:
    """Accepted quotes: time goes on or stands still, and no two are the same."""
    quotes, now = [], start_ns
    for seq, step in enumerate(steps, 1):
        now += step
        quotes.append(quote(now, seq, bid=float(seq)))
    return quotes


@given(times, st.data())
def test_a_key_and_the_events_around_it_give_each_quote_once(
    steps: list[int], data: st.DataObject
) -> None:
    """Subscribed before ``begin``, the key read at ``at``; events from before it are late."""
    history = run_of_the_service(steps)
    begin = data.draw(st.integers(0, len(history) - 1))
    at = data.draw(st.integers(begin, len(history) - 1))
    order = SequenceCheck(QUOTES)
    seen = order.newer([history[at]], in_order=False)
    seen += order.newer(history[begin : at + 1], in_order=False)
    seen += order.newer(history[at + 1 :], in_order=True)
    assert seen == history[at:]
    assert (order.missed, order.starts) == (0, 0)


@given(times, st.data())
def test_missed_and_seen_are_all(steps: list[int], data: st.DataObject) -> None:
    history = run_of_the_service(steps)
    kept = [
        data.draw(st.booleans()) or number in {0, len(history) - 1}
        for number in range(len(history))
    ]
    order = SequenceCheck(QUOTES)
    seen = order.newer([q for q, keep in zip(history, kept, strict=True) if keep], in_order=True)
    assert len(seen) == sum(kept)
    assert order.missed == len(history) - len(seen)


@given(times, times, st.integers(1, 3))
def test_a_new_run_is_noticed_once_and_nothing_of_it_left_out(
    first: list[int], second: list[int], pause: int
) -> None:
    before = run_of_the_service(first)
    after = run_of_the_service(second, before[-1].ts_event_ns + pause)
    order = SequenceCheck(QUOTES)
    assert order.newer([*before, *after], in_order=True) == [*before, *after]
    assert order.starts == 1
    assert order.missed == 0


@given(
    st.lists(
        st.builds(
            quote, st.integers(0, 9), st.integers(0, 9), st.sampled_from("AB"), st.floats(0, 3)
        )
    ),
    st.booleans(),
)
def test_whatever_comes_no_symbol_goes_back_in_time(quotes: list[Quote], in_order: bool) -> None:
    order = SequenceCheck(QUOTES)
    originals = [attrs.evolve(q) for q in quotes]
    newer = order.newer(quotes, in_order=in_order)
    assert quotes == originals
    for symbol in "AB":
        seen = [q for q in newer if q.symbol == symbol]
        assert [q.ts_event_ns for q in seen] == sorted(q.ts_event_ns for q in seen)
        assert order.latest(symbol) == (seen[-1] if seen else None)
    assert len(newer) + order.left_out == len(quotes)
