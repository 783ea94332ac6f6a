"""What the relay answers to a client's offer of compression."""

from __future__ import annotations

import json
import socket

import anyio
import pytest
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.http11 import Response
from websockets.uri import parse_uri

from mdservice.relay.websocket import Line, WebSocket

REQUESTS = [json.dumps({"action": "subscribe", "quotes": [f"S{n}", "AAPL"]}) for n in range(3)]


async def _exchanged(client: ClientProtocol) -> tuple[str, list[bytes]]:
    """The relay's answer to the client's offer, and what it reads of the client's requests."""
    ours, theirs = socket.socketpair()
    websocket = WebSocket(Line(ours, None), compresses=False)
    theirs.setblocking(True)
    try:
        client.send_request(client.connect())
        theirs.sendall(b"".join(client.data_to_send()))
        with anyio.fail_after(10):
            assert await websocket.handshake(lambda _: None) is not None
        client.receive_data(theirs.recv(65_536))
        (response,) = client.events_received()
        assert isinstance(response, Response)
        assert client.handshake_exc is None
        for request in REQUESTS:
            client.send_text(request.encode())
        theirs.sendall(b"".join(client.data_to_send()))
        read: list[bytes] = []
        while len(read) < len(REQUESTS):
            with anyio.fail_after(10):
                received = await websocket.receive()
            assert received is not None
            read += [payload for payload, _ in received]
    finally:
        theirs.close()
        websocket.line.close()
    return response.headers.get("Sec-WebSocket-Extensions", ""), read


def _client(*offers: ClientPerMessageDeflateFactory) -> ClientProtocol:
    return ClientProtocol(parse_uri("ws://127.0.0.1/v2/iex"), extensions=offers or None)


@pytest.mark.parametrize("window", [None, True, 12])
async def test_a_client_that_keeps_its_context_may_do_so(window: bool | int | None) -> None:
    """Alpaca's JavaScript SDK 3 ends the connection if the answer forbids a context."""
    offer = ClientPerMessageDeflateFactory(client_max_window_bits=window)
    answer, read = await _exchanged(_client(offer))
    assert "permessage-deflate" in answer
    assert "client_no_context_takeover" not in answer
    assert ("client_max_window_bits" in answer) == (window is not None)
    assert read == [request.encode() for request in REQUESTS]


async def test_a_client_may_keep_no_context() -> None:
    offer = ClientPerMessageDeflateFactory(client_no_context_takeover=True)
    answer, read = await _exchanged(_client(offer))
    assert "client_no_context_takeover" in answer
    assert read == [request.encode() for request in REQUESTS]


async def test_a_client_without_compression_gets_none() -> None:
    answer, read = await _exchanged(_client())
    assert answer == ""
    assert read == [request.encode() for request in REQUESTS]
