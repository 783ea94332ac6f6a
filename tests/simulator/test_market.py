"""How many quotes, of which symbols, at what times."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.simulator.market import UNIVERSE, Market, day_fraction, day_multiplier

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


def test_nothing_is_made_of_symbols_nobody_follows() -> None:
    made = market("AAPL", "FAKEPACA")
    assert made.symbols == ("AAPL", "FAKEPACA")
    made.follow(["*"], without={"AAPL"})
    assert set(made.symbols) == set(UNIVERSE) - {"AAPL"}
    made.follow([])
    assert made.take(10, 0) == []
