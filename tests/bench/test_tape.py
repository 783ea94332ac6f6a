"""The feed of the benchmark sends the same quotes in both encodings."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from mdservice.feed.alpaca.codec import Codec
from mdservice.model.kinds import QUOTES
from tests.bench.encodings import ENCODINGS
from tests.bench.tape import SPREAD_CENTS, Tape, bid_cents, quotes_of, symbol_names

_SYMBOLS = 200


def _payloads(data: bytes) -> list[bytes]:
    """The payloads of unmasked websocket frames."""
    payloads = []
    while data:
        length, head = data[1], 2
        if length == 126:
            length, head = int.from_bytes(data[2:4], "big"), 4
        payloads.append(data[head : head + length])
        data = data[head + length :]
    return payloads


@pytest.mark.parametrize("per_frame", [1, 10, 100])
@pytest.mark.parametrize("encoding", ["msgpack", "json"])
def test_service_reads_every_quote_of_a_tape(encoding: Any, per_frame: int) -> None:
    symbols = symbol_names(_SYMBOLS)
    tape = Tape(symbols, per_frame, ENCODINGS[encoding])
    codec = Codec(encoding)
    for cycle in range(3):
        now_ns = time.time_ns()
        payloads = _payloads(tape.next_frames(tape.frames_in_cycle, now_ns))
        assert len(payloads) == _SYMBOLS // per_frame
        frames = [data.decode() if encoding == "json" else data for data in payloads]
        quotes = codec.decode(frames, now_ns).of(QUOTES)
        assert [quote.symbol for quote in quotes] == symbols
        assert {quote.ts_event_ns for quote in quotes} == {now_ns}
        for index, quote in enumerate(quotes):
            cents = bid_cents(index, cycle)
            assert (quote.bid, quote.ask) == (cents / 100, (cents + SPREAD_CENTS) / 100)


def test_counts_the_quotes_of_each_symbol() -> None:
    assert [quotes_of(index, 3, 20, 10) for index in (0, 9, 10, 19)] == [2, 2, 1, 1]


def test_json_prices_end_where_their_digits_do() -> None:
    tape = Tape(symbol_names(10), 10, ENCODINGS["json"])
    tape.frames_sent = 99_999
    with pytest.raises(ValueError, match="digits"):
        tape.next_frames(1, 0)


def test_frames_are_whole_messages() -> None:
    (payload,) = _payloads(Tape(symbol_names(2), 2, ENCODINGS["json"]).next_frames(1, 0))
    assert [each["T"] for each in msgspec.json.decode(payload)] == ["q", "q"]
