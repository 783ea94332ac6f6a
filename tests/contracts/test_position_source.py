"""What every source of positions does: Alpaca's, a gateway's, a file and the fake."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import anyio
import pytest

from mdservice.model.position import Position
from mdservice.positions import sources as source_module
from mdservice.positions.sources import FETCH_LIMIT_S
from tests.positions.places import (
    SHORT_LIMIT_S,
    Place,
    position,
    refused,
    row,
    sources,
    unavailable,
)
from tests.positions.test_parse import OF_ALPACA_IN_YEN


@pytest.fixture
def short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "FETCH_LIMIT_S", SHORT_LIMIT_S)


def test_a_fetch_ends_within_ten_seconds() -> None:
    assert FETCH_LIMIT_S < 10


# What it gives


@sources()
async def test_positions_come_in_their_order(place: Place) -> None:
    place.hold([row("MSFT"), row("AAPL", "-2.5"), row("MSFT", "1")])
    found = await place.source.fetch()
    assert list(found) == [position("MSFT"), position("AAPL", "-2.5"), position("MSFT", "1")]


@sources()
async def test_no_positions_are_an_answer(place: Place) -> None:
    for none in ({"positions": []}, [], {"positions": None}, None):
        place.hold([row()])
        assert len(await place.source.fetch()) == 1
        place.hold(none)
        assert list(await place.source.fetch()) == []


@sources()
async def test_every_fetch_returns_what_is_there_now(place: Place) -> None:
    for qty in ("1", "2", "3", "4"):
        place.hold([row(qty=qty)])
        assert list(await place.source.fetch()) == [position(qty=qty)]


@sources()
async def test_a_row_that_cannot_be_used_costs_itself(place: Place) -> None:
    place.hold([row(), {"symbol": "?!", "qty": "1"}, row("MSFT")])
    first, broken, last = await place.source.fetch()
    assert (first, last) == (position(), position("MSFT"))
    assert broken.problem == "has no avg_entry_price"


@sources()
async def test_numbers_keep_every_digit(place: Place) -> None:
    place.hold([row(qty="0.1234567890123456789012345678901", side="short")])
    (found,) = await place.source.fetch()
    assert found.qty == Decimal("-0.1234567890123456789012345678901")


@sources()
async def test_a_row_in_another_currency_is_read_in_dollars(place: Place) -> None:
    place.hold([OF_ALPACA_IN_YEN, row("MSFT", swap_rate="150")])
    first, last = await place.source.fetch()
    assert first == Position("AAPL", Decimal(10), Decimal(150), lastday_price=Decimal(187))
    assert first.current_price == Decimal("187.135")
    assert last.problem is not None


@sources()
async def test_the_answer_is_the_callers_own(place: Place) -> None:
    place.hold([row()])
    for _ in range(2):
        found = await place.source.fetch()
        assert len(found) == 1
        found.clear()  # type: ignore[attr-defined]


@sources()
async def test_the_address_has_no_secret(place: Place) -> None:
    for text in (place.source.address, repr(place.source), str(place.source)):
        assert "hidden" not in text.lower()
    assert place.source.address


# How it fails


@sources()
async def test_a_source_that_is_away_is_unavailable_until_it_is_back(place: Place) -> None:
    place.hold([row()])
    await place.source.fetch()
    place.be_away()
    for _ in range(2):
        await unavailable(place.source)
    place.hold([row(qty="3")])
    assert list(await place.source.fetch()) == [position(qty="3")]


@sources()
async def test_a_source_that_says_no_is_refused_until_it_says_yes(place: Place) -> None:
    place.hold([row()])
    place.refuse()
    for _ in range(2):
        await refused(place.source)
    place.hold([row()])
    assert list(await place.source.fetch()) == [position()]


@pytest.mark.usefixtures("short_limit")
@sources()
async def test_a_source_that_does_not_answer_is_unavailable_in_time(place: Place) -> None:
    place.hold([row()])
    await place.source.fetch()
    place.stall()
    started_s = anyio.current_time()
    assert "within 1 s" in await unavailable(place.source)
    assert SHORT_LIMIT_S - 0.1 <= anyio.current_time() - started_s <= SHORT_LIMIT_S + 1
    place.hold([row(qty="3")])
    assert list(await place.source.fetch()) == [position(qty="3")]


@sources()
async def test_a_cancelled_fetch_leaves_the_source_usable(place: Place) -> None:
    place.hold([row()])
    await place.source.fetch()
    for _ in range(3):
        place.stall()
        with anyio.move_on_after(0.1) as scope:
            await place.source.fetch()
        assert scope.cancelled_caught
        place.hold([row(qty="3")])
        with anyio.fail_after(30):
            assert list(await place.source.fetch()) == [position(qty="3")]


@sources()
async def test_a_fetch_may_be_cancelled_at_any_moment(place: Place) -> None:
    place.hold([row()])
    await place.source.fetch()
    for number in range(40):
        with anyio.move_on_after(number * 0.0002):
            await place.source.fetch()
    assert list(await place.source.fetch()) == [position()]


@sources()
async def test_fetches_at_the_same_time_are_all_answered(place: Place) -> None:
    place.hold([row()])
    answers: list[Any] = []

    async def fetch() -> None:
        answers.append(list(await place.source.fetch()))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(fetch)
    assert answers == [[position()]] * 5


@sources()
async def test_closing_may_be_repeated_and_a_fetch_opens_again(place: Place) -> None:
    place.hold([row()])
    await place.source.aclose()
    for _ in range(2):
        assert list(await place.source.fetch()) == [position()]
        await place.source.aclose()
        await place.source.aclose()
