"""The last known positions, and what is told about the source. On virtual time."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import anyio
import pytest

from mdservice.errors import PositionsRefused, PositionsUnavailable
from mdservice.model.position import Position
from mdservice.positions.cache import PositionCache
from mdservice.testing import FakePositions, VirtualClock


def held(symbol: str, qty: str = "1", **more: object) -> Position:
    return Position(symbol, Decimal(qty), Decimal(10), **more)  # type: ignore[arg-type]


async def test_tells_whether_they_are_others_now(autojump_clock: Any) -> None:
    source = FakePositions([held("AAPL")])
    polled = PositionCache(source, VirtualClock())
    assert polled.age_s() is None
    assert await polled.refresh()
    assert not await polled.refresh()
    source.set(held("AAPL", "2"))
    assert await polled.refresh()
    assert [p.qty for p in polled.positions] == [2]
    await anyio.sleep(3)
    assert polled.age_s() == pytest.approx(3)
    assert polled.answers == 3


@pytest.mark.parametrize(
    "error", [PositionsUnavailable("away"), PositionsRefused("no: look there")]
)
async def test_what_was_known_stays_while_the_source_fails(
    autojump_clock: Any, error: Exception
) -> None:
    source = FakePositions([held("AAPL")])
    polled = PositionCache(source, VirtualClock())
    await polled.refresh()
    source.fail(error)
    await anyio.sleep(2)
    assert not await polled.refresh()
    assert polled.positions == (held("AAPL"),)
    assert polled.last_error == str(error)
    assert polled.age_s() == pytest.approx(2), "since the last answer, not since the last try"
    await polled.refresh()
    assert polled.last_error is None


async def test_the_same_failure_and_the_same_problem_are_told_once(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    source = FakePositions()
    polled = PositionCache(source, VirtualClock())
    source.fail(PositionsUnavailable("away"), times=3)
    source.script.append(PositionsUnavailable("another reason"))
    for _ in range(4):
        await polled.refresh()
    source.set(held("A B", problem="has no valid symbol"))
    for qty in ("1", "2"):
        source.set(held("A B", qty, problem="has no valid symbol"))
        await polled.refresh()
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
    polled = PositionCache(source, VirtualClock())

    async def logged(*positions: Position) -> list[str]:
        caplog.clear()
        source.set(*positions)
        await polled.refresh()
        return [record.getMessage() for record in caplog.records]

    assert len(await logged(broken)) == 1
    assert await logged(broken, held("AAPL")) == []
    assert "2" in (await logged(broken, broken))[0]
    assert await logged(held("AAPL"), broken, broken) == []
    assert await logged(held("AAPL"), broken) == []
    assert await logged(held("AAPL")) == []
    assert len(await logged(broken)) == 1, "it was usable in between"
