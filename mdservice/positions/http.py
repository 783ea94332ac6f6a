"""Positions of an execution gateway, over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

import anyio
import anyio.to_thread
import attrs

from mdservice.errors import ConfigurationError, PositionsRefused, PositionsUnavailable
from mdservice.model.position import Position
from mdservice.positions import source
from mdservice.positions.answer import OK, read_answer, root_cause
from mdservice.positions.parse import MOST_BYTES
from mdservice.urls import mask_url, parse_url

if TYPE_CHECKING:
    import httpx

__all__ = ["HttpPositions"]

_MEND = "check that URL and the login it needs"
_ASKED_FOR = {"Accept": "application/json", "Accept-Encoding": "identity"}
_PARSED_AT_ONCE_BYTES = 64 * 1024
"""More is parsed in a thread: it would hold the event loop for milliseconds."""


@attrs.frozen
class _Answer:
    """The body only with status 200."""

    status: int
    body: bytes = b""
    location: str | None = None


class HttpPositions:
    """A :class:`~mdservice.positions.source.PositionSource` behind a URL, asked with GET.

    The URL is asked as it is written, with the ``/`` at its end or without it.

    Redirects are not followed, so headers and login stay with the URL's host.

    Args:
        url: ``http://`` or ``https://``; its login, if any, is sent as basic auth.
        headers: Sent with each request; never shown.
        transport: In the place of the network, for tests.

    Raises:
        ConfigurationError: It is no such URL.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        try:
            parse_url(url, "http", "https")
        except ValueError as exc:
            raise ConfigurationError(f"the URL of the positions {exc}") from None
        self.address = mask_url(url.strip())
        self._url, self._auth = _without_login(url.strip())
        self._headers = {**_ASKED_FOR, **(headers or {})}
        self._transport = transport
        self._client: httpx.AsyncClient | None = None
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
                    _MEND,
                    location=answer.location,
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
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _get(self) -> _Answer:
        import httpx

        try:
            try:
                return await self._get_once()
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                # Servers close a kept connection when they like, also just as it is used again.
                return await self._get_once()
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError):
            # Without its text, which can quote a part of the URL
            raise PositionsRefused(f"{self.address} cannot be asked: {_MEND}") from None
        except httpx.TimeoutException as exc:
            raise PositionsUnavailable(f"{self.address} does not answer in time") from exc
        except httpx.HTTPError as exc:
            reason = str(exc) or root_cause(exc)
            raise PositionsUnavailable(f"{self.address} cannot be read: {reason}") from exc

    async def _get_once(self) -> _Answer:
        async with self._kept_client().stream("GET", self._url) as response:
            if response.status_code != OK:
                location = response.headers.get("Location")
                return _Answer(response.status_code, location=location)
            encoding = response.headers.get("Content-Encoding", "identity")
            if encoding != "identity":
                raise PositionsRefused(
                    f"{self.address} answers in another encoding than the plain one asked for: "
                    "let it answer without compression"
                )
            body = bytearray()
            # Raw, and ended by cancelling: a break, or an error of decompression, would leave
            # httpx's generators to the collector, which trio warns of.
            with anyio.CancelScope() as reading:
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > MOST_BYTES:
                        reading.cancel()
            return _Answer(response.status_code, bytes(body))

    def _kept_client(self) -> httpx.AsyncClient:
        if self._client is None:
            import httpx

            self._client = httpx.AsyncClient(
                auth=self._auth,
                headers=self._headers,
                timeout=source.FETCH_LIMIT_S,
                limits=httpx.Limits(max_connections=2, max_keepalive_connections=1),
                transport=self._transport,
            )
        return self._client


def _without_login(url: str) -> tuple[str, tuple[str, str] | None]:
    """The URL as it may be logged, by httpx for instance, and its login."""
    parts = urlsplit(url)
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))
    if parts.username is None:
        return bare, None
    return bare, (unquote(parts.username), unquote(parts.password or ""))
