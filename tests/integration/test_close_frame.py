"""Every end leaves the feed by a websocket close frame, as a plain server sees it on the wire.

Without one Alpaca counts the old session for up to 90 s, and a restart is refused with 406.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import product
from types import TracebackType
from typing import Any, Literal, Self

import anyio
import msgspec
import pytest
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from mdservice import Settings, open_service
from mdservice.feeds.alpaca.login import Credentials
from mdservice.feeds.alpaca.raw import WebsocketsDriver
from mdservice.feeds.alpaca.sdk import AlpacaPyDriver
from mdservice.feeds.driver import CLOSE_TIMEOUT_S, Driver, Link
from mdservice.testing import MemoryPriceStore

KINDS = {"websockets": WebsocketsDriver, "alpaca-py": AlpacaPyDriver}
PLACES = list(product(KINDS, ("trio", "asyncio")))
LIMIT_S = 20.0
CLOSED_S = CLOSE_TIMEOUT_S + 1.0
"""Within which a close is over on a busy machine."""
Moment = Literal["welcome", "auth", "subscribe"]


class Line:
    """One connection of a plain server: its own thread, and a second one that floods.

    Attributes:
        heard: What the client asked for, in order: ``auth``, ``subscribe``.
        left_by: The code of the close frame that came, or None.
        over: Set once the client has ended the connection.
    """

    def __init__(self, line: socket.socket, silent_at: Moment | None, flood: bool) -> None:
        self.heard: list[str] = []
        self.left_by: int | None = None
        self.over = threading.Event()
        self.reading = threading.Event()
        self.reading.set()
        self._line = line
        self._silent_at = silent_at
        self._flood = flood
        self._protocol = ServerProtocol()
        self._writing = threading.Lock()

    def serve(self) -> None:
        with self._line, suppress(OSError):
            while not self.over.is_set():
                self.reading.wait(LIMIT_S)
                data = self._line.recv(65_536)
                if not data:
                    break
                self._protocol.receive_data(data)
                for event in self._protocol.events_received():
                    self._take(event)
                self._flush()
        self.over.set()

    def _take(self, event: Any) -> None:
        if isinstance(event, Request):
            self._protocol.send_response(self._protocol.accept(event))
            self._answer("welcome", {"T": "success", "msg": "connected"})
        elif event.opcode is Opcode.CLOSE:
            self.left_by = int.from_bytes(event.data[:2], "big")
        elif event.opcode in (Opcode.BINARY, Opcode.TEXT):
            self._asked(msgspec.msgpack.decode(event.data))

    def _asked(self, message: dict[str, Any]) -> None:
        self.heard.append(message["action"])
        if message["action"] == "auth":
            self._answer("auth", {"T": "success", "msg": "authenticated"})
        elif message["action"] == "subscribe":
            self._answer("subscribe", {"T": "subscription", "quotes": message["quotes"]})
            if self._flood:
                self._flush()
                threading.Thread(target=self._send_quotes, daemon=True).start()

    def _answer(self, moment: Moment, message: dict[str, Any]) -> None:
        if self._silent_at != moment:
            self._protocol.send_binary(msgspec.msgpack.encode([message]))

    def _flush(self) -> None:
        with self._writing:
            for data in self._protocol.data_to_send():
                if data:
                    self._line.sendall(data)

    def _send_quotes(self) -> None:
        quote = {"T": "q", "S": "AAPL", "bp": 1.0, "ap": 2.0, "bs": 1, "as": 1}
        quote |= {"t": msgspec.msgpack.Ext(-1, int(time.time()).to_bytes(4, "big"))}
        frame = Frame(Opcode.BINARY, msgspec.msgpack.encode([quote] * 50)).serialize(mask=False)
        with suppress(OSError):
            while not self.over.is_set() and self.left_by is None:
                with self._writing:
                    self._line.sendall(frame * 20)


class PlainServer:
    """Listens on loopback, speaks as much of Alpaca's protocol as a login and a subscription."""

    def __init__(self, silent_at: Moment | None = None, *, flood: bool = False) -> None:
        self.lines: list[Line] = []
        self._make = partial(Line, silent_at=silent_at, flood=flood)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{self._listener.getsockname()[1]}/v2/iex"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        self._listener.close()
        for line in self.lines:
            line.over.set()
            line.reading.set()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                line = self._make(self._listener.accept()[0])
                self.lines.append(line)
                threading.Thread(target=line.serve, daemon=True).start()

    async def until(self, condition: Callable[[Line], Any]) -> Line:
        """Wait until the condition holds for the first connection."""
        with anyio.fail_after(LIMIT_S):
            while not (self.lines and condition(self.lines[0])):
                await anyio.sleep(0.005)
        return self.lines[0]

    def assert_left(self, number: int = 0) -> None:
        line = self.lines[number]
        assert line.over.wait(CLOSED_S), "the connection is still open"
        assert line.left_by == CloseCode.NORMAL_CLOSURE, "no close frame came"


def on(backend: str, scene: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with anyio.fail_after(2 * LIMIT_S):
            await scene()

    anyio.run(bounded, backend=backend)


def driver_of(name: str, server: PlainServer) -> Driver:
    made: Driver = KINDS[name](server.url, Credentials("key", "secret"))
    return made


async def follow(link: Link) -> None:
    await link.send({"action": "subscribe", "quotes": ["AAPL"]})
    await link.receive()


@pytest.fixture(params=[False, True], ids=["quiet", "flood"])
def server(request: pytest.FixtureRequest) -> Iterator[PlainServer]:
    with PlainServer(flood=request.param) as running:
        yield running


# ---- the drivers alone


@pytest.mark.parametrize("ended_by", ["cancellation", "the block's end", "an error"])
@pytest.mark.parametrize(("driver", "backend"), PLACES)
def test_a_driver_leaves_by_a_close_frame(
    server: PlainServer, driver: str, backend: str, ended_by: str
) -> None:
    async def scene() -> None:
        with anyio.CancelScope() as scope, suppress(ZeroDivisionError):
            async with driver_of(driver, server).connect() as link:
                await follow(link)
                await anyio.sleep(0.1)  # a flood has filled the buffers of both sides
                if ended_by == "cancellation":
                    scope.cancel()
                    await anyio.sleep_forever()
                if ended_by == "an error":
                    raise ZeroDivisionError
        server.assert_left()

    on(backend, scene)


@pytest.mark.parametrize("moment", ["welcome", "auth", "subscribe"])
@pytest.mark.parametrize(("driver", "backend"), PLACES)
def test_a_half_open_session_is_left_by_a_close_frame(
    driver: str, backend: str, moment: Moment
) -> None:
    async def leave_at(moment: Moment, tasks: anyio.abc.TaskGroup) -> None:
        await server.until(lambda line: moment == "welcome" or moment in line.heard)
        await anyio.sleep(0.3)  # the upgrade's answer has reached the client
        tasks.cancel_scope.cancel()

    async def scene() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leave_at, moment, tasks)
            async with driver_of(driver, server).connect() as link:
                await follow(link)
                pytest.fail("the server answered")
        server.assert_left()

    with PlainServer(silent_at=moment) as server:
        on(backend, scene)


@pytest.mark.parametrize(("driver", "backend"), PLACES)
def test_a_login_that_takes_too_long_is_left_by_a_close_frame(driver: str, backend: str) -> None:
    async def scene() -> None:
        with pytest.raises(Exception, match="within"):
            async with driver_of(driver, server).connect():
                pytest.fail("it opened")
        server.assert_left()

    with PlainServer(silent_at="auth") as server:
        on(backend, scene)


@pytest.mark.parametrize(("driver", "backend"), PLACES)
def test_leaving_a_peer_that_does_not_read_is_bounded(
    server: PlainServer, driver: str, backend: str
) -> None:
    async def scene() -> None:
        async with driver_of(driver, server).connect() as link:
            await follow(link)
            server.lines[0].reading.clear()
            started_s = anyio.current_time()
        assert anyio.current_time() - started_s <= CLOSED_S

    on(backend, scene)


@pytest.mark.parametrize("driver", KINDS)
def test_a_native_cancellation_on_asyncio_leaves_by_a_close_frame(
    server: PlainServer, driver: str
) -> None:
    import asyncio

    async def hold() -> None:
        async with driver_of(driver, server).connect() as link:
            await follow(link)
            while True:
                await link.receive()

    async def scene() -> None:
        task = asyncio.ensure_future(hold())
        await server.until(lambda line: "subscribe" in line.heard)
        await asyncio.sleep(0.1)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        server.assert_left()

    on("asyncio", scene)


# ---- the service in another program


def settings(server: PlainServer, driver: str, **more: Any) -> Settings:
    return Settings(
        api_key="key",
        secret_key="secret",
        feed_url=server.url,
        driver=driver,
        symbols=("AAPL",),
        **more,
    )


@pytest.mark.parametrize("ended_by", ["cancellation", "the block's end", "an error"])
@pytest.mark.parametrize(("driver", "backend"), PLACES)
def test_a_service_that_ends_leaves_by_a_close_frame(
    server: PlainServer, driver: str, backend: str, ended_by: str
) -> None:
    async def scene() -> None:
        with anyio.CancelScope() as scope, suppress(ZeroDivisionError):
            async with open_service(settings(server, driver), store=MemoryPriceStore()):
                await server.until(lambda line: "subscribe" in line.heard)
                await anyio.sleep(0.1)
                if ended_by == "cancellation":
                    scope.cancel()
                    await anyio.sleep_forever()
                if ended_by == "an error":
                    raise ZeroDivisionError
        server.assert_left()

    on(backend, scene)


@pytest.mark.parametrize(("driver", "backend"), PLACES)
def test_a_connection_given_up_as_silent_is_left_by_a_close_frame(
    driver: str, backend: str
) -> None:
    async def scene() -> None:
        chosen = settings(server, driver, mute_after=0.5)
        async with open_service(chosen, store=MemoryPriceStore()):
            await server.until(lambda _: len(server.lines) >= 2 and "auth" in server.lines[1].heard)
        server.assert_left(0)
        server.assert_left(1)

    with PlainServer() as server:
        on(backend, scene)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_change_of_driver_leaves_by_a_close_frame(backend: str) -> None:
    async def scene() -> None:
        async with open_service(settings(server, "auto"), store=MemoryPriceStore()) as service:
            await server.until(lambda _: len(server.lines) >= 3 and "auth" in server.lines[2].heard)
            assert service.status().feed.driver == "websockets"
        for number in range(3):
            server.assert_left(number)

    with PlainServer(silent_at="auth") as server:
        on(backend, scene)


@pytest.mark.parametrize(("driver", "backend"), PLACES)
def test_after_an_unsubscribe_of_everything_the_end_is_a_close_frame(
    server: PlainServer, driver: str, backend: str
) -> None:
    async def scene() -> None:
        async with open_service(settings(server, driver), store=MemoryPriceStore()) as service:
            await server.until(lambda line: "subscribe" in line.heard)
            with anyio.move_on_after(1):
                await service.unsubscribe("AAPL")
        server.assert_left()

    on(backend, scene)
