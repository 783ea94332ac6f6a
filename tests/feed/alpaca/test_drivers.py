"""The drivers and the history that the settings choose for each feed."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from mdservice.errors import ConfigurationError
from mdservice.feed.alpaca.drivers import make_drivers, make_history
from mdservice.feed.driver import LoginLimit
from mdservice.model.feeds import FEEDS, NEWS_FEED, STOCKS, Feed
from mdservice.model.kinds import NEWS, QUOTES
from mdservice.runtime.network import HttpClient
from mdservice.settings import Settings
from mdservice.testing import VirtualClock

KEYS: dict[str, Any] = {"api_key": "PK", "secret_key": "secret"}
HOST = "wss://stream.data.alpaca.markets"
STREAMS = {
    "stocks": f"{HOST}/v2/sip",
    "crypto": f"{HOST}/v1beta3/crypto/us-1",
    "options": f"{HOST}/v1beta1/opra",
    "news": f"{HOST}/v1beta1/news",
}
LATEST = {
    "stocks": ("/v2/stocks/quotes/latest", {"feed": "sip"}),
    "crypto": ("/v1beta3/crypto/us-1/latest/quotes", {}),
    "options": ("/v1beta1/options/quotes/latest", {"feed": "opra"}),
    "news": ("/v1beta1/news", {"include_content": "true", "sort": "desc", "limit": "1"}),
}
each_feed = pytest.mark.parametrize("feed", FEEDS, ids=lambda feed: str(feed.name))


def settings(**changes: Any) -> Settings:
    variants = {"feed": "sip", "crypto_feed": "us-1", "options_feed": "opra"}
    return Settings(**{**KEYS, **variants, **changes})


@each_feed
def test_each_feed_has_both_drivers_at_its_stream(feed: Feed) -> None:
    limit = LoginLimit()
    drivers: Any = make_drivers(settings(), feed, limit)
    assert [driver.name for driver in drivers] == ["alpaca-py", "websockets"]
    assert {driver._url for driver in drivers} == {STREAMS[feed.name]}
    assert {driver._feed for driver in drivers} == {feed}
    assert all(driver._limit is limit for driver in drivers), "they share it"
    (named,) = make_drivers(settings(driver="websockets"), feed)
    assert named.name == "websockets"


def test_the_stock_feed_is_the_default() -> None:
    drivers: Any = make_drivers(settings())
    assert {driver._feed for driver in drivers} == {STOCKS}


@each_feed
def test_a_stream_that_is_not_known_yet_names_its_setting(feed: Feed) -> None:
    variable = "MDSERVICE_FEED_URL" if feed is STOCKS else f"MDSERVICE_{feed.name.upper()}_URL"
    with pytest.raises(ConfigurationError, match=variable):
        make_drivers(Settings(), feed)


@each_feed
async def test_each_feed_has_its_history(feed: Feed, autojump_clock: Any) -> None:
    asked: list[tuple[str, dict[str, str]]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.path, dict(request.url.params)))
        return httpx.Response(200, content=b"{}")

    http = HttpClient(httpx.MockTransport(answer))
    history = make_history(settings(), feed, VirtualClock(), http)
    assert history is not None
    assert await history.latest(NEWS if feed is NEWS_FEED else QUOTES, ["A"]) == []
    path, query = LATEST[feed.name]
    assert asked == [(path, {"symbols": "A", **query})]


@each_feed
def test_a_stream_elsewhere_has_no_history_unless_it_is_named(feed: Feed) -> None:
    url = "feed_url" if feed is STOCKS else f"{feed.name}_url"
    elsewhere = {url: "ws://exchange.example/stream"}
    clock = VirtualClock()
    assert make_history(settings(**elsewhere), feed, clock, HttpClient()) is None
    named = settings(**elsewhere, rest_url="http://exchange.example/rest")
    assert make_history(named, feed, clock, HttpClient()) is not None
