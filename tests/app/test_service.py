"""The whole service on virtual time: a fake feed in front, a store in memory behind."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import attrs
import msgspec
import pytest

from mdservice.app.service import DRAIN_LIMIT_S, Service, open_service
from mdservice.errors import (
    ActorFailed,
    ConfigurationError,
    FeedRefused,
    InvalidChannel,
    InvalidSymbol,
    MDServiceError,
    StoreUnavailable,
    SubscriptionRefused,
)
from mdservice.feed.driver import CLOSE_TIMEOUT_S
from mdservice.http_api.requests import MAX_SYMBOLS
from mdservice.model.events import FeedStatus
from mdservice.model.kinds import QUOTES, TRADES
from mdservice.model.quote import Quote
from mdservice.model.status import status_to_json
from mdservice.model.trade import Correction
from mdservice.publish.store import WriteBatch
from mdservice.settings import Settings
from mdservice.simulator.session import SessionRules
from mdservice.testing import (
    FakeDriver,
    FakeHistory,
    MemoryPriceStore,
    Slow,
    StoreFault,
    VirtualClock,
)

STOP_LIMIT_S = 5.0
"""From the signal to the end, says the contract."""


def quote(bid: float, symbol: str = "AAPL", **more: Any) -> dict[str, Any]:
    return {"S": symbol, "bp": bid, "ap": bid + 1, **more}


def settings(*symbols: str, **more: Any) -> Settings:
    return Settings(symbols=",".join(symbols), **{"mute_after": 80_000.0, **more})


@attrs.define
class Bench:
    """A service and both of its ends."""

    service: Service
    feed: FakeDriver
    store: MemoryPriceStore

    @property
    def seqs(self) -> list[tuple[str, int]]:
        """Symbol and number of every published event, in order."""
        return [(event["symbol"], event["seq"]) for event in self.events]

    @property
    def events(self) -> list[dict[str, Any]]:
        return [decode(payload) for payload in self.store.published.get("price.updated", [])]

    @property
    def states(self) -> list[str]:
        return [decode(payload)["state"] for payload in self.store.published.get("feed.status", [])]

    async def until(self, condition: Any) -> None:
        """Poll on virtual time, which costs nothing."""
        with anyio.fail_after(600):
            while not condition():
                await anyio.sleep(0.005)

    async def written(self, count: int) -> None:
        await self.until(lambda: len(self.events) >= count)

    async def ready(self) -> None:
        await self.until(lambda: self.service.readiness().ready)


def decode(payload: bytes) -> dict[str, Any]:
    return msgspec.json.decode(payload, type=dict[str, Any])


@asynccontextmanager
async def open_bench(
    *symbols: str,
    feed: FakeDriver | None = None,
    store: MemoryPriceStore | None = None,
    feed_name: str | None = None,
    **more: Any,
) -> AsyncIterator[Bench]:
    clock = VirtualClock()
    if feed_name is not None:
        more["feed"] = feed_name
    feed = feed or FakeDriver()
    store = store or MemoryPriceStore(clock=clock, event_log="events")
    async with open_service(
        settings(*symbols, **more), drivers=[feed], store=store, clock=clock
    ) as service:
        yield Bench(service, feed, store)


# ---- from the feed to the readers


async def test_quote_reaches_key_channel_stream_and_readers(autojump_clock: Any) -> None:
    async with open_bench("AAPL", "MSFT") as bench:
        async with bench.service.quotes("AAPL") as quotes:
            await bench.feed.subscribed("AAPL", "MSFT")
            bench.feed.send_quotes([quote(187.12, ap=187.15, t=VirtualClock().utc_ns() + 7)])
            seen = await anext(aiter(quotes))
        await bench.written(1)
        payload = bench.store.price("AAPL")
        assert payload is not None
        assert decode(payload) == {
            "symbol": "AAPL",
            "price": 187.135,
            "bid": 187.12,
            "ask": 187.15,
            "bid_size": 100,
            "ask_size": 100,
            "timestamp": "2026-11-20T15:00:00.000000007Z",
            "seq": 1,
        }
        assert bench.store.published["price.updated"] == [payload]
        assert list(bench.store.entries) == [("AAPL", payload)]
        assert bench.states == ["connected"]
        assert isinstance(seen, Quote)
        assert (seen.symbol, seen.bid, seen.seq) == ("AAPL", 187.12, 1)
        assert bench.service.latest("aapl") == seen
        assert bench.service.latest("MSFT") is None
        assert bench.service.prices() == bench.service.prices(["msft", "AAPL"]) == [seen]


def trade_message(number: int, symbol: str = "AAPL", **more: Any) -> dict[str, Any]:
    at = f"2026-11-20T15:00:00.{number:09}Z"
    message = {"T": "t", "S": symbol, "i": number, "x": "V", "p": number, "s": 10, "t": at}
    return message | {"c": ["@"], "z": "C"} | more


async def test_stream_has_the_latest_values_first_and_then_each_record(
    autojump_clock: Any,
) -> None:
    async with open_bench("AAPL", "MSFT", channels="quotes,trades") as bench:
        await bench.feed.subscribed("AAPL", "MSFT")
        bench.feed.send_messages([trade_message(5), trade_message(3), trade_message(6, "MSFT")])
        await bench.until(lambda: len(bench.store.published.get("trade.updated", ())) == 3)
        async with bench.service.stream("aapl", channels=("trades",)) as stream:
            records = aiter(stream)
            first = await anext(records)
            assert (first.id, first.seq) == (5, 1), "the late one is not the latest"
            correction = {
                "T": "c", "S": "AAPL", "x": "V", "oi": 5, "op": 5, "os": 10, "oc": ["@"],
                "ci": 9, "cp": 4.5, "cs": 10, "cc": ["@"], "t": "2026-11-20T15:00:01Z", "z": "C",
            }  # fmt: skip
            bench.feed.send_messages([trade_message(7, "MSFT"), correction])
            changed = await anext(records)
            bench.feed.send_messages([trade_message(8)])
            bench.feed.send_quotes([quote(1)])
            newest = await anext(records)
            assert isinstance(changed, Correction)
            assert (changed.corrected_price, changed.seq) == (4.5, 1)
            assert (newest.id, newest.seq) == (8, 3)
            assert bench.service.latest_record(TRADES, "AAPL") == newest
        async with bench.service.batches(channels=("trades", "quotes")) as batches:
            items = aiter(batches)
            kinds = [(await anext(items)).kind for _ in range(2)]  # type: ignore[union-attr]
            assert kinds == [QUOTES, TRADES]
            bench.feed.drop()
            lost = await anext(items)
            assert isinstance(lost, FeedStatus)
        with pytest.raises(InvalidChannel, match="tardes"):
            async with bench.service.stream(channels=("tardes",)):
                pass


async def test_a_trade_without_a_usable_time_costs_only_itself(autojump_clock: Any) -> None:
    async with open_bench("AAPL", channels="trades") as bench:
        await bench.feed.subscribed()
        await bench.ready()
        zero = trade_message(1) | {"t": "0001-01-01T00:00:00Z"}
        bench.feed.send_messages([zero, trade_message(2)])
        await bench.until(lambda: len(bench.store.published.get("trade.updated", ())) == 2)
        assert bench.service.status().actors["quote_router"].restarts == 0


async def test_a_request_for_a_whole_market_does_not_block_the_event_loop(
    autojump_clock: Any,
) -> None:
    symbols = [f"S{number}" for number in range(MAX_SYMBOLS)]
    feed = FakeDriver()
    feed.fail(1_000)
    async with open_bench(feed=feed, channels="quotes,trades") as bench:
        began_s = time.thread_time()  # a busy machine makes no test fail
        assert (await bench.service.subscribe(*symbols)).symbols == tuple(symbols)
        assert (await bench.service.unsubscribe(*symbols)).symbols == tuple(symbols)
        assert time.thread_time() - began_s < 10, "it is linear in the number of symbols"
        assert bench.service.subscriptions() == {}


async def test_unsubscribing_names_the_symbols_that_were_not_wanted_too(
    autojump_clock: Any,
) -> None:
    async with open_bench("AAPL", channels="trades") as bench:
        await bench.feed.subscribed()
        result = await bench.service.unsubscribe("MSFT", "AAPL", "TSLA")
        assert (result.status, set(result.symbols)) == ("unsubscribed", {"AAPL", "MSFT", "TSLA"})
        assert bench.service.subscriptions() == {}


async def test_every_accepted_quote_is_published_once_and_in_order(autojump_clock: Any) -> None:
    async with open_bench("AAPL", "SPY") as bench:
        await bench.feed.subscribed("AAPL", "SPY")
        for number in range(1, 1_001):
            bench.feed.send_quotes([quote(number), quote(number, "SPY")])
            if number % 10 == 0:
                await anyio.sleep(0.001)
        await bench.written(2_000)
        expected = [(symbol, n) for n in range(1, 1_001) for symbol in ("AAPL", "SPY")]
        assert bench.seqs == expected
        assert bench.service.status().counters.events_published == 2_000


async def test_reader_hears_states_and_the_latest_first(autojump_clock: Any) -> None:
    async with open_bench("AAPL", "MSFT") as bench:
        await bench.feed.subscribed("AAPL", "MSFT")
        bench.feed.send_quotes([quote(1), quote(2), quote(9, "MSFT")])
        await bench.written(3)
        async with bench.service.events("AAPL") as events:
            heard = aiter(events)
            first = await anext(heard)
            assert isinstance(first, Quote)
            assert first.bid == 2
            bench.feed.drop()
            states = [await anext(heard) for _ in range(3)]
            assert [s.state for s in states if isinstance(s, FeedStatus)] == [
                "disconnected",
                "connected",
                "gap",
            ]


async def test_readers_end_with_the_service(autojump_clock: Any) -> None:
    seen: list[Quote] = []
    async with anyio.create_task_group() as tasks, open_bench("AAPL") as bench:

        async def read() -> None:
            async with bench.service.quotes() as quotes:
                async for item in quotes:
                    seen.append(item)

        tasks.start_soon(read)
        await bench.feed.subscribed("AAPL")
        bench.feed.send_quotes([quote(1), quote(2)])
        await bench.written(2)
    assert [item.bid for item in seen] == [1, 2]


async def test_lost_connection_is_reported_with_its_gap(autojump_clock: Any) -> None:
    async with open_bench("AAPL") as bench:
        await bench.feed.subscribed("AAPL")
        bench.feed.send_quotes([quote(1)])
        await bench.written(1)
        bench.feed.drop()
        await bench.feed.opened(2)
        await bench.feed.subscribed("AAPL")
        bench.feed.send_quotes([quote(2)])
        await bench.written(2)
        assert bench.states == ["connected", "disconnected", "connected", "gap"]
        assert bench.seqs == [("AAPL", 1), ("AAPL", 2)]
        counters = bench.service.status().counters
        assert (counters.reconnects, counters.gaps) == (1, 1)


# ---- requests


async def test_subscribes_and_unsubscribes(autojump_clock: Any) -> None:
    async with open_bench("AAPL") as bench:
        await bench.ready()
        result = await bench.service.subscribe("msft", " TSLA ")
        assert (result.status, result.symbols) == ("subscribed", ("MSFT", "TSLA"))
        await bench.service.subscribe("AAPL", source="positions")
        assert bench.service.subscriptions() == {
            "AAPL": ["positions", "settings"],
            "MSFT": ["api"],
            "TSLA": ["api"],
        }
        result = await bench.service.unsubscribe("AAPL", "msft")
        assert (result.status, result.symbols) == ("unsubscribed", ("AAPL", "MSFT"))
        assert bench.service.subscriptions() == {"AAPL": ["positions"], "TSLA": ["api"]}
        (link,) = bench.feed.connections
        assert set(link.subscriptions["quotes"]) == {"AAPL", "TSLA"}


async def test_unsubscribing_names_each_symbol_in_the_order_of_the_request(
    autojump_clock: Any,
) -> None:
    async with open_bench("AAPL") as bench:
        await bench.ready()
        result = await bench.service.unsubscribe("TSLA", "AAPL", "MSFT")
        assert (result.status, result.symbols) == ("unsubscribed", ("TSLA", "AAPL", "MSFT"))


async def test_a_symbol_that_lacks_only_some_channels_is_reported_with_them(
    autojump_clock: Any,
) -> None:
    feed = FakeDriver(rules=SessionRules(symbol_limit=3))
    async with open_bench("AAPL", "MSFT", feed=feed, channels="quotes,bars") as bench:
        await bench.ready()
        assert [*bench.service.left_out()] == ["MSFT"]
        (channel,) = bench.service.left_out()["MSFT"]
        assert bench.service.status().feed.left_out["MSFT"].startswith(f"{channel}: ")


async def test_shows_what_the_feed_gives_and_what_it_leaves_out(autojump_clock: Any) -> None:
    feed = FakeDriver(rules=SessionRules(symbol_limit=3, invalid_symbols={"BAD"}))
    async with open_bench("AAPL,BAD,IBM,MSFT,TSLA", feed=feed) as bench:
        await bench.ready()
        service = bench.service
        quotes = ["quotes"]
        assert service.channels() == {"AAPL": quotes, "IBM": quotes, "MSFT": quotes}
        assert service.left_out() == {
            "BAD": {"quotes": "invalid syntax"},
            "TSLA": {"quotes": "symbol limit exceeded"},
        }
        await service.unsubscribe("BAD", "IBM")
        await anyio.sleep(1)
        assert service.channels() == {"AAPL": quotes, "MSFT": quotes, "TSLA": quotes}
        assert service.left_out() == {}
        feed.drop()
        await anyio.sleep(0)
        while service.status().feed.connected:
            await anyio.sleep(0.001)
        assert service.channels() == service.left_out() == {}
        await bench.ready()
        assert list(service.channels()) == ["AAPL", "MSFT", "TSLA"]


async def test_every_symbol_is_one_channel(autojump_clock: Any) -> None:
    async with open_bench("*") as bench:
        await bench.ready()
        assert bench.service.channels() == {"*": ["quotes"]}
        assert bench.service.left_out() == {}


async def test_bad_symbol_changes_nothing(autojump_clock: Any) -> None:
    async with open_bench("AAPL") as bench:
        await bench.ready()
        for ask in (bench.service.subscribe, bench.service.unsubscribe):
            with pytest.raises(InvalidSymbol, match="'A B'"):
                await ask("AAPL", "A B")
        assert bench.service.subscriptions() == {"AAPL": ["settings"]}


async def test_symbol_limit_refuses_the_request(autojump_clock: Any) -> None:
    feed = FakeDriver(rules=SessionRules(symbol_limit=1))
    async with open_bench("AAPL", feed=feed) as bench:
        await bench.ready()
        with pytest.raises(SubscriptionRefused) as caught:
            await bench.service.subscribe("MSFT")
        assert caught.value.code == 405
        assert bench.service.readiness().ready


async def test_request_in_the_drain_is_refused_at_once(autojump_clock: Any) -> None:
    refusals: list[str] = []
    feed = FakeDriver(closing_s=10)
    async with anyio.create_task_group() as tasks, open_bench("AAPL", feed=feed) as bench:
        await bench.ready()

        async def ask_later() -> None:
            await bench.until(lambda: bench.service.status().state == "draining")
            try:
                await bench.service.subscribe("MSFT")
            except MDServiceError as exc:
                refusals.append(str(exc))

        tasks.start_soon(ask_later)
    assert len(refusals) == 1
    assert "stopping" in refusals[0]


# ---- condition


async def test_readiness_names_what_is_in_the_way(autojump_clock: Any) -> None:
    feed, store = FakeDriver(), MemoryPriceStore(clock=VirtualClock())
    feed.fail(3)
    store.down = True
    async with open_bench("AAPL", feed=feed, store=store) as bench:
        await anyio.sleep(0.2)
        first, second = bench.service.readiness().reasons
        assert first == "the feed is waiting: fake: no server listens"
        assert second.startswith("Redis is not connected: No connection to the store")
        assert bench.service.status().state == "starting"

        store.down = False
        feed.stall("subscribe")
        await feed.opened()
        await bench.until(lambda: len(bench.service.readiness().reasons) == 1)
        assert bench.service.readiness().reasons == (
            "the feed has not acknowledged the subscriptions yet",
        )
        assert bench.service.status().state == "degraded"

        await bench.ready()
        assert bench.service.readiness().reasons == ()
        assert bench.service.status().state == "running"

        store.refusal = "READONLY no writes here"
        await bench.until(lambda: not bench.service.readiness().ready)
        assert "Redis refuses" in bench.service.readiness().reasons[0]
        assert "READONLY" in bench.service.readiness().reasons[0]
        store.refusal = None
        await bench.ready()

        feed.refuse_next(406)
        feed.drop()
        await bench.until(lambda: "waiting for slot" in str(bench.service.readiness().reasons))
        assert "old session" in bench.service.readiness().reasons[0]
        assert bench.service.status().state == "degraded"
        await bench.ready()


async def test_without_symbols_a_login_suffices(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        await bench.ready()
        assert bench.service.subscriptions() == {}


async def test_clock_that_is_behind_makes_it_degraded(autojump_clock: Any) -> None:
    async with open_bench("AAPL") as bench:
        await bench.ready()
        ahead_ns = VirtualClock().utc_ns() + 300_000_000_000
        for number in range(150):
            bench.feed.send_quotes([quote(number + 1, t=ahead_ns + number)])
            await anyio.sleep(0.01)
        (reason,) = bench.service.readiness().reasons
        assert "clock is 29" in reason or "clock is 300" in reason
        assert bench.service.status().state == "degraded"
        assert bench.service.status().counters.decode_errors == 150
        feed = bench.service.status().feeds["stocks"]
        assert feed.decode_errors == 150
        assert feed.clock_behind_s == pytest.approx(300, abs=10)
        assert bench.events == []
        for number in range(150):
            bench.feed.send_quotes([quote(number + 1)])
            await anyio.sleep(0.01)
        await bench.ready()


async def test_actor_that_is_being_restarted_is_named(autojump_clock: Any) -> None:
    store = BrokenStore(clock=VirtualClock())
    store.failures = 3
    async with open_bench("AAPL", store=store) as bench:
        await bench.feed.subscribed("AAPL")
        await bench.until(lambda: not bench.service.readiness().ready)
        await bench.until(lambda: "redis_writer" in str(bench.service.readiness().reasons))
        assert any(
            reason == "redis_writer is restarting: RuntimeError: a defect in the store"
            for reason in bench.service.readiness().reasons
        )


async def test_a_feed_of_ones_own_needs_no_keys_and_is_not_called_a_simulator(
    autojump_clock: Any,
) -> None:
    async with open_bench("AAPL", redis_url="redis://localhost:1") as bench:
        await bench.feed.subscribed("AAPL")
        status = bench.service.status()
        assert (status.feed.name, status.simulator) == ("fake", False)


async def test_a_driver_for_a_feed_that_the_settings_name_has_that_name(
    autojump_clock: Any,
) -> None:
    async with open_bench("AAPL", feed_name="simulator") as bench:
        status = bench.service.status()
        assert (status.feed.name, status.simulator) == ("simulator", True)
    with pytest.raises(ConfigurationError, match="api_key is missing"):
        async with open_bench("AAPL", feed_name="sip"):
            pass


async def test_a_silent_feed_of_ones_own_does_not_ask_alpaca_for_its_hours(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "mdservice.feed.alpaca.rest.AlpacaMarketClock.is_open",
        lambda self: asked.append(""),
    )
    async with open_bench("AAPL", redis_url="redis://localhost:1", mute_after=5.0) as bench:
        await bench.feed.opened(2)
    assert asked == []


async def test_status_has_every_field_of_the_contract(autojump_clock: Any) -> None:
    async with open_bench("AAPL", "MSFT") as bench:
        await bench.feed.subscribed("AAPL", "MSFT")
        bench.feed.send_quotes([quote(1), quote(2), quote(3, "MSFT")])
        bench.feed.send_raw(b"\xc1")
        await bench.written(3)
        await anyio.sleep(2)
        status = status_to_json(bench.service.status())
        assert msgspec.json.decode(msgspec.json.encode(status)) == status
        assert {
            *("state", "feed", "redis", "symbols", "uptime_s", "actors", "counters", "latency_ms")
        } <= status.keys()
        assert status["state"] == "running"
        assert {"name", "driver", "connected", "reconnects", "last_error"} <= status["feed"].keys()
        assert (status["feed"]["name"], status["feed"]["driver"]) == ("fake", "fake")
        assert status["redis"]["connected"] is True
        assert status["redis"]["url"] == "memory://"
        assert status["redis"]["last_error"] is None
        assert status["symbols"] == 2
        assert status["uptime_s"] == pytest.approx(2, abs=0.1)
        assert set(status["actors"]) == {
            *("feed_connection", "quote_router", "event_publisher", "redis_writer"),
            "health_watchdog",
        }
        for actor in status["actors"].values():
            assert {"state", "restarts", "heartbeat_age_s", "inbox"} <= actor.keys()
            assert (actor["state"], actor["restarts"]) == ("running", 0)
            assert 0 <= actor["heartbeat_age_s"] <= 1
            assert actor["inbox"].keys() == {"used", "size"}
        written = status["counters"]["prices_written"]
        assert {name: value for name, value in status["counters"].items() if value != 0} == {
            "quotes_received": 3,
            "quotes_accepted": 3,
            "prices_written": written,
            "events_published": 3,
            "decode_errors": 1,
        }
        assert 2 <= written <= 3
        for name in ("feed_to_redis", "receive_to_redis", "feed_to_receive"):
            assert status["latency_ms"][name].keys() == {"p50", "p99", "max"}
            assert all(value >= 0 for value in status["latency_ms"][name].values())


async def test_status_shows_symbols_that_never_come_and_times_that_stand_still(
    autojump_clock: Any,
) -> None:
    async with open_bench("AAPL", "MSFT", mute_after=30.0) as bench:
        await bench.ready()
        same = quote(1, t="2026-11-20T15:00:00Z")
        for _ in range(50):
            bench.feed.send_quotes([same])
            await anyio.sleep(1)
        feed = bench.service.status().feed
        assert (feed.without_quotes, feed.without_quotes_first) == (1, ("MSFT",))
        assert feed.times_frozen_s == pytest.approx(48, abs=1)
        bench.feed.send_quotes([quote(2), quote(1, symbol="MSFT")])
        await anyio.sleep(1)
        feed = bench.service.status().feed
        assert (feed.without_quotes, feed.without_quotes_first) == (0, ())
        assert feed.times_frozen_s == 0


async def test_is_alive(autojump_clock: Any) -> None:
    async with open_bench("AAPL") as bench:
        await anyio.sleep(100)
        assert bench.service.liveness().ready


# ---- the end


async def test_what_was_accepted_is_written_before_it_ends(autojump_clock: Any) -> None:
    feed, store = FakeDriver(), MemoryPriceStore(clock=VirtualClock())
    async with open_bench("AAPL", feed=feed, store=store) as bench:
        await feed.subscribed("AAPL")
        await bench.ready()
        store.script.append(Slow(0.5))
        for number in range(1, 5_001):
            feed.send_quotes([quote(number)])
            if number % 100 == 0:
                await anyio.sleep(0.001)
        await bench.until(lambda: bench.service.status().counters.quotes_accepted == 5_000)
        assert len(bench.events) < 5_000, "nothing is left to drain"
        started_s = anyio.current_time()
    assert [seq for _, seq in bench.seqs] == list(range(1, 5_001))
    assert bench.states == ["connected", "disconnected"]
    assert anyio.current_time() - started_s <= DRAIN_LIMIT_S
    assert feed.connections == ()
    assert not store.connected


async def test_end_is_bounded_where_the_store_is_away(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    feed, store = FakeDriver(closing_s=60), MemoryPriceStore(clock=VirtualClock())
    async with open_bench("AAPL", feed=feed, store=store) as bench:
        await feed.subscribed("AAPL")
        await bench.ready()
        store.down = True
        feed.send_quotes([quote(number) for number in range(1, 101)])
        await anyio.sleep(5)
        started_s = anyio.current_time()
    assert anyio.current_time() - started_s <= DRAIN_LIMIT_S + CLOSE_TIMEOUT_S <= STOP_LIMIT_S
    assert "events_lost_at_the_end" in caplog.text
    assert "unknown=100" in caplog.text  # the connection was lost in the middle of the write
    assert "the store did not take them: " in caplog.text


async def test_a_store_that_is_only_slow_is_not_said_to_refuse(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    feed, store = FakeDriver(), MemoryPriceStore(clock=VirtualClock())
    async with open_bench("AAPL", feed=feed, store=store) as bench:
        await feed.subscribed("AAPL")
        await bench.ready()
        store.script.append(Slow(10))
        feed.send_quotes([quote(number) for number in range(1, 101)])
        await anyio.sleep(0.1)
    assert "unknown=100" in caplog.text  # the write was cancelled
    assert "they were not all written within" in caplog.text


async def test_end_is_at_once_where_nothing_waits(autojump_clock: Any) -> None:
    async with open_bench("AAPL") as bench:
        await bench.ready()
        started_s = anyio.current_time()
    assert anyio.current_time() - started_s <= 1.0


async def test_store_that_comes_back_in_the_drain_gets_everything(autojump_clock: Any) -> None:
    feed, store = FakeDriver(), MemoryPriceStore(clock=VirtualClock())

    async def come_back() -> None:
        await anyio.sleep(6.5)
        store.down = False

    async with anyio.create_task_group() as tasks:
        async with open_bench("AAPL", feed=feed, store=store) as bench:
            await feed.subscribed("AAPL")
            await bench.ready()
            store.down = True
            tasks.start_soon(come_back)
            feed.send_quotes([quote(number) for number in range(1, 101)])
            await anyio.sleep(5)
        assert [seq for _, seq in bench.seqs] == list(range(1, 101))


async def test_cancellation_drains_too(autojump_clock: Any) -> None:
    with anyio.CancelScope() as scope:
        async with open_bench("AAPL") as bench:
            await bench.feed.subscribed("AAPL")
            await bench.ready()
            bench.store.script.append(Slow(0.5))
            bench.feed.send_quotes([quote(number) for number in range(1, 101)])
            await bench.until(lambda: bench.service.status().counters.quotes_accepted == 100)
            assert bench.events == [], "nothing is left to drain"
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert len(bench.events) == 100


async def test_error_in_the_block_comes_out_as_it_is_after_the_drain(autojump_clock: Any) -> None:
    mine = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught:
        async with open_bench("AAPL") as bench:
            await bench.feed.subscribed("AAPL")
            await bench.ready()
            bench.store.script.append(Slow(0.5))
            bench.feed.send_quotes([quote(1)])
            await bench.until(lambda: bench.service.status().counters.quotes_accepted == 1)
            assert bench.events == [], "nothing is left to drain"
            raise mine
    assert caught.value is mine
    assert len(bench.events) == 1


# ---- failures


async def test_refusal_at_start_ends_the_block_with_the_reason(autojump_clock: Any) -> None:
    feed = FakeDriver()
    feed.refuse_next(402)
    started_s = anyio.current_time()
    with pytest.raises(FeedRefused, match="ALPACA_API_KEY") as caught:
        async with open_bench("AAPL", feed=feed) as bench:
            await anyio.sleep_forever()
    assert caught.value.code == 402
    assert anyio.current_time() - started_s <= 1, "the last words, and no more"
    told = [msgspec.json.decode(payload) for payload in bench.store.published["feed.status"]]
    assert [status["state"] for status in told] == ["fatal"]


async def test_driver_that_cannot_work_ends_the_block_with_the_reason(autojump_clock: Any) -> None:
    feed = FakeDriver("alpaca-py")
    feed.script.append(ConfigurationError("alpaca-py cannot be imported"))
    with pytest.raises(ConfigurationError, match="cannot be imported"):
        async with open_bench("AAPL", feed=feed):
            await anyio.sleep_forever()


async def test_refusal_after_data_ends_nothing(autojump_clock: Any) -> None:
    async with open_bench("AAPL") as bench:
        await bench.feed.subscribed("AAPL")
        bench.feed.send_quotes([quote(1)])
        await bench.written(1)
        bench.feed.refuse_next(402)
        bench.feed.drop()
        await bench.until(lambda: "fatal" in bench.states)
        assert "402" in str(bench.service.status().feed.last_error)
        assert not bench.service.readiness().ready
        await bench.ready()


class BrokenStore(MemoryPriceStore):
    """One with a defect: what it raises is no store's error."""

    failures = 0

    async def write(self, batch: WriteBatch) -> None:
        await super().write(batch)
        if self.failures:
            self.failures -= 1
            raise RuntimeError("a defect in the store")


async def test_actor_that_crashes_is_restarted_and_no_event_is_lost_or_repeated(
    autojump_clock: Any,
) -> None:
    store = BrokenStore(clock=VirtualClock())
    async with open_bench("AAPL", store=store) as bench:
        await bench.feed.subscribed("AAPL")
        await bench.ready()
        store.failures = 2
        for number in range(1, 201):
            bench.feed.send_quotes([quote(number)])
            await anyio.sleep(0.01)
        await bench.written(200)
        await anyio.sleep(1)
        assert [seq for _, seq in bench.seqs] == list(range(1, 201))
        actor = bench.service.status().actors["redis_writer"]
        assert (actor.state, actor.restarts) == ("running", 2)
        assert actor.last_error == "RuntimeError: a defect in the store"


async def test_actor_that_crashes_for_ever_ends_the_block(autojump_clock: Any) -> None:
    store = BrokenStore(clock=VirtualClock())
    store.failures = 1_000
    with pytest.raises(ActorFailed, match="redis_writer failed 6 times"):
        async with open_bench("AAPL", store=store) as bench:
            while True:
                bench.feed.send_quotes([quote(anyio.current_time() + 1)])
                await anyio.sleep(0.1)


class DefectiveStore(MemoryPriceStore):
    """Its defect ends the writer for good: in each call, or in the middle of a write."""

    defect = ""

    async def ping(self) -> None:
        if self.defect:
            raise RuntimeError("a defect in the store")
        await super().ping()

    async def write(self, batch: WriteBatch) -> None:
        if self.defect == "always":
            raise RuntimeError("a defect in the store")
        await super().write(batch)
        if self.defect == "after the write":
            raise RuntimeError("a defect in the store")


@pytest.mark.parametrize(
    ("defect", "pause_s", "said"),
    [("always", 0.6, "count=3 unknown=0"), ("after the write", 0.0, "count=0 unknown=3")],
)
async def test_an_actor_that_ends_the_service_is_blamed_for_the_lost_events(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture, defect: str, pause_s: float, said: str
) -> None:
    store = DefectiveStore(clock=VirtualClock())
    with pytest.raises(ActorFailed, match="redis_writer"):
        async with open_bench("AAPL", store=store) as bench:
            await bench.feed.subscribed("AAPL")
            await bench.ready()
            await anyio.sleep(1)
            store.defect = defect
            await anyio.sleep(pause_s)
            bench.feed.send_quotes([quote(1), quote(2), quote(3)])
            await anyio.sleep(100)
    (record,) = [r for r in caplog.records if "events_lost_at_the_end" in r.getMessage()]
    assert said in record.getMessage()
    assert "redis_writer failed and ended the service" in record.getMessage()
    assert "the store did not take them" not in record.getMessage()


async def test_an_actor_that_ends_the_service_while_all_is_written_loses_no_event(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*, task_status: Any) -> None:
        raise RuntimeError("a defect in the router")

    with pytest.raises(ActorFailed, match="quote_router"):
        async with open_bench("AAPL") as bench:
            await bench.feed.subscribed("AAPL")
            await bench.ready()
            bench.feed.send_quotes([quote(1)])
            await bench.written(1)
            await anyio.sleep(1)
            monkeypatch.setattr(bench.service._topology.router, "run", fail)
            bench.service._topology.supervisor.restart("quote_router", "for the test")
            await anyio.sleep_forever()
    assert "events_lost_at_the_end" not in caplog.text


async def test_actor_that_hangs_is_restarted_and_no_event_is_lost_or_repeated(
    autojump_clock: Any,
) -> None:
    store = MemoryPriceStore(clock=VirtualClock())
    async with open_bench("AAPL", store=store) as bench:
        await bench.feed.subscribed("AAPL")
        await bench.ready()
        store.script.append(Slow(100_000))
        for number in range(1, 401):
            bench.feed.send_quotes([quote(number)])
            await anyio.sleep(0.1)
        await bench.written(400)
        assert [seq for _, seq in bench.seqs] == list(range(1, 401))
        actors = bench.service.status().actors
        assert {name: actor.restarts for name, actor in actors.items() if actor.restarts} == {
            "redis_writer": 1
        }


async def test_outage_of_the_store_loses_nothing_within_the_backlog(autojump_clock: Any) -> None:
    async with open_bench("AAPL", backlog=10_000) as bench:
        await bench.feed.subscribed("AAPL")
        await bench.ready()
        bench.store.down = True
        for number in range(1, 9_001):
            bench.feed.send_quotes([quote(number)])
            if number % 50 == 0:
                await anyio.sleep(0.5)
        assert bench.service.status().redis.backlog >= 8_900
        bench.store.down = False
        returned_s = anyio.current_time()
        await bench.written(9_000)
        assert anyio.current_time() - returned_s <= 1.0
        assert [seq for _, seq in bench.seqs] == list(range(1, 9_001))
        assert bench.service.status().counters.events_conflated == 0


@pytest.mark.thorough
async def test_outage_beyond_the_backlog_conflates_counts_and_shows_as_steps(
    autojump_clock: Any,
) -> None:
    async with open_bench("AAPL", "SPY", backlog=10_000) as bench:
        await bench.feed.subscribed("AAPL", "SPY")
        await bench.ready()
        bench.feed.send_quotes([quote(1, "SPY")])
        await bench.written(1)
        bench.store.down = True
        bench.feed.send_quotes([quote(2, "SPY")])
        for number in range(1, 25_001):
            bench.feed.send_quotes([quote(number)])
            if number % 250 == 0:
                await anyio.sleep(0.5)
        bench.store.down = False
        await bench.until(lambda: bench.service.status().redis.backlog == 0)
        counters = bench.service.status().counters
        assert counters.quotes_received == counters.quotes_accepted == 25_002
        assert counters.events_conflated >= 15_000
        assert len(bench.events) + counters.events_conflated == 25_002
        aapl = [seq for symbol, seq in bench.seqs if symbol == "AAPL"]
        assert aapl == sorted(set(aapl)), "never back, never twice"
        assert aapl[-1] == 25_000
        assert ("SPY", 2) in bench.seqs
        assert decode(bench.store.price("AAPL") or b"")["seq"] == 25_000


@pytest.mark.parametrize("fault", list(StoreFault))
async def test_fault_of_the_store_is_not_seen_by_readers(
    autojump_clock: Any, fault: StoreFault
) -> None:
    async with open_bench("AAPL") as bench:
        await bench.feed.subscribed("AAPL")
        await bench.ready()
        for number in range(1, 301):
            bench.feed.send_quotes([quote(number)])
            if number % 30 == 0:
                bench.store.script.append(fault)
                if fault is StoreFault.REFUSE_CONNECT:
                    bench.store.drop_connection()
            await anyio.sleep(0.005)
        await bench.written(300)
        await anyio.sleep(1)
        bench.store.deliver()
        assert [seq for _, seq in bench.seqs] == list(range(1, 301))
        assert not bench.store.script


async def test_store_without_any_answer_is_named(autojump_clock: Any) -> None:
    class Unreachable(MemoryPriceStore):
        async def connect(self) -> None:
            await anyio.sleep(3)
            raise StoreUnavailable("no answer within 3 s")

    async with open_bench("AAPL", store=Unreachable(clock=VirtualClock())) as bench:
        await anyio.sleep(60)
        assert bench.service.readiness().reasons == (
            "Redis is not connected: no answer within 3 s",
        )
        assert bench.service.status().actors["redis_writer"].restarts == 0


async def test_connections_closed_because_they_were_silent_are_counted(
    autojump_clock: Any,
) -> None:
    clock, feed, history = VirtualClock(), FakeDriver(), FakeHistory()
    async with open_service(
        settings("AAPL", mute_after=30.0),
        drivers=[feed],
        history=history,
        store=MemoryPriceStore(clock=clock),
        clock=clock,
    ) as service:
        await feed.subscribed("AAPL")
        feed.drop()
        await feed.opened(2)
        assert service.status().feed.silent == 0, "it ended for another reason"
        await anyio.sleep(20)
        history.add([Quote("AAPL", 1.0, 2.0, 1, 1, clock.utc_ns(), clock.utc_ns())])
        await feed.opened(3)
        assert service.status().feed.silent == 1


@pytest.mark.parametrize(
    ("feed_name", "limit_s"),
    [("sip", 60), pytest.param("delayed_sip", 60 + 900, marks=pytest.mark.thorough)],
)
async def test_prices_beyond_the_age_limit_are_counted_as_stale(
    autojump_clock: Any, feed_name: str, limit_s: float
) -> None:
    keys = {"api_key": "key", "secret_key": "secret"}
    async with open_bench("AAPL", "MSFT", feed_name=feed_name, **keys) as bench:
        await bench.feed.subscribed("AAPL", "MSFT")
        now_ns = VirtualClock().utc_ns()
        bench.feed.send_quotes([quote(1, t=now_ns), quote(2, symbol="MSFT", t=now_ns)])
        await bench.written(2)
        assert bench.service.status().stale_symbols == 0
        await anyio.sleep(limit_s - 1)
        bench.feed.send_quotes([quote(3, t=VirtualClock().utc_ns())])
        await bench.written(3)
        assert bench.service.status().stale_symbols == 0
        await anyio.sleep(2)
        assert bench.service.status().stale_symbols == 1


async def test_command_that_fails_inside_a_write_shows_in_the_status(autojump_clock: Any) -> None:
    async with open_bench("AAPL") as bench:
        bench.store.command_error = "WRONGTYPE the event log is no stream"
        await bench.feed.subscribed("AAPL")
        bench.feed.send_quotes([quote(1)])
        await bench.written(1)
        redis = status_to_json(bench.service.status())["redis"]
        assert (redis["command_errors"], redis["last_command_error"]) == (
            1,
            "WRONGTYPE the event log is no stream",
        )
