"""One client's websocket connection, on a non-blocking socket, with TLS or without.

The relay sends to a thousand clients in one turn, so it sends without a task per client: a frame
goes straight to the socket. Only what the socket does not take waits for :meth:`Line.drain`.
"""

from __future__ import annotations

import socket
import ssl
import struct
import zlib
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Final

import anyio
from anyio.lowlevel import checkpoint
from websockets.exceptions import ProtocolError
from websockets.extensions.permessage_deflate import (
    PerMessageDeflate,
    ServerPerMessageDeflateFactory,
)
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol

__all__ = ["MOST_MESSAGE_BYTES", "Line", "WebSocket", "data_frame"]

MOST_MESSAGE_BYTES: Final = 1024 * 1024
"""The largest message of a client; a larger one ends the connection with code 1009."""
_MOST_FRAGMENT_BYTES: Final = 1024 * 1024
_READ_BYTES: Final = 16 * 1024
_SEND_BUFFER_BYTES: Final = 128 * 1024
"""Of the socket. A larger one would hide that a client does not read."""
_UNACKNOWLEDGED_MS: Final = 60_000
"""How long a client's machine may leave sent bytes without an acknowledgement."""
_LEAST_COMPRESSED_BYTES: Final = 512
_CLIENT_WINDOW_BITS: Final = 10
"""1 KB of memory for a client that offers to limit its window."""
_DATA = frozenset((Opcode.TEXT, Opcode.BINARY, Opcode.CONT))
_SHORT, _MEDIUM, _LONG = struct.Struct("!BB"), struct.Struct("!BBH"), struct.Struct("!BBQ")
_MEDIUM_MARK, _LONG_MARK, _LEAST_LONG = 126, 127, 65_536
_FIN: Final = 0x80
_COMPRESSED: Final = 0x40


def data_frame(payload: bytes, *, text: bool, compressed: bool = False) -> bytes:
    """An unmasked, unfragmented data frame. Source: RFC 6455, section 5.2."""
    head = _FIN | (_COMPRESSED if compressed else 0) | (Opcode.TEXT if text else Opcode.BINARY)
    size = len(payload)
    if size < _MEDIUM_MARK:
        return _SHORT.pack(head, size) + payload
    if size < _LEAST_LONG:
        return _MEDIUM.pack(head, _MEDIUM_MARK, size) + payload
    return _LONG.pack(head, _LONG_MARK, size) + payload


class Line:
    """Bytes to and from one client.

    Args:
        sock: A connected socket; this object closes it.
        tls: The server's TLS context, or None.
    """

    def __init__(self, sock: socket.socket, tls: ssl.SSLContext | None) -> None:
        sock.setblocking(False)
        with suppress(OSError):  # the client may be gone
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)
        self._socket = sock
        self._unsent = bytearray()
        self._closed = False
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = tls.wrap_bio(self._incoming, self._outgoing, server_side=True) if tls else None

    @property
    def blocked(self) -> bool:
        """Whether bytes wait that the socket has not taken."""
        return bool(self._unsent)

    async def open(self) -> None:
        """Finish the TLS handshake.

        Raises:
            ConnectionError: It failed.
        """
        if self._tls is None:
            return
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._send(self._outgoing.read())
                await self.drain()
                data = await self._receive()
                if not data:
                    raise ConnectionError("the client left during the TLS handshake") from None
                self._incoming.write(data)
            except ssl.SSLError as error:
                raise ConnectionError(f"TLS: {error.reason or error}") from error
            else:
                self._send(self._outgoing.read())
                return

    def send(self, data: bytes) -> None:
        """Send without waiting; what the socket does not take now waits for :meth:`drain`."""
        if self._tls is not None:
            try:
                self._tls.write(data)
            except ssl.SSLError:
                self.cut()
                return
            data = self._outgoing.read()
        self._send(data)

    def _send(self, data: bytes) -> None:
        if self._unsent:
            self._unsent += data
            return
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.cut()
            return
        if sent < len(data):
            self._unsent += data[sent:]

    async def drain(self) -> None:
        """Wait until the socket has taken what waits, or the client is gone."""
        while self._unsent:
            try:
                await anyio.wait_writable(self._socket)
                with suppress(BlockingIOError):
                    del self._unsent[: self._socket.send(self._unsent)]
            except (OSError, ValueError, anyio.ClosedResourceError, anyio.BusyResourceError):
                self.cut()

    async def receive(self) -> bytes:
        """The next bytes; ``b""`` at the end."""
        while True:
            data = await self._receive()
            if self._tls is None or not data:
                return data
            self._incoming.write(data)
            plain = bytearray()
            try:
                while part := self._tls.read(_READ_BYTES):
                    plain += part
                return bytes(plain)  # the client has ended its direction
            except ssl.SSLWantReadError:
                if self._outgoing.pending:
                    self._send(self._outgoing.read())
                if plain:
                    return bytes(plain)
            except ssl.SSLError:
                return bytes(plain)

    async def _receive(self) -> bytes:
        while True:
            try:
                data = self._socket.recv(_READ_BYTES)
            except BlockingIOError:
                pass
            except (OSError, ValueError):
                await checkpoint()
                return b""
            else:
                await checkpoint()
                return data
            try:
                await anyio.wait_readable(self._socket)
            except (OSError, ValueError, anyio.ClosedResourceError):
                return b""

    def cut(self) -> None:
        """End both directions at once; a waiting :meth:`receive` then returns."""
        self._unsent.clear()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        if not self._closed:
            self._closed = True
            anyio.notify_closing(self._socket)
            self._socket.close()


class WebSocket:
    """A client's connection: the handshake, then messages.

    Compression is accepted without the server's context takeover and with a small window of the
    client's, which keeps a client below 60 KB. A client keeps its own context if it wants to:
    Alpaca's JavaScript SDK 3 refuses an answer that forbids it. Frames are compressed only if
    ``compresses``, since on the same machine that costs more than it saves; a message of either
    form is right at any time (RFC 7692, section 6).

    Args:
        line: The bytes.
        compresses: Whether to compress frames for a client that offers it.
    """

    def __init__(self, line: Line, *, compresses: bool) -> None:
        self.line = line
        self._compresses = compresses
        self._protocol = ServerProtocol(
            extensions=[
                ServerPerMessageDeflateFactory(
                    server_no_context_takeover=True, client_max_window_bits=_CLIENT_WINDOW_BITS
                )
            ],
            max_size=(MOST_MESSAGE_BYTES, _MOST_FRAGMENT_BYTES),
        )
        self._fragments: list[bytes] = []
        self._text = True
        self._messages: deque[tuple[bytes, bool]] = deque()
        self._ended = False

    async def handshake(
        self, refuse: Callable[[Request], tuple[HTTPStatus, str] | None]
    ) -> Request | None:
        """Answer the upgrade request; None where it was refused or the client left.

        Args:
            refuse: Returns the status and the text by which a valid request is refused, or None.
        """
        await self.line.open()
        request = await self._request()
        if request is None:
            return None
        refusal = refuse(request)
        response = (
            self._protocol.accept(request) if refusal is None else self._refusal(request, *refusal)
        )
        self._protocol.send_response(response)
        self._send_protocol()
        self._compresses &= any(
            isinstance(each, PerMessageDeflate) for each in self._protocol.extensions
        )
        if self._protocol.state is State.OPEN:
            return request
        await self.line.drain()
        return None

    def _refusal(self, request: Request, status: HTTPStatus, text: str) -> Response:
        checked = self._protocol.accept(request)  # a plain HTTP request gets its own answer
        if checked.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            return checked
        response = self._protocol.reject(status, text + "\n")
        if status is HTTPStatus.SERVICE_UNAVAILABLE:
            response.headers["Retry-After"] = "1"
        return response

    async def _request(self) -> Request | None:
        while True:
            data = await self.line.receive()
            if not data:
                return None
            self._protocol.receive_data(data)
            for event in self._protocol.events_received():
                if isinstance(event, Request):
                    return event
            if self._protocol.handshake_exc is not None:
                self._send_protocol()
                return None

    def send(self, payload: bytes, *, text: bool) -> None:
        """Send a message of its own."""
        self.line.send(self.frame(payload, text=text))

    def frame(self, payload: bytes, *, text: bool) -> bytes:
        """The frame of a message for this client."""
        if self._compresses and len(payload) >= _LEAST_COMPRESSED_BYTES:
            return data_frame(_deflate(payload), text=text, compressed=True)
        return data_frame(payload, text=text)

    @property
    def shares_frames(self) -> bool:
        """Whether its frames are as every other client's of the same encoding."""
        return not self._compresses

    async def receive(self) -> tuple[bytes, bool] | None:
        """The client's next message, and whether it is text; None at the end. Answers pings."""
        while not self._messages:
            if self._ended:
                return None
            data = await self.line.receive()
            if data:
                self._protocol.receive_data(data)
            else:
                self._protocol.receive_eof()
                self._ended = True
            for event in self._protocol.events_received():
                if isinstance(event, Frame) and event.opcode in _DATA:
                    self._take(event)
            self._send_protocol()
            self._ended |= self._protocol.close_expected() or self._protocol.state is State.CLOSED
        return self._messages.popleft()

    def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """Begin the closing handshake; nothing can be sent after it."""
        if self._protocol.state is State.OPEN:
            with suppress(ProtocolError):
                self._protocol.send_close(code, reason)
            self._send_protocol()

    @property
    def open(self) -> bool:
        """Whether messages can be sent."""
        return self._protocol.state is State.OPEN

    def _take(self, frame: Frame) -> None:
        if frame.opcode is not Opcode.CONT:
            self._fragments.clear()
            self._text = frame.opcode is Opcode.TEXT
        self._fragments.append(bytes(frame.data))
        if frame.fin:
            self._messages.append((b"".join(self._fragments), self._text))
            self._fragments.clear()

    def _send_protocol(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self.line.send(data)


def _deflate(payload: bytes) -> bytes:
    """Compress a message without context. Source: RFC 7692, section 7.2.1."""
    compressor = zlib.compressobj(level=1, wbits=-15, memLevel=5)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
