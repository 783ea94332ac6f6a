"""The service and its readers at a real Redis Cluster: slots move, nodes fail, nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, closing
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import attrs
import pytest
import redis

import mdservice
from mdservice.app.service import open_service
from mdservice.client.discovery import GivenServer
from mdservice.errors import StoreRefused
from mdservice.gateway.redis_calls import RedisCalls
from mdservice.model.kinds import QUOTES
from mdservice.pnl.breaker import Breaker
from mdservice.redis_io.names import EVENTS_TAG, RedisNames
from tests.cluster import ClusterNode, RealCluster, wait_for
from tests.integration.outages import LINES, Ear, open_line, run, until
from tests.records import make_record

EVENTS_PLACE, OTHER_PLACE, LAST_PLACE = 2, 0, 1
"""Which primary has the slot of the events, and the other two."""
each_line = pytest.mark.parametrize(("driver", "backend"), LINES)


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="cl-") as name:  # short: it holds a socket
        yield Path(name)


def events_node(cluster: RealCluster) -> ClusterNode:
    return cluster.owner(EVENTS_TAG)


def symbol_at(cluster: RealCluster, node: ClusterNode) -> str:
    """A symbol whose price is at this node."""
    names = (f"{a}{b}" for a in "ABCDEFGH" for b in "ABCDEFGH")
    return next(name for name in names if cluster.owner(f"price:{name}") is node)


def one_symbol_each(cluster: RealCluster) -> str:
    return ",".join(symbol_at(cluster, node) for node in cluster.primaries)


@each_line
def test_plain_programs_at_every_node_read_and_hear_everything(
    driver: str, backend: str, cluster: RealCluster, folder: Path
) -> None:
    symbols = one_symbol_each(cluster)

    async def body() -> None:
        with ExitStack() as stack:
            ears = [stack.enter_context(closing(Ear(node.path))) for node in cluster.primaries]
            async with open_line(cluster, folder, driver, symbols, event_log="log") as line:
                await line.more()
                line.going = False
                for ear in ears:
                    await until(
                        lambda ear=ear: all(ear.last_seq(s) == line.sent for s in line.symbols)
                    )
                await until(lambda: line.service.status().redis.backlog == 0)
                for ear in ears:
                    line.check_complete(ear)
                with cluster.client() as client:
                    logged = client.xrange("log")
                    assert len(logged) == line.sent * len(line.symbols)
        with cluster.client() as client:
            assert client.keys("mdservice:writer*") == []

    run(body, backend)


@each_line
def test_slots_that_move_while_quotes_flow_lose_nothing(
    driver: str, backend: str, cluster: RealCluster, folder: Path
) -> None:
    symbols = one_symbol_each(cluster)
    keys = [*(f"price:{symbol}" for symbol in symbols.split(",")), EVENTS_TAG, "log"]
    homes = {key: cluster.owner(key) for key in keys}

    async def move(key: str, target: ClusterNode) -> None:
        await anyio.to_thread.run_sync(cluster.move, key, target)

    async def body() -> None:
        with closing(Ear(events_node(cluster).path)) as ear:
            async with open_line(cluster, folder, driver, symbols, event_log="log") as line:
                for key, home in homes.items():
                    await line.more(10)
                    target = next(node for node in cluster.primaries if node is not home)
                    await anyio.to_thread.run_sync(cluster.begin_to_move, key, target)
                    await line.more(10)
                    await anyio.to_thread.run_sync(cluster.move_keys, key, target)
                    await line.more(10)
                    await move(key, target)
                    await line.more(10)
                await line.ready()
                await line.stop(ear)
                line.check_complete(ear)
                with cluster.client() as client:
                    assert client.xlen("log") == line.sent * len(line.symbols)

    try:
        run(body, backend)
    finally:
        for key, home in homes.items():
            if cluster.owner(key) is not home:
                cluster.move(key, home)


@pytest.fixture
def failing() -> Iterator[RealCluster]:
    """A cluster of this test's own. Two primaries have a replica: one has the events."""
    cluster = RealCluster(replicas=(EVENTS_PLACE, OTHER_PLACE), timeout_ms=1_000)
    try:
        cluster.start()
        assert cluster.primaries.index(events_node(cluster)) == EVENTS_PLACE
        yield cluster
    finally:
        cluster.close()


async def killed(cluster: RealCluster, node: ClusterNode, key: str) -> None:
    """Kill a primary, and wait until its replica serves the key."""
    node.kill()
    await anyio.to_thread.run_sync(
        wait_for, lambda: cluster.owner(key) is not node, "the replica takes over"
    )


def test_a_part_that_fails_over_loses_nothing_and_a_part_that_is_gone_is_reported(
    failing: RealCluster, folder: Path
) -> None:
    """A node of keys alone: its replica takes over. One without a replica: the cluster is down."""
    other, last = failing.primaries[OTHER_PLACE], failing.primaries[LAST_PLACE]
    symbols = one_symbol_each(failing)

    async def body() -> None:
        heard: list[mdservice.Quote] = []
        with closing(Ear(events_node(failing).path)) as ear:
            async with (
                open_line(failing, folder, "websockets", symbols, every_s=0.02) as line,
                mdservice.open_prices(failing.url, symbols.split(",")) as prices,
                anyio.create_task_group() as tasks,
            ):

                async def read() -> None:
                    async for quote in prices:
                        heard.append(quote)

                tasks.start_soon(read)
                await line.more(20)
                await killed(failing, other, f"price:{symbols.split(',')[OTHER_PLACE]}")
                await line.ready()
                await line.more(20)

                last.kill()
                await line.not_ready(because="CLUSTERDOWN")
                assert "start the failed node" in str(line.service.status().redis.last_error)
                await line.more_accepted(20)
                await anyio.to_thread.run_sync(last.start)
                await line.ready()
                await line.more(20)
                await line.stop(ear)
                line.check_complete(ear)
                for symbol in line.symbols:
                    await until(
                        lambda symbol=symbol: any(
                            (quote.symbol, quote.seq) == (symbol, line.sent) for quote in heard
                        )
                    )
                tasks.cancel_scope.cancel()
            for symbol in line.symbols:
                numbers = [quote.seq for quote in heard if quote.symbol == symbol]
                assert numbers == list(range(numbers[0], line.sent + 1))
            assert prices.status().missed == 0

    run(body, "trio")


@pytest.mark.parametrize("publish", ["all", "sharded"])
def test_readers_get_nothing_twice_when_a_node_of_events_fails_over(
    failing: RealCluster, folder: Path, publish: str
) -> None:
    symbols = one_symbol_each(failing)
    url = f"{failing.url}?publish={publish}"

    async def body() -> None:
        heard: list[mdservice.Quote] = []
        async with (
            open_line(failing, folder, "websockets", symbols, every_s=0.02, redis_url=url) as line,
            mdservice.open_prices(url, symbols.split(",")) as prices,
            anyio.create_task_group() as tasks,
        ):

            async def read() -> None:
                async for quote in prices:
                    heard.append(quote)

            tasks.start_soon(read)
            await line.more(20)
            await killed(failing, events_node(failing), EVENTS_TAG)
            await line.ready()
            await line.more(20)
            line.going = False
            for symbol in line.symbols:
                await until(
                    lambda symbol=symbol: any(
                        (quote.symbol, quote.seq) == (symbol, line.sent) for quote in heard
                    )
                )
            tasks.cancel_scope.cancel()
        total = 0
        for symbol in line.symbols:
            numbers = [quote.seq for quote in heard if quote.symbol == symbol]
            assert numbers == sorted(set(numbers))
            total += line.sent - numbers[0] + 1 - len(numbers)
            with failing.client() as client:
                assert b'"seq":%d' % line.sent in client.get(f"price:{symbol}").replace(b" ", b"")
        assert prices.status().missed == total

    run(body, "asyncio")


def test_every_kind_of_reader_and_two_services_at_one_cluster(
    cluster: RealCluster, folder: Path
) -> None:
    symbols = one_symbol_each(cluster)
    first = symbols.split(",")[0]

    async def body() -> None:
        async with open_line(cluster, folder, "websockets", symbols, event_log="log") as line:
            await line.written()
            async with mdservice.open_prices(cluster.url, event_log="log", after="0") as logged:
                async for quote in logged:
                    if (quote.symbol, quote.seq) == (first, 30):
                        break
                assert logged.status().missed == 0
            async with mdservice.open_stream(cluster.url, [first], ["quotes"]) as records:
                numbers = []
                async for record in records:
                    numbers.append(record.seq)
                    if len(numbers) == 30:
                        break
                assert numbers == list(range(numbers[0], numbers[0] + 30))
                assert records.status().missed == 0
            settings = attrs.evolve(line.service.settings, socket=folder / "other")
            async with open_service(settings) as other:
                for service in (line.service, other):
                    await until(lambda one=service: "another" in "; ".join(one.status().reasons))

    run(body, "trio")


def test_a_gateway_keeps_its_breaker_in_the_cluster(cluster: RealCluster) -> None:
    tripped = Breaker("tripped", "A qty > 1", "A", Decimal(2), "2026-11-20T15:51:44Z")
    symbols = one_symbol_each(cluster).split(",")

    async def body() -> None:
        calls, others = RedisCalls(GivenServer(cluster.url)), RedisCalls(GivenServer(cluster.url))
        with cluster.client() as client:
            for symbol in symbols:
                quote = make_record(QUOTES, symbol, 1)
                client.set(f"price:{symbol}", QUOTES.encode(quote))
        found = await calls.prices([*symbols, "NONE"])
        assert [None if quote is None else quote.symbol for quote in found] == [*symbols, None]
        changed = await calls.change_breaker(lambda _: tripped, lambda _: b"sell all")
        assert changed == (tripped, True)
        assert await others.breaker() == tripped
        assert await others.actions() == b"sell all"
        assert await calls.hold_actions()
        assert not await others.hold_actions()
        await calls.keep_day_start("account", b"{}")
        assert await others.day_start("account") == b"{}"
        with cluster.client() as client:
            assert json.loads(client.get("risk:breaker"))["state"] == "tripped"
        calls.close()
        others.close()

    run(body, "asyncio")


@pytest.mark.parametrize("sharded", [False, True])
def test_a_user_with_the_printed_rights_suffices_and_its_password_stays_secret(
    sharded: bool, cluster: RealCluster, stage: Any
) -> None:
    names = RedisNames("d:", clustered=True, sharded=sharded)
    rights = names.rights("log")
    query = "?publish=sharded" if sharded else ""
    url = cluster.url_with("desk:hunter2@") + query
    read_url = cluster.url_with("reader:hunter2@") + query
    tripped = Breaker("tripped", at="2026-11-20T15:51:44Z")

    async def read() -> None:
        async with (
            mdservice.open_prices(read_url, prefix="d:") as prices,
            mdservice.open_stream(read_url, ["AAPL", "MSFT"], ["quotes"], prefix="d:") as records,
        ):
            simulator.quotes(("AAPL", 10, 11))
            assert (await anext(prices)).symbol == (await anext(records)).symbol == "AAPL"
        calls = RedisCalls(GivenServer(url, "d:"))
        changed = await calls.change_breaker(lambda _: tripped, lambda _: b"sell all")
        assert changed == (tripped, True)
        assert await calls.hold_actions()
        calls.close()

    simulator = stage.simulator()
    env = {"MDSERVICE_KEY_PREFIX": "d:", "MDSERVICE_EVENT_LOG": "log"}

    def check(expected: int) -> str:
        program = stage.program("check", **stage.account(simulator, url, **env))
        assert program.code() == expected, program.said
        return str(program.stdout + program.stderr)

    try:
        for node in cluster.primaries:
            for user, line in (("desk", rights), ("reader", names.rights(reader=True))):
                node.ask("ACL", "SETUSER", user, "reset", "on", ">hunter2", *line.split())
            node.ask("ACL", "LOG", "RESET")
        output = check(0)
        cluster.primaries[1].ask("ACL", "SETUSER", "desk", "-xadd")
        refused = check(1)
        assert f"ACL SETUSER desk {rights}" in refused
        cluster.primaries[1].ask("ACL", "SETUSER", "desk", "+xadd")
        service = stage.service(simulator, url, MDSERVICE_SYMBOLS="AAPL,MSFT,SPY", **env)
        service.wait_answers()
        stage.eventually(lambda: service.status()["redis"]["connected"])
        status = json.dumps(service.status(), default=str)
        stage.eventually(lambda: "AAPL" in simulator.subscribed())
        for node in cluster.primaries:
            node.ask("ACL", "LOG", "RESET")  # the refused XADD
        run(read, "trio")
        service.end()
        for node in cluster.primaries:
            assert node.ask("ACL", "LOG") == []
            with node.client(username="desk", password="hunter2") as client:
                for words in (
                    ("CLIENT", "PAUSE", 1),
                    ("CLUSTER", "RESET"),
                    ("CLUSTER", "FAILOVER"),
                ):
                    with pytest.raises(redis.exceptions.NoPermissionError):
                        client.execute_command(*words)
        for text in (output, refused, status, service.stdout, service.stderr):
            assert "hunter2" not in text
        assert cluster.url in status
    finally:
        for node in cluster.primaries:
            node.ask("ACL", "DELUSER", "desk", "reader")


def test_sharded_events_reach_those_who_subscribe_to_their_shard(
    cluster: RealCluster, folder: Path
) -> None:
    url = f"{cluster.url}?publish=sharded"
    symbols = [chr(letter) * 2 for letter in range(ord("A"), ord("A") + 12)]
    names = RedisNames(clustered=True, sharded=True)
    channel = names.channel("price.updated", names.shard_of("AA")).decode()
    home = cluster.owner(channel)
    target = next(node for node in cluster.primaries if node is not home)
    heard: list[mdservice.Quote] = []

    async def body() -> None:
        with ExitStack() as stack:
            plain = stack.enter_context(home.client(protocol=2).pubsub())
            plain.ssubscribe(channel)
            states = stack.enter_context(home.client().pubsub())
            states.subscribe("feed.status")
            async with (
                open_line(
                    cluster, folder, "websockets", ",".join(symbols), redis_url=url, event_log="log"
                ) as line,
                mdservice.open_prices(url) as prices,
                mdservice.open_stream(url, ["AA", "BB"], ["quotes"]) as records,
                anyio.create_task_group() as tasks,
            ):

                async def read(source: Any) -> None:
                    async for quote in source:
                        heard.append(quote)

                tasks.start_soon(read, prices)
                with pytest.raises(StoreRefused, match="publish=sharded"):
                    async with mdservice.open_prices(cluster.url):
                        pass
                some = []
                async for record in records:
                    some.append((record.symbol, record.seq))
                    if len(some) >= 40:
                        break
                for symbol in ("AA", "BB"):
                    numbers = [seq for name, seq in some if name == symbol]
                    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
                assert records.status().missed == prices.status().missed == 0
                assert plain.get_sharded_message(timeout=20)["type"] == "ssubscribe"
                first = plain.get_sharded_message(timeout=20)
                assert json.loads(first["data"])["symbol"] in symbols
                kinds = [states.get_message(timeout=20)["type"] for _ in range(2)]
                assert kinds == ["subscribe", "message"]

                await anyio.to_thread.run_sync(cluster.move, channel, target)
                await line.more(20)
                line.going = False
                await line.all_accepted()
                await until(lambda: {q.symbol for q in heard if q.seq == line.sent} == set(symbols))
                await until(lambda: line.service.status().redis.backlog == 0)
                tasks.cancel_scope.cancel()
            gone = 0
            for symbol in symbols:
                numbers = [quote.seq for quote in heard if quote.symbol == symbol]
                assert numbers == sorted(set(numbers))
                gone += line.sent - numbers[0] + 1 - len(numbers)
            assert prices.status().missed == gone
            with cluster.client() as client:
                assert client.xlen("log") == line.sent * len(symbols)

    try:
        run(body, "trio")
    finally:
        if cluster.owner(channel) is target:
            cluster.move(channel, home)
