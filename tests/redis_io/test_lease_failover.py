"""The lease over a failover: a replica takes the primary's place, with or without the last claim.

Two servers replicate; the members' way leads to the one or the other, as sentinels' answers do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from mdservice.clock import SystemClock
from mdservice.errors import Deposed, StoreError, StoreUnavailable
from mdservice.publish.lease import Leader, this_process
from mdservice.redis_io.commands import pack
from mdservice.redis_io.connection import RedisAddress, RedisConnection
from mdservice.redis_io.lease import RedisLease
from mdservice.redis_io.store import RedisPriceStore
from tests.batches import write_batch
from tests.conftest import free_port
from tests.integration.network import Network
from tests.integration.sentinels import Server, wait_until

pytestmark = pytest.mark.sockets

LIMIT_S = 120.0
LEASE_S = 600.0  # no lease ends by itself, and no wait: a test ends it
LEASE = "mdservice:group:{desk}"
TERM = "mdservice:group:{desk}:term"


class Pair:
    """Two servers, and a way that leads to one of them."""

    def __init__(self, folder: Path) -> None:
        self._ports = ExitStack()
        options = ["--bind", "127.0.0.1", "--save", "", "--repl-diskless-sync-delay", "0"]
        options += ["--loglevel", "warning"]
        ports = [free_port(self._ports), free_port(self._ports)]
        self.first, self.second = (
            Server(port, folder, *options, "--port", str(port), "--dbfilename", f"{port}.rdb")
            for port in ports
        )
        self.first.start()
        self.second.start()
        self._way = Network(self.first.port)
        self.url = f"redis://127.0.0.1:{self._way.port}"
        self.leases: list[RedisLease] = []
        self.follow(self.second, self.first)

    def follow(self, replica: Server, primary: Server) -> None:
        with replica.client() as client:
            client.execute_command("REPLICAOF", "127.0.0.1", str(primary.port))
        wait_until(lambda: replica.role[0] == b"slave" and replica.role[3] == b"connected")

    def in_step(self) -> None:
        """Wait until the second server has all of the first one."""
        with self.first.client() as client:
            assert client.execute_command("WAIT", "1", "60000") == 1

    def part(self) -> None:
        """The second server gets nothing more, and is a primary from now on."""
        with self.second.client() as client:
            client.replicaof("NO", "ONE")

    def lead_to(self, server: Server) -> None:
        self._way.lead_to(server.port)
        self._way.reset()

    def member(self, url: str = "", *, lease_s: float = LEASE_S) -> RedisLease:
        own = this_process(Path("/run/mdservice.sock"))
        lease = RedisLease(url or self.url, "desk", own, clock=SystemClock(), lease_s=lease_s)
        self.leases.append(lease)
        return lease

    async def aclose(self) -> None:
        for lease in self.leases:
            await lease.aclose()
        self._way.close()
        self.first.kill()
        self.second.kill()
        self._ports.close()


@asynccontextmanager
async def pair_of(folder: Path) -> AsyncIterator[Pair]:
    pair = Pair(folder)
    try:
        with anyio.fail_after(LIMIT_S):
            yield pair
    finally:
        await pair.aclose()


async def settled(call: Callable[[], Awaitable[Any]]) -> Any:
    """The result, once it is neither without a connection nor waits for others."""
    while True:
        try:
            return await call()
        except Deposed:
            raise
        except StoreError:
            await anyio.sleep(0.02)


async def claimed(lease: RedisLease) -> Leader:
    """The new leader, as a standby claims."""

    async def look_and_claim() -> Leader | None:
        return None if await lease.look() is not None else await lease.claim()

    while (leader := await settled(look_and_claim)) is None:
        await anyio.sleep(0.02)
    assert isinstance(leader, Leader)
    return leader


async def comes_and_waits(lease: RedisLease) -> None:
    """Let a leader reach the server of now long after its last renewal: it waits there."""
    lease._held_until_s = 0.0
    while True:
        try:
            await lease.renew()
        except StoreUnavailable as exc:
            if "may lack a claim" in str(exc):
                return
            await anyio.sleep(0.02)


def waited(lease: RedisLease) -> None:
    lease._wait_until_s = 0.0


async def test_a_leader_goes_on_with_its_epoch_at_the_new_primary(tmp_path: Path) -> None:
    async with pair_of(tmp_path) as pair:
        leader, standby = pair.member(), pair.member()
        await leader.claim()
        await standby.look()
        pair.in_step()
        pair.part()
        pair.lead_to(pair.second)
        assert await settled(standby.look) == leader.own
        assert await standby.claim() is None
        await settled(leader.renew)
        assert leader.own.epoch == 1


async def test_a_lease_lasts_no_longer_where_the_clock_of_the_new_primary_is_behind(
    tmp_path: Path,
) -> None:
    """The end of a key is replicated as a time, which is then still far away."""
    async with pair_of(tmp_path) as pair:
        leader, standby = pair.member(), pair.member(lease_s=0.3)
        await leader.claim()  # with a lease that does not end within this test
        await standby.look()
        pair.in_step()
        pair.part()
        pair.lead_to(pair.second)
        assert (await claimed(standby)).epoch == 2


async def test_a_lost_claim_is_claimed_again_with_a_higher_epoch_and_the_others_are_ended(
    tmp_path: Path,
) -> None:
    async with pair_of(tmp_path) as pair:
        first, second = pair.member(), pair.member()
        await first.claim()
        pair.in_step()
        pair.part()
        with pair.first.client() as client:
            client.delete(LEASE)
        assert (await claimed(second)).epoch == 2
        # The new primary knows of the first leader only, which connects to it.
        old = await RedisConnection.open(
            RedisAddress(pair.second.url, timeout_s=LIMIT_S), "old-writer"
        )
        with pair.second.client() as client:
            run_id = client.info("server")["run_id"]
            client_id = (await old.call(pack(b"CLIENT", b"ID")))[0]
            term = client.get(TERM).replace(b"{}", b'{"%s %d":1}' % (run_id.encode(), client_id))
            client.set(TERM, term)
        pair.lead_to(pair.second)
        await settled(second.renew)
        assert second.own.epoch == 3
        with pytest.raises(StoreUnavailable):
            await old.call(pack(b"PING"))
        old.close()
        with pytest.raises(Deposed):
            await settled(first.renew)
        assert await first.look() == second.own


async def both_lead(pair: Pair) -> tuple[RedisLease, RedisLease]:
    """Two leaders: the old one at the new primary, and its successor at the old primary alone."""
    old, new = pair.member(), pair.member()
    await old.claim()
    pair.in_step()
    pair.part()
    with pair.first.client() as client:
        client.delete(LEASE)
    assert (await claimed(new)).epoch == 2
    pair.lead_to(pair.second)
    await settled(old.renew)  # the new primary does not know of the other one
    return old, new


async def test_who_leads_at_the_new_primary_keeps_the_lead_with_a_higher_epoch(
    tmp_path: Path,
) -> None:
    async with pair_of(tmp_path) as pair:
        old, new = await both_lead(pair)
        with pytest.raises(Deposed):
            await settled(new.renew)
        leader = await new.look()
        assert leader is not None
        assert (leader.id, leader.epoch) == (old.own.id, 3)
        await old.renew()
        assert old.own.epoch == 3
        store = RedisPriceStore(pair.url, instance="one", admit=old.admit("store"))
        await store.connect()
        await store.aclose()


async def test_a_leader_does_not_go_on_where_another_has_led_meanwhile(tmp_path: Path) -> None:
    """It does not know what the other one has published."""
    async with pair_of(tmp_path) as pair:
        old, new = await both_lead(pair)
        with pair.second.client() as client:
            client.delete(LEASE)
        for one in (new, old):
            with pytest.raises(Deposed):
                await settled(one.renew)
        waited(new)
        assert (await claimed(new)).epoch == 3
        await new.renew()


async def test_what_programs_want_is_stored_only_where_the_term_goes_on(tmp_path: Path) -> None:
    async with pair_of(tmp_path) as pair:
        leader = pair.member()
        await leader.claim()
        await leader.remember(b"AAPL")
        pair.in_step()
        pair.part()
        pair.lead_to(pair.second)
        with pytest.raises(StoreUnavailable):
            await leader.remember(b"MSFT")  # its connection is lost
        with pytest.raises(StoreUnavailable, match="claimed again first"):
            await leader.remember(b"MSFT")
        assert await leader.recall() == b"AAPL"
        await leader.renew()
        await leader.remember(b"MSFT")
        assert await leader.recall() == b"MSFT"


@pytest.mark.parametrize("first_there", ["old", "new"])
async def test_a_leader_that_another_has_followed_leads_nowhere_else(
    first_there: str, tmp_path: Path
) -> None:
    """The new primary takes the old leader for the present one: the claim of its successor is lost.

    Both leases have ended, so neither is sure that no other has claimed.
    """
    async with pair_of(tmp_path) as pair:
        old, new = pair.member(), pair.member()
        await old.claim()
        pair.in_step()
        pair.part()
        with pair.first.client() as client:
            client.delete(LEASE)
        assert (await claimed(new)).epoch == 2
        pair.lead_to(pair.second)
        for one in (old, new) if first_there == "old" else (new,):
            await comes_and_waits(one)
        waited(old)
        waited(new)
        with pytest.raises(Deposed):
            await settled(old.renew)
        await settled(new.renew)
        assert new.own.epoch == 3


async def test_a_claim_is_above_what_any_member_knows(tmp_path: Path) -> None:
    async with pair_of(tmp_path) as pair:
        one, knows, fresh = (pair.member() for _ in range(3))
        await one.claim()
        pair.in_step()
        pair.part()
        with pair.first.client() as client:
            for _ in range(5):
                client.delete(LEASE)
                await claimed(one)
        await knows.look()
        await one.aclose()
        with pair.second.client() as client:
            client.delete(LEASE)
        pair.lead_to(pair.second)
        # It has seen nothing yet. It sees a term of another server, and waits.
        assert await settled(fresh.look) is None
        assert await fresh.claim() is None
        await settled(knows.look)
        waited(fresh)
        assert (await claimed(fresh)).epoch == 7


@pytest.mark.parametrize("has_ended", [False, True])
async def test_of_two_terms_of_one_epoch_at_most_that_of_this_server_stays(
    has_ended: bool, tmp_path: Path
) -> None:
    async with pair_of(tmp_path) as pair:
        first = pair.member()
        second = pair.member(url=pair.second.url)
        await first.claim()
        pair.in_step()
        pair.part()
        for server in (pair.first, pair.second):
            with server.client() as client:
                client.delete(LEASE)
        await first.renew()
        await second.claim()
        assert first.own.epoch == second.own.epoch == 2
        if has_ended:
            with pair.second.client() as client:
                client.delete(LEASE)
        pair.lead_to(pair.second)
        with pytest.raises(Deposed):
            await settled(first.renew)
        if has_ended:
            with pytest.raises(Deposed):
                await second.renew()
            assert (await claimed(second)).epoch == 4
        else:
            await second.renew()
            assert second.own.epoch == 3


async def test_a_store_writes_only_where_the_term_goes_on(tmp_path: Path) -> None:
    async with pair_of(tmp_path) as pair:
        first, second = pair.member(), pair.member(url=pair.second.url)
        await first.claim()
        pair.in_step()
        pair.part()
        with pair.second.client() as client:
            client.delete(LEASE)
        assert await second.claim() is not None
        store = RedisPriceStore(pair.second.url, instance="one", admit=first.admit("store"))
        with pytest.raises(StoreUnavailable, match="another server"):
            await store.connect()  # the lease's way leads to the first server
        pair.lead_to(pair.second)
        with pytest.raises(Deposed):
            await settled(store.connect)
        await store.aclose()


async def test_a_store_that_comes_first_continues_the_term(tmp_path: Path) -> None:
    async with pair_of(tmp_path) as pair:
        lease = pair.member()
        await lease.claim()
        store = RedisPriceStore(pair.url, instance="one", admit=lease.admit("store"))
        await store.connect()
        pair.in_step()
        pair.part()
        pair.lead_to(pair.second)
        await settled(store.connect)
        with pair.second.client() as client:
            assert client.info("server")["run_id"].encode() in client.get(TERM)
        await store.aclose()


async def test_a_connection_to_the_old_primary_is_ended_when_it_is_the_primary_again(
    tmp_path: Path,
) -> None:
    """An old leader hangs while the primary moves away and back."""
    async with pair_of(tmp_path) as pair:
        first, second = pair.member(), pair.member()
        await first.claim()
        store = RedisPriceStore(pair.first.url, instance="one", admit=first.admit("store"))
        await store.connect()
        await second.look()
        pair.in_step()
        pair.part()
        with pair.second.client() as client:
            client.delete(LEASE)
        pair.lead_to(pair.second)
        await settled(second.look)
        waited(second)
        assert (await claimed(second)).epoch == 2
        pair.follow(pair.first, pair.second)
        with pair.first.client() as client:
            client.replicaof("NO", "ONE")
        pair.lead_to(pair.first)
        await settled(second.renew)
        with pytest.raises(StoreError):
            await store.write(write_batch(1, {}, []))
        await store.aclose()


async def test_a_demoted_server_is_left(tmp_path: Path) -> None:
    async with pair_of(tmp_path) as pair:
        lease = pair.member()
        await lease.claim()
        pair.in_step()
        pair.part()
        pair.follow(pair.first, pair.second)
        with pytest.raises(StoreError, match="READONLY"):
            await lease.renew()
        pair._way.lead_to(pair.second.port)  # it leads new connections only
        await settled(lease.renew)


async def test_a_primary_without_its_replicas_renews_no_lease_if_it_is_set_so(
    tmp_path: Path,
) -> None:
    """So a leader steps down that is cut off together with the old primary."""
    async with pair_of(tmp_path) as pair:
        lease = pair.member()
        with pair.first.client() as client:
            client.config_set("min-replicas-to-write", 1)
        await lease.claim()
        await lease.renew()
        pair.part()
        with pair.first.client() as client:
            wait_until(lambda: client.info("replication")["connected_slaves"] == 0)
        with pytest.raises(StoreError, match="NOREPLICAS"):
            await lease.renew()
