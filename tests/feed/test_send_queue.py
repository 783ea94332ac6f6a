"""Everything once and in order, whatever is cancelled while it waits for room."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio

from mdservice.feed.send_queue import SendQueue
from mdservice.model.events import FeedItem, FeedStatus
from mdservice.runtime.actor import Channel, Heartbeat
from mdservice.testing import VirtualClock


def fact(number: int) -> FeedStatus:
    return FeedStatus("connected", number)


class Open:
    def __init__(self, size: int) -> None:
        self.channel = Channel[FeedItem](size)
        self.send_queue = SendQueue(self.channel.outbox)
        self.inbox = self.channel.inbox(Heartbeat(VirtualClock()))

    async def next(self) -> Any:
        item = await self.inbox.receive()
        assert isinstance(item, FeedStatus)
        return item.at_ns


@asynccontextmanager
async def opened(size: int) -> AsyncIterator[Open]:
    ends = Open(size)
    with anyio.fail_after(10):
        yield ends
    ends.channel.close()


async def test_sends_in_order(autojump_clock: Any) -> None:
    async with opened(10) as ends:
        ends.send_queue.add(fact(1))
        ends.send_queue.add(fact(2))
        await ends.send_queue.send(fact(3))
        assert [await ends.next() for _ in range(3)] == [1, 2, 3]
        assert len(ends.send_queue) == 0


async def test_what_a_cancelled_wait_left_goes_first(autojump_clock: Any) -> None:
    async with opened(1) as ends:
        for number in (1, 2, 3):
            with anyio.move_on_after(1):
                await ends.send_queue.send(fact(number))
        assert len(ends.send_queue) == 2, "the channel has room for one"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ends.send_queue.send, fact(4))
            assert [await ends.next() for _ in range(4)] == [1, 2, 3, 4]


async def test_two_that_send_at_once_keep_the_order_and_repeat_nothing(
    autojump_clock: Any,
) -> None:
    async with opened(1) as ends, anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(ends.send_queue.send, fact(number))
            await anyio.sleep(0.01)
        assert [await ends.next() for _ in range(20)] == list(range(20))


async def test_cancelled_as_an_item_is_taken_it_reaches_the_actor_once(autojump_clock: Any) -> None:
    async with opened(1) as ends:
        taken: list[int] = []

        async def take() -> None:
            while True:
                taken.append(await ends.next())

        for number in range(50):  # which of both comes first is a matter of luck
            async with anyio.create_task_group() as sending:
                sending.start_soon(ends.send_queue.send, fact(number))
                await anyio.wait_all_tasks_blocked()
                sending.cancel_scope.cancel()
                with anyio.CancelScope(shield=True), anyio.move_on_after(0.1):
                    await take()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take)
            await ends.send_queue.flush()
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        assert taken == list(range(50))
