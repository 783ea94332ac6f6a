"""A reader of a made-up kind, beside a reader of prices, on a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio

import mdservice
from mdservice.client.discovery import GivenServer
from mdservice.client.intake import Intake
from mdservice.client.pubsub import PubSubSource
from mdservice.client.reader import Follower
from mdservice.model.kinds import QUOTES, Kind
from mdservice.publish.store import Events, WriteBatch
from mdservice.redis_io.names import Instance, RedisNames, encode_instance
from mdservice.redis_io.store import RedisPriceStore
from mdservice.runtime.backoff import Backoff
from tests.integration.client.publisher import (
    START_NS,
    Publisher,
    known,
    on_both_loops,
    take,
    until,
)
from tests.second_kind import DEPTHS, Depth


def depth(seq: int, symbol: str = "AAPL") -> Depth:
    return Depth(symbol, seq * 10, START_NS + seq, START_NS, seq)


class Writer:
    """A service's writing side, which writes both kinds in one batch."""

    def __init__(self, publisher: Publisher, name: str, db: int = 0) -> None:
        self._publisher = publisher
        self._name = name
        self._store = RedisPriceStore(f"unix://{publisher.server.path}?db={db}", instance=name)
        self._batches = 0

    def own_the_database(self) -> None:
        mine = Instance(self._name, 0, "here", 1, "iex", 0.0, 300.0, "2026-11-20T15:51:44Z")
        with self._publisher.server.client() as client:
            client.set(RedisNames().instance_key, encode_instance(mine))

    async def write(
        self, depths: Sequence[Depth], prices: Sequence[str] = (), *, publish: bool = True
    ) -> None:
        quotes = [self._publisher.quote(symbol) for symbol in prices]
        latest: dict[Kind[object], dict[str, bytes]] = {}
        events = []
        for kind, records in ((QUOTES, quotes), (DEPTHS, depths)):
            payloads = [kind.encode(record) for record in records]
            symbols = [record.symbol for record in records]
            latest[kind] = dict(zip(symbols, payloads, strict=True))
            events.append(Events(kind.event, payloads, kind, symbols))
        if not self._batches:
            await self._store.connect()
        self._batches += 1
        await self._store.write(WriteBatch(self._batches, latest, events if publish else []))

    async def aclose(self) -> None:
        await self._store.aclose()


@asynccontextmanager
async def reading(publisher: Publisher, *symbols: str) -> AsyncIterator[Intake[Depth]]:
    """A reader of the made-up kind."""
    intake = Intake([DEPTHS], symbols)
    follower = Follower(GivenServer(publisher.url), PubSubSource(intake), Backoff(0.01, 0.1))
    async with anyio.create_task_group() as tasks:
        await tasks.start(follower.run)
        yield intake
        tasks.cancel_scope.cancel()


async def read(intake: Intake[Depth], count: int) -> list[tuple[str, int, int]]:
    found = [await intake.handover.take() for _ in range(count)]
    return [(one.symbol, one.orders, one.seq) for one in found]


@on_both_loops
async def test_its_keys_come_first_then_its_events(publisher: Publisher) -> None:
    writer = Writer(publisher, "one")
    await writer.write([depth(1), depth(4, "MSFT")], ["AAPL"])
    async with reading(publisher) as intake, mdservice.open_prices(publisher.url) as prices:
        await writer.write([depth(2), depth(3)], ["AAPL", "IBM"])
        expected = [("AAPL", 10, 1), ("MSFT", 40, 4), ("AAPL", 20, 2), ("AAPL", 30, 3)]
        assert await read(intake, 4) == expected
        assert known(await take(prices, 3)) == [("AAPL", 1), ("AAPL", 2), ("IBM", 1)]
        assert prices.status().decode_errors == intake.states[DEPTHS].event_decoder.errors == 0
    await writer.aclose()


@on_both_loops
async def test_its_missed_records_come_from_its_keys(publisher: Publisher) -> None:
    writer = Writer(publisher, "one")
    async with reading(publisher, "AAPL", "MSFT") as intake:
        await writer.write([depth(1), depth(1, "MSFT"), depth(1, "IBM")])
        assert await read(intake, 2) == [("AAPL", 10, 1), ("MSFT", 10, 1)]
        await writer.write([depth(2), depth(2, "MSFT")], publish=False)
        await writer.write([depth(3)])
        assert await read(intake, 2) == [("AAPL", 30, 3), ("MSFT", 20, 2)]
        assert (intake.states[DEPTHS].order.missed, intake.resyncs) == (1, 1)
    await writer.aclose()


@on_both_loops
async def test_garbage_among_its_events_is_counted(publisher: Publisher) -> None:
    writer = Writer(publisher, "one")
    async with reading(publisher) as intake:
        with publisher.server.client() as client:
            client.publish(DEPTHS.event, b'{"symbol":"AAPL","price":1}')
            client.publish(QUOTES.event, b"not its channel")
        await writer.write([depth(1)])
        assert await read(intake, 1) == [("AAPL", 10, 1)]
        assert intake.states[DEPTHS].event_decoder.errors == 1
    await writer.aclose()


@on_both_loops
async def test_events_of_another_service_are_dropped(publisher: Publisher) -> None:
    writer, other = Writer(publisher, "one"), Writer(publisher, "two", db=1)
    writer.own_the_database()
    async with reading(publisher) as intake:
        await writer.write([depth(1)])
        await other.write([depth(7, "IBM")], ["AAPL"])
        await until(lambda: intake.foreign == 1)
        await writer.write([depth(2)], ["AAPL", "AAPL"])
        assert await read(intake, 2) == [("AAPL", 10, 1), ("AAPL", 20, 2)]
    await writer.aclose()
    await other.aclose()
