"""A feed connection on virtual time, with fake drivers in front and a collector behind."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import pytest

from mdservice.feed.connection import FeedConnection, FeedSnapshot
from mdservice.feed.gap_repair.repair import GapRepair
from mdservice.feed.liveness import Hours, Liveness
from mdservice.feed.requests import Command, Subscribe, SubscriptionResult, Unsubscribe
from mdservice.feed.retries import DriverSelection
from mdservice.feed.send_queue import SendQueue
from mdservice.feed.subscriptions import SubscriptionSet
from mdservice.model.events import FeedItem, FeedLost, FeedStatus, RecordBatch
from mdservice.model.feeds import STOCKS
from mdservice.model.kinds import QUOTES, Kind
from mdservice.router.sequencer import Sequencer
from mdservice.runtime.actor import Channel
from mdservice.runtime.backoff import Backoff
from mdservice.testing import FakeDriver, VirtualClock
from tests.topics import quotes

SEED = 7


async def _open() -> Hours:
    return "open"


async def _refresh(kind: Kind[Any], records: Sequence[Any], asked_ns: int) -> None:
    raise AssertionError("there is no history")


def _as_told(item: FeedItem) -> FeedItem:
    """A loss as readers hear of it from the router."""
    if isinstance(item, FeedLost):
        return FeedStatus("disconnected", item.at_ns, {"reason": item.reason})
    return item


class Bench:
    """A running connection, and everything that it has sent.

    Attributes:
        items: What came out of it, in order.
        outcome: What ``run`` ended with: an exception, or None where it has returned.
        ended: When it has.
    """

    def __init__(
        self, drivers: Sequence[FakeDriver], symbols: Sequence[str], tasks: anyio.abc.TaskGroup
    ) -> None:
        self.driver = drivers[0]
        self.subscriptions = SubscriptionSet()
        self.subscriptions.add(quotes(*symbols), "settings")
        self.commands = Channel[Command](100)
        self.channel = Channel[FeedItem](64)
        self.clock = VirtualClock()
        send_queue = SendQueue(self.channel.outbox)
        repair = GapRepair(QUOTES, None, Sequencer(QUOTES), send_queue, self.clock)
        others = {
            kind: GapRepair(kind, None, Sequencer(kind), send_queue, self.clock)
            for kind in STOCKS.kinds
            if kind is not QUOTES and not kind.is_companion
        }
        self.connection = FeedConnection(
            STOCKS,
            DriverSelection(drivers),
            self.subscriptions,
            self.commands,
            send_queue,
            self.clock,
            Backoff(rng=random.Random(SEED)),
            {QUOTES: repair, **others},
            Liveness(1e9, (), _open, self.clock.utc_ns, _refresh),
        )
        self.items: list[FeedItem] = []
        self.outcome: BaseException | None = None
        self.ended = anyio.Event()
        self._changed = anyio.Event()
        self._tasks = tasks
        self._run_scope = anyio.CancelScope()
        self._collect_scope = anyio.CancelScope()

    async def start(self) -> None:
        """Run it, for the first time or again."""
        self._run_scope = anyio.CancelScope()
        self.ended = anyio.Event()
        await self._tasks.start(self._run)

    def take(self) -> None:
        """Receive what the connection sends, until :meth:`stop_taking`."""
        self._collect_scope = anyio.CancelScope()
        self._tasks.start_soon(self._collect)

    async def _run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        try:
            with self._run_scope:
                await self.connection.run(task_status=task_status)
        except Exception as exc:
            self.outcome = exc
        finally:
            self.ended.set()

    async def _collect(self) -> None:
        with self._collect_scope:
            inbox = self.channel.inbox(self.connection.heartbeat)
            async for item in inbox:
                self.items.append(item)
                self._changed.set()
                self._changed = anyio.Event()

    async def cancel(self) -> None:
        """Cancel ``run``, as the supervisor does with an actor that hangs."""
        self._run_scope.cancel()
        await self.ended.wait()

    def stop_taking(self) -> None:
        """Stop receiving what the connection sends."""
        self._collect_scope.cancel()

    @property
    def now(self) -> FeedSnapshot:
        return self.connection.snapshot()

    @property
    def story(self) -> list[Any]:
        """Each state by its name, each batch as the list of its bids."""
        return [
            item.state if isinstance(item, FeedStatus) else [quote.bid for quote in item.records]
            for item in map(_as_told, self.items)
            if isinstance(item, FeedStatus | RecordBatch)
        ]

    @property
    def statuses(self) -> list[FeedStatus]:
        return [item for item in map(_as_told, self.items) if isinstance(item, FeedStatus)]

    @property
    def bids(self) -> list[float]:
        batches = [item for item in self.items if isinstance(item, RecordBatch)]
        return [quote.bid for batch in batches for quote in batch.records]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until it holds; looked at whenever something was sent."""
        while not condition():
            await self._changed.wait()

    async def until_phase(self, phase: str) -> None:
        """Wait until the connection is in this phase; virtual time makes this exact enough."""
        while self.now.phase != phase:
            await anyio.sleep(0.01)

    async def ask(self, command: Subscribe | Unsubscribe) -> SubscriptionResult:
        await self.commands.outbox.send(command)
        return await command.answer.wait()

    async def subscribe(self, *symbols: str, source: str = "api") -> SubscriptionResult:
        return await self.ask(Subscribe(quotes(*symbols), source))

    async def unsubscribe(self, *symbols: str, source: str = "api") -> SubscriptionResult:
        return await self.ask(Unsubscribe(quotes(*symbols), (source,)))

    async def stop(self) -> None:
        self.connection.stop()
        await self.ended.wait()


MakeBench = Callable[..., AbstractAsyncContextManager[Bench]]


@pytest.fixture
def open_bench() -> MakeBench:
    """``async with open_bench(*symbols, drivers=[...])``: a running connection."""

    @asynccontextmanager
    async def opened(*symbols: str, drivers: Sequence[FakeDriver] = ()) -> AsyncIterator[Bench]:
        benches: list[Bench] = []
        try:
            with anyio.fail_after(5_000):
                async with anyio.create_task_group() as tasks:
                    benches.append(Bench(drivers or [FakeDriver()], symbols, tasks))
                    benches[0].take()
                    await benches[0].start()
                    try:
                        yield benches[0]
                    finally:
                        tasks.cancel_scope.cancel()
        finally:
            for bench in benches:
                bench.commands.close()
                bench.channel.close()

    return opened
