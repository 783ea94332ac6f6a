"""The actor that has positions' symbols followed. On virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import anyio
from hypothesis import given
from hypothesis import strategies as st

from mdservice.errors import PositionsUnavailable, SubscriptionRefused
from mdservice.model.position import Position
from mdservice.positions.cache import PositionCache
from mdservice.positions.tracker import GRACE_S, HeldSymbols, PositionTracker
from mdservice.testing import FakePositions, VirtualClock

EVERY_S = 5.0


def held(symbol: str, qty: str = "1") -> Position:
    return Position(symbol, Decimal(qty), Decimal(10))


class Bench:
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
async def open_bench(*positions: Position) -> AsyncIterator[Bench]:
    bench = Bench(FakePositions(positions))
    async with anyio.create_task_group() as tasks:
        await tasks.start(bench.tracker.run)
        yield bench
        tasks.cancel_scope.cancel()


async def test_follows_the_largest_first_and_says_nothing_where_nothing_changes(
    autojump_clock: Any,
) -> None:
    async with open_bench(held("SMALL"), held("LARGE", "-9")) as bench:
        await anyio.sleep(60)
        assert bench.followed == [(0, ("LARGE", "SMALL"))]
        assert len(bench.source.fetches) in (12, 13)


async def test_a_closed_position_is_followed_for_the_grace_time(autojump_clock: Any) -> None:
    async with open_bench(held("A"), held("B")) as bench:
        await anyio.sleep(1)
        bench.source.set(held("B"))
        await anyio.sleep(GRACE_S + 2 * EVERY_S)
        assert bench.followed == [
            (0, ("A", "B")),
            (EVERY_S, ("B", "A")),
            (EVERY_S + GRACE_S, ("B",)),
        ]


async def test_a_source_that_fails_changes_nothing(autojump_clock: Any) -> None:
    async with open_bench(held("A")) as bench:
        await anyio.sleep(1)
        bench.source.always = PositionsUnavailable("away")
        await anyio.sleep(GRACE_S * 3)
        assert bench.followed == [(0, ("A",))]
        snapshot = bench.tracker.snapshot()
        assert snapshot.last_error == "away"
        assert snapshot.followed == ("A",)
        assert snapshot.age_s is not None
        assert snapshot.age_s > GRACE_S * 2


async def test_the_grace_time_ends_also_while_the_source_fails(autojump_clock: Any) -> None:
    async with open_bench(held("A"), held("B")) as bench:
        await anyio.sleep(1)
        bench.source.set(held("B"))
        await anyio.sleep(EVERY_S)
        bench.source.always = PositionsUnavailable("away")
        await anyio.sleep(GRACE_S + EVERY_S)
        assert bench.followed[-1][1] == ("B",)


async def test_a_refusal_is_no_reason_to_ask_over_and_over(autojump_clock: Any) -> None:
    async with open_bench(held("A")) as bench:
        bench.refuse = True
        await anyio.sleep(1)
        bench.source.set(held("A"), held("B"))
        await anyio.sleep(60)
        assert len(bench.followed) <= 2
        assert bench.tracker.snapshot().followed == ("A", "B")


async def test_goes_on_where_it_was_after_a_restart(autojump_clock: Any) -> None:
    async with open_bench(held("A"), held("B")) as bench:
        await anyio.sleep(1)
    bench.source.set(held("B"))
    async with anyio.create_task_group() as tasks:
        await tasks.start(bench.tracker.run)
        await anyio.sleep(1)
        tasks.cancel_scope.cancel()
    assert [symbols for _, symbols in bench.followed] == [("A", "B"), ("B", "A")]


async def test_a_stalled_source_does_not_count_as_a_stalled_actor(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        await anyio.sleep(1)
        bench.source.stall()
        await anyio.sleep(6)
        assert bench.tracker.heartbeat.age_s() == 0


def lot(symbol: str, qty: str = "1", price: str = "1", **more: object) -> Position:
    return Position(symbol, Decimal(qty), Decimal(price), **more)  # type: ignore[arg-type]


def test_the_largest_come_first_long_or_short() -> None:
    positions = [lot("SMALL", "1", "10"), lot("LONG", "2", "30"), lot("SHORT", "-5", "20")]
    assert HeldSymbols().update(positions, 0) == ("SHORT", "LONG", "SMALL")


def test_lots_of_one_symbol_count_together() -> None:
    positions = [lot("A", "3", "10"), lot("B", "2", "10"), lot("B", "-2", "10")]
    assert HeldSymbols().update(positions, 0) == ("B", "A"), "40 is at stake in B, 30 in A"


def test_a_multiplier_counts() -> None:
    positions = [lot("A", "3", "10"), lot("B", "1", "10", multiplier=Decimal(100))]
    assert HeldSymbols().update(positions, 0) == ("B", "A")


def test_what_is_empty_or_has_a_problem_is_not_followed() -> None:
    positions = [
        lot("EMPTY", "0"),
        lot("A/B", problem="not a stock"),
        Position("BAD", None, None, problem="qty is missing"),
    ]
    assert HeldSymbols().update(positions, 0) == ()


def test_a_closed_one_is_followed_for_a_while_behind_the_others() -> None:
    symbols = HeldSymbols()
    both = [lot("A", "9"), lot("B")]
    assert symbols.update(both, 0) == ("A", "B")
    assert symbols.update(both[1:], 5) == ("B", "A")
    assert symbols.update(both[1:], 5 + GRACE_S - 0.01) == ("B", "A")
    assert symbols.update(both[1:], 5 + GRACE_S) == ("B",)
    assert symbols.update([], 100) == ("B",)
    assert symbols.update([], 100 + GRACE_S) == ()


def test_one_that_is_opened_again_begins_again() -> None:
    symbols = HeldSymbols()
    symbols.update([lot("A")], 0)
    symbols.update([], 1)
    assert symbols.update([lot("A")], 2) == ("A",)
    assert symbols.update([], 50) == ("A",)
    assert symbols.update([], 50 + GRACE_S - 1) == ("A",)


looks = st.lists(
    st.tuples(st.sets(st.sampled_from("ABCD")), st.floats(0.1, 40)), min_size=1, max_size=12
)


@given(looks)
def test_what_is_held_is_followed_and_nothing_else_for_longer_than_the_grace(
    looks: list[tuple[set[str], float]],
) -> None:
    symbols = HeldSymbols()
    now_s = 0.0
    seen_missing: dict[str, float] = {}
    ever: set[str] = set()
    for held_now, wait_s in looks:
        now_s += wait_s
        followed = symbols.update([lot(symbol) for symbol in sorted(held_now)], now_s)
        assert len(followed) == len(set(followed))
        ever |= held_now
        for symbol in ever:
            if symbol in held_now:
                seen_missing.pop(symbol, None)
                assert symbol in followed
            else:
                since_s = seen_missing.setdefault(symbol, now_s)
                assert (symbol in followed) == (now_s < since_s + GRACE_S)
