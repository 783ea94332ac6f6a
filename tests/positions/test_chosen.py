"""The positions of a few symbols only."""

from __future__ import annotations

from decimal import Decimal

import pytest

from mdservice.errors import PositionsUnavailable
from mdservice.model.position import Position
from mdservice.positions.sources import ChosenPositions
from mdservice.testing import FakePositions


def held(symbol: str) -> Position:
    return Position(symbol, Decimal(1), Decimal(1))


async def test_others_are_left_out_and_the_order_stays() -> None:
    source = FakePositions([held("C"), held("A"), held("B"), held("C")])
    chosen = ChosenPositions(source, ["B", "C", "X"])
    assert chosen.address == source.address
    assert [position.symbol for position in await chosen.fetch()] == ["C", "B", "C"]


async def test_failures_and_the_end_are_the_sources() -> None:
    source = FakePositions()
    chosen = ChosenPositions(source, ["A"])
    source.fail(PositionsUnavailable("away"))
    with pytest.raises(PositionsUnavailable, match="away"):
        await chosen.fetch()
    await chosen.aclose()
    assert source.closed == 1
