"""The router as an actor: one order in, one order out, gaps told, nothing lost by a restart."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import pytest

from mdservice.model.events import (
    FeedItem,
    FeedLost,
    FeedResumed,
    FeedState,
    FeedStatus,
    FirstRecords,
    RecordBatch,
    RoutedItem,
)
from mdservice.model.kinds import QUOTES
from mdservice.model.quote import Quote
from mdservice.model.timestamps import format_ns
from mdservice.router.actor import FUTURE_TOLERANCE_NS, QuoteRouter
from mdservice.runtime.actor import Channel
from mdservice.testing import VirtualClock

SECOND_NS = 1_000_000_000


class Bench:
    """A running router.

    Attributes:
        items: What came out, in order.
        told: What the listener received, in order.
    """

    def __init__(self, tasks: anyio.abc.TaskGroup, outbox_size: int) -> None:
        self.clock = VirtualClock()
        self.start_ns = self.clock.utc_ns()
        self.inbox = Channel[FeedItem](64)
        self.outbox = Channel[RoutedItem](outbox_size)
        self.told: list[RoutedItem] = []
        self.items: list[RoutedItem] = []
        self.router = QuoteRouter(self.inbox, self.outbox.outbox, self.told.append, self.clock)
        self._tasks = tasks
        self._scope = anyio.CancelScope()
        self.ended = anyio.Event()

    async def start(self) -> None:
        self._scope, self.ended = anyio.CancelScope(), anyio.Event()
        await self._tasks.start(self._run)

    async def _run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        with self._scope:
            await self.router.run(task_status=task_status)
        self.ended.set()

    async def cancel(self) -> None:
        self._scope.cancel()
        await self.ended.wait()

    def take(self) -> None:
        """Take what comes out, from now on."""
        self._tasks.start_soon(self._collect)

    async def _collect(self) -> None:
        async for item in self.outbox.inbox(self.router.heartbeat, "collector"):
            self.items.append(item)

    async def send(self, *items: FeedItem) -> None:
        for item in items:
            await self.inbox.outbox.send(item)
        await anyio.wait_all_tasks_blocked()

    def quote(self, bid: float, symbol: str = "AAPL", *, at_s: float = 0.0) -> Quote:
        event_ns = self.start_ns + int(at_s * SECOND_NS)
        return Quote(symbol, bid, bid + 1, 1, 1, event_ns, self.start_ns)

    def batch(self, *bids: float, symbol: str = "AAPL") -> RecordBatch[Quote]:
        """Quotes whose times rise with their bids."""
        return RecordBatch(QUOTES, [self.quote(bid, symbol, at_s=bid / 1000) for bid in bids])

    def status(self, state: FeedState, at_s: float = 0.0) -> FeedStatus:
        return FeedStatus(state, self.start_ns + int(at_s * SECOND_NS))

    def lost(self, *symbols: str) -> FeedLost:
        return FeedLost(self.start_ns, frozenset(symbols), "reset")

    @property
    def story(self) -> list[Any]:
        return story(self.items)


def story(items: list[RoutedItem]) -> list[Any]:
    """States by name, quotes as (symbol, bid, seq)."""
    out: list[Any] = []
    for item in items:
        if isinstance(item, FeedStatus):
            out.append(item.state)
        else:
            out.extend((quote.symbol, quote.bid, quote.seq) for quote in item.records)
    return out


MakeBench = Callable[..., AbstractAsyncContextManager[Bench]]


@pytest.fixture
def open_bench() -> MakeBench:
    @asynccontextmanager
    async def opened(outbox_size: int = 64, *, taking: bool = True) -> AsyncIterator[Bench]:
        with anyio.fail_after(1_000):
            async with anyio.create_task_group() as tasks:
                bench = Bench(tasks, outbox_size)
                if taking:
                    bench.take()
                await bench.start()
                try:
                    yield bench
                finally:
                    tasks.cancel_scope.cancel()
                    bench.inbox.close()
                    bench.outbox.close()

    return opened


async def test_numbers_each_symbol_on_its_own_and_keeps_the_order(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.send(
            RecordBatch(QUOTES, [bench.quote(1), bench.quote(2, "MSFT"), bench.quote(3, at_s=1)]),
            bench.batch(4_000),
        )
        assert bench.story == [
            ("AAPL", 1, 1),
            ("MSFT", 2, 1),
            ("AAPL", 3, 2),
            ("AAPL", 4_000, 3),
        ]
        now = bench.router.snapshot()
        assert (now.symbols, now.quotes_accepted, now.quotes_stale) == (2, 4, 0)


async def test_older_and_repeated_quotes_go_no_further(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.send(
            RecordBatch(QUOTES, [bench.quote(1, at_s=5)]),
            RecordBatch(QUOTES, [bench.quote(1, at_s=5), bench.quote(2, at_s=4)]),
            RecordBatch(QUOTES, [bench.quote(3, at_s=5)]),
        )
        assert bench.story == [("AAPL", 1, 1), ("AAPL", 3, 2)]
        assert bench.router.snapshot().quotes_stale == 2
        assert len(bench.items) == 2, "a batch of which nothing is left is not sent"


async def test_quote_from_the_future_is_counted_and_blocks_nothing(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    limit_s = FUTURE_TOLERANCE_NS / SECOND_NS
    async with open_bench() as bench:
        await bench.send(
            RecordBatch(QUOTES, [bench.quote(1, at_s=limit_s + 0.1), bench.quote(2, at_s=limit_s)]),
            RecordBatch(QUOTES, [bench.quote(3, at_s=limit_s)]),
        )
        assert bench.story == [("AAPL", 2, 1), ("AAPL", 3, 2)]
        now = bench.router.snapshot()
        assert (now.future_records, now.quotes_accepted, now.quotes_stale) == (1, 2, 0)
        assert now.clock_behind_s is None


async def test_machine_whose_clock_is_behind_is_noticed(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        for number in range(100):
            await bench.send(RecordBatch(QUOTES, [bench.quote(1 + number, at_s=300)]))
        assert bench.router.snapshot().clock_behind_s == pytest.approx(300)
        bench.clock.step(300)
        for number in range(100):
            await bench.send(RecordBatch(QUOTES, [bench.quote(1 + number, at_s=300)]))
        assert bench.router.snapshot().clock_behind_s is None


async def test_listener_hears_the_same_in_the_same_order(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.send(
            bench.status("connected"),
            bench.batch(1),
            bench.lost("AAPL"),
            bench.status("connected"),
            FeedResumed(QUOTES, bench.start_ns, frozenset(("AAPL",)), repairing=False),
            bench.batch(2),
        )
        assert bench.told == bench.items
        assert len(bench.items) == 6


async def test_reports_the_gap_that_a_lost_connection_leaves(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.send(
            bench.status("connected"),
            RecordBatch(QUOTES, [bench.quote(1, at_s=7), bench.quote(2, "MSFT", at_s=9)]),
            bench.lost("AAPL", "MSFT"),
            bench.status("connected", at_s=29),
            FeedResumed(
                QUOTES,
                bench.start_ns + 30 * SECOND_NS,
                frozenset(
                    (
                        "AAPL",
                        "MSFT",
                        "TSLA",
                    )
                ),
                repairing=False,
            ),
        )
        assert [item.state for item in bench.items if isinstance(item, FeedStatus)] == [
            "connected",
            "disconnected",
            "connected",
            "gap",
        ]
        gap = bench.items[-1]
        assert isinstance(gap, FeedStatus)
        assert gap.details == {
            "from": format_ns(bench.start_ns + 9 * SECOND_NS),  # of the last quote, not the loss
            "to": format_ns(bench.start_ns + 30 * SECOND_NS),
            "symbols": ["AAPL", "MSFT"],
        }
        assert bench.router.snapshot().gaps == 1


async def test_without_any_quote_there_is_no_gap(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.send(
            bench.lost("AAPL"),
            bench.status("connected"),
            FeedResumed(QUOTES, bench.start_ns, frozenset(("AAPL",)), repairing=False),
        )
        assert bench.story == ["disconnected", "connected"]


async def test_first_connection_leaves_no_gap(autojump_clock: Any, open_bench: MakeBench) -> None:
    async with open_bench() as bench:
        await bench.send(
            bench.status("connected"),
            bench.batch(1),
            FeedResumed(QUOTES, bench.start_ns, frozenset(("AAPL",)), repairing=False),
            bench.status("stale"),
        )
        assert bench.story == ["connected", ("AAPL", 1, 1), "stale"]


async def test_waits_for_the_next_actor_and_loses_nothing(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench(outbox_size=1, taking=False) as bench:
        bids = list(range(1, 31))
        await bench.send(*(bench.batch(bid) for bid in bids))
        assert bench.router.depth.used >= 20, "it does not wait"
        bench.take()
        await anyio.wait_all_tasks_blocked()
        assert bench.story == [("AAPL", bid, bid) for bid in bids]


async def test_ends_once_the_inbox_has_ended_and_closes_the_outbox(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.send(*(bench.batch(bid) for bid in range(1, 11)))
        bench.inbox.outbox.close()
        await bench.ended.wait()
        await anyio.wait_all_tasks_blocked()
        assert len(bench.story) == 10
        with pytest.raises(anyio.ClosedResourceError):
            await bench.outbox.outbox.send(bench.status("connected"))


async def test_heartbeat_goes_on_without_quotes(autojump_clock: Any, open_bench: MakeBench) -> None:
    async with open_bench() as bench:
        for _ in range(100):
            await anyio.sleep(0.37)
            assert bench.router.heartbeat.age_s() <= 1.0


async def test_restart_between_items_keeps_the_numbers(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.send(bench.batch(1, 2))
        await bench.cancel()
        await bench.start()
        await bench.send(bench.batch(3))
        assert bench.story == [("AAPL", 1, 1), ("AAPL", 2, 2), ("AAPL", 3, 3)]


async def test_restart_in_the_middle_of_an_item_repeats_and_loses_nothing(
    autojump_clock: Any,
    open_bench: MakeBench,
) -> None:
    async with open_bench(outbox_size=1, taking=False) as bench:
        items = [
            bench.status("connected"),
            bench.batch(1, 2),
            bench.lost("AAPL"),
            bench.status("connected"),
            FeedResumed(QUOTES, bench.start_ns, frozenset(("AAPL",)), repairing=False),
            bench.batch(3),
        ]
        for item in items:
            await bench.inbox.outbox.send(item)
        for _ in range(12):  # cancelled again and again while it waits for the next actor
            await anyio.wait_all_tasks_blocked()
            await bench.cancel()
            await bench.start()
            with anyio.move_on_after(0.1):
                bench.items.append(await bench.outbox.inbox(bench.router.heartbeat).receive())
        assert bench.story == [
            *("connected", ("AAPL", 1, 1), ("AAPL", 2, 2), "disconnected", "connected", "gap"),
            ("AAPL", 3, 3),
        ]
        assert story(bench.told) == bench.story
        assert bench.router.snapshot().gaps == 1


async def test_first_prices_are_sent_and_counted_unless_they_are_from_the_future(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        limit_s = FUTURE_TOLERANCE_NS / SECOND_NS
        late = bench.quote(3, "MSFT", at_s=limit_s)
        late.ts_event_ns += 1
        first = [bench.quote(1), bench.quote(2, "IBM", at_s=limit_s), late]
        asked_ns = {each.symbol: bench.start_ns for each in first}
        await bench.send(FirstRecords(QUOTES, first, asked_ns))
        assert bench.story == [("AAPL", 1, 1), ("IBM", 2, 1)]
        snapshot = bench.router.snapshot()
        assert (snapshot.prices_fetched, snapshot.quotes_accepted) == (2, 2)
        assert snapshot.future_records == 1
