"""The book of positions: by example, and against a slow reference that never rounds."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.errors import InvalidSymbol
from mdservice.simulator.market import UNIVERSE
from mdservice.simulator.positions import (
    DEMO_POSITIONS,
    Holding,
    PositionBook,
    StartPositions,
    Trader,
    parse_positions,
)
from mdservice.simulator.wire import plain, to_decimal
from tests.pnl.reference import overnight

D = Decimal


def after(*trades: tuple[str, str]) -> tuple[str, str] | None:
    """Shares and average price after these (shares, price)."""
    book = PositionBook()
    for qty, price in trades:
        last = book.trade("A", D(qty), D(price))
        assert last == book.get("A")
    held = book.get("A")
    return None if held is None else (plain(held.qty), plain(held.avg_entry_price))


@pytest.mark.parametrize(
    ("trades", "expected"),
    [
        ([("10", "100")], ("10", "100")),
        ([("10", "100"), ("30", "104")], ("40", "103")),
        ([("-10", "100"), ("-30", "104")], ("-40", "103")),
        ([("10", "100"), ("-4", "150")], ("6", "100")),
        ([("-10", "100"), ("4", "50")], ("-6", "100")),
        ([("10", "100"), ("-4", "150"), ("6", "90")], ("12", "95")),
        ([("10", "100"), ("-15", "120")], ("-5", "120")),
        ([("-10", "100"), ("15.5", "80")], ("5.5", "80")),
        ([("10", "100"), ("-10", "120")], None),
        ([("10", "100"), ("-10", "120"), ("1", "7")], ("1", "7")),
        ([("1", "1"), ("2", "2")], ("3", "1.666666667")),
        ([("0.1", "0.1"), ("0.2", "0.1")], ("0.3", "0.1")),
        ([("1", "0"), ("1", "5")], ("2", "2.5")),
    ],
)
def test_a_trade_changes_shares_and_average(
    trades: list[tuple[str, str]], expected: tuple[str, str] | None
) -> None:
    assert after(*trades) == expected


_shares = st.decimals(-1_000, 1_000, places=3, allow_nan=False).filter(bool)
_prices = st.decimals(0, 1_000, places=4, allow_nan=False)


@given(st.lists(st.tuples(st.sampled_from("AB"), _shares, _prices), max_size=40))
def test_the_book_follows_a_reference_that_looks_at_all_trades(
    trades: list[tuple[str, Decimal, Decimal]],
) -> None:
    book = PositionBook()
    for count in range(len(trades)):
        book.trade(*trades[count])
        done = trades[: count + 1]
        expected = {symbol: reference(symbol, done) for symbol in "AB"}
        assert {h.symbol for h in book} == {s for s, held in expected.items() if held}
        for holding in book:
            qty, average = expected[holding.symbol] or (Fraction(0), Fraction(0))
            assert Fraction(holding.qty) == qty
            # One rounding to 9 places a trade, which no later trade makes larger.
            assert abs(Fraction(holding.avg_entry_price) - average) <= (count + 1) * Fraction(
                1, 10**9
            )


def reference(
    symbol: str, trades: list[tuple[str, Decimal, Decimal]]
) -> tuple[Fraction, Fraction] | None:
    """Shares and average, from the last moment without a position of this sign on."""
    mine = [(Fraction(qty), Fraction(price)) for name, qty, price in trades if name == symbol]
    totals = [sum((qty for qty, _ in mine[: n + 1]), Fraction(0)) for n in range(len(mine))]
    if not totals or not totals[-1]:
        return None
    long = totals[-1] > 0
    first = len(mine) - 1
    while first and totals[first - 1] and (totals[first - 1] > 0) == long:
        first -= 1
    opened = totals[first]
    cost = opened * mine[first][1]
    held = opened
    for qty, price in mine[first + 1 :]:
        # What leaves takes its share of the cost with it.
        cost += qty * price if (qty > 0) == long else qty * cost / held
        held += qty
    return held, cost / held


@given(_shares, _prices, _prices)
def test_what_closes_leaves_nothing(qty: Decimal, price: Decimal, last: Decimal) -> None:
    book = PositionBook({"A": (qty, price)})
    assert book.trade("A", -qty, last) is None
    assert not list(book)


@pytest.mark.parametrize(
    ("days", "intraday", "overnight"),
    [
        # What was bought first is sold first, so the dearer shares are left.
        ([[("100", "10")], [("100", "12"), ("-150", "15")]], "11", "12"),
        ([[("100", "10")], [("50", "12")], [("-120", "15")]], "10.666666667", "12"),
        # All that a day adds is one lot.
        ([[("10", "1")], [("10", "2"), ("10", "4"), ("-20", "5")]], "2.333333333", "3"),
        ([[("10", "1"), ("10", "3"), ("-15", "5")]], "2", "2"),
        ([[("-10", "1")], [("-10", "2"), ("15", "5")]], "1.5", "2"),
        # Also what it adds after a sale.
        ([[("100", "10"), ("50", "9"), ("-50", "20"), ("50", "11")]], "10.111111111", "10"),
        # What went through 0 has nothing left of the days before.
        ([[("10", "1")], [("-15", "2"), ("-5", "4"), ("5", "1")]], "3", "3"),
    ],
)
def test_the_average_is_weighted_within_the_day_and_first_in_first_out_overnight(
    days: list[list[tuple[str, str]]], intraday: str, overnight: str
) -> None:
    book = PositionBook()
    for trades in days:
        book.end_day()
        for qty, price in trades:
            book.trade("A", D(qty), D(price))
    for expected in (intraday, overnight):
        held = book.get("A")
        assert held is not None
        assert held.avg_entry_price == D(expected)
        book.end_day()


_day = st.lists(st.tuples(_shares, _prices), max_size=6)


@given(st.lists(_day, min_size=1, max_size=6))
def test_overnight_averages_follow_a_reference_that_looks_at_all_trades(
    days: list[list[tuple[Decimal, Decimal]]],
) -> None:
    book = PositionBook()
    for number, trades in enumerate(days, 1):
        for shares, price in trades:
            book.trade("A", shares, price)
        book.end_day()
        holding = book.get("A")
        past = [[(Fraction(qty), Fraction(price)) for qty, price in day] for day in days[:number]]
        total, average = overnight(past)
        assert (Fraction(0) if holding is None else Fraction(holding.qty)) == total
        if holding is not None:
            assert abs(Fraction(holding.avg_entry_price) - average) <= Fraction(1, 10**9)


def test_the_book_keeps_the_order_of_opening() -> None:
    book = PositionBook({"B": (1, 1), "A": (1, 1)})
    book.trade("C", D(1), D(1))
    book.trade("B", D(1), D(1))
    assert [holding.symbol for holding in book] == ["B", "A", "C"]
    assert len(book) == 3


def test_large_numbers_lose_no_digit() -> None:
    book = PositionBook()
    book.trade("A", D("400000000000.123456789"), D("900000000000.123456789"))
    book.trade("A", D("400000000000.123456789"), D("900000000000.123456789"))
    assert book.get("A") == Holding("A", D("800000000000.246913578"), D("900000000000.123456789"))
    with pytest.raises(ValueError, match="too many"):
        book.trade("A", D("400000000000"), D(1))


def test_positions_to_start_with_are_a_mapping_or_pairs() -> None:
    expected = {"AAPL": (D("1.5"), D("0.1")), "BRK.B": (D(-2), D(400))}
    assert parse_positions({"aapl": (1.5, 0.1), "BRK.B": ("-2", 400)}) == expected
    assert parse_positions([("AAPL", ("1.5", "0.1")), ("BRK.B", (-2, 400.0))]) == expected
    assert parse_positions(()) == {}


@pytest.mark.parametrize(
    ("positions", "error"),
    [
        ({"": (1, 1)}, InvalidSymbol),
        ({"*": (1, 1)}, ValueError),
        ({"A": (0, 1)}, ValueError),
        ({"A": (1e-12, 1)}, ValueError),
        ({"A": (1, -1)}, ValueError),
        ({"A": ("many", 1)}, ValueError),
        ({"A": (float("nan"), 1)}, ValueError),
        ({"A": (1, "inf")}, ValueError),
        ({"A": (10**12, 1)}, ValueError),
    ],
)
def test_positions_that_cannot_be_are_refused(
    positions: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        parse_positions(positions)


@given(st.decimals(-(10**11), 10**11, places=9, allow_nan=False))
def test_a_plain_number_is_the_same_number(value: Decimal) -> None:
    text = plain(value)
    assert Decimal(text) == value == to_decimal(text)
    assert not set(text) - set("-.0123456789")
    assert text == "0" or "." not in text or not text.endswith("0")


def test_the_demo_is_long_and_short_and_near_the_markets_prices() -> None:
    parsed = parse_positions(DEMO_POSITIONS)
    assert 6 <= len(parsed) <= 10
    assert {qty > 0 for qty, _ in parsed.values()} == {True, False}
    assert any(qty % 1 for qty, _ in parsed.values())
    assert all(qty > 0 for qty, _ in parsed.values() if qty % 1)
    for symbol, (_, price) in parsed.items():
        start = D(UNIVERSE[symbol]) / 100
        assert 0 < abs(price - start) / start < D("0.1")


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
