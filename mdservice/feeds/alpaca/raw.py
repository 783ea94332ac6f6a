"""The raw driver: Alpaca's protocol with the ``websockets`` library, on trio and asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import TaskGroup
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from mdservice.errors import FeedError, FeedUnavailable
from mdservice.feeds.alpaca.codec import Codec
from mdservice.feeds.alpaca.codes import http_refusal
from mdservice.feeds.alpaca.login import GREETING, Credentials, check_success, encoding_of
from mdservice.feeds.alpaca.raw_connections import connect_by_library, receive_some
from mdservice.feeds.driver import CLOSE_TIMEOUT_S, Encoding, Frame, Link, LoginLimit
from mdservice.network import Route, root_cause, route, tls_advice, tls_context
from mdservice.urls import mask_url

if TYPE_CHECKING:
    import trio
    from websockets.trio.client import ClientConnection

__all__ = ["MAX_FRAME_BYTES", "MAX_QUEUED_FRAMES", "WebsocketsDriver"]

MAX_FRAME_BYTES = 16 * 1024 * 1024
"""Large subscriptions burst: Alpaca's frames can pass the usual limit of 1 MiB."""
MAX_QUEUED_FRAMES = 1024
"""Frames read ahead; beyond that TCP holds the sender back."""
_PING_INTERVAL_S = 20.0
_PING_TIMEOUT_S = 15.0
"""Below the interval: websockets 17 on trio stops asking, with an error in the log, once an answer
has taken longer than that. Pings prove the transport alone; market data is watched beside them."""


class WebsocketsDriver:
    """Alpaca's protocol spoken directly.

    Asks for msgpack, follows a server that answers in JSON. No compression is offered: at
    the rates of a full feed inflating costs more than all of the decoding.

    Args:
        url: ``wss://stream.data.alpaca.markets/v2/iex`` or any that speaks the same.
        credentials: Sent in the authentication message.
        open_stream: Opens what stands in the place of a TCP connection, such as a stream in
            memory; on trio alone. It raises OSError where there is no connection.
        limit: How long a login may take; one of its own where not given.

    Raises:
        ConfigurationError: The environment has a proxy or certificates that cannot be used.
    """

    name = "websockets"

    def __init__(
        self,
        url: str,
        credentials: Credentials,
        open_stream: Callable[[], Awaitable[trio.abc.Stream]] | None = None,
        limit: LoginLimit | None = None,
    ) -> None:
        self._url = url
        self._shown = mask_url(url)
        self._credentials = credentials
        self._open_stream = open_stream
        self._limit = limit or LoginLimit()
        self._route = route(url) if open_stream is None else Route()
        by_tls = url.startswith("wss:") or (self._route.proxy or "").startswith("https:")
        self._tls = tls_context() if by_tls else None

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Link]:
        """See :meth:`mdservice.feeds.driver.Driver.connect`."""
        held = _HeldWebsocket()
        error: Exception | None = None
        async with anyio.create_task_group() as tasks:
            try:
                with self._limit.one_try(anyio.current_time) as limit_s:
                    link = await self._open(held, tasks, limit_s)
                yield link
            except Exception as exc:  # noqa: BLE001 - raised below, out of the task group
                error = exc
            finally:
                held.leave()
        if error is not None:
            raise error

    def _way(self) -> dict[str, Any]:
        """The library's arguments for proxy and TLS, so that it does not read the environment."""
        proxy = self._route.proxy
        way: dict[str, Any] = {"proxy": proxy}
        if self._url.startswith("wss:"):
            way["ssl"] = self._tls
        if proxy is not None and proxy.startswith("https:"):
            way["proxy_ssl"] = self._tls
        return way

    async def _open(self, held: _HeldWebsocket, tasks: TaskGroup, limit_s: float) -> Link:
        try:
            with anyio.fail_after(limit_s):
                tasks.start_soon(held.hold, await self._opening(limit_s))
                return await self._log_in(await held.opened())
        except ConnectionClosed as exc:
            raise FeedUnavailable(f"{self._shown} closed the connection at login: {exc}") from exc
        except TimeoutError as exc:
            if held.is_open:
                raise FeedUnavailable(
                    f"{self._shown} accepted the connection but did not finish the login "
                    f"within {limit_s:g} s"
                ) from exc
            raise FeedUnavailable(
                f"{self._shown} did not answer within {limit_s:g} s{self._route.hint}"
            ) from exc
        except FeedError:
            raise
        except Exception as exc:
            # Until it is open, whatever is raised is an outage: on trio a failed handshake of TLS
            # is a BrokenResourceError, and a bad host name is a UnicodeError.
            if held.is_open and not isinstance(exc, (OSError, WebSocketException, EOFError)):
                raise
            raise _not_opened(self._shown, exc, self._route) from exc

    async def _opening(self, limit_s: float) -> Any:
        """The library's ``connect``, which opens TCP unless there is a stream already."""
        stream = {} if self._open_stream is None else {"stream": await self._open_stream()}
        return connect_by_library(MAX_QUEUED_FRAMES, MAX_FRAME_BYTES)(
            self._url,
            additional_headers={"Content-Type": "application/msgpack"},
            open_timeout=limit_s,
            close_timeout=CLOSE_TIMEOUT_S,
            ping_interval=_PING_INTERVAL_S,
            ping_timeout=_PING_TIMEOUT_S,
            max_size=MAX_FRAME_BYTES,
            compression=None,
            **self._way(),
            **stream,
        )

    async def _log_in(self, websocket: ClientConnection) -> Link:
        greeting = await websocket.recv()
        check_success(greeting, GREETING)
        link = _WebsocketLink(websocket, encoding_of(greeting))
        await link.send(self._credentials.as_message())
        check_success(await websocket.recv(), "authenticated")
        return link


class _WebsocketLink:
    def __init__(self, websocket: ClientConnection, encoding: Encoding) -> None:
        self._websocket = websocket
        self._codec = Codec(encoding)

    @property
    def encoding(self) -> Encoding:
        return self._codec.encoding

    async def send(self, message: Mapping[str, Any]) -> None:
        try:
            await self._websocket.send(self._codec.encode(message))
        except ConnectionClosed as exc:
            raise FeedUnavailable(f"the feed closed the connection: {exc}") from exc

    async def receive(self) -> Sequence[Frame]:
        try:
            return await receive_some(self._websocket)
        except ConnectionClosed as exc:
            raise FeedUnavailable(f"the feed closed the connection: {exc}") from exc


class _HeldWebsocket:
    """The library's connection in a task of its own, which the user's cancellation does not reach.

    On trio the library reads in a nursery inside its ``connect``. A cancellation from outside ends
    that nursery, and with it the socket, before a close frame can leave. Here it ends the user's
    task alone, and this task then closes the connection.
    """

    def __init__(self) -> None:
        self._scope = anyio.CancelScope(shield=True)
        self._settled = anyio.Event()
        self._leaving = anyio.Event()
        self._websocket: ClientConnection | None = None
        self._error: Exception | None = None

    @property
    def is_open(self) -> bool:
        """Whether the upgrade was answered."""
        return self._websocket is not None

    async def opened(self) -> ClientConnection:
        """Wait for the connection, and raise what opening it has ended with."""
        await self._settled.wait()
        if self._websocket is None:
            raise self._error or EOFError("the connection was not opened")
        return self._websocket

    def leave(self) -> None:
        """Close the connection, or stop opening it; :meth:`hold` then returns."""
        self._leaving.set()
        if self._websocket is None:
            self._scope.cancel()

    async def hold(self, opening: Any) -> None:
        """Enter the library's ``connect``, and stay in it until :meth:`leave`."""
        try:
            with self._scope:
                async with opening as self._websocket:
                    self._settled.set()
                    await self._leaving.wait()
                    await _close(self._websocket)
        except Exception as exc:  # noqa: BLE001 - raised where the connection is used
            self._error = exc
        finally:
            self._settled.set()


async def _close(websocket: Any) -> None:
    """Send a close frame, and wait for the peer's; after the limit, drop the socket.

    The two versions of the library name it differently. What still comes is thrown away: a full
    queue would keep the peer's close frame from being read.
    """
    websocket.recv_messages.discard()
    with anyio.move_on_after(CLOSE_TIMEOUT_S):
        await (websocket.aclose if hasattr(websocket, "aclose") else websocket.close)()


def _not_opened(url: str, exc: Exception, way: Route) -> FeedError:
    if isinstance(exc, InvalidStatus):
        return http_refusal(exc.response.status_code, url)
    advice = f"{tls_advice(exc)}{way.hint}"
    return FeedUnavailable(f"cannot connect to {url}: {root_cause(exc)}{advice}")
