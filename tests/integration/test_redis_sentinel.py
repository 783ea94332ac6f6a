"""Sentinels: the service, readers and the gateway follow the primary, and say what was lost."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import anyio.to_thread
import attrs
import pytest

import mdservice
from mdservice.cli.checks import check_redis
from mdservice.client.discovery import GivenServer
from mdservice.client.reader import Prices
from mdservice.errors import StoreRefused, StoreUnavailable
from mdservice.gateway.redis_calls import RedisCalls
from mdservice.model.kinds import QUOTES
from mdservice.pnl.breaker import Breaker
from mdservice.redis_io.connection import RedisConnection
from mdservice.redis_io.locator import SentinelLocator, locator_of
from mdservice.redis_io.names import RedisNames
from mdservice.redis_io.store import RedisPriceStore
from mdservice.settings import Settings
from mdservice.simulator import SimQuote
from tests.batches import write_batch
from tests.integration.conftest import patient
from tests.integration.outages import Line, open_line, run, until
from tests.integration.sentinels import SERVICE, SentinelGroup, Server, wait_until
from tests.records import make_record

BACK_WITHIN_S = 30.0
"""Most of it is the time until the sentinels agree."""
LOG = "quotes.log"


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="sen-") as name:  # short: it holds a socket
        yield Path(name)


@pytest.fixture
def group() -> Iterator[SentinelGroup]:
    """A group of this test's own, for a failover."""
    with closing(SentinelGroup()) as made:
        made.start()
        yield made


@pytest.fixture(scope="module")
def steady() -> Iterator[SentinelGroup]:
    """A group whose primary stays."""
    with closing(SentinelGroup()) as made:
        made.start()
        yield made


@attrs.define
class Heard:
    """What one reader gave its program."""

    prices: Prices
    seqs: dict[str, list[int]] = attrs.field(factory=dict)

    async def read(self) -> None:
        async for quote in self.prices:
            self.seqs.setdefault(quote.symbol, []).append(quote.seq)

    def has_last(self, line: Line) -> bool:
        return all(self.seqs.get(symbol, [0])[-1] == line.sent for symbol in line.symbols)

    def check(self, line: Line) -> None:
        for symbol in line.symbols:
            seqs = self.seqs[symbol]
            assert seqs == sorted(set(seqs)), "in order, and none twice"
        status = self.prices.status()
        received = sum(map(len, self.seqs.values()))
        first = sum(seqs[0] - 1 for seqs in self.seqs.values())  # from before it began
        assert received + status.missed + first == line.sent * len(line.symbols)


@asynccontextmanager
async def reading(url: str, *symbols: str) -> AsyncIterator[Heard]:
    async with mdservice.open_prices(url, symbols) as prices, anyio.create_task_group() as tasks:
        heard = Heard(prices)
        tasks.start_soon(heard.read)
        yield heard
        tasks.cancel_scope.cancel()


def kill(group: SentinelGroup) -> None:
    group.primary.kill()
    group.moved()


def ask(group: SentinelGroup) -> None:
    group.fail_over()


def stop(group: SentinelGroup) -> None:
    group.primary.stop_answering()
    group.moved()


def writes_to(server: Server) -> bool:
    """Whether the service has left the old primary, which does not know yet that it is old."""
    with server.client() as client:
        return any(one["name"] == "mdservice-writer" for one in client.client_list())


def log_of(server: Server) -> dict[str, list[int]]:
    """The sequence numbers in the event log, by symbol."""
    found: dict[str, list[int]] = {}
    with server.client() as client:
        for _, fields in client.xrange(LOG):
            found.setdefault(fields[b"symbol"].decode(), []).append(
                json.loads(fields[b"data"])["seq"]
            )
    return found


@pytest.mark.parametrize(
    ("way", "driver", "backend"),
    [
        (kill, "websockets", "trio"),
        (ask, "alpaca-py", "asyncio"),
        (stop, "websockets", "asyncio"),
    ],
)
def test_a_failover_while_quotes_flow(
    way: Callable[[SentinelGroup], None],
    driver: str,
    backend: str,
    group: SentinelGroup,
    folder: Path,
) -> None:
    async def body() -> None:
        old, url = group.primary, group.url
        gateway = RedisCalls(GivenServer(url))
        async with (
            open_line(old, folder, driver, redis_url=url, event_log=LOG) as line,
            reading(url, *line.symbols) as near,
            reading(f"{url}?read_from=replica", *line.symbols) as far,
        ):
            trip = Breaker("tripped", "total pnl < -1", "total", None, "2026-11-27T15:00:00Z")
            await gateway.change_breaker(lambda _: trip)
            await line.written()
            await anyio.to_thread.run_sync(way, group)
            with anyio.fail_after(patient(BACK_WITHIN_S)):
                await until(lambda: writes_to(group.primary), within_s=1_000)
                await line.written()
                await line.ready()
            line.going = False
            with anyio.fail_after(patient(BACK_WITHIN_S)):
                await until(lambda: near.has_last(line) and far.has_last(line), within_s=1_000)
                await until(lambda: line.service.status().redis.backlog == 0, within_s=1_000)
            near.check(line)
            far.check(line)
            new = group.primary
            for seqs in log_of(new).values():
                assert seqs == sorted(set(seqs)), "no batch was executed twice"
                assert seqs[-1] == line.sent
            found = await gateway.prices(line.symbols)
            assert [quote.seq for quote in found if quote] == [line.sent] * len(line.symbols)
            assert await gateway.breaker() in (trip, None)  # None: lost, and the others report it
            with new.client() as client:
                await until(lambda: client.get("mdservice:instance"))
            if way is stop:
                old.answer_again()
                await anyio.to_thread.run_sync(group.rejoined, old)
                assert log_of(old) == log_of(new), "what the old primary took is gone"
                assert line.service.status().redis.connected
            status = line.service.status()
            assert status.counters.events_published == line.sent * len(line.symbols)
        gateway.close()

    run_for(body, backend)


def run_for(body: Callable[[], Any], backend: str) -> None:
    async def limited() -> None:
        with anyio.fail_after(patient(120)):
            await body()

    anyio.run(limited, backend=backend)


def cut_replication(group: SentinelGroup) -> None:
    """The replica gets nothing from now on, and its primary goes on."""
    with group.primary.client() as client:
        client.execute_command("ACL", "SETUSER", "default", "-psync", "-sync")
        client.execute_command("CLIENT", "KILL", "TYPE", "replica")
    (replica,) = group.replicas
    wait_until(lambda: replica.role[3] != b"connected")


def test_what_the_old_primary_alone_had_is_written_again_and_readers_get_it(
    group: SentinelGroup, folder: Path
) -> None:
    async def body() -> None:
        old, url = group.primary, group.url
        symbols = "AAPL,QUIET"
        async with open_line(old, folder, "websockets", symbols, redis_url=url) as line:
            await line.written()
            line.going = False
            await line.all_accepted()
            await until(lambda: line.service.status().redis.backlog == 0)
            async with reading(f"{url}?read_from=replica", "AAPL", "QUIET") as far:
                await until(lambda: far.has_last(line))
                await anyio.to_thread.run_sync(cut_replication, group)
                line.simulator.send_quotes([SimQuote("QUIET", 7_777, 7_778)])
                with old.client() as client:
                    await until(lambda: b"7777" in client.get("price:QUIET"))
                old.kill()
                await anyio.to_thread.run_sync(group.moved)
                with group.primary.client() as client, anyio.fail_after(patient(BACK_WITHIN_S)):
                    await until(lambda: b"7777" in client.get("price:QUIET"), within_s=1_000)
                    await until(lambda: far.seqs["QUIET"][-1] == line.sent + 1, within_s=1_000)

    run_for(body, "trio")


# ---- reading from a replica


def test_a_reader_needs_no_write_right_at_a_replica(steady: SentinelGroup) -> None:
    (replica,) = steady.replicas
    rules = f"on >s3cr3t {RedisNames().rights(reader=True)}"
    for server in steady.servers:
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "reader", *rules.split())
    hosts = steady.url.removeprefix("redis+sentinel://")

    async def body() -> None:
        store = RedisPriceStore(steady.url, instance="one")
        await store.connect()
        url = f"redis+sentinel://reader:s3cr3t@{hosts}?read_from=replica"
        gateway = RedisCalls(GivenServer(f"redis://reader:s3cr3t@127.0.0.1:{replica.port}"))
        async with reading(url, "AAPL") as heard:
            record = make_record(QUOTES, "AAPL", 1)
            payload = QUOTES.encode(record)
            message = mdservice.publish.store.Message("price.updated", payload, "AAPL")
            await store.write(write_batch(1, {"AAPL": payload}, [message]))
            await until(lambda: heard.seqs.get("AAPL") == [1])
            with replica.client() as client:
                users = {one["user"] for one in client.client_list() if "reader" in one["name"]}
            assert users == {"reader"}
            with steady.primary.client() as client:
                assert not any("reader" in one["name"] for one in client.client_list())
            await until_read(gateway, "AAPL")
            with pytest.raises(StoreRefused):
                await gateway.change_breaker(lambda _: Breaker("closed"))
        gateway.close()
        await store.aclose()

    run(body, "trio")


async def until_read(gateway: RedisCalls, symbol: str) -> None:
    with anyio.fail_after(patient(20)):
        while not any(await gateway.prices([symbol])):
            await anyio.sleep(0.01)


def test_without_a_replica_it_reads_from_the_primary() -> None:
    async def body(group: SentinelGroup) -> None:
        locator = locator_of(f"{group.url}?read_from=replica", timeout_s=3.0)
        connection = await RedisConnection.open(locator, "test", reads=True)
        assert str(group.primary.port) in connection.address
        connection.close()

    with closing(SentinelGroup(replicas=0)) as group:
        group.start()
        run(partial(body, group), "trio")


# ---- what `mdservice check` says


def test_check_says_what_the_sentinels_know(steady: SentinelGroup) -> None:
    settings = Settings(feed="simulator", redis_url=steady.url)
    result = anyio.run(check_redis, settings)
    assert result.outcome == "ok"
    assert "3 of 3 sentinels" in result.detail
    for server in steady.servers:
        assert f"127.0.0.1:{server.port}" in result.detail


def test_check_warns_of_a_sentinel_that_does_not_answer(steady: SentinelGroup) -> None:
    url = steady.url.replace("//", "//127.0.0.1:9,")
    result = anyio.run(check_redis, Settings(feed="simulator", redis_url=url))
    assert result.outcome == "warn"
    assert "3 of 4 sentinels" in result.detail
    assert "127.0.0.1:9" in result.detail


def test_check_fails_without_a_sentinel() -> None:
    settings = Settings(feed="simulator", redis_url=f"redis+sentinel://127.0.0.1:9/{SERVICE}")
    result = anyio.run(check_redis, settings)
    assert result.outcome == "FAIL"


# ---- sentinels that are of no use


def test_dead_sentinels_are_skipped_and_the_live_one_is_asked_first_then(
    steady: SentinelGroup,
) -> None:
    live = steady.sentinels[0].port
    url = f"redis+sentinel://127.0.0.1:9,localhost:9,127.0.0.1:{live}/{SERVICE}"

    async def body() -> None:
        locator = locator_of(url, timeout_s=3.0)
        assert isinstance(locator, SentinelLocator)
        connection = await RedisConnection.open(locator, "test")
        assert str(steady.primary.port) in connection.address
        connection.close()
        first = (await locator.ask_all())[0]
        assert first.primary == ("127.0.0.1", steady.primary.port)
        assert first.replicas == tuple(("127.0.0.1", one.port) for one in steady.replicas)

    run(body, "asyncio")


def test_a_sentinel_that_hangs_is_given_up(steady: SentinelGroup) -> None:
    hung, live = steady.sentinels[1:]
    url = f"redis+sentinel://127.0.0.1:{hung.port},127.0.0.1:{live.port}/{SERVICE}"

    async def body() -> None:
        store = RedisPriceStore(url, instance="one", timeout_s=patient(5.0))
        await store.connect()
        await store.aclose()

    hung.stop_answering()
    try:
        run(body, "trio")
    finally:
        hung.answer_again()


@pytest.mark.parametrize(
    ("ports", "service", "kind", "text"),
    [
        ("9", SERVICE, StoreUnavailable, "No sentinel .* can be asked"),
        ("{sentinel}", "other", StoreRefused, f"knows a service 'other'; they know {SERVICE}"),
        ("9,127.0.0.1:{sentinel}", "other", StoreUnavailable, "'other'.*Connection refused"),
        ("{server}", SERVICE, StoreRefused, "is it a sentinel"),
    ],
)
def test_an_error_says_what_the_sentinels_say(
    ports: str, service: str, kind: type[Exception], text: str, steady: SentinelGroup
) -> None:
    where = ports.format(sentinel=steady.sentinels[0].port, server=steady.primary.port)

    async def body() -> None:
        with pytest.raises(kind, match=text):
            async with mdservice.open_prices(
                f"redis+sentinel://127.0.0.1:{where}/{service}", connect_limit_s=3.0
            ):
                pass

    run(body, "trio")


def test_the_sentinels_have_a_login_of_their_own(steady: SentinelGroup) -> None:
    sentinel = steady.sentinels[2]
    url = f"redis+sentinel://127.0.0.1:{sentinel.port}/{SERVICE}"
    with sentinel.client() as client:
        client.execute_command(
            "ACL", "SETUSER", "spy", "on", ">s3cr3t", "allcommands", "allchannels"
        )
        client.execute_command("ACL", "SETUSER", "default", "off")

    async def body() -> None:
        with pytest.raises(StoreRefused, match="sentinel_password"):
            await RedisConnection.open(locator_of(url, timeout_s=3.0), "test")
        login = "?sentinel_username=spy&sentinel_password=s3cr3t"
        connection = await RedisConnection.open(locator_of(url + login, timeout_s=3.0), "test")
        assert str(steady.primary.port) in connection.address
        connection.close()

    try:
        run(body, "trio")
    finally:
        with sentinel.client(username="spy", password="s3cr3t") as client:
            client.execute_command("ACL", "SETUSER", "default", "on", "nopass")


def test_a_sentinel_that_names_a_replica_is_not_believed(steady: SentinelGroup) -> None:
    """Its view is old, as after a failover that it has missed."""
    (replica,) = steady.replicas
    port = steady.sentinels[0].port

    async def body() -> None:
        locator = locator_of(f"redis+sentinel://127.0.0.1:{port}/stale", timeout_s=3.0)
        with pytest.raises(StoreUnavailable, match="is no primary: it is a replica"):
            await RedisConnection.open(locator, "test")

    with steady.sentinels[0].client() as client:
        client.execute_command("SENTINEL", "MONITOR", "stale", "127.0.0.1", replica.port, 3)
        try:
            run(body, "trio")
        finally:
            client.execute_command("SENTINEL", "REMOVE", "stale")
