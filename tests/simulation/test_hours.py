"""New York's time and the end of options in the simulation: each check is shown to fail."""

from __future__ import annotations

import functools
import logging
import random
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

import attrs
import pytest

from mdservice.gateway.day import AccountDay
from mdservice.gateway.tracker import PnlTracker
from mdservice.model.market import Market
from mdservice.model.quote import Quote
from mdservice.pnl import engine
from mdservice.pnl.day import DayBook, Fill, midnight_ns
from mdservice.pnl.engine import PnlEngine
from mdservice.pnl.holding import Holding
from mdservice.positions import trade_updates, trading_stream
from mdservice.positions.cache import PositionCache
from mdservice.simulator import SimulatorConfig, open_simulator
from mdservice.testing import VirtualClock
from tests.pnl.reference import S_NS
from tests.simulation import last_trades
from tests.simulation.contracts_end import end_contracts
from tests.simulation.gateway import _Heard, _Recount
from tests.simulation.hours import TURNS, Turn
from tests.simulation.plan import PRICE_TTL_S, Outcome, Plan
from tests.simulation.world import simulate

_NO_FAULTS = ("none",)


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@functools.cache
def _plans(first: int = 8_200_001) -> list[Plan]:
    """The plans with the shortest lives first."""
    seeds = range(first, first + 99)
    plans = (Plan.draw(seed, _NO_FAULTS, account=False) for seed in seeds)
    return sorted(plans, key=lambda plan: plan.faults_for_s)


def _seeds(turn: Turn | None) -> Iterator[int]:
    for plan in _plans():
        if plan.trading is not None and plan.trading.turn == turn:
            yield plan.seed


def _outcomes(turn: Turn | None, most: int = 4) -> Iterator[Outcome]:
    for seed in islice(_seeds(turn), most):
        yield _simulate(seed)


def _simulate(seed: int) -> Outcome:
    return simulate(seed, only=_NO_FAULTS, account=False)


def _finds(words: str, *turns: Turn | None, most: int = 4, first: Sequence[int] = ()) -> bool:
    """Whether some seed shows it. ``first`` have shown it: while they do, no other need run."""
    others = chain.from_iterable(islice(_seeds(turn), most) for turn in turns)
    seeds = chain(first, others)
    return any(words in str(_simulate(seed).violations) for seed in seeds)


@pytest.mark.parametrize("turn", TURNS)
def test_nothing_is_found_where_nothing_is_wrong(turn: Turn) -> None:
    for outcome in _outcomes(turn):
        assert outcome.violations == []
        assert outcome.faults[f"turn_{turn}"] == 1


@pytest.mark.parametrize(
    "seed",
    [
        8_200_082,  # Of two fills in one instant, the stream had lost the first: it counted last.
    ],
)
def test_what_a_seed_found_stays_fixed(seed: int) -> None:
    assert _simulate(seed).violations == []


@pytest.mark.parametrize(("pause_s", "young"), [(PRICE_TTL_S - 1, True), (PRICE_TTL_S, False)])
def test_the_recount_ends_a_price_by_its_keys_time(pause_s: int, young: bool) -> None:
    heard, recount = _Heard(10.0), _Recount(60, PRICE_TTL_S, heards={})
    recount.heards["SPY"] = heard
    for at_s, ask in ((0, 10.0), (pause_s, 0.0), (pause_s + 1, 0.0)):
        now_ns = midnight_ns("2026-11-20") + at_s * S_NS
        quote = Quote("SPY", ask, ask, 1, 1, now_ns, now_ns, at_s + 1)
        heard.add(quote, now_ns)
        recount.update(quote, now_ns)
    assert recount.young("SPY", now_ns) is young


CALL, PUT = "AAPL261218C00200000", "AAPL261218P00210000"


@pytest.mark.parametrize(
    ("how", "symbol", "qty", "shares"),
    [
        ("exercise", CALL, 1, 100),
        ("exercise", PUT, 1, -100),
        ("assignment", CALL, -1, -100),
        ("assignment", PUT, -1, 100),
        ("expiry", CALL, -1, 0),
    ],
)
async def test_options_end(how: str, symbol: str, qty: int, shares: int) -> None:
    positions = {symbol: (qty, 1), "AAPL": (500, 150)}
    strike = 200 if symbol == CALL else 210
    config = SimulatorConfig(positions=positions)
    for seed in range(20):
        async with open_simulator(config, port=None, clock=VirtualClock()) as sim:
            cash = sim.balances.cash
            ended = end_contracts(sim, symbol, random.Random(seed), 1, "1970-01-01")
            assert ended is not None
            if ended.how != how:
                continue
            held = {each.symbol: each.qty for each in sim.positions}
            assert held == {"AAPL": 500 + shares}
            assert sim.balances.cash == cash - shares * strike
            types = [each.activity_type for each in sim.activities]
            assert types == ["OPEXP"] if not shares else types[1:] == ["OPTRD"]
            return
    pytest.fail(f"no {how}")


def test_finds_a_closed_price_that_is_said_to_be_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PnlEngine, "_rests", lambda *_: False)
    assert _finds("the gateway's report is", "closes", most=12, first=[8_200_015])


def test_finds_prices_that_close_while_the_market_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PnlEngine, "_rests", lambda _, holding: holding.has_hours)
    assert _finds("is closed, the hours", "opens")


def test_finds_crypto_that_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Holding, "has_hours", property(lambda _: True))
    assert _finds("BTC/USD is closed", "closes", most=8)


def test_finds_hours_that_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PnlTracker, "_market_came", lambda *_: None)
    assert _finds("the hours are None", "opens", most=1)


def test_finds_another_next_open(monkeypatch: pytest.MonkeyPatch) -> None:
    set_market = PnlEngine.set_market

    def swapped(self: PnlEngine, market: Market, now_ns: int) -> bool:
        return set_market(self, Market(market.is_open, market.next_close, market.next_open), now_ns)

    monkeypatch.setattr(PnlEngine, "set_market", swapped)
    assert _finds("the hours are", "closes", most=1)


def test_finds_a_day_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    add = DayBook.add

    def of_any_date(self: DayBook, fill: Fill, *, streamed: bool = False) -> bool:
        return add(self, attrs.evolve(fill, at_ns=midnight_ns(self.date)), streamed=streamed)

    monkeypatch.setattr(DayBook, "add", of_any_date)
    monkeypatch.setattr(AccountDay, "_book_for", lambda self, _: (self._book, False))
    monkeypatch.setattr(AccountDay, "is_known", property(lambda _: True))
    assert _finds("the day: ", "midnight", most=2)


def test_finds_a_leg_that_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    parse = trade_updates.parse_trade_updates
    monkeypatch.setattr(trading_stream, "parse_trade_updates", lambda data: parse(data)[:1])
    assert _finds("a second after its fill", None)


def test_finds_an_exercise_that_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    book = DayBook.book

    def without_strikes(self: DayBook, bookings: Any) -> set[str]:
        return book(self, [one for one in bookings if one.activity_type != "OPTRD"])

    monkeypatch.setattr(DayBook, "book", without_strikes)
    assert _finds("the day: ", *TURNS, most=8, first=[8_200_025])


def test_finds_an_expiry_that_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    book = DayBook.book

    def without_ends(self: DayBook, bookings: Any) -> set[str]:
        return book(self, [one for one in bookings if not one.activity_type.startswith("OPE")])

    monkeypatch.setattr(DayBook, "book", without_ends)
    assert _finds("the day: ", *TURNS, most=8)


def test_finds_a_difference_that_is_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PositionCache, "_compare", lambda *_: None)
    assert _finds("the differences are", *TURNS, most=6)


def test_finds_a_difference_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PositionCache, "apply", lambda *_: False)
    assert _finds("the differences are", None, most=2)


def test_finds_a_spread_that_is_taken_for_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PnlEngine, "_is_narrow", lambda *_: True)
    assert _finds("the gateway's report is", None, most=8, first=[8_200_011])


def test_finds_a_spread_that_is_taken_for_too_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PnlEngine, "_is_narrow", lambda _, bid, ask: not (bid and ask))
    assert _finds("the gateway's report is", None, most=8, first=[8_200_002])


def _last(*, count: int) -> Iterator[str]:
    plans = (plan for plan in _plans(8_400_001) if plan.trading and plan.trading.mark == "last")
    for plan in islice(plans, count):
        yield str(_simulate(plan.seed).violations)


def test_nothing_is_found_where_last_trades_are_the_price() -> None:
    assert list(_last(count=3)) == ["[]", "[]", "[]"]


def test_finds_a_trade_whose_conditions_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "updates_last", lambda *_, **__: True)
    assert any("the gateway's report is" in found for found in _last(count=4))


@pytest.mark.parametrize("change", ["cancel", "correct"])
def test_finds_a_change_of_a_trade_that_does_not_count(
    monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(last_trades, "_CHANGED", 0.6)
    monkeypatch.setattr(PnlEngine, change, lambda *_: False)
    assert any("the gateway's report is" in found for found in _last(count=4))


def test_finds_a_late_trade_that_is_the_price(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_trades, "_LATE", 0.5)
    monkeypatch.setattr(engine, "insort_right", lambda trades, trade, **_: trades.append(trade))
    assert any("the gateway's report is" in found for found in _last(count=4))
