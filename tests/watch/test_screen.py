"""The table at every size, and the lines for a pipe."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import attrs
import pytest
from rich.console import Console

from mdservice.model.position import Position
from mdservice.model.quote import Quote
from mdservice.pnl.engine import PnlEngine
from mdservice.watch.lines import ChangedLines
from mdservice.watch.screen import screen
from mdservice.watch.view import Moves, Service, View, make_view

NOW_NS = 1_800_000_000_000_000_000
RUNNING = Service("running", "iex by websockets")


def quote(symbol: str, bid: float, ask: float, age_s: float = 0) -> Quote:
    return Quote(symbol, bid, ask, 1, 1, NOW_NS - int(age_s * 1e9), NOW_NS, 1)


QUOTES = [
    quote("AAPL", 187.12, 187.15),
    quote("MSFT", 427.6, 427.7, age_s=75),
    quote("IBM", 342.73, 342.77, age_s=2),
    quote("NONE", 0, 0),
]
POSITIONS = [
    Position("AAPL", Decimal(10), Decimal("150.00")),
    Position("MSFT", Decimal("-35.5"), Decimal("431.2")),
    Position("GONE", Decimal(1), Decimal(1)),
    Position("?!", None, None, problem="has no valid symbol"),
]


def view(symbols: tuple[str, ...] = (), moves: Moves | None = None, **more: Any) -> View:
    engine = PnlEngine(stale_after_s=60, price_ttl_s=300)
    engine.set_positions(POSITIONS)
    for each in QUOTES:
        engine.update(each, NOW_NS)
    options: dict[str, Any] = {
        "total_pct": engine.totals.unrealized_pnl_pct,
        "events_per_s": 1_234.5,
        "service": RUNNING,
        "warnings": (),
        "now_ns": NOW_NS,
    }
    return make_view(
        engine.report(NOW_NS),
        {each.symbol: each for each in QUOTES},
        symbols,
        moves or Moves(),
        **{**options, **more},
    )


def drawn(what: View, width: int, height: int = 24, foot: str = "") -> list[str]:
    console = Console(width=width, height=height, color_system=None)
    with console.capture() as capture:
        console.print(screen(what, width, height, foot), soft_wrap=True)
    return capture.get().splitlines()


def test_positions_come_first_then_other_symbols_and_the_total() -> None:
    assert drawn(view(), 100) == [
        "mdservice running  iex by websockets  1,234 events/s",
        "symbol    qty     avg      price     bid     ask    age      P&L       %  status",
        "AAPL       10  150.00    187.135  187.12  187.15    0 s  +371.35  +24.76  live",
        "MSFT    -35.5   431.2   ~ 427.65   427.6   427.7  1 min  +126.02   +0.82  stale",
        "GONE        1       1          -       -       -      -        -       -  unpriced",
        "?!          -       -          -       -       -      -        -       -  unpriced",
        "IBM                       342.75  342.73  342.77    2 s",
        "NONE                           -       -       -    0 s",
        "total P&L +497.38 (+2.96 %)  2 priced, 2 without a price",
    ]


@pytest.mark.parametrize("width", range(12, 220, 7))
def test_nothing_wraps_and_no_number_is_cut(width: int) -> None:
    what = view(warnings=["the prices are out of date: " + "x" * 300])
    lines = drawn(what, width, foot="Ctrl-C ends")
    assert all(len(line) <= width for line in lines)
    assert len(lines) == 4 + 6 + 1
    cells = {cell for line in lines[3:9] for cell in line.split()}
    whole = {cell for line in drawn(view(), 200)[2:8] for cell in line.split()}
    assert cells <= whole, "each is shown whole or not at all"


def test_narrow_terminals_keep_what_matters() -> None:
    assert drawn(view(), 44)[1].split() == ["symbol", "qty", "price", "P&L", "%"]
    assert drawn(view(), 36)[1].split() == ["symbol", "qty", "price", "P&L"]
    assert drawn(view(), 20)[1].split() == ["symbol", "price"]


@pytest.mark.parametrize("height", [5, 6, 8, 10, 30])
def test_what_does_not_fit_is_counted(height: int) -> None:
    lines = drawn(view(), 100, height, foot="Ctrl-C ends")
    assert len(lines) <= max(height, 5)
    shown = sum(
        1 for line in lines if line.split()[0] in {"AAPL", "MSFT", "GONE", "?!", "IBM", "NONE"}
    )
    left_out = 6 - shown
    assert lines[-1] == (f"{left_out} more; Ctrl-C ends" if left_out else "Ctrl-C ends")


def test_trouble_is_told_once() -> None:
    trouble = attrs.evolve(RUNNING, state="no answer", reason="no service answers")
    lines = drawn(view(service=trouble, warnings=["no service answers", "another"]), 80)
    assert lines[:3] == [
        "mdservice no answer  iex by websockets  1,234 events/s",
        "no service answers",
        "another",
    ]


def test_given_symbols_alone_are_shown_in_their_order() -> None:
    what = view(("NOPE", "MSFT", "IBM"))
    assert [(line.symbol, line.status) for line in what.lines] == [
        ("MSFT", "stale"),
        ("NOPE", "no price"),
        ("IBM", ""),
    ]


def test_moves_are_shown_for_a_moment() -> None:
    moves = Moves(hold_s=2)
    price = Decimal
    assert moves.see("A", price(1), 0) == 0
    assert moves.see("A", price(2), 1) == 1
    assert moves.see("A", price(2), 2.9) == 1
    assert moves.see("A", price(2), 3) == 0
    assert moves.see("A", price("1.5"), 4) == -1
    assert moves.see("A", None, 5) == 0
    assert moves.see("A", price(9), 6) == 0


def test_a_pipe_gets_each_change_once() -> None:
    changed = ChangedLines()
    assert list(changed.of(view(("AAPL", "MSFT", "IBM", "NOPE")), NOW_NS)) == [
        "2027-01-15T08:00:00Z service running",
        "2027-01-15T08:00:00Z AAPL 187.135 10 @ 150.00 P&L +371.35 (+24.76 %) live",
        "2027-01-15T08:00:00Z MSFT 427.65 -35.5 @ 431.2 P&L +126.02 (+0.82 %) stale",
        "2027-01-15T08:00:00Z IBM 342.75",
        "2027-01-15T08:00:00Z NOPE - no price (mdservice subscribe NOPE)",
    ]
    assert list(changed.of(view(("AAPL", "MSFT", "IBM", "NOPE")), NOW_NS)) == []
    trouble = Service("no answer", reason="it has ended")
    assert list(changed.of(view(("IBM",), service=trouble), NOW_NS)) == [
        "2027-01-15T08:00:00Z service no answer: it has ended"
    ]


def test_lots_of_one_symbol_are_lines_of_their_own() -> None:
    lines = view().lines[:1] * 2
    twice = attrs.evolve(view(), lines=lines)
    told = list(ChangedLines().of(twice, NOW_NS))
    assert len(told) == 3
