"""The feed's codec: frames of JSON and msgpack, rows of REST, and what becomes of their records."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

import msgspec

from mdservice.errors import FeedError
from mdservice.feed.alpaca.codec import Codec, Encoding, Frame
from mdservice.feed.alpaca.login import GREETING, check_success
from mdservice.feed.alpaca.rest_messages import (
    ARTICLES,
    BAR_ROWS,
    BOOK_ROWS,
    QUOTE_ROWS,
    TRADE_ROWS,
    Answers,
    decode_refusal,
)
from mdservice.feed.subscriptions import Followed
from mdservice.model.feeds import FEEDS, Topic
from mdservice.model.kinds import KINDS, Kind
from mdservice.relay.messages import messages_of, payload
from tests.records import make_record

__all__ = ["run", "seeds"]

_NOW_NS = 1_764_460_800_000_000_000
_MSGPACK, _TEXT, _FOLLOWED, _WIRE, _REST = 4, 8, 16, 32, 64
_ROWS: Final[tuple[Answers[Any], ...]] = (QUOTE_ROWS, TRADE_ROWS, BAR_ROWS, BOOK_ROWS, ARTICLES)
_ENCODINGS: Final[tuple[Encoding, ...]] = ("json", "msgpack")
_REFUSED: Final = (ValueError, RecursionError)
"""What the caller of a page of REST takes as an answer that cannot be read."""


def run(data: bytes) -> None:
    """The first byte chooses the feed, the encoding and what is followed."""
    if data[:1] and data[0] & _REST:
        _run_rest(data[0], data[1:])
    elif data:
        _run_stream(data[0], data[1:])


def _run_stream(choice: int, content: bytes) -> None:
    feed = FEEDS[choice % len(FEEDS)]
    encoding: Encoding = "msgpack" if choice & _MSGPACK else "json"
    frame: Frame = content.decode("utf-8", "surrogateescape") if choice & _TEXT else content
    followed = None
    if choice & _FOLLOWED:
        followed = Followed()
        followed.keep_wire = bool(choice & _WIRE)
        followed.ask([Topic(channel, "*") for channel in feed.channels])
    received = Codec(encoding, followed, feed).decode([frame, frame], _NOW_NS)
    for kind, records in received.records.items():
        _use(kind, records)
    with suppress(FeedError):
        check_success(frame, GREETING, feed)


def _run_rest(choice: int, content: bytes) -> None:
    rows = _ROWS[choice % 16 % len(_ROWS)]
    decode_refusal(content)
    for read in (rows.page, rows.latest):
        try:
            answer = read(content, _NOW_NS, keep_wire=bool(choice & _WIRE))
        except _REFUSED:
            continue
        for record in answer.records:
            kind = next(each for each in KINDS if isinstance(record, type(make_record(each))))
            _use(kind, [record])


def _use(kind: Kind[Any], records: list[Any]) -> None:
    """What publisher, readers and relay do with accepted records."""
    for record in records:
        written = kind.encode(record)
        again = kind.build(kind.parse(written))
        assert kind.identity(again) == kind.identity(record), written
    messages = messages_of(kind, records)
    msgspec.json.decode(payload(messages, "json"))
    # What the service does not read of a message goes on as it came.
    with suppress(UnicodeDecodeError, msgspec.ValidationError):
        msgspec.msgpack.decode(payload(messages, "msgpack"))


def seeds() -> Iterator[bytes]:
    """A message of every kind in both encodings, and control messages."""
    for kind in KINDS:
        messages = messages_of(kind, [make_record(kind)])
        number = next(i for i, feed in enumerate(FEEDS) if kind in feed.kinds)
        for encoding in _ENCODINGS:
            flags = _MSGPACK if encoding == "msgpack" else _TEXT
            for choice in (number | flags, number | flags | _FOLLOWED | _WIRE):
                yield bytes([choice]) + payload(messages, encoding)
    for control in (
        {"T": "success", "msg": "connected"},
        {"T": "error", "code": 405, "msg": "symbol limit exceeded"},
        {"T": "subscription", "trades": ["AAPL"], "quotes": ["*", 1], "bars": None},
        {"T": "new", "S": "A"},
    ):
        yield b"\x08" + msgspec.json.encode([control])
        yield b"\x04" + msgspec.msgpack.encode([control])
    at = "2026-11-20T15:51:44.2Z"
    quote = {"t": at, "bp": 1, "bs": 2, "ap": 3, "as": 4}
    trade = {"t": at, "p": 1, "s": 2, "i": 3, "x": "V", "c": ["@"]}
    article = {"id": 1, "headline": "a", "created_at": at, "updated_at": at, "symbols": ["A"]}
    pages = {
        0: {"quotes": {"AAPL": [quote]}, "next_page_token": "x"},
        1: {"trades": {"AAPL": trade}},
        4: {"news": [article], "next_page_token": None},
    }
    for number, page in pages.items():
        yield bytes([_REST | number]) + msgspec.json.encode(page)
