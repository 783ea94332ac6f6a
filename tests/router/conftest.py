"""A running router with its channels, on virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeGuard

import anyio
import anyio.abc
import pytest

from mdservice.model.events import (
    FeedItem,
    FeedLost,
    FeedState,
    FeedStatus,
    LatestChanged,
    RecordBatch,
    RoutedItem,
)
from mdservice.model.feeds import STOCKS, Feed, Topic
from mdservice.model.kinds import QUOTES, Kind
from mdservice.model.quote import Quote
from mdservice.router.actor import Router
from mdservice.runtime.actor import Channel
from mdservice.testing import VirtualClock

SECOND_NS = 1_000_000_000


class Bench:
    """A running router.

    Attributes:
        items: What came out, in order.
        told: What the listener received, in order.
        wanted: The kinds and symbols whose latest record was asked for.
    """

    def __init__(self, tasks: anyio.abc.TaskGroup, outbox_size: int, feed: Feed = STOCKS) -> None:
        self.clock = VirtualClock()
        self.start_ns = self.clock.utc_ns()
        self.inbox = Channel[FeedItem](64)
        self.outbox = Channel[RoutedItem](outbox_size)
        self.told: list[RoutedItem] = []
        self.items: list[RoutedItem] = []
        self.wanted: list[tuple[Kind[Any], str]] = []
        self.router = Router(
            self.inbox,
            self.outbox.outbox,
            self.told.append,
            self.clock,
            feed=feed,
            wanted_latest=lambda kind, symbol: self.wanted.append((kind, symbol)),
        )
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
        topics = frozenset(Topic("quotes", symbol) for symbol in symbols)
        return FeedLost(self.start_ns, topics, "reset")

    @property
    def gaps(self) -> list[dict[str, Any]]:
        """The contents of each ``gap`` and ``gap_repaired``."""
        return [dict(item.details) for item in self.items if is_gap(item)]

    @property
    def story(self) -> list[Any]:
        return story(self.items)


def is_gap(item: RoutedItem) -> TypeGuard[FeedStatus]:
    return isinstance(item, FeedStatus) and item.state in ("gap", "gap_repaired")


def story(items: list[RoutedItem]) -> list[Any]:
    """States by name, quotes as (symbol, bid, seq)."""
    out: list[Any] = []
    for item in items:
        if isinstance(item, FeedStatus):
            out.append(item.state)
        elif isinstance(item, LatestChanged):
            out.append(item)
        else:
            out.extend((quote.symbol, quote.bid, quote.seq) for quote in item.records)
    return out


MakeBench = Callable[..., AbstractAsyncContextManager[Bench]]


@pytest.fixture
def open_bench() -> MakeBench:
    @asynccontextmanager
    async def opened(
        outbox_size: int = 64, *, taking: bool = True, feed: Feed = STOCKS
    ) -> AsyncIterator[Bench]:
        with anyio.fail_after(1_000):
            async with anyio.create_task_group() as tasks:
                bench = Bench(tasks, outbox_size, feed)
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
