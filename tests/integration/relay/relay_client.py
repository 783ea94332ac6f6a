"""A client of the relay, written from Alpaca's documentation, and a feed, a service and a Redis."""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgpack
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from tests.integration.conftest import eventually, new_symbol, patient
from tests.integration.outside_alpaca import OutsideAlpaca, nanoseconds
from tests.integration.relay.conftest import RelayService

PATHS = {
    "stocks": "/v2/iex",
    "crypto": "/v1beta3/crypto/us",
    "options": "/v1beta1/indicative",
    "news": "/v1beta1/news",
}
CONTROL = {"success", "error", "subscription"}
CONNECTED = {"T": "success", "msg": "connected"}
AUTHENTICATED = {"T": "success", "msg": "authenticated"}
TEXTS = {
    400: "invalid syntax",
    401: "not authenticated",
    402: "auth failed",
    403: "already authenticated",
    404: "auth timeout",
    405: "symbol limit exceeded",
    407: "slow client",
    409: "insufficient subscription",
    410: "invalid subscribe action for this feed",
}
_TIMES = ("t", "created_at", "updated_at")
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


def quote(symbol: str, bid: float = 10.0, **fields: Any) -> dict[str, Any]:
    return {
        "T": "q", "S": symbol, "bx": "V", "bp": bid, "bs": 100, "ax": "Q", "ap": bid + 0.03,
        "as": 200, "c": ["R"], "z": "C", "t": at(), **fields,
    }  # fmt: skip


def trade(symbol: str, number: int, price: float = 10.01, **fields: Any) -> dict[str, Any]:
    return {
        "T": "t", "S": symbol, "i": number, "x": "V", "p": price, "s": 100, "c": ["@", "I"],
        "z": "C", "t": at(), **fields,
    }  # fmt: skip


def article(number: int, *symbols: str, **fields: Any) -> dict[str, Any]:
    t = at()
    return {
        "T": "n", "id": number, "headline": "A \u201cheadline\u201d", "summary": "s",
        "author": "a", "created_at": t, "updated_at": t, "content": "<p>c</p>",
        "url": "https://example.com/x", "symbols": [*symbols], "source": "benzinga", **fields,
    }  # fmt: skip


def row(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message as REST has it."""
    return {name: value for name, value in message.items() if name not in {"T", "S"}}


def comparable(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message, its times as UTC nanoseconds."""

    def ns(value: Any) -> int:
        return nanoseconds(value) if isinstance(value, str) else value.to_unix_nano()

    return {k: ns(v) if k in _TIMES else v for k, v in message.items()}


class RelayClient:
    """One connection. It checks of each frame what Alpaca's own clients demand.

    Args:
        url: The whole address.
        encoding: ``json`` or ``msgpack``.
        login: Key and secret of the login message; None to send none.
        reading: Whether it reads from the start; else from :meth:`read` on.
        headers: More of the upgrade request.
        options: Of `websockets`' ``connect``.
    """

    def __init__(
        self,
        url: str,
        *,
        encoding: str = "json",
        login: tuple[str, str] | None = ("key", "secret"),
        reading: bool = True,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        content = {"Content-Type": "application/msgpack"} if encoding == "msgpack" else {}
        self.encoding = encoding
        self.messages: list[dict[str, Any]] = []
        """All so far, in order."""
        self.sizes: list[int] = []
        """The number of messages of each frame."""
        self.closed: ConnectionClosedError | None = None
        self._block = contextlib.ExitStack()
        connection = connect(
            url,
            additional_headers={**content, **(headers or {})},
            **{
                "compression": None,
                "max_size": None,
                "max_queue": None,
                "ping_interval": None,
                "open_timeout": patient(20),
                "close_timeout": 2,
                "proxy": None,
                **options,
            },
        )
        self.socket = self._block.enter_context(connection)
        self._violations: list[Any] = []
        self._subscribed = False
        self._reader = threading.Thread(target=self._read)
        if reading:
            self.read()
            if login is not None:
                self.login(*login)

    def read(self) -> None:
        """Read from now on, in a thread."""
        self._reader.start()

    def login(self, key: str, secret: str) -> None:
        self.send(action="auth", key=key, secret=secret)

    def _read(self) -> None:
        try:
            for payload in self.socket:
                self._take(payload)
        except ConnectionClosedError as closed:
            self.closed = closed

    def _take(self, payload: str | bytes) -> None:
        if isinstance(payload, bytes) != (self.encoding == "msgpack"):
            self._violations.append(("frame type", payload[:200]))
        messages = msgpack.unpackb(payload) if isinstance(payload, bytes) else json.loads(payload)
        if not self.messages and messages != [CONNECTED]:
            self._violations.append(("greeting", messages))
        for message in messages:
            if next(iter(message)) != "T":
                self._violations.append(("T is not the first key", message))
            if message["T"] not in CONTROL and not self._subscribed:
                self._violations.append(("a record before the first acknowledgement", message))
            self._subscribed |= message["T"] == "subscription"
            if message["T"] in CONTROL and len(messages) > 1:
                self._violations.append(("a control message is not alone", messages))
            for name in _TIMES:
                kind = str if self.encoding == "json" else msgpack.Timestamp
                if name in message and not isinstance(message[name], kind):
                    self._violations.append(("time", message))
        self.messages.extend(messages)
        self.sizes.append(len(messages))

    def send(self, **message: Any) -> None:
        self.send_raw(msgpack.packb(message) if self.encoding == "msgpack" else json.dumps(message))

    def send_raw(self, payload: Any) -> None:
        self.socket.send(payload)

    def said(self) -> list[dict[str, Any]]:
        """The control messages so far."""
        return [m for m in list(self.messages) if m["T"] in CONTROL]

    def heard(self, kind: str | None = None, symbol: str | None = None) -> list[dict[str, Any]]:
        """The records so far, comparable."""
        return [
            comparable(m)
            for m in list(self.messages)
            if m["T"] not in CONTROL and kind in {None, m["T"]} and symbol in {None, m.get("S")}
        ]

    def until(self, condition: Callable[[], Any], within: float = 10.0) -> Any:
        return eventually(
            condition,
            within=within,
            what=lambda: (self.said(), len(self.messages), self.messages[-3:], self.closed),
        )

    def answer(self, number: int) -> dict[str, Any]:
        """The control message in this place, counted from 0, waited for."""
        found: dict[str, Any] = self.until(lambda: self.said()[number : number + 1])[0]
        return found

    def ask(self, **message: Any) -> dict[str, Any]:
        """Send a message; the next control message."""
        number = len(self.said())
        self.send(**message)
        return self.answer(number)

    def ready(self) -> RelayClient:
        """Once it is logged in."""
        assert self.answer(0) == CONNECTED
        assert self.answer(1) == AUTHENTICATED
        return self

    def subscribe(self, **channels: Sequence[str]) -> dict[str, Any]:
        """Subscribe; the acknowledgement."""
        return self._change("subscribe", channels)

    def unsubscribe(self, **channels: Sequence[str]) -> dict[str, Any]:
        return self._change("unsubscribe", channels)

    def _change(self, action: str, channels: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        answer = self.ask(action=action, **channels)
        assert answer["T"] == "subscription", answer
        return answer

    def wait(self, kind: str, symbol: str | None, count: int) -> list[dict[str, Any]]:
        """The records once there are so many."""
        found: list[dict[str, Any]] = self.until(
            lambda: (h := self.heard(kind, symbol)) and len(h) >= count and h
        )
        return found

    def refused(self, code: int) -> None:
        """Wait for this error; it has Alpaca's text."""
        errors = self.until(lambda: [m for m in self.said() if m["T"] == "error"])
        assert errors[-1]["code"] == code, errors
        if code in TEXTS:
            assert errors[-1]["msg"] == TEXTS[code]

    @property
    def open(self) -> bool:
        return self._reader.is_alive()

    def close(self) -> None:
        if not self._reader.ident:
            self.read()
        self._block.close()
        self._reader.join()
        assert not self._violations, self._violations[:3]


class House:
    """A feed from outside, a Redis, a service with a relay, and clients of it."""

    def __init__(self, stage: Any, *, max_pairs: int = 10**9, **options: Any) -> None:
        self.stage = stage
        self.alpaca = OutsideAlpaca(max_pairs)
        stage._stack.callback(self.alpaca.close)
        self.valkey = stage.valkey()
        self.redis = self.valkey.client()
        stage._stack.callback(self.redis.close)
        certificate = options.pop("certificate", None)
        env = self.alpaca.env(self.valkey, **options)
        self.service = RelayService(stage, certificate, **env).start()
        self._clients: list[RelayClient] = []

    def client(self, feed: str = "stocks", *, ready: bool = True, **options: Any) -> RelayClient:
        """A client of the path of a feed, or of another path, logged in."""
        path = PATHS.get(feed, feed)
        client = RelayClient(self.service.url + path, **options)
        self._clients.append(client)
        return client.ready() if ready else client

    def symbol(self, feed: str = "stocks") -> str:
        """One that no other test uses."""
        root = new_symbol()
        forms = {"crypto": f"{root}/USD", "options": f"{root}261218C00200000"}
        return forms.get(feed, root)

    def keep(self, message: dict[str, Any]) -> None:
        """Have a quote or trade of a stock in REST's history."""
        channel = {"q": "quotes", "t": "trades"}[message["T"]]
        rows = self.alpaca.history["stocks", channel].setdefault(message["S"], [])
        rows.append(row(message))

    def wanted(self, feed: str, channel: str, symbol: str) -> bool:
        """Whether the service subscribes to it."""
        return symbol in self.alpaca.wants(feed, channel)

    def until_wanted(self, feed: str, *topics: tuple[str, str]) -> None:
        """Wait until the service subscribes to these channels and symbols."""
        eventually(
            lambda: all(self.wanted(feed, channel, symbol) for channel, symbol in topics),
            within=15,
            what=lambda: (topics, self.alpaca.requests[-4:], self.service.status),
        )

    def subscriber(self, feed: str, symbol: str, *channels: str, **options: Any) -> RelayClient:
        """A client whose subscriptions have reached the feed."""
        client = self.client(feed, **options)
        client.subscribe(**{channel: [symbol] for channel in channels})
        self.until_wanted(feed, *((channel, symbol) for channel in channels))
        return client

    def let_go(self) -> None:
        """Close the clients of a test."""
        clients, self._clients = self._clients, []
        for client in clients:
            client.close()
