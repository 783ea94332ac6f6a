"""How alert rules are written, and what is said of those that are none."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.pnl.rules import AlertRule, parse_rule


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("AAPL pnl < -500", AlertRule("AAPL pnl < -500", "AAPL", "pnl", "below", Decimal(-500))),
        ("total pnl > 1000", AlertRule("total pnl > 1000", "total", "pnl", "above", Decimal(1000))),
        (
            "TOTAL PCT<-2.5",
            AlertRule("total pct < -2.5", "total", "pct", "below", Decimal("-2.5")),
        ),
        (
            "  tsla  price >300 Hysteresis 5 ",
            AlertRule(
                "TSLA price > 300 hysteresis 5", "TSLA", "price", "above", Decimal(300), Decimal(5)
            ),
        ),
        ("* pct < -10", AlertRule("* pct < -10", "*", "pct", "below", Decimal(-10))),
        ("BRK.B price < +.5", AlertRule("BRK.B price < 0.5", "BRK.B", "price", "below", Decimal("0.5"))),
        ("A pnl > -0.0", AlertRule("A pnl > 0", "A", "pnl", "above", Decimal(0))),
        ("AAPL stale", AlertRule("AAPL stale", "AAPL", "stale", "stale")),
        ("* Stale TRIP", AlertRule("* stale trip", "*", "stale", "stale", trip=True)),
        ("A qty > 5", AlertRule("A qty > 5", "A", "qty", "above", Decimal(5))),
        (
            "total exposure>5 hysteresis 1 Trip",
            AlertRule("total exposure > 5 hysteresis 1 trip", "total", "exposure", "above", Decimal(5), Decimal(1), True),
        ),
        ("total value > 5", AlertRule("total value > 5", "total", "value", "above", Decimal(5))),
        ("total day_pnl < 5", AlertRule("total day_pnl < 5", "total", "day_pnl", "below", Decimal(5))),
        ("trip pnl < 5", AlertRule("TRIP pnl < 5", "TRIP", "pnl", "below", Decimal(5))),
    ],
)  # fmt: skip
def test_rules_that_are_understood(text: str, rule: AlertRule) -> None:
    parsed = parse_rule(text)
    assert parsed == rule
    assert parse_rule(parsed.text) == parsed


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "it is empty"),
        ("AAPL", "one of pnl, pct, price, stale, qty"),
        ("AA$PL pnl < 1", "'AA$PL' is not a symbol"),
        ("AAPL volume > 1", "'volume' is not one of pnl, pct, price, stale"),
        ("total qty > 1", "the total has no qty"),
        ("* exposure > 1", "only the total has an exposure"),
        ("AAPL trip", "'trip' is not one of pnl"),
        ("AAPL pnl trip", "< or > is expected after pnl"),
        ("AAPL pnl < trip", "a number is expected after <"),
        ("AAPL pnl < 1 trip trip", "only hysteresis or trip may follow the level, not 'trip'"),
        ("total price > 1", "the total has no price"),
        ("total stale", "the total has no stale"),
        ("AAPL pnl", "< or > is expected after pnl"),
        ("AAPL pnl -500", "< or > is expected after pnl, not '-500'"),
        ("AAPL pnl <= -500", "< or > is expected after pnl, not '<='"),
        ("AAPL pnl <", "a number is expected after <"),
        ("AAPL pnl < $500", "'$500' is not a plain number"),
        ("AAPL pct < -5%", "'-5%' is not a plain number"),
        ("AAPL pnl < 1e3", "'1e3' is not a plain number"),
        ("AAPL pnl < nan", "'nan' is not a plain number"),
        ("AAPL pnl < 1_000", "'1_000' is not a plain number"),
        ("AAPL pnl < 1 twice", "only hysteresis or trip may follow the level, not 'twice'"),
        ("AAPL pnl < 1 hysteresis", "one number is expected after hysteresis"),
        ("AAPL pnl < 1 hysteresis 2 3", "one number is expected after hysteresis"),
        ("AAPL pnl < 1 hysteresis -2", "the hysteresis is below 0"),
        ("AAPL stale > 5", "nothing but trip comes after stale, not '>'"),
    ],
)
def test_what_is_wrong_is_said_with_an_example(text: str, wrong: str) -> None:
    with pytest.raises(ValueError) as raised:
        parse_rule(text)
    message = str(raised.value)
    assert message.startswith(f"alert rule {text!r}: {wrong}")
    assert "for instance: AAPL pnl < -500" in message


def test_the_examples_of_the_message_are_rules() -> None:
    with pytest.raises(ValueError) as raised:
        parse_rule("")
    examples = str(raised.value).partition("for instance: ")[2].split(", ")
    assert len([parse_rule(example) for example in examples]) == 4


def test_a_long_text_is_cut_short() -> None:
    with pytest.raises(ValueError) as raised:
        parse_rule("AAPL pnl < " + "x" * 10_000)
    assert len(str(raised.value)) < 400


@given(st.text(max_size=30) | st.text("AB *<>=-.015 plnctosahyer", max_size=40))
def test_any_text_is_a_rule_or_refused(text: str) -> None:
    try:
        rule = parse_rule(text)
    except ValueError:
        return
    assert parse_rule(rule.text) == rule
