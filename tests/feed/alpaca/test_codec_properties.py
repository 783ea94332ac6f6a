"""Whatever comes: no frame raises, and no good message is lost next to a bad one."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.feed.alpaca.codec import CHANNELS, Codec, Encoding, Frame
from mdservice.feed.driver import Received
from mdservice.feed.subscriptions import Followed
from mdservice.model.feeds import Topic
from mdservice.model.kinds import QUOTES
from mdservice.model.symbol import EVERY_SYMBOL, is_symbol
from mdservice.model.timestamps import EARLIEST_NS, LATEST_NS
from mdservice.relay.messages import Message
from tests.examples import examples

quick = examples(80)
both = pytest.mark.parametrize("encoding", ["json", "msgpack"])

texts = st.text(max_size=10)
plain = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | texts
json_values = st.recursive(
    plain | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
extensions = st.builds(
    msgspec.msgpack.Ext,
    st.sampled_from([-1, -1, -1, 0, 5]),
    st.binary(max_size=16) | st.sampled_from([4, 8, 12]).flatmap(lambda n: st.binary(min_size=n, max_size=n)),
)  # fmt: skip
msgpack_values = st.recursive(
    plain | st.floats() | st.binary(max_size=10) | extensions,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
TAGS = [*"qtbduslcxion", "success", "error", "subscription", "m", ""]
TIME = "2026-11-20T15:51:44.208912345Z"


def near_misses(junk: st.SearchStrategy[Any], times: st.SearchStrategy[Any]) -> Any:
    """Maps with Alpaca's names, whose values are right, nearly right, or anything."""
    sizes = st.integers(-1, 2**64 - 1) | st.floats(0, 1e19) | junk
    prices = st.floats(-1, 1e16) | st.integers(0, 10**16) | junk
    optional = {
        "S": texts | junk,
        "bp": prices,
        "ap": prices,
        "bs": sizes,
        "as": sizes,
        "t": times | junk,
        **dict.fromkeys(("p", "o", "h", "l", "op", "cp", "u", "d", "vw"), prices),
        **dict.fromkeys(("s", "v", "os", "cs"), sizes),
        "i": texts | st.integers(0, 2**64 - 1) | junk,
        "c": prices | texts | st.lists(texts | junk, max_size=3),
        "b": st.lists(st.fixed_dictionaries({"p": prices, "s": sizes}), max_size=3) | junk,
        "r": st.booleans() | junk,
        "id": st.integers(0, 2**64 - 1) | junk,
        "updated_at": times | junk,
        "code": st.integers(400, 500) | junk,
        "msg": texts | junk,
        "quotes": st.lists(texts | junk, max_size=3) | junk,
    }
    likely_quote = st.fixed_dictionaries({"T": st.just("q"), **optional})
    likely = st.fixed_dictionaries({"T": st.sampled_from(TAGS), **optional})
    anything = st.fixed_dictionaries({}, optional={"T": st.sampled_from(TAGS) | junk, **optional})
    return likely_quote | likely | anything | junk


time_texts = st.datetimes().map(lambda moment: moment.isoformat() + "Z") | st.just(TIME)
json_messages = near_misses(json_values, time_texts)
msgpack_messages = near_misses(msgpack_values, time_texts | extensions)


def make_frame(encoding: Encoding, messages: list[Any]) -> Frame:
    if encoding == "json":
        return json.dumps(messages)
    return msgspec.msgpack.encode(messages)


def bad_symbols(message: Any) -> int:
    """How many of an acknowledgement's symbols are none; each text counts once."""
    if not isinstance(message, dict) or message.get("T") != "subscription":
        return 0
    symbols = message.get("quotes")
    symbols = symbols if isinstance(symbols, list) else []
    texts = {symbol for symbol in symbols if isinstance(symbol, str)}
    good = [text for text in texts if text == EVERY_SYMBOL or is_symbol(text)]
    others = [symbol for symbol in symbols if not isinstance(symbol, str)]
    return len(texts) - len(good) + len(others)


def check_fit_for_the_sinks(decoded: Received) -> None:
    """Whatever was accepted can be written, and as what it was."""
    for kind, records in decoded.records.items():
        for record in records:
            written = json.loads(kind.encode(record))
            assert written.get("symbol", EVERY_SYMBOL) == record.symbol
            assert EARLIEST_NS <= record.ts_event_ns <= LATEST_NS
    for quote in decoded.of(QUOTES):
        assert 0 <= quote.bid < 1e15
        assert 0 <= quote.ask < 1e15
        assert quote.bid_size >= 0
        assert quote.ask_size >= 0


@both
@quick
@given(data=st.data())
def test_no_good_message_is_lost_next_to_others(encoding: Encoding, data: st.DataObject) -> None:
    messages = json_messages if encoding == "json" else msgpack_messages
    junk = data.draw(st.lists(st.lists(messages, max_size=4), min_size=1, max_size=4))
    sent: list[Any] = []
    for number, between in enumerate(junk):
        sent += between
        sent.append(
            {"T": "q", "S": f"GOOD-{number}", "bp": 1, "bs": 1, "ap": 2, "as": 1, "t": TIME}
        )
    decoded = Codec(encoding).decode([make_frame(encoding, sent)], 0)
    found = [quote.symbol for quote in decoded.of(QUOTES) if quote.symbol.startswith("GOOD-")]
    assert found == [f"GOOD-{number}" for number in range(len(junk))]
    of_acknowledgements = sum(map(bad_symbols, sent))
    controls = Codec(encoding).control_messages(make_frame(encoding, sent))
    assert len(sent) + of_acknowledgements == (
        sum(map(len, decoded.records.values())) + len(controls) + decoded.errors + decoded.others
    ), "each message is counted once"
    check_fit_for_the_sinks(decoded)


def codec_that_keeps(encoding: Encoding, *, keep_wire: bool) -> Codec:
    followed = Followed()
    followed.keep_wire = keep_wire
    topics = [Topic(channel, EVERY_SYMBOL) for channel in CHANNELS]
    followed.ask(topics)
    followed.acknowledge(topics)
    return Codec(encoding, followed)


@both
@quick
@given(data=st.data())
def test_keeping_messages_changes_nothing_else(encoding: Encoding, data: st.DataObject) -> None:
    messages = json_messages if encoding == "json" else msgpack_messages
    good = {"T": "q", "S": "GOOD", "bp": 1, "bs": 1, "ap": 2, "as": 1, "t": TIME}
    sent = data.draw(st.lists(messages | st.just(good), max_size=6))
    frames = [make_frame(encoding, part) for part in (sent, [good], sent)]
    without = codec_that_keeps(encoding, keep_wire=False).decode(frames, 0)
    kept = codec_that_keeps(encoding, keep_wire=True).decode(frames, 0)
    assert kept == without
    assert list(kept.records) == list(without.records)
    for kind, records in kept.records.items():
        for record in records:
            assert record.wire is not None
            head = b"[" if encoding == "json" else b"\x91"
            alone = head + record.wire + (b"]" if encoding == "json" else b"")
            assert Codec(encoding).decode([alone], 0).of(kind) == [record]
            check_message(Message(kind, record))


def check_message(message: Message) -> None:
    """Whatever was accepted can be sent in both encodings, with its tag first."""
    raw = dict[str, msgspec.Raw]
    as_json = msgspec.json.decode(message.encoded("json"), type=raw)
    as_msgpack = msgspec.msgpack.decode(message.encoded("msgpack"), type=raw)
    assert next(iter(as_json)) == next(iter(as_msgpack)) == "T"


@both
@quick
@given(frames=st.lists(st.binary(max_size=64) | st.text(st.characters(), max_size=64), max_size=4))
def test_arbitrary_frames_never_raise(encoding: Encoding, frames: list[Frame]) -> None:
    good = make_frame(
        encoding, [{"T": "q", "S": "A", "bp": 1, "bs": 1, "ap": 2, "as": 1, "t": TIME}]
    )
    decoded = Codec(encoding).decode([good, *frames, good], 0)
    assert [decoded.of(QUOTES)[0].symbol, decoded.of(QUOTES)[-1].symbol] == ["A", "A"]
    check_fit_for_the_sinks(decoded)


@both
@examples(300)
@given(data=st.data())
def test_damaged_frames_never_raise(encoding: Encoding, data: st.DataObject) -> None:
    """A few bytes of a real frame changed, cut or added: nearer to the schema than noise."""
    quotes = [
        {"T": "q", "S": "AAPL", "bp": 187.12, "bs": 2, "ap": 187.15, "as": 3, "t": time}
        for time in (TIME, msgspec.msgpack.Ext(-1, bytes(8)), msgspec.msgpack.Ext(-1, bytes(12)))
    ]
    frame = make_frame(encoding, quotes[:1] if encoding == "json" else quotes)
    damaged = bytearray(frame.encode() if isinstance(frame, str) else frame)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(damaged) - 1)) if damaged else 0
        length = data.draw(st.integers(0, 3))
        damaged[place : place + length] = data.draw(st.binary(max_size=3))
    check_fit_for_the_sinks(Codec(encoding).decode([bytes(damaged)], 0))
