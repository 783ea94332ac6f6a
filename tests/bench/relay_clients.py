"""Clients of the relay, as a process: many connections that count messages at the lowest cost.

``python -m tests.bench.relay_clients CROWD``, with a :class:`Crowd` as JSON, prints ``{"ready": …}``
when all have subscribed. A line ``{"do": "total"}`` on its input is answered with the number of
messages since the last report, ``{"do": "report"}`` with everything since then. It ends with its
input.

A client counts what the head of each array says, and decodes nothing. Some of them, spread evenly,
are sampled: they decode their messages, check that each symbol's bids rise by one cent, and note
how late each quote is.
"""

from __future__ import annotations

import os
import random
import select
import socket
import sys
import time
from array import array
from collections import Counter
from typing import Any

import msgspec

from tests.bench.tape import symbol_names
from tests.bench.wire import Quote

SLOT_S = 0.05
"""Messages are counted per slot of monotonic time, so that a rate can be had for any window."""
_READ_BYTES = 262_144
_DEAF_BUFFER_BYTES = 4096
_OPEN_LIMIT_S = 20.0
_RETRY_S = 0.05
_REQUEST = (
    "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    "Content-Type: application/msgpack\r\n\r\n"
)
_BINARY, _CLOSE, _PING, _PONG = 0x82, 0x88, 0x89, 0x8A
_MASKED = 0x80
_SHORT, _TWO_BYTES = 125, 126
_COUNT_BYTES = 5
"""The head of a msgpack array has at most as many."""
_LOGIN = {"action": "auth", "key": "key", "secret": "secret"}
_decode = msgspec.msgpack.Decoder(list[Quote]).decode


class Crowd(msgspec.Struct, omit_defaults=True):
    """Who connects, and what they want.

    Attributes:
        port: Of the relay, on loopback.
        clients: How many.
        each: How many symbols each subscribes, by chance but always the same; 0 is ``*``.
        of: How many symbols there are.
        sampled: How many decode what they get.
        deaf: They subscribe and then never read.
    """

    port: int
    clients: int
    each: int = 0
    of: int = 500
    sampled: int = 20
    deaf: bool = False
    path: str = "/v2/sip"

    def symbols(self, client: int) -> list[int]:
        """The indexes of a client's symbols."""
        return random.Random(client).sample(range(self.of), self.each or self.of)


class Client:
    """One connection: where in its stream it is, and what it counted."""

    __slots__ = ("count", "last_cents", "rest", "skip", "sock")

    def __init__(self, sock: socket.socket, rest: bytes, *, sampled: bool) -> None:
        self.sock = sock
        self.rest = rest  # a frame that has not wholly come
        self.skip = 0  # bytes of a counted frame that are yet to come
        self.count = 0
        self.last_cents: dict[str, int] | None = {} if sampled else None


class Clients:
    """All of them, and what they got since the last report."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self._clients: dict[int, Client] = {}
        self._buffer = bytearray(_READ_BYTES)
        self._clear()

    def connect(self) -> None:
        """Log all of them in and subscribe, one after the other."""
        crowd = self._crowd
        names = symbol_names(crowd.of)
        step = max(1, crowd.clients // max(1, crowd.sampled))
        for number in range(crowd.clients):
            wanted = [names[index] for index in crowd.symbols(number)] if crowd.each else ["*"]
            sock, rest = _open(crowd, wanted)
            sampled = number % step == 0 and not crowd.deaf
            self._clients[sock.fileno()] = Client(sock, rest, sampled=sampled)

    def _clear(self) -> None:
        for client in self._clients.values():
            client.count = 0
        self._slots: Counter[int] = Counter()
        self._late_ns = array("q")
        self._frames = 0
        self._missed = 0
        self._out_of_order = 0
        self._wrong: list[str] = []

    def serve(self) -> None:
        """Read and answer until the input ends."""
        poll = select.epoll()
        orders = sys.stdin.fileno()
        poll.register(orders, select.EPOLLIN)
        for descriptor, client in self._clients.items():
            self.take(client, client.rest, len(client.rest))
            if not self._crowd.deaf:
                poll.register(descriptor, select.EPOLLIN)
        self._clear()
        _report({"ready": len(self._clients)})
        clients, buffer, pending = self._clients, self._buffer, b""
        while True:
            came = 0
            for descriptor, _ in poll.poll():
                if descriptor == orders:
                    data = os.read(orders, _READ_BYTES)
                    if not data:
                        return
                    *lines, pending = (pending + data).split(b"\n")
                    for line in lines:
                        self._answer(msgspec.json.decode(line)["do"])
                    continue
                client = clients[descriptor]
                try:
                    size = client.sock.recv_into(buffer)
                except ConnectionResetError:
                    size = 0
                if not size:
                    self._wrong.append("the other side closed a connection")
                    poll.unregister(descriptor)
                elif client.rest:
                    data = client.rest + buffer[:size]
                    came += self.take(client, data, len(data))
                else:
                    came += self.take(client, buffer, size)
            self._slots[int(time.monotonic() / SLOT_S)] += came

    def take(self, client: Client, data: bytes | bytearray, end: int) -> int:
        """Count the messages of one read, which begins with the client's rest; returns how many."""
        place, count, sampled = client.skip, 0, client.last_cents is not None
        while (left := end - place) >= 2:
            kind, length, head = data[place], data[place + 1], 2
            if length > _SHORT:
                head = 4 if length == _TWO_BYTES else 10
                if left < head:
                    break
                length = int.from_bytes(data[place + 2 : place + head], "big")
            start = place + head
            if kind == _BINARY and not sampled:
                if left < head + min(length, _COUNT_BYTES):
                    break
                count += _array_length(data, start)
                self._frames += 1
            elif left < head + length:
                break
            elif kind == _BINARY:
                count += self._sample(client, bytes(data[start : start + length]))
            elif kind == _PING:
                payload = bytes(data[start : start + length])
                client.sock.send(bytes([_PONG, _MASKED | length, 0, 0, 0, 0]) + payload)
            elif kind == _CLOSE:
                reason = bytes(data[start + 2 : start + length]).decode()
                self._wrong.append(f"the other side said: {reason or 'close'}")
            elif kind != _PONG:
                raise ValueError(f"a frame begins with {kind:#x}")
            place = start + length
        client.skip = max(0, place - end)
        client.rest = bytes(data[place:end])
        client.count += count
        return count

    def _sample(self, client: Client, payload: bytes) -> int:
        """Check each quote and note how late it is."""
        now_ns = time.time_ns()
        last_cents = client.last_cents
        assert last_cents is not None
        messages = _decode(payload)
        self._frames += 1
        for quote in messages:
            if quote.T != "q":
                self._wrong.append(f"a message of the kind {quote.T!r} came")
                continue
            cents = round(100 * quote.bp)
            risen = cents - last_cents.get(quote.S, cents - 1)
            self._missed += max(0, risen - 1)
            self._out_of_order += risen < 1
            last_cents[quote.S] = cents
            self._late_ns.append(now_ns - quote.time_ns())
        return len(messages)

    def _answer(self, order: str) -> None:
        if order == "total":
            _report({"total": sum(client.count for client in self._clients.values())})
        else:
            _report(self.report())

    def report(self) -> dict[str, Any]:
        """What came since the report before."""
        late = sorted(self._late_ns)
        last = len(late) - 1
        report = {
            "counts": [client.count for client in self._clients.values()],
            "frames": self._frames,
            "slots": sorted(self._slots.items()),
            "p50_ms": late[last // 2] / 1e6 if late else None,
            "p99_ms": late[last * 99 // 100] / 1e6 if late else None,
            "missed": self._missed,
            "out_of_order": self._out_of_order,
            "wrong": self._wrong,
        }
        self._clear()
        return report


def _array_length(data: bytes | bytearray, place: int) -> int:
    """Of the msgpack array that begins there."""
    head = data[place]
    if head & 0xF0 == 0x90:
        return head & 0x0F
    if head == 0xDC:
        return data[place + 1] << 8 | data[place + 2]
    return int.from_bytes(data[place + 1 : place + 5], "big")


def _open(crowd: Crowd, symbols: list[str]) -> tuple[socket.socket, bytes]:
    """Connect, log in, subscribe; returns what came behind the acknowledgement too."""
    sock, rest = _connect(crowd)
    _, rest = _control(sock, rest, "success")
    _say(sock, _LOGIN)
    _, rest = _control(sock, rest, "success")
    _say(sock, {"action": "subscribe", "quotes": symbols})
    state, rest = _control(sock, rest, "subscription")
    if set(state["quotes"]) != set(symbols):
        raise ValueError(f"acknowledged {state['quotes']} instead of {symbols}")
    sock.setblocking(False)
    return sock, rest


def _connect(crowd: Crowd) -> tuple[socket.socket, bytes]:
    """Try until the program serves; returns what came behind the answer too."""
    deadline = time.monotonic() + _OPEN_LIMIT_S
    while True:
        sock = socket.socket()
        sock.settimeout(_OPEN_LIMIT_S)
        if crowd.deaf:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _DEAF_BUFFER_BYTES)
        answer = b""
        try:
            sock.connect(("127.0.0.1", crowd.port))
            sock.sendall(_REQUEST.format(path=crowd.path, port=crowd.port).encode())
            while b"\r\n\r\n" not in answer and (data := sock.recv(_READ_BYTES)):
                answer += data
        except ConnectionError as exc:
            answer = str(exc).encode()
        head, _, rest = answer.partition(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 101"):
            return sock, rest
        sock.close()
        if time.monotonic() > deadline:
            raise TimeoutError(f"port {crowd.port} answers {head!r}")
        time.sleep(_RETRY_S)


def _control(sock: socket.socket, data: bytes, kind: str) -> tuple[dict[str, Any], bytes]:
    """Wait for the next message, which must be of a kind; returns what came behind it too."""
    while True:
        if len(data) >= 4:
            length, head = data[1], 2
            if length > _SHORT:
                head = 4 if length == _TWO_BYTES else 10
                length = int.from_bytes(data[2:head], "big")
            if len(data) >= head + length:
                (message,) = msgspec.msgpack.decode(data[head : head + length])
                if message["T"] != kind:
                    raise ValueError(f"{message} came instead of {kind}")
                return message, data[head + length :]
        more = sock.recv(_READ_BYTES)
        if not more:
            raise ConnectionError(f"closed before {kind}")
        data += more


def _say(sock: socket.socket, message: dict[str, Any]) -> None:
    """Send a message, masked with zeros."""
    payload = msgspec.msgpack.encode(message)
    if len(payload) > _SHORT:
        head = bytes([_BINARY, _MASKED | _TWO_BYTES]) + len(payload).to_bytes(2, "big")
    else:
        head = bytes([_BINARY, _MASKED | len(payload)])
    sock.sendall(head + bytes(4) + payload)


def _report(message: dict[str, Any]) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.flush()


if __name__ == "__main__":
    clients = Clients(msgspec.json.decode(sys.argv[1], type=Crowd))
    clients.connect()
    clients.serve()
