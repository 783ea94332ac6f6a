"""The crypto market: one book for each pair, from which all its records follow."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.model.timestamps import parse_rfc3339
from mdservice.simulator import SimulatorConfig
from mdservice.simulator.bars import SimBar
from mdservice.simulator.crypto import (
    PAIRS,
    CryptoSource,
    Made,
    SimBook,
    SimPairTrade,
    apply_change,
)
from tests.examples import examples, first

START_NS = parse_rfc3339("2026-11-21T23:57:13.5Z")
SECOND_NS = 1_000_000_000
MINUTE_NS = 60 * SECOND_NS
DAY_NS = 1440 * MINUTE_NS
NAMES = {"updatedBars": "updated_bars", "dailyBars": "daily_bars"}
SYMBOLS = ("BTC/USD", "DOGE/USD", "ETH/BTC", "XYZ/EUR")


def run(seed: int, seconds: int, *, rate: float = 20, slice_s: float = 1.0) -> Made:
    """What the market makes in so many seconds, in the order of its arrival."""
    market = CryptoSource(SimulatorConfig(seed=seed, crypto_rate=rate, late_trade_ratio=0.05))
    market.follow({"quotes": frozenset(SYMBOLS)})
    every = Made()
    for number in range(1, round(seconds / slice_s) + 1):
        elapsed_s = number * slice_s
        for kind, records in market.make(elapsed_s, START_NS + round(elapsed_s * SECOND_NS)):
            getattr(every, NAMES.get(kind.channel, kind.channel)).extend(records)
    return every


def of_pairs(records: list[Any]) -> dict[str, list[Any]]:
    sorted_out = defaultdict(list)
    for record in records:
        sorted_out[record.symbol].append(record)
    return sorted_out


def rebuilt(trades: list[SimPairTrade], start_ns: int, length_ns: int) -> SimBar | None:
    """The bar of these trades, by its definition."""
    inside = sorted(
        (trade for trade in trades if start_ns <= trade.ts_event_ns < start_ns + length_ns),
        key=lambda trade: trade.ts_event_ns,
    )
    if not inside:
        return None
    prices = [trade.price for trade in inside]
    volume = sum(Fraction(str(trade.size)) for trade in inside)
    weighted = sum(Fraction(str(trade.size)) * Fraction(str(trade.price)) for trade in inside)
    return SimBar(
        inside[0].symbol,
        prices[0],
        max(prices),
        min(prices),
        prices[-1],
        float(volume),
        len(inside),
        round(float(weighted / volume), 9),
        start_ns,
    )


@examples(25)
@given(seed=st.integers(0, 1 << 40))
def test_quotes_are_the_top_of_the_book_and_trades_the_price_of_its_best_level(seed: int) -> None:
    made = run(seed, 30)
    books: dict[str, SimBook] = {}
    tops: dict[tuple[str, int], tuple[Any, ...]] = {}
    allowed: dict[tuple[str, int], tuple[float, float]] = {}
    for change in made.orderbooks:
        before = books.get(change.symbol)
        book = apply_change(before, change)
        assert book is not None, "the first book of a pair is whole"
        assert book.bids == tuple(sorted(book.bids, reverse=True))
        assert book.asks == tuple(sorted(book.asks))
        assert book.bids[0][0] < book.asks[0][0]
        assert all(size > 0 for _, size in (*book.bids, *book.asks))
        assert len(book.bids) == len(book.asks) == 10
        known = change if before is None else before
        key = change.symbol, change.ts_event_ns
        allowed[key] = known.bids[0][0], known.asks[0][0]
        tops[key] = (*book.bids[0], *book.asks[0])
        books[change.symbol] = book
    for quote in made.quotes:
        assert (quote.bid, quote.bid_size, quote.ask, quote.ask_size) == tops.pop(
            (quote.symbol, quote.ts_event_ns)
        )
    assert set(books) == set(SYMBOLS)
    assert made.trades
    for trade in made.trades:
        assert trade.size > 0
        bid, ask = allowed[trade.symbol, trade.ts_event_ns]
        assert trade.price == (ask if trade.taker == "B" else bid)


@pytest.mark.thorough
@examples(10)
@given(seed=st.integers(0, 1 << 40))
def test_bars_add_up_from_the_trades_late_ones_included(seed: int) -> None:
    made = run(seed, 400)
    trades, bars = of_pairs(made.trades), of_pairs(made.bars)
    updated, daily = of_pairs(made.updated_bars), of_pairs(made.daily_bars)
    assert set(bars) == set(SYMBOLS)
    for symbol in SYMBOLS:
        final = {bar.ts_event_ns: bar for bar in (*bars[symbol], *updated[symbol])}
        starts = [bar.ts_event_ns for bar in bars[symbol]]
        assert starts == list(range(starts[0], starts[0] + len(starts) * MINUTE_NS, MINUTE_NS))
        assert len(starts) == 6
        for start_ns in starts[:-1]:  # the last one may still be updated
            bar = final[start_ns]
            expected = rebuilt(trades[symbol], start_ns, MINUTE_NS)
            if expected is None:
                assert (bar.volume, bar.trade_count, bar.vwap) == (0, 0, 0)
                assert bar.low <= bar.open <= bar.high
                assert bar.low <= bar.close <= bar.high
            else:
                assert bar == expected
        days = {bar.ts_event_ns: bar for bar in daily[symbol]}
        first_day_ns = START_NS - START_NS % DAY_NS
        assert set(days) <= {first_day_ns, first_day_ns + DAY_NS}
        if first_day_ns in days:
            assert days[first_day_ns] == rebuilt(trades[symbol], first_day_ns, DAY_NS)


@pytest.mark.thorough
def test_a_late_trade_updates_its_bar_half_a_minute_later() -> None:
    made = run(1, 600, rate=60)
    assert made.updated_bars
    first = {(bar.symbol, bar.ts_event_ns): bar for bar in made.bars}
    for bar in made.updated_bars:
        before = first[bar.symbol, bar.ts_event_ns]
        assert bar.trade_count > before.trade_count
        assert bar.volume > before.volume
    late = [
        trade
        for trades in of_pairs(made.trades).values()
        for trade, before in zip(trades[1:], trades, strict=False)
        if trade.ts_event_ns < before.ts_event_ns
    ]
    assert {trade.symbol for trade in late} == {bar.symbol for bar in made.updated_bars}


@pytest.mark.parametrize("seed", first(1, range(5)))
def test_ids_and_times_rise_and_sizes_are_fractions(seed: int) -> None:
    made = run(seed, 60)
    for trades in of_pairs(made.trades).values():
        by_time = sorted(trades, key=lambda trade: trade.ts_event_ns)
        assert [trade.id for trade in by_time] == sorted({trade.id for trade in trades})
    for records in (made.quotes, made.orderbooks):
        for of_pair in of_pairs(records).values():
            times = [record.ts_event_ns for record in of_pair]
            assert times == sorted(set(times))
    assert {trade.taker for trade in made.trades} == {"B", "S"}
    assert any(trade.size % 1 for trade in made.trades if trade.symbol == "BTC/USD")


def test_the_same_seed_gives_the_same_market_however_it_is_sliced() -> None:
    assert run(7, 20) == run(7, 20)
    assert run(7, 20) != run(8, 20)

    def of(slice_s: float) -> list[Any]:
        made = run(7, 20, slice_s=slice_s)
        return [(quote.symbol, quote.bid, quote.ask, quote.bid_size) for quote in made.quotes]

    assert of(1.0) == of(0.25)


def test_every_pair_is_the_whole_table() -> None:
    market = CryptoSource(SimulatorConfig(silent_symbols={"ETH/BTC"}))
    market.follow({"trades": {"*"}, "bars": {"XYZ/EUR"}})
    assert market.symbols == (*(pair for pair in PAIRS if pair != "ETH/BTC"), "XYZ/EUR")
    assert {book.symbol for book in market.take(0, START_NS).orderbooks} == set(market.symbols)
    assert market.take(0, START_NS + 1) == Made(), "all have their first records"
