"""The references read the same quotes from the tape as the service does."""

from __future__ import annotations

import time

from mdservice.feed.alpaca.codec import Codec
from mdservice.model.kinds import QUOTES
from tests.bench import wire
from tests.bench.encodings import ENCODINGS
from tests.bench.tape import Tape, symbol_names

_FRAME_HEAD_BYTES = 4


def test_references_read_what_the_service_reads() -> None:
    now_ns = time.time_ns()
    tape = Tape(symbol_names(10), 10, ENCODINGS["msgpack"])
    payload = tape.next_frames(1, now_ns)[_FRAME_HEAD_BYTES:]
    ours = Codec("msgpack").decode([payload], now_ns).of(QUOTES)
    theirs = wire.decode_quotes(payload)
    assert len(ours) == 10
    assert [(q.symbol, q.bid, q.ask, q.bid_size, q.ask_size, q.ts_event_ns) for q in ours] == [
        (q.S, q.bp, q.ap, q.bs, q.as_, q.time_ns()) for q in theirs
    ]


def test_control_messages_are_no_quotes() -> None:
    frame = ENCODINGS["msgpack"].message([{"T": "subscription", "quotes": ["AAAA"]}])
    assert wire.decode_quotes(frame) == []
