"""What each event does to the rows, one case at a time."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Literal

import attrs
import pytest

from mdservice.model.market import Market
from mdservice.model.position import Position
from mdservice.model.quote import Quote
from mdservice.model.trade import Cancel, Correction, Trade
from mdservice.pnl import engine as engine_module
from mdservice.pnl.engine import PnlEngine
from mdservice.pnl.rows import Row

from .reference import CLOSES_NS as CLOSE_NS
from .reference import S_NS

T_NS = 1_795_189_904_208_912_345
T = "2026-11-20T15:51:44.208912345Z"


def quote(bid: float, ask: float, at_ns: int = T_NS, symbol: str = "AAPL") -> Quote:
    return Quote(symbol, bid, ask, 1, 1, at_ns, at_ns)


def lot(qty: str, avg: str, symbol: str = "AAPL") -> Position:
    return Position(symbol, Decimal(qty), Decimal(avg))


def holding(*lots: Position, delay_s: float = 0.0) -> PnlEngine:
    engine = PnlEngine(stale_after_s=60, price_ttl_s=300, feed_delay_s=delay_s)
    engine.set_positions(lots)
    return engine


def statuses(engine: PnlEngine, now_ns: int) -> list[str]:
    return [row.status for row in engine.report(now_ns).positions]


def test_the_example_of_the_contract() -> None:
    engine = holding(lot("10", "150.00"))
    assert engine.update(quote(187.12, 187.15), T_NS)
    report = engine.report(T_NS)
    assert report.positions == (
        Row(
            "AAPL",
            Decimal(10),
            Decimal("150.00"),
            "us_equity",
            Decimal(1),
            Decimal("187.135"),
            Decimal("371.35"),
            Decimal("24.7567"),
            Decimal("1871.35"),
            None,
            T,
            "mid",
            "live",
        ),
    )
    assert report.total_unrealized_pnl == Decimal("371.35")
    assert (report.total_market_value, report.total_day_pnl) == (Decimal("1871.35"), None)
    assert (report.priced, report.unpriced, report.whole) == (1, 0, True)


def test_the_symbols_to_ask_for_keep_their_order_until_the_lots_change() -> None:
    broken = Position("C", None, Decimal(1))
    engine = holding(lot("1", "1", "B"), lot("1", "1", "A"), broken, lot("2", "1", "B"))
    assert engine.symbols == ("B", "A")
    engine.update(quote(2, 2, symbol="B"), T_NS)
    assert engine.symbols == ("B", "A")
    engine.set_positions([lot("1", "1", "A"), lot("1", "1", "C")])
    assert engine.symbols == ("A", "C")


def test_each_lot_that_is_never_priced_is_a_problem() -> None:
    lots = [lot("1", "1"), attrs.evolve(lot("2", "1"), problem="odd"), lot("1", "1", "MSFT")]
    engine = holding(*lots, attrs.evolve(lot("1", "1", "OPT"), problem="not a stock"))
    assert sorted(engine.problems()) == [("AAPL", "odd"), ("OPT", "not a stock")]
    engine.update(quote(1, 1), T_NS)
    assert sorted(engine.problems()) == [("AAPL", "odd"), ("OPT", "not a stock")]
    engine.set_positions([lot("1", "1")])
    assert engine.problems() == []


def test_a_short_position_gains_where_the_price_falls() -> None:
    engine = holding(lot("-10", "150"))
    engine.update(quote(120.0, 120.0), T_NS)
    (row,) = engine.report(T_NS).positions
    assert (row.unrealized_pnl, row.unrealized_pnl_pct) == (300, 20)


def test_a_contract_of_a_hundred_shares() -> None:
    engine = holding(Position("AAPL", Decimal(2), Decimal(5), multiplier=Decimal(100)))
    engine.update(quote(6.0, 6.0), T_NS)
    (row,) = engine.report(T_NS).positions
    assert (row.unrealized_pnl, row.unrealized_pnl_pct) == (200, 20)


@pytest.mark.parametrize(("qty", "avg"), [("0", "150"), ("10", "0")])
def test_no_percentage_of_nothing(qty: str, avg: str) -> None:
    engine = holding(lot(qty, avg))
    engine.update(quote(1.0, 1.0), T_NS)
    (row,) = engine.report(T_NS).positions
    assert row.unrealized_pnl_pct is None
    assert engine.totals.unrealized_pnl_pct is None
    assert row.status == "live"


@pytest.mark.parametrize(
    ("qty", "avg", "price", "percent"),
    [
        ("1", "200000", 200000.1, "0"),  # 0.00005 exactly: to the even one
        ("1", "200000", 200000.3, "0.0002"),  # 0.00015 exactly
        ("-1", "200000", 200000.3, "-0.0002"),
        ("1", "200000.00000000000000000000000000000000000000000000000001", 200000.1, "0"),
        # 0.0000500…01 or …49, where the difference is beyond the fiftieth digit
        (
            "1",
            "199999.99999999999999999999999999999999999999999999999999999999",
            200000.1,
            "0.0001",
        ),
        ("1", "3", 1.5e300, f"{50 * 10**300 - 100}"),  # an infinite number of digits is not needed
        ("1", "7e-90", 1e300, None),
    ],
)
def test_the_percentage_is_rounded_once(
    qty: str, avg: str, price: float, percent: str | None
) -> None:
    engine = holding(lot(qty, avg))
    engine.update(quote(price, price), T_NS)
    (row,) = engine.report(T_NS).positions
    if percent is None:
        assert row.unrealized_pnl_pct is not None
        assert row.unrealized_pnl_pct > 10**390
    else:
        assert row.unrealized_pnl_pct == Decimal(percent)
        assert str(row.unrealized_pnl_pct) != "-0.0000"


def test_totals_are_exact_far_beyond_28_digits() -> None:
    engine = holding(lot("1e30", "0", "A"), lot("1e-30", "0", "B"), lot("-1e30", "0", "A"))
    engine.update(quote(1e15, 1e15, symbol="A"), T_NS)
    engine.update(quote(3.0, 3.0, symbol="B"), T_NS)
    assert engine.report(T_NS).total_unrealized_pnl == Decimal("3e-30")
    engine.update(quote(1e300, 1e300, symbol="B"), T_NS)
    engine.update(quote(1.0, 1.0, symbol="B"), T_NS)
    assert engine.report(T_NS).total_unrealized_pnl == Decimal("1e-30")


def test_the_numbers_at_the_edge_of_what_is_summed_up_stay_exact() -> None:
    huge, tiny = Decimal("9" * 100 + "." + "9" * 100), Decimal("1e-100")
    engine = PnlEngine(stale_after_s=60, price_ttl_s=300, max_spread=0)
    engine.set_positions(
        [Position("A", huge, huge, multiplier=huge), Position("B", tiny, -tiny, multiplier=tiny)]
    )
    engine.update(quote(1.7976931348623157e308, 5e-324, symbol="A"), T_NS)
    engine.update(quote(5e-324, 1.7976931348623157e308, symbol="B"), T_NS)
    total = engine.report(T_NS).total_unrealized_pnl
    assert len(total.as_tuple().digits) < 1300
    assert engine.totals.unrealized_pnl_pct is not None


@pytest.mark.parametrize(
    ("position", "problem"),
    [
        (Position("AAPL", None, Decimal(1)), "qty is missing"),
        (Position("AAPL", Decimal(1), None), "avg_entry_price is missing"),
        (Position("AAPL", Decimal("NaN"), Decimal(1)), "qty is not a number of at most 100 digits"),
        (Position("AAPL", Decimal("1e100"), Decimal(1)), "qty is not a number of at most 100"),
        (Position("AAPL", Decimal(1), Decimal("1e-101")), "avg_entry_price is not a number"),
        (Position("AAPL", Decimal(1), Decimal(1), Decimal("inf")), "multiplier is not a number"),
        (Position("AAPL", Decimal(1), Decimal(1), problem="not a stock"), "not a stock"),
    ],
)
def test_what_cannot_be_priced_is_listed_and_says_why(position: Position, problem: str) -> None:
    engine = holding(position)
    assert not engine.update(quote(187.12, 187.15), T_NS)
    (row,) = engine.report(T_NS).positions
    assert row.status == "unpriced"
    assert (row.current_price, row.unrealized_pnl, row.last_updated) == (None, None, None)
    assert row.problem is not None
    assert row.problem.startswith(problem)
    assert engine.symbols == ()
    assert (engine.totals.priced, engine.totals.unpriced) == (0, 1)


def test_a_position_without_a_price_waits_for_one() -> None:
    engine = holding(lot("10", "150"))
    (row,) = engine.report(T_NS).positions
    assert (row.status, row.current_price, row.last_updated) == ("unpriced", None, None)
    assert engine.symbols == ("AAPL",)
    assert engine.totals.lost == 0


UNUSABLE = [
    (0.0, 0.0),
    (float("inf"), 0.0),
    (float("nan"), 1.0),
    (0.05, 199_999.99),
    (199_999.99, 0.05),  # crossed as far
    (95.0, 105.01),
    (105.01, 95.0),
    (0.95, 1.0501),
    (1e-7, 1.7e308),
    (5e-324, 1e-323),
]
AT_THE_LIMIT = [(95.0, 105.0), (105.0, 95.0), (0.95, 1.05), (9.5, 10.5), (0.00095, 0.00105)]
ONE_SIDED = [(160.0, 0.0), (0.0, 160.0)]


@pytest.mark.parametrize("unusable", UNUSABLE)
def test_a_quote_that_is_no_price_leaves_the_last_one_as_stale(
    unusable: tuple[float, float],
) -> None:
    engine = holding(lot("10", "150"))
    engine.update(quote(160.0, 160.0), T_NS)
    version = engine.version
    assert engine.update(quote(*unusable, T_NS + 1), T_NS + 1)
    (row,) = engine.changes(version, T_NS + 1).positions
    assert (row.status, row.current_price, row.unrealized_pnl) == ("stale", 160, 100)
    assert row.last_updated == T, "that of the price"
    assert (engine.totals.unrealized_pnl, engine.totals.priced, engine.totals.lost) == (100, 1, 0)
    assert not engine.update(quote(*unusable, T_NS + 2), T_NS + 2), "nothing is different"
    assert engine.update(quote(160.0, 160.0, T_NS + 3), T_NS + 3)
    (row,) = engine.report(T_NS + 3).positions
    assert (row.status, row.last_updated) == ("live", "2026-11-20T15:51:44.208912348Z")


@pytest.mark.parametrize("usable", AT_THE_LIMIT + ONE_SIDED)
def test_a_spread_at_the_limit_and_one_side_alone_are_a_price(usable: tuple[float, float]) -> None:
    engine = holding(lot("10", "150"))
    engine.update(quote(*usable), T_NS)
    (row,) = engine.report(T_NS).positions
    assert row.status == "live"
    assert row.current_price == quote(*usable).price


@pytest.mark.parametrize(
    ("max_spread", "status"), [(0, "live"), (200, "live"), (199.9, "unpriced"), (1, "unpriced")]
)
def test_the_widest_spread_can_be_set(max_spread: float, status: str) -> None:
    engine = PnlEngine(stale_after_s=60, price_ttl_s=300, max_spread=max_spread)
    engine.set_positions([lot("10", "150")])
    engine.update(quote(0.05, 199_999.99), T_NS)
    assert statuses(engine, T_NS) == [status]
    engine.set_positions([lot("10", "150", "B")])
    engine.update(quote(0.0, 0.0, symbol="B"), T_NS)
    assert statuses(engine, T_NS) == ["unpriced"], "without a side there is no price"


@pytest.mark.parametrize(
    "symbol", ["AAPL261218C00200000", "F261218P00012500", "SPXW261218C05000000"]
)
def test_the_spread_of_an_option_is_not_limited(symbol: str) -> None:
    engine = holding(lot("2", "1", symbol), lot("2", "1", "BTC/USD"))
    engine.update(quote(0.5, 1.5, symbol=symbol), T_NS)
    engine.update(quote(0.5, 1.5, symbol="BTC/USD"), T_NS)
    assert statuses(engine, T_NS) == ["live", "unpriced"]
    engine.update(quote(0.0, 0.0, T_NS + 1, symbol), T_NS + 1)
    assert statuses(engine, T_NS + 1) == ["stale", "unpriced"]


@pytest.mark.parametrize("unusable", UNUSABLE)
def test_without_any_usable_quote_there_is_no_price(unusable: tuple[float, float]) -> None:
    engine = holding(lot("10", "150"))
    assert engine.update(quote(*unusable), T_NS)
    (row,) = engine.report(T_NS).positions
    assert (row.status, row.current_price, row.last_updated) == ("unpriced", None, T)
    assert (engine.totals.waiting, engine.totals.lost) == (1, 1)
    engine.update(quote(160.0, 160.0, T_NS + 1), T_NS + 1)
    assert statuses(engine, T_NS + 1) == ["live"]
    assert (engine.totals.waiting, engine.totals.lost) == (0, 0)


@pytest.mark.parametrize("quotes", [[], [(0.0, 0.0)], [(0.05, 199_999.99)]])
def test_without_any_usable_quote_the_sources_price_counts_as_stale(
    quotes: list[tuple[float, float]],
) -> None:
    def told(price: str | None) -> list[Position]:
        previous = None if price is None else Decimal(price)
        return [attrs.evolve(lot("10", "150"), current_price=previous), lot("-4", "150")]

    engine = holding(*told("160"))
    for sides in quotes:
        engine.update(quote(*sides), T_NS)
    rows = engine.report(T_NS).positions
    assert [(row.status, row.current_price, row.last_updated) for row in rows] == [
        ("stale", 160, None)
    ] * 2
    assert (engine.totals.unrealized_pnl, engine.totals.waiting, engine.totals.lost) == (60, 1, 0)
    assert engine.set_positions(told("170")), "it follows its source"
    assert engine.totals.unrealized_pnl == 120
    assert not engine.set_positions(told("170"))
    assert engine.set_positions(told(None))
    assert statuses(engine, T_NS) == ["unpriced", "unpriced"]
    engine.set_positions(told("170"))
    engine.update(quote(155.0, 155.0, T_NS + 1), T_NS + 1)
    assert statuses(engine, T_NS + 1) == ["live", "live"]
    assert not engine.set_positions(told("180")), "a quote goes before it"
    assert (engine.totals.unrealized_pnl, engine.totals.waiting) == (30, 0)


def test_a_symbol_that_is_closed_and_opened_again_keeps_its_last_usable_price() -> None:
    engine = holding(lot("1", "100"))
    engine.update(quote(150.0, 150.0), T_NS)
    engine.update(quote(0.0, 0.0, T_NS + 1), T_NS + 1)
    engine.set_positions([])
    engine.update(quote(0.05, 199_999.99, T_NS + 2), T_NS + 2)
    engine.set_positions([lot("2", "100")])
    (row,) = engine.report(T_NS + 2).positions
    assert (row.status, row.unrealized_pnl, row.last_updated) == ("stale", 100, T)
    engine.update(quote(151.0, 151.0, T_NS + 3), T_NS + 3)
    assert statuses(engine, T_NS + 3) == ["live"]


def test_an_unusable_quote_of_a_symbol_that_is_not_held_is_no_price_either() -> None:
    engine = holding()
    engine.update(quote(150.0, 150.0), T_NS)
    engine.update(quote(0.0, 0.0, T_NS + 1), T_NS + 1)
    engine.set_positions([lot("2", "100")])
    (row,) = engine.report(T_NS + 1).positions
    assert (row.status, row.unrealized_pnl) == ("stale", 100)


def test_setting_positions_returns_whether_anything_is_different() -> None:
    engine = holding()
    assert not engine.set_positions([])
    assert engine.set_positions([lot("1", "100")])
    assert not engine.set_positions([lot("1", "100")])
    assert engine.set_positions([lot("2", "100")])
    assert engine.set_positions([lot("2", "100"), lot("2", "100")])
    assert engine.set_positions([lot("2", "100", "MSFT")])
    assert engine.set_positions([attrs.evolve(lot("2", "100", "MSFT"), problem="not a stock")])
    assert engine.set_positions([])


def test_nothing_is_known_of_a_closed_position_that_was_never_quoted() -> None:
    engine = holding(lot("1", "100"), lot("1", "100", "IBM"))
    engine.update(quote(0.0, 0.0, symbol="IBM"), T_NS)
    engine.set_positions([])
    assert engine.known("AAPL") is None
    assert engine.known_symbols == ["IBM"]
    engine.set_positions([lot("1", "100")])
    assert statuses(engine, T_NS) == ["unpriced"]


def test_an_older_quote_is_ignored_by_a_nanosecond_and_confirms_nothing() -> None:
    engine = holding(lot("10", "150"))
    engine.update(quote(160.0, 160.0), T_NS)
    engine.expire(["AAPL"], T_NS)
    assert not engine.update(quote(170.0, 170.0, T_NS - 1), T_NS)
    (row,) = engine.report(T_NS).positions
    assert (row.status, row.current_price) == ("stale", 160)


@pytest.mark.parametrize("delay_s", [0, 900])
def test_stale_by_age_from_the_first_nanosecond_beyond(delay_s: float) -> None:
    engine = holding(lot("10", "150"), delay_s=delay_s)
    engine.update(quote(160.0, 160.0), T_NS + round(delay_s * S_NS))
    limit_ns = T_NS + round((delay_s + 60) * S_NS)
    assert statuses(engine, limit_ns) == ["live"]
    assert engine.wake_ns == limit_ns + 1
    version = engine.version
    assert statuses(engine, limit_ns + 1) == ["stale"]
    assert [row.status for row in engine.changes(version, limit_ns + 1).positions] == ["stale"]
    assert engine.totals.priced == 1


def test_stale_where_nothing_was_heard_for_as_long_as_a_key_lives() -> None:
    engine = PnlEngine(stale_after_s=10_000, price_ttl_s=300)
    engine.set_positions([lot("10", "150")])
    engine.update(quote(160.0, 160.0), T_NS)
    engine.update(quote(160.0, 160.0), T_NS + 100 * S_NS)  # the key was read: it is there
    assert statuses(engine, T_NS + 400 * S_NS - 1) == ["live"]
    assert statuses(engine, T_NS + 400 * S_NS) == ["stale"]
    assert engine.update(quote(160.0, 160.0), T_NS + 400 * S_NS)
    assert statuses(engine, T_NS + 400 * S_NS) == ["live"]


def test_an_expired_key_is_not_live_until_it_is_there_again() -> None:
    engine = holding(lot("10", "150"))
    engine.update(quote(160.0, 160.0), T_NS)
    engine.expire(["AAPL", "MSFT"], T_NS)
    (row,) = engine.report(T_NS).positions
    assert (row.status, row.current_price, row.unrealized_pnl) == ("stale", 160, 100)
    assert engine.update(quote(160.0, 160.0), T_NS)
    assert statuses(engine, T_NS) == ["live"]


def test_a_quote_that_is_old_already_is_stale_at_once() -> None:
    engine = holding(lot("10", "150"))
    engine.update(quote(160.0, 160.0), T_NS + 61 * S_NS)
    assert statuses(engine, T_NS + 61 * S_NS) == ["stale"]


def test_after_a_clock_was_set_back_prices_become_stale_in_time() -> None:
    engine = holding(lot("10", "150"))
    engine.update(quote(160.0, 160.0), T_NS)
    back_ns = T_NS - 3600 * S_NS
    engine.update(quote(160.0, 161.0), back_ns)
    assert statuses(engine, back_ns + 300 * S_NS - 1) == ["live"]
    assert statuses(engine, back_ns + 300 * S_NS) == ["stale"]


def test_what_one_looks_at_does_not_grow_with_quotes() -> None:
    engine = holding(lot("10", "150"))
    for step in range(1000):
        now_ns = T_NS + step * S_NS
        engine.update(quote(160.0 + step, 160.0 + step, now_ns), now_ns)
        engine.set_positions([lot(str(step), "150")] if step % 7 else [])
        engine.report(now_ns)
    assert len(engine._heap) <= 1


def test_no_stream_is_woken_for_what_is_not_held() -> None:
    engine = holding()
    engine.update(quote(160.0, 160.0), T_NS)
    assert engine.wake_ns is None
    engine.set_positions([lot("1", "100")])
    assert engine.wake_ns == T_NS + 60 * S_NS + 1
    engine.set_positions([])
    engine.update(quote(160.0, 160.0, T_NS + S_NS), T_NS + S_NS)
    engine.report(T_NS + 60 * S_NS + 1)
    assert engine.wake_ns is None


def test_lots_of_a_symbol_stay_rows_in_the_order_of_the_source() -> None:
    lots = [lot("1", "100"), lot("5", "9", "MSFT"), lot("-3", "200"), lot("2", "100")]
    engine = holding(*lots)
    engine.update(quote(150.0, 150.0), T_NS)
    report = engine.report(T_NS)
    assert [(row.symbol, row.qty) for row in report.positions] == [
        ("AAPL", 1),
        ("MSFT", 5),
        ("AAPL", -3),
        ("AAPL", 2),
    ]
    assert (report.total_unrealized_pnl, report.priced, report.unpriced) == (300, 3, 1)
    assert engine.positions == tuple(lots)


def test_positions_that_are_polled_again_change_nothing() -> None:
    engine = holding(lot("1", "100"), lot("2", "100", "MSFT"))
    engine.update(quote(150.0, 150.0), T_NS)
    before = engine.report(T_NS)
    assert not engine.set_positions([lot("1", "100"), lot("2", "100", "MSFT")])
    after = engine.report(T_NS)
    assert after == before
    assert all(row is known for row, known in zip(after.positions, before.positions, strict=True))


def test_settings_of_the_service_that_are_known_already_change_nothing() -> None:
    engine = holding(lot("1", "100"))
    engine.update(quote(150.0, 150.0), T_NS)
    now_ns = T_NS + 100 * S_NS
    assert statuses(engine, now_ns) == ["stale"]
    assert not engine.set_service(feed_delay_s=0.0, price_ttl_s=300, now_ns=now_ns)
    assert engine.set_service(feed_delay_s=900.0, price_ttl_s=300, now_ns=now_ns)
    assert not engine.set_service(feed_delay_s=900.0, price_ttl_s=300, now_ns=now_ns)
    assert statuses(engine, now_ns) == ["live"]


def test_a_changed_quantity_is_one_changed_row() -> None:
    engine = holding(lot("1", "100"), lot("2", "100", "MSFT"))
    version = engine.version
    engine.set_positions([lot("1", "100"), lot("3", "100", "MSFT")])
    changes = engine.changes(version, T_NS)
    assert [(row.symbol, row.qty) for row in changes.positions] == [("MSFT", 3)]
    assert not changes.whole


@pytest.mark.parametrize(
    "lots",
    [
        [lot("1", "100")],
        [lot("1", "100"), lot("2", "100", "MSFT"), lot("1", "1")],
        [lot("2", "100", "MSFT"), lot("1", "100")],
        [],
    ],
)
def test_rows_added_removed_or_moved_make_a_whole_report_due(lots: list[Position]) -> None:
    engine = holding(lot("1", "100"), lot("2", "100", "MSFT"))
    version = engine.version
    engine.set_positions(lots)
    assert engine.whole_due(version)
    changes = engine.changes(version, T_NS)
    assert changes.whole
    assert changes == engine.report(T_NS)
    assert engine.changes(changes.version, T_NS).positions == ()


def test_one_who_knows_a_version_of_another_engine_gets_the_whole() -> None:
    engine = holding(lot("1", "100"))
    assert engine.changes(engine.version + 1, T_NS).whole


def test_a_closed_symbol_that_comes_back_has_its_price() -> None:
    engine = holding(lot("1", "100"))
    engine.update(quote(150.0, 150.0), T_NS)
    engine.set_positions([])
    assert engine.report(T_NS).total_unrealized_pnl == 0
    assert engine.totals.unrealized_pnl_pct is None
    engine.set_positions([lot("2", "100")])
    (row,) = engine.report(T_NS).positions
    assert (row.unrealized_pnl, row.status) == (100, "live")
    engine.set_positions([])
    assert not engine.update(quote(150.0, 160.0), T_NS)
    engine.expire(["AAPL"], T_NS)
    engine.set_positions([lot("2", "100")])
    (row,) = engine.report(T_NS).positions
    assert (row.unrealized_pnl, row.status) == (110, "stale")


def test_quotes_of_symbols_not_held_are_remembered_within_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_module, "MOST_REMEMBERED", 3)
    engine = holding()
    for symbol in ["A", "B", "C", "D", "D", "C"]:
        engine.update(quote(2.0, 2.0, symbol=symbol), T_NS)
    assert engine.report(T_NS).positions == ()
    engine.set_positions([lot("1", "1", symbol) for symbol in "ABCD"])
    assert statuses(engine, T_NS) == ["unpriced", "live", "live", "live"]


def test_what_is_held_and_what_was_heard_of_can_be_looked_up() -> None:
    engine = holding(lot("1", "1"))
    engine.update(quote(1, 2, symbol="IBM"), T_NS)
    assert sorted(engine.known_symbols) == ["AAPL", "IBM"]
    ibm = engine.known("IBM")
    assert ibm is not None
    assert ibm.quote == quote(1, 2, symbol="IBM")
    assert engine.holding("IBM") is None
    assert engine.known("AAPL") is engine.holding("AAPL")
    assert engine.known("X") is None


def test_a_pair_is_found_with_its_slash_or_without() -> None:
    coins = attrs.evolve(lot("0.5", "60000", "BTCUSD"), asset_class="crypto")
    engine = holding(coins, lot("0.25", "60000", "BTC/USD"))
    assert engine.symbols == ("BTC/USD",)
    engine.update(quote(62_000, 62_000, symbol="BTC/USD"), T_NS)
    engine.update(quote(3_000, 3_000, symbol="ETH/USD"), T_NS)
    rows = engine.report(T_NS).positions
    assert [(row.symbol, row.unrealized_pnl) for row in rows] == [
        ("BTCUSD", 1000),
        ("BTC/USD", 500),
    ]
    for name in ("BTCUSD", "BTC/USD"):
        found = engine.holding(name)
        assert found is not None
        assert found is engine.known(name) is engine.at(name, T_NS)
        assert found.qty == Decimal("0.75")
    assert engine.holding("ETHUSD") is None
    assert engine.known("ETHUSD") is engine.at("ETH/USD", T_NS) is not None


def test_a_stock_and_a_pair_of_one_name_have_each_their_price() -> None:
    pair = attrs.evolve(lot("1", "1", "BTCUSD"), asset_class="crypto")
    engine = holding(lot("1", "1", "BTCUSD"), pair)
    engine.update(quote(2, 2, symbol="BTCUSD"), T_NS)
    engine.update(quote(7, 7, symbol="BTC/USD"), T_NS)
    assert [row.current_price for row in engine.report(T_NS).positions] == [2, 7]
    stock = engine.holding("BTCUSD")
    assert stock is not None
    assert stock.price == 2


def test_the_last_close_is_the_price_where_the_source_has_no_other() -> None:
    lots = [attrs.evolve(lot("1", "150"), lastday_price=Decimal(160)), lot("1", "150")]
    engine = holding(*lots)
    assert [row.current_price for row in engine.report(T_NS).positions] == [160, 160]
    engine.set_positions([lots[0], attrs.evolve(lots[1], current_price=Decimal(161))])
    assert [row.current_price for row in engine.report(T_NS).positions] == [161, 161]


MONDAY = "2026-11-23T09:30:00-05:00", "2026-11-23T16:00:00-05:00"
OPEN, CLOSED = Market(True, *MONDAY), Market(False, *MONDAY)
HOUR_NS = 3_600 * 10**9


def at_night(**more: Any) -> PnlEngine:
    """A position whose last quote is of the close, after a restart in the evening."""
    engine = holding(attrs.evolve(lot("10", "150"), **more))
    engine.update(quote(187, 187, at_ns=CLOSE_NS - 10**9), CLOSE_NS + HOUR_NS)
    return engine


def test_an_old_price_is_closed_while_its_market_is() -> None:
    engine = at_night()
    now_ns = CLOSE_NS + HOUR_NS
    seen = []
    for market in (None, OPEN, CLOSED, None, CLOSED, OPEN):
        engine.set_market(market, now_ns)
        report = engine.report(now_ns)
        assert report.market == market
        seen += [row.status for row in report.positions]
    assert seen == ["stale", "stale", "closed", "stale", "closed", "stale"]


def test_a_change_of_the_hours_is_a_change_of_the_rows() -> None:
    engine = at_night()
    now_ns = CLOSE_NS + HOUR_NS
    before = engine.report(now_ns)
    assert engine.set_market(CLOSED, now_ns)
    changes = engine.changes(before.version, now_ns)
    assert (changes.whole, [row.status for row in changes.positions]) == (False, ["closed"])
    assert not engine.set_market(Market(False, *MONDAY), now_ns)
    assert engine.changes(changes.version, now_ns).positions == ()


def test_a_young_price_is_live_at_any_hour() -> None:
    engine = at_night()
    now_ns = CLOSE_NS + HOUR_NS
    engine.set_market(CLOSED, now_ns)
    engine.update(quote(188, 188, at_ns=now_ns), now_ns)
    assert statuses(engine, now_ns) == ["live"]
    assert statuses(engine, now_ns + 61 * 10**9) == ["closed"]


def test_crypto_never_closes_and_options_do() -> None:
    names = "BTC/USD", "AAPL261218C00200000"
    engine = holding(*(lot("1", "1", name) for name in names))
    for name in names:
        engine.update(quote(2, 2, symbol=name, at_ns=CLOSE_NS - 10**9), CLOSE_NS + HOUR_NS)
    engine.set_market(CLOSED, CLOSE_NS + HOUR_NS)
    assert statuses(engine, CLOSE_NS + HOUR_NS) == ["stale", "closed"]


@pytest.mark.parametrize(
    ("age_h", "status"), [(0, "closed"), (23.9, "closed"), (24.1, "stale"), (72, "stale")]
)
def test_a_price_from_before_the_last_session_is_stale(age_h: float, status: str) -> None:
    engine = holding(lot("1", "1"))
    now_ns = CLOSE_NS + 30 * HOUR_NS
    engine.update(quote(2, 2, at_ns=CLOSE_NS - round(age_h * HOUR_NS)), now_ns)
    engine.set_market(CLOSED, now_ns)
    assert statuses(engine, now_ns) == [status]


def test_the_last_price_is_confirmed_after_the_close() -> None:
    engine = holding(lot("1", "1"), lot("1", "1", "BTC/USD"), lot("1", "1", "NONE"))
    last = quote(2, 2, at_ns=CLOSE_NS - HOUR_NS)
    engine.update(last, CLOSE_NS - HOUR_NS)
    engine.update(attrs.evolve(last, symbol="BTC/USD"), CLOSE_NS - HOUR_NS)
    now_ns = CLOSE_NS + HOUR_NS
    assert engine.unconfirmed() == []
    engine.set_market(CLOSED, now_ns)
    assert statuses(engine, now_ns)[0] == "stale"
    assert engine.unconfirmed() == ["AAPL"]
    engine.expire(["AAPL"], now_ns)
    assert statuses(engine, now_ns)[0] == "stale"
    engine.update(attrs.evolve(last), now_ns)
    assert statuses(engine, now_ns)[0] == "closed"
    assert engine.unconfirmed() == []
    engine.expire(["AAPL"], now_ns + 10**9)
    assert statuses(engine, now_ns)[0] == "closed", "it was the last one when it was confirmed"


@pytest.mark.parametrize("sides", [(0, 0), (100, 200)])
def test_a_quote_after_the_close_that_is_not_usable_leaves_the_price_closed(
    sides: tuple[float, float],
) -> None:
    engine = at_night()
    now_ns = CLOSE_NS + HOUR_NS
    engine.set_market(CLOSED, now_ns)
    engine.update(quote(*sides, at_ns=CLOSE_NS + 1), now_ns)
    (row,) = engine.report(now_ns).positions
    assert (row.status, row.current_price) == ("closed", 187)


@pytest.mark.parametrize("is_held", [True, False])
@pytest.mark.parametrize(("mark", "sides"), [("mid", (100, 200)), ("exit", (0, 188))])
@pytest.mark.parametrize(("pause_s", "status"), [(299, "stale"), (300, "closed")])
def test_a_quote_that_is_not_usable_does_not_bring_an_ended_price_back(
    is_held: bool,
    mark: Literal["mid", "exit"],
    sides: tuple[float, float],
    pause_s: int,
    status: str,
) -> None:
    """It is so too where nothing looked while the symbol's key was gone."""
    engine = PnlEngine(stale_after_s=600, price_ttl_s=300, mark=mark)
    lots = lot("1", "1"), lot("1", "1", "NONE")
    engine.set_positions(lots if is_held else lots[1:])
    now_ns = CLOSE_NS + HOUR_NS
    engine.set_market(CLOSED, now_ns)
    engine.update(quote(187, 187, at_ns=now_ns), now_ns)
    now_ns += pause_s * S_NS
    engine.update(quote(*sides, at_ns=now_ns), now_ns)
    engine.set_positions(lots)
    row, _ = engine.report(now_ns).positions
    assert (row.status, row.current_price) == (status, 187)


def test_an_alert_learns_of_a_price_that_ended_before_a_quote_that_is_not_usable() -> None:
    engine = PnlEngine(stale_after_s=600, price_ttl_s=300)
    engine.set_positions([lot("1", "1")])
    engine.update(quote(187, 187), T_NS)
    engine.update(quote(0, 0, T_NS + S_NS), T_NS + S_NS)
    assert not engine.has_aged
    engine.update(quote(0, 0, T_NS + 302 * S_NS), T_NS + 302 * S_NS)
    assert [aged.symbol for aged in engine.take_aged()] == ["AAPL"]


def test_a_session_that_ends_without_a_usable_quote_leaves_the_price_stale() -> None:
    engine = holding(lot("1", "1"))
    engine.update(quote(2, 2, at_ns=CLOSE_NS - HOUR_NS), CLOSE_NS - HOUR_NS)
    engine.update(quote(0, 0, at_ns=CLOSE_NS - 1), CLOSE_NS + 1)
    engine.set_market(CLOSED, CLOSE_NS + HOUR_NS)
    assert statuses(engine, CLOSE_NS + HOUR_NS) == ["stale"]


def test_the_sources_price_is_closed_while_the_market_is() -> None:
    engine = holding(
        attrs.evolve(lot("1", "1"), current_price=Decimal(2)),
        attrs.evolve(lot("1", "1", "BTC/USD"), lastday_price=Decimal(2)),
    )
    engine.set_market(CLOSED, T_NS)
    assert [(row.status, row.mark) for row in engine.report(T_NS).positions] == [
        ("closed", "previous"),
        ("stale", "previous"),
    ]


def test_a_closure_of_the_market_that_was_not_planned_keeps_the_last_session() -> None:
    """Alpaca's clock stays closed on a weekday, so that no session was in between."""
    engine = at_night()
    for hours in (1, 24, 48):
        now_ns = CLOSE_NS + hours * HOUR_NS
        engine.set_market(None, now_ns)
        engine.set_market(CLOSED, now_ns)
        assert statuses(engine, now_ns) == ["closed"]


def marked(mark: Any, *lots: Position) -> PnlEngine:
    engine = PnlEngine(stale_after_s=60, price_ttl_s=300, mark=mark)
    engine.set_positions(lots)
    return engine


def seen(engine: PnlEngine, now_ns: int = T_NS) -> list[tuple[object, ...]]:
    rows = engine.report(now_ns).positions
    return [(row.mark, row.current_price, row.status) for row in rows]


def sale(
    price: float, *, seq: int, at_ns: int = T_NS, code: str = "@", symbol: str = "AAPL"
) -> Trade:
    return Trade(symbol, price, 1, "V", (code,), "C", seq, at_ns, at_ns, seq)


def test_a_position_is_worth_what_its_exit_brings() -> None:
    engine = marked("exit", lot("10", "150"), lot("-4", "200", "MSFT"))
    engine.update(quote(187, 188), T_NS)
    engine.update(quote(210, 211, symbol="MSFT"), T_NS)
    assert seen(engine) == [("bid", 187, "live"), ("ask", 211, "live")]
    assert engine.totals.market_value == 10 * 187 - 4 * 211
    assert engine.totals.unrealized_pnl == 10 * 37 - 4 * 11


def test_lots_in_both_directions_have_each_its_side() -> None:
    engine = marked("exit", lot("10", "150"), lot("-4", "150"))
    engine.update(quote(187, 188), T_NS)
    assert seen(engine) == [("bid", 187, "live"), ("ask", 188, "live")]
    assert engine.totals.market_value == 10 * 187 - 4 * 188
    assert engine.totals.exposure == 10 * 187 - 4 * 188
    engine.set_positions([lot("-4", "150")])
    assert seen(engine) == [("ask", 188, "live")]


@pytest.mark.parametrize("sides", [(0, 189), (0, 0), (100, 200)])
def test_without_its_side_the_last_usable_exit_stays_as_stale(sides: tuple[float, float]) -> None:
    engine = marked("exit", lot("10", "150"))
    engine.update(quote(187, 188), T_NS)
    engine.update(quote(*sides, at_ns=T_NS + 1), T_NS + 1)
    assert seen(engine, T_NS + 1) == [("bid", 187, "stale")]
    engine.update(quote(186, 0, at_ns=T_NS + 2), T_NS + 2)
    assert seen(engine, T_NS + 2) == [("bid", 186, "live")]


def test_a_position_that_turns_round_is_priced_by_the_other_side_at_once() -> None:
    engine = marked("exit", lot("10", "150"))
    engine.update(quote(187, 188), T_NS)
    assert engine.set_positions([lot("-10", "187")])
    assert seen(engine) == [("ask", 188, "live")]
    assert seen(engine, T_NS + 61 * S_NS) == [("ask", 188, "stale")]


def test_the_last_trade_that_counts_is_the_price() -> None:
    engine = marked("last", lot("10", "150"))
    engine.update(quote(190, 191), T_NS)
    assert seen(engine) == [("mid", Decimal("190.5"), "stale")]
    assert engine.trade(sale(187, seq=1), T_NS)
    assert not engine.trade(sale(150, seq=2, at_ns=T_NS + 1, code="I"), T_NS)
    assert not engine.update(quote(0, 0, at_ns=T_NS + 1), T_NS)
    assert not engine.trade(sale(99, seq=3, at_ns=T_NS - 1), T_NS), "it came late"
    assert seen(engine) == [("last", 187, "live")]
    assert engine.trade(sale(188, seq=4, at_ns=T_NS + 2), T_NS)
    assert seen(engine, T_NS + 62 * S_NS) == [("last", 188, "stale")]


@pytest.mark.parametrize("symbol", ["BTC/USD", "AAPL261218C00200000"])
def test_every_trade_of_crypto_and_options_is_a_last_one(symbol: str) -> None:
    engine = marked("last", lot("1", "1", symbol))
    assert engine.trade(sale(3, seq=1, code="I", symbol=symbol), T_NS)
    assert seen(engine) == [("last", 3, "live")]


def test_a_canceled_trade_gives_way_to_the_one_before() -> None:
    engine = marked("last", attrs.evolve(lot("10", "150"), current_price=Decimal(180)))
    for seq, price in enumerate((186, 187), 1):
        engine.trade(sale(price, seq=seq, at_ns=T_NS + seq), T_NS)
    cancels = [Cancel("AAPL", "V", "C", seq, 1.0, 1, "cancel", T_NS + 10, 0) for seq in (2, 1, 7)]
    found = []
    for cancel in cancels:
        engine.cancel(cancel, T_NS)
        found += seen(engine)
    assert found == [("last", 186, "live"), *2 * [("previous", 180, "stale")]]


def test_a_corrected_trade_is_the_price_if_it_still_counts() -> None:
    engine = marked("last", lot("10", "150"))
    engine.trade(sale(186, seq=1), T_NS)
    engine.trade(sale(187, seq=2, at_ns=T_NS + 1), T_NS)

    def correct(old: int, price: float, code: str, new: int) -> None:
        right = (old, None, None, (), new, price, 1, (code,), T_NS + 9, 0)
        engine.correct(Correction("AAPL", "V", "C", *right), T_NS)

    correct(2, 188, "@", 3)
    assert seen(engine) == [("last", 188, "live")]
    correct(3, 189, "I", 4)
    assert seen(engine) == [("last", 186, "live")]


@pytest.mark.parametrize(("symbol", "tape"), [("BTC/USD", None), ("AAPL261218C00200000", "")])
def test_the_conditions_of_stocks_are_nothing_to_other_corrected_trades(
    symbol: str, tape: str | None
) -> None:
    held = attrs.evolve(lot("10", "150"), symbol=symbol)
    engine = marked("last", held)
    engine.trade(attrs.evolve(sale(186, seq=1), symbol=symbol, tape=tape, id=1), T_NS)
    right = (1, None, None, (), 2, 188, 1, ("I",), T_NS + 9, 0)
    engine.correct(Correction(symbol, "V", tape, *right), T_NS)
    assert seen(engine) == [("last", 188, "live")]


def test_a_key_that_has_an_older_trade_shows_that_newer_ones_were_canceled() -> None:
    engine = marked("last", lot("10", "150"))
    older = sale(186, seq=1)
    for each in (older, sale(187, seq=2, at_ns=T_NS + 1)):
        engine.trade(each, T_NS)
    engine.trade(attrs.evolve(older), T_NS + 1, T_NS + 1)
    assert seen(engine) == [("last", 186, "live")]
    engine.trade(attrs.evolve(older, price=185.5), T_NS + 2, T_NS + 2)
    assert seen(engine) == [("last", Decimal("185.5"), "live")], "its key shows the corrected one"


@pytest.mark.parametrize("mark", ["last", "exit"])
def test_a_quote_that_is_not_the_price_changes_no_row(mark: str) -> None:
    engine = marked(mark, attrs.evolve(lot("10", "150"), current_price=Decimal(180)))
    before = engine.report(T_NS)
    assert not engine.update(quote(0, 188), T_NS)
    assert engine.changes(before.version, T_NS).positions == ()
    assert seen(engine) == [("previous", 180, "stale")]


def test_lots_in_both_directions_are_named_by_their_sides_without_a_spread() -> None:
    engine = marked("exit", lot("10", "150"), lot("-4", "150"))
    engine.update(quote(187, 187), T_NS)
    assert seen(engine) == [("bid", 187, "live"), ("ask", 187, "live")]
