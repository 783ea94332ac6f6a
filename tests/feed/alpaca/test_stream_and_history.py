"""What the stream brings and what REST has of it are the same records, of every kind.

Gap repair compares them by their identity. Here a simulated market is read both ways.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import attrs
import pytest

from mdservice.feed.alpaca.login import Credentials
from mdservice.feed.alpaca.rest import AlpacaHistory
from mdservice.feed.alpaca.websockets_driver import WebsocketsDriver
from mdservice.feed.subscriptions import Followed
from mdservice.model.feeds import FEEDS, Feed, Topic
from mdservice.model.kinds import (
    BARS,
    CANCELS,
    CORRECTIONS,
    DAILY_BARS,
    IMBALANCES,
    LULDS,
    NEWS,
    ORDERBOOKS,
    STATUSES,
    TRADES,
    Kind,
    Repair,
)
from mdservice.simulator import SimulatorConfig, open_simulator
from mdservice.simulator.transport import SimulatorTransport
from mdservice.testing import VirtualClock
from tests.examples import first
from tests.simulation.streams import TrioStream

READ_S = 200.0
"""Three whole minutes, and the update of the second one's bars."""
KEYS = Credentials("key", "secret")
VARIANTS = {"stocks": "iex", "crypto": "us", "options": "indicative", "news": "news"}
SYMBOLS = {
    "stocks": ("AAPL", "MSFT"),
    "crypto": ("BTC/USD", "ETH/USD"),
    "options": ("AAPL261218C00200000", "AAPL261218P00210000"),
    "news": ("*",),
}
CONFIG = SimulatorConfig(
    rate=40,
    crypto_rate=20,
    options_rate=20,
    news_every_s=4,
    late_trade_ratio=0.02,
    correction_ratio=0.02,
    cancel_ratio=0.02,
)


Found = dict[Kind[Any], list[Any]]


@asynccontextmanager
async def both_ways(feed: Feed) -> AsyncIterator[tuple[Found, AlpacaHistory, int]]:
    """What the stream has brought, by kind, the history of the same market, and its beginning."""
    topics = [Topic(channel, s) for channel in feed.channels for s in SYMBOLS[feed.name]]
    followed, clock = Followed(), VirtualClock()
    followed.ask(topics)
    found: Found = defaultdict(list)
    async with open_simulator(CONFIG, port=None, clock=clock) as simulator:
        start_ns = clock.utc_ns()

        async def dial() -> Any:
            return TrioStream(simulator.connect())

        driver = WebsocketsDriver(simulator.stream_url(feed.name), KEYS, dial, feed=feed)
        async with driver.connect(followed, clock.utc_ns) as link:
            await link.subscribe(topics)
            with anyio.move_on_after(READ_S):
                while True:
                    received = await link.receive()
                    assert (received.errors, received.others, received.unfollowed) == (0, 0, 0)
                    for kind, records in received.records.items():
                        found[kind] += records
        transport = SimulatorTransport(simulator)
        variant = VARIANTS[feed.name]
        yield (
            found,
            AlpacaHistory(simulator.rest_url, variant, KEYS, clock, transport, feed=feed),
            start_ns,
        )


def expected_of(found: Found, kind: Kind[Any]) -> Counter[Any]:
    """The identities of what REST has, if it is right: what the stream's records come to."""
    records = found[kind]
    if kind in (BARS, DAILY_BARS):  # an update replaces
        records = list({(bar.symbol, bar.ts_event_ns): bar for bar in records}.values())
    if kind is NEWS:
        records = list({article.id: article for article in records}.values())
    kept = Counter(map(kind.identity, records))
    if kind is TRADES:
        by_id = {(t.symbol, t.exchange, t.id): t for t in records}
        for cancel in found[CANCELS]:
            kept[kind.identity(by_id[cancel.symbol, cancel.exchange, cancel.id])] -= 1
        for change in found[CORRECTIONS]:
            wrong = by_id[change.symbol, change.exchange, change.original_id]
            kept[kind.identity(wrong)] -= 1
            kept[kind.identity(attrs.evolve(wrong, id=change.corrected_id))] += 1
    return +kept


@pytest.mark.parametrize("feed", first(1, FEEDS[::-1]), ids=lambda feed: str(feed.name))
async def test_history_and_the_latest_records_are_what_the_stream_brought(
    feed: Feed, autojump_clock: Any
) -> None:
    async with both_ways(feed) as (found, history, start_ns):
        assert set(found) >= set(feed.kinds) - {STATUSES, LULDS, IMBALANCES}, "it shows every kind"
        early_ns = start_ns - 2 * 86_400 * 10**9  # before the bar of the day
        end_ns = start_ns + round(READ_S * 1e9)
        for kind in (*(k for k in feed.kinds if feed.repair(k) is Repair.FROM_HISTORY), DAILY_BARS):
            if kind in feed.kinds:
                past = await history.past(kind, SYMBOLS[feed.name], early_ns, end_ns)
                assert Counter(map(kind.identity, past)) == expected_of(found, kind), kind
        assert history.rows_skipped == 0
        for kind in feed.kinds:
            if kind in (ORDERBOOKS, TRADES) or feed.repair(kind) is Repair.TOLD:
                continue  # of books the stream brings changes, and trades may be canceled
            newest = {}
            for record in found[kind]:
                last = newest.get(record.symbol)
                if last is None or record.ts_event_ns >= last.ts_event_ns:
                    newest[record.symbol] = record
            latest = await history.latest(kind, SYMBOLS[feed.name])
            assert {kind.identity(one) for one in latest} == {
                kind.identity(one) for one in newest.values()
            }, kind
