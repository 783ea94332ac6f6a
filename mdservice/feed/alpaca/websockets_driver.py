"""The raw driver: Alpaca's protocol with the ``websockets`` library, on trio and asyncio."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import anyio
import sniffio
from anyio.lowlevel import checkpoint
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.frames import Frame as WireFrame
from websockets.frames import Opcode

from mdservice.errors import FeedError, FeedUnavailable
from mdservice.feed.alpaca.codec import Codec, Encoding, Frame
from mdservice.feed.alpaca.error_codes import http_refusal
from mdservice.feed.alpaca.frame_reader import FrameReader
from mdservice.feed.alpaca.link import AlpacaLink
from mdservice.feed.alpaca.login import GREETING, Credentials, check_success, encoding_of
from mdservice.feed.driver import CLOSE_TIMEOUT_S, LoginLimit
from mdservice.feed.subscriptions import Followed
from mdservice.model.feeds import STOCKS, Feed
from mdservice.observability.logging import get_logger
from mdservice.observability.masking import mask_url
from mdservice.runtime.network import root_cause, tls_advice
from mdservice.runtime.websocket import (
    HeldWebsocket,
    WebsocketRoute,
    asyncio_connection,
    held_websocket,
)

if TYPE_CHECKING:
    import trio
    from websockets.trio.client import ClientConnection

__all__ = [
    "MAX_FRAME_BYTES",
    "MAX_QUEUED_BYTES",
    "MAX_QUEUED_FRAMES",
    "MOST_BYTES_AT_ONCE",
    "FrameQueue",
    "WebsocketsDriver",
    "connect_by_library",
    "receive_some",
]

_log = get_logger(__name__)

MOST_BYTES_AT_ONCE: Final = 65_536
"""The most bytes taken at once: about a thousand quotes, a few milliseconds of the event loop."""

MAX_FRAME_BYTES = 16 * 1024 * 1024
"""With large subscriptions, Alpaca's frames can exceed the library's usual limit of 1 MiB."""
MAX_QUEUED_FRAMES = 1024
"""Frames read ahead; beyond that, TCP slows the sender down."""
MAX_QUEUED_BYTES = MAX_FRAME_BYTES
"""Likewise; about 150,000 quotes. A limit of frames alone would let 1,024 of the largest wait."""
_PING_INTERVAL_S = 20.0
_PING_TIMEOUT_S = 15.0
"""Below the interval: websockets 17 on trio stops asking, with an error in the log, once an answer
has taken longer than that. A peer that is gone without a word is found within the sum of the two.
Pings prove the transport alone; market data is watched beside them."""


class WebsocketsDriver:
    """Alpaca's protocol without alpaca-py.

    Asks for msgpack, which is all that options are sent in, and accepts a server that answers in
    JSON. Offers no compression: at the
    rates of a full feed, decompression costs more than all of the decoding.

    Args:
        url: ``wss://stream.data.alpaca.markets/v2/iex``, or another server with this protocol.
        credentials: Sent in the authentication message.
        open_stream: Opens a replacement for the TCP connection, such as a stream in memory;
            on trio only. It raises OSError if there is no connection.
        limit: How long a login may take; by default a limit of its own.
        feed: Which feed it serves.

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
        feed: Feed = STOCKS,
    ) -> None:
        self._url = url
        self._feed = feed
        self._shown = mask_url(url)
        self._credentials = credentials
        self._open_stream = open_stream
        self._limit = limit or LoginLimit()
        self._route = WebsocketRoute(url, direct=open_stream is not None)

    @asynccontextmanager
    async def connect(
        self, followed: Followed, utc_ns: Callable[[], int]
    ) -> AsyncIterator[AlpacaLink]:
        """See :meth:`mdservice.feed.driver.Driver.connect`."""
        async with held_websocket(CLOSE_TIMEOUT_S) as held:
            with self._limit.one_try(anyio.current_time) as limit_s:
                websocket, encoding = await self._open(held, limit_s)
            yield _WebsocketLink(websocket, encoding, followed, utc_ns, self._feed)

    async def _open(self, held: HeldWebsocket, limit_s: float) -> tuple[ClientConnection, Encoding]:
        try:
            with anyio.fail_after(limit_s):
                websocket = await held.open(await self._opening(limit_s))
                return websocket, await self._log_in(websocket)
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
            # Until it is open, every error is an outage: on trio a failed TLS handshake is a
            # BrokenResourceError, and a bad host name is a UnicodeError.
            if held.is_open and not isinstance(exc, (OSError, WebSocketException, EOFError)):
                raise
            raise self._not_opened(exc) from exc

    def _not_opened(self, exc: Exception) -> FeedError:
        if isinstance(exc, InvalidStatus):
            return http_refusal(exc.response.status_code, self._shown, self._feed)
        advice = f"{tls_advice(exc)}{self._route.hint}"
        return FeedUnavailable(f"cannot connect to {self._shown}: {root_cause(exc)}{advice}")

    async def _opening(self, limit_s: float) -> Any:
        """The library's ``connect``, which opens TCP unless a stream is given."""
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
            **self._route.options(),
            **stream,
        )

    async def _log_in(self, websocket: ClientConnection) -> Encoding:
        greeting = await websocket.recv()
        check_success(greeting, GREETING, self._feed)
        encoding = encoding_of(greeting)
        if encoding == "json":  # the server ignores the request for msgpack
            _log.info("feed_sends_json", url=self._shown)
        await websocket.send(Codec(encoding).encode(self._credentials.as_message()))
        check_success(await websocket.recv(), "authenticated", self._feed)
        return encoding


class _WebsocketLink(AlpacaLink):
    def __init__(
        self,
        websocket: ClientConnection,
        encoding: Encoding,
        followed: Followed,
        utc_ns: Callable[[], int],
        feed: Feed,
    ) -> None:
        super().__init__(encoding, followed, utc_ns, feed)
        self._websocket = websocket

    async def send_frame(self, frame: Frame) -> None:
        try:
            await self._websocket.send(frame)
        except ConnectionClosed as exc:
            raise FeedUnavailable(f"the feed closed the connection: {exc}") from exc

    async def receive_frames(self) -> Sequence[Frame]:
        try:
            return await receive_some(self._websocket)
        except ConnectionClosed as exc:
            raise FeedUnavailable(f"the feed closed the connection: {exc}") from exc


class FrameQueue:
    """Receives data frames, assembles fragments, and returns messages.

    It replaces the library's queue, which returns one message at a time over two channel
    operations, more work than all of the decoding. This queue returns all messages of one socket
    read at once.

    Has the methods of the library's own ``Assembler`` that are used: the connection calls ``put``
    and ``close``, its ``recv`` calls ``get``.

    Args:
        most: The most messages that may wait before reading is paused.
        pause: Pauses reading the socket.
        resume: Resumes reading the socket.
        most_bytes: The most bytes that may wait, likewise.
    """

    def __init__(
        self,
        most: int,
        pause: Callable[[], Any],
        resume: Callable[[], Any],
        most_bytes: int = MAX_QUEUED_BYTES,
    ) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._bytes = 0
        self._pause = pause
        self._resume = resume
        self._paused = False
        self._messages: deque[tuple[bytes, bool]] = deque()
        self._started: Opcode | None = None
        """The type of the message that the pending fragments belong to."""
        self._fragments = bytearray()
        self._arrived = anyio.Event()
        self._waiting = False
        self._closed = False
        self._discarding = False

    def put(self, frame: WireFrame) -> None:
        """Receive a data frame.

        Raises:
            EOFError: After :meth:`close`.
        """
        if self._closed:
            raise EOFError
        if self._started is not None or not frame.fin:
            if self._started is None:
                self._started = frame.opcode
            self._fragments += frame.data
            if not frame.fin:
                return
            opcode, data = self._started, bytes(self._fragments)
            self._started, self._fragments = None, bytearray()
        else:
            opcode, data = frame.opcode, bytes(frame.data)
        self.put_messages([(data, opcode is Opcode.TEXT)], len(data))

    def put_messages(self, messages: Sequence[tuple[bytes, bool]], size: int) -> None:
        """Receive whole messages, each with whether it is text, and how many bytes they have.

        Raises:
            EOFError: After :meth:`close`.
        """
        if self._closed:
            raise EOFError
        if self._discarding:
            return
        self._messages.extend(messages)
        self._bytes += size
        if self._waiting:
            self._arrived.set()
        full = len(self._messages) > self._most or self._bytes > self._most_bytes
        if full and not self._paused:
            self._paused = True
            self._pause()

    def discard(self) -> None:
        """Discard waiting and later messages, since the connection is being closed."""
        self._discarding = True
        self._messages.clear()
        self._bytes = 0
        self._read_on()

    def close(self) -> None:
        """Mark the end of the stream; waiting messages can still be read."""
        self._closed = True
        self._arrived.set()
        self._read_on()  # the end of the socket must be read

    def _read_on(self) -> None:
        if self._paused:
            self._paused = False
            self._resume()

    async def get(self, _decode: None = None) -> Frame:
        """The next message; cancelling loses none. The library's ``recv`` calls it.

        Raises:
            EOFError: There are no more.
            UnicodeDecodeError: It is text, but not UTF-8.
        """
        await self._some()
        size = len(self._messages[0][0])
        message = self._taken()
        self._count_taken(size)
        return message

    async def get_some(self) -> Sequence[Frame]:
        """All messages that wait, at least one; cancelling loses none.

        Raises:
            EOFError: There are no more.
            UnicodeDecodeError: The first is text, but not UTF-8; it stays for :meth:`get`.
        """
        await self._some()
        found: list[Frame] = []
        size = 0
        while self._messages and size < MOST_BYTES_AT_ONCE:
            size += len(self._messages[0][0])
            try:
                found.append(self._taken())
            except UnicodeDecodeError:
                if not found:
                    raise
                size -= len(self._messages[0][0])
                break
        self._count_taken(size)
        return found

    async def _some(self) -> None:
        """Wait for a message; if one waits already, only let other tasks run."""
        if self._messages:
            await checkpoint()
        while not self._messages:
            if self._closed:
                raise EOFError
            self._arrived = anyio.Event()
            self._waiting = True
            try:
                await self._arrived.wait()
            finally:
                self._waiting = False

    def _taken(self) -> Frame:
        data, is_text = self._messages[0]
        message: Frame = data.decode() if is_text else data
        self._messages.popleft()
        return message

    def _count_taken(self, size: int) -> None:
        self._bytes -= size
        if (
            self._paused
            and len(self._messages) <= self._most // 4
            and self._bytes <= self._most_bytes // 4
        ):
            self._read_on()


# ``create_connection`` is the library's documented way to use another connection class. The
# attribute that holds the queue is private, so a test pins it, and pyproject.toml the version.
def connect_by_library(most_queued: int, most_bytes: int) -> Any:
    """The library's ``connect`` for the running event loop; both take the same arguments.

    Args:
        most_queued: The most messages that may wait; beyond it, TCP slows the sender down.
        most_bytes: The limit of one message.
    """
    if sniffio.current_async_library() == "trio":
        return _trio_connect(most_queued, most_bytes)
    return _asyncio_connect(most_queued, most_bytes)


async def receive_some(websocket: Any) -> Sequence[Frame]:
    """All messages that wait, at least one.

    Raises:
        ConnectionClosed: The connection has ended, and all of its messages were returned.
    """
    try:
        found: Sequence[Frame] = await websocket.recv_messages.get_some()
    except (EOFError, UnicodeDecodeError):
        return (await websocket.recv(),)  # it closes, and says why
    return found


def _read_by(reader: FrameReader, protocol: ClientProtocol) -> None:
    protocol.receive_data = reader.receive_data  # type: ignore[method-assign]  # its one way in


@cache
def _trio_connect(most_queued: int, most_bytes: int) -> Any:
    from functools import partial

    from websockets.trio.client import ClientConnection, connect

    class Connection(ClientConnection):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            frame_queue = FrameQueue(most_queued, self.pause_reading, self.resume_reading)
            self.recv_messages = frame_queue  # type: ignore[assignment]  # it has what is used of it
            _read_by(
                FrameReader(self.protocol, most_bytes, frame_queue.put_messages), self.protocol
            )

    return partial(connect, create_connection=Connection)


@cache
def _asyncio_connect(most_queued: int, most_bytes: int) -> Any:
    from functools import partial

    from websockets.asyncio.client import connect

    class Connection(asyncio_connection()):  # type: ignore[misc]  # it is made when it is needed
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            frame_queue = FrameQueue(most_queued, transport.pause_reading, transport.resume_reading)
            self.recv_messages = frame_queue
            _read_by(
                FrameReader(self.protocol, most_bytes, frame_queue.put_messages), self.protocol
            )

    return partial(connect, create_connection=Connection)
