"""A record of every kind, for tests that go through the kinds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mdservice.model.bar import Bar
from mdservice.model.kinds import (
    BARS,
    CANCELS,
    CORRECTIONS,
    DAILY_BARS,
    IMBALANCES,
    LULDS,
    NEWS,
    ORDERBOOKS,
    QUOTES,
    STATUSES,
    TRADES,
    Kind,
)
from mdservice.model.news import Article
from mdservice.model.order_book import OrderBook
from mdservice.model.quote import Quote
from mdservice.model.trade import Cancel, Correction, Trade
from mdservice.model.trading_status import Imbalance, LimitBand, TradingStatus

__all__ = ["make_record"]

_Make = Callable[[str, int, int, int], Any]


def make_record(kind: Kind[Any], symbol: str = "AAPL", number: int = 1, at_ns: int = 0) -> Any:
    """A record with this number as its ``seq``, and in a value that is written.

    Args:
        kind: Its kind.
        symbol: Its symbol; an article is about this symbol.
        number: From 1.
        at_ns: Its own time and that of its reception, UTC nanoseconds; 0 for ``number``
            nanoseconds after 1970.
    """
    return _MAKE[kind](symbol, number, at_ns or number, at_ns or number)


def _bar(symbol: str, n: int, at: int, recv: int) -> Bar:
    return Bar(symbol, n, n + 2, n - 1, n + 1, 100, 7, None, at, recv, n)


_MAKE: dict[Kind[Any], _Make] = {
    QUOTES: lambda s, n, at, recv: Quote(s, n, n + 1, 2, 3, at, recv, n),
    TRADES: lambda s, n, at, recv: Trade(s, n, 10, "V", ("@",), "C", n, at, recv, n),
    CORRECTIONS: lambda s, n, at, recv: Correction(
        s, "V", "C", n, 1.5, 10, ("@",), n + 1, 1.25, 20, ("@",), at, recv, n
    ),
    CANCELS: lambda s, n, at, recv: Cancel(s, "V", "C", n, 1.5, 10, "cancel", at, recv, n),
    BARS: _bar,
    DAILY_BARS: _bar,
    STATUSES: lambda s, n, at, recv: TradingStatus(
        s, "H", "Trading Halt", f"T{n}", "Halt News Pending", "C", at, recv, n
    ),
    LULDS: lambda s, n, at, recv: LimitBand(s, n + 2.5, n, "B", "C", at, recv, n),
    IMBALANCES: lambda s, n, at, recv: Imbalance(s, n, "C", at, recv, n),
    ORDERBOOKS: lambda s, n, at, recv: OrderBook(s, ((n, 2),), ((n + 1, 3.5),), at, recv, n),
    NEWS: lambda s, n, at, recv: Article(
        n, f"Headline {n}", None, "A. Writer", "", "https://news.invalid/1", "benzinga", (s,),
        "2026-11-20T15:00:00Z", "2026-11-20T15:00:00Z", at, recv, n,
    ),
}  # fmt: skip
