"""Alpaca's error codes, and how the connection reacts to each.

Source: Alpaca, "Real-time stock data", table of errors; the reactions follow reports by the
maintainers and users of its clients.
"""

from __future__ import annotations

from mdservice.errors import FeedError, FeedRefused, FeedUnavailable, Remedy
from mdservice.feed.driver import Cause, RequestRefused
from mdservice.model.feeds import NEWS_FEED, STOCKS, Feed, FeedName

__all__ = ["error_in_stream", "http_refusal", "refusal"]

_HARMLESS = 403
"""Already authenticated."""
_CAUSES: dict[int, Cause] = {
    400: "bad_symbol",
    405: "symbol_limit",
    410: "not_offered",
    413: "bad_symbol",
}
"""Answers to a request; the connection stays open, as it does after an unknown code."""
_RECONNECT = frozenset((401, 404, 407, 500))
"""The connection cannot be used any more; a new one may work."""

_REMEDIES: dict[int, Remedy] = {
    402: "fix",
    406: "wait_for_slot",
    408: "fix",
    409: "fix",
    410: "fix",
    411: "fix",
    412: "fix",
    413: "fix",
}
"""After any other code at the login, a retry may help."""

_NO_STREAM_THERE = frozenset((301, 302, 307, 308, 400, 404, 405, 410, 426))
"""HTTP statuses of a server that has no websocket at that path."""

_ADVICE = {
    400: "the message, or a symbol in it, is not understood; check the symbols",
    402: "check ALPACA_API_KEY and ALPACA_SECRET_KEY (paper and live keys differ)",
    405: "the plan's symbol limit is reached, which counts each channel of each symbol; "
    "unsubscribe others or use a larger plan",
    406: "the account's one connection to this feed is in use by another program, or an old "
    "session still holds it for about 90 s",
    408: "market data v2 is not enabled for this account",
    409: "the account's plan does not include this feed",
    410: "this feed does not have that channel, as options have no bars; leave it out",
    411: "the key's scope does not include market data; make a key that has it",
    412: "options are sent as msgpack only, and the request for it was lost on the way; check the "
    "proxy, or the URL of the options",
    413: "quotes of all options at once are not sent; name the contracts instead of *",
}
_OTHER_VARIANT = 409
"""Another variant of the feed may be in the plan."""


_EXAMPLES: dict[FeedName, str] = {
    "stocks": "/v2/iex",
    "crypto": "/v1beta3/crypto/us",
    "options": "/v1beta1/indicative",
    "news": "/v1beta1/news",
}


def refusal(code: int, message: str, feed: Feed = STOCKS) -> FeedRefused:
    """The error for a refusal by code, with what to do about it."""
    advice = _ADVICE.get(code)
    if code == _OTHER_VARIANT and feed is not NEWS_FEED:
        advice = f"{advice}; choose another with {_variable(feed, 'FEED')}"
    text = f"the feed refused with {code}: {message or 'no reason given'}"
    remedy = _REMEDIES.get(code, "retry")
    return FeedRefused(f"{text}; {advice}" if advice else text, code=code, remedy=remedy)


def _variable(feed: Feed, what: str) -> str:
    """``MDSERVICE_FEED`` for stocks, ``MDSERVICE_CRYPTO_FEED``; likewise with ``URL``."""
    if feed is STOCKS:
        return "MDSERVICE_FEED" if what == "FEED" else f"MDSERVICE_FEED_{what}"
    return f"MDSERVICE_{feed.name.upper()}_{what}"


def error_in_stream(
    code: int, message: str, feed: Feed = STOCKS
) -> RequestRefused | FeedError | None:
    """The meaning of an error message after the login.

    Returns:
        The answer to the current request, or why the connection ends; None if it is harmless.
    """
    if code == _HARMLESS:
        return None
    error = refusal(code, message, feed)
    if code in _RECONNECT:
        return FeedUnavailable(str(error))
    if code in _REMEDIES and code not in _CAUSES:
        return error
    return RequestRefused(str(error), message, _CAUSES.get(code, "other"), code)


def http_refusal(status: int, url: str | None = None, feed: Feed = STOCKS) -> FeedRefused:
    """The error for an upgrade that was refused with an HTTP status.

    Args:
        status: The status.
        url: The feed's URL, without any secret.
        feed: Which feed.
    """
    where = "the feed" if url is None else f"the feed at {url}"
    text = f"{where} refused the connection with HTTP {status}"
    remedy: Remedy = "retry"
    if status in (401, 403):
        remedy = "fix"
        text += "; check ALPACA_API_KEY and ALPACA_SECRET_KEY and the feed's URL"
    elif status in _NO_STREAM_THERE:
        remedy = "check_url"
        text += (
            f"; there is no stream at that path: set {_variable(feed, 'URL')} to the whole URL, "
            f"such as wss://stream.data.alpaca.markets{_EXAMPLES[feed.name]}"
        )
        if feed is not NEWS_FEED:
            text += f", or choose a feed by {_variable(feed, 'FEED')}"
    return FeedRefused(text, code=status, http=True, remedy=remedy)
