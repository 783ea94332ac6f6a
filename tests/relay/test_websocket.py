"""One connection: its frames, its compression, its TLS, and sockets that take no more."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from mdservice.model.kinds import QUOTES, TRADES
from mdservice.relay import server
from mdservice.relay.websocket import Line, WebSocket, data_frame
from tests.records import make_record
from tests.relay.peers import on_both, serve, until
from tests.relay.test_server import REQUEST, large_trade, numbers

pytestmark = pytest.mark.sockets

CONNECTED = b'[{"T":"success","msg":"connected"}]'
HELLO = b"\x16\x03\x01\x00\x06\x01\x00\x00\x02\x03\x03"
"""The begin of a TLS handshake, cut short."""
SIZES = [0, 1, 125, 126, 127, 65_535, 65_536, 70_000]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed one for 127.0.0.1, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout", str(key)]
    command += ["-out", str(cert), "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return cert, key


@pytest.fixture(params=["TLSv1_2", "TLSv1_3"])
def tls(
    request: pytest.FixtureRequest, certificate: tuple[Path, Path]
) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The contexts of the relay and of a client."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(*certificate)
    client_context = ssl.create_default_context(cafile=certificate[0])
    client_context.maximum_version = ssl.TLSVersion[request.param]
    return server_context, client_context


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def fill(line: Line) -> int:
    """Send until the socket takes no more; the number of bytes."""
    sent = 0
    while not line.blocked:
        line.send(b"x" * 10_000)
        sent += 10_000
    return sent


async def read(sock: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count:
        await anyio.wait_readable(sock)
        part = sock.recv(count - len(got))
        assert part, f"the end after {len(got)} bytes"
        got += part
    return got


# Frames


def parsed(data: bytes, *offers: ClientPerMessageDeflateFactory) -> list[tuple[bytes, bool]]:
    """The messages that a client reads in a relay's bytes."""
    client = ClientProtocol(parse_uri("ws://x/"), state=State.OPEN, max_size=None)
    client.extensions = [offer.process_response_params([], []) for offer in offers]
    client.receive_data(data)
    events = client.events_received()
    assert client.parser_exc is None
    return [
        (bytes(one.data), one.opcode is Opcode.TEXT) for one in events if isinstance(one, Frame)
    ]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("text", [True, False])
def test_a_frame_of_every_size_is_read(size: int, text: bool) -> None:
    payload = b"x" * size
    assert parsed(data_frame(payload, text=text)) == [(payload, text)]


@given(st.lists(st.tuples(st.binary(max_size=300), st.booleans()), max_size=5))
def test_frames_are_read_one_after_the_other(messages: list[tuple[bytes, bool]]) -> None:
    data = b"".join(data_frame(payload, text=text) for payload, text in messages)
    assert parsed(data) == messages


async def opened(
    pair: tuple[socket.socket, socket.socket], client: ClientProtocol, *, compresses: bool = True
) -> WebSocket:
    """A connection after the handshake."""
    ours, theirs = pair
    websocket = WebSocket(Line(ours, None), compresses=compresses)
    client.send_request(client.connect())
    theirs.send(b"".join(client.data_to_send()))
    assert await websocket.handshake(lambda _: None) is not None
    await anyio.wait_readable(theirs)
    client.receive_data(theirs.recv(65_536))
    assert client.handshake_exc is None
    client.events_received()
    return websocket


@on_both
@pytest.mark.parametrize("window", [None, 9, 12, 15])
async def test_compressed_frames_keep_to_the_window_of_the_client(
    pair: tuple[socket.socket, socket.socket], window: int | None
) -> None:
    offer = ClientPerMessageDeflateFactory(server_max_window_bits=window)
    client = ClientProtocol(parse_uri("ws://x/v2/iex"), extensions=[offer], max_size=None)
    websocket = await opened(pair, client)
    assert not websocket.shares_frames
    twice = bytes(range(1, 256))  # so far apart that only a large window finds it again
    for payload in (bytes(20_000) + twice + bytes(20_000) + twice, b"short"):
        client.receive_data(websocket.frame(payload, text=False))
        (frame,) = client.events_received()
        assert client.parser_exc is None
        assert isinstance(frame, Frame)
        assert bytes(frame.data) == payload


@on_both
async def test_compression_is_only_for_a_client_that_offers_it(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    websocket = await opened(pair, ClientProtocol(parse_uri("ws://x/v2/iex")))
    assert websocket.shares_frames
    assert websocket.frame(b"x" * 1_000, text=True) == data_frame(b"x" * 1_000, text=True)


# Sockets


@on_both
async def test_two_tasks_may_wait_for_the_same_socket(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    line = Line(ours, None)
    sent = fill(line)
    drained = []

    async def drain() -> None:
        await line.drain()
        drained.append(line.blocked)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(drain)
        with anyio.move_on_after(0.01):  # one that goes away does not hold up the others
            await line.drain()
        await read(theirs, sent)
    assert drained == [False] * 3
    line.close()


@on_both
@pytest.mark.parametrize("end", ["cut", "close", "left"])
async def test_waiting_for_a_socket_ends_with_it(
    pair: tuple[socket.socket, socket.socket], end: str
) -> None:
    ours, theirs = pair
    line = Line(ours, None)
    fill(line)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(line.drain)
        await anyio.sleep(0.01)
        if end == "left":
            theirs.close()
        else:
            getattr(line, end)()
    assert not line.blocked
    line.send(b"x")
    line.send(b"y")
    await line.drain()
    assert await line.receive() == b""
    line.cut()
    line.close()
    line.close()


@on_both
@pytest.mark.parametrize("end", ["cut", "close"])
async def test_waiting_for_bytes_ends_with_the_socket(
    pair: tuple[socket.socket, socket.socket], end: str
) -> None:
    line = Line(pair[0], None)
    got: list[bytes] = []

    async def receive() -> None:
        got.append(await line.receive())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(receive)
        await anyio.sleep(0.01)
        getattr(line, end)()
    assert got == [b""]
    line.close()


@on_both
async def test_finish_lets_a_client_read_to_the_end_that_has_sent_more(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    line = Line(ours, None)
    theirs.send(b"x" * 10_000)
    line.send(b"last words")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(line.finish)
        assert await read(theirs, 10) == b"last words"
        await anyio.wait_readable(theirs)
        assert theirs.recv(1) == b""
        theirs.close()
    line.close()


@on_both
async def test_nothing_is_sent_after_the_close(pair: tuple[socket.socket, socket.socket]) -> None:
    client = ClientProtocol(parse_uri("ws://x/v2/iex"))
    websocket = await opened(pair, client)
    assert websocket.open
    websocket.close(1001)
    websocket.close(1000)
    assert not websocket.open
    await anyio.wait_readable(pair[1])
    client.receive_data(pair[1].recv(100))
    assert client.close_rcvd is not None
    assert client.close_rcvd.code == 1001
    client_says = b"".join(client.data_to_send())
    pair[1].send(client_says)
    assert await websocket.receive() == []
    assert await websocket.receive() is None


# TLS


@on_both
async def test_records_come_through_tls(tls: Any) -> None:
    async with serve(tls=tls) as served:
        peer = await served.log_in()
        await peer.subscribe(trades=["*"], quotes=["AAPL"])
        served.offer(TRADES, *(large_trade(number) for number in range(1_000)))
        served.offer(QUOTES, make_record(QUOTES, "AAPL", 1_000))
        assert numbers(await peer.take(1_001)) == list(range(1_001))
        await peer.close()
        await until(lambda: not served.relay._connections)


@on_both
async def test_a_client_of_tls_that_does_not_read_fills_no_memory(tls: Any) -> None:
    async with serve(tls=tls) as served:
        peer = await served.log_in()
        await peer.subscribe(trades=["*"])
        (client,) = served.clients
        number = 0
        while not client.websocket.line.blocked:
            served.offer(TRADES, *(large_trade(number + n) for n in range(100)))
            number += 100
            await anyio.lowlevel.checkpoint()
        for _ in range(50):
            served.offer(TRADES, *(large_trade(number + n) for n in range(100)))
            number += 100
            await anyio.lowlevel.checkpoint()
        assert len(client.websocket.line._unsent) < 200_000
        assert numbers(await peer.take(number)) == list(range(number))


@on_both
async def test_a_failed_tls_handshake_ends_no_other_client(
    tls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_CLOSE_S", 0.1)
    async with serve(tls=tls) as served:
        good = await served.log_in()
        monkeypatch.setattr(server, "AUTH_TIMEOUT_S", 0.1)
        for data in (b"", HELLO[:3], REQUEST % (b"/v2/iex", b""), b"\x16\x03\x01" * 1_000, HELLO):
            sock = await served.dial()
            if data:
                sock.send(data)
            answer = b""
            while True:
                await anyio.wait_readable(sock)
                try:
                    part = sock.recv(65_536)
                except ConnectionError:
                    break
                answer += part
                if not part:
                    break
            sock.close()
            assert data != HELLO or answer[:1] == b"\x15"  # an alert
        leaver = await served.dial()
        leaver.close()
        await until(lambda: served.relay._connections == 1)
        assert await good.subscribe(quotes=["AAPL"])


class TlsByHand:
    """A client of TLS over bytes that the test sends itself."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="127.0.0.1")

    async def handshake(self, *, byte_by_byte: bool = False) -> None:
        """All but the last bytes, which stay in ``outgoing``."""
        while True:
            try:
                return self.tls.do_handshake()
            except ssl.SSLWantReadError:
                data = self.outgoing.read()
                size = 1 if byte_by_byte else len(data) or 1
                for start in range(0, len(data), size):
                    self.sock.send(data[start : start + size])
                    await anyio.lowlevel.checkpoint()
                await self.feed()

    async def feed(self) -> bool:
        await anyio.wait_readable(self.sock)
        data = self.sock.recv(65_536)
        self.incoming.write(data)
        return bool(data)

    async def read_until(self, end: bytes) -> bytes:
        got = b""
        while end not in got:
            try:
                got += self.tls.read(65_536)
            except ssl.SSLWantReadError:
                assert await self.feed(), got
        return got


@on_both
@pytest.mark.parametrize("byte_by_byte", [False, True])
async def test_a_request_may_come_together_with_the_end_of_the_handshake(
    tls: Any, byte_by_byte: bool
) -> None:
    async with serve(tls=tls) as served:
        client = TlsByHand(await served.dial(), tls[1])
        await client.handshake(byte_by_byte=byte_by_byte)
        client.tls.write(REQUEST % (b"/v2/iex", b""))
        client.sock.send(client.outgoing.read())
        assert CONNECTED in await client.read_until(CONNECTED)
        client.sock.close()
        await until(lambda: not served.relay._connections)


@on_both
@pytest.mark.parametrize("end", ["close_notify", "request and close_notify", "FIN", "garbage"])
async def test_the_end_of_tls_is_the_end_of_the_client(tls: Any, end: str) -> None:
    async with serve(tls=tls) as served:
        client = TlsByHand(await served.dial(), tls[1])
        await client.handshake()
        client.tls.write(REQUEST % (b"/v2/iex", b""))
        client.sock.send(client.outgoing.read())
        await client.read_until(CONNECTED)
        if end == "request and close_notify":
            client.tls.write(Frame(Opcode.TEXT, b"{}").serialize(mask=True))
        if "close_notify" in end:
            with pytest.raises(ssl.SSLWantReadError):
                client.tls.unwrap()
            client.sock.send(client.outgoing.read())
        elif end == "FIN":
            client.sock.shutdown(socket.SHUT_WR)
        else:
            client.sock.send(b"\x17\x03\x03\x00\x20" + b"x" * 32)
        while await client.feed():  # the relay ends its direction too
            pass
        client.sock.close()
        await until(lambda: not served.relay._connections)
