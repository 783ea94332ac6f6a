"""How many quotes, of which symbols, at what times and prices; and the record of them."""

from __future__ import annotations

from collections import Counter, deque
from itertools import islice, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.simulator.market import (
    UNIVERSE,
    Market,
    MarketRecord,
    PriceWalk,
    day_fraction,
    day_multiplier,
    start_cents,
    tape_of,
)
from mdservice.simulator.wire import SimQuote

SECOND_NS = 1_000_000_000


def market(*symbols: str, **settings: Any) -> Market:
    made = Market(**{"seed": 7, "rate": 100.0, **settings})
    made.follow(symbols)
    return made


def test_cutting_into_slices_changes_nothing() -> None:
    whole = market("AAPL", "MSFT", "NVDA").take(500, SECOND_NS)
    sliced = market("AAPL", "MSFT", "NVDA")
    parts = [quote for index in range(100) for quote in sliced.take(5, index * SECOND_NS)]
    assert [(q.symbol, q.bid, q.ask) for q in whole] == [(q.symbol, q.bid, q.ask) for q in parts]


def test_a_symbol_s_prices_do_not_depend_on_the_others() -> None:
    alone = [quote.bid for quote in market("AAPL").take(50, 0)]
    among = [q.bid for q in market("AAPL", "MSFT").take(500, 0) if q.symbol == "AAPL"]
    assert among[:50] == alone


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 10**9)), min_size=1, max_size=20))
def test_timestamps_rise_and_keep_to_the_clock(slices: list[tuple[int, int]]) -> None:
    made = market("AAPL", "MSFT")
    now_ns, last_ns = SECOND_NS, 0
    for count, passed_ns in slices:
        now_ns += passed_ns
        for quote in made.take(count, now_ns):
            assert quote.ts_event_ns > last_ns
            last_ns = quote.ts_event_ns
    assert last_ns <= now_ns + 20 * 50 * 1_000


def test_a_clock_that_is_set_back_is_followed() -> None:
    made = market("AAPL")
    made.take(10, 3_600 * SECOND_NS)
    assert made.take(10, SECOND_NS)[-1].ts_event_ns == SECOND_NS


@pytest.mark.parametrize("shape", ["flat", "day"])
def test_the_rate_is_the_mean_over_the_day(shape: str) -> None:
    made = market("AAPL", shape=shape, day_s=100.0)
    assert sum(made.due(second / 10) for second in range(1, 1001)) == pytest.approx(10_000, abs=1)


def test_a_day_bursts_at_open_and_close() -> None:
    made = market("AAPL", shape="day", day_s=100.0)
    by_second = [made.due(second) for second in range(101)]
    assert by_second[1] > 300
    assert by_second[50] in {74, 75, 76}
    assert by_second[100] > 200
    assert [made.due(second) for second in range(101, 103)] == [by_second[1], by_second[2]]


@given(st.floats(0, 1))
def test_the_day_s_fraction_is_the_integral_of_its_multiplier(moment: float) -> None:
    steps = 2_000
    summed = sum(day_multiplier(moment * (step + 0.5) / steps) for step in range(steps))
    assert day_fraction(moment) == pytest.approx(summed * moment / steps, abs=1e-5)
    assert day_fraction(1) == pytest.approx(1)


def test_a_long_pause_is_not_caught_up_with() -> None:
    made = market("AAPL", rate=5_000.0)
    assert made.due(3_600) == 5_000
    assert made.due(3_601) == 5_000


def test_some_symbols_are_busier() -> None:
    counts = Counter(quote.symbol for quote in market("*").take(20_000, 0))
    ranked = list(UNIVERSE)
    assert set(counts) == set(ranked)
    assert counts[ranked[0]] > 1.5 * counts[ranked[2]] > 3 * counts[ranked[-1]]


def test_without_zipf_all_are_alike() -> None:
    counts = Counter(quote.symbol for quote in market("*", zipf=0.0).take(30_000, 0))
    assert max(counts.values()) < 1.3 * min(counts.values())


def test_weights_rule_single_symbols() -> None:
    counts = Counter(
        quote.symbol for quote in market("AAPL", "MSFT", weights={"MSFT": 0.0}).take(100, 0)
    )
    assert counts == {"AAPL": 100}
    assert market("MSFT", weights={"MSFT": 0.0}).take(100, 0) == []


def test_nothing_is_made_of_symbols_that_are_not_subscribed() -> None:
    made = market("AAPL", "FAKEPACA")
    assert made.symbols == ("AAPL", "FAKEPACA")
    made.follow(["*"], without={"AAPL"})
    assert set(made.symbols) == set(UNIVERSE) - {"AAPL"}
    made.follow([])
    assert made.take(10, 0) == []


SYMBOLS = st.sampled_from(sorted(UNIVERSE)) | st.from_regex(r"[A-Z]{1,5}", fullmatch=True)


def walk(symbol: str, seed: int, count: int, zero_side_ratio: float = 0.0) -> list[SimQuote]:
    prices = PriceWalk(symbol, seed, exchanges=("V", "Q", "N"), zero_side_ratio=zero_side_ratio)
    return [prices.next(index) for index in islice(range(count), count)]


def cents(price: float) -> int:
    return round(price * 100)


@given(SYMBOLS, st.integers(0, 2**63))
def test_the_same_seed_gives_the_same_quotes(symbol: str, seed: int) -> None:
    assert walk(symbol, seed, 50) == walk(symbol, seed, 50)


def test_another_seed_or_symbol_gives_other_quotes() -> None:
    prices = [[quote.bid for quote in walk(*case, 50)] for case in (("AAPL", 1), ("AAPL", 2))]
    assert prices[0] != prices[1]
    steps = [[later.bid_size for later in walk(symbol, 1, 50)] for symbol in ("AAPL", "MSFT")]
    assert steps[0] != steps[1]


def test_a_sequence_is_pinned_across_versions() -> None:
    shown = [(q.bid, q.ask, q.bid_size, q.ask_size) for q in walk("AAPL", 7, 3)]
    assert shown == [
        (187.13, 187.16, 800, 100),
        (187.11, 187.14, 500, 800),
        (187.1, 187.13, 600, 200),
    ]


@given(SYMBOLS, st.integers(0, 2**63))
def test_bid_is_below_ask_in_whole_cents_near_the_start(symbol: str, seed: int) -> None:
    start = start_cents(symbol)
    for quote in walk(symbol, seed, 300):
        assert 0 < quote.bid < quote.ask
        assert quote.bid == cents(quote.bid) / 100
        assert quote.ask == cents(quote.ask) / 100
        assert 0.7 * start <= cents(quote.bid) <= 1.3 * start
        assert cents(quote.ask) - cents(quote.bid) <= max(3, cents(quote.bid) * 0.001)
        assert quote.bid_size % 100 == quote.ask_size % 100 == 0
        assert min(quote.bid_size, quote.ask_size) >= 100
        assert {quote.bid_exchange, quote.ask_exchange} <= {"V", "Q", "N"}
        assert quote.conditions == ("R",)


def test_a_price_moves_both_ways() -> None:
    bids = [quote.bid for quote in walk("AAPL", 1, 500)]
    steps = {round(later - earlier, 2) for earlier, later in pairwise(bids)}
    assert min(steps) < 0 < max(steps)


def test_a_price_that_strays_is_pulled_back() -> None:
    start = start_cents("F")
    lowest, highest = [], []
    for seed in range(4):
        bids = [cents(quote.bid) for quote in walk("F", seed, 60_000)]
        lowest.append(min(bids) / start)
        highest.append(max(bids) / start)
    assert 0.74 < min(lowest) < 0.76, "one got as low as it may"
    assert 1.24 < max(highest) < 1.26, "and one as high"


@given(st.integers(0, 1000))
def test_a_zero_side_has_neither_price_nor_size(seed: int) -> None:
    quotes = walk("AAPL", seed, 400, zero_side_ratio=0.5)
    bare = [quote for quote in quotes if not quote.bid or not quote.ask]
    assert 100 < len(bare) < 300
    assert all(bool(quote.bid) == bool(quote.bid_size) for quote in quotes)
    assert all(bool(quote.ask) == bool(quote.ask_size) for quote in quotes)
    assert all(quote.bid or quote.ask for quote in quotes)


def test_an_unknown_symbol_starts_at_a_price_of_its_own() -> None:
    assert start_cents("FAKEPACA") == start_cents("FAKEPACA")
    assert start_cents("FAKEPACA") != start_cents("FAKEPACB")
    assert 500 <= start_cents("FAKEPACA") < 50_000


def test_tapes() -> None:
    assert [tape_of(symbol) for symbol in ("AAPL", "SPY", "JPM", "FAKEPACA")] == list("CBAA")


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
    record, kept = MarketRecord(size), deque[SimQuote](maxlen=size)
    number = 0
    for batch in batches:
        quotes = [quote(symbol, ts, float(number + n)) for n, (symbol, ts) in enumerate(batch)]
        number += len(batch)
        record.add(quotes)
        kept.extend(quotes)
    assert record.records == kept
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
    record = MarketRecord(10)
    record.add([quote("A", ts, bid) for bid, ts in enumerate([1, 2, 2, 2, 3])])
    found = record.between("A", 1, 3, most=9, newest_first=newest_first, resume=(2, 2))
    assert [q.bid for q in found] == ([1, 0] if newest_first else [3, 4])


def test_quotes_that_were_forgotten_meanwhile_hide_no_later_one() -> None:
    record = MarketRecord(3)
    record.add([quote("A", ts) for ts in (1, 1, 1, 2, 3, 4)])
    assert [q.ts_event_ns for q in record.between("A", 1, 9, most=9, resume=(1, 3))] == [2, 3, 4]


def test_a_batch_beyond_the_size_leaves_its_end() -> None:
    record = MarketRecord(2)
    record.add([quote("A", 1), quote("B", 2), quote("B", 3), quote("B", 4)])
    assert [q.ts_event_ns for q in record.records] == [3, 4]
    assert record.latest("A") is None


def test_memory_stays_bounded_over_many_quotes() -> None:
    record = MarketRecord(2_000)
    for start in range(0, 50_000, 500):
        record.add([quote(f"S{n % 3}", n) for n in range(start, start + 500)])
        record.add([quote(f"ONCE{start}", start)])
    assert len(record.records) == 2_000
    held = [len(series.records) for series in record._series.values()]
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
    record = MarketRecord(100_000)
    record.add([quote("A", ts) for ts in range(100_000)])
    for start in (0, 50_000, 99_990):
        CountedTime.compared = 0
        found = record.between("A", CountedTime(start), CountedTime(start + 9), most=100)
        assert [q.ts_event_ns for q in found] == list(range(start, start + 10))
        assert 10 < CountedTime.compared <= 2 * 18
