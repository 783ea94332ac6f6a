"""The news: seeded articles, their updates, and REST's pages of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from mdservice.model.timestamps import parse_rfc3339
from mdservice.simulator import Simulator, SimulatorConfig, open_simulator
from mdservice.simulator.news import ARTICLES, NewsSource, SimArticle
from mdservice.simulator.transport import SimulatorTransport
from mdservice.testing import VirtualClock

START_NS = parse_rfc3339("2026-11-20T15:51:44.5Z")
SECOND_NS = 1_000_000_000
PATH = "/v1beta1/news"


def written(seed: int, *symbols: str, seconds: int = 1_000) -> list[SimArticle]:
    source = NewsSource(SimulatorConfig(seed=seed), 5.0)
    source.follow({"news": frozenset(symbols)})
    articles: list[SimArticle] = []
    for second in range(seconds):
        for _, made in source.make(second, START_NS + second * SECOND_NS):
            articles += made
    return articles


@given(seed=st.integers(0, 1 << 40))
def test_ids_rise_and_updates_have_the_same_id_and_a_newer_time(seed: int) -> None:
    articles = written(seed, "*")
    times = [article.ts_event_ns for article in articles]
    assert times == sorted(set(times))
    first: dict[int, SimArticle] = {}
    updates = 0
    for article in articles:
        original = first.setdefault(article.id, article)
        updates += original is not article
        assert article.created_ns == original.ts_event_ns <= article.ts_event_ns
        assert article.symbols == original.symbols
        assert (article.headline == original.headline) == (article is original)
    assert list(first) == sorted(first)
    assert 0 < updates < len(first)
    assert 150 < len(first) < 250


def test_the_same_seed_gives_the_same_news() -> None:
    assert written(5, "*") == written(5, "*")
    assert written(5, "*") != written(6, "*")


def test_articles_are_about_followed_symbols() -> None:
    named = written(1, "AAPL", "BTC/USD")
    assert {symbol for article in named for symbol in article.symbols} == {"AAPL", "BTC/USD"}
    every = written(1, "*", seconds=3_000)
    assert {"AAPL", "BTCUSD"} <= {symbol for article in every for symbol in article.symbols}
    assert any(not article.symbols for article in every), "some are about no symbol"
    assert any(len(article.symbols) == 2 for article in every)
    assert any(len(article.content) > 50_000 for article in every), "some are very long"
    assert any(not article.content for article in every)


def article(number: int, *symbols: str, at: int, **fields: Any) -> SimArticle:
    """An article of so many seconds after the start."""
    ts_ns = START_NS + at * SECOND_NS
    return SimArticle(number, f"Headline {number}", symbols, ts_event_ns=ts_ns, **fields)


@asynccontextmanager
async def opened(**settings: Any) -> AsyncIterator[tuple[Simulator, httpx.AsyncClient]]:
    config = SimulatorConfig(rate=0, **settings)
    async with (
        open_simulator(config, port=None) as simulator,
        httpx.AsyncClient(
            transport=SimulatorTransport(simulator), base_url=simulator.rest_url
        ) as client,
    ):
        yield simulator, client


async def ids(client: httpx.AsyncClient, **params: Any) -> list[int]:
    """The ids of all pages."""
    found: list[int] = []
    while True:
        answer = await client.get(PATH, params={"start": "2026-11-20", **params})
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found += [one["id"] for one in page["news"]]
        if page["next_page_token"] is None:
            return found
        assert len(page["news"]) == int(params.get("limit", 10))
        params["page_token"] = page["next_page_token"]


async def test_pages_have_the_last_version_of_each_article_newest_first(
    autojump_clock: MockClock,
) -> None:
    async with opened() as (simulator, client):
        simulator.send_records(
            ARTICLES,
            [
                article(1, "AAPL", at=1),
                article(2, "MSFT", "AAPL", at=2, content="<p>Long</p>"),
                article(3, at=3),
                article(1, "AAPL", at=4, summary="New", created_ns=START_NS + SECOND_NS),
            ],
        )
        assert await ids(client) == [1, 3, 2]
        assert await ids(client, sort="asc") == [2, 3, 1]
        assert await ids(client, symbols="AAPL") == [1, 2]
        assert await ids(client, symbols="MSFT,NVDA") == [2]
        assert await ids(client, end="2026-11-20T15:51:47.5Z") == [3, 2, 1]
        assert await ids(client, start="2026-11-20T15:51:47.5Z") == [1, 3]
        assert await ids(client, exclude_contentless="True") == [2]
        page = (await client.get(PATH, params={"start": "2026-11-20", "limit": "1"})).json()
        assert page["news"] == [
            {
                "id": 1,
                "headline": "Headline 1",
                "summary": "New",
                "author": "Newsdesk",
                "created_at": "2026-11-20T15:51:45.5Z",
                "updated_at": "2026-11-20T15:51:48.5Z",
                "content": "",
                "url": "",
                "symbols": ["AAPL"],
                "source": "benzinga",
                "images": [],
            }
        ]
        params = {"start": "2026-11-20", "symbols": "MSFT", "include_content": "true"}
        (found,) = (await client.get(PATH, params=params)).json()["news"]
        assert found["content"] == "<p>Long</p>"


async def test_every_page_is_read_and_fifty_are_the_most(autojump_clock: MockClock) -> None:
    async with opened() as (simulator, client):
        simulator.send_records(ARTICLES, [article(n, "AAPL", at=n // 3) for n in range(120)])
        for limit in ("50", "7", ""):
            params = {"limit": limit} if limit else {}
            assert sorted(await ids(client, **params)) == list(range(120))
        assert await ids(client, sort="asc", limit="50") == list(range(120))
        for params in (
            {"limit": "51"},
            {"sort": "up"},
            {"page_token": "x"},
            {"start": "yesterday"},
            {"symbols": "aapl"},
        ):
            answer = await client.get(PATH, params=params)
            assert (answer.status_code, answer.json()["code"]) == (400, 40010001)


async def test_what_is_too_young_is_not_in_rest_yet(autojump_clock: MockClock) -> None:
    async with opened(rest_lag_s=60) as (simulator, client):
        simulator.send_records(ARTICLES, [article(1, "AAPL", at=0), SimArticle(2, "Now")])
        assert await ids(client, start="2026-01-01") == [1]


@pytest.mark.parametrize("use_msgpack", [False, True])
async def test_the_stream_has_articles_of_the_symbols_or_all(
    dial: Any, use_msgpack: bool, autojump_clock: MockClock
) -> None:
    config = SimulatorConfig(rate=0, connection_limit=None)
    async with open_simulator(config, port=None, clock=VirtualClock()) as simulator:
        clients = []
        for symbols in (["*"], ["MSFT", "F"]):
            client = await dial(simulator, msgpack=use_msgpack, path=PATH)
            await client.login()
            await client.send(action="subscribe", news=symbols)
            assert await client.receive() == [{"T": "subscription", "news": symbols}]
            clients.append(client)
        simulator.send_records(
            ARTICLES,
            [article(1, "AAPL", at=1), article(2, "MSFT", "AAPL", at=2), article(3, at=3)],
        )
        every, some = clients
        assert [one["id"] for one in await every.receive()] == [1, 2, 3]
        (found,) = await some.receive()
        assert found["T"] == "n"
        assert found["symbols"] == ["MSFT", "AAPL"]
        if use_msgpack:
            assert found["updated_at"].timestamp() == START_NS / 1e9 + 2
        else:
            assert found["created_at"] == found["updated_at"] == "2026-11-20T15:51:46.5Z"
        await some.send(action="subscribe", quotes=["AAPL"])
        assert (await some.receive())[0]["code"] == 410
