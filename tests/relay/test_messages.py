"""Messages of the relay: the feed's own bytes, their other encoding, and those of bare records."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import attrs
import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.model.bar import Bar
from mdservice.model.kinds import (
    BARS,
    CANCELS,
    CORRECTIONS,
    DAILY_BARS,
    IMBALANCES,
    KINDS,
    LULDS,
    NEWS,
    ORDERBOOKS,
    QUOTES,
    STATUSES,
    TRADES,
    Kind,
)
from mdservice.model.quote import Quote
from mdservice.model.timestamps import EARLIEST_NS, LATEST_NS, format_ns
from mdservice.model.trade import Trade
from mdservice.relay.messages import Encoding, Message, messages_of, payload
from mdservice.simulator.wire import encode_items, encode_timestamp
from tests.records import make_record

OPTION = "AAPL261218C00200000"
AT_NS = 1_795_189_904_208_912_345
WHOLE_SECOND_NS = 1_795_189_904_000_000_000
ENCODINGS: tuple[Encoding, Encoding] = ("json", "msgpack")
TIMES = ("t", "created_at", "updated_at")

SENT: dict[str, tuple[Kind[Any], dict[str, Any]]] = {
    "quote": (QUOTES, {
        "T": "q", "S": "AAPL", "bx": "V", "bp": 187.12, "bs": 2, "ax": "V", "ap": 188, "as": 3,
        "c": ["R"], "z": "C", "t": AT_NS,
    }),
    "crypto quote": (QUOTES, {
        "T": "q", "S": "BTC/USD", "bp": 66102.5, "bs": 0.25, "ap": 66108.1, "as": 1e-9, "t": AT_NS,
    }),
    "option quote": (QUOTES, {
        "T": "q", "S": OPTION, "t": WHOLE_SECOND_NS, "bx": "C", "bp": 0, "bs": 0, "ax": "X",
        "ap": 4.3, "as": 12, "c": "A",
    }),
    "trade": (TRADES, {
        "T": "t", "S": "AAPL", "i": 52983525029461, "x": "D", "p": 126.55, "s": 1, "c": ["@", "I"],
        "z": "C", "t": AT_NS,
    }),
    "crypto trade": (TRADES, {
        "T": "t", "S": "BTC/USD", "i": 3447222699101865076, "p": 66102.5, "s": 0.0012, "tks": "B",
        "t": AT_NS,
    }),
    "option trade": (TRADES, {
        "T": "t", "S": OPTION, "p": 4.15, "s": 2, "x": "C", "c": "S", "t": AT_NS,
    }),
    "correction": (CORRECTIONS, {
        "T": "c", "S": "EEM", "x": "M", "oi": 5298, "op": 39.1, "os": 440, "oc": [" ", "7"],
        "ci": 5299, "cp": 39.2, "cs": 441, "cc": [], "z": "B", "t": AT_NS,
    }),
    "cancel": (CANCELS, {
        "T": "x", "S": "GOOGL", "i": 465, "x": "D", "p": 105.31, "s": 300, "a": "C", "z": "C",
        "t": AT_NS,
    }),
    "bar": (BARS, {
        "T": "b", "S": "SPY", "o": 388.985, "h": 389.13, "l": 388.975, "c": 389.12, "v": 49378,
        "n": 461, "vw": 389.062639, "t": WHOLE_SECOND_NS,
    }),
    "updated bar": (BARS, {
        "T": "u", "S": "SPY", "o": 388.985, "h": 389.13, "l": 388.975, "c": 389.12, "v": 49378,
        "n": 461, "vw": 389.062639, "t": WHOLE_SECOND_NS,
    }),
    "daily bar": (DAILY_BARS, {
        "T": "d", "S": "BTC/USD", "o": 388.985, "h": 389.13, "l": 388.975, "c": 389.12, "v": 0,
        "n": 0, "vw": 389.05, "t": WHOLE_SECOND_NS,
    }),
    "status": (STATUSES, {
        "T": "s", "S": "AAPL", "sc": "H", "sm": "Trading Halt", "rc": "T12", "rm": "Info",
        "z": "C", "t": AT_NS,
    }),
    "luld": (LULDS, {
        "T": "l", "S": "IONM", "u": 3.24, "d": 2.65, "i": "B", "z": "C", "t": AT_NS,
    }),
    "imbalance": (IMBALANCES, {"T": "i", "S": "INAQ.U", "p": 9.12, "z": "C", "t": AT_NS}),
    "order book": (ORDERBOOKS, {
        "T": "o", "S": "BTC/USD", "t": AT_NS, "r": True, "b": [{"p": 66102.5, "s": 0.25}],
        "a": [{"p": 66108, "s": 0}, {"p": 66109, "s": 3}],
    }),
    "change of a book": (ORDERBOOKS, {
        "T": "o", "S": "BTC/USD", "t": AT_NS, "b": [{"p": 66102.5, "s": 0}], "a": [],
    }),
    "article": (NEWS, {
        "T": "n", "id": 24918784, "headline": "A “headline” 🎉", "summary": "", "author": "N. N.",
        "created_at": WHOLE_SECOND_NS, "updated_at": AT_NS, "url": "https://news.invalid/1",
        "content": "<p>…</p>", "symbols": ["AAPL", "BTCUSD"], "source": "benzinga",
    }),
}  # fmt: skip
"""Messages with their times as nanoseconds."""
every_message = pytest.mark.parametrize("name", SENT)
every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)
both = pytest.mark.parametrize("encoding", ENCODINGS)


def sent(message: dict[str, Any], encoding: Encoding) -> bytes:
    """A message as the simulator encodes it, without the array around it."""
    timed = {
        name: encode_timestamp(value, encoding) if name in TIMES and isinstance(value, int) else value
        for name, value in message.items()
    }  # fmt: skip
    data = encode_items([timed], encoding).data
    return data[1:-1] if encoding == "json" else data[1:]


def read(data: bytes, encoding: Encoding) -> dict[str, Any]:
    """A message read by another decoder, with its times as nanoseconds."""
    if encoding == "json":
        read: dict[str, Any] = json.loads(data)
        return {n: nanoseconds(v) if n in TIMES else v for n, v in read.items()}
    read = msgpack.unpackb(data)
    return {n: v.to_unix_nano() if isinstance(v, msgpack.Timestamp) else v for n, v in read.items()}


def nanoseconds(text: str) -> int:
    """The time of a text that has no zero at the end of its fraction, and no bare dot."""
    second, dot, fraction = text.removesuffix("Z").partition(".")
    assert text.endswith("Z")
    assert fraction[-1:].isdecimal() == bool(dot)
    assert not fraction.endswith("0")
    moment = datetime.fromisoformat(second).replace(tzinfo=UTC)
    return round(moment.timestamp()) * 10**9 + int(fraction.ljust(9, "0"))


def with_wire(kind: Kind[Any], wire: bytes | None) -> Message:
    (message,) = messages_of(kind, [attrs.evolve(make_record(kind), wire=wire)])
    return message


def of_record(kind: Kind[Any], record: Any, encoding: Encoding = "json") -> dict[str, Any]:
    return read(Message(kind, record).encoded(encoding), encoding)


def first_key(data: bytes, encoding: Encoding) -> str:
    pairs = json.loads(data) if encoding == "json" else msgpack.unpackb(data)
    return next(iter(pairs))


# The feed's own bytes


@every_message
@both
def test_a_message_is_the_feeds_own_bytes(name: str, encoding: Encoding) -> None:
    kind, message = SENT[name]
    wire = sent(message, encoding)
    assert with_wire(kind, wire).encoded(encoding) is wire


@every_message
@both
def test_the_other_encoding_has_the_same_content(name: str, encoding: Encoding) -> None:
    kind, message = SENT[name]
    other: Encoding = "msgpack" if encoding == "json" else "json"
    made = with_wire(kind, sent(message, encoding))
    data = made.encoded(other)
    assert read(data, other) == message
    assert [type(one) for one in read(data, other).values()] == list(map(type, message.values()))
    assert first_key(data, other) == "T"
    assert made.encoded(other) is data, "converted once"


@every_message
def test_json_is_what_alpaca_writes(name: str) -> None:
    kind, message = SENT[name]
    floats = {n: float(v) if n in ("bp", "ap") else v for n, v in message.items()}
    data = with_wire(kind, sent(floats, "msgpack")).encoded("json")
    assert data == sent(message, "json")


def test_json_keeps_the_feeds_digits() -> None:
    wire = b'{"T":"q","S":"A","bp":1.10,"bs":2e0,"ap":1.2000000000000000001,"as":3,"t":"now"}'
    made = with_wire(QUOTES, wire)
    made.encoded("msgpack")
    assert made.encoded("json") == wire


@given(st.integers(EARLIEST_NS, LATEST_NS - 10**9))
def test_times_keep_their_nanoseconds(ns: int) -> None:
    text = format_ns(ns)[:-1].rstrip("0").rstrip(".") + "Z"
    wire = json.dumps({"T": "i", "S": "A", "t": text}).encode()
    packed = with_wire(IMBALANCES, wire).encoded("msgpack")
    assert msgpack.unpackb(packed)["t"].to_unix_nano() == ns
    assert json.loads(with_wire(IMBALANCES, packed).encoded("json"))["t"] == text


names = st.text(max_size=4).filter(lambda name: name not in ("T", *TIMES))
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


@given(
    st.dictionaries(names, values, max_size=20),
    st.integers(0, LATEST_NS),
    st.sampled_from([0, 1, 9]),
)
def test_any_message_comes_through_both_encodings(
    fields: dict[str, Any], at_ns: int, place: int
) -> None:  # fmt: skip
    pairs = list(fields.items())
    pairs.insert(place, ("t", encode_timestamp(at_ns % 2**34 * 10**9 + at_ns % 10**9, "json")))
    pairs.insert(place, ("T", "i"))
    message = dict(pairs)
    wire = msgspec.json.encode(message)
    there = with_wire(IMBALANCES, wire)
    back = with_wire(IMBALANCES, there.encoded("msgpack"))
    assert json.loads(back.encoded("json")) == json.loads(wire)
    for encoding in ENCODINGS:
        assert first_key(there.encoded(encoding), encoding) == "T"
        assert first_key(back.encoded(encoding), encoding) == "T"


# T first


@every_message
@both
def test_the_tag_comes_first_wherever_the_feed_has_it(name: str, encoding: Encoding) -> None:
    kind, message = SENT[name]
    wire = sent(dict(reversed(message.items())), encoding)
    made = with_wire(kind, wire)
    for one in ENCODINGS:
        assert read(made.encoded(one), one) == message
        assert first_key(made.encoded(one), one) == "T"
    assert made.channel == with_wire(kind, sent(message, encoding)).channel


def test_a_message_with_its_tag_put_first_keeps_its_digits() -> None:
    wire = b' {"S" : "A", "T" : "i" , "p" : 1.10 }'.strip()
    assert with_wire(IMBALANCES, wire).encoded("json") == b'{"T":"i","S":"A","p":1.10}'


# Channels and symbols


CHANNELS = {
    "quote": "quotes",
    "option quote": "quotes",
    "trade": "trades",
    "correction": "trades",
    "cancel": "trades",
    "bar": "bars",
    "updated bar": "updatedBars",
    "daily bar": "dailyBars",
    "status": "statuses",
    "luld": "lulds",
    "imbalance": "imbalances",
    "order book": "orderbooks",
    "article": "news",
}


@pytest.mark.parametrize("name", CHANNELS)
@both
def test_a_message_has_the_channel_by_which_it_is_subscribed(name: str, encoding: Encoding) -> None:
    kind, message = SENT[name]
    assert with_wire(kind, sent(message, encoding)).channel == CHANNELS[name]


def test_only_quotes_and_books_may_be_left_out_for_a_slow_client() -> None:
    left_out = [kind for kind in KINDS if Message(kind, make_record(kind)).latest_only]
    assert left_out == [QUOTES, ORDERBOOKS]


def test_an_article_has_symbols_and_others_have_one() -> None:
    for kind in KINDS:
        message = Message(kind, make_record(kind, "MSFT"))
        expected = ("", ("MSFT",)) if kind is NEWS else ("MSFT", ())
        assert (message.symbol, message.symbols) == expected


@every_message
@both
def test_the_size_is_that_of_the_feeds_bytes(name: str, encoding: Encoding) -> None:
    kind, message = SENT[name]
    wire = sent(message, encoding)
    assert with_wire(kind, wire).size == len(wire)


# Records without the feed's bytes


@every_kind
def test_a_bare_record_has_alpacas_names_with_the_tag_and_the_symbol_first(kind: Kind[Any]) -> None:
    message = of_record(kind, make_record(kind, at_ns=AT_NS))
    tags = {kind: sent["T"] for kind, sent in reversed(SENT.values())}
    assert next(iter(message)) == "T"
    if kind is not NEWS:
        assert list(message)[1] == "S"
        assert (message["S"], message["t"]) == ("AAPL", AT_NS)
    known = {name for of, sent in SENT.values() if of is kind for name in sent}
    assert set(message) <= known
    assert message["T"] == {**tags, BARS: "b"}[kind]
    assert Message(kind, make_record(kind)).size > 0


@every_kind
def test_a_bare_record_is_the_same_in_both_encodings(kind: Kind[Any]) -> None:
    record = make_record(kind, at_ns=AT_NS)
    assert of_record(kind, record, "msgpack") == of_record(kind, record, "json")
    packed = Message(kind, record).encoded("msgpack")
    times = [value for name, value in msgpack.unpackb(packed).items() if name in TIMES]
    assert times
    assert all(isinstance(value, msgpack.Timestamp) for value in times)


def test_a_bare_quote_has_no_exchanges() -> None:
    record = Quote("AAPL", 187.0, 187.15, 2, 3, AT_NS, AT_NS, 7)
    assert Message(QUOTES, record).encoded("json") == (
        b'{"T":"q","S":"AAPL","bp":187,"bs":2,"ap":187.15,"as":3,'
        b'"t":"2026-11-20T15:51:44.208912345Z"}'
    )
    packed = msgpack.unpackb(Message(QUOTES, record).encoded("msgpack"))
    assert (type(packed["bp"]), type(packed["bs"])) == (float, int)


@pytest.mark.parametrize(
    ("trade", "expected"),
    [
        (
            Trade("AAPL", 4.5, 2, "V", ("@", "I"), "C", 9, AT_NS, AT_NS),
            {"i": 9, "x": "V", "c": ["@", "I"], "z": "C"},
        ),
        (Trade("AAPL", 4.5, 2, "V", (), None, 9, AT_NS, AT_NS), {"i": 9, "x": "V", "c": []}),
        (Trade(OPTION, 4.5, 2, "C", ("S",), None, None, AT_NS, AT_NS), {"x": "C", "c": "S"}),
        (
            Trade("BTC/USD", 4.5, 2, None, (), None, 9, AT_NS, AT_NS, taker_side="sell"),
            {"i": 9, "tks": "S"},
        ),
        (
            Trade("BTC/USD", 4.5, 2, None, (), None, 9, AT_NS, AT_NS, taker_side=None),
            {"i": 9, "tks": "-"},
        ),
    ],
    ids=["stock", "stock without conditions", "option", "crypto", "crypto, unknown taker"],
)
@both
def test_a_bare_trade_has_the_fields_of_its_class(
    trade: Trade, expected: dict[str, Any], encoding: Encoding
) -> None:
    base = {"T": "t", "S": trade.symbol, "p": 4.5, "s": 2, "t": AT_NS}
    assert of_record(TRADES, trade, encoding) == base | expected


def test_a_bare_cancel_has_alpacas_action() -> None:
    record = make_record(CANCELS)
    actions = [
        of_record(CANCELS, attrs.evolve(record, action=action)).get("a")
        for action in ("cancel", "error", None)
    ]
    assert actions == ["C", "E", None]


def test_a_bare_bar_is_an_updated_one_where_it_replaces_another() -> None:
    bar: Bar = attrs.evolve(make_record(BARS), updated=True)
    message = Message(BARS, bar)
    assert (message.channel, json.loads(message.encoded("json"))["T"]) == ("updatedBars", "u")
    assert of_record(DAILY_BARS, bar)["T"] == "d"


# Whole books


@both
def test_the_whole_book_of_a_change_has_every_level(encoding: Encoding) -> None:
    _, change = SENT["change of a book"]
    book = attrs.evolve(
        make_record(ORDERBOOKS, "BTC/USD", at_ns=AT_NS),
        bids=((5.5, 1), (5.0, 0.25)),
        asks=((6.0, 2),),
        wire=sent(change, encoding),
    )
    message = Message(ORDERBOOKS, book)
    assert "r" not in read(message.encoded(encoding), encoding)
    whole = message.whole()
    assert message.whole() is whole, "made once"
    assert whole.whole() is whole
    assert read(whole.encoded(encoding), encoding) == {
        "T": "o",
        "S": "BTC/USD",
        "t": AT_NS,
        "r": True,
        "b": [{"p": 5.5, "s": 1}, {"p": 5.0, "s": 0.25}],
        "a": [{"p": 6.0, "s": 2}],
    }
    assert (whole.channel, whole.symbol, whole.latest_only) == ("orderbooks", "BTC/USD", True)


def test_other_records_are_whole() -> None:
    for kind in KINDS:
        message = Message(kind, make_record(kind))
        assert message.whole() is message


# What only one encoding can have


@pytest.mark.parametrize(
    ("wire", "encoding"),
    [
        (b'{"T":"i","S":"AAPL","p":1,"z":"C","t":"x","new":1e400}', "msgpack"),
        (b'{"S":"AAPL","T":"i","p":1,"z":"C","t":"x","\\ud800":1}', "msgpack"),
        (msgspec.msgpack.encode({"T": "i", "new": msgspec.msgpack.Ext(5, b"x")}), "json"),
        (msgspec.msgpack.encode({"T": "i", "new": {(1,): 1}}), "json"),
        (b"\x82\xa1T\xa1i\xa3new\xd7\xff" + b"\xff" * 8, "json"),
    ],
)
def test_where_bytes_cannot_be_converted_the_values_of_the_record_are_sent(
    wire: bytes, encoding: Encoding
) -> None:
    expected = of_record(IMBALANCES, make_record(IMBALANCES), encoding)
    assert read(with_wire(IMBALANCES, wire).encoded(encoding), encoding) == expected


def test_a_number_that_msgpack_does_not_have_is_text() -> None:
    wire = json.dumps({"T": "t", "i": 2**64, "new": [2**64, {"a": -(2**64)}], "s": 1}).encode()
    packed = with_wire(TRADES, wire).encoded("msgpack")
    assert msgpack.unpackb(packed) == {
        "T": "t", "i": str(2**64), "new": [str(2**64), {"a": str(-(2**64))}], "s": 1,
    }  # fmt: skip


def test_numbers_that_json_does_not_have_are_null() -> None:
    packed = msgspec.msgpack.encode({"T": "i", "p": float("nan"), "q": float("inf"), "r": 1e300})
    data = with_wire(IMBALANCES, packed).encoded("json")
    assert json.loads(data) == {"T": "i", "p": None, "q": None, "r": 1e300}


def test_times_that_are_none_stay_as_they_are() -> None:
    wire = b'{"T":"n","id":1,"created_at":"yesterday","updated_at":null}'
    packed = with_wire(NEWS, wire).encoded("msgpack")
    assert msgpack.unpackb(packed) == json.loads(wire)
    assert with_wire(NEWS, packed).encoded("json") == wire


# Frames


@both
@pytest.mark.parametrize("count", [0, 1, 15, 16, 65_535, 65_536])
def test_a_frame_is_the_array_of_its_messages(count: int, encoding: Encoding) -> None:
    kind, message = SENT["imbalance"]
    data = payload([with_wire(kind, sent(message, encoding))] * count, encoding)
    assert data == encode_items([msgspec.Raw(sent(message, encoding))] * count, encoding).data


@both
def test_a_frame_may_mix_messages_of_both_encodings(encoding: Encoding) -> None:
    messages = [
        with_wire(kind, sent(message, of)) for kind, message in SENT.values() for of in ENCODINGS
    ]
    data = payload(messages, encoding)
    parts = json.loads(data) if encoding == "json" else msgpack.unpackb(data)
    encoded = [
        msgspec.json.encode(part) if encoding == "json" else msgpack.packb(part) for part in parts
    ]
    expected = [message for _, message in SENT.values() for _ in ENCODINGS]
    assert [read(one, encoding) for one in encoded] == expected
