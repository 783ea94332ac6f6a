"""Limits: each crossing once, blind where a price is not usable, and orders as they would be."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.model.market import Market
from mdservice.model.position import Position
from mdservice.model.quote import Quote
from mdservice.pnl.breaker import CLOSED, Breaker
from mdservice.pnl.day import SymbolDay
from mdservice.pnl.engine import PnlEngine
from mdservice.pnl.limits import Limits, Order
from mdservice.pnl.rules import AlertRule, parse_rule
from tests.examples import examples

from .reference import S_NS, usable

T_NS = 1_795_189_904 * S_NS
AVG = 100
LASTDAY = 99
STALE_S = 60
CALL = "AAPL261218C00200000"


class Bench:
    """Positions bought at 100."""

    def __init__(self, *rules: str, **held: float) -> None:
        self.engine = PnlEngine(stale_after_s=STALE_S, price_ttl_s=3_000)
        self.limits = Limits(map(parse_rule, rules))
        self.now_ns = T_NS
        self.lastday: Decimal | None = None
        self.hold(**held)

    def hold(self, **held: float) -> None:
        lots = [
            Position(s, Decimal(str(q)), Decimal(AVG), lastday_price=self.lastday)
            for s, q in held.items()
        ]
        self.engine.set_positions(lots)

    def sides(self, symbol: str, bid: float, ask: float) -> None:
        self.now_ns += 1
        at_ns = self.now_ns
        self.engine.update(Quote(symbol, bid, ask, 1, 1, at_ns, at_ns), at_ns)

    def price(self, symbol: str, price: float) -> None:
        self.sides(symbol, price, price)

    def check(self) -> list[tuple[str, str, Decimal]]:
        found = self.limits.check(self.engine, self.now_ns)
        return [(each.rule, each.symbol, each.value) for each in found]

    def used(self) -> list[tuple[str, Decimal | None, Decimal | None]]:
        self.check()
        states = self.limits.states(self.engine, self.now_ns)
        return [(state.subject, state.value, state.used) for state in states]

    def blind(self) -> list[str]:
        self.check()
        return self.limits.blind()

    def objections(
        self, side: str, qty: str, price: str | None = None, symbol: str = "A", **more: Breaker
    ) -> list[str]:
        self.check()
        order = Order(symbol, side, Decimal(qty), None if price is None else Decimal(price))  # type: ignore[arg-type]
        return self.limits.objections(order, more.get("breaker", CLOSED), self.engine, self.now_ns)


@pytest.mark.parametrize(
    ("rule", "prices", "crossed"),
    [
        ("A pnl < -5", [100, 95, 94, 93, 96, 94], [94, 94]),
        ("A pct > 5", [100, 105, 106, 107, 104, 106], [106, 106]),
        ("* price > 105", [105, 106, 105, 106], [106, 106]),
        ("A value > 105", [105, 106, 107, 104, 106], [106, 106]),
        ("total pnl < -5", [95, 94, 93, 96, 94], [94, 94]),
        ("total exposure > 105", [105, 106, 107, 104, 106], [106, 106]),
        ("A pnl < -5 hysteresis 3", [94, 96, 94, 98, 94, 99, 94], [94, 94]),
        ("A qty > 0", [100, 101], [100]),
    ],
)
def test_each_crossing_is_found_once(rule: str, prices: list[float], crossed: list[float]) -> None:
    bench = Bench(rule, A=1)
    found = []
    for price in prices:
        bench.price("A", price)
        found += [price for _ in bench.check()]
        assert bench.check() == []
    assert found == crossed


def test_a_short_position_has_an_absolute_value_and_a_signed_quantity() -> None:
    bench = Bench("A value > 150", "A qty < -1", "A qty > 1", "total exposure > 150", A=-2)
    bench.price("A", 100)
    assert bench.check() == [
        ("A value > 150", "A", Decimal(200)),
        ("A qty < -1", "A", Decimal(-2)),
        ("total exposure > 150", "total", Decimal(200)),
    ]


def test_the_exposure_adds_what_the_value_of_the_total_sets_off() -> None:
    bench = Bench("total exposure > 900", "total value > 900", A=5, B=-3)
    bench.price("A", 100)
    bench.price("B", 100)
    assert bench.used() == [
        ("total", Decimal(800), Decimal("0.8888888889")),
        ("total", Decimal(200), Decimal("0.2222222222")),
    ]


@pytest.mark.parametrize(
    ("rule", "price", "used"),
    [
        ("A pnl < -8", 98, "0.25"),
        ("A pnl < -8", 101, "0"),
        ("A pnl > 3", 101, "0.3333333333"),
        ("A price < 80", 100, "0.8"),
        ("A price > 400", 100, "0.25"),
        ("A pnl > -4", 92, "0.5"),
        ("A pnl > -4", 100, "1"),
        ("A pnl < 0", 99, "1"),
        ("A pnl < 0", 101, "0"),
        ("A qty > 4", 100, "0.25"),
    ],
)
def test_what_is_used_of_a_limit(rule: str, price: float, used: str) -> None:
    bench = Bench(rule, A=1)
    bench.price("A", price)
    assert [found for _, _, found in bench.used()] == [Decimal(used)]


def test_what_is_not_held_uses_nothing() -> None:
    bench = Bench("A qty > 4", "A price > 1", "* value > 1", "total exposure > 5", "total pct < -1")
    bench.price("A", 100)
    assert bench.used() == [
        ("A", Decimal(0), Decimal(0)),
        ("A", None, Decimal(0)),
        ("*", None, Decimal(0)),
        ("total", Decimal(0), Decimal(0)),
        ("total", None, Decimal(0)),
    ]
    assert bench.blind() == []


UNUSABLE = {"none": (0, 0), "bid": (100, 0), "ask": (0, 100), "wide": (80, 120)}


@pytest.mark.parametrize("sides", UNUSABLE.values(), ids=UNUSABLE)
@pytest.mark.parametrize(
    "rule", ["A pnl < -5", "* value > 1", "total pnl < -5", "total exposure > 1"]
)
def test_a_price_that_is_not_usable_trips_nothing_and_is_blind(
    rule: str, sides: tuple[float, float]
) -> None:
    bench = Bench(rule, A=1)
    assert bench.blind() == ["A: no price is known"]
    bench.sides("A", *sides)
    assert bench.check() == []
    assert len(bench.blind()) == 1
    assert bench.limits.is_blind
    assert [(value, used) for _, value, used in bench.used()] == [(None, None)]
    bench.price("A", 94)
    assert len(bench.check()) == 1
    assert not bench.limits.is_blind
    bench.sides("A", *sides)
    assert bench.check() == []
    assert bench.limits.is_blind
    bench.price("A", 94)
    assert bench.check() == [], "it has been beyond all the time"


def test_a_stale_price_is_blind_but_for_the_limits_that_need_none() -> None:
    bench = Bench("A pnl < -5", "A qty > 5", "B qty > 5", A=1, B=1)
    bench.price("A", 100)
    assert bench.blind() == []
    bench.now_ns += 61 * S_NS
    assert bench.blind() == ["A: the price is stale"]
    bench.hold(A=6, B=6)
    assert [rule for rule, _, _ in bench.check()] == ["A qty > 5", "B qty > 5"]
    bench.hold(B=6)
    assert bench.blind() == []


def test_a_stale_limit_trips_when_the_price_is_too_old() -> None:
    bench = Bench("A stale", A=1)
    assert bench.blind() == ["A: no price is known"]
    bench.price("A", 100)
    bench.sides("A", 0, 0)
    assert (bench.check(), bench.blind()) == ([], [])
    bench.now_ns += 61 * S_NS
    bench.engine.report(bench.now_ns)
    assert [rule for rule, _, _ in bench.check()] == ["A stale"]
    assert [used for _, _, used in bench.used()] == [1]
    assert (bench.check(), bench.blind()) == ([], [])
    bench.price("A", 100)
    assert bench.limits.check(bench.engine, bench.now_ns) == []
    assert bench.limits.crossed() == []


@pytest.mark.parametrize("rule", ["A qty > 5", "* stale", "total exposure > 5"])
def test_a_position_that_cannot_be_read_is_blind(rule: str) -> None:
    bench = Bench(rule)
    bench.engine.set_positions([Position("A", None, Decimal(1))])
    bench.price("A", 100)
    assert bench.blind() == ["A: a position in it cannot be read"]


@pytest.mark.parametrize("rule", ["A day_pnl < -5", "total day_pnl < -5"])
def test_the_day_is_blind_without_the_last_close(rule: str) -> None:
    bench = Bench(rule, A=1)
    bench.price("A", 1)
    assert bench.check() == []
    assert [reason.partition(": ")[2][:14] for reason in bench.blind()] == ["the last close"]
    bench.hold()
    assert bench.blind() == []


def test_the_day_is_judged_where_the_last_close_is_known() -> None:
    bench = Bench("A day_pnl < -5", "total day_pnl < -5")
    bench.lastday = Decimal(104)
    bench.hold(A=1)
    bench.price("A", 100)
    assert (bench.check(), bench.blind()) == ([], [])
    assert bench.objections("buy", "1", "101") == []
    assert len(bench.objections("buy", "1", "102")) == 2
    bench.price("A", 98)
    assert [subject for _, subject, _ in bench.check()] == ["A", "total"]


def test_the_loss_of_a_position_that_was_closed_today_still_counts() -> None:
    bench = Bench("A day_pnl < -5", "total day_pnl < -5", "total pnl < -5")
    bench.lastday = Decimal(104)
    bench.hold(A=1)
    bench.price("A", 90)
    assert len(bench.check()) == 3
    sold = SymbolDay("A", Decimal(-1), Decimal(-90), Decimal(-10), 1, lastday_price=Decimal(104))
    bench.engine.set_day({"A": sold})
    bench.hold()
    assert bench.check() == []
    assert [(one.rule, one.symbol) for one in bench.limits.crossed()] == [
        ("total day_pnl < -5", "total")
    ]
    assert bench.used()[-2] == ("total", Decimal(-14), Decimal("2.8"))
    assert len(bench.objections("buy", "1", "90")) == 2
    bench.engine.set_day({})
    assert (bench.check(), bench.limits.crossed()) == ([], [])


def test_the_day_is_blind_without_todays_fills() -> None:
    bench = Bench("A day_pnl < -5", "total day_pnl < -5")
    bench.lastday = Decimal(104)
    bench.hold(A=1)
    bench.price("A", 90)
    bench.engine.set_day(None)
    assert bench.check() == []
    unknown = "today's fills are not known"
    assert bench.blind() == [f"A: {unknown}", f"total: {unknown}"]
    bench.engine.set_day({})
    assert len(bench.check()) == 2


def test_many_blind_symbols_are_not_all_named() -> None:
    bench = Bench("* pnl < -5", **{f"S{n}": 1.0 for n in range(100)})
    assert len(bench.blind()) == 21
    assert bench.blind()[-1] == "and 80 more symbols"


def test_a_closed_position_no_longer_holds_its_limit() -> None:
    bench = Bench("A pnl < -5", "total pnl < -5", A=1)
    bench.price("A", 94)
    assert len(bench.check()) == 2
    bench.hold()
    assert bench.check() == []
    assert bench.limits.crossed() == []
    bench.hold(A=1)
    assert len(bench.check()) == 2


def test_without_limits_everything_is_allowed() -> None:
    bench = Bench(A=1)
    assert (bench.check(), bench.blind(), bench.used()) == ([], [], [])
    assert bench.objections("buy", "1000000", symbol="NEVER") == []


@pytest.mark.parametrize(
    ("rule", "side", "qty", "price", "allowed"),
    [
        ("A qty > 5", "buy", "3", None, True),
        ("A qty > 5", "buy", "3.01", None, False),
        ("A qty < -1", "sell", "3", None, True),
        ("A qty < -1", "sell", "3.01", None, False),
        ("* value > 500", "buy", "3", None, True),
        ("* value > 500", "buy", "3.01", None, False),
        ("A value > 500", "buy", "3", "110", False),
        ("A value > 500", "buy", "3.01", "90", False),
        ("A value > 500", "sell", "7.01", None, False),
        ("total exposure > 800", "buy", "3", None, True),
        ("total exposure > 800", "buy", "3.01", None, False),
        ("A pnl < -5", "buy", "1", "105", True),
        ("A pnl < -5", "buy", "1", "105.01", False),
        ("total pct < -1", "buy", "1", "106.1", False),
        ("B qty > 1", "buy", "1000", None, True),
    ],
)
def test_an_order_is_judged_on_the_position_as_it_would_be(
    rule: str, side: str, qty: str, price: str | None, allowed: bool
) -> None:
    bench = Bench(rule, A=2, B=-3)
    bench.price("A", 100)
    bench.price("B", 100)
    reasons = bench.objections(side, qty, price)
    assert (reasons == []) is allowed
    assert all(reason.startswith(f"{rule}: ") for reason in reasons)


def test_an_order_needs_a_usable_price() -> None:
    bench = Bench("B qty > 5", A=1)
    assert bench.objections("buy", "1") == ["A: no price is known"]
    assert bench.objections("buy", "1", "100", symbol="C") == ["C: no price is known"]
    bench.price("C", 100)
    assert bench.objections("buy", "1", symbol="C") == []
    bench.now_ns += 61 * S_NS
    assert bench.objections("buy", "1", symbol="C") == ["C: the price is stale"]
    bench.sides("C", 100, 0)
    assert len(bench.objections("buy", "1", symbol="C")) == 1


def test_an_option_that_is_not_held_has_a_hundred_shares() -> None:
    bench = Bench("total exposure > 1000")
    bench.price(CALL, 5)
    assert bench.objections("buy", "2", symbol=CALL) == []
    assert len(bench.objections("buy", "3", symbol=CALL)) == 1


def test_blind_limits_refuse_every_order() -> None:
    bench = Bench("total exposure > 1000", A=1, B=1)
    bench.price("A", 100)
    assert bench.objections("sell", "1") == ["B: no price is known"]


@pytest.mark.parametrize("rule", ["A qty > 5", "* value > 500"])
def test_while_tripped_only_the_position_that_is_too_large_is_reduced(rule: str) -> None:
    bench = Bench(rule, A=10, B=1)
    bench.price("A", 100)
    bench.price("B", 100)
    breaker = Breaker("tripped", rule, "A", Decimal(10), "2026-11-20T15:51:44.208912345Z")
    assert bench.objections("sell", "1", breaker=breaker) == []
    assert bench.objections("sell", "10", breaker=breaker) == []
    for side, qty, symbol in [("sell", "10.1", "A"), ("buy", "1", "A"), ("sell", "1", "B")]:
        assert len(bench.objections(side, qty, symbol=symbol, breaker=breaker)) == 1
    bench.hold(A=-10, B=1)
    assert bench.objections("buy", "1", breaker=breaker) == []
    assert len(bench.objections("sell", "1", breaker=breaker)) == 1


@pytest.mark.parametrize(
    "breaker",
    [
        Breaker("tripped", "A pnl < -5", "A", Decimal(-6), "2026-11-20T15:51:44.208912345Z"),
        Breaker("tripped", "total exposure > 5", "total"),
        Breaker("tripped", "not a rule", "A"),
        Breaker("tripped"),
    ],
)
@pytest.mark.parametrize("rules", [["A qty > 50"], []])
def test_while_tripped_by_anything_else_every_order_is_refused(
    breaker: Breaker, rules: list[str]
) -> None:
    bench = Bench(*rules, A=10)
    bench.price("A", 100)
    assert len(bench.objections("sell", "1", breaker=breaker)) == 1


RULES = [
    "A pnl < -1", "* pnl > 1 hysteresis 1", "B pct < -1", "* price > 101", "A qty > 2", "* qty < -1",
    "* value > 205", "total pnl < -2", "total pct > 1", "total exposure > 405", "total value > 205",
    "B stale", "A day_pnl < -1", "total day_pnl > 3",
]  # fmt: skip

symbols = st.sampled_from("AB")
quantities = st.sampled_from([-2, -1, 1, 2, 3])
steps = st.one_of(
    st.tuples(symbols, st.integers(98, 103).map(lambda price: (price, price + 1))),
    st.tuples(symbols, st.integers(98, 103).map(lambda price: (price, price))),
    st.tuples(symbols, st.sampled_from(list(UNUSABLE.values()))),
    st.tuples(st.just("hold"), st.dictionaries(symbols, quantities)),
    st.tuples(st.just("wait"), st.sampled_from([30, 61])),
)
orders = st.builds(
    Order,
    symbols,
    st.sampled_from(["buy", "sell"]),
    st.sampled_from([Decimal(1), Decimal("1.5"), Decimal(3)]),
    st.sampled_from([None, None, Decimal(99), Decimal("101.5")]),
)


@attrs.define
class Recount:
    """The contract on limits, read slowly: everything is counted again each time, in fractions."""

    rules: list[AlertRule]
    held: dict[str, Fraction] = attrs.Factory(dict)
    paid: dict[str, Fraction] = attrs.Factory(dict)
    quotes: dict[str, list[Quote]] = attrs.Factory(dict)
    crossed: set[tuple[str, str]] = attrs.Factory(set)

    def mark(self, symbol: str) -> Quote | None:
        good = [quote for quote in self.quotes.get(symbol, []) if usable(quote)]
        return good[-1] if good else None

    def price(self, symbol: str) -> Fraction:
        mark = self.mark(symbol)
        assert mark is not None
        sides = [Fraction(side) for side in (mark.bid, mark.ask) if side]
        return sum(sides, Fraction()) / len(sides)

    def is_usable(self, symbol: str, now_ns: int) -> bool:
        mark = self.mark(symbol)
        if mark is None or mark is not self.quotes[symbol][-1] or 0 in (mark.bid, mark.ask):
            return False
        return now_ns - mark.ts_event_ns <= STALE_S * S_NS

    def of_rule(self, rule: AlertRule) -> list[str]:
        if rule.symbol == "total":
            return ["total"] if self.held else []
        return [s for s in self.held if rule.symbol in {s, "*"}]

    def is_blind(self, rule: AlertRule, subject: str, now_ns: int) -> bool:
        if rule.kind == "qty":
            return False
        if rule.kind == "stale":
            return self.mark(subject) is None
        needed = self.held if subject == "total" else [subject]
        return not all(self.is_usable(symbol, now_ns) for symbol in needed)

    def measure(self, rule: AlertRule, subject: str, now_ns: int) -> Fraction | None:
        if rule.kind == "stale":
            mark = self.mark(subject)
            assert mark is not None
            return Fraction(now_ns - mark.ts_event_ns, S_NS)
        if rule.kind in {"qty", "price"}:
            return self.held[subject] if rule.kind == "qty" else self.price(subject)
        of = list(self.held) if subject == "total" else [subject]
        values = [self.held[symbol] * self.price(symbol) for symbol in of]
        if rule.kind in {"exposure", "value"}:
            return abs(sum(map(abs, values) if rule.kind == "exposure" else values, Fraction()))
        if rule.kind == "day_pnl":
            return sum(values, Fraction()) - sum((self.held[s] * LASTDAY for s in of), Fraction())
        pnl = sum(values, Fraction()) - sum((self.paid[symbol] for symbol in of), Fraction())
        if rule.kind == "pnl":
            return pnl
        cost = sum((abs(self.paid[symbol]) for symbol in of), Fraction())
        return round(100 * pnl / cost, 4) if cost else None

    def beyond(self, rule: AlertRule, subject: str, value: Fraction, now_ns: int) -> bool:
        if rule.level is None:
            mark = self.mark(subject)
            return mark is not None and now_ns - mark.ts_event_ns > STALE_S * S_NS
        level = Fraction(rule.level)
        return value < level if rule.direction == "below" else value > level

    def crossings(self, now_ns: int) -> list[tuple[str, str, Fraction]]:
        subjects = {(rule.text, subject) for rule in self.rules for subject in self.of_rule(rule)}
        self.crossed &= subjects
        found = []
        for rule in self.rules:
            for subject in self.of_rule(rule):
                if self.is_blind(rule, subject, now_ns):
                    continue
                value = self.measure(rule, subject, now_ns)
                if value is None:
                    continue
                key = rule.text, subject
                if self.beyond(rule, subject, value, now_ns):
                    if key not in self.crossed:
                        found.append((*key, value))
                    self.crossed.add(key)
                elif rule.direction == "above" and rule.level is not None:
                    if (
                        value < Fraction(rule.level) - Fraction(rule.hysteresis)
                        or not rule.hysteresis
                    ):
                        self.crossed.discard(key)
                else:
                    self.crossed.discard(key)
        return found

    def blind(self, now_ns: int) -> bool:
        return any(
            self.is_blind(rule, subject, now_ns)
            for rule in self.rules
            for subject in self.of_rule(rule)
        )

    def allows(self, order: Order, now_ns: int) -> bool:
        symbol = order.symbol
        if self.blind(now_ns) or not self.is_usable(symbol, now_ns):
            return False
        price = self.price(symbol)
        fill = price if order.price is None else Fraction(order.price)
        qty = Fraction(order.qty) * (1 if order.side == "buy" else -1)
        before = self.held.get(symbol, Fraction())
        after = before + qty
        paid = self.paid.get(symbol, Fraction())
        if before * qty >= 0:
            paid += qty * fill
        elif after * before >= 0:
            paid *= after / before
        else:
            paid = after * fill
        dearer = max(price, fill)
        for rule in self.rules:
            if rule.symbol not in {symbol, "*", "total"} or rule.kind == "stale":
                continue
            subject = "total" if rule.symbol == "total" else symbol
            would = Recount([rule], {**self.held, symbol: after}, {**self.paid, symbol: paid})
            would.quotes = self.quotes
            value = would.measure(rule, subject, now_ns)
            if rule.kind == "day_pnl":
                known = subject == "total" or symbol in self.held
                value = self.measure(rule, subject, now_ns) if known else Fraction()
                assert value is not None
                value += qty * (price - fill)
            if rule.kind in {"value", "exposure"}:
                own, of_own = after * price, after * dearer
                if rule.kind == "exposure":
                    assert value is not None
                    value += abs(of_own) - abs(own)
                else:
                    rest = {
                        s: q for s, q in self.held.items() if s != symbol and subject == "total"
                    }
                    value = abs(sum((q * self.price(s) for s, q in rest.items()), of_own))
            if value is not None and self.beyond(rule, subject, value, now_ns):
                return False
        return True


@examples(300)
@given(st.lists(st.tuples(steps, orders), max_size=25), st.sets(st.sampled_from(RULES), min_size=1))
def test_agrees_with_a_full_recount(
    coming: list[tuple[tuple[str, object], Order]], rules: set[str]
) -> None:
    chosen = [rule for rule in RULES if rule in rules]
    bench, recount = Bench(*chosen), Recount(list(map(parse_rule, chosen)))
    bench.lastday = Decimal(LASTDAY)
    for (what, value), order in coming:
        bench.now_ns += 1
        if isinstance(value, Mapping):
            bench.hold(**value)
            recount.held = {symbol: Fraction(qty) for symbol, qty in value.items()}
            recount.paid = {symbol: qty * AVG for symbol, qty in recount.held.items()}
        elif isinstance(value, tuple):
            bench.sides(what, float(value[0]), float(value[1]))
            at_ns = bench.now_ns
            quote = Quote(what, float(value[0]), float(value[1]), 1, 1, at_ns, at_ns)
            recount.quotes.setdefault(what, []).append(quote)
        else:
            assert isinstance(value, int)
            bench.now_ns += value * S_NS
        now_ns = bench.now_ns
        found = [(rule, subject, Fraction(number)) for rule, subject, number in bench.check()]
        assert sorted(found) == sorted(recount.crossings(now_ns))
        assert bench.check() == []
        holding = {(each.rule, each.symbol) for each in bench.limits.crossed()}
        assert holding == recount.crossed
        assert bench.limits.is_blind is recount.blind(now_ns)
        assert bool(bench.limits.blind()) is recount.blind(now_ns)
        for state in bench.limits.states(bench.engine, now_ns):
            rule = parse_rule(state.rule)
            if state.subject not in recount.of_rule(rule):
                assert state.used == 0
            elif recount.is_blind(rule, state.subject, now_ns):
                assert (state.value, state.used) == (None, None)
            elif state.value is not None and state.used is not None:
                exact = recount.measure(rule, state.subject, now_ns)
                assert exact == Fraction(state.value)
                is_beyond = recount.beyond(rule, state.subject, exact, now_ns)
                assert is_beyond is (state.used > 1 or (rule.kind == "stale" and state.used == 1))
        reasons = bench.objections(
            order.side,
            str(order.qty),
            None if order.price is None else str(order.price),
            order.symbol,
        )
        assert (reasons == []) is recount.allows(order, now_ns)


@pytest.mark.parametrize("name", ["BTCUSD", "BTC/USD"])
@pytest.mark.parametrize("ordered", ["BTCUSD", "BTC/USD"])
def test_limits_and_orders_match_either_spelling_of_a_pair(name: str, ordered: str) -> None:
    bench = Bench(f"{name} qty > 2")
    pair = Position("BTCUSD", Decimal(1), Decimal(AVG), asset_class="crypto")
    bench.engine.set_positions([pair])
    bench.price("BTC/USD", 100)
    assert bench.check() == []
    assert [(value, used) for _, value, used in bench.used()] == [(1, Decimal("0.5"))]
    assert bench.objections("buy", "1", symbol=ordered) == []
    assert len(bench.objections("buy", "1.5", symbol=ordered)) == 1
    bench.engine.set_positions([attrs.evolve(pair, qty=Decimal(3))])
    [(_, subject, value)] = bench.check()
    assert value == 3
    tripped = Breaker("tripped", f"{name} qty > 2", subject, value, "")
    assert bench.objections("sell", "1", symbol=ordered, breaker=tripped) == []
    assert len(bench.objections("buy", "1", symbol=ordered, breaker=tripped)) == 1


@pytest.mark.parametrize("price", [None, Decimal(94)])
def test_a_closed_price_is_as_good_as_a_live_one(price: Decimal | None) -> None:
    bench = Bench("A pnl < -5", "A stale", "total exposure > 900")
    bench.engine.set_positions([Position("A", Decimal(1), Decimal(AVG), current_price=price)])
    if price is None:
        bench.price("A", 94)
    bench.now_ns += 2 * STALE_S * S_NS
    bench.check()
    assert len(bench.blind()) == 1
    bench.engine.set_market(Market(False), bench.now_ns)
    bench.engine.update(Quote("A", 0, 0, 1, 1, bench.now_ns, bench.now_ns), bench.now_ns)
    found = [rule for rule, _, _ in bench.check()]
    assert bench.blind() == []
    assert ("A pnl < -5" in found) or bench.limits.crossed()
    assert bench.objections("buy", "20") != []
    assert bench.objections("sell", "1") == []
    (state,) = [s for s in bench.limits.states(bench.engine, bench.now_ns) if s.rule == "A stale"]
    assert state.used == 0
    bench.engine.set_market(Market(True), bench.now_ns)
    bench.check()
    assert len(bench.blind()) == 1


@pytest.mark.parametrize(
    ("held", "side", "qty", "value"),
    [(1, "buy", "1", 200), (0, "sell", "2", 202), (1, "sell", "3", 202), (-1, "sell", "1", 202)],
)
def test_an_order_is_judged_by_the_exit_of_the_position_that_it_makes(
    held: int, side: str, qty: str, value: int
) -> None:
    bench = Bench(f"A value > {value - 1}", f"* value > {value}")
    bench.engine = PnlEngine(stale_after_s=STALE_S, price_ttl_s=3_000, mark="exit")
    bench.hold(**({"A": held} if held else {}))
    bench.sides("A", 100, 101)
    assert bench.objections(side, qty) == [f"A value > {value - 1}: A would be at {value}"]
