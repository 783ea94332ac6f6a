"""The slots of keys, the URLs of clusters, and one connection to all nodes of a real one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import ExitStack, closing
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from mdservice.errors import ConfigurationError, StoreRefused, StoreUnavailable
from mdservice.redis_io.cluster import ClusterConnection, slot_of
from mdservice.redis_io.commands import pack
from mdservice.redis_io.connection import RedisConnection
from mdservice.redis_io.locator import locator_of
from mdservice.redis_io.names import RedisNames
from tests.cluster import RealCluster
from tests.conftest import RealServer, free_port

pytestmark = pytest.mark.sockets

KEYS = [b"price:%d" % number for number in range(50)]


@given(st.text(alphabet="ab{}:", max_size=12) | st.text())
def test_slots_are_those_of_redis(key: str) -> None:
    encoded = key.encode()
    assert slot_of(encoded) == key_slot(encoded)


@pytest.mark.parametrize("prefix", ["", "desk1:", "{desk1}:"])
def test_what_one_transaction_changes_is_in_one_slot(prefix: str) -> None:
    names = RedisNames(prefix, clustered=True)
    keys = names.breaker_key, names.actions_key, names.actions_holder_key
    assert len({slot_of(key) for key in keys}) == 1
    for stream in (names.event_log("log"), names.event_log("log{1}"), names.event_log("news")):
        assert slot_of(names.stream_writer_key("id", stream)) == slot_of(stream)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis+cluster://a:7000,b", "redis+cluster://a:7000,b:6379"),
        ("redis+cluster://me:p%40%s%d@a:7000/0", "redis+cluster://a:7000"),
        ("rediss+cluster://:pw@[::1]:7000", "redis+cluster://[::1]:7000?ssl=true"),
        ("REDIS+CLUSTER://a/?ssl=true&ssl_cert_reqs=none", "redis+cluster://a:6379?ssl=true"),
    ],
)
def test_a_url_is_shown_without_its_login(url: str, shown: str) -> None:
    locator = locator_of(url, timeout_s=1)
    assert locator.shown == shown
    assert locator.clustered
    assert locator_of(shown, timeout_s=1).shown == shown


def test_the_login_is_that_of_every_node() -> None:
    locator: Any = locator_of("redis+cluster://me:p%40%s@a:1,b:2", timeout_s=1)
    options = locator.address_of(("c", 3)).options
    assert (options.username, options.password, options.host) == ("me", "p@%s", "c")
    assert locator.user == "me"


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://",
        "redis+cluster://a/1",
        "redis+cluster://a?db=2",
        "redis+cluster://a:x",
        "redis+cluster://me:hunter2@a?ssl=hunter2",
        "redis+cluster://me:hunter2@a?publish=hunter2",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        locator_of(url, timeout_s=1)
    assert "hunter2" not in str(refused.value)


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        with anyio.fail_after(60):
            await body()

    anyio.run(limited, backend="trio")


async def opened(cluster: RealCluster) -> ClusterConnection:
    connection = await RedisConnection.open(locator_of(cluster.url, timeout_s=5), "test")
    assert isinstance(connection, ClusterConnection)
    return connection


def test_commands_go_to_the_nodes_of_their_keys(cluster: RealCluster) -> None:
    async def body() -> None:
        with closing(await opened(cluster)) as connection:
            sets = [pack(b"SET", key, key) for key in KEYS]
            assert await connection.call(*sets) == [b"OK"] * len(KEYS)
            asked = [KEYS[3], b"none", KEYS[1], KEYS[3]]
            (found,) = await connection.call(pack(b"MGET", *asked))
            assert found == [KEYS[3], None, KEYS[1], KEYS[3]]
            replies = await connection.call(
                pack(b"ROLE"),
                pack(b"MULTI"),
                pack(b"SET", b"{x}1", b"1"),
                pack(b"GET", b"{x}1"),
                pack(b"EXEC"),
                pack(b"MGET", KEYS[0]),
            )
            assert replies[1:] == [b"OK", b"QUEUED", b"QUEUED", [b"OK", b"1"], [KEYS[0]]]
            (wrong,) = await connection.call(pack(b"MGET"))
            assert "wrong number" in str(wrong)

    run(body)


def test_a_scan_finds_the_keys_of_every_node_once(cluster: RealCluster) -> None:
    async def body() -> None:
        with closing(await opened(cluster)) as connection:
            await connection.call(*(pack(b"SET", key, b"1") for key in KEYS))
            found, cursor = list[bytes](), b"0"
            while True:
                scan = pack(b"SCAN", cursor, b"MATCH", b"price:*", b"COUNT", b"7")
                ((cursor, keys),) = await connection.call(scan)
                found += keys
                if cursor == b"0":
                    break
            assert sorted(found) == sorted(KEYS)

    run(body)


def test_a_watched_key_guards_its_transaction(cluster: RealCluster) -> None:
    async def body() -> None:
        change = pack(b"MULTI"), pack(b"SET", b"watched", b"mine"), pack(b"EXEC")
        with closing(await opened(cluster)) as connection, closing(await opened(cluster)) as other:
            await connection.call(pack(b"WATCH", b"watched"), pack(b"GET", b"watched"))
            await other.call(pack(b"SET", b"watched", b"theirs"))
            assert (await connection.call(*change))[-1] is None
            await connection.call(pack(b"WATCH", b"watched"))
            await other.call(pack(b"SET", b"watched", b"theirs"))
            await connection.call(pack(b"UNWATCH"))
            assert (await connection.call(*change))[-1] == [b"OK"]

    run(body)


def test_a_slot_that_moves_is_followed_but_not_with_a_watched_key(cluster: RealCluster) -> None:
    home = cluster.owner("moving")
    target = next(node for node in cluster.primaries if node is not home)

    async def body() -> None:
        get = pack(b"GET", b"moving")
        with (
            closing(await opened(cluster)) as connection,
            closing(await opened(cluster)) as watcher,
        ):
            await connection.call(pack(b"SET", b"moving", b"1"))
            await watcher.call(pack(b"WATCH", b"moving"))
            cluster.begin_to_move("moving", target)
            cluster.move_keys("moving", target)
            assert await connection.call(get) == [b"1"]
            assert await connection.call(pack(b"SET", b"moving", b"2"), get) == [b"OK", b"2"]
            cluster.move("moving", target)
            assert await connection.call(get) == [b"2"]
            with pytest.raises(StoreRefused) as caught:
                await watcher.call(pack(b"MULTI"), pack(b"SET", b"moving", b"3"), pack(b"EXEC"))
            assert caught.value.reconnect
            assert await connection.call(get) == [b"2"]

    try:
        run(body)
    finally:
        cluster.move("moving", home)


def test_a_server_that_is_no_cluster_is_named() -> None:
    with ExitStack() as stack:
        port = free_port(stack)
        server = RealServer("--port", str(port), "--bind", "127.0.0.1")
        stack.callback(server.close)
        server.start()

        async def body() -> None:
            address = locator_of(f"redis+cluster://127.0.0.1:{port}", timeout_s=5)
            with pytest.raises(StoreRefused, match="redis://"):
                await RedisConnection.open(address, "x")

        run(body)


def test_without_any_node_there_is_no_connection() -> None:
    async def body() -> None:
        address = locator_of("redis+cluster://127.0.0.1:9", timeout_s=1)
        with pytest.raises(StoreUnavailable):
            await RedisConnection.open(address, "x")

    run(body)
