"""Records from Alpaca's messages and REST rows, whose fields have the same names. Pure.

Each function takes the decoded message, its symbol, its time and the time of reception, UTC
nanoseconds.
"""

from __future__ import annotations

from typing import Final, Literal

from mdservice.feed.alpaca.messages import (
    ArticleFields,
    BarFields,
    BookFields,
    BookMessage,
    CancelMessage,
    Conditions,
    CorrectionMessage,
    ImbalanceMessage,
    LimitBandMessage,
    StatusMessage,
    TradeFields,
)
from mdservice.model.bar import Bar
from mdservice.model.news import Article
from mdservice.model.order_book import Level, OrderBook
from mdservice.model.symbol import is_symbol
from mdservice.model.timestamps import parse_rfc3339
from mdservice.model.trade import Cancel, Correction, Trade
from mdservice.model.trading_status import Imbalance, LimitBand, TradingStatus

__all__ = [
    "article_of",
    "bar_of",
    "book_of",
    "cancel_of",
    "correction_of",
    "daily_bar_of",
    "imbalance_of",
    "limit_band_of",
    "status_of",
    "trade_of",
    "whole_book_of",
]

_TAKER_SIDES: Final[dict[str | None, Literal["buy", "sell"]]] = {"B": "buy", "S": "sell"}
_ACTIONS: Final[dict[str | None, Literal["cancel", "error"]]] = {"C": "cancel", "E": "error"}


def _array(conditions: Conditions) -> tuple[str, ...]:
    if isinstance(conditions, tuple):
        return conditions
    return (conditions,) if conditions else ()


def trade_of(trade: TradeFields, symbol: str, event_ns: int, received_ns: int) -> Trade:
    """A trade; of a pair of coins with the side of the taker."""
    made = Trade(
        symbol,
        trade.p,
        trade.s,
        trade.x,
        _array(trade.c),
        trade.z,
        trade.i,
        event_ns,
        received_ns,
    )
    if "/" in symbol:
        made.taker_side = _TAKER_SIDES.get(trade.tks)
    return made


def correction_of(
    message: CorrectionMessage, symbol: str, event_ns: int, received_ns: int
) -> Correction:
    """A correction of a trade."""
    return Correction(
        symbol,
        message.x,
        message.z,
        message.oi,
        message.op,
        message.os,
        _array(message.oc),
        message.ci,
        message.cp,
        message.cs,
        _array(message.cc),
        event_ns,
        received_ns,
    )


def cancel_of(message: CancelMessage, symbol: str, event_ns: int, received_ns: int) -> Cancel:
    """A cancellation of a trade."""
    return Cancel(
        symbol,
        message.x,
        message.z,
        message.i,
        message.p,
        message.s,
        _ACTIONS.get(message.a),
        event_ns,
        received_ns,
    )


def bar_of(bar: BarFields, symbol: str, event_ns: int, received_ns: int) -> Bar:
    """A bar, also an updated one: the router knows which were already published."""
    return Bar(symbol, bar.o, bar.h, bar.l, bar.c, bar.v, bar.n, bar.vw, event_ns, received_ns)


def daily_bar_of(bar: BarFields, symbol: str, event_ns: int, received_ns: int) -> Bar:
    """The bar of a day."""
    made = bar_of(bar, symbol, event_ns, received_ns)
    made.daily = True
    return made


def status_of(
    message: StatusMessage, symbol: str, event_ns: int, received_ns: int
) -> TradingStatus:
    """A change of the trading status."""
    return TradingStatus(
        symbol,
        message.sc,
        message.sm,
        message.rc,
        message.rm,
        message.z,
        event_ns,
        received_ns,
    )


def limit_band_of(
    message: LimitBandMessage, symbol: str, event_ns: int, received_ns: int
) -> LimitBand:
    """The limits of prices."""
    return LimitBand(symbol, message.u, message.d, message.i, message.z, event_ns, received_ns)


def imbalance_of(
    message: ImbalanceMessage, symbol: str, event_ns: int, received_ns: int
) -> Imbalance:
    """An imbalance of orders."""
    return Imbalance(symbol, message.p, message.z, event_ns, received_ns)


def book_of(message: BookMessage, symbol: str, event_ns: int, received_ns: int) -> OrderBook:
    """A whole order book, or a change of one."""
    book = whole_book_of(message, symbol, event_ns, received_ns)
    book.whole = message.r is True
    return book


def whole_book_of(book: BookFields, symbol: str, event_ns: int, received_ns: int) -> OrderBook:
    """A whole order book."""
    bids: tuple[Level, ...] = tuple([(level.p, level.s) for level in book.b or ()])
    asks: tuple[Level, ...] = tuple([(level.p, level.s) for level in book.a or ()])
    return OrderBook(symbol, bids, asks, event_ns, received_ns)


def article_of(
    article: ArticleFields, created_at: str | None, updated_at: str | None, received_ns: int
) -> Article:
    """An article, with its times as text; without those of its symbols that are none.

    Raises:
        ValueError: It has no time that can be read.
    """
    return Article(
        article.id,
        article.headline,
        article.summary,
        article.author,
        article.content,
        article.url,
        article.source,
        tuple(filter(is_symbol, article.symbols or ())),
        created_at,
        updated_at,
        parse_rfc3339(updated_at or created_at or ""),
        received_ns,
    )
