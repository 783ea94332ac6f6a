"""A relay with a fake service above it, and its clients: on trio and on asyncio, over loopback."""

from __future__ import annotations

import functools
import inspect
import json
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import msgpack
import pytest
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSStream
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidMessage
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from mdservice.clock import SystemClock
from mdservice.errors import SubscriptionRefused
from mdservice.model.events import RecordBatch
from mdservice.model.feeds import STOCKS, Feed, Topic
from mdservice.model.kinds import Kind
from mdservice.relay.server import Client, Relay, RelayConfig

__all__ = ["LIMIT_S", "FakeUpstream", "Peer", "Served", "listen", "on_both", "serve", "until"]

LIMIT_S = 60.0
"""No test waits longer, on a busy machine."""
_RECEIVE_BUFFER_BYTES = 16_384
"""Small, so that a client that does not read is soon noticed."""
KEY = {"APCA-API-KEY-ID": "key", "APCA-API-SECRET-KEY": "secret"}


def on_both(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a test on trio and on asyncio."""

    @pytest.mark.parametrize("backend", ["trio", "asyncio"])
    @functools.wraps(test)
    def run(*args: Any, backend: str, **kwargs: Any) -> None:
        async def main() -> None:
            with anyio.fail_after(LIMIT_S):
                await test(*args, **kwargs)

        anyio.run(main, backend=backend)

    own = inspect.signature(test)
    backend = inspect.Parameter("backend", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = own.replace(parameters=[*own.parameters.values(), backend])  # type: ignore[attr-defined]
    del run.__wrapped__  # type: ignore[attr-defined]
    return run


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is true; the test's own limit bounds it."""
    while not condition():
        await anyio.sleep(0.005)


class FakeUpstream:
    """The service: what the relay has subscribed, and the latest records.

    Attributes:
        wanted: What the relay wants.
        asked: Its requests.
        answer: Waited for before each answer to a request to subscribe.
        refused: The code by which it refuses to subscribe, or 0.
        records: The latest record of each kind and symbol.
    """

    def __init__(self) -> None:
        self.wanted: set[Topic] = set()
        self.asked: list[tuple[str, tuple[Topic, ...]]] = []
        self.answer: Callable[[], Awaitable[None]] = anyio.lowlevel.checkpoint
        self.refused = 0
        self.records: dict[tuple[Kind[Any], str], Any] = {}

    async def subscribe(self, feed: Feed, topics: Sequence[Topic]) -> None:
        self.asked.append(("subscribe", tuple(topics)))
        await self.answer()
        if self.refused:
            raise SubscriptionRefused("refused", code=self.refused, symbols=())
        self.wanted.update(topics)

    async def unsubscribe(self, feed: Feed, topics: Sequence[Topic]) -> None:
        self.asked.append(("unsubscribe", tuple(topics)))
        self.wanted.difference_update(topics)

    def latest(self, feed: Feed, kind: Kind[Any], symbol: str) -> Sequence[Any]:
        if symbol == "*":
            return [record for (each, _), record in self.records.items() if each is kind]
        record = self.records.get((kind, symbol))
        return () if record is None else (record,)


class Served:
    """A relay that runs.

    Attributes:
        relay: It.
        upstream: The service above it.
        address: Where it listens.
        tls: What a client needs for TLS, or None.
    """

    def __init__(
        self,
        relay: Relay,
        upstream: FakeUpstream,
        address: tuple[str, int],
        tls: ssl.SSLContext | None,
    ) -> None:
        self.relay = relay
        self.upstream = upstream
        self.address = address
        self.tls = tls
        self.peers: list[Peer] = []

    @property
    def clients(self) -> list[Client]:
        return list(self.relay._clients.values())

    def offer(self, kind: Kind[Any], *records: Any, feed: Feed = STOCKS) -> None:
        """Let the feed bring records, as the router does."""
        for record in records:
            self.upstream.records[kind, record.symbol] = record
        self.relay.offer(feed, RecordBatch(kind, records))

    async def connect(self, path: str = "/v2/iex", **options: Any) -> Peer:
        """A client whose upgrade has been answered."""
        peer = await Peer.open(self.address, path, tls=self.tls, **options)
        self.peers.append(peer)
        return peer

    async def log_in(self, path: str = "/v2/iex", **options: Any) -> Peer:
        """A client that has logged in by its headers."""
        headers = {**KEY, **options.pop("headers", {})}
        peer = await self.connect(path, headers=headers, **options)
        assert await peer.receive() == [{"T": "success", "msg": "connected"}]
        assert await peer.receive() == [{"T": "success", "msg": "authenticated"}]
        return peer

    async def dial(self, **options: Any) -> socket.socket:
        """A bare, non-blocking socket."""
        sock = socket.socket()
        for option, value in options.items():
            sock.setsockopt(socket.SOL_SOCKET, getattr(socket, option), value)
        sock.setblocking(False)
        with suppress(BlockingIOError):
            sock.connect(self.address)
        await anyio.wait_writable(sock)
        return sock


def listen() -> socket.socket:
    """A listener at a free port of loopback."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    listener.setblocking(False)
    return listener


@asynccontextmanager
async def serve(
    *,
    served: Mapping[Feed, str | None] | None = None,
    keys: Mapping[str, str] | None = None,
    ready: Callable[[], bool] = lambda: True,
    tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None,
) -> AsyncIterator[Served]:
    """Run a relay; at the end it is cancelled."""
    upstream = FakeUpstream()
    listener = listen()
    server_tls, client_tls = tls or (None, None)
    config = RelayConfig("127.0.0.1", served or {STOCKS: None}, keys or {}, server_tls)
    relay = Relay(config, [listener], upstream, SystemClock(), ready)
    try:
        async with anyio.create_task_group() as tasks:
            await tasks.start(lambda *, task_status: relay.run(task_status=task_status))
            served = Served(relay, upstream, listener.getsockname(), client_tls)
            try:
                yield served
            finally:
                for peer in served.peers:
                    await anyio.aclose_forcefully(peer.stream)
            tasks.cancel_scope.cancel()
    finally:
        listener.close()


class Peer:
    """A websocket client that is not alpaca-py: it does only what the test says.

    Attributes:
        stream: Its bytes.
        response: The answer to its upgrade.
        encoding: ``json`` or ``msgpack``.
    """

    def __init__(self, stream: ByteStream, protocol: ClientProtocol, encoding: str) -> None:
        self.stream = stream
        self.protocol = protocol
        self.encoding = encoding
        self.response: Response | None = None
        self._frames: deque[Frame] = deque()

    @classmethod
    async def open(
        cls,
        address: tuple[str, int],
        path: str = "/v2/iex",
        *,
        encoding: str = "json",
        headers: Mapping[str, str] | None = None,
        more_headers: Sequence[tuple[str, str]] = (),
        deflate: ClientPerMessageDeflateFactory | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> Peer:
        """Connect, ask for the upgrade, and read the answer."""
        connected = await anyio.connect_tcp(*address)
        sock = connected.extra(SocketAttribute.raw_socket)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        stream: ByteStream = connected
        if tls is not None:
            stream = await TLSStream.wrap(
                stream, hostname="127.0.0.1", ssl_context=tls, standard_compatible=False
            )
        protocol = ClientProtocol(
            parse_uri(f"ws://{address[0]}:{address[1]}{path}"),
            extensions=[deflate] if deflate is not None else None,
            max_size=2**24,
        )
        request = protocol.connect()
        if encoding == "msgpack":
            request.headers["Content-Type"] = "application/msgpack"
        for name, value in [*(headers or {}).items(), *more_headers]:
            request.headers[name] = value
        protocol.send_request(request)
        peer = cls(stream, protocol, encoding)
        try:
            await peer._send()
            while peer.response is None:
                await peer._read()
        except (OSError, EOFError, InvalidMessage, anyio.BrokenResourceError):
            await peer.leave()
            raise
        return peer

    async def _send(self) -> None:
        for data in self.protocol.data_to_send():
            if data:
                await self.stream.send(data)

    async def _read(self) -> None:
        try:
            data = await self.stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            self.protocol.receive_eof()
        else:
            self.protocol.receive_data(data)
        for event in self.protocol.events_received():
            if isinstance(event, Response):
                self.response = event
            elif isinstance(event, Frame):
                self._frames.append(event)
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            await self._send()
        if self.protocol.state is State.CLOSED:  # as every client: the relay waits for this
            await anyio.aclose_forcefully(self.stream)
        if self.response is None and self.protocol.handshake_exc is not None:
            raise self.protocol.handshake_exc

    @property
    def status(self) -> int:
        """The HTTP status of the answer to the upgrade."""
        assert self.response is not None
        return self.response.status_code

    @property
    def close_code(self) -> int | None:
        """The code by which the relay has closed the connection; 1006 without one."""
        return self.protocol.close_code

    async def frame(self) -> Frame | None:
        """The next frame, or None at the end."""
        while not self._frames:
            if self.protocol.state is State.CLOSED:
                return None
            await self._read()
        return self._frames.popleft()

    async def receive(self) -> list[Any]:
        """The messages of the next data frame; ``[]`` at the end."""
        while (frame := await self.frame()) is not None:
            if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
                assert (frame.opcode is Opcode.TEXT) is (self.encoding == "json")
                data = bytes(frame.data)
                if self.encoding == "json":
                    return list(json.loads(data))
                return list(msgpack.unpackb(data, timestamp=3))
        return []

    async def rest(self) -> list[Any]:
        """All messages until the end."""
        messages: list[Any] = []
        while found := await self.receive():
            messages += found
        return messages

    async def take(self, count: int) -> list[Any]:
        """As many messages, of as many frames as needed."""
        messages: list[Any] = []
        while len(messages) < count:
            found = await self.receive()
            assert found, f"the end after {len(messages)} messages"
            messages += found
        return messages

    async def send(self, message: Any) -> None:
        """Send one message."""
        if self.encoding == "json":
            self.protocol.send_text(json.dumps(message).encode())
        else:
            self.protocol.send_binary(msgpack.packb(message))
        await self._send()

    async def send_frame(self, frame: Frame) -> None:
        """Send a frame that may be wrong."""
        await self.stream.send(frame.serialize(mask=True))

    async def subscribe(self, **channels: Any) -> dict[str, list[str]]:
        """Subscribe, and return the acknowledgement's channels that are not empty."""
        await self.send({"action": "subscribe", **channels})
        return await self.acknowledged()

    async def unsubscribe(self, **channels: Any) -> dict[str, list[str]]:
        """Likewise."""
        await self.send({"action": "unsubscribe", **channels})
        return await self.acknowledged()

    async def acknowledged(self) -> dict[str, list[str]]:
        """The next acknowledgement, with the records before it left out."""
        while True:
            (message, *others) = await self.receive() or [{"T": "end"}]
            assert message["T"] not in ("error", "end"), message
            if message["T"] == "subscription":
                assert not others
                return {name: value for name, value in message.items() if value and name != "T"}

    async def close(self) -> None:
        """Close properly, and wait for the relay's end."""
        self.protocol.send_close(1000)
        await self._send()
        while await self.frame() is not None:
            pass
        await self.stream.aclose()

    async def leave(self) -> None:
        """Leave without a word."""
        await self.stream.aclose()
