"""Positions over HTTP: those of an execution gateway, and the account's at Alpaca."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from urllib.parse import unquote, urlsplit, urlunsplit

import anyio
import anyio.to_thread

from mdservice.errors import ConfigurationError, PositionsRefused, PositionsUnavailable
from mdservice.model.position import Position
from mdservice.observability.masking import mask_url
from mdservice.positions import source
from mdservice.positions.parse import MOST_BYTES, parse_positions
from mdservice.runtime.network import HttpAnswer, HttpClient, HttpFailed
from mdservice.settings.parsers import parse_url

__all__ = [
    "NO_CONTENT",
    "OK",
    "AlpacaPositions",
    "HttpPositions",
    "read_answer",
    "without_login",
]

OK = 200
NO_CONTENT = 204

_CHECK = "check that URL and the login it needs"
_CHECK_ALPACA = (
    "check ALPACA_API_KEY, ALPACA_SECRET_KEY and MDSERVICE_TRADING_URL: keys of a live account "
    "need https://api.alpaca.markets, those of a paper account https://paper-api.alpaca.markets"
)
_ASKED_FOR = {"Accept": "application/json", "Accept-Encoding": "identity"}
_PARSED_AT_ONCE_BYTES = 64 * 1024
"""More is parsed in a thread: it would hold the event loop for milliseconds."""
_MOST_SHOWN = 200
_REDIRECTS = range(300, 400)
_SERVER_ERROR = 500
_WORTH_ANOTHER_TRY = frozenset((408, 425, 429))


class HttpPositions:
    """A :class:`~mdservice.positions.source.PositionSource` behind a URL, asked with GET.

    The URL is asked as it is written, with the ``/`` at its end or without it.

    Redirects are not followed, so headers and login stay with the URL's host.

    Args:
        url: ``http://`` or ``https://``; its login, if any, is sent as basic auth.
        headers: Sent with each request; never shown.
        http: Shared with other parts, and closed by its owner; one of its own where not given.
        check: What to check when the answer is a no.

    Raises:
        ConfigurationError: It is no such URL, or the environment has a proxy or certificates
            for it that cannot be used.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        http: HttpClient | None = None,
        *,
        check: str = _CHECK,
    ) -> None:
        try:
            parse_url(url, "http", "https")
        except ValueError as exc:
            raise ConfigurationError(f"the URL of the positions {exc}") from None
        self.address = mask_url(url.strip())
        self._url, self._auth = without_login(url.strip())
        self._headers = {**_ASKED_FOR, **(headers or {})}
        self._own_http = HttpClient() if http is None else None
        self._http = http or self._own_http or HttpClient()
        self._http.prepare(self._url)
        self._check = check
        self._lock = anyio.Lock()

    async def fetch(self) -> list[Position]:
        """See :meth:`mdservice.positions.source.PositionSource.fetch`."""
        limit_s = source.FETCH_LIMIT_S
        try:
            with anyio.fail_after(limit_s):
                async with self._lock:
                    answer = await self._get()
                read = partial(
                    read_answer,
                    answer.status,
                    answer.body,
                    self.address,
                    self._check,
                    location=answer.headers.get("Location"),
                )
                if len(answer.body) <= _PARSED_AT_ONCE_BYTES:
                    return read()
                return await anyio.to_thread.run_sync(read)
        except TimeoutError as exc:
            raise PositionsUnavailable(
                f"{self.address} does not answer within {limit_s:g} s"
            ) from exc

    async def aclose(self) -> None:
        """See :meth:`mdservice.positions.source.PositionSource.aclose`."""
        if self._own_http is not None:
            await self._own_http.aclose()

    async def _get(self) -> HttpAnswer:
        try:
            return await self._http.get(
                self._url,
                headers=self._headers,
                auth=self._auth,
                timeout_s=source.FETCH_LIMIT_S,
                most_bytes=MOST_BYTES,
                compressed=False,
                ask_twice=True,
            )
        except HttpFailed as exc:
            if exc.kind == "url":
                raise PositionsRefused(f"{self.address} cannot be asked: {self._check}") from None
            if exc.kind == "encoding":
                raise PositionsRefused(
                    f"{self.address} answers in another encoding than the plain one asked for: "
                    "let it answer without compression"
                ) from exc
            if exc.kind == "size":
                raise PositionsRefused(f"{self.address} {exc}, too much for positions") from exc
            if exc.kind == "timeout":
                raise PositionsUnavailable(f"{self.address} {exc}") from exc
            raise PositionsUnavailable(f"{self.address} cannot be read: {exc}") from exc


class AlpacaPositions(HttpPositions):
    """A :class:`~mdservice.positions.source.PositionSource` at Alpaca's trading API.

    Source: Alpaca, trading API, ``GET /v2/positions``.

    Args:
        trading_url: ``https://paper-api.alpaca.markets``.
        api_key: Never shown.
        secret_key: Never shown.
        http: Shared with other parts, and closed by its owner; one of its own where not given.

    Raises:
        ConfigurationError: See :class:`~mdservice.positions.http.HttpPositions`.
    """

    def __init__(
        self, trading_url: str, api_key: str, secret_key: str, http: HttpClient | None = None
    ) -> None:
        super().__init__(
            f"{trading_url.rstrip('/')}/v2/positions",
            {"APCA-API-KEY-ID": api_key, "APCA-API-SECRET-KEY": secret_key},
            http,
            check=_CHECK_ALPACA,
        )


def read_answer(
    status: int, body: bytes, address: str, advice: str, location: str | None = None
) -> list[Position]:
    """The positions of an answer; none of a 204.

    An empty body with status 200 is no answer: a server that fails in the middle sends that, and it
    must not look as if everything had been sold.

    Args:
        status: The HTTP status.
        body: Looked at only with status 200.
        address: Who answered, for the errors.
        advice: What to check when the answer is a no: ``check the URL``.
        location: Where a redirect leads, as the server wrote it.

    Raises:
        PositionsUnavailable: The server is busy or broken, or its answer ends too early.
        PositionsRefused: It says no, or answers with something else than positions.
    """
    if status == OK:
        return parse_positions(body, address)
    if status == NO_CONTENT:
        return []
    if status >= _SERVER_ERROR or status in _WORTH_ANOTHER_TRY:
        raise PositionsUnavailable(f"{address} answers HTTP {status}; worth another try")
    if status in _REDIRECTS:
        target = f" to {_shown_target(location)}" if location else ""
        raise PositionsRefused(
            f"{address} answers HTTP {status}, a redirect{target}, which is not followed since it "
            f"could carry a login elsewhere: name the right URL, or {advice}"
        )
    raise PositionsRefused(f"{address} answers HTTP {status}: {advice}")


def _shown_target(location: str) -> str:
    """Without a login or the values of a query, also where it is only a path."""
    masked = mask_url(location)
    if masked == location:
        masked = location.partition("?")[0].partition("#")[0]
    return "".join(char if char.isprintable() else "\ufffd" for char in masked[:_MOST_SHOWN])


def without_login(url: str) -> tuple[str, tuple[str, str] | None]:
    """The URL as it may be logged, by httpx for instance, and its login."""
    parts = urlsplit(url)
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))
    if parts.username is None:
        return bare, None
    return bare, (unquote(parts.username), unquote(parts.password or ""))
