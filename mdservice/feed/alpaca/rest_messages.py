"""The answers of Alpaca's market-data REST API as records, nanoseconds kept. Pure.

A row that breaks the schema is skipped and counted, as on the stream; its page stays.

Source: Alpaca, "Historical quotes" and "Latest quotes".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import attrs
import msgspec

from mdservice.feed.alpaca.messages import Price, Size, without_lone_surrogates
from mdservice.model.kinds import QUOTES, Kind, R
from mdservice.model.quote import Quote
from mdservice.model.timestamps import parse_rfc3339

__all__ = ["ROWS", "Answer", "Rows", "decode_refusal"]


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


class _Row(msgspec.Struct, gc=False):
    """``{"t":"2026-11-20T15:51:44.2Z","bp":187.12,"bs":2,"ap":187.15,"as":3}`` and more."""

    t: str
    bp: Price
    bs: Size
    ap: Price
    ask_size: Size = msgspec.field(name="as")


class _Refusal(msgspec.Struct):
    code: int | None = None
    message: str = ""


class Rows(Generic[R]):
    """Decodes answers with records of one kind.

    Args:
        kind: The kind; its channel is the field of the answers that has the rows.
        row: The msgspec type of a row.
        to_record: Makes a record from a symbol, a row and the time of reception.
    """

    def __init__(
        self, kind: Kind[R], row: type[_T], to_record: Callable[[str, _T, int], R]
    ) -> None:
        self._channel = kind.channel
        self._row: Any = row
        self._to_record: Callable[[str, Any, int], R] = to_record
        self._page = self._answer("Page", dict[str, list[row]])  # type: ignore[valid-type]
        self._raw_page = self._answer("RawPage", dict[str, list[msgspec.Raw]])
        self._latest = self._answer("Latest", dict[str, msgspec.Raw])

    def _answer(self, name: str, rows: Any) -> Any:
        return msgspec.defstruct(
            name,
            [
                ("rows", rows | None, msgspec.field(default=None, name=self._channel)),
                ("next_page_token", str | None, None),
            ],
        )

    def page(self, content: bytes, received_ns: int) -> Answer[R]:
        """One page of past records.

        Args:
            content: ``{"quotes":{"AAPL":[row, …]},"next_page_token":"…"}``; both may be null.
            received_ns: When it came, UTC nanoseconds.

        Raises:
            ValueError: The content is not such a page.
        """
        to_record = self._to_record
        try:
            page = msgspec.json.decode(content, type=self._page)
            return Answer(
                [
                    to_record(symbol, row, received_ns)
                    for symbol, rows in (page.rows or {}).items()
                    for row in rows
                ],
                0,
                page.next_page_token or None,
            )
        except ValueError:  # of msgspec, or of a time: look at each row
            raw = _decode(content, self._raw_page)
        pairs = ((symbol, row) for symbol, rows in (raw.rows or {}).items() for row in rows)
        return self._row_by_row(pairs, received_ns, raw.next_page_token or None)

    def latest(self, content: bytes, received_ns: int) -> Answer[R]:
        """The newest record of each symbol.

        Args:
            content: ``{"quotes":{"AAPL":row}}``.
            received_ns: When it came, UTC nanoseconds.

        Raises:
            ValueError: The content is not such an answer.
        """
        latest = _decode(content, self._latest)
        return self._row_by_row(iter((latest.rows or {}).items()), received_ns, None)

    def _row_by_row(
        self, rows: Iterator[tuple[str, msgspec.Raw]], received_ns: int, next_page: str | None
    ) -> Answer[R]:
        records, broken = [], 0
        for symbol, raw in rows:
            try:
                row = msgspec.json.decode(raw, type=self._row)
                records.append(self._to_record(symbol, row, received_ns))
            except ValueError:
                broken += 1
        if broken and not records:
            raise ValueError(f"none of its rows is one of {self._channel}")
        return Answer(records, broken, next_page)


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


def _to_quote(symbol: str, row: _Row, received_ns: int) -> Quote:
    event_ns = parse_rfc3339(row.t)
    return Quote(symbol, row.bp, row.ap, row.bs, row.ask_size, event_ns, received_ns)


ROWS: Mapping[Kind[Any], Rows[Any]] = {QUOTES: Rows(QUOTES, _Row, _to_quote)}
"""The decoder of each kind's rows; a kind without an entry has no history."""
