"""The feed, as a process: Alpaca's websocket protocol, with quotes from a :class:`Tape`.

``python -m tests.bench.blaster SYMBOLS PER_FRAME msgpack|json`` prints ``{"port": …}``, and
``{"subscribed": …}`` once a client has asked for all symbols. A line
``{"rate": quotes_per_s, "seconds": …}`` on its input makes it send, a rate of 0 as fast as
the client takes; afterwards it prints what it sent and when. ``{"stop": true}`` ends that before
its time. It ends with its input.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from typing import Any

import msgspec
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from tests.bench.encodings import ENCODINGS, Encoding, Msgpack
from tests.bench.tape import Tape, symbol_names

_SEND_BUFFER_BYTES = 131_072
"""Small: what lies in the system's buffers counts neither as taken in nor as waiting."""
_TICK_S = 0.001


class AlpacaConnection(asyncio.Protocol):
    """One client: login and subscriptions by the book, everything else as bytes."""

    def __init__(self, symbols: list[str], encoding: Encoding) -> None:
        self.subscribed = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()
        self.closed = False
        self.transport: asyncio.Transport
        self._symbols = set(symbols)
        self._encoding = encoding
        self._asked_for: set[str] = set()
        self._protocol = ServerProtocol()
        self._fragments = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        transport.set_write_buffer_limits(high=0)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.writable.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                self._protocol.send_response(self._protocol.accept(event))
                self._say({"T": "success", "msg": "connected"})
            elif isinstance(event, Frame) and event.opcode in (
                Opcode.TEXT,
                Opcode.BINARY,
                Opcode.CONT,
            ):
                self._fragments += event.data
                if event.fin:
                    message, self._fragments = self._fragments, b""
                    self._take(_decode(message))
        self._flush()

    def _take(self, message: dict[str, Any]) -> None:
        if message["action"] == "auth":
            self._say({"T": "success", "msg": "authenticated"})
            return
        quotes = set(message.get("quotes", ()))
        if message["action"] == "subscribe":
            self._asked_for |= quotes
        else:
            self._asked_for -= quotes
        self._say({"T": "subscription", "trades": [], "quotes": sorted(self._asked_for)})
        if self._asked_for >= self._symbols:
            self.subscribed.set()

    def _say(self, message: dict[str, Any]) -> None:
        data = self._encoding.message([message])
        binary = isinstance(self._encoding, Msgpack)
        (self._protocol.send_binary if binary else self._protocol.send_text)(data)

    def _flush(self) -> None:
        self.transport.write(b"".join(self._protocol.data_to_send()))
        if self._protocol.close_expected():
            self.transport.close()


def _decode(message: bytes) -> Any:
    decode = msgspec.json.decode if message.startswith(b"{") else msgspec.msgpack.decode
    return decode(message)


class Orders:
    """The lines of the input, of which the one that stops a blast comes in its midst."""

    def __init__(self, lines: asyncio.StreamReader) -> None:
        self.stopped = False
        self._lines = lines
        self._waiting: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    async def read(self) -> None:
        """Take lines until the input ends."""
        while line := await self._lines.readline():
            order = msgspec.json.decode(line)
            if "stop" in order:
                self.stopped = True
            else:
                self._waiting.put_nowait(order)
        self._waiting.put_nowait(None)

    async def next(self) -> dict[str, Any] | None:
        """The next blast; None where the input has ended."""
        order = await self._waiting.get()
        self.stopped = False
        return order


async def blast(
    connection: AlpacaConnection, tape: Tape, orders: Orders, rate: float, seconds: float
) -> dict[str, Any]:
    """Send for some seconds; returns how many quotes, from when to when."""
    frames_before = tape.frames_sent
    started = time.monotonic()
    while (elapsed := time.monotonic() - started) < seconds and not connection.closed:
        if orders.stopped:
            break
        most = tape.frames_in_cycle
        if rate:
            due = int(elapsed * rate / tape.per_frame) + 1
            most = due - (tape.frames_sent - frames_before)
        if most > 0:
            connection.transport.write(tape.next_frames(most, time.time_ns()))
            await connection.writable.wait()
        await asyncio.sleep(_TICK_S if rate and most < tape.frames_in_cycle else 0)
    return {
        "sent": (tape.frames_sent - frames_before) * tape.per_frame,
        "frames_in_all": tape.frames_sent,
        "started": started,
        "ended": time.monotonic(),
    }


async def serve(symbols: list[str], per_frame: int, encoding: Encoding) -> None:
    """Serve one client after the other; every line of the input is one blast."""
    loop = asyncio.get_running_loop()
    connections: asyncio.Queue[AlpacaConnection] = asyncio.Queue()

    def connect() -> AlpacaConnection:
        connection = AlpacaConnection(symbols, encoding)
        connections.put_nowait(connection)
        return connection

    server = await loop.create_server(connect, "127.0.0.1", 0)
    _report({"port": server.sockets[0].getsockname()[1]})
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    orders = Orders(lines)
    reading = asyncio.create_task(orders.read())
    tape = Tape(symbols, per_frame, encoding)
    connection = await connections.get()
    await connection.subscribed.wait()
    _report({"subscribed": len(symbols)})
    while order := await orders.next():
        _report(await blast(connection, tape, orders, order["rate"], order["seconds"]))
    await reading


def _report(message: dict[str, Any]) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(serve(symbol_names(int(sys.argv[1])), int(sys.argv[2]), ENCODINGS[sys.argv[3]]))
