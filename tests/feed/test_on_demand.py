"""A connection that opens when something of it is wanted, and closes when nothing is."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from mdservice.app.topology import FeedParts, build
from mdservice.errors import SubscriptionRefused
from mdservice.feed.connection import IDLE
from mdservice.feed.liveness import Hours
from mdservice.feed.requests import Subscribe, Unsubscribe
from mdservice.model.feeds import CRYPTO, STOCKS
from mdservice.runtime.task_groups import background
from mdservice.simulator.session import SessionRules
from mdservice.testing import FakeDriver, FakeHistory, MemoryPriceStore, VirtualClock
from tests.topics import quotes


async def always_open() -> Hours:
    return "open"


class Account:
    """The stock feed and the crypto feed of one account, each with its fake."""

    def __init__(self, crypto: FakeDriver | None = None) -> None:
        self.clock = VirtualClock()
        self.stocks = FakeDriver(clock=self.clock)
        self.crypto = crypto or FakeDriver(clock=self.clock, feed=CRYPTO)
        self.store = MemoryPriceStore(clock=self.clock, price_ttl_s=300)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Any]:
        topology = build(
            feeds=[
                FeedParts(STOCKS, [self.stocks], FakeHistory(), always_open, on_demand=False),
                FeedParts(CRYPTO, [self.crypto], FakeHistory(), always_open),
            ],
            mute_after_s=1e6,
            store=self.store,
            topics=quotes("AAPL"),
            backlog=1_000,
            clock=self.clock,
            rng=random.Random(7),
        )
        with anyio.fail_after(3_600):
            async with background(topology.supervisor.run):
                try:
                    yield topology
                finally:
                    topology.supervisor.drain()
                    topology.stop_feeds()
                    await topology.supervisor.drained()
        topology.close()


def phase(topology: Any) -> str:
    return str(topology.pipelines[1].connection.snapshot().phase)


async def test_it_stays_idle_until_something_is_wanted(autojump_clock: Any) -> None:
    account = Account()
    async with account.running() as topology:
        await account.stocks.subscribed("AAPL")
        await anyio.sleep(60)
        assert account.crypto.attempts == []
        assert phase(topology) == IDLE
        result = await topology.subscribe(quotes("BTC/USD"), "api")
        assert result.status == "subscribed", "the request waits until the connection is open"
        assert account.crypto.connections[0].subscriptions["quotes"] == ("BTC/USD",)
        assert account.stocks.connections[0].subscriptions["quotes"] == ("AAPL",)


async def test_it_closes_when_nothing_is_wanted_for_half_a_minute(autojump_clock: Any) -> None:
    account = Account()
    async with account.running() as topology:
        await topology.subscribe(quotes("BTC/USD"), "api")
        await topology.unsubscribe(quotes("BTC/USD"), ("api",))
        await anyio.sleep(29)
        assert len(account.crypto.connections) == 1
        await topology.subscribe(quotes("ETH/USD"), "api")
        await anyio.sleep(29)
        assert len(account.crypto.links) == 1, "it was wanted again in time"
        await topology.unsubscribe(quotes("ETH/USD"), ("api",))
        await anyio.sleep(31)
        assert account.crypto.connections == ()
        assert phase(topology) == IDLE
        await topology.subscribe(quotes("ETH/USD"), "api")
        assert len(account.crypto.links) == 2


async def test_a_feed_that_cannot_be_reached_leaves_the_request_pending(
    autojump_clock: Any,
) -> None:
    account = Account()
    account.crypto.fail(3)
    async with account.running() as topology:
        began_s = anyio.current_time()
        result = await topology.subscribe(quotes("BTC/USD"), "api")
        assert (result.status, anyio.current_time() - began_s <= 4) == ("pending", True)
        await account.crypto.subscribed("BTC/USD")


async def test_a_refusal_for_good_does_not_end_the_service(autojump_clock: Any) -> None:
    account = Account()
    account.crypto.refuse_next(409, times=2)
    async with account.running() as topology:
        result = await topology.subscribe(quotes("BTC/USD"), "api")
        assert result.status == "pending"
        await account.crypto.subscribed("BTC/USD")
        assert account.stocks.connections


async def test_a_request_over_two_feeds_is_all_or_nothing(autojump_clock: Any) -> None:
    crypto = FakeDriver(rules=SessionRules(symbol_limit=1), feed=CRYPTO)
    account = Account(crypto)
    async with account.running() as topology:
        await topology.subscribe(quotes("BTC/USD"), "api")
        with pytest.raises(SubscriptionRefused) as refused:
            await topology.subscribe(quotes("MSFT", "ETH/USD"), "api")
        assert refused.value.code == 405
        assert account.stocks.connections[0].subscriptions["quotes"] == ("AAPL",)
        assert crypto.connections[0].subscriptions["quotes"] == ("BTC/USD",)
        assert topology.wanted_topics(["MSFT", "ETH/USD"]) == ()


async def test_the_requests_of_each_feed_are_its_own(autojump_clock: Any) -> None:
    account = Account()
    async with account.running() as topology:
        stocks, crypto = topology.pipelines
        await crypto.request(Subscribe(quotes("BTC/USD"), "api"))
        await stocks.request(Unsubscribe(quotes("AAPL"), ("settings",)))
        assert stocks.connection.sources() == {}
        assert crypto.connection.sources() == {"BTC/USD": ["api"]}
