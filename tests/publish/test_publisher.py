"""The publisher: batches on acknowledgement, the backlog, and what a restart repeats."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import msgspec
import pytest

from mdservice.model.events import (
    AccountEvent,
    FeedState,
    FeedStatus,
    LatestChanged,
    RecordBatch,
    RoutedItem,
)
from mdservice.model.kinds import (
    BARS,
    CORRECTIONS,
    DAILY_BARS,
    KINDS,
    NEWS,
    QUOTES,
    STATUSES,
    TRADES,
    Kind,
)
from mdservice.model.quote import Quote
from mdservice.publish.publisher import MOST_IN_BATCH, EventPublisher
from mdservice.publish.store import WriteBatch
from mdservice.runtime.actor import Channel
from mdservice.testing import VirtualClock
from tests.records import make_record

BACKLOG = 100


class Bench:
    """A running publisher whose batches the test takes and acknowledges."""

    def __init__(self, tasks: anyio.abc.TaskGroup, backlog: int) -> None:
        self.clock = VirtualClock()
        self.inbox = Channel[RoutedItem](64)
        self.batches = Channel[WriteBatch](1)
        self.acknowledged = Channel[int](1)
        self.publisher = EventPublisher(
            self.inbox, self.batches.outbox, self.acknowledged, backlog, self.clock
        )
        self._writer = self.batches.inbox(self.publisher.heartbeat, "the test")
        self._tasks = tasks
        self._scope = anyio.CancelScope()
        self.ended = anyio.Event()

    async def start(self) -> None:
        self._scope, self.ended = anyio.CancelScope(), anyio.Event()
        await self._tasks.start(self._run)

    async def _run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        with self._scope:
            await self.publisher.run(task_status=task_status)
        self.ended.set()

    async def cancel(self) -> None:
        self._scope.cancel()
        await self.ended.wait()

    async def send(self, *items: RoutedItem) -> None:
        for item in items:
            await self.inbox.outbox.send(item)
        await anyio.wait_all_tasks_blocked()

    async def batch(self) -> WriteBatch:
        self.publisher.heartbeat.rest("the test")
        batch = await self._writer.receive()
        self.publisher.heartbeat.rest("the test")
        return batch

    async def acknowledge(self, batch: WriteBatch) -> None:
        await self.acknowledged.outbox.send(batch.number)
        await anyio.wait_all_tasks_blocked()

    async def take(self) -> WriteBatch:
        """The next batch, acknowledged."""
        batch = await self.batch()
        await self.acknowledge(batch)
        return batch

    def quotes(self, first: int, last: int, symbol: str = "AAPL") -> RecordBatch[Quote]:
        """Quotes of one symbol whose number is bid and seq."""
        now_ns = self.clock.utc_ns()
        return RecordBatch(
            QUOTES,
            [Quote(symbol, n, n + 1, 1, 1, now_ns, now_ns, seq=n) for n in range(first, last + 1)],
        )

    def status(self, state: FeedState) -> FeedStatus:
        return FeedStatus(state, self.clock.utc_ns(), {"driver": "fake"})


def seqs(batch: WriteBatch, symbol: str = "AAPL") -> list[int]:
    return [decode(m.payload)["seq"] for m in batch.messages if m.symbol == symbol]


def decode(payload: bytes) -> dict[str, Any]:
    return msgspec.json.decode(payload, type=dict[str, Any])


MakeBench = Callable[..., AbstractAsyncContextManager[Bench]]


@pytest.fixture
def open_bench() -> MakeBench:
    @asynccontextmanager
    async def opened(backlog: int = BACKLOG) -> AsyncIterator[Bench]:
        with anyio.fail_after(1_000):
            async with anyio.create_task_group() as tasks:
                bench = Bench(tasks, backlog)
                await bench.start()
                try:
                    yield bench
                finally:
                    tasks.cancel_scope.cancel()
                    for channel in (bench.inbox, bench.batches, bench.acknowledged):
                        channel.close()

    return opened


# ---- batches


async def test_events_of_the_account_are_published_in_order_and_counted(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.send(AccountEvent(b"1"), bench.quotes(1, 1), AccountEvent(b"2"))
        messages = []
        while len(messages) < 3:
            messages += (await bench.take()).messages
        of_account = [each.payload for each in messages if each.channel == "account.updated"]
        assert of_account == [b"1", b"2"]
        snapshot = bench.publisher.snapshot()
        assert (snapshot.account_updates_published, snapshot.events_published) == (2, 1)


async def test_batch_holds_newest_price_of_each_symbol_and_every_event(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        first = await _first_batch_of_its_own(bench)
        await bench.send(
            bench.quotes(1, 2), bench.status("stale"), bench.quotes(3, 3), bench.quotes(1, 1, "SPY")
        )
        await bench.acknowledge(first)
        batch = await bench.take()
        assert [(m.channel, m.symbol) for m in batch.messages] == [
            ("price.updated", "AAPL"),
            ("price.updated", "AAPL"),
            ("feed.status", None),
            ("price.updated", "AAPL"),
            ("price.updated", "SPY"),
        ]
        assert seqs(batch) == [1, 2, 3]
        assert batch.latest.get(QUOTES, {}) == {
            "AAPL": batch.messages[3].payload,
            "SPY": batch.messages[4].payload,
        }
        assert decode(batch.messages[2].payload) == {
            "state": "stale",
            "at": "2026-11-20T15:00:00.000000000Z",
            "feed": "stocks",
            "driver": "fake",
        }


async def _first_batch_of_its_own(bench: Bench) -> WriteBatch:
    """A batch that is under way, so that all that comes now waits for the next."""
    await bench.send(bench.status("connected"))
    return await bench.batch()


async def test_batches_count_without_a_step_and_wait_for_the_acknowledgement(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.send(bench.quotes(1, 1))
        first = await bench.batch()
        await bench.send(bench.quotes(2, 2))
        await bench.send(bench.quotes(3, 3))
        await anyio.sleep(60)
        assert bench._writer.depth.used == 0, "the next one waits"
        await bench.acknowledge(first)
        second = await bench.batch()
        assert (first.number, second.number) == (1, 2)
        assert (seqs(first), seqs(second)) == ([1], [2, 3])


async def test_batch_has_an_upper_limit(autojump_clock: Any, open_bench: MakeBench) -> None:
    async with open_bench(backlog=10 * MOST_IN_BATCH) as bench:
        await bench.send(bench.quotes(1, MOST_IN_BATCH + 1))
        assert len((await bench.take()).messages) == MOST_IN_BATCH
        assert seqs(await bench.take()) == [MOST_IN_BATCH + 1]


async def test_counts_only_what_is_acknowledged(autojump_clock: Any, open_bench: MakeBench) -> None:
    async with open_bench() as bench:
        first = await _first_batch_of_its_own(bench)
        await bench.send(bench.quotes(1, 5), bench.quotes(1, 3, "SPY"), bench.status("stale"))
        await bench.acknowledge(first)
        batch = await bench.batch()
        now = bench.publisher.snapshot()
        assert (now.events_published, now.prices_written, now.backlog) == (0, 0, 9)
        assert now.latencies.feed_to_redis.max is None
        await anyio.sleep(0.25)
        await bench.acknowledge(batch)
        now = bench.publisher.snapshot()
        assert (now.events_published, now.prices_written, now.backlog) == (8, 2, 0)
        assert now.events_conflated == 0
        assert now.latencies.feed_to_redis.max == pytest.approx(250.0)
        assert now.latencies.receive_to_redis.max == pytest.approx(250.0)


# ---- the backlog


async def test_up_to_the_backlog_all_is_kept_in_order(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        for number in range(1, BACKLOG + 1):
            await bench.send(bench.quotes(number, number))
        assert bench.publisher.snapshot().backlog == BACKLOG
        assert bench.publisher.snapshot().events_conflated == 0
        seen: list[int] = []
        while len(seen) < BACKLOG:
            seen += seqs(await bench.take())
        assert seen == list(range(1, BACKLOG + 1))


async def test_beyond_the_backlog_the_oldest_are_conflated_and_counted(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        first = await _first_batch_of_its_own(bench)
        await bench.send(bench.quotes(1, 1, "SPY"))
        for number in range(1, 301):
            await bench.send(bench.quotes(number, number))
        now = bench.publisher.snapshot()
        assert now.backlog <= BACKLOG
        conflated = now.events_conflated
        assert conflated >= 300 - BACKLOG
        await bench.acknowledge(first)
        messages: list[tuple[str | None, int]] = []
        while bench.publisher.snapshot().backlog:
            batch = await bench.take()
            messages += [(m.symbol, decode(m.payload)["seq"]) for m in batch.messages]
        aapl = [seq for symbol, seq in messages if symbol == "AAPL"]
        assert aapl == list(range(301 - len(aapl), 301)), "the newest are all there, in order"
        assert len(aapl) == 300 - conflated
        assert ("SPY", 1) in messages, "the latest of each symbol is kept"


async def test_states_survive_the_conflation(autojump_clock: Any, open_bench: MakeBench) -> None:
    async with open_bench() as bench:
        first = await _first_batch_of_its_own(bench)
        await bench.send(bench.status("disconnected"))
        await bench.send(*(bench.quotes(n, n) for n in range(1, 301)))
        await bench.send(bench.status("connected"))
        await bench.acknowledge(first)
        states: list[str] = []
        while bench.publisher.snapshot().backlog:
            for message in (await bench.take()).messages:
                if message.channel == "feed.status":
                    states.append(decode(message.payload)["state"])
        assert states == ["disconnected", "connected"]


async def test_it_always_takes(autojump_clock: Any, open_bench: MakeBench) -> None:
    async with open_bench() as bench:
        await bench.send(bench.quotes(1, 1))
        await bench.batch()  # never acknowledged
        started_s = anyio.current_time()
        for number in range(2, 2_002):
            await bench.send(bench.quotes(number, number))
        assert anyio.current_time() == started_s
        assert bench.publisher.depth.used == 0


# ---- every kind


@pytest.mark.parametrize("kind", KINDS, ids=repr)
async def test_each_kind_has_its_event_and_its_latest_value(
    kind: Kind[Any], autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        first = await _first_batch_of_its_own(bench)
        records = [make_record(kind, symbol, n) for n, symbol in enumerate(["A", "B", "A"], 1)]
        await bench.send(RecordBatch(kind, records))
        await bench.acknowledge(first)
        batch = await bench.take()
        payloads = [kind.encode(record) for record in records]
        assert [(m.channel, m.payload) for m in batch.messages] == [
            (kind.event, payload) for payload in payloads
        ]
        latest = {"A": payloads[2], "B": payloads[1]} if kind.has_key else None
        assert batch.latest.get(kind) == latest, "the same bytes, of the newest"
        ids = ["1", "2", "3"] if kind is NEWS else []
        assert list(batch.events[0].entry_ids) == ids
        now = bench.publisher.snapshot()
        assert now.published == {kind.channel: 3}
        assert now.written == ({kind.channel: 2} if kind.has_key else {})
        assert now.events_published == 3
        assert now.prices_written == (2 if kind is QUOTES else 0)


@pytest.mark.parametrize("kind", [k for k in KINDS if k.may_be_late], ids=repr)
async def test_a_late_record_is_an_event_and_no_value_of_the_key(
    kind: Kind[Any], autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        records = [make_record(kind, "A", n) for n in (3, 1, 2)]
        records[1].newest = records[2].newest = False
        await bench.send(RecordBatch(kind, records))
        batch = await bench.take()
        assert seqs(batch, "A") == [3, 1, 2]
        assert batch.latest[kind] == {"A": kind.encode(records[0])}


async def test_events_of_many_kinds_keep_their_order(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        first = await _first_batch_of_its_own(bench)
        order = [TRADES, QUOTES, STATUSES, TRADES, CORRECTIONS, NEWS, QUOTES]
        await bench.send(*(RecordBatch(kind, [make_record(kind)]) for kind in order))
        await bench.acknowledge(first)
        assert [m.channel for m in (await bench.take()).messages] == [kind.event for kind in order]


async def test_a_changed_latest_value_is_written_without_an_event(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        corrected = make_record(TRADES, "A", 7)
        await bench.send(LatestChanged(TRADES, "A", corrected))
        batch = await bench.take()
        assert batch.latest == {TRADES: {"A": TRADES.encode(corrected)}}
        assert not batch.messages
        assert bench.publisher.snapshot().events_published == 0
        assert bench.publisher.snapshot().backlog == 0


@pytest.mark.parametrize(
    ("changes", "latest", "deleted"),
    [
        ("1 -", {}, ["A"]),
        ("- 1", {"A": 1}, []),
        ("1 - 2 -", {}, ["A"]),
        ("1 - 2 - 3", {"A": 3}, []),
        ("1 =2", {"A": 2}, []),
        ("- =2 -", {}, ["A"]),
        ("1 =2 3", {"A": 3}, []),
    ],
)
async def test_the_last_change_of_a_key_in_a_batch_counts(
    changes: str,
    latest: dict[str, int],
    deleted: list[str],
    autojump_clock: Any,
    open_bench: MakeBench,
) -> None:
    """A number is a trade, ``=`` a changed value, ``-`` a removed one."""

    def of_trade(word: str) -> RoutedItem:
        return RecordBatch(TRADES, [make_record(TRADES, "A", int(word))])

    items: dict[str, Callable[[str], RoutedItem]] = {
        "-": lambda _: LatestChanged(TRADES, "A", None),
        "=": lambda word: LatestChanged(TRADES, "A", make_record(TRADES, "A", int(word[1:]))),
    }
    async with open_bench() as bench:
        first = await _first_batch_of_its_own(bench)
        for word in changes.split():
            await bench.send(items.get(word[0], of_trade)(word))
        await bench.acknowledge(first)
        taken = await bench.take()
        values = {s: decode(payload)["seq"] for s, payload in taken.latest[TRADES].items()}
        assert values == latest
        assert list(taken.deleted.get(TRADES, ())) == deleted


async def test_dropped_trades_are_counted_and_the_newest_still_reaches_its_key(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        first = await _first_batch_of_its_own(bench)
        await bench.send(RecordBatch(TRADES, [make_record(TRADES, "QUIET", 1)]))
        for number in range(1, 301):
            await bench.send(RecordBatch(TRADES, [make_record(TRADES, "A", number)]))
            await bench.send(RecordBatch(STATUSES, [make_record(STATUSES, "A", number)]))
        await bench.acknowledge(first)
        batches = []
        while bench.publisher.snapshot().backlog:
            batches.append(await bench.take())
        now = bench.publisher.snapshot()
        seen = [decode(m.payload)["seq"] for b in batches for m in b.messages]
        statuses = now.published["statuses"]
        assert statuses == 300, "none is lost"
        assert len(seen) == 300 + now.published.get("trades", 0)
        assert now.trades_dropped == 301 - now.published.get("trades", 0) > 0
        assert now.dropped == {"trades": now.trades_dropped}
        assert now.events_conflated == 0
        values: dict[str, bytes] = {}
        for batch in batches:
            values.update(batch.latest.get(TRADES, {}))
        assert {symbol: decode(p)["seq"] for symbol, p in values.items()} == {"QUIET": 1, "A": 300}


@pytest.mark.parametrize("kind", [BARS, DAILY_BARS, NEWS, STATUSES], ids=repr)
async def test_latencies_are_those_of_quotes_and_trades_alone(
    kind: Kind[Any], autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.send(RecordBatch(kind, [make_record(kind)]))
        await bench.take()
        assert bench.publisher.snapshot().latencies.feed_to_redis.max is None
        await bench.send(RecordBatch(TRADES, [make_record(TRADES)]))
        await bench.take()
        assert bench.publisher.snapshot().latencies.feed_to_redis.max is not None


# ---- the end


async def test_all_is_sent_before_it_ends(autojump_clock: Any, open_bench: MakeBench) -> None:
    async with open_bench() as bench:
        await bench.send(*(bench.quotes(n, n) for n in range(1, 31)))
        bench.inbox.outbox.close()
        seen: list[int] = []
        while len(seen) < 30:
            batch = await bench.batch()
            assert not bench.ended.is_set()
            seen += seqs(batch)
            await bench.acknowledge(batch)
        assert seen == list(range(1, 31))
        await bench.ended.wait()
        with pytest.raises(anyio.EndOfStream):
            await bench.batch()


async def test_ends_at_once_where_nothing_waits(autojump_clock: Any, open_bench: MakeBench) -> None:
    async with open_bench() as bench:
        started_s = anyio.current_time()
        bench.inbox.outbox.close()
        await bench.ended.wait()
        assert anyio.current_time() - started_s <= 1.0


# ---- signs of life


@pytest.mark.parametrize("waiting_for", ["events", "an acknowledgement"])
async def test_heartbeat_goes_on_while_it_waits(
    autojump_clock: Any, open_bench: MakeBench, waiting_for: str
) -> None:
    async with open_bench() as bench:
        if waiting_for == "an acknowledgement":
            await bench.send(bench.quotes(1, 1))
            await bench.batch()
        for _ in range(100):
            await anyio.sleep(0.37)
            assert bench.publisher.heartbeat.age_s() <= 1.0


async def test_at_its_end_only_the_acknowledgement_is_waited_for(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.send(bench.quotes(1, 1))
        batch = await bench.batch()
        bench.inbox.outbox.close()
        for _ in range(50):
            await anyio.sleep(0.37)
            assert bench.publisher.heartbeat.age_s() <= 1.0
        await bench.acknowledge(batch)
        await bench.ended.wait()


# ---- restarts


async def test_restart_hands_the_same_batch_out_again(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.send(bench.quotes(1, 3))
        first = await bench.batch()
        await bench.send(bench.quotes(4, 5))
        await bench.cancel()
        await bench.start()
        again = await bench.batch()
        assert again == first
        assert [m.payload for m in again.messages] == [m.payload for m in first.messages]
        await bench.acknowledge(again)
        assert seqs(await bench.take()) == [4, 5]
        assert bench.publisher.snapshot().events_published == 5


async def test_acknowledgement_of_an_earlier_copy_is_ignored(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    """After a restart the writer may acknowledge one batch twice."""
    async with open_bench() as bench:
        await bench.send(bench.quotes(1, 1))
        await bench.batch()
        await bench.cancel()
        await bench.start()
        copy = await bench.batch()
        await bench.acknowledge(copy)
        await bench.send(bench.quotes(2, 2))
        second = await bench.batch()
        await bench.acknowledge(copy)  # once more: not that of the second
        await bench.send(bench.quotes(3, 3))
        assert bench.publisher.snapshot().events_published == 1
        assert bench._writer.depth.used == 0
        await bench.acknowledge(second)
        assert seqs(await bench.take()) == [3]
        assert bench.publisher.snapshot().events_published == 3


async def test_restarts_at_any_moment_lose_and_reorder_nothing(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        seen: dict[int, list[int]] = {}

        async def write() -> None:
            while True:
                batch = await bench.batch()
                seen[batch.number] = seqs(batch)
                await anyio.sleep(0.010)
                await bench.acknowledged.outbox.send(batch.number)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            for number in range(1, 201):
                await bench.inbox.outbox.send(bench.quotes(number, number))
                await anyio.sleep(0.003)
                if number % 7 == 0:
                    await bench.cancel()
                    await bench.start()
            while bench.publisher.snapshot().backlog:
                await anyio.sleep(0.1)
            tasks.cancel_scope.cancel()
        assert list(seen) == list(range(1, len(seen) + 1))
        assert [seq for batch in seen.values() for seq in batch] == list(range(1, 201))
        assert bench.publisher.snapshot().events_published == 200


async def test_events_of_a_batch_that_is_written_are_stored_before_it_is_acknowledged(
    open_bench: MakeBench,
) -> None:
    async with open_bench() as bench:
        await bench.send(bench.quotes(1, 3))
        batch = await bench.batch()
        await bench.send(bench.quotes(4, 5))
        assert bench.publisher.not_stored(batch.number - 1) == (3, 2)
        assert bench.publisher.not_stored(batch.number) == (0, 2)
        await bench.acknowledge(batch)
        assert bench.publisher.not_stored(batch.number) == (2, 0)
