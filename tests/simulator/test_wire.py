"""Frames, checked with other decoders than the encoder's own."""

from __future__ import annotations

import json
from typing import Any, get_args

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.simulator.wire import (
    Encoding,
    SimQuote,
    decode_message,
    encode_messages,
    encode_quotes,
    encode_timestamp,
)

TIME_NS = 1_795_189_904_208_912_345
QUOTE = SimQuote("AAPL", 187.12, 188.0, 200, 300, TIME_NS, "V", "Q", ("R",), "C")
FIELDS = {"T": "q", "S": "AAPL", "bx": "V", "bp": 187.12, "bs": 200, "ax": "Q", "ap": 188}


def test_a_json_frame_is_text_with_nanoseconds() -> None:
    frame = encode_quotes([QUOTE], "json")
    assert frame.text
    (message,) = json.loads(frame.data)
    assert message == FIELDS | {
        "as": 300,
        "c": ["R"],
        "z": "C",
        "t": "2026-11-20T15:51:44.208912345Z",
    }
    assert b'"ap":188,' in frame.data, "as Go prints a whole number"


def test_a_msgpack_frame_is_binary_with_timestamp_extensions() -> None:
    frame = encode_quotes([QUOTE], "msgpack")
    assert not frame.text
    (message,) = msgpack.unpackb(frame.data)
    assert message.pop("t").to_unix_nano() == TIME_NS
    assert message == FIELDS | {"as": 300, "c": ["R"], "z": "C"}
    assert isinstance(message["ap"], float)


@pytest.mark.parametrize(
    ("ts_ns", "text"),
    [
        (TIME_NS, "2026-11-20T15:51:44.208912345Z"),
        (TIME_NS // 1_000_000 * 1_000_000, "2026-11-20T15:51:44.208Z"),
        (TIME_NS // 1_000_000_000 * 1_000_000_000, "2026-11-20T15:51:44Z"),
        (1_795_189_904_000_000_010, "2026-11-20T15:51:44.00000001Z"),
    ],
)
def test_trailing_zeros_of_the_fraction_are_cut(ts_ns: int, text: str) -> None:
    assert encode_timestamp(ts_ns, "json") == text


@given(st.integers(0, 2**34 * 10**9 - 1))
def test_msgpack_timestamps_keep_every_nanosecond(ts_ns: int) -> None:
    frame = encode_quotes([SimQuote("A", 1.0, 2.0, ts_event_ns=ts_ns)], "msgpack")
    assert msgpack.unpackb(frame.data)[0]["t"].to_unix_nano() == ts_ns


def test_a_quote_may_be_written_with_alpacas_names() -> None:
    assert SimQuote.from_wire({"S": "AAPL", "bp": 1.5, "ap": 2}) == SimQuote("AAPL", 1.5, 2)
    (message,) = json.loads(encode_quotes([QUOTE], "json").data)
    assert SimQuote.from_wire(message) == QUOTE
    assert SimQuote.from_wire({**message, "t": TIME_NS}) == QUOTE


def test_spoilt_frames_hold_the_good_quotes_too() -> None:
    messages = json.loads(encode_quotes([QUOTE, QUOTE], "json", spoil=True).data)
    assert [message["bp"] for message in messages] == [187.12, "no price", 187.12]


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_whole_numbers_under_t_become_timestamps(encoding: Any) -> None:
    data = encode_messages([{"T": "t", "S": "A", "t": TIME_NS}, {"T": "x"}], encoding).data
    if encoding == "json":
        assert json.loads(data)[0]["t"] == "2026-11-20T15:51:44.208912345Z"
    else:
        assert msgpack.unpackb(data)[0]["t"].to_unix_nano() == TIME_NS


def test_clients_messages_are_read_in_their_encoding_only() -> None:
    message = {"action": "subscribe", "quotes": ["AAPL"]}
    assert decode_message(json.dumps(message).encode(), "json") == message
    assert decode_message(msgpack.packb(message), "msgpack") == message
    assert decode_message(msgpack.packb(message), "json") is None
    assert decode_message(json.dumps(message).encode(), "msgpack") is None
    assert decode_message(b"[]", "json") is None


@given(st.binary(max_size=50))
def test_no_bytes_break_the_reader(payload: bytes) -> None:
    for encoding in get_args(Encoding):
        decode_message(payload, encoding)
