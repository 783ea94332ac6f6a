"""Checks requests: the token, the limits of the body, symbols and channels in query and body."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import anyio
import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from mdservice.model.feeds import kinds_of
from mdservice.model.symbol import EVERY_SYMBOL, parse_symbols

__all__ = [
    "MAX_BODY_BYTES",
    "MAX_SYMBOLS",
    "OPEN_PATHS",
    "PAGE_FILES",
    "App",
    "BearerGate",
    "BodyLimit",
    "Message",
    "OwnPagesOnly",
    "Receive",
    "Send",
    "asked",
    "listed_channels",
    "listed_symbols",
    "refuse",
]


Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

MAX_BODY_BYTES = 1024 * 1024
MAX_SYMBOLS = 20_000
"""More than any feed has. Bounds the time that one request takes."""

OPEN_PATHS = frozenset({"/health/live", "/health/ready"})
"""The calls that need no token, for load balancers. Nor do the files of the page, which hold no
data."""

PAGE_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page/view.js": ("view.js", "text/javascript; charset=utf-8"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""The files of the page and their types, by path."""

_BODY_TIME_S = 10.0
_DISCARD_TIME_S = 2.0
_SHOWN = 200


class _SymbolsBody(msgspec.Struct, forbid_unknown_fields=True):
    symbols: list[str] | None = None
    symbol: str | None = None
    channels: list[str] | None = None


_body = msgspec.json.Decoder(_SymbolsBody)


def asked(
    symbols: Sequence[str] | None, channels: Sequence[str] | None, body: bytes
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """What a subscription request names: first in the query, then in the body.

    The body is read as JSON for any content type, because ``curl -d`` sends another one.

    Args:
        symbols: Those of ``?symbol=``.
        channels: Those of ``?channels=``, with commas between.
        body: The body.

    Returns:
        The symbols, and the channels; None where no channels are named.

    Raises:
        InvalidSymbol: One of them is not a symbol.
        HTTPException: 422: there are no symbols, too many, or the body is malformed; or the list
            of channels is empty.
    """
    texts = list(symbols or ())
    names = None if channels is None else [name for part in channels for name in part.split(",")]
    if body.strip():
        try:
            decoded = _body.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            reason = str(error)[:_SHOWN]
            raise HTTPException(
                422, f'the body is not of the form {{"symbols": ["AAPL"]}}: {reason}'
            ) from error
        if decoded.symbol is not None:
            texts.append(decoded.symbol)
        texts.extend(decoded.symbols or ())
        if decoded.channels is not None:
            names = [*(names or ()), *_some_channels(decoded.channels)]
    if not texts:
        raise HTTPException(
            422, 'no symbol was given: add ?symbol=AAPL, or a body {"symbols": ["AAPL", "MSFT"]}'
        )
    return _bounded(texts), None if names is None else _some_channels(names)


def listed_channels(query: Sequence[str] | None) -> tuple[str, ...]:
    """The channels of ``?channels=quotes,trades``; without the parameter, ``quotes``.

    Raises:
        InvalidChannel: One of them is not a channel.
        HTTPException: 422: the list is empty.
    """
    if query is None:
        return ("quotes",)
    channels = _some_channels([name for part in query for name in part.split(",")])
    kinds_of(channels)
    return channels


def _some_channels(texts: Sequence[str]) -> tuple[str, ...]:
    channels = tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if not channels:
        raise HTTPException(
            422, "the list of channels is empty: name some, such as quotes,trades, or leave it out"
        )
    return channels


def listed_symbols(query: Sequence[str] | None) -> tuple[str, ...]:
    """The symbols of ``?symbols=A,B``; empty for all: without the parameter, or with ``*``.

    Raises:
        InvalidSymbol: One of them is not a symbol.
        HTTPException: 422: the list is empty or too long.
    """
    if query is None:
        return ()
    texts = [text for part in query for text in part.split(",") if text.strip()]
    if not texts:
        raise HTTPException(
            422, "the list of symbols is empty: give ?symbols=AAPL,MSFT, or leave it out for all"
        )
    symbols = _bounded(texts)
    return () if EVERY_SYMBOL in symbols else symbols


def _bounded(texts: Sequence[str]) -> tuple[str, ...]:
    if len(texts) > MAX_SYMBOLS:
        raise HTTPException(422, f"{len(texts)} symbols in one request: send at most {MAX_SYMBOLS}")
    return parse_symbols(texts)


class BodyLimit:
    """An ASGI layer that passes a request on when its whole body has arrived.

    It reads the body first because Hypercorn never ends a connection whose application answers
    while unread parts of a body fill its queue.

    Args:
        app: The application.
        max_bytes: A longer body is answered with 413.
    """

    def __init__(self, app: App, max_bytes: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = bytearray()
        more = True
        with anyio.move_on_after(_BODY_TIME_S) as time_limit:
            while more and len(body) <= self._max_bytes:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                body += message.get("body", b"")
                more = message.get("more_body", False)
        if len(body) > self._max_bytes:
            detail = f"the body is longer than {self._max_bytes} bytes: send fewer symbols"
            answer = JSONResponse({"detail": detail}, 413)
            await refuse(answer, scope, receive, send, body_ended=not more)
        elif time_limit.cancelled_caught:
            detail = f"the body did not arrive within {_BODY_TIME_S:g} s"
            await refuse(JSONResponse({"detail": detail}, 408), scope, receive, send)
        else:
            await self._app(scope, _replay(bytes(body), receive), send)


def _replay(body: bytes, receive: Receive) -> Receive:
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


async def refuse(
    answer: Response,
    scope: MutableMapping[str, Any],
    receive: Receive,
    send: Send,
    *,
    body_ended: bool = False,
) -> None:
    """Send this answer, and drop the rest of the request's body.

    The answer waits up to two seconds for the end of the body: a client that is disconnected
    while it sends may never read the answer.
    """
    ended = anyio.Event()

    async def discard() -> None:
        more = not body_ended
        while more:
            message = await receive()
            more = message["type"] == "http.request" and message.get("more_body", False)
        ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(discard)
        with anyio.move_on_after(_DISCARD_TIME_S):
            await ended.wait()
        await answer(scope, receive, send)
        tasks.cancel_scope.cancel()


class BearerGate:
    """An ASGI layer that requires the token.

    It is not used on the UNIX socket, which the mode of its file protects.

    Args:
        app: The application.
        token: The token of ``Authorization: Bearer <token>``.
    """

    def __init__(self, app: App, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request; with 401 if the token is missing or wrong."""
        path = scope.get("path")
        is_open = path in OPEN_PATHS or path in PAGE_FILES
        if scope["type"] != "http" or self._allows(scope) or (is_open and path != "/"):
            await self._app(scope, receive, send)
            return
        if path == "/":
            await self._app(scope, receive, _as_refusal(send))  # the page asks for the token
            return
        detail = "this address requires a token: send the header 'Authorization: Bearer <token>'"
        challenge = {"WWW-Authenticate": 'Bearer realm="mdservice"'}
        answer = JSONResponse({"detail": detail}, 401, challenge)
        await refuse(answer, scope, receive, send)

    def _allows(self, scope: MutableMapping[str, Any]) -> bool:
        given = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, credentials = given[0].partition(b" ")
        matches = secrets.compare_digest(credentials.strip(), self._token)
        return scheme.lower() == b"bearer" and matches


def _as_refusal(send: Send) -> Send:
    """The same answer with status 401."""

    async def refusing(message: Message) -> None:
        if message["type"] == "http.response.start":
            challenge = (b"www-authenticate", b'Bearer realm="mdservice"')
            message = {**message, "status": 401, "headers": [*message["headers"], challenge]}
        await send(message)

    return refusing


class OwnPagesOnly:
    """An ASGI layer for an address without a token: it refuses the pages of other sites.

    A browser on this machine sends requests for any site that it shows. So the request must come
    from a page of this address, if from a page at all (``Origin``), and must not have been led here
    by another site's name (``Host``).

    Args:
        app: The application.
        http: The address where it listens, ``host:port``; its host is a name of this machine.
    """

    def __init__(self, app: App, http: str) -> None:
        self._app = app
        self._own = http.rpartition(":")[0].strip("[]").lower()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request; with 403 if another site's page has sent it."""
        if scope["type"] != "http" or self._allows(scope):
            await self._app(scope, receive, send)
            return
        detail = "this address answers no pages of other sites: open it by its address or localhost"
        await refuse(JSONResponse({"detail": detail}, 403), scope, receive, send)

    def _allows(self, scope: MutableMapping[str, Any]) -> bool:
        headers = [(name.lower(), value) for name, value in scope["headers"]]
        hosts = [value.decode("latin-1").lower() for name, value in headers if name == b"host"]
        origins = [value.decode("latin-1").lower() for name, value in headers if name == b"origin"]
        return all(_place(origin) in hosts for origin in origins) and all(map(self._is_here, hosts))

    def _is_here(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:  # such as a bracket that is not closed
            return False
        if name in {"", "localhost", self._own} or name.endswith(".localhost"):
            return True
        try:
            ip_address(name)
        except ValueError:
            return False
        return True


def _place(origin: str) -> str | None:
    """The host and port of an ``Origin``; None where it is malformed."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None
