"""Each kind of record on each feed after a lost connection: repaired, refreshed or reported."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import attrs
import pytest

from mdservice.app.service import open_service
from mdservice.model import kinds
from mdservice.model.feeds import CRYPTO, FEEDS, NEWS_FEED, OPTIONS, STOCKS, Feed
from mdservice.model.kinds import Kind, Repair
from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.model.timestamps import parse_rfc3339
from mdservice.settings import Settings
from mdservice.simulator import (
    SimulatorConfig,
    crypto,
    news,
    open_simulator,
    options,
    stocks,
)
from mdservice.simulator.bars import MINUTE_NS, SimBar, day_start_ns
from mdservice.simulator.stock_records import (
    SimCancel,
    SimCorrection,
    SimImbalance,
    SimLimits,
    SimStatus,
    SimTrade,
)
from mdservice.simulator.wire import SimQuote
from tests.integration.conftest import patient, published_so_far

LIMIT_S = 60
ENDS = ("gap", "gap_repaired")
STOCK, PAIR, OPTION = "AAPL", "BTC/USD", "AAPL261218C00200000"
Make = Callable[[int, int], Any]
"""Returns the record with this number, 1 to 3, at this time."""


def bar(symbol: str) -> Make:
    """Of one of the last minutes, since a bar has the time of its start."""

    def make(number: int, now_ns: int) -> SimBar:
        start_ns = now_ns - now_ns % MINUTE_NS - (5 - number) * MINUTE_NS
        return SimBar(symbol, 10, 12, 9, 11, 100 + number, 5, 10.5, start_ns)

    return make


def day(symbol: str) -> Make:
    """The bar of today, as it grows."""
    return lambda number, now_ns: SimBar(
        symbol, 10, 12, 9, 11, 100 + number, 5, 10.5, day_start_ns(now_ns)
    )


def level(number: int) -> tuple[tuple[float, float], ...]:
    return ((10.0 + number, 1.0),)


CASES: dict[tuple[Kind[Any], Feed], tuple[Any, Make]] = {
    (kinds.QUOTES, STOCKS): (
        stocks.QUOTES,
        lambda n, at: SimQuote(STOCK, n, n + 1, ts_event_ns=at),
    ),
    (kinds.QUOTES, CRYPTO): (
        crypto.QUOTES,
        lambda n, at: crypto.SimPairQuote(PAIR, n, n + 1, ts_event_ns=at),
    ),
    (kinds.QUOTES, OPTIONS): (
        options.QUOTES,
        lambda n, at: options.SimOptionQuote(OPTION, n, n + 1, ts_event_ns=at),
    ),
    (kinds.TRADES, STOCKS): (stocks.TRADES, lambda n, at: SimTrade(STOCK, 10, 1, n, at)),
    (kinds.TRADES, CRYPTO): (
        crypto.TRADES,
        lambda n, at: crypto.SimPairTrade(PAIR, 10, 0.5, n, ts_event_ns=at),
    ),
    (kinds.TRADES, OPTIONS): (
        options.TRADES,
        lambda n, at: options.SimOptionTrade(OPTION, 10 + n, ts_event_ns=at),
    ),
    (kinds.CORRECTIONS, STOCKS): (
        stocks.CORRECTIONS,
        lambda n, at: SimCorrection(STOCK, "V", n, 10, 1, (), 10 + n, 11, 1, (), at),
    ),
    (kinds.CANCELS, STOCKS): (
        stocks.CANCELS,
        lambda n, at: SimCancel(STOCK, n, "V", 10, 1, "C", at),
    ),
    (kinds.BARS, STOCKS): (stocks.BARS, bar(STOCK)),
    (kinds.BARS, CRYPTO): (crypto.BARS, bar(PAIR)),
    (kinds.DAILY_BARS, STOCKS): (stocks.DAILY_BARS, day(STOCK)),
    (kinds.DAILY_BARS, CRYPTO): (crypto.DAILY_BARS, day(PAIR)),
    (kinds.STATUSES, STOCKS): (
        stocks.STATUSES,
        lambda n, at: SimStatus(STOCK, "H", "", str(n), "", at),
    ),
    (kinds.LULDS, STOCKS): (stocks.LULDS, lambda n, at: SimLimits(STOCK, 12 + n, 8, "A", at)),
    (kinds.IMBALANCES, STOCKS): (stocks.IMBALANCES, lambda n, at: SimImbalance(STOCK, 10 + n, at)),
    (kinds.ORDERBOOKS, CRYPTO): (
        crypto.ORDERBOOKS,
        lambda n, at: crypto.SimBook(PAIR, level(n), level(10 + n), True, at),
    ),
    (kinds.NEWS, NEWS_FEED): (
        news.ARTICLES,
        lambda n, at: news.SimArticle(n, f"headline {n}", (STOCK,), ts_event_ns=at),
    ),
}


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="kind-") as name:  # short: it holds a socket
        yield Path(name)


@attrs.define
class Listener:
    """What another process hears of one kind, and of the state of the feeds."""

    kind: Kind[Any]
    heard: Any
    events: list[dict[str, Any]] = attrs.field(factory=list)
    statuses: list[dict[str, Any]] = attrs.field(factory=list)

    def read(self) -> None:
        while (message := self.heard.get_message()) is not None:
            found = self.statuses if message["channel"] == b"feed.status" else self.events
            found.append(json.loads(message["data"]))

    async def until(self, condition: Callable[[], Any]) -> None:
        while self.read() or not condition():
            await anyio.sleep(0.02)

    @property
    def gaps(self) -> list[dict[str, Any]]:
        return [status for status in self.statuses if status["state"] in ENDS]

    def states(self, *names: str) -> list[str]:
        return [status["state"] for status in self.statuses if status["state"] in names]

    def times(self) -> list[int]:
        return [parse_rfc3339(event["timestamp"]) for event in self.events]


@contextmanager
def listening(valkey: Any, kind: Kind[Any]) -> Iterator[Listener]:
    with valkey.client() as client, client.pubsub(ignore_subscribe_messages=True) as heard:
        heard.subscribe(kind.event, "feed.status")
        assert not published_so_far(heard)
        yield Listener(kind, heard)


def outcome(kind: Kind[Any], feed: Feed) -> str:
    if feed.repair(kind) is Repair.FROM_HISTORY:
        return "repaired"
    return "reported" if feed.repair(kind) is Repair.TOLD else "refreshed"


def named(kind: Kind[Any], feed: Feed) -> str:
    return f"{feed.name}-{kind.channel}-{outcome(kind, feed)}"


@pytest.mark.parametrize(
    "driver", ["websockets", pytest.param("alpaca-py", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(("kind", "feed"), [pytest.param(*case, id=named(*case)) for case in CASES])
async def test_after_a_lost_connection_each_kind_is(
    kind: Kind[Any], feed: Feed, driver: Any, valkey: Any, folder: Path
) -> None:
    """The second of three records comes while the connection is away."""
    sim_kind, make = CASES[kind, feed]
    symbol = {STOCKS: STOCK, CRYPTO: PAIR, OPTIONS: OPTION, NEWS_FEED: EVERY_SYMBOL}[feed]
    wanted: dict[str, Any] = {"symbols": symbol, "channels": kind.topics}
    if feed is NEWS_FEED:
        wanted = {"news": symbol}
    becomes = outcome(kind, feed)
    expected = (1, 3) if becomes == "reported" else (1, 2, 3)
    ends = {"repaired": ["gap", "gap_repaired"]}.get(becomes, ["gap"])
    if kind.channel not in kind.topics:  # it shares the gap of the trades, which are repaired
        ends = ["gap", "gap_repaired"]

    def subscribed() -> bool:
        return any(
            symbol in connection.subscriptions.get(kind.topics[-1], ())
            for connection in simulator.connections
            if connection.feed == feed.name
        )

    with anyio.fail_after(patient(LIMIT_S)), listening(valkey, kind) as listener:
        config = SimulatorConfig(rate=0, rest_rate_limit=None)
        async with open_simulator(config) as simulator:
            settings = Settings(
                feed="simulator",
                feed_url=simulator.url,
                driver=driver,
                redis_url=valkey.url,
                socket=folder / "s",
                **wanted,
            )
            async with open_service(settings):
                await listener.until(subscribed)
                now_ns = time.time_ns()
                first, missed, last = (make(number, now_ns + number) for number in (1, 2, 3))
                simulator.send_records(sim_kind, [first])
                await listener.until(lambda: listener.events)

                simulator.refuse_upgrade(503, times=1_000, feed=feed.name)
                simulator.drop("reset", feed=feed.name)
                await listener.until(lambda: listener.states("disconnected"))
                simulator.send_records(sim_kind, [missed])
                simulator.resume()
                await listener.until(lambda: listener.states(*ENDS) == ends)

                simulator.send_records(sim_kind, [last])
                await listener.until(lambda: len(listener.events) >= len(expected))
    sent = dict(enumerate((first, missed, last), 1))
    assert listener.times() == [sent[number].ts_event_ns for number in expected]
    assert len({json.dumps(event) for event in listener.events}) == len(expected)
    assert [status["state"] for status in listener.gaps] == ends
    assert {(gap["feed"], gap["channel"]) for gap in listener.gaps} == {(feed.name, kind.topics[0])}
    assert [gap.get("refreshed", False) for gap in listener.gaps if gap["state"] == "gap"] == [
        becomes == "refreshed"
    ]
    if becomes == "repaired":
        assert listener.gaps[-1][kind.channel] == 1
    if kind.has_key:
        with valkey.client() as client:
            assert json.loads(client.get(f"{kind.key_prefix}{symbol}")) == listener.events[-1]


def test_every_kind_of_every_feed_is_tried() -> None:
    assert set(CASES) == {(kind, feed) for feed in FEEDS for kind in feed.kinds}
