"""Two services that publish the same names on one server: both notice, and readers do not mix."""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import hiredis
import msgspec
import pytest

import mdservice
from mdservice.clock import SystemClock
from mdservice.gateway.make import make_tracker
from mdservice.model.payload import encode_quote
from mdservice.model.position import Position
from mdservice.model.quote import Quote
from mdservice.publish import instances as instances_module
from mdservice.publish.instances import Instances
from mdservice.publish.store import Message
from mdservice.redis_io.names import (
    Instance,
    RedisNames,
    decode_instance,
    encode_instance,
)
from mdservice.redis_io.store import RedisPriceStore
from mdservice.testing import FakeDriver, FakePositions
from tests.batches import write_batch
from tests.integration.network import Network
from tests.integration.outages import run, until

BOTH = pytest.mark.parametrize("backend", ["trio", "asyncio"])


def url_of(server: Any, db: int = 0, login: str = "") -> str:
    return f"unix://{login}{server.path}?db={db}"


def make(server: Any, db: int = 0, prefix: str = "", url: str | None = None) -> Instances:
    return Instances(
        url or url_of(server, db),
        id=secrets.token_hex(8),
        feed="iex",
        delay_s=0.0,
        price_ttl_s=300,
        prefix=prefix,
        clock=SystemClock(),
    )


@asynccontextmanager
async def running(*all_of_them: Instances) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        for one in all_of_them:
            await tasks.start(lambda one=one, **told: one.run(**told))
        yield
        tasks.cancel_scope.cancel()


async def say_nothing(_speaker: object) -> None:
    """As a service that was killed does."""


def record(server: Any, db: int = 0, prefix: str = "") -> Instance | None:
    with server.client(db=db) as client:
        return decode_instance(client.get(RedisNames(prefix).instance_key))


@BOTH
@pytest.mark.parametrize("dbs", [(0, 0), (0, 1)])
def test_both_services_report_each_other_until_one_is_gone(
    dbs: tuple[int, int], backend: str, fresh_valkey: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        async with AsyncExitStack() as stack:
            services = []
            for db in dbs:
                one = await stack.enter_async_context(
                    mdservice.open_service(
                        mdservice.Settings(redis_url=url_of(fresh_valkey, db), feed="simulator"),
                        drivers=[FakeDriver()],
                    )
                )
                services.append(one)
            await until(lambda: all(one.readiness().ready for one in services), 10)
            await until(lambda: all(one.status().state == "degraded" for one in services), 10)
            for one, other_db in zip(services, reversed(dbs), strict=True):
                (reason,) = one.status().reasons
                assert f"database {other_db} " in reason
                assert "MDSERVICE_KEY_PREFIX" in reason
                assert one.readiness().ready
                assert one.readiness().reasons == (reason,)
            async with mdservice.open_service(
                mdservice.Settings(
                    redis_url=url_of(fresh_valkey), feed="simulator", key_prefix="desk1:"
                ),
                drivers=[FakeDriver()],
            ) as apart:
                await anyio.sleep(2.5)
                assert apart.status().reasons == ()
            assert all(len(one.status().reasons) == 1 for one in services)
            await stack.aclose()

    run(body, backend)
    assert caplog.text.count("another_service_publishes_here") == 2


@BOTH
@pytest.mark.parametrize("killed", [False, True])
def test_the_report_ends_when_the_other_one_is_gone(
    killed: bool, backend: str, fresh_valkey: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not killed:  # only its goodbye can end the report in time
        monkeypatch.setattr(instances_module, "GONE_AFTER_S", 300.0)
        monkeypatch.setattr(instances_module, "_GOODBYE_S", 20.0)

    async def body() -> None:
        one, other = make(fresh_valkey), make(fresh_valkey, 1)
        async with running(one):
            async with running(other):
                await until(lambda: len(one.conflicts()) == len(other.conflicts()) == 1)
                assert "database 1 " in one.conflicts()[0]
                if killed:
                    other._say_goodbye = say_nothing  # type: ignore[method-assign]
                    other_stops = anyio.current_time()
            await until(lambda: not one.conflicts())
            if killed:
                assert anyio.current_time() - other_stops > 2

    run(body, backend)


@BOTH
def test_the_record_is_of_the_first_service_in_a_database(backend: str, fresh_valkey: Any) -> None:
    async def body() -> None:
        first, second = make(fresh_valkey), make(fresh_valkey)
        async with running(first):
            await until(lambda: record(fresh_valkey) == first.own)
            async with running(second):
                await anyio.sleep(2.2)
                assert record(fresh_valkey) == first.own
            async with running(make(fresh_valkey, 3)):
                await until(lambda: record(fresh_valkey, 3) is not None)
        assert record(fresh_valkey) is None
        assert record(fresh_valkey, 3) is None
        with fresh_valkey.client() as client:
            assert client.dbsize() == 0

    run(body, backend)


@BOTH
@pytest.mark.parametrize("announcements", [1, 2])
def test_the_record_goes_though_the_end_comes_during_an_announcement(
    announcements: int, backend: str, fresh_valkey: Any
) -> None:
    async def body() -> None:
        one = make(fresh_valkey)
        exchange, made = one._announce, 0

        async def announce(speaker: Any) -> None:
            nonlocal made
            await exchange(speaker)
            made += 1
            if made == announcements:  # executed, and the replies are still on their way
                speaker._reader.feed(b"+OK\r\n:0\r\n")
                await anyio.sleep_forever()

        one._announce = announce  # type: ignore[method-assign]
        async with running(one):
            await until(lambda: made == announcements)
            assert record(fresh_valkey) == one.own
        assert record(fresh_valkey) is None

    run(body, backend)


@pytest.mark.parametrize("same_process", [False, True])
def test_the_record_of_a_killed_service_of_this_machine_is_taken_over_at_once(
    same_process: bool, fresh_valkey: Any
) -> None:
    async def body() -> None:
        one = make(fresh_valkey)
        dead = json.loads(encode_instance(one.own)) | {"id": "dead"}
        if not same_process:
            process = await anyio.open_process(["true"])
            await process.wait()
            await process.aclose()
            dead["pid"] = process.pid
        with fresh_valkey.client() as client:
            client.set("mdservice:instance", json.dumps(dead), px=60_000)
        async with running(one):
            await until(lambda: record(fresh_valkey) == one.own)

    run(body, "trio")


@pytest.mark.parametrize(
    "change", [{"host": "elsewhere"}, {"pid_space": "other"}, {"pid": os.getppid()}]
)
def test_the_record_of_one_that_may_be_alive_is_left(change: Any, fresh_valkey: Any) -> None:
    async def body() -> None:
        one = make(fresh_valkey)
        alive = json.loads(encode_instance(one.own)) | {"id": "alive"} | change
        with fresh_valkey.client() as client:
            client.set("mdservice:instance", json.dumps(alive), px=60_000)
        async with running(one):
            await anyio.sleep(1.5)
            assert record(fresh_valkey) != one.own
            with fresh_valkey.client() as client:
                client.pexpire("mdservice:instance", 1)
            await until(lambda: record(fresh_valkey) == one.own)

    run(body, "trio")


def test_without_the_rights_there_is_one_warning_and_no_harm(
    fresh_valkey: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instances_module, "_AGAIN_IF_REFUSED_S", 0.1)
    with fresh_valkey.client() as client:
        client.execute_command(
            "ACL SETUSER desk on nopass ~price:* ~mdservice:writer:* resetchannels "
            "&price.updated &feed.status +@all"
        )
    url = url_of(fresh_valkey, login="desk:x@")

    async def body() -> None:
        async with mdservice.open_service(
            mdservice.Settings(redis_url=url, feed="simulator", symbols="AAPL"),
        ) as service:
            await until(lambda: service.readiness().ready, 10)
            await until(lambda: service.status().counters.prices_written > 0, 10)
            await anyio.sleep(1)
            assert service.status().reasons == ()

    run(body, "trio")
    assert caplog.text.count("other_services_cannot_be_noticed") == 1
    assert "redis_failed" not in caplog.text


def test_garbage_on_the_channel_is_passed_over(
    fresh_valkey: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        one = make(fresh_valkey)
        async with running(one):
            with fresh_valkey.client() as client:
                channel = "mdservice.instances"
                await until(lambda: client.pubsub_numsub(channel)[0][1] == 1)
                for number in range(300):
                    client.publish("mdservice.instances", b'{"id":"%d"}' % number)
                    client.publish("mdservice.instances", b"\xff[1")
                    fake = json.loads(encode_instance(one.own)) | {"id": str(number)}
                    client.publish("mdservice.instances", json.dumps(fake))
            await until(lambda: one.conflicts() != ())
            assert len(one.conflicts()) <= 100

    run(body, "trio")
    assert 1 <= caplog.text.count("another_service_publishes_here") <= 100


class FloodingServer:
    """Answers as Redis does; sends a subscriber announcements without a pause, once."""

    def __init__(self, path: Path, for_s: float) -> None:
        self.started, self.ended = threading.Event(), threading.Event()
        self._for_s = for_s
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._answer, args=(client,)))
                self._threads[-1].start()

    def _answer(self, client: socket.socket) -> None:
        reader = hiredis.Reader(notEnoughData=None)
        with client, suppress(OSError):
            while data := client.recv(65_536):
                reader.feed(data)
                while (command := reader.gets()) is not None:
                    client.sendall(b"$-1\r\n" if command[0] == b"GET" else b"+OK\r\n")
                    if command[0] == b"SUBSCRIBE":
                        self._flood(client)

    def _flood(self, client: socket.socket) -> None:
        until_s = time.monotonic() + self._for_s
        self.started.set()
        with suppress(OSError):
            while time.monotonic() < until_s:
                client.sendall(b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nx\r\n" * 1_000)
        self.ended.set()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()


@BOTH
def test_a_flood_of_announcements_leaves_other_tasks_their_turn(
    backend: str, tmp_path: Path
) -> None:
    async def body() -> None:
        turns = 0
        # As long as a busy machine needs for so many turns; without any, until the flood ends.
        with closing(FloodingServer(tmp_path / "s", 30.0)) as server:
            async with running(make(None, url=f"unix://{tmp_path}/s")):
                while turns <= 10 and not server.ended.is_set():
                    await anyio.sleep(0.001)
                    turns += server.started.is_set() and not server.ended.is_set()
        assert turns > 10

    run(body, backend)


@BOTH
def test_it_comes_back_with_the_server(backend: str, fresh_valkey: Any) -> None:
    async def body() -> None:
        one, other = make(fresh_valkey), make(fresh_valkey, 1)
        async with running(one, other):
            await until(lambda: len(one.conflicts()) == 1)
            await anyio.to_thread.run_sync(fresh_valkey.kill)
            await until(lambda: one.conflicts() == ())
            await anyio.to_thread.run_sync(fresh_valkey.start)
            await until(lambda: len(one.conflicts()) == len(other.conflicts()) == 1)
            assert record(fresh_valkey) == one.own

    run(body, backend)


# ---- readers and the gateway


class Publisher:
    """The writing side of a service, with its record."""

    def __init__(self, server: Any, db: int = 0, *, bid: float = 10.0) -> None:
        self.instances = make(server, db)
        self.bid = bid
        self._batches = 0
        self._url = url_of(server, db)
        self._store: RedisPriceStore | None = None

    async def write(self, *symbols: str) -> None:
        if self._store is None:
            self._store = RedisPriceStore(self._url, instance=self.instances.own.id)
            await self._store.connect()
        self._batches += 1
        now_ns = time.time_ns()
        quotes = [
            Quote(symbol, self.bid, self.bid + 1, 1, 1, now_ns, now_ns, self._batches)
            for symbol in symbols
        ]
        payloads = {quote.symbol: encode_quote(quote) for quote in quotes}
        messages = [Message("price.updated", payloads[q.symbol], q.symbol) for q in quotes]
        await self._store.write(write_batch(self._batches, payloads, messages))

    async def aclose(self) -> None:
        if self._store is not None:
            await self._store.aclose()


async def collect(prices: mdservice.Prices, found: list[Quote]) -> None:
    async for quote in prices:
        found.append(quote)


@BOTH
def test_a_reader_takes_the_events_of_its_own_database_alone(
    backend: str, fresh_valkey: Any
) -> None:
    async def body() -> None:
        real, simulated = Publisher(fresh_valkey, 0), Publisher(fresh_valkey, 1, bid=999.0)
        async with running(real.instances, simulated.instances):
            await until(lambda: record(fresh_valkey) and record(fresh_valkey, 1))
            found: list[Quote] = []
            async with (
                mdservice.open_prices(url_of(fresh_valkey)) as prices,
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(collect, prices, found)
                for _ in range(50):
                    await simulated.write("AAPL", "MSFT")
                    await real.write("AAPL", "MSFT", "SPY")
                await until(lambda: len(found) >= 150, 10)
                assert {quote.bid for quote in found} == {10.0}
                assert [q.seq for q in found if q.symbol == "SPY"] == list(range(1, 51))
                told = prices.status()
                assert told.foreign == 100
                assert told.service == real.instances.own.id
                assert prices.rivals() == []
                tasks.cancel_scope.cancel()
        await real.aclose()
        await simulated.aclose()

    run(body, backend)


def test_without_a_service_in_its_database_it_takes_no_other_ones_events(fresh_valkey: Any) -> None:
    async def body() -> None:
        simulated = Publisher(fresh_valkey, 1, bid=999.0)
        async with (
            running(simulated.instances),
            mdservice.open_prices(url_of(fresh_valkey)) as prices,
        ):
            await simulated.write("AAPL")
            await until(lambda: prices.status().foreign == 1)
            assert prices.latest("AAPL") is None
        await simulated.aclose()

    run(body, "trio")


@BOTH
@pytest.mark.parametrize("end", ["stopped", "killed", "killed in another container"])
def test_a_service_that_starts_again_is_followed_without_a_loss(
    end: str, backend: str, fresh_valkey: Any
) -> None:
    async def body() -> None:
        first, second = Publisher(fresh_valkey), Publisher(fresh_valkey)
        found: list[Quote] = []
        if end != "stopped":
            first.instances._say_goodbye = say_nothing  # type: ignore[method-assign]
        if end == "killed in another container":  # its record stays until it expires
            first.instances.own = msgspec.structs.replace(first.instances.own, pid_space="other")
        async with (
            mdservice.open_prices(url_of(fresh_valkey)) as prices,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(collect, prices, found)
            async with running(first.instances):
                await until(lambda: prices.status().service == first.instances.own.id)
                for _ in range(5):
                    await first.write("AAPL")
            second.bid = 20.0
            async with running(second.instances):
                if end != "killed in another container":
                    await until(lambda: record(fresh_valkey) == second.instances.own)
                for _ in range(5):
                    await second.write("AAPL")
                    await anyio.sleep(0.3)
                await until(lambda: len(found) == 10, 10)
                assert [quote.bid for quote in found] == [10.0] * 5 + [20.0] * 5
                await until(lambda: prices.status().service == second.instances.own.id)
                assert prices.status().foreign == 0
            tasks.cancel_scope.cancel()
        await first.aclose()
        await second.aclose()

    run(body, backend)


def test_events_that_do_not_say_whose_they_are_are_taken(fresh_valkey: Any) -> None:
    async def body() -> None:
        one = Publisher(fresh_valkey)
        async with running(one.instances):
            await until(lambda: record(fresh_valkey))
            async with mdservice.open_prices(url_of(fresh_valkey)) as prices:
                await one.write("AAPL")
                with fresh_valkey.client() as client:
                    quote = Quote("MSFT", 1.0, 2.0, 1, 1, time.time_ns(), 0, 1)
                    client.publish("mdservice.batch", b"garbage")
                    client.publish("price.updated", encode_quote(quote))
                assert {(await anext(prices)).symbol for _ in range(2)} == {"AAPL", "MSFT"}
        await one.aclose()

    run(body, "trio")


def test_a_reader_without_the_right_to_the_markers_hears_the_events(fresh_valkey: Any) -> None:
    with fresh_valkey.client() as client:
        client.execute_command(
            "ACL SETUSER desk on nopass ~price:* resetchannels &price.updated +@all"
        )

    async def body() -> None:
        one = Publisher(fresh_valkey)
        async with running(one.instances):
            url = url_of(fresh_valkey, login="desk:x@")
            async with mdservice.open_prices(url) as prices:
                await one.write("AAPL")
                assert (await anext(prices)).symbol == "AAPL"
                assert prices.status().service is None
        await one.aclose()

    run(body, "trio")


def gateway_of(server: Any, *, read_from: Any = "keys", **more: Any) -> Any:
    settings = mdservice.Settings(redis_url=url_of(server), **more)
    source = FakePositions([Position("AAPL", Decimal(10), Decimal(1))])
    return make_tracker(source, settings, read_from=read_from)


@pytest.mark.parametrize("read_from", ["keys", "live"])
def test_the_gateway_never_shows_prices_of_another_database(
    read_from: str, fresh_valkey: Any
) -> None:
    async def body() -> None:
        real, simulated = Publisher(fresh_valkey), Publisher(fresh_valkey, 1, bid=999.0)
        async with running(real.instances, simulated.instances):
            await until(lambda: record(fresh_valkey) and record(fresh_valkey, 1))
            tracker = gateway_of(fresh_valkey, read_from=read_from)
            async with tracker.running():
                await until(lambda: tracker.prices_status() is not None)
                for _ in range(50):
                    await simulated.write("AAPL")
                    await real.write("AAPL")
                    (row,) = (await tracker.report()).positions
                    assert row.current_price in (None, Decimal("10.5"))
                await until(lambda: tracker.engine.totals.priced == 1)
                (row,) = (await tracker.report()).positions
                assert row.status == "live"
                assert row.current_price == Decimal("10.5")
                assert tracker.warnings() == []
        await real.aclose()
        await simulated.aclose()

    run(body, "trio")


@BOTH
def test_the_gateway_reports_two_services_in_its_database(backend: str, fresh_valkey: Any) -> None:
    async def body() -> None:
        one, other = Publisher(fresh_valkey), make(fresh_valkey)
        async with running(one.instances):
            await one.write("AAPL")
            tracker = gateway_of(fresh_valkey)
            async with tracker.running():
                await until(lambda: tracker.prices_status() is not None)
                assert tracker.warnings() == []
                async with running(other):
                    await until(lambda: tracker.warnings() != [])
                    assert "MDSERVICE_KEY_PREFIX" in tracker.warnings()[0]
                await until(lambda: tracker.warnings() == [])
        await one.aclose()

    run(body, backend)


@pytest.mark.parametrize("read_from", ["keys", "live"])
def test_the_feeds_delay_comes_from_the_service(read_from: str, fresh_valkey: Any) -> None:
    async def body() -> None:
        driver = FakeDriver()
        settings = mdservice.Settings(
            redis_url=url_of(fresh_valkey),
            feed="delayed_sip",
            api_key="key",
            secret_key="secret",
            symbols="AAPL",
            price_ttl=2_000,
            socket=Path(str(fresh_valkey.path) + "-m"),
        )
        store = RedisPriceStore(settings.redis_url or "", instance="x")
        late_ns = time.time_ns() - 890 * 10**9
        payload = encode_quote(Quote("AAPL", 10.0, 11.0, 1, 1, late_ns, late_ns, 1))
        async with mdservice.open_service(settings, drivers=[driver]):
            await until(lambda: record(fresh_valkey))
            told = record(fresh_valkey)
            assert told is not None
            assert (told.feed, told.delay_s, told.price_ttl_s) == ("delayed_sip", 900.0, 2_000)
            await store.connect()
            await store.write(write_batch(1, {"AAPL": payload}, []))
            tracker = gateway_of(fresh_valkey, read_from=read_from)  # default settings
            async with tracker.running():
                await until(lambda: tracker.prices_status() is not None)
                (row,) = (await tracker.report()).positions
                assert row.status == "live"
            await store.aclose()

    run(body, "trio")


def test_without_a_record_the_delay_is_that_of_the_settings(fresh_valkey: Any) -> None:
    async def body() -> None:
        late_ns = time.time_ns() - 890 * 10**9
        payload = encode_quote(Quote("AAPL", 10.0, 11.0, 1, 1, late_ns, late_ns, 1))
        with fresh_valkey.client() as client:
            client.set("price:AAPL", payload)
        for feed, status in (("delayed_sip", "live"), ("iex", "stale")):
            tracker = gateway_of(fresh_valkey, feed=feed)
            (row,) = (await tracker.report()).positions
            assert row.status == status
            await tracker.aclose()

    run(body, "trio")


def test_a_reader_leaves_a_server_that_its_address_no_longer_leads_to(
    fresh_valkey: Any, valkey: Any
) -> None:
    async def body() -> None:
        old, new = Publisher(fresh_valkey), Publisher(valkey)
        with closing(Network(fresh_valkey.path)) as network:
            url = f"redis://127.0.0.1:{network.port}"
            async with running(old.instances):
                await until(lambda: record(fresh_valkey))
                new.instances.own = old.instances.own  # one service, which follows a fail-over
                async with mdservice.open_prices(url) as prices, running(new.instances):
                    await until(lambda: record(valkey) == old.instances.own)
                    network.lead_to(valkey.path)
                    with fresh_valkey.client() as client:
                        client.execute_command("CLIENT PAUSE 60000 WRITE")
                    await until(lambda: prices.status().reconnects > 0, 10)
                    await new.write("AAPL")
                    assert (await anext(prices)).symbol == "AAPL"
                with fresh_valkey.client() as client:
                    client.execute_command("CLIENT UNPAUSE")
        await new.aclose()

    run(body, "trio")
