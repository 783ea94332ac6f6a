"""Signs of life of an actor's loops, its channels, and answers between tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from mdservice.runtime.actor import Answer, Channel, Depth, Heartbeat
from mdservice.testing import VirtualClock


class HandClock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s

    def utc_ns(self) -> int:
        raise AssertionError("a heartbeat has nothing to do with the wall clock")


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


def test_is_born_alive_and_ages(clock: HandClock) -> None:
    heartbeat = Heartbeat(clock)
    assert heartbeat.age_s() == 0
    clock.now_s += 2.5
    assert heartbeat.age_s() == 2.5


def test_a_beat_makes_it_young_again(clock: HandClock) -> None:
    heartbeat = Heartbeat(clock)
    clock.now_s += 10
    heartbeat.beat()
    assert heartbeat.age_s() == 0


def test_the_slowest_loop_counts(clock: HandClock) -> None:
    heartbeat = Heartbeat(clock)
    heartbeat.beat("reader")
    clock.now_s += 4
    heartbeat.beat()
    clock.now_s += 1
    assert heartbeat.age_s() == 5, "the reader's"
    heartbeat.beat("reader")
    assert heartbeat.age_s() == 1, "the main loop's"


def test_a_resting_loop_is_alive_until_its_next_beat(clock: HandClock) -> None:
    heartbeat = Heartbeat(clock)
    heartbeat.rest()
    clock.now_s += 1000
    assert heartbeat.age_s() == 0
    heartbeat.beat()
    clock.now_s += 3
    assert heartbeat.age_s() == 3


def test_rest_of_one_loop_hides_no_other(clock: HandClock) -> None:
    heartbeat = Heartbeat(clock)
    heartbeat.rest("reader")
    heartbeat.rest("never seen")
    clock.now_s += 7
    assert heartbeat.age_s() == 7


def test_a_restarted_actor_is_young_and_its_old_loops_are_forgotten(clock: HandClock) -> None:
    heartbeat = Heartbeat(clock)
    heartbeat.beat("reader")
    clock.now_s += 20
    heartbeat.restart()
    assert heartbeat.age_s() == 0
    clock.now_s += 1
    heartbeat.beat()
    assert heartbeat.age_s() == 0, "no reader is waited for"


def test_a_clock_that_goes_back_gives_no_negative_age(clock: HandClock) -> None:
    heartbeat = Heartbeat(clock)
    clock.now_s -= 5
    assert heartbeat.age_s() == 0


# ---- Channels and inboxes


@pytest.fixture
def open_channel() -> Iterator[Callable[[int], Channel[Any]]]:
    with ExitStack() as opened:

        def open_channel(size: int) -> Channel[Any]:
            channel: Channel[Any] = Channel(size)
            opened.callback(channel.close)
            return channel

        yield open_channel


async def test_items_arrive_in_order_and_end_with_the_sender(
    autojump_clock: Any, open_channel: Any
) -> None:
    channel = open_channel(5)
    inbox = channel.inbox(Heartbeat(VirtualClock()))
    for item in range(5):
        channel.outbox.send_nowait(item)
    with pytest.raises(anyio.WouldBlock):
        channel.outbox.send_nowait(5)
    assert inbox.depth == Depth(5, 5)
    assert (await inbox.receive(), await inbox.receive_within(1)) == (0, 1)
    assert inbox.depth == Depth(3, 5)
    channel.outbox.close()
    assert [item async for item in inbox] == [2, 3, 4]
    with pytest.raises(anyio.EndOfStream):
        await inbox.receive()
    with pytest.raises(anyio.EndOfStream):
        await inbox.receive_within(1)


async def test_what_waits_is_taken_without_waiting_for_more(
    autojump_clock: Any, open_channel: Any
) -> None:
    channel = open_channel(5)
    inbox = channel.inbox(Heartbeat(VirtualClock()))
    assert list(inbox.take_waiting()) == []
    channel.outbox.send_nowait("a")
    channel.outbox.send_nowait("b")
    assert list(inbox.take_waiting()) == ["a", "b"]
    channel.outbox.send_nowait("c")
    channel.outbox.close()
    assert list(inbox.take_waiting()) == ["c"]
    channel.close()
    assert list(inbox.take_waiting()) == []


async def test_a_receiver_waits_as_long_as_it_said(autojump_clock: Any, open_channel: Any) -> None:
    inbox = open_channel(1).inbox(Heartbeat(VirtualClock()))
    assert await inbox.receive_within(7) is None
    assert anyio.current_time() == 7


async def test_a_loop_that_waits_for_its_inbox_beats_every_second(
    autojump_clock: Any, open_channel: Any
) -> None:
    heartbeat = Heartbeat(VirtualClock())
    channel = open_channel(1)
    inbox = channel.inbox(heartbeat, "reader")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(inbox.receive)
        await anyio.sleep(0.5)
        heartbeat.rest()  # only the reader's beats count
        await anyio.sleep(10)
        assert heartbeat.age_s() == 0.5
        channel.outbox.send_nowait("ends it")


async def test_a_loop_that_rests_is_alive_until_it_receives_again(
    autojump_clock: Any, open_channel: Any
) -> None:
    heartbeat = Heartbeat(VirtualClock())
    channel = open_channel(3)
    inbox = channel.inbox(heartbeat)
    inbox.rest()
    await anyio.sleep(1000)
    assert heartbeat.age_s() == 0
    for receive in (inbox.receive, lambda: inbox.receive_within(1)):
        channel.outbox.send_nowait("x")
        await receive()
        await anyio.sleep(3)
        assert heartbeat.age_s() == 3


async def test_a_receiver_lets_the_others_run_even_when_much_waits(
    autojump_clock: Any, open_channel: Any
) -> None:
    channel = open_channel(100)
    inbox = channel.inbox(Heartbeat(VirtualClock()))
    for item in range(100):
        channel.outbox.send_nowait(item)
    received: list[int] = []
    at: list[int] = []

    async def other() -> None:
        at.append(len(received))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        for _ in range(100):
            received.append(await inbox.receive())
    assert at[0] < 100


async def test_sends_at_once_where_there_is_room_and_else_waits(
    autojump_clock: Any, open_channel: Any
) -> None:
    channel = open_channel(1)
    inbox = channel.inbox(Heartbeat(VirtualClock()))
    await channel.outbox.send("a")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(channel.outbox.send, "b")
        await anyio.sleep(1)
        assert inbox.depth.used == 1
        assert [await inbox.receive(), await inbox.receive()] == ["a", "b"]


def test_a_channel_has_room_for_an_item() -> None:
    with pytest.raises(ValueError, match="room"):
        Channel[int](0)


@pytest.mark.parametrize("way", ["receive", "receive_within", "take_waiting", "iteration"])
async def test_each_way_to_receive_makes_room_for_a_waiting_sender(
    autojump_clock: Any, open_channel: Any, way: str
) -> None:
    channel = open_channel(1)
    inbox = channel.inbox(Heartbeat(VirtualClock()))
    channel.outbox.send_nowait(1)

    async def receive() -> Any:
        if way == "receive":
            return await inbox.receive()
        if way == "receive_within":
            return await inbox.receive_within(1)
        if way == "take_waiting":
            return next(inbox.take_waiting())
        return await anext(inbox)

    async with anyio.create_task_group() as tasks:
        for number in (2, 3, 4):
            tasks.start_soon(channel.outbox.send, number)
        received = []
        for _ in range(4):
            await anyio.wait_all_tasks_blocked()
            received.append(await receive())
    assert sorted(received) == [1, 2, 3, 4]
    assert anyio.current_time() == 0


async def test_the_same_object_sent_twice_arrives_twice(
    autojump_clock: Any, open_channel: Any
) -> None:
    channel = open_channel(2)
    same = object()
    channel.outbox.send_nowait(same)
    channel.outbox.send_nowait(same)
    channel.outbox.close()
    assert [item async for item in channel.inbox(Heartbeat(VirtualClock()))] == [same, same]


async def test_a_sender_that_is_cancelled_as_room_comes_has_sent_nothing(
    autojump_clock: Any, open_channel: Any
) -> None:
    """Whichever of both runs first: its item is in the channel only if its call returned."""
    channel = open_channel(1)
    inbox = channel.inbox(Heartbeat(VirtualClock()))
    sent: list[int] = []
    received: list[int] = []

    async def send(number: int) -> None:
        await channel.outbox.send(number)
        sent.append(number)

    await send(-1)
    for number in range(50):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send, number)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                if number % 3:
                    await checkpoint()
                received += inbox.take_waiting()
        if not inbox.depth.used:
            await send(-1)
    received += inbox.take_waiting()
    assert received == sent


async def test_closing_ends_a_wait_for_room(autojump_clock: Any, open_channel: Any) -> None:
    for whole in (False, True):
        channel = open_channel(1)
        channel.outbox.send_nowait("fills it")
        with pytest.RaisesGroup(anyio.ClosedResourceError):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(channel.outbox.send, "waits")
                await anyio.wait_all_tasks_blocked()
                (channel if whole else channel.outbox).close()


# ---- Answers


async def test_an_answer_is_waited_for_and_the_first_one_counts(autojump_clock: Any) -> None:
    answer: Answer[str] = Answer()
    async with anyio.create_task_group() as tasks:

        async def give() -> None:
            await anyio.sleep(3)
            answer.give("first")
            answer.give("second")
            answer.fail(LookupError("too late"))

        tasks.start_soon(give)
        assert await answer.wait() == "first"
    assert anyio.current_time() == 3
    assert await answer.wait() == "first"


async def test_the_first_error_counts_too(autojump_clock: Any) -> None:
    answer: Answer[str] = Answer()
    answer.fail(LookupError("first"))
    answer.fail(KeyError("second"))
    answer.give("too late")
    for _ in range(2):
        with pytest.raises(LookupError, match="first"):
            with anyio.fail_after(1):
                await answer.wait()
