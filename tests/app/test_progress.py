"""A run keeps for the next one up to when it has published all records."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import attrs
import msgspec
import pytest

from mdservice.app.service import Service, open_service
from mdservice.errors import HistoryUnavailable
from mdservice.model.kinds import QUOTES
from mdservice.model.quote import Quote
from mdservice.model.timestamps import parse_rfc3339
from mdservice.settings import Settings
from mdservice.simulator.session import SessionRules
from mdservice.testing import FakeDriver, FakeHistory, MemoryPriceStore, VirtualClock
from tests.examples import first

PROGRESS = "mdservice:progress"


def decode(payload: bytes) -> dict[str, Any]:
    return msgspec.json.decode(payload, type=dict[str, Any])


@attrs.define
class Bench:
    """A market, a store, and services one after the other."""

    clock: VirtualClock = attrs.field(factory=VirtualClock)
    history: FakeHistory = attrs.field(factory=FakeHistory)
    store: MemoryPriceStore = attrs.field(init=False)
    feed: FakeDriver = attrs.field(factory=FakeDriver)
    made: dict[str, list[int]] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.store = MemoryPriceStore(clock=self.clock)

    @asynccontextmanager
    async def run(
        self, *symbols: str, killed: bool = False, feed: bool = True
    ) -> AsyncIterator[Service]:
        """A run of the service, once it is ready. A killed one writes nothing at its end.

        Args:
            symbols: Those of the settings.
            killed: Whether it is.
            feed: Whether the feed takes connections.
        """
        self.feed = FakeDriver()
        if not feed:
            self.feed.refuse_next(406, times=1_000)
        self.store.down = False
        settings = Settings(symbols=",".join(symbols), mute_after=80_000.0)
        async with open_service(
            settings, drivers=[self.feed], history=self.history, store=self.store, clock=self.clock
        ) as service:
            if feed:
                await self.until(lambda: service.readiness().ready)
            yield service
            self.store.down = killed
        self.store.down = False

    async def until(self, condition: Callable[[], Any]) -> None:
        with anyio.fail_after(100):
            while not condition():
                await anyio.sleep(0.02)

    def market(self, *bids: float, symbol: str = "AAPL") -> None:
        """The market makes quotes: history has them, and so has a feed that is connected."""
        for bid in bids:
            made = self.made.setdefault(symbol, [])
            at_ns = max(self.clock.utc_ns(), made[-1] + 1 if made else 0)
            made.append(at_ns)
            self.history.add([Quote(symbol, bid, bid + 1, 100, 100, at_ns, at_ns)])
            if any(link.wants(symbol) for link in self.feed.connections):
                self.feed.send_quotes([{"S": symbol, "bp": bid, "ap": bid + 1, "t": at_ns}])

    async def go_down(self) -> None:
        """The feed is lost, and refuses every new connection."""
        self.feed.refuse_next(406, times=1_000)
        self.feed.drop()
        await self.until(lambda: not self.feed.connections)

    async def have_rest_alone(self, service: Service, *bids: float) -> None:
        """Publish a quote of AAPL, lose the feed and with it these, and have a price from REST."""
        self.market(1)
        await self.published(1)
        await anyio.sleep(5)
        await self.go_down()
        self.market(*bids)
        await anyio.sleep(20)
        self.market(7, symbol="MSFT")
        await service.subscribe("MSFT")
        await self.published(7, symbol="MSFT")

    async def lose_feed(self) -> None:
        """The feed is lost, and connected again."""
        self.feed.drop()
        await self.until(lambda: not self.feed.connections)
        await self.until(lambda: self.feed.connections)

    async def published(self, *bids: float, symbol: str = "AAPL") -> None:
        """Wait until exactly these quotes are published."""
        with anyio.move_on_after(100):
            await self.until(lambda: len(self.bids(symbol)) >= len(bids))
        assert self.bids(symbol) == list(bids)

    def bids(self, symbol: str) -> list[float]:
        events = map(decode, self.store.published.get("price.updated", []))
        return [event["bid"] for event in events if event["symbol"] == symbol]

    @property
    def gaps(self) -> list[dict[str, Any]]:
        states = map(decode, self.store.published.get("feed.status", []))
        return [state for state in states if state["state"] == "gap"]


@pytest.mark.parametrize("killed", [False, True], ids=["ended", "killed"])
async def test_a_price_that_rest_alone_had_hides_no_gap_of_other_symbols(
    autojump_clock: Any, *, killed: bool
) -> None:
    bench = Bench()
    async with bench.run("AAPL", killed=killed) as service:
        await bench.have_rest_alone(service, 2, 3)
    async with bench.run("AAPL", "MSFT"):
        await bench.published(1, 2, 3)
        assert "AAPL" in bench.gaps[-1]["symbols"]
        assert parse_rfc3339(bench.gaps[-1]["from"]) <= bench.made["AAPL"][1]


async def test_a_run_that_was_killed_at_once_changes_nothing(autojump_clock: Any) -> None:
    bench = Bench()
    async with bench.run("AAPL", killed=True) as service:
        await bench.have_rest_alone(service, 2)
    kept = bench.store.get(PROGRESS)
    bench.history.always = HistoryUnavailable("away")
    async with bench.run("AAPL", "MSFT", killed=True, feed=False):
        await anyio.sleep(10)
    assert bench.store.get(PROGRESS) == kept


async def test_runs_of_less_than_a_second_hide_no_gap(autojump_clock: Any) -> None:
    bench = Bench()
    async with bench.run("AAPL", killed=True):
        bench.market(1)
        await bench.published(1)
    bench.store._keys.pop(PROGRESS, None)  # as after the service of an earlier version
    bench.market(2, 3)
    await anyio.sleep(20)
    bench.market(7, symbol="MSFT")
    async with bench.run("AAPL", "MSFT", killed=True, feed=False):
        await bench.published(7, symbol="MSFT")
    async with bench.run("AAPL", "MSFT"):
        await bench.published(1, 2, 3)


async def test_a_run_that_ended_well_keeps_the_time_of_its_last_record(autojump_clock: Any) -> None:
    bench = Bench()
    async with bench.run("AAPL"):
        bench.market(1)
        await bench.published(1)
        bench.market(2)
        await bench.published(1, 2)
    kept = bench.store.get(PROGRESS)
    assert kept is not None
    assert decode(kept)["stocks"][QUOTES.channel] == bench.made["AAPL"][1]
    bench.market(3)
    async with bench.run("AAPL"):
        await bench.published(1, 2, 3)
        assert parse_rfc3339(bench.gaps[-1]["from"]) == bench.made["AAPL"][1]


async def test_what_waits_for_the_store_is_not_counted_as_published(autojump_clock: Any) -> None:
    bench = Bench()
    async with bench.run("AAPL", killed=True):
        bench.market(1)
        await bench.published(1)
        await anyio.sleep(5)
        bench.store.refusal = "OOM"
        bench.market(2)
        await anyio.sleep(5)
        bench.store.refusal = None
        kept = bench.store.get(PROGRESS)
        assert kept is not None
        assert decode(kept)["stocks"][QUOTES.channel] == bench.made["AAPL"][0]


async def test_what_cannot_be_read_is_logged_and_left_out(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench()
    async with bench.run("AAPL"):
        bench.market(1)
        await bench.published(1)
    bench.store.keep_progress(b'{"stocks": 7}')
    bench.market(2)
    async with bench.run("AAPL"):
        await bench.published(1, 2)
    assert caplog.text.count("progress_not_read") == 1


async def test_a_symbol_that_is_new_in_the_settings_has_no_gap(autojump_clock: Any) -> None:
    bench = Bench()
    async with bench.run("AAPL"):
        bench.market(1)
        await bench.published(1)
    bench.market(2)
    bench.market(7, 8, symbol="MSFT")
    async with bench.run("AAPL", "MSFT"):
        await bench.published(1, 2)
        await bench.published(8, symbol="MSFT")  # the first price
        assert all("MSFT" not in gap["symbols"] for gap in bench.gaps)


@pytest.mark.parametrize("killed", [False, True], ids=["ended", "killed"])
async def test_a_symbol_that_is_left_out_holds_back_no_other(
    autojump_clock: Any, *, killed: bool
) -> None:
    bench = Bench()
    async with bench.run("AAPL", "MSFT", killed=killed):
        await one_of_each(bench)
        bench.feed._rules = SessionRules(symbol_limit=1)
        await bench.lose_feed()
        await minutes_of_quotes(bench)
    await check_pause(bench)


@pytest.mark.parametrize("end", first(1, ["killed", "ended", "killed in an outage"]))
async def test_a_symbol_whose_repair_has_failed_holds_back_no_other(
    autojump_clock: Any, end: str
) -> None:
    bench = Bench()
    bench.history.refuses = {"MSFT": "invalid symbol: MSFT"}
    async with bench.run("AAPL", "MSFT", killed=end != "ended"):
        await one_of_each(bench)
        await bench.lose_feed()
        await anyio.sleep(30)
        await minutes_of_quotes(bench)
        if end == "killed in an outage":
            await bench.go_down()
            await anyio.sleep(10)
    await check_pause(bench)


async def one_of_each(bench: Bench) -> None:
    """A quote of both symbols, and time enough to keep that."""
    bench.market(1)
    bench.market(7, symbol="MSFT")
    await bench.published(1)
    await bench.published(7, symbol="MSFT")
    await anyio.sleep(5)


async def minutes_of_quotes(bench: Bench) -> None:
    """A quote of AAPL each minute."""
    for minute in range(10):
        bench.market(100 + minute)
        await anyio.sleep(60)
    await anyio.sleep(5)


async def check_pause(bench: Bench) -> None:
    """The next run repairs what came in the pause, and no more."""
    newest_ns, before = bench.made["AAPL"][-1], len(bench.gaps)
    bench.market(900)
    async with bench.run("AAPL", "MSFT"):
        await bench.until(lambda: 900 in bench.bids("AAPL"))
        await bench.until(lambda: len(bench.gaps) > before)
        gaps = [gap for gap in bench.gaps[before:] if "AAPL" in gap["symbols"]]
        assert parse_rfc3339(gaps[0]["from"]) >= newest_ns - 60_000_000_000
