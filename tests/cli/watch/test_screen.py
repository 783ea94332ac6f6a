"""What fits into a terminal of any size, and what is left out."""

from __future__ import annotations

import io
import re
from decimal import Decimal
from typing import Any

import pytest
from rich.console import Console

from mdservice.cli.watch.screen import (
    Account,
    Entry,
    Lot,
    Screen,
    Sums,
    View,
    age_text,
    money_text,
    number_text,
    percent_text,
    price_text,
    printable,
)
from mdservice.gateway.risk_observer import SeenRisk
from mdservice.pnl.breaker import Breaker
from mdservice.pnl.limits import LimitState

ALL = ["symbol", "qty", "avg price", "price", "change", "bid", "ask", "age", "P&L", "P&L %"]
WIDTHS = [40, 60, 80, 120, 200]


def dec(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


def held(symbol: str = "AAPL", status: Any = "live", **more: Any) -> Entry:
    lot = Lot(Decimal(10), Decimal("150.00"), dec(more.pop("pnl", "371.35")), Decimal("24.7567"))
    return other(symbol, status, lot=lot, **more)


def other(symbol: str = "IBM", status: Any = "live", **more: Any) -> Entry:
    return Entry(
        symbol,
        status,
        dec(more.pop("price", "187.135")),
        Decimal("187.12"),
        Decimal("187.15"),
        0.3,
        dec(more.pop("change", "0.015")),
        **more,
    )


SUMS = Sums(Decimal("1371.35"), Decimal("24.7567"), 7, 1)


def view(lots: int = 3, others: int = 2, **more: Any) -> View:
    fields: dict[str, Any] = {
        "about": ("203 events/s", "feed iex", "last event 18:00:00 UTC"),
        "held": tuple(held(f"H{n}") for n in range(lots)),
        "held_count": lots,
        "sums": SUMS,
        "others": tuple(other(f"S{n}") for n in range(others)),
        "others_count": others,
    }
    return View("running", True, **{**fields, **more})


def drawn(shown: View, width: int, height: int | None, screen: Screen | None = None) -> list[str]:
    """The lines as a terminal has them, checked for what no screen may do."""
    lines = (screen or Screen()).lines(shown, width, height)
    console = Console(file=io.StringIO(), width=width, record=True, highlight=False)
    for line in lines:
        console.print(line)
    told = console.export_text().splitlines()
    assert len(told) == len(lines), "a line was wrapped"
    assert all(len(line) <= width for line in told)
    if height is not None:
        assert len(told) == height
    return told


def headings(lines: list[str]) -> list[str]:
    (line,) = (line for line in lines if line.startswith("symbol"))
    return [name for name in [*ALL, "status"] if re.search(rf"(^|\s){re.escape(name)}(\s|$)", line)]


@pytest.mark.parametrize(
    ("width", "left_out"),
    [
        (40, {"qty", "avg price", "change", "bid", "ask", "age", "P&L %"}),
        (60, {"avg price", "change", "bid", "ask", "age"}),
        (80, {"change", "bid", "ask"}),
        (120, set()),
        (200, set()),
    ],
)
def test_narrow_terminals_drop_columns_by_importance(width: int, left_out: set[str]) -> None:
    assert headings(drawn(view(), width, 20)) == [n for n in [*ALL, "status"] if n not in left_out]


def test_trades_days_and_halts_have_columns_where_they_are_known() -> None:
    known = {"last", "volume"}
    assert not known & set(
        next(line for line in drawn(view(), 200, 20) if "symbol" in line).split()
    )
    fields = {"last": Decimal("187.13"), "day_pct": Decimal("-0.52"), "volume": Decimal(8_104_311)}
    entry = Entry("AAPL", "HALTED", Decimal(187), **fields)
    shown = View("running", True, others=(entry,), others_count=1)
    lines = drawn(shown, 200, 20)
    (row,) = (line for line in lines if line.startswith("AAPL"))
    assert re.search(r"187\.13 +-0\.52 % +8,104,311 +HALTED", row)


@pytest.mark.parametrize("width", WIDTHS)
def test_numbers_are_whole_at_every_width(width: int) -> None:
    lines = drawn(view(), width, 20)
    (row,) = (line for line in lines if line.startswith("H0"))
    assert "▲ 187.135" in row
    assert "+371.35" in row
    assert "live" in row
    text = "\n".join(lines)
    assert "+1,371.35" in text
    assert "+24.76 %" in text
    assert "7 priced, 1 unpriced" in text
    assert "Ctrl-C ends" in lines[-1]


def test_a_wide_terminal_is_not_filled() -> None:
    assert drawn(view(), 120, 20) == drawn(view(), 400, 20)


def test_without_positions_their_columns_are_left_out() -> None:
    shown = view(0, 2, sums=Sums(Decimal(0), None, 0, 0))
    lines = drawn(shown, 80, 10)
    assert headings(lines) == ["symbol", "price", "change", "bid", "ask", "age", "status"]
    assert not any("total" in line for line in lines)


def test_more_rows_than_lines_are_counted() -> None:
    lines = drawn(view(30, 9_000), 100, 15)
    rows = [line for line in lines if line.startswith("H")]
    assert rows
    assert f"not shown: {30 - len(rows)} positions, 9,000 symbols" in lines[-1]
    assert not any(line.startswith("S") for line in lines)
    assert any(line.startswith("total") for line in lines)
    assert not any(line == "" for line in lines[3:]), "room is left"


def test_the_rest_is_filled_with_other_symbols() -> None:
    lines = drawn(view(3, 50), 100, 15)
    shown = [line for line in lines if line.startswith("S")]
    assert f"not shown: {50 - len(shown)} symbols" in lines[-1]
    assert len(shown) == 15 - 2 - 1 - 3 - 1 - 1 - 1


@pytest.mark.parametrize("height", range(1, 12))
@pytest.mark.parametrize("width", [1, 5, 10, 25, 40, 80])
def test_no_terminal_is_too_small(width: int, height: int) -> None:
    warnings = ("the positions are out of date: " + "x" * 50, "b", "c", "d", "e")
    drawn(view(50, 50, warnings=warnings, hints=("do this: mdservice subscribe A",)), width, height)


def test_a_small_terminal_has_at_least_a_row_and_the_count() -> None:
    lines = drawn(view(5, 5), 20, 5)
    assert any(line.startswith("H0") for line in lines)
    assert lines[-1].startswith("not shown: 9")


def test_falling_and_rising_are_reported_without_colour() -> None:
    entries = (held("UP"), held("DOWN", change="-0.5"), held("SAME", change=None))
    lines = drawn(view(others=0, held=entries), 120, 12)
    told = {line.split()[0]: line for line in lines if line.split()}
    assert "▲ 187.135" in told["UP"]
    assert "+0.015" in told["UP"]
    assert "▼ 187.135" in told["DOWN"]
    assert "-0.50" in told["DOWN"]
    assert not set("▲▼") & set(told["SAME"])


def test_a_terminal_without_unicode_gets_ascii() -> None:
    entries = (held("UP"), held("DOWN", change="-0.5"))
    text = "".join(drawn(view(others=0, held=entries), 30, 12, Screen(plain_text=True)))
    assert text.isascii()
    assert "^ 187.135" in text
    assert "v 187.135" in text


def test_colours_follow_the_signs() -> None:
    entries = (held("UP"), held("DOWN", change="-0.5", pnl="-1.00"))
    up, down = (
        line
        for line in Screen().lines(view(held=entries), 120, 20)
        if line.plain[:2] in ("UP", "DO")
    )

    def styles(line: Any) -> dict[str, str]:
        return {line.plain[span.start : span.end].strip(): str(span.style) for span in line.spans}

    assert styles(up)["▲ 187.135"] == "green"
    assert styles(up)["+371.35"] == "green"
    assert styles(down)["▼ 187.135"] == "red"
    assert styles(down)["-1.00"] == "red"


def test_decimal_points_stand_one_below_the_other() -> None:
    entries = tuple(
        held(f"H{n}", price=price) for n, price in enumerate(("1.5", "1234.12345", "20"))
    )
    lines = drawn(view(others=0, held=entries), 120, 12)
    rows = [line for line in lines if re.match(r"H\d", line)]
    assert len({row.index(".", row.index("▲")) for row in rows}) == 1


def test_columns_do_not_get_narrower_again() -> None:
    screen = Screen()
    wide = view(1, 0, held=(held("H0", pnl="-1234567890.12", price="123456.12345"),))
    before = drawn(wide, 100, 10, screen)[1]
    after = drawn(view(1, 0), 100, 10, screen)[1]
    assert before == after
    assert drawn(view(1, 0), 101, 10, screen)[1] != before, "another size is drawn whole"


def test_a_number_that_has_no_room_takes_its_column_along() -> None:
    lines = drawn(view(1, 0, held=(held("H0", pnl="-123456789012.12"),)), 38, 12)
    assert headings(lines) == ["symbol", "price"]


def test_a_long_symbol_is_cut_and_a_wide_one_does_not_break_the_line() -> None:
    lines = drawn(view(2, 0, held=(held("Q" * 60), held("漢字" * 30))), 40, 12)
    assert any("Q…" in line for line in lines)


def test_warnings_and_hints_are_shown_the_rest_is_counted() -> None:
    shown = view(1, 0, warnings=("a b", "c", "d", "e", "f"), hints=("not subscribed: X",))
    text = "\n".join(drawn(shown, 60, 20))
    assert "a b\nc\nd\n2 more warnings" in text
    assert "not subscribed: X" in text


def test_without_a_height_everything_is_shown() -> None:
    lines = drawn(view(300, 300), 10_000, None, Screen(moving=False))
    assert sum(line.startswith(("H", "S")) for line in lines) == 600
    assert headings(lines) == [name for name in [*ALL, "status"] if name != "change"]
    assert not any("Ctrl-C" in line for line in lines)


def test_before_the_first_price_that_is_said() -> None:
    shown = View("running", True, sums=Sums(Decimal(0), None, 0, 0))
    assert "no prices yet" in drawn(shown, 80, 10)


@pytest.mark.parametrize(
    ("price", "text"),
    [
        ("187.135", "187.135"), ("402.5", "402.50"), ("402", "402.00"), ("0", "0.00"),
        ("1234567.1", "1,234,567.10"), ("0.0001235", "0.000124"), ("1e-9", "1.0000E-9"),
        ("1e400", "1.0000E+400"), ("-37.63", "-37.63"),
    ],
)  # fmt: skip
def test_prices_have_from_two_to_six_decimals(price: str, text: str) -> None:
    assert price_text(Decimal(price)) == text


@pytest.mark.parametrize(
    ("qty", "text"),
    [
        ("10", "10"),
        ("1E+3", "1,000"),
        ("-2.50", "-2.5"),
        ("0", "0"),
        ("0.123456789", "0.123456789"),
    ],
)
def test_quantities_have_no_zeros_at_their_end(qty: str, text: str) -> None:
    assert number_text(Decimal(qty)) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("371.35", "+371.35"), ("-1371.355", "-1,371.36"), ("0", "0.00"), ("-0.004", "0.00"),
        ("-0.006", "-0.01"), ("-1e100", "-1.0000E+100"),
    ],
)  # fmt: skip
def test_amounts_have_a_sign_and_cents(amount: str, text: str) -> None:
    assert money_text(Decimal(amount)) == text


def test_what_is_not_known_is_a_dash() -> None:
    assert [f(None) for f in (price_text, number_text, money_text, percent_text, age_text)] == (
        ["-"] * 5
    )
    assert percent_text(Decimal("24.7567")) == "+24.76 %"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0.0 s"), (0.39, "0.3 s"), (9.99, "9.9 s"), (10, "10 s"), (59.9, "59 s"),
        (60, "1 min"), (3599, "59 min"), (3600, "1 h"), (86399, "23 h"), (200_000, "2 d"),
    ],
)  # fmt: skip
def test_ages_are_short(seconds: float, text: str) -> None:
    assert age_text(seconds) == text


def test_nothing_steers_the_terminal() -> None:
    assert printable("A\x1b[2J\nB\t C\x07") == "A?[2J B C?"


RISK_AT = "2026-11-24T18:00:00.123456789Z"
CLOSED_BREAKER = Breaker("closed", at=RISK_AT)
TRIPPED = Breaker("tripped", "AAPL qty > 100", "AAPL", Decimal(120), RISK_AT)
LIMITS = (
    LimitState("AAPL qty > 100", "AAPL", Decimal(120), Decimal("1.2")),
    LimitState("* value > 20000", "MSFT", Decimal("16999.5"), Decimal("0.849975")),
    LimitState("total pnl < -2000", "total", Decimal(-500), Decimal("0.25")),
    LimitState("* stale", "SPY", Decimal("3.25"), Decimal(0)),
    LimitState("TSLA pnl < -5", "TSLA", None, None),
)
ACCOUNT = Account(Decimal("35.51"), Decimal("-12.5"), Decimal("-56885.61"), Decimal("135291.36"))


def risky(breaker: Any = CLOSED_BREAKER, *limits: LimitState, **more: Any) -> View:
    return view(account=ACCOUNT, risk=SeenRisk(breaker, limits), **more)


def test_limits_are_bars_with_the_part_that_is_used() -> None:
    lines = drawn(risky(CLOSED_BREAKER, *LIMITS), 80, 40)
    (first,) = (index for index, line in enumerate(lines) if line.startswith("breaker closed"))
    told = lines[first + 1 : first + 6]
    assert "5 limits" in lines[first]
    assert [line.split("  ")[0] for line in told] == [
        "AAPL qty > 100", "MSFT value > 20000", "total pnl < -2000", "SPY stale", "TSLA pnl < -5",
    ]  # fmt: skip
    assert [line.split()[-2:] for line in told[:3]] == [["120", "%"], ["85", "%"], ["25", "%"]]
    assert told[4].endswith("blind")
    bars = [line.count("█") for line in told]
    whole = told[0].count("█")
    assert bars == [whole, round(whole * 0.85), round(whole / 4), 0, 0]
    assert {line.count("█") + line.count("░") for line in told} == {whole}
    assert "16,999.5" in told[1]
    assert "3.2 s" in told[3]


@pytest.mark.parametrize(("width", "height", "shown"), [(60, 15, 1), (80, 24, 3), (120, 40, 5)])
@pytest.mark.parametrize("breaker", [CLOSED_BREAKER, TRIPPED, None])
def test_the_account_and_the_breaker_fit_every_usual_terminal(
    width: int, height: int, shown: int, breaker: Any
) -> None:
    lines = drawn(risky(breaker, *LIMITS, lots=30, others=9), width, height)
    text = "\n".join(lines)
    assert sum(line.endswith("%") and "value" not in line[:4] for line in lines) >= shown - 2
    assert "day +35.51" in text
    assert "realised -12.50" in text
    assert "exposure 135,291.36" in text
    assert "value -56,885.61" in text
    assert sum(line.startswith("H") for line in lines) >= 3
    assert ("BREAKER TRIPPED: AAPL qty > 100" in text) is (breaker is TRIPPED)
    assert ("breaker not known" in text) is (breaker is None)
    for limit in LIMITS[:shown]:
        assert limit.rule.split()[-1] in text


def test_a_tripped_breaker_is_red_and_seen_without_colour() -> None:
    (line,) = (
        line
        for line in Screen().lines(risky(TRIPPED), 120, 24)
        if line.plain.startswith("BREAKER TRIPPED")
    )
    assert "red" in str(line.style)
    assert "AAPL at 120" in line.plain
    assert "2026-11-24T18:00:00Z" in line.plain
    low = drawn(risky(TRIPPED, *LIMITS), 80, 10)
    assert any(line.startswith("BREAKER TRIPPED") for line in low)
    assert not any("breaker" in line for line in drawn(risky(CLOSED_BREAKER, *LIMITS), 80, 10))


def test_what_blinds_the_limits_is_said() -> None:
    shown = View("running", True, risk=SeenRisk(CLOSED_BREAKER, LIMITS, ("A: stale", "B", "C")))
    assert "blind: A: stale, and 2 more" in drawn(shown, 80, 24)


def test_limits_in_ascii() -> None:
    text = "".join(drawn(risky(TRIPPED, *LIMITS), 80, 24, Screen(plain_text=True, keys=True)))
    assert text.replace("▲", "").isascii()
    assert "#" in text


@pytest.mark.parametrize("height", range(1, 16))
@pytest.mark.parametrize("width", [1, 5, 10, 25, 40, 60])
@pytest.mark.parametrize("breaker", [CLOSED_BREAKER, TRIPPED])
def test_no_terminal_is_too_small_for_limits(width: int, height: int, breaker: Any) -> None:
    shown = risky(breaker, *LIMITS, lots=50, others=50, start=7, order="P&L")
    drawn(shown, width, height, Screen(keys=True))


def test_unknown_sums_of_the_account_are_left_out() -> None:
    lines = drawn(view(account=Account(Decimal(1), None, Decimal(5), None)), 80, 24)
    assert "day of held +1.00  value 5.00" in lines
    assert not any("day" in line for line in drawn(view(account=Account()), 80, 24))


def test_values_and_the_day_have_columns_where_they_are_known() -> None:
    lot = Lot(Decimal(-1), Decimal(5), Decimal(1), Decimal(2), Decimal(-300), Decimal("-4.5"))
    shown = view(held=(held(), other("S", lot=lot)), held_count=2, others=0)
    lines = drawn(shown, 130, 20)
    (heading,) = (line for line in lines if line.startswith("symbol"))
    assert re.search(r"value +P&L +P&L % +day P&L +status", heading)
    (row,) = (line for line in lines if line.startswith("S "))
    assert re.search(r"-300\.00 +\+1\.00 +\+2\.00 % +-4\.50 +live", row)


def test_the_heading_shows_the_order_and_the_foot_the_keys() -> None:
    for order, reverse, heading in (
        ("P&L", False, "P&L ▼"),
        ("P&L", True, "P&L ▲"),
        ("symbol", False, "symbol ▲"),
        ("symbol", True, "symbol ▼"),
    ):
        lines = drawn(view(order=order, reverse=reverse), 100, 24, Screen(keys=True))
        assert any(heading in line for line in lines if "status" in line)
        assert f"s sorts by {order}" in lines[-1]
        assert "q or Ctrl-C ends" in lines[-1]
    assert "size" in drawn(view(), 60, 15, Screen(keys=True))[-1]
    assert drawn(view(30), 60, 15, Screen(keys=True))[-1].endswith("q ends")


def test_rows_further_down_are_numbered() -> None:
    screen = Screen(keys=True)
    rows = tuple(held(f"H{n}") for n in range(20, 30))
    lines = drawn(view(30, 5, held=rows, start=20), 100, 15, screen)
    shown = [line for line in lines if line.startswith(("H2", "S"))]
    assert screen.rows == len(shown)
    assert lines[-1].startswith(f"rows 21-{20 + len(shown)} of 35")
