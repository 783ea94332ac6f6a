"""The service and its readers at a real Redis Cluster: slots move, nodes fail, nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import pytest

import mdservice
from mdservice.redis_io.names import EVENTS_TAG
from tests.cluster import ClusterNode, RealCluster, wait_for
from tests.integration.outages import LINES, Ear, open_line, run, until

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
                for ear in ears:
                    await line.stop(ear)
                for ear in ears:
                    line.check_complete(ear)
                with cluster.client() as client:
                    logged = client.xrange("log")
                    assert len(logged) == line.sent * len(line.symbols)
        assert [cluster.client().keys("mdservice:writer*")] == [[]]

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


def test_readers_get_nothing_twice_when_the_node_of_the_events_fails_over(
    failing: RealCluster, folder: Path
) -> None:
    symbols = one_symbol_each(failing)

    async def body() -> None:
        heard: list[mdservice.Quote] = []
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
