"""The router as an actor: one order in, one order out, gaps told, nothing lost by a restart."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from mdservice.model.events import FeedResumed, FeedStatus, FirstRecords, RecordBatch
from mdservice.model.kinds import QUOTES
from mdservice.model.timestamps import format_ns
from mdservice.router.actor import FUTURE_TOLERANCE_NS
from tests.router.conftest import SECOND_NS, MakeBench, story


async def test_numbers_each_symbol_on_its_own_and_keeps_the_order(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.send(
            RecordBatch(QUOTES, [bench.quote(1), bench.quote(2, "MSFT"), bench.quote(3, at_s=1)]),
            bench.batch(4_000),
        )
        assert bench.story == [
            ("AAPL", 1, 1),
            ("MSFT", 2, 1),
            ("AAPL", 3, 2),
            ("AAPL", 4_000, 3),
        ]
        now = bench.router.snapshot()
        assert (now.symbols, now.quotes_accepted, now.quotes_stale) == (2, 4, 0)


async def test_older_and_repeated_quotes_go_no_further(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.send(
            RecordBatch(QUOTES, [bench.quote(1, at_s=5)]),
            RecordBatch(QUOTES, [bench.quote(1, at_s=5), bench.quote(2, at_s=4)]),
            RecordBatch(QUOTES, [bench.quote(3, at_s=5)]),
        )
        assert bench.story == [("AAPL", 1, 1), ("AAPL", 3, 2)]
        assert bench.router.snapshot().quotes_stale == 2
        assert len(bench.items) == 2, "a batch of which nothing is left is not sent"


async def test_quote_from_the_future_is_counted_and_blocks_nothing(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    limit_s = FUTURE_TOLERANCE_NS / SECOND_NS
    async with open_bench() as bench:
        await bench.send(
            RecordBatch(QUOTES, [bench.quote(1, at_s=limit_s + 0.1), bench.quote(2, at_s=limit_s)]),
            RecordBatch(QUOTES, [bench.quote(3, at_s=limit_s)]),
        )
        assert bench.story == [("AAPL", 2, 1), ("AAPL", 3, 2)]
        now = bench.router.snapshot()
        assert (now.future_records, now.quotes_accepted, now.quotes_stale) == (1, 2, 0)
        assert now.clock_behind_s is None


async def test_machine_whose_clock_is_behind_is_noticed(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        for number in range(100):
            await bench.send(RecordBatch(QUOTES, [bench.quote(1 + number, at_s=300)]))
        assert bench.router.snapshot().clock_behind_s == pytest.approx(300)
        bench.clock.step(300)
        for number in range(100):
            await bench.send(RecordBatch(QUOTES, [bench.quote(1 + number, at_s=300)]))
        assert bench.router.snapshot().clock_behind_s is None


async def test_listener_hears_the_same_in_the_same_order(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.send(
            bench.status("connected"),
            bench.batch(1),
            bench.lost("AAPL"),
            bench.status("connected"),
            FeedResumed(QUOTES, bench.start_ns, frozenset(("AAPL",)), repairing=False),
            bench.batch(2),
        )
        assert bench.told == bench.items
        assert len(bench.items) == 6


async def test_reports_the_gap_that_a_lost_connection_leaves(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.send(
            bench.status("connected"),
            RecordBatch(QUOTES, [bench.quote(1, at_s=7), bench.quote(2, "MSFT", at_s=9)]),
            bench.lost("AAPL", "MSFT"),
            bench.status("connected", at_s=29),
            FeedResumed(
                QUOTES,
                bench.start_ns + 30 * SECOND_NS,
                frozenset(
                    (
                        "AAPL",
                        "MSFT",
                        "TSLA",
                    )
                ),
                repairing=False,
            ),
        )
        assert [item.state for item in bench.items if isinstance(item, FeedStatus)] == [
            "connected",
            "disconnected",
            "connected",
            "gap",
        ]
        gap = bench.items[-1]
        assert isinstance(gap, FeedStatus)
        assert gap.details == {
            "channel": "quotes",
            "from": format_ns(bench.start_ns + 9 * SECOND_NS),  # of the last quote, not the loss
            "to": format_ns(bench.start_ns + 30 * SECOND_NS),
            "symbols": ["AAPL", "MSFT"],
        }
        assert bench.router.snapshot().gaps == 1


async def test_without_any_quote_there_is_no_gap(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.send(
            bench.lost("AAPL"),
            bench.status("connected"),
            FeedResumed(QUOTES, bench.start_ns, frozenset(("AAPL",)), repairing=False),
        )
        assert bench.story == ["disconnected", "connected"]


async def test_first_connection_leaves_no_gap(autojump_clock: Any, open_bench: MakeBench) -> None:
    async with open_bench() as bench:
        await bench.send(
            bench.status("connected"),
            bench.batch(1),
            FeedResumed(QUOTES, bench.start_ns, frozenset(("AAPL",)), repairing=False),
            bench.status("stale"),
        )
        assert bench.story == ["connected", ("AAPL", 1, 1), "stale"]


async def test_waits_for_the_next_actor_and_loses_nothing(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench(outbox_size=1, taking=False) as bench:
        bids = list(range(1, 31))
        await bench.send(*(bench.batch(bid) for bid in bids))
        assert bench.router.depth.used >= 20, "it does not wait"
        bench.take()
        await anyio.wait_all_tasks_blocked()
        assert bench.story == [("AAPL", bid, bid) for bid in bids]


async def test_a_wait_for_the_next_actor_is_no_stall(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench(outbox_size=1, taking=False) as bench:
        await bench.send(*(bench.batch(bid) for bid in range(1, 6)))
        for _ in range(100):
            await anyio.sleep(0.37)
            assert bench.router.heartbeat.age_s() <= 1.0
        bench.take()
        await anyio.wait_all_tasks_blocked()
        assert len(bench.story) == 5


async def test_ends_once_the_inbox_has_ended_and_closes_the_outbox(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.send(*(bench.batch(bid) for bid in range(1, 11)))
        bench.inbox.outbox.close()
        await bench.ended.wait()
        await anyio.wait_all_tasks_blocked()
        assert len(bench.story) == 10
        with pytest.raises(anyio.ClosedResourceError):
            await bench.outbox.outbox.send(bench.status("connected"))


async def test_heartbeat_goes_on_without_quotes(autojump_clock: Any, open_bench: MakeBench) -> None:
    async with open_bench() as bench:
        for _ in range(100):
            await anyio.sleep(0.37)
            assert bench.router.heartbeat.age_s() <= 1.0


async def test_restart_between_items_keeps_the_numbers(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        await bench.send(bench.batch(1, 2))
        await bench.cancel()
        await bench.start()
        await bench.send(bench.batch(3))
        assert bench.story == [("AAPL", 1, 1), ("AAPL", 2, 2), ("AAPL", 3, 3)]


async def test_restart_in_the_middle_of_an_item_repeats_and_loses_nothing(
    autojump_clock: Any,
    open_bench: MakeBench,
) -> None:
    async with open_bench(outbox_size=1, taking=False) as bench:
        items = [
            bench.status("connected"),
            bench.batch(1, 2),
            bench.lost("AAPL"),
            bench.status("connected"),
            FeedResumed(QUOTES, bench.start_ns, frozenset(("AAPL",)), repairing=False),
            bench.batch(3),
        ]
        for item in items:
            await bench.inbox.outbox.send(item)
        for _ in range(12):  # cancelled again and again while it waits for the next actor
            await anyio.wait_all_tasks_blocked()
            await bench.cancel()
            await bench.start()
            with anyio.move_on_after(0.1):
                bench.items.append(await bench.outbox.inbox(bench.router.heartbeat).receive())
        assert bench.story == [
            *("connected", ("AAPL", 1, 1), ("AAPL", 2, 2), "disconnected", "connected", "gap"),
            ("AAPL", 3, 3),
        ]
        assert story(bench.told) == bench.story
        assert bench.router.snapshot().gaps == 1


async def test_first_prices_are_sent_and_counted_unless_they_are_from_the_future(
    autojump_clock: Any, open_bench: MakeBench
) -> None:
    async with open_bench() as bench:
        limit_s = FUTURE_TOLERANCE_NS / SECOND_NS
        late = bench.quote(3, "MSFT", at_s=limit_s)
        late.ts_event_ns += 1
        first = [bench.quote(1), bench.quote(2, "IBM", at_s=limit_s), late]
        asked_ns = {each.symbol: bench.start_ns for each in first}
        await bench.send(FirstRecords(QUOTES, first, asked_ns))
        assert bench.story == [("AAPL", 1, 1), ("IBM", 2, 1)]
        snapshot = bench.router.snapshot()
        assert (snapshot.prices_fetched, snapshot.quotes_accepted) == (2, 2)
        assert snapshot.future_records == 1
