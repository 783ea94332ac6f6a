"""Between reading and iterating: bounded, in order, and with a position."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from mdservice.client.intake import BACKLOG, ReaderQueue
from mdservice.model.quote import Quote


def quotes(first: int, last: int, symbol: str = "A") -> list[Quote]:
    return [Quote(symbol, 1.0, 2.0, 1, 1, n, n, n) for n in range(first, last + 1)]


async def test_what_is_offered_is_taken_in_order() -> None:
    handover = ReaderQueue()
    handover.offer(quotes(1, 700))
    handover.offer([])
    handover.offer(quotes(701, 800))
    assert len(handover) == 800
    assert [(await handover.take()).seq for _ in range(800)] == list(range(1, 801))
    assert handover.position is None


async def test_beyond_the_backlog_the_oldest_are_conflated() -> None:
    handover = ReaderQueue()
    handover.offer(quotes(1, BACKLOG))
    handover.offer(quotes(1, 1, "B"))
    assert (len(handover), handover.conflated) == (BACKLOG, 1)
    assert (await handover.take()).seq == 2


async def test_position_follows_what_is_taken(autojump_clock: trio.testing.MockClock) -> None:
    handover = ReaderQueue()
    handover.offer_entries([], [], "5-0")
    assert handover.position == "5-0"
    handover.offer_entries(quotes(1, 3), ["6-0", None, "8-0"], "9-0")
    seen = []
    for _ in range(3):
        await handover.take()
        seen.append(handover.position)
    assert seen == ["6-0", "6-0", "9-0"]
    handover.offer_entries(quotes(4, 5), [None, None], None)
    await handover.take()
    await handover.take()
    assert handover.position == "9-0"
    with trio.fail_after(1):
        await handover.emptied()


@pytest.mark.parametrize("place", [None, "6-0"])
async def test_what_has_no_place_leaves_the_position_where_it_is(
    autojump_clock: trio.testing.MockClock, place: str | None
) -> None:
    handover = ReaderQueue()
    handover.offer_entries([], [], "5-0")
    handover.offer_entries([], [], None)
    assert handover.position == "5-0"
    handover.offer_entries(quotes(1, 2), [place, place], None)
    seen = []
    for _ in range(2):
        await handover.take()
        seen.append(handover.position)
    assert seen == [place or "5-0"] * 2


async def test_who_waits_for_room_goes_on_when_all_is_taken(
    autojump_clock: trio.testing.MockClock,
) -> None:
    handover = ReaderQueue()
    handover.offer_entries(quotes(1, 2), [None, None], None)
    await handover.take()
    with trio.move_on_after(1) as scope:
        await handover.emptied()
    assert scope.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handover.emptied)
        await trio.testing.wait_all_tasks_blocked()
        await handover.take()


async def test_a_cancelled_take_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    handover = ReaderQueue()
    for _ in range(3):
        with trio.move_on_after(0.1):
            await handover.take()
    handover.offer(quotes(1, 1))
    with trio.CancelScope() as scope:
        scope.cancel()
        await handover.take()
    assert scope.cancelled_caught
    assert (await handover.take()).seq == 1


async def test_one_that_never_waits_lets_others_run() -> None:
    handover = ReaderQueue()
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        handover.offer(quotes(1, 5_000))
        for _ in range(5_000):
            await handover.take()
        nursery.cancel_scope.cancel()
    assert turns >= 5


async def test_closing_ends_the_iteration_once_all_is_taken(
    autojump_clock: trio.testing.MockClock,
) -> None:
    handover = ReaderQueue()
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(StopAsyncIteration):
                await handover.take()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        handover.close()
    handover.offer(quotes(1, 1))
    assert (await handover.take()).seq == 1
    with pytest.raises(StopAsyncIteration):
        await handover.take()
