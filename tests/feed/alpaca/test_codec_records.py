"""Every kind of record, as Alpaca sends it, in both encodings."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.feed.alpaca.codec import Codec, Encoding, Frame, request
from mdservice.feed.driver import Acknowledged, Received
from mdservice.feed.subscriptions import Followed
from mdservice.model.bar import Bar
from mdservice.model.feeds import FEEDS, Topic
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
from mdservice.model.news import Article, article_identity
from mdservice.model.order_book import OrderBook
from mdservice.model.quote import Quote
from mdservice.model.timestamps import format_ns
from mdservice.model.trade import Cancel, Correction, Trade
from mdservice.model.trading_status import Imbalance, LimitBand, TradingStatus
from tests.examples import examples

T_S = 1_795_189_904
T_NS = T_S * 10**9 + 208_912_345
RECEIVED_NS = T_NS + 1_000_000
OPTION = "AAPL261218C00200000"


@attrs.frozen
class At:
    """A time in a message: text in JSON, an extension in msgpack."""

    ns: int = T_NS


TIME = At()
MINUTE = At(T_S // 60 * 60 * 10**9)

TRADE: dict[str, Any] = {
    "T": "t", "i": 96921, "S": "AAPL", "x": "D", "p": 126.55, "s": 1, "t": TIME, "c": ["@", "I"],
    "z": "C",
}  # fmt: skip
CRYPTO_TRADE: dict[str, Any] = {
    "T": "t", "S": "BTC/USD", "p": 66102.5, "s": 0.0012, "t": TIME, "i": 3447222699101865076,
    "tks": "B",
}  # fmt: skip
OPTION_TRADE: dict[str, Any] = {
    "T": "t", "S": OPTION, "p": 4.15, "s": 2, "t": TIME, "x": "C", "c": "S",
}  # fmt: skip
CORRECTION: dict[str, Any] = {
    "T": "c", "S": "EEM", "x": "M", "oi": 52983525, "op": 39.1582, "os": 440000, "oc": [" ", "7"],
    "ci": 52983581, "cp": 39.1682, "cs": 440001, "cc": [" "], "t": TIME, "z": "B",
}  # fmt: skip
CANCEL: dict[str, Any] = {
    "T": "x", "S": "GOOGL", "i": 465, "x": "D", "p": 105.31, "s": 300, "a": "C", "z": "C", "t": TIME,
}  # fmt: skip
BAR: dict[str, Any] = {
    "T": "b", "S": "SPY", "o": 388.985, "h": 389.13, "l": 388.975, "c": 389.12, "v": 49378,
    "n": 461, "vw": 389.062639, "t": MINUTE,
}  # fmt: skip
STATUS: dict[str, Any] = {
    "T": "s", "S": "AAPL", "sc": "H", "sm": "Trading Halt", "rc": "T12", "rm": "Info", "t": TIME,
    "z": "C",
}  # fmt: skip
LULD: dict[str, Any] = {
    "T": "l", "S": "IONM", "u": 3.24, "d": 2.65, "i": "B", "t": TIME, "z": "C",
}  # fmt: skip
IMBALANCE: dict[str, Any] = {"T": "i", "S": "INAQ.U", "p": 9.12, "z": "C", "t": TIME}
BOOK: dict[str, Any] = {
    "T": "o", "S": "BTC/USD", "t": TIME, "r": True,
    "b": [{"p": 66102.5, "s": 0.25}, {"p": 66100, "s": 3}],
    "a": [{"p": 66108.1, "s": 0.5}],
}  # fmt: skip
ARTICLE: dict[str, Any] = {
    "T": "n", "id": 24918784, "headline": "A “headline” 🎉", "summary": "", "author": "Someone",
    "created_at": At(T_S * 10**9), "updated_at": TIME, "url": "https://example.com/1",
    "content": "<p>…</p>", "symbols": ["AAPL", "BTCUSD"], "source": "benzinga",
}  # fmt: skip
QUOTE: dict[str, Any] = {
    "T": "q", "S": "AAPL", "bx": "V", "bp": 187.12, "bs": 2, "ax": "V", "ap": 187.15, "as": 3,
    "c": ["R"], "z": "C", "t": TIME,
}  # fmt: skip
CRYPTO_QUOTE: dict[str, Any] = {
    "T": "q", "S": "BTC/USD", "bp": 66102.5, "bs": 0.25, "ap": 66108.1, "as": 1.5, "t": TIME,
}  # fmt: skip
OPTION_QUOTE: dict[str, Any] = {
    "T": "q", "S": OPTION, "bx": "C", "bp": 0, "bs": 0, "ax": "X", "ap": 4.3, "as": 12, "t": TIME,
    "c": "A",
}  # fmt: skip

BAR_RECORD = Bar(
    "SPY", 388.985, 389.13, 388.975, 389.12, 49378, 461, 389.062639, MINUTE.ns, RECEIVED_NS
)
EXAMPLES: dict[str, tuple[dict[str, Any], Kind[Any], Any]] = {
    "quote": (QUOTE, QUOTES, Quote("AAPL", 187.12, 187.15, 2, 3, T_NS, RECEIVED_NS)),
    "quote of coins": (
        CRYPTO_QUOTE,
        QUOTES,
        Quote("BTC/USD", 66102.5, 66108.1, 0.25, 1.5, T_NS, RECEIVED_NS),
    ),
    "quote of an option": (OPTION_QUOTE, QUOTES, Quote(OPTION, 0, 4.3, 0, 12, T_NS, RECEIVED_NS)),
    "trade": (
        TRADE,
        TRADES,
        Trade("AAPL", 126.55, 1, "D", ("@", "I"), "C", 96921, T_NS, RECEIVED_NS),
    ),
    "trade of coins": (
        CRYPTO_TRADE,
        TRADES,
        Trade(
            "BTC/USD", 66102.5, 0.0012, None, (), None, 3447222699101865076, T_NS, RECEIVED_NS,
            taker_side="buy",
        ),
    ),
    "trade of an option": (
        OPTION_TRADE,
        TRADES,
        Trade(OPTION, 4.15, 2, "C", ("S",), None, None, T_NS, RECEIVED_NS),
    ),
    "correction": (
        CORRECTION,
        CORRECTIONS,
        Correction(
            "EEM", "M", "B", 52983525, 39.1582, 440000, (" ", "7"), 52983581, 39.1682, 440001,
            (" ",), T_NS, RECEIVED_NS,
        ),
    ),
    "cancel": (
        CANCEL,
        CANCELS,
        Cancel("GOOGL", "D", "C", 465, 105.31, 300, "cancel", T_NS, RECEIVED_NS),
    ),
    "bar": (BAR, BARS, BAR_RECORD),
    "updated bar": ({**BAR, "T": "u"}, BARS, BAR_RECORD),
    "daily bar": ({**BAR, "T": "d"}, DAILY_BARS, attrs.evolve(BAR_RECORD, daily=True)),
    "status": (
        STATUS,
        STATUSES,
        TradingStatus("AAPL", "H", "Trading Halt", "T12", "Info", "C", T_NS, RECEIVED_NS),
    ),
    "limit up, limit down": (
        LULD,
        LULDS,
        LimitBand("IONM", 3.24, 2.65, "B", "C", T_NS, RECEIVED_NS),
    ),
    "imbalance": (IMBALANCE, IMBALANCES, Imbalance("INAQ.U", 9.12, "C", T_NS, RECEIVED_NS)),
    "order book": (
        BOOK,
        ORDERBOOKS,
        OrderBook(
            "BTC/USD", ((66102.5, 0.25), (66100.0, 3)), ((66108.1, 0.5),), T_NS, RECEIVED_NS
        ),
    ),
    "article": (
        ARTICLE,
        NEWS,
        Article(
            24918784, "A “headline” 🎉", "", "Someone", "<p>…</p>", "https://example.com/1",
            "benzinga", ("AAPL", "BTCUSD"), "2026-11-20T15:51:44Z",
            "2026-11-20T15:51:44.208912345Z", T_NS, RECEIVED_NS,
        ),
    ),
}  # fmt: skip
REQUIRED: dict[str, tuple[str, ...]] = {
    "q": ("bp", "bs", "ap", "as"),
    "t": ("p", "s"),
    "b": ("o", "h", "l", "c", "v"),
    "u": ("o", "h", "l", "c", "v"),
    "d": ("o", "h", "l", "c", "v"),
}
"""The fields without which a message of a type is broken, besides symbol and time."""
every_kind = pytest.mark.parametrize("name", EXAMPLES)


@pytest.fixture(params=["json", "msgpack"])
def encoding(request: pytest.FixtureRequest) -> Encoding:
    chosen: Encoding = request.param
    return chosen


def text_of(ns: int) -> str:
    """As Go writes it: without trailing zeros."""
    return format_ns(ns)[:-1].rstrip("0").rstrip(".") + "Z"


def frame(encoding: Encoding, *messages: Any) -> Frame:
    """A frame as Alpaca sends it."""

    def sent(value: Any) -> Any:
        if isinstance(value, At):
            seconds, nanoseconds = divmod(value.ns, 10**9)
            data = (nanoseconds << 34 | seconds).to_bytes(8, "big")
            return text_of(value.ns) if encoding == "json" else msgspec.msgpack.Ext(-1, data)
        if isinstance(value, dict):
            return {key: sent(one) for key, one in value.items()}
        return [sent(one) for one in value] if isinstance(value, list) else value

    every = [sent(one) for one in messages]
    return json.dumps(every) if encoding == "json" else msgspec.msgpack.encode(every)


def decode(encoding: Encoding, *messages: Any) -> Received:
    return Codec(encoding).decode([frame(encoding, *messages)], RECEIVED_NS)


def all_attributes(record: Any) -> tuple[Any, ...]:
    """Also those that do not count for equality."""
    return attrs.astuple(record, recurse=False)


# What Alpaca sends


@every_kind
def test_a_message_is_a_record_of_its_kind(name: str, encoding: Encoding) -> None:
    message, kind, expected = EXAMPLES[name]
    received = decode(encoding, message, message)
    assert received == Received({kind: [expected, expected]})
    for record in received.of(kind):
        assert all_attributes(record) == all_attributes(expected)


@every_kind
def test_fields_that_are_not_used_do_not_matter(name: str, encoding: Encoding) -> None:
    message, kind, expected = EXAMPLES[name]
    assert decode(encoding, {**message, "new": [{"more": 1}]}).of(kind) == [expected]


@pytest.mark.parametrize("missing", ["null", "left out"])
@every_kind
def test_what_was_not_sent_is_none(name: str, missing: str, encoding: Encoding) -> None:
    message, kind, _ = EXAMPLES[name]
    needed = ("T", "S", "t", "id", "updated_at", *REQUIRED.get(message["T"], ()))
    bare = {key: value for key, value in message.items() if key in needed}
    if missing == "null":
        bare |= {key: None for key in message if key not in needed}
    received = decode(encoding, bare)
    assert received.errors == 0
    (record,) = received.of(kind)
    always = {
        "newest",
        "whole",
        "daily",
        "updated",
        "seq",
        "symbol",
        "id",
        "ts_event_ns",
        "ts_recv_ns",
    }
    always |= {"updated_at", "price", "size", "open", "high", "low", "close", "volume"}
    if kind is not QUOTES:
        left = attrs.asdict(record, recurse=False, filter=lambda field, _: field.name not in always)
        assert set(left.values()) <= {None, (), msgspec.UNSET}
    if kind is ORDERBOOKS:
        assert (record.bids, record.asks, record.whole) == ((), (), False)


def test_the_takers_side_of_a_crypto_trade(encoding: Encoding) -> None:
    sides = {"B": "buy", "S": "sell", "-": None, "": None, None: None}
    messages = [{**CRYPTO_TRADE, "tks": side} for side in sides]
    found = [trade.taker_side for trade in decode(encoding, *messages).of(TRADES)]
    assert found == list(sides.values())
    (stock,) = decode(encoding, TRADE).of(TRADES)
    assert stock.taker_side is msgspec.UNSET


def test_conditions_are_always_an_array(encoding: Encoding) -> None:
    sent: list[Any] = [["@", "I"], [], None, "S", " ", ""]
    found = decode(encoding, *({**TRADE, "c": one} for one in sent)).of(TRADES)
    assert [trade.conditions for trade in found] == [("@", "I"), (), (), ("S",), (" ",), ()]


def test_actions_of_a_cancel(encoding: Encoding) -> None:
    found = decode(encoding, *({**CANCEL, "a": one} for one in ("C", "E", "?", None))).of(CANCELS)
    assert [cancel.action for cancel in found] == ["cancel", "error", None, None]


def test_a_change_of_a_book_is_not_whole(encoding: Encoding) -> None:
    change = {**BOOK, "b": [{"p": 66102.5, "s": 0}], "a": []}
    messages = [{**change, "r": False}, {**change, "r": None}, change]
    books = decode(encoding, *messages).of(ORDERBOOKS)
    assert [book.whole for book in books] == [False, False, True]
    assert {(book.bids, book.asks) for book in books} == {(((66102.5, 0),), ())}


def test_an_article_without_an_update_has_the_time_of_its_creation(encoding: Encoding) -> None:
    (article,) = decode(encoding, {**ARTICLE, "updated_at": None}).of(NEWS)
    assert (article.updated_at, article.ts_event_ns) == (None, T_S * 10**9)


def test_an_article_has_one_identity_however_its_time_is_written() -> None:
    text = {**ARTICLE, "updated_at": "2026-11-20T15:51:44.208912345+00:00"}
    articles = [*decode("json", ARTICLE, text).of(NEWS), *decode("msgpack", ARTICLE, text).of(NEWS)]
    assert len({article_identity(article) for article in articles}) == 1
    assert len(articles) == 4


def test_a_bad_symbol_of_an_article_costs_itself(encoding: Encoding) -> None:
    received = decode(encoding, {**ARTICLE, "symbols": ["AAPL", "../x", "", "*", "MSFT"]})
    (article,) = received.of(NEWS)
    assert (article.symbols, received.errors) == (("AAPL", "MSFT"), 3)


# Many at once


def test_each_kind_has_one_list_and_trades_precede_their_corrections(encoding: Encoding) -> None:
    messages = [message for message, _, _ in EXAMPLES.values()]
    received = decode(encoding, *reversed(messages), *messages)
    assert list(received.records) == list(KINDS)
    for kind in KINDS:
        expected = [record for _, of, record in EXAMPLES.values() if of is kind]
        assert received.of(kind) == [*reversed(expected), *expected]
    assert (received.errors, received.others, received.unfollowed) == (0, 0, 0)


# Broken messages


def broken(message: dict[str, Any]) -> Iterable[tuple[str, dict[str, Any]]]:
    """The message with each of its fields spoiled in turn."""
    of_article = message["T"] == "n"
    yield from ((f"{key} is a map", {**message, key: {"a": 1}}) for key in message if key != "T")
    needed = ("id",) if of_article else ("S", "t", *REQUIRED.get(message["T"], ()))
    for key in needed:
        yield f"no {key}", {name: value for name, value in message.items() if name != key}
        yield f"{key} is null", {**message, key: None}
    prices = ("p", "o", "h", "l", "c", "vw", "bp", "ap", "op", "cp", "u", "d")
    sizes = ("s", "v", "n", "bs", "as", "os", "cs")
    for key in (*prices, *sizes):
        if isinstance(message.get(key), (int, float)):
            yield f"{key} is negative", {**message, key: -1}
            yield f"{key} is text", {**message, key: "1.5"}
        if key in prices and isinstance(message.get(key), (int, float)):
            yield f"{key} is absurd", {**message, key: 1e15}
    if of_article:
        yield "no time", {**message, "created_at": None, "updated_at": None}
        yield "yesterday", {**message, "updated_at": "yesterday"}
    else:
        yield "yesterday", {**message, "t": "yesterday"}
        yield "time as a number", {**message, "t": 17}
        yield "bad symbol", {**message, "S": "../x"}


BROKEN = {
    f"{name}: {what}": (message, kind)
    for name, (good, kind, _) in EXAMPLES.items()
    if kind is not QUOTES
    for what, message in broken(good)
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_message_costs_only_itself(name: str, encoding: Encoding) -> None:
    message, kind = BROKEN[name]
    good = next(one for one, of, _ in EXAMPLES.values() if of is kind)
    received = decode(encoding, QUOTE, good, message, good, QUOTE)
    assert (len(received.of(QUOTES)), len(received.of(kind))) == (2, 2)
    assert (received.errors, received.others, received.unfollowed) == (1, 0, 0)


# What is followed

CHANNEL_OF_TYPE = {
    "q": "quotes", "t": "trades", "c": "trades", "x": "trades", "b": "bars", "u": "updatedBars",
    "d": "dailyBars", "s": "statuses", "l": "lulds", "i": "imbalances", "o": "orderbooks",
    "n": "news",
}  # fmt: skip


def open_codec(encoding: Encoding, *topics: Topic, keep_wire: bool = False) -> Codec:
    """A codec of a connection that has asked for the topics, and got them."""
    followed = Followed()
    followed.keep_wire = keep_wire
    codec = Codec(encoding, followed)
    followed.ask(topics)
    state = {topic.channel: [] for topic in topics} | {"T": "subscription"}
    for topic in topics:
        state[topic.channel].append(topic.symbol)
    codec.decode([frame(encoding, state)], 0)
    followed.answered()
    return codec


@every_kind
def test_a_record_is_taken_only_where_its_channel_is_followed(
    name: str, encoding: Encoding
) -> None:
    message, kind, expected = EXAMPLES[name]
    symbol = message.get("S", "BTCUSD")
    channel = CHANNEL_OF_TYPE[message["T"]]
    others = [Topic(one, symbol) for one in CHANNEL_OF_TYPE.values() if one != channel]
    for topics, taken in (
        ([Topic(channel, symbol)], True),
        ([Topic(channel, "*")], True),
        ([Topic(channel, "MSFT"), *others], False),
    ):
        codec = open_codec(encoding, *topics)
        received = codec.decode([frame(encoding, message)] * 2, RECEIVED_NS)
        assert received.of(kind) == [expected] * 2 * taken
        assert (received.errors, received.unfollowed) == (0, 0 if taken else 2)


def test_news_without_symbols_is_taken_where_all_news_is_followed(encoding: Encoding) -> None:
    message = {**ARTICLE, "symbols": []}
    for symbol, taken in (("*", 1), ("AAPL", 0)):
        codec = open_codec(encoding, Topic("news", symbol))
        received = codec.decode([frame(encoding, message)], RECEIVED_NS)
        assert (len(received.of(NEWS)), received.unfollowed) == (taken, 1 - taken)


# Messages that are kept


def codec_that_keeps(encoding: Encoding, *, keep_wire: bool = True) -> Codec:
    topics = [Topic(channel, "*") for channel in dict.fromkeys(CHANNEL_OF_TYPE.values())]
    return open_codec(encoding, *topics, keep_wire=keep_wire)


def one(encoding: Encoding, message: dict[str, Any]) -> bytes:
    """The bytes of one message in its frame."""
    sent = frame(encoding, message)
    return sent.encode()[1:-1] if isinstance(sent, str) else sent[1:]


@every_kind
def test_a_record_may_keep_its_message(name: str, encoding: Encoding) -> None:
    message, kind, expected = EXAMPLES[name]
    messages = [message, {**message, "new": 1}, message]
    frames = [frame(encoding, *messages), frame(encoding, message)]
    found = codec_that_keeps(encoding).decode(frames, RECEIVED_NS).of(kind)
    assert [record.wire for record in found] == [one(encoding, m) for m in [*messages, message]]
    assert found == [expected] * 4
    assert {type(record.wire) for record in found} == {bytes}
    for record in codec_that_keeps(encoding, keep_wire=False).decode(frames, RECEIVED_NS).of(kind):
        assert record.wire is None


@pytest.mark.parametrize("spoil", [(), ({"T": "?"}, {"T": "q"}, {})], ids=["whole", "piecewise"])
def test_each_record_keeps_its_own_message(
    spoil: tuple[dict[str, Any], ...], encoding: Encoding
) -> None:
    examples = list(EXAMPLES.values())
    messages: list[dict[str, Any]] = []
    for number, (message, _, _) in enumerate(examples * 2):
        messages += [
            {**message, "new": number},
            {**message, "S": "../x", "symbols": []},
            {"T": "success", "msg": "connected"},
            *spoil,
        ]
    codec = open_codec(
        encoding,
        *(Topic(CHANNEL_OF_TYPE[m["T"]], m.get("S", "AAPL")) for m, _, _ in examples),
        keep_wire=True,
    )
    received = codec.decode([frame(encoding, *messages)], RECEIVED_NS)
    for kind in KINDS:
        expected = [m for m in messages[:: 3 + len(spoil)] if kind is kind_of(m)]
        assert [record.wire for record in received.of(kind)] == [one(encoding, m) for m in expected]


def kind_of(message: dict[str, Any]) -> Kind[Any]:
    return next(kind for sent, kind, _ in EXAMPLES.values() if sent["T"] == message["T"])


def test_a_kept_message_has_the_feeds_digits() -> None:
    wire = '{"S" : "AAPL", "T":"q", "bp":1.10,"bs":2e0, "ap":1.200,"as":3,"t":"%s"}'
    text = wire % text_of(T_NS)
    (quote,) = codec_that_keeps("json").decode([f"[ {text} ]"], RECEIVED_NS).of(QUOTES)
    assert quote.wire == text.encode()


def test_a_kept_message_is_text_where_its_clients_read_text() -> None:
    sent = (
        b'[{"T":"q","S":"AAPL","bp":1,"bs":2,"ap":3,"as":4,"t":"%b","ax":"\xff"}]'
        % text_of(T_NS).encode()
    )
    (quote,) = codec_that_keeps("json").decode([sent], RECEIVED_NS).of(QUOTES)
    assert b'"\xef\xbf\xbd"' in (quote.wire or b"")


# Requests and acknowledgements


def test_one_request_names_the_topics_by_channel_in_a_fixed_order() -> None:
    topics = [
        Topic("quotes", "AAPL"), Topic("lulds", "MSFT"), Topic("trades", "AAPL"),
        Topic("quotes", "MSFT"), Topic("bars", "*"),
    ]  # fmt: skip
    asked = request("subscribe", topics)
    assert asked == {
        "action": "subscribe",
        "trades": ["AAPL"],
        "quotes": ["AAPL", "MSFT"],
        "bars": ["*"],
        "lulds": ["MSFT"],
    }
    assert list(asked) == ["action", "trades", "quotes", "bars", "lulds"]
    assert request("unsubscribe", topics[:1]) == {"action": "unsubscribe", "quotes": ["AAPL"]}


def test_every_channel_of_every_feed_can_be_asked_for_and_acknowledged(encoding: Encoding) -> None:
    topics = [Topic(channel, "A") for feed in FEEDS for channel in feed.channels]
    asked = request("subscribe", topics)
    answer = {**asked, "T": "subscription", "corrections": ["B"], "cancelErrors": ["B"]}
    received = decode(encoding, answer)
    assert received == Received(controls=[Acknowledged(frozenset(topics))])


@pytest.mark.parametrize("channel", ["trades", "quotes", "updatedBars", "orderbooks", "news"])
def test_a_garbled_entry_of_an_acknowledgement_costs_itself(
    channel: str, encoding: Encoding
) -> None:
    answer = {
        "T": "subscription", "trades": ["AAPL"], "bars": None, "corrections": 7,
        channel: ["MSFT", 7, None, ["x"], "../x"],
    }  # fmt: skip
    received = decode(encoding, answer)
    trades = {Topic("trades", "AAPL")} if channel != "trades" else set()
    assert received.controls == [Acknowledged(frozenset(trades | {Topic(channel, "MSFT")}))]
    assert received.errors == 4


# Any record, as Alpaca would send it

quick = examples(60)
prices = st.floats(0, 1e15, exclude_max=True, allow_subnormal=False)
sizes = st.integers(0, 2**63) | st.floats(0, 1e18, exclude_max=True, allow_subnormal=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
symbols = st.from_regex(r"[A-Z][A-Z0-9.]{0,9}(/[A-Z]{1,5})?", fullmatch=True)
times = st.builds(At, st.integers(0, 2**34 * 10**9 - 1))
trade_ids = st.integers(0, 2**63) | texts
arrays = st.lists(texts, max_size=3)
levels = st.lists(st.fixed_dictionaries({"p": prices, "s": sizes}), max_size=3)


def message_of(tag: str, required: dict[str, Any], optional: dict[str, Any]) -> Any:
    """Messages with some of the optional fields, each of which may be null."""
    maybe = {key: st.none() | value for key, value in optional.items()}
    about = {"T": st.just(tag)} if tag == "n" else {"T": st.just(tag), "S": symbols, "t": times}
    return st.fixed_dictionaries(about | required, optional=maybe)


def bars_of(tag: str) -> Any:
    ohlc = dict.fromkeys("ohlc", prices)
    return message_of(tag, {**ohlc, "v": sizes}, {"n": st.integers(0, 2**40), "vw": prices})


MESSAGES = {
    "t": message_of(
        "t",
        {"p": prices, "s": sizes},
        {
            "i": trade_ids, "x": texts, "c": arrays | texts, "z": texts,
            "tks": st.sampled_from("BS-"),
        },
    ),
    "c": message_of(
        "c",
        {},
        {
            "x": texts, "z": texts, "oi": trade_ids, "op": prices, "os": sizes, "oc": arrays,
            "ci": trade_ids, "cp": prices, "cs": sizes, "cc": arrays,
        },
    ),
    "x": message_of(
        "x",
        {},
        {"i": trade_ids, "x": texts, "p": prices, "s": sizes, "a": st.sampled_from("CE"), "z": texts},
    ),
    "b": bars_of("b"),
    "u": bars_of("u"),
    "d": bars_of("d"),
    "s": message_of("s", {}, dict.fromkeys(("sc", "sm", "rc", "rm", "z"), texts)),
    "l": message_of("l", {}, {"u": prices, "d": prices, "i": texts, "z": texts}),
    "i": message_of("i", {}, {"p": prices, "z": texts}),
    "o": message_of("o", {}, {"b": levels, "a": levels, "r": st.booleans()}),
    "n": message_of(
        "n",
        {"id": st.integers(0, 2**63), "updated_at": times},
        {
            **dict.fromkeys(("headline", "summary", "author", "content", "url", "source"), texts),
            "symbols": st.lists(symbols, max_size=3), "created_at": times,
        },
    ),
}  # fmt: skip
KIND_OF_TYPE = {message["T"]: kind for message, kind, _ in EXAMPLES.values()}
FIELDS_OF_BAR = {
    "open": "o", "high": "h", "low": "l", "close": "c", "volume": "v", "trade_count": "n",
    "vwap": "vw",
}  # fmt: skip
FIELDS_OF_TYPE: dict[str, dict[str, str]] = {
    "b": FIELDS_OF_BAR,
    "u": FIELDS_OF_BAR,
    "d": FIELDS_OF_BAR,
    "t": {"price": "p", "size": "s", "id": "i", "exchange": "x", "tape": "z"},
    "c": {
        "exchange": "x", "tape": "z", "original_id": "oi", "original_price": "op",
        "original_size": "os", "corrected_id": "ci", "corrected_price": "cp",
        "corrected_size": "cs",
    },
    "x": {"exchange": "x", "tape": "z", "id": "i", "price": "p", "size": "s"},
    "s": {
        "status_code": "sc", "status_message": "sm", "reason_code": "rc", "reason_message": "rm",
        "tape": "z",
    },
    "l": {"limit_up": "u", "limit_down": "d", "indicator": "i", "tape": "z"},
    "i": {"price": "p", "tape": "z"},
    "o": {},
    "n": {name: name for name in ("id", "headline", "summary", "author", "content", "url", "source")},
}  # fmt: skip


@pytest.mark.parametrize("tag", MESSAGES)
@pytest.mark.parametrize("encoding", ["json", "msgpack"])
@quick
@given(data=st.data())
def test_any_message_keeps_all_that_it_says(
    encoding: Encoding, tag: str, data: st.DataObject
) -> None:
    sent = data.draw(st.lists(MESSAGES[tag], min_size=1, max_size=3))
    kind = KIND_OF_TYPE[tag]
    received = decode(encoding, *sent)
    assert (received.errors, received.others) == (0, 0)
    for message, record in zip(sent, received.of(kind), strict=True):
        time = message["updated_at"] if tag == "n" else message["t"]
        assert (record.ts_event_ns, record.ts_recv_ns, record.seq) == (time.ns, RECEIVED_NS, 0)
        assert record.symbol == message.get("S", "*")
        for attribute, field in FIELDS_OF_TYPE[tag].items():
            assert getattr(record, attribute) == message.get(field), attribute
        if tag == "o":
            assert record.whole == (message.get("r") is True)
            assert [{"p": p, "s": s} for p, s in record.bids] == (message.get("b") or [])
            assert [{"p": p, "s": s} for p, s in record.asks] == (message.get("a") or [])
        if tag == "n":
            created = message.get("created_at")
            assert record.symbols == tuple(message.get("symbols") or ())
            assert record.created_at == (created and text_of(created.ns))
            assert record.updated_at == text_of(time.ns)
        assert attrs.evolve(kind.decode(kind.encode(record)), ts_recv_ns=RECEIVED_NS) == record
