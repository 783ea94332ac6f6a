"""One client's connection, over any byte stream.

The websocket protocol is the websockets library's sans-I/O one, so that a TCP socket and a
stream in memory, on trio and on asyncio, are one code path. One task reads and one writes;
what is to be sent waits in a bounded buffer, so that a client that does not read holds up
only itself.
"""

from __future__ import annotations

import socket
import struct
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import Any, Protocol

import anyio
import attrs
import h11
from anyio.abc import ByteStream, SocketAttribute
from websockets.extensions.permessage_deflate import enable_server_permessage_deflate
from websockets.frames import CloseCode, Opcode
from websockets.frames import Frame as WebsocketFrame
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.simulator.config import SimulatorConfig
from mdservice.simulator.faults import DataFaults, Freeze
from mdservice.simulator.feeds import SimFeed
from mdservice.simulator.http import HttpAnswer, RequestReader
from mdservice.simulator.kinds import SimKind
from mdservice.simulator.memory import MemoryByteStream
from mdservice.simulator.session import Reply, Session, Silence
from mdservice.simulator.trade_updates import TRADE_UPDATES, TradingSession
from mdservice.simulator.wire import (
    Encoding,
    OutFrame,
    S,
    decode_message,
    encode_messages,
    error_message,
)

__all__ = ["Connection", "Outbox", "Venue"]

_WRITE_BYTES = 64 * 1024
_DATA = frozenset((Opcode.TEXT, Opcode.BINARY, Opcode.CONT))
_MOST_UNSENT = 10_000
"""Pongs and the like that a client may leave unread before it is cut off."""
_MOST_SENDING_S = 30.0
"""For an HTTP answer, which may be a megabyte, to a client that reads."""
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Connection:
    """Serves one client until it is gone.

    Args:
        number: Names it.
        stream: The line; closed at the end.
        venue: The simulator.
    """

    def __init__(self, number: int, stream: ByteStream, venue: Venue) -> None:
        self.number = number
        self.session: Session | TradingSession | None = None
        self.encoding: Encoding = "json"
        self.faults = DataFaults()
        self.sent: Counter[SimKind[Any]] = Counter()
        """How many records of each kind were sent."""
        self._stream = stream
        self._venue = venue
        self._config = venue.config
        extensions = enable_server_permessage_deflate(None) if venue.config.compression else None
        self._requests = RequestReader()
        self._protocol = ServerProtocol(extensions=extensions)
        self._outbox = Outbox(self._protocol, venue.config.send_buffer_bytes)
        self._wake = anyio.Event()
        self._taken = anyio.Event()
        """Set when something was taken out of the send buffer."""
        self._scope = anyio.CancelScope()
        self._fragments: list[bytes | bytearray | memoryview] = []
        self._wanted: dict[SimKind[Any], AbstractSet[str]] = {}
        self._stalled = False
        self._slow = False
        self._never_ends = False
        self._half_closed = False
        self._closing_s = venue.config.close_timeout_s

    @property
    def pending_bytes(self) -> int:
        """The bytes that wait to be sent."""
        return self._outbox.pending_bytes

    @property
    def clean(self) -> bool:
        """Whether there was a closing handshake."""
        return self._protocol.close_rcvd is not None and self._protocol.close_sent is not None

    # What the simulator asks of it: none of these waits.

    def send_records(
        self, kind: SimKind[S], records: Sequence[S], sizes: Sequence[int] | None = None
    ) -> list[S]:
        """Send the records that the client has subscribed to, unless a fault prevents it.

        Args:
            kind: Their kind.
            records: In the order in which they are to go out.
            sizes: Records per frame; what is left comes in one more frame.

        Returns:
            Those that were put into the send buffer.
        """
        wanted = self._wanted.get(kind)
        if wanted and EVERY_SYMBOL not in wanted:
            if kind.wants is None:
                records = [record for record in records if record.symbol in wanted]
            else:
                records = [record for record in records if kind.wants(record, wanted)]
        if not wanted or not records or self.faults.muted(anyio.current_time()):
            return []
        sent: list[S] = []
        start = 0
        for size in (*(sizes or ()), len(records)):
            part = self.faults.reorder(kind.channel, list(records[start : start + size]))
            start += size
            if part:
                frame = kind.encode(part, self.encoding, spoil=self.faults.spoil())
                for copy in self.faults.copies(frame):
                    self.send_frame(copy)
                sent += part
            if start >= len(records):
                break
        self.sent[kind] += len(sent)
        return sent

    def send_messages(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Send these messages in one frame; on the trading stream each in its own."""
        if isinstance(self.session, TradingSession):
            for message in messages:
                self.send_frame(self.session.encode(message))
        else:
            self.send_frame(encode_messages(messages, self.encoding))

    def send_update(self, update: Mapping[str, Any]) -> None:
        """Send a trade update if the client listens, unless a fault prevents it."""
        session = self.session
        if not isinstance(session, TradingSession) or not session.listens:
            return
        if self.faults.muted(anyio.current_time()):
            return
        message = {"stream": TRADE_UPDATES, "data": update}
        for frame in self.faults.reorder(TRADE_UPDATES, [session.encode(message)]):
            for copy in self.faults.copies(frame):
                self.send_frame(copy)

    def send_frame(self, frame: OutFrame) -> None:
        """Put a frame into the send buffer; a client whose buffer overflows is cut off."""
        if self._slow:
            return
        if not self._outbox.put(frame):
            self._slow = True
            last = encode_messages([error_message(407)], self.encoding)
            is_trading = isinstance(self.session, TradingSession)
            self._outbox.replace(None if is_trading else last, CloseCode.POLICY_VIOLATION)
            self._limit_closing()
        self._wake.set()

    def send_framed(self, data: bytes) -> None:
        """Put whole websocket frames, heads included, into the send buffer; they go as they are.

        For a source that has its own limit: see :meth:`wait_for_room`.
        """
        self._outbox.put_framed(data)
        self._wake.set()

    async def wait_for_room(self, most_bytes: int) -> None:
        """Wait until no more than so many bytes wait to be sent."""
        while self._outbox.pending_bytes > most_bytes:
            self._taken = anyio.Event()
            await self._taken.wait()

    def hang_up(self, code: int | None) -> None:
        """End the connection after what is to be sent.

        Args:
            code: Of the closing handshake; None ends the server's direction without one, and
                leaves the rest to the client.
        """
        self._outbox.hang_up(code)
        self._wake.set()

    def reset(self) -> None:
        """Cut the line at once; what was not sent is lost."""
        if isinstance(self._stream, MemoryByteStream):
            self._stream.reset()
        raw_socket = self._stream.extra(SocketAttribute.raw_socket, None)  # noqa: S610 - no Django
        if raw_socket is not None:
            with suppress(OSError):  # it may already be closing
                raw_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._scope.cancel()

    def poke(self) -> None:
        """Check again whether something may be sent."""
        self._wake.set()

    # Its life.

    async def serve(self) -> None:
        """Serve the client; returns when the connection is closed, also when cancelled."""
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._write)
                    tasks.start_soon(self._await_login)
                    await self._read()
                    tasks.cancel_scope.cancel()
        finally:
            with anyio.move_on_after(self._config.close_timeout_s, shield=True):
                await self._stream.aclose()

    async def _read(self) -> None:
        while True:
            try:
                data = await self._stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                return
            if self._stalled:
                continue
            self._take(data)
            if self._protocol.close_expected():
                self._limit_closing()
            if len(self._protocol.writes) > _MOST_UNSENT:
                self.reset()
            self._wake.set()

    async def _await_login(self) -> None:
        await anyio.sleep(self._config.auth_timeout_s)
        if self.session is not None:
            self._answer(self.session.time_out())
        elif not self._stalled:
            self._scope.cancel()

    def _take(self, data: bytes) -> None:
        if self.session is None:
            try:
                request = self._requests.receive(data)
            except h11.RemoteProtocolError:
                self._stalled = True
                self._protocol.send_eof()
                return
            if request is None:
                return
            self._begin(request)
            self._stalled = self.session is None  # what else the client says is not listened to
            data = self._requests.rest
        if self._stalled:
            return
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, WebsocketFrame):
                self._take_frame(event)

    def _begin(self, request: Request) -> None:
        """Answer the request; one that may be upgraded begins a session."""
        answer = self._venue.answer_http(request, bytes(self._requests.body))
        if answer is not None:
            self._closing_s = answer.delay_s + _MOST_SENDING_S
            self._never_ends = answer.stalls
            self.faults.add(Freeze(answer.delay_s), anyio.current_time())
            self._protocol.send_response(answer.response)
            return
        refusal = self._venue.refuse_upgrade_now(request.path)
        if isinstance(refusal, Silence):
            return
        if refusal is not None:
            self._protocol.send_response(self._protocol.reject(refusal, "refused as asked\n"))
            return
        self._protocol.receive_data(request.serialize())  # it takes frames only behind a request
        if not self._protocol.events_received():
            return
        self._protocol.send_response(self._protocol.accept(request))
        if self._protocol.state is not State.OPEN:
            return
        content_type = request.headers.get("Content-Type", "")
        self.encoding = "msgpack" if "msgpack" in content_type.lower() else "json"
        self.session, reply = self._venue.open_session(self.number, request, self.encoding)
        if isinstance(self.session, TradingSession):
            self.encoding = "json"
        self._answer(reply)

    def _take_frame(self, frame: WebsocketFrame) -> None:
        if frame.opcode not in _DATA or self.session is None:
            return
        self._fragments.append(frame.data)
        if frame.fin:
            payload, self._fragments = b"".join(self._fragments), []
            message = decode_message(payload, self.encoding)
            self._venue.message_came(self.number, message)
            self._answer(self.session.receive(message, anyio.current_time()))

    def _answer(self, reply: Reply) -> None:
        for message in reply.messages:
            self.send_messages([message])
        if reply.close_code is not None:
            self.hang_up(reply.close_code)
        if isinstance(self.session, Session):
            session, subscribed = self.session, self.session.subscriptions
            wanted: dict[SimKind[Any], AbstractSet[str]] = {
                kind: frozenset(subscribed[kind.channel])
                for kind in self._venue.kinds
                if kind.feed is session.feed and subscribed[kind.channel]
            }
            if wanted != self._wanted:
                self._wanted = wanted
                self._venue.subscriptions_changed(session.feed)
            for kind in wanted:
                added = reply.subscribed.get(kind.channel)
                if added:
                    self.send_records(kind, self._venue.first_records(kind, added))
        self._venue.notify()

    def _limit_closing(self) -> None:
        self._scope.deadline = min(self._scope.deadline, anyio.current_time() + self._closing_s)

    # Writing.

    async def _write(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake = anyio.Event()
                await self._flush()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            self._scope.cancel()

    async def _flush(self) -> None:
        await self._pause()
        while chunks := self._outbox.take(single=self._delay_s() > 0):
            self._taken.set()
            if self._protocol.close_expected():
                self._limit_closing()
            await self._send(chunks)
            await self._pause()

    async def _pause(self) -> None:
        """Wait as long as the active faults say."""
        while (pause_s := self.faults.frozen_for(anyio.current_time())) > 0:
            with anyio.move_on_after(pause_s):
                await self._wake.wait()
            self._wake = anyio.Event()
        if self._outbox and self._delay_s() > 0:
            await anyio.sleep(self._delay_s())

    def _delay_s(self) -> float:
        return self.faults.delay_s(anyio.current_time())

    async def _send(self, chunks: Sequence[bytes]) -> None:
        data = b"".join(chunks)
        if self._half_closed:
            return
        if data:
            await self._stream.send(data)
        if not all(chunks) and not self._never_ends:
            self._half_closed = True
            await self._stream.send_eof()
            if self.session is None:
                self._closing_s = self._config.close_timeout_s
                self._limit_closing()


class Venue(Protocol):
    """The simulator, seen from one connection; ``number`` is that connection's."""

    config: SimulatorConfig
    kinds: tuple[SimKind[Any], ...]

    def answer_http(self, request: Request, body: bytes) -> HttpAnswer | None:
        """Answer a request that asks for no upgrade; None for one that may be upgraded."""
        ...

    def refuse_upgrade_now(self, path: str) -> int | Silence | None:
        """The HTTP status planned for an upgrade of this path, silence, or None to accept it."""
        ...

    def open_session(
        self, number: int, request: Request, encoding: Encoding
    ) -> tuple[Session | TradingSession, Reply]:
        """Begin the session of an upgraded connection."""
        ...

    def message_came(self, number: int, message: Mapping[str, Any] | None) -> None:
        """A client's message, before it is answered."""
        ...

    def subscriptions_changed(self, feed: SimFeed) -> None:
        """A client of this stream has changed its subscriptions to data."""
        ...

    def first_records(self, kind: SimKind[S], symbols: AbstractSet[str]) -> Sequence[S]:
        """The records that a subscription to these symbols brings at once."""
        ...

    def notify(self) -> None:
        """Report that something about a connection may have changed."""
        ...


class Outbox:
    """The send buffer of one connection.

    Frames wait unserialised, so that they can still be thrown away: a compressed one could not,
    since those after it build upon it.

    Args:
        protocol: Serialises the frames.
        limit_bytes: How many bytes of payload may wait.
    """

    def __init__(self, protocol: ServerProtocol, limit_bytes: int) -> None:
        self.pending_bytes = 0
        """Bytes of payload that wait."""
        self._protocol = protocol
        self._limit_bytes = limit_bytes
        self._items: deque[OutFrame | bytes | _HangUp] = deque()

    def __bool__(self) -> bool:
        return bool(self._items)

    def put(self, frame: OutFrame) -> bool:
        """Add a frame; False, and nothing is added, where there is no room for it.

        One that nothing waits before is added however large it is: it shows no slow client.
        """
        if self._items and self.pending_bytes + len(frame.data) > self._limit_bytes:
            return False
        self._items.append(frame)
        self.pending_bytes += len(frame.data)
        return True

    def put_framed(self, data: bytes) -> None:
        """Add whole websocket frames, whatever waits."""
        self._items.append(data)
        self.pending_bytes += len(data)

    def hang_up(self, code: int | None) -> None:
        """End after what waits: by a closing handshake, or by an end of file for None."""
        self._items.append(_HangUp(code))

    def replace(self, last: OutFrame | None, code: int) -> None:
        """Throw away what waits; send this frame and the closing handshake in its place."""
        self._items.clear()
        self.pending_bytes = 0
        if last is not None:
            self.put(last)
        self.hang_up(code)

    def take(self, *, single: bool = False) -> list[bytes]:
        """Bytes to send, in pieces; ``b""`` is the end of this direction.

        Takes what the protocol itself has to say (handshake, pong, close), and frames up to
        some 64 KiB, or only one.
        """
        protocol = self._protocol
        size = 0
        while self._items and size < (1 if single else _WRITE_BYTES):
            item = self._items.popleft()
            if isinstance(item, OutFrame):
                self.pending_bytes -= len(item.data)
                size += len(item.data)
                if protocol.state is State.OPEN:
                    send = protocol.send_text if item.text else protocol.send_binary
                    send(item.data)
            elif isinstance(item, bytes):
                self.pending_bytes -= len(item)
                size += len(item)
                if protocol.state is State.OPEN:
                    protocol.writes.append(item)
            elif item.code is None:
                return [*protocol.data_to_send(), b""]
            elif protocol.state is State.OPEN:
                protocol.send_close(item.code)
        return protocol.data_to_send()


@attrs.frozen
class _HangUp:
    """Marks the end of this direction; with a code, by a closing handshake."""

    code: int | None
