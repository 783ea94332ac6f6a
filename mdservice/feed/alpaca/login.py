"""The first exchange on a connection: greeting, credentials, answer. Pure.

Source: Alpaca, "Websocket stream": the server greets, the client authenticates within 10 s.
"""

from __future__ import annotations

import attrs

from mdservice.errors import FeedError, FeedUnavailable
from mdservice.feed.alpaca.codec import Codec, Encoding, Frame
from mdservice.feed.alpaca.error_codes import refusal
from mdservice.feed.alpaca.messages import ErrorMessage, Success
from mdservice.model.feeds import STOCKS, Feed

__all__ = ["GREETING", "Credentials", "check_success", "encoding_of", "failed_login"]

GREETING = "connected"
"""The server's first message."""
_SHOWN = 120


@attrs.frozen
class Credentials:
    """An account's key pair; never shown."""

    key: str = attrs.field(repr=False)
    secret: str = attrs.field(repr=False)

    def as_message(self) -> dict[str, str]:
        """The authentication message."""
        return {"action": "auth", "key": self.key, "secret": self.secret}

    def as_headers(self) -> dict[str, str]:
        """The same for the REST API."""
        return {"APCA-API-KEY-ID": self.key, "APCA-API-SECRET-KEY": self.secret}


def encoding_of(frame: Frame) -> Encoding:
    """The server's encoding, by its greeting: a text frame is JSON.

    The client asks for an encoding in the upgrade request's ``Content-Type``; servers that have
    only JSON ignore it.
    """
    return "json" if isinstance(frame, str) else "msgpack"


def check_success(frame: Frame, expected: str, feed: Feed = STOCKS) -> None:
    """Check that the frame is ``[{"T":"success","msg":expected}]``.

    Raises:
        FeedRefused: It is an error message.
        FeedUnavailable: It is anything else: this is not Alpaca's protocol.
    """
    for control in Codec(encoding_of(frame)).control_messages(frame):
        if isinstance(control, ErrorMessage):
            raise refusal(control.code, control.msg, feed)
        if isinstance(control, Success) and control.msg == expected:
            return
    # Only the greeting is shown: later messages may repeat the credentials.
    got = f", got {frame[:_SHOWN]!r}" if expected == GREETING else ""
    raise FeedUnavailable(
        f"expected {expected!r} from the feed{got}; "
        "check that the feed's URL speaks Alpaca's protocol"
    )


def failed_login(last_frame: Frame | None, reason: Exception, feed: Feed = STOCKS) -> FeedError:
    """Why a client library's own login failed: by the code in the last frame, if it has one."""
    if last_frame is not None:
        for control in Codec(encoding_of(last_frame)).control_messages(last_frame):
            if isinstance(control, ErrorMessage):
                return refusal(control.code, control.msg, feed)
    return FeedUnavailable(f"logging in to the feed failed: {reason}")
