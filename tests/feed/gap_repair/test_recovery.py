"""Latest values after a lost connection: fetched, or awaited from the stream. On virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from mdservice.errors import HistoryRefused, HistoryUnavailable
from mdservice.feed.gap_repair.recovery import REFRESH_LIMIT_S, Refresh
from mdservice.feed.history import HalvingHistory
from mdservice.feed.send_queue import SendQueue
from mdservice.model.events import FeedItem, FeedResumed, FirstRecords, RecordBatch, Refreshed
from mdservice.model.kinds import ORDERBOOKS, QUOTES
from mdservice.model.order_book import OrderBook
from mdservice.model.quote import Quote
from mdservice.router.sequencer import Sequencer
from mdservice.testing import FakeHistory, VirtualClock

OPTION = "AAPL261218C00200000"


class Bench:
    def __init__(self, *, books: bool = False) -> None:
        self.clock = VirtualClock()
        self.history = FakeHistory()
        self.send, self.receive = anyio.create_memory_object_stream[FeedItem](100)
        kind: Any = ORDERBOOKS if books else QUOTES
        history = None if books else HalvingHistory(self.history, QUOTES)
        send_queue = SendQueue(self.send)
        self.refresh: Refresh[Any] = Refresh(kind, history, Sequencer(kind), send_queue, self.clock)

    @property
    def sent(self) -> list[FeedItem]:
        items = []
        while self.receive.statistics().current_buffer_used:
            items.append(self.receive.receive_nowait())
        return items

    def quote(self, symbol: str = OPTION) -> Quote:
        now_ns = self.clock.utc_ns()
        return Quote(symbol, 1.0, 2.0, 1, 1, now_ns, now_ns)

    def book(self, symbol: str = "BTC/USD") -> OrderBook:
        now_ns = self.clock.utc_ns()
        return OrderBook(symbol, ((1.0, 2),), ((2.0, 1),), now_ns, now_ns)


@asynccontextmanager
async def outage(bench: Bench, *symbols: str) -> AsyncIterator[None]:
    """Symbols were followed, the connection was lost and is open again."""
    with bench.send, bench.receive:
        bench.refresh.begin()
        await bench.refresh.repair(symbols)
        bench.refresh.lost(symbols)
        assert bench.refresh.symbols() == set(symbols)
        assert [type(item) for item in bench.sent] == [FeedResumed]
        bench.refresh.begin()
        yield


async def test_the_latest_values_are_fetched_and_the_gap_stays(autojump_clock: Any) -> None:
    bench = Bench()
    async with outage(bench, OPTION, "OTHER261218C00200000"):
        bench.history.add([bench.quote()])
        await bench.refresh.repair([OPTION, "OTHER261218C00200000"])
        resumed, first, refreshed = bench.sent
    assert isinstance(resumed, FeedResumed)
    assert (resumed.refreshing, resumed.repairing) == (True, False)
    assert isinstance(first, FirstRecords)
    assert [record.symbol for record in first.records] == [OPTION]
    assert isinstance(refreshed, Refreshed)
    assert refreshed.symbols == {OPTION, "OTHER261218C00200000"}
    assert bench.refresh.symbols() == frozenset()


async def test_a_history_that_is_down_for_a_moment_is_asked_again(autojump_clock: Any) -> None:
    bench = Bench()
    async with outage(bench, OPTION):
        bench.history.add([bench.quote()])
        bench.history.script.append(HistoryUnavailable("down"))
        await bench.refresh.repair([OPTION])
        refreshed = bench.sent[-1]
    assert isinstance(refreshed, Refreshed)
    assert refreshed.symbols == {OPTION}
    assert bench.refresh.refused is None


@pytest.mark.parametrize("error", [HistoryRefused("no"), HistoryUnavailable("down")])
async def test_a_history_that_does_not_answer_refreshes_nothing(
    autojump_clock: Any, error: Exception
) -> None:
    bench = Bench()
    began_s = anyio.current_time()
    async with outage(bench, OPTION):
        bench.history.always = error
        await bench.refresh.repair([OPTION])
        refreshed = bench.sent[-1]
    assert isinstance(refreshed, Refreshed)
    assert (refreshed.symbols, refreshed.failed) == (frozenset(), {OPTION})
    assert bench.refresh.refused == str(error)
    assert anyio.current_time() - began_s <= REFRESH_LIMIT_S


async def test_a_book_is_refreshed_when_it_has_come(autojump_clock: Any) -> None:
    bench = Bench(books=True)
    async with outage(bench, "BTC/USD", "ETH/USD"):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bench.refresh.repair, ["BTC/USD", "ETH/USD"])
            await anyio.sleep(1)
            bench.refresh.add_live(ORDERBOOKS, [bench.book("BTC/USD")])
            await anyio.sleep(1)
            assert not [item for item in bench.sent if isinstance(item, Refreshed)]
            bench.refresh.add_live(ORDERBOOKS, [bench.book("ETH/USD")])
        live, refreshed = bench.sent
    assert isinstance(live, RecordBatch)
    assert isinstance(refreshed, Refreshed)
    assert refreshed.symbols == {"BTC/USD", "ETH/USD"}


async def test_a_book_that_comes_before_the_acknowledgement_counts(autojump_clock: Any) -> None:
    bench = Bench(books=True)
    async with outage(bench, "BTC/USD"):
        bench.refresh.add_live(ORDERBOOKS, [bench.book()])
        await bench.refresh.repair(["BTC/USD"])
        refreshed = bench.sent[-1]
    assert isinstance(refreshed, Refreshed)
    assert refreshed.symbols == {"BTC/USD"}


async def test_a_book_that_never_comes_is_named(autojump_clock: Any) -> None:
    bench = Bench(books=True)
    async with outage(bench, "BTC/USD"):
        await bench.refresh.repair(["BTC/USD"])
        refreshed = bench.sent[-1]
    assert isinstance(refreshed, Refreshed)
    assert (refreshed.symbols, refreshed.failed) == (frozenset(), {"BTC/USD"})


async def test_what_is_left_out_is_refreshed_when_it_returns(autojump_clock: Any) -> None:
    bench = Bench()
    async with outage(bench, OPTION):
        await bench.refresh.repair([], [OPTION])
        assert bench.refresh.symbols() == {OPTION}
        assert [type(item) for item in bench.sent] == [FeedResumed]
        await bench.refresh.subscriptions_changed([OPTION], [])
        refreshed = bench.sent[-1]
    assert isinstance(refreshed, Refreshed)
    assert refreshed.symbols == {OPTION}


async def test_what_is_no_longer_wanted_is_forgotten(autojump_clock: Any) -> None:
    bench = Bench()
    async with outage(bench, OPTION):
        await bench.refresh.repair([], [])
        assert bench.refresh.symbols() == frozenset()
        assert [type(item) for item in bench.sent] == [FeedResumed]


async def test_lost_again_in_the_middle_it_is_refreshed_by_the_next(autojump_clock: Any) -> None:
    bench = Bench()
    async with outage(bench, OPTION):
        bench.history.delay_s = 5
        with anyio.move_on_after(1):
            await bench.refresh.repair([OPTION])
        bench.refresh.lost([OPTION])
        bench.refresh.begin()
        await bench.refresh.repair([OPTION])
        refreshed = [item for item in bench.sent if isinstance(item, Refreshed)]
    assert [item.symbols for item in refreshed] == [{OPTION}]


async def test_a_request_does_not_wait_long_for_a_history_that_is_down(
    autojump_clock: Any,
) -> None:
    bench = Bench()
    async with outage(bench, OPTION):
        await bench.refresh.repair([], [OPTION])
        bench.history.always = HistoryUnavailable("down")
        began_s = anyio.current_time()
        await bench.refresh.subscriptions_changed([OPTION], [])
        assert anyio.current_time() - began_s <= 4, "other requests wait behind it"
        refreshed = bench.sent[-1]
    assert isinstance(refreshed, Refreshed)
    assert (refreshed.symbols, refreshed.failed) == (frozenset(), {OPTION})


async def test_books_that_return_in_the_middle_of_a_refresh_are_awaited_apart(
    autojump_clock: Any,
) -> None:
    bench = Bench(books=True)
    async with outage(bench, "BTC/USD", "ETH/USD"):
        began_s = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bench.refresh.repair, ["BTC/USD"], ["ETH/USD"])
            await anyio.sleep(0.1)
            tasks.start_soon(bench.refresh.subscriptions_changed, ["BTC/USD", "ETH/USD"], [])
            await anyio.sleep(0.1)
            bench.refresh.add_live(ORDERBOOKS, [bench.book("ETH/USD")])
            await anyio.sleep(0.1)
            done = [item for item in bench.sent if isinstance(item, Refreshed)]
            assert [item.symbols for item in done] == [{"ETH/USD"}]
            bench.refresh.add_live(ORDERBOOKS, [bench.book("BTC/USD")])
        assert anyio.current_time() - began_s < 1
        (last,) = [item for item in bench.sent if isinstance(item, Refreshed)]
    assert (last.symbols, last.failed) == ({"BTC/USD"}, frozenset())


async def test_a_request_reports_no_refresh_of_a_connection_that_is_lost(
    autojump_clock: Any,
) -> None:
    bench = Bench()
    async with outage(bench, OPTION):
        await bench.refresh.repair([], [OPTION])
        bench.history.add([bench.quote()])
        bench.history.delay_s = 2
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bench.refresh.subscriptions_changed, [OPTION], [])
            await anyio.sleep(1)
            bench.refresh.lost([OPTION])
        assert not [item for item in bench.sent if isinstance(item, Refreshed)]
        bench.refresh.begin()
        await bench.refresh.repair([OPTION])
        refreshed = [item for item in bench.sent if isinstance(item, Refreshed)]
    assert [item.symbols for item in refreshed] == [{OPTION}]
