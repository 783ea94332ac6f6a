"""Several channels and feeds joined as in the service, on virtual time."""

from __future__ import annotations

import random
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
import pytest

from mdservice.app.status import readiness
from mdservice.app.topology import FeedParts, Topology, build
from mdservice.errors import SubscriptionRefused
from mdservice.feed.liveness import Hours
from mdservice.model.feeds import CRYPTO, NEWS_FEED, STOCKS, Topic
from mdservice.model.kinds import DAILY_BARS, NEWS, TRADES
from mdservice.runtime.task_groups import background
from mdservice.testing import FakeDriver, FakeHistory, MemoryPriceStore, VirtualClock
from tests.records import make_record
from tests.topics import quotes, trades


async def always_open() -> Hours:
    return "open"


class Account:
    """The feeds of one account, each with its fakes."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.stocks = FakeDriver(clock=self.clock)
        self.crypto = FakeDriver(clock=self.clock, feed=CRYPTO)
        self.news = FakeDriver(clock=self.clock, feed=NEWS_FEED)
        self.history = FakeHistory()
        self.store = MemoryPriceStore(clock=self.clock, price_ttl_s=300)

    @asynccontextmanager
    async def running(self, *topics: Topic, last: Any = None) -> AsyncIterator[Topology]:
        topology = build(
            feeds=[
                FeedParts(STOCKS, [self.stocks], self.history, always_open, on_demand=False),
                FeedParts(CRYPTO, [self.crypto], self.history, always_open),
                FeedParts(NEWS_FEED, [self.news], self.history, always_open),
            ],
            mute_after_s=1e6,
            store=self.store,
            topics=topics,
            backlog=1_000,
            clock=self.clock,
            rng=random.Random(7),
            last_records=last,
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

    def published(self, channel: str) -> list[dict[str, Any]]:
        payloads = self.store.published.get(channel, ())
        return [msgspec.json.decode(payload, type=dict[str, Any]) for payload in payloads]

    def told(self, channel: str) -> Sequence[str]:
        """The states of one channel's gaps, in order."""
        told = self.published("feed.status")
        return [status["state"] for status in told if status.get("channel") == channel]


async def test_a_channel_subscribed_while_connected_is_repaired_from_its_subscription_on(
    autojump_clock: Any,
) -> None:
    account = Account()
    async with account.running(*quotes("AAPL")) as topology:
        await account.stocks.subscribed("AAPL")
        await topology.subscribe(trades("AAPL"), "api")
        account.stocks.send_quotes([{"S": "AAPL", "bp": 1, "ap": 2}])
        await anyio.sleep(5)
        account.history.add([make_record(TRADES, at_ns=account.clock.utc_ns())], TRADES)
        await anyio.sleep(20)  # the socket is dead, and nothing shows it yet
        account.stocks.drop()
        await anyio.sleep(30)
        assert [trade["id"] for trade in account.published("trade.updated")] == [1]
        assert account.told("trades") == ["gap", "gap_repaired"]


async def test_a_channel_without_any_record_is_repaired_from_its_subscription_on(
    autojump_clock: Any,
) -> None:
    account = Account()
    async with account.running(*quotes("AAPL")) as topology:
        await account.stocks.subscribed("AAPL")
        await topology.subscribe(trades("AAPL"), "api")
        await anyio.sleep(5)
        account.history.add([make_record(TRADES, at_ns=account.clock.utc_ns())], TRADES)
        await anyio.sleep(20)
        account.stocks.drop()
        await anyio.sleep(30)
        assert [trade["id"] for trade in account.published("trade.updated")] == [1]
        assert account.told("trades") == ["gap", "gap_repaired"]


async def test_a_restart_refreshes_the_values_that_no_history_repairs(autojump_clock: Any) -> None:
    account = Account()
    now_ns = account.clock.utc_ns()
    daily = [make_record(DAILY_BARS, symbol, 1, now_ns - 60 * 10**9) for symbol in ("AAPL", "MSFT")]
    newer = make_record(DAILY_BARS, "AAPL", 2, now_ns)
    wanted = [Topic("dailyBars", symbol) for symbol in ("AAPL", "MSFT")]
    account.history.add([newer], DAILY_BARS)
    async with account.running(*wanted, last={DAILY_BARS: daily}):
        await anyio.sleep(30)
        assert [bar["close"] for bar in account.published("daily_bar.updated")] == [newer.close]
        (gap,) = [s for s in account.published("feed.status") if s["state"] == "gap"]
        assert (gap["channel"], gap["refreshed"]) == ("dailyBars", True)
        assert gap["symbols"] == ["AAPL", "MSFT"]


async def test_a_feed_that_is_no_longer_wanted_says_so(autojump_clock: Any) -> None:
    account = Account()
    async with account.running() as topology:
        account.crypto.fail(1)
        await topology.subscribe(quotes("BTC/USD"), "api")
        await account.crypto.subscribed("BTC/USD")
        await topology.unsubscribe(quotes("BTC/USD"), ("api",))
        await anyio.sleep(60)
        (lost,) = [s for s in account.published("feed.status") if s["state"] == "disconnected"]
        assert lost["reason"] == "nothing is wanted of this feed any more"
        assert topology.pipelines[1].connection.snapshot().last_error is None


async def test_an_order_book_of_an_earlier_connection_takes_no_changes(autojump_clock: Any) -> None:
    account = Account()
    book = {"T": "o", "S": "BTC/USD", "b": [{"p": 1, "s": 2}], "a": [{"p": 2, "s": 1}]}

    def send(**more: Any) -> None:
        account.crypto.send_messages([book | {"t": account.clock.utc_ns()} | more])

    async with account.running() as topology:
        wanted = [Topic("orderbooks", "BTC/USD")]
        await topology.subscribe(wanted, "api")
        await anyio.sleep(1)
        send(r=True)
        await anyio.sleep(1)
        before = len(account.published("orderbook.updated"))
        assert before
        await topology.unsubscribe(wanted, ("api",))
        await anyio.sleep(60)
        await topology.subscribe(wanted, "api")
        send(a=[{"p": 3, "s": 1}])
        await anyio.sleep(1)
        assert len(account.published("orderbook.updated")) == before


@pytest.mark.parametrize("followed", [("*",), ("AAPL", "MSFT")])
async def test_news_between_two_runs_is_repaired(
    autojump_clock: Any, followed: tuple[str, ...]
) -> None:
    account = Account()
    now_ns = account.clock.utc_ns()
    last, missed = (
        make_record(NEWS, "AAPL", number, now_ns - 10**9 * (60 - number)) for number in (1, 30)
    )
    account.history.add([last, missed], NEWS)
    wanted = [Topic("news", symbol) for symbol in followed]
    async with account.running(*wanted, last={NEWS: [last]}):
        await anyio.sleep(30)
        assert [article["id"] for article in account.published("news.published")] == [30]
        assert account.told("news") == ["gap", "gap_repaired"]


async def test_under_star_a_canceled_trade_is_replaced_by_the_one_of_rest(
    autojump_clock: Any,
) -> None:
    account = Account()
    now_ns = account.clock.utc_ns()
    account.history.add([make_record(TRADES, "AAPL", 1, now_ns - 10**9)], TRADES)
    about = {"S": "AAPL", "i": 2, "x": "V", "p": 5, "s": 10, "z": "C"}
    async with account.running(*trades("*")):
        await account.stocks.subscribed()
        await anyio.sleep(1)
        for more in ({"T": "t", "c": ["@"]}, {"T": "x", "a": "C"}):
            account.stocks.send_messages([about | more | {"t": account.clock.utc_ns()}])
            await anyio.sleep(1)
        assert [trade["id"] for trade in account.published("trade.updated")] == [2, 1]
        key = account.store.get("trade:AAPL")
        assert key is not None
        assert msgspec.json.decode(key)["id"] == 1


async def test_a_refused_feed_that_is_no_longer_wanted_leaves_the_service_ready(
    autojump_clock: Any,
) -> None:
    account = Account()
    account.crypto.refuse_next(409, times=1_000)
    async with account.running(*quotes("AAPL")) as topology:
        await topology.subscribe(quotes("BTC/USD"), "api")
        await anyio.sleep(1)
        assert not readiness(topology, draining=False).ready
        await topology.unsubscribe(quotes("BTC/USD"), ("api",))
        assert readiness(topology, draining=False).ready


async def test_a_feed_whose_history_hangs_does_not_delay_another(autojump_clock: Any) -> None:
    account = Account()
    async with account.running(*quotes("AAPL"), *trades("AAPL")) as topology:
        await topology.subscribe([*quotes("BTC/USD"), *trades("BTC/USD")], "api")
        await account.crypto.subscribed("BTC/USD")
        for driver, symbol in ((account.stocks, "AAPL"), (account.crypto, "BTC/USD")):
            driver.send_quotes([{"S": symbol, "bp": 1, "ap": 2}])
        await anyio.sleep(1)
        account.history.delay_s = 1e6
        account.crypto.drop()
        await anyio.sleep(0.1)
        at = account.clock.utc_ns()
        about = {"S": "AAPL", "i": 2, "x": "V", "p": 5, "s": 10, "z": "C", "t": at}
        account.stocks.send_messages([about | {"T": "t", "c": ["@"]}, about | {"T": "x", "a": "C"}])
        account.stocks.send_quotes([{"S": "AAPL", "bp": 3, "ap": 4}])
        await anyio.sleep(0.5)
        assert [p["bid"] for p in account.published("price.updated") if p["symbol"] == "AAPL"] == [
            1,
            3,
        ]
        assert len(account.published("trade.updated")) == 1
        assert len(account.published("trade.canceled")) == 1
        await anyio.sleep(30)
        assert account.told("quotes") == ["gap"]


async def test_changes_of_held_trades_come_after_them(autojump_clock: Any) -> None:
    account = Account()
    async with account.running(*trades("AAPL")):
        await account.stocks.subscribed()

        def send(number: int, **more: Any) -> None:
            about = {"S": "AAPL", "i": number, "x": "V", "p": number, "s": 10, "z": "C"}
            account.stocks.send_messages([about | {"t": account.clock.utc_ns()} | more])

        await anyio.sleep(1)
        send(1, T="t", c=["@"])
        await anyio.sleep(1)
        account.history.delay_s = 1
        account.stocks.drop()
        await anyio.sleep(0.1)
        missed = make_record(TRADES, "AAPL", 2, account.clock.utc_ns())
        account.history.add([missed], TRADES)
        while len(account.stocks.links) < 2 or not account.stocks.connections:
            await anyio.sleep(0.1)
        await anyio.sleep(0.1)
        send(3, T="t", c=["@"])
        send(3, T="x", a="C")
        send(2, T="x", a="C")
        account.history.add([make_record(TRADES, "AAPL", 3, account.clock.utc_ns())], TRADES)
        await anyio.sleep(30)
        assert [trade["id"] for trade in account.published("trade.updated")] == [1, 2, 3]
        assert [cancel["id"] for cancel in account.published("trade.canceled")] == [3, 2]
        key = account.store.get("trade:AAPL")
        assert key is not None
        assert msgspec.json.decode(key)["id"] == 1
        assert account.told("trades") == ["gap", "gap_repaired"]


async def test_feeds_that_do_not_answer_are_waited_for_at_once(autojump_clock: Any) -> None:
    account = Account()
    for driver in (account.crypto, account.news):
        driver.stall(times=1_000)
    topics = (*quotes("BTC/USD"), Topic("news", "*"))
    async with account.running(*quotes("AAPL")) as topology:
        began_s = anyio.current_time()
        result = await topology.subscribe((*quotes("AAPL"), *topics), "api")
        assert (result.status, result.symbols) == ("pending", ("AAPL", "BTC/USD", "*"))
        assert anyio.current_time() - began_s <= 4.5
        began_s = anyio.current_time()
        assert (await topology.unsubscribe(topics, ("api",))).status == "pending"
        await topology.follow((*quotes("AAPL"), *topics), "positions")
        assert anyio.current_time() - began_s <= 9


@pytest.mark.parametrize("refusing", ["stocks", "crypto"])
async def test_a_refusal_of_one_feed_undoes_the_part_of_every_other(
    autojump_clock: Any, refusing: str
) -> None:
    account = Account()
    async with account.running(*quotes("AAPL", "ETH/USD")) as topology:
        for driver, symbol in ((account.stocks, "AAPL"), (account.crypto, "ETH/USD")):
            await driver.subscribed(symbol)
        await anyio.sleep(1)
        before = [topology.pipelines[0].connection.sources()]
        before.append(topology.pipelines[1].connection.sources())
        getattr(account, refusing).refuse_next(405, when="subscribe")
        with pytest.raises(SubscriptionRefused):
            await topology.subscribe([*quotes("MSFT"), *quotes("BTC/USD")], "api")
        assert [each.connection.sources() for each in topology.pipelines[:2]] == before
        acknowledged = [each.connection.acknowledged() for each in topology.pipelines[:2]]
        assert acknowledged == [list(quotes("AAPL")), list(quotes("ETH/USD"))]


async def test_each_topic_of_a_large_request_costs_the_same(autojump_clock: Any) -> None:
    """Each answer of the feed names all topics so far, and only the new ones may cost calls."""
    account = Account()
    calls = 0

    def count(_frame: Any, event: str, _arg: Any) -> None:
        nonlocal calls
        calls += event == "call"

    async def calls_for(topics: Sequence[Topic]) -> int:
        nonlocal calls
        calls = 0
        sys.setprofile(count)
        try:
            await topology.subscribe(topics, "api")
        finally:
            sys.setprofile(None)
        return calls

    async with account.running(*quotes("AAPL")) as topology:
        await account.stocks.subscribed("AAPL")
        first = await calls_for(quotes(*(f"A{number:04}" for number in range(4_000))))
        second = await calls_for(quotes(*(f"B{number:04}" for number in range(4_000))))
        assert second < 1.3 * first
