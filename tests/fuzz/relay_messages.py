"""A relay client's messages, and the bytes of its websocket."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from http import HTTPStatus
from typing import Any, Final

import msgspec
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.uri import parse_uri

from mdservice.model.feeds import FEEDS
from mdservice.relay.server import _name, _path
from mdservice.relay.session import (
    MOST_TOPICS,
    Ack,
    Credentials,
    RelayError,
    Session,
    encode_control,
    feed_at,
    read_message,
)
from mdservice.relay.websocket import MOST_MESSAGE_BYTES, WebSocket

__all__ = ["run", "seeds"]

_SOCKET, _TEXT, _MSGPACK, _OPENED = 128, 4, 8, 16
_SERVED: Final = dict.fromkeys(FEEDS)


def run(data: bytes) -> None:
    """The first byte chooses between messages and bytes; lines separate the messages."""
    if data[:1] and data[0] & _SOCKET:
        _run_socket(data[1:], opened=bool(data[0] & _OPENED))
    elif data:
        _run_session(data[0], data[1:])


def _run_session(choice: int, content: bytes) -> None:
    feed = FEEDS[choice % len(FEEDS)]
    encoding: Any = "msgpack" if choice & _MSGPACK else "json"
    session = Session(feed, served=True, encoding=encoding, keys={"key": "secret"})
    session.log_in(Credentials("key", "secret"))
    for message in content.split(b"\n"):
        try:
            asked = session.receive(read_message(message, text=bool(choice & _TEXT)))
        except RelayError as error:
            encode_control(error.message(), encoding)
            continue
        if not isinstance(asked, Ack):
            session.apply(asked)
        assert len(session.subscribed) <= MOST_TOPICS
        encode_control(session.acknowledgement(), encoding)


class _FakeLine:
    """Gives the bytes of a client in small reads, and takes what is sent."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.sent = b""

    async def open(self) -> None:
        pass

    async def drain(self) -> None:
        pass

    async def receive(self) -> bytes:
        part, self._data = self._data[:1000], self._data[1000:]
        return part

    def send(self, data: bytes) -> None:
        self.sent += data


def _run_socket(content: bytes, *, opened: bool) -> None:
    line: Any = _FakeLine(_upgrade() + content if opened else content)
    websocket = WebSocket(line, compresses=True)
    request = _finished(websocket.handshake(_refuse))
    if request is None:
        return
    _name(request, 1).encode("ascii")
    while (messages := _finished(websocket.receive())) is not None:
        for message, text in messages:
            assert len(message) <= MOST_MESSAGE_BYTES
            read_message(message, text=text)


def _upgrade() -> bytes:
    protocol = ClientProtocol(parse_uri("ws://relay/v2/iex"))
    request = protocol.connect()
    request.headers["Sec-WebSocket-Extensions"] = "permessage-deflate; client_max_window_bits"
    protocol.send_request(request)
    return b"".join(protocol.data_to_send())


def _refuse(request: Request) -> tuple[HTTPStatus, str] | None:
    found = feed_at(_path(request), _SERVED)
    return None if found else (HTTPStatus.NOT_FOUND, "no such path")


def _finished(waiting: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never waits."""
    try:
        waiting.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


def seeds() -> Iterator[bytes]:
    """Requests as clients send them, and their frames."""
    messages = (
        {"action": "auth", "key": "key", "secret": "secret"},
        {"action": "subscribe", "quotes": ["AAPL", "*"], "trades": None, "bars": []},
        {"action": "unsubscribe", "quotes": ["AAPL"]},
        {"action": "subscribe", "news": ["*"], "orderbooks": ["BTC/USD"]},
    )
    for number in range(len(FEEDS)):
        yield bytes([number | _TEXT]) + b"\n".join(map(msgspec.json.encode, messages))
        yield bytes([number | _MSGPACK]) + b"\n".join(map(msgspec.msgpack.encode, messages))
    yield bytes([_SOCKET]) + _upgrade()
    frames = [
        Frame(Opcode.TEXT, msgspec.json.encode(messages[1])),
        Frame(Opcode.BINARY, b"\x81\xa6action", fin=False),
        Frame(Opcode.PING, b"x"),
        Frame(Opcode.CONT, b"\xa4auth"),
        Frame(Opcode.CLOSE, b"\x03\xe8"),
    ]
    data = b"".join(frame.serialize(mask=True) for frame in frames)
    yield bytes([_SOCKET | _OPENED]) + data
    yield bytes([_SOCKET | _OPENED]) + b"\xc1\x87\x00\x00\x00\x00\xaaVJL.\xc9\xcc"
    yield bytes([_SOCKET | _OPENED]) + b"\x82\xff\x00\x00\x00\x00\x40\x00\x00\x00abcd"
