"""The service inside another program, for real: sockets, a Valkey server, both event loops."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis

import mdservice
from mdservice.errors import FeedRefused, InvalidSymbol, SubscriptionRefused
from mdservice.feed.alpaca import sdk_driver as sdk
from mdservice.simulator import SimQuote, Simulator, SimulatorConfig, open_simulator
from tests.integration.conftest import patient, published_so_far

LIMIT_S = 60.0
STOP_LIMIT_S = 5.0
BACKENDS = ["trio", "asyncio"]
DRIVERS = ["alpaca-py", "websockets"]

both_loops = pytest.mark.parametrize("backend", BACKENDS)
both_drivers = pytest.mark.parametrize("driver", DRIVERS)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short: a UNIX socket's path has about a hundred bytes."""
    path = Path(tempfile.mkdtemp(prefix="md-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Each test ends without a thread of ours, and without an open descriptor more."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    deadline = time.monotonic() + patient(20)
    while any(thread.name == "alpaca-py" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "a thread was left behind"
        time.sleep(0.005)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2, "descriptors were left behind"


def run(backend: str, scene: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        with anyio.fail_after(patient(LIMIT_S)):
            await scene()

    anyio.run(limited, backend=backend)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await anyio.sleep(0.005)


async def ready(service: mdservice.Service) -> None:
    await until(lambda: service.readiness().ready)


def quotes(count: int, symbol: str = "AAPL") -> list[SimQuote]:
    return [SimQuote(symbol, float(n), n + 0.5) for n in range(1, count + 1)]


class Listener:
    """Hears what a Redis server publishes; it is read afterwards, once."""

    def __init__(self, server: Any) -> None:
        self._client = server.client()
        self._pubsub = self._client.pubsub()
        self._pubsub.subscribe("price.updated", "feed.status")
        for _ in range(2):
            assert self._pubsub.get_message(timeout=20)["type"] == "subscribe"

    def heard(self, channel: str) -> list[dict[str, Any]]:
        messages = published_so_far(self._pubsub)
        return [json.loads(m["data"]) for m in messages if m["channel"].decode() == channel]

    def close(self) -> None:
        self._pubsub.close()
        self._client.close()


@pytest.fixture
def listener(valkey: Any) -> Iterator[Listener]:
    listener = Listener(valkey)
    yield listener
    listener.close()


def with_simulator(simulator: Simulator, folder: Path, **more: Any) -> mdservice.Settings:
    return mdservice.Settings(
        feed="simulator", feed_url=simulator.url, socket=folder / "md.sock", **more
    )


# ---- everything of its own


@both_loops
def test_without_any_setting_simulated_prices_flow_into_an_embedded_server(
    backend: str, folder: Path
) -> None:
    pids: list[int] = []

    async def scene() -> None:
        settings = mdservice.Settings(socket=folder / "md.sock")
        async with mdservice.open_service(settings) as service:
            async with service.quotes() as incoming:
                first = await anext(aiter(incoming))
            await ready(service)
            await until(lambda: service.status().counters.events_published > 100)
            url = service.status().redis.url
            with redis.Redis.from_url(url) as client:
                pids.append(client.info("server")["process_id"])
                price = json.loads(client.get(f"price:{first.symbol}"))
                assert 0 < client.ttl(f"price:{first.symbol}") <= 300
            assert price["symbol"] == first.symbol
            assert price["seq"] >= first.seq
            assert service.status().feed.name == "simulator"
            assert service.status().feed.driver == "alpaca-py"
            assert service.liveness().ready

    run(backend, scene)
    deadline = time.monotonic() + patient(20)
    while Path(f"/proc/{pids[0]}").exists():
        assert time.monotonic() < deadline, "the embedded server is still there"
        time.sleep(0.01)
    assert list(folder.iterdir()) == [], "its socket is still there"


# ---- with servers of the test's


@both_drivers
@both_loops
def test_every_quote_of_a_flood_is_published_in_order(
    backend: str, driver: Any, folder: Path, valkey: Any, listener: Listener
) -> None:
    count = 5_000

    async def scene() -> None:
        async with open_simulator(SimulatorConfig(rate=0)) as simulator:
            settings = with_simulator(
                simulator, folder, driver=driver, redis_url=valkey.url, symbols="AAPL"
            )
            async with mdservice.open_service(settings) as service:
                await ready(service)
                assert service.status().feed.driver == driver
                simulator.send_quotes(quotes(count), frames=[10] * (count // 10))
                await until(lambda: service.status().counters.quotes_accepted == count)
            with anyio.fail_after(patient(20)):
                await simulator.until(lambda s: not s.connections)

    run(backend, scene)
    events = listener.heard("price.updated")
    assert [event["seq"] for event in events] == list(range(1, count + 1))
    assert [event["bid"] for event in events] == list(range(1, count + 1))
    with valkey.client() as client:
        assert json.loads(client.get("price:AAPL")) == events[-1]


@pytest.mark.parametrize(("backend", "driver"), [("trio", "alpaca-py"), ("asyncio", "websockets")])
def test_comes_back_and_repairs_the_gap(
    backend: str, driver: Any, folder: Path, valkey: Any, listener: Listener
) -> None:
    async def scene() -> None:
        async with open_simulator(SimulatorConfig(rate=0)) as simulator:
            settings = with_simulator(
                simulator, folder, driver=driver, redis_url=valkey.url, symbols="AAPL"
            )
            async with mdservice.open_service(settings) as service:
                await ready(service)
                simulator.send_quotes(quotes(3))
                await until(lambda: service.status().counters.quotes_accepted == 3)
                simulator.drop("reset")
                await simulator.until(lambda s: not s.connections)
                simulator.send_quotes(quotes(5)[3:])  # no reader receives these two
                await until(lambda: service.status().counters.gaps_repaired == 1)
                await ready(service)
                simulator.send_quotes(quotes(6)[5:])
                await until(lambda: service.status().counters.quotes_accepted == 6)
                counters = service.status().counters
                assert (counters.quotes_received, counters.quotes_backfilled) == (4, 2)
                assert (counters.reconnects, counters.gaps) == (1, 1)

    run(backend, scene)
    assert [event["seq"] for event in listener.heard("price.updated")] == [1, 2, 3, 4, 5, 6]


@both_loops
def test_states_are_published(backend: str, folder: Path, valkey: Any, listener: Listener) -> None:
    async def scene() -> None:
        async with open_simulator(SimulatorConfig(rate=0)) as simulator:
            settings = with_simulator(
                simulator, folder, driver="websockets", redis_url=valkey.url, symbols="AAPL"
            )
            async with mdservice.open_service(settings) as service:
                await ready(service)
                simulator.drop("close")
                await until(lambda: service.status().feed.reconnects == 1)
                await until(lambda: service.status().counters.gaps_repaired == 1)

    run(backend, scene)
    states = listener.heard("feed.status")
    assert [state["state"] for state in states] == [
        "connected",
        "disconnected",
        "connected",
        "gap",
        "gap_repaired",
        "disconnected",
    ]
    assert states[0]["driver"] == "websockets"


@both_loops
def test_subscribes_at_run_time(backend: str, folder: Path, valkey: Any) -> None:
    async def scene() -> None:
        async with open_simulator(SimulatorConfig(rate=0, symbol_limit=3)) as simulator:
            settings = with_simulator(simulator, folder, redis_url=valkey.url, symbols="AAPL")
            async with mdservice.open_service(settings) as service:
                await ready(service)
                assert (await service.subscribe("MSFT", "spy")).status == "subscribed"
                with pytest.raises(SubscriptionRefused) as caught:
                    await service.subscribe("TSLA")
                assert caught.value.code == 405
                with pytest.raises(InvalidSymbol):
                    await service.subscribe("no symbol")
                async with service.quotes("SPY") as incoming:
                    simulator.send_quotes([*quotes(1, "MSFT"), *quotes(1, "SPY")])
                    assert (await anext(aiter(incoming))).symbol == "SPY"
                assert (await service.unsubscribe("MSFT")).status == "unsubscribed"
                (connection,) = simulator.connections
                assert set(connection.subscriptions["quotes"]) == {"AAPL", "SPY"}

    run(backend, scene)


@pytest.fixture
def no_alpaca_py(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """It cannot be imported, also where an earlier test of this process has done so."""
    monkeypatch.setitem(sys.modules, "alpaca.data.live", None)
    sdk._import_sdk.cache_clear()
    yield
    sdk._import_sdk.cache_clear()


@both_loops
@pytest.mark.usefixtures("no_alpaca_py")
def test_auto_falls_back_where_alpaca_py_cannot_be_imported(
    backend: str, folder: Path, valkey: Any, listener: Listener
) -> None:
    async def scene() -> None:
        async with open_simulator(SimulatorConfig(rate=0)) as simulator:
            settings = with_simulator(simulator, folder, redis_url=valkey.url, symbols="AAPL")
            async with mdservice.open_service(settings) as service:
                await ready(service)
                assert service.status().feed.driver == "websockets"

    run(backend, scene)
    assert [state["state"] for state in listener.heard("feed.status")][:2] == [
        "fallback",
        "connected",
    ]


# ---- errors and ends


@both_drivers
@both_loops
def test_refused_credentials_end_the_block_with_one_plain_error(
    backend: str, driver: Any, folder: Path
) -> None:
    """With the embedded server too, so that every context in the way is passed."""

    async def scene() -> None:
        config = SimulatorConfig(rate=0, key="right", secret="right")
        async with open_simulator(config) as simulator:
            settings = with_simulator(
                simulator, folder, driver=driver, api_key="wrong", secret_key="wrong"
            )
            with pytest.raises(FeedRefused) as caught:
                async with mdservice.open_service(settings):
                    await anyio.sleep_forever()
            assert caught.value.code == 402
            assert "ALPACA_API_KEY" in str(caught.value)

    started_s = time.monotonic()
    run(backend, scene)
    assert time.monotonic() - started_s < patient(STOP_LIMIT_S)


@both_loops
def test_error_in_the_block_comes_out_as_it_is(backend: str, folder: Path) -> None:
    mine = KeyError("mine")

    async def scene() -> None:
        with pytest.raises(KeyError) as caught:
            async with mdservice.open_service(
                mdservice.Settings(socket=folder / "md.sock")
            ) as service:
                await ready(service)
                raise mine
        assert caught.value is mine

    run(backend, scene)


@both_drivers
@both_loops
def test_cancellation_writes_what_was_accepted_and_is_prompt(
    backend: str, driver: Any, folder: Path, valkey: Any, listener: Listener
) -> None:
    count = 2_000

    async def scene() -> None:
        async with open_simulator(SimulatorConfig(rate=0)) as simulator:
            settings = with_simulator(
                simulator, folder, driver=driver, redis_url=valkey.url, symbols="AAPL"
            )
            with anyio.CancelScope() as scope:
                async with mdservice.open_service(settings) as service:
                    await ready(service)
                    simulator.send_quotes(quotes(count))
                    await until(lambda: service.status().counters.quotes_accepted == count)
                    started_s = anyio.current_time()
                    scope.cancel()
                    await anyio.sleep_forever()
            assert scope.cancelled_caught
            assert anyio.current_time() - started_s < patient(STOP_LIMIT_S)

    run(backend, scene)
    assert len(listener.heard("price.updated")) == count


def test_task_of_asyncio_itself_can_be_cancelled(folder: Path, valkey: Any) -> None:
    """As a web framework does it that knows nothing of anyio."""

    async def main() -> None:
        async with open_simulator(SimulatorConfig(rate=0)) as simulator:
            settings = with_simulator(simulator, folder, redis_url=valkey.url, symbols="AAPL")
            running = asyncio.Event()

            async def hold() -> None:
                async with mdservice.open_service(settings) as service:
                    await ready(service)
                    running.set()
                    await asyncio.Event().wait()

            task = asyncio.create_task(hold())
            await asyncio.wait_for(running.wait(), LIMIT_S)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, LIMIT_S)
            await asyncio.wait_for(simulator.until(lambda s: not s.connections), LIMIT_S)

    asyncio.run(main())


@both_loops
def test_two_services_live_side_by_side(backend: str, folder: Path, valkey: Any) -> None:
    async def scene() -> None:
        config = SimulatorConfig(rate=0, connection_limit=2)
        async with open_simulator(config) as simulator:
            one = with_simulator(
                simulator, folder, driver="alpaca-py", redis_url=valkey.url, symbols="AAPL"
            )
            two = with_simulator(
                simulator, folder, driver="websockets", redis_url=valkey.url, symbols="MSFT"
            )
            async with (
                mdservice.open_service(one) as first,
                mdservice.open_service(two) as second,
            ):
                await ready(first)
                await ready(second)
                simulator.send_quotes([*quotes(2), *quotes(3, "MSFT")])
                await until(lambda: first.status().counters.events_published == 2)
                await until(lambda: second.status().counters.events_published == 3)
                assert [q.symbol for q in first.prices()] == ["AAPL"]
                assert [q.symbol for q in second.prices()] == ["MSFT"]

    run(backend, scene)


@both_loops
def test_redis_that_is_away_at_start_is_waited_for(
    backend: str, folder: Path, fresh_valkey: Any
) -> None:
    fresh_valkey.kill()

    async def scene() -> None:
        async with open_simulator(SimulatorConfig(rate=0)) as simulator:
            settings = with_simulator(
                simulator, folder, redis_url=fresh_valkey.url, symbols="AAPL", driver="websockets"
            )
            async with mdservice.open_service(settings) as service:
                await until(lambda: service.status().feed.subscribed)
                simulator.send_quotes(quotes(10))
                await until(lambda: service.status().counters.quotes_accepted == 10)
                assert "Redis is not connected" in service.readiness().reasons[0]
                await anyio.to_thread.run_sync(fresh_valkey.start)
                returned_s = anyio.current_time()
                await until(lambda: service.status().counters.events_published == 10)
                assert anyio.current_time() - returned_s <= patient(1.5)
                await ready(service)

    run(backend, scene)
    with fresh_valkey.client() as client:
        assert json.loads(client.get("price:AAPL"))["seq"] == 10


@both_loops
def test_redis_that_was_killed_and_came_back_empty_gets_all_that_follows(
    backend: str, folder: Path, fresh_valkey: Any
) -> None:
    async def scene() -> None:
        async with open_simulator(SimulatorConfig(rate=0)) as simulator:
            settings = with_simulator(
                simulator, folder, redis_url=fresh_valkey.url, symbols="AAPL", driver="websockets"
            )
            async with mdservice.open_service(settings) as service:
                await ready(service)
                simulator.send_quotes(quotes(10))
                await until(lambda: service.status().counters.events_published == 10)
                fresh_valkey.kill()
                simulator.send_quotes(quotes(20)[10:])
                await until(lambda: service.status().counters.quotes_accepted == 20)
                await until(lambda: not service.readiness().ready)
                await anyio.to_thread.run_sync(fresh_valkey.start)
                await until(lambda: service.status().counters.events_published == 20)
                with fresh_valkey.client() as client:
                    assert json.loads(client.get("price:AAPL"))["seq"] == 20

    run(backend, scene)
