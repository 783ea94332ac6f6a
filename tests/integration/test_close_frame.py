"""Every end leaves the feed by a websocket close frame, as a plain server sees it on the wire.

Without one Alpaca counts the old session for up to 90 s, and a restart is refused with 406.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from itertools import product
from typing import Any

import anyio
import pytest

from mdservice import Settings, open_service
from mdservice.feed import driver as feeds_driver
from mdservice.feed.alpaca.login import Credentials
from mdservice.feed.alpaca.sdk_driver import AlpacaPyDriver
from mdservice.feed.alpaca.websockets_driver import WebsocketsDriver
from mdservice.feed.driver import Driver, Link
from mdservice.feed.subscriptions import Followed
from mdservice.model.feeds import Topic
from mdservice.testing import MemoryPriceStore
from tests.integration.conftest import patient
from tests.integration.feed_server import CLOSED_S, LIMIT_S, Moment, PlainServer

KINDS = {"websockets": WebsocketsDriver, "alpaca-py": AlpacaPyDriver}
PLACES = list(product(KINDS, ("trio", "asyncio")))


def on(backend: str, scene: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with anyio.fail_after(2 * LIMIT_S):
            await scene()

    anyio.run(bounded, backend=backend)


def driver_of(name: str, server: PlainServer) -> Driver:
    made: Driver = KINDS[name](server.url, Credentials("key", "secret"))
    return made


async def follow(link: Link) -> None:
    await link.subscribe([Topic("quotes", "AAPL")])
    await link.receive()


@pytest.fixture(params=[False, True], ids=["quiet", "flood"])
def server(request: pytest.FixtureRequest) -> Iterator[PlainServer]:
    with PlainServer(flood=request.param) as running:
        yield running


@pytest.fixture
def soon_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the real limit for a login."""
    monkeypatch.setattr(feeds_driver, "OPEN_TIMEOUT_S", 1.5)


# ---- the drivers alone


@pytest.mark.parametrize("ended_by", ["cancellation", "the block's end", "an error"])
@pytest.mark.parametrize(("driver", "backend"), PLACES)
def test_a_driver_leaves_by_a_close_frame(
    server: PlainServer, driver: str, backend: str, ended_by: str
) -> None:
    async def scene() -> None:
        with anyio.CancelScope() as scope, suppress(ZeroDivisionError):
            async with driver_of(driver, server).connect(Followed(), time.time_ns) as link:
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
    driver: str, backend: str, moment: Moment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds_driver, "OPEN_TIMEOUT_S", LIMIT_S)

    async def leave_at(moment: Moment, tasks: anyio.abc.TaskGroup) -> None:
        await server.until(lambda line: moment == "welcome" or moment in line.heard)
        if moment == "welcome":
            await anyio.sleep(patient(0.5))  # the upgrade's answer has reached the client
        tasks.cancel_scope.cancel()

    async def scene() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leave_at, moment, tasks)
            async with driver_of(driver, server).connect(Followed(), time.time_ns) as link:
                await follow(link)
                pytest.fail("the server answered")
        server.assert_left()

    with PlainServer(silent_at=moment) as server:
        on(backend, scene)


@pytest.mark.parametrize(("driver", "backend"), PLACES)
@pytest.mark.usefixtures("soon_too_long")
def test_a_login_that_takes_too_long_is_left_by_a_close_frame(driver: str, backend: str) -> None:
    async def scene() -> None:
        with pytest.raises(Exception, match="within"):
            async with driver_of(driver, server).connect(Followed(), time.time_ns):
                pytest.fail("it opened")
        server.assert_left()

    with PlainServer(silent_at="auth") as server:
        on(backend, scene)


@pytest.mark.parametrize(("driver", "backend"), PLACES)
def test_leaving_a_peer_that_does_not_read_is_bounded(
    server: PlainServer, driver: str, backend: str
) -> None:
    async def scene() -> None:
        async with driver_of(driver, server).connect(Followed(), time.time_ns) as link:
            await follow(link)
            server.lines[0].reading.clear()
            started_s = anyio.current_time()
        assert anyio.current_time() - started_s <= patient(CLOSED_S)

    on(backend, scene)


@pytest.mark.parametrize("driver", KINDS)
def test_a_native_cancellation_on_asyncio_leaves_by_a_close_frame(
    server: PlainServer, driver: str
) -> None:
    import asyncio

    async def hold() -> None:
        async with driver_of(driver, server).connect(Followed(), time.time_ns) as link:
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
@pytest.mark.usefixtures("soon_too_long")
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
