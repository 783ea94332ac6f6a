"""A feed's bytes: the frame reader and its queue against the library alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from mdservice.feed.alpaca.frame_reader import FrameReader
from mdservice.feed.alpaca.websockets_driver import FrameQueue

__all__ = ["run", "seeds"]

_MOST_BYTES = 70_000
_DATA = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)


def run(data: bytes) -> None:
    """The first two bytes say where the bytes of the socket are cut in two reads."""
    if len(data) < 2:
        return
    place = int.from_bytes(data[:2], "big") % len(data)
    content = data[2:]
    parts = [part for part in (content[:place], content[place:]) if part]
    expected, failed = _by_library(parts)
    protocol = _protocol()
    queue = FrameQueue(1024, lambda: None, lambda: None)
    reader = FrameReader(protocol, _MOST_BYTES, queue.put_messages)
    reader._opening = False
    for part in parts:
        reader.receive_data(part)
        for event in protocol.events_received():
            if isinstance(event, Frame) and event.opcode in _DATA:
                queue.put(event)
    assert list(queue._messages) == expected
    assert (protocol.parser_exc is not None) == failed


def _protocol() -> ClientProtocol:
    return ClientProtocol(parse_uri("ws://x/"), state=State.OPEN, max_size=_MOST_BYTES)


def _by_library(parts: list[bytes]) -> tuple[list[tuple[bytes, bool]], bool]:
    protocol = _protocol()
    queue = FrameQueue(1024, lambda: None, lambda: None)
    for part in parts:
        protocol.receive_data(part)
        events: list[Frame | Response | Any] = protocol.events_received()
        for event in events:
            if isinstance(event, Frame) and event.opcode in _DATA:
                queue.put(event)
    return list(queue._messages), protocol.parser_exc is not None


def seeds() -> Iterator[bytes]:
    """Plain messages, fragments, pings, a close frame, and lengths that nothing follows."""
    plain = b"\x81\x03abc" + b"\x82\x00" + b"\x89\x01p" + b"\x82\x7e\x01\x00" + b"x" * 256
    for content in (
        plain,
        b"\x01\x02ab\x80\x01c" + plain,
        b"\x02\x00\x00\x00\x89\x00\x80\x00",
        b"\x88\x02\x03\xe8",
        b"\x82\x7f\x00\x00\x00\x00\x40\x00\x00\x00",
        b"\x81\x83abcdefg",
        b"\xc1\x05hello",
        b"\x8a\x7e\x00\x7e" + b"x" * 126,
    ):
        yield b"\x00\x00" + content
        yield b"\x00\x07" + content
