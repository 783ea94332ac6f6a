"""What a leader does that was stopped, or away from Redis, where the server has then lost its data.

On virtual time, with the real client and the server of the simulation, and with the lease in memory:
both pass ``tests/contracts/test_lease.py``.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from mdservice.errors import Deposed, StoreError
from mdservice.publish.lease import LEASE_S, Lease, this_process
from mdservice.testing import MemoryLease, VirtualClock
from tests.contracts.test_lease import Backend, MemoryBackend, SimulatedBackend


class VirtualBackend(MemoryBackend):
    def make(self, *, lease_s: float = LEASE_S) -> Lease:
        own = this_process(Path("/run/mdservice.sock"))
        return MemoryLease(self.group, own, clock=VirtualClock(), lease_s=lease_s)


BACKENDS = pytest.mark.parametrize("make", [SimulatedBackend, VirtualBackend])
PAST_THE_LEASE_S = LEASE_S + 1


class Group:
    """A server with two members, of which the first leads."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.first = backend.make(lease_s=LEASE_S)
        self.second = backend.make(lease_s=LEASE_S)

    def cut(self, *, off: bool) -> None:
        """Cut the way to the server, or join it again."""
        if isinstance(self.backend, SimulatedBackend):
            self.backend.way.cut(silent=False) if off else self.backend.way.open()
        else:
            assert isinstance(self.backend, MemoryBackend)
            self.backend.group.down = off

    async def led_meanwhile(self) -> None:
        """The second member claims the lease that has ended, and then dies."""
        assert await claimed(self.second) == 2


async def renews(lease: Lease, for_s: float) -> None:
    """Renew the lease as a leader that runs, also while that fails."""
    until_s = anyio.current_time() + for_s
    while anyio.current_time() < until_s:
        try:
            await lease.renew()
        except Deposed:
            raise
        except StoreError:
            await anyio.sleep(0.2)
        else:
            await anyio.sleep(1)


async def claimed(lease: Lease) -> int:
    """Claim until it succeeds; the epoch."""
    with anyio.fail_after(10 * LEASE_S):
        while True:
            try:
                if (leader := await lease.claim()) is not None:
                    return leader.epoch
            except Deposed:
                raise
            except StoreError:
                pass
            await anyio.sleep(0.1)


@BACKENDS
async def test_stopped_past_its_lease_it_claims_a_new_term(make: Any, autojump_clock: Any) -> None:
    group = Group(make())
    await group.first.claim()
    await renews(group.first, 2)
    await anyio.sleep(PAST_THE_LEASE_S)
    group.backend.lose_everything()
    with pytest.raises(Deposed, match="stopped"):
        await renews(group.first, 5)
    assert await claimed(group.first) == 2


@BACKENDS
async def test_so_it_does_where_another_has_led_meanwhile(make: Any, autojump_clock: Any) -> None:
    group = Group(make())
    await group.first.claim()
    await anyio.sleep(PAST_THE_LEASE_S)
    await group.led_meanwhile()
    group.backend.lose_everything()
    with pytest.raises(Deposed):
        await renews(group.first, 5)


@BACKENDS
async def test_so_it_does_if_the_lease_ended_during_a_shorter_stop(
    make: Any, autojump_clock: Any
) -> None:
    group = Group(make())
    await group.first.claim()
    group.cut(off=True)
    await renews(group.first, LEASE_S - 0.5)
    await anyio.sleep(LEASE_S - 0.5)
    group.cut(off=False)
    await group.led_meanwhile()
    group.backend.lose_everything()
    with pytest.raises(Deposed):
        await renews(group.first, 5)


@BACKENDS
async def test_renewed_since_at_the_same_server_it_goes_on(make: Any, autojump_clock: Any) -> None:
    group = Group(make())
    await group.first.claim()
    await anyio.sleep(PAST_THE_LEASE_S)
    await renews(group.first, 5)
    group.backend.lose_everything()
    await renews(group.first, 5)
    assert group.first.own.epoch == 3


@BACKENDS
async def test_stopped_while_it_held_the_lease_it_goes_on(make: Any, autojump_clock: Any) -> None:
    group = Group(make())
    await group.first.claim()
    await anyio.sleep(LEASE_S - 0.5)
    group.backend.lose_everything()
    await renews(group.first, 5)
    assert group.first.own.epoch == 2


@BACKENDS
async def test_away_from_redis_and_awake_it_goes_on(make: Any, autojump_clock: Any) -> None:
    group = Group(make())
    await group.first.claim()
    group.cut(off=True)
    await renews(group.first, 10 * LEASE_S)
    group.backend.lose_everything()
    group.cut(off=False)
    await renews(group.first, 5)
    assert group.first.own.epoch == 2


@BACKENDS
async def test_a_standby_that_was_stopped_as_a_leader_lets_the_leader_come_first(
    make: Any, autojump_clock: Any
) -> None:
    group = Group(make())
    first, second = group.first, group.second
    await first.claim()
    await anyio.sleep(PAST_THE_LEASE_S)
    await second.look()
    assert await claimed(second) == 2
    with pytest.raises(Deposed):
        await first.renew()
    for _ in range(5):
        await first.look()
        await renews(second, 1)
    group.backend.lose_everything()
    for claim in (first.look, first.claim, first.claim):
        with suppress(StoreError):  # its connection was lost
            assert await claim() is None
    await renews(second, 5)
