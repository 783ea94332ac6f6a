"""A websocket client over a stream in memory, so that time can be trio's virtual one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio
import msgspec
import pytest
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import enable_client_permessage_deflate
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

from mdservice.simulator import MemoryByteStream, Simulator


class MemoryClient:
    """The client's side of the protocol; every wait is a wait for the simulator."""

    def __init__(self, stream: MemoryByteStream, headers: Mapping[str, str], path: str) -> None:
        self.stream = stream
        self.msgpack = "msgpack" in headers.get("Content-Type", "")
        self.protocol = ClientProtocol(
            parse_uri(f"ws://simulator{path}"), extensions=enable_client_permessage_deflate(None)
        )
        self.status = 0
        self.raw: list[bytes | str] = []
        self._headers = headers

    async def upgrade(self) -> None:
        """Ask for the websocket; ``status`` is the answer's."""
        request = self.protocol.connect()
        for name, value in self._headers.items():
            request.headers[name] = value
        self.protocol.send_request(request)
        await self.flush()
        while not self.status:
            await self._pump()

    async def flush(self) -> None:
        for data in self.protocol.data_to_send():
            await (self.stream.send(data) if data else self.stream.send_eof())

    async def send(self, **message: Any) -> None:
        if self.msgpack:
            self.protocol.send_binary(msgspec.msgpack.encode(message))
        else:
            self.protocol.send_text(msgspec.json.encode(message))
        await self.flush()

    async def send_text(self, text: str) -> None:
        self.protocol.send_text(text.encode())
        await self.flush()

    async def frame(self) -> bytes | str:
        """The next frame's payload.

        Raises:
            EOFError: The line has ended.
        """
        while not self.raw:
            await self._pump()
        return self.raw.pop(0)

    async def receive(self) -> list[dict[str, Any]]:
        """The next frame, decoded."""
        payload = await self.frame()
        if isinstance(payload, str):
            return msgspec.json.decode(payload, type=list[dict[str, Any]])
        return msgspec.msgpack.decode(payload, type=list[dict[str, Any]])

    async def login(self, *symbols: str) -> None:
        """Log in, and subscribe to quotes of the symbols where there are any."""
        assert await self.receive() == [{"T": "success", "msg": "connected"}]
        await self.send(action="auth", key="key", secret="secret")
        assert await self.receive() == [{"T": "success", "msg": "authenticated"}]
        if symbols:
            await self.send(action="subscribe", quotes=list(symbols))
            assert (await self.receive())[0]["quotes"] == list(symbols)

    async def close(self) -> None:
        """The closing handshake."""
        self.protocol.send_close(1000)
        await self.flush()
        await self.closed()

    async def closed(self) -> int:
        """Wait for the end; the code that the server closed with, 1006 without one."""
        try:
            while True:
                await self._pump()
        except EOFError:
            await self.stream.aclose()
        received = self.protocol.close_rcvd
        return 1006 if received is None else received.code

    async def _pump(self) -> None:
        try:
            data = await self.stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError) as exc:
            raise EOFError from exc
        self.protocol.receive_data(data)
        for event in self.protocol.events_received():
            if isinstance(event, Response):
                self.status = event.status_code
            elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                self.raw.append(bytes(event.data).decode())
            elif isinstance(event, Frame) and event.opcode is Opcode.BINARY:
                self.raw.append(bytes(event.data))
        if self.protocol.state:
            await self.flush_quietly()

    async def flush_quietly(self) -> None:
        try:
            await self.flush()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as exc:
            raise EOFError from exc


@pytest.fixture
def dial() -> Any:
    """``await dial(simulator)`` is an upgraded client, JSON unless ``msgpack=True``."""

    async def connect(
        simulator: Simulator,
        *,
        msgpack: bool = False,
        path: str = "/v2/iex",
        headers: Mapping[str, str] | None = None,
    ) -> MemoryClient:
        kind = "application/msgpack" if msgpack else "application/json"
        client = MemoryClient(simulator.connect(), {"Content-Type": kind, **(headers or {})}, path)
        await client.upgrade()
        return client

    return connect
