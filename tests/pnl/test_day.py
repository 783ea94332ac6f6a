"""One day's P&L: Alpaca's own examples, and random days against a slow reference in fractions."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

import attrs
from hypothesis import given
from hypothesis import strategies as st

from mdservice.model.position import Position
from mdservice.pnl.day import (
    Booking,
    DayBook,
    Fill,
    Start,
    average_at_start,
    midnight_ns,
    new_york_date,
)
from tests.examples import examples

from . import reference
from .reference import Traded

DATE = "2026-11-20"
OPEN_NS = midnight_ns(DATE) + 34_200 * 10**9
D = Decimal

quantities = st.integers(1, 40).map(Decimal) | st.decimals("0.000001", 20, places=6)
trades = st.tuples(
    st.booleans().flatmap(lambda sold: quantities.map(lambda qty: -qty if sold else qty)),
    st.decimals("0.01", 500, places=4),
)
days = st.lists(trades, max_size=12)


def fill(qty: object, price: object, place: int = 0, symbol: str = "AAPL", days: int = 0) -> Fill:
    at_ns = midnight_ns(DATE, days) + 34_200 * 10**9 + place
    return Fill(symbol, D(str(qty)), D(str(price)), at_ns, f"{days}/{place}/{symbol}")


def row(qty: object, avg: object, symbol: str = "AAPL", lastday: object = None) -> Position:
    last = None if lastday is None else D(str(lastday))
    return Position(symbol, D(str(qty)), D(str(avg)), lastday_price=last)


def book_of(*fills: Fill) -> DayBook:
    book = DayBook(DATE)
    for one in fills:
        assert book.add(one)
    return book


def fractions(day: list[tuple[Decimal, Decimal]]) -> list[Traded]:
    return [(Fraction(qty), Fraction(price)) for qty, price in day]


def test_dates_are_those_of_new_york() -> None:
    assert new_york_date(midnight_ns(DATE) - 1) == "2026-11-19"
    assert new_york_date(midnight_ns(DATE)) == DATE
    assert midnight_ns("2026-11-02") - midnight_ns("2026-11-01") == 25 * 3600 * 10**9


OPTION = "AAPL261218C00200000"


def test_an_option_that_was_bought_and_sold_today_counts_a_hundred_shares() -> None:
    book = book_of(fill(2, "1.5", symbol=OPTION))
    book.note([attrs.evolve(row(2, "1.5", OPTION, "1.4"), multiplier=D(100))])
    assert book.add(fill(-2, "1.75", 1, OPTION))
    day = book.symbol_day(OPTION, [])
    assert (day.realized, day.closed_pnl) == (50, 50)


def test_an_option_whose_average_was_found_late_counts_a_hundred_shares() -> None:
    book = book_of(fill(-2, "1.75", symbol=OPTION))
    book.learn_average(OPTION, D(2), D("1.5"))
    assert book.symbol_day(OPTION, []).realized == 50


def test_fills_that_add_up_to_nothing_leave_the_average_of_the_start() -> None:
    book = DayBook(DATE)
    book.note([row(10, 100, lastday=120)])
    assert not book.note([row(10, 130, lastday=120)], newer=True)  # sold and bought again
    assert book.add(fill(-10, 125))
    assert book.add(fill(10, 130, 1))
    assert book.symbol_day("AAPL", [row(10, 130, lastday=120)]).realized == 250


def test_alpacas_first_example_of_compressed_fifo() -> None:
    bought = [fill(100, 10, 0), fill(50, 12, 1), fill(30, 15, 2, days=1)]
    before = average_at_start(bought, D(180))
    assert before is not None
    assert round(before * 180, 9) == 2050
    average = average_at_start([*bought, fill(-120, 99, 3, days=2)], D(60))
    assert average is not None
    assert round(average, 2) == D("12.83")


def test_alpacas_second_example_counts_the_whole_day_before_its_sale() -> None:
    day = [fill(100, 10, 0), fill(50, 9, 1), fill(-50, 20, 2), fill(50, 11, 3)]
    assert average_at_start(day, D(150)) == 10


def test_alpacas_example_of_the_weighted_average_within_a_day() -> None:
    book = book_of(fill(-120, 20))
    average = D(2050) / 180
    book.starts["AAPL"] = Start("AAPL", D(180), average)
    day = book.symbol_day("AAPL", [row(60, average)])
    assert day.realized is not None
    assert round(D(2050) - (120 * 20 - day.realized), 2) == D("683.33")


def test_a_short_position_that_turns_long() -> None:
    book = book_of(fill(-10, 100, 0), fill(-10, 110, 1), fill(25, 90, 2))
    day = book.symbol_day("AAPL", [row(5, 90)])
    assert (day.realized, day.spent, day.units, day.fills, day.qty) == (300, 150, 5, 3, 5)


def test_an_option_counts_a_hundred_shares() -> None:
    symbol = "AAPL261218C00200000"
    day = book_of(fill(2, "5.10", 0, symbol), fill(-2, "5.60", 1, symbol)).symbol_day(symbol, [])
    assert (day.realized, day.closed_pnl, day.spent) == (100, 100, -100)


def test_a_pair_is_one_symbol_in_both_spellings() -> None:
    book = book_of(fill("0.5", 90_000, 0, "BTC/USD"))
    assert book.add(fill("-0.2", 95_000, 1, "BTCUSD"))
    position = Position("BTCUSD", D("0.3"), D(90_000), asset_class="crypto")
    day = book.symbol_day("BTCUSD", [position])
    assert (day.realized, day.qty, day.fills) == (1000, D("0.3"), 2)


def test_the_average_at_the_start_follows_from_the_position_now() -> None:
    book = book_of(fill(-4, 130, 0), fill(6, 140, 1))
    assert book.symbol_day("AAPL", [row(12, "120")]).realized == 4 * (130 - 100)


def test_the_average_of_a_position_that_is_gone_must_be_known_from_elsewhere() -> None:
    book = book_of(fill(-10, 130))
    day = book.symbol_day("AAPL", [])
    assert (day.realized, day.needs_average, day.start_qty, day.closed_pnl) == (
        None,
        True,
        10,
        None,
    )
    book.learn_average("AAPL", D(10), D(100))
    day = book.symbol_day("AAPL", [])
    assert (day.realized, day.needs_average, day.closed_pnl) == (300, False, None)


def test_positions_without_fills_are_remembered_as_they_were_at_the_start() -> None:
    book = DayBook(DATE)
    assert book.note([row(10, 100, lastday=120), row(3, 50, "MSFT", 55)])
    assert not book.note([row(10, 100, lastday=120)])
    book.add(fill(-10, 130))
    assert not book.note([row(4, 77, lastday=120), row(3, 50, "MSFT", 55)])
    day = book.symbol_day("AAPL", [])
    assert (day.realized, day.closed_pnl) == (300, 100)
    again = DayBook(DATE, book.starts)
    again.add(fill(-10, 130))
    assert again.symbol_day("AAPL", []) == day


def test_what_changes_overnight_without_a_fill_is_the_new_start() -> None:
    book = DayBook("2026-11-20")
    book.note([row(10, 100, lastday=120)])
    assert not book.note([row(15, 110, lastday=120)], newer=True)  # a fill that is still to come
    assert book.note([row(10, 104, lastday=125)], newer=True)
    assert book.add(fill(-4, 130))
    day = book.symbol_day("AAPL", [row(6, 104, lastday=125)])
    assert (day.realized, day.lastday_price) == (104, 125)


def test_a_start_of_another_quantity_is_not_believed() -> None:
    book = DayBook(DATE)
    book.note([row(15, 110, lastday=120)])  # it holds a fill that the activities lacked
    book.add(fill(5, 130, 0))
    book.add(fill(-15, 140, 1))
    assert book.symbol_day("AAPL", []).realized is None


def test_a_fill_that_the_stream_lost_counts_at_its_own_time() -> None:
    """The stream has the later one of two equal fills, and another average lies between them."""
    trades = [(-10, "1.5"), (1, "1.6"), (-2, "1.7"), (1, "1.6")]
    fills = [fill(qty, price, place) for place, (qty, price) in enumerate(trades)]
    lossy, whole = DayBook(DATE), book_of(*fills)
    for place in (0, 2, 3):
        assert lossy.add(attrs.evolve(fills[place], id=f"stream/{place}"), streamed=True)
    assert [lossy.add(one) for one in fills] == [False, True, False, True]
    days = [book.symbol_day("AAPL", [row(-10, "1.53")]) for book in (lossy, whole)]
    assert days[0] == days[1]
    exact = reference.realized(
        [(Fraction(D(q)), Fraction(p)) for q, p in trades], *[Fraction()] * 2
    )
    assert Fraction(days[0].realized or 0) == round(exact, 18)


few_trades = st.sampled_from([("2", "1.1"), ("-1", "1.1"), ("1", "1.3"), ("-2", "1.4")])


@given(
    data=st.data(),
    listed=st.lists(st.tuples(few_trades, st.integers(0, 1)), min_size=1, max_size=5),
    start=st.sampled_from([0, 1, -1]),
)
def test_the_list_decides_the_order_of_fills_whatever_the_stream_had(
    data: st.DataObject, listed: list[tuple[tuple[str, str], int]], start: int
) -> None:
    """Of fills of one instant, it matters whether one was sold before another was bought."""
    listed.sort(key=lambda each: each[1])
    fills = [
        attrs.evolve(fill(*trade, at), id=f"l{place}") for place, (trade, at) in enumerate(listed)
    ]
    came = data.draw(st.permutations(range(len(fills))))
    came = came[: data.draw(st.integers(0, len(fills)))]
    both, whole = DayBook(DATE), DayBook(DATE)
    for book in (both, whole):
        if start:
            book.note([row(start, "1.2")])
    for place in came:
        assert both.add(attrs.evolve(fills[place], id=f"s{place}"), streamed=True)
    for one in fills:
        both.add(one)
        assert whole.add(one)
    lots = [row(start + sum(one.qty for one in fills), "1.25")]
    assert both.symbol_day("AAPL", lots) == whole.symbol_day("AAPL", lots)


def test_coins_taken_as_a_fee_count_behind_the_fills_of_their_instant() -> None:
    """The fill is in the list only after the fee."""
    coins = Fill("AAPL", D("-0.5"), D(10), OPEN_NS, "c", realizes=False)
    fills = [fill(-1, 10), attrs.evolve(fill(-2, 11), id="2")]
    early, late = DayBook(DATE), DayBook(DATE)
    for book in (early, late):
        book.note([row(1, 9)])
    early.add(attrs.evolve(fills[0], id="s"), streamed=True)
    early.book([Booking("c", "CFEE", fill=coins)])
    for book in (early, late):
        for one in fills:
            book.add(one)
    late.book([Booking("c", "CFEE", fill=coins)])
    lots = [row("-2.5", "10.6")]
    assert early.symbol_day("AAPL", lots) == late.symbol_day("AAPL", lots)


def test_the_same_fill_from_stream_and_list_counts_once() -> None:
    book = DayBook(DATE)
    streamed = [Fill("AAPL", D(5), D("10.0"), OPEN_NS + place, f"s{place}") for place in range(3)]
    listed = [Fill("AAPL", D(5), D(10), OPEN_NS + place + 9, f"l{place}") for place in range(3)]
    assert book.add(streamed[0], streamed=True)
    assert not book.add(streamed[0], streamed=True), "the same message again"
    assert not book.add(listed[0])
    assert book.add(listed[1]), "lost on the stream"
    assert not book.add(listed[1])
    assert not book.add(streamed[1], streamed=True), "late on the stream"
    assert book.add(streamed[2], streamed=True)
    assert book.symbol_day("AAPL", [row(15, 10)]).fills == 3
    book.add(listed[2])
    assert book.symbol_day("AAPL", [row(15, 10)]).fills == 3
    assert not book.drop_unlisted(OPEN_NS + 10**12)


def test_a_fill_that_the_list_never_has_is_dropped() -> None:
    book = DayBook(DATE)
    book.add(Fill("AAPL", D(5), D(10), OPEN_NS, "s0"), streamed=True)
    assert not book.drop_unlisted(OPEN_NS - 1)
    assert book.drop_unlisted(OPEN_NS) == {"AAPL"}
    day = book.symbol_day("AAPL", [])
    assert (day.fills, day.units, day.spent, day.realized) == (0, 0, 0, 0)


def test_a_fill_of_another_date_does_not_count() -> None:
    book = DayBook(DATE)
    assert not book.add(fill(1, 1, days=-1))
    assert not book.add(fill(1, 1, days=1))
    assert not book.keys


def test_fees_and_what_else_moved_the_cash() -> None:
    book = DayBook(DATE)
    coins = Fill("BTC/USD", D("-0.001"), D(90_000), OPEN_NS, "c", realizes=False)
    changed = book.book(
        [
            Booking("a", "FEE", fee=D("0.02")),
            Booking("a", "FEE", fee=D("0.02")),
            Booking("b", "CSD", amount=D(500)),
            Booking("c", "CFEE", fee=D(90), fill=coins),
            Booking("d", "DIV", amount=D("1.50")),
        ]
    )
    assert changed == {"BTCUSD"}
    assert book.fees == D("90.02")
    assert book.moved() == {"CSD": 500, "DIV": D("1.50")}
    day = book.symbol_day("BTCUSD", [Position("BTCUSD", D("0.999"), D(80_000))])
    assert (day.fills, day.spent, day.start_qty) == (0, -90, 1)
    assert day.realized == 0
    book.book([Booking("e", "FEE", fee=D(-100))])
    assert (book.fees, book.moved()["FEE"]) == (0, D("9.98"))
    book.book([Booking("f", "FEE", fee=None)])
    assert book.fees is None


def test_a_split_makes_the_day_of_its_symbol_unknown() -> None:
    book = DayBook(DATE)
    assert book.book([Booking("a", "SPLIT", changes="AAPL")]) == {"AAPL"}
    day = book.symbol_day("AAPL", [row(20, 50, lastday=51)])
    assert (day.realized, day.closed_pnl) == (None, None)
    assert day.problem == "SPLIT changed the position"


@given(days, quantities | st.just(D(0)), st.booleans(), st.decimals("0.01", 500, places=4))
@examples(400)
def test_realised_pnl_and_the_identity_of_the_day(
    day: list[tuple[Decimal, Decimal]], held: Decimal, short: bool, average: Decimal
) -> None:
    start = -held if short else held
    book = DayBook(DATE, {"AAPL": Start("AAPL", start, average, D(50))})
    fills = [fill(qty, price, place) for place, (qty, price) in enumerate(day)]
    for one in [*fills[1::2], *fills[::2]]:  # in any order
        book.add(one)
    qty = start + sum((qty for qty, _ in day), D(0))
    lots = [row(qty, 1, lastday=50)] if qty else []
    found = book.symbol_day("AAPL", lots)
    expected = reference.realized(fractions(day), Fraction(start), Fraction(average))
    assert found.realized is not None
    assert abs(Fraction(found.realized) - expected) < Fraction(1, 10**16)
    assert found.start_qty == start
    if not qty:
        cash = -sum((qty * price for qty, price in day), D(0))
        assert found.closed_pnl == cash - start * 50


@given(days, quantities | st.just(D(0)), st.decimals("0.01", 500, places=4))
@examples(300)
def test_the_average_at_the_start_can_be_solved_from_that_of_now(
    day: list[tuple[Decimal, Decimal]], start: Decimal, average: Decimal
) -> None:
    exact, qty, cost = Fraction(start), Fraction(start), Fraction(start) * Fraction(average)
    crossed = False
    for traded, price in fractions(day):
        closed = min(abs(qty), abs(traded)) * (1 if qty > 0 else -1) if qty * traded < 0 else 0
        cost -= cost * closed / qty if closed else 0
        qty -= closed
        crossed = crossed or not qty
        cost += (traded + closed) * price
        qty += traded + closed
    if not qty or not cost.denominator:
        return
    book = book_of(*(fill(one, price, place) for place, (one, price) in enumerate(day)))
    now = D((cost / qty).numerator) / D((cost / qty).denominator)
    found = book.symbol_day("AAPL", [row(D(qty.numerator) / D(qty.denominator), now)]).realized
    expected = reference.realized(fractions(day), exact, Fraction(average))
    if found is None:
        assert crossed
        return
    # What little is left of the start magnifies the 28 digits of the average now.
    assert abs(Fraction(found) - expected) < Fraction(1, 10**6)


@given(st.lists(days, min_size=1, max_size=4))
@examples(400)
def test_the_average_of_a_morning_follows_from_the_days_before(
    history: list[list[tuple[Decimal, Decimal]]],
) -> None:
    fills = [
        fill(qty, price, place, days=number)
        for number, day in enumerate(history)
        for place, (qty, price) in enumerate(day)
    ]
    qty, expected = reference.overnight([fractions(day) for day in history])
    held = sum((one.qty for one in fills), D(0))
    found = average_at_start(fills, held)
    assert Fraction(held) == qty
    if not held:
        assert found is None
        return
    assert found is not None
    assert abs(Fraction(found) - expected) < Fraction(1, 10**30)


def test_fills_that_do_not_reach_back_to_nothing_give_no_average() -> None:
    assert average_at_start([fill(5, 10, 1)], D(10)) is None
    assert average_at_start([], D(10)) is None
    turned = [fill(-3, 9, 0), fill(10, 12, 1)]
    assert average_at_start(turned[1:], D(7)) == 12, "the fill turned a short position"


@given(days)
@examples(100)
def test_a_fill_costs_the_same_at_once_and_later(day: list[tuple[Decimal, Decimal]]) -> None:
    early, late = DayBook(DATE), DayBook(DATE)
    fills = [fill(qty, price, place) for place, (qty, price) in enumerate(day)]
    assert all(first.at_ns < then.at_ns for first, then in pairwise(fills))
    held = D(0)
    for one in fills:
        early.add(one)
        held += one.qty
        now = early.symbol_day("AAPL", [row(held, 1)] if held else [])
    for one in fills:
        late.add(one)
    if fills:
        assert late.symbol_day("AAPL", [row(held, 1)] if held else []) == now
