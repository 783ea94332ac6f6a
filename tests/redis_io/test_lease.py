"""What only the lease in Redis does: lost answers, rights, and the server's runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from mdservice.clock import SystemClock
from mdservice.errors import (
    ConfigurationError,
    Deposed,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)
from mdservice.publish.lease import this_process
from mdservice.publish.store import Message
from mdservice.redis_io.commands import pack
from mdservice.redis_io.connection import RedisAddress, RedisConnection
from mdservice.redis_io.lease import RedisLease
from mdservice.redis_io.names import RedisNames
from mdservice.redis_io.store import RedisPriceStore
from tests.batches import write_batch

pytestmark = pytest.mark.sockets

LIMIT_S = 60.0
TERM = "mdservice:group:{desk}:term"


def make(url: str, prefix: str = "") -> RedisLease:
    own = this_process(Path("/run/mdservice.sock"))
    return RedisLease(url, "desk", own, clock=SystemClock(), prefix=prefix, lease_s=600.0)


def store_of(lease: RedisLease, url: str) -> RedisPriceStore:
    return RedisPriceStore(url, instance="one", admit=lease.admit("store"))


async def test_a_store_registers_before_it_publishes_anything(valkey: Any) -> None:
    first, second = make(valkey.url), make(valkey.url)
    await first.claim()
    store = store_of(first, valkey.url)
    with valkey.client() as client:
        client.delete("mdservice:group:{desk}")
        await second.claim()
        with client.monitor() as monitor:
            with pytest.raises(Deposed):
                await store.connect()
            client2 = valkey.client()
            client2.echo("over")
            client2.close()
            seen = []
            for command in monitor.listen():
                if command["client_type"] != "lua":
                    seen.append(command["command"].split()[0].upper())
                if seen[-1:] == ["ECHO"]:
                    break
    assert not {"PUBLISH", "SET", "XADD"}.intersection(seen)
    for one in (first, second, store):
        await one.aclose()


async def test_the_next_claim_ends_what_a_claim_without_its_end_has_left(valkey: Any) -> None:
    """A new leader that dies between its claim and the end of the old connection."""
    first, dies, third = make(valkey.url), make(valkey.url), make(valkey.url)
    await first.claim()
    store = store_of(first, valkey.url)
    await store.connect()
    with valkey.client() as client:
        client.delete("mdservice:group:{desk}")

        async def dead(*_: object) -> None:
            raise StoreUnavailable("killed")

        dies._end = dead  # type: ignore[method-assign,assignment]
        with pytest.raises(StoreUnavailable):
            await dies.claim()
        client.delete("mdservice:group:{desk}")
        leader = await third.claim()
        assert leader is not None
        assert leader.epoch == 3
        with pytest.raises(StoreError):
            await store.write(write_batch(1, {}, [Message("price.updated", b"late", "AAPL")]))
        assert b'"writers":{}' in client.get(TERM)
    for one in (first, dies, third, store):
        await one.aclose()


async def test_a_claim_whose_answer_was_lost_is_claimed_again(valkey: Any) -> None:
    lease, other = make(valkey.url), make(valkey.url)

    async def lost(*_: object) -> None:
        raise StoreUnavailable("the connection broke")

    lease._end, end = lost, lease._end  # type: ignore[method-assign,assignment]
    with pytest.raises(StoreUnavailable):
        await lease.claim()
    with pytest.raises(Deposed):  # it has not begun its term
        await lease.renew()
    lease._end = end  # type: ignore[method-assign]
    assert await other.claim() is None
    assert await lease.look() is None
    leader = await lease.claim()
    assert leader is not None
    assert leader.epoch == 2
    await lease.aclose()
    await other.aclose()


class HeldConnection:
    """A connection whose network may hold what the lease sends, and deliver it later."""

    def __init__(self, connection: RedisConnection) -> None:
        self.connection = connection
        self.holds = False
        self.held: list[bytes] = []

    async def call(self, *commands: bytes) -> list[Any]:
        if self.holds:
            self.held += commands
            await anyio.sleep_forever()
        return await self.connection.call(*commands)

    def close(self) -> None:
        if not self.holds:
            self.connection.close()


async def test_what_the_network_held_does_not_undo_what_came_after_it(valkey: Any) -> None:
    connections: list[HeldConnection] = []

    async def connect(address: RedisAddress, name: str) -> Any:
        connections.append(HeldConnection(await RedisConnection.open(address, name)))
        return connections[-1]

    own = this_process(Path("/run/mdservice.sock"))
    lease = RedisLease(valkey.url, "desk", own, clock=SystemClock(), lease_s=600.0, connect=connect)
    await lease.claim()
    (held,) = connections
    held.holds = True
    with anyio.move_on_after(0.1):
        await lease.remember(b"AAPL")
    await lease.remember(b"AAPL,MSFT")
    with pytest.raises(StoreUnavailable):
        await held.connection.call(*held.held)
    assert await lease.recall() == b"AAPL,MSFT"
    held.connection.close()
    await lease.aclose()


async def test_connections_of_an_earlier_run_of_the_server_are_dead(fresh_valkey: Any) -> None:
    """Their ids may belong to other clients now."""
    lease = make(fresh_valkey.url)
    await lease.claim()
    with fresh_valkey.client() as client:
        client.set(TERM, '{"epoch":7,"holder":"x","writers":{"0123 1":1,"0123 2":1,"0123 3":1}}')
        client.delete("mdservice:group:{desk}")
        leader = await lease.claim()
        assert leader is not None
        assert leader.epoch == 8
        assert client.ping()
    await lease.aclose()


async def test_also_a_member_that_has_just_started_lets_the_leader_come_first(
    fresh_valkey: Any,
) -> None:
    """After a restart without data, a standby has brought the term, and the leader is not back."""
    leader, standby, starts = (make(fresh_valkey.url) for _ in range(3))
    await leader.claim()
    await standby.look()
    fresh_valkey.kill()
    fresh_valkey.start()
    with pytest.raises(StoreError):
        await standby.look()  # its connection is lost
    assert await standby.look() is None
    assert await starts.look() is None
    assert await starts.claim() is None
    for one in (leader, standby, starts):
        await one.aclose()


async def test_a_term_that_was_deleted_by_hand_is_written_again(valkey: Any) -> None:
    lease = make(valkey.url)
    await lease.claim()
    with valkey.client() as client:
        client.delete(TERM)
    await lease.renew()
    await lease.remember(b"AAPL")
    assert lease.own.epoch == 1
    await lease.aclose()


async def test_the_list_of_connections_stays_short(valkey: Any) -> None:
    lease = make(valkey.url)
    await lease.claim()
    store = store_of(lease, valkey.url)
    for _ in range(5):
        await store.connect()
    with valkey.client() as client:
        assert client.get(TERM).count(b" ") == 1
    await store.aclose()
    await lease.aclose()


@pytest.mark.parametrize("lacking", ["eval", "client", "info"])
async def test_a_missing_right_is_a_configuration_error(valkey: Any, lacking: str) -> None:
    rules = RedisNames().rights(group=True).split()
    with valkey.client() as client:
        client.execute_command("ACL", "SETUSER", "desk", "reset", "on", ">pw", *rules)
        client.execute_command("ACL", "SETUSER", "desk", f"-{lacking}")
        lease = make(valkey.url.replace("unix://", "unix://desk:pw@"))
        try:
            with pytest.raises(ConfigurationError, match="mdservice check"):
                await lease.look()
        finally:
            await lease.aclose()
            client.execute_command("ACL", "DELUSER", "desk")


async def test_the_rights_that_check_prints_are_enough(valkey: Any) -> None:
    names = RedisNames("desk1:")
    with valkey.client() as client:
        client.acl_log_reset()
        client.execute_command(
            "ACL", "SETUSER", "desk", "reset", "on", ">pw", *names.rights(group=True).split()
        )
        url = valkey.url.replace("unix://", "unix://desk:pw@")
        lease, second = make(url, "desk1:"), make(url, "desk1:")
        store = RedisPriceStore(url, instance="x", prefix="desk1:", admit=lease.admit("store"))
        assert await lease.look() is None
        await lease.claim()
        await store.connect()
        await lease.remember(b"AAPL")
        await lease.renew()
        await lease.release()
        assert await second.claim() is not None
        assert await second.recall() == b"AAPL"
        assert client.acl_log() == []
        keys = {key.decode() for key in client.keys("*") if b":group:" in key}
        assert all(key.startswith("desk1:mdservice:group:{desk}") for key in keys)
        for one in (lease, second, store):
            await one.aclose()
        client.execute_command("ACL", "DELUSER", "desk")


async def test_foreign_content_is_refused(valkey: Any) -> None:
    lease = make(valkey.url)
    with valkey.client() as client:
        client.set("mdservice:group:{desk}", "hello")
    with pytest.raises(StoreError, match="MDSERVICE_GROUP"):
        await lease.look()
    await lease.aclose()


async def test_calls_may_overlap(valkey: Any) -> None:
    lease = make(valkey.url)
    await lease.claim()
    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(lease.remember, b"%d" % number)
                tasks.start_soon(lease.renew)
    found = await lease.recall()
    assert found is not None
    assert 0 <= int(found) < 20
    await lease.aclose()


async def test_a_connection_is_not_registered_by_id_alone(fresh_valkey: Any) -> None:
    """After a restart of the server an id is another client's: the next claim leaves it alone."""
    lease, other = make(fresh_valkey.url), make(fresh_valkey.url)
    await lease.claim()
    address = RedisAddress(fresh_valkey.url, timeout_s=LIMIT_S)
    connection = await RedisConnection.open(address, "writer")
    await lease.admit("store")(connection)
    connection.close()
    fresh_valkey.kill()
    fresh_valkey.start()
    bystanders = [await RedisConnection.open(address, "bystander") for _ in range(20)]
    other._others = dict.fromkeys(lease._admitted.values(), 1)
    leader = await other.claim()
    assert leader is not None
    for one in bystanders:
        assert await one.call(pack(b"PING")) == [b"PONG"]
        one.close()
    await lease.aclose()
    await other.aclose()


@pytest.mark.parametrize(
    "inner",
    [
        "READONLY You can't write against a read only replica.",
        "OOM command not allowed when used memory > 'maxmemory'.",
        "NOREPLICAS Not enough good replicas to write.",
        "MISCONF Redis is configured to save RDB snapshots",
    ],
)
def test_the_error_of_a_command_in_a_script_of_an_older_server_is_its_own(inner: str) -> None:
    own = this_process(Path("/run/mdservice.sock"))
    lease = RedisLease("redis://server", "desk", own, clock=SystemClock())
    text = f"ERR Error running script (call to f_8b6f): @user_script:40: @user_script: 40: -{inner}"
    refused = lease._refused(text)
    assert inner.removesuffix(".") in str(refused)
    assert "foreign content" not in str(refused)


async def test_a_term_without_its_parts_is_foreign_content(valkey: Any) -> None:
    lease = make(valkey.url)
    for term in (b'{"epoch":1,"writers":{}}', b"7", b'{"epoch":"1","holder":"","writers":{}}'):
        with valkey.client() as client:
            client.set(TERM, term)
        with pytest.raises(StoreRefused, match="foreign content"):
            await lease.look()
    await lease.aclose()
