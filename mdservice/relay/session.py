"""Alpaca's protocol as one client of the relay sees it. Pure: no socket, no event loop, no clock.

Source: Alpaca, "Streaming Market Data"; alpaca-py (``alpaca/data/live``); the Go SDK
(``marketdata/stream``).
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs
import msgspec

from mdservice.errors import InvalidSymbol
from mdservice.model.feeds import CRYPTO, FEEDS, NEWS_FEED, OPTIONS, STOCKS, Feed, Topic, feed_of
from mdservice.model.kinds import QUOTES, TRADES
from mdservice.model.symbol import EVERY_SYMBOL, parse_symbol
from mdservice.relay.messages import Encoding

__all__ = [
    "ERROR_TEXTS",
    "MOST_TOPICS",
    "Ack",
    "Change",
    "Credentials",
    "RelayError",
    "Session",
    "encode_control",
    "feed_at",
    "is_msgpack",
    "read_message",
]

MOST_TOPICS = 50_000
"""How many channels of symbols one client may subscribe; a request beyond it gets 405."""

ERROR_TEXTS: Final[Mapping[int, str]] = {
    400: "invalid syntax",
    401: "not authenticated",
    402: "auth failed",
    403: "already authenticated",
    404: "auth timeout",
    405: "symbol limit exceeded",
    407: "slow client",
    409: "insufficient subscription",
    410: "invalid subscribe action for this feed",
    412: "option messages are only available in MsgPack format",
    413: "star subscription is not allowed for option quotes",
    500: "internal error",
}
"""Source: Alpaca's streaming documentation; 412 and 413 are worded from its description."""

_CLOSING: Final = frozenset((402, 404, 407, 409))
"""After these the relay closes the connection."""
_COMPANIONS: Final = {
    feed: tuple(kind.channel for kind in feed.kinds if kind.is_companion) for feed in FEEDS
}
"""Channels that come with ``trades`` and cannot be subscribed by themselves."""
_CHANNELS: Final = {feed: (*feed.channels, *_COMPANIONS[feed]) for feed in FEEDS}
_EVERY_CHANNEL: Final = frozenset(channel for each in _CHANNELS.values() for channel in each)

_STOCK_PATHS: Final = {
    "/v2/iex": "iex",
    "/v2/sip": "sip",
    "/v2/delayed_sip": "delayed_sip",
    "/v2/test": "test",
    "/v1beta1/boats": "boats",
    "/v1beta1/overnight": "overnight",
}
_PATHS: Final[Mapping[str, tuple[Feed, str]]] = {
    **{path: (STOCKS, name) for path, name in _STOCK_PATHS.items()},
    **{f"/v1beta3/crypto/{name}": (CRYPTO, name) for name in ("us", "us-1", "eu-1")},
    "/v1beta1/indicative": (OPTIONS, "indicative"),
    "/v1beta1/opra": (OPTIONS, "opra"),
    "/v1beta1/news": (NEWS_FEED, ""),
}
_ANY_LOCATION: Final = "/v1beta2/crypto"
"""The older Python SDK's path, which names no location."""


def feed_at(path: str, served: Mapping[Feed, str | None]) -> tuple[Feed, bool] | None:
    """The feed of a path, and whether this service is set up for it; None for an unknown path.

    Args:
        path: Of the upgrade request, without the query.
        served: The feeds of the service with their names in Alpaca's paths (``iex``, ``us``);
            None where any name is right, as on the simulator.
    """
    path = path.rstrip("/")
    if path == _ANY_LOCATION:
        return CRYPTO, CRYPTO in served
    found = _PATHS.get(path)
    if found is None:
        return None
    feed, name = found
    return feed, feed in served and served[feed] in (None, name)


@attrs.frozen
class Credentials:
    """A key and a secret, as a client gave them."""

    key: str = attrs.field(repr=False)
    secret: str = attrs.field(repr=False)

    def fit(self, pairs: Mapping[str, str]) -> bool:
        """Whether they are one of the pairs, compared in constant time; any pair without pairs."""
        if not pairs:
            return bool(self.key and self.secret)
        fits = False
        for key, secret in pairs.items():
            fits |= _equal(self.key, key) & _equal(self.secret, secret)
        return fits


def _equal(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), expected.encode())


class RelayError(Exception):
    """A request that is refused.

    Args:
        code: Alpaca's.
        text: Alpaca's words for the code, unless the feed had others.
    """

    def __init__(self, code: int, text: str = "") -> None:
        self.code = code
        self.text = text or ERROR_TEXTS.get(code, "error")
        super().__init__(f"{code}: {self.text}")

    @property
    def closes(self) -> bool:
        """Whether the connection ends with it."""
        return self.code in _CLOSING

    def message(self) -> dict[str, Any]:
        """``{"T": "error", "code": 405, "msg": "symbol limit exceeded"}``."""
        return {"T": "error", "code": self.code, "msg": self.text}


@attrs.frozen
class Ack:
    """A login that succeeded."""


@attrs.frozen
class Change:
    """A request to subscribe or unsubscribe, checked but not applied.

    Attributes:
        adding: Whether to subscribe.
        topics: What it names that the client does not have yet, or has.
    """

    adding: bool
    topics: tuple[Topic, ...]


class Session:
    """What one client has said and gets.

    Args:
        feed: The feed of its path.
        served: Whether the service is set up for that path.
        encoding: Of its frames.
        keys: Key pairs that may log in; empty for any.

    Attributes:
        subscribed: The client's topics, each with the request that has subscribed it.
    """

    def __init__(
        self, feed: Feed, *, served: bool, encoding: Encoding, keys: Mapping[str, str]
    ) -> None:
        self.feed = feed
        self.encoding = encoding
        self.authenticated = False
        self.subscribed: dict[Topic, Change] = {}
        self._served = served
        self._keys = keys

    def log_in(self, credentials: Credentials) -> None:
        """Check a login.

        Raises:
            RelayError: 402 for a wrong key or secret, 409 where the service does not have the
                path's feed, 403 after an earlier login.
        """
        if self.authenticated:
            raise RelayError(403)
        if not credentials.fit(self._keys):
            raise RelayError(402)
        if not self._served:
            raise RelayError(409)
        self.authenticated = True

    def receive(self, message: Mapping[str, Any] | None) -> Ack | Change:
        """Take one message of the client.

        Args:
            message: Decoded; None where it cannot be.

        Raises:
            RelayError: It is refused; nothing has changed.
        """
        action = None if message is None else message.get("action")
        if message is None or action not in ("auth", "subscribe", "unsubscribe"):
            raise RelayError(400)
        if action == "auth":
            key, secret = message.get("key"), message.get("secret")
            if not isinstance(key, str) or not isinstance(secret, str):
                raise RelayError(403 if self.authenticated else 402)
            self.log_in(Credentials(key, secret))
            return Ack()
        if not self.authenticated:
            raise RelayError(401)
        adding = action == "subscribe"
        named = self._named(message, adding=adding)
        if adding:
            new = tuple(topic for topic in named if topic not in self.subscribed)
            if len(self.subscribed) + len(new) > MOST_TOPICS:
                raise RelayError(405)
            return Change(adding, new)
        return Change(adding, tuple(topic for topic in named if topic in self.subscribed))

    def apply(self, change: Change) -> None:
        """Apply a change; the acknowledgement then has it."""
        if change.adding:
            self.subscribed |= dict.fromkeys(change.topics, change)
        else:
            for topic in change.topics:
                self.subscribed.pop(topic, None)

    def acknowledgement(self) -> dict[str, Any]:
        """The whole state: ``{"T": "subscription", "trades": [], "quotes": ["AAPL"], …}``."""
        state: dict[str, list[str]] = {channel: [] for channel in _CHANNELS[self.feed]}
        for channel, symbol in self.subscribed:
            state[channel].append(symbol)
        for channel in _COMPANIONS[self.feed]:
            state[channel] = list(state[TRADES.channel])
        return {"T": "subscription", **state}

    def _named(self, message: Mapping[str, Any], *, adding: bool) -> tuple[Topic, ...]:
        """The topics of a request."""
        if self.feed is OPTIONS and self.encoding != "msgpack":
            raise RelayError(412)
        # The Go SDK names every channel of every feed, most of them with null or without symbols.
        asked = {
            name: symbols
            for name, symbols in message.items()
            if name != "action" and symbols is not None and symbols != []
        }
        if not _EVERY_CHANNEL.difference(_CHANNELS[self.feed]).isdisjoint(asked):
            raise RelayError(410)
        topics: dict[Topic, None] = {}
        for channel, symbols in asked.items():
            if channel not in _CHANNELS[self.feed] or not isinstance(symbols, Sequence):
                raise RelayError(400)
            if isinstance(symbols, str | bytes):
                raise RelayError(400)
            parsed = list(map(self._symbol, symbols))
            if channel not in _COMPANIONS[self.feed]:  # these come with the trades
                topics |= dict.fromkeys(Topic(channel, symbol) for symbol in parsed)
        if len(message) == 1:
            raise RelayError(400)
        if adding and self.feed is OPTIONS and Topic(QUOTES.channel, EVERY_SYMBOL) in topics:
            raise RelayError(413)
        return tuple(topics)

    def _symbol(self, value: object) -> str:
        if not isinstance(value, str):
            raise RelayError(400)
        try:
            symbol = parse_symbol(value)
        except InvalidSymbol:
            raise RelayError(400) from None
        fits = symbol == EVERY_SYMBOL or self.feed is NEWS_FEED or feed_of(symbol) is self.feed
        if symbol != value or not fits:
            raise RelayError(400)
        return symbol


_decode_json = msgspec.json.Decoder(dict[str, Any]).decode
_decode_msgpack = msgspec.msgpack.Decoder(dict[str, Any]).decode
_encoders: Final = {
    "json": msgspec.json.Encoder().encode,
    "msgpack": msgspec.msgpack.Encoder().encode,
}


def is_msgpack(payload: bytes, *, text: bool) -> bool:
    """Whether a client's message is msgpack. No map of msgpack begins as a JSON object does."""
    return not text and payload[:1] not in b"{ \t\r\n"


def read_message(payload: bytes, *, text: bool) -> dict[str, Any] | None:
    """A client's message, or None where it cannot be read. Text frames are JSON, binary either."""
    decode = _decode_msgpack if is_msgpack(payload, text=text) else _decode_json
    try:
        return decode(payload)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def encode_control(message: Mapping[str, Any], encoding: Encoding) -> bytes:
    """A control message alone in its array: the payload of one frame."""
    return _encoders[encoding]([message])
