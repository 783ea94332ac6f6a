"""The SDK driver: uses the endpoint, connection and login of alpaca-py's streams.

Each feed has its class: ``StockDataStream``, ``CryptoDataStream``, ``OptionDataStream`` or
``NewsDataStream``. Requests go to its websocket directly, so that every channel can be subscribed,
also those that the SDK has no method for, such as ``imbalances``.

It does not use the SDK's own loop (``_run_forever``), which retries refused credentials for ever,
hides error messages and spins while nothing is subscribed. The private names that it uses are
pinned by ``tests/feed/alpaca/test_sdk_driver_names.py``; if a release changes them, the driver
fails to start and ``auto`` falls back to the raw one.

alpaca-py needs an asyncio loop of its own. A thread runs that loop, reads frames and sends them on
in batches: the list is swapped under a lock, and the receiver is woken once per batch. If the
receiver is slow, the thread stops reading, so that TCP slows the sender down.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import threading
import warnings
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, Final, Protocol
from urllib.parse import unquote, urlsplit

import anyio
import anyio.to_thread
import sniffio
from anyio.lowlevel import checkpoint

from mdservice.errors import ConfigurationError, FeedError, FeedUnavailable
from mdservice.feed.alpaca.codec import Frame
from mdservice.feed.alpaca.error_codes import http_refusal
from mdservice.feed.alpaca.link import AlpacaLink
from mdservice.feed.alpaca.login import Credentials, failed_login
from mdservice.feed.alpaca.websockets_driver import (
    MAX_FRAME_BYTES,
    MAX_QUEUED_BYTES,
    MAX_QUEUED_FRAMES,
)
from mdservice.feed.driver import CLOSE_TIMEOUT_S, LoginLimit
from mdservice.feed.subscriptions import Followed
from mdservice.model.feeds import STOCKS, Feed, FeedName
from mdservice.observability.masking import mask_url
from mdservice.runtime.network import Route, root_cause, route, tls_advice, tls_context

__all__ = ["AlpacaPyDriver", "LentSocket", "SdkThread", "SdkWebsocket"]

_MOST_FRAMES = 2048
"""The most frames that may wait before the thread stops reading; or ``MAX_QUEUED_BYTES``."""
_MOST_AT_ONCE = 64
"""The most frames of one batch, since one turn of the shared event loop decodes all of them."""

_IMPORT_LIMIT_S = 15.0
"""As long as a slow login: a busy machine is no reason to change the driver."""
_importing: Final = threading.Lock()
"""The import takes one to three seconds, longer on a slow disk."""
_PING_INTERVAL_S, _PING_TIMEOUT_S = 10.0, 20.0
"""A peer that is gone without a word is found within their sum."""
_DIRECT = Route()
_LONGEST_CONSENT_BYTES = 64 * 1024
_MEND = "install alpaca-py, or set MDSERVICE_DRIVER=websockets"


class AlpacaPyDriver:
    """The feed through alpaca-py.

    Args:
        url: Passed to the SDK as ``url_override``, since it knows only the feeds iex and sip.
        credentials: The account's key pair.
        limit: How long a login may take; by default a limit of its own.
        feed: Which feed it serves.

    Raises:
        ConfigurationError: The environment has a proxy or certificates that cannot be used.
    """

    name = "alpaca-py"

    def __init__(
        self,
        url: str,
        credentials: Credentials,
        limit: LoginLimit | None = None,
        feed: Feed = STOCKS,
    ) -> None:
        self._url = url
        self._feed = feed
        self._credentials = credentials
        self._limit = limit or LoginLimit()
        self._route = route(url)
        self._tls = tls_context("websocket") if url.startswith("wss:") else None

    @asynccontextmanager
    async def connect(
        self, followed: Followed, utc_ns: Callable[[], int]
    ) -> AsyncIterator[AlpacaLink]:
        """See :meth:`mdservice.feed.driver.Driver.connect`."""
        if not (self._route.proxy or "http:").startswith("http:"):
            raise ConfigurationError(
                f"The driver alpaca-py cannot use the proxy of {self._route.variable}: it knows "
                "http:// proxies only. Set MDSERVICE_DRIVER=websockets, which can use it"
            )
        stream_classes, protocol_class = await _sdk()
        limit_s = self._limit.seconds

        def make_socket() -> _LentStream:
            return _LentStream(
                stream_classes[self._feed.name],
                protocol_class,
                self._url,
                self._credentials,
                limit_s,
                self._route,
                self._tls,
                self._feed,
            )

        thread = SdkThread(make_socket, limit_s)
        try:
            with self._limit.one_try(anyio.current_time):
                await thread.open()
            yield _SdkLink(thread, followed, utc_ns, self._feed)
        finally:
            with anyio.CancelScope(shield=True):
                await thread.close()


class _SdkLink(AlpacaLink):
    def __init__(
        self, thread: SdkThread, followed: Followed, utc_ns: Callable[[], int], feed: Feed
    ) -> None:
        super().__init__("msgpack", followed, utc_ns, feed)
        self._thread = thread

    async def send_frame(self, frame: Frame) -> None:
        self._thread.send(frame)

    async def receive_frames(self) -> Sequence[Frame]:
        return await self._thread.take()


class _LentStream:
    """One of the SDK's streams, used only for its connection."""

    def __init__(
        self,
        stream_class: Any,
        protocol_class: Any,
        url: str,
        credentials: Credentials,
        limit_s: float,
        way: Route = _DIRECT,
        tls: ssl.SSLContext | None = None,
        feed: Feed = STOCKS,
    ) -> None:
        self._limit_s = limit_s
        self._feed = feed
        self._shown = mask_url(url)
        self._url = url
        self._way = way
        params: dict[str, Any] = {
            "create_protocol": protocol_class,
            "open_timeout": limit_s,
            "close_timeout": CLOSE_TIMEOUT_S / 5,  # the library waits for five of these
            "ping_interval": _PING_INTERVAL_S,
            "ping_timeout": _PING_TIMEOUT_S,
            "max_size": MAX_FRAME_BYTES,
            "max_queue": MAX_QUEUED_FRAMES,
            "compression": None,
        }
        if tls is not None:
            params["ssl"] = tls
        self._params = params
        self._stream = stream_class(
            credentials.key,
            credentials.secret,
            raw_data=True,
            url_override=url,
            websocket_params=params,
        )
        self._websocket: Any = None

    async def open(self) -> SdkWebsocket:
        try:
            if self._way.proxy is not None:
                self._params["sock"] = await _tunnel(self._way.proxy, self._url)
            await self._stream._start_ws()  # noqa: SLF001 - the login that this driver borrows
        except Exception as exc:
            raise self._translated(exc, self._stream._ws) from exc  # noqa: SLF001
        finally:  # also when cancelled: abort() needs it
            self._websocket = self._stream._ws  # noqa: SLF001
            tunnel = self._params.pop("sock", None)
            if tunnel is not None and self._websocket is None:
                tunnel.close()
        websocket: SdkWebsocket = self._stream._ws  # noqa: SLF001
        return websocket

    def _translated(self, exc: Exception, websocket: Any) -> FeedError:
        hint = self._way.hint
        status = getattr(exc, "status_code", None)
        if isinstance(status, int):
            return http_refusal(status, self._shown, self._feed)
        if isinstance(exc, TimeoutError):
            return FeedUnavailable(f"{self._shown} did not answer within {self._limit_s:g} s{hint}")
        # A ValueError is alpaca-py's own where the answer was not a success. Without a connection
        # it is a bad host name, or a certificate that was not accepted.
        if isinstance(exc, ValueError) and websocket is not None:
            return failed_login(getattr(websocket, "last_frame", None), exc, self._feed)
        advice = f"{tls_advice(exc)}{hint}"
        return FeedUnavailable(f"cannot connect to {self._shown}: {root_cause(exc)}{advice}")

    async def close(self) -> None:
        await self._stream.close()

    def abort(self) -> None:
        transport = getattr(self._websocket, "transport", None)
        if transport is not None:
            transport.abort()


class SdkWebsocket(Protocol):
    """The methods used of alpaca-py's websocket (``websockets.legacy``)."""

    async def recv(self) -> Frame:
        """The next message."""
        ...

    async def send(self, message: Frame) -> None:
        """Send one."""
        ...


class LentSocket(Protocol):
    """The SDK's stream, as the thread uses it."""

    async def open(self) -> SdkWebsocket:
        """Connect and log in.

        Raises:
            FeedError
        """
        ...

    async def close(self) -> None:
        """Close the connection with a closing handshake."""
        ...

    def abort(self) -> None:
        """Drop the connection at once."""
        ...


class SdkThread:
    """One connection of the SDK, from opening to its end.

    Args:
        make_socket: Makes the SDK's stream; called in the thread.
        limit_s: How long its opening may take, seconds.
    """

    def __init__(self, make_socket: Callable[[], LentSocket], limit_s: float) -> None:
        self._make_socket = make_socket
        self._limit_s = limit_s
        self._soon = _host_soon()
        self._thread = threading.Thread(target=self._main, name="alpaca-py", daemon=True)
        self._lock = threading.Lock()
        self._frames: list[Frame] = []
        self._bytes = 0
        self._error: FeedError | None = None
        self._opened = False
        self._closing = False
        self._ended = False
        self._changed = anyio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._websocket: SdkWebsocket | None = None
        self._stop: asyncio.Event
        self._room: asyncio.Event

    # Called from the host's event loop, of any kind.

    async def open(self) -> None:
        """Start the thread; return once it is logged in.

        Raises:
            FeedError: The reason why it could not connect or log in.
        """
        self._thread.start()
        while not self._opened:
            if self._ended:
                raise self._error or FeedUnavailable("alpaca-py's thread ended at its start")
            await self._change()

    async def take(self) -> Sequence[Frame]:
        """Frames that have come, in order, at least one.

        Raises:
            FeedUnavailable: The connection has ended, and all of its frames were returned.
        """
        await checkpoint()
        while True:
            ended = self._ended  # read first: the last frames come before the end
            with self._lock:
                was_full = self._is_full()
                taken, self._frames = self._frames[:_MOST_AT_ONCE], self._frames[_MOST_AT_ONCE:]
                self._bytes -= sum(map(len, taken))
            if taken:
                if was_full:
                    self._in_thread(self._room.set)
                return taken
            if ended:
                raise self._error or FeedUnavailable("the feed closed the connection")
            await self._change()

    def send(self, data: Frame) -> None:
        """Send a message; a failure shows as the end of the connection.

        Raises:
            FeedUnavailable: The connection has ended.
        """
        if self._ended or self._websocket is None:
            raise self._error or FeedUnavailable("the feed closed the connection")
        websocket = self._websocket
        self._in_thread(lambda: self._spawn(_send(websocket, data)))

    async def close(self) -> None:
        """End the connection and the thread within :data:`CLOSE_TIMEOUT_S` and a bit."""
        self._closing = True
        self._in_thread(self._ask_to_stop)
        with anyio.move_on_after(CLOSE_TIMEOUT_S + 0.5):
            while self._thread.is_alive() and not self._ended:
                await self._change()

    def _ask_to_stop(self) -> None:
        self._stop.set()

    async def _change(self) -> None:
        await self._changed.wait()
        self._changed = anyio.Event()

    def _notify(self) -> None:
        self._changed.set()

    def _in_thread(self, call: Callable[[], object]) -> None:
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(call)
            except RuntimeError:  # the thread's loop is already closed
                return

    # Runs in the thread, on asyncio.

    def _main(self) -> None:
        try:
            asyncio.run(self._run())
        finally:
            self._end()

    def _end(self) -> None:
        self._ended = True
        self._soon(self._notify)

    async def _run(self) -> None:
        self._stop, self._room = asyncio.Event(), asyncio.Event()
        self._tasks: set[asyncio.Future[Any]] = set()
        self._loop = asyncio.get_running_loop()
        if self._closing:  # close() came before there was a loop
            self._stop.set()
        try:
            await self._hold(self._make_socket())
        except FeedError as exc:
            self._error = exc
        except Exception as exc:  # noqa: BLE001 - whatever the SDK raises ends this connection
            self._error = FeedUnavailable(
                f"the connection that alpaca-py held ended: {exc or type(exc).__name__}"
            )
        # Report the end here: asyncio's own shutdown waits for abandoned name resolutions.
        self._end()

    async def _hold(self, socket: LentSocket) -> None:
        stopping = self._spawn(self._stop.wait())
        try:
            opening = self._spawn(asyncio.wait_for(socket.open(), self._limit_s))
            await asyncio.wait({opening, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if self._stop.is_set():
                return
            self._websocket = await opening
            self._opened = True
            self._soon(self._notify)
            reading = self._spawn(self._read(self._websocket))
            await asyncio.wait({reading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                await reading
        except TimeoutError as exc:
            raise FeedUnavailable(
                f"the feed did not finish the login within {self._limit_s:g} s"
            ) from exc
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await _close_within_limit(socket)

    async def _read(self, websocket: SdkWebsocket) -> None:
        while True:
            frame = await websocket.recv()
            with self._lock:
                self._frames.append(frame)
                self._bytes += len(frame)
                waiting = len(self._frames)
            if waiting == 1:
                self._soon(self._notify)
            if self._is_full():
                self._room.clear()
                if self._is_full():
                    await self._room.wait()

    def _is_full(self) -> bool:
        return len(self._frames) >= _MOST_FRAMES or self._bytes >= MAX_QUEUED_BYTES

    def _spawn(self, awaitable: Awaitable[Any]) -> asyncio.Future[Any]:
        future = asyncio.ensure_future(awaitable)
        self._tasks.add(future)
        future.add_done_callback(self._forget)
        return future

    def _forget(self, future: asyncio.Future[Any]) -> None:
        self._tasks.discard(future)
        if not future.cancelled():
            future.exception()  # retrieved, so that asyncio does not print it at the end


async def _send(websocket: SdkWebsocket, data: Frame) -> None:
    try:
        await websocket.send(data)
    except Exception:  # noqa: BLE001 - the reader sees the same end, and reports why
        return


async def _close_within_limit(socket: LentSocket) -> None:
    try:
        await asyncio.wait_for(socket.close(), CLOSE_TIMEOUT_S)
    except Exception:  # noqa: BLE001 - it is being dropped anyway
        socket.abort()
    else:
        socket.abort()


def _host_soon() -> Callable[[Callable[[], object]], None]:
    """A function by which another thread schedules a call on the current event loop."""
    if sniffio.current_async_library() == "trio":
        import trio

        run_soon: Callable[[Callable[[], object]], object]
        run_soon = trio.lowlevel.current_trio_token().run_sync_soon
    else:
        run_soon = asyncio.get_running_loop().call_soon_threadsafe

    def soon(call: Callable[[], object]) -> None:
        try:
            run_soon(call)
        except RuntimeError:  # that loop has ended (trio.RunFinishedError is one too)
            return

    return soon


async def _tunnel(proxy: str, url: str) -> socket.socket:
    """A connection to the URL's host through an HTTP proxy, which the library does not support.

    Source: RFC 9110, section 9.3.6, ``CONNECT``.

    Raises:
        OSError: There is no proxy, or it refuses.
    """
    through, target = urlsplit(proxy), urlsplit(url)
    port = target.port or (443 if target.scheme == "wss" else 80)
    host = f"[{target.hostname}]" if ":" in (target.hostname or "") else target.hostname
    asked = f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n"
    if through.username is not None:
        login = f"{unquote(through.username)}:{unquote(through.password or '')}"
        asked += f"Proxy-Authorization: Basic {b64encode(login.encode()).decode()}\r\n"
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(through.hostname, through.port, type=socket.SOCK_STREAM)
    error: OSError = ConnectionRefusedError("the proxy has no address")
    for family, kind, protocol, _, address in found:
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        connected = False
        try:
            await loop.sock_connect(sock, address)
            await loop.sock_sendall(sock, f"{asked}\r\n".encode())
            await _read_consent(sock)
            connected = True
        except OSError as exc:
            error = exc
        finally:
            if not connected:
                sock.close()
        if connected:
            return sock
    raise error


async def _read_consent(sock: socket.socket) -> None:
    answer = b""
    while b"\r\n\r\n" not in answer:
        more = await asyncio.get_running_loop().sock_recv(sock, 4096)
        answer += more
        if not more or len(answer) > _LONGEST_CONSENT_BYTES:
            raise ConnectionResetError("the proxy does not answer as an HTTP proxy does")
    if not re.match(rb"HTTP/1\.[01] 2\d\d", answer):
        line = answer.partition(b"\r\n")[0][:80].decode(errors="replace")
        raise ConnectionRefusedError(f"the proxy refuses: {line!r}")


async def _sdk() -> tuple[Mapping[FeedName, Any], Any]:
    """Run :func:`_import_sdk` in a thread, since it takes seconds.

    Raises:
        FeedUnavailable: It takes longer, and goes on. The machine is busy, or its disk is slow.
    """
    try:
        with anyio.fail_after(_IMPORT_LIMIT_S):
            return await anyio.to_thread.run_sync(_import_alone, abandon_on_cancel=True)
    except TimeoutError as exc:
        raise FeedUnavailable(
            f"alpaca-py is not imported after {_IMPORT_LIMIT_S:g} s; the import goes on"
        ) from exc


def _import_alone() -> tuple[Mapping[FeedName, Any], Any]:
    with _importing:
        return _import_sdk()


@cache
def _import_sdk() -> tuple[Mapping[FeedName, Any], Any]:
    """alpaca-py's stream class of each feed, and a websocket class that remembers its last frame.

    Runs once per process: it changes the warning filters, and must not do so while another thread,
    such as an abandoned import, does the same. See :func:`_import_alone`.

    The SDK reports a refused login as text; the last frame has the code.

    Raises:
        ConfigurationError: alpaca-py, or what it needs, cannot be imported.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # websockets.legacy, its choice
            from alpaca.data.live import (
                CryptoDataStream,
                NewsDataStream,
                OptionDataStream,
                StockDataStream,
            )
            from websockets.legacy.client import WebSocketClientProtocol
    except Exception as exc:  # a broken package may raise anything
        raise ConfigurationError(
            f"the driver alpaca-py cannot be imported ({type(exc).__name__}: {exc}); {_MEND}"
        ) from exc

    class RememberingProtocol(WebSocketClientProtocol):
        """Also reads no further while many bytes wait; the library counts messages only."""

        last_frame: Frame | None = None
        _waiting_bytes = 0
        _room: asyncio.Future[None] | None = None

        async def read_message(self) -> Frame | None:
            while self._waiting_bytes > MAX_QUEUED_BYTES:
                self._room = self.loop.create_future()
                await self._room
            message = await super().read_message()
            if message is not None:
                self._waiting_bytes += len(message)
            return message

        async def recv(self) -> Frame:
            frame = await super().recv()
            self._waiting_bytes -= len(frame)
            if self._room is not None and not self._room.done():
                self._room.set_result(None)
            self.last_frame = frame
            return frame

    streams: dict[FeedName, Any] = {
        "stocks": StockDataStream,
        "crypto": CryptoDataStream,
        "options": OptionDataStream,
        "news": NewsDataStream,
    }
    return streams, RememberingProtocol
