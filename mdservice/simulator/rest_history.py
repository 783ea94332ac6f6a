"""Past and latest records: what a request asks for, and the pages that answer it.

Pure: the parameters and the time are arguments.

Source: Alpaca's OpenAPI description of "Historical quotes" and "Latest quotes". It does not
say in which zone a date without a time is meant, nor whether such an end includes its day:
here it is UTC, and it does.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Generic

import attrs
import msgspec

from mdservice.errors import InvalidSymbol
from mdservice.model.symbol import EVERY_SYMBOL, parse_symbol
from mdservice.model.timestamps import LATEST_NS, format_ns, parse_rfc3339
from mdservice.simulator.http import RECENT_SIP, RECENT_SIP_MESSAGE, RefusedRequest, malformed
from mdservice.simulator.market import MarketRecord
from mdservice.simulator.wire import S, SimQuote, encode_timestamp, json_number

__all__ = [
    "HISTORY_FEEDS",
    "LATEST_FEEDS",
    "HistoryQuery",
    "Page",
    "PageToken",
    "RestRules",
    "answer_history",
    "answer_latest",
    "encode_page",
    "limit_parameter",
    "parse_history",
    "parse_latest",
    "quote_row",
    "read_page",
    "symbols_parameter",
    "time_parameter",
    "wants_days",
]

HISTORY_FEEDS = frozenset(("iex", "otc", "sip", "boats"))
"""Feeds that have a history."""
LATEST_FEEDS = HISTORY_FEEDS | {"delayed_sip", "overnight"}
"""Feeds that have latest quotes."""

_SECOND_NS = 1_000_000_000
_DAY_NS = 86_400 * _SECOND_NS
_RECENT_NS = 15 * 60 * _SECOND_NS
_DEFAULT_LIMIT = 1_000
_MOST_PER_PAGE = 10_000
_FORBIDDEN = 403
_MINUTE, _DAY = frozenset(("1Min", "1T")), frozenset(("1Day", "1D"))
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_TOKEN_BYTES = 200


@attrs.frozen
class RestRules:
    """What may be asked for; see :class:`~mdservice.simulator.config.SimulatorConfig`."""

    history_feeds: AbstractSet[str] = HISTORY_FEEDS
    latest_feeds: AbstractSet[str] = LATEST_FEEDS
    default_feed: str = "sip"
    has_symbol: Callable[[str], bool] = lambda _: True
    invalid_symbols: AbstractSet[str] = frozenset()
    page_size: int = _MOST_PER_PAGE
    lag_s: float = 0.0
    refuse_recent_sip: bool = False


@attrs.frozen
class PageToken:
    """Where a page ended: behind the ``count``-th quote of this symbol with this time."""

    symbol: str
    ts_ns: int
    count: int

    def text(self) -> str:
        """Opaque to clients; base64 of symbol, time and count, as Alpaca's are."""
        return base64.b64encode(
            f"{self.symbol}|{format_ns(self.ts_ns)}|{self.count:X}".encode()
        ).decode()

    @classmethod
    def parse(cls, text: str) -> PageToken:
        """Read :meth:`text` again.

        Raises:
            RefusedRequest: It is no such text.
        """
        if len(text) > _TOKEN_BYTES:
            malformed("invalid page_token")
        try:
            symbol, ts, count = base64.b64decode(text, validate=True).decode().split("|")
            return cls(symbol, parse_rfc3339(ts), int(count, 16))
        except (ValueError, binascii.Error):
            malformed("invalid page_token")


@attrs.frozen
class HistoryQuery:
    """One page of past quotes.

    Attributes:
        symbols: In the order of the answer.
        start_ns: UTC nanoseconds, included.
        end_ns: UTC nanoseconds, included.
        limit: Quotes of all symbols together.
        newest_first: Each symbol's quotes from the end to the start.
        resume: Where the page before ended.
    """

    symbols: tuple[str, ...]
    start_ns: int
    end_ns: int
    limit: int
    newest_first: bool = False
    resume: PageToken | None = None


def parse_history(params: Mapping[str, str], rules: RestRules, now_ns: int) -> HistoryQuery:
    """The query of ``/v2/stocks/quotes``.

    Raises:
        RefusedRequest: A parameter is wrong, or the plan does not include what it asks for.
    """
    symbols = symbols_parameter(params, rules)
    feed = _feed(params, rules, rules.history_feeds)
    start_ns = time_parameter(params, "start", now_ns - now_ns % _DAY_NS, day_ns=0)
    end_ns = time_parameter(params, "end", LATEST_NS, day_ns=_DAY_NS - 1)
    if end_ns < start_ns:
        malformed("end should not be before start")
    sort = params.get("sort") or "asc"
    if sort not in {"asc", "desc"}:
        malformed(f"invalid sort: {sort}")
    limit = min(limit_parameter(params, _DEFAULT_LIMIT, _MOST_PER_PAGE), rules.page_size)
    resume = PageToken.parse(params["page_token"]) if params.get("page_token") else None
    if resume is not None and not (
        resume.symbol in symbols and start_ns <= resume.ts_ns <= end_ns and resume.count > 0
    ):
        malformed("invalid page_token")
    if rules.refuse_recent_sip and feed == "sip":
        if params.get("end") and end_ns > now_ns - _RECENT_NS:
            _refuse_sip()
        end_ns = min(end_ns, now_ns - _RECENT_NS)
    if rules.lag_s:
        end_ns = min(end_ns, now_ns - round(rules.lag_s * _SECOND_NS))
    return HistoryQuery(symbols, start_ns, end_ns, limit, sort == "desc", resume)


def parse_latest(params: Mapping[str, str], rules: RestRules) -> tuple[str, ...]:
    """The symbols of ``/v2/stocks/quotes/latest``.

    Raises:
        RefusedRequest: A parameter is wrong, or the plan does not include the feed.
    """
    symbols = symbols_parameter(params, rules)
    if _feed(params, rules, rules.latest_feeds) == "sip" and rules.refuse_recent_sip:
        _refuse_sip()
    return symbols


def _refuse_sip() -> None:
    raise RefusedRequest(_FORBIDDEN, RECENT_SIP, RECENT_SIP_MESSAGE)


def symbols_parameter(params: Mapping[str, str], rules: RestRules) -> tuple[str, ...]:
    """The parameter ``symbols``, sorted, each once.

    Raises:
        RefusedRequest: There is none, or one that the market does not have.
    """
    texts = [text for text in params.get("symbols", "").split(",") if text]
    if not texts:
        malformed("symbols is required")
    symbols = set()
    for text in texts:
        try:
            symbol = parse_symbol(text)
        except InvalidSymbol:
            symbol = EVERY_SYMBOL
        is_other = symbol != text or symbol == EVERY_SYMBOL or not rules.has_symbol(symbol)
        if is_other or symbol in rules.invalid_symbols:
            malformed(f"invalid symbol: {text[:40]}")
        symbols.add(symbol)
    return tuple(sorted(symbols))


def _feed(params: Mapping[str, str], rules: RestRules, known: AbstractSet[str]) -> str:
    feed = params.get("feed") or rules.default_feed
    if feed not in known:
        malformed(f"invalid feed: {feed[:40]}")
    return feed


def limit_parameter(params: Mapping[str, str], default: int, most: int) -> int:
    """The parameter ``limit``, from 1 to ``most``.

    Raises:
        RefusedRequest: It is something else.
    """
    text = params.get("limit") or str(default)
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(most))):
        malformed(f"invalid limit: {text[:40]}")
    if not 1 <= int(text) <= most:
        malformed(f"limit must be between 1 and {most}")
    return int(text)


def time_parameter(params: Mapping[str, str], name: str, default_ns: int, *, day_ns: int) -> int:
    """A time in UTC nanoseconds; ``day_ns`` is added to a date without one.

    Raises:
        RefusedRequest: It is no time.
    """
    text = params.get(name)
    if not text:
        return default_ns
    try:
        if _DATE.fullmatch(text):
            return parse_rfc3339(f"{text}T00:00:00Z") + day_ns
        return parse_rfc3339(text)
    except ValueError:
        malformed(f"invalid {name}: {text[:40]}")


def wants_days(params: Mapping[str, str]) -> bool:
    """Whether the parameter ``timeframe`` is a day, and not a minute.

    Raises:
        RefusedRequest: It is something else.
    """
    timeframe = params.get("timeframe", "")
    if timeframe not in _MINUTE | _DAY:
        malformed(f"invalid timeframe: {timeframe[:40]}")
    return timeframe in _DAY


@attrs.frozen
class Page(Generic[S]):
    """A part of the history: each symbol's records, and where the next page begins."""

    records: dict[str, list[S]]
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


def read_page(record: MarketRecord[S], query: HistoryQuery) -> Page[S]:
    """The records that the query asks for, sorted by symbol, then by time."""
    found: dict[str, list[S]] = {}
    room = query.limit
    last: PageToken | None = None
    for symbol in query.symbols:
        resume = query.resume
        if resume is not None and symbol < resume.symbol:
            continue
        if resume is not None and symbol > resume.symbol:
            resume = None
        records = record.between(
            symbol,
            query.start_ns,
            query.end_ns,
            most=room + 1,
            newest_first=query.newest_first,
            resume=None if resume is None else (resume.ts_ns, resume.count),
        )
        if len(records) > room:
            # The one that is too many shows that there is another page.
            del records[room:]
            if records:
                found[symbol] = records
                last = _end(symbol, records, resume)
            return Page(found, last)
        if records:
            found[symbol] = records
            last = _end(symbol, records, resume)
            room -= len(records)
    return Page(found, None)


def _end(symbol: str, records: list[S], resume: PageToken | None) -> PageToken:
    """Where these records end."""
    ts_ns = records[-1].ts_event_ns
    count = 0
    for one in reversed(records):
        if one.ts_event_ns != ts_ns:
            return PageToken(symbol, ts_ns, count)
        count += 1
    if resume is not None and resume.ts_ns == ts_ns:
        count += resume.count
    return PageToken(symbol, ts_ns, count)


def encode_page(page: Page[S], channel: str, row: Callable[[S], Any]) -> bytes:
    """``{"quotes":{"AAPL":[…]},"next_page_token":null}``."""
    return msgspec.json.encode(
        {
            channel: {symbol: list(map(row, some)) for symbol, some in page.records.items()},
            "next_page_token": page.next_page.text() if page.next_page else None,
        }
    )


def answer_latest(
    record: MarketRecord[S],
    symbols: Iterable[str],
    channel: str,
    row: Callable[[S], Any],
    valid: Callable[[S], bool] | None = None,
) -> bytes:
    """``{"quotes":{"AAPL":{…}}}``, without the symbols that have no record, or no valid one."""
    newest = {symbol: record.latest(symbol, valid) for symbol in symbols}
    rows = {symbol: row(one) for symbol, one in newest.items() if one is not None}
    return msgspec.json.encode({channel: rows})


def answer_history(
    record: MarketRecord[S], query: HistoryQuery, channel: str, row: Callable[[S], Any]
) -> bytes:
    """The page of the history that the query asks for."""
    return encode_page(read_page(record, query), channel, row)


def quote_row(quote: SimQuote) -> msgspec.Struct:
    """A quote in REST's answers."""
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
