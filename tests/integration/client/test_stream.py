"""Records of every kind from a real server, through cuts and restarts, also in another process."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import attrs
import pytest

import mdservice
from mdservice.client import intake
from mdservice.client import pubsub as silence
from mdservice.client.intake import BACKLOG
from mdservice.model.feeds import CHANNELS
from mdservice.model.kinds import (
    BARS,
    CANCELS,
    CORRECTIONS,
    DAILY_BARS,
    KINDS,
    NEWS,
    ORDERBOOKS,
    QUOTES,
    STATUSES,
    TRADES,
)
from mdservice.model.trade import Cancel, Correction
from tests.integration.client.publisher import until
from tests.integration.client.record_writer import RecordWriter
from tests.integration.conftest import patient

LIMIT_S = 60.0


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "PING_AFTER_S", 0.1)
    monkeypatch.setattr(intake, "KEYS_AT_MOST_EVERY_S", 0.05)


def on_both_loops(test: Callable[[RecordWriter], Awaitable[None]]) -> Callable[..., None]:
    """Run an async test on trio and on asyncio, within a limit."""

    @pytest.mark.parametrize("loop", ["trio", "asyncio"])
    def run(fresh_valkey: Any, loop: str) -> None:
        async def main() -> None:
            with anyio.fail_after(patient(LIMIT_S)):
                writer = RecordWriter(fresh_valkey)
                writer.own_the_database()
                await test(writer)

        anyio.run(main, backend=loop)

    run.__name__ = test.__name__
    return run


async def take(records: mdservice.Records, count: int) -> list[Any]:
    return [await anext(records) for _ in range(count)]


def known(records: list[Any]) -> list[tuple[str, int]]:
    return [(record.symbol, record.seq) for record in records]


async def reconnected(records: mdservice.Records, times: int = 1) -> None:
    await until(lambda: records.status().reconnects == times and records.status().connected)


@on_both_loops
async def test_every_kind_comes_from_its_key_first_and_then_in_the_order_of_all(
    writer: RecordWriter,
) -> None:
    before = [(kind, writer.make(kind)) for kind in KINDS]
    writer.write(*before)
    channels = [*CHANNELS, "news"]
    async with mdservice.open_stream(writer.server.url, ["AAPL"], channels) as records:
        first = [record for kind, record in before if kind not in (CORRECTIONS, CANCELS)]
        assert await take(records, len(first)) == [_as_read(record) for record in first]
        later = [(kind, writer.make(kind)) for kind in (*reversed(KINDS), *KINDS)]
        writer.write(*later)
        assert await take(records, len(later)) == [_as_read(record) for _, record in later]
        status = records.status()
        assert (status.missed, status.decode_errors, status.starts) == (0, 0, 0)
        assert status.channels["trades"].events == 2
        assert {kind.channel for kind in KINDS} == set(status.channels)


def _as_read(record: Any) -> Any:
    """Its own time is its time of reception; an article's number is not written."""
    return attrs.evolve(record, ts_recv_ns=record.ts_event_ns)


@on_both_loops
async def test_trades_bring_their_corrections_and_only_the_wanted_symbols(
    writer: RecordWriter,
) -> None:
    url = writer.server.url
    async with mdservice.open_stream(url, "aapl,msft", channels="trades") as records:
        writer.next(TRADES, "IBM")
        writer.next(QUOTES)
        trade = writer.next(TRADES)
        correction = writer.next(CORRECTIONS, "MSFT")
        cancel = writer.next(CANCELS)
        writer.next(BARS)
        end = writer.next(TRADES, "MSFT")
        assert await take(records, 4) == [trade, correction, cancel, end]
        assert records.latest("msft") == end
        assert records.latest("IBM") is None
        assert records.latest("AAPL", "quotes") is None


@on_both_loops
async def test_bars_of_minutes_and_days_are_told_apart(writer: RecordWriter) -> None:
    writer.write((BARS, writer.make(BARS)), (DAILY_BARS, writer.make(DAILY_BARS)))
    url = writer.server.url
    async with mdservice.open_stream(url, channels=["updatedBars", "dailyBars"]) as records:
        assert [bar.daily for bar in await take(records, 2)] == [False, True]
        writer.write((DAILY_BARS, writer.make(DAILY_BARS)), (BARS, writer.make(BARS)))
        assert [bar.daily for bar in await take(records, 2)] == [True, False]


@on_both_loops
async def test_what_was_missed_in_a_cut_is_counted_and_the_latest_values_come(
    writer: RecordWriter,
) -> None:
    channels = ["trades", "statuses", "orderbooks"]
    async with mdservice.open_stream(writer.server.url, channels=channels) as records:
        for kind in (TRADES, STATUSES, ORDERBOOKS):
            writer.next(kind)
        await take(records, 3)
        assert writer.cut_readers()
        for _ in range(3):
            for kind in (TRADES, STATUSES, ORDERBOOKS):
                last = writer.next(kind, publish=False)
        await reconnected(records)
        assert [record.seq for record in await take(records, 3)] == [4, 4, 4]
        assert records.latest("AAPL", "orderbooks") == last
        status = records.status()
        assert (status.missed, status.resyncs) == (6, 1)
        assert status.channels["statuses"].missed == 2
        late = writer.next(TRADES, late_ns=10**9)
        writer.next(TRADES)
        got = await take(records, 2)
        assert got[0] == late
        assert [trade.seq for trade in got] == [5, 6]
        assert records.latest("AAPL") == got[1]


@on_both_loops
async def test_news_that_were_published_in_a_cut_come_each_once(writer: RecordWriter) -> None:
    for _ in range(60):
        writer.next(NEWS, "MSFT")
    url = writer.server.url
    async with mdservice.open_stream(url, ["MSFT"], ["news"]) as records:
        assert [article.id for article in await take(records, 50)] == list(range(11, 61))
        writer.next(NEWS, "IBM")
        assert (writer.next(NEWS, "MSFT").id, (await anext(records)).id) == (61, 61)
        assert writer.cut_readers()
        for _ in range(250):
            writer.next(NEWS, "MSFT", publish=False)
        writer.next(NEWS, "IBM", publish=False)
        await reconnected(records)
        writer.next(NEWS, "MSFT")
        got = [article.id for article in await take(records, 251)]
        assert got == list(range(62, 313))
        status = records.status()
        assert (status.left_out, status.trimmed) == (0, 0)


@on_both_loops
async def test_a_stream_of_news_that_lost_entries_in_a_cut_is_noticed(
    writer: RecordWriter,
) -> None:
    writer.next(NEWS)
    async with mdservice.open_stream(writer.server.url, channels=["news"]) as records:
        await take(records, 1)
        assert writer.cut_readers()
        for _ in range(5):
            writer.next(NEWS, publish=False)
        with writer.server.client() as client:
            client.xtrim("news", maxlen=2, approximate=False)
        await reconnected(records)
        assert [article.id for article in await take(records, 2)] == [5, 6]
        assert records.status().trimmed == 1


@on_both_loops
async def test_a_latest_trade_follows_its_corrections_and_cancellations(
    writer: RecordWriter,
) -> None:
    async with mdservice.open_stream(writer.server.url, ["AAPL"]) as records:
        first, last = writer.next(TRADES), writer.next(TRADES)
        corrected = attrs.evolve(last, id=99, price=7.5)
        correction = Correction(
            "AAPL", last.exchange, last.tape, last.id, last.price, last.size, last.conditions,
            99, 7.5, last.size, last.conditions, last.ts_event_ns, last.ts_event_ns, 1,
        )  # fmt: skip
        writer.set_key(TRADES, corrected)
        writer.write((CORRECTIONS, correction))
        assert await take(records, 3) == [first, last, correction]
        assert records.latest("AAPL") == corrected
        cancel = Cancel(
            "AAPL", last.exchange, last.tape, 99, 7.5, last.size, "cancel",
            last.ts_event_ns, last.ts_event_ns, 1,
        )  # fmt: skip
        writer.set_key(TRADES, first)
        writer.write((CANCELS, cancel))
        assert await anext(records) == cancel
        await until(lambda: records.latest("AAPL") == first)
        assert await _then(writer, records) == [3]


async def _then(writer: RecordWriter, records: mdservice.Records) -> list[int]:
    """The numbers of what comes up to the next trade, which is written now."""
    end = writer.next(TRADES)
    seqs = []
    while not seqs or seqs[-1] != end.seq:
        seqs.append((await anext(records)).seq)
    return seqs


@on_both_loops
async def test_a_correction_that_was_missed_in_a_cut_brings_the_changed_trade(
    writer: RecordWriter,
) -> None:
    async with mdservice.open_stream(writer.server.url, ["AAPL"]) as records:
        last = writer.next(TRADES)
        await take(records, 1)
        assert writer.cut_readers()
        writer.set_key(TRADES, corrected := attrs.evolve(last, id=99, price=7.5))
        await reconnected(records)
        assert await anext(records) == corrected
        assert await _then(writer, records) == [2]


@on_both_loops
async def test_a_restarted_service_begins_again_also_with_late_trades(
    writer: RecordWriter,
) -> None:
    for _ in range(5):
        writer.next(TRADES)
    async with mdservice.open_stream(writer.server.url, ["AAPL"]) as records:
        assert known(await take(records, 1)) == [("AAPL", 5)]
        writer.next(TRADES)
        second = RecordWriter(writer.server, "two")
        second.own_the_database()
        await take(records, 1)
        second.next(TRADES, late_ns=10**9)
        second.next(TRADES)
        assert known(await take(records, 2)) == [("AAPL", 1), ("AAPL", 2)]
        status = records.status()
        assert (status.starts, status.missed, status.service) == (1, 0, "two")


@on_both_loops
async def test_records_of_another_service_are_dropped_for_each_kind(
    writer: RecordWriter,
) -> None:
    other = RecordWriter(writer.server, "other", db=1)
    async with mdservice.open_stream(writer.server.url, channels=["trades", "news"]) as records:
        other.write((NEWS, other.make(NEWS)), (TRADES, other.make(TRADES)))
        trade, article = writer.make(TRADES), writer.make(NEWS)
        mixed = [(TRADES, trade), (NEWS, article), (TRADES, writer.make(TRADES))]
        assert await _written(writer, records, mixed) == [record for _, record in mixed]
        await until(lambda: records.status().foreign == 2)


async def _written(
    writer: RecordWriter, records: mdservice.Records, mixed: list[tuple[Any, Any]]
) -> list[Any]:
    writer.write(*mixed)
    return await take(records, len(mixed))


@on_both_loops
async def test_names_have_the_prefix(writer: RecordWriter) -> None:
    other = RecordWriter(writer.server, "other", prefix="desk1:")
    other.write((TRADES, other.make(TRADES)), (NEWS, other.make(NEWS)))
    url = writer.server.url
    async with mdservice.open_stream(url, channels=["trades", "news"], prefix="desk1:") as records:
        await take(records, 2)
        writer.next(TRADES)
        trade, article = other.next(TRADES), other.next(NEWS)
        assert await take(records, 2) == [trade, article]


@on_both_loops
async def test_a_slow_program_loses_quotes_before_statuses_and_counts_them(
    writer: RecordWriter,
) -> None:
    channels = ["quotes", "statuses"]
    async with mdservice.open_stream(writer.server.url, channels=channels) as records:
        writer.next(STATUSES)
        for _ in range(0, BACKLOG + 500, 500):
            writer.write(*((QUOTES, writer.make(QUOTES)) for _ in range(500)))
        await until(lambda: records.status().events == BACKLOG + 501)
        status = records.status()
        assert status.conflated >= 500
        assert isinstance(await anext(records), mdservice.TradingStatus)


@on_both_loops
async def test_what_cannot_be_read_is_counted_by_channel(writer: RecordWriter) -> None:
    channels = ["trades", "news", "statuses"]
    async with mdservice.open_stream(writer.server.url, channels=channels) as records:
        with writer.server.client() as client:
            client.publish(TRADES.event, b'{"symbol":"AAPL"}')
            client.publish(NEWS.event, b"[]")
        status = writer.next(STATUSES)
        assert await anext(records) == status
        counts = records.status().channels
        assert (counts["trades"].decode_errors, counts["news"].decode_errors) == (1, 1)
        assert records.status().decode_errors == 2


@pytest.mark.parametrize(
    ("channels", "named"),
    [(["tardes"], "tardes"), (["corrections"], "trades"), ([], "no channel"), ("", "''")],
)
def test_a_channel_that_is_none_is_an_error(channels: Any, named: str) -> None:
    async def main() -> None:
        async with mdservice.open_stream("redis://localhost:1", channels=channels):
            pass

    with pytest.raises(mdservice.InvalidChannel, match=named):
        anyio.run(main)


_READER = """
import json, sys
import anyio
import mdservice


async def main(loop):
    channels = ["trades", "bars", "statuses", "news"]
    async with mdservice.open_stream(sys.argv[1], ["AAPL"], channels) as records:
        async for record in records:
            status = records.status()
            line = [type(record).__name__, record.seq, getattr(record, "id", None)]
            line += [status.channels["trades"].missed, status.reconnects]
            print(json.dumps(line), flush=True)


anyio.run(main, sys.argv[2], backend=sys.argv[2])
"""


@pytest.mark.parametrize("loop", ["trio", "asyncio"])
def test_a_reader_in_another_process_misses_nothing_silently(fresh_valkey: Any, loop: str) -> None:
    writer = RecordWriter(fresh_valkey)
    writer.own_the_database()

    async def main() -> list[list[Any]]:
        lines: list[list[Any]] = []
        command = [sys.executable, "-c", _READER, fresh_valkey.url, loop]
        with anyio.fail_after(patient(LIMIT_S)):
            async with (
                await anyio.open_process(command, stderr=None) as process,
                anyio.create_task_group() as tasks,
            ):
                assert process.stdout is not None

                async def read() -> None:
                    text = b""
                    async for some in process.stdout:  # type: ignore[union-attr]
                        *whole, text = (text + some).split(b"\n")
                        lines.extend(map(json.loads, whole))

                tasks.start_soon(read)
                writer.next(TRADES)
                await until(lambda: len(lines) == 1)
                for _ in range(3):
                    for number in range(100):
                        writer.write(
                            *((kind, writer.make(kind)) for kind in (TRADES, BARS, STATUSES, NEWS))
                        )
                        writer.next(TRADES, late_ns=number * 10)
                        if number == 50:
                            await until(lambda: writer.cut_readers() > 0)
                        await anyio.sleep(0)
                await until(lambda: writer.cut_readers() > 0)
                end = writer.next(TRADES)
                await until(lambda: ["Trade", end.seq] in [line[:2] for line in lines])
                await until(lambda: "Article" in [line[0] for line in lines if line[2] == 300])
                process.terminate()
                tasks.cancel_scope.cancel()
        return lines

    lines = anyio.run(main)
    seqs = [seq for name, seq, *_ in lines if name == "Trade"]
    assert len(set(seqs)) == len(seqs), "each once"
    ids = [id_ for name, _, id_, *_ in lines if name == "Article"]
    assert ids == list(range(1, 301)), "news is complete, and in order"
    seq, _, missed, reconnects = [line[1:] for line in lines if line[0] == "Trade"][-1]
    assert reconnects >= 1
    assert len(seqs) + missed == seq == 602, "what was missed is counted"
    bars = [seq for name, seq, *_ in lines if name == "Bar"]
    assert bars == sorted(bars)
    assert bars[-1] == 300
