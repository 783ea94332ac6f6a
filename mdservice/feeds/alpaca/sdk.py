"""The SDK driver: alpaca-py's ``StockDataStream`` lends endpoint, connection and login.

Its own loop (``_run_forever``) is not used: it retries refused credentials for ever, hides
error messages and spins while nothing is subscribed. What is used of it is pinned by
``tests/feeds/alpaca/test_sdk_names.py``; when a release changes those names the driver
fails to start and ``auto`` falls back to the raw one.
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import anyio
import anyio.to_thread

from mdservice.errors import ConfigurationError, FeedError, FeedUnavailable
from mdservice.feeds.alpaca.codec import Codec
from mdservice.feeds.alpaca.codes import http_refusal
from mdservice.feeds.alpaca.login import Credentials, failed_login
from mdservice.feeds.alpaca.raw import MAX_FRAME_BYTES, MAX_QUEUED_FRAMES
from mdservice.feeds.alpaca.sdk_thread import SdkThread, SdkWebsocket
from mdservice.feeds.driver import CLOSE_TIMEOUT_S, Encoding, Frame, Link, LoginLimit
from mdservice.urls import mask_url

__all__ = ["AlpacaPyDriver"]

_IMPORT_LIMIT_S = 8.0
"""It takes one to three seconds, several on a slow disk."""
_MEND = "install alpaca-py, or set MDSERVICE_DRIVER=websockets"


class AlpacaPyDriver:
    """The feed through alpaca-py.

    Args:
        url: Given to the SDK as ``url_override``, since it knows the feeds iex and sip only.
        credentials: The account's key pair.
        limit: How long a login may take; one of its own where not given.
    """

    name = "alpaca-py"

    def __init__(self, url: str, credentials: Credentials, limit: LoginLimit | None = None) -> None:
        self._url = url
        self._credentials = credentials
        self._limit = limit or LoginLimit()

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Link]:
        """See :meth:`mdservice.feeds.driver.Driver.connect`."""
        stream_class, protocol_class = await _sdk()
        limit_s = self._limit.seconds
        thread = SdkThread(
            lambda: _LentStream(
                stream_class, protocol_class, self._url, self._credentials, limit_s
            ),
            limit_s,
        )
        try:
            with self._limit.one_try(anyio.current_time):
                await thread.open()
            yield _SdkLink(thread)
        finally:
            with anyio.CancelScope(shield=True):
                await thread.close()


class _SdkLink:
    encoding: Encoding = "msgpack"

    def __init__(self, thread: SdkThread) -> None:
        self._thread = thread
        self._codec = Codec("msgpack")

    async def send(self, message: Mapping[str, Any]) -> None:
        data = self._codec.encode(message)
        self._thread.send(data if isinstance(data, bytes) else data.encode())

    async def receive(self) -> Sequence[Frame]:
        return await self._thread.take()


class _LentStream:
    """A ``StockDataStream`` of which only the connection is used."""

    def __init__(
        self,
        stream_class: Any,
        protocol_class: Any,
        url: str,
        credentials: Credentials,
        limit_s: float,
    ) -> None:
        self._limit_s = limit_s
        self._shown = mask_url(url)
        self._stream = stream_class(
            credentials.key,
            credentials.secret,
            raw_data=True,
            url_override=url,
            websocket_params={
                "create_protocol": protocol_class,
                "open_timeout": limit_s,
                "close_timeout": CLOSE_TIMEOUT_S / 5,  # the library waits for five of these
                "ping_interval": 10,
                "ping_timeout": 20,
                "max_size": MAX_FRAME_BYTES,
                "max_queue": MAX_QUEUED_FRAMES,
                "compression": None,
            },
        )
        self._websocket: Any = None

    async def open(self) -> SdkWebsocket:
        try:
            await self._stream._start_ws()  # noqa: SLF001 - the login that this driver borrows
        except Exception as exc:
            raise self._translated(exc, self._stream._ws) from exc  # noqa: SLF001
        finally:  # also when cancelled: abort() needs it
            self._websocket = self._stream._ws  # noqa: SLF001
        websocket: SdkWebsocket = self._websocket
        return websocket

    def _translated(self, exc: Exception, websocket: Any) -> FeedError:
        status = getattr(exc, "status_code", None)
        if isinstance(status, int):
            return http_refusal(status)
        if isinstance(exc, TimeoutError):
            return FeedUnavailable(f"{self._shown} did not answer within {self._limit_s:g} s")
        if isinstance(exc, ValueError):  # alpaca-py's own: the answer was not a success
            return failed_login(getattr(websocket, "last_frame", None), exc)
        return FeedUnavailable(f"cannot connect to {self._shown}: {exc or type(exc).__name__}")

    async def close(self) -> None:
        await self._stream.close()

    def abort(self) -> None:
        transport = getattr(self._websocket, "transport", None)
        if transport is not None:
            transport.abort()


async def _sdk() -> tuple[Any, Any]:
    """What :func:`_import_sdk` imports, in a thread, since that takes seconds."""
    try:
        with anyio.fail_after(_IMPORT_LIMIT_S):
            return await anyio.to_thread.run_sync(_import_sdk, abandon_on_cancel=True)
    except TimeoutError as exc:
        raise ConfigurationError(
            f"alpaca-py was not imported within {_IMPORT_LIMIT_S:g} s; {_MEND}"
        ) from exc


@cache
def _import_sdk() -> tuple[Any, Any]:
    """alpaca-py's stream class, and a websocket class that remembers its last frame.

    Once for the process: what it does to the warnings must not meet another thread that does the
    same, as one does that was given up and still imports.

    The SDK tells a refused login as a text; the code is in the frame.

    Raises:
        ConfigurationError: alpaca-py, or what it needs, cannot be imported.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # websockets.legacy, its choice
            from alpaca.data.live import StockDataStream
            from websockets.legacy.client import WebSocketClientProtocol
    except Exception as exc:  # a broken package may raise anything
        raise ConfigurationError(
            f"the driver alpaca-py cannot be imported ({type(exc).__name__}: {exc}); {_MEND}"
        ) from exc

    class RememberingProtocol(WebSocketClientProtocol):
        last_frame: Frame | None = None

        async def recv(self) -> Frame:
            frame = await super().recv()
            self.last_frame = frame
            return frame

    return StockDataStream, RememberingProtocol
