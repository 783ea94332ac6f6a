"""Frames to records and control messages, in both encodings."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from mdservice.errors import FeedRefused, FeedUnavailable
from mdservice.feed import subscriptions
from mdservice.feed.alpaca.codec import Codec, Encoding, Frame
from mdservice.feed.alpaca.messages import ErrorMessage, Subscription, Success
from mdservice.feed.driver import Acknowledged, Received, RequestRefused
from mdservice.feed.subscriptions import Followed
from mdservice.model.feeds import Topic
from mdservice.model.kinds import QUOTES
from mdservice.model.quote import Quote

T = "2026-11-20T15:51:44.208912345Z"
T_S = 1_795_189_904
T_NS = T_S * 10**9 + 208_912_345
RECEIVED_NS = T_NS + 1_000_000

QUOTE: dict[str, Any] = {
    "T": "q", "S": "AAPL", "bx": "V", "bp": 187.12, "bs": 2, "ax": "V", "ap": 187.15, "as": 3,
    "c": ["R"], "z": "C", "t": T,
}  # fmt: skip
CONTROLS = {
    "greeting": ({"T": "success", "msg": "connected"}, Success("connected")),
    "login": ({"T": "success", "msg": "authenticated"}, Success("authenticated")),
    "error": (
        {"T": "error", "code": 406, "msg": "connection limit exceeded"},
        ErrorMessage(406, "connection limit exceeded"),
    ),
    "error without a text": ({"T": "error", "code": 500}, ErrorMessage(500, "")),
    "subscription": (
        {"T": "subscription", "trades": [], "quotes": ["AAPL"], "bars": [], "updatedBars": []},
        Subscription(trades=[], quotes=["AAPL"], bars=[], updatedBars=[]),
    ),
    "subscription to nothing": (
        {"T": "subscription", "trades": [], "quotes": None},
        Subscription(trades=[]),
    ),
}
EXPECTED = Quote("AAPL", 187.12, 187.15, 2, 3, T_NS, RECEIVED_NS)


def other(**changes: Any) -> dict[str, Any]:
    return {**QUOTE, **changes}


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in QUOTE.items() if key != name}


@pytest.fixture(params=["json", "msgpack"])
def encoding(request: pytest.FixtureRequest) -> Encoding:
    return request.param


def frame(encoding: Encoding, *messages: Any) -> Frame:
    """A frame as the server sends it: written by the plainest means there are."""
    if encoding == "json":
        return json.dumps(messages)
    return msgspec.msgpack.encode(messages)


def decode(encoding: Encoding, *frames: Frame) -> Received:
    return Codec(encoding).decode(frames, RECEIVED_NS)


# Symbols

BAD_SYMBOLS: dict[str, Any] = {
    "a path": "../x\r\n",
    "blanks": "   ",
    "a blank within": "A B",
    "a line end behind": "AAPL\n",
    "NUL": "A\0",
    "ESC": "\x1b[2J",
    "60 letters": "A" * 60,
    "33 letters": "A" * 33,
    "every symbol": "*",
    "nothing": "",
    "a dot first": ".A",
    "a letter of no ASCII": "\u00c4",
    "a wide letter": "\uff21",
    "half a surrogate pair": "A\ud800",
    "a number": 7,
    "null": None,
    "a list": ["AAPL"],
}
bad_symbols = pytest.mark.parametrize("kind", BAD_SYMBOLS)


def frame_of_any(encoding: Encoding, *messages: Any) -> Frame:
    """As :func:`frame`, also with half a surrogate pair, which msgpack has as broken UTF-8."""
    if encoding == "json":
        return json.dumps(messages)
    plain = json.loads(json.dumps(messages).replace("\\ud800", "###"))
    return msgspec.msgpack.encode(plain).replace(b"###", b"\xed\xa0\x80")


def topics(*symbols: str) -> frozenset[Topic]:
    return frozenset(Topic("quotes", symbol) for symbol in symbols)


def subscription(*symbols: Any) -> dict[str, Any]:
    return {"T": "subscription", "trades": [], "quotes": [*symbols], "bars": []}


@bad_symbols
def test_a_bad_symbol_costs_its_quote_alone(kind: str, encoding: Encoding) -> None:
    bad = other(S=BAD_SYMBOLS[kind])
    decoded = decode(encoding, frame_of_any(encoding, QUOTE, bad, QUOTE, bad))
    assert decoded == Received({QUOTES: [EXPECTED, EXPECTED]}, errors=2)


@bad_symbols
def test_a_bad_symbol_is_left_out_of_an_acknowledgement(kind: str, encoding: Encoding) -> None:
    message = subscription("AAPL", BAD_SYMBOLS[kind], "MSFT")
    decoded = decode(encoding, frame_of_any(encoding, QUOTE, message))
    (acknowledged,) = decoded.controls
    if kind == "every symbol":
        assert acknowledged == Acknowledged(topics("AAPL", "*", "MSFT"))
    else:
        assert acknowledged == Acknowledged(topics("AAPL", "MSFT"))
    assert decoded.of(QUOTES) == [EXPECTED]
    assert decoded.errors == (kind != "every symbol")


def open_codec(encoding: Encoding, *symbols: str) -> tuple[Codec, Followed]:
    """A codec of a connection that has asked for the symbols, and got them."""
    followed = Followed()
    codec = Codec(encoding, followed)
    followed.ask(topics(*symbols))
    codec.decode([frame(encoding, subscription(*symbols))], 0)
    followed.answered()
    return codec, followed


def taken(codec: Codec, *messages: Any) -> tuple[list[str], int]:
    """The symbols of the quotes that are taken, and how many quotes are not followed."""
    decoded = codec.decode([frame(codec.encoding, *messages)], 0)
    assert decoded.errors == 0
    return [quote.symbol for quote in decoded.of(QUOTES)], decoded.unfollowed


def test_a_symbol_that_is_not_followed_is_dropped_and_counted(encoding: Encoding) -> None:
    codec, _ = open_codec(encoding, "AAPL")
    quotes = [other(S=symbol) for symbol in ("AAPL", "MSFT", "aapl", "AAPL", "MSFT")]
    assert taken(codec, *quotes) == (["AAPL", "AAPL"], 3)


def test_a_quote_before_the_acknowledgement_is_taken(encoding: Encoding) -> None:
    codec, followed = open_codec(encoding, "AAPL")
    followed.ask(topics("MSFT"))
    assert taken(codec, other(S="MSFT")) == (["MSFT"], 0)
    followed.answered()  # it was refused
    assert taken(codec, other(S="MSFT")) == ([], 1)


def test_a_quote_behind_the_end_of_its_subscription_is_dropped(encoding: Encoding) -> None:
    """Also where both come together."""
    codec, _ = open_codec(encoding, "AAPL", "MSFT")
    msft, aapl = other(S="MSFT"), other(S="AAPL")
    assert taken(codec, msft, subscription("AAPL"), msft, aapl) == (["MSFT", "AAPL"], 1)
    assert taken(codec, msft) == ([], 1)


def test_what_was_seen_under_every_symbol_ends_with_it(encoding: Encoding) -> None:
    codec, followed = open_codec(encoding, "*")
    followed.ask(topics("AAPL"))
    quotes = [other(S=symbol) for symbol in ("AAPL", "MSFT", "SPY")]
    assert taken(codec, *quotes, subscription("*", "AAPL")) == (["AAPL", "MSFT", "SPY"], 0)
    followed.answered()
    assert taken(codec, subscription("AAPL"), *quotes) == (["AAPL"], 2)


@pytest.mark.parametrize("symbol", ["MSFT", "aapl", "*"])
def test_what_is_acknowledged_without_a_request_is_not_followed(
    symbol: str, encoding: Encoding
) -> None:
    codec, _ = open_codec(encoding, "AAPL")
    quotes = [other(S=name) for name in ("MSFT", "aapl", "AAPL")]
    assert taken(codec, subscription("AAPL", symbol), *quotes) == (["AAPL"], 2)


@pytest.mark.parametrize("followed", ["AAPL", "*"])
@pytest.mark.parametrize("name", ["S{}", "../{}"])
def test_a_flood_of_symbols_costs_bounded_memory(
    monkeypatch: pytest.MonkeyPatch, followed: str, name: str
) -> None:
    most = 1_000
    monkeypatch.setattr(subscriptions, "MOST_SYMBOLS", most)
    codec, kept = open_codec("msgpack", followed)
    accepted = dropped = 0
    names = 3 * most
    for start in range(0, names, most // 2):
        numbers = range(start, start + most // 2)
        flood = frame("msgpack", *(other(S=name.format(number)) for number in numbers))
        decoded = codec.decode([flood], 0)
        accepted += len(decoded.of(QUOTES))
        dropped += decoded.unfollowed + decoded.errors
    assert accepted + dropped == names
    assert accepted == (most if (followed, name) == ("*", "S{}") else 0)
    assert len(kept.passed("quotes")) <= most
    if followed == "AAPL":
        assert taken(codec, QUOTE) == (["AAPL"], 0)


# What Alpaca sends


def test_quote(encoding: Encoding) -> None:
    assert decode(encoding, frame(encoding, QUOTE)) == Received({QUOTES: [EXPECTED]})


@pytest.mark.parametrize("kind", CONTROLS)
def test_control_messages(kind: str, encoding: Encoding) -> None:
    message, expected = CONTROLS[kind]
    assert Codec(encoding).control_messages(frame(encoding, message)) == [expected]


def test_an_acknowledgement_names_all_that_is_subscribed(encoding: Encoding) -> None:
    received = decode(encoding, frame(encoding, subscription("AAPL", "MSFT"), subscription()))
    assert received.controls == [
        Acknowledged(topics("AAPL", "MSFT")),
        Acknowledged(frozenset()),
    ]


def test_a_refused_request_is_its_answer(encoding: Encoding) -> None:
    message = {"T": "error", "code": 405, "msg": "symbol limit exceeded"}
    codec = Codec(encoding)
    (refused,) = codec.decode([frame(encoding, message)], RECEIVED_NS).controls
    assert isinstance(refused, RequestRefused)
    assert (refused.cause, refused.code) == ("symbol_limit", 405)
    assert refused.words == "symbol limit exceeded"
    assert codec.ended is None


def test_the_first_error_that_ends_the_connection_is_kept(encoding: Encoding) -> None:
    codec = Codec(encoding)
    errors = [{"T": "error", "code": code} for code in (403, 407, 406)]
    received = codec.decode([frame(encoding, *errors, QUOTE)], RECEIVED_NS)
    assert received == Received({QUOTES: [EXPECTED]})
    assert isinstance(codec.ended, FeedUnavailable)
    assert "407" in str(codec.ended)


def test_harmless_messages_say_nothing(encoding: Encoding) -> None:
    codec = Codec(encoding)
    messages = [{"T": "success", "msg": "authenticated"}, {"T": "error", "code": 403}]
    assert codec.decode([frame(encoding, *messages)], RECEIVED_NS) == Received()
    assert codec.ended is None


@pytest.mark.parametrize(
    "message",
    [
        {"T": "something new", "x": [1, {"y": None}]},
        {"T": ""},
    ],
)
def test_a_type_not_known_here_is_no_error(message: dict[str, Any], encoding: Encoding) -> None:
    decoded = decode(encoding, frame(encoding, QUOTE, message, QUOTE))
    assert decoded == Received({QUOTES: [EXPECTED, EXPECTED]}, others=1)


def test_frames_and_messages_keep_their_order(encoding: Encoding) -> None:
    def named(*symbols: str) -> Frame:
        return frame(encoding, *(other(S=symbol) for symbol in symbols))

    decoded = decode(encoding, named("A", "B"), named(), named("C"), named("A", "D"))
    assert [quote.symbol for quote in decoded.of(QUOTES)] == ["A", "B", "C", "A", "D"]
    assert {quote.ts_recv_ns for quote in decoded.of(QUOTES)} == {RECEIVED_NS}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"bp": 0, "bs": 0}, (0.0, 187.15, 0, 3)),
        ({"ap": 0, "as": 0}, (187.12, 0.0, 2, 0)),
        ({"bp": 190.0}, (190.0, 187.15, 2, 3)),
        ({"bp": 187}, (187.0, 187.15, 2, 3)),
        ({"bs": 0.5, "as": 2**40}, (187.12, 187.15, 0.5, 2**40)),
    ],
)
def test_prices_and_sizes_as_they_were_sent(
    changes: dict[str, Any], expected: tuple[float, ...], encoding: Encoding
) -> None:
    (quote,) = decode(encoding, frame(encoding, other(**changes))).of(QUOTES)
    assert (quote.bid, quote.ask, quote.bid_size, quote.ask_size) == expected


def test_only_what_is_used_has_to_be_there(encoding: Encoding) -> None:
    bare = {key: QUOTE[key] for key in ("t", "as", "ap", "bs", "bp", "S", "T")}
    assert decode(encoding, frame(encoding, bare)).of(QUOTES) == [EXPECTED]
    assert decode(encoding, frame(encoding, other(new="field", more=[{}]))).of(QUOTES) == [EXPECTED]


# Times


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        (T, T_NS),
        ("2026-11-20T15:51:44Z", T_S * 10**9),
        ("2026-11-20T15:51:44.2Z", T_S * 10**9 + 200_000_000),
        ("2026-11-20T10:51:44.208912345-05:00", T_NS),
    ],
)
def test_times_as_text(text: str, ns: int, encoding: Encoding) -> None:
    (quote,) = decode(encoding, frame(encoding, other(t=text))).of(QUOTES)
    assert quote.ts_event_ns == ns


def timestamp_64(seconds: int, nanoseconds: int) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(-1, (nanoseconds << 34 | seconds).to_bytes(8, "big"))


def timestamp_96(seconds: int, nanoseconds: int) -> msgspec.msgpack.Ext:
    data = nanoseconds.to_bytes(4, "big") + seconds.to_bytes(8, "big", signed=True)
    return msgspec.msgpack.Ext(-1, data)


@pytest.mark.parametrize(
    ("time", "ns"),
    [
        pytest.param(timestamp_64(T_S, 208_912_345), T_NS, id="64 bits"),
        pytest.param(timestamp_64(T_S, 999_999_999), T_S * 10**9 + 999_999_999, id="all but one"),
        pytest.param(timestamp_64(2**34 - 1, 1), (2**34 - 1) * 10**9 + 1, id="largest of 64"),
        pytest.param(msgspec.msgpack.Ext(-1, T_S.to_bytes(4, "big")), T_S * 10**9, id="32 bits"),
        pytest.param(timestamp_96(T_S, 208_912_345), T_NS, id="96 bits"),
        pytest.param(timestamp_96(-1, 1), -(10**9) + 1, id="before 1970"),
        pytest.param(timestamp_96(-62_135_596_800, 0), -62_135_596_800 * 10**9, id="Go's zero"),
    ],
)
def test_times_in_each_msgpack_form(time: msgspec.msgpack.Ext, ns: int) -> None:
    (quote,) = decode("msgpack", frame("msgpack", other(t=time))).of(QUOTES)
    assert quote.ts_event_ns == ns


# What is broken


BROKEN_MESSAGES: dict[str, Any] = {
    **{f"no {name}": without(name) for name in ("T", "S", "bp", "bs", "ap", "as", "t")},
    "null price": other(bp=None),
    "price as text": other(ap="187.15"),
    "negative price": other(bp=-0.01),
    "absurd price": other(ap=1e15),
    "negative size": other(bs=-1),
    "negative fraction of a size": other(**{"as": -0.5}),
    "size as text": other(bs="2"),
    "empty symbol": other(S=""),
    "endless symbol": other(S="A" * 65),
    "symbol as number": other(S=7),
    "time as number": other(t=T_NS),
    "time null": other(t=None),
    "no time at all": other(t="yesterday"),
    "a day that there is not": other(t="2026-02-30T00:00:00Z"),
    "time before the year 1": other(t="0001-01-01T00:00:00+23:59"),
    "time as a list": other(t=[T]),
    "type as number": other(T=1),
    "no map": 17,
    "null": None,
    "text": "q",
    "a list": [QUOTE],
    "an empty map": {},
    "error without a code": {"T": "error", "msg": "what?"},
    "error code as text": {"T": "error", "code": "406"},
    "success without a text": {"T": "success"},
    "subscription to a number": {"T": "subscription", "quotes": 1},
    "trade without a symbol": {"T": "t", "p": 1},
}
BROKEN_IN_MSGPACK: dict[str, Any] = {
    "not a number": other(bp=float("nan")),
    "infinite price": other(ap=float("inf")),
    "infinite size": other(bs=float("inf")),
    "size not a number": other(bs=float("nan")),
    "a thousand million nanoseconds": other(t=timestamp_64(T_S, 10**9)),
    "and in 96 bits": other(t=timestamp_96(T_S, 10**9)),
    "96 bits before the year 1": other(t=timestamp_96(-62_135_596_801, 0)),
    "96 bits after the year 9999": other(t=timestamp_96(253_402_300_800, 0)),
    "the first moment of 96 bits": other(t=timestamp_96(-(2**63), 0)),
    "a timestamp of no form": other(t=msgspec.msgpack.Ext(-1, b"123")),
    "an empty timestamp": other(t=msgspec.msgpack.Ext(-1, b"")),
    "an extension of another type": other(t=msgspec.msgpack.Ext(5, b"12345678")),
    "symbol in bytes": other(S=b"AAPL"),
}


def check_only_itself_is_lost(encoding: Encoding, broken: Any) -> None:
    codec = Codec(encoding)
    frames = (
        frame(encoding, other(S="A"), broken, other(S="B"), {"T": "error", "code": 406}),
        frame(encoding, other(S="C")),
    )
    decoded = codec.decode(frames, RECEIVED_NS)
    assert [quote.symbol for quote in decoded.of(QUOTES)] == ["A", "B", "C"]
    assert isinstance(codec.ended, FeedRefused)
    assert (codec.ended.code, decoded.controls) == (406, [])
    assert (decoded.errors, decoded.others) == (1, 0)


@pytest.mark.parametrize("kind", BROKEN_MESSAGES)
def test_a_broken_message_costs_only_itself(kind: str, encoding: Encoding) -> None:
    check_only_itself_is_lost(encoding, BROKEN_MESSAGES[kind])


@pytest.mark.parametrize("kind", BROKEN_IN_MSGPACK)
def test_what_only_msgpack_can_break_costs_only_itself(kind: str) -> None:
    check_only_itself_is_lost("msgpack", BROKEN_IN_MSGPACK[kind])


JSON_QUOTE = json.dumps(QUOTE)
MSGPACK_FRAME = msgspec.msgpack.encode([QUOTE])
BROKEN_FRAMES: dict[str, list[Frame]] = {
    "json": [
        "",
        "no JSON",
        "null",
        JSON_QUOTE,
        f"[{JSON_QUOTE}",
        f"[{JSON_QUOTE},]",
        f"[{JSON_QUOTE}] trailing",
        f"[{JSON_QUOTE}]".replace("187.12", "NaN"),
        "[" * 100_000,
        "\ud800",
        b"\xff\xfe",
        MSGPACK_FRAME,
    ],
    "msgpack": [
        b"",
        b"\xc1",
        MSGPACK_FRAME[:-1],
        MSGPACK_FRAME + b"\x00",
        msgspec.msgpack.encode(QUOTE),
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        f"[{JSON_QUOTE}]",
        f"[{JSON_QUOTE}]".encode(),
    ],
}


@pytest.mark.parametrize(
    ("encoding", "broken"),
    [(encoding, broken) for encoding, frames in BROKEN_FRAMES.items() for broken in frames],
    ids=lambda value: repr(value[:30]),
)
def test_a_broken_frame_costs_only_itself(encoding: Encoding, broken: Frame) -> None:
    good = frame(encoding, QUOTE)
    assert decode(encoding, good, broken, good) == Received({QUOTES: [EXPECTED] * 2}, errors=1)


def test_a_json_frame_may_come_as_bytes() -> None:
    assert decode("json", f"[{JSON_QUOTE}]".encode()).of(QUOTES) == [EXPECTED]


# What is sent


def test_requests_are_text_in_json_and_bytes_in_msgpack(encoding: Encoding) -> None:
    request = {"action": "subscribe", "quotes": ["AAPL", "BRK.B"]}
    sent = Codec(encoding).encode(request)
    if encoding == "json":
        assert sent == '{"action":"subscribe","quotes":["AAPL","BRK.B"]}'
    else:
        assert isinstance(sent, bytes)
        assert msgspec.msgpack.decode(sent) == request
