"""Which feed has a symbol, and which channels there are."""

from __future__ import annotations

import pytest

from mdservice.errors import InvalidChannel
from mdservice.model.feeds import (
    CHANNELS,
    CRYPTO,
    FEEDS,
    OPTIONS,
    STOCKS,
    Feed,
    Topic,
    feed_of,
    parse_channels,
    topics_of,
)
from mdservice.model.kinds import KINDS

OPTION = "AAPL261218C00200000"


@pytest.mark.parametrize(
    ("symbol", "feed"),
    [
        ("AAPL", STOCKS),
        ("BRK.B", STOCKS),
        ("*", STOCKS),
        ("BTC/USD", CRYPTO),
        (OPTION, OPTIONS),
        ("F261218P00012500", OPTIONS),
        ("AAPL261218X00200000", STOCKS),
        ("AAPL261218C0020000", STOCKS),
    ],
)
def test_the_form_of_a_symbol_decides_its_feed(symbol: str, feed: Feed) -> None:
    assert feed_of(symbol) is feed


def test_channels_have_alpacas_names() -> None:
    assert (
        *("quotes", "trades", "bars", "updatedBars", "dailyBars", "statuses", "lulds"),
        *("imbalances", "orderbooks"),
    ) == CHANNELS


def test_every_kind_is_of_a_feed() -> None:
    assert {kind for feed in FEEDS for kind in feed.kinds} == set(KINDS)


def test_a_channel_that_a_feed_lacks_is_skipped() -> None:
    found = topics_of(["AAPL", "BTC/USD", OPTION], ["trades", "bars", "orderbooks", "statuses"])
    assert found == (
        Topic("trades", "AAPL"),
        Topic("bars", "AAPL"),
        Topic("statuses", "AAPL"),
        Topic("trades", "BTC/USD"),
        Topic("bars", "BTC/USD"),
        Topic("orderbooks", "BTC/USD"),
        Topic("trades", OPTION),
    )


def test_channels_are_taken_once_and_in_order() -> None:
    assert parse_channels([" trades", "quotes", "trades"]) == ("trades", "quotes")
    assert parse_channels([]) == ()


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("tick", "known are quotes, trades"),
        ("Quotes", "known are quotes, trades"),
        ("x" * 100, "…"),
        ("corrections", "comes with trades"),
        ("cancelErrors", "comes with trades"),
        ("news", "MDSERVICE_NEWS"),
    ],
)
def test_a_channel_that_cannot_be_subscribed_is_refused(text: str, hint: str) -> None:
    with pytest.raises(InvalidChannel) as refused:
        parse_channels(["quotes", text])
    assert hint in str(refused.value)
    assert len(str(refused.value)) < 200
