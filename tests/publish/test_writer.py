"""The writer: every batch executed once and in order, whatever the store does to it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from typing import Any

import anyio
import anyio.abc
import msgspec
import pytest

from mdservice.model.events import RecordBatch, RoutedItem
from mdservice.model.kinds import CANCELS, DAILY_BARS, KINDS, NEWS, QUOTES, TRADES, Kind
from mdservice.model.quote import Quote
from mdservice.publish.publisher import EventPublisher
from mdservice.publish.store import Events, Message, WriteBatch
from mdservice.publish.writer import RedisWriter
from mdservice.runtime.actor import Channel
from mdservice.testing import MemoryPriceStore, Slow, StoreFault, VirtualClock
from tests.batches import write_batch
from tests.examples import first
from tests.records import make_record

RETURN_LIMIT_S = 1.0
"""On the store's return everything has to be there within this."""


class Bench:
    """A running writer in front of a store in memory.

    Attributes:
        acknowledged: The numbers that it has acknowledged, in order.
    """

    def __init__(self, tasks: anyio.abc.TaskGroup) -> None:
        self.clock = VirtualClock()
        self.store = MemoryPriceStore(clock=self.clock, event_log="events")
        self.batches = Channel[WriteBatch](1)
        self.answers = Channel[int](1)
        self.writer = RedisWriter(self.batches, self.answers.outbox, self.store, self.clock)
        self.acknowledged: list[int] = []
        self._answers = self.answers.inbox(self.writer.heartbeat, "the test")
        self._numbers = count(1)
        self._tasks = tasks
        self._scope = anyio.CancelScope()
        self.ended = anyio.Event()

    async def start(self) -> None:
        self._scope, self.ended = anyio.CancelScope(), anyio.Event()
        await self._tasks.start(self._run)

    async def _run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        with self._scope:
            await self.writer.run(task_status=task_status)
        self.ended.set()

    async def cancel(self) -> None:
        self._scope.cancel()
        await self.ended.wait()

    async def restart(self) -> None:
        await self.cancel()
        await self.start()

    def next_batch(self, *symbols: str) -> WriteBatch:
        number = next(self._numbers)
        payload = b'{"n":%d}' % number
        names = symbols or ("AAPL",)
        messages = [Message("price.updated", payload, name) for name in names]
        return write_batch(number, dict.fromkeys(names, payload), messages)

    async def hand_in(self, *symbols: str) -> WriteBatch:
        """Hand a batch in, and wait for nothing."""
        batch = self.next_batch(*symbols)
        await self.batches.outbox.send(batch)
        return batch

    async def answer(self) -> int:
        number = await self._answers.receive()
        self.writer.heartbeat.rest("the test")
        self.acknowledged.append(number)
        return number

    async def write(self, batches: int = 1, symbols: Sequence[str] = ()) -> None:
        """Hand batches in, each after the acknowledgement of the one before."""
        for _ in range(batches):
            batch = await self.hand_in(*symbols)
            while await self.answer() != batch.number:
                pass

    @property
    def executed(self) -> list[int]:
        return [
            batch.number for batch in self.store.executed if not batch.ages_s and not batch.restored
        ]

    @property
    def reminders(self) -> list[WriteBatch]:
        return [batch for batch in self.store.executed if batch.ages_s]


MakeBench = Callable[..., AbstractAsyncContextManager[Bench]]


@pytest.fixture
def open_bench() -> MakeBench:
    @asynccontextmanager
    async def opened(*, down: bool = False) -> AsyncIterator[Bench]:
        with anyio.fail_after(1_000):
            async with anyio.create_task_group() as tasks:
                bench = Bench(tasks)
                bench.store.down = down
                await bench.start()
                try:
                    yield bench
                finally:
                    tasks.cancel_scope.cancel()
                    bench.batches.close()
                    bench.answers.close()

    return opened


# ---- a store that works


async def test_writes_and_acknowledges_in_order(autojump_clock: Any, open_bench: MakeBench) -> None:
    async with open_bench() as bench:
        await bench.write(10)
        assert bench.executed == bench.acknowledged == list(range(1, 11))
        assert bench.store.price("AAPL") == b'{"n":10}'
        now = bench.writer.snapshot()
        assert (now.connected, now.address, now.last_error) == (True, "memory://", None)
        assert now.reconnects == 0


async def test_acknowledges_only_what_is_written(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        bench.store.script.append(Slow(2.0))
        started_s = anyio.current_time()
        await bench.write()
        assert anyio.current_time() - started_s == pytest.approx(2.0)
        times = bench.writer.snapshot().write_times
        assert (times.counts[1.0], times.counts[2.0]) == (0, 1)
        assert times.sum_s == pytest.approx(2.0)


async def test_closes_the_store_once_the_inbox_has_ended(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.write(3)
        await bench.hand_in()
        bench.batches.outbox.close()
        await bench.ended.wait()
        assert bench.executed == [1, 2, 3, 4]
        assert not bench.store.connected
        assert not bench.writer.snapshot().connected


async def test_heartbeat_goes_on_in_every_condition(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:

        async def idle(seconds: float) -> None:
            for _ in range(int(seconds / 0.25)):
                await anyio.sleep(0.25)
                assert bench.writer.heartbeat.age_s() <= 1.1

        await idle(20)
        await bench.hand_in()
        bench.store.down = True
        await idle(40)
        await bench.hand_in()
        await idle(40)
        bench.store.down = False
        await bench.answer()


# ---- faults of one write


@pytest.mark.parametrize(
    "fault",
    [
        StoreFault.LOSE_REQUEST,
        StoreFault.LOSE_REPLY,
        StoreFault.DELAY_REQUEST,
        StoreFault.REFUSE_WRITE,
    ],
)
async def test_each_batch_is_executed_once_whatever_is_lost(
    autojump_clock: Any, open_bench: MakeBench, fault: StoreFault
) -> None:
    async with open_bench() as bench:
        await bench.write(2)
        bench.store.script.extend([fault, fault, fault])
        started_s = anyio.current_time()
        await bench.write(5)
        assert bench.store.deliver() == 0, "what was on its way has been fenced off"
        assert bench.executed == bench.acknowledged == [1, 2, 3, 4, 5, 6, 7]
        assert anyio.current_time() - started_s <= RETURN_LIMIT_S
        assert bench.store.published["price.updated"] == [b'{"n":%d}' % n for n in range(1, 8)]
        assert [symbol for symbol, _ in bench.store.entries] == ["AAPL"] * 7


async def test_lost_reply_costs_a_connection_and_no_second_write(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        bench.store.script.append(StoreFault.LOSE_REPLY)
        await bench.write()
        assert bench.store.connects == 2
        assert bench.writer.snapshot().reconnects == 1
        await bench.write()
        assert bench.executed == [1, 2]
        assert bench.writer.snapshot().last_error is None


async def test_refused_write_keeps_the_connection_and_is_tried_again(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        bench.store.refusal = "OOM command not allowed when used memory > 'maxmemory'."
        await bench.hand_in()
        await anyio.sleep(2.5)
        now = bench.writer.snapshot()
        assert now.connected
        assert "OOM" in str(now.last_error)
        assert now.refusal == "OOM"
        assert now.write_times.sum_s == 0, "of writes that were executed"
        assert bench.executed == bench.acknowledged == []
        bench.store.refusal = None
        returned_s = anyio.current_time()
        await bench.answer()
        assert anyio.current_time() - returned_s <= RETURN_LIMIT_S
        assert bench.executed == [1]
        assert bench.store.connects == 1
        assert bench.writer.snapshot().last_error is None
        assert bench.writer.snapshot().refusal is None


class Address:
    """Two servers behind one address: those connected to the first one stay there."""

    def __init__(self, bench: Bench, refusal: str) -> None:
        self.store = bench.store
        self._refusal = refusal
        self._connect = bench.store.connect
        self._connects_before = bench.store.connects

    async def connect(self) -> None:
        await self._connect()
        if self.store.connects > self._connects_before:
            self.store.refusal = None

    def demote(self) -> None:
        self.store.refusal = self._refusal
        self.store.connect = self.connect  # type: ignore[method-assign]


_ABORTED = "EXECABORT Transaction discarded because of: "


@pytest.mark.parametrize(
    ("refusal", "within_s"),
    [
        ("READONLY You can't write against a read only replica.", 0.5),
        (f"{_ABORTED}READONLY You can't write against a read only replica.", 0.5),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", 0.5),
        (f"{_ABORTED}MASTERDOWN Link with MASTER is down.", 0.5),
        ("LOADING Valkey is loading the dataset in memory", 0.5),
        ("CLUSTERDOWN The cluster is down", 0.5),
        ("NOREPLICAS Not enough good replicas to write.", 0.5),
        ("MISCONF Valkey is configured to save RDB snapshots, but it is unable to.", 0.5),
        ("UNBLOCKED force unblock from blocking operation, instance state changed", 0.5),
        ("NOAUTH Authentication required.", 0.5),
        # These concern the command, the user or the data. Even so a new connection is tried.
        ("OOM command not allowed when used memory > 'maxmemory'.", 5.0),
        ("NOPERM this user has no permissions to run the 'set' command", 5.0),
        ("TRYAGAIN Multiple keys request during rehashing of slot", 5.0),
        ("MOVED 1234 127.0.0.1:7001", 5.0),
        ("BUSY Valkey is busy running a script.", 5.0),
        ("ERR upstream failure", 5.0),
    ],
)
@pytest.mark.parametrize("quiet", [False, True])
async def test_a_server_that_refuses_is_left_for_the_one_behind_its_address(
    refusal: str, within_s: float, quiet: bool, autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.write(2)
        Address(bench, refusal).demote()
        if quiet:
            await anyio.sleep(2.0)
        began_s = anyio.current_time()
        await bench.write(2)
        assert anyio.current_time() - began_s <= within_s
        assert bench.executed == [1, 2, 3, 4]
        assert bench.writer.snapshot().last_error is None
        assert bench.store.connects == 2


async def test_a_refusal_that_lasts_costs_few_connections(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        bench.store.refusal = "READONLY You can't write against a read only replica."
        await bench.hand_in()
        await anyio.sleep(30)
        now = bench.writer.snapshot()
        assert now.connected
        assert "READONLY" in str(now.last_error)
        assert bench.executed == bench.acknowledged == []
        assert bench.store.connects <= 2 * 30 + 10
        bench.store.refusal = None
        await bench.answer()
        assert bench.executed == [1]


# ---- a store that is away


async def test_outage_is_waited_out_and_nothing_is_lost(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.write(2)
        bench.store.down = True
        await bench.hand_in()
        await anyio.sleep(120)
        assert bench.acknowledged == [1, 2]
        assert not bench.writer.snapshot().connected
        assert bench.writer.snapshot().last_error is not None
        bench.store.down = False
        returned_s = anyio.current_time()
        await bench.answer()
        await bench.write()
        assert anyio.current_time() - returned_s <= RETURN_LIMIT_S
        assert bench.executed == bench.acknowledged == [1, 2, 3, 4]


async def test_store_that_is_away_at_start_is_waited_for(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench(down=True) as bench:
        assert not bench.writer.snapshot().connected
        await anyio.sleep(10)
        bench.store.down = False
        await bench.write()
        assert bench.executed == [1]


async def test_refused_connections_are_tried_again(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        bench.store.drop_connection()
        bench.store.script.extend([StoreFault.REFUSE_CONNECT] * 5)
        await bench.write(3)
        assert bench.executed == [1, 2, 3]


async def test_quiet_writer_notices_that_the_store_is_gone_and_back(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.write()
        bench.store.down = True
        await anyio.sleep(1.5)
        assert not bench.writer.snapshot().connected
        bench.store.down = False
        await anyio.sleep(1.5)
        assert bench.writer.snapshot().connected
        assert bench.writer.snapshot().last_error is None


async def test_quiet_writer_notices_that_the_store_refuses(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        bench.store.refusal = "OOM command not allowed"
        await anyio.sleep(1.5)
        now = bench.writer.snapshot()
        assert now.connected
        assert "OOM" in str(now.last_error)
        bench.store.refusal = None
        await anyio.sleep(1.5)
        assert bench.writer.snapshot().last_error is None


async def test_store_that_came_back_empty_gets_the_batch_in_doubt(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.write()
        bench.store.script.append(StoreFault.LOSE_REPLY)
        await bench.hand_in()
        await anyio.wait_all_tasks_blocked()
        bench.store.restart()
        await bench.answer()
        assert bench.store.price("AAPL") == b'{"n":2}', "its price is there"
        await bench.write()
        assert bench.acknowledged == [1, 2, 3]
        assert bench.store.price("AAPL") == b'{"n":3}'


# ---- a store that has forgotten


async def test_a_store_that_came_back_empty_has_every_price_within_a_second(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.write(symbols=["AAPL", "MSFT"])
        await bench.write(symbols=["SPY"])
        bench.store.restart()
        await anyio.sleep(RETURN_LIMIT_S)
        prices = [bench.store.price(symbol) for symbol in ("AAPL", "MSFT", "SPY")]
        assert prices == [b'{"n":1}', b'{"n":1}', b'{"n":2}']
        assert bench.executed == [1, 2], "no event is published again"
        assert len(bench.reminders) == 1
        await anyio.sleep(100)
        assert len(bench.reminders) == 1, "once"


async def test_it_has_them_before_anything_new(autojump_clock: Any, open_bench: MakeBench) -> None:
    async with open_bench() as bench:
        await bench.write(symbols=["AAPL", "MSFT"])
        bench.store.restart()
        await bench.write(symbols=["AAPL"])
        assert [batch.number for batch in bench.store.executed] == [1, 1, 1, 2]
        assert bench.store.price("AAPL") == b'{"n":2}'
        assert bench.store.price("MSFT") == b'{"n":1}'


async def test_a_price_that_is_on_its_way_is_not_written_older_before_it(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.write(symbols=["AAPL", "MSFT"])
        bench.store.script.append(StoreFault.LOSE_REPLY)  # readers have seen the second price
        await bench.hand_in("AAPL")
        await anyio.wait_all_tasks_blocked()
        bench.store.restart()
        await bench.answer()
        assert [list(batch.latest.get(QUOTES, {})) for batch in bench.reminders] == [["MSFT"]]
        assert bench.store.price("AAPL") == b'{"n":2}'


async def test_prices_written_again_expire_when_they_would_have(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.write(symbols=["AAPL"])
        await anyio.sleep(100)
        await bench.write(symbols=["MSFT"])
        await anyio.sleep(150)
        bench.store.restart()
        await anyio.sleep(45)
        assert bench.store.price("AAPL") is not None
        await anyio.sleep(10)
        assert bench.store.price("AAPL") is None
        assert bench.store.price("MSFT") is not None
        await anyio.sleep(45)
        bench.store.restart()
        await anyio.sleep(2)
        assert bench.store.price("AAPL") is None, "its time was over"
        assert bench.store.price("MSFT") is not None


async def test_a_store_that_kept_everything_is_written_nothing_again(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.write(3)
        for _ in range(3):
            bench.store.drop_connection()
            await anyio.sleep(2)
        assert bench.store.connects == 4
        assert not bench.reminders


async def test_prices_that_could_not_be_written_again_are_tried_until_they_are(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.write(symbols=[f"S{number}" for number in range(5_000)])
        bench.store.restart()
        bench.store.script.extend(
            [StoreFault.LOSE_REPLY, StoreFault.REFUSE_WRITE, StoreFault.LOSE_REQUEST]
        )
        await anyio.sleep(10)
        assert all(bench.store.price(f"S{number}") == b'{"n":1}' for number in range(5_000))
        assert max(len(batch.latest.get(QUOTES, {})) for batch in bench.reminders) == 2_000
        await bench.write()
        assert bench.executed == [1, 2]


async def test_a_store_that_is_emptied_again_in_the_middle_has_everything_in_the_end(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.write(symbols=[f"S{number}" for number in range(5_000)])
        bench.store.restart()
        while not bench.reminders:
            await anyio.sleep(0.01)
            bench.store.script.extend([Slow(0.2)] * (not bench.store.script))
        bench.store.restart()
        await anyio.sleep(5)
        assert all(bench.store.price(f"S{number}") == b'{"n":1}' for number in range(5_000))


async def test_ends_where_the_store_is_away_once_it_is_back(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.write()
        bench.store.down = True
        await bench.hand_in()
        bench.batches.outbox.close()
        await anyio.sleep(5)
        assert not bench.ended.is_set()
        bench.store.down = False
        await bench.ended.wait()
        assert bench.executed == [1, 2]


# ---- restarts


@pytest.mark.parametrize(
    "fault",
    [
        Slow(0.010),
        StoreFault.LOSE_REPLY,
        StoreFault.LOSE_REQUEST,
        StoreFault.DELAY_REQUEST,
        StoreFault.REFUSE_WRITE,
    ],
)
async def test_restart_in_the_middle_of_a_write_repeats_and_loses_nothing(
    autojump_clock: Any, open_bench: MakeBench, fault: StoreFault | Slow
) -> None:
    async with open_bench() as bench:
        await bench.write()
        bench.store.script.append(fault)
        batch = await bench.hand_in()
        await anyio.sleep(0.005)  # in the slow write, or in the wait before the next try
        await bench.restart()
        assert await bench.answer() == batch.number
        assert bench.store.deliver() == 0
        await bench.write(2)
        assert bench.executed == [1, 2, 3, 4]


async def test_restart_before_the_acknowledgement_acknowledges_and_does_not_write_again(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.answers.outbox.send(0)  # no task has received this one, so the channel is full
        await bench.hand_in()
        await anyio.wait_all_tasks_blocked()
        assert bench.executed == [1]
        await bench.restart()
        await anyio.wait_all_tasks_blocked()
        assert [await bench.answer(), await bench.answer()] == [0, 1]
        assert bench.executed == [1]


async def test_copy_of_a_written_batch_is_acknowledged_and_not_written(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    """The publisher hands a batch out again when it was restarted meanwhile."""
    async with open_bench() as bench:
        batch = await bench.hand_in()
        await bench.answer()
        await bench.batches.outbox.send(batch)
        assert await bench.answer() == batch.number
        await bench.write()
        assert bench.executed == [1, 2]


async def test_cancelled_it_leaves_no_connection_behind(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.write()
        assert bench.store.connected
        await bench.cancel()
        assert not bench.store.connected
        await bench.start()
        await bench.write()
        assert bench.executed == [1, 2]


async def test_a_store_that_does_not_close_does_not_keep_it_from_ending(
    autojump_clock: Any, open_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_bench() as bench:
        monkeypatch.setattr(bench.store, "aclose", anyio.sleep_forever)
        before_s = anyio.current_time()
        await bench.cancel()
        assert anyio.current_time() - before_s <= 1.0


async def test_copies_without_a_waiting_receiver_do_not_keep_it_from_ending(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    """A publisher that was restarted hands a batch out again, and ends with its first answer."""
    async with open_bench() as bench:
        batch = await bench.hand_in()
        for _ in range(4):
            await bench.batches.outbox.send(batch)
        assert await bench.answer() == 1
        bench.batches.outbox.close()
        await bench.ended.wait()
        assert bench.executed == [1]


# ---- publisher and writer together


@pytest.mark.parametrize("seed", first(2, range(12)))
async def test_every_event_once_and_in_order_through_faults_and_restarts(
    autojump_clock: Any, seed: int
) -> None:
    """Both actors are restarted at random while the store does its worst."""
    draw = random.Random(seed)
    total = 1_500
    with anyio.fail_after(1_000):
        async with anyio.create_task_group() as tasks:
            bench = Bench(tasks)
            events = Channel[RoutedItem](64)
            publisher = EventPublisher(
                events, bench.batches.outbox, bench.answers, 10_000, bench.clock
            )
            scope, over = anyio.CancelScope(), anyio.Event()

            async def publish(*, task_status: anyio.abc.TaskStatus[None]) -> None:
                with scope:
                    await publisher.run(task_status=task_status)
                over.set()

            await bench.start()
            await tasks.start(publish)
            for number in range(1, total + 1):
                symbol = draw.choice(["AAPL", "MSFT", "SPY"])
                now_ns = bench.clock.utc_ns()
                quote = Quote(symbol, number, number + 1, 1, 1, now_ns, now_ns, seq=number)
                await events.outbox.send(RecordBatch(QUOTES, [quote]))
                await anyio.sleep(draw.choice([0, 0, 0.001, 0.02]))
                if draw.random() < 0.05:
                    bench.store.script.append(draw.choice([*StoreFault, Slow(0.05)]))
                if draw.random() < 0.02:
                    bench.store.drop_connection()
                bench.store.down = draw.random() < 0.01 or (
                    bench.store.down and draw.random() < 0.9
                )
                if draw.random() < 0.02:
                    await bench.restart()
                if draw.random() < 0.02:
                    scope.cancel()
                    await over.wait()
                    scope, over = anyio.CancelScope(), anyio.Event()
                    await tasks.start(publish)
                bench.store.deliver()
            bench.store.down = False
            bench.store.script.clear()
            events.outbox.close()
            await over.wait()
            await bench.ended.wait()
            for channel in (events, bench.batches, bench.answers):
                channel.close()
    published = [msgspec.json.decode(m)["seq"] for m in bench.store.published["price.updated"]]
    assert published == list(range(1, total + 1))
    assert bench.executed == list(range(1, len(bench.executed) + 1))
    assert publisher.snapshot().events_published == total


async def test_command_that_fails_inside_a_batch_is_reported(
    autojump_clock: Any, open_bench: MakeBench, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_bench() as bench:
        bench.store.command_error = "WRONGTYPE the event log is no stream"
        await bench.write()
        assert bench.executed == [1]
        now = bench.writer.snapshot()
        assert (now.command_errors, now.last_command_error) == (1, bench.store.command_error)
        assert now.connected
        assert caplog.text.count("redis_command_failed") == 1
        bench.store.command_error = None
        await bench.write()
        assert bench.writer.snapshot().command_errors == 1
        assert caplog.text.count("redis_command_failed") == 1


# ---- Keys that are renewed


class CountingStore(MemoryPriceStore):
    """Notes when it is asked to connect and to renew."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock=clock)
        self.connects_s: list[float] = []
        self.renewals: list[tuple[float, int]] = []

    async def connect(self) -> None:
        self.connects_s.append(anyio.current_time())
        await super().connect()

    async def renew(self, kind: Kind[Any], symbols: Iterable[str]) -> Sequence[str]:
        named = list(symbols)
        self.renewals.append((anyio.current_time(), len(named)))
        return await super().renew(kind, named)


@asynccontextmanager
async def confirming(how_many: int) -> AsyncIterator[tuple[RedisWriter, CountingStore, list[str]]]:
    """A writer that has written these many symbols, and whose answers are taken."""
    clock = VirtualClock()
    store = CountingStore(clock)
    batches, answers = Channel[WriteBatch](1), Channel[int](10)
    writer = RedisWriter(batches, answers.outbox, store, clock)
    names = [f"S{number}" for number in range(how_many)]
    try:
        async with anyio.create_task_group() as tasks:
            await tasks.start(lambda *, task_status: writer.run(task_status=task_status))
            await batches.outbox.send(write_batch(1, dict.fromkeys(names, b"{}")))
            await anyio.sleep(1)
            yield writer, store, names
            tasks.cancel_scope.cancel()
    finally:
        batches.close()
        answers.close()


async def test_many_confirmed_keys_are_renewed_in_parts_without_a_pause(
    autojump_clock: Any,
) -> None:
    async with confirming(2_000) as (writer, store, names):
        writer.confirm(QUOTES, names)
        await anyio.sleep(60)
        assert sum(size for _, size in store.renewals) == 2_000
        assert len(store.renewals) > 1, "a batch that comes meanwhile does not wait for all of them"
        assert store.renewals[-1][0] - store.renewals[0][0] < 0.1


async def test_a_key_that_has_expired_is_written_again_when_it_is_renewed(
    autojump_clock: Any,
) -> None:
    async with confirming(3) as (writer, store, names):
        await anyio.sleep(310)
        assert store.price(names[0]) is None
        writer.confirm(QUOTES, [names[0], "UNKNOWN"])
        await anyio.sleep(5)
        assert [store.price(name) for name in names] == [b"{}", None, None]
        assert store.price("UNKNOWN") is None


async def test_keys_to_renew_do_not_make_the_writer_try_an_absent_store_more_often(
    autojump_clock: Any,
) -> None:
    async with confirming(10) as (writer, store, names):
        store.down = True
        writer.confirm(QUOTES, names)
        await anyio.sleep(60)
        assert 2 < len(store.connects_s) < 200
        store.down = False
        await anyio.sleep(60)
        assert sum(size for _, size in store.renewals[-1:]) == 10


# ---- every kind

KEYED = tuple(kind for kind in KINDS if kind.has_key)


def kind_batch(number: int, *kinds: Kind[Any], symbols: Sequence[str] = ("AAPL",)) -> WriteBatch:
    """A record of each kind and symbol, with its event."""
    latest, events = {}, []
    for kind in kinds:
        records = [make_record(kind, symbol, number) for symbol in symbols]
        payloads = list(map(kind.encode, records))
        ids = list(map(kind.stream.entry_id, records)) if kind.stream else ()
        events.append(Events(kind.event, payloads, kind, symbols, ids))
        if kind.has_key:
            latest[kind] = dict(zip(symbols, payloads, strict=True))
    return WriteBatch(number, latest, events)


class SkippingClock(VirtualClock):
    """Days pass without the event loop's turns in them."""

    skipped_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.skipped_s


class VouchedBench:
    """A running writer of every kind; the test says which symbols are vouched."""

    def __init__(self) -> None:
        self.clock = SkippingClock()
        self.store = MemoryPriceStore(clock=self.clock)
        self.batches, self.answers = Channel[WriteBatch](1), Channel[int](1_000)
        self.vouched: dict[Kind[Any], frozenset[str]] = {}
        self.writer = RedisWriter(
            self.batches,
            self.answers.outbox,
            self.store,
            self.clock,
            lambda kind: self.vouched.get(kind, frozenset()),
            kinds=KINDS,
        )

    async def write(self, batch: WriteBatch) -> None:
        await self.batches.outbox.send(batch)
        await anyio.sleep(0.1)
        assert self.store.executed[-1] is batch

    async def later(self, seconds: float) -> None:
        """Let time pass; the writer gets half a minute in each tenth of it."""
        for _ in range(10):
            self.clock.skipped_s += max(0.0, seconds / 10 - 31)
            await anyio.sleep(min(seconds / 10, 31))

    def value(self, kind: Kind[Any], symbol: str = "AAPL") -> int | None:
        """The number of the record in a key."""
        payload = self.store.get(f"{kind.key_prefix}{symbol}")
        return None if payload is None else kind.decode(payload).seq


@asynccontextmanager
async def vouched_bench() -> AsyncIterator[VouchedBench]:
    bench = VouchedBench()
    try:
        with anyio.fail_after(10_000):
            async with anyio.create_task_group() as tasks:
                await tasks.start(lambda *, task_status: bench.writer.run(task_status=task_status))
                yield bench
                tasks.cancel_scope.cancel()
    finally:
        bench.batches.close()
        bench.answers.close()


@pytest.mark.parametrize("kind", KEYED, ids=repr)
async def test_a_vouched_key_of_each_kind_outlives_its_time_and_another_does_not(
    kind: Kind[Any], autojump_clock: Any
) -> None:
    ttl_s = kind.ttl_s or 300
    async with vouched_bench() as bench:
        await bench.write(kind_batch(1, *KINDS, symbols=("AAPL", "MSFT")))
        bench.vouched[kind] = frozenset(["AAPL"])
        await bench.later(1.5 * ttl_s)
        assert bench.value(kind, "AAPL") == 1
        assert bench.value(kind, "MSFT") is None
        assert len(bench.store.executed) == 1, "without an event and without a write"
        others = [other for other in KEYED if other is not kind and other.ttl_s == kind.ttl_s]
        assert all(bench.value(other, "AAPL") is None for other in others)
        assert not any("MSFT" in renewed for renewed in bench.store.renewed)


async def test_keys_that_are_always_due_do_not_hold_up_those_of_another_kind(
    autojump_clock: Any,
) -> None:
    names = [f"S{number}" for number in range(320)]
    async with vouched_bench() as bench:
        bench.vouched = dict.fromkeys(KEYED, frozenset(["AAPL"]))
        bench.vouched |= dict.fromkeys((QUOTES, TRADES), frozenset(names))
        await bench.write(kind_batch(1, *KINDS))
        for number, name in enumerate(names, 2):
            await bench.write(kind_batch(number, QUOTES, TRADES, symbols=(name,)))
            await anyio.sleep(0.4)
        await anyio.sleep(400)
        assert all(bench.value(kind) == 1 for kind in KEYED if kind not in (QUOTES, TRADES))


async def test_every_symbol_is_those_of_stocks(autojump_clock: Any) -> None:
    symbols = ("AAPL", "BTC/USD", "ETH/USD", "AAPL261218C00200000")
    async with vouched_bench() as bench:
        await bench.write(kind_batch(1, QUOTES, symbols=symbols))
        bench.vouched[QUOTES] = frozenset(["*", "ETH/USD"])
        await anyio.sleep(400)
        assert [bench.value(QUOTES, symbol) for symbol in symbols] == [1, None, 1, None]


async def test_a_server_that_forgot_gets_the_newest_value_of_every_kind_back(
    autojump_clock: Any,
) -> None:
    async with vouched_bench() as bench:
        await bench.write(kind_batch(1, *KINDS))
        await bench.write(kind_batch(2, TRADES, NEWS))
        published = {channel: len(all_) for channel, all_ in bench.store.published.items()}
        bench.store.restart()
        await anyio.sleep(RETURN_LIMIT_S)
        for kind in KEYED:
            assert bench.value(kind) == (2 if kind is TRADES else 1), kind
        assert {channel: len(all_) for channel, all_ in bench.store.published.items()} == published
        assert not bench.store.streams, "an entry is an event, not a value"


async def test_values_written_again_expire_when_those_of_their_kind_would_have(
    autojump_clock: Any,
) -> None:
    async with vouched_bench() as bench:
        await bench.write(kind_batch(1, *KINDS))
        await anyio.sleep(200)
        bench.store.restart()
        await anyio.sleep(150)
        for kind in KEYED:
            assert bench.value(kind) == (1 if kind.ttl_s else None), kind
        await bench.later(86_400 - 300)
        for kind in KEYED:
            assert bench.value(kind) == (1 if kind is DAILY_BARS else None), kind


@pytest.mark.parametrize("with_what", first(1, ["the batch that is on its way", "a later batch"]))
async def test_a_removed_value_is_neither_renewed_nor_written_again(
    with_what: str, autojump_clock: Any
) -> None:
    async with vouched_bench() as bench:
        bench.vouched = dict.fromkeys(KEYED, frozenset(["AAPL", "MSFT"]))
        await bench.write(kind_batch(1, *KINDS, symbols=("AAPL", "MSFT")))
        bench.writer.confirm(TRADES, ["AAPL"])
        gone = WriteBatch(2, {}, (), deleted={TRADES: ["AAPL"]})
        if with_what == "a later batch":
            await bench.write(gone)
            renewed_before = len(bench.store.renewed)
            bench.store.restart()
        else:
            renewed_before = len(bench.store.renewed)
            bench.store.script.append(StoreFault.LOSE_REPLY)
            await bench.batches.outbox.send(gone)
            await anyio.wait_all_tasks_blocked()
            bench.store.restart()
        await anyio.sleep(1_000)
        assert bench.value(TRADES, "AAPL") is None
        assert bench.value(TRADES, "MSFT") == 1
        assert bench.value(QUOTES, "AAPL") == 1
        restored = [batch for batch in bench.store.executed if batch.ages_s]
        assert not any("AAPL" in batch.latest.get(TRADES, ()) for batch in restored)
        assert len(bench.store.renewed) > renewed_before
        await bench.write(kind_batch(3, TRADES))
        await anyio.sleep(1_000)
        assert bench.value(TRADES, "AAPL") == 3, "a new value lives again"


# ---- a replica that lagged


async def test_a_replica_that_lagged_gets_the_newest_value_of_each_symbol(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.write(symbols=["AAPL", "MSFT"])
        await bench.write(symbols=["AAPL"])
        bench.store.replicate()
        await bench.write(symbols=["MSFT"])
        await bench.write(symbols=["SPY"])
        bench.store.fail_over()
        await bench.write(symbols=["QQQ"])
        prices = [bench.store.price(symbol) for symbol in ("AAPL", "MSFT", "SPY", "QQQ")]
        assert prices == [b'{"n":2}', b'{"n":3}', b'{"n":4}', b'{"n":5}']
        assert bench.executed == [1, 2, 3, 4, 5], "no event is published again"
        restored = [batch.restored for batch in bench.store.executed]
        assert restored == [*[False] * 5, True, False], "readers read the keys before anything new"


async def test_a_batch_that_the_replica_has_is_not_written_again(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.write(symbols=["AAPL"])
        bench.store.script.append(StoreFault.LOSE_REPLY)
        await bench.hand_in("AAPL")
        while len(bench.store.executed) < 2:
            await anyio.sleep(0.001)
        bench.store.replicate()
        bench.store.fail_over()
        await bench.answer()
        assert bench.executed == [1, 2]
        assert not bench.reminders


async def test_events_that_a_replica_lacks_are_gaps(autojump_clock: Any) -> None:
    symbols = ("AAPL", "BTC/USD")
    async with vouched_bench() as bench:
        await bench.write(kind_batch(1, *KINDS, symbols=("MSFT",)))
        bench.store.replicate()
        await bench.write(kind_batch(2, QUOTES, NEWS, symbols=symbols))
        await bench.write(kind_batch(3, CANCELS))
        bench.store.fail_over()
        await anyio.sleep(RETURN_LIMIT_S)
        gaps = list(map(msgspec.json.decode, bench.store.published["feed.status"]))
        assert {gap["state"] for gap in gaps} == {"gap"}
        assert {gap["from"] < gap["to"] <= gap["at"] for gap in gaps} == {True}
        found = {
            (gap["feed"], gap["channel"]): (gap["symbols"], gap.get("refreshed")) for gap in gaps
        }
        assert found == {
            ("stocks", "quotes"): (["AAPL"], True),
            ("crypto", "quotes"): (["BTC/USD"], True),
            ("news", "news"): (["AAPL", "BTC/USD"], None),
            ("stocks", "cancelErrors"): (["AAPL"], None),
        }
        assert len(gaps) == len(found), "each once"
        bench.store.drop_connection()
        await anyio.sleep(RETURN_LIMIT_S)
        assert len(bench.store.published["feed.status"]) == len(gaps)


async def test_a_loss_that_goes_back_further_than_it_remembers_is_of_every_symbol(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mdservice.publish.writer._MOST_REMEMBERED", 4)
    async with vouched_bench() as bench:
        await bench.write(kind_batch(1, QUOTES, symbols=("AAPL", "MSFT")))
        bench.store.replicate()
        for number in range(2, 6):
            await bench.write(kind_batch(number, QUOTES))
        bench.store.fail_over()
        await anyio.sleep(RETURN_LIMIT_S)
        (gap,) = map(msgspec.json.decode, bench.store.published["feed.status"])
        assert gap["symbols"] == ["AAPL", "MSFT"]


async def test_an_empty_server_is_restored_and_no_gap(autojump_clock: Any) -> None:
    """A server that restarts has lost no event: its subscribers got them."""
    async with vouched_bench() as bench:
        await bench.write(kind_batch(1, QUOTES))
        bench.store.restart()
        await anyio.sleep(RETURN_LIMIT_S)
        assert bench.store.executed[-1].restored
        assert "feed.status" not in bench.store.published


async def test_a_removed_value_that_a_replica_still_has_is_removed_again(
    autojump_clock: Any,
) -> None:
    async with vouched_bench() as bench:
        await bench.write(kind_batch(1, TRADES, symbols=("AAPL", "MSFT", "SPY")))
        bench.store.replicate()
        await bench.write(WriteBatch(2, {}, (), deleted={TRADES: ["AAPL", "MSFT", "SPY"]}))
        await bench.write(kind_batch(3, TRADES, symbols=("MSFT",)))
        bench.store.fail_over()
        bench.store.down = True
        await anyio.sleep(RETURN_LIMIT_S)
        await bench.batches.outbox.send(kind_batch(4, TRADES, symbols=("SPY",)))
        bench.store.down = False
        await anyio.sleep(RETURN_LIMIT_S)
        assert bench.value(TRADES, "AAPL") is None
        assert bench.value(TRADES, "MSFT") == 3
        assert bench.value(TRADES, "SPY") == 4


async def test_what_could_not_be_restored_is_tried_until_it_is(autojump_clock: Any) -> None:
    async with vouched_bench() as bench:
        await bench.write(kind_batch(1, QUOTES))
        bench.store.replicate()
        await bench.write(kind_batch(2, QUOTES))
        bench.store.fail_over()
        bench.store.script.extend(
            [StoreFault.LOSE_REQUEST, Slow(0.01), StoreFault.LOSE_REQUEST, StoreFault.REFUSE_WRITE]
        )
        await anyio.sleep(5)
        assert bench.value(QUOTES) == 2
        assert bench.store.executed[-1].restored
        assert len(bench.store.published["feed.status"]) == 1


async def test_the_store_is_not_asked_to_renew_a_removed_value(autojump_clock: Any) -> None:
    async with vouched_bench() as bench:
        await bench.write(kind_batch(1, TRADES))
        bench.store.script.append(Slow(1.0))
        await bench.batches.outbox.send(WriteBatch(2, {}, (), deleted={TRADES: ["AAPL"]}))
        bench.writer.confirm(TRADES, ["AAPL"])
        bench.vouched[TRADES] = frozenset(["AAPL"])
        await anyio.sleep(1_000)
        assert not bench.store.renewed


async def test_values_of_an_earlier_run_and_of_kinds_without_keys_are_taken(
    autojump_clock: Any,
) -> None:
    async with vouched_bench() as bench:
        for kind in KINDS:
            payload = kind.encode(make_record(kind, "AAPL", 9))
            bench.writer.start_from(kind, {"AAPL": payload})
            bench.writer.confirm(kind, ["AAPL"])
        await anyio.sleep(5)
        assert [bench.value(kind) for kind in KEYED] == [9] * len(KEYED)
