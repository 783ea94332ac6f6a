"""Between reading and iterating: bounded, in order, with a position; and who else writes."""

from __future__ import annotations

import attrs
import pytest
import trio
import trio.testing

from mdservice.client.intake import BACKLOG, KEYS_AT_MOST_EVERY_S, Intake, ReaderQueue
from mdservice.model.kinds import QUOTES
from mdservice.model.quote import Quote
from mdservice.redis_io.names import GONE_AFTER_S, Instance


def quotes(first: int, last: int, symbol: str = "A") -> list[Quote]:
    return [Quote(symbol, 1.0, 2.0, 1, 1, n, n, n) for n in range(first, last + 1)]


async def test_what_is_offered_is_taken_in_order() -> None:
    handover = ReaderQueue()
    handover.offer(QUOTES, quotes(1, 700))
    handover.offer(QUOTES, [])
    handover.offer(QUOTES, quotes(701, 800))
    assert len(handover) == 800
    assert [(await handover.take()).seq for _ in range(800)] == list(range(1, 801))
    assert handover.position is None


async def test_beyond_the_backlog_the_oldest_are_conflated() -> None:
    handover = ReaderQueue()
    handover.offer(QUOTES, quotes(1, BACKLOG))
    handover.offer(QUOTES, quotes(1, 1, "B"))
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
    handover.offer(QUOTES, quotes(1, 1))
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
        handover.offer(QUOTES, quotes(1, 5_000))
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
    handover.offer(QUOTES, quotes(1, 1))
    assert (await handover.take()).seq == 1
    with pytest.raises(StopAsyncIteration):
        await handover.take()


# ---- Services that announce themselves


def service(name: str, *, db: int = 0, gone: bool = False) -> Instance:
    return Instance(name, db, "host", 1, "iex", 0.0, 300.0, "2026-11-20T15:00:00Z", gone=gone)


def names(instances: list[Instance]) -> list[str]:
    return [one.id for one in instances]


def test_rivals_write_to_the_same_database_and_were_heard_lately() -> None:
    intake = Intake([QUOTES], ())
    for one in (service("ours"), service("rival"), service("elsewhere", db=3)):
        intake.hear(one, 100.0)
    assert intake.rivals(100.0) == [], "without a name of its own no service is followed"
    intake.following = service("ours")
    assert names(intake.rivals(100.0)) == ["rival"]
    assert names(intake.rivals(100.0 + GONE_AFTER_S)) == ["rival"]
    assert intake.rivals(100.1 + GONE_AFTER_S) == []


def test_a_service_that_ends_is_no_rival_any_more() -> None:
    intake = Intake([QUOTES], ())
    intake.following = service("ours")
    intake.hear(service("rival"), 100.0)
    intake.hear(service("rival", gone=True), 101.0)
    intake.hear(service("never heard", gone=True), 101.0)
    assert intake.rivals(101.0) == []


def test_what_is_remembered_of_services_is_bounded_and_the_silent_ones_are_forgotten() -> None:
    intake = Intake([QUOTES], ())
    intake.following = service("ours")
    for number in range(1_000):
        intake.hear(service(f"S{number}"), 100.0)
    known = len(intake.heard)
    assert known < 1_000
    intake.hear(service("S0"), 110.0)
    assert intake.heard["S0"][1] == 110.0, "a known one is still heard when there are too many"
    intake.hear(service("new"), 100.1 + GONE_AFTER_S)
    assert set(intake.heard) == {"S0", "new"}


def test_the_keys_are_read_again_after_a_step_and_not_too_often() -> None:
    intake = Intake([QUOTES], ())
    intake.take_keys(QUOTES, [attrs.evolve(quotes(1, 1)[0], seq=5)])
    assert not intake.keys_are_due(0.0)
    (first,) = quotes(1, 1)
    later = [attrs.evolve(first, seq=seq, ts_event_ns=seq) for seq in (8, 12)]
    intake.take_events(QUOTES, later[:1], in_order=True)
    assert intake.keys_are_due(0.0), "6 and 7 were missed"
    intake.reading_keys(0.0)
    assert not intake.keys_are_due(10.0)
    intake.take_events(QUOTES, later[1:], in_order=True)
    assert not intake.keys_are_due(KEYS_AT_MOST_EVERY_S - 0.01)
    assert intake.keys_are_due(KEYS_AT_MOST_EVERY_S)
    assert (intake.states[QUOTES].events, intake.resyncs) == (2, 1)


def test_a_step_that_the_keys_show_is_no_reason_to_read_them_again() -> None:
    intake = Intake([QUOTES], ())
    (first,) = quotes(1, 1)
    intake.take_keys(QUOTES, [attrs.evolve(first, seq=5)])
    later = attrs.evolve(first, seq=9, ts_event_ns=first.ts_event_ns + 1)
    assert intake.take_keys(QUOTES, [later]) == [later]
    assert intake.states[QUOTES].order.missed == 3
    assert not intake.keys_are_due(1_000.0)
