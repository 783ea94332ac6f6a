"""The answers of Alpaca's market-data REST API as records, nanoseconds kept. Pure.

A row that breaks the schema is skipped and counted, as on the stream; its page stays.

Source: Alpaca's OpenAPI description of the market-data API: stocks, crypto, options and news.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, Generic, Protocol, TypeVar

import attrs
import msgspec

from mdservice.feed.alpaca.codec import json_time_text
from mdservice.feed.alpaca.messages import (
    ArticleFields,
    BarFields,
    BookFields,
    Price,
    Size,
    TradeFields,
    without_lone_surrogates,
)
from mdservice.feed.alpaca.records import (
    article_of,
    bar_of,
    daily_bar_of,
    trade_of,
    whole_book_of,
)
from mdservice.model.bar import Bar
from mdservice.model.kinds import R
from mdservice.model.news import Article
from mdservice.model.order_book import OrderBook
from mdservice.model.quote import Quote
from mdservice.model.timestamps import parse_rfc3339
from mdservice.model.trade import Trade

__all__ = [
    "ARTICLES",
    "BAR_ROWS",
    "BOOK_ROWS",
    "DAILY_BAR_ROWS",
    "QUOTE_ROWS",
    "TRADE_ROWS",
    "Answer",
    "Answers",
    "Rows",
    "decode_refusal",
]


@attrs.frozen
class Answer(Generic[R]):
    """The content of one answer.

    Attributes:
        records: In the answer's order, ``seq`` 0.
        broken: The number of unreadable rows.
        next_page: The token of the page that follows, or None.
    """

    records: list[R]
    broken: int
    next_page: str | None = None


_T = TypeVar("_T")


class _QuoteRow(msgspec.Struct, gc=False):
    """``{"t":"2026-11-20T15:51:44.2Z","bp":187.12,"bs":2,"ap":187.15,"as":3}`` and more."""

    t: str
    bp: Price
    bs: Size
    ap: Price
    ask_size: Size = msgspec.field(name="as")


class _TradeRow(TradeFields, kw_only=True, gc=False):
    """A trade's fields with ``"t":"…"``; ``"u":"canceled"`` if it was changed later."""

    t: str
    u: str | None = None


class _BarRow(BarFields, kw_only=True, gc=False):
    t: str


class _BookRow(BookFields, kw_only=True, gc=False):
    t: str


class _Refusal(msgspec.Struct):
    code: int | None = None
    message: str = ""


class Answers(Protocol[R]):
    """Decodes answers with records of one kind."""

    def page(self, content: bytes, received_ns: int, *, keep_wire: bool = False) -> Answer[R]:
        """One page of records.

        Args:
            content: ``{"quotes":{"AAPL":[row, …]},"next_page_token":"…"}``; both may be null.
            received_ns: When it came, UTC nanoseconds.
            keep_wire: Whether each record is to keep its row as its ``wire``: as the message that
                the stream would send, ``{"T":"q","S":"AAPL","t":"…"}``.

        Raises:
            ValueError: The content is not such a page.
        """
        ...

    def latest(self, content: bytes, received_ns: int, *, keep_wire: bool = False) -> Answer[R]:
        """The newest record of each symbol.

        Args:
            content: ``{"quotes":{"AAPL":row}}``.
            received_ns: When it came, UTC nanoseconds.
            keep_wire: As for :meth:`page`.

        Raises:
            ValueError: The content is not such an answer.
        """
        ...


class Rows(Generic[R]):
    """Decodes answers that have the rows of each symbol.

    Args:
        name: The field of the answers that has the rows.
        tag: The ``T`` of the stream's messages of this kind.
        row: The msgspec type of a row.
        to_record: Makes a record from a symbol, a row and the time of reception; None for a row
            that is to be left out.
    """

    def __init__(
        self, name: str, tag: str, row: type[_T], to_record: Callable[[str, _T, int], R | None]
    ) -> None:
        self._name = name
        self._tag = tag
        self._row: Any = row
        self._to_record: Callable[[str, Any, int], R | None] = to_record
        self._page = self._answer("Page", dict[str, list[row]])  # type: ignore[valid-type]
        self._raw_page = self._answer("RawPage", dict[str, list[msgspec.Raw]])
        self._latest = self._answer("Latest", dict[str, msgspec.Raw])

    def _answer(self, name: str, rows: Any) -> Any:
        return msgspec.defstruct(
            name,
            [
                ("rows", rows | None, msgspec.field(default=None, name=self._name)),
                ("next_page_token", str | None, None),
            ],
        )

    def page(self, content: bytes, received_ns: int, *, keep_wire: bool = False) -> Answer[R]:
        """See :meth:`Answers.page`."""
        if not keep_wire:
            with suppress(ValueError):  # of msgspec, or of a time: look at each row
                return self._page_of_good_rows(content, received_ns)
        raw = _decode(content, self._raw_page)
        pairs = ((symbol, row) for symbol, rows in (raw.rows or {}).items() for row in rows)
        return self._row_by_row(
            pairs, received_ns, raw.next_page_token or None, keep_wire=keep_wire
        )

    def _page_of_good_rows(self, content: bytes, received_ns: int) -> Answer[R]:
        to_record = self._to_record
        page = msgspec.json.decode(content, type=self._page)
        return Answer(
            [
                record
                for symbol, rows in (page.rows or {}).items()
                for row in rows
                if (record := to_record(symbol, row, received_ns)) is not None
            ],
            0,
            page.next_page_token or None,
        )

    def latest(self, content: bytes, received_ns: int, *, keep_wire: bool = False) -> Answer[R]:
        """See :meth:`Answers.latest`."""
        latest = _decode(content, self._latest)
        rows = iter((latest.rows or {}).items())
        return self._row_by_row(rows, received_ns, None, keep_wire=keep_wire)

    def _row_by_row(
        self,
        rows: Iterator[tuple[str, msgspec.Raw]],
        received_ns: int,
        next_page: str | None,
        *,
        keep_wire: bool,
    ) -> Answer[R]:
        records, left_out, broken = [], 0, 0
        for symbol, raw in rows:
            try:
                row = msgspec.json.decode(raw, type=self._row)
                record = self._to_record(symbol, row, received_ns)
            except ValueError:
                broken += 1
                continue
            if record is None:
                left_out += 1
                continue
            if keep_wire:
                record.wire = _as_message(raw, self._tag, symbol)
            records.append(record)
        if broken and not records and not left_out:
            raise ValueError(f"none of its rows is one of {self._name}")
        return Answer(records, broken, next_page)


class _Articles:
    """Decodes ``{"news":[row, …],"next_page_token":"…"}``."""

    def page(self, content: bytes, received_ns: int, *, keep_wire: bool = False) -> Answer[Article]:
        """See :meth:`Answers.page`."""
        page = _decode(content, _ArticlePage)
        records, broken = [], 0
        for raw in page.news or ():
            try:
                row = msgspec.json.decode(raw, type=ArticleFields)
                created_at, updated_at = map(json_time_text, (row.created_at, row.updated_at))
                record = article_of(row, created_at, updated_at, received_ns)
            except ValueError:
                broken += 1
                continue
            if keep_wire:
                record.wire = _as_message(raw, "n")
            records.append(record)
        if broken and not records:
            raise ValueError("none of its rows is an article")
        return Answer(records, broken, page.next_page_token or None)

    def latest(
        self, content: bytes, received_ns: int, *, keep_wire: bool = False
    ) -> Answer[Article]:
        """The same as a page, whose only row is the newest article."""
        return self.page(content, received_ns, keep_wire=keep_wire)


class _ArticlePage(msgspec.Struct):
    news: list[msgspec.Raw] | None = None
    next_page_token: str | None = None


def decode_refusal(content: bytes) -> str:
    """Code and text of ``{"code":42210000,"message":"…"}``, or ``no reason given``."""
    try:
        refusal = msgspec.json.decode(content, type=_Refusal)
    except ValueError:
        return "no reason given"
    code = f"{refusal.code} " if refusal.code else ""
    return f"{code}{refusal.message}"


def _decode(content: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(content, type=kind)
    except ValueError:
        return msgspec.json.decode(without_lone_surrogates(content), type=kind)


def _as_message(row: msgspec.Raw, tag: str, symbol: str | None = None) -> bytes | None:
    """A row as the message that the stream would send: the same object with ``T`` and ``S``.

    None where a field that is not read is no UTF-8: the relay then writes the record's own values.
    """
    try:
        str(row, "utf-8")
    except UnicodeDecodeError:
        return None
    added: dict[str, Any] = {"T": tag} if symbol is None else {"T": tag, "S": symbol}
    if tag == "o":
        added["r"] = True  # REST has whole books
    return msgspec.json.encode(added)[:-1] + b"," + bytes(row)[1:]


def _to_quote(symbol: str, row: _QuoteRow, received_ns: int) -> Quote:
    event_ns = parse_rfc3339(row.t)
    return Quote(symbol, row.bp, row.ap, row.bs, row.ask_size, event_ns, received_ns)


_NOT_TAKEN_PLACE: Final = ("canceled", "incorrect")


def _to_trade(symbol: str, row: _TradeRow, received_ns: int) -> Trade | None:
    event_ns = parse_rfc3339(row.t)
    if row.u in _NOT_TAKEN_PLACE:
        return None
    return trade_of(row, symbol, event_ns, received_ns)


def _to_bar(symbol: str, row: _BarRow, received_ns: int) -> Bar:
    return bar_of(row, symbol, parse_rfc3339(row.t), received_ns)


def _to_daily_bar(symbol: str, row: _BarRow, received_ns: int) -> Bar:
    return daily_bar_of(row, symbol, parse_rfc3339(row.t), received_ns)


def _to_book(symbol: str, row: _BookRow, received_ns: int) -> OrderBook:
    return whole_book_of(row, symbol, parse_rfc3339(row.t), received_ns)


QUOTE_ROWS: Final = Rows("quotes", "q", _QuoteRow, _to_quote)
TRADE_ROWS: Final = Rows("trades", "t", _TradeRow, _to_trade)
"""Without the trades that did not take place: those that were canceled, or replaced by a correct
one."""
BAR_ROWS: Final = Rows("bars", "b", _BarRow, _to_bar)
DAILY_BAR_ROWS: Final = Rows("bars", "d", _BarRow, _to_daily_bar)
BOOK_ROWS: Final = Rows("orderbooks", "o", _BookRow, _to_book)
ARTICLES: Final = _Articles()
