"""Readers in this process: each hears what it asked for and never holds anyone up."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mdservice.model.events import FeedStatus, LatestChanged, RecordBatch
from mdservice.model.kinds import BARS, CORRECTIONS, NEWS, QUOTES, TRADES
from mdservice.model.news import ARTICLES_KEPT
from mdservice.model.quote import Quote
from mdservice.publish.readers import READER_BACKLOG, LocalReader, LocalReaders
from tests.records import make_record

CONNECTED = FeedStatus("connected", 1)


def quote(symbol: str, seq: int = 1) -> Quote:
    return Quote(symbol, 1.0, 2.0, 1, 1, seq, seq, seq)


def batch(*symbols: str) -> RecordBatch[Quote]:
    return RecordBatch(QUOTES, [quote(symbol) for symbol in symbols])


async def read(reader: LocalReader) -> list[Quote | FeedStatus]:
    """Everything up to the end."""
    with anyio.fail_after(10):
        return [item async for item in reader]


def names(items: Sequence[Quote | FeedStatus]) -> list[str]:
    return [item.symbol if isinstance(item, Quote) else item.state for item in items]


@pytest.mark.parametrize(
    ("symbols", "statuses", "heard"),
    [
        ((), False, ["AAPL", "MSFT", "SPY"]),
        ((), True, ["AAPL", "connected", "MSFT", "SPY"]),
        (("MSFT",), False, ["MSFT"]),
        (("SPY", "AAPL"), True, ["AAPL", "connected", "SPY"]),
        (("QQQ",), False, []),
        (("QQQ",), True, ["connected"]),
    ],
)
async def test_hears_what_it_asked_for_in_order(
    symbols: tuple[str, ...], statuses: bool, heard: list[str]
) -> None:
    readers = LocalReaders()
    readers.offer(batch("BEFORE", *symbols))
    with readers.open(symbols, statuses=statuses) as reader:
        for item in (batch("AAPL"), CONNECTED, batch("MSFT", "SPY")):
            readers.offer(item)
        readers.close()
        assert names(await read(reader)) == heard


async def test_begins_with_the_quotes_given_as_first() -> None:
    readers = LocalReaders()
    with readers.open(
        ["AAPL"], first=[RecordBatch(QUOTES, [quote("AAPL", 7), quote("MSFT", 8)])]
    ) as reader:
        readers.offer(RecordBatch(QUOTES, [quote("AAPL", 9)]))
        readers.close()
        assert await read(reader) == [quote("AAPL", 7), quote("AAPL", 9)]


async def test_reads_several_kinds_in_order_and_no_changed_latest_values() -> None:
    readers = LocalReaders()
    quote_, trade = batch("AAPL"), RecordBatch(TRADES, [make_record(TRADES)])
    correction = RecordBatch(CORRECTIONS, [make_record(CORRECTIONS)])
    bar = RecordBatch(BARS, [make_record(BARS)])
    with readers.open(["AAPL"], kinds=(TRADES, CORRECTIONS, QUOTES), first=[quote_]) as reader:
        changed = LatestChanged(TRADES, "AAPL", make_record(TRADES, number=2))
        for item in (trade, changed, bar, LatestChanged(TRADES, "AAPL", None), correction):
            readers.offer(item)
        readers.close()
        expected = [*quote_.records, *trade.records, *correction.records]
        assert await read(reader) == expected


@pytest.mark.parametrize(("symbols", "heard"), [((), [1, 2]), (("MSFT", "IBM"), [2]), (("X",), [])])
async def test_articles_are_read_by_the_symbols_that_they_are_about(
    symbols: tuple[str, ...], heard: list[int]
) -> None:
    readers = LocalReaders()
    with readers.open(symbols, kinds=(NEWS,)) as reader:
        about = attrs.evolve(make_record(NEWS, "AAPL", 2), symbols=("AAPL", "MSFT"))
        readers.offer(RecordBatch(NEWS, [make_record(NEWS, "AAPL", 1), about]))
        readers.close()
        assert [article.id async for article in reader] == heard


def test_the_newest_articles_are_kept_behind_those_of_an_earlier_run() -> None:
    readers = LocalReaders()
    articles = [make_record(NEWS, "AAPL" if n % 2 else "MSFT", n) for n in range(1, 1_011)]
    readers.offer(RecordBatch(NEWS, articles[5:6]))
    readers.keep(articles[:5])
    readers.offer(RecordBatch(TRADES, [make_record(TRADES)]))
    assert readers.articles((), 50) == articles[5::-1]
    assert readers.articles(["MSFT"], 2) == [articles[5], articles[3]]
    assert readers.articles(["IBM"], 2) == []
    readers.offer(RecordBatch(NEWS, articles[6:]))
    kept = readers.articles((), 5_000)
    assert kept == articles[: -ARTICLES_KEPT - 1 : -1]


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_batches_are_of_one_kind_and_end_with_the_readers(backend: str) -> None:
    async def main() -> list[tuple[str, int]]:
        readers = LocalReaders()
        heard: list[tuple[str, int]] = []
        with readers.open(kinds=(QUOTES, TRADES), statuses=True, first=[batch("AAPL")]) as reader:

            async def listen() -> None:
                async for item in reader.batches():
                    if isinstance(item, FeedStatus):
                        heard.append((item.state, 1))
                    else:
                        heard.append((item.kind.channel, len(item.records)))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listen)
                for item in (
                    RecordBatch(TRADES, [make_record(TRADES), make_record(TRADES, number=2)]),
                    LatestChanged(TRADES, "AAPL", None),
                    CONNECTED,
                    RecordBatch(BARS, [make_record(BARS)]),
                    batch("AAPL", "MSFT"),
                ):
                    readers.offer(item)
                    await anyio.wait_all_tasks_blocked()
                readers.close()
        return heard

    expected = [("quotes", 1), ("trades", 2), ("connected", 1), ("quotes", 2)]
    assert anyio.run(main, backend=backend) == expected


async def test_waits_for_the_next_item_and_wakes_for_it(autojump_clock: MockClock) -> None:
    readers = LocalReaders()
    heard: list[str] = []
    with readers.open(["AAPL"]) as reader:

        async def listen() -> None:
            heard.extend(names(await read(reader)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            for item in (batch("AAPL"), batch("MSFT"), CONNECTED, batch("AAPL", "MSFT", "AAPL")):
                await wait_all_tasks_blocked()
                readers.offer(item)
            await wait_all_tasks_blocked()
            assert heard == [], "it has not ended"
            readers.close()
    assert heard == ["AAPL", "AAPL", "AAPL"]


async def test_an_item_is_there_as_soon_as_it_was_offered(autojump_clock: MockClock) -> None:
    readers = LocalReaders()
    with readers.open() as reader:
        readers.offer(batch("AAPL"))
        started = trio.current_time()
        assert (await anext(reader)) == quote("AAPL")
        assert trio.current_time() == started
        with trio.move_on_after(5) as scope:
            await anext(reader)
        assert scope.cancelled_caught, "and then there is nothing"


async def test_a_reader_that_stops_and_goes_on_loses_nothing(autojump_clock: MockClock) -> None:
    readers = LocalReaders()
    heard: list[Quote | FeedStatus] = []
    with readers.open() as reader:
        for seq in range(1, 2001):
            readers.offer(RecordBatch(QUOTES, [quote("AAPL", seq)]))
        async for item in reader:
            heard.append(item)
            if len(heard) == 700:
                break
        readers.offer(RecordBatch(QUOTES, [quote("AAPL", 2001)]))
        readers.close()
        heard += await read(reader)
    assert [item.seq for item in heard if isinstance(item, Quote)] == [*range(1, 2002)]


async def test_a_slow_reader_loses_its_oldest_quotes_counted_and_visible_in_seq() -> None:
    readers = LocalReaders()
    with readers.open() as slow:
        for first in range(0, 2 * READER_BACKLOG, 1000):
            readers.offer(RecordBatch(QUOTES, [quote("AAPL", first + n) for n in range(1, 1001)]))
        readers.close()
        heard = await read(slow)
    assert slow.conflated == READER_BACKLOG
    assert [item.seq for item in heard if isinstance(item, Quote)] == [
        *range(READER_BACKLOG + 1, 2 * READER_BACKLOG + 1)
    ]


async def test_a_slow_reader_takes_nothing_from_another() -> None:
    readers = LocalReaders()
    with readers.open() as slow, readers.open() as quick:
        for seq in range(1, READER_BACKLOG + 11):
            readers.offer(RecordBatch(QUOTES, [quote("AAPL", seq)]))
            heard = await anext(quick)
            assert isinstance(heard, Quote)
            assert heard.seq == seq
        assert (slow.conflated, quick.conflated) == (10, 0)


async def test_what_a_reader_has_not_asked_for_does_not_fill_its_buffer() -> None:
    readers = LocalReaders()
    with readers.open(["AAPL"]) as reader:
        readers.offer(batch("AAPL"))
        for _ in range(20):
            readers.offer(RecordBatch(QUOTES, [quote("MSFT")] * 1000))
            readers.offer(CONNECTED)
        readers.close()
        assert names(await read(reader)) == ["AAPL"]
        assert reader.conflated == 0


def test_one_that_has_left_is_given_nothing_more() -> None:
    async def main() -> None:
        readers = LocalReaders()
        with readers.open() as reader:
            assert len(readers) == 1
        assert len(readers) == 0
        readers.offer(batch("AAPL"))
        reader.close()
        assert await read(reader) == []

    anyio.run(main, backend="trio")


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_works_on_both_event_loops(backend: str) -> None:
    async def main() -> None:
        readers = LocalReaders()
        heard: list[str] = []
        with readers.open(statuses=True) as reader:

            async def listen() -> None:
                heard.extend(names(await read(reader)))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listen)
                for item in (batch("AAPL"), CONNECTED, batch("MSFT")):
                    await anyio.wait_all_tasks_blocked()
                    readers.offer(item)
                await anyio.wait_all_tasks_blocked()
                readers.close()
        assert heard == ["AAPL", "connected", "MSFT"]

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_several_tasks_may_share_one_reader(backend: str) -> None:
    async def main() -> None:
        readers = LocalReaders()
        heard: list[str] = []
        with readers.open() as reader, anyio.fail_after(5):

            async def take_one() -> None:
                heard.extend(names([await anext(reader)]))

            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(take_one)
                await anyio.wait_all_tasks_blocked()
                for symbol in ("AAPL", "MSFT", "SPY"):
                    readers.offer(batch(symbol))
                    await anyio.wait_all_tasks_blocked()
        assert sorted(heard) == ["AAPL", "MSFT", "SPY"]

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_tasks_that_share_a_reader_lose_nothing_of_a_large_batch(backend: str) -> None:
    async def main() -> None:
        readers = LocalReaders()
        heard: list[str] = []
        sent = [f"S{number}" for number in range(30)]
        with readers.open() as reader, anyio.fail_after(5):

            async def take_all() -> None:
                async for item in reader:
                    heard.extend(names([item]))
                    await anyio.lowlevel.checkpoint()

            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(take_all)
                for start in range(0, len(sent), 10):
                    readers.offer(batch(*sent[start : start + 10]))
                    await anyio.lowlevel.checkpoint()
                readers.close()
        assert sorted(heard) == sorted(sent)

    anyio.run(main, backend=backend)


def test_one_that_never_has_to_wait_lets_the_others_move() -> None:
    async def main() -> None:
        readers = LocalReaders()
        moved = 0
        with readers.open() as reader:

            async def move() -> None:
                nonlocal moved
                while True:
                    await anyio.lowlevel.checkpoint()
                    moved += 1

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(move)
                for _ in range(100):
                    readers.offer(batch("AAPL"))
                    await anext(reader)
                tasks.cancel_scope.cancel()
        assert moved >= 50

    anyio.run(main, backend="trio")
