"""The whole service on virtual time: channels of symbols, by the settings and at run time."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import attrs
import msgspec
import pytest

from mdservice.app.service import Service, open_service
from mdservice.app.topology import FeedParts
from mdservice.errors import ConfigurationError, InvalidChannel
from mdservice.feed.liveness import Hours
from mdservice.model.feeds import CRYPTO, NEWS_FEED, STOCKS
from mdservice.model.kinds import STATUSES, TRADES
from mdservice.observability.metrics import StatusCollector, metrics_registry, render_metrics
from mdservice.settings import Settings
from mdservice.testing import FakeDriver, FakeHistory, MemoryPriceStore, VirtualClock


@attrs.define
class Bench:
    """A service, its fake feed and its store in memory."""

    clock: VirtualClock = attrs.field(factory=VirtualClock)
    history: FakeHistory = attrs.field(factory=FakeHistory)
    feed: FakeDriver = attrs.field(factory=FakeDriver)
    store: MemoryPriceStore = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.store = MemoryPriceStore(clock=self.clock, price_ttl_s=300)

    @asynccontextmanager
    async def service(self, **settings: Any) -> AsyncIterator[Service]:
        self.feed = FakeDriver(clock=self.clock)
        async with open_service(
            Settings(mute_after=80_000.0, **settings),
            drivers=[self.feed],
            history=self.history,
            store=self.store,
            clock=self.clock,
            rng=random.Random(7),
        ) as service:
            yield service

    def send(self, *messages: dict[str, Any]) -> None:
        from mdservice.model.timestamps import format_ns

        stamped = [{"t": format_ns(self.clock.utc_ns()), **message} for message in messages]
        self.feed.send_messages(stamped)

    def published(self, channel: str) -> list[dict[str, Any]]:
        return [msgspec.json.decode(payload) for payload in self.store.published.get(channel, [])]


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(30):
        while not condition():
            await anyio.sleep(0.01)


def trade(number: int, symbol: str = "AAPL", price: float = 10.0) -> dict[str, Any]:
    return {
        "T": "t", "S": symbol, "i": number, "x": "V", "p": price, "s": 100, "c": ["@"], "z": "C",
    }  # fmt: skip


def correction(number: int, corrected: int, price: float) -> dict[str, Any]:
    return {
        "T": "c", "S": "AAPL", "x": "V", "oi": number, "op": 10.0, "os": 100, "oc": ["@"],
        "ci": corrected, "cp": price, "cs": 100, "cc": ["@"], "z": "C",
    }  # fmt: skip


async def test_the_settings_channels_are_subscribed(autojump_clock: Any, bench: Bench) -> None:
    async with bench.service(symbols="AAPL", channels="quotes,trades,statuses") as service:
        link = await bench.feed.subscribed("AAPL")
        await until(service.channels)
        assert service.channels() == {"AAPL": ["quotes", "trades", "statuses"]}
        assert link.subscriptions["trades"] == ("AAPL",)
        assert link.subscriptions["bars"] == ()


async def test_channels_are_subscribed_and_removed_at_run_time(
    autojump_clock: Any, bench: Bench
) -> None:
    async with bench.service(symbols="AAPL") as service:
        link = await bench.feed.subscribed("AAPL")
        await service.subscribe("AAPL", "MSFT", channels=["trades", "bars"])
        assert service.channels()["AAPL"] == ["quotes", "trades", "bars"]
        assert service.channels()["MSFT"] == ["trades", "bars"]
        await service.unsubscribe("AAPL", channels=["trades"])
        assert service.channels()["AAPL"] == ["quotes", "bars"]
        assert link.subscriptions["trades"] == ("MSFT",)
        await service.unsubscribe("AAPL", "MSFT")
        assert service.channels() == {}
        assert service.subscriptions() == {}


async def test_a_channel_that_no_symbol_has_is_refused(autojump_clock: Any, bench: Bench) -> None:
    async with bench.service(symbols="AAPL") as service:
        await until(service.channels)
        for channels in (["orderbooks"], ["tips"], ["corrections"]):
            with pytest.raises(InvalidChannel):
                await service.subscribe("AAPL", channels=channels)
        assert service.channels() == {"AAPL": ["quotes"]}


async def test_a_correction_changes_the_key_and_is_an_event(
    autojump_clock: Any, bench: Bench
) -> None:
    async with bench.service(symbols="AAPL", channels="trades") as service:
        await until(service.channels)
        bench.send(trade(1), trade(2, price=11.0))
        await until(lambda: len(bench.published("trade.updated")) == 2)
        before = msgspec.json.decode(bench.store.get("trade:AAPL") or b"")
        bench.send(correction(2, 3, 12.5))
        await until(lambda: bench.published("trade.corrected"))
        after = msgspec.json.decode(bench.store.get("trade:AAPL") or b"")
        assert after == before | {"id": 3, "price": 12.5}
        assert bench.published("trade.corrected")[0]["seq"] == 1
        bench.send(
            {"T": "x", "S": "AAPL", "i": 3, "x": "V", "p": 12.5, "s": 100, "a": "C", "z": "C"}
        )
        await until(lambda: bench.published("trade.canceled"))
        assert msgspec.json.decode(bench.store.get("trade:AAPL") or b"")["id"] == 1
        latest = service.latest_record(TRADES, "AAPL")
        assert latest is not None
        assert latest.id == 1


async def test_a_canceled_only_trade_is_replaced_by_rests_latest(
    autojump_clock: Any, bench: Bench
) -> None:
    async with bench.service(symbols="AAPL", channels="trades") as service:
        await until(service.channels)
        bench.send(trade(1))
        await until(lambda: bench.store.get("trade:AAPL"))
        seen = service.latest_record(TRADES, "AAPL")
        assert seen is not None
        earlier = attrs.evolve(seen, id=77, price=9.0, ts_event_ns=seen.ts_event_ns - 10**9, seq=0)
        bench.history.add([earlier], TRADES)
        bench.send(
            {"T": "x", "S": "AAPL", "i": 1, "x": "V", "p": 10.0, "s": 100, "a": "E", "z": "C"}
        )
        await until(lambda: bench.published("trade.canceled"))
        assert bench.published("trade.canceled")[0]["action"] == "error"
        await until(lambda: b'"id":77' in (bench.store.get("trade:AAPL") or b""))


async def test_a_halted_symbol_stays_halted_after_a_restart(
    autojump_clock: Any, bench: Bench
) -> None:
    halt = {"T": "s", "S": "AAPL", "sc": "H", "sm": "Halted", "rc": "T12", "rm": "", "z": "C"}
    async with bench.service(symbols="AAPL", channels="quotes,statuses") as service:
        await until(service.channels)
        bench.send(halt)
        await until(lambda: bench.published("trading_status.updated"))
    kept = bench.store.get("trading_status:AAPL")
    async with bench.service(symbols="AAPL", channels="quotes,statuses") as service:
        await until(service.channels)
        for _ in range(3):  # longer than the key lives unless it is renewed
            autojump_clock.jump(34_000)
            await anyio.sleep(60)  # the writer looks for keys to renew every half minute
        assert bench.store.get("trading_status:AAPL") == kept
        (latest,) = service.latest_records(STATUSES)
        assert latest.status_code == "H"
        bench.send(halt | {"sc": "T", "sm": "Trading"})
        await until(lambda: len(bench.published("trading_status.updated")) == 2)
        assert b'"status_code":"T"' in (bench.store.get("trading_status:AAPL") or b"")


async def test_the_gap_of_each_channel_has_its_name_and_its_feed(
    autojump_clock: Any, bench: Bench
) -> None:
    async with bench.service(symbols="AAPL", channels="quotes,trades,statuses") as service:
        await until(service.channels)
        bench.send({"T": "q", "S": "AAPL", "bp": 1, "bs": 1, "ap": 2, "as": 1}, trade(1))
        bench.send({"T": "s", "S": "AAPL", "sc": "T", "sm": "", "rc": "", "rm": "", "z": "C"})
        await until(lambda: len(bench.published("trade.updated")) == 1)
        bench.history.add([r for r in [service.latest_record(TRADES, "AAPL")] if r], TRADES)
        bench.feed.drop()
        await until(lambda: service.status().counters.gaps_repaired == 2)
        states = bench.published("feed.status")
        assert all(state["feed"] == "stocks" for state in states)
        gaps = [(s["state"], s["channel"]) for s in states if s["state"].startswith("gap")]
        assert sorted(gaps) == [
            ("gap", "quotes"),
            ("gap", "statuses"),
            ("gap", "trades"),
            ("gap_repaired", "quotes"),
            ("gap_repaired", "trades"),
        ]
        assert len(bench.published("trade.updated")) == 1, "history's trade was out already"


async def test_each_channel_is_counted_in_the_status_and_the_metrics(
    autojump_clock: Any, bench: Bench
) -> None:
    async with bench.service(symbols="AAPL", channels="trades,bars") as service:
        await until(service.channels)
        bar = {"T": "b", "S": "AAPL", "o": 1, "h": 2, "l": 1, "c": 2, "v": 5, "n": 1, "vw": 1.5}
        bench.send(trade(1), trade(2), trade(2), bar)
        await until(lambda: service.status().counters.events_published == 3)
        trades, bars = service.status().channels["trades"], service.status().channels["bars"]
        assert (trades.received, trades.accepted, trades.rejected, trades.published) == (3, 2, 1, 2)
        assert (bars.received, bars.accepted, bars.published, bars.dropped) == (1, 1, 1, 0)
        assert "quotes" not in service.status().channels
        text, _ = render_metrics(metrics_registry(StatusCollector(service.status)), "")
        assert b'mdservice_records_published_total{channel="trades"} 2.0' in text
        assert b'mdservice_connection_up{feed="stocks"} 1.0' in text


async def always_open() -> Hours:
    return "open"


async def test_feeds_of_ones_own_need_no_keys_and_have_their_drivers_names(
    autojump_clock: Any, bench: Bench
) -> None:
    stocks = FakeDriver("desk", clock=bench.clock)
    crypto = FakeDriver("pairs", clock=bench.clock, feed=CRYPTO)
    async with open_service(
        Settings(symbols="AAPL,BTC/USD", redis_url="redis://127.0.0.1:9", mute_after=80_000.0),
        feeds=[
            FeedParts(STOCKS, [stocks], None, always_open, on_demand=False),
            FeedParts(CRYPTO, [crypto], None, always_open),
        ],
        store=bench.store,
        clock=bench.clock,
    ) as service:
        await stocks.subscribed("AAPL")
        await crypto.subscribed("BTC/USD")
        status = service.status()
        assert (status.simulator, status.feed.name) == (False, "desk")
        assert {name: feed.name for name, feed in status.feeds.items()} == {
            "stocks": "desk",
            "crypto": "pairs",
        }


async def test_one_feed_of_ones_own_may_be_any(autojump_clock: Any, bench: Bench) -> None:
    crypto = FakeDriver("pairs", clock=bench.clock, feed=CRYPTO)
    async with open_service(
        Settings(symbols="BTC/USD", channels="orderbooks", mute_after=80_000.0),
        feeds=[FeedParts(CRYPTO, [crypto], None, always_open)],
        store=bench.store,
        clock=bench.clock,
    ) as service:
        await until(service.channels)
        assert service.channels() == {"BTC/USD": ["orderbooks"]}
        assert service.status().feed.name == "pairs"


async def test_drivers_and_feeds_together_are_refused(bench: Bench) -> None:
    with pytest.raises(ConfigurationError, match="feeds"):
        async with open_service(Settings(), drivers=[FakeDriver()], feeds=[], store=bench.store):
            pass


@pytest.mark.parametrize("written", ["BTCUSD", "BTC/USD"])
async def test_news_of_a_pair_is_subscribed_as_alpaca_names_it(
    autojump_clock: Any, bench: Bench, written: str
) -> None:
    stocks = FakeDriver(clock=bench.clock)
    news = FakeDriver(clock=bench.clock, feed=NEWS_FEED)
    async with open_service(
        Settings(news="BTC/USD", mute_after=80_000.0),
        feeds=[
            FeedParts(STOCKS, [stocks], None, always_open, on_demand=False),
            FeedParts(NEWS_FEED, [news], None, always_open),
        ],
        store=bench.store,
        clock=bench.clock,
    ) as service:
        await until(lambda: [link for link in news.connections if link.subscriptions["news"]])
        assert [link.subscriptions["news"] for link in news.connections] == [("BTCUSD",)]
        at = "2026-11-20T15:00:00Z"
        news.send_messages([{"T": "n", "id": 1, "symbols": [written], "created_at": at}])
        await until(lambda: service.news(["BTC/USD"]))
        assert [article.symbols for article in service.news(["btcusd"])] == [(written,)]
