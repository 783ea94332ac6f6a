"""What a driver returns of one read, in the terms of every vendor."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest

from mdservice.feed.driver import Acknowledged, Received
from mdservice.feed.subscriptions import Followed
from mdservice.model.kinds import QUOTES
from mdservice.model.quote import Quote
from mdservice.model.timestamps import LATEST_NS
from tests.topics import quotes

NOW_NS = 1_795_189_904_208_912_345
QUOTE = Quote("AAPL", 187.12, 187.15, 2, 3, NOW_NS, NOW_NS)


def follow(*symbols: str) -> Followed:
    followed = Followed()
    followed.ask(quotes(*symbols))
    return followed


def test_a_quote_is_taken_where_its_symbol_is_followed() -> None:
    received, other = Received(), attrs.evolve(QUOTE, symbol="MSFT")
    followed = follow("AAPL")
    for quote in (QUOTE, other, QUOTE):
        received.add_quote(quote, followed)
    assert received == Received({QUOTES: [QUOTE, QUOTE]}, unfollowed=1)


@pytest.mark.parametrize(
    "changes",
    [
        {"symbol": "../x"},
        {"symbol": "*"},
        {"bid": -0.01},
        {"ask": 1e15},
        {"bid": math.nan},
        {"ask": math.inf},
        {"bid_size": -1},
        {"ask_size": math.nan},
        {"ts_event_ns": LATEST_NS + 1},
    ],
    ids=str,
)
def test_a_quote_that_is_not_valid_is_counted(changes: dict[str, Any]) -> None:
    received = Received()
    received.add_quote(attrs.evolve(QUOTE, **changes), follow("AAPL", "*"))
    assert received == Received(errors=1)


def test_quotes_behind_an_acknowledgement_are_of_that_state() -> None:
    received, followed = Received(), follow("AAPL", "MSFT")
    received.acknowledge(quotes("AAPL", "MSFT"), followed)
    followed.answered()
    received.add_quote(QUOTE, followed)
    received.acknowledge(quotes("MSFT"), followed)
    received.add_quote(QUOTE, followed)
    assert received.controls == [
        Acknowledged(frozenset(quotes("AAPL", "MSFT"))),
        Acknowledged(frozenset(quotes("MSFT"))),
    ]
    assert (received.of(QUOTES), received.unfollowed) == ([QUOTE], 1)


def test_a_symbol_that_is_none_is_left_out_of_an_acknowledgement() -> None:
    received = Received()
    received.acknowledge(quotes("AAPL", "../x", "*"), follow())
    assert received == Received(controls=[Acknowledged(frozenset(quotes("AAPL", "*")))], errors=1)
