"""The faults of the store in memory; what it shares with Redis is in the contract suite."""

from __future__ import annotations

import anyio
import pytest
import trio
from trio.testing import MockClock

from mdservice.errors import StoreRefused, StoreUnavailable
from mdservice.publish.store import Message, WriteBatch
from mdservice.testing import MemoryPriceStore, Slow, StoreFault, VirtualClock
from tests.batches import write_batch


def batch(number: int) -> WriteBatch:
    payload = b"%d" % number
    return write_batch(number, {"A": payload}, [Message("price.updated", payload, "A")])


async def connected() -> MemoryPriceStore:
    store = MemoryPriceStore(clock=VirtualClock(), price_ttl_s=300, event_log="log")
    await store.connect()
    return store


async def test_a_refused_connect_takes_one_fault_from_the_script() -> None:
    store = MemoryPriceStore()
    store.script.extend([StoreFault.REFUSE_CONNECT, StoreFault.REFUSE_CONNECT])
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await store.connect()
    await store.connect()
    assert store.connects == 1


async def test_a_lost_request_was_not_executed() -> None:
    store = await connected()
    store.script.append(StoreFault.LOSE_REQUEST)
    with pytest.raises(StoreUnavailable):
        await store.write(batch(1))
    assert not store.connected
    await store.connect()
    assert await store.last_batch() == 0
    assert store.published == {}


async def test_a_lost_reply_was_executed() -> None:
    store = await connected()
    store.script.append(StoreFault.LOSE_REPLY)
    with pytest.raises(StoreUnavailable):
        await store.write(batch(1))
    await store.connect()
    assert await store.last_batch() == 1
    assert store.published == {"price.updated": [b"1"]}


async def test_a_delayed_request_arrives_before_the_next_connect() -> None:
    store = await connected()
    store.script.append(StoreFault.DELAY_REQUEST)
    with pytest.raises(StoreUnavailable):
        await store.write(batch(1))
    assert store.price("A") is None
    assert store.deliver() == 1
    assert store.deliver() == 0
    await store.connect()
    assert await store.last_batch() == 1


async def test_a_delayed_request_is_fenced_by_connect() -> None:
    store = await connected()
    store.script.append(StoreFault.DELAY_REQUEST)
    with pytest.raises(StoreUnavailable):
        await store.write(batch(1))
    await store.connect()
    assert store.deliver() == 0
    assert await store.last_batch() == 0
    await store.write(batch(1))
    assert [done.number for done in store.executed] == [1]


async def test_a_delayed_request_is_lost_with_the_server() -> None:
    store = await connected()
    store.script.append(StoreFault.DELAY_REQUEST)
    with pytest.raises(StoreUnavailable):
        await store.write(batch(1))
    store.restart()
    assert store.deliver() == 0
    await store.connect()
    assert await store.last_batch() == 0


async def test_a_refused_write_keeps_the_connection() -> None:
    store = await connected()
    store.script.append(StoreFault.REFUSE_WRITE)
    with pytest.raises(StoreRefused):
        await store.write(batch(1))
    await store.write(batch(1))
    assert [done.number for done in store.executed] == [1]


async def test_a_full_server_refuses_until_it_has_room() -> None:
    store = await connected()
    store.refusal = "OOM command not allowed when used memory > 'maxmemory'."
    for call in (store.ping(), store.write(batch(1))):
        with pytest.raises(StoreRefused, match="maxmemory"):
            await call
    store.refusal = None
    await store.ping()
    await store.write(batch(1))
    assert store.price("A") == b"1"


async def test_a_server_that_goes_down_loses_the_connection() -> None:
    store = await connected()
    store.down = True
    with pytest.raises(StoreUnavailable):
        await store.write(batch(1))
    with pytest.raises(StoreUnavailable):
        await store.connect()
    store.down = False
    with pytest.raises(StoreUnavailable, match="connect"):
        await store.ping()
    await store.connect()
    await store.ping()
    assert store.executed == []


async def test_restart_forgets_keys_and_stream_and_keeps_the_record() -> None:
    store = await connected()
    await store.write(batch(1))
    store.restart()
    assert store.price("A") is None
    assert not store.entries
    assert store.published == {"price.updated": [b"1"]}
    with pytest.raises(StoreUnavailable):
        await store.last_batch()
    await store.connect()
    assert await store.last_batch() == 0


async def test_a_slow_write_takes_its_time_and_succeeds(autojump_clock: MockClock) -> None:
    store = await connected()
    store.script.append(Slow(40.0))
    before = trio.current_time()
    await store.write(batch(1))
    assert trio.current_time() - before == pytest.approx(40.0)
    assert store.price("A") == b"1"


async def test_prices_expire_by_the_clock(autojump_clock: MockClock) -> None:
    store = await connected()
    await store.write(batch(1))
    await trio.sleep(299.9)
    assert store.price("A") == b"1"
    await trio.sleep(0.2)
    assert store.price("A") is None
    assert await store.last_batch() == 1


async def test_the_script_waits_for_the_call_it_is_for() -> None:
    store = await connected()
    store.script.extend([StoreFault.REFUSE_CONNECT, StoreFault.LOSE_REPLY])
    await store.write(batch(1))
    with pytest.raises(StoreUnavailable):
        await store.connect()
    await store.connect()
    with pytest.raises(StoreUnavailable):
        await store.write(batch(2))
    assert [done.number for done in store.executed] == [1, 2]


def test_every_call_gives_way_to_other_tasks_and_can_be_cancelled() -> None:
    async def main() -> None:
        store = await connected()
        calls = (store.last_batch, store.ping, lambda: store.write(batch(1)), store.connect)
        for call in calls:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await call()
            assert scope.cancelled_caught
            assert not store.connected
            await store.connect()
        assert store.executed == []

    for loop in ("trio", "asyncio"):
        anyio.run(main, backend=loop)


async def test_the_virtual_clock_follows_the_loop_and_can_be_set(
    autojump_clock: MockClock,
) -> None:
    clock = VirtualClock(start_ns=1_000_000_000)
    await trio.sleep(1.5)
    assert clock.monotonic() == pytest.approx(1.5)
    assert clock.utc_ns() == 2_500_000_000
    clock.step(-2.0)
    assert clock.utc_ns() == 500_000_000
    assert clock.monotonic() == pytest.approx(1.5)
