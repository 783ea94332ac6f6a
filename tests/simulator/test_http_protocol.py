"""Requests with a body, cut into any pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.http11 import Request

from mdservice.simulator.http import HttpProtocol


def requests_of(*pieces: bytes) -> tuple[list[Request], bytes]:
    """The requests seen, and the body."""
    protocol = HttpProtocol()
    for piece in pieces:
        protocol.receive_data(piece)
    return [e for e in protocol.events_received() if isinstance(e, Request)], protocol.body


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted(place % (len(data) + 1) for place in places)
    return [data[a:b] for a, b in zip([0, *ends], [*ends, len(data)], strict=True)]


@given(st.binary(max_size=200), st.lists(st.integers(0, 400), max_size=8), st.booleans())
def test_the_body_comes_whole_however_it_is_cut(
    body: bytes, places: list[int], lower: bool
) -> None:
    name = b"content-length" if lower else b"Content-Length"
    head = b"POST /v2/orders HTTP/1.1\r\nHost: a\r\n%s: %d\r\nX: 7\r\n\r\n" % (name, len(body))
    found, taken = requests_of(*cut(head + body, places))
    (request,) = found
    assert (request.method, request.path, request.headers["X"]) == ("POST", "/v2/orders", "7")
    assert taken == body


@given(st.binary(max_size=100), st.integers(0, 99))
def test_an_unfinished_body_is_waited_for(body: bytes, missing: int) -> None:
    missing %= len(body) + 1
    head = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
    found, _ = requests_of(head, body[: len(body) - missing])
    assert len(found) == (not missing)


@given(st.lists(st.integers(0, 60), max_size=5))
def test_a_request_without_a_body_passes(places: list[int]) -> None:
    for method in (b"GET", b"DELETE", b"POST"):
        found, body = requests_of(*cut(method + b" / HTTP/1.1\r\nHost: a\r\n\r\n", places))
        assert [request.method for request in found] == [method.decode()]
        assert body == b""


@pytest.mark.parametrize(
    "data",
    [
        b"POST / HTTP/1.1\r\nContent-Length: 70000\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 7000000\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"PUT / HTTP/1.1\r\nContent-Length: 2\r\n\r\nab",
        b"POST " + b"x" * 70_000,
        b"nonsense\r\n\r\n",
    ],
)
def test_what_is_not_taken_is_hung_up_on(data: bytes) -> None:
    protocol = HttpProtocol()
    protocol.receive_data(data)
    assert protocol.events_received() == []
    assert protocol.handshake_exc is not None
    assert b"" in protocol.data_to_send()
