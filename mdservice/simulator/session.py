"""Alpaca's answers to a client's messages, and its state of the account.

Pure: messages in, replies out; no socket, no event loop, no clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from collections.abc import Set as AbstractSet
from enum import Enum
from itertools import starmap
from typing import Any, Final, Literal

import attrs

from mdservice.errors import InvalidSymbol
from mdservice.model.symbol import EVERY_SYMBOL, parse_symbol
from mdservice.simulator.feeds import FEEDS, OPTIONS, TRADING, StreamName, feed_at
from mdservice.simulator.wire import Encoding, error_message

__all__ = [
    "NOTHING",
    "SILENCE",
    "Account",
    "Refusals",
    "Reply",
    "Session",
    "SessionRules",
    "Silence",
    "When",
]

When = Literal["upgrade", "connect", "auth", "subscribe", "unsubscribe"]
"""The moments of a connection at which the server answers."""

_MOST_PLANNED = 10_000

_EVERY_CHANNEL = frozenset(channel for feed in FEEDS for channel in feed.channels)
_NORMAL_CLOSURE = 1000
_MOST_PAIRS = 50_000
"""Bounds what one session can make the simulator hold, where no limit is set."""


class Session:
    """The protocol's state for one connection.

    Args:
        number: Names the session towards the account.
        endpoint: The path of the upgrade request, ``/v2/iex``.
        account: Checks the login and lends the slot.
        refusals: Answers planned in the place of the usual ones.
        rules: Limits.
        encoding: Of the client's messages.
    """

    def __init__(
        self,
        number: int,
        endpoint: str,
        *,
        account: Account,
        refusals: Refusals,
        rules: SessionRules,
        encoding: Encoding = "msgpack",
    ) -> None:
        self.number = number
        self.endpoint = endpoint
        self.feed = feed_at(endpoint)
        self.authenticated = False
        self.silent = False
        """It was planned that this client gets no answer any more."""
        self._account = account
        self._refusals = refusals
        self._rules = rules
        self._encoding = encoding
        self._key = ""
        self._subscribed: dict[str, dict[str, None]] = {
            channel: {} for channel in self.feed.channels
        }

    @property
    def subscriptions(self) -> dict[str, tuple[str, ...]]:
        """The symbols of each channel, in the order in which they were added."""
        return {channel: tuple(symbols) for channel, symbols in self._subscribed.items()}

    def wants(self, symbol: str, channel: str = "quotes") -> bool:
        """Whether data of this symbol is subscribed to, by name or by ``*``."""
        symbols = self._subscribed.get(channel, {})
        return symbol in symbols or EVERY_SYMBOL in symbols

    def open(self, now_s: float, credentials: tuple[str, str] | None = None) -> Reply:
        """The server's first messages.

        Args:
            now_s: Monotonic seconds.
            credentials: Key and secret from the upgrade's headers, where it had them.
        """
        planned = self._planned("connect")
        if planned is not None:
            return planned
        connected = {"T": "success", "msg": "connected"}
        if credentials is None:
            return Reply((connected,))
        login = self._authenticate(*credentials, now_s)
        return Reply((connected, *login.messages), login.close_code)

    def receive(self, message: Mapping[str, Any] | None, now_s: float) -> Reply:
        """Answer one message of the client.

        Args:
            message: Decoded; None where it could not be.
            now_s: Monotonic seconds.
        """
        if self.silent:
            return NOTHING
        action = None if message is None else message.get("action")
        if message is not None and action == "auth":
            if self.authenticated:
                return self._error(403)
            return self._authenticate(message.get("key"), message.get("secret"), now_s)
        if message is not None and action in ("subscribe", "unsubscribe"):
            if not self.authenticated:
                return self._error(401)
            return self._change(message, adding=action == "subscribe")
        return self._error(400)

    def time_out(self) -> Reply:
        """End the session if the client has not logged in by now."""
        return NOTHING if self.authenticated or self.silent else self._error(404)

    def end(self, now_s: float, *, clean: bool) -> None:
        """The connection is gone; ``clean`` after a closing handshake."""
        if self.authenticated:
            self._account.release(self.number, self._key, self.endpoint, now_s, clean=clean)

    def _authenticate(self, key: object, secret: object, now_s: float) -> Reply:
        planned = self._planned("auth")
        if planned is not None:
            return planned
        if not isinstance(key, str) or not self._account.accepts(key, secret):
            return self._error(402)
        if not self._account.claim(self.number, key, self.endpoint, now_s):
            return self._error(406)
        self.authenticated = True
        self._key = key
        return Reply(({"T": "success", "msg": "authenticated"},))

    def _change(self, message: Mapping[str, Any], *, adding: bool) -> Reply:
        planned = self._planned("subscribe" if adding else "unsubscribe")
        if planned is not None:
            return planned
        asked = {name: value for name, value in message.items() if name != "action"}
        refusal = self._refusal(asked)
        if refusal is not None:
            return self._error(refusal)
        changed = {channel: dict(self._subscribed[channel]) for channel in self.feed.asked_for}
        for channel, symbols in asked.items():
            for symbol in symbols:
                if not adding:
                    changed.get(channel, {}).pop(symbol, None)
                elif channel in changed and symbol not in self._rules.ignored_symbols:
                    changed[channel][symbol] = None
        if adding and self._too_many(changed):
            return self._error(405)
        for channel in self.feed.with_trades:
            changed[channel] = dict(changed["trades"])
        self._subscribed = changed
        state = {channel: list(changed[channel]) for channel in self.feed.channels}
        added = {channel: frozenset(asked[channel]) for channel in asked} if adding else {}
        return Reply(({"T": "subscription", **state},), subscribed=added)

    def _refusal(self, asked: Mapping[str, Any]) -> int | None:
        """The error code of an invalid request, or None; subscriptions do not matter."""
        if self.feed.msgpack_only and self._encoding != "msgpack":
            return 412
        if not _EVERY_CHANNEL.difference(self.feed.channels).isdisjoint(asked):
            return 410
        if not asked or not all(starmap(self._valid, asked.items())):
            return 400
        if any(EVERY_SYMBOL in asked.get(channel, ()) for channel in self.feed.no_wildcard):
            return 413
        return None

    def _too_many(self, subscribed: Mapping[str, Sized]) -> bool:
        rules = self._rules
        limit = _MOST_PAIRS if rules.symbol_limit is None else rules.symbol_limit
        if sum(map(len, subscribed.values())) > limit:
            return True
        quotes = rules.option_quotes_limit
        return self.feed is OPTIONS and quotes is not None and len(subscribed["quotes"]) > quotes

    def _valid(self, channel: str, symbols: object) -> bool:
        known = channel in self.feed.channels
        if not known or not isinstance(symbols, Sequence) or isinstance(symbols, str):
            return False
        return all(self._valid_symbol(symbol) for symbol in symbols)

    def _valid_symbol(self, symbol: object) -> bool:
        if not isinstance(symbol, str) or symbol in self._rules.invalid_symbols:
            return False
        try:
            return parse_symbol(symbol) == symbol and self.feed.has_symbol(symbol)
        except InvalidSymbol:
            return False

    def _planned(self, when: When) -> Reply | None:
        """The answer that a test planned for this moment."""
        answer = self._refusals.take(when, self.feed.name)
        if isinstance(answer, Silence):
            self.silent = True
            return NOTHING
        return None if answer is None else self._error(answer)

    def _error(self, code: int) -> Reply:
        closes = code in self._rules.closing_codes
        return Reply((error_message(code),), _NORMAL_CLOSURE if closes else None)


@attrs.frozen
class SessionRules:
    """What a session may do; see :class:`~mdservice.simulator.config.SimulatorConfig`."""

    symbol_limit: int | None = None
    option_quotes_limit: int | None = 200
    invalid_symbols: AbstractSet[str] = frozenset()
    ignored_symbols: AbstractSet[str] = frozenset()
    closing_codes: AbstractSet[int] = frozenset((402, 404, 406, 407))


@attrs.frozen
class Reply:
    """What goes back.

    Attributes:
        messages: Control messages; each travels alone in its frame.
        close_code: The websocket close code where the server hangs up after them.
        subscribed: The symbols of each channel that an accepted request asked for, also those
            that were subscribed to before.
    """

    messages: tuple[Mapping[str, Any], ...] = ()
    close_code: int | None = None
    subscribed: Mapping[str, AbstractSet[str]] = attrs.field(factory=dict)


NOTHING = Reply()


@attrs.define
class Account:
    """Who may log in, and how many at once.

    Args:
        key: The only key accepted; None accepts any that is not empty.
        secret: Likewise.
        connection_limit: Sessions at once for one key and endpoint; None for any number.
        slot_hold_s: How long a session that ended without a closing handshake keeps its slot.
    """

    key: str | None = None
    secret: str | None = attrs.field(default=None, repr=False)
    connection_limit: int | None = 1
    slot_hold_s: float = 0.0
    _slots: dict[tuple[str, str], dict[int, float]] = attrs.field(factory=dict, init=False)

    def accepts(self, key: object, secret: object) -> bool:
        """Whether these are the key and secret of the account."""
        return self._fits(key, self.key) and self._fits(secret, self.secret)

    @staticmethod
    def _fits(given: object, expected: str | None) -> bool:
        if not isinstance(given, str) or not given:
            return False
        return expected is None or given == expected

    def claim(self, session: int, key: str, endpoint: str, now_s: float) -> bool:
        """Take a slot of this key and endpoint; False where none is free."""
        slots = self._slots.setdefault((key, endpoint), {})
        for holder in [holder for holder, until_s in slots.items() if until_s <= now_s]:
            del slots[holder]
        if self.connection_limit is not None and len(slots) >= self.connection_limit:
            return False
        slots[session] = float("inf")
        return True

    def release(self, session: int, key: str, endpoint: str, now_s: float, *, clean: bool) -> None:
        """Give the slot back: at once after a closing handshake, else ``slot_hold_s`` later."""
        slots = self._slots.get((key, endpoint), {})
        if session not in slots:
            return
        if clean or not self.slot_hold_s:
            del slots[session]
            if not slots:
                del self._slots[key, endpoint]
        else:
            slots[session] = now_s + self.slot_hold_s


class Refusals:
    """The answers that a test or a script of faults has planned, in order."""

    def __init__(self) -> None:
        self._planned: dict[When, list[tuple[int | Silence, StreamName | None]]] = {}

    def plan(
        self, when: When, answer: int | Silence, times: int = 1, feed: StreamName | None = None
    ) -> None:
        """Answer the next ``times`` of ``when`` with this code, or not at all.

        With ``feed``, only those of this stream; else those of any stream of market data.
        """
        planned = self._planned.setdefault(when, [])
        planned.extend([(answer, feed)] * min(times, _MOST_PLANNED - len(planned)))

    def take(self, when: When, feed: StreamName = "stocks") -> int | Silence | None:
        """Take the next planned answer; None without one."""
        planned = self._planned.get(when, [])
        for place, (answer, of_feed) in enumerate(planned):
            if of_feed == feed or (of_feed is None and feed != TRADING.name):
                del planned[place]
                return answer
        return None

    def clear(self) -> None:
        """Remove all planned answers."""
        self._planned.clear()


class Silence(Enum):
    """Stands for no answer at all."""

    SILENCE = "silence"


SILENCE: Final = Silence.SILENCE
"""In the place of a code: the server accepts and never answers."""
