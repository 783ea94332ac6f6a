"""The contract of every channel, from outside: records in, keys, events and answers out."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import anyio
import pytest

import mdservice
from tests.integration.conftest import patient
from tests.integration.outside_alpaca import OutsideAlpaca

OPTION = "AAPL261218C00200000"
CHANNELS = "quotes,trades,bars,updatedBars,dailyBars,statuses,lulds,imbalances,orderbooks"
_DATA = "/api/v1/market-data"
_ticks = itertools.count(1)


def at(ago_s: float = 0.0) -> str:
    """A time with nine digits, later at each call where the distance is the same."""
    ns = time.time_ns() - round(ago_s * 1e9) + next(_ticks)
    whole = dt.datetime.fromtimestamp(ns // 10**9, dt.UTC)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{ns % 10**9:09d}Z"


def minute(ago: int = 1) -> str:
    """The start of a minute, as the wire writes it."""
    start = (int(time.time()) // 60 - ago) * 60
    return f"{dt.datetime.fromtimestamp(start, dt.UTC):%Y-%m-%dT%H:%M:%S}Z"


def nine(text: str) -> str:
    whole, _, fraction = text.removesuffix("Z").partition(".")
    return f"{whole}.{fraction:0<9}Z"


class Ears:
    """Hears every pub/sub message of the server, in order."""

    def __init__(self, valkey: Any) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self._client = valkey.client()
        self._pubsub = self._client.pubsub()
        self._pubsub.psubscribe("*")
        assert self._pubsub.get_message(timeout=20)["type"] == "psubscribe"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while not self._stop.is_set():
            message = self._pubsub.get_message(timeout=0.05)
            if message is not None:
                self.heard.append((message["channel"].decode(), message["data"]))

    def raw(self, event: str, symbol: str | None = None) -> list[bytes]:
        """The messages of this event so far, of one symbol or of all."""
        return [
            data
            for name, data in list(self.heard)
            if name == event and (symbol is None or json.loads(data).get("symbol") == symbol)
        ]

    def events(self, event: str, symbol: str | None = None) -> list[dict[str, Any]]:
        return [json.loads(data, parse_float=Decimal) for data in self.raw(event, symbol)]

    def states(self, feed: str, channel: str | None = None) -> list[dict[str, Any]]:
        return [
            s
            for s in self.events("feed.status")
            if s["feed"] == feed and (channel is None or s.get("channel") == channel)
        ]

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._pubsub.close()
        self._client.close()


class Account:
    """An outside Alpaca, a service, its Valkey and a listener."""

    def __init__(self, stage: Any, *, max_pairs: int = 10**9, **env: str) -> None:
        self.stage = stage
        self.eventually = stage.eventually
        self.alpaca = OutsideAlpaca(max_pairs)
        stage._stack.callback(self.alpaca.close)
        self.valkey = stage.valkey()
        self.redis = self.valkey.client()
        stage._stack.callback(self.redis.close)
        self.ears = Ears(self.valkey)
        stage._stack.callback(self.ears.close)
        self.env = env
        self.folder = stage.folder()

    def start(self) -> Account:
        env = self.alpaca.env(self.valkey, **self.env)
        self.service = self.stage.program("run", folder=self.folder, **env)
        self.service.wait_ready()
        return self

    def wants(self, feed: str, channel: str, symbol: str) -> None:
        self.eventually(
            lambda: symbol in self.alpaca.wants(feed, channel), what=f"{feed} {channel} {symbol}"
        )

    def wait(self, event: str, symbol: str | None, count: int) -> list[dict[str, Any]]:
        """The events once there are so many."""
        return self.eventually(
            lambda: (e := self.ears.events(event, symbol)) and len(e) >= count and e,
            what=lambda: f"{count} of {event} {symbol}: {self.ears.heard[-8:]}",
        )

    def key(self, name: str) -> dict[str, Any] | None:
        data = self.redis.get(name)
        return None if data is None else json.loads(data, parse_float=Decimal)

    def same(self, event: str, key: str, channel: str, symbol: str) -> dict[str, Any]:
        """The record, once it is known to be the same bytes as event, key and answer."""
        data = self.ears.raw(event, symbol)[-1]
        assert self.redis.get(f"{key}:{symbol}") == data
        for written in {symbol, quote(symbol, safe="")}:
            answer = self.service.http.get(f"{_DATA}/latest/{channel}/{written}")
            assert answer.status_code == 200, answer.text
            assert answer.content == data
        records = self.service.http.get(f"{_DATA}/latest/{channel}", params={"symbols": symbol})
        assert records.content == b'{"records":[' + data + b"]}", records.text
        found: dict[str, Any] = json.loads(data, parse_float=Decimal)
        return found


@pytest.fixture(scope="module", params=["websockets", "alpaca-py"])
def account(request: Any, module_stage: Any) -> Account:
    return of_every_channel(module_stage, MDSERVICE_DRIVER=request.param)


def of_every_channel(stage: Any, **env: str) -> Account:
    """A service that follows a stock, a pair and an option on every channel, and all news."""
    account = Account(
        stage,
        MDSERVICE_CHANNELS=CHANNELS,
        MDSERVICE_SYMBOLS=f"AAPL,BTC/USD,{OPTION}",
        MDSERVICE_NEWS="*",
        **env,
    ).start()
    for feed, channel, symbol in (("stocks", "imbalances", "AAPL"), ("news", "news", "*"),
                                  ("crypto", "orderbooks", "BTC/USD"), ("options", "trades", OPTION)):  # fmt: skip
        account.wants(feed, channel, symbol)
    return account


DAY = 86_400
FEED_OF = {"AAPL": "stocks", "BTC/USD": "crypto", OPTION: "options"}
B = {"o": 187.1, "h": 187.3, "l": 187.05, "c": 187.2, "v": 1200, "n": 14, "vw": 187.1525}
BAR = {
    "open": Decimal("187.1"),
    "high": Decimal("187.3"),
    "low": Decimal("187.05"),
    "close": Decimal("187.2"),
    "volume": 1200,
    "trade_count": 14,
    "vwap": Decimal("187.1525"),
    "updated": False,
}
# symbol, channel, event, key, TTL, message, fields
TABLE: list[tuple[str, str, str, str, int, dict[str, Any], dict[str, Any]]] = [
    ("AAPL", "quotes", "price.updated", "price", 300,
     {"T": "q", "bx": "V", "bp": 187.1, "bs": 100, "ax": "V", "ap": 187.13, "as": 200,
      "c": ["R"], "z": "C"},
     {"price": Decimal("187.115"), "bid": Decimal("187.1"), "ask": Decimal("187.13"),
      "bid_size": 100, "ask_size": 200}),
    ("AAPL", "trades", "trade.updated", "trade", 300,
     {"T": "t", "i": 52983525029461, "x": "V", "p": 187.13, "s": 100, "c": ["@", "I"], "z": "C"},
     {"price": Decimal("187.13"), "size": 100, "exchange": "V", "conditions": ["@", "I"],
      "tape": "C", "id": 52983525029461}),
    ("AAPL", "bars", "bar.updated", "bar", DAY, {"T": "b", **B}, BAR),
    ("AAPL", "dailyBars", "daily_bar.updated", "daily_bar", 5 * DAY, {"T": "d", **B}, BAR),
    ("AAPL", "statuses", "trading_status.updated", "trading_status", DAY,
     {"T": "s", "sc": "H", "sm": "Trading Halt", "rc": "T12",
      "rm": "Trading Halted; For information requested by NASDAQ", "z": "C"},
     {"status_code": "H", "status_message": "Trading Halt", "reason_code": "T12",
      "reason_message": "Trading Halted; For information requested by NASDAQ", "tape": "C"}),
    ("AAPL", "lulds", "luld.updated", "luld", DAY,
     {"T": "l", "u": 190.5, "d": 183.25, "i": "B", "z": "C"},
     {"limit_up": Decimal("190.5"), "limit_down": Decimal("183.25"), "indicator": "B",
      "tape": "C"}),
    ("AAPL", "imbalances", "imbalance.updated", "imbalance", 300,
     {"T": "i", "p": 187.4, "z": "C"}, {"price": Decimal("187.4"), "tape": "C"}),
    ("BTC/USD", "quotes", "price.updated", "price", 300,
     {"T": "q", "bp": 64000.5, "bs": 0.25, "ap": 64001.5, "as": 0.5},
     {"price": 64001, "bid": Decimal("64000.5"), "ask": Decimal("64001.5"),
      "bid_size": Decimal("0.25"), "ask_size": Decimal("0.5")}),
    ("BTC/USD", "trades", "trade.updated", "trade", 300,
     {"T": "t", "i": 77, "p": 64001.25, "s": 0.015, "tks": "B"},
     {"price": Decimal("64001.25"), "size": Decimal("0.015"), "exchange": None,
      "conditions": [], "tape": None, "id": 77, "taker_side": "buy"}),
    ("BTC/USD", "bars", "bar.updated", "bar", DAY, {"T": "b", **B, "v": 0}, {**BAR, "volume": 0}),
    ("BTC/USD", "dailyBars", "daily_bar.updated", "daily_bar", 5 * DAY, {"T": "d", **B}, BAR),
    ("BTC/USD", "orderbooks", "orderbook.updated", "orderbook", 300,
     {"T": "o", "r": True, "b": [{"p": 63999.5, "s": 1.5}, {"p": 64000.5, "s": 0.25}],
      "a": [{"p": 64002, "s": 2}, {"p": 64001.5, "s": 0.5}]},
     {"bids": [[Decimal("64000.5"), Decimal("0.25")], [Decimal("63999.5"), Decimal("1.5")]],
      "asks": [[Decimal("64001.5"), Decimal("0.5")], [64002, 2]]}),
    (OPTION, "quotes", "price.updated", "price", 300,
     {"T": "q", "bx": "C", "bp": 4.1, "bs": 10, "ax": "C", "ap": 4.3, "as": 12, "c": "A"},
     {"price": Decimal("4.2"), "bid": Decimal("4.1"), "ask": Decimal("4.3"), "bid_size": 10,
      "ask_size": 12}),
    (OPTION, "trades", "trade.updated", "trade", 300,
     {"T": "t", "p": 4.2, "s": 3, "x": "C", "c": "a"},
     {"price": Decimal("4.2"), "size": 3, "exchange": "C", "conditions": ["a"], "tape": None,
      "id": None}),
]  # fmt: skip


@pytest.mark.parametrize("row", TABLE, ids=[f"{r[0][:4]}-{r[1]}" for r in TABLE])
def test_key_event_and_answer_of_each_channel(account: Account, row: Any) -> None:
    symbol, channel, event, key, ttl, message, fields = row
    account.wants(FEED_OF[symbol], channel, symbol)
    t = minute() if message["T"] in "bd" else at()
    account.alpaca.send(FEED_OF[symbol], {**message, "S": symbol, "t": t})
    account.wait(event, symbol, 1)
    record = account.same(event, key, channel, symbol)
    assert record == {"symbol": symbol, "timestamp": nine(t), "seq": 1, **fields}
    assert ttl - 60 <= account.redis.ttl(f"{key}:{symbol}") <= ttl


def test_what_was_not_sent_is_null(account: Account) -> None:
    t = at()
    account.alpaca.send("stocks", {"T": "t", "S": "AAPL", "p": 1, "s": 1, "t": t})
    account.alpaca.send("stocks", {"T": "s", "S": "AAPL", "sc": "T", "t": t})
    account.alpaca.send("stocks", {"T": "l", "S": "AAPL", "u": 2, "d": 1, "t": t})
    account.alpaca.send("stocks", {"T": "i", "S": "AAPL", "p": 2, "t": t})
    account.alpaca.send(
        "stocks", {"T": "b", "S": "AAPL", "o": 1, "h": 1, "l": 1, "c": 1, "v": 1, "t": minute(0)}
    )
    account.alpaca.send("crypto", {"T": "t", "S": "BTC/USD", "p": 1, "s": 1, "t": t, "tks": "-"})
    common = {"symbol": "AAPL", "timestamp": t}
    want: dict[str, dict[str, Any]] = {
        "trade.updated": {
            "price": 1,
            "size": 1,
            **dict.fromkeys(("exchange", "tape", "id")),
            "conditions": [],
        },
        "trading_status.updated": {
            "status_code": "T",
            **dict.fromkeys(("status_message", "reason_code", "reason_message", "tape")),
        },
        "luld.updated": {"limit_up": 2, "limit_down": 1, "indicator": None, "tape": None},
        "imbalance.updated": {"price": 2, "tape": None},
    }
    for event, fields in want.items():
        last = account.wait(event, "AAPL", 2)[-1]
        assert last == {**common, "seq": 2, **fields}
    bar = account.wait("bar.updated", "AAPL", 2)[-1]
    assert (bar["trade_count"], bar["vwap"], bar["updated"]) == (None, None, False)
    assert account.wait("trade.updated", "BTC/USD", 2)[-1]["taker_side"] is None


def test_news_is_a_stream_of_entries_without_a_key(account: Account) -> None:
    article = {
        "T": "n", "id": 24918784, "headline": "A \u201cheadline\u201d", "summary": "s",
        "author": "a", "created_at": "2026-01-05T15:00:00Z",
        "updated_at": at()[:-2] + "1Z", "content": "<p>c</p>", "url": "https://example.com/x",
        "symbols": ["AAPL", "MSFT"], "source": "benzinga",
    }  # fmt: skip
    account.alpaca.send("news", article)
    account.wait("news.published", None, 1)
    (data,) = account.ears.raw("news.published")
    assert json.loads(data) == {
        **{k: v for k, v in article.items() if k != "T"},
        "timestamp": article["updated_at"],
    }
    ((_, entry),) = account.redis.xrange("news")
    assert entry == {b"id": b"24918784", b"data": data}
    assert account.redis.ttl("news") == -1
    assert not account.redis.keys("news:*")
    answer = account.service.http.get(f"{_DATA}/news")
    assert answer.content == b'{"news":[' + data + b"]}"
    account.alpaca.send("news", {**article, "id": 2, "symbols": ["TSLA"], "updated_at": at()})
    account.alpaca.send("news", {**article, "id": 3, "symbols": [], "updated_at": at()})
    account.wait("news.published", None, 3)

    def ids(**query: Any) -> list[int]:
        return [n["id"] for n in account.service.get(f"{_DATA}/news", params=query)["news"]]

    assert ids() == [3, 2, 24918784]
    assert ids(limit=1) == [3]
    assert ids(symbols="MSFT,TSLA") == [2, 24918784]
    assert ids(symbols="AAPL", limit=5) == [24918784]
    assert account.service.http.get(f"{_DATA}/latest/news/AAPL").status_code in {404, 422}


def test_bars_and_updated_bars_share_a_count(account: Account) -> None:
    start = len(account.ears.events("bar.updated", "BTC/USD"))
    seq = account.ears.events("bar.updated", "BTC/USD")[-1]["seq"] if start else 0
    t = minute(-0)
    for letter, close in (("b", 10), ("u", 11), ("u", 12)):
        account.alpaca.send("crypto", {"T": letter, "S": "BTC/USD", **B, "c": close, "t": t})
        start += 1
        account.wait("bar.updated", "BTC/USD", start)
    bars = account.ears.events("bar.updated", "BTC/USD")[-3:]
    assert [b["seq"] for b in bars] == [seq + 1, seq + 2, seq + 3]
    assert [b["updated"] for b in bars] == [False, True, True]
    assert account.same("bar.updated", "bar", "updatedBars", "BTC/USD")["close"] == 12
    # an update of the older minute does not replace the newer bar under the key
    account.alpaca.send("crypto", {"T": "u", "S": "BTC/USD", **B, "c": 9, "t": minute(2)})
    assert account.wait("bar.updated", "BTC/USD", start + 1)[-1]["close"] == 9
    assert account.key("bar:BTC/USD")["close"] == 12  # type: ignore[index]


def test_daily_bars_replace_each_other(account: Account) -> None:
    day = "2026-01-05T05:00:00Z"
    before = len(account.ears.events("daily_bar.updated", OPTION[:4]))
    for n, close in enumerate((20, 21), 1):
        account.alpaca.send("stocks", {"T": "d", "S": "AAPL", **B, "c": close, "t": day})
        account.wait("daily_bar.updated", "AAPL", before + n)
    assert [d["updated"] for d in account.ears.events("daily_bar.updated", "AAPL")[-2:]] == [
        False,
        True,
    ]


def test_an_order_book_is_whole_after_each_change(account: Account) -> None:
    before = len(account.ears.events("orderbook.updated", "BTC/USD"))
    send: Callable[..., None] = lambda **m: account.alpaca.send(  # noqa: E731
        "crypto", {"T": "o", "S": "BTC/USD", "t": at(), **m}
    )
    send(r=True, b=[{"p": 10, "s": 1}, {"p": 9, "s": 2}], a=[{"p": 11, "s": 3}])
    account.wait("orderbook.updated", "BTC/USD", before + 1)
    send(b=[{"p": 10, "s": 0}, {"p": 9.5, "s": 4}], a=[{"p": 11, "s": 5}, {"p": 12, "s": 6}])
    account.wait("orderbook.updated", "BTC/USD", before + 2)
    book = account.same("orderbook.updated", "orderbook", "orderbooks", "BTC/USD")
    assert book["bids"] == [[Decimal("9.5"), 4], [9, 2]]
    assert book["asks"] == [[11, 5], [12, 6]]


@pytest.fixture(scope="module")
def desk(module_stage: Any) -> Account:
    """A service that starts with quotes and trades as its channels, and no symbol."""
    return Account(module_stage, MDSERVICE_CHANNELS="quotes,trades").start()


def subscribe(desk: Account, symbol: str, *channels: str) -> dict[str, Any]:
    body = {"symbols": [symbol], **({"channels": list(channels)} if channels else {})}
    answer: dict[str, Any] = desk.service.post("subscribe", json=body)
    return answer


def trade(symbol: str, number: int | None, price: float, t: str, **more: Any) -> dict[str, Any]:
    message = {"T": "t", "S": symbol, "i": number, "x": "V", "p": price, "s": 10, "t": t}
    return {k: v for k, v in {**message, "c": ["@"], "z": "C", **more}.items() if v is not None}


def test_late_repeated_corrected_and_canceled_trades(desk: Account) -> None:
    symbol = desk.stage.new_symbol()
    subscribe(desk, symbol)
    desk.wants("stocks", "trades", symbol)
    first, second, late = at(10), at(5), at(7)
    send = desk.alpaca.send
    send("stocks", trade(symbol, 1, 100, first), trade(symbol, 2, 101, second))
    send("stocks", trade(symbol, 3, 99, late))
    send("stocks", trade(symbol, 2, 101, second))  # a repeat
    send("stocks", trade(symbol, 2, 101, second, x="P"))  # another exchange: not a repeat
    heard = desk.wait("trade.updated", symbol, 4)
    assert [(e["seq"], e["id"], e["exchange"]) for e in heard] == [
        (1, 1, "V"),
        (2, 2, "V"),
        (3, 3, "V"),
        (4, 2, "P"),
    ]
    send(
        "stocks",
        {"T": "c", "S": symbol, "x": "P", "oi": 2, "op": 101, "os": 10, "oc": ["@"], "ci": 8,
         "cp": 102.5, "cs": 20, "cc": ["@", "T"], "t": (t := at()), "z": "C"},
    )  # fmt: skip
    (corrected,) = desk.wait("trade.corrected", symbol, 1)
    assert corrected == {
        "symbol": symbol, "timestamp": t, "seq": 1, "exchange": "P", "tape": "C",
        "original_id": 2, "original_price": 101, "original_size": 10,
        "original_conditions": ["@"], "corrected_id": 8, "corrected_price": Decimal("102.5"),
        "corrected_size": 20, "corrected_conditions": ["@", "T"],
    }  # fmt: skip
    key = lambda: desk.key(f"trade:{symbol}")  # noqa: E731
    assert desk.eventually(lambda: (k := key()) and k["id"] == 8 and k) == {
        "symbol": symbol, "timestamp": second, "seq": 4, "price": Decimal("102.5"), "size": 20,
        "exchange": "P", "conditions": ["@", "T"], "tape": "C", "id": 8,
    }  # fmt: skip
    latest = desk.service.http.get(f"{_DATA}/latest/trades/{symbol}")
    assert latest.content == desk.redis.get(f"trade:{symbol}")

    def cancel(number: int, exchange: str, action: str) -> str:
        send(
            "stocks",
            {"T": "x", "S": symbol, "i": number, "x": exchange, "p": 101, "s": 10, "a": action,
             "t": (t := at()), "z": "C"},
        )  # fmt: skip
        return t

    t = cancel(8, "P", "C")
    (canceled,) = desk.wait("trade.canceled", symbol, 1)
    assert canceled == {
        "symbol": symbol, "timestamp": t, "seq": 1, "exchange": "P", "tape": "C", "id": 8,
        "price": 101, "size": 10, "action": "cancel",
    }  # fmt: skip
    desk.eventually(lambda: key()["id"] == 2, what=key)  # type: ignore[index]
    cancel(2, "V", "E")
    assert desk.wait("trade.canceled", symbol, 2)[-1]["action"] == "error"
    left = desk.eventually(lambda: (k := key()) and k["id"] == 3 and k, what=key)
    assert (left["timestamp"], left["price"], left["seq"]) == (late, 99, 3)
    cancel(1, "V", "C")  # not the one under the key
    desk.wait("trade.canceled", symbol, 3)
    assert key()["id"] == 3  # type: ignore[index]
    # REST's latest where no trade is left that the service knows, else none. It is of the same day in
    # New York as its cancellation, but in half a minute around midnight.
    desk.alpaca.latest["stocks", "trades"][symbol] = {
        "t": (t := at(30)), "i": 55, "x": "V", "p": 98.5, "s": 1, "c": [], "z": "C",
    }  # fmt: skip
    cancel(3, "V", "C")
    found = desk.eventually(
        lambda: (k := key()) and k["id"] == 55 and k,
        what=lambda: (desk.alpaca.rest[-4:], desk.ears.heard[-9:]),
    )
    assert (found["timestamp"], found["price"]) == (t, Decimal("98.5"))
    del desk.alpaca.latest["stocks", "trades"][symbol]
    cancel(55, "V", "C")
    desk.eventually(lambda: key() is None, what=key)
    assert desk.service.http.get(f"{_DATA}/latest/trades/{symbol}").status_code == 404
    assert len(desk.wait("trade.canceled", symbol, 5)) == 5
    assert len(desk.ears.events("trade.corrected", symbol)) == 1


def test_repeats_of_pairs_and_options(desk: Account) -> None:
    pair, option = "ETH/USD", "MSFT261218P00400000"
    subscribe(desk, pair)
    subscribe(desk, option)
    desk.wants("crypto", "trades", pair)
    desk.wants("options", "trades", option)
    one = {"T": "t", "S": pair, "i": 5, "p": 3000, "s": 1, "tks": "S", "t": at()}
    desk.alpaca.send("crypto", one, one, {**one, "i": 6, "tks": "-"})
    events = desk.wait("trade.updated", pair, 2)
    assert [(e["id"], e["taker_side"], e["seq"]) for e in events] == [(5, "sell", 1), (6, None, 2)]
    same = {"T": "t", "S": option, "p": 4.2, "s": 3, "x": "C", "c": "a", "t": at()}
    desk.alpaca.send("options", same, same)
    desk.alpaca.send("options", same)
    events = desk.wait("trade.updated", option, 3)
    assert [e["seq"] for e in events] == [1, 2, 3]
    assert len(desk.ears.events("trade.updated", pair)) == 2


def test_price_rules_are_those_of_quotes(desk: Account) -> None:
    symbol = desk.stage.new_symbol()
    subscribe(desk, symbol, "quotes")
    desk.wants("stocks", "quotes", symbol)
    base = {"T": "q", "S": symbol, "bx": "V", "ax": "V", "bs": 1, "as": 1, "c": ["R"], "z": "C"}
    t1, t2, future = at(3), at(2), at(-120)
    before = desk.service.counter("decode_errors")
    desk.alpaca.send(
        "stocks",
        {**base, "bp": 0, "ap": 10.5, "t": t1},
        {**base, "bp": 0, "ap": 0, "t": t2},
        {**base, "bp": 0, "ap": 0, "t": t2},
        {**base, "bp": 1, "ap": 2, "t": t1},
        {**base, "bp": 1, "ap": 2, "t": t2},
        {**base, "bp": 1, "ap": 9, "t": future},
        {**base, "bp": "x", "ap": 9, "t": at()},
        {**base, "S": "?", "bp": 1, "ap": 9, "t": at()},
        {**base, "bp": 10.01, "ap": 10.04, "t": at()},
    )
    events = desk.wait("price.updated", symbol, 4)
    assert [(e["price"], e["seq"]) for e in events] == [
        (Decimal("10.5"), 1),
        (None, 2),
        (Decimal("1.5"), 3),
        (Decimal("10.025"), 4),
    ]
    assert desk.service.counter("decode_errors") == before + 3


def test_channels_are_counted_per_symbol_and_channel(desk: Account) -> None:
    symbol = desk.stage.new_symbol()
    wants = desk.alpaca.wants
    assert subscribe(desk, symbol, "bars", "updatedBars")["status"] == "subscribed"
    desk.wants("stocks", "updatedBars", symbol)
    assert symbol not in wants("stocks", "quotes") | wants("stocks", "trades")
    acked = lambda: desk.service.get(f"{_DATA}/subscriptions")["channels"].get(symbol)  # noqa: E731
    desk.eventually(lambda: sorted(acked() or ()) == ["bars", "updatedBars"], what=acked)
    answer = desk.service.post("subscribe", params={"symbol": symbol, "channels": "statuses,bars"})
    assert answer["status"] == "subscribed"
    desk.eventually(lambda: set(acked()) == {"bars", "updatedBars", "statuses"}, what=acked)
    desk.service.post("unsubscribe", json={"symbols": [symbol], "channels": ["bars"]})
    desk.eventually(lambda: set(acked()) == {"updatedBars", "statuses"}, what=acked)
    desk.eventually(lambda: symbol not in wants("stocks", "bars"))
    desk.service.post("unsubscribe", params={"symbol": symbol, "channels": "statuses"})
    desk.eventually(lambda: set(acked()) == {"updatedBars"}, what=acked)
    subscribe(desk, symbol)  # the settings' channels
    desk.eventually(lambda: set(acked()) == {"updatedBars", "quotes", "trades"}, what=acked)
    desk.service.post("unsubscribe", json={"symbols": [symbol]})  # every channel
    desk.eventually(lambda: not acked(), what=acked)
    for channel in ("quotes", "trades", "updatedBars"):
        desk.eventually(lambda c=channel: symbol not in wants("stocks", c), what=channel)


@pytest.mark.parametrize(
    ("symbol", "channels"),
    [
        ("AAPL", ["orderbooks"]),
        ("BTC/USD", ["statuses", "lulds"]),
        (OPTION, ["bars"]),
        ("AAPL", ["nonsense"]),
        ("AAPL", ["corrections"]),
        ("AAPL", []),
        ("AAPL", "quotes,nonsense"),
        ("AAPL", [1]),
        ("AAPL", {"a": 1}),
    ],
)
def test_channels_that_cannot_be_followed_are_422(
    desk: Account, symbol: str, channels: Any
) -> None:
    answer = desk.service.http.post(
        f"{_DATA}/subscribe", json={"symbols": [symbol], "channels": channels}
    )
    assert answer.status_code == 422, answer.text


def test_a_channel_that_one_class_lacks_is_skipped_for_it(desk: Account) -> None:
    answer = desk.service.http.post(
        f"{_DATA}/subscribe",
        json={"symbols": ["SOL/USD"], "channels": ["lulds", "orderbooks"]},
    )
    assert answer.status_code == 200, answer.text
    desk.wants("crypto", "orderbooks", "SOL/USD")


def test_latest_answers(desk: Account) -> None:
    get = desk.service.http.get
    assert get(f"{_DATA}/latest/trades/NONE").status_code == 404
    assert get(f"{_DATA}/latest/trades/NO/NE").status_code == 404
    assert get(f"{_DATA}/latest/nonsense/AAPL").status_code in {404, 422}
    assert get(f"{_DATA}/latest/nonsense").status_code in {404, 422}
    assert get(f"{_DATA}/latest/lulds").json() == {"records": []}
    assert get(f"{_DATA}/latest/lulds?symbols=AAPL,BTC/USD").json() == {"records": []}
    one, pair = desk.stage.new_symbol(), "LTC/USD"
    for symbol in (one, pair):
        subscribe(desk, symbol, "trades")
    desk.wants("stocks", "trades", one)
    desk.wants("crypto", "trades", pair)
    desk.alpaca.send("stocks", trade(one, 1, 10, at()))
    desk.alpaca.send("crypto", {"T": "t", "S": pair, "i": 5, "p": 3, "s": 1, "t": at()})
    desk.wait("trade.updated", one, 1)
    desk.wait("trade.updated", pair, 1)
    body = get(f"{_DATA}/latest/trades?symbols={one},LTC%2FUSD,NONE").json()["records"]
    assert [r["symbol"] for r in body] == [one, pair]
    assert {one, pair} <= {r["symbol"] for r in get(f"{_DATA}/latest/trades").json()["records"]}


def test_the_stream_sends_each_kind_under_its_event_name(desk: Account) -> None:
    symbol, other = desk.stage.new_symbol(), desk.stage.new_symbol()
    for s in (symbol, other):
        subscribe(desk, s, "quotes", "trades", "statuses")
        desk.wants("stocks", "statuses", s)
    params = {"symbols": symbol, "channels": "trades,statuses"}
    with desk.service.http.stream("GET", f"{_DATA}/stream", params=params) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()
        q = {"T": "q", "bp": 1, "ap": 2, "bs": 1, "as": 1}
        desk.alpaca.send(
            "stocks",
            {**q, "S": symbol, "t": at()},
            trade(other, 1, 1, at()),
            trade(symbol, 1, 5, at()),
            {"T": "s", "S": symbol, "sc": "H", "t": at()},
            {"T": "x", "S": symbol, "x": "V", "i": 1, "p": 5, "s": 10, "a": "C", "t": at()},
        )
        got: list[tuple[str, bytes]] = []
        name = ""
        for line in lines:
            if line.startswith("event:"):
                name = line[6:].strip()
            elif line.startswith("data:"):
                got.append((name, line[5:].strip().encode()))
                if len(got) == 3:
                    break
    events = ("trade.updated", "trading_status.updated", "trade.canceled")
    for event in events:  # the stream may be ahead of Redis, and Redis of the listener
        desk.wait(event, symbol, 1)
    assert sorted(got) == sorted((event, desk.ears.raw(event, symbol)[-1]) for event in events)


def test_a_price_and_a_trade_at_once_from_rest(desk: Account) -> None:
    for feed, symbol in (("stocks", desk.stage.new_symbol()), ("crypto", "DOGE/USD"),
                         ("options", "SPY261218C00600000")):  # fmt: skip
        t, tt = at(86_000), at(86_001)
        desk.alpaca.latest[feed, "quotes"][symbol] = {
            "t": t, "bp": 10, "ap": 10.5, "bs": 1, "as": 2, "bx": "V", "ax": "V", "c": [],
            "z": "C",
        }  # fmt: skip
        extra = {"tks": "B"} if feed == "crypto" else {}
        desk.alpaca.latest[feed, "trades"][symbol] = {
            "t": tt, "p": 10.25, "s": 3, "i": 9, "x": "V", "c": "a" if feed == "options" else ["@"],
            **extra,
        }  # fmt: skip
        began = time.monotonic()
        subscribe(desk, symbol)
        price = desk.wait("price.updated", symbol, 1)[-1]
        last = desk.wait("trade.updated", symbol, 1)[-1]
        assert time.monotonic() - began < patient(3)
        assert (price["timestamp"], price["price"], price["seq"]) == (t, Decimal("10.25"), 1)
        assert (last["timestamp"], last["price"], last["seq"]) == (tt, Decimal("10.25"), 1)
        assert desk.key(f"trade:{symbol}") == last
        assert last["conditions"] == (["a"] if feed == "options" else ["@"])


def test_commands_take_channels(desk: Account) -> None:
    symbol = desk.stage.new_symbol()
    done = desk.stage.beside(desk.service, "subscribe", symbol, "--channels", "bars,statuses")
    assert done.code() == 0, done.said
    desk.wants("stocks", "statuses", symbol)
    assert symbol not in desk.alpaca.wants("stocks", "quotes")
    done = desk.stage.beside(desk.service, "unsubscribe", symbol, "--channels", "bars")
    assert done.code() == 0, done.said
    desk.eventually(lambda: symbol not in desk.alpaca.wants("stocks", "bars"))
    assert symbol in desk.alpaca.wants("stocks", "statuses")
    for bad in ("nonsense", "orderbooks"):
        done = desk.stage.beside(desk.service, "subscribe", symbol, "--channels", bad)
        assert done.code() in {1, 2}, done.said


def test_open_stream_in_another_process(desk: Account) -> None:
    symbol = desk.stage.new_symbol()
    subscribe(desk, symbol, "quotes", "trades", "statuses", "bars")
    desk.wants("stocks", "statuses", symbol)
    desk.alpaca.send("stocks", trade(symbol, 1, 5, at(1)))
    desk.wait("trade.updated", symbol, 1)

    async def read() -> list[Any]:
        got: list[Any] = []
        with anyio.fail_after(patient(30)):
            async with mdservice.open_stream(
                desk.valkey.url, symbols=[symbol], channels=("trades", "statuses")
            ) as stream:
                desk.alpaca.send(
                    "stocks",
                    trade(symbol, 2, 6, at()),
                    {"T": "s", "S": symbol, "sc": "H", "t": at()},
                    {"T": "x", "S": symbol, "x": "V", "i": 1, "p": 5, "s": 10, "t": at()},
                )
                async for record in stream:
                    got.append(record)
                    if len(got) == 4:
                        break
        return got

    kinds = [type(r).__name__ for r in anyio.run(read)]
    assert sorted(kinds) == ["Cancel", "Trade", "Trade", "TradingStatus"]


def row(message: dict[str, Any]) -> dict[str, Any]:
    """The message as REST has it."""
    return {k: v for k, v in message.items() if k not in {"T", "S"}}


def test_a_cut_of_each_connection_is_reported_per_channel(stage: Any) -> None:
    desk = of_every_channel(stage)
    alpaca = desk.alpaca
    history = alpaca.history
    quote_ = {"T": "q", "bx": "V", "ax": "V", "bs": 1, "as": 1, "c": ["R"], "z": "C"}
    option_trade = {"T": "t", "S": OPTION, "p": 4.2, "s": 3, "x": "C", "c": "a"}
    article = {"T": "n", "headline": "h", "summary": "", "author": "", "content": "", "url": "",
               "symbols": ["AAPL"], "source": "s"}  # fmt: skip

    def pair_trade(number: int) -> dict[str, Any]:
        return {"T": "t", "S": "BTC/USD", "i": number, "p": 64000 + number, "s": 0.5, "t": at()}

    def frames(n: int) -> list[tuple[str, str, dict[str, Any]]]:
        twice = {**option_trade, "t": at()}
        return [
            ("stocks", "quotes", {**quote_, "S": "AAPL", "bp": 10, "ap": 10 + n, "t": at()}),
            ("stocks", "trades", trade("AAPL", n, 10 + n, at())),
            ("stocks", "bars", {"T": "b", "S": "AAPL", **B, "t": minute(8 - n)}),
            ("crypto", "quotes", {**quote_, "S": "BTC/USD", "bp": 10, "ap": 10 + n, "t": at()}),
            ("crypto", "trades", pair_trade(n)),
            ("crypto", "bars", {"T": "b", "S": "BTC/USD", **B, "t": minute(8 - n)}),
            ("options", "trades", twice),
            ("options", "trades", twice),
            ("news", "news", {**article, "id": n, "created_at": (t := at()), "updated_at": t}),
        ]

    def keep(feed: str, kind: str, message: dict[str, Any]) -> None:
        if kind == "news":
            alpaca.news.append({k: v for k, v in message.items() if k != "T"})
        else:
            history[feed, kind].setdefault(message["S"], []).append(row(message))

    alpaca.latest["crypto", "orderbooks"]["BTC/USD"] = book = {
        "T": "o", "S": "BTC/USD", "r": True, "b": [{"p": 1, "s": 1}], "a": [], "t": at(),
    }  # fmt: skip
    for feed, kind, message in frames(1):
        keep(feed, kind, message)
        alpaca.send(feed, message)
    for t, more in (("s", {"sc": "T"}), ("l", {"u": 2, "d": 1}), ("i", {"p": 1})):
        alpaca.send("stocks", {"T": t, "S": "AAPL", "t": at(), **more})
    alpaca.send("crypto", book)
    alpaca.send("options", {**quote_, "S": OPTION, "c": "A", "bp": 4, "ap": 5, "t": at()})
    for event, symbol in (("bar.updated", "BTC/USD"), ("orderbook.updated", "BTC/USD"),
                          ("price.updated", OPTION), ("imbalance.updated", "AAPL"),
                          ("news.published", None)):  # fmt: skip
        desk.wait(event, symbol, 1)
    alpaca.refusing = True
    alpaca.cut("stocks", "crypto", "options", "news")
    for n in (2, 3):
        for feed, kind, message in frames(n):
            keep(feed, kind, message)
    alpaca.latest["options", "quotes"][OPTION] = {
        "t": (fresh := at()), "bp": 6, "ap": 7, "bs": 1, "as": 1, "bx": "C", "ax": "C", "c": "A",
    }  # fmt: skip
    book |= {"b": [{"p": 2, "s": 2}], "t": at()}
    for feed in ("stocks", "crypto", "options", "news"):
        desk.eventually(
            lambda feed=feed: "disconnected" in [s["state"] for s in desk.ears.states(feed)],
            what=feed,
        )
    alpaca.refusing = False
    want: dict[tuple[str, str], list[str]] = {
        ("stocks", "quotes"): ["gap", "gap_repaired"],
        ("stocks", "trades"): ["gap", "gap_repaired"],
        ("stocks", "bars"): ["gap", "gap_repaired"],
        ("stocks", "statuses"): ["gap"],
        ("stocks", "lulds"): ["gap"],
        ("stocks", "imbalances"): ["gap"],
        ("crypto", "quotes"): ["gap", "gap_repaired"],
        ("crypto", "trades"): ["gap", "gap_repaired"],
        ("crypto", "bars"): ["gap", "gap_repaired"],
        ("crypto", "orderbooks"): ["gap refreshed"],
        ("options", "quotes"): ["gap refreshed"],
        ("options", "trades"): ["gap", "gap_repaired"],
        ("news", "news"): ["gap", "gap_repaired"],
    }

    def told() -> dict[tuple[str, str], list[str]]:
        found: dict[tuple[str, str], list[str]] = {}
        for s in desk.ears.events("feed.status"):
            if "channel" in s:
                text = s["state"] + (" refreshed" if s.get("refreshed") else "")
                found.setdefault((s["feed"], s["channel"]), []).append(text)
        return found

    desk.eventually(lambda: want.items() <= told().items(), within=30, what=lambda: f"{told()}")
    assert set(told()) - set(want) <= {("stocks", "dailyBars"), ("crypto", "dailyBars")}
    for feed in ("stocks", "crypto", "options", "news"):
        states = [s["state"] for s in desk.ears.states(feed)]
        assert states[0] == "connected"
        assert states.count("disconnected") == 1, states
        assert all("at" in s for s in desk.ears.states(feed))
    for symbol, events in {
        "AAPL": {"price.updated": 3, "trade.updated": 3, "bar.updated": 3},
        "BTC/USD": {
            "price.updated": 3, "trade.updated": 3, "bar.updated": 3, "orderbook.updated": 2,
        },
        OPTION: {"price.updated": 2, "trade.updated": 6},
    }.items():  # fmt: skip
        for event, count in events.items():
            heard = desk.wait(event, symbol, count)
            assert [e["seq"] for e in heard] == list(range(1, count + 1)), (event, symbol, heard)
            stamps = [e["timestamp"] for e in heard]
            assert stamps == sorted(stamps)
    assert [n["id"] for n in desk.wait("news.published", None, 3)] == [1, 2, 3]
    assert [e[b"id"] for _, e in desk.redis.xrange("news")] == [b"1", b"2", b"3"]
    assert desk.key(f"price:{OPTION}")["timestamp"] == fresh  # type: ignore[index]
    assert desk.key("orderbook:BTC/USD")["bids"] == [[2, 2]]  # type: ignore[index]
    feeds = desk.service.status()["feeds"]
    assert set(feeds) == {"stocks", "crypto", "options", "news"}
    assert feeds["stocks"] == desk.service.status()["feed"] or set(feeds["stocks"]) == set(
        desk.service.status()["feed"]
    )


BAD_SETTINGS: list[tuple[dict[str, str], tuple[str, ...]]] = [
    ({"MDSERVICE_CHANNELS": "quotes,nonsense"}, ("MDSERVICE_CHANNELS", "nonsense")),
    ({"MDSERVICE_CHANNELS": "corrections"}, ("MDSERVICE_CHANNELS", "corrections")),
    ({"MDSERVICE_CHANNELS": "Quotes"}, ("MDSERVICE_CHANNELS",)),
    ({"MDSERVICE_CHANNELS": "news"}, ("MDSERVICE_CHANNELS", "news")),
    ({"MDSERVICE_CRYPTO_FEED": "mars"}, ("MDSERVICE_CRYPTO_FEED", "mars")),
    ({"MDSERVICE_OPTIONS_FEED": "mars"}, ("MDSERVICE_OPTIONS_FEED", "mars")),
    ({"MDSERVICE_CRYPTO_URL": "http://x"}, ("MDSERVICE_CRYPTO_URL",)),
    ({"MDSERVICE_OPTIONS_URL": "x"}, ("MDSERVICE_OPTIONS_URL",)),
    ({"MDSERVICE_NEWS_URL": "ftp://x"}, ("MDSERVICE_NEWS_URL",)),
    ({"MDSERVICE_NEWS": "a b"}, ("MDSERVICE_NEWS",)),
    ({"MDSERVICE_SYMBOLS": "?"}, ("MDSERVICE_SYMBOLS",)),
    ({"MDSERVICE_CRYPTO_FEED": "us"}, ("ALPACA_API_KEY",)),
    ({"MDSERVICE_NEWS_URL": "ws://127.0.0.1:9"}, ("ALPACA_API_KEY",)),
    ({"MDSERVICE_OPTIONS_FEED": "opra"}, ("ALPACA_API_KEY",)),
    ({"MDSERVICE_NONSENSE": "1"}, ("MDSERVICE_NONSENSE",)),
]


def test_bad_settings_are_78_and_named(stage: Any) -> None:
    def ends(bad: tuple[dict[str, str], tuple[str, ...]]) -> None:
        env, words = bad
        program = stage.program("run", **env)
        assert program.code() == 78, program.said
        for word in words:
            assert word in program.stderr

    stage.together(ends, BAD_SETTINGS)


def test_every_symbol_is_the_stock_feeds_alone(stage: Any) -> None:
    desk = Account(stage, MDSERVICE_CHANNELS="quotes,trades,statuses,orderbooks",
                   MDSERVICE_SYMBOLS="*").start()  # fmt: skip
    for channel in ("quotes", "trades", "statuses"):
        desk.wants("stocks", channel, "*")
    assert {c.feed for c in desk.alpaca.clients} == {"stocks"}
    desk.alpaca.send("stocks", trade("ZZZ", 1, 2, at()))
    desk.wait("trade.updated", "ZZZ", 1)


def test_base_urls_may_end_in_v2(stage: Any) -> None:
    desk = Account(stage, MDSERVICE_CHANNELS="quotes,trades", MDSERVICE_SYMBOLS="AAPL,BTC/USD")
    desk.env |= {
        "MDSERVICE_REST_URL": desk.alpaca.rest_url + "/v2",
        "MDSERVICE_TRADING_URL": desk.alpaca.rest_url + "/v2/",
    }
    for feed, symbol in (("stocks", "AAPL"), ("crypto", "BTC/USD")):
        desk.alpaca.latest[feed, "trades"][symbol] = {"t": at(9), "p": 1, "s": 1, "i": 1}
    desk.start()
    desk.wait("trade.updated", "AAPL", 1)
    desk.wait("trade.updated", "BTC/USD", 1)
    assert {p for p, _ in desk.alpaca.rest} >= {
        "/v2/stocks/trades/latest",
        "/v1beta3/crypto/us/latest/trades",
    }
    assert not [p for p, _ in desk.alpaca.rest if "/v2/v" in p or "//" in p]


def test_a_key_prefix_is_in_front_of_every_name(stage: Any) -> None:
    desk = Account(
        stage,
        MDSERVICE_KEY_PREFIX="desk1:",
        MDSERVICE_CHANNELS="trades,statuses",
        MDSERVICE_SYMBOLS="AAPL",
        MDSERVICE_NEWS="AAPL",
    ).start()
    desk.wants("stocks", "statuses", "AAPL")
    desk.wants("news", "news", "AAPL")
    with desk.service.http.stream("GET", f"{_DATA}/stream?channels=trades") as answer:
        desk.alpaca.send("stocks", trade("AAPL", 1, 2, at()),
                         {"T": "s", "S": "AAPL", "sc": "H", "t": at()})  # fmt: skip
        for line in answer.iter_lines():
            if line.startswith("event:") and "trade" in line:
                assert line.split(":", 1)[1].strip() == "trade.updated"
                break
    desk.alpaca.send("news", {"T": "n", "id": 1, "headline": "h", "symbols": ["AAPL"],
                              "created_at": at(), "updated_at": at()})  # fmt: skip
    desk.wait("desk1:news.published", None, 1)
    desk.wait("desk1:trading_status.updated", "AAPL", 1)
    desk.wait("desk1:trade.updated", "AAPL", 1)
    names = {k.decode() for k in desk.redis.keys("*")}
    assert names >= {"desk1:trade:AAPL", "desk1:trading_status:AAPL", "desk1:news"}
    assert all(n.startswith("desk1:") for n in names), names
    assert all(name.startswith("desk1:") for name, _ in desk.ears.heard)


def test_the_symbol_limit_counts_pairs(stage: Any) -> None:
    desk = Account(stage, max_pairs=5, MDSERVICE_CHANNELS="quotes,trades",
                   MDSERVICE_SYMBOLS="AAA,BBB,CCC")  # fmt: skip
    env = desk.alpaca.env(desk.valkey, **desk.env)
    desk.service = stage.program("run", folder=desk.folder, **env)
    desk.service.wait_answers()
    get = lambda: desk.service.get(f"{_DATA}/subscriptions")  # noqa: E731
    desk.eventually(lambda: sum(map(len, get()["channels"].values())) == 5, what=get)
    answer = desk.eventually(lambda: (told := get())["left_out"] and told, what=get)
    assert sum(map(len, answer["left_out"].values())) == 1, answer
    ((symbol, reasons),) = answer["left_out"].items()
    ((channel, reason),) = reasons.items()
    assert reason == "symbol limit exceeded"
    assert channel not in answer["channels"][symbol]
    refused = desk.service.http.post(f"{_DATA}/subscribe", json={"symbols": ["DDD"]})
    assert 400 <= refused.status_code < 500
    assert "symbol limit exceeded" in refused.text
    assert "DDD" not in get()["symbols"]
    assert desk.service.process.poll() is None
    desk.service.post("unsubscribe", json={"symbols": ["AAA"], "channels": ["trades"]})
    desk.eventually(lambda: not get()["left_out"], what=get)


def test_a_halt_stays_after_a_restart(stage: Any) -> None:
    desk = Account(stage, MDSERVICE_CHANNELS=CHANNELS, MDSERVICE_SYMBOLS="AAPL,BTC/USD").start()
    desk.wants("stocks", "statuses", "AAPL")
    desk.alpaca.send("stocks", {"T": "s", "S": "AAPL", "sc": "H", "t": at()})
    desk.alpaca.send("stocks", trade("AAPL", 1, 2, at()))
    desk.wait("trading_status.updated", "AAPL", 1)
    desk.wait("trade.updated", "AAPL", 1)
    data = desk.redis.get("trading_status:AAPL")
    last = desk.key("trade:AAPL")
    assert last is not None
    desk.alpaca.latest["stocks", "trades"]["AAPL"] = row(trade("AAPL", 1, 2, last["timestamp"]))
    assert desk.service.end() == 0
    assert desk.redis.get("trading_status:AAPL") == data
    desk.start()
    desk.wants("stocks", "statuses", "AAPL")
    assert desk.redis.get("trading_status:AAPL") == data
    answer = desk.service.http.get(f"{_DATA}/latest/statuses/AAPL")
    assert answer.content == data
    assert desk.eventually(
        lambda: (
            desk.service.http.get(f"{_DATA}/latest/trades/AAPL").content
            == desk.redis.get("trade:AAPL")
        )
    )
    desk.alpaca.send("stocks", trade("AAPL", 1, 2, last["timestamp"]))
    desk.alpaca.send("stocks", {"T": "s", "S": "AAPL", "sc": "T", "t": at()})
    assert desk.wait("trading_status.updated", "AAPL", 2)[-1]["seq"] == 1
    assert desk.key("trading_status:AAPL")["status_code"] == "T"  # type: ignore[index]
    assert len(desk.ears.events("trade.updated", "AAPL")) == 1


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_the_services_own_stream(stage: Any, backend: str) -> None:
    alpaca = OutsideAlpaca()
    stage._stack.callback(alpaca.close)
    valkey = stage.valkey()
    env = alpaca.env(valkey, MDSERVICE_CHANNELS="quotes,trades,bars", MDSERVICE_SYMBOLS="AAPL")

    async def read() -> list[Any]:
        settings = mdservice.load_settings(
            None, {}, {**env, "MDSERVICE_SOCKET": str(stage.folder() / "s")}
        )
        got: list[Any] = []
        with anyio.fail_after(patient(60)):
            async with mdservice.open_service(settings) as service:
                while "AAPL" not in alpaca.wants("stocks", "trades"):
                    await anyio.sleep(0.02)
                async with service.stream("AAPL", channels=("trades", "bars")) as records:
                    alpaca.send(
                        "stocks",
                        trade("AAPL", 1, 2, at()),
                        {"T": "b", "S": "AAPL", **B, "t": minute()},
                        {"T": "q", "S": "AAPL", "bp": 1, "ap": 2, "t": at()},
                        {"T": "x", "S": "AAPL", "x": "V", "i": 1, "p": 5, "s": 10, "t": at()},
                    )
                    async for record in records:
                        got.append(record)
                        if len(got) == 3:
                            break
        return got

    got = anyio.run(read, backend=backend)
    assert {type(r) for r in got} == {mdservice.Trade, mdservice.Bar, mdservice.Cancel}
