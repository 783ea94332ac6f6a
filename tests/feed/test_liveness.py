"""A live socket that says nothing, judged word by word as the contract says. On virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import attrs
import pytest

from mdservice.errors import FeedUnavailable, HistoryRefused, HistoryUnavailable
from mdservice.feed.history import HalvingHistory
from mdservice.feed.liveness import LONGEST_S, Hours, Judge, Liveness
from mdservice.model.bar import Bar
from mdservice.model.feeds import Topic
from mdservice.model.kinds import BARS, ORDERBOOKS, QUOTES, TRADES, Kind
from mdservice.model.order_book import OrderBook
from mdservice.model.quote import Quote
from mdservice.model.trade import Trade
from mdservice.router.policies import Merge, ReplaceSameTime
from mdservice.router.sequencer import Sequencer
from mdservice.testing import FakeHistory, VirtualClock
from tests.topics import quotes, trades

LIMIT_S = 30.0


class Bench:
    def __init__(self, limit_s: float = LIMIT_S, *, history: bool = True) -> None:
        self.clock = VirtualClock()
        self.history = FakeHistory()
        self.sequencer = Sequencer(QUOTES)
        self.asked_if_open: list[float] = []
        self.told: list[str] = []
        self.reasons: list[str] = []
        halving = HalvingHistory(self.history, QUOTES) if history else None
        self.hours: Hours = "open"
        self.refreshed: list[Quote] = []
        self.silent: list[list[str]] = []
        self.watch = Liveness(
            limit_s,
            [Judge(QUOTES, halving, self.sequencer)],
            self._hours,
            self.clock.utc_ns,
            self._refresh,
        )

    async def _hours(self) -> Hours:
        self.asked_if_open.append(anyio.current_time())
        return self.hours

    async def _refresh(self, kind: Kind[Any], records: Sequence[Any], asked_ns: int) -> None:
        self.refreshed += records
        asked = {record.symbol: asked_ns for record in records}
        self.sequencer.route_first(records, asked, self.clock.utc_ns(), 0)

    async def _tell_stale(self, reason: str, symbols: Sequence[str] = ()) -> None:
        if symbols:
            self.silent.append(list(symbols))
        else:
            self.told.append(reason)

    def quote(self, symbol: str = "AAPL") -> Quote:
        now_ns = self.clock.utc_ns()
        return Quote(symbol, 1.0, 2.0, 1, 1, now_ns, now_ns)

    def receive(self, symbol: str = "AAPL") -> None:
        """A quote comes over the socket."""
        quote = self.quote(symbol)
        self.history.add([quote])
        self.sequencer.route([attrs.evolve(quote)], quote.ts_event_ns, 0)
        self.watch.data_came(QUOTES, [quote])

    def miss(self, symbol: str = "AAPL") -> None:
        """The market has one, the socket has not."""
        self.history.add([self.quote(symbol)])

    def connect(self, *symbols: str) -> None:
        self.watch.begin()
        if symbols:
            self.watch.subscribed(quotes(*symbols), self.clock.utc_ns())

    async def until_given_up(self, within_s: float) -> float | None:
        """After how long the connection is given up; None where it is not."""
        began_s = anyio.current_time()
        with anyio.move_on_after(within_s):
            try:
                await self.watch.watch(self._tell_stale)
            except FeedUnavailable as exc:
                self.reasons.append(str(exc))
                return anyio.current_time() - began_s
        return None

    @property
    def looks(self) -> list[float]:
        return [request.at_s for request in self.history.requests]


# ---- acknowledged, and never quoted


async def test_a_symbol_without_a_quote_since_it_was_subscribed_is_reported(
    autojump_clock: Any,
) -> None:
    bench = Bench()
    bench.receive("MSFT")  # on a connection before this one
    bench.connect("AAPL", "MSFT", "*")
    await anyio.sleep(LIMIT_S - 1)
    bench.receive("AAPL")
    assert bench.watch.without_quotes(bench.clock.utc_ns()) == []
    await anyio.sleep(1)
    assert bench.watch.without_quotes(bench.clock.utc_ns()) == ["MSFT"]
    bench.receive("MSFT")
    assert bench.watch.without_quotes(bench.clock.utc_ns()) == []


async def test_its_time_runs_from_its_own_subscription_and_ends_with_it(
    autojump_clock: Any,
) -> None:
    bench = Bench()
    bench.connect("AAPL")
    bench.receive("AAPL")
    await anyio.sleep(100)
    bench.watch.subscribed(quotes("AAPL", "TSLA"), bench.clock.utc_ns())
    await anyio.sleep(LIMIT_S - 1)
    assert bench.watch.without_quotes(bench.clock.utc_ns()) == []
    await anyio.sleep(1)
    assert bench.watch.without_quotes(bench.clock.utc_ns()) == ["TSLA"]
    bench.watch.subscribed(quotes("AAPL"), bench.clock.utc_ns())
    assert bench.watch.without_quotes(bench.clock.utc_ns()) == []


# ---- newer than ours: dead


async def test_newer_than_ours_is_reported_and_given_up(autojump_clock: Any) -> None:
    bench = Bench()
    bench.connect("AAPL")
    bench.receive()
    await anyio.sleep(5)
    bench.miss()
    assert await bench.until_given_up(100) == LIMIT_S - 5
    assert bench.told == ["no market data for 30 s, while AAPL has a newer quote than ours"]
    assert bench.reasons == bench.told


async def test_a_socket_that_never_brought_anything_is_judged_from_subscribing(
    autojump_clock: Any,
) -> None:
    bench = Bench()
    await anyio.sleep(1_000)
    bench.miss()  # before it was subscribed
    await anyio.sleep(1)
    bench.connect("AAPL")
    await anyio.sleep(1)
    bench.miss()
    assert await bench.until_given_up(100) == LIMIT_S - 1


async def test_a_quote_from_before_the_subscription_is_no_reproach(autojump_clock: Any) -> None:
    bench = Bench()
    bench.miss()
    await anyio.sleep(1)
    bench.connect("AAPL")
    assert await bench.until_given_up(LIMIT_S * 2) is None
    assert bench.told == []


async def test_dead_sockets_do_not_make_the_next_look_later(autojump_clock: Any) -> None:
    bench = Bench()
    for _ in range(4):
        bench.connect("AAPL")
        await anyio.sleep(1)
        bench.miss()
        assert await bench.until_given_up(100) == LIMIT_S - 1


async def test_the_same_newer_quote_is_held_against_one_socket_only(autojump_clock: Any) -> None:
    """It could not be repaired; that it is still the newest tells nothing about the next."""
    bench = Bench()
    bench.connect("AAPL")
    bench.receive()
    await anyio.sleep(5)
    bench.miss()
    assert await bench.until_given_up(100) is not None
    bench.connect("AAPL")
    assert await bench.until_given_up(1_000) is None
    assert len(bench.told) == 1


# ---- not newer: quiet


async def test_a_quiet_market_is_looked_at_again_after_twice_as_long(autojump_clock: Any) -> None:
    bench = Bench()
    bench.connect("AAPL")
    bench.receive()
    assert await bench.until_given_up(5_000) is None
    expected, at_s, wait_s = [], 0.0, LIMIT_S
    while at_s + wait_s < 5_000:
        at_s += wait_s
        expected.append(at_s)
        wait_s = min(LONGEST_S, wait_s * 2)
    assert bench.looks == expected
    assert bench.looks[-1] - bench.looks[-2] == LONGEST_S
    assert bench.told == []


async def test_data_brings_the_limit_back(autojump_clock: Any) -> None:
    bench = Bench()
    bench.connect("AAPL")
    bench.receive()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.until_given_up, 100_000)
        await anyio.sleep(700)  # looked at after 30, 90, 210 and 450 s
        bench.receive()
        await anyio.sleep(LIMIT_S - 0.1)
        assert bench.looks[-1] == 450
        await anyio.sleep(0.2)
        assert bench.looks[-1] == 700 + LIMIT_S
        tasks.cancel_scope.cancel()


async def test_while_data_comes_nothing_is_requested(autojump_clock: Any) -> None:
    bench = Bench()
    bench.connect("AAPL")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.until_given_up, 100_000)
        for _ in range(100):
            await anyio.sleep(LIMIT_S - 0.5)
            bench.receive()
        assert bench.looks == []
        assert bench.asked_if_open == []
        tasks.cancel_scope.cancel()


async def test_data_that_comes_while_history_is_asked_acquits(autojump_clock: Any) -> None:
    bench = Bench()
    bench.history.delay_s = 2
    bench.connect("AAPL")
    bench.receive()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.until_given_up, 100)
        await anyio.sleep(LIMIT_S + 1)
        bench.receive()
        await anyio.sleep(60)
        tasks.cancel_scope.cancel()
    assert bench.told == []


@pytest.mark.parametrize("limit_s", [5.0, 900.0])
async def test_the_limit_is_the_settings(autojump_clock: Any, limit_s: float) -> None:
    bench = Bench(limit_s)
    bench.connect("AAPL")
    assert await bench.until_given_up(limit_s * 3.5) is None
    second = 2 * limit_s if limit_s < LONGEST_S else limit_s  # never more often than asked for
    assert bench.looks[:2] == [limit_s, limit_s + second]


# ---- no answer


@pytest.mark.parametrize("error", [HistoryUnavailable("no route"), HistoryRefused("403")])
async def test_without_an_answer_it_is_given_up_after_twice_as_long_each_time(
    autojump_clock: Any, error: Exception
) -> None:
    bench = Bench()
    bench.history.always = error
    waits = []
    for _ in range(8):
        bench.connect("AAPL")
        waits.append(await bench.until_given_up(10_000))
    assert waits == [30, 60, 120, 240, 480, 600, 600, 600]
    assert str(error) in bench.told[0]
    bench.receive()
    bench.connect("AAPL")
    assert await bench.until_given_up(10_000) == LIMIT_S


async def test_an_answer_that_does_not_come_is_none(autojump_clock: Any) -> None:
    bench = Bench()
    bench.history.delay_s = 10_000
    bench.connect("AAPL")
    waited_s = await bench.until_given_up(100)
    assert waited_s is not None
    assert LIMIT_S < waited_s <= LIMIT_S + 5


async def test_without_a_history_there_is_no_answer(autojump_clock: Any) -> None:
    bench = Bench(history=False)
    bench.connect("AAPL")
    assert await bench.until_given_up(100) == LIMIT_S
    bench.connect("AAPL")
    assert await bench.until_given_up(100) == 2 * LIMIT_S


# ---- when silence is right


async def test_a_closed_market_may_be_silent(autojump_clock: Any) -> None:
    bench = Bench()
    bench.hours = "closed"
    bench.connect("AAPL")
    bench.miss()
    assert await bench.until_given_up(10_000) is None
    assert bench.looks == []
    assert len(bench.asked_if_open) < 10_000 / LIMIT_S + 1, "the hours are asked now and then"


async def test_after_the_opening_silence_counts_again(autojump_clock: Any) -> None:
    bench = Bench()
    bench.hours = "closed"
    bench.connect("AAPL")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.until_given_up, 10_000)
        await anyio.sleep(1_000)
        bench.hours = "open"
        await anyio.sleep(2 * LIMIT_S)
        assert len(bench.looks) == 1
        assert bench.looks[0] - 1_000 >= LIMIT_S / 2
        tasks.cancel_scope.cancel()


async def test_without_subscriptions_silence_is_right(autojump_clock: Any) -> None:
    bench = Bench()
    bench.connect()
    assert await bench.until_given_up(1_000) is None
    assert (bench.looks, bench.asked_if_open) == ([], [])


async def test_subscribing_at_run_time_begins_the_silence(autojump_clock: Any) -> None:
    bench = Bench()
    bench.connect()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.until_given_up, 10_000)
        await anyio.sleep(47)
        bench.watch.subscribed(quotes("AAPL"), bench.clock.utc_ns())
        await anyio.sleep(100)
        assert bench.looks[0] == 47 + LIMIT_S
        tasks.cancel_scope.cancel()


async def test_a_symbol_added_late_is_not_reproached_with_what_was_before(
    autojump_clock: Any,
) -> None:
    bench = Bench()
    bench.connect("AAPL")
    bench.receive()
    await anyio.sleep(20)
    bench.miss("MSFT")
    await anyio.sleep(5)
    bench.watch.subscribed(quotes("AAPL", "MSFT"), bench.clock.utc_ns())
    assert await bench.until_given_up(200) is None
    assert bench.looks, "the silence of the first one goes on counting"


async def test_every_symbol_is_judged_by_those_seen(autojump_clock: Any) -> None:
    bench = Bench()
    bench.connect("*")
    bench.receive("AAPL")
    await anyio.sleep(1)
    bench.miss("AAPL")
    assert await bench.until_given_up(100) == LIMIT_S - 1
    assert bench.history.requests[0].symbols == ("AAPL",)


async def test_every_symbol_and_none_seen_is_no_answer(autojump_clock: Any) -> None:
    bench = Bench()
    bench.connect("*")
    assert await bench.until_given_up(100) == LIMIT_S
    bench.connect("*")
    assert await bench.until_given_up(100) == 2 * LIMIT_S


async def test_of_many_symbols_the_liveliest_are_asked(autojump_clock: Any) -> None:
    bench = Bench()
    symbols = [f"S{number:03}" for number in range(300)]
    bench.connect(*symbols)
    for symbol in symbols[150:]:
        await anyio.sleep(0.001)
        bench.receive(symbol)
    await bench.until_given_up(LIMIT_S + 1)
    asked = bench.history.requests[0].symbols
    assert len(asked) == 200
    assert set(asked) >= set(symbols[150:])
    assert asked[0] == symbols[-1]


@pytest.mark.parametrize("refused", [("BRK/B",), ("AAPL", "BRK/B")])
async def test_a_refused_symbol_does_not_end_a_quiet_connection(
    autojump_clock: Any, refused: tuple[str, ...]
) -> None:
    bench = Bench()
    bench.history.refuses = {symbol: f"HTTP 400: invalid symbol: {symbol}" for symbol in refused}
    bench.connect("AAPL", "BRK/B", "MSFT")
    for symbol in ("AAPL", "BRK/B", "MSFT"):
        bench.receive(symbol)
    assert await bench.until_given_up(2_000) is None
    bench.miss("MSFT")
    assert await bench.until_given_up(700) is not None, "the others still show a dead socket"


async def test_where_all_are_refused_the_market_counts_as_quiet(autojump_clock: Any) -> None:
    bench = Bench()
    bench.history.refuses = {"BRK/B": "HTTP 400: invalid symbol: BRK/B"}
    bench.connect("BRK/B")
    bench.receive("BRK/B")
    assert await bench.until_given_up(2_000) is None


async def test_a_symbol_that_is_subscribed_again_is_asked_for_again(autojump_clock: Any) -> None:
    bench = Bench()
    bench.history.refuses = {"BRK/B": "HTTP 400: invalid symbol: BRK/B"}
    bench.connect("AAPL", "BRK/B")
    bench.receive("AAPL")
    await bench.until_given_up(100)
    bench.history.requests.clear()
    for symbols in (["AAPL"], ["AAPL", "BRK/B"]):
        bench.watch.subscribed(quotes(*symbols), bench.clock.utc_ns())
    await bench.until_given_up(700)
    assert "BRK/B" in bench.history.requests[0].symbols


@pytest.mark.parametrize("symbols", [["AAPL"], ["AAPL", "MSFT"]])
@pytest.mark.parametrize("status", [400, 404, 422])
async def test_a_request_that_is_refused_does_not_show_a_dead_socket(
    autojump_clock: Any, symbols: list[str], status: int
) -> None:
    bench = Bench()
    bench.connect(*symbols)
    words = f"history was refused with HTTP {status}: bad request"
    bench.history.refuses = dict.fromkeys(symbols, words)
    assert await bench.until_given_up(10 * LONGEST_S) is None
    assert bench.told == []


# ---- one silent symbol among others that flow


async def flow(bench: Bench, for_s: float) -> None:
    """AAPL is quoted every five seconds."""
    for _ in range(int(for_s / 5)):
        bench.receive("AAPL")
        await anyio.sleep(5)


async def watched(bench: Bench, for_s: float) -> None:
    """AAPL flows that long while the connection is watched; it must not be given up."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.until_given_up, for_s + 1)
        await flow(bench, for_s)
        tasks.cancel_scope.cancel()
    assert bench.reasons == []


async def test_a_silent_symbol_is_refreshed_and_reported(autojump_clock: Any) -> None:
    bench = Bench()
    bench.connect("AAPL", "MSFT", "SPY")
    bench.receive("MSFT")
    await anyio.sleep(1)
    bench.miss("MSFT")
    missed = bench.history._recorded[-1][2]
    await watched(bench, 130)
    assert bench.silent == [["MSFT"]], "once: the next look finds nothing newer"
    assert [quote.ts_event_ns for quote in bench.refreshed] == [missed.ts_event_ns]
    assert bench.sequencer.last_ns("MSFT") == missed.ts_event_ns


async def test_a_symbol_never_heard_since_it_was_subscribed_is_found(autojump_clock: Any) -> None:
    bench = Bench()
    bench.connect("AAPL", "MSFT")
    await anyio.sleep(1)
    bench.miss("MSFT")
    await watched(bench, 130)
    assert bench.silent == [["MSFT"]]


async def test_a_quiet_symbol_is_not_reported(autojump_clock: Any) -> None:
    bench = Bench()
    bench.connect("AAPL", "MSFT")
    bench.receive("MSFT")
    await watched(bench, 400)
    assert bench.silent == []
    assert len(bench.looks) <= 400 / 60, "one request a minute at most"


async def test_a_record_on_its_way_is_not_reported(autojump_clock: Any) -> None:
    bench = Bench()
    bench.connect("AAPL", "MSFT")
    bench.receive("MSFT")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.until_given_up, 200)
        await flow(bench, 55)
        await anyio.sleep(4.9)
        bench.miss("MSFT")
        bench.receive("AAPL")
        await anyio.sleep(0.2)
        tasks.cancel_scope.cancel()
    assert bench.silent == []
    assert len(bench.looks) == 1


async def test_a_silent_symbol_that_is_quoted_all_the_time_is_found(autojump_clock: Any) -> None:
    """Its newest quote is always young, so that it may be on its way at each look."""
    bench = Bench()
    bench.connect("AAPL", "MSFT")
    bench.receive("MSFT")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.until_given_up, 1_000)
        for _ in range(190):
            bench.receive("AAPL")
            bench.miss("MSFT")
            await anyio.sleep(1)
        assert bench.silent == [["MSFT"]], "the second look has shown it"
        assert len(bench.looks) == 3
        tasks.cancel_scope.cancel()


async def test_a_symbol_whose_quotes_come_late_is_not_reported(autojump_clock: Any) -> None:
    bench = Bench()
    bench.connect("AAPL", "MSFT")
    bench.receive("MSFT")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.until_given_up, 1_000)
        for _ in range(6):  # at each look it is quiet, but for a quote that comes after the look
            await flow(bench, 55)
            await anyio.sleep(4.9)
            late = bench.quote("MSFT")
            bench.history.add([late])
            bench.receive("AAPL")
            await anyio.sleep(0.2)
            bench.sequencer.route([late], bench.clock.utc_ns(), 0)
        tasks.cancel_scope.cancel()
    assert bench.silent == []
    assert len(bench.looks) >= 3


@pytest.mark.parametrize("hours", ["extended", "closed"])
async def test_before_the_open_a_socket_is_dead_only_if_history_shows_it(
    autojump_clock: Any, hours: Hours
) -> None:
    bench = Bench()
    bench.hours = hours
    bench.connect("AAPL")
    bench.receive()
    assert await bench.until_given_up(100) is None
    bench.miss()
    given_up_s = await bench.until_given_up(1_000)
    assert (given_up_s is not None) == (hours == "extended")


async def test_before_the_open_a_history_that_does_not_answer_shows_nothing(
    autojump_clock: Any,
) -> None:
    bench = Bench()
    bench.hours = "extended"
    bench.history.always = HistoryUnavailable("down")
    bench.connect("AAPL")
    assert await bench.until_given_up(2_000) is None


async def test_without_quotes_silence_is_judged_by_trades(autojump_clock: Any) -> None:
    bench = Bench()
    trades_out = Sequencer(TRADES)
    halving = HalvingHistory(bench.history, TRADES)
    watch = Liveness(
        LIMIT_S,
        [Judge(QUOTES, None, bench.sequencer), Judge(TRADES, halving, trades_out)],
        bench._hours,
        bench.clock.utc_ns,
        bench._refresh,
    )
    bench.watch = watch
    watch.begin()
    watch.subscribed(trades("AAPL"), bench.clock.utc_ns())
    await anyio.sleep(1)
    now_ns = bench.clock.utc_ns()
    bench.history.add([Trade("AAPL", 1.0, 1, "V", (), "C", 1, now_ns, now_ns)], TRADES)
    assert await bench.until_given_up(100) is not None


async def test_silence_of_statuses_alone_shows_nothing(autojump_clock: Any) -> None:
    bench = Bench()
    bench.watch.begin()
    bench.watch.subscribed([Topic("statuses", "AAPL")], bench.clock.utc_ns())
    assert await bench.until_given_up(5_000) is None


# ---- bars: each has the time of its start, and comes after its minute

MINUTE_S = 60
S_NS = 1_000_000_000


class BarBench(Bench):
    """Only bars are subscribed."""

    def __init__(self, *channels: str) -> None:
        super().__init__()
        self.bars = ReplaceSameTime(BARS)
        self.watch = Liveness(
            LIMIT_S,
            [
                Judge(QUOTES, HalvingHistory(self.history, QUOTES), self.sequencer),
                Judge(BARS, HalvingHistory(self.history, BARS), self.bars),
            ],
            self._hours,
            self.clock.utc_ns,
            self._refresh,
        )
        self.watch.begin()
        topics = [Topic(channel, "AAPL") for channel in channels or ("bars",)]
        self.watch.subscribed(topics, self.clock.utc_ns())

    def bar(self, ended_s: float) -> Bar:
        """A bar whose minute ended that long ago."""
        now_ns = self.clock.utc_ns()
        start_ns = now_ns - int((MINUTE_S + ended_s) * S_NS)
        return Bar("AAPL", 1.0, 1.0, 1.0, 1.0, 100, 1, 1.0, start_ns, now_ns)

    def receive_bar(self) -> None:
        bar = self.bar(ended_s=1)
        self.history.add([bar], BARS)
        self.bars.route([attrs.evolve(bar)], self.clock.utc_ns(), 0)
        self.watch.data_came(BARS, [bar])


async def test_silence_of_bars_alone_is_judged_by_bars(autojump_clock: Any) -> None:
    bench = BarBench()
    bench.receive_bar()
    await anyio.sleep(MINUTE_S + 10)
    bench.history.add([bench.bar(ended_s=10)], BARS)
    assert await bench.until_given_up(1) is not None
    assert bench.told == ["no market data for 30 s, while AAPL has a newer record than ours"]


async def test_a_bar_on_its_way_shows_nothing_until_it_is_overdue(autojump_clock: Any) -> None:
    bench = BarBench()
    bench.receive_bar()
    await anyio.sleep(MINUTE_S + 1)
    bench.history.add([bench.bar(ended_s=1)], BARS)
    assert await bench.until_given_up(2 * LIMIT_S - 1) is None
    assert await bench.until_given_up(2 * LIMIT_S) is not None


async def test_bars_of_each_minute_are_no_silence_although_history_does_not_answer(
    autojump_clock: Any,
) -> None:
    bench = BarBench()
    bench.history.always = HistoryUnavailable("down")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.until_given_up, 10_000)
        for _ in range(20):
            bench.receive_bar()
            await anyio.sleep(MINUTE_S)
        assert bench.told == []
        await anyio.sleep(5 * MINUTE_S)
        assert len(bench.told) == 1, "several minutes without a bar, and no answer"
        tasks.cancel_scope.cancel()


async def test_silence_of_updated_bars_alone_shows_nothing(autojump_clock: Any) -> None:
    bench = BarBench("updatedBars")
    await anyio.sleep(3 * MINUTE_S)
    bench.history.add([bench.bar(ended_s=10)], BARS)
    assert await bench.until_given_up(5_000) is None


# ---- order books


@pytest.mark.parametrize(("bid", "dead"), [(1.0, False), (1.5, True)])
async def test_silence_of_order_books_alone_is_judged_by_a_newer_book_that_differs(
    autojump_clock: Any, bid: float, dead: bool
) -> None:
    bench = Bench()
    books = Merge(ORDERBOOKS)
    halving = HalvingHistory(bench.history, ORDERBOOKS)
    bench.watch = Liveness(
        LIMIT_S,
        [Judge(ORDERBOOKS, halving, books)],
        bench._hours,
        bench.clock.utc_ns,
        bench._refresh,
    )

    def book(bid: float) -> OrderBook:
        now_ns = bench.clock.utc_ns()
        return OrderBook("BTC/USD", ((bid, 1),), ((2.0, 1),), now_ns, now_ns)

    bench.watch.begin()
    bench.watch.subscribed([Topic("orderbooks", "BTC/USD")], bench.clock.utc_ns())
    books.route([book(1.0)], bench.clock.utc_ns(), 0)
    await anyio.sleep(1)
    bench.history.add([book(bid)], ORDERBOOKS)
    assert (await bench.until_given_up(1_000) is not None) == dead
