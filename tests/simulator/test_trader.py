"""The seeded trader, on a book of its own."""

from __future__ import annotations

from decimal import Decimal

import pytest

from mdservice.simulator.paper_account import Trader
from mdservice.simulator.positions import DEMO_POSITIONS, PositionBook, StartPositions

SYMBOLS = tuple("ABCDEFGHIJKL")


def lived(
    seed: int, count: int, start: StartPositions = (), symbols: tuple[str, ...] = SYMBOLS
) -> tuple[list[tuple[str, Decimal]], list[str], list[int]]:
    """The trades, what each did, and how many positions there were after each."""
    book = PositionBook(start)
    trader = Trader(seed, (*(h.symbol for h in book), *symbols), len(book))
    trades, kinds, sizes = [], [], []
    for _ in range(count):
        symbol, qty = trader.next(book)
        before = book.get(symbol)
        after = book.trade(symbol, qty, Decimal(10))
        trades.append((symbol, qty))
        sizes.append(len(book))
        if before is None:
            kinds.append("open")
        elif after is None:
            kinds.append("close")
        elif (before.qty > 0) != (after.qty > 0):
            kinds.append("flip")
        else:
            kinds.append("add" if abs(after.qty) > abs(before.qty) else "reduce")
        if after is not None and after.qty < 0:
            assert after.qty % 1 == 0, "a part of a share was sold short"
    return trades, kinds, sizes


def test_the_same_seed_gives_the_same_trades() -> None:
    assert lived(7, 200) == lived(7, 200)
    assert lived(7, 20)[0] != lived(8, 20)[0]


@pytest.mark.parametrize("seed", range(20))
def test_does_all_kinds_and_keeps_a_sensible_number_open(seed: int) -> None:
    _, kinds, sizes = lived(seed, 300, DEMO_POSITIONS)
    assert set(kinds) == {"open", "add", "reduce", "flip", "close"}
    assert min(sizes) >= 3
    assert max(sizes) <= 10
    assert len(set(sizes)) > 2


def test_opens_where_there_is_nothing() -> None:
    assert lived(1, 4)[1] == ["open"] * 4


def test_a_large_portfolio_is_not_sold_off() -> None:
    start = {f"S{n}": (100, 1) for n in range(40)}
    _, _, sizes = lived(1, 100, start)
    assert min(sizes) > 25
    assert max(sizes) <= 42


def test_changes_what_it_holds_where_nothing_is_left_to_open() -> None:
    _, kinds, _ = lived(1, 30, {"A": (10, 1)}, ("A",))
    assert kinds[0] != "open"


def test_what_is_too_little_to_be_parted_is_closed() -> None:
    _, kinds, _ = lived(3, 400, {"A": ("0.5", 1)}, ("A",))
    assert {"reduce", "close"} <= set(kinds)
