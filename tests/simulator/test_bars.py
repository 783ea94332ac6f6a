"""Bars from trades, by hand."""

from __future__ import annotations

import pytest

from mdservice.model.timestamps import parse_rfc3339
from mdservice.simulator.bars import MINUTE_NS, BarBuilder, SimBar, Tally, day_start_ns
from mdservice.simulator.stock_records import SimTrade

MINUTE = parse_rfc3339("2026-11-20T15:00:00Z")


def trade(price: float, size: int, *conditions: str, at_s: float = 1.0) -> SimTrade:
    return SimTrade("AAPL", price, size, 1, MINUTE + round(at_s * 1e9), "V", conditions)


def bar_of(*trades: SimTrade) -> SimBar | None:
    tally = Tally(MINUTE)
    for one in trades:
        tally.add(one)
    return tally.bar("AAPL")


def test_open_high_low_close_volume_count_and_average() -> None:
    trades = [trade(price, 100) for price in (10.1, 10.3, 9.9, 10.2)]
    assert bar_of(*trades) == SimBar("AAPL", 10.1, 10.3, 9.9, 10.2, 400, 4, 10.125, MINUTE)


def test_sums_have_no_rounding_errors() -> None:
    bar = bar_of(*(trade(0.1 if number % 2 else 0.2, 1) for number in range(100_000)))
    assert bar is not None
    assert (bar.volume, bar.vwap) == (100_000, 0.15)


@pytest.mark.parametrize("condition", ["I", "W", "7"])
def test_some_conditions_count_for_volume_alone(condition: str) -> None:
    odd = trade(50.0, 100, "@", condition)
    assert bar_of(odd) is None
    bar = bar_of(trade(10.0, 100), odd)
    assert bar == SimBar("AAPL", 10.0, 10.0, 10.0, 10.0, 200, 2, 30.0, MINUTE)


def test_a_trade_out_of_sequence_makes_no_open_or_close() -> None:
    late = trade(11.0, 100, "Z")
    assert bar_of(late) is None
    bar = bar_of(late, trade(10.0, 100), late)
    assert bar is not None
    assert (bar.open, bar.high, bar.low, bar.close) == (10.0, 11.0, 10.0, 10.0)


def test_a_bar_comes_when_its_minute_is_over_and_again_after_a_late_trade() -> None:
    builder = BarBuilder()
    builder.add(trade(10.0, 100))
    assert not list(builder.ended(MINUTE + MINUTE_NS - 1))
    (bar,) = builder.ended(MINUTE + MINUTE_NS)
    assert not list(builder.ended(MINUTE + MINUTE_NS))
    builder.add(trade(12.0, 100, "Z"))
    assert not list(builder.updated(MINUTE + 3 * MINUTE_NS // 2 - 1))
    (updated,) = builder.updated(MINUTE + 3 * MINUTE_NS // 2)
    assert (bar.high, updated.high, updated.volume) == (10.0, 12.0, 200)
    assert not builder.pending
    builder.add(trade(13.0, 100, "Z"))
    assert not builder.pending, "too late for a minute's bar"
    (day,) = builder.daily()
    assert (day.high, day.volume) == (13.0, 300)
    assert not list(builder.daily())


def test_a_day_begins_at_midnight_in_new_york() -> None:
    ns = parse_rfc3339("2026-11-20T03:00:00Z")
    assert day_start_ns(ns) == parse_rfc3339("2026-11-19T05:00:00Z")
    summer = parse_rfc3339("2026-07-01T12:00:00Z")
    assert day_start_ns(summer) == parse_rfc3339("2026-07-01T04:00:00Z")


def test_a_late_trade_of_yesterday_is_not_in_today_s_bar() -> None:
    builder = BarBuilder()
    builder.add(trade(10.0, 100))
    builder.add(trade(20.0, 100, at_s=86_400))
    builder.add(trade(30.0, 100))
    (day,) = builder.daily()
    assert (day.high, day.volume) == (20.0, 100)
    assert day.ts_event_ns == parse_rfc3339("2026-11-21T05:00:00Z")
