"""Each crossing once, and nothing else."""

from __future__ import annotations

import json
from decimal import Decimal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.model.market import Market
from mdservice.model.position import Position
from mdservice.model.quote import Quote
from mdservice.pnl.alerts import Alert, AlertRules, encode_alert
from mdservice.pnl.engine import PnlEngine
from mdservice.pnl.rules import AlertRule, parse_rule
from tests.examples import examples

from .reference import S_NS

T_NS = 1_795_189_904_208_912_345
AVG = 100


class Bench:
    """One share of each symbol, bought at 100, so that P&L and per cent are price less 100."""

    def __init__(self, *rules: str, held: str = "A") -> None:
        self.engine = PnlEngine(stale_after_s=60, price_ttl_s=300)
        self.rules = AlertRules(map(parse_rule, rules))
        self.now_ns = T_NS
        self.hold(held)

    def hold(self, symbols: str, qty: int = 1) -> None:
        self.engine.set_positions([Position(s, Decimal(qty), Decimal(AVG)) for s in symbols])

    def quote(self, pnl: float | None, symbol: str = "A") -> None:
        self.price(0.0 if pnl is None else AVG + pnl, symbol)

    def price(self, price: float, symbol: str = "A") -> None:
        self.now_ns += 1
        self.sides(price, price, symbol)

    def sides(self, bid: float, ask: float, symbol: str = "A") -> None:
        now_ns = self.now_ns
        self.engine.update(Quote(symbol, bid, ask, 1, 1, now_ns, now_ns), now_ns)

    def check(self) -> list[Alert]:
        return self.rules.check(self.engine, self.now_ns)

    def fired(self) -> list[tuple[str, str, Decimal]]:
        return [(alert.rule, alert.symbol, alert.value) for alert in self.check()]

    def fires(self, *pnls: float | None) -> list[float | None]:
        """Those of the values at which an alert was sent."""
        found = []
        for pnl in pnls:
            self.quote(pnl)
            found += [pnl for _ in self.check()]
        return found


def test_what_an_alert_says() -> None:
    bench = Bench("A pnl < -5")
    bench.quote(-5.25)
    (alert,) = bench.check()
    assert alert == Alert(
        "A pnl < -5", "A", "pnl", "below", Decimal(-5), Decimal("-5.25"), bench.now_ns
    )
    assert encode_alert(alert) == (
        b'{"rule":"A pnl < -5","symbol":"A","kind":"pnl","direction":"below","level":-5,'
        b'"value":-5.25,"at":"2026-11-20T15:51:44.208912346Z"}'
    )


def test_a_message_never_has_an_exponent() -> None:
    alert = Alert("A pnl > 0", "A", "pnl", "above", Decimal("0E+3"), Decimal("1E-9"), T_NS)
    assert b'"level":0,"value":0.000000001,' in encode_alert(alert)
    assert json.loads(encode_alert(attrs.evolve(alert, level=None)))["level"] is None


@pytest.mark.parametrize(
    ("rule", "values", "told"),
    [
        ("A pnl < -5", [0, -5, -6, -7, -4, -6], [-6, -6]),
        ("A pnl > 5", [0, 5, 6, 7, 4, 6], [6, 6]),
        ("A pct < -5", [0, -5, -6, -7, -4, -6], [-6, -6]),
        ("A price > 105", [0, 5, 6, 7, 4, 6], [6, 6]),
        ("* price < 95", [0, -5, -6, -4, -6], [-6, -6]),
        ("total pnl < -5", [0, -6, -4, -6], [-6, -6]),
        ("total pct > 5", [0, 6, 4, 6], [6, 6]),
        ("A value > 105 trip", [0, 5, 6, 7, 4, 6], [6, 6]),
        ("A qty > 0", [0, 5], [0]),
        ("total exposure > 105", [0, 6, 4, 6], [6, 6]),
        ("total value > 105", [0, 6, 4, 6], [6, 6]),
        ("* day_pnl > 0", [5], []),
        ("total day_pnl > 0", [5], []),
    ],
)
def test_each_crossing_is_reported_once(rule: str, values: list[float], told: list[float]) -> None:
    assert Bench(rule).fires(*values) == told


def test_a_value_that_dances_on_the_level_has_crossed_once() -> None:
    assert Bench("A pnl < -5").fires(-6, -5, -6, -5, -6, -5, -6) == [-6]
    assert Bench("A pnl > 5").fires(6, 5, 6, 5, 6) == [6]


def test_with_hysteresis_it_has_to_come_back_by_more_than_that() -> None:
    assert Bench("A pnl < -5 hysteresis 3").fires(-6, -4, -6, -2, -6, -1, -6) == [-6, -6]
    assert Bench("A pnl > 5 hysteresis 3").fires(6, 4, 6, 2, 6, 1, 6) == [6, 6]


def test_beyond_the_level_when_first_looked_at_is_a_crossing() -> None:
    assert Bench("A pnl < -5").fires(-6) == [-6]


def test_a_price_that_is_gone_neither_crosses_nor_comes_back() -> None:
    assert Bench("A pnl < -5").fires(None, -6, None, -6, None, 0, None, -6) == [-6, -6]
    assert Bench("A pnl > -5", "total pnl > -5", "A price < 9", "A stale").fires(None) == []


def test_the_pnl_of_a_symbol_is_the_sum_of_its_lots() -> None:
    bench = Bench("A pnl < -5", "A pct < -5")
    lots = [("10", "100"), ("-10", "99"), ("1", "100")]
    bench.engine.set_positions([Position("A", Decimal(q), Decimal(avg)) for q, avg in lots])
    bench.quote(-6)  # -60 + 50 - 6
    assert bench.fired() == [("A pnl < -5", "A", Decimal(-16))]


def test_a_closed_position_is_forgotten() -> None:
    bench = Bench("A pnl < -5", "total pnl < -5")
    assert len(bench.fires(-6)) == 2
    bench.hold("")
    assert bench.check() == []
    assert bench.rules._crossed == {}
    bench.hold("A")
    assert len(bench.check()) == 2
    bench.hold("")
    bench.hold("A")  # between two looks
    assert bench.fired() == [("A pnl < -5", "A", Decimal(-6))]


def test_a_changed_quantity_is_the_same_position() -> None:
    bench = Bench("A pnl < -5")
    assert bench.fires(-6) == [-6]
    bench.hold("A", qty=2)
    assert bench.check() == []
    bench.hold("A", qty=0)
    assert bench.check() == []
    bench.hold("A", qty=2)
    assert bench.fired() == [("A pnl < -5", "A", Decimal(-12))]


def test_rules_on_what_is_not_held_wait() -> None:
    bench = Bench("B price > 0")
    bench.quote(1, "B")
    assert bench.check() == []
    bench.hold("AB")
    assert bench.fired() == [("B price > 0", "B", Decimal(101))]


def test_each_held_symbol_by_itself() -> None:
    bench = Bench("* pnl < -5", held="ABC")
    for symbol, pnl in [("A", -6), ("B", -4), ("C", -7)]:
        bench.quote(pnl, symbol)
    assert [symbol for _, symbol, _ in bench.fired()] == ["A", "C"]
    for symbol, pnl in [("A", 0), ("B", -9), ("C", -8)]:
        bench.quote(pnl, symbol)
    assert [symbol for _, symbol, _ in bench.fired()] == ["B"]


def test_stale_is_reported_when_the_time_has_come_and_again_after_it_was_live() -> None:
    bench = Bench("A stale")
    bench.quote(1)
    assert bench.check() == []
    assert bench.engine.wake_ns is not None
    bench.now_ns = bench.engine.wake_ns
    (alert,) = bench.check()
    assert (alert.kind, alert.direction, alert.level) == ("stale", "stale", None)
    assert alert.value == Decimal("60.000000001")
    assert bench.check() == []
    bench.quote(2)
    assert bench.check() == []
    bench.engine.expire("A", bench.now_ns)
    assert [alert.value for alert in bench.check()] == [0]


def test_a_stale_price_that_does_not_move_crosses_no_level() -> None:
    bench = Bench("A pnl < -5")
    assert bench.fires(-6) == [-6]
    bench.now_ns += 100 * S_NS
    assert bench.check() == []


def test_the_total_does_not_come_back_while_a_symbol_has_no_price() -> None:
    bench = Bench("total pnl < -5", held="AB")
    bench.quote(None, "B")
    assert bench.fires(-9, 0, -9) == [-9]
    bench.quote(1, "B")
    assert bench.fires(0, -9) == [-9]


UNUSABLE = [(0.0, 0.0), (0.05, 199_999.99), (199_999.99, 0.05), (90.0, 110.0)]
EVERY_RULE = [
    f"{symbol} {what}"
    for symbol in ("A", "*")
    for what in ("pnl < -5", "pnl > 5", "pct < -5", "pct > 5", "price < 95", "price > 105", "stale")
] + ["total pnl < -5", "total pnl > 5", "total pct < -2", "total pct > 2"]


@pytest.mark.parametrize("sides", UNUSABLE)
@pytest.mark.parametrize("pnl", [0, -6, 6])
def test_a_quote_that_is_no_price_neither_crosses_nor_comes_back(
    pnl: float, sides: tuple[float, float]
) -> None:
    bench = Bench(*EVERY_RULE, held="AB")
    bench.quote(0, "B")
    bench.quote(pnl)
    assert len(bench.check()) == (0 if pnl == 0 else 8)
    for _ in range(2):
        bench.sides(*sides)
        assert bench.check() == []
    bench.quote(pnl)
    assert bench.check() == [], "it has been beyond, or not, all the time"


@pytest.mark.parametrize("sides", UNUSABLE)
@pytest.mark.parametrize("told_meanwhile", [True, False])
def test_stale_goes_by_the_age_of_the_last_usable_quote(
    sides: tuple[float, float], told_meanwhile: bool
) -> None:
    bench = Bench("A stale", "* stale")
    bench.quote(1)
    usable_ns = bench.now_ns
    assert bench.check() == []
    bench.now_ns += 30 * S_NS
    bench.sides(*sides)
    assert bench.check() == []
    bench.now_ns = usable_ns + 60 * S_NS
    bench.sides(*sides)
    assert bench.check() == []
    bench.now_ns = usable_ns + 60 * S_NS + 1
    if told_meanwhile:
        bench.engine.report(bench.now_ns)
    assert [alert.value for alert in bench.check()] == [Decimal("60.000000001")] * 2
    bench.sides(*sides)
    assert bench.check() == [], "it is no fresh price"
    bench.now_ns += 100 * S_NS
    assert bench.check() == []
    bench.quote(1)
    assert bench.check() == []
    bench.sides(*sides)
    bench.engine.expire("A", bench.now_ns)
    assert len(bench.check()) == 2, "the key is gone"


def test_a_closed_position_does_not_become_stale() -> None:
    bench = Bench("* stale")
    bench.quote(1)
    bench.sides(0, 0)
    assert bench.check() == []
    bench.now_ns += 61 * S_NS
    bench.engine.report(bench.now_ns)
    bench.hold("")
    assert bench.check() == []


def test_a_price_of_the_positions_source_is_in_the_total_alone() -> None:
    bench = Bench(*EVERY_RULE, held="")
    lots = [Position("A", Decimal(1), Decimal(AVG), current_price=Decimal(AVG - 6))]
    bench.engine.set_positions(lots)
    assert bench.fired() == [
        ("total pnl < -5", "total", Decimal(-6)),
        ("total pct < -2", "total", Decimal(-6)),
    ]


def test_the_percentage_of_the_total_is_of_what_the_positions_cost() -> None:
    bench = Bench("total pct < -2", "total pct > 2", "total pnl < -20", held="")
    lots = [("A", "10", "50"), ("B", "-5", "200")]
    bench.engine.set_positions([Position(s, Decimal(q), Decimal(avg)) for s, q, avg in lots])
    bench.price(50.0)
    bench.price(206.0, "B")  # -30 of 1500, which is exactly -2 %
    assert bench.fired() == [("total pnl < -20", "total", Decimal(-30))]
    bench.price(206.03, "B")
    assert bench.fired() == [("total pct < -2", "total", Decimal("-2.0100"))]
    bench.price(56.1)
    assert bench.fired() == [("total pct > 2", "total", Decimal("2.0567"))]


def test_the_same_rule_twice_is_one() -> None:
    assert len(AlertRules([parse_rule("A pnl < 5"), parse_rule("a  pnl<5")]).rules) == 1
    assert Bench("A pnl < 5", "A PNL < 5").fires(0) == [0]


def test_without_rules_nothing_is_looked_at() -> None:
    assert Bench().fires(1, 2) == []


RULES = [
    f"{symbol} {what}{hysteresis}"
    for symbol in ("A", "*", "total")
    for what in ("pnl < -1", "pnl > 1")
    for hysteresis in ("", " hysteresis 1")
] + ["B price > 101", "B pct < -1"]

values = st.none() | st.integers(-4, 4)
steps = st.one_of(
    st.tuples(st.sampled_from("AB"), values),
    st.tuples(st.sampled_from("AB"), values),
    st.tuples(st.just("hold"), st.sampled_from(["", "A", "B", "AB"])),
)


@attrs.define
class Past:
    """What one rule saw of one symbol since it is held."""

    values: list[tuple[Decimal, bool]] = attrs.Factory(list)
    """Each with whether coming back counts."""

    def crosses(self, rule: AlertRule, value: Decimal, *, counts: bool) -> bool:
        """Beyond now, and come back since it was last beyond, if ever."""
        past, self.values = self.values, [*self.values, (value, counts)]
        if not rule.beyond(value):
            return False
        for earlier, counted in reversed(past):
            if rule.beyond(earlier):
                return False
            if rule.back(earlier) and counted:
                return True
        return True


@examples(300)
@given(st.lists(steps, max_size=40))
def test_reports_exactly_the_crossings(coming: list[tuple[str, object]]) -> None:
    bench = Bench(*RULES, held="AB")
    rules = list(map(parse_rule, RULES))
    known: dict[str, int | None] = {}
    held = "AB"
    past: dict[tuple[str, str], Past] = {}
    for what, value in coming:
        if what == "hold":
            held = str(value)
            bench.hold(held)
        else:
            pnl = value if isinstance(value, int) else None
            known[what] = known.get(what) if pnl is None else pnl
            bench.quote(pnl, what)
        past = {key: seen for key, seen in past.items() if key[1] in held or key[1] == "total"}
        if not held:
            past = {}
        priced = {s: pnl for s in held if (pnl := known.get(s)) is not None}
        lost = any(s in known and known[s] is None for s in held)
        expected = set()
        for rule in rules:
            of = {"total": sum(priced.values())} if priced else {}
            if rule.symbol != "total":
                of = {s: pnl for s, pnl in priced.items() if rule.symbol in {s, "*"}}
            for symbol, pnl in of.items():
                number = Decimal(pnl + AVG if rule.kind == "price" else pnl)
                seen = past.setdefault((rule.text, symbol), Past())
                if seen.crosses(rule, number, counts=symbol != "total" or not lost):
                    expected.add((rule.text, symbol, number))
        assert sorted(bench.fired()) == sorted(expected)
        assert bench.fired() == []


@pytest.mark.parametrize("name", ["BTCUSD", "BTC/USD"])
def test_a_rule_matches_either_spelling_of_a_pair(name: str) -> None:
    bench = Bench(f"{name} pnl < -5")
    for asset_class, symbol in (("crypto", "BTCUSD"), ("crypto", "BTC/USD")):
        bench.engine.set_positions(
            [Position(symbol, Decimal(1), Decimal(AVG), asset_class=asset_class)]  # type: ignore[arg-type]
        )
        bench.quote(0, "BTC/USD")
        assert bench.check() == []
        bench.quote(-6, "BTC/USD")
        assert len(bench.check()) == 1


def test_a_price_is_not_stale_while_its_market_is_closed() -> None:
    bench = Bench("A stale")
    bench.quote(0)
    bench.now_ns += 1_000 * 10**9
    bench.engine.set_market(Market(False), bench.now_ns)
    bench.engine.update(attrs.evolve(bench.engine.known("A").quote), bench.now_ns)  # type: ignore[union-attr, type-var]
    assert bench.check() == []
    bench.engine.set_market(Market(True), bench.now_ns)
    assert len(bench.check()) == 1
    bench.engine.set_market(Market(False), bench.now_ns)
    assert bench.check() == []
    bench.engine.set_market(None, bench.now_ns)
    assert len(bench.check()) == 1
