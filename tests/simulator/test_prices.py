"""Prices of one symbol."""

from __future__ import annotations

from itertools import islice, pairwise

from hypothesis import given
from hypothesis import strategies as st

from mdservice.simulator.market import UNIVERSE, PriceWalk, start_cents, tape_of
from mdservice.simulator.wire import SimQuote

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
