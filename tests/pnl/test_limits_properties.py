"""Limits against a slow reading of the contract, whatever comes in whatever order."""

from __future__ import annotations

from decimal import Decimal

import attrs
from hypothesis import example, given
from hypothesis import strategies as st

from mdservice.model.position import Position
from mdservice.model.symbol import without_slash
from mdservice.pnl.breaker import CLOSED
from mdservice.pnl.limits import Limits, Order
from mdservice.pnl.rules import parse_rule
from tests.examples import examples

from .limits_reference import LimitsReference, plain_state
from .reference import S_NS
from .test_engine_properties import Clock, Event, Market, Set, Told, Update, events, positions

RULES = [
    parse_rule(text)
    for text in (
        *("A pnl < -500", "* pnl > 900", "A pct < -2.5", "B pct > 0", "* price > 150"),
        *("C price < 100", "* qty > 10", "B qty < -3", "* value > 1500", "D value < 20"),
        *("A stale", "* stale", "total pnl < -1000", "total pct > 3", "total value > 2000"),
        *("total exposure > 2500", "A day_pnl < 0"),
    )
]
rules = st.one_of(st.just(RULES), st.lists(st.sampled_from(RULES), max_size=4, unique=True))
orders = st.builds(
    Order,
    symbol=st.sampled_from(["A", "B", "C", "D"]),
    side=st.sampled_from(["buy", "sell"]),
    qty=st.sampled_from(["1", "2.5", "10", "40"]).map(Decimal),
    price=st.sampled_from([None, None, Decimal(100), Decimal("187.5")]),
)


_CRYPTO = Position("D/USD", Decimal(20), Decimal(10), asset_class="crypto")


@example(
    [parse_rule("* qty > 10")], [_CRYPTO], [Set([attrs.evolve(_CRYPTO, symbol="DUSD")])]
)  # the same position, written in another way since it has crossed
@examples(300)
@given(rules, positions, st.lists(events, max_size=20))
def test_states_and_crossings_agree_with_the_contract(
    chosen: list[object], first: list[Position], coming: list[Event]
) -> None:
    told, limits = Told(engines=1), Limits(chosen)  # type: ignore[arg-type]
    (engine,) = told.engines
    for event in [Set(first), *coming]:
        told.tell(event)
        limits.check(engine, told.now_ns)
        reference = LimitsReference(list(limits.rules), told.reference, told.now_ns)
        states = list(map(plain_state, limits.states(engine, told.now_ns)))
        assert states == reference.states()
        assert limits.is_blind == reference.is_blind()
        # A crossed limit that has become blind stays crossed, and keeps the name that was told.
        crossed = {(one.rule, without_slash(one.symbol)) for one in limits.crossed()}
        assert crossed >= {(rule, without_slash(name)) for rule, name in reference.crossed()}


_UNREADABLE = Position("A", Decimal(10), None)
_BY_LAST_CLOSE = Position("A", Decimal(10), Decimal(10), lastday_price=Decimal("186.5"))
_NO_PRICE = Update("A", 0.0, 0.0, 0)
_BUY = Order("A", "buy", Decimal(1))
_CLOSED = Market(False, "2026-11-23T09:30:00-05:00", "2026-11-23T16:00:00-05:00")
_OLD = Update("A", 187.12, 187.15, 7 * S_NS)


@examples(300)
@example([RULES[3]], [_UNREADABLE], [Clock(_CLOSED), _OLD], _BUY)
@example([RULES[3]], [_BY_LAST_CLOSE], [Clock(_CLOSED), _NO_PRICE, Set([])], _BUY)
@given(rules, positions, st.lists(events, max_size=12), orders)
def test_objections_agree_with_the_contract(
    chosen: list[object], first: list[Position], coming: list[Event], order: Order
) -> None:
    told, limits = Told(engines=1), Limits(chosen)  # type: ignore[arg-type]
    (engine,) = told.engines
    for event in [Set(first), *coming]:
        told.tell(event)
        limits.check(engine, told.now_ns)
        reference = LimitsReference(list(limits.rules), told.reference, told.now_ns)
        reasons = limits.objections(order, CLOSED, engine, told.now_ns)
        if not limits.rules:
            assert reasons == []
        elif reference.is_blind() or not reference.usable(order.symbol):
            assert reasons
        else:
            assert {reason.partition(": ")[0] for reason in reasons} == reference.beyond(order)
