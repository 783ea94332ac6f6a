"""Pages of quotes as JSON."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
import msgspec

from mdservice.simulator.record import QuoteRecord
from mdservice.simulator.rest.query import HistoryQuery, PageToken
from mdservice.simulator.wire import SimQuote, encode_timestamp, json_number

__all__ = ["Page", "encode_latest", "encode_page", "read_page"]


@attrs.frozen
class Page:
    """A part of the history: each symbol's quotes, and where the next page begins."""

    quotes: dict[str, list[SimQuote]]
    next_page: PageToken | None


class _Quote(
    msgspec.Struct,
    gc=False,
    rename={
        "timestamp": "t",
        "ask_exchange": "ax",
        "ask": "ap",
        "ask_size": "as",
        "bid_exchange": "bx",
        "bid": "bp",
        "bid_size": "bs",
        "conditions": "c",
        "tape": "z",
    },
):
    """``{"t":"2026-11-20T15:51:44.2Z","ax":"V","ap":187.15,"as":300,"bx":"V","bp":187.12,…}``."""

    timestamp: str
    ask_exchange: str
    ask: float
    ask_size: int
    bid_exchange: str
    bid: float
    bid_size: int
    conditions: tuple[str, ...]
    tape: str


def read_page(record: QuoteRecord, query: HistoryQuery) -> Page:
    """The quotes that the query asks for, sorted by symbol, then by time."""
    found: dict[str, list[SimQuote]] = {}
    room = query.limit
    last: PageToken | None = None
    for symbol in query.symbols:
        resume = query.resume
        if resume is not None and symbol < resume.symbol:
            continue
        if resume is not None and symbol > resume.symbol:
            resume = None
        quotes = record.between(
            symbol,
            query.start_ns,
            query.end_ns,
            most=room + 1,
            newest_first=query.newest_first,
            resume=None if resume is None else (resume.ts_ns, resume.count),
        )
        if len(quotes) > room:
            # The one that is too many shows that there is another page.
            del quotes[room:]
            if quotes:
                found[symbol] = quotes
                last = _end(symbol, quotes, resume)
            return Page(found, last)
        if quotes:
            found[symbol] = quotes
            last = _end(symbol, quotes, resume)
            room -= len(quotes)
    return Page(found, None)


def _end(symbol: str, quotes: list[SimQuote], resume: PageToken | None) -> PageToken:
    """Where these quotes end."""
    ts_ns = quotes[-1].ts_event_ns
    count = 0
    for quote in reversed(quotes):
        if quote.ts_event_ns != ts_ns:
            return PageToken(symbol, ts_ns, count)
        count += 1
    if resume is not None and resume.ts_ns == ts_ns:
        count += resume.count
    return PageToken(symbol, ts_ns, count)


def encode_page(page: Page) -> bytes:
    """``{"quotes":{"AAPL":[…]},"next_page_token":null}``."""
    return msgspec.json.encode(
        {
            "quotes": {
                symbol: list(map(_encode, quotes)) for symbol, quotes in page.quotes.items()
            },
            "next_page_token": page.next_page.text() if page.next_page else None,
        }
    )


def encode_latest(record: QuoteRecord, symbols: Iterable[str]) -> bytes:
    """``{"quotes":{"AAPL":{…}}}``, without the symbols that have no quote."""
    newest = {symbol: record.latest(symbol) for symbol in symbols}
    return msgspec.json.encode(
        {
            "quotes": {
                symbol: _encode(quote) for symbol, quote in newest.items() if quote is not None
            }
        }
    )


def _encode(quote: SimQuote) -> _Quote:
    return _Quote(
        encode_timestamp(quote.ts_event_ns, "json"),
        quote.ask_exchange,
        json_number(quote.ask),
        quote.ask_size,
        quote.bid_exchange,
        json_number(quote.bid),
        quote.bid_size,
        quote.conditions,
        quote.tape,
    )
