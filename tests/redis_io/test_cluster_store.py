"""What the store in a cluster does where only a part of it fails."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import anyio
import attrs
import pytest

from mdservice.errors import ConfigurationError, StoreRefused, StoreUnavailable
from mdservice.model.kinds import QUOTES
from mdservice.publish.store import Message, PartedStore, PriceStore, WriteBatch
from mdservice.redis_io.cluster_store import open_price_store
from mdservice.redis_io.names import EVENTS_TAG, RedisNames
from tests.batches import write_batch
from tests.cluster import ClusterNode, RealCluster

pytestmark = pytest.mark.sockets

SYMBOLS = [f"S{number}" for number in range(12)]


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        with anyio.fail_after(60):
            await body()

    anyio.run(limited, backend="trio")


def batch(number: int) -> WriteBatch:
    """One event of each symbol, which says the batch's number."""
    values = {symbol: b'{"symbol":"%b","seq":%d}' % (symbol.encode(), number) for symbol in SYMBOLS}
    messages = [Message(QUOTES.event, payload, symbol) for symbol, payload in values.items()]
    return write_batch(number, values, messages)


@contextmanager
def refusing(node: ClusterNode) -> Iterator[None]:
    """The node takes no writes."""
    node.ask("CONFIG", "SET", "min-replicas-to-write", "1")
    try:
        yield
    finally:
        node.ask("CONFIG", "SET", "min-replicas-to-write", "0")


def test_what_one_shard_refused_is_published_once_and_the_others_not_again(
    cluster: RealCluster,
) -> None:
    names = RedisNames(clustered=True, sharded=True)
    heard: list[tuple[bytes, bytes]] = []

    async def body() -> None:
        with ExitStack() as stack:
            ears = []
            for node in cluster.primaries:
                ear = stack.enter_context(node.client().pubsub())
                for _, _, channel in names.subscriptions(QUOTES):
                    if cluster.owner(channel.decode()) is node:
                        ear.ssubscribe(channel)
                ears.append(ear)
            store = open_price_store(f"{cluster.url}?publish=sharded", instance="one")
            await store.connect()
            await store.write(batch(1))
            values = attrs.evolve(batch(2), latest={})
            with refusing(cluster.primaries[1]), pytest.raises(StoreRefused):
                await store.write(values)
            await store.write(values)
            await store.connect()
            assert await store.last_batch() == 2
            await store.aclose()
            for ear in ears:
                while (message := ear.get_sharded_message(timeout=0.5)) is not None:
                    if message["type"] == "smessage":
                        heard.append((message["channel"], message["data"]))

    run(body)
    assert len(heard) == len(set(heard)) == 2 * len(SYMBOLS)


def test_only_the_symbols_of_the_server_that_was_replaced_count_as_lost(
    cluster: RealCluster,
) -> None:
    gone = next(node for node in cluster.primaries if node is not cluster.owner(EVENTS_TAG))
    theirs = {symbol for symbol in SYMBOLS if cluster.owner(f"price:{symbol}") is gone}
    assert 0 < len(theirs) < len(SYMBOLS)

    async def body() -> None:
        store: Any = open_price_store(cluster.url, instance="one")
        assert isinstance(store, PartedStore)
        await store.connect()
        await store.write(batch(1))
        await store.connect()
        assert store.take_lost() is None
        gone.kill()
        with pytest.raises((StoreUnavailable, StoreRefused)):
            await store.write(batch(2))
        cluster.restart()
        await store.connect()
        assert await store.last_batch() == 1, "its keys are in doubt"
        lost = store.take_lost()
        assert lost is not None
        assert {symbol for symbol in SYMBOLS if lost(QUOTES, symbol)} == theirs
        assert store.take_lost() is None
        await store.write(batch(2))
        assert await store.last_batch() == 2
        assert len(await store.read_latest(QUOTES, SYMBOLS)) == len(SYMBOLS)
        await store.aclose()

    run(body)


def test_a_group_is_refused(cluster: RealCluster) -> None:
    async def admit(_connection: Any) -> None: ...

    with pytest.raises(ConfigurationError, match="MDSERVICE_GROUP"):
        open_price_store(cluster.url, instance="one", admit=admit)


def test_forgetting_leaves_nothing_of_the_writer(cluster: RealCluster) -> None:
    async def body() -> None:
        store: PriceStore = open_price_store(cluster.url, instance="one", event_log="log")
        await store.connect()
        await store.write(batch(1))
        await store.forget()  # type: ignore[attr-defined]
        await store.aclose()
        left = [key for node in cluster.primaries for key in node.ask("KEYS", "mdservice:*")]
        assert left == []

    run(body)
