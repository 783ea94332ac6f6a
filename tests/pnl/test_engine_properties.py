"""The engine against a slow reading of the contract, whatever comes in whatever order."""

from __future__ import annotations

import json
from collections import defaultdict
from decimal import Decimal
from fractions import Fraction
from typing import Any

import attrs
import msgspec
from hypothesis import given
from hypothesis import strategies as st

from mdservice.model.market import Market
from mdservice.model.position import Position
from mdservice.model.quote import Quote
from mdservice.model.trade import Cancel, Correction, Trade
from mdservice.pnl.day import SymbolDay
from mdservice.pnl.encode import encode_report, row_texts
from mdservice.pnl.engine import PnlEngine
from tests.examples import examples

from .reference import CLOSES_NS, S_NS, PlainRow, Reference, Whole, plain_row

START_NS = CLOSES_NS - 65 * S_NS
STALE_AFTER_S, TTL_S = 6, 10

symbols = st.sampled_from(["A", "B", "C", "D/USD"])
named = symbols | st.just("DUSD")
decimals = st.sampled_from(
    ["10", "-3", "0", "-0.0", "150.00", "1E+3", "0.333333333333333333333333333333333333"]
).map(Decimal) | st.decimals(-1000, 1000, places=4)
perhaps = st.one_of(
    decimals, decimals, decimals, st.sampled_from([None, Decimal("NaN"), Decimal("-Infinity")])
)
positions = st.lists(
    st.builds(
        lambda symbol, **more: Position(
            symbol, asset_class="crypto" if "USD" in symbol else "us_equity", **more
        ),
        symbol=named,
        qty=perhaps,
        avg_entry_price=perhaps,
        multiplier=st.sampled_from([Decimal(1), Decimal(1), Decimal(100), Decimal(0)]),
        problem=st.sampled_from([None, None, None, "not a stock"]),
        current_price=st.sampled_from([None, None, Decimal("187.5"), Decimal("0.01")]),
        lastday_price=st.sampled_from([None, None, Decimal("186.5")]),
    ),
    max_size=6,
)
sides = (
    st.sampled_from([0.0, 0.0, 0.1, 0.2, 187.12, 187.15, 1e-7, 5e-324, 1e22, 1.7e308])
    | st.integers(1, 10**8).map(lambda units: units / 10_000)
)  # fmt: skip


@attrs.frozen
class Set:
    positions: list[Position]


@attrs.frozen
class Fill:
    """One lot changes, and all others are the same objects as before."""

    place: int
    qty: Decimal | None
    avg_entry_price: Decimal | None


@attrs.frozen
class Update:
    symbol: str
    bid: float
    ask: float
    age_ns: int


@attrs.frozen
class Expire:
    symbols: list[str]


@attrs.frozen
class Wait:
    ns: int


@attrs.frozen
class Again:
    """The known quote of a symbol once more: its key was read."""

    symbol: str


@attrs.frozen
class Clock:
    """The market's clock was asked."""

    market: Market | None


@attrs.frozen
class Sold:
    """A trade came."""

    symbol: str
    price: float
    age_ns: int
    condition: str


@attrs.frozen
class Changed:
    """An earlier trade was canceled, or corrected."""

    which: int
    price: float | None
    condition: str


Event = Set | Fill | Update | Expire | Wait | Again | Clock | Sold | Changed
ages = st.sampled_from([0, 1, S_NS, 5 * S_NS, 6 * S_NS - 1, 6 * S_NS, 7 * S_NS, -2 * S_NS])
_MONDAY = "2026-11-23T09:30:00-05:00", "2026-11-23T16:00:00-05:00"
clocks = st.sampled_from([None, Market(True, *_MONDAY), Market(False, *_MONDAY), Market(False)])
ages |= st.integers(86_325, 86_345).map(lambda age_s: age_s * S_NS)
"""Since the close before, when the prices of the session begin."""
AT_THE_LIMIT = [(95.0, 105.0), (105.0, 95.0), (0.95, 1.05), (0.95, 1.0501), (105.01, 95.0)]
"""Spreads of 10 % of the mid, and of a little more."""
NARROW = [(187.12, 187.15), (0.1, 0.1), (0.0, 187.12), (0.1, 0.0), *AT_THE_LIMIT]


def updates(pairs: st.SearchStrategy[tuple[float, float]]) -> st.SearchStrategy[Update]:
    return st.builds(
        lambda symbol, pair, age_ns: Update(symbol, *pair, age_ns), symbols, pairs, ages
    )


events = st.one_of(
    st.builds(Set, positions),
    st.builds(Fill, st.integers(0, 5), perhaps, perhaps),
    updates(st.sampled_from(NARROW)),
    updates(sides.map(lambda side: (side, side))),
    updates(st.tuples(sides, sides)),
    st.builds(Expire, st.lists(symbols, max_size=2)),
    st.builds(Wait, st.sampled_from([1, S_NS, 3 * S_NS, 6 * S_NS, 6 * S_NS + 1, 10 * S_NS])),
    st.builds(Again, symbols),
    st.builds(Clock, clocks),
)
conditions = st.sampled_from(["@", "@", "@", "I"])
sale_prices = st.sampled_from([187.12, 187.13, 0.1, 1e-7, 5e-324, 1.7e308])
sales = st.one_of(
    st.builds(Sold, symbols, sale_prices, ages, conditions),
    st.builds(Changed, st.integers(0, 3), st.none() | sale_prices, conditions),
)
kinds: st.SearchStrategy[Any] = st.sampled_from(["mid", "mid", "last", "exit"])


def coming_to(kind: str, max_size: int) -> st.SearchStrategy[list[Event]]:
    return st.lists(events | sales if kind == "last" else events, max_size=max_size)


class Told:
    """Tells the reference and engines of the same events."""

    def __init__(self, engines: int, kind: Any = "mid") -> None:
        self.now_ns = START_NS
        self.reference = Reference(STALE_AFTER_S, TTL_S, kind)
        self.engines = [
            PnlEngine(stale_after_s=STALE_AFTER_S - 1, price_ttl_s=TTL_S, feed_delay_s=1, mark=kind)
            for _ in range(engines)
        ]
        self.sold: list[Trade] = []

    def tell(self, event: Event) -> None:
        match event:
            case Set(positions=lots):
                self.reference.positions = lots
                for engine in self.engines:
                    engine.set_positions(lots)
            case Fill(place, qty, price):
                lots = list(self.reference.positions)
                if lots:
                    lot = lots[place % len(lots)]
                    lots[place % len(lots)] = attrs.evolve(lot, qty=qty, avg_entry_price=price)
                    self.reference.positions = lots
                    for engine in self.engines:
                        engine.set_positions(lots)
            case Update():
                at_ns = self.now_ns - event.age_ns
                self.update(Quote(event.symbol, event.bid, event.ask, 1, 1, at_ns, self.now_ns))
            case Again():
                known = self.reference.newest(event.symbol)
                if known is not None:
                    self.update(attrs.evolve(known[0]))
            case Expire():
                self.reference.expire(event.symbols)
                for engine in self.engines:
                    engine.expire(event.symbols, self.now_ns)
            case Sold(symbol, price, age_ns, condition):
                at_ns, seq = self.now_ns - age_ns, len(self.sold) + 1
                sold = Trade(symbol, price, 1, "V", (condition,), "C", seq, at_ns, at_ns, seq)
                self.sold.append(sold)
                self.reference.trade(sold, self.now_ns)
                for engine in self.engines:
                    engine.trade(sold, self.now_ns)
            case Changed() if self.sold:
                self.change(event, self.sold[-1 - event.which % len(self.sold)])
            case Wait():
                self.now_ns += event.ns
            case Clock(market):
                self.reference.set_market(market, self.now_ns)
                for engine in self.engines:
                    engine.set_market(market, self.now_ns)

    def change(self, event: Changed, old: Trade) -> None:
        ids = old.symbol, old.exchange, old.tape, old.id
        if event.price is None:
            self.reference.change(old.seq, None)
            cancel = Cancel(*ids, old.price, 1, "cancel", old.ts_event_ns, 0)
            for engine in self.engines:
                engine.cancel(cancel, self.now_ns)
            return
        right = attrs.evolve(old, price=event.price, conditions=(event.condition,))
        self.reference.change(old.seq, right)
        correction = Correction(
            *ids, old.price, 1, (), old.id, right.price, 1, right.conditions, old.ts_event_ns, 0
        )
        for engine in self.engines:
            engine.correct(correction, self.now_ns)

    def update(self, quote: Quote) -> None:
        self.reference.update(quote, self.now_ns)
        for engine in self.engines:
            engine.update(quote, self.now_ns)


def without_problem(whole: Whole) -> Whole:
    """Its text is the engine's own where the source gave none."""
    return attrs.evolve(whole, rows=[row[:13] for row in whole.rows])


def by_symbol(rows: list[PlainRow]) -> dict[object, list[PlainRow]]:
    found = defaultdict(list)
    for row in rows:
        found[str(row[0]).replace("/", "")].append(row)
    return found


@examples(300)
@given(kinds, positions, st.data())
def test_agrees_with_the_contract_asked_often_or_once(
    kind: str, first: list[Position], data: st.DataObject
) -> None:
    coming = data.draw(coming_to(kind, 30))
    told = Told(2, kind)
    often, once = told.engines
    for event in [Set(first), *coming]:
        told.tell(event)
        expected = told.reference.whole(told.now_ns)
        assert without_problem(Whole.of(often.report(told.now_ns))) == expected
    report = once.report(told.now_ns)
    assert without_problem(Whole.of(report)) == told.reference.whole(told.now_ns)
    assert Fraction(often.totals.exposure) == told.reference.exposure()
    for row, position in zip(report.positions, told.reference.positions, strict=True):
        unreadable = None in (row.qty, row.avg_entry_price)
        assert (row.problem is not None) == (position.problem is not None or unreadable)
        assert position.problem in {None, row.problem}


@examples(300)
@given(kinds, positions, st.data())
def test_one_who_follows_the_changes_has_the_whole(
    kind: str, first: list[Position], data: st.DataObject
) -> None:
    coming = [(event, data.draw(st.booleans())) for event in data.draw(coming_to(kind, 30))]
    told = Told(2, kind)
    engine, twin = told.engines
    version = 0
    followed: list[PlainRow] = []
    for event, looks in [(Set(first), True), *coming]:
        told.tell(event)
        if not looks:
            continue
        changes = engine.changes(version, told.now_ns)
        version = changes.version
        rows = [plain_row(row) for row in changes.positions]
        if changes.whole:
            followed = rows
        else:
            places = {symbol: iter(lots) for symbol, lots in by_symbol(rows).items()}
            followed = [
                next(places[symbol]) if symbol in places else row
                for row in followed
                for symbol in by_symbol([row])
            ]
            assert not [left for lots in places.values() for left in lots]
        expected = Whole.of(twin.report(told.now_ns))
        assert followed == expected.rows
        assert attrs.evolve(Whole.of(changes), rows=[]) == attrs.evolve(expected, rows=[])


@examples(300)
@given(kinds, positions, st.data())
def test_only_what_is_different_counts_as_changed(
    kind: str, first: list[Position], data: st.DataObject
) -> None:
    coming = data.draw(coming_to(kind, 20))
    told = Told(1, kind)
    (engine,) = told.engines
    for event in [Set(first), *coming]:
        report = engine.report(told.now_ns)
        told.tell(event)
        wake_ns = engine.wake_ns
        changes = engine.changes(report.version, told.now_ns)
        now = [plain_row(row) for row in engine.report(told.now_ns).positions]
        then = [plain_row(row) for row in report.positions]
        moved = [row[0] for row in now] != [row[0] for row in then]
        assert changes.whole == moved
        if not moved:
            old, new = by_symbol(then), by_symbol(now)
            changed = by_symbol([plain_row(row) for row in changes.positions])
            assert set(changed) == {symbol for symbol in new if new[symbol] != old[symbol]}
            same_clock = changes.market == report.market
            assert (changes.version == report.version) == (not changed and same_clock)
        if isinstance(event, Wait) and changes.version != report.version:
            assert wake_ns is not None
            assert wake_ns <= told.now_ns


@examples(100)
@given(positions, st.lists(events, max_size=20))
def test_the_texts_say_what_the_rows_say(first: list[Position], coming: list[Event]) -> None:
    told = Told(engines=1)
    (engine,) = told.engines
    for event in [Set(first), *coming]:
        told.tell(event)
        written = json.loads(
            encode_report(engine.report_of(row_texts, told.now_ns)),
            parse_float=Decimal,
            parse_int=Decimal,
        )
        rows = engine.report(told.now_ns).positions
        assert [{"problem": None, **row} for row in written["positions"]] == [
            msgspec.structs.asdict(row) for row in rows
        ]


amounts = st.sampled_from([Decimal(0), Decimal(10), Decimal(-3)]) | st.decimals(-100, 100, places=2)
symbol_days = st.builds(
    SymbolDay,
    st.just("X"),
    amounts,
    amounts,
    amounts | st.none(),
    lastday_price=st.sampled_from([None, Decimal("186.5"), Decimal(2)]),
    problem=st.sampled_from([None, None, None, "SPLIT changed the position"]),
)
keys = st.sampled_from(["A", "B", "C", "DUSD"])
day_events = (
    events
    | st.none()
    | st.dictionaries(keys, symbol_days, max_size=4)
    | st.tuples(keys, symbol_days)
)


@examples(400)
@given(positions, st.lists(day_events, max_size=25))
def test_the_day_follows_the_reference(
    first: list[Position], coming: list[Event | dict[str, SymbolDay] | tuple[str, SymbolDay] | None]
) -> None:
    told = Told(engines=1)
    (engine,) = told.engines
    known: dict[str, SymbolDay] | None = {}
    engine.set_day(known)
    for event in [Set(first), *coming]:
        since, before = engine.version, engine.totals.day_pnl
        if event is None or isinstance(event, dict):
            known = None if event is None else dict(event)
            engine.set_day(event)
        elif isinstance(event, tuple):
            engine.update_day(*event)
            if known is not None:
                known[event[0]] = event[1]
        else:
            told.tell(event)
        of_symbol, total, realized = told.reference.day(known)
        for holding in (engine.holding(symbol) for symbol in engine.held_symbols):
            assert holding is not None
            expected = of_symbol[holding.symbol.replace("/", "")]
            assert holding.day_pnl == expected
            assert holding.day_pnl is None or holding.version <= engine.version
        assert engine.totals.day_pnl == total
        assert engine.totals.realized_day_pnl == realized
        if engine.totals.day_pnl != before:
            assert engine.version != since


def test_without_a_list_of_fills_the_day_is_that_of_what_is_held() -> None:
    engine = PnlEngine(stale_after_s=5, price_ttl_s=5)
    assert (engine.totals.day_pnl, engine.totals.realized_day_pnl) == (0, None)
    engine.set_positions([Position("A", Decimal(2), Decimal(5), lastday_price=Decimal(7))])
    engine.update(Quote("A", 8, 8, 1, 1, START_NS, START_NS), START_NS)
    assert (engine.totals.day_pnl, engine.totals.realized_day_pnl) == (2, None)


def test_a_day_that_ended_leaves_nothing_behind() -> None:
    engine = PnlEngine(stale_after_s=5, price_ttl_s=5)
    engine.set_positions([Position("A", Decimal(2), Decimal(5))])
    engine.set_day(
        {"A": SymbolDay("A", Decimal(2), Decimal(10)), "B": SymbolDay("B", realized=None)}
    )
    engine.update(Quote("A", 8, 8, 1, 1, START_NS, START_NS), START_NS)
    assert (engine.totals.day_pnl, engine.totals.realized_day_pnl) == (6, None)
    engine.set_positions([])
    assert engine.totals.day_pnl is None, "of what is sold without a last close, nothing is known"
    engine.set_day({})
    assert (engine.totals.day_pnl, engine.totals.realized_day_pnl) == (0, 0)
