"""The whole service on virtual time: what it missed, in one run and between two, comes in order."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import attrs
import msgspec
import pytest

from mdservice.app.service import Service, open_service
from mdservice.errors import HistoryRefused, HistoryUnavailable, StoreUnavailable
from mdservice.feed import session
from mdservice.feed.gap_repair.recheck import LOOK_AGAIN_S
from mdservice.feed.gap_repair.repair import HOLD_LIMIT_S
from mdservice.model.quote import Quote
from mdservice.model.timestamps import parse_rfc3339
from mdservice.publish.store import READ_LIMIT_S
from mdservice.settings import Settings
from mdservice.simulator import SimQuote
from mdservice.testing import FakeDriver, FakeHistory, MemoryPriceStore, VirtualClock
from mdservice.testing.fake_feed import FakeLink
from tests.examples import first

SYMBOLS = ("AAPL", "MSFT", "SPY")


@attrs.define
class Bench:
    """A market that goes on whatever becomes of the service, and the store behind it."""

    clock: VirtualClock
    history: FakeHistory
    store: MemoryPriceStore
    feed: FakeDriver
    made: list[Quote] = attrs.field(factory=list)
    last_ns: int = 0

    def send(self, *symbols: str, same_time: bool = False) -> None:
        """One quote of each symbol, now; all different."""
        quotes = []
        for symbol in symbols:
            now_ns = self.clock.utc_ns()
            self.last_ns = (
                self.last_ns if same_time and self.last_ns else max(self.last_ns + 1, now_ns)
            )
            number = len(self.made) + 1
            quote = Quote(symbol, number, number + 1.0, 100, 100, self.last_ns, now_ns)
            self.made.append(quote)
            quotes.append(quote)
        self.history.add(quotes)
        self.feed.send_quotes(
            [SimQuote(q.symbol, q.bid, q.ask, 100, 100, q.ts_event_ns) for q in quotes]
        )

    async def run_market(self, rng: random.Random, for_s: float) -> None:
        end_s = anyio.current_time() + for_s
        while anyio.current_time() < end_s:
            await anyio.sleep(rng.expovariate(15))
            chosen = rng.choices(SYMBOLS, k=rng.choice((1, 1, 2, 5)))
            self.send(*chosen, same_time=rng.random() < 0.3)

    @asynccontextmanager
    async def service(self, *symbols: str, **more: Any) -> AsyncIterator[Service]:
        self.feed = FakeDriver(clock=self.clock)
        async with open_service(
            Settings(symbols=",".join(symbols or SYMBOLS), **{"mute_after": 80_000.0, **more}),
            drivers=[self.feed],
            history=self.history,
            store=self.store,
            clock=self.clock,
            rng=random.Random(7),
        ) as service:
            yield service

    def published(self, symbol: str) -> list[dict[str, Any]]:
        payloads = self.store.published.get("price.updated", [])
        events = [msgspec.json.decode(payload) for payload in payloads]
        return [event for event in events if event["symbol"] == symbol]

    @property
    def states(self) -> list[dict[str, Any]]:
        payloads = self.store.published.get("feed.status", [])
        return [msgspec.json.decode(payload) for payload in payloads]

    def told(self, *names: str) -> list[str]:
        return [state["state"] for state in self.states if state["state"] in names]

    def check_in_order(self) -> None:
        """No event is repeated or goes back."""
        for symbol in SYMBOLS:
            numbers = [event["bid"] for event in self.published(symbol)]
            assert numbers == sorted(set(numbers))

    def check_complete(self, *symbols: str) -> None:
        """Every quote since the first one is an event, once and in order."""
        for symbol in symbols or SYMBOLS:
            made = [(q.bid, q.ts_event_ns) for q in self.made if q.symbol == symbol]
            out = [(e["bid"], parse_rfc3339(e["timestamp"])) for e in self.published(symbol)]
            assert out
            assert out == made[made.index(out[0]) :], symbol


@pytest.fixture
def bench() -> Bench:
    clock = VirtualClock()
    return Bench(
        clock,
        FakeHistory(),
        MemoryPriceStore(clock=clock, price_ttl_s=300),
        FakeDriver(clock=clock),
    )


async def until(condition: Any) -> None:
    with anyio.fail_after(600):
        while not condition():
            await anyio.sleep(0.01)


async def first_quotes(bench: Bench, service: Service, *symbols: str) -> None:
    await bench.feed.subscribed(*(symbols or SYMBOLS))
    bench.send(*(symbols or SYMBOLS))
    await until(lambda: service.status().counters.quotes_accepted == len(symbols or SYMBOLS))


# ---- in one run


@pytest.mark.parametrize("refused", [("AAPL",), ("MSFT",), ("AAPL", "SPY")])
@pytest.mark.parametrize("quiet", [True, False])
async def test_a_symbol_that_history_refuses_costs_itself(
    autojump_clock: Any, bench: Bench, refused: tuple[str, ...], quiet: bool
) -> None:
    reasons = {symbol: f"HTTP 400: invalid symbol: {symbol}" for symbol in refused}
    bench.history.refuses = reasons
    kept = sorted(set(SYMBOLS) - set(refused))
    async with bench.service() as service:
        await first_quotes(bench, service)
        bench.feed.drop()
        await until(lambda: not bench.feed.connections)
        bench.send(*SYMBOLS, *SYMBOLS)
        await until(lambda: service.readiness().ready)
        if not quiet:
            bench.send(*refused)  # history has none of these
            bench.send(*kept)
        await until(lambda: any(s["state"] == "gap_repaired" for s in bench.states))
        await until(lambda: all(len(bench.published(s)) == 4 - quiet for s in kept))
        status = service.status()
        await anyio.sleep(LOOK_AGAIN_S * 3)
        assert service.status().counters.reconnects == 1
    (gap,) = [s for s in bench.states if s["state"] == "gap"]
    (repaired,) = [s for s in bench.states if s["state"] == "gap_repaired"]
    assert (gap["symbols"], repaired["symbols"]) == (sorted(SYMBOLS), kept)
    assert status.feed.repairs_refused == reasons
    assert status.counters.history_symbols_refused == len(refused)
    assert (status.counters.gaps, status.counters.gaps_repaired) == (1, 0)
    assert status.state == "degraded"
    assert f"repairs of {', '.join(refused)} are refused" in status.reasons[-1]
    for symbol in kept:
        sent = [quote.bid for quote in bench.made if quote.symbol == symbol]
        assert [event["bid"] for event in bench.published(symbol)] == sent


async def test_history_that_refuses_every_repair_is_in_the_status(
    autojump_clock: Any, bench: Bench
) -> None:
    bench.history.always = HistoryRefused("HTTP 403: no recent SIP data")
    async with bench.service() as service:
        await first_quotes(bench, service)
        bench.feed.drop()
        await until(lambda: service.status().feed.repair_error is not None)
        assert "repairs are refused: HTTP 403: no recent SIP data" in service.status().reasons
        bench.history.always = None
        bench.feed.drop()
        await until(lambda: service.status().counters.gaps_repaired > 0)
        assert service.status().feed.repair_error is None


async def test_a_quiet_symbol_whose_repair_failed_is_repaired_from_its_own_last_quote(
    autojump_clock: Any, bench: Bench
) -> None:
    async with bench.service("AAPL", "MSFT") as service:
        await first_quotes(bench, service, "AAPL", "MSFT")
        bench.history.always = HistoryRefused("HTTP 503")
        bench.feed.drop()
        await until(lambda: not bench.feed.connections)
        bench.send("AAPL", "MSFT")
        await until(lambda: service.status().feed.repair_error is not None)
        await anyio.sleep(30)
        bench.send("AAPL")  # and nothing of MSFT
        await anyio.sleep(1)
        bench.history.always = None
        bench.feed.drop()
        await until(lambda: service.status().counters.gaps_repaired > 0)
        await anyio.sleep(1)
    (repaired,) = [
        s for s in bench.states if s["state"] == "gap_repaired" and "MSFT" in s["symbols"]
    ]
    assert parse_rfc3339(repaired["from"]) == bench.made[1].ts_event_ns
    bench.check_complete("MSFT")
    assert len(bench.published("AAPL")) == 2, "its missed quote is older than a published one"


async def test_what_was_missed_comes_before_what_came_since(
    autojump_clock: Any, bench: Bench
) -> None:
    async with bench.service() as service:
        await first_quotes(bench, service)
        bench.feed.drop()
        await until(lambda: not bench.feed.connections)
        bench.send("AAPL", "AAPL", "SPY", same_time=True)
        await until(lambda: service.readiness().ready)
        bench.send("MSFT", "AAPL")
        await until(lambda: service.status().counters.gaps_repaired == 1)
        bench.send("AAPL")
        await until(lambda: len(bench.published("AAPL")) == 5)
        counters = service.status().counters
    bench.check_complete()
    assert [event["seq"] for event in bench.published("AAPL")] == [1, 2, 3, 4, 5]
    assert (counters.gaps, counters.gaps_repaired, counters.quotes_backfilled) == (1, 1, 3)
    assert counters.quotes_stale == 0
    gap, repaired = (s for s in bench.states if s["state"] in {"gap", "gap_repaired"})
    assert parse_rfc3339(gap["from"]) == bench.made[2].ts_event_ns
    assert repaired["from"] == gap["from"]
    assert repaired["to"] >= gap["to"]
    assert gap["symbols"] == repaired["symbols"] == sorted(SYMBOLS)
    assert repaired["quotes"] == 3


async def test_a_loss_in_the_middle_of_a_repair_is_repaired_by_the_next(
    autojump_clock: Any, bench: Bench
) -> None:
    bench.history.lag_s = 3
    async with bench.service() as service:
        await first_quotes(bench, service)
        for _ in range(3):
            bench.feed.drop()
            await until(lambda: not bench.feed.connections)
            bench.send(*SYMBOLS)
            await until(lambda: service.readiness().ready)
            bench.send(*SYMBOLS)
            await anyio.sleep(0.5)
        await until(lambda: service.status().counters.gaps_repaired)
        counters = service.status().counters
    bench.check_complete()
    assert (counters.gaps, counters.gaps_repaired) == (3, 3)
    assert bench.told("gap", "gap_repaired") == ["gap"] * 3 + ["gap_repaired"]


async def test_history_refused_leaves_the_gap_and_the_latest_price(
    autojump_clock: Any, bench: Bench
) -> None:
    async with bench.service() as service:
        await first_quotes(bench, service)
        await anyio.sleep(1)  # the first prices have been fetched
        bench.history.script.append(HistoryRefused("42210000"))
        bench.feed.drop()
        await until(lambda: not bench.feed.connections)
        bench.send("AAPL", "AAPL", "AAPL")
        await until(lambda: service.status().counters.quotes_backfilled)
        latest = service.latest("AAPL")
        assert latest is not None
        assert latest.bid == len(bench.made)
        assert [event["seq"] for event in bench.published("AAPL")] == [1, 2]
        assert service.status().counters.gaps_repaired == 0
    assert bench.told("gap", "gap_repaired") == ["gap"]


async def test_a_quiet_market_whose_history_lags_is_looked_at_again(
    autojump_clock: Any, bench: Bench
) -> None:
    bench.history.lag_s = 8
    async with bench.service() as service:
        await first_quotes(bench, service)
        await anyio.sleep(20)
        bench.feed.drop()
        await until(lambda: not bench.feed.connections)
        bench.send("AAPL", "MSFT")
        await anyio.sleep(0.001)
        bench.feed.fail(2)  # so that the return is clearly later than these
        await until(lambda: "gap_repaired" in bench.told("gap_repaired"))
        assert len(bench.published("AAPL")) == 1, "history had not told it"
        bench.send("MSFT")  # newer: the one that was missed can no longer be an event
        await until(lambda: len(bench.published("AAPL")) == 2)
        await until(lambda: bench.told("gap") == ["gap", "gap"])
        counters = service.status().counters
    bench.check_in_order()
    bench.check_complete("AAPL")
    late = [state for state in bench.states if state["state"] == "gap"][-1]
    assert (late["symbols"], late["reason"]) == (["MSFT"], "history was late")
    missed_ns = bench.made[4].ts_event_ns
    assert parse_rfc3339(late["from"]) < missed_ns < parse_rfc3339(late["to"])
    assert (counters.gaps, counters.gaps_repaired, counters.quotes_backfilled) == (2, 1, 1)


async def test_a_history_that_was_complete_is_asked_again_and_nothing_is_reported(
    autojump_clock: Any, bench: Bench
) -> None:
    async with bench.service() as service:
        await first_quotes(bench, service)
        bench.feed.drop()
        await until(lambda: not bench.feed.connections)
        bench.send("AAPL", "MSFT")
        await until(lambda: "gap_repaired" in bench.told("gap_repaired"))
        bench.send("SPY")
        asked = len(bench.history.requests)
        await anyio.sleep(2 * LOOK_AGAIN_S)
        assert len(bench.history.requests) > asked
        counters = service.status().counters
    bench.check_complete()
    assert (counters.gaps, counters.gaps_repaired, counters.quotes_backfilled) == (1, 1, 2)


async def test_what_waited_and_went_out_before_the_return_leaves_a_gap(
    autojump_clock: Any, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the symbols are acknowledged, and nothing more, until it has waited long enough."""
    monkeypatch.setattr(session, "CHUNK_SIZE", 1)
    send = FakeLink.send

    async def second_goes_unheard(link: FakeLink, message: Any) -> None:
        if link.number != 2 or message.get("quotes") != ["MSFT"]:
            await send(link, message)

    monkeypatch.setattr(FakeLink, "send", second_goes_unheard)
    async with bench.service("AAPL", "MSFT") as service:
        await first_quotes(bench, service, "AAPL", "MSFT")
        await anyio.sleep(20)
        bench.feed.drop()
        await until(lambda: not bench.feed.connections)
        bench.send("AAPL", "MSFT")  # missed
        await until(lambda: len(bench.feed.links) == 2)
        await until(lambda: "AAPL" in bench.feed.links[1].subscriptions["quotes"])
        bench.feed.fail(4)
        await anyio.sleep(2)
        bench.send("AAPL")  # waits
        await anyio.sleep(HOLD_LIMIT_S)
        await until(lambda: len(bench.feed.links) == 3)
        await anyio.sleep(1)
        bench.send("AAPL", "MSFT")
        await until(lambda: "gap_repaired" in bench.told("gap_repaired"))
        await anyio.sleep(1)
    bench.check_in_order()
    bench.check_complete("MSFT")
    assert len(bench.published("AAPL")) == 3, "one is lost for good"
    gaps = [s for s in bench.states if s["state"] == "gap"]
    (repaired,) = [s for s in bench.states if s["state"] == "gap_repaired"]
    missed_ns = bench.made[2].ts_event_ns
    (untold,) = [s for s in gaps if "AAPL" in s["symbols"]]
    assert parse_rfc3339(untold["from"]) < missed_ns < parse_rfc3339(untold["to"])
    assert repaired["symbols"] == ["MSFT"]


async def test_the_first_quote_of_a_symbol_can_be_late_too(
    autojump_clock: Any, bench: Bench
) -> None:
    async with bench.service("AAPL", "MSFT"):
        await bench.feed.subscribed("AAPL", "MSFT")
        bench.send("AAPL")
        await anyio.sleep(10)
        bench.history.lag_s = 8
        bench.feed.drop()
        await until(lambda: not bench.feed.connections)
        bench.send("AAPL", "MSFT")
        bench.feed.fail(2)
        await anyio.sleep(60)
    bench.check_complete("AAPL", "MSFT")


async def test_a_stream_in_disorder_is_no_gap(autojump_clock: Any, bench: Bench) -> None:
    async with bench.service("AAPL", "MSFT") as service:
        await first_quotes(bench, service, "AAPL", "MSFT")
        await anyio.sleep(10)
        bench.feed.drop()
        await until(lambda: not bench.feed.connections)
        await anyio.sleep(8)
        now_ns = bench.clock.utc_ns()
        for symbol, ts_ns in (("AAPL", now_ns), ("MSFT", now_ns - 5_000_000)):
            quote = Quote(symbol, 50.0, 51.0, 100, 100, ts_ns, now_ns)
            bench.history.add([quote])
            bench.feed.send_quotes([SimQuote(symbol, 50.0, 51.0, 100, 100, ts_ns)])
            await anyio.sleep(0.01)
        await anyio.sleep(40)
        assert service.status().counters.gaps == 1
    assert bench.told("gap", "gap_repaired") == ["gap", "gap_repaired"]


async def test_without_any_answer_live_quotes_come_within_the_limit(
    autojump_clock: Any, bench: Bench
) -> None:
    bench.history.always = HistoryUnavailable("no route")
    async with bench.service() as service:
        await first_quotes(bench, service)
        bench.feed.drop()
        await bench.feed.opened(2)
        await until(lambda: service.readiness().ready)
        bench.send("AAPL")
        sent_s = anyio.current_time()
        await until(lambda: len(bench.published("AAPL")) == 2)
        assert anyio.current_time() - sent_s <= HOLD_LIMIT_S


async def test_a_first_connection_that_brought_nothing_has_a_gap_too(
    autojump_clock: Any, bench: Bench
) -> None:
    """It was subscribed, and its data came no further than its network."""
    async with bench.service("AAPL") as service:
        await bench.feed.opened(1)
        await until(lambda: service.readiness().ready)
        bench.feed.drop()
        await until(lambda: not bench.feed.connections)
        bench.send("AAPL")
        bench.send("AAPL")
        await bench.feed.opened(2)
        await until(lambda: service.status().counters.gaps_repaired == 1)
        assert len(bench.published("AAPL")) == 2
    bench.check_in_order()
    assert bench.told("gap", "gap_repaired") == ["gap", "gap_repaired"]


async def test_stopping_in_the_middle_of_a_repair_writes_what_waited(
    autojump_clock: Any, bench: Bench
) -> None:
    bench.history.lag_s = 1_000
    async with bench.service() as service:
        await first_quotes(bench, service)
        bench.feed.drop()
        await bench.feed.opened(2)
        await until(lambda: service.readiness().ready)
        bench.send(*SYMBOLS)
        await anyio.sleep(0.1)
    bench.check_complete()


async def test_a_restarted_actor_repairs_what_it_missed_too(
    autojump_clock: Any, bench: Bench
) -> None:
    async with bench.service() as service:
        await first_quotes(bench, service)
        for _ in range(3):
            service._topology.supervisor.restart("feed_connection", "for the test")
            await until(lambda: not bench.feed.connections)
            bench.send(*SYMBOLS)
            await until(lambda: service.readiness().ready)
            bench.send(*SYMBOLS)
            await anyio.sleep(30)
    bench.check_complete()


@pytest.mark.parametrize("seed", first(1, range(40)))
async def test_whatever_is_lost_and_when_each_quote_comes_once(
    autojump_clock: Any, bench: Bench, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(seed)
    bench.history.lag_s = rng.choice((0.0, 0.05, 0.4, 1.9))
    async with anyio.create_task_group() as tasks, bench.service() as service:
        await first_quotes(bench, service)
        tasks.start_soon(bench.run_market, rng, 60.0)
        for _ in range(12):
            await anyio.sleep(rng.choice((0.05, 0.7, 3.0, 9.0)))
            bench.feed.drop(rng.choice(("reset", "half-close", "close")))
            if rng.random() < 0.3:
                bench.feed.fail(rng.randrange(3))
            if rng.random() < 0.3:
                bench.history.script.extend([HistoryUnavailable("503")] * rng.randrange(3))
            if rng.random() < 0.2:
                actor = rng.choice(("quote_router", "event_publisher", "feed_connection"))
                service._topology.supervisor.restart(actor, "for the test")
        await anyio.sleep(60)
        await until(lambda: service.readiness().ready)
        await anyio.sleep(HOLD_LIMIT_S)
        counters = service.status().counters
    for symbol in SYMBOLS:
        events = bench.published(symbol)
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert counters.gaps > 0
    if "gap_not_repaired" in caplog.text:  # lost again and again, it took too long
        assert counters.gaps_repaired < counters.gaps
        bench.check_in_order()
    else:
        assert counters.gaps_repaired == counters.gaps
        bench.check_complete()
        assert counters.quotes_accepted == len(bench.made)


# ---- between two runs


async def test_a_new_run_fetches_what_came_since_the_last_one(
    autojump_clock: Any, bench: Bench
) -> None:
    async with bench.service() as service:
        await first_quotes(bench, service)
    bench.send("AAPL", "AAPL", "SPY")
    await anyio.sleep(30)
    async with bench.service() as service:
        await until(lambda: service.readiness().ready)
        assert service.prices() == [], "what an earlier run knew is not told as known"
        bench.send("AAPL")
        await until(lambda: service.status().counters.gaps_repaired == 1)
        counters = service.status().counters
    bench.check_complete()
    assert (counters.gaps, counters.quotes_backfilled, counters.quotes_accepted) == (1, 3, 4)
    assert [event["seq"] for event in bench.published("AAPL")] == [1, 1, 2, 3]
    gap = next(state for state in bench.states if state["state"] == "gap")
    last = bench.made[2]
    assert parse_rfc3339(gap["from"]) == min(last.ts_event_ns, last.ts_recv_ns)
    assert bench.told("gap", "gap_repaired") == ["gap", "gap_repaired"]


async def test_nothing_older_than_its_key_is_accepted(autojump_clock: Any, bench: Bench) -> None:
    async with bench.service("AAPL") as service:
        await first_quotes(bench, service, "AAPL")
        bench.send("AAPL")
        await until(lambda: len(bench.published("AAPL")) == 2)
    bench.history.always = HistoryRefused("none")
    kept = bench.store.price("AAPL")
    async with bench.service("AAPL") as service:
        await bench.feed.subscribed("AAPL")
        first = bench.made[0]
        bench.feed.send_quotes([SimQuote("AAPL", 1, 2, 100, 100, first.ts_event_ns)])
        await until(lambda: service.status().counters.quotes_stale == 1)
        assert bench.store.price("AAPL") == kept
        bench.send("AAPL")
        await until(lambda: len(bench.published("AAPL")) == 3)
    assert bench.published("AAPL")[-1]["seq"] == 1


async def test_after_too_long_a_pause_nothing_is_fetched_but_the_order_is_kept(
    autojump_clock: Any, bench: Bench
) -> None:
    bench.store._price_ttl_s = 100_000
    async with bench.service("AAPL") as service:
        await first_quotes(bench, service, "AAPL")
    bench.send("AAPL")
    await anyio.sleep(3_700)
    async with bench.service("AAPL") as service:
        await bench.feed.subscribed("AAPL")
        first = bench.made[0]
        bench.feed.send_quotes([SimQuote("AAPL", 9, 9, 1, 1, first.ts_event_ns - 1)])
        await until(lambda: service.status().counters.quotes_stale == 1)
        bench.send("AAPL")
        await until(lambda: len(bench.published("AAPL")) == 2)
        assert service.status().counters.gaps == 0
    assert not [request for request in bench.history.requests if request.call == "past"]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b'{"symbol":"AAPL"}',
        b"\xff",
        b'{"symbol":"AAPL","bid":1,"ask":2,"bid_size":1,"ask_size":1,"timestamp":"x","seq":1}',
        (
            b'{"symbol":"MSFT","bid":1,"ask":2,"bid_size":1,"ask_size":1,'
            b'"timestamp":"2026-11-20T15:00:00Z","seq":1}'
        ),
        (
            b'{"symbol":"AAPL","bid":1,"ask":2,"bid_size":1,"ask_size":1,'
            b'"timestamp":"2036-11-20T15:00:00Z","seq":1}'
        ),
    ],
)
async def test_a_key_that_cannot_be_read_is_ignored_and_logged(
    autojump_clock: Any, bench: Bench, payload: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    bench.store._keys["price:AAPL"] = (payload, 1e9)
    async with bench.service("AAPL") as service:
        await first_quotes(bench, service, "AAPL")
        assert service.status().counters.gaps == 0
    assert "last_price_ignored" in caplog.text
    assert [event["seq"] for event in bench.published("AAPL")] == [1]


async def test_a_store_that_is_away_does_not_hold_up_the_start(
    autojump_clock: Any, bench: Bench
) -> None:
    bench.store.down = True
    async with bench.service("AAPL"):
        assert anyio.current_time() == 0
        await bench.feed.subscribed("AAPL")


@pytest.mark.parametrize("call", ["connect", "read_latest"])
async def test_a_store_that_does_not_answer_holds_up_the_start_for_a_moment(
    autojump_clock: Any, bench: Bench, call: str
) -> None:
    class Silent(MemoryPriceStore):
        silent = True

        async def connect(self) -> None:
            await self._perhaps_silent("connect")
            await super().connect()

        async def read_latest(self, kind: Any, symbols: Any) -> dict[str, bytes]:
            await self._perhaps_silent("read_latest")
            return await super().read_latest(kind, symbols)

        async def _perhaps_silent(self, name: str) -> None:
            if name == call and self.silent:
                self.silent = False
                await anyio.sleep(1_000)
                raise StoreUnavailable("no answer")

    bench.store = Silent(clock=bench.clock)
    async with bench.service("AAPL") as service:
        assert anyio.current_time() == READ_LIMIT_S
        await first_quotes(bench, service, "AAPL")
    assert [event["seq"] for event in bench.published("AAPL")] == [1]


async def test_quotes_of_one_time_are_not_published_again_by_the_next_run(
    autojump_clock: Any, bench: Bench
) -> None:
    """The key tells only the last of them."""
    async with bench.service("AAPL") as service:
        await first_quotes(bench, service, "AAPL")
        bench.send("AAPL", "AAPL", same_time=True)
        await until(lambda: len(bench.published("AAPL")) == 3)
    bench.send("AAPL", same_time=True)
    async with bench.service("AAPL") as service:
        await until(lambda: service.status().counters.gaps_repaired == 1)
    bench.check_complete("AAPL")


@pytest.mark.parametrize("seed", first(1, range(30)))
async def test_however_often_it_is_restarted_each_quote_comes_once(
    autojump_clock: Any, bench: Bench, seed: int
) -> None:
    rng = random.Random(seed)
    bench.history.lag_s = rng.choice((0.0, 0.05, 0.4, 1.9))
    async with anyio.create_task_group() as tasks:
        async with bench.service() as service:
            await first_quotes(bench, service)
            tasks.start_soon(bench.run_market, rng, 60.0)
            await anyio.sleep(rng.uniform(0, 9))
        for _ in range(5):
            await anyio.sleep(rng.choice((0.0, 0.3, 4.0)))
            with anyio.move_on_after(rng.uniform(4.5, 9)):
                async with bench.service() as service:
                    await until(lambda: service.status().counters.gaps_repaired)
                    await anyio.sleep_forever()
        async with bench.service() as service:
            await anyio.sleep(90)
            assert service.status().counters.gaps_repaired == 1
    bench.check_complete()
