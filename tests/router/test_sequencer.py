"""Per symbol: order, repeats and numbers, against a slow reading of the contract."""

from __future__ import annotations

import random
from collections import Counter

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.model.kinds import QUOTES
from mdservice.model.quote import Quote, identity
from mdservice.router.sequencer import Sequencer, merge
from tests.examples import examples

S_NS = 10**9
NOW_NS = 1_795_189_904 * S_NS
TOLERANCE_NS = 60 * S_NS
HORIZON_NS = NOW_NS + TOLERANCE_NS

few_times = st.sampled_from([*range(NOW_NS, NOW_NS + 5), HORIZON_NS, HORIZON_NS + 1])
quotes = st.builds(
    Quote,
    symbol=st.sampled_from(["AAPL", "MSFT", "SPY"]),
    bid=st.sampled_from([0.0, 1.0, 1.5]),
    ask=st.sampled_from([0.0, 1.0, 2.0]),
    bid_size=st.sampled_from([1, 2]),
    ask_size=st.sampled_from([1, 2]),
    ts_event_ns=few_times,
    ts_recv_ns=st.integers(0, 3),
)


def at(ns: int, bid: float = 1.0, symbol: str = "AAPL") -> Quote:
    return Quote(symbol, bid, 2.0, 1, 1, ns, 0)


def route(sequencer: Sequencer, *quotes: Quote) -> tuple[list[int], int, list[int]]:
    """The numbers of the accepted, how many were stale, how far ahead the others were."""
    routed = sequencer.route(quotes, NOW_NS, TOLERANCE_NS)
    return [quote.seq for quote in routed.accepted], routed.rejected, list(routed.ahead_ns)


def content(quote: Quote) -> tuple[object, ...]:
    return quote.bid, quote.ask, quote.bid_size, quote.ask_size, quote.ts_event_ns


def reference(arriving: list[Quote]) -> tuple[list[Quote], int, int]:
    """The contract, sentence by sentence, looking at the whole past each time."""
    accepted: list[Quote] = []
    stale = future = 0
    for quote in arriving:
        past = [other for other in accepted if other.symbol == quote.symbol]
        if quote.ts_event_ns > NOW_NS + TOLERANCE_NS:
            future += 1
        elif any(other.ts_event_ns > quote.ts_event_ns for other in past) or (
            past and content(past[-1]) == content(quote)
        ):
            stale += 1
        else:
            accepted.append(attrs.evolve(quote, seq=len(past) + 1))
    return accepted, stale, future


@examples(200)
@given(st.lists(st.lists(quotes, max_size=8), max_size=8))
def test_agrees_with_the_contract_however_the_quotes_are_batched(
    batches: list[list[Quote]],
) -> None:
    arriving = [attrs.evolve(quote) for batch in batches for quote in batch]
    expected, expected_stale, expected_future = reference(arriving)
    sequencer = Sequencer(QUOTES)
    accepted: list[Quote] = []
    stale = future = 0
    for batch in batches:
        routed = sequencer.route(map(attrs.evolve, batch), NOW_NS, TOLERANCE_NS)
        accepted += routed.accepted
        stale += routed.rejected
        future += len(routed.ahead_ns)
    assert accepted == expected
    assert (stale, future) == (expected_stale, expected_future)
    assert len(accepted) + stale + future == len(arriving)
    last = {quote.symbol: quote for quote in expected}
    assert {symbol: sequencer.latest(symbol) for symbol in last} == last
    assert sorted(q.symbol for q in sequencer.all_latest()) == sorted(last)
    assert len(sequencer) == len(last)


@examples(100)
@given(st.lists(quotes, max_size=40))
def test_events_of_a_symbol_never_go_back_nor_leave_a_step(arriving: list[Quote]) -> None:
    accepted = Sequencer(QUOTES).route(map(attrs.evolve, arriving), NOW_NS, TOLERANCE_NS).accepted
    newest: dict[str, int] = {}
    numbers: Counter[str] = Counter()
    for quote in accepted:
        numbers[quote.symbol] += 1
        assert quote.seq == numbers[quote.symbol]
        assert quote.ts_event_ns >= newest.get(quote.symbol, 0)
        newest[quote.symbol] = quote.ts_event_ns


@pytest.mark.parametrize(
    ("field", "value"), [("bid", 0.5), ("ask", 9.0), ("bid_size", 7), ("ask_size", 0.5)]
)
def test_the_same_time_with_other_content_is_accepted(field: str, value: float) -> None:
    sequencer = Sequencer(QUOTES)
    changed = attrs.evolve(at(NOW_NS), **{field: value})
    assert route(sequencer, at(NOW_NS), changed, at(NOW_NS)) == ([1, 2, 3], 0, [])


def test_an_exact_repeat_of_the_last_one_is_not_accepted() -> None:
    sequencer = Sequencer(QUOTES)
    late = attrs.evolve(at(NOW_NS), ts_recv_ns=999)
    assert route(sequencer, at(NOW_NS), late) == ([1], 1, [])
    assert route(sequencer, at(NOW_NS)) == ([], 1, [])


def test_the_same_content_at_a_later_time_is_accepted() -> None:
    assert route(Sequencer(QUOTES), at(NOW_NS), at(NOW_NS + 1)) == ([1, 2], 0, [])


def test_an_older_quote_is_refused_by_a_nanosecond() -> None:
    sequencer = Sequencer(QUOTES)
    assert route(sequencer, at(NOW_NS), at(NOW_NS - 1, bid=5.0)) == ([1], 1, [])
    latest = sequencer.latest("AAPL")
    assert latest is not None
    assert latest.bid == 1.0


@pytest.mark.parametrize(("ahead_ns", "accepted"), [(TOLERANCE_NS, [1]), (TOLERANCE_NS + 1, [])])
def test_a_minute_ahead_is_the_most(ahead_ns: int, accepted: list[int]) -> None:
    ahead = [] if accepted else [ahead_ns]
    assert route(Sequencer(QUOTES), at(NOW_NS + ahead_ns)) == (accepted, 0, ahead)


def test_a_quote_from_the_future_does_not_block_its_symbol() -> None:
    sequencer = Sequencer(QUOTES)
    year_ahead = at(NOW_NS + 365 * 86_400 * S_NS)
    assert route(sequencer, at(NOW_NS), year_ahead, at(NOW_NS + 1))[0] == [1, 2]
    assert year_ahead.seq == 0
    only_future = Sequencer(QUOTES)
    route(only_future, at(HORIZON_NS + 1))
    assert only_future.latest("AAPL") is None


@pytest.mark.parametrize(("bid", "ask"), [(2.0, 1.0), (1.0, 1.0), (0.0, 0.0)])
def test_crossed_locked_and_empty_quotes_pass_unchanged(bid: float, ask: float) -> None:
    (quote,) = Sequencer(QUOTES).route([Quote("A", bid, ask, 1, 1, NOW_NS, 0)], NOW_NS, 0).accepted
    assert (quote.bid, quote.ask) == (bid, ask)


def test_symbols_do_not_touch_each_other() -> None:
    sequencer = Sequencer(QUOTES)
    mixed = [
        at(NOW_NS + 2),
        at(NOW_NS, symbol="MSFT"),
        at(NOW_NS + 3),
        at(NOW_NS + 1, symbol="MSFT"),
    ]
    assert route(sequencer, *mixed)[0] == [1, 1, 2, 2]
    assert sequencer.latest("QQQ") is None


@examples(200)
@given(st.lists(quotes, max_size=20), st.lists(quotes, max_size=20))
def test_of_history_what_is_out_is_left_out_as_often_as_it_is_out(
    arriving: list[Quote], missed: list[Quote]
) -> None:
    sequencer = Sequencer(QUOTES)
    out = sequencer.route(map(attrs.evolve, arriving), NOW_NS, TOLERANCE_NS).accepted
    history = sorted([*arriving, *missed], key=lambda quote: (quote.symbol, quote.ts_event_ns))
    expected: Counter[tuple[object, ...]] = Counter()
    for symbol in {quote.symbol for quote in history}:
        last_ns = max((q.ts_event_ns for q in out if q.symbol == symbol), default=0)
        past = [(symbol, *content(q)) for q in history if q.symbol == symbol]
        expected += Counter(entry for entry in past if entry[-1] >= last_ns)
        expected -= Counter((symbol, *content(q)) for q in out if q.symbol == symbol)
    found = sequencer.not_out_yet(history)
    assert Counter((quote.symbol, *content(quote)) for quote in found) == expected
    places = {id(quote): place for place, quote in enumerate(history)}
    order = [places[id(quote)] for quote in found]
    assert order == sorted(order)


def test_only_what_is_out_at_the_last_time_counts_against_history() -> None:
    sequencer = Sequencer(QUOTES)
    route(sequencer, at(NOW_NS, bid=1.0), at(NOW_NS, bid=2.0), at(NOW_NS + 1, bid=3.0))
    again, last = at(NOW_NS + 1, bid=1.0), at(NOW_NS + 1, bid=3.0)
    assert sequencer.not_out_yet([at(NOW_NS, bid=9.0), again, last, again]) == [again, again]


def test_history_of_a_symbol_never_seen_is_all_new() -> None:
    assert Sequencer(QUOTES).not_out_yet([at(NOW_NS), at(NOW_NS)]) == [at(NOW_NS), at(NOW_NS)]


# ---- what history brought before the stream does


def filled(*past: Quote) -> Sequencer:
    """Sequencer that have these from history, and expect them from the stream."""
    sequencer = Sequencer(QUOTES)
    assert len(sequencer.route(past, NOW_NS, TOLERANCE_NS).accepted) == len(past)
    sequencer.expect_again(past, sequencer.take_echoes())
    return sequencer


@pytest.mark.parametrize(
    ("past", "live", "accepted", "stale"),
    [
        ("abab", "ababa", "a", 0),
        ("abab", "aabbaa", "a", 1),  # the last a repeats the one before it
        ("abab", "abababab", "abab", 0),
        ("aba", "aab", "", 0),
        ("aba", "aabb", "b", 0),
        ("ab", "abc", "c", 0),
    ],
)
def test_the_stream_may_repeat_each_quote_as_often_as_history_brought_it(
    past: str, live: str, accepted: str, stale: int
) -> None:
    bids = {"a": 1.0, "b": 1.5, "c": 1.75}
    sequencer = filled(*(at(NOW_NS, bids[each]) for each in past))
    routed = sequencer.route([at(NOW_NS, bids[each]) for each in live], NOW_NS, TOLERANCE_NS)
    assert [quote.bid for quote in routed.accepted] == [bids[each] for each in accepted]
    assert routed.rejected == stale


def test_two_repairs_are_expected_together() -> None:
    sequencer = filled(at(NOW_NS, 1.0), at(NOW_NS, 1.5))
    before = sequencer.take_echoes()
    late = [at(NOW_NS, 1.0), at(NOW_NS, 1.75)]
    assert len(sequencer.route(late, NOW_NS, TOLERANCE_NS).accepted) == 2
    sequencer.expect_again(late, before)
    live = [at(NOW_NS, bid) for bid in (1.0, 1.5, 1.0, 1.75)]
    assert route(sequencer, *live) == ([], 0, [])


@pytest.mark.parametrize(("age_ns", "stale"), [(20 * S_NS, 0), (20 * S_NS + 1, 1)])
def test_what_history_brought_is_expected_for_20_s_of_the_markets_time(
    age_ns: int, stale: int
) -> None:
    old, new = at(NOW_NS - age_ns), at(NOW_NS)
    sequencer = filled(old, new)
    assert route(sequencer, attrs.evolve(old), attrs.evolve(new)) == ([], stale, [])


@pytest.mark.parametrize(("age_ns", "stale"), [(20 * S_NS, 0), (20 * S_NS + 1, 1)])
def test_the_next_repair_lets_go_of_what_is_older_than_20_s(age_ns: int, stale: int) -> None:
    old, new = at(NOW_NS - age_ns), at(NOW_NS)
    sequencer = filled(old)
    sequencer.route([new], NOW_NS, TOLERANCE_NS)
    sequencer.expect_again([new], sequencer.take_echoes())
    assert route(sequencer, attrs.evolve(old), attrs.evolve(new)) == ([], stale, [])


# ---- what REST tells on subscribing


@pytest.mark.parametrize(("asked_ns", "accepted"), [(NOW_NS, []), (NOW_NS + 1, [2])])
def test_what_the_stream_has_brought_since_rest_was_asked_wins(
    asked_ns: int, accepted: list[int]
) -> None:
    sequencer = Sequencer(QUOTES)
    route(sequencer, attrs.evolve(at(NOW_NS - 2), ts_recv_ns=NOW_NS))
    rest = at(NOW_NS - 1, 1.5)
    fetched = sequencer.route_first([rest], {"AAPL": asked_ns}, NOW_NS, TOLERANCE_NS)
    assert [quote.seq for quote in fetched.accepted] == accepted
    assert (list(fetched.known), list(fetched.ahead_ns)) == ([], [])


# ---- Merging history and the stream


few_quotes = st.builds(
    Quote,
    symbol=st.sampled_from(["AAPL", "MSFT"]),
    bid=st.sampled_from([1.0, 1.5]),
    ask=st.just(2.0),
    bid_size=st.sampled_from([1, 2]),
    ask_size=st.just(1),
    ts_event_ns=st.integers(0, 4),
    ts_recv_ns=st.just(0),
)


def by_symbol_and_time(found: list[Quote]) -> list[Quote]:
    return sorted(found, key=lambda quote: (quote.symbol, quote.ts_event_ns))


@examples(300)
@given(st.lists(few_quotes, max_size=12), st.lists(few_quotes, max_size=12))
def test_has_each_quote_as_often_as_the_side_that_has_it_more(
    history: list[Quote], live: list[Quote]
) -> None:
    past = by_symbol_and_time(history)
    merged = merge(QUOTES, past, live)
    counted = Counter(map(identity, past)) | Counter(map(identity, live))
    assert Counter(map(identity, merged)) == counted
    assert [q.ts_event_ns for q in merged] == sorted(q.ts_event_ns for q in merged)


@examples(300)
@given(st.lists(few_quotes, max_size=12), st.lists(few_quotes, max_size=12))
def test_what_both_have_is_taken_from_the_stream(history: list[Quote], live: list[Quote]) -> None:
    past = by_symbol_and_time(history)
    merged = {id(quote) for quote in merge(QUOTES, past, live)}
    assert merged >= {id(quote) for quote in live}
    from_past = [identity(quote) for quote in past if id(quote) in merged]
    assert Counter(from_past) == Counter(map(identity, past)) - Counter(map(identity, live))


@examples(300)
@given(st.lists(few_quotes, max_size=14), st.integers(0, 2**32), st.booleans())
def test_a_history_that_has_all_of_the_stream_decides_the_order(
    history: list[Quote], seed: int, shuffled: bool
) -> None:
    past = by_symbol_and_time(history)
    rng = random.Random(seed)
    live = [attrs.evolve(quote) for quote in past if rng.random() < 0.5]
    if shuffled:
        rng.shuffle(live)
    merged = merge(QUOTES, past, live)
    for symbol in ("AAPL", "MSFT"):
        assert [identity(q) for q in merged if q.symbol == symbol] == [
            identity(q) for q in past if q.symbol == symbol
        ]


def test_nothing_and_nothing_is_nothing() -> None:
    assert merge(QUOTES, [], []) == []
