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
        send, self.receive = anyio.create_memory_object_stream[FeedItem](size)
        self.send_queue = SendQueue(send)

    async def next(self) -> Any:
        item = await self.receive.receive()
        assert isinstance(item, FeedStatus)
        return item.at_ns


@asynccontextmanager
async def opened(size: int) -> AsyncIterator[Open]:
    ends = Open(size)
    with anyio.fail_after(10):
        yield ends
    ends.send_queue.close()
    ends.receive.close()


async def test_hands_on_in_order(autojump_clock: Any) -> None:
    async with opened(10) as ends:
        ends.send_queue.add(fact(1))
        ends.send_queue.add(fact(2))
        await ends.send_queue.send(fact(3))
        assert [await ends.next() for _ in range(3)] == [1, 2, 3]
        assert len(ends.send_queue) == 0


async def test_what_a_cancelled_wait_left_goes_first(autojump_clock: Any) -> None:
    async with opened(0) as ends:
        for number in (1, 2, 3):
            with anyio.move_on_after(1):
                await ends.send_queue.send(fact(number))
        assert len(ends.send_queue) == 3
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ends.send_queue.send, fact(4))
            assert [await ends.next() for _ in range(4)] == [1, 2, 3, 4]


async def test_two_that_send_at_once_keep_the_order_and_repeat_nothing(
    autojump_clock: Any,
) -> None:
    async with opened(0) as ends, anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(ends.send_queue.send, fact(number))
            await anyio.sleep(0.01)
        assert [await ends.next() for _ in range(20)] == list(range(20))


async def test_cancelled_at_the_moment_of_taking_an_item_is_there_once(autojump_clock: Any) -> None:
    async with opened(0) as ends:
        for _ in range(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ends.send_queue.send, fact(1))
                await anyio.wait_all_tasks_blocked()
                taken = await ends.next()
                tasks.cancel_scope.cancel()  # before the sender could go on
            assert taken == 1
            assert len(ends.send_queue) in {0, 1}
            waiting = len(ends.send_queue)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ends.send_queue.send, fact(2))
                assert [await ends.next() for _ in range(waiting + 1)][-1] == 2
            assert waiting == 0, "it was taken, so it must not come again"


async def test_cancelled_as_an_item_is_taken_it_reaches_the_actor_once(autojump_clock: Any) -> None:
    channel = Channel[FeedItem](0)
    send_queue, inbox = SendQueue(channel.outbox), channel.inbox(Heartbeat(VirtualClock()))
    taken: list[int] = []

    async def take() -> None:
        async for item in inbox:
            assert isinstance(item, FeedStatus)
            taken.append(item.at_ns)

    for number in range(50):  # which of both comes first is a matter of luck
        async with anyio.create_task_group() as sending:
            sending.start_soon(send_queue.send, fact(number))
            await anyio.wait_all_tasks_blocked()
            sending.cancel_scope.cancel()
            with anyio.CancelScope(shield=True), anyio.move_on_after(1):
                await take()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take)
        await send_queue.flush()
        send_queue.close()
    channel.close()
    assert taken == list(range(50))
