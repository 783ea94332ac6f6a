"""What a market of stocks reports besides quotes is consistent, whatever the seed."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.simulator.bars import MINUTE_NS, SimBar
from mdservice.simulator.market import Market
from mdservice.simulator.stock_records import SimTrade
from mdservice.simulator.tape import Tape, TapeRules
from mdservice.simulator.wire import SimQuote
from tests.examples import examples

SECOND_NS = 1_000_000_000
START_NS = 1_795_186_800 * SECOND_NS + 17 * SECOND_NS
SYMBOLS = ("AAPL", "SPY", "JPM")
LIVELY: dict[str, Any] = {
    "exchanges": ("V", "Q"),
    "trades_per_quote": 0.5,
    "late_trade_ratio": 0.05,
    "correction_ratio": 0.02,
    "cancel_ratio": 0.02,
    "imbalance_ratio": 0.01,
    "halt_every_s": 40.0,
    "halt_s": 8.0,
}


class Run:
    """What a tape made in a while.

    Attributes:
        quotes: Those of each symbol.
        made: The records of each channel, as they came.
        at: When a record came, by its id in memory.
    """

    def __init__(self, seed: int, *, for_s: float = 200.0, slice_s: float = 0.5) -> None:
        market = Market(seed=seed, rate=20.0, zipf=0.0)
        market.follow(SYMBOLS)
        tape = Tape(TapeRules(seed=seed, **LIVELY))
        tape.follow(frozenset(SYMBOLS))
        self.quotes: dict[str, list[SimQuote]] = defaultdict(list)
        self.made: dict[str, list[Any]] = defaultdict(list)
        self.at: dict[int, int] = {}
        for number in range(1, round(for_s / slice_s) + 1):
            now_ns = START_NS + round(number * slice_s * SECOND_NS)
            quotes = market.take(market.due(number * slice_s), now_ns)
            for quote in quotes:
                self.quotes[quote.symbol].append(quote)
            for channel, records in tape.make(quotes, now_ns):
                self.made[channel] += records
                self.at.update((id(record), now_ns) for record in records)


def rebuilt(trades: list[SimTrade], start_ns: int) -> SimBar | None:
    """The bar of these trades, by the rules and with exact arithmetic."""
    trades = sorted(trades, key=lambda trade: trade.ts_event_ns)
    priced = [trade for trade in trades if not {"I", "W", "7"} & {*trade.conditions}]
    last = [trade for trade in priced if "Z" not in trade.conditions]
    if not last:
        return None
    volume = sum(trade.size for trade in trades)
    value = sum(Fraction(str(trade.price)) * trade.size for trade in trades)
    return SimBar(
        trades[0].symbol,
        last[0].price,
        max(trade.price for trade in priced),
        min(trade.price for trade in priced),
        last[-1].price,
        volume,
        len(trades),
        round(float(value / volume), 6),
        start_ns,
    )


seeds = given(st.integers(0, 2**32))


@seeds
@examples(8)
def test_trades_lie_within_the_spread_before_them(seed: int) -> None:
    run = Run(seed)
    assert len(run.made["trades"]) > 500
    for trade in run.made["trades"]:
        quotes = run.quotes[trade.symbol]
        place = bisect_right(quotes, trade.ts_event_ns, key=lambda quote: quote.ts_event_ns)
        quote = quotes[place - 1]
        assert quote.bid <= trade.price <= quote.ask
        assert trade.tape == quote.tape
        assert trade.size > 0
        assert ("I" in trade.conditions) == (trade.size < 100) or trade.conditions == ("Z",)
    for one in run.made["corrections"]:
        quotes = run.quotes[one.symbol]
        assert any(quote.bid <= one.corrected_price <= quote.ask for quote in quotes)
        assert one.corrected_price != one.original_price


@seeds
@examples(8)
def test_ids_rise_per_symbol_and_exchange_in_the_order_of_the_reports(seed: int) -> None:
    run = Run(seed)
    last: dict[tuple[str, str], int] = {}
    for trade in run.made["trades"]:
        key = trade.symbol, trade.exchange
        assert trade.id > last.get(key, 0)
        last[key] = trade.id
    ids = {(trade.symbol, trade.exchange, trade.id): trade for trade in run.made["trades"]}
    assert len(ids) == len(run.made["trades"])
    assert len(run.made["corrections"]) > 3
    assert len(run.made["cancelErrors"]) > 3
    for one in run.made["corrections"]:
        trade = ids[one.symbol, one.exchange, one.original_id]
        assert (trade.price, trade.size) == (one.original_price, one.original_size)
        assert (one.symbol, one.exchange, one.corrected_id) not in ids
        assert one.ts_event_ns > trade.ts_event_ns
    for one in run.made["cancelErrors"]:
        trade = ids[one.symbol, one.exchange, one.id]
        assert (trade.price, trade.size) == (one.price, one.size)
        assert one.action in {"C", "E"}


@seeds
@examples(8)
def test_bars_are_those_rebuilt_from_the_trades_reported_by_then(seed: int) -> None:
    run = Run(seed)
    bars = run.made["bars"]
    assert len({(bar.symbol, bar.ts_event_ns) for bar in bars}) == len(bars)
    assert len(bars) == len(SYMBOLS) * 3
    for channel in ("bars", "updatedBars", "dailyBars"):
        for bar in run.made[channel]:
            whole_day = channel == "dailyBars"
            end_ns = bar.ts_event_ns + (24 * 60 if whole_day else 1) * MINUTE_NS
            trades = [
                trade
                for trade in run.made["trades"]
                if trade.symbol == bar.symbol
                and bar.ts_event_ns <= trade.ts_event_ns < end_ns
                and run.at[id(trade)] <= run.at[id(bar)]
            ]
            assert bar == rebuilt(trades, bar.ts_event_ns), channel
    for bar in bars:
        assert 0 <= run.at[id(bar)] - bar.ts_event_ns - MINUTE_NS < SECOND_NS


@seeds
@examples(8)
def test_a_late_trade_brings_an_updated_bar_at_half_past(seed: int) -> None:
    run = Run(seed)
    expected = set()
    for trade in run.made["trades"]:
        start_ns = trade.ts_event_ns - trade.ts_event_ns % MINUTE_NS
        came_ns = run.at[id(trade)]
        late = came_ns >= start_ns + MINUTE_NS + SECOND_NS
        assert not late or trade.conditions == ("Z",)
        if late and start_ns + 3 * MINUTE_NS // 2 <= max(run.at.values()):
            expected.add((trade.symbol, start_ns))
    updated = {(bar.symbol, bar.ts_event_ns) for bar in run.made["updatedBars"]}
    assert expected <= updated
    for bar in run.made["updatedBars"]:
        assert 0 <= run.at[id(bar)] - bar.ts_event_ns - 3 * MINUTE_NS // 2 < SECOND_NS


@seeds
@examples(8)
def test_no_trade_takes_place_in_a_halt(seed: int) -> None:
    run = Run(seed)
    opening, statuses = run.made["statuses"][: len(SYMBOLS)], run.made["statuses"][len(SYMBOLS) :]
    assert {status.symbol for status in opening} == {*SYMBOLS}
    assert {status.status_code for status in opening} == {"T", "3"}
    halted: dict[str, int] = {}
    for status in statuses:
        if status.status_code in {"H", "2"}:
            assert status.symbol not in halted
            halted[status.symbol] = status.ts_event_ns
        else:
            assert status.status_code == ("T" if status.tape == "C" else "3")
            since_ns = halted.pop(status.symbol)
            assert status.ts_event_ns > since_ns
            assert not [
                trade
                for trade in run.made["trades"]
                if trade.symbol == status.symbol
                and since_ns <= trade.ts_event_ns <= status.ts_event_ns
            ]
    for symbol, since_ns in halted.items():
        trades = [trade for trade in run.made["trades"] if trade.symbol == symbol]
        assert all(trade.ts_event_ns < since_ns for trade in trades)


@seeds
@examples(8)
def test_trades_lie_within_the_latest_price_band(seed: int) -> None:
    run = Run(seed)
    bands = run.made["lulds"]
    assert {band.symbol for band in bands} == {*SYMBOLS}
    for trade in run.made["trades"]:
        known = [
            b for b in bands if b.symbol == trade.symbol and b.ts_event_ns <= trade.ts_event_ns
        ]
        assert known[-1].limit_down < trade.price < known[-1].limit_up


def test_the_same_seed_makes_the_same_market() -> None:
    assert Run(7).made == Run(7).made
    assert Run(7).made["trades"] != Run(8).made["trades"]


def test_a_symbol_s_trades_do_not_depend_on_the_slices() -> None:
    def contents(run: Run) -> list[tuple[object, ...]]:
        return [
            (trade.price, trade.size, trade.exchange, trade.conditions)
            for trade in run.made["trades"]
            if trade.symbol == "AAPL" and trade.conditions != ("Z",)
        ]

    # Before the first halt, whose moment depends on the clock.
    coarse, fine = contents(Run(3, for_s=5.0, slice_s=1.0)), contents(Run(3, for_s=5.0))
    assert coarse
    assert coarse == fine


@pytest.mark.parametrize(
    ("symbol", "codes"), [("AAPL", ("H", "T")), ("JPM", ("2", "3")), ("SPY", ("2", "3"))]
)
def test_each_tape_has_its_own_codes(symbol: str, codes: tuple[str, str]) -> None:
    tape = Tape(TapeRules(halt_every_s=None))
    made = [*tape.halt(symbol, START_NS, 5), *tape.halt(symbol, START_NS + 1, 5)]
    made += tape.end_halts(START_NS + 4 * SECOND_NS)
    assert len(made) == 1
    made += tape.end_halts(START_NS + 5 * SECOND_NS)
    statuses: list[Any] = [record for _, records in made for record in records]
    assert tuple(status.status_code for status in statuses) == codes
    assert {channel for channel, _ in made} == {"statuses"}
    assert statuses[0].reason_code == statuses[1].reason_code


def test_a_halt_without_end_is_ended_by_name() -> None:
    tape = Tape(TapeRules(halt_every_s=None))
    assert list(tape.halt("AAPL", START_NS, float("inf")))
    assert not list(tape.end_halts(START_NS + 10**17))
    assert list(tape.end_halts(START_NS, "AAPL"))
    assert not tape.active
