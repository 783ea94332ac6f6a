"""The requests of Alpaca's Go SDK, which name every channel of every feed."""

from __future__ import annotations

from typing import Any

import pytest

from mdservice.model.feeds import CRYPTO, NEWS_FEED, OPTIONS, STOCKS, Feed, Topic
from mdservice.relay.session import Change, Credentials, RelayError, Session

EMPTY = (
    "trades", "quotes", "bars", "updatedBars", "dailyBars", "statuses", "imbalances", "lulds",
    "orderbooks", "news", "pricing",
)  # fmt: skip


def _session(feed: Feed) -> Session:
    session = Session(feed, served=True, encoding="msgpack", keys={})
    session.log_in(Credentials("k", "s"))
    return session


@pytest.mark.parametrize("nothing", [None, []])
@pytest.mark.parametrize(
    ("feed", "channel", "symbol"),
    [
        (STOCKS, "quotes", "AAPL"),
        (CRYPTO, "orderbooks", "BTC/USD"),
        (OPTIONS, "trades", "AAPL261218C00200000"),
        (NEWS_FEED, "news", "*"),
    ],
)
def test_channels_without_symbols_may_be_of_other_feeds(
    feed: Feed, channel: str, symbol: str, nothing: Any
) -> None:
    request = {"action": "subscribe", **dict.fromkeys(EMPTY, nothing), channel: [symbol]}
    assert _session(feed).receive(request) == Change(True, (Topic(channel, symbol),))


@pytest.mark.parametrize("nothing", [None, []])
def test_a_request_without_any_symbol_changes_nothing(nothing: Any) -> None:
    request = {"action": "subscribe", **dict.fromkeys(EMPTY, nothing)}
    assert _session(STOCKS).receive(request) == Change(True, ())


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"orderbooks": ["AAPL"]}, 410),
        ({"pricing": ["AAPL"]}, 400),
        ({"quotes": ""}, 400),
        ({"quotes": {}}, 400),
        ({"quotes": 0}, 400),
        ({}, 400),
    ],
)
def test_symbols_of_a_channel_that_the_feed_lacks_are_refused(
    request_: dict[str, Any], code: int
) -> None:
    with pytest.raises(RelayError) as caught:
        _session(STOCKS).receive({"action": "subscribe", **request_})
    assert caught.value.code == code
