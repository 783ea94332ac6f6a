"""The actor that has positions' symbols followed. On virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import anyio

from mdservice.errors import PositionsUnavailable, SubscriptionRefused
from mdservice.model.position import Position
from mdservice.positions.cache import PositionCache
from mdservice.positions.tracker import GRACE_S, PositionTracker
from mdservice.testing import FakePositions, VirtualClock

EVERY_S = 5.0


def held(symbol: str, qty: str = "1") -> Position:
    return Position(symbol, Decimal(qty), Decimal(10))


class Desk:
    """A tracker, and what it has had followed, with the seconds since the start."""

    def __init__(self, source: FakePositions) -> None:
        self.source = source
        self.followed: list[tuple[float, tuple[str, ...]]] = []
        self.refuse = False
        clock = VirtualClock()
        positions = PositionCache(source, EVERY_S, clock)
        self.tracker = PositionTracker(positions, self._follow, clock)
        self._began_s = anyio.current_time()

    async def _follow(self, symbols: tuple[str, ...]) -> None:
        self.followed.append((round(anyio.current_time() - self._began_s), symbols))
        if self.refuse:
            raise SubscriptionRefused("no", code=409, symbols=symbols)


@asynccontextmanager
async def open_desk(*positions: Position) -> AsyncIterator[Desk]:
    desk = Desk(FakePositions(positions))
    async with anyio.create_task_group() as tasks:
        await tasks.start(desk.tracker.run)
        yield desk
        tasks.cancel_scope.cancel()


async def test_follows_the_largest_first_and_says_nothing_where_nothing_changes(
    autojump_clock: Any,
) -> None:
    async with open_desk(held("SMALL"), held("LARGE", "-9")) as desk:
        await anyio.sleep(60)
        assert desk.followed == [(0, ("LARGE", "SMALL"))]
        assert len(desk.source.fetches) in (12, 13)


async def test_a_closed_position_is_followed_for_the_grace_time(autojump_clock: Any) -> None:
    async with open_desk(held("A"), held("B")) as desk:
        await anyio.sleep(1)
        desk.source.set(held("B"))
        await anyio.sleep(GRACE_S + 2 * EVERY_S)
        assert desk.followed == [
            (0, ("A", "B")),
            (EVERY_S, ("B", "A")),
            (EVERY_S + GRACE_S, ("B",)),
        ]


async def test_a_source_that_fails_changes_nothing(autojump_clock: Any) -> None:
    async with open_desk(held("A")) as desk:
        await anyio.sleep(1)
        desk.source.always = PositionsUnavailable("away")
        await anyio.sleep(GRACE_S * 3)
        assert desk.followed == [(0, ("A",))]
        snapshot = desk.tracker.snapshot()
        assert snapshot.last_error == "away"
        assert snapshot.followed == ("A",)
        assert snapshot.age_s is not None
        assert snapshot.age_s > GRACE_S * 2


async def test_the_grace_time_ends_also_while_the_source_fails(autojump_clock: Any) -> None:
    async with open_desk(held("A"), held("B")) as desk:
        await anyio.sleep(1)
        desk.source.set(held("B"))
        await anyio.sleep(EVERY_S)
        desk.source.always = PositionsUnavailable("away")
        await anyio.sleep(GRACE_S + EVERY_S)
        assert desk.followed[-1][1] == ("B",)


async def test_a_refusal_is_no_reason_to_ask_over_and_over(autojump_clock: Any) -> None:
    async with open_desk(held("A")) as desk:
        desk.refuse = True
        await anyio.sleep(1)
        desk.source.set(held("A"), held("B"))
        await anyio.sleep(60)
        assert len(desk.followed) <= 2
        assert desk.tracker.snapshot().followed == ("A", "B")


async def test_goes_on_where_it_was_after_a_restart(autojump_clock: Any) -> None:
    async with open_desk(held("A"), held("B")) as desk:
        await anyio.sleep(1)
    desk.source.set(held("B"))
    async with anyio.create_task_group() as tasks:
        await tasks.start(desk.tracker.run)
        await anyio.sleep(1)
        tasks.cancel_scope.cancel()
    assert [symbols for _, symbols in desk.followed] == [("A", "B"), ("B", "A")]


async def test_a_stalled_source_does_not_count_as_a_stalled_actor(autojump_clock: Any) -> None:
    async with open_desk() as desk:
        await anyio.sleep(1)
        desk.source.stall()
        await anyio.sleep(6)
        assert desk.tracker.heartbeat.age_s() == 0
