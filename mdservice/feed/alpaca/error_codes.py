"""Alpaca's error codes, and what each asks of the connection.

Source: Alpaca, "Real-time stock data", table of errors; the reactions follow what the
maintainers of its clients and their users report.
"""

from __future__ import annotations

from enum import Enum

from mdservice.errors import FeedRefused

__all__ = [
    "FATAL_WHEN_SUBSCRIBING",
    "NO_STREAM_THERE",
    "Reaction",
    "http_refusal",
    "reaction_to_code",
    "reaction_to_http",
    "refusal",
]


class Reaction(Enum):
    """What to do about an error."""

    IGNORE = "ignore"
    REFUSE_REQUEST = "refuse the request, keep the connection"
    RECONNECT = "reconnect with back-off"
    WAIT_FOR_SLOT = "close, wait for the connection slot"
    FATAL = "cannot be fixed by trying again"


_REACTIONS = {
    400: Reaction.REFUSE_REQUEST,
    401: Reaction.RECONNECT,
    402: Reaction.FATAL,
    403: Reaction.IGNORE,
    404: Reaction.RECONNECT,
    405: Reaction.REFUSE_REQUEST,
    406: Reaction.WAIT_FOR_SLOT,
    407: Reaction.RECONNECT,
    408: Reaction.FATAL,
    409: Reaction.FATAL,
    410: Reaction.REFUSE_REQUEST,
    411: Reaction.FATAL,
    412: Reaction.FATAL,
    413: Reaction.FATAL,
    500: Reaction.RECONNECT,
}

NO_STREAM_THERE = frozenset((301, 302, 307, 308, 400, 404, 405, 410, 426))
"""HTTP statuses of a server that has no websocket at that path."""

FATAL_WHEN_SUBSCRIBING = frozenset((410,))
"""Refusals of a request that are fatal when nothing is subscribed yet: not on this feed."""

_ADVICE = {
    400: "the message, or a symbol in it, is not understood; check the symbols",
    402: "check ALPACA_API_KEY and ALPACA_SECRET_KEY (paper and live keys differ)",
    405: "the plan's symbol limit is reached; unsubscribe others or use a larger plan",
    406: "the account's one connection is in use by another program, or an old session still "
    "holds it for about 90 s",
    408: "market data v2 is not enabled for this account",
    409: "the account's plan does not include this feed; choose another with MDSERVICE_FEED",
    410: "this feed does not take that subscription; choose another with MDSERVICE_FEED",
    411: "the key's scope does not include market data; make a key that has it",
}


def reaction_to_code(code: int) -> Reaction:
    """What an error message asks for; an unknown code refuses the request under way."""
    return _REACTIONS.get(code, Reaction.REFUSE_REQUEST)


def reaction_to_http(status: int) -> Reaction:
    """What a refused upgrade asks for."""
    return Reaction.FATAL if status in (401, 403) else Reaction.RECONNECT


def refusal(code: int, message: str) -> FeedRefused:
    """The error for a refusal by code, with what to do about it."""
    advice = _ADVICE.get(code)
    text = f"the feed refused with {code}: {message or 'no reason given'}"
    return FeedRefused(f"{text}; {advice}" if advice else text, code=code)


def http_refusal(status: int, url: str | None = None) -> FeedRefused:
    """The error for an upgrade that was refused with an HTTP status.

    Args:
        status: The status.
        url: Of the feed; without any secret.
    """
    feed = "the feed" if url is None else f"the feed at {url}"
    text = f"{feed} refused the connection with HTTP {status}"
    if reaction_to_http(status) is Reaction.FATAL:
        text += "; check ALPACA_API_KEY and ALPACA_SECRET_KEY and the feed's URL"
    elif status in NO_STREAM_THERE:
        text += (
            "; there is no stream at that path: set MDSERVICE_FEED_URL to the whole URL, such as "
            "wss://stream.data.alpaca.markets/v2/iex, or choose a feed by MDSERVICE_FEED"
        )
    return FeedRefused(text, code=status, http=True)
