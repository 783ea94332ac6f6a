"""What the relay promises to any client: the protocol, the records, and the first values."""

from __future__ import annotations

import itertools
import json
import ssl
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.to_thread
import msgpack
import pytest
from websockets.exceptions import InvalidStatus
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

import mdservice
from tests.integration.conftest import eventually, patient
from tests.integration.outside_alpaca import CHANNELS, OutsideAlpaca
from tests.integration.relay.conftest import PREFIX, RelayService
from tests.integration.relay.relay_client import (
    AUTHENTICATED,
    CONNECTED,
    PATHS,
    House,
    RelayClient,
    article,
    at,
    comparable,
    minute,
    quote,
    row,
    trade,
)

ENCODINGS = pytest.mark.parametrize("encoding", ["json", "msgpack"])
FEEDS = pytest.mark.parametrize("feed", PATHS)
SERVED = [*PATHS.values(), "/v1beta2/crypto", "/v1beta2/crypto?exchanges=CBSE"]
NOT_SET_UP = [
    *("/v2/sip", "/v2/delayed_sip", "/v2/test", "/v1beta1/boats", "/v1beta1/overnight"),
    *("/v1beta3/crypto/us-1", "/v1beta3/crypto/eu-1", "/v1beta1/opra"),
]
UNKNOWN = ["/", "/v2", "/v2/other", "/v3/iex", "/v1beta1/iex", "/v1beta3/crypto", "/stream"]
HEADERS = {"APCA-API-KEY-ID": "key", "APCA-API-SECRET-KEY": "secret"}
_ids = itertools.count(52_983_525_000_000)


@pytest.fixture(scope="module")
def shared(module_stage: Any) -> House:
    """A service that follows nothing by itself."""
    return House(module_stage)


@pytest.fixture
def house(shared: House) -> Iterator[House]:
    yield shared
    shared.let_go()


def encoding_of(feed: str) -> str:
    """One that the feed allows."""
    return "msgpack" if feed == "options" else "json"


# The handshake and the login.


@ENCODINGS
def test_it_greets_first_and_logs_in_by_message(house: House, encoding: str) -> None:
    client = house.client(ready=False, encoding=encoding, login=None)
    assert client.answer(0) == CONNECTED
    assert client.ask(action="auth", key="any", secret="pair") == AUTHENTICATED
    client.subscribe(quotes=[house.symbol()])


@ENCODINGS
def test_it_logs_in_by_headers(house: House, encoding: str) -> None:
    client = house.client(ready=False, encoding=encoding, login=None, headers=HEADERS)
    assert client.answer(0) == CONNECTED
    assert client.answer(1) == AUTHENTICATED
    client.subscribe(quotes=[house.symbol()])


@pytest.mark.parametrize("path", SERVED)
def test_it_serves_the_paths_of_its_feeds(house: House, path: str) -> None:
    house.client(path, encoding="msgpack")


@pytest.mark.parametrize("path", NOT_SET_UP)
@pytest.mark.parametrize("by_headers", [False, True])
def test_a_feed_that_is_not_set_up_gets_409_after_the_login(
    house: House, path: str, by_headers: bool
) -> None:
    how: dict[str, Any] = {"login": None, "headers": HEADERS} if by_headers else {}
    client = house.client(path, ready=False, encoding="msgpack", **how)
    assert client.answer(0) == CONNECTED
    client.refused(409)
    assert AUTHENTICATED not in client.said()


@pytest.mark.parametrize("path", UNKNOWN)
def test_an_unknown_path_gets_404(house: House, path: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        RelayClient(house.service.url + path)
    assert refused.value.response.status_code == 404


def test_there_is_no_limit_of_one_connection(house: House) -> None:
    for _ in range(5):
        house.client()


def test_deflate_is_negotiated(house: House) -> None:
    symbol = house.symbol()
    clients = [
        house.client(compression="deflate"),
        house.client(compression="deflate", encoding="msgpack"),
        *(
            house.client(
                extensions=[
                    ClientPerMessageDeflateFactory(
                        server_no_context_takeover=server, client_no_context_takeover=client
                    )
                ]
            )
            for server, client in ((True, True), (False, True), (True, False))
        ),
        house.client(),
    ]
    assert [len(c.socket.protocol.extensions) for c in clients] == [1, 1, 1, 1, 1, 0]
    for client in clients:
        client.subscribe(quotes=[symbol])
    house.until_wanted("stocks", ("quotes", symbol))
    sent = [quote(symbol, number) for number in range(1, 200)]
    for start in range(0, len(sent), 20):
        house.alpaca.send("stocks", *sent[start : start + 20])
    for client in clients:
        assert client.wait("q", symbol, len(sent)) == [comparable(m) for m in sent]


@ENCODINGS
def test_pings_are_answered(house: House, encoding: str) -> None:
    client = house.client(encoding=encoding)
    assert client.socket.ping().wait(patient(10))


@ENCODINGS
def test_requests_may_come_in_fragments(house: House, encoding: str) -> None:
    client = house.client(encoding=encoding)
    symbols = [f"S{number}" for number in range(8_000)]
    message = {"action": "subscribe", "trades": symbols}
    if encoding == "msgpack":
        data: Any = msgpack.packb(message)
        client.send_raw(data[i : i + 32_768] for i in range(0, len(data), 32_768))
    else:
        text = json.dumps(message)
        client.send_raw(text[i : i + 32_768] for i in range(0, len(text), 32_768))
    assert set(client.answer(2)["trades"]) == set(symbols)
    client.unsubscribe(trades=symbols)


# Errors.


@ENCODINGS
def test_a_change_before_the_login_gets_401(house: House, encoding: str) -> None:
    client = house.client(ready=False, encoding=encoding, login=None)
    client.answer(0)
    client.send(action="subscribe", quotes=["AAPL"])
    client.refused(401)


@ENCODINGS
def test_a_second_login_gets_403(house: House, encoding: str) -> None:
    client = house.client(encoding=encoding)
    client.send(action="auth", key="key", secret="secret")
    client.refused(403)
    client.subscribe(quotes=[house.symbol()])


@pytest.mark.parametrize(
    "message",
    [
        b'{"action": "subscribe"',
        b"[]",
        b"\xff\xfe",
        {"action": "dance"},
        {"quotes": ["AAPL"]},
        {"action": "subscribe"},
        {"action": "subscribe", "quotes": "AAPL"},
        {"action": "subscribe", "quotes": [7]},
        {"action": "subscribe", "quotes": ["NO SYMBOL!"]},
        {"action": "subscribe", "prices": ["AAPL"]},
    ],
    ids=str,
)
def test_a_message_that_makes_no_sense_gets_400(house: House, message: Any) -> None:
    client = house.client()
    if isinstance(message, bytes):
        client.send_raw([message])  # a binary frame, as a careless client sends it
    else:
        client.send(**message)
    client.refused(400)
    assert client.open
    symbol = house.symbol()
    assert client.subscribe(quotes=[symbol])["quotes"] == [symbol]


@pytest.mark.parametrize(
    ("feed", "channel"),
    [
        ("stocks", "orderbooks"),
        ("stocks", "news"),
        ("crypto", "statuses"),
        ("crypto", "lulds"),
        ("options", "bars"),
        ("options", "orderbooks"),
        ("news", "quotes"),
    ],
)
def test_a_channel_that_the_feed_lacks_gets_410(house: House, feed: str, channel: str) -> None:
    client = house.client(feed, encoding=encoding_of(feed))
    client.send(action="subscribe", **{channel: [house.symbol(feed)]})
    client.refused(410)


def test_options_in_json_get_412(house: House) -> None:
    client = house.client("options", ready=False)
    client.until(lambda: client.said()[1:])
    if AUTHENTICATED in client.said():
        client.send(action="subscribe", quotes=[house.symbol("options")])
    client.refused(412)


def test_every_option_quote_gets_413(house: House) -> None:
    client = house.client("options", encoding="msgpack")
    client.send(action="subscribe", quotes=["*"])
    client.refused(413)
    assert client.subscribe(trades=[house.symbol("options")])["quotes"] == []


# Acknowledgements.


@ENCODINGS
@FEEDS
def test_an_acknowledgement_has_the_whole_state(house: House, feed: str, encoding: str) -> None:
    if (feed, encoding) == ("options", "json"):
        encoding = "msgpack"
    client = house.client(feed, encoding=encoding)
    one, two = house.symbol(feed), house.symbol(feed)
    channels = [c for c in CHANNELS[feed] if c not in {"corrections", "cancelErrors"}]
    state: dict[str, set[str]] = {channel: set() for channel in CHANNELS[feed]}

    def check(answer: dict[str, Any]) -> None:
        assert {c: set(s) for c, s in answer.items() if c != "T"} == state
        assert all(len(set(s)) == len(s) for c, s in answer.items() if c != "T")

    def put(channel: str, *symbols: str) -> None:
        state[channel] = set(symbols)
        if feed == "stocks" and channel == "trades":
            state["corrections"] = state["cancelErrors"] = set(symbols)

    for channel in channels:
        put(channel, one)
        check(client.subscribe(**{channel: [one]}))
    first = channels[0]
    put(first, one, two)
    check(client.subscribe(**{first: [one, two, two]}))
    put(first, two)
    check(client.unsubscribe(**{first: [one]}))
    check(client.unsubscribe(**{first: [one]}))
    for channel in channels:
        put(channel)
    check(client.unsubscribe(**{channel: [one, two] for channel in channels}))


def test_an_empty_list_changes_nothing(house: House) -> None:
    client = house.client()
    symbol = house.symbol()
    asked: dict[str, list[str]] = {"trades": [], "bars": [], "lulds": []}
    answer = client.subscribe(quotes=[symbol], **asked)
    assert (answer["quotes"], answer["trades"], answer["lulds"]) == ([symbol], [], [])


# Records.

BAR = {"o": 187.1, "h": 187.3, "l": 187.05, "c": 187.2, "v": 1200, "n": 14, "vw": 187.152512}
RECORDS: list[tuple[str, str, dict[str, Any]]] = [
    ("stocks", "quotes", {"T": "q", "bx": "V", "bp": 187.1, "bs": 100, "ax": "Q", "ap": 187.13,
                          "as": 200, "c": ["R", "O"], "z": "C"}),
    ("stocks", "quotes", {"T": "q", "bx": "V", "bp": 0, "bs": 0, "ax": "V", "ap": 0.0001,
                          "as": 1, "c": [], "z": "A"}),
    ("stocks", "trades", {"T": "t", "i": 71_675_577_320_004, "x": "D", "p": 187.1349, "s": 1,
                          "c": ["@", "F", "T", "I"], "z": "C"}),
    ("stocks", "corrections", {"T": "c", "x": "V", "oi": 1, "op": 10.5, "os": 3, "oc": ["@"],
                               "ci": 2, "cp": 10.25, "cs": 4, "cc": ["@", "I"], "z": "C"}),
    ("stocks", "cancelErrors", {"T": "x", "i": 9, "x": "V", "p": 10.5, "s": 3, "a": "E",
                                "z": "C"}),
    ("stocks", "bars", {"T": "b", **BAR}),
    ("stocks", "updatedBars", {"T": "u", **BAR}),
    ("stocks", "dailyBars", {"T": "d", **BAR}),
    ("stocks", "statuses", {"T": "s", "sc": "H", "sm": "Trading Halt", "rc": "T12",
                            "rm": "Halted; For information requested by NASDAQ", "z": "C"}),
    ("stocks", "lulds", {"T": "l", "u": 190.5, "d": 183.25, "i": "B", "z": "C"}),
    ("stocks", "imbalances", {"T": "i", "p": 187.4, "z": "C"}),
    ("crypto", "quotes", {"T": "q", "bp": 64000.5, "bs": 0.250000001, "ap": 64001.5, "as": 0.5}),
    ("crypto", "trades", {"T": "t", "i": 77, "p": 64001.25, "s": 1.5e-08, "tks": "B"}),
    ("crypto", "bars", {"T": "b", **BAR, "v": 0, "n": 0}),
    ("crypto", "updatedBars", {"T": "u", **BAR}),
    ("crypto", "dailyBars", {"T": "d", **BAR}),
    ("crypto", "orderbooks", {"T": "o", "r": True, "b": [{"p": 63999.5, "s": 1.5}],
                              "a": [{"p": 64002, "s": 2}]}),
    ("options", "quotes", {"T": "q", "bx": "C", "bp": 4.1, "bs": 10, "ax": "X", "ap": 4.3,
                           "as": 12, "c": "A"}),
    ("options", "trades", {"T": "t", "p": 4.2, "s": 3, "x": "C", "c": "a"}),
]  # fmt: skip


@ENCODINGS
@pytest.mark.parametrize("record", RECORDS, ids=lambda r: f"{r[0]}-{r[1]}")
def test_a_record_comes_as_the_feed_sent_it(
    house: House, record: tuple[str, str, dict[str, Any]], encoding: str
) -> None:
    feed, channel, fields = record
    if feed == "options":
        encoding = "msgpack"
    symbol = house.symbol(feed)
    asked = "trades" if channel in {"corrections", "cancelErrors"} else channel
    client = house.subscriber(feed, symbol, asked, encoding=encoding)
    t = minute() if fields["T"] in "bud" else at()
    message = {"T": fields["T"], "S": symbol, **fields, "t": t}
    house.alpaca.send(feed, message)
    assert client.wait(fields["T"], symbol, 1) == [comparable(message)]


@ENCODINGS
def test_an_article_comes_as_the_feed_sent_it(house: House, encoding: str) -> None:
    symbol = house.symbol()
    client = house.subscriber("news", symbol, "news", encoding=encoding)
    message = article(next(_ids), symbol, "MSFT", content="<p>" + "c" * 100_000 + "</p>")
    house.alpaca.send("news", message)
    assert client.wait("n", None, 1) == [comparable(message)]


@ENCODINGS
def test_a_field_that_is_new_at_the_feed_comes_too(house: House, encoding: str) -> None:
    symbol = house.symbol()
    client = house.subscriber("stocks", symbol, "trades", encoding=encoding)
    message = trade(symbol, next(_ids), later={"a": [1, None, "\u20ac"]})
    house.alpaca.send("stocks", message)
    assert client.wait("t", symbol, 1) == [comparable(message)]


def kinds(client: RelayClient) -> list[tuple[str, str]]:
    """What it got, sorted: the order across channels is not the feed's."""
    return sorted((m["T"], m["S"]) for m in client.heard())


@ENCODINGS
def test_a_client_gets_what_it_subscribed_and_nothing_else(house: House, encoding: str) -> None:
    one, two = house.symbol(), house.symbol()
    first = house.client(encoding=encoding)
    first.subscribe(trades=[one], quotes=[two])
    second = house.client(encoding=encoding)
    second.subscribe(trades=[one, two], quotes=[one])
    house.until_wanted("stocks", ("trades", one), ("trades", two), ("quotes", one),
                       ("quotes", two))  # fmt: skip
    ids = [next(_ids) for _ in range(4)]
    house.alpaca.send(
        "stocks",
        trade(one, ids[0]),
        quote(one),
        trade(two, ids[1]),
        {"T": "b", "S": one, **BAR, "t": minute()},
        quote(two),
        {"T": "x", "S": two, "i": 5, "x": "V", "p": 1, "s": 2, "a": "C", "z": "C", "t": at()},
        trade(one, ids[2]),
    )
    second.until(lambda: len(second.heard()) >= 5)
    first.until(lambda: len(first.heard()) >= 3)
    assert kinds(first) == [("q", two), ("t", one), ("t", one)]
    assert kinds(second) == sorted(
        [("q", one), ("t", one), ("t", one), ("t", two), ("x", two)],
    )
    first.unsubscribe(trades=[one])
    house.alpaca.send("stocks", trade(one, ids[3]), quote(two, 11))
    first.until(lambda: len(first.heard()) >= 4)
    second.until(lambda: len(second.heard()) >= 6)
    assert kinds(first) == sorted([("q", two), ("q", two), ("t", one), ("t", one)])


@ENCODINGS
def test_a_star_brings_every_symbol_of_the_channel(house: House, encoding: str) -> None:
    client = house.client(encoding=encoding)
    assert client.subscribe(statuses=["*"])["statuses"] == ["*"]
    house.until_wanted("stocks", ("statuses", "*"))
    symbols = [house.symbol() for _ in range(3)]
    sent = [{"T": "s", "S": s, "sc": "T", "sm": "", "rc": "", "rm": "", "t": at(), "z": "C"}
            for s in symbols]  # fmt: skip
    house.alpaca.send("stocks", *sent)
    client.until(lambda: len(client.heard("s")) >= 3)
    assert client.heard("s") == [comparable(m) for m in sent]
    client.unsubscribe(statuses=["*"])


@pytest.mark.parametrize("feed", ["stocks", "crypto", "news"])
def test_a_record_comes_once_where_a_star_and_a_symbol_want_it(house: House, feed: str) -> None:
    one, two = house.symbol(feed), house.symbol(feed)
    channel = "news" if feed == "news" else "trades"

    def record(*symbols: str) -> dict[str, Any]:
        made = article(next(_ids), *symbols) if feed == "news" else trade(symbols[0], next(_ids))
        house.alpaca.send(feed, made)
        return comparable(made)

    client = house.client(feed, encoding="msgpack")
    assert set(client.subscribe(**{channel: ["*", one, two]})[channel]) == {"*", one, two}
    house.until_wanted(feed, (channel, "*"))
    sent = [record(one, two), record(house.symbol(feed))]
    client.until(lambda: len(client.heard()) >= 2)
    assert set(client.unsubscribe(**{channel: ["*"]})[channel]) == {one, two}
    house.until_wanted(feed, (channel, one), (channel, two))
    record(house.symbol(feed))
    sent.append(record(two, one))
    client.until(lambda: len(client.heard()) >= 3)
    assert client.heard() == sent


def test_each_kind_of_bar_comes_to_those_who_want_that_kind(house: House) -> None:
    symbol = house.symbol()
    letters = {"bars": "b", "updatedBars": "u", "dailyBars": "d"}
    clients = {kind: house.subscriber("stocks", symbol, kind) for kind in letters}
    for number, letter in enumerate(letters.values()):
        bar = {"T": letter, "S": symbol, **BAR, "n": number, "t": minute(3)}
        house.alpaca.send("stocks", bar)
    for channel, client in clients.items():
        client.wait(letters[channel], symbol, 1)
    end = trade(symbol, next(_ids))
    for client in clients.values():
        client.subscribe(trades=[symbol])
    house.until_wanted("stocks", ("trades", symbol))
    house.alpaca.send("stocks", end)
    for channel, client in clients.items():
        client.wait("t", symbol, 1)
        assert {m["T"] for m in client.heard()} == {letters[channel], "t"}


def test_a_star_brings_all_news(house: House) -> None:
    client = house.subscriber("news", "*", "news")
    sent = [article(next(_ids)), article(next(_ids), house.symbol())]
    house.alpaca.send("news", *sent)
    client.until(lambda: len(client.heard("n")) >= 2)
    assert client.heard("n") == [comparable(m) for m in sent]


@ENCODINGS
def test_the_order_is_the_feeds_per_symbol_and_channel(house: House, encoding: str) -> None:
    symbols = [house.symbol() for _ in range(3)]
    client = house.client(encoding=encoding)
    client.subscribe(quotes=symbols, trades=symbols)
    for symbol in symbols:
        house.until_wanted("stocks", ("quotes", symbol), ("trades", symbol))
    sent = [
        quote(symbol, number) if number % 3 else trade(symbol, next(_ids))
        for number in range(1, 400)
        for symbol in symbols
    ]
    for start in range(0, len(sent), 50):
        house.alpaca.send("stocks", *sent[start : start + 50])
    client.until(lambda: len(client.heard()) >= len(sent))
    for kind, symbol in itertools.product("qt", symbols):
        assert client.heard(kind, symbol) == [
            comparable(m) for m in sent if (m["T"], m["S"]) == (kind, symbol)
        ]


@ENCODINGS
def test_nothing_is_missed_behind_the_feeds_acknowledgement(house: House, encoding: str) -> None:
    symbol = house.symbol()
    sent = [trade(symbol, next(_ids)) for _ in range(10)]
    house.alpaca.behind[symbol] = sent
    client = house.client(encoding=encoding)
    client.subscribe(trades=[symbol])
    assert client.wait("t", symbol, len(sent)) == [comparable(m) for m in sent]


def test_what_the_service_rejects_is_not_relayed(house: House) -> None:
    symbol = house.symbol()
    client = house.subscriber("stocks", symbol, "quotes", "trades")
    once, last = next(_ids), next(_ids)
    again = trade(symbol, once)
    house.alpaca.send("stocks", again, again, quote(symbol, 1))
    house.alpaca.send("stocks", quote(symbol, 2, t=at(5)), quote(symbol, 3), trade(symbol, last))
    client.wait("q", symbol, 2)
    client.wait("t", symbol, 2)  # the order across channels is not the feed's
    assert [m["bp"] for m in client.heard("q")] == [1, 3]
    assert [m["i"] for m in client.heard("t")] == [once, last]


def test_the_records_are_in_redis_too(house: House) -> None:
    symbol = house.symbol()
    client = house.subscriber("stocks", symbol, "quotes", "trades")
    number = next(_ids)
    house.alpaca.send("stocks", quote(symbol, 20.5), trade(symbol, number))
    client.wait("t", symbol, 1)
    eventually(lambda: house.redis.get(f"price:{symbol}") and house.redis.get(f"trade:{symbol}"))
    assert json.loads(house.redis.get(f"price:{symbol}"))["bid"] == 20.5
    assert json.loads(house.redis.get(f"trade:{symbol}"))["id"] == number


# First values.


def price_row(bid: float) -> dict[str, Any]:
    return row(quote("", bid))


@ENCODINGS
@pytest.mark.parametrize("feed", ["stocks", "crypto", "options"])
def test_a_subscriber_of_quotes_gets_the_latest_at_once(
    house: House, feed: str, encoding: str
) -> None:
    if feed == "options":
        encoding = "msgpack"
    symbol = house.symbol(feed)
    conditions = {"options": {"c": "A"}}.get(feed, {})
    first = house.subscriber(feed, symbol, "quotes", encoding=encoding_of(feed))
    message = quote(symbol, 12.5, **conditions)
    house.alpaca.send(feed, message)
    first.wait("q", symbol, 1)
    second = house.client(feed, encoding=encoding)
    answer = second.subscribe(quotes=[symbol])
    assert second.wait("q", symbol, 1) == [comparable(message)]
    assert second.messages.index(answer) < [m["T"] for m in second.messages].index("q")
    house.alpaca.send(feed, newer := quote(symbol, 13, **conditions))
    assert second.wait("q", symbol, 2) == [comparable(message), comparable(newer)]


@ENCODINGS
def test_the_latest_quote_comes_from_rest_where_the_stream_had_none(
    house: House, encoding: str
) -> None:
    symbol = house.symbol()
    house.alpaca.latest["stocks", "quotes"][symbol] = latest = row(
        quote(symbol, 14.25, t=at(86_000))
    )
    client = house.client(encoding=encoding)
    client.subscribe(quotes=[symbol])
    assert client.wait("q", symbol, 1) == [comparable({"T": "q", "S": symbol, **latest})]
    assert [*client.messages[-1]][:2] == ["T", "S"]


@ENCODINGS
def test_a_subscriber_of_order_books_gets_the_whole_book_at_once(
    house: House, encoding: str
) -> None:
    symbol = house.symbol("crypto")
    first = house.subscriber("crypto", symbol, "orderbooks")
    sent = [
        {"T": "o", "S": symbol, "r": True, "t": at(), "b": [{"p": 10, "s": 1}, {"p": 9, "s": 2}],
         "a": [{"p": 11, "s": 1}]},
        {"T": "o", "S": symbol, "t": at(), "b": [{"p": 9, "s": 0}, {"p": 9.5, "s": 4}], "a": []},
        {"T": "o", "S": symbol, "t": at(), "b": [], "a": [{"p": 11, "s": 3}, {"p": 12, "s": 5}]},
    ]  # fmt: skip
    house.alpaca.send("crypto", *sent)
    assert first.wait("o", symbol, 3) == [comparable(m) for m in sent]
    second = house.client("crypto", encoding=encoding)
    second.subscribe(orderbooks=[symbol])
    book = second.wait("o", symbol, 1)[0]
    assert book["r"] is True
    assert {(level["p"], level["s"]) for level in book["b"]} == {(10, 1), (9.5, 4)}
    assert {(level["p"], level["s"]) for level in book["a"]} == {(11, 3), (12, 5)}
    assert book["t"] == comparable(sent[-1])["t"]
    house.alpaca.send("crypto", change := {"T": "o", "S": symbol, "t": at(),
                                           "b": [{"p": 10, "s": 7}], "a": []})  # fmt: skip
    assert second.wait("o", symbol, 2)[1:] == [comparable(change)]
    assert first.wait("o", symbol, 4)[3:] == [comparable(change)]


# What the service shows.


def test_a_client_counts_among_the_sources_of_a_symbol(house: House) -> None:
    symbol = house.symbol()
    house.subscriber("stocks", symbol, "trades")
    assert house.service.sources(symbol) == ["relay"]
    house.service.program.subscribe(symbol)
    assert house.service.sources(symbol) == ["api", "relay"]
    channels = house.service.program.get(f"{PREFIX}/subscriptions")["channels"]
    eventually(lambda: house.wanted("stocks", "quotes", symbol))
    assert "trades" in channels[symbol]


def test_what_others_unsubscribe_stays_with_a_client(house: House) -> None:
    symbol = house.symbol()
    client = house.subscriber("stocks", symbol, "quotes")
    house.service.program.subscribe(symbol)
    house.service.program.post("unsubscribe", json={"symbols": [symbol]})
    assert house.service.sources(symbol) == ["relay"]
    house.alpaca.send("stocks", sent := quote(symbol, 11.5))
    assert client.wait("q", symbol, 1) == [comparable(sent)]


@pytest.mark.parametrize("feed", ["crypto", "options", "news"])
def test_a_connection_is_opened_when_a_client_needs_it(stage: Any, feed: str) -> None:
    house = House(stage)
    try:
        client = house.client(feed, encoding="msgpack")
        assert {c.feed for c in house.alpaca.clients} <= {"stocks"}
        symbol = house.symbol(feed)
        channel = "news" if feed == "news" else "trades"
        client.subscribe(**{channel: [symbol]})
        house.until_wanted(feed, (channel, symbol))
        message = article(1, symbol) if feed == "news" else trade(symbol, 1, c="a", x="C")
        if feed == "crypto":
            message = {"T": "t", "S": symbol, "i": 1, "p": 2, "s": 3, "tks": "S", "t": at()}
        house.alpaca.send(feed, message)
        assert client.until(client.heard) == [comparable(message)]
    finally:
        house.let_go()


def test_status_and_metrics_show_the_clients(house: House) -> None:
    eventually(lambda: not house.service.status["clients"], what=lambda: house.service.status)
    before = house.service.metrics()
    symbols = [house.symbol(), house.symbol()]
    client = house.client(encoding="msgpack")
    client.subscribe(trades=symbols)
    for symbol in symbols:
        house.until_wanted("stocks", ("trades", symbol))
    other = house.client("crypto")
    house.alpaca.send("stocks", *(trade(symbols[0], next(_ids)) for _ in range(10)))
    client.wait("t", symbols[0], 10)
    status = eventually(
        lambda: (s := house.service.status) and sum(c["sent"] for c in s["clients"]) >= 10 and s
    )
    assert status["address"] == house.service.address
    assert status["cut"] == 0
    assert len(status["clients"]) == 2
    by_path = {one["path"]: one for one in status["clients"]}
    first, second = by_path[PATHS["stocks"]], by_path[PATHS["crypto"]]
    for one in (first, second):
        assert one.keys() >= {"name", "path", "encoding", "connected_s", "symbols", "sent",
                              "backlog", "conflated"}  # fmt: skip
        assert isinstance(one["name"], str)
        assert one["connected_s"] >= 0
        assert one["conflated"] == 0
    assert (first["encoding"], second["encoding"]) == ("msgpack", "json")
    assert (first["symbols"], second["symbols"]) == (2, 0)
    assert first["backlog"] == 0
    metrics = house.service.metrics()
    assert metrics["mdservice_relay_clients"] == 2
    assert (
        metrics["mdservice_relay_messages_total"] >= before["mdservice_relay_messages_total"] + 10
    )
    assert metrics["mdservice_relay_conflated_total"] == 0
    assert metrics["mdservice_relay_cut_total"] == 0
    assert metrics['mdservice_relay_class_clients{class="local"}'] == 2
    assert metrics['mdservice_relay_class_clients{class="remote"}'] == 0
    assert (
        metrics['mdservice_relay_class_messages_total{class="local"}']
        == metrics["mdservice_relay_messages_total"]
    )
    other.close()
    client.close()
    eventually(lambda: not house.service.status["clients"], what=lambda: house.service.status)
    assert house.service.metrics()["mdservice_relay_clients"] == 0


def test_the_simulator_serves_every_path_of_stocks(stage: Any) -> None:
    service = RelayService(
        stage, MDSERVICE_FEED="simulator", MDSERVICE_REDIS_URL=stage.valkey().url
    ).start()
    paths = [PATHS["stocks"], *(p for p in NOT_SET_UP if "crypto" not in p and "opra" not in p)]
    clients = [RelayClient(service.url + path) for path in paths]
    try:
        for client in clients:
            client.ready().subscribe(quotes=["AAPL"], trades=["AAPL"])
        for client in clients:
            client.wait("q", "AAPL", 3)
    finally:
        for client in clients:
            client.close()


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_an_embedded_service_relays_too(stage: Any, backend: str) -> None:
    alpaca = OutsideAlpaca()
    stage._stack.callback(alpaca.close)
    address = f"127.0.0.1:{stage.free_port()}"
    env = alpaca.env(stage.valkey(), MDSERVICE_RELAY=address)
    settings = mdservice.load_settings(
        None, {}, {**env, "MDSERVICE_SOCKET": str(stage.folder() / "s")}
    )
    sent = trade("AAPL", next(_ids))

    def talk() -> list[dict[str, Any]]:
        client = RelayClient(f"ws://{address}/v2/iex", encoding="msgpack")
        try:
            client.ready().subscribe(trades=["AAPL"])
            eventually(lambda: "AAPL" in alpaca.wants("stocks", "trades"))
            alpaca.send("stocks", sent)
            return client.wait("t", "AAPL", 1)
        finally:
            client.close()

    async def embed() -> list[dict[str, Any]]:
        with anyio.fail_after(patient(60)):
            async with mdservice.open_service(settings) as service:
                while not service.readiness().ready:
                    await anyio.sleep(0.02)
                return await anyio.to_thread.run_sync(talk)

    assert anyio.run(embed, backend=backend) == [comparable(sent)]


# Access.


@pytest.fixture(scope="module")
def locked(module_stage: Any, certificate: Any) -> House:
    """A service that wants keys, over TLS."""
    return House(
        module_stage,
        certificate=certificate,
        MDSERVICE_RELAY_KEYS="desk:desk-s3cret,bot:bot-s3cret",
    )


@pytest.mark.parametrize("by_headers", [False, True])
@pytest.mark.parametrize(
    ("key", "secret", "accepted"),
    [
        ("desk", "desk-s3cret", True),
        ("bot", "bot-s3cret", True),
        ("desk", "bot-s3cret", False),
        ("other", "desk-s3cret", False),
        ("desk", "", False),
        ("PKOUT", "out-secret", False),
    ],
)
def test_only_its_own_keys_are_let_in(
    locked: House, certificate: Any, key: str, secret: str, accepted: bool, by_headers: bool
) -> None:
    context = ssl.create_default_context(cafile=str(certificate[0]))
    how: dict[str, Any] = {"login": (key, secret)}
    if by_headers:
        names = ("APCA-API-KEY-ID", "APCA-API-SECRET-KEY")
        how = {"login": None, "headers": dict(zip(names, (key, secret), strict=True))}
    try:
        client = locked.client(ready=False, ssl=context, **how)
        assert client.answer(0) == CONNECTED
        if accepted:
            assert client.answer(1) == AUTHENTICATED
            client.subscribe(quotes=[locked.symbol()])
        else:
            client.refused(402)
            assert AUTHENTICATED not in client.said()
    finally:
        locked.let_go()


def test_secrets_are_in_no_output(locked: House) -> None:
    shown = [locked.service.program.http.get(path).text for path in ("/status", "/metrics", "/")]
    shown += [locked.service.program.stdout, locked.service.program.stderr]
    assert not [text for text in shown if "s3cret" in text]


def test_off_loopback_keys_are_required(stage: Any) -> None:
    port = stage.free_port()
    program = stage.program("run", MDSERVICE_FEED="simulator", MDSERVICE_RELAY=f"0.0.0.0:{port}")
    assert program.code() == 78
    assert "MDSERVICE_RELAY_KEYS" in program.stderr


@pytest.mark.parametrize("setting", ["MDSERVICE_RELAY_CERT", "MDSERVICE_RELAY_KEY_FILE"])
def test_a_certificate_and_its_key_go_together(stage: Any, certificate: Any, setting: str) -> None:
    path = certificate[setting.endswith("KEY_FILE")]
    program = stage.program("run", MDSERVICE_FEED="simulator", **{setting: str(path)})
    assert program.code() == 78
    assert "MDSERVICE_RELAY_CERT" in program.stderr
    assert "MDSERVICE_RELAY_KEY_FILE" in program.stderr
