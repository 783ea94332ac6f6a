"""One client's websocket connection, on a non-blocking socket, with TLS or without.

The relay sends to a thousand clients in one turn, so it sends without a task per client: a frame
goes straight to the socket. Only what the socket does not take waits for :meth:`Line.drain`.
"""

from __future__ import annotations

import socket
import ssl
import struct
import zlib
from collections.abc import Callable, Sequence
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
_MOST_LOGIN_BYTES: Final = 16 * 1024
"""Likewise before it has logged in."""
_READ_BYTES: Final = 16 * 1024
_SEND_BUFFER_BYTES: Final = 128 * 1024
"""Of the socket. A larger one would hide that a client does not read."""
_UNSENT_MS: Final = 300_000
"""After so long the kernel ends a connection whose client takes no byte of what waits for it."""
_SILENT_S: Final = 30
"""After so long without a byte the kernel asks the client's machine whether it is still there."""
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
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNSENT_MS)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _SILENT_S)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _SILENT_S)
        self._socket = sock
        self._unsent = bytearray()
        self._draining: anyio.Event | None = None
        """Set when the task that waits for the socket has written to it."""
        self._ended = False
        """Whether the client has ended its direction of TLS."""
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
                self._send(self._outgoing.read())  # the alert, which says what is wrong
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
            if self._draining is not None:  # only one task can wait for a socket
                await self._draining.wait()
                continue
            self._draining = anyio.Event()
            try:
                await anyio.wait_writable(self._socket)
                with suppress(BlockingIOError):
                    del self._unsent[: self._socket.send(self._unsent)]
            except (OSError, ValueError, anyio.ClosedResourceError):
                self.cut()
            finally:
                self._draining.set()
                self._draining = None

    async def receive(self) -> bytes:
        """The next bytes; ``b""`` at the end."""
        while not self._ended:
            if self._tls is not None and self._incoming.pending:  # some come with the handshake
                plain = await self._decrypt(self._tls)
                if plain or self._ended:
                    return plain
            data = await self._receive()
            if self._tls is None or not data:
                return data
            self._incoming.write(data)
        return b""

    async def _decrypt(self, tls: ssl.SSLObject) -> bytes:
        plain = bytearray()
        try:
            while part := tls.read(_READ_BYTES):
                plain += part
            self._ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self._ended = True
        if self._outgoing.pending:  # TLS itself has an answer
            self._send(self._outgoing.read())
            await self.drain()
        return bytes(plain)

    async def finish(self) -> None:
        """End the relay's direction, and wait until the client has ended its own.

        A socket that is closed while bytes of the client are unread loses what it has sent last.
        """
        if self._tls is not None:
            with suppress(ssl.SSLError, ValueError):  # also where the handshake has failed
                self._tls.unwrap()
            self._send(self._outgoing.read())
        await self.drain()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        while await self._receive():
            pass

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
            max_size=(_MOST_LOGIN_BYTES, _MOST_LOGIN_BYTES),
        )
        self._window_bits = 0
        self._message = bytearray()
        """The fragments of a message that is not complete."""
        self._text = True
        self._ended = False
        self.frames = 0
        """How many frames of the client have come."""

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
        deflate = [
            each for each in self._protocol.extensions if isinstance(each, PerMessageDeflate)
        ]
        self._compresses &= bool(deflate)
        if deflate:
            self._window_bits = deflate[0].local_max_window_bits
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
                if isinstance(event, Request) and not self._protocol.eof_sent:
                    return event
            if self._protocol.handshake_exc is not None or self._protocol.eof_sent:
                self._send_protocol()  # it is no request, or no frame follows it
                return None

    def trust(self) -> None:
        """Accept larger messages: the client has logged in."""
        self._protocol.max_message_size = self._protocol.max_fragment_size = MOST_MESSAGE_BYTES

    def send(self, payload: bytes, *, text: bool) -> None:
        """Send a message of its own."""
        self.line.send(self.frame(payload, text=text))

    def frame(self, payload: bytes, *, text: bool) -> bytes:
        """The frame of a message for this client."""
        if self._compresses and len(payload) >= _LEAST_COMPRESSED_BYTES:
            compressed = _deflate(payload, self._window_bits)
            return data_frame(compressed, text=text, compressed=True)
        return data_frame(payload, text=text)

    @property
    def shares_frames(self) -> bool:
        """Whether its frames are as every other client's of the same encoding."""
        return not self._compresses

    async def receive(self) -> Sequence[tuple[bytes, bool]] | None:
        """The messages that the client's next bytes complete, each with whether it is text.

        None at the end. Pings are answered; a client that does not read the answers is not read.
        """
        if self._ended:
            return None
        data = await self.line.receive()
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        messages: list[tuple[bytes, bool]] = []
        for event in self._protocol.events_received():
            if isinstance(event, Frame):
                self.frames += 1
                if event.opcode in _DATA:
                    messages += self._completed(event)
        if self._send_protocol():
            await self.line.drain()
        self._ended = not data or self._protocol.close_expected()
        return messages

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

    def _completed(self, frame: Frame) -> Sequence[tuple[bytes, bool]]:
        """The message that a frame completes, if it does."""
        if frame.opcode is not Opcode.CONT:
            self._text = frame.opcode is Opcode.TEXT
        self._message += frame.data
        if not frame.fin:
            return ()
        message = bytes(self._message)
        self._message.clear()
        return ((message, self._text),)

    def _send_protocol(self) -> bool:
        """Send what the protocol has to say, such as a pong; whether there was something."""
        sent = False
        for data in self._protocol.data_to_send():
            if data:
                self.line.send(data)
                sent = True
        return sent


def _deflate(payload: bytes, window_bits: int) -> bytes:
    """Compress a message without context. Source: RFC 7692, section 7.2.1."""
    compressor = zlib.compressobj(level=1, wbits=-window_bits, memLevel=5)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
