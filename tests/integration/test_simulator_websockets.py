"""The simulator on a real socket, with the websockets library's own clients."""

from __future__ import annotations

import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import msgpack
import pytest
import websockets.asyncio.client
import websockets.trio.client
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus

from mdservice.errors import ConfigurationError
from mdservice.simulator import SimQuote, Simulator, SimulatorConfig, open_simulator
from tests.integration.conftest import patient

LIMIT_S = 60
AUTH = {"action": "auth", "key": "key", "secret": "secret"}


@pytest.fixture(params=["trio", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Runs a test's body beside a simulator, on either event loop."""

    def with_simulator(body: Callable[[Simulator, Any], Awaitable[None]], **settings: Any) -> None:
        async def main() -> None:
            client = websockets.trio if request.param == "trio" else websockets.asyncio
            with anyio.fail_after(patient(LIMIT_S)):
                config = SimulatorConfig(**{"rate": 0, **settings})
                async with open_simulator(config) as simulator:
                    await body(simulator, client.client.connect)

        anyio.run(main, backend=request.param)

    return with_simulator


async def tell(websocket: Any, message: dict[str, Any]) -> list[dict[str, Any]]:
    await websocket.send(json.dumps(message))
    return await hear(websocket)


async def hear(websocket: Any) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = json.loads(await websocket.recv())
    return answer


async def login(websocket: Any, *symbols: str) -> None:
    assert await hear(websocket) == [{"T": "success", "msg": "connected"}]
    assert await tell(websocket, AUTH) == [{"T": "success", "msg": "authenticated"}]
    if symbols:
        (state,) = await tell(websocket, {"action": "subscribe", "quotes": list(symbols)})
        assert state["quotes"] == list(symbols)


@pytest.mark.parametrize("compression", ["deflate", None])
def test_streams_json_to_a_plain_client(run: Callable[..., None], compression: str | None) -> None:
    async def body(simulator: Simulator, connect: Any) -> None:
        async with connect(simulator.url, compression=compression) as websocket:
            assert bool(websocket.protocol.extensions) == (compression is not None)
            await login(websocket, "AAPL")
            simulator.send_quotes([SimQuote("AAPL", 187.12, 187.15, ts_event_ns=10**18 + 120)])
            (quote,) = await hear(websocket)
            assert (quote["bp"], quote["ap"]) == (187.12, 187.15)
            assert quote["t"] == "2001-09-09T01:46:40.00000012Z"

    run(body)


def test_streams_msgpack_and_takes_fragments(run: Callable[..., None]) -> None:
    async def body(simulator: Simulator, connect: Any) -> None:
        headers = {"Content-Type": "application/msgpack"}
        async with connect(simulator.url, additional_headers=headers) as websocket:
            await websocket.recv()
            await websocket.send(msgpack.packb(AUTH))
            await websocket.recv()
            change = msgpack.packb({"action": "subscribe", "quotes": ["AAPL", "MSFT"]})
            await websocket.send([change[:10], change[10:20], change[20:]])
            (state,) = msgpack.unpackb(await websocket.recv())
            assert state["quotes"] == ["AAPL", "MSFT"]
            simulator.send_quotes([SimQuote("MSFT", 1.0, 2.0, ts_event_ns=10**18 + 123)])
            (quote,) = msgpack.unpackb(await websocket.recv())
            assert quote["t"].to_unix_nano() == 10**18 + 123

    run(body)


def test_a_lively_market_arrives_complete_and_in_order(run: Callable[..., None]) -> None:
    async def body(simulator: Simulator, connect: Any) -> None:
        async with connect(simulator.url) as websocket:
            await login(websocket, "*")
            seen: list[tuple[str, float]] = []
            while len(seen) < 2_000:
                seen += [(quote["S"], quote["bp"]) for quote in await hear(websocket)]
            assert seen == [(quote.symbol, quote.bid) for quote in simulator.sent][: len(seen)]

    run(body, rate=10_000)


def test_upgrades_are_refused_as_planned(run: Callable[..., None]) -> None:
    async def body(simulator: Simulator, connect: Any) -> None:
        for status in (401, 403, 429):
            simulator.refuse_upgrade(status)
            with pytest.raises(InvalidStatus) as refused:
                await connect(simulator.url).__aenter__()
            assert refused.value.response.status_code == status
        async with connect(simulator.url) as websocket:
            await login(websocket)

    run(body)


@pytest.mark.parametrize("how", ["reset", "half-close", "close"])
def test_drops_are_seen_by_the_client(run: Callable[..., None], how: Any) -> None:
    async def body(simulator: Simulator, connect: Any) -> None:
        async with connect(simulator.url) as websocket:
            await login(websocket, "AAPL")
            simulator.drop(how, code=1012)
            with pytest.raises(ConnectionClosedError) as closed:
                await websocket.recv()
            received = closed.value.rcvd
            assert (received and received.code) == (1012 if how == "close" else None)
        await simulator.until(lambda s: not s.connections)

    run(body)


def test_a_reset_is_a_reset_on_the_wire(run: Callable[..., None]) -> None:
    async def body(simulator: Simulator, connect: Any) -> None:
        async with await anyio.connect_tcp("127.0.0.1", simulator.port or 0) as line:
            await line.send(
                b"GET /v2/iex HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            await line.receive()
            simulator.drop("reset")
            with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)):
                while True:
                    await line.receive()

    run(body)


def test_a_client_that_does_not_read_gets_407(run: Callable[..., None]) -> None:
    async def body(simulator: Simulator, connect: Any) -> None:
        async with connect(
            simulator.url, compression=None, max_queue=1, close_timeout=1, max_size=None
        ) as websocket:
            await login(websocket, "AAPL")
            block = "x" * 1_000_000
            # The kernel's buffers come first, so it takes some megabytes.
            waiting = 0
            for _ in range(1_000):
                simulator.send_raw(block)
                await anyio.lowlevel.checkpoint()
                before, waiting = waiting, sum(c.pending_bytes for c in simulator.connections)
                if before > len(block) > 1_000 > waiting:
                    break
            else:
                pytest.fail("a client that never read was never cut off")
            last = ""
            with pytest.raises(ConnectionClosed):
                while True:
                    message = await websocket.recv()
                    last = message if message != block else last
            assert json.loads(last) == [{"T": "error", "code": 407, "msg": "slow client"}]

    run(body, send_buffer_bytes=2_500_000, close_timeout_s=5)


def test_a_clean_close_frees_the_slot_at_once(run: Callable[..., None]) -> None:
    async def body(simulator: Simulator, connect: Any) -> None:
        for _ in range(20):
            async with connect(simulator.url) as websocket:
                await login(websocket, "AAPL")

    run(body, slot_hold_s=90)


def test_plain_http_is_answered_on_the_same_port(run: Callable[..., None]) -> None:
    async def body(simulator: Simulator, connect: Any) -> None:
        url = f"http://127.0.0.1:{simulator.port}/v2/iex"
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(url)
        assert answer.status_code == 404
        assert answer.json() == {"message": "endpoint not found."}

    run(body)


def test_a_taken_port_is_a_configuration_error(run: Callable[..., None]) -> None:
    async def body(simulator: Simulator, connect: Any) -> None:
        with pytest.raises(ConfigurationError, match=f"127.0.0.1:{simulator.port}"):
            async with open_simulator(port=simulator.port):
                pass

    run(body)


def test_the_port_is_on_loopback_and_gone_at_the_end(run: Callable[..., None]) -> None:
    ports: list[int] = []

    async def body(simulator: Simulator, connect: Any) -> None:
        ports.append(simulator.port or 0)
        assert simulator.url == f"ws://127.0.0.1:{simulator.port}/v2/iex"

    run(body)
    with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
        probe.connect(("127.0.0.1", ports[0]))
