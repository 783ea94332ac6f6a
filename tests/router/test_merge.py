"""History and live as one, against a slow reading of what that means."""

from __future__ import annotations

import random
from collections import Counter

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from mdservice.model.kinds import QUOTES
from mdservice.model.quote import Quote, identity
from mdservice.router.sequencer import merge

quotes = st.builds(
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


@settings(max_examples=300)
@given(st.lists(quotes, max_size=12), st.lists(quotes, max_size=12))
def test_has_each_quote_as_often_as_the_side_that_has_it_more(
    history: list[Quote], live: list[Quote]
) -> None:
    past = by_symbol_and_time(history)
    merged = merge(QUOTES, past, live)
    counted = Counter(map(identity, past)) | Counter(map(identity, live))
    assert Counter(map(identity, merged)) == counted
    assert [q.ts_event_ns for q in merged] == sorted(q.ts_event_ns for q in merged)


@settings(max_examples=300)
@given(st.lists(quotes, max_size=12), st.lists(quotes, max_size=12))
def test_what_both_have_is_taken_from_the_stream(history: list[Quote], live: list[Quote]) -> None:
    past = by_symbol_and_time(history)
    merged = {id(quote) for quote in merge(QUOTES, past, live)}
    assert merged >= {id(quote) for quote in live}
    from_past = [identity(quote) for quote in past if id(quote) in merged]
    assert Counter(from_past) == Counter(map(identity, past)) - Counter(map(identity, live))


@settings(max_examples=300)
@given(st.lists(quotes, max_size=14), st.integers(0, 2**32), st.booleans())
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
