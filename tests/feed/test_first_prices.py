"""The whole service on virtual time: a symbol has its price as soon as it is subscribed."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import anyio
import attrs
import msgspec
import pytest

from mdservice.app.service import Service, open_service
from mdservice.errors import (
    FeedUnavailable,
    HistoryRefused,
    HistoryUnavailable,
    StoreRefused,
    SubscriptionRefused,
)
from mdservice.feed.first_prices import COALESCE_S, PAUSES_S, STREAM_FIRST_S
from mdservice.model.payload import encode_quote
from mdservice.model.position import Position
from mdservice.model.quote import Quote
from mdservice.settings import Settings
from mdservice.simulator import SimQuote
from mdservice.simulator.session import SessionRules
from mdservice.testing import (
    FakeDriver,
    FakeHistory,
    FakePositions,
    MemoryPriceStore,
    VirtualClock,
)

_HOUR_NS = 3_600 * 1_000_000_000
LIMIT_S = 3.0
"""The longest that a subscriber waits for a price."""


@attrs.define
class Bench:
    """A service, a market that is closed, and its REST API."""

    clock: VirtualClock
    history: FakeHistory
    store: MemoryPriceStore
    feed: FakeDriver

    def quote(self, symbol: str, bid: float = 10.0, ago_ns: int = 60 * _HOUR_NS) -> Quote:
        now_ns = self.clock.utc_ns()
        return Quote(symbol, bid, bid + 1.0, 100, 100, now_ns - ago_ns, now_ns)

    def closed_at(self, *symbols: str, bid: float = 10.0, ago_ns: int = 60 * _HOUR_NS) -> None:
        """The last quotes of the symbols, as REST has them."""
        self.history.add([self.quote(symbol, bid, ago_ns) for symbol in symbols])

    def stream(self, *quotes: Quote) -> None:
        self.feed.send_quotes(
            [SimQuote(q.symbol, q.bid, q.ask, 100, 100, q.ts_event_ns) for q in quotes]
        )

    @asynccontextmanager
    async def service(
        self,
        *symbols: str,
        feed: FakeDriver | None = None,
        settings: dict[str, Any] | None = None,
        **more: Any,
    ) -> AsyncIterator[Service]:
        self.feed = feed or FakeDriver(clock=self.clock)
        async with open_service(
            Settings(symbols=",".join(symbols), mute_after=80_000.0, **(settings or {})),
            drivers=[self.feed],
            history=self.history,
            store=self.store,
            clock=self.clock,
            rng=random.Random(7),
            **more,
        ) as service:
            yield service

    def events(self, symbol: str) -> list[dict[str, Any]]:
        payloads = self.store.published.get("price.updated", [])
        events = [msgspec.json.decode(payload) for payload in payloads]
        return [event for event in events if event["symbol"] == symbol]

    def bids(self, symbol: str) -> list[float]:
        return [event["bid"] for event in self.events(symbol)]

    @property
    def asked(self) -> list[tuple[str, ...]]:
        return [request.symbols for request in self.history.requests if request.call == "latest"]


@pytest.fixture
def bench() -> Bench:
    clock = VirtualClock()
    return Bench(
        clock,
        FakeHistory(),
        MemoryPriceStore(clock=clock, price_ttl_s=300),
        FakeDriver(clock=clock),
    )


async def until(condition: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    with anyio.fail_after(limit_s):
        while not condition():
            await anyio.sleep(0.02)


# ---- whoever subscribes


async def _by_the_settings(service: Service) -> None:
    """They are subscribed already."""


async def _by_the_api(service: Service) -> None:
    await service.subscribe("AAPL", "MSFT")


@pytest.mark.parametrize(
    ("symbols", "subscribe"), [(("AAPL", "MSFT"), _by_the_settings), ((), _by_the_api)]
)
async def test_a_symbol_has_its_price_at_once_while_the_market_is_closed(
    autojump_clock: Any, bench: Bench, symbols: tuple[str, ...], subscribe: Any
) -> None:
    bench.closed_at("AAPL", "MSFT")
    expected = bench.quote("AAPL")
    bench.history.delay_s = 0.05
    async with bench.service(*symbols) as service:
        began_s = anyio.current_time()
        await subscribe(service)
        await until(lambda: bench.store.price("AAPL") and bench.store.price("MSFT"))
        assert anyio.current_time() - began_s < 0.15
        (event,) = bench.events("AAPL")
        assert (event["seq"], event["timestamp"]) == (1, expected.timestamp)
        (quote,) = service.prices(["AAPL"])
        assert bench.store.price("AAPL") == encode_quote(quote)
        assert service.status().counters.prices_fetched == 2
    assert bench.asked == [("AAPL", "MSFT")]


async def test_the_symbols_of_positions_have_their_price_at_once(
    autojump_clock: Any, bench: Bench
) -> None:
    bench.closed_at("AAPL")
    positions = FakePositions([Position("AAPL", Decimal(10), Decimal(9))])
    async with bench.service(positions=positions):
        await until(lambda: bench.store.price("AAPL"))


async def test_a_price_does_not_wait_for_the_feed(autojump_clock: Any, bench: Bench) -> None:
    bench.closed_at("AAPL", "MSFT")
    driver = FakeDriver(clock=bench.clock)
    driver.fail(1_000)
    async with bench.service("AAPL", feed=driver) as service:
        await until(lambda: bench.store.price("AAPL"))
        await service.subscribe("MSFT")
        await until(lambda: bench.store.price("MSFT"))
        assert not service.readiness().ready


async def test_subscriptions_of_one_moment_are_one_request(
    autojump_clock: Any, bench: Bench
) -> None:
    bench.closed_at("A", "B", "C")
    async with bench.service() as service:
        async with anyio.create_task_group() as tasks:
            for symbol in ("A", "B", "C"):
                tasks.start_soon(service.subscribe, symbol)
                await anyio.sleep(COALESCE_S / 10)
        await until(lambda: bench.store.price("C"))
    assert bench.asked == [("A", "B", "C")]


async def test_many_symbols_are_a_few_requests(autojump_clock: Any, bench: Bench) -> None:
    names = [f"S{number}" for number in range(1_000)]
    bench.closed_at(*names)
    bench.history.delay_s = 0.05
    async with bench.service(*names):
        await until(lambda: len(bench.store.published.get("price.updated", [])) == 1_000)
    assert [len(symbols) for symbols in bench.asked] == [200] * 5


async def test_every_symbol_of_the_feed_is_not_asked_for(autojump_clock: Any, bench: Bench) -> None:
    bench.closed_at("AAPL")
    async with bench.service("*") as service:
        await until(lambda: service.readiness().ready)
        await anyio.sleep(LIMIT_S)
        assert bench.asked == []
        await service.subscribe("AAPL")
        await until(lambda: bench.store.price("AAPL"))


# ---- order


async def test_what_the_stream_brings_meanwhile_wins(autojump_clock: Any, bench: Bench) -> None:
    bench.closed_at("AAPL", bid=10.0, ago_ns=2)
    bench.history.delay_s = 1.0
    async with bench.service("AAPL"):
        await bench.feed.subscribed("AAPL")
        bench.stream(bench.quote("AAPL", bid=20.0, ago_ns=1))
        await until(lambda: bench.bids("AAPL") == [20.0])
        await anyio.sleep(2)
        bench.stream(bench.quote("AAPL", bid=21.0, ago_ns=0))
        await until(lambda: bench.bids("AAPL") == [20.0, 21.0])


async def test_what_rest_knows_before_the_stream_does_not_push_the_stream_aside(
    autojump_clock: Any, bench: Bench
) -> None:
    """REST's quote is newer than one that the stream has brought: so is the stream's next one."""
    async with bench.service("AAPL"):
        bench.history.delay_s = 1.0
        await bench.feed.subscribed("AAPL")
        first, second, third = (bench.quote("AAPL", bid, ago_ns=3 - bid) for bid in (1, 2, 3))
        bench.history.add([third])
        bench.stream(first)
        await anyio.sleep(2)
        bench.stream(second, third)
        await until(lambda: bench.bids("AAPL") == [1, 2, 3])


async def test_the_streams_quotes_of_the_moment_go_before_rest(
    autojump_clock: Any, bench: Bench
) -> None:
    """REST has answered already when the stream brings what came before."""
    quotes = [bench.quote("AAPL", bid, ago_ns=3 - bid) for bid in (1, 2, 3)]
    bench.history.add(quotes[-1:])
    async with bench.service() as service:
        await service.subscribe("AAPL")
        await until(lambda: bench.asked)
        await anyio.sleep(STREAM_FIRST_S / 2)
        bench.stream(*quotes)
        await until(lambda: bench.bids("AAPL") == [1, 2, 3])


async def test_the_stream_brings_the_same_quote_and_it_is_one_event(
    autojump_clock: Any, bench: Bench
) -> None:
    quote = bench.quote("AAPL", bid=10.0, ago_ns=0)
    before = attrs.evolve(quote, bid=9.0)
    after = attrs.evolve(quote, bid=11.0)
    bench.history.add([quote])
    async with bench.service("AAPL") as service:
        await until(lambda: bench.bids("AAPL") == [10.0])
        await bench.feed.subscribed("AAPL")
        bench.stream(before, quote, after)  # all of one time; REST told the second
        await until(lambda: service.status().counters.quotes_received == 3)
        await anyio.sleep(1)
    assert bench.bids("AAPL") == [10.0, 11.0]


async def test_a_repair_brings_the_same_quote_and_it_is_one_event(
    autojump_clock: Any, bench: Bench
) -> None:
    async with bench.service("MSFT") as service:
        await bench.feed.subscribed("MSFT")
        msft = bench.quote("MSFT", ago_ns=0)
        bench.history.add([msft])
        bench.stream(msft)
        await until(lambda: bench.bids("MSFT"))
        bench.closed_at("AAPL", ago_ns=1_000_000)
        await service.subscribe("AAPL")
        await until(lambda: bench.bids("AAPL") == [10.0])
        bench.feed.drop()
        await until(lambda: not bench.feed.connections)
        bench.closed_at("AAPL", bid=12.0, ago_ns=0)
        await until(lambda: service.status().counters.gaps_repaired == 1, 30)
    assert bench.bids("AAPL") == [10.0, 12.0]
    states = [msgspec.json.decode(s) for s in bench.store.published["feed.status"]]
    told = [s["symbols"] for s in states if s["state"] == "gap"]
    repaired = [s["symbols"] for s in states if s["state"] == "gap_repaired"]
    assert told == repaired


async def test_a_price_that_rest_gave_hides_nothing_that_an_earlier_run_missed(
    autojump_clock: Any, bench: Bench
) -> None:
    async with bench.service("MSFT"):
        await bench.feed.subscribed("MSFT")
        first = bench.quote("MSFT", bid=1.0, ago_ns=0)
        bench.history.add([first])
        bench.stream(first)
        await until(lambda: bench.bids("MSFT"))
    await anyio.sleep(100)
    bench.closed_at("MSFT", bid=2.0, ago_ns=80 * 1_000_000_000)
    bench.closed_at("MSFT", bid=3.0, ago_ns=1)
    bench.closed_at("AAPL", ago_ns=0)
    driver = FakeDriver(clock=bench.clock)
    driver.fail(3)
    async with bench.service("AAPL", "MSFT", feed=driver) as service:
        await until(lambda: bench.store.price("AAPL"))
        await until(lambda: service.status().counters.gaps_repaired == 1, 60)
    assert bench.bids("MSFT") == [1.0, 2.0, 3.0]


async def test_silence_after_a_price_from_rest_is_no_dead_socket(
    autojump_clock: Any, bench: Bench
) -> None:
    """What came between REST's answer and the acknowledgement is not the stream's to bring."""
    bench.closed_at("AAPL", ago_ns=1_000_000)
    driver = FakeDriver(clock=bench.clock)
    driver.fail(1)
    bench.feed = driver
    async with open_service(
        Settings(symbols="AAPL", mute_after=10.0),
        drivers=[driver],
        history=bench.history,
        store=bench.store,
        clock=bench.clock,
        rng=random.Random(7),
    ) as service:
        await until(lambda: bench.bids("AAPL"))
        bench.closed_at("AAPL", bid=11.0, ago_ns=0)
        await until(lambda: service.readiness().ready, 10)
        await anyio.sleep(60)
        assert service.status().counters.reconnects == 0


# ---- REST that fails


@pytest.mark.parametrize(
    "error", [HistoryUnavailable("HTTP 500"), HistoryRefused("HTTP 403"), None]
)
async def test_a_request_that_fails_is_tried_again(
    autojump_clock: Any, bench: Bench, error: Exception | None
) -> None:
    bench.closed_at("AAPL")
    if error is None:
        bench.history.delay_s = 1_000.0
    else:
        bench.history.script.extend([error, error])
    async with bench.service("AAPL") as service:
        await until(lambda: service.readiness().ready)  # which does not wait for REST
        await until(lambda: len(bench.asked) > 1, 10)
        bench.history.delay_s = 0.0
        await until(lambda: bench.store.price("AAPL"), 30)


async def test_tries_end_and_are_reported(autojump_clock: Any, bench: Bench) -> None:
    bench.closed_at("AAPL")
    bench.history.always = HistoryRefused("HTTP 400")
    async with bench.service("AAPL") as service:
        await anyio.sleep(sum(PAUSES_S) + 60)
        assert service.status().counters.price_fetches_failed == 1
        assert len(bench.asked) == len(PAUSES_S) + 1
        bench.stream(bench.quote("AAPL", bid=20.0, ago_ns=0))
        await until(lambda: bench.bids("AAPL") == [20.0])
        bench.history.always = None
        await service.unsubscribe("AAPL")
        await service.subscribe("AAPL")
        await anyio.sleep(1)
        assert len(bench.asked) == len(PAUSES_S) + 2


async def test_a_symbol_that_the_feed_refuses_is_not_priced(
    autojump_clock: Any, bench: Bench
) -> None:
    bench.closed_at("AAPL", "MSFT")
    bench.history.delay_s = 1.0
    driver = FakeDriver(clock=bench.clock, rules=SessionRules(symbol_limit=1))
    async with bench.service("AAPL", feed=driver) as service:
        await until(lambda: service.readiness().ready)
        with pytest.raises(SubscriptionRefused):
            await service.subscribe("MSFT")
        await anyio.sleep(LIMIT_S)
        assert bench.store.price("AAPL")
        assert not bench.store.price("MSFT")


@pytest.mark.parametrize("asked", [False, True], ids=["before it is asked for", "while it is"])
async def test_a_symbol_that_is_unsubscribed_meanwhile_is_not_priced(
    autojump_clock: Any, bench: Bench, asked: bool
) -> None:
    bench.closed_at("AAPL")
    bench.history.delay_s = 1.0
    async with bench.service() as service:
        await service.subscribe("AAPL")
        if asked:
            await until(lambda: bench.asked)
        await service.unsubscribe("AAPL")
        await anyio.sleep(LIMIT_S)
    assert not bench.events("AAPL")


async def test_rest_answers_for_other_symbols_too(autojump_clock: Any, bench: Bench) -> None:
    class Generous(FakeHistory):
        async def latest(self, kind: Any, symbols: Any) -> Any:
            return await super().latest(kind, ("AAPL", "MSFT"))

    bench.history = Generous()
    bench.closed_at("AAPL", "MSFT")
    async with bench.service("AAPL"):
        await until(lambda: bench.store.price("AAPL"))
    assert not bench.events("MSFT")


# ---- a restart


async def test_a_restart_publishes_no_price_twice(autojump_clock: Any, bench: Bench) -> None:
    bench.closed_at("AAPL")
    async with bench.service("AAPL"):
        await until(lambda: bench.store.price("AAPL"))
        await anyio.sleep(1)
    await anyio.sleep(200)
    payload = bench.store.price("AAPL")
    async with bench.service("AAPL"):
        await anyio.sleep(200)
        assert bench.store.price("AAPL") == payload
    assert len(bench.events("AAPL")) == 1


async def test_a_restart_at_night_shows_the_price_of_the_earlier_run(
    autojump_clock: Any, bench: Bench
) -> None:
    bench.closed_at("AAPL")
    async with bench.service("AAPL"):
        await until(lambda: bench.store.price("AAPL"))
    payload = bench.store.price("AAPL")
    assert payload is not None
    async with bench.service("AAPL", "MSFT") as service:
        await until(service.prices)
        first = service.latest("AAPL")
        assert first is not None
        assert encode_quote(first) == payload
        assert service.prices() == service.prices(["AAPL", "MSFT"]) == [first]
        async with service.events("AAPL") as events:
            assert await anext(events) == first
        assert service.status().counters.quotes_accepted == 0
        await until(service.channels)
        bench.stream(bench.quote("AAPL", 12.0, ago_ns=0))
        await until(lambda: service.prices()[0].bid == 12.0, limit_s=20.0)  # behind the repair
        assert service.prices()[0].seq == 1
    assert bench.bids("AAPL") == [10.0, 12.0]


@pytest.mark.parametrize(
    ("last_ns", "rest_answers", "bids"),
    [
        pytest.param(_HOUR_NS // 2, True, [10.0], id="a repair will begin there"),
        pytest.param(2 * _HOUR_NS, True, [10.0, 11.0], id="too long ago for a repair"),
        pytest.param(2 * _HOUR_NS, False, [10.0], id="REST does not answer"),
    ],
)
async def test_a_price_of_the_earlier_run_that_may_be_old_is_not_shown(
    autojump_clock: Any, bench: Bench, last_ns: int, rest_answers: bool, bids: list[float]
) -> None:
    bench.closed_at("AAPL", ago_ns=last_ns)
    async with bench.service("AAPL"):
        await until(lambda: bench.store.price("AAPL"))
    if rest_answers:
        bench.closed_at("AAPL", bid=11.0, ago_ns=last_ns // 2)
    else:
        bench.history.always = HistoryUnavailable("down")
    down = FakeDriver(clock=bench.clock)
    down.script.extend([FeedUnavailable("down")] * 1_000)
    async with bench.service("AAPL", feed=down) as service:
        await anyio.sleep(60)
        assert [quote.bid for quote in service.prices()] == bids[1:]
        assert msgspec.json.decode(bench.store.price("AAPL") or b"")["bid"] == bids[-1]
        assert bench.bids("AAPL") == bids


async def test_a_price_that_runs_out_while_the_service_starts_is_written_again(
    autojump_clock: Any, bench: Bench
) -> None:
    bench.closed_at("AAPL")
    async with bench.service("AAPL"):
        await until(lambda: bench.store.price("AAPL"))
    payload = bench.store.price("AAPL")
    await anyio.sleep(299.9)
    assert bench.store.price("AAPL") == payload
    bench.history.delay_s = 0.5
    async with bench.service("AAPL"):
        await anyio.sleep(0.2)
        assert bench.store.price("AAPL") is None
        await until(lambda: bench.store.price("AAPL") == payload)
    assert len(bench.events("AAPL")) == 1


async def test_an_earlier_price_that_the_server_forgets_is_written_again(
    autojump_clock: Any, bench: Bench
) -> None:
    bench.closed_at("AAPL")
    async with bench.service("AAPL"):
        await until(lambda: bench.store.price("AAPL"))
    payload = bench.store.price("AAPL")
    async with bench.service("AAPL"):
        await anyio.sleep(5)
        bench.store.restart()
        await until(lambda: bench.store.price("AAPL") == payload)
    assert len(bench.events("AAPL")) == 1


async def test_an_earlier_price_is_not_written_again_while_the_feed_is_down(
    autojump_clock: Any, bench: Bench
) -> None:
    bench.closed_at("AAPL", "MSFT")
    async with bench.service("AAPL", "MSFT"):
        await until(lambda: bench.store.price("AAPL"))
    bench.history.script.extend([HistoryUnavailable("down")] * 10)
    down = FakeDriver(clock=bench.clock)
    down.script.extend([FeedUnavailable("down")] * 1_000)
    async with bench.service("AAPL", feed=down):
        await anyio.sleep(2)
        bench.store.restart()
        await anyio.sleep(60)
        assert bench.store.price("AAPL") is None


async def test_an_earlier_price_that_rest_confirms_lives_once_more_though_the_feed_is_down(
    autojump_clock: Any, bench: Bench
) -> None:
    bench.closed_at("AAPL")
    async with bench.service("AAPL"):
        await until(lambda: bench.store.price("AAPL"))
    payload = bench.store.price("AAPL")
    await anyio.sleep(250)
    down = FakeDriver(clock=bench.clock)
    down.script.extend([FeedUnavailable("down")] * 1_000)
    async with bench.service("AAPL", feed=down):
        await anyio.sleep(290)
        assert bench.store.price("AAPL") == payload
        await anyio.sleep(20)
        assert bench.store.price("AAPL") is None


async def test_a_symbol_that_is_subscribed_again_at_night_has_its_price_again(
    autojump_clock: Any, bench: Bench
) -> None:
    bench.closed_at("AAPL")
    async with bench.service("AAPL") as service:
        await until(lambda: bench.store.price("AAPL"))
        payload = bench.store.price("AAPL")
        await service.unsubscribe("AAPL")
        await anyio.sleep(310)
        assert bench.store.price("AAPL") is None
        await service.subscribe("AAPL")
        await until(lambda: bench.store.price("AAPL") == payload)
    assert len(bench.events("AAPL")) == 1


async def test_a_quiet_price_lives_while_the_feed_does(autojump_clock: Any, bench: Bench) -> None:
    bench.closed_at("AAPL")
    async with bench.service("AAPL"):
        await until(lambda: bench.store.price("AAPL"))
        payload = bench.store.price("AAPL")
        for _ in range(14):
            await anyio.sleep(50)
            assert bench.store.price("AAPL") == payload
        bench.feed.script.extend(ConnectionLost for _ in range(1_000))
        bench.feed.drop()
        await anyio.sleep(301)
        assert bench.store.price("AAPL") is None
    assert len(bench.events("AAPL")) == 1
    assert sum("AAPL" in symbols for symbols in bench.store.renewed) < 12


ConnectionLost = FeedUnavailable("nobody listens")


@pytest.mark.thorough
async def test_a_price_that_was_evicted_or_ran_out_is_written_again(
    autojump_clock: Any, bench: Bench
) -> None:
    bench.closed_at("AAPL")
    async with bench.service("AAPL"):
        await until(lambda: bench.store.price("AAPL"))
        payload = bench.store.price("AAPL")
        del bench.store._keys["price:AAPL"]
        await anyio.sleep(160)
        assert bench.store.price("AAPL") == payload
        bench.store.down = True
        await anyio.sleep(310)
        assert bench.store.price("AAPL") is None
        bench.store.down = False
        await until(lambda: bench.store.price("AAPL") == payload)
        await anyio.sleep(310)
        assert bench.store.price("AAPL") == payload
    assert len(bench.events("AAPL")) == 1


async def test_prices_expire_where_they_are_not_renewed(autojump_clock: Any, bench: Bench) -> None:
    bench.closed_at("AAPL")
    async with bench.service("AAPL", settings={"renew_prices": "off"}):
        await until(lambda: bench.store.price("AAPL"))
        await anyio.sleep(299)
        assert bench.store.price("AAPL")
        await anyio.sleep(2)
        assert bench.store.price("AAPL") is None


@pytest.mark.parametrize("ttl_s", [1, 2, 5])
async def test_a_short_life_is_renewed_in_time(
    autojump_clock: Any, bench: Bench, ttl_s: int
) -> None:
    bench.store._price_ttl_s = ttl_s
    bench.closed_at("AAPL")
    async with bench.service("AAPL", settings={"price_ttl": ttl_s}):
        await until(lambda: bench.store.price("AAPL"))
        for _ in range(400):
            await anyio.sleep(0.05)
            assert bench.store.price("AAPL")


@pytest.mark.thorough
async def test_a_user_without_the_right_to_renew_keeps_its_prices(
    autojump_clock: Any, bench: Bench
) -> None:
    class NoExpire(MemoryPriceStore):
        async def renew(self, kind: Any, symbols: Any) -> Any:
            raise StoreRefused("NOPERM this user has no permissions to run the 'expire' command")

    bench.store = NoExpire(clock=bench.clock, price_ttl_s=300)
    bench.closed_at("AAPL")
    async with bench.service("AAPL") as service:
        await until(lambda: bench.store.price("AAPL"))
        await anyio.sleep(1_000)
        assert bench.store.price("AAPL")
        assert service.readiness().ready


@pytest.mark.parametrize("how", ["later", "before the answer", "while the feed is away"])
async def test_a_symbol_that_rest_refuses_is_forgotten_when_it_is_unsubscribed(
    autojump_clock: Any, bench: Bench, how: str
) -> None:
    bench.closed_at("AAPL")
    async with bench.service("AAPL") as service:
        await until(lambda: bench.bids("AAPL"))
        if how == "while the feed is away":
            bench.feed.fail(100)
            bench.feed.drop()
        if how == "before the answer":
            bench.history.delay_s = 0.5
        for number in range(20):
            symbol = f"BAD{number}"
            bench.history.refuses = {symbol: f"invalid symbol: {symbol}"}
            await service.subscribe(symbol)
            await anyio.sleep(0.2)
            await service.unsubscribe(symbol)
            await anyio.sleep(2)
        assert service.status().counters.history_symbols_refused > 0
        assert service.status().feed.repairs_refused == {}
