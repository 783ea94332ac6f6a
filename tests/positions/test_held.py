"""Which symbols are followed for positions, and in which order."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from mdservice.model.position import Position
from mdservice.positions.tracker import GRACE_S, HeldSymbols


def held(symbol: str, qty: str = "1", price: str = "1", **more: object) -> Position:
    return Position(symbol, Decimal(qty), Decimal(price), **more)  # type: ignore[arg-type]


def test_the_largest_come_first_long_or_short() -> None:
    positions = [held("SMALL", "1", "10"), held("LONG", "2", "30"), held("SHORT", "-5", "20")]
    assert HeldSymbols().update(positions, 0) == ("SHORT", "LONG", "SMALL")


def test_lots_of_one_symbol_count_together() -> None:
    positions = [held("A", "3", "10"), held("B", "2", "10"), held("B", "-2", "10")]
    assert HeldSymbols().update(positions, 0) == ("B", "A"), "40 is at stake in B, 30 in A"


def test_a_multiplier_counts() -> None:
    positions = [held("A", "3", "10"), held("B", "1", "10", multiplier=Decimal(100))]
    assert HeldSymbols().update(positions, 0) == ("B", "A")


def test_what_is_empty_or_has_a_problem_is_not_followed() -> None:
    positions = [
        held("EMPTY", "0"),
        held("A/B", problem="not a stock"),
        Position("BAD", None, None, problem="qty is missing"),
    ]
    assert HeldSymbols().update(positions, 0) == ()


def test_a_closed_one_is_followed_for_a_while_behind_the_others() -> None:
    symbols = HeldSymbols()
    both = [held("A", "9"), held("B")]
    assert symbols.update(both, 0) == ("A", "B")
    assert symbols.update(both[1:], 5) == ("B", "A")
    assert symbols.update(both[1:], 5 + GRACE_S - 0.01) == ("B", "A")
    assert symbols.update(both[1:], 5 + GRACE_S) == ("B",)
    assert symbols.update([], 100) == ("B",)
    assert symbols.update([], 100 + GRACE_S) == ()


def test_one_that_is_opened_again_begins_anew() -> None:
    symbols = HeldSymbols()
    symbols.update([held("A")], 0)
    symbols.update([], 1)
    assert symbols.update([held("A")], 2) == ("A",)
    assert symbols.update([], 50) == ("A",)
    assert symbols.update([], 50 + GRACE_S - 1) == ("A",)


looks = st.lists(
    st.tuples(st.sets(st.sampled_from("ABCD")), st.floats(0.1, 40)), min_size=1, max_size=12
)


@given(looks)
def test_what_is_held_is_followed_and_nothing_else_for_longer_than_the_grace(
    looks: list[tuple[set[str], float]],
) -> None:
    symbols = HeldSymbols()
    now_s = 0.0
    seen_missing: dict[str, float] = {}
    ever: set[str] = set()
    for held_now, wait_s in looks:
        now_s += wait_s
        followed = symbols.update([held(symbol) for symbol in sorted(held_now)], now_s)
        assert len(followed) == len(set(followed))
        ever |= held_now
        for symbol in ever:
            if symbol in held_now:
                seen_missing.pop(symbol, None)
                assert symbol in followed
            else:
                since_s = seen_missing.setdefault(symbol, now_s)
                assert (symbol in followed) == (now_s < since_s + GRACE_S)
