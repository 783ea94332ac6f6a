"""A function's rows: what has changed in them is noticed, what has not costs little."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import attrs
import pytest
from alpaca.trading.models import USDPositionValues

from mdservice.errors import PositionsRefused
from mdservice.gateway import make as given
from mdservice.gateway.make import FunctionPositions


@attrs.define
class Row:
    symbol: str
    qty: Any
    avg_entry_price: Any = 1


class Count:
    """A number that changes while the object stays."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


async def shown(source: FunctionPositions) -> list[tuple[str, str]]:
    return [(each.symbol, str(each.qty)) for each in await source.fetch()]


async def test_rows_that_change_in_place_are_noticed() -> None:
    count = Count(5)
    mapping: dict[str, Any] = {"symbol": "A", "qty": 1, "avg_entry_price": 1}
    row, counting = Row("B", Decimal(2)), Row("C", count)
    source = FunctionPositions(lambda: [mapping, row, counting])
    assert await shown(source) == [("A", "1"), ("B", "2"), ("C", "5")]
    mapping["qty"], row.qty, count.value = 3, Decimal("2.00"), 6
    assert await shown(source) == [("A", "3"), ("B", "2.00"), ("C", "6")]
    mapping["side"] = "short"
    assert await shown(source) == [("A", "-3"), ("B", "2.00"), ("C", "6")]
    del mapping["side"]
    assert await shown(source) == [("A", "3"), ("B", "2.00"), ("C", "6")]


async def test_rows_in_another_currency_are_read_in_dollars() -> None:
    dollars = USDPositionValues(
        avg_entry_price="150",
        market_value="1871.35",
        cost_basis="1500",
        unrealized_pl="371.35",
        unrealized_plpc="0.24",
        unrealized_intraday_pl="1",
        unrealized_intraday_plpc="0.1",
        current_price="187.135",
        lastday_price="187",
        change_today="0.1",
    )
    row = {"symbol": "A", "qty": "10", "avg_entry_price": "22500", "swap_rate": "150"}
    rows = [
        {**row, "usd": dollars},
        {**row, "usd": {"avg_entry_price": Decimal(150)}},
        attrs.make_class("Attributes", list(row))(**row),
        {**row, "swap_rate": None, "currency": "JPY"},
    ]
    found = await FunctionPositions(lambda: rows).fetch()
    assert [each.avg_entry_price for each in found[:2]] == [150, 150]
    assert [each.problem is None for each in found] == [True, True, False, False]
    prices = [(each.current_price, each.lastday_price) for each in found]
    assert prices == [(Decimal("187.135"), 187), *[(None, None)] * 3]


class Detached:
    """A row whose session has ended."""

    @property
    def symbol(self) -> str:
        raise RuntimeError("detached")


async def test_a_row_that_cannot_be_read_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    rows: list[Any] = [Detached(), Row("A", 1)]
    source = FunctionPositions(lambda: rows)

    async def logged() -> int:
        caplog.clear()
        await source.fetch()
        return len(caplog.records)

    assert [await logged(), await logged()] == [1, 0]
    rows[1] = Detached()
    assert [await logged(), await logged()] == [1, 0]
    rows[:] = [Row("A", 1)]
    assert await logged() == 0
    rows[:] = [Detached(), Detached()]
    assert [await logged(), await logged()] == [2, 0]


class Scaled(dict[str, Any]):
    """A mapping with a mind of its own."""

    def __getitem__(self, name: str) -> Any:
        return 100 if name == "qty" else super().__getitem__(name)


async def test_a_mapping_is_asked_for_its_values() -> None:
    row = Scaled(symbol="A", qty=1, avg_entry_price=1)
    assert await shown(FunctionPositions(lambda: [row])) == [("A", "100")]


async def test_rows_that_come_go_and_move_are_noticed() -> None:
    one, two = Row("A", 1), Row("B", 2)
    rows: list[Row] = []
    source = FunctionPositions(lambda: rows)
    for rows[:] in ([one, two], [two, one], [two], [], [one], [one, one, two]):
        assert await shown(source) == [(row.symbol, str(row.qty)) for row in rows]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([{"symbol": "A", "qty": 1}, {"symbol": "B", "qty": 2}], None),
        ([{"symbol": "A", "qty": 1}], [{"symbol": "A", "qty": True}]),
        ([{"symbol": "A", "qty": 2}], [{"symbol": "A", "qty": Decimal("2.0")}]),
        ([{"symbol": "A", "qty": 1, "side": "short"}, {"symbol": "B"}], None),
        ([{"symbol": "A", "qty": 1}], [{"symbol": "A", "avg_entry_price": 1}]),
        ([{"symbol": "A"}, {"symbol": "B"}], [{"symbol": "B"}, {"symbol": "A"}]),
        ([{"symbol": "A"}], [{"symbol": "A"}, {"symbol": "A"}]),
        ([{"symbol": "A"}], []),
        ([{"symbol": "A", "qty": 1, "side": "long"}], [{"symbol": "A", "qty": 1}]),
    ],
)
async def test_dicts_with_other_contents_are_noticed(before: Any, after: Any) -> None:
    rows = list(before)
    source = FunctionPositions(lambda: rows)
    for _ in range(2):
        assert await source.fetch() == await FunctionPositions(lambda: list(before)).fetch()
    # Without another list: the same keys and values, only the last pair is another row's.
    rows[:] = after if after is not None else _with_the_last_pair_moved(before)
    again = await FunctionPositions(rows.copy).fetch()
    for _ in range(2):
        found = await source.fetch()
        assert found == again
        assert [str(each.qty) for each in found] == [str(each.qty) for each in again]


def _with_the_last_pair_moved(rows: Any) -> Any:
    *_, (name, value) = rows[0].items()
    first = {each: rows[0][each] for each in rows[0] if each != name}
    return [first, {name: value, **rows[1]}]


async def test_a_value_that_changes_in_place_is_noticed_in_dicts() -> None:
    count, dollars = Count(5), {"avg_entry_price": 1}
    rows: list[Any] = [
        {"symbol": "A", "qty": count, "avg_entry_price": 1},
        {"symbol": "B", "qty": 1, "avg_entry_price": 9, "swap_rate": "9", "usd": dollars},
    ]
    source = FunctionPositions(lambda: rows)
    await source.fetch()
    count.value, dollars["avg_entry_price"] = 6, 2
    first, second = await source.fetch()
    assert (first.qty, second.avg_entry_price) == (6, 2)


async def test_a_function_that_failed_is_asked_again_from_the_start() -> None:
    rows: list[Any] = [{"symbol": "A", "qty": 1, "avg_entry_price": 1}]
    source = FunctionPositions(lambda: rows)
    found = await source.fetch()
    rows.append({"symbol": "A" * 17_000_000})
    for _ in range(2):
        with pytest.raises(PositionsRefused):
            await source.fetch()
    rows.pop()
    assert await source.fetch() == found


async def test_a_row_with_the_same_values_is_not_written_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = 0
    plain = given._plain

    def count(value: object) -> object:
        nonlocal written
        written += 1
        return plain(value)

    monkeypatch.setattr(given, "_plain", count)
    rows = [Row("A", 1), Row("B", 2)]
    source = FunctionPositions(rows.copy)
    await source.fetch()
    written = 0
    await source.fetch()
    assert written == 0
    rows[1].qty = 3
    await source.fetch()
    assert written == 3
