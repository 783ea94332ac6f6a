"""The stream of the account's trade updates: Alpaca's ``/stream``.

Pure: messages in, replies out; no socket, no event loop, no clock.

Source: Alpaca's documentation "Websocket streaming" of its trading API, and its Python client.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from mdservice.simulator.feeds import TRADING
from mdservice.simulator.session import NOTHING, Account, Refusals, Reply, Silence, When
from mdservice.simulator.wire import OutFrame

__all__ = ["TRADE_UPDATES", "TradingSession"]

TRADE_UPDATES: Final = "trade_updates"
_NORMAL_CLOSURE = 1000
_INTERNAL_ERROR = 1011


class TradingSession:
    """The protocol's state for one connection to the trading stream.

    Its messages are JSON, each in a frame of its own. A refused login leaves the connection open;
    so does a message that cannot be understood, which has no answer (both inferred).

    Args:
        endpoint: The path of the upgrade request, ``/stream``.
        account: Checks the login.
        refusals: Answers planned in the place of the usual ones.
        as_text: Whether frames are text, as on the live account; else binary, as on paper.
    """

    feed = TRADING

    def __init__(
        self, endpoint: str, *, account: Account, refusals: Refusals, as_text: bool
    ) -> None:
        self.endpoint = endpoint
        self.authenticated = False
        self.silent = False
        """It was planned that this client gets no answer any more."""
        self.streams: tuple[str, ...] = ()
        """What the client listens to."""
        self._account = account
        self._refusals = refusals
        self._as_text = as_text

    @property
    def listens(self) -> bool:
        """Whether the client wants trade updates."""
        return TRADE_UPDATES in self.streams

    @property
    def subscriptions(self) -> dict[str, tuple[str, ...]]:
        """``{"streams": ("trade_updates",)}``."""
        return {"streams": self.streams}

    def open(self) -> Reply:
        """The server's first messages: none, unless others were planned."""
        return self._planned("connect", Reply((), _INTERNAL_ERROR)) or NOTHING

    def receive(self, message: Mapping[str, Any] | None, now_s: float) -> Reply:  # noqa: ARG002 - as Session
        """Answer one message of the client.

        Args:
            message: Decoded; None where it could not be.
            now_s: Monotonic seconds.
        """
        if self.silent or message is None:
            return NOTHING
        data = message.get("data")
        fields = data if isinstance(data, Mapping) else {}
        match message.get("action"):
            case "authenticate":
                return self._log_in(fields.get("key_id"), fields.get("secret_key"))
            case "auth":
                return self._log_in(message.get("key"), message.get("secret"))
            case "listen":
                return self._listen(fields.get("streams"))
            case _:
                return NOTHING

    def time_out(self) -> Reply:
        """End the session if the client has not logged in by now."""
        if self.authenticated or self.silent:
            return NOTHING
        return Reply((), _NORMAL_CLOSURE)

    def end(self, now_s: float, *, clean: bool) -> None:
        """The connection is gone; it held no slot."""

    def encode(self, message: Mapping[str, Any]) -> OutFrame:
        """The frame of one message."""
        return OutFrame(msgspec.json.encode(message), self._as_text)

    def _log_in(self, key: object, secret: object) -> Reply:
        refused = _authorization("unauthorized", "authenticate")
        planned = self._planned("auth", refused)
        if planned is not None:
            return planned
        if not self._account.accepts(key, secret):
            return refused
        self.authenticated = True
        return _authorization("authorized", "authenticate")

    def _listen(self, streams: object) -> Reply:
        refused = _authorization("unauthorized", "listen")
        planned = self._planned("subscribe", refused)
        if planned is not None:
            return planned
        if not self.authenticated:
            return refused
        asked = streams if isinstance(streams, Sequence) and not isinstance(streams, str) else ()
        self.streams = (TRADE_UPDATES,) if TRADE_UPDATES in asked else ()
        return Reply(({"stream": "listening", "data": {"streams": self.streams}},))

    def _planned(self, when: When, refused: Reply) -> Reply | None:
        """The answer that a test planned for this moment."""
        answer = self._refusals.take(when, self.feed.name)
        if isinstance(answer, Silence):
            self.silent = True
            return NOTHING
        return None if answer is None else refused


def _authorization(status: str, action: str) -> Reply:
    return Reply(({"stream": "authorization", "data": {"status": status, "action": action}},))
