"""The SIPs' tables of sale conditions, and what several conditions mean together."""

from __future__ import annotations

import attrs
import pytest

from mdservice.model.trade import Trade
from mdservice.pnl.last_sale import updates_last

from .reference import CLOSES_NS, S_NS

LAST = Trade("AAPL", 187.0, 100, "V", ("@",), "C", 1, CLOSES_NS - 3_600 * S_NS, 0)
YESTERDAY = attrs.evolve(LAST, ts_event_ns=LAST.ts_event_ns - 86_400 * S_NS)


def counts(codes: str, tape: str | None, last: Trade | None = LAST, exchange: str = "P") -> bool:
    at_ns = LAST.ts_event_ns + S_NS
    trade = attrs.evolve(
        LAST, conditions=tuple(codes), tape=tape, exchange=exchange, ts_event_ns=at_ns
    )
    return updates_last(trade, last, is_stock=True)


@pytest.mark.parametrize("tape", ["A", "B"])
def test_the_table_of_the_consolidated_tape(tape: str) -> None:
    codes = [chr(code) for code in range(32, 127)]
    assert {code for code in codes if counts(code, tape)} == set(" @EFKX569")
    first = {code for code in codes if counts(code, tape, YESTERDAY)}
    assert first - set(" @EFKX569") == set("LOPZ4")


@pytest.mark.parametrize("tape", ["C", "N", "O"])
def test_the_table_of_the_utp_plan(tape: str) -> None:
    codes = [chr(code) for code in range(32, 127)]
    assert {code for code in codes if counts(code, tape)} == set(" @ABDFKOSXY1569")
    first = {code for code in codes if counts(code, tape, YESTERDAY)}
    assert first - set(" @ABDFKOSXY1569") == set("GLPZ234")


def test_without_a_tape_both_tables_must_agree() -> None:
    assert [counts(code, None) for code in ("@", "F", "B", "E", "")] == [
        True,
        True,
        False,
        False,
        True,
    ]
    assert not counts("B", "?")


@pytest.mark.parametrize(
    ("codes", "expected"),
    [("@F", True), ("@ I", False), ("@TI", False), ("FT", False), ("@6X", True), ("Z", False)],
)
def test_each_of_several_conditions_must_let_it(codes: str, expected: bool) -> None:
    assert counts(codes, "C") is expected


@pytest.mark.parametrize("code", "Z4P")
def test_what_counts_only_first_does_so_where_that_is_known(code: str) -> None:
    assert counts(code, "A", YESTERDAY)
    assert not counts(code, "A", LAST)
    assert not counts(code, "A", None)


def test_sold_last_may_follow_a_trade_of_its_exchange() -> None:
    assert counts("L", "A", LAST, exchange="V")
    assert not counts("L", "A", LAST, exchange="P")


@pytest.mark.parametrize("codes", [(), ("I",), ("Z", "?")])
def test_every_trade_of_crypto_and_options_counts(codes: tuple[str, ...]) -> None:
    trade = attrs.evolve(LAST, symbol="BTC/USD", conditions=codes, tape=None, exchange=None)
    assert updates_last(trade, None, is_stock=False)
