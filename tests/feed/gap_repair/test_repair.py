"""Live quotes wait, past ones are fetched, both go on together. All on virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import pytest

import mdservice.feed.gap_repair.repair as repair_module
from mdservice.errors import HistoryRefused, HistoryUnavailable
from mdservice.feed.gap_repair.recheck import LOOK_AGAIN_S
from mdservice.feed.gap_repair.repair import HOLD_LIMIT_S, LATEST_LIMIT_S, QUIET_S, GapRepair
from mdservice.feed.history import HalvingHistory
from mdservice.feed.send_queue import SendQueue
from mdservice.model.events import Backfill, FeedItem, FeedResumed, LateRecords, RecordBatch
from mdservice.model.kinds import BARS, NEWS, QUOTES, TRADES, Kind
from mdservice.model.news import Article
from mdservice.model.quote import Quote
from mdservice.router.policies import make_sequencer
from mdservice.runtime.actor import Channel, Heartbeat
from mdservice.testing import FakeHistory, VirtualClock
from tests.records import make_record

SECOND_NS = 10**9
AWAY = HistoryUnavailable("503")
REFUSED = HistoryRefused("403: 42210000 recent SIP data")


class Bench:
    """A repair, the history that it asks, and what it sends."""

    def __init__(
        self, tasks: anyio.abc.TaskGroup, *, size: int = 100, kind: Kind[Any] = QUOTES
    ) -> None:
        self.kind = kind
        self.clock = VirtualClock()
        self.start_ns = self.clock.utc_ns()
        self.history = FakeHistory()
        self.sequencer = make_sequencer(kind)
        self.channel = Channel[FeedItem](size)
        self.send_queue = SendQueue(self.channel.outbox)
        self.repair = GapRepair(
            kind,
            HalvingHistory(self.history, kind),
            self.sequencer,
            self.send_queue,
            self.clock,
        )
        self.taken: list[tuple[float, FeedItem]] = []
        self.tasks = tasks
        self.limit = anyio.CancelScope()
        tasks.start_soon(self.keep_limit)

    def quote(self, number: int, symbol: str = "AAPL", *, at_s: float | None = None) -> Quote:
        """The market's quote of now, or of another second."""
        now_ns = self.clock.utc_ns()
        event_ns = now_ns if at_s is None else self.start_ns + int(at_s * SECOND_NS)
        return Quote(symbol, float(number), number + 1.0, 1, 1, event_ns, now_ns)

    def article(self, number: int) -> Article:
        now_ns = self.clock.utc_ns()
        text = [f"headline {number}", *[None] * 5]
        return Article(number, *text, ("AAPL",), None, None, now_ns, now_ns)

    def accept(self, *records: Any) -> None:
        """They were received in time, and are in history."""
        self.history.add(records, self.kind)
        self.sequencer.route(records, self.clock.utc_ns(), SECOND_NS)

    def miss(self, *records: Any) -> None:
        self.history.add(records, self.kind)

    async def live(self, *records: Any) -> None:
        self.history.add(records, self.kind)
        self.repair.add_live(self.kind, records)
        await self.send_queue.flush()

    async def keep_limit(self) -> None:
        with self.limit:
            await self.repair.run()

    async def take(self) -> None:
        inbox = self.channel.inbox(Heartbeat(self.clock))
        while True:
            item = await inbox.receive()
            self.taken.append((anyio.current_time(), item))

    async def lose(self, *, after_s: float = 1.0) -> None:
        """Something was accepted, the connection was lost, something missed, here it is again."""
        self.accept(self.quote(1), self.quote(1, "MSFT"))
        await anyio.sleep(after_s)
        self.repair.lost(["AAPL", "MSFT"])
        self.miss(self.quote(2), self.quote(2, "MSFT"))
        await anyio.sleep(after_s)
        self.repair.begin()

    async def fix(self, *symbols: str) -> None:
        """Repair, and see everything that is sent."""
        await self.repair.repair(symbols)
        await anyio.wait_all_tasks_blocked()

    async def repair_without(self, symbol: str, *, left: str) -> None:
        """Repair the one, while the feed does not give the other."""
        await self.repair.repair([left], [symbol])
        await anyio.wait_all_tasks_blocked()

    def close(self) -> None:
        self.channel.close()

    @property
    def items(self) -> list[FeedItem]:
        return [item for _, item in self.taken]

    @property
    def backfill(self) -> Backfill:
        (found,) = [item for item in self.items if isinstance(item, Backfill)]
        return found

    def sent_s(self, kind: type) -> float:
        return next(at_s for at_s, item in self.taken if isinstance(item, kind))


def names(quotes: Any) -> list[tuple[str, float]]:
    return [(quote.symbol, quote.bid) for quote in quotes]


@asynccontextmanager
async def open_bench(
    *, taking: bool = True, size: int = 100, kind: Kind[Any] = QUOTES
) -> AsyncIterator[Bench]:
    bench = None
    try:
        async with anyio.create_task_group() as tasks:
            bench = Bench(tasks, size=size, kind=kind)
            if taking:
                tasks.start_soon(bench.take)
            with anyio.fail_after(1_000):
                yield bench
            tasks.cancel_scope.cancel()
    finally:
        if bench is not None:
            bench.close()


@pytest.mark.parametrize("behind_s", [3_600.0, 90.0])
async def test_with_a_clock_that_is_behind_nothing_counts_as_repaired(
    autojump_clock: Any, behind_s: float
) -> None:
    async with open_bench() as bench:
        await bench.lose()
        bench.clock.step(-behind_s)
        bench.tasks.start_soon(bench.repair.repair, ["AAPL", "MSFT"])
        await anyio.sleep(0.1)
        live = bench.quote(3, at_s=anyio.current_time())
        await bench.live(live)
        await anyio.sleep(5)
        assert not bench.backfill.complete
        assert names(bench.backfill.live) == [("AAPL", 3)]


async def test_of_a_symbol_that_was_not_followed_before_nothing_was_missed(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        await bench.lose()
        bench.miss(bench.quote(7, "NEW"))
        await bench.fix("AAPL", "MSFT", "NEW")
        assert {quote.symbol for quote in bench.backfill.past} == {"AAPL", "MSFT"}
        assert bench.backfill.complete == {"AAPL", "MSFT"}


async def test_one_that_was_followed_and_never_quoted_may_have_missed_something(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        await bench.lose()
        bench.repair.lost(["NEW"])
        bench.miss(bench.quote(7, "NEW"))
        await bench.fix("AAPL", "MSFT", "NEW")
        assert bench.backfill.complete == {"AAPL", "MSFT", "NEW"}
        assert ("NEW", 7) in names(bench.backfill.past)


# ---- left out, and back


async def test_a_symbol_that_was_left_out_is_fetched_from_its_own_last_quote(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        await bench.lose()
        await bench.repair_without("MSFT", left="AAPL")
        bench.taken.clear()
        for number in (3, 4):
            await anyio.sleep(20)
            bench.miss(bench.quote(number, "MSFT"))
            await bench.live(bench.quote(number))
            bench.sequencer.route([bench.quote(number)], bench.clock.utc_ns(), SECOND_NS)
        bench.repair.lost(["AAPL"])
        bench.repair.begin()
        bench.history.requests.clear()
        await bench.fix("AAPL", "MSFT")
        assert names(q for q in bench.backfill.past if q.symbol == "MSFT") == [
            ("MSFT", 1),
            ("MSFT", 2),
            ("MSFT", 3),
            ("MSFT", 4),
        ]
        assert bench.backfill.complete == {"AAPL", "MSFT"}
        starts = {s: asked.start_ns for asked in bench.history.requests for s in asked.symbols}
        assert starts["AAPL"] - starts["MSFT"] > 30 * SECOND_NS, "the other is not requested again"


async def test_it_stays_behind_where_the_connection_is_lost_again_before_it_is_fetched(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        await bench.lose()
        await bench.repair_without("MSFT", left="AAPL")
        await anyio.sleep(40)
        await bench.live(bench.quote(3))
        bench.sequencer.route([bench.quote(3)], bench.clock.utc_ns(), SECOND_NS)
        bench.repair.begin()
        with anyio.move_on_after(0.1):  # lost again in the middle
            await bench.repair.repair(["AAPL", "MSFT"])
        bench.taken.clear()
        bench.repair.begin()
        await bench.fix("AAPL", "MSFT")
        assert names(q for q in bench.backfill.past if q.symbol == "MSFT") == [
            ("MSFT", 1),
            ("MSFT", 2),
        ]


async def test_one_that_comes_back_on_the_same_connection_is_fetched_alone(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        await bench.lose()
        await bench.repair_without("MSFT", left="AAPL")
        bench.taken.clear()
        await anyio.sleep(40)
        bench.repair.expect(["MSFT"])
        await bench.live(bench.quote(3, "MSFT"))
        await bench.fix("AAPL", "MSFT")
        resumed, backfill = bench.items
        assert isinstance(resumed, FeedResumed)
        assert resumed.repairing
        assert names(backfill.past) == [("MSFT", 1), ("MSFT", 2), ("MSFT", 3)]
        assert backfill.complete == {"MSFT"}


async def test_one_that_was_never_out_holds_up_nothing(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        await bench.lose()
        await bench.repair_without("TSLA", left="AAPL")
        bench.taken.clear()
        bench.repair.expect(["TSLA"])
        await bench.live(bench.quote(3))
        await anyio.wait_all_tasks_blocked()
        assert names(bench.items[0].records) == [("AAPL", 3)]


async def test_where_it_does_not_come_back_what_waited_goes_on_at_once(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        await bench.lose()
        await bench.repair_without("MSFT", left="AAPL")
        bench.taken.clear()
        bench.history.requests.clear()
        bench.repair.expect(["MSFT"])
        await bench.live(bench.quote(3))
        await bench.repair_without("MSFT", left="AAPL")
        resumed, backfill = bench.items
        assert not resumed.repairing
        assert names(backfill.live) == [("AAPL", 3)]
        assert not backfill.complete
        assert not bench.history.requests


async def test_one_that_a_request_brought_back_is_reported_and_holds_up_nothing(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        await bench.lose()
        await bench.repair.subscriptions_changed(["AAPL"], ["MSFT"])
        assert not bench.items, "the return itself is yet to be told"
        await bench.repair_without("MSFT", left="AAPL")
        bench.taken.clear()
        await bench.repair.subscriptions_changed(["AAPL", "MSFT"], [])
        await bench.live(bench.quote(3))
        await anyio.wait_all_tasks_blocked()
        resumed, batch = bench.items
        assert resumed == FeedResumed(
            QUOTES, bench.clock.utc_ns(), frozenset(("AAPL", "MSFT")), repairing=False
        )
        assert names(batch.records) == [("AAPL", 3)]
        await bench.repair.subscriptions_changed(["AAPL", "MSFT"], [])
        assert len(bench.items) == 2, "it is reported once"


async def starts_of_the_next_repair(bench: Bench, *symbols: str) -> dict[str, float]:
    """Seconds since the start from which history is asked for each symbol."""
    bench.repair.lost(symbols)
    bench.repair.begin()
    bench.history.requests.clear()
    await bench.fix(*symbols)
    return {
        symbol: min(
            (asked.start_ns - bench.start_ns) / SECOND_NS
            for asked in bench.history.requests
            if symbol in asked.symbols
        )
        for symbol in symbols
    }


async def test_a_gap_that_was_reported_without_a_repair_is_fetched_by_the_next_one(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        await bench.lose()
        await anyio.sleep(HOLD_LIMIT_S + 1)  # too long without a connection: nothing waits any more
        await bench.repair.repair(["AAPL", "MSFT"])
        await anyio.sleep(100)
        bench.accept(bench.quote(3))
        starts_s = await starts_of_the_next_repair(bench, "AAPL", "MSFT")
        assert starts_s["MSFT"] < 0, "it has no record since the gap"
        assert starts_s["AAPL"] > 100


async def test_a_gap_of_a_symbol_that_a_request_brought_back_is_fetched_by_the_next_repair(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        bench.accept(bench.quote(1, "SPY"))
        bench.repair.lost(["SPY"])
        await bench.lose()
        await bench.repair.repair(["AAPL"], ["MSFT", "SPY"])
        await bench.repair.subscriptions_changed(["AAPL", "MSFT", "SPY"], [])
        await anyio.sleep(100)
        bench.accept(bench.quote(3, "SPY"))
        starts_s = await starts_of_the_next_repair(bench, "AAPL", "MSFT", "SPY")
        assert starts_s["MSFT"] < 0, "it has no record since the gap"
        assert starts_s["SPY"] > 90


# ---- nothing to repair


async def test_before_any_quote_nothing_waits(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        bench.repair.begin()
        await bench.live(bench.quote(1))
        await bench.fix("AAPL")
        assert [type(item) for item in bench.items] == [RecordBatch, FeedResumed]
        assert bench.items[1] == FeedResumed(
            QUOTES, bench.start_ns, frozenset(("AAPL",)), repairing=False
        )
        assert not bench.history.requests
        assert anyio.current_time() == 0


async def test_without_a_history_nothing_waits(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        bench.repair = GapRepair(QUOTES, None, bench.sequencer, bench.send_queue, bench.clock)
        await bench.lose()
        await bench.live(bench.quote(3))
        await bench.fix("AAPL")
        assert [type(item) for item in bench.items] == [RecordBatch, FeedResumed]


async def test_with_nothing_subscribed_nothing_is_asked(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        await bench.lose()
        await bench.fix()
        assert (bench.backfill.past, bench.backfill.live) == ([], [])
        assert not bench.history.requests


# ---- repaired


async def test_missed_quotes_and_those_that_waited_go_on_together(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        await bench.lose()
        bench.tasks.start_soon(bench.repair.repair, ["AAPL", "MSFT"])
        await anyio.sleep(0.1)
        await bench.live(bench.quote(3))
        await anyio.sleep(0.5)
        await bench.live(bench.quote(4))
        await anyio.wait_all_tasks_blocked()
        resumed, backfill, batch = bench.items
        assert resumed == FeedResumed(
            QUOTES, bench.start_ns + 2 * SECOND_NS, frozenset(("AAPL", "MSFT")), repairing=True
        )
        assert isinstance(backfill, Backfill)
        assert backfill.complete
        assert names(backfill.past) == [
            *(("AAPL", 1), ("AAPL", 2), ("AAPL", 3)),
            *(("MSFT", 1), ("MSFT", 2)),
        ]
        assert names(backfill.live) == [("AAPL", 3)]
        assert isinstance(batch, RecordBatch)
        assert names(batch.records) == [("AAPL", 4)]


async def test_history_is_asked_from_before_the_last_quote_until_after_now(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        await bench.lose()
        await bench.fix("MSFT", "AAPL")
        first = bench.history.requests[-1]
        assert first.symbols == ("AAPL", "MSFT")
        assert first.start_ns == bench.start_ns - 5 * SECOND_NS
        assert first.end_ns >= bench.start_ns + 2 * SECOND_NS


async def test_a_quote_ahead_of_its_coming_hides_nothing(autojump_clock: Any) -> None:
    """The exchange's time of one quote was half a minute ahead of those of the others."""
    async with open_bench() as bench:
        bench.sequencer.route([bench.quote(1, "MSFT", at_s=30)], bench.start_ns, 60 * SECOND_NS)
        await bench.lose()
        await bench.fix("AAPL")
        assert ("AAPL", 2) in names(bench.backfill.past)


async def test_a_busy_market_is_repaired_within_a_second(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        await bench.lose()
        bench.tasks.start_soon(bench.repair.repair, ["AAPL"])
        for number in range(3, 200):
            await anyio.sleep(0.01)
            await bench.live(bench.quote(number))
        assert bench.backfill.complete
        assert bench.sent_s(Backfill) - bench.sent_s(FeedResumed) < 1


async def test_in_a_quiet_market_a_lag_is_allowed_for(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        bench.history.lag_s = QUIET_S
        await bench.lose(after_s=0.1)
        await bench.fix("AAPL")
        assert bench.backfill.complete
        assert names(bench.backfill.past) == [("AAPL", 1), ("AAPL", 2)]
        assert anyio.current_time() - 0.2 == pytest.approx(QUIET_S)


@pytest.mark.parametrize("lag_s", [0.3, 2.5, 6.0, 8.5])
async def test_it_waits_until_history_has_come_up_to_the_live_quotes(
    autojump_clock: Any, lag_s: float
) -> None:
    async with open_bench() as bench:
        bench.history.lag_s = lag_s
        await bench.lose(after_s=0.2)
        bench.tasks.start_soon(bench.repair.repair, ["AAPL", "MSFT"])
        for number in range(3, 150):
            await anyio.sleep(0.1)
            await bench.live(bench.quote(number))
        assert bench.backfill.complete
        assert {("AAPL", 2), ("MSFT", 2)} <= set(names(bench.backfill.past))
        waited_s = bench.sent_s(Backfill) - bench.sent_s(FeedResumed)
        assert lag_s <= waited_s <= lag_s + 1.5
        rate = len(bench.history.requests) / waited_s
        assert rate < 10, "history is not asked without pause"


async def test_a_live_quote_that_came_before_all_was_subscribed_shows_nothing_of_the_lag(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        bench.history.lag_s = 1.0
        await bench.lose()
        await bench.live(bench.quote(3))  # of the first symbols that are subscribed
        await anyio.sleep(1.5)
        bench.miss(bench.quote(4, "MSFT"))  # not subscribed yet
        bench.tasks.start_soon(bench.repair.repair, ["AAPL", "MSFT"])
        await anyio.sleep(0.3)
        await bench.live(bench.quote(5))
        await anyio.sleep(5)
        assert ("MSFT", 4) in names(bench.backfill.past)
        assert bench.backfill.complete


async def test_all_that_was_missed_is_asked_for_once_when_history_has_it(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        bench.history.lag_s = 4
        bench.accept(bench.quote(0))
        for number in range(1, 400):
            bench.miss(bench.quote(number), bench.quote(-number))  # two of each time
            await anyio.sleep(0.1)
        bench.repair.begin()
        bench.tasks.start_soon(bench.repair.repair, ["AAPL"])
        for number in range(400, 450):
            await bench.live(bench.quote(number))
            await anyio.sleep(0.1)
        bids = [quote.bid for quote in bench.backfill.past]
        assert len(bids) == len(set(bids))
        expected = [bid for number in range(1, 400) for bid in (number, -number)]
        assert bids[1 : len(expected) + 1] == expected
        whole = [r for r in bench.history.requests if r.start_ns < bench.start_ns]
        assert len(whole) == 1, "all of it is asked for once"


async def test_a_live_quote_that_history_never_has_does_not_hold_it_up(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        await bench.lose()
        bench.tasks.start_soon(bench.repair.repair, ["AAPL", "MSFT"])
        await anyio.sleep(0.1)
        bench.repair.add_live(QUOTES, [bench.quote(3)])
        await anyio.sleep(2)
        bench.history.add([bench.quote(4)])
        await anyio.sleep(1.5)
        assert bench.backfill.complete


async def test_a_history_that_has_never_answered_is_given_up_early(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        await bench.lose()
        bench.history.always = AWAY
        await bench.fix("AAPL")
        assert not bench.backfill.complete
        assert anyio.current_time() - 2 <= 5


@pytest.mark.parametrize("failures", [1, 3])
async def test_history_that_does_not_answer_is_asked_again(
    autojump_clock: Any, failures: int
) -> None:
    async with open_bench() as bench:
        await bench.lose()
        bench.history.script.extend([AWAY] * failures)
        await bench.fix("AAPL")
        assert bench.backfill.complete
        assert names(bench.backfill.past) == [("AAPL", 1), ("AAPL", 2)]


# ---- not repaired


async def test_where_history_is_refused_the_latest_is_there_at_once(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        await bench.lose()
        bench.history.script.append(REFUSED)
        await bench.fix("AAPL", "MSFT")
        assert not bench.backfill.complete
        assert names(bench.backfill.past) == [("AAPL", 2), ("MSFT", 2)]
        assert anyio.current_time() == 2
        assert [r.call for r in bench.history.requests] == ["past", "latest"]


async def test_the_latest_never_overtakes_the_stream(autojump_clock: Any) -> None:
    """What was quoted since all is subscribed comes live, and in order."""
    async with open_bench() as bench:
        await bench.lose()
        bench.history.delay_s = 1
        bench.history.script.append(REFUSED)
        bench.tasks.start_soon(bench.repair.repair, ["AAPL", "MSFT"])
        await anyio.sleep(0.5)
        bench.history.add([bench.quote(3)])  # on its way, with 4 behind it
        await anyio.sleep(5)
        assert names(bench.backfill.past) == [("MSFT", 2)]


async def test_the_latest_that_also_came_live_leaves_the_order_of_its_time(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        await bench.lose()
        at_s = anyio.current_time()
        await bench.live(bench.quote(3, at_s=at_s), bench.quote(4, at_s=at_s))
        bench.history.script.append(REFUSED)
        await bench.fix("AAPL", "MSFT")
        sent, _ = bench.sequencer.fill(bench.backfill.past, bench.backfill.live)
        assert names(sent) == [("MSFT", 2), ("AAPL", 3), ("AAPL", 4)]


async def test_many_symbols_are_asked_for_their_latest_in_parts_and_what_came_is_kept(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        symbols = [f"S{number:03}" for number in range(500)]
        bench.accept(bench.quote(1))
        bench.miss(*(bench.quote(2, symbol) for symbol in symbols))
        bench.repair.lost(symbols)
        bench.repair.begin()
        bench.history.delay_s = LATEST_LIMIT_S / 2.5
        bench.history.script.append(REFUSED)
        await bench.fix(*symbols)
        assert len(bench.backfill.past) == 400, "two parts of 200 came in time"


@pytest.mark.parametrize("error", [AWAY, REFUSED])
async def test_where_nothing_answers_live_quotes_wait_for_the_limit_at_most(
    autojump_clock: Any, error: Exception
) -> None:
    async with open_bench() as bench:
        await bench.lose()
        bench.history.always = error
        bench.tasks.start_soon(bench.repair.repair, ["AAPL"])
        for number in range(3, 203):
            await bench.live(bench.quote(number))
            await anyio.sleep(0.1)
        assert not bench.backfill.complete
        assert bench.backfill.past == []
        out = [*bench.backfill.live]
        for item in bench.items:
            out += item.records if isinstance(item, RecordBatch) else []
        assert [quote.bid for quote in out] == list(range(3, 203))
        assert bench.sent_s(Backfill) - 2 <= HOLD_LIMIT_S


@pytest.mark.parametrize("delay_s", [14.0, 100.0])
async def test_history_that_is_too_slow_leaves_the_gap(autojump_clock: Any, delay_s: float) -> None:
    async with open_bench() as bench:
        await bench.lose()
        bench.history.delay_s = delay_s
        await bench.live(bench.quote(3))
        await bench.fix("AAPL")
        assert not bench.backfill.complete
        assert names(bench.backfill.live) == [("AAPL", 3)]
        assert anyio.current_time() - 2 <= HOLD_LIMIT_S


async def test_history_that_lags_too_far_gives_what_it_has_and_the_latest(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        bench.history.lag_s = 30
        bench.accept(bench.quote(1))
        await anyio.sleep(10)
        bench.miss(bench.quote(2))
        await anyio.sleep(22)
        bench.miss(bench.quote(3))
        await anyio.sleep(0.5)
        bench.repair.begin()
        bench.tasks.start_soon(bench.repair.repair, ["AAPL"])
        await anyio.sleep(0.1)
        await bench.live(bench.quote(4, "MSFT"))
        await anyio.sleep(HOLD_LIMIT_S)
        assert not bench.backfill.complete
        assert [q.bid for q in bench.backfill.past] == [1, 2, 3]
        waited_s = bench.sent_s(Backfill) - bench.sent_s(FeedResumed)
        assert 8 <= waited_s <= HOLD_LIMIT_S


async def test_of_every_symbol_those_seen_are_fetched_and_the_gap_stays(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        await bench.lose()
        await bench.fix("*", "TSLA")
        assert bench.history.requests[-1].symbols == ("AAPL", "MSFT")
        assert not bench.backfill.complete
        assert names(bench.backfill.past)[:2] == [("AAPL", 1), ("AAPL", 2)]


async def test_news_of_every_symbol_is_fetched_whole(autojump_clock: Any) -> None:
    async with open_bench(kind=NEWS) as bench:
        bench.accept(bench.article(1))
        await anyio.sleep(1)
        bench.repair.lost(["*"])
        bench.miss(bench.article(2))
        await anyio.sleep(1)
        bench.repair.begin()
        await bench.live(bench.article(3))
        await bench.fix("*")
        assert bench.history.requests[-1].symbols == ("*",)
        assert bench.backfill.complete == {"*"}
        assert [article.id for article in bench.backfill.past] == [1, 2, 3]


async def test_of_too_many_symbols_only_the_latest_is_asked(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair_module, "MOST_SEEN", 1)
    async with open_bench() as bench:
        await bench.lose()
        await bench.fix("*")
        assert {request.call for request in bench.history.requests} == {"latest"}
        assert names(bench.backfill.past) == [("AAPL", 2), ("MSFT", 2)]
        assert not bench.backfill.complete


async def test_too_many_live_quotes_do_not_wait_any_longer(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair_module, "MOST_HELD", 10)
    async with open_bench() as bench:
        bench.history.lag_s = 1_000
        await bench.lose()
        bench.tasks.start_soon(bench.repair.repair, ["AAPL"])
        for number in range(3, 23):
            await bench.live(bench.quote(number))
            await anyio.sleep(0.01)
        assert not bench.backfill.complete
        assert [q.bid for q in bench.backfill.live] == list(range(3, 14))
        rest = [
            q.bid for item in bench.items if isinstance(item, RecordBatch) for q in item.records
        ]
        assert rest == list(range(14, 23))
        asked = len(bench.history.requests)
        await anyio.sleep(20)
        assert len(bench.history.requests) == asked, "the repair was given up"


# ---- lost again


async def test_a_second_loss_in_the_middle_is_covered_by_the_next_repair(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        bench.history.lag_s = 3
        await bench.lose()
        with anyio.move_on_after(1):
            await bench.live(bench.quote(3))
            await bench.fix("AAPL")
        bench.miss(bench.quote(4))
        await anyio.sleep(0.5)
        bench.repair.begin()
        bench.tasks.start_soon(bench.repair.repair, ["AAPL"])
        await anyio.sleep(0.1)
        await bench.live(bench.quote(5))
        await anyio.sleep(6)
        assert bench.backfill.complete
        assert {("AAPL", number) for number in (2, 3, 4)} <= set(names(bench.backfill.past))
        assert names(bench.backfill.live) == [("AAPL", 3), ("AAPL", 5)]


async def test_what_waits_is_sent_in_time_also_while_disconnected(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        await bench.lose()
        await bench.live(bench.quote(3))
        await anyio.sleep(60)  # lost before anything was subscribed
        assert names(bench.backfill.live) == [("AAPL", 3)]
        assert not bench.backfill.complete
        assert bench.sent_s(Backfill) == 2 + HOLD_LIMIT_S


async def test_every_repair_has_the_whole_limit_for_itself(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        await bench.lose()
        await bench.fix("AAPL")
        bench.taken.clear()
        await anyio.sleep(8)
        bench.repair.lost(["AAPL"])
        bench.repair.begin()
        began_s = anyio.current_time()
        bench.history.delay_s = 9
        await bench.live(bench.quote(3))
        await anyio.sleep(HOLD_LIMIT_S - 0.1)
        assert bench.items == [], "the limit of the first repair is none of this one"
        await anyio.sleep(0.2)
        assert bench.sent_s(Backfill) == began_s + HOLD_LIMIT_S


async def test_the_limit_holds_after_a_restart(autojump_clock: Any) -> None:
    """The actor is restarted in the middle: who watched the limit is gone, and starts again."""
    async with open_bench() as bench:
        await bench.lose()
        await bench.live(bench.quote(3))
        await anyio.sleep(1)
        bench.limit.cancel()
        bench.tasks.start_soon(bench.repair.run)
        await anyio.sleep(HOLD_LIMIT_S)
        assert names(bench.backfill.live) == [("AAPL", 3)]


# ---- stopped, cancelled


@pytest.mark.parametrize("hand_over", [False, True])
async def test_stopping_sends_what_waits_unless_another_run_goes_on(
    autojump_clock: Any, hand_over: bool
) -> None:
    """That run fetches it together with what is missing before it."""
    async with open_bench() as bench:
        bench.history.lag_s = 9
        await bench.lose()
        bench.tasks.start_soon(bench.repair.repair, ["AAPL"])
        await anyio.sleep(0.1)
        await bench.live(bench.quote(3))
        bench.repair.stop(hand_over=hand_over)
        await bench.send_queue.flush()
        await anyio.wait_all_tasks_blocked()
        if hand_over:
            assert not any(isinstance(item, Backfill | RecordBatch) for item in bench.items)
        else:
            assert names(bench.backfill.live) == [("AAPL", 3)]
            assert not bench.backfill.complete


@pytest.mark.parametrize("size", [1, 2, 100])
@pytest.mark.parametrize("until_s", [0.0, 0.1, 0.3, 0.7, 1.6, 2.05, 3.0])
async def test_cancelled_anywhere_nothing_that_waits_is_lost_or_repeated(
    autojump_clock: Any, until_s: float, size: int
) -> None:
    """Also in the middle of sending, where there is no room."""
    async with open_bench(taking=False, size=size) as bench:
        await bench.lose()
        number = 3
        for _ in range(6):
            bench.repair.begin()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(bench.repair.repair, ["AAPL", "MSFT"])
                await anyio.wait_all_tasks_blocked()
                tasks.start_soon(bench.live, bench.quote(number))
                number += 1
                await anyio.sleep(until_s)
                tasks.cancel_scope.cancel()
        bench.tasks.start_soon(bench.take)
        bench.repair.stop()
        await bench.send_queue.flush()
        await anyio.sleep(1)
        live = []
        for item in bench.items:
            if isinstance(item, Backfill):
                live += item.live
            elif isinstance(item, RecordBatch):
                live += item.records
        assert [quote.bid for quote in live] == list(range(3, number))


async def test_a_trade_that_is_reported_late_in_the_outage_is_fetched_too(
    autojump_clock: Any,
) -> None:
    async with open_bench(kind=TRADES) as bench:

        def trade(number: int, at_s: float) -> Any:
            return make_record(TRADES, "AAPL", number, bench.start_ns + int(at_s * SECOND_NS))

        bench.accept(trade(1, -28), trade(2, -1))
        bench.repair.lost(["AAPL"])
        bench.miss(trade(3, -29), trade(4, 0))
        bench.repair.begin()
        await bench.fix("AAPL")
        missing, _ = bench.sequencer.fill(bench.backfill.past, bench.backfill.live)
        assert [each.id for each in missing] == [3, 4]


async def test_a_live_trade_that_came_late_does_not_show_that_history_is_up_to_date(
    autojump_clock: Any,
) -> None:
    async with open_bench(kind=TRADES) as bench:

        def trade(number: int, at_s: float) -> Any:
            return make_record(TRADES, "AAPL", number, bench.start_ns + int(at_s * SECOND_NS))

        bench.accept(trade(1, -1))
        await anyio.sleep(20)
        bench.history.lag_s = 4
        bench.accept(trade(2, 10))
        bench.repair.lost(["AAPL"])
        await anyio.sleep(1)
        bench.miss(trade(3, 20.5))
        await anyio.sleep(1)
        bench.repair.begin()
        await bench.live(trade(4, 5))
        await bench.fix("AAPL")
        assert 3 not in [each.id for each in bench.backfill.past], "history lags"
        await anyio.sleep(LOOK_AGAIN_S + 1)
        late = [
            each.id
            for item in bench.items
            if isinstance(item, LateRecords)
            for each in item.records
        ]
        assert late == [3]


@pytest.mark.parametrize("accepted", [True, False])
async def test_an_updated_bar_that_history_had_too_late_is_found_by_the_second_look(
    autojump_clock: Any, accepted: bool
) -> None:
    """Also of a bar that began before it was subscribed: its update comes after the next one."""
    async with open_bench(kind=BARS) as bench:

        def bar(number: int, symbol: str = "AAPL") -> Any:
            return make_record(BARS, symbol, number, bench.start_ns)

        await anyio.sleep(85)
        bench.accept(bar(1, "MSFT"))
        if accepted:
            bench.accept(bar(1))
        bench.repair.begin()
        await bench.fix("AAPL", "MSFT")
        bench.taken.clear()
        bench.history.lag_s = 4
        bench.repair.lost(["AAPL", "MSFT"])
        bench.miss(bar(2))
        await anyio.sleep(0.5)
        bench.repair.begin()
        await bench.fix("AAPL", "MSFT")
        assert bar(2) not in bench.backfill.past, "history lags"
        await anyio.sleep(LOOK_AGAIN_S + 1)
        late = [r for item in bench.items if isinstance(item, LateRecords) for r in item.records]
        assert {(each.symbol, each.open) for each in late} == {("AAPL", bar(2).open)}


async def test_of_a_symbol_without_a_trade_those_that_came_late_after_it_was_subscribed_are_fetched(
    autojump_clock: Any,
) -> None:
    async with open_bench(kind=TRADES) as bench:

        def trade(number: int, symbol: str, at_s: float) -> Any:
            return make_record(TRADES, symbol, number, bench.start_ns + int(at_s * SECOND_NS))

        bench.accept(trade(1, "AAPL", 0))
        bench.repair.begin()
        await anyio.sleep(40)
        await bench.fix("AAPL", "MSFT")
        bench.accept(trade(2, "AAPL", 40))
        bench.taken.clear()
        bench.repair.lost(["AAPL", "MSFT"])
        bench.miss(trade(3, "MSFT", 11))
        bench.repair.begin()
        await bench.fix("AAPL", "MSFT")
        assert 3 in [each.id for each in bench.backfill.past]
