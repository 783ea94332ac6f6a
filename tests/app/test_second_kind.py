"""A second kind of record, made up here, goes all the way from the feed's channel to the store.

It shows what a kind costs: a record, an entry, an encoder and a decoder. No module of the pipeline
knows of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
import pytest

from mdservice.feed.history import HalvingHistory
from mdservice.model.events import (
    Backfill,
    FeedItem,
    FeedLost,
    FeedResumed,
    FirstRecords,
    RecordBatch,
    RoutedItem,
)
from mdservice.model.feeds import Feed, Topic
from mdservice.model.kinds import QUOTES
from mdservice.model.quote import Quote
from mdservice.publish.publisher import EventPublisher
from mdservice.publish.readers import LocalReaders
from mdservice.publish.store import WriteBatch, read_last_records
from mdservice.publish.writer import RedisWriter
from mdservice.router.actor import Router
from mdservice.runtime.actor import Channel
from mdservice.testing import FakeHistory, MemoryPriceStore, VirtualClock
from tests.second_kind import DEPTHS, Depth

BOTH = (QUOTES, DEPTHS)


# ---- the pipeline


class Pipeline:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.start_ns = self.clock.utc_ns()
        self.feed = Channel[FeedItem](64)
        self.events = Channel[RoutedItem](64)
        self.batches = Channel[WriteBatch](1)
        self.acknowledged = Channel[int](1)
        self.readers = LocalReaders()
        self.store = MemoryPriceStore(clock=self.clock, event_log="log")
        self.vouched: set[str] = set()
        self.router = Router(
            self.feed, self.events.outbox, self.readers.offer, self.clock, feed=Feed("stocks", BOTH)
        )
        self.publisher = EventPublisher(
            self.events, self.batches.outbox, self.acknowledged, 1_000, self.clock
        )
        self.writer = RedisWriter(
            self.batches,
            self.acknowledged.outbox,
            self.store,
            self.clock,
            lambda kind: self.vouched,
            kinds=BOTH,
        )

    async def send(self, *items: FeedItem) -> None:
        for item in items:
            await self.feed.outbox.send(item)
        await anyio.sleep(0.01)

    def depth(self, number: int, symbol: str = "AAPL", seq: int = 0) -> Depth:
        """Its number is its orders and its time."""
        return Depth(symbol, number, self.start_ns + number, self.start_ns, seq)

    def quote(self, number: int, symbol: str = "AAPL") -> Quote:
        return Quote(symbol, number, number + 1, 1, 1, self.start_ns + number, self.start_ns)

    def published(self) -> list[tuple[int, int]]:
        """Orders and number of each event, in order."""
        found = map(DEPTHS.decode, self.store.published.get("depth.updated", ()))
        return [(depth.orders, depth.seq) for depth in found]

    def states(self) -> list[dict[str, Any]]:
        return [msgspec.json.decode(each) for each in self.store.published.get("feed.status", ())]


@asynccontextmanager
async def pipeline() -> AsyncIterator[Pipeline]:
    made = Pipeline()
    with anyio.fail_after(1_000):
        async with anyio.create_task_group() as tasks:
            for actor in (made.writer, made.publisher, made.router):
                await tasks.start(actor.run)
            yield made
            made.feed.outbox.close()  # each of them then ends by itself
    for channel in (made.feed, made.events, made.batches, made.acknowledged):
        channel.close()


async def test_it_is_ordered_numbered_published_and_kept_beside_quotes(
    autojump_clock: Any,
) -> None:
    async with pipeline() as made:
        await made.send(
            RecordBatch(QUOTES, [made.quote(5)]),
            RecordBatch(DEPTHS, [made.depth(1), made.depth(3), made.depth(3), made.depth(2)]),
            RecordBatch(QUOTES, [made.quote(6)]),
            RecordBatch(DEPTHS, [made.depth(4), made.depth(1, "MSFT")]),
        )
        assert made.published() == [(1, 1), (3, 2), (4, 3), (1, 1)], "late and repeated ones go"
        assert made.store.get("depth:AAPL") == DEPTHS.encode(made.depth(4, seq=3))
        assert made.store.price("AAPL") == made.store.published["price.updated"][-1]
        assert {symbol for symbol, _ in made.store.entries} == {"AAPL"}, "only quotes are logged"
        assert len(made.store.entries) == 2


async def test_its_key_lives_as_long_as_the_kind_says_and_is_renewed(autojump_clock: Any) -> None:
    async with pipeline() as made:
        await made.send(
            RecordBatch(DEPTHS, [made.depth(1), made.depth(2, "MSFT")]),
            RecordBatch(QUOTES, [made.quote(1)]),
        )
        made.vouched.add("AAPL")
        await anyio.sleep(100)
        assert made.store.get("depth:AAPL") is not None
        assert made.store.get("depth:MSFT") is None, "no answer confirmed it"
        assert made.store.price("AAPL") is not None, "a price lives longer"


async def test_a_reader_of_one_kind_gets_nothing_of_the_other(autojump_clock: Any) -> None:
    async with pipeline() as made:
        with (
            made.readers.open() as prices,
            made.readers.open(
                kinds=(DEPTHS,), first=[RecordBatch(DEPTHS, [made.depth(1)])]
            ) as depths,
        ):
            await made.send(
                RecordBatch(QUOTES, [made.quote(1)]), RecordBatch(DEPTHS, [made.depth(2)])
            )
            made.readers.close()
            assert [quote.bid async for quote in prices] == [1]
            assert [depth.orders async for depth in depths] == [1, 2]


async def test_its_gap_is_its_own_and_is_repaired(autojump_clock: Any) -> None:
    async with pipeline() as made:
        history = FakeHistory()
        symbols = frozenset(("AAPL",))
        await made.send(
            RecordBatch(QUOTES, [made.quote(1)]),
            RecordBatch(DEPTHS, [made.depth(1)]),
            FeedLost(
                made.start_ns, frozenset((Topic("quotes", "AAPL"), Topic("depths", "AAPL"))), "cut"
            ),
        )
        history.add([made.depth(2), made.depth(3)], DEPTHS)
        history.add([made.quote(2)])
        found = await HalvingHistory(history, DEPTHS).past(["AAPL"], made.start_ns, 2**62)
        await made.send(
            FeedResumed(DEPTHS, made.start_ns, symbols, repairing=True),
            Backfill(DEPTHS, found.records, [made.depth(3), made.depth(4)], 0, symbols),
        )
        assert made.published() == [(1, 1), (2, 2), (3, 3), (4, 4)]
        assert [state["state"] for state in made.states()] == [
            "disconnected",
            "gap",
            "gap_repaired",
        ]
        assert made.states()[-1]["depths"] == 1, "the other one came live too"
        assert len(made.store.published["price.updated"]) == 1, "quotes are still missing"


async def test_its_first_value_comes_from_rest_and_an_earlier_run_is_continued(
    autojump_clock: Any,
) -> None:
    async with pipeline() as made:
        asked_ns = {"AAPL": made.start_ns}
        await made.send(
            FirstRecords(DEPTHS, [made.depth(7)], asked_ns), RecordBatch(DEPTHS, [made.depth(6)])
        )
        assert made.published() == [(7, 1)]
        last = await read_last_records(made.store, {DEPTHS: ["AAPL", "MSFT"]}, 2**62)
        assert [(depth.orders, depth.seq) for depth in last[DEPTHS]] == [(7, 1)]


async def test_a_server_that_came_back_empty_gets_its_values_again(autojump_clock: Any) -> None:
    async with pipeline() as made:
        await made.send(RecordBatch(DEPTHS, [made.depth(1)]), RecordBatch(QUOTES, [made.quote(1)]))
        made.store.restart()
        await anyio.sleep(5)
        assert made.store.get("depth:AAPL") is not None
        assert made.store.price("AAPL") is not None


@pytest.mark.thorough
async def test_a_full_backlog_keeps_the_newest_of_each_kind_and_symbol(autojump_clock: Any) -> None:
    async with pipeline() as made:
        made.store.down = True
        made.store.drop_connection()
        for number in range(1, 3_001):
            await made.send(RecordBatch(DEPTHS, [made.depth(number)]))
        await made.send(RecordBatch(QUOTES, [made.quote(1)]))
        made.store.down = False
        await anyio.sleep(5)
        published = made.published()
        assert published[-1] == (3_000, 3_000)
        assert published == sorted(published)
        conflated = made.publisher.snapshot().events_conflated
        assert len(published) + conflated == 3_000
        assert made.store.price("AAPL") is not None
