"""Requests in any pieces, and what is refused."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.http11 import Request

from mdservice.simulator.http import RequestReader


def read(*pieces: bytes) -> tuple[Request | None, bytes, bytes]:
    """The request, its body, and what came behind it; None, where it is not whole."""
    reader = RequestReader()
    for number, piece in enumerate(pieces):
        request = reader.receive(piece)
        if request is not None:
            return request, bytes(reader.body), reader.rest + b"".join(pieces[number + 1 :])
    return None, bytes(reader.body), b""


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted(place % (len(data) + 1) for place in places)
    pieces = [data[a:b] for a, b in zip([0, *ends], [*ends, len(data)], strict=True)]
    return [piece for piece in pieces if piece]  # a stream brings no empty ones


@given(st.binary(max_size=200), st.binary(max_size=9), st.lists(st.integers(0, 400), max_size=8))
def test_the_body_comes_whole_however_it_is_cut(
    body: bytes, behind: bytes, places: list[int]
) -> None:
    head = b"POST /v2/orders HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nX: 7\r\n\r\n" % len(body)
    request, taken, rest = read(*cut(head + body + behind, places))
    assert request is not None
    assert (request.method, request.path, request.headers["x"]) == ("POST", "/v2/orders", "7")
    assert (taken, rest) == (body, behind)


@given(st.binary(max_size=100), st.integers(0, 99))
def test_an_unfinished_body_is_waited_for(body: bytes, missing: int) -> None:
    missing %= len(body) + 1
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
    request, _, _ = read(*cut(head + body[: len(body) - missing], [len(head)]))
    assert (request is not None) == (not missing)


def test_a_body_may_come_in_chunks() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    request, body, _ = read(head, b"2\r\nab\r\n", b"1\r\nc\r\n0\r\n\r\n")
    assert request is not None
    assert body == b"abc"


@given(st.lists(st.integers(0, 60), max_size=5))
def test_a_request_without_a_body_is_whole_with_its_head(places: list[int]) -> None:
    for method in (b"GET", b"DELETE", b"POST"):
        request, body, _ = read(*cut(method + b" / HTTP/1.1\r\nHost: a\r\n\r\n", places))
        assert request is not None
        assert (request.method, body) == (method.decode(), b"")


def test_frames_may_follow_an_upgrade_at_once() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    request, _, rest = read(head + b"\x81\x80abcd")
    assert request is not None
    assert rest == b"\x81\x80abcd"


@pytest.mark.parametrize(
    "data",
    [
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 70000\r\n\r\n" + b"x" * 70_000,
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        b"POST " + b"x" * 70_000,
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000,
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_request_or_too_long_is_refused(data: bytes) -> None:
    with pytest.raises(h11.RemoteProtocolError):
        RequestReader().receive(data)
