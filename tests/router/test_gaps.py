"""What is missing, as it is reported: the order of losses, returns and repairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from mdservice.model.events import (
    Backfill,
    FeedItem,
    FeedLost,
    FeedResumed,
    FeedStatus,
    LateRecords,
    RecordBatch,
    RoutedItem,
)
from mdservice.model.feeds import Topic
from mdservice.model.kinds import QUOTES
from mdservice.model.quote import Quote, identity
from mdservice.model.timestamps import format_ns
from mdservice.router.actor import Router
from mdservice.router.gaps import Gaps
from mdservice.runtime.actor import Channel
from mdservice.testing import VirtualClock
from tests.examples import examples

SYMBOLS = ["AAPL"]


def told(start_ns: int, end_ns: int, symbols: Sequence[str] = SYMBOLS, **more: Any) -> Any:
    times = {"from": format_ns(start_ns), "to": format_ns(end_ns)}
    return {"channel": "quotes", **times, "symbols": list(symbols), **more}


def test_a_gap_since_an_earlier_run_is_repaired_although_rest_brought_later_records() -> None:
    out_ns = {"AAPL": 80, "MSFT": 40}
    gaps = Gaps("quotes")
    gaps.start(50, ["AAPL", "MSFT", "SPY"], out_ns.get)
    assert gaps.since_ns() == 50
    every = ["AAPL", "MSFT", "SPY"]
    reported = gaps.resumed(100, every, (), out_ns.get, repairing=True)
    assert reported == [told(50, 100, every)]
    assert gaps.since_ns() == 50
    assert gaps.filled(110, 105, Counter(AAPL=1), every) == [told(50, 110, every, quotes=1)]
    assert gaps.since_ns() is None


def test_a_gap_since_an_earlier_run_remains_once_a_newer_record_is_out() -> None:
    gaps = Gaps("quotes")
    gaps.start(50, ["AAPL", "MSFT"], {"AAPL": 80, "MSFT": 40}.get)
    now_ns = {"AAPL": 80, "MSFT": 90}
    reported = gaps.resumed(100, ["AAPL", "MSFT"], (), now_ns.get, repairing=True)
    assert reported == [told(50, 100, ["MSFT"]), told(50, 100, ["AAPL"])]
    assert gaps.filled(110, 105, Counter(), ["AAPL"]) == [told(50, 110, ["AAPL"], quotes=0)]


def resumed(
    gaps: Gaps,
    at_ns: int,
    symbols: Sequence[str] = SYMBOLS,
    *,
    left_out: Sequence[str] = (),
    repairing: bool = True,
    **last_ns: int,
) -> list[Any]:
    return gaps.resumed(at_ns, symbols, left_out, last_ns.get, repairing=repairing)


def filled(
    gaps: Gaps,
    until_ns: int,
    newest_ns: int,
    complete: Sequence[str] = SYMBOLS,
) -> list[Any]:
    return gaps.filled(until_ns, newest_ns, {"AAPL": 3, "MSFT": 1}, complete)


def test_a_gap_goes_from_the_last_quote_to_the_return() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, SYMBOLS)
    assert resumed(gaps, 50) == [told(10, 50)]
    assert filled(gaps, 60, 55) == [told(10, 60, quotes=3)]
    assert (gaps.reported, gaps.repaired) == (1, 1)


def test_the_first_connection_has_none() -> None:
    gaps = Gaps("quotes")
    assert resumed(gaps, 50, repairing=False) == []
    gaps.lost(None, SYMBOLS)
    assert resumed(gaps, 60, repairing=False) == []
    assert gaps.reported == 0


def test_a_symbol_that_was_not_followed_before_has_none() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, SYMBOLS)
    assert resumed(gaps, 50, ["AAPL", "NEW"]) == [told(10, 50)]


def test_a_symbol_that_is_wanted_no_longer_has_none_even_when_it_is_wanted_again() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, SYMBOLS)
    assert resumed(gaps, 50, []) == []
    assert filled(gaps, 60, 55) == []
    assert resumed(gaps, 65) == []
    assert (gaps.reported, gaps.repaired) == (0, 0)
    gaps.lost(70, SYMBOLS)
    assert resumed(gaps, 80, repairing=False) == [told(70, 80)]


def test_every_symbol_that_is_missing_is_back_with_star() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, ["AAPL", "MSFT"])
    assert resumed(gaps, 50, ["*"]) == [told(10, 50, ["AAPL", "MSFT"])]
    assert filled(gaps, 60, 55, []) == []


def test_a_symbol_left_out_goes_on_being_missing_until_it_is_back() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, ["AAPL", "MSFT"])
    assert resumed(gaps, 50, left_out=["MSFT"]) == [told(10, 50)]
    assert filled(gaps, 60, 55) == [told(10, 60, quotes=3)]
    gaps.lost(70, SYMBOLS)
    both = [told(10, 80, ["MSFT"]), told(70, 80)]
    assert resumed(gaps, 80, ["AAPL", "MSFT"]) == both
    assert filled(gaps, 90, 85, ["AAPL", "MSFT"]) == [
        told(10, 90, ["MSFT"], quotes=1),
        told(70, 90, quotes=3),
    ]
    assert (gaps.reported, gaps.repaired) == (3, 3)


def test_where_quotes_went_out_over_it_a_gap_can_no_longer_be_repaired() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, ["AAPL", "MSFT"])
    filled(gaps, 60, 55, [])  # given up before the return was reported: waiting records went out
    assert resumed(gaps, 80, ["AAPL", "MSFT"], AAPL=55, MSFT=9) == [
        told(10, 80),
        told(10, 80, ["MSFT"]),
    ]
    assert filled(gaps, 90, 85, ["AAPL", "MSFT"]) == [told(10, 90, ["MSFT"], quotes=1)]
    assert (gaps.reported, gaps.repaired) == (2, 1)


def test_nor_where_it_was_left_out_in_the_meantime() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, ["AAPL", "MSFT"])
    resumed(gaps, 50, ["AAPL", "MSFT"])
    gaps.lost(10, ["AAPL", "MSFT"])
    resumed(gaps, 60, left_out=["MSFT"])
    filled(gaps, 70, 65)
    assert resumed(gaps, 80, ["AAPL", "MSFT"], MSFT=55) == [told(10, 80, ["MSFT"])]
    assert filled(gaps, 90, 85, ["MSFT"]) == []


def test_a_symbol_that_comes_back_on_the_same_connection_is_reported_at_once() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, ["AAPL", "MSFT"])
    resumed(gaps, 50, left_out=["MSFT"])
    assert resumed(gaps, 55, ["AAPL", "MSFT"], repairing=False) == [told(10, 55, ["MSFT"])]
    assert filled(gaps, 60, 58) == [told(10, 60, quotes=3)], "the other's repair continues"
    assert (gaps.reported, gaps.repaired) == (2, 1)


def test_only_the_symbols_that_are_complete_are_repaired() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, ["AAPL", "MSFT"])
    resumed(gaps, 50, ["AAPL", "MSFT"])
    assert filled(gaps, 60, 55, ["MSFT"]) == [told(10, 60, ["MSFT"], quotes=1)]
    assert (gaps.reported, gaps.repaired) == (1, 0), "as a whole it stays one"


def test_one_repair_covers_all_gaps_that_were_reported_before_it() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, SYMBOLS)
    assert resumed(gaps, 50) == [told(10, 50)]
    gaps.lost(10, SYMBOLS)  # nothing was accepted meanwhile: it waits for the repair
    assert resumed(gaps, 80) == [told(10, 80)]
    assert filled(gaps, 90, 85) == [told(10, 90, quotes=3)]
    assert (gaps.reported, gaps.repaired) == (2, 2)


def test_a_gap_that_is_not_repaired_stays_one_and_the_next_begins_behind_it() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, SYMBOLS)
    resumed(gaps, 50)
    assert filled(gaps, 60, 55, []) == []
    gaps.lost(70, SYMBOLS)
    assert resumed(gaps, 80) == [told(70, 80)]
    assert filled(gaps, 90, 85) == [told(70, 90, quotes=3)]
    assert (gaps.reported, gaps.repaired) == (2, 1)


def test_without_a_repair_under_way_it_stays_one() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, SYMBOLS)
    resumed(gaps, 50, repairing=False)
    assert filled(gaps, 60, 55) == []
    gaps.lost(70, SYMBOLS)
    assert resumed(gaps, 80, repairing=False) == [told(70, 80)]


def test_a_repair_given_up_while_lost_again_ends_its_gap_and_leaves_the_next() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, SYMBOLS)
    resumed(gaps, 50)
    gaps.lost(10, SYMBOLS)
    assert filled(gaps, 65, 60, []) == []
    assert resumed(gaps, 80) == [told(60, 80)]
    assert filled(gaps, 90, 85) == [told(60, 90, quotes=3)]
    assert (gaps.reported, gaps.repaired) == (2, 1)


def test_a_repair_given_up_before_the_return_hides_nothing_of_what_is_missing() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, SYMBOLS)
    assert filled(gaps, 65, 60, []) == []
    assert resumed(gaps, 80, repairing=False) == [told(10, 80)]


def test_under_a_clock_that_is_behind_a_gap_does_not_end_before_it_begins() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, SYMBOLS)
    assert resumed(gaps, 5) == [told(10, 10)]


def test_a_clock_that_goes_back_does_not_make_a_repair_end_before_its_gap() -> None:
    gaps = Gaps("quotes")
    gaps.lost(10, SYMBOLS)
    resumed(gaps, 50)
    assert filled(gaps, 20, 15) == [told(10, 50, quotes=3)]


def test_a_symbol_that_a_repair_left_out_goes_on_from_its_own_last_quote() -> None:
    gaps = Gaps("quotes")
    both = ["AAPL", "MSFT"]
    gaps.lost(10, both)
    resumed(gaps, 50, both)
    assert filled(gaps, 60, 55, ["AAPL"]) == [told(10, 60, quotes=3)]
    last = {"AAPL": 55, "MSFT": 40}
    gaps.lost(55, both, last.get)  # the stream was behind what history brought of AAPL
    assert resumed(gaps, 80, both) == [told(40, 80, ["MSFT"]), told(55, 80)]
    filled(gaps, 90, 85, both)
    gaps.lost(85, both, last.get)
    assert resumed(gaps, 99, both) == [told(85, 99, both)]


# ---- A repair on its way through the router: each quote once and in order, whatever the split


SECOND_NS = 10**9
START_NS = 1_795_186_800 * SECOND_NS  # where the virtual clock begins
OVERLAP = 5


class Bench:
    """A router; what came out of it, and what its listener heard."""

    def __init__(self) -> None:
        self.inbox = Channel[FeedItem](1_000)
        self.outbox = Channel[RoutedItem](4)
        self.items: list[RoutedItem] = []
        self.heard: list[RoutedItem] = []
        self.router = Router(self.inbox, self.outbox.outbox, self.heard.append, VirtualClock())
        self.scope = anyio.CancelScope()

    async def send(self, *items: FeedItem) -> None:
        for item in items:
            await self.inbox.outbox.send(item)
        await anyio.wait_all_tasks_blocked()

    async def run(self, *, task_status: Any) -> None:
        with anyio.CancelScope() as self.scope:
            await self.router.run(task_status=task_status)

    async def collect(self) -> None:
        async for item in self.outbox.inbox(self.router.heartbeat, "collector"):
            self.items.append(item)

    @property
    def quotes(self) -> list[Quote]:
        return [q for item in self.items if isinstance(item, RecordBatch) for q in item.records]

    @property
    def states(self) -> list[str]:
        return [item.state for item in self.items if isinstance(item, FeedStatus)]


@asynccontextmanager
async def open_bench(*, taking: bool = True) -> AsyncIterator[Bench]:
    bench = Bench()
    with anyio.fail_after(1_000):
        async with anyio.create_task_group() as tasks:
            if taking:
                tasks.start_soon(bench.collect)
            await tasks.start(bench.run)
            yield bench
            tasks.cancel_scope.cancel()
    bench.inbox.close()
    bench.outbox.close()


def quote(number: int, symbol: str = "AAPL", *, at_ns: int | None = None) -> Quote:
    event_ns = START_NS + (number if at_ns is None else at_ns)
    return Quote(symbol, float(number), number + 1.0, 1, 1, event_ns, event_ns)


def status(state: Any) -> FeedStatus:
    return FeedStatus(state, START_NS)


LOST = FeedLost(START_NS, frozenset((Topic("quotes", "AAPL"), Topic("quotes", "MSFT"))), "reset")


def feed_resumed(*symbols: str, repairing: bool = True) -> FeedResumed:
    followed = frozenset(symbols or ("AAPL", "MSFT"))
    return FeedResumed(QUOTES, START_NS + 77, followed, repairing=repairing)


def backfill(past: Sequence[Quote], live: Sequence[Quote] = (), **more: Any) -> Backfill:
    return Backfill(
        QUOTES, past, live, START_NS + 99, **{"complete": frozenset(("AAPL", "MSFT")), **more}
    )


def copies(quotes: Sequence[Quote]) -> list[Quote]:
    return [attrs.evolve(one) for one in quotes]


def of(symbol: str, quotes: Sequence[Quote]) -> list[Any]:
    return [identity(one) for one in quotes if one.symbol == symbol]


# ---- any split


@st.composite
def markets(draw: Any, contents: int) -> list[Quote]:
    """Quotes of two symbols in the order of their times, several of which are shared."""
    made: list[Quote] = []
    at_ns = 0
    for _ in range(draw(st.integers(0, 14))):
        at_ns += draw(st.sampled_from([0, 0, 1, 2]))
        number = draw(st.integers(0, contents - 1)) if contents else len(made)
        made.append(quote(number, draw(st.sampled_from(["AAPL", "MSFT"])), at_ns=at_ns))
    return made


@st.composite
def splits(draw: Any, contents: int = 0) -> tuple[list[Quote], int, int, int, int]:
    """A market, and of it: heard, then missed; waiting for the repair; known to history."""
    market = draw(markets(contents))
    size = len(market)
    heard = draw(st.integers(0, size))
    back = draw(st.integers(heard, size))
    waiting = draw(st.integers(back, size))
    known = draw(st.integers(back, size))
    return market, heard, back, waiting, known


def past_of(market: Sequence[Quote], heard: int, known: int) -> list[Quote]:
    """What history answers: from a little before the last one heard, symbol by symbol."""
    start_ns = max((one.ts_event_ns for one in market[:heard]), default=0) - OVERLAP
    found = [one for one in copies(market[:known]) if one.ts_event_ns >= start_ns]
    return sorted(found, key=lambda one: (one.symbol, one.ts_event_ns))


def feed(
    market: list[Quote], heard: int, back: int, waiting: int, past: list[Quote], at_once: int
) -> list[Quote]:
    """What the router makes of it; what comes after the repair comes in parts."""

    async def main() -> list[Quote]:
        async with open_bench() as bench:
            later = market[waiting:]
            await bench.send(
                RecordBatch(QUOTES, copies(market[:heard])),
                LOST,
                feed_resumed(),
                backfill(past, copies(market[back:waiting])),
                *(
                    RecordBatch(QUOTES, copies(later[start : start + at_once]))
                    for start in range(0, len(later), at_once)
                ),
            )
            return bench.quotes

    return trio.run(main, clock=MockClock(autojump_threshold=0))


@examples(300)
@given(splits(), st.integers(1, 5))
def test_each_quote_comes_once_and_in_order(
    split: tuple[list[Quote], int, int, int, int], at_once: int
) -> None:
    market, heard, back, waiting, known = split
    out = feed(market, heard, back, waiting, past_of(market, heard, known), at_once)
    for symbol in ("AAPL", "MSFT"):
        assert of(symbol, out) == of(symbol, market)
        assert [q.seq for q in out if q.symbol == symbol] == list(
            range(1, len(of(symbol, market)) + 1)
        )


@examples(300)
@given(splits(), st.data())
def test_a_history_that_lags_costs_only_what_it_has_not(
    split: tuple[list[Quote], int, int, int, int], data: Any
) -> None:
    market, heard, back, waiting, _ = split
    known = data.draw(st.integers(heard, back))
    out = feed(market, heard, back, waiting, past_of(market, heard, known), 3)
    for symbol in ("AAPL", "MSFT"):
        assert of(symbol, out) == of(symbol, [*market[:known], *market[back:]])


@examples(300)
@given(splits(contents=2), st.integers(1, 5))
def test_no_time_has_more_of_the_same_than_history(
    split: tuple[list[Quote], int, int, int, int], at_once: int
) -> None:
    """Where one time has the same content twice, they are counted against each other."""
    market, heard, back, waiting, known = split
    out = feed(market, heard, back, waiting, past_of(market, heard, known), at_once)
    assert Counter(map(identity, out)) <= Counter(map(identity, market))
    assert {identity(one) for one in out} == {identity(one) for one in market}
    for symbol in ("AAPL", "MSFT"):
        times = [one.ts_event_ns for one in out if one.symbol == symbol]
        assert times == sorted(times)


# ---- what is reported and counted


async def test_publishes_gap_then_the_quotes_then_gap_repaired(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        await bench.send(
            RecordBatch(QUOTES, [quote(1), quote(2, "MSFT")]),
            LOST,
            status("connected"),
            feed_resumed("AAPL", "MSFT", "TSLA"),
        )
        assert bench.states == ["disconnected", "connected", "gap"]
        told = {"channel": "quotes", "from": format_ns(START_NS + 2), "symbols": ["AAPL", "MSFT"]}
        gap = bench.items[-1]
        assert isinstance(gap, FeedStatus)
        assert gap.details == {**told, "to": format_ns(START_NS + 77)}
        await bench.send(backfill([quote(1), quote(5), quote(6)], [quote(6), quote(7)]))
        repaired = bench.items[-1]
        assert isinstance(repaired, FeedStatus)
        assert repaired.state == "gap_repaired"
        assert repaired.details == {**told, "to": format_ns(START_NS + 99), "quotes": 1}
        assert [(q.symbol, q.bid, q.seq) for q in bench.quotes] == [
            ("AAPL", 1, 1),
            ("MSFT", 2, 1),
            ("AAPL", 5, 2),
            ("AAPL", 6, 3),
            ("AAPL", 7, 4),
        ]
        now = bench.router.snapshot()
        assert (now.gaps, now.gaps_repaired, now.quotes_backfilled) == (1, 1, 1)
        assert (now.quotes_accepted, now.quotes_stale) == (5, 0)
        assert bench.heard == bench.items


async def test_live_quotes_that_are_out_already_count_as_stale_through_a_repair(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        await bench.send(
            RecordBatch(QUOTES, [quote(1), quote(2), quote(3)]), RecordBatch(QUOTES, [quote(2)])
        )
        assert bench.router.snapshot().quotes_stale == 1
        await bench.send(LOST, feed_resumed())
        past = [quote(1), quote(2), quote(3), quote(4)]  # what overlaps was asked for on purpose
        live = [quote(2), quote(3), quote(5), quote(6)]
        await bench.send(backfill(past, live))
        assert [q.bid for q in bench.quotes] == [1, 2, 3, 4, 5, 6]
        now = bench.router.snapshot()
        assert (now.quotes_accepted, now.quotes_stale, now.quotes_backfilled) == (6, 3, 1)


async def test_what_history_brought_before_the_stream_is_left_out_uncounted(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        await bench.send(RecordBatch(QUOTES, [quote(1)]), LOST, feed_resumed())
        await bench.send(backfill([quote(2), quote(3, at_ns=2), quote(4, at_ns=2), quote(5)]))
        late = [quote(3, at_ns=2), quote(4, at_ns=2), quote(5)]
        await bench.send(RecordBatch(QUOTES, late), RecordBatch(QUOTES, [quote(6)]))
        assert [q.bid for q in bench.quotes] == [1, 2, 3, 4, 5, 6]
        assert bench.router.snapshot().quotes_stale == 0
        await bench.send(RecordBatch(QUOTES, [quote(5)]))
        assert bench.router.snapshot().quotes_stale == 1, "a second time it is a repeat"


async def test_a_gap_that_is_not_repaired_still_brings_what_was_found(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        await bench.send(RecordBatch(QUOTES, [quote(1)]), LOST, feed_resumed())
        await bench.send(backfill([quote(4)], [quote(6)], complete=frozenset()))
        assert [q.bid for q in bench.quotes] == [1, 4, 6]
        assert bench.states == ["disconnected", "gap"]
        now = bench.router.snapshot()
        assert (now.gaps, now.gaps_repaired, now.quotes_backfilled) == (1, 0, 1)


async def test_symbols_that_are_no_longer_followed_have_no_gap(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        await bench.send(
            RecordBatch(QUOTES, [quote(1), quote(2, "MSFT")]), LOST, feed_resumed("AAPL")
        )
        gap = bench.items[-1]
        assert isinstance(gap, FeedStatus)
        assert gap.details["symbols"] == ["AAPL"]


async def test_star_follows_every_symbol_that_was_seen(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        await bench.send(RecordBatch(QUOTES, [quote(1), quote(2, "MSFT")]), LOST, feed_resumed("*"))
        gap = bench.items[-1]
        assert isinstance(gap, FeedStatus)
        assert gap.details["symbols"] == ["AAPL", "MSFT"]


async def test_past_quotes_with_a_wrong_time_are_counted_and_go_no_further(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        await bench.send(RecordBatch(QUOTES, [quote(1)]), LOST, feed_resumed())
        await bench.send(backfill([quote(2), quote(9, at_ns=61 * SECOND_NS)], [quote(3)]))
        assert [q.bid for q in bench.quotes] == [1, 2, 3]
        assert bench.router.snapshot().future_records == 1


async def test_a_large_repair_goes_on_in_parts_between_which_others_move(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        past = [quote(number) for number in range(2, 10_002)]
        moved = 0

        async def move() -> None:
            nonlocal moved
            while len(bench.quotes) < 10_001:
                moved += 1
                await trio.lowlevel.checkpoint()

        await bench.send(RecordBatch(QUOTES, [quote(1)]), LOST, feed_resumed())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(move)
            await bench.inbox.outbox.send(backfill(past, [quote(10_002)]))
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        sizes = [len(item.records) for item in bench.items if isinstance(item, RecordBatch)]
        assert sizes == [1, *[1_000] * 10, 1]
        assert moved >= 10
        assert [q.bid for q in bench.quotes] == list(range(1, 10_003))


@pytest.mark.parametrize("cuts", range(14))
async def test_a_restart_in_the_middle_of_a_repair_loses_and_repeats_nothing(
    autojump_clock: Any, cuts: int
) -> None:
    async with open_bench(taking=False) as bench:
        past = [quote(number) for number in range(2, 9_002)]
        items = [
            RecordBatch(QUOTES, [quote(1)]),
            LOST,
            feed_resumed(),
            backfill(past, [quote(9_002)]),
            RecordBatch(QUOTES, [quote(9_003)]),
        ]
        for item in items:
            await bench.inbox.outbox.send(item)
        inbox = bench.outbox.inbox(bench.router.heartbeat, "collector")
        async with anyio.create_task_group() as tasks:
            for _ in range(cuts):  # it waits for room, is cancelled there and starts again
                await anyio.wait_all_tasks_blocked()
                bench.scope.cancel()
                await anyio.wait_all_tasks_blocked()
                bench.items.append(await inbox.receive())
                await tasks.start(bench.run)
            tasks.start_soon(bench.collect)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        assert [q.bid for q in bench.quotes] == list(range(1, 9_004))
        assert [q.seq for q in bench.quotes] == list(range(1, 9_004))
        assert bench.states == ["disconnected", "gap", "gap_repaired"]
        assert bench.router.snapshot().quotes_backfilled == 9_000
        assert bench.heard == bench.items


# ---- where an earlier run ended


async def test_goes_on_where_an_earlier_run_ended(autojump_clock: Any) -> None:
    async with open_bench(taking=False) as bench:
        bench.scope.cancel()  # it must not run yet
        await anyio.wait_all_tasks_blocked()
        last = [quote(3), quote(2, "MSFT")]
        bench.router.start_from(QUOTES, last, resuming=True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bench.collect)
            await tasks.start(bench.run)
            await bench.send(status("connected"), feed_resumed())
            await bench.send(backfill([quote(2), quote(3), quote(4), quote(2, "MSFT")], [quote(5)]))
            tasks.cancel_scope.cancel()
        assert bench.states == ["connected", "gap", "gap_repaired"]
        assert [(q.symbol, q.bid, q.seq) for q in bench.quotes] == [("AAPL", 4, 1), ("AAPL", 5, 2)]
        repaired = bench.items[-1]
        assert isinstance(repaired, FeedStatus)
        assert repaired.details["from"] == format_ns(START_NS + 3)
        assert repaired.details["quotes"] == 1


async def test_late_quotes_go_out_where_they_are_in_order_and_the_others_are_a_gap(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        await bench.send(RecordBatch(QUOTES, [quote(1), quote(9, "MSFT")]), LOST, feed_resumed())
        await bench.send(backfill([]))
        late = [quote(5), quote(6), quote(6, at_ns=5), quote(7, "MSFT", at_ns=4)]
        await bench.send(LateRecords(QUOTES, late, START_NS + 1, START_NS + 50))
        assert [q.bid for q in bench.quotes if q.symbol == "AAPL"][:2] == [1, 5]
        gap = bench.items[-1]
        assert isinstance(gap, FeedStatus)
        assert gap.state == "gap"
        assert gap.details["symbols"] == ["AAPL", "MSFT"]
        assert gap.details["reason"] == "history was late"


async def test_late_quotes_that_are_all_in_order_are_no_gap(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        await bench.send(RecordBatch(QUOTES, [quote(1)]), LOST, feed_resumed(), backfill([]))
        gaps, states = bench.router.snapshot().gaps, bench.states
        late = [quote(5), quote(6)]
        await bench.send(LateRecords(QUOTES, late, START_NS + 1, START_NS + 50))
        assert [q.bid for q in bench.quotes] == [1, 5, 6]
        assert (bench.router.snapshot().gaps, bench.states) == (gaps, states)


async def test_late_quotes_in_the_next_outage_do_not_make_its_gap_one_for_good(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        await bench.send(RecordBatch(QUOTES, [quote(1), quote(2, "MSFT")]), LOST, feed_resumed())
        await bench.send(backfill([]))
        await bench.send(LOST)
        late = [quote(4), quote(5)]
        await bench.send(LateRecords(QUOTES, late, START_NS + 1, START_NS + 50))
        await bench.send(feed_resumed(), backfill([quote(5), quote(6), quote(6, "MSFT")]))
        assert [q.bid for q in bench.quotes if q.symbol == "AAPL"] == [1, 4, 5, 6]
        told = [item.details for item in bench.items if isinstance(item, FeedStatus)][-4:]
        assert [(d["from"], d["symbols"]) for d in told] == [
            (format_ns(START_NS + 2), ["MSFT"]),
            (format_ns(START_NS + 5), ["AAPL"]),  # until then nothing is missing any more
        ] * 2
        assert bench.states[-4:] == ["gap", "gap", "gap_repaired", "gap_repaired"]


async def test_a_stream_that_was_held_up_does_not_repeat_what_was_late(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        await bench.send(RecordBatch(QUOTES, [quote(1)]), LOST, feed_resumed())
        await bench.send(backfill([]))
        late = [quote(5), quote(6, at_ns=5)]
        await bench.send(LateRecords(QUOTES, late, START_NS + 1, START_NS + 50))
        await bench.send(RecordBatch(QUOTES, [quote(5), quote(6, at_ns=5), quote(7)]))
        assert [q.bid for q in bench.quotes] == [1, 5, 6, 7]
        assert bench.router.snapshot().quotes_stale == 0


async def test_a_second_repair_on_a_connection_forgets_nothing_of_the_first(
    autojump_clock: Any,
) -> None:
    async with open_bench() as bench:
        await bench.send(RecordBatch(QUOTES, [quote(1)]), LOST, feed_resumed())
        await bench.send(backfill([quote(2), quote(3, at_ns=2)]))  # before the stream has them
        await bench.send(
            feed_resumed("AAPL", "MSFT", "TSLA"), backfill([])
        )  # of one that was left out
        await bench.send(RecordBatch(QUOTES, [quote(2), quote(3, at_ns=2), quote(4)]))
        assert [q.bid for q in bench.quotes] == [1, 2, 3, 4]
        assert bench.router.snapshot().quotes_stale == 0
