"""What a test may ask of the fake beyond the contract."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import anyio
import pytest

from mdservice.errors import PositionsRefused, PositionsUnavailable
from mdservice.model.position import Position
from mdservice.positions.sources import FETCH_LIMIT_S
from mdservice.testing import FakePositions

ONE = Position("AAPL", Decimal(1), Decimal(2))


async def test_failures_come_in_their_order_and_end() -> None:
    fake = FakePositions([ONE])
    fake.fail(PositionsUnavailable("away"), times=2)
    fake.fail(PositionsRefused("no"))
    for kind in (PositionsUnavailable, PositionsUnavailable, PositionsRefused):
        with pytest.raises(kind):
            await fake.fetch()
    assert await fake.fetch() == [ONE]


async def test_it_notes_when_it_was_asked_and_closed(autojump_clock: Any) -> None:
    fake = FakePositions()
    fake.delay_s = 2
    start_s = anyio.current_time()
    for _ in range(3):
        await fake.fetch()
    await fake.aclose()
    assert [at_s - start_s for at_s in fake.fetches] == [0, 2, 4]
    assert fake.closed == 1


async def test_a_stall_takes_the_real_limit_on_virtual_time(autojump_clock: Any) -> None:
    fake = FakePositions()
    fake.stall()
    start_s = anyio.current_time()
    with pytest.raises(PositionsUnavailable, match="within 9 s"):
        await fake.fetch()
    assert anyio.current_time() - start_s == FETCH_LIMIT_S
