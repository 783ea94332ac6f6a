"""The last known positions, and what is known of the source. On virtual time."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import anyio
import pytest

from mdservice.errors import PositionsRefused, PositionsUnavailable
from mdservice.model.position import Position
from mdservice.positions.cache import PATIENCE_S, PositionCache
from mdservice.testing import FakePositions, VirtualClock


def held(symbol: str, qty: str = "1", **more: object) -> Position:
    return Position(symbol, Decimal(qty), Decimal(10), **more)  # type: ignore[arg-type]


def cache(source: FakePositions, interval_s: float = 5.0, **more: Any) -> PositionCache:
    return PositionCache(source, interval_s, VirtualClock(), **more)


async def test_a_refresh_returns_what_the_source_has_now(autojump_clock: Any) -> None:
    source = FakePositions([held("AAPL")])
    positions = cache(source)
    assert positions.age_s() is None
    assert await positions.refresh() == (held("AAPL"),)
    source.set(held("AAPL", "2"))
    assert await positions.refresh() == positions.positions == (held("AAPL", "2"),)
    await anyio.sleep(3)
    assert positions.age_s() == pytest.approx(3)
    assert positions.answers == 2


async def test_the_source_is_asked_when_its_answer_is_older_than_the_interval(
    autojump_clock: Any,
) -> None:
    source = FakePositions([held("AAPL")])
    positions = cache(source)
    assert await positions.current(polled=False) == (held("AAPL"),)
    source.set(held("MSFT"))
    await anyio.sleep(4.9)
    assert await positions.current(polled=False) == (held("AAPL"),)
    await anyio.sleep(0.2)
    assert await positions.current(polled=False) == (held("MSFT"),)
    assert len(source.fetches) == 2


async def test_a_failure_counts_as_a_try_too(autojump_clock: Any) -> None:
    source = FakePositions([held("AAPL")])
    positions = cache(source)
    source.always = PositionsUnavailable("away")
    for _ in range(3):
        with pytest.raises(PositionsUnavailable, match="not known: away"):
            await positions.current(polled=False)
    assert len(source.fetches) == 1
    source.always = None
    await anyio.sleep(5.1)
    assert await positions.current(polled=False) == (held("AAPL"),)


async def test_without_an_interval_every_caller_asks(autojump_clock: Any) -> None:
    source = FakePositions()
    positions = cache(source, 0)
    for count in range(3):
        source.set(*[held("AAPL")] * count)
        for polled in (False, True):
            assert len(await positions.current(polled=polled)) == count
    assert len(source.fetches) == 6


async def test_where_a_task_polls_only_the_first_caller_asks(autojump_clock: Any) -> None:
    source = FakePositions([held("AAPL")])
    positions = cache(source)
    await positions.current(polled=True)
    await anyio.sleep(60)
    assert await positions.current(polled=True) == (held("AAPL"),)
    assert len(source.fetches) == 1
    source.set()
    assert await positions.refresh() == await positions.current(polled=True) == ()


async def test_callers_at_the_same_time_share_one_answer(autojump_clock: Any) -> None:
    source = FakePositions([held("AAPL")])
    source.delay_s = 1.0
    positions, found = cache(source), []

    async def ask() -> None:
        found.append(await positions.current(polled=False))

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(ask)
    assert found == [(held("AAPL"),)] * 10
    assert len(source.fetches) == 1


async def test_a_slow_source_is_left_to_the_polling_task(autojump_clock: Any) -> None:
    source = FakePositions([held("AAPL")])
    positions = cache(source, 0)
    assert await positions.refresh() == (held("AAPL"),)
    assert positions.warning() is None
    source.delay_s, began_s = PATIENCE_S + 1, anyio.current_time()
    assert await positions.current(polled=True) == (held("AAPL"),)
    assert anyio.current_time() - began_s == pytest.approx(PATIENCE_S)
    assert "does not answer" in str(positions.warning())
    assert await positions.current(polled=True) == (held("AAPL"),)
    assert anyio.current_time() - began_s == pytest.approx(PATIENCE_S)
    source.set(held("MSFT"))
    assert await positions.refresh() == (held("MSFT"),)
    assert positions.warning() is None


async def test_a_source_that_never_answers_is_named(autojump_clock: Any) -> None:
    source = FakePositions()
    source.delay_s = 60
    positions = cache(source)
    with pytest.raises(PositionsUnavailable, match="fake positions does not answer"):
        await positions.current(polled=False)


async def test_a_caller_that_is_cancelled_leaves_the_cache_usable(autojump_clock: Any) -> None:
    source = FakePositions([held("AAPL")])
    source.delay_s = 2.0
    positions = cache(source)
    with anyio.move_on_after(1):
        await positions.current(polled=False)
    with anyio.move_on_after(1):
        await positions.refresh()
    assert not positions.answers
    assert await positions.current(polled=False) == (held("AAPL"),)


async def test_only_chosen_symbols_are_kept(autojump_clock: Any) -> None:
    source = FakePositions([held("C"), held("A"), held("B"), held("C")])
    positions = cache(source, symbols=["B", "C", "X"])
    assert [position.symbol for position in await positions.refresh()] == ["C", "B", "C"]


async def test_a_source_that_returns_no_positions_at_all_has_failed(autojump_clock: Any) -> None:
    source = FakePositions([held("AAPL")])
    positions = cache(source)
    await positions.refresh()
    source.fetch = lambda: anyio.sleep(0)  # type: ignore[assignment, return-value]
    assert await positions.refresh() == (held("AAPL"),)
    assert "TypeError" in str(positions.last_error)


async def test_closing_closes_the_source() -> None:
    source = FakePositions()
    await cache(source).aclose()
    assert source.closed == 1


@pytest.mark.parametrize(
    "error", [PositionsUnavailable("away"), PositionsRefused("no: look there")]
)
async def test_what_was_known_stays_while_the_source_fails(
    autojump_clock: Any, error: Exception
) -> None:
    source = FakePositions([held("AAPL")])
    positions = cache(source)
    await positions.refresh()
    source.fail(error)
    await anyio.sleep(2)
    assert await positions.refresh() == (held("AAPL"),)
    assert positions.last_error == str(error)
    assert positions.age_s() == pytest.approx(2), "since the last answer, not since the last try"
    await positions.refresh()
    assert positions.last_error is None


async def test_the_same_failure_and_the_same_problem_are_reported_once(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    source = FakePositions()
    positions = cache(source)
    source.fail(PositionsUnavailable("away"), times=3)
    source.script.append(PositionsUnavailable("another reason"))
    for _ in range(4):
        await positions.refresh()
    source.set(held("A B", problem="has no valid symbol"))
    for qty in ("1", "2"):
        source.set(held("A B", qty, problem="has no valid symbol"))
        await positions.refresh()
    told = [record.getMessage().split()[0] for record in caplog.records]
    assert told == [
        "positions_failed",
        "positions_failed",
        "positions_are_back",
        "position_not_followed",
    ]


async def test_each_unusable_row_is_logged_once(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Position("?", None, None, problem="is no object")
    source = FakePositions()
    positions = cache(source)

    async def logged(*rows: Position) -> list[str]:
        caplog.clear()
        source.set(*rows)
        await positions.refresh()
        return [record.getMessage() for record in caplog.records]

    assert len(await logged(broken)) == 1
    assert await logged(broken, held("AAPL")) == []
    assert "2" in (await logged(broken, broken))[0]
    assert await logged(held("AAPL"), broken, broken) == []
    assert await logged(held("AAPL"), broken) == []
    assert await logged(held("AAPL")) == []
    assert len(await logged(broken)) == 1, "it was usable in between"
