"""The answers of Alpaca's market-data REST API as quotes, nanoseconds kept. Pure.

A row that breaks the schema costs itself, as on the stream, and not its page.

Source: Alpaca, "Historical quotes" and "Latest quotes".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import attrs
import msgspec

from mdservice.feed.alpaca.messages import Price, Size, without_lone_surrogates
from mdservice.model.quote import Quote
from mdservice.model.timestamps import parse_rfc3339

__all__ = ["Answer", "decode_latest", "decode_page", "decode_refusal"]


@attrs.frozen
class Answer:
    """What one answer brought.

    Attributes:
        quotes: In the answer's order, ``seq`` 0.
        broken: How many rows could not be read.
        next_page: The token of the page that follows, or None.
    """

    quotes: list[Quote]
    broken: int
    next_page: str | None = None


_T = TypeVar("_T")


class _Row(msgspec.Struct, gc=False):
    """``{"t":"2026-11-20T15:51:44.2Z","bp":187.12,"bs":2,"ap":187.15,"as":3}`` and more."""

    t: str
    bp: Price
    bs: Size
    ap: Price
    ask_size: Size = msgspec.field(name="as")


class _Page(msgspec.Struct):
    quotes: dict[str, list[_Row]] | None = None
    next_page_token: str | None = None


class _PageOfRaw(msgspec.Struct):
    quotes: dict[str, list[msgspec.Raw]] | None = None
    next_page_token: str | None = None


class _Latest(msgspec.Struct):
    quotes: dict[str, msgspec.Raw] | None = None


class _Refusal(msgspec.Struct):
    code: int | None = None
    message: str = ""


def decode_page(content: bytes, received_ns: int) -> Answer:
    """One page of past quotes.

    Args:
        content: ``{"quotes":{"AAPL":[row, …]},"next_page_token":"…"}``; both may be null.
        received_ns: When it came, UTC nanoseconds.

    Raises:
        ValueError: It is no such page.
    """
    try:
        page = msgspec.json.decode(content, type=_Page)
        return Answer(
            [
                _to_quote(symbol, row, received_ns)
                for symbol, rows in (page.quotes or {}).items()
                for row in rows
            ],
            0,
            page.next_page_token or None,
        )
    except ValueError:  # of msgspec, or of a time: look at each row
        raw = _decode(content, _PageOfRaw)
    pairs = ((symbol, row) for symbol, rows in (raw.quotes or {}).items() for row in rows)
    return _row_by_row(pairs, received_ns, raw.next_page_token or None)


def decode_latest(content: bytes, received_ns: int) -> Answer:
    """The newest quote of each symbol.

    Args:
        content: ``{"quotes":{"AAPL":row}}``.
        received_ns: When it came, UTC nanoseconds.

    Raises:
        ValueError: It is no such answer.
    """
    latest = _decode(content, _Latest)
    return _row_by_row(iter((latest.quotes or {}).items()), received_ns, None)


def decode_refusal(content: bytes) -> str:
    """Code and text of ``{"code":42210000,"message":"…"}``, or that there are none."""
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


def _row_by_row(
    rows: Iterator[tuple[str, msgspec.Raw]], received_ns: int, next_page: str | None
) -> Answer:
    quotes, broken = [], 0
    for symbol, raw in rows:
        try:
            quotes.append(_to_quote(symbol, msgspec.json.decode(raw, type=_Row), received_ns))
        except ValueError:
            broken += 1
    if broken and not quotes:
        raise ValueError("none of its rows is a quote")
    return Answer(quotes, broken, next_page)


def _to_quote(symbol: str, row: _Row, received_ns: int) -> Quote:
    event_ns = parse_rfc3339(row.t)
    return Quote(symbol, row.bp, row.ap, row.bs, row.ask_size, event_ns, received_ns)
