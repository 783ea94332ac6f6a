"""Whatever bytes come, in whatever pieces: the same as the library alone makes of them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import websockets.asyncio.connection
import websockets.trio.connection
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri
from websockets.utils import accept_key

from mdservice.feed.alpaca.frame_reader import FrameReader

MOST_BYTES = 70_000
Message = tuple[bytes, bool]


class Client:
    """A protocol of the library's that has asked for a connection."""

    def __init__(self, *, by_reader: bool) -> None:
        self.messages: list[Message] = []
        self.handshakes = 0
        self._fragments: list[Frame] = []
        self.protocol = ClientProtocol(parse_uri("ws://feed/"), max_size=MOST_BYTES)
        request = self.protocol.connect()
        self.protocol.send_request(request)
        self.key = request.headers["Sec-WebSocket-Key"]
        self.said = b"".join(self.protocol.data_to_send())
        self.receive = self.protocol.receive_data
        if by_reader:
            reader = FrameReader(self.protocol, MOST_BYTES, self._put)
            self.receive = reader.receive_data

    def _put(self, messages: Sequence[Message], size: int) -> None:
        assert size == sum(len(data) for data, _ in messages)
        self.messages += messages

    def hear(self, pieces: Sequence[bytes]) -> None:
        for piece in pieces:
            self.receive(piece)
            self._take_events()
        self.protocol.receive_eof()
        self._take_events()

    def _take_events(self) -> None:
        for event in self.protocol.events_received():
            if isinstance(event, Response):
                self.handshakes += 1
            elif event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                self._take_data(event)
        self.said += b"".join(self.protocol.data_to_send())

    def _take_data(self, frame: Frame) -> None:
        self._fragments.append(frame)
        if frame.fin:
            whole = b"".join(bytes(part.data) for part in self._fragments)
            self.messages.append((whole, self._fragments[0].opcode is Opcode.TEXT))
            self._fragments.clear()

    def outcome(self) -> tuple[Any, ...]:
        protocol = self.protocol
        error = protocol.handshake_exc or protocol.parser_exc
        return (
            self.messages,
            self.handshakes,
            protocol.state,
            protocol.close_rcvd,
            protocol.close_sent,
            type(error),
            protocol.state is State.CLOSED
            and protocol.handshake_exc is None
            and protocol.close_code,
        )


def response(key: str, status: str = "101 Switching Protocols") -> bytes:
    lines = (
        f"HTTP/1.1 {status}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {accept_key(key)}",
    )
    return "\r\n".join((*lines, "", "")).encode()


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    borders = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in pairwise(borders)]


def frame(opcode: Opcode, data: bytes, *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin=fin).serialize(mask=False)


sizes = st.sampled_from([0, 1, 5, 125, 126, 127, 300, 65_535, 65_536, MOST_BYTES])
contents = st.builds(lambda size, byte: bytes([byte]) * size, sizes, st.integers(32, 126))
plain = st.builds(frame, st.sampled_from([Opcode.BINARY, Opcode.TEXT]), contents)
control = st.builds(frame, st.sampled_from([Opcode.PING, Opcode.PONG]), st.binary(max_size=125))
fragments = st.lists(st.binary(max_size=200), min_size=2, max_size=4).map(
    lambda parts: b"".join(
        frame(Opcode.BINARY if n == 0 else Opcode.CONT, part, fin=n == len(parts) - 1)
        for n, part in enumerate(parts)
    )
)
close = st.just(frame(Opcode.CLOSE, b"\x03\xe8bye"))
odd = st.one_of(
    st.just(Frame(Opcode.BINARY, b"masked").serialize(mask=True)),
    st.just(b"\xc2\x0acompressed"),
    st.just(frame(Opcode.BINARY, bytes(MOST_BYTES + 1))),
    st.just(b"\x89\x7e\x00\x80" + bytes(128)),
    st.just(b"\x82\x7e\x00\x03abc"),  # a longer length than is needed
    st.binary(min_size=1, max_size=20),
)
usual = st.lists(st.one_of(plain, control), max_size=8).map(b"".join)
streams = st.lists(st.one_of(plain, plain, plain, control, fragments, close, odd), max_size=8).map(
    b"".join
)
places = st.lists(st.integers(0, 1_000_000), max_size=6)
near = st.lists(st.integers(100, 220), max_size=6)


@given(streams, st.one_of(places, near))
@example(b"", [])
@example(b"\x03\x7e", [])  # refused for its opcode, before its length has come
@example(b"\x89\x7e\x00\x7e" + bytes(126) + b"\x82\x01x", [])
def test_any_stream_is_read_as_the_library_reads_it(stream: bytes, places: list[int]) -> None:
    alone, ours = Client(by_reader=False), Client(by_reader=True)
    alone.hear(cut(response(alone.key) + stream, places))
    ours.hear(cut(response(ours.key) + stream, places))
    assert ours.outcome() == alone.outcome()
    # What is said begins with a request whose key is random, and is masked at random.
    assert len(ours.said) == len(alone.said)


@given(usual, places)
def test_a_usual_stream_is_not_left_to_the_library(stream: bytes, places: list[int]) -> None:
    client = Client(by_reader=True)
    parsed: list[Frame] = []
    recv_frame = client.protocol.recv_frame

    def count(each: Frame) -> None:
        parsed.append(each)
        recv_frame(each)

    client.protocol.recv_frame = count  # type: ignore[method-assign]
    client.hear(cut(response(client.key) + stream, places))
    assert {each.opcode for each in parsed} <= {Opcode.PING, Opcode.PONG}


@pytest.mark.parametrize("size", [200, 65_600], ids=["16 bits", "64 bits"])
@pytest.mark.parametrize("before", [1, 200, 1_000])
def test_a_head_that_is_split_behind_a_whole_message_is_not_held_back(
    size: int, before: int
) -> None:
    whole, next_ = frame(Opcode.BINARY, b"a" * before), frame(Opcode.TEXT, b"b" * size)
    head = len(next_) - size
    for place in range(1, head + 1):
        client = Client(by_reader=True)
        client.receive(response(client.key))
        client.receive(whole + next_[:place])
        assert client.messages == [(b"a" * before, False)]
        client.receive(next_[place:])
        # Nothing more has come: what is whole may not wait for it.
        assert client.messages[1:] == [(b"b" * size, True)], place


@pytest.mark.parametrize("status", ["401 Unauthorized", "100 Continue", "200 OK"])
@given(places=places)
def test_a_refusal_is_read_by_the_library(status: str, places: list[int]) -> None:
    alone, ours = Client(by_reader=False), Client(by_reader=True)
    body = b"\x82\x05hello\r\n\r\n"
    alone.hear(cut(response(alone.key, status) + body, places))
    ours.hear(cut(response(ours.key, status) + body, places))
    assert ours.outcome() == alone.outcome()
    assert ours.messages == []


def test_after_this_side_has_closed_the_library_reads() -> None:
    client = Client(by_reader=True)
    client.receive(response(client.key) + frame(Opcode.BINARY, b"before")[:4])
    client.protocol.fail(1011, "no answer to a ping")
    client.receive(frame(Opcode.BINARY, b"before")[4:] + frame(Opcode.BINARY, b"after"))
    assert client.messages == []
    events = client.protocol.events_received()
    assert [type(event) for event in events] == [Response]


@pytest.mark.parametrize("at", [1, 3, 7])
def test_what_was_begun_when_this_side_closes_is_still_read(at: int) -> None:
    alone, ours = Client(by_reader=False), Client(by_reader=True)
    stream = frame(Opcode.BINARY, b"before") + frame(Opcode.CLOSE, b"\x03\xe8bye")
    for client in (alone, ours):
        client.receive(response(client.key) + stream[:at])
        client.protocol.send_close(1000)
        client.hear([stream[at:]])
    assert ours.outcome() == alone.outcome()
    assert ours.messages == [(b"before", False)]


def test_a_large_message_is_not_copied_with_each_read() -> None:
    client = Client(by_reader=True)
    large = frame(Opcode.BINARY, bytes(MOST_BYTES))
    client.receive(response(client.key))
    looks = 0
    cut_out = FrameReader._cut

    def count(self: FrameReader, data: bytes) -> None:
        nonlocal looks
        looks += 1
        cut_out(self, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrameReader, "_cut", count)
        for start in range(0, len(large), 100):
            client.receive(large[start : start + 100])
    assert [len(data) for data, _ in client.messages] == [MOST_BYTES]
    assert looks == 2


@pytest.mark.pins
@pytest.mark.parametrize("library", [websockets.trio.connection, websockets.asyncio.connection])
def test_the_librarys_connections_give_all_that_they_read_to_receive_data(library: Any) -> None:
    source = inspect.getsource(library.Connection)
    assert source.count("self.protocol.receive_data(data)") == 1
    assert ".reader.feed_data" not in source
