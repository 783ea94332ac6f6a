"""What repairs have believed is looked at once more. All on virtual time."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from mdservice.errors import HistoryRefused, HistoryUnavailable
from mdservice.feed.gap_repair.missing import Missed
from mdservice.feed.gap_repair.recheck import LOOK_AGAIN_S, Believed, Horizon, Recheck
from mdservice.feed.history import HalvingHistory
from mdservice.model.events import LateRecords
from mdservice.model.kinds import QUOTES
from mdservice.model.quote import Quote
from mdservice.testing import FakeHistory, VirtualClock

SECOND_NS = 10**9


class Bench:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.start_ns = self.clock.utc_ns()
        self.history = FakeHistory()
        self.late = Recheck(QUOTES, HalvingHistory(self.history, QUOTES), self.clock)

    def quote(self, number: int, symbol: str = "AAPL", *, at_s: float) -> Quote:
        event_ns = self.start_ns + int(at_s * SECOND_NS)
        return Quote(symbol, float(number), number + 1.0, 1, 1, event_ns, event_ns)

    def believed(self, *found: Quote, until_s: float = 10.0, **lasts_s: float) -> Believed:
        missed = [Missed(self.start_ns - 5 * SECOND_NS, ["AAPL", "MSFT"])]
        lasts_ns = {s: self.start_ns + int(last_s * SECOND_NS) for s, last_s in lasts_s.items()}
        return Believed(missed, found, lasts_ns, Horizon(self.start_ns + int(until_s * SECOND_NS)))

    async def next(self, within_s: float = 1_000.0) -> LateRecords | None:
        with anyio.move_on_after(within_s):
            return await self.late.next()
        return None


async def test_what_history_did_not_have_then_is_late(autojump_clock: Any) -> None:
    bench = Bench()
    known, new = bench.quote(1, at_s=1), bench.quote(2, "MSFT", at_s=2)
    bench.history.add([known, new])
    bench.late.check(bench.believed(known, AAPL=0, MSFT=0.5))
    found = await bench.next()
    assert anyio.current_time() == LOOK_AGAIN_S
    assert found is not None
    assert [(quote.symbol, quote.bid) for quote in found.records] == [("MSFT", 2)]
    assert found.from_ns == bench.start_ns + SECOND_NS // 2
    assert found.to_ns == bench.start_ns + 10 * SECOND_NS
    assert await bench.next() is None, "once"


async def test_what_came_first_over_the_stream_counts_more_than_the_clock(
    autojump_clock: Any,
) -> None:
    bench = Bench()
    missed, live = bench.quote(1, at_s=30), bench.quote(2, "MSFT", at_s=31)
    beside_it, later = bench.quote(3, at_s=31), bench.quote(4, at_s=32)
    bench.history.add([missed, live, beside_it, later])
    believed = bench.believed(AAPL=0, MSFT=0)
    bench.late.check(believed)
    believed.horizon.came([live])
    found = await bench.next()
    assert found is not None
    assert [quote.bid for quote in found.records] == [1, 3]


async def test_quotes_of_one_time_are_counted(autojump_clock: Any) -> None:
    bench = Bench()
    same = [bench.quote(1, at_s=1) for _ in range(3)]
    bench.history.add(same)
    bench.late.check(bench.believed(*same[:2], AAPL=0))
    found = await bench.next()
    assert found is not None
    assert len(found.records) == 1


@pytest.mark.parametrize("at_s", [-1.0, 0.0, 10.1])
async def test_what_was_out_before_or_may_have_come_live_is_not(
    autojump_clock: Any, at_s: float
) -> None:
    bench = Bench()
    bench.history.add([bench.quote(1, at_s=at_s), bench.quote(2, "MSFT", at_s=1)])
    bench.late.check(bench.believed(AAPL=0))
    assert await bench.next() is None


@pytest.mark.parametrize("error", [HistoryRefused("403"), HistoryUnavailable("503")])
async def test_where_history_does_not_answer_it_is_asked_a_few_times_more(
    autojump_clock: Any, error: Exception
) -> None:
    bench = Bench()
    bench.history.add([bench.quote(1, at_s=1)])
    bench.history.script.extend([error] * 4)
    bench.late.check(bench.believed(AAPL=0))
    assert await bench.next() is not None
    assert anyio.current_time() == 5 * LOOK_AGAIN_S
    bench.history.script.extend([error] * 5)
    bench.late.check(bench.believed(AAPL=0))
    found = await bench.next()
    assert found is not None
    assert (found.records, found.unknown) == ((), {"AAPL"}), "it is reported as unknown"
    assert found.from_ns == bench.start_ns


async def test_cancelled_in_the_middle_it_is_looked_at_by_the_next(autojump_clock: Any) -> None:
    bench = Bench()
    bench.history.add([bench.quote(1, at_s=1)])
    bench.history.delay_s = 5
    bench.late.check(bench.believed(AAPL=0))
    assert await bench.next(LOOK_AGAIN_S + 2) is None
    assert await bench.next() is not None


async def test_a_check_that_is_added_while_it_waits_is_noticed(autojump_clock: Any) -> None:
    bench = Bench()
    bench.history.add([bench.quote(1, at_s=1)])
    async with anyio.create_task_group() as tasks:

        async def later() -> None:
            await anyio.sleep(100)
            bench.late.check(bench.believed(AAPL=0))

        tasks.start_soon(later)
        assert await bench.next() is not None
        assert anyio.current_time() == 100 + LOOK_AGAIN_S
