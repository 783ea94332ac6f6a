"""Alpaca's REST about stocks: past and latest trades, quotes and bars, and snapshots.

Pure.

Source: Alpaca's OpenAPI description of the stock endpoints of the market data API.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from mdservice.simulator.bars import SimBar
from mdservice.simulator.http import Answer, Call
from mdservice.simulator.market import MarketRecord
from mdservice.simulator.rest_history import (
    RestRules,
    answer_history,
    answer_latest,
    parse_history,
    parse_latest,
    quote_row,
    wants_days,
)
from mdservice.simulator.stock_records import SimTrade, bar_row, trade_row
from mdservice.simulator.wire import SimQuote

__all__ = ["stock_routes"]


def stock_routes(
    quotes: MarketRecord[SimQuote],
    trades: MarketRecord[SimTrade],
    minute_bars: MarketRecord[SimBar],
    daily_bars: MarketRecord[SimBar],
    rules: RestRules,
) -> Mapping[str, Answer]:
    """The answers to GET requests, by path. Of bars there are those of a minute and of a day."""

    def bars(call: Call) -> bytes:
        record = daily_bars if wants_days(call.params) else minute_bars
        query = parse_history(call.params, rules, call.now_ns)
        return answer_history(record, query, "bars", bar_row)

    def snapshots(call: Call) -> bytes:
        found: dict[str, dict[str, Any]] = {}
        for symbol in parse_latest(call.params, rules):
            days = daily_bars.between(symbol, 0, call.now_ns, most=2, newest_first=True)
            newest = {
                "latestTrade": _row(trade_row, trades.latest(symbol, valid_trade)),
                "latestQuote": _row(quote_row, quotes.latest(symbol)),
                "minuteBar": _row(bar_row, minute_bars.latest(symbol)),
                "dailyBar": _row(bar_row, days[0] if days else None),
                "prevDailyBar": _row(bar_row, days[1] if len(days) > 1 else None),
            }
            if any(newest.values()):
                found[symbol] = newest
        return msgspec.json.encode(found)

    def past(record: MarketRecord[Any], channel: str, row: Callable[[Any], Any]) -> Answer:
        return lambda call: answer_history(
            record, parse_history(call.params, rules, call.now_ns), channel, row
        )

    return {
        "/v2/stocks/quotes": past(quotes, "quotes", quote_row),
        "/v2/stocks/quotes/latest": lambda call: answer_latest(
            quotes, parse_latest(call.params, rules), "quotes", quote_row
        ),
        "/v2/stocks/trades": past(trades, "trades", trade_row),
        "/v2/stocks/trades/latest": lambda call: answer_latest(
            trades, parse_latest(call.params, rules), "trades", trade_row, valid_trade
        ),
        "/v2/stocks/bars": bars,
        "/v2/stocks/bars/latest": lambda call: answer_latest(
            minute_bars, parse_latest(call.params, rules), "bars", bar_row
        ),
        "/v2/stocks/snapshots": snapshots,
    }


def valid_trade(trade: SimTrade) -> bool:
    """Whether it may be the latest: it was neither canceled nor found incorrect."""
    return trade.valid


def _row(row: Callable[[Any], Any], record: object | None) -> Any:
    return None if record is None else row(record)
