"""What every lease of a group does, on both event loops; the Redis one against a real Valkey."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import anyio
import pytest

from mdservice.clock import SystemClock
from mdservice.errors import Deposed, StoreError, StoreUnavailable
from mdservice.publish.lease import Leader, Lease, this_process
from mdservice.redis_io.commands import pack
from mdservice.redis_io.connection import RedisAddress, RedisConnection
from mdservice.redis_io.lease import RedisLease
from mdservice.testing import MemoryGroup, MemoryLease, VirtualClock
from tests.simulation.redis_server import SimulatedRedis, Way

LIMIT_S = 60.0
LEASE_S = 600.0  # no lease ends by itself: a test ends it


class Backend(Protocol):
    """Leases of one group, and what is behind them."""

    def make(self, *, lease_s: float = ...) -> Lease: ...
    async def register(self, lease: Lease, writer: str = ...) -> Callable[[], Awaitable[bool]]:
        """Register a connection; the result asks whether it can still write."""
        ...

    def expire(self) -> None: ...
    def lose_everything(self) -> None: ...
    async def aclose(self) -> None: ...


class MemoryBackend:
    def __init__(self) -> None:
        self.group = MemoryGroup()

    def make(self, *, lease_s: float = LEASE_S) -> Lease:
        own = this_process(Path("/run/mdservice.sock"))
        return MemoryLease(self.group, own, clock=SystemClock(), lease_s=lease_s)

    async def register(self, lease: Lease, writer: str = "store") -> Callable[[], Awaitable[bool]]:
        assert isinstance(lease, MemoryLease)
        ended: list[bool] = []
        await lease.admit(writer, lambda: ended.append(True))

        async def can_write() -> bool:
            return not ended

        return can_write

    def expire(self) -> None:
        self.group.expire()

    def lose_everything(self) -> None:
        self.group.restart()

    async def aclose(self) -> None:
        pass


class RedisBackend:
    def __init__(self, server: Any) -> None:
        self.server = server
        self.leases: list[RedisLease] = []
        self.connections: list[RedisConnection] = []

    def make(self, *, lease_s: float = LEASE_S) -> RedisLease:
        own = this_process(Path("/run/mdservice.sock"))
        lease = RedisLease(self.server.url, "desk", own, clock=SystemClock(), lease_s=lease_s)
        self.leases.append(lease)
        return lease

    async def register(self, lease: Lease, writer: str = "store") -> Callable[[], Awaitable[bool]]:
        assert isinstance(lease, RedisLease)
        address = RedisAddress(self.server.url, timeout_s=LIMIT_S)
        connection = await RedisConnection.open(address, "test-writer")
        self.connections.append(connection)
        await lease.admit(writer)(connection)

        async def can_write() -> bool:
            try:
                await connection.call(pack(b"SET", b"price:AAPL", b"1"))
            except StoreUnavailable:
                return False
            return True

        return can_write

    def expire(self) -> None:
        with self.server.client() as client:
            assert client.delete("mdservice:group:{desk}") == 1

    def lose_everything(self) -> None:
        self.server.kill()
        self.server.start()

    async def aclose(self) -> None:
        for one in (*self.leases, *self.connections):
            one.close() if isinstance(one, RedisConnection) else await one.aclose()


class SimulatedBackend:
    """The real client, with the server of the simulation."""

    def __init__(self) -> None:
        self.server = SimulatedRedis(VirtualClock(), None, random.Random(1))
        self.way = Way()

    async def connect(self, _address: RedisAddress, _name: str) -> Any:
        return await self.server.connect_client(self.way)

    def make(self, *, lease_s: float = LEASE_S) -> RedisLease:
        own = this_process(Path("/run/mdservice.sock"))
        return RedisLease(
            "redis://redis.desk:6379",
            "desk",
            own,
            clock=SystemClock(),
            lease_s=lease_s,
            connect=self.connect,
        )

    async def register(self, lease: Lease, writer: str = "store") -> Callable[[], Awaitable[bool]]:
        assert isinstance(lease, RedisLease)
        connection = await self.server.connect_client(self.way)
        await lease.admit(writer)(connection)  # type: ignore[arg-type]  # it only calls it

        async def can_write() -> bool:
            try:
                await connection.ask(lambda: self.server.put("price:AAPL", b"1"))
            except StoreUnavailable:
                return False
            return True

        return can_write

    def expire(self) -> None:
        self.server.forget_lease()

    def lose_everything(self) -> None:
        self.server.restart()

    async def aclose(self) -> None:
        pass


@pytest.fixture(params=["memory", "simulated", "redis"])
def make_group(request: pytest.FixtureRequest) -> Callable[[], Backend]:
    if request.param == "memory":
        return MemoryBackend
    if request.param == "simulated":
        return SimulatedBackend
    server = request.getfixturevalue("valkey")
    return lambda: RedisBackend(server)


@pytest.fixture(params=["memory", "simulated", "redis"])
def make_losing(request: pytest.FixtureRequest) -> Callable[[], Backend]:
    """Leases of a server that can be killed, without persistence."""
    if request.param == "memory":
        return MemoryBackend
    if request.param == "simulated":
        return SimulatedBackend
    server = request.getfixturevalue("fresh_valkey")
    return lambda: RedisBackend(server)


async def _run(test: Callable[[Backend], Awaitable[None]], make: Callable[[], Backend]) -> None:
    with anyio.fail_after(LIMIT_S):
        group = make()
        try:
            await test(group)
        finally:
            await group.aclose()


def on_both_loops(test: Callable[[Backend], Awaitable[None]]) -> Callable[..., None]:
    @pytest.mark.parametrize("loop", ["trio", "asyncio"])
    def run(make_group: Callable[[], Backend], loop: str) -> None:
        anyio.run(_run, test, make_group, backend=loop)

    run.__name__ = test.__name__
    return run


def on_both_loops_losing(test: Callable[[Backend], Awaitable[None]]) -> Callable[..., None]:
    @pytest.mark.parametrize("loop", ["trio", "asyncio"])
    def run(make_losing: Callable[[], Backend], loop: str) -> None:
        anyio.run(_run, test, make_losing, backend=loop)

    run.__name__ = test.__name__
    return run


async def settled(call: Callable[[], Awaitable[Any]]) -> Any:
    """The result, once the lease has connected again."""
    while True:
        try:
            return await call()
        except Deposed:
            raise
        except StoreError:
            await anyio.sleep(0.01)


@on_both_loops
async def test_one_leads_and_the_other_sees_it(group: Backend) -> None:
    first, second = group.make(), group.make()
    assert await first.look() is None
    leader = await first.claim()
    assert leader == first.own
    assert leader is not None
    assert (leader.epoch, leader.pid > 0, leader.since[-1]) == (1, True, "Z")
    assert await second.look() == leader
    assert await second.claim() is None
    assert await first.look() is None  # it is its own


@on_both_loops
async def test_another_leads_with_a_higher_epoch_once_the_lease_has_ended(group: Backend) -> None:
    first, second = group.make(), group.make()
    await first.claim()
    group.expire()
    leader = await second.claim()
    assert leader is not None
    assert leader.epoch == 2
    with pytest.raises(Deposed):
        await first.renew()
    assert await first.look() == leader


@on_both_loops
async def test_a_lease_ends_by_itself_unless_it_is_renewed(group: Backend) -> None:
    first, second = group.make(lease_s=0.3), group.make(lease_s=0.3)
    await first.claim()
    while await second.claim() is None:
        await anyio.sleep(0.02)
    with pytest.raises(Deposed):
        await first.renew()


@on_both_loops
async def test_a_lapsed_lease_that_no_other_claimed_is_claimed_again(group: Backend) -> None:
    first, second = group.make(), group.make()
    await first.claim()
    can_write = await group.register(first)
    group.expire()
    await first.renew()
    assert first.own.epoch == 2
    assert await second.claim() is None
    assert await can_write()
    await group.register(first, "another")


@on_both_loops
async def test_the_leader_learns_whether_a_standby_is_alive(group: Backend) -> None:
    first, second = group.make(), group.make()
    await first.look()
    await first.claim()
    assert not await first.renew()
    await second.look()
    assert await first.renew()


@on_both_loops
async def test_release_frees_the_lease_at_once_and_no_other_one(group: Backend) -> None:
    first, second = group.make(), group.make()
    await first.claim()
    await second.release()
    assert await second.claim() is None
    await first.release()
    leader = await second.claim()
    assert leader is not None
    assert leader.epoch == 2
    await first.release()
    assert await first.look() == leader


@on_both_loops
async def test_no_connection_of_an_earlier_leader_writes_after_a_claim(group: Backend) -> None:
    first, second = group.make(), group.make()
    await first.claim()
    writers = [await group.register(first, name) for name in ("store", "instances")]
    assert all([await can_write() for can_write in writers])
    group.expire()
    await second.claim()
    assert not any([await can_write() for can_write in writers])


@on_both_loops
async def test_a_deposed_leader_cannot_register_a_connection(group: Backend) -> None:
    first, second = group.make(), group.make()
    await first.claim()
    group.expire()
    await second.claim()
    with pytest.raises(Deposed):
        await group.register(first)
    with pytest.raises(Deposed):
        await first.remember(b"AAPL")
    with pytest.raises(Deposed):
        await first.renew()
    assert await (await group.register(second))()


@on_both_loops
async def test_a_standby_cannot_register_a_connection(group: Backend) -> None:
    first = group.make()
    await first.look()
    with pytest.raises(Deposed):
        await group.register(first)


@on_both_loops
async def test_a_writer_has_one_connection(group: Backend) -> None:
    lease = group.make()
    await lease.claim()
    before = await group.register(lease)
    other = await group.register(lease, "instances")
    now = await group.register(lease)
    assert [await before(), await other(), await now()] == [False, True, True]


@on_both_loops
async def test_a_leader_leads_again_in_a_new_term(group: Backend) -> None:
    first, second = group.make(), group.make()
    await first.claim()
    old = await group.register(first)
    group.expire()
    await second.claim()
    group.expire()
    leader = await first.claim()
    assert leader is not None
    assert leader.epoch == 3
    assert not await old()
    assert await (await group.register(first))()


@on_both_loops
async def test_wishes_outlive_the_leader(group: Backend) -> None:
    first, second = group.make(), group.make()
    assert await second.recall() is None
    await first.claim()
    await first.remember(b"AAPL")
    group.expire()
    await second.claim()
    assert await second.recall() == b"AAPL"


@on_both_loops_losing
async def test_the_epoch_grows_although_the_server_has_lost_it(losing: Backend) -> None:
    first, second = losing.make(lease_s=0.3), losing.make(lease_s=0.3)
    await first.claim()
    await second.look()
    losing.lose_everything()

    async def claimed() -> Leader:
        while (leader := await second.claim()) is None:
            await anyio.sleep(0.02)
        return leader

    assert (await settled(claimed)).epoch == 2
    with pytest.raises(Deposed):
        await settled(first.renew)


@on_both_loops_losing
async def test_the_leader_is_first_after_the_server_has_lost_the_lease(losing: Backend) -> None:
    first, second = losing.make(), losing.make()
    await first.claim()
    assert await second.look() is not None
    losing.lose_everything()
    assert await settled(second.look) is None
    assert await settled(second.claim) is None  # the leader may still come back
    await settled(first.renew)
    assert first.own.epoch == 2
    assert await second.look() == first.own
    assert await (await losing.register(first))()


@on_both_loops
async def test_a_leader_that_was_stopped_goes_on_where_the_server_still_knows_it(
    group: Backend,
) -> None:
    first = group.make(lease_s=0.3)
    await first.claim()
    await anyio.sleep(0.4)  # no call: it is stopped past the end of its lease
    await first.renew()
    assert first.own.epoch == 2
    assert await (await group.register(first))()


@on_both_loops_losing
async def test_a_leader_that_was_stopped_does_not_go_on_where_nothing_is_known(
    losing: Backend,
) -> None:
    """Another may have led meanwhile, of which neither the server nor any member knows."""
    first = losing.make(lease_s=0.3)
    await first.claim()
    await anyio.sleep(0.4)
    losing.lose_everything()
    with pytest.raises(Deposed, match="stopped"):
        await settled(first.renew)

    async def claimed() -> Leader:
        while (leader := await first.claim()) is None:
            await anyio.sleep(0.02)
        return leader

    assert (await settled(claimed)).epoch == 2
    await first.renew()
