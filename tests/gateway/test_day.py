"""The account's day on virtual time, without a network."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import anyio
import attrs
import pytest

from mdservice.errors import (
    AccountError,
    AccountRefused,
    AccountUnavailable,
    HistoryUnavailable,
    StoreUnavailable,
)
from mdservice.gateway.day import AccountDay
from mdservice.gateway.missing_prices import LastCloses
from mdservice.model.bar import Bar
from mdservice.model.feeds import CRYPTO, OPTIONS, STOCKS, Feed
from mdservice.model.kinds import DAILY_BARS
from mdservice.model.position import Position
from mdservice.model.quote import Quote
from mdservice.pnl.day import Booking, Fill, midnight_ns, new_york_date
from mdservice.pnl.engine import PnlEngine
from mdservice.positions.activities import Account, Activities
from mdservice.positions.cache import PositionCache
from mdservice.positions.trade_updates import TradeUpdate
from mdservice.testing import FakeHistory, FakePositions, VirtualClock

D = Decimal


class FakeAccount:
    """An account whose activities the test writes."""

    address = "the account"

    def __init__(self) -> None:
        self.balances = Account("id", "USD", D(100), D(100), D(100), D(0))
        self.listed: list[Fill] = []
        self.booked: list[Booking] = []
        self.older: list[Activities] = []
        self.error: AccountError | None = None
        self.polls = 0
        self.searches = 0
        self.closed = False

    async def account(self) -> Account:
        self.polls += 1
        await anyio.sleep(0.01)
        if self.error is not None:
            raise self.error
        return self.balances

    async def fills(self, date: str, token: str = "") -> Activities:
        ids = [fill.id for fill in self.listed]
        first = ids.index(token) + 1 if token in ids else 0
        fills = self.listed[first:]
        return Activities(list(fills), [], fills[-1].id if fills else "", whole=not first)

    async def others(self, date: str) -> Activities:
        return Activities([], [one for one in self.booked if one.date in {"", date}])

    async def before(self, date: str, pages: int) -> AsyncGenerator[Activities, None]:
        self.searches += 1
        for page in self.older[:pages]:
            yield page

    async def aclose(self) -> None:
        self.closed = True


class FakeStarts:
    """What Redis keeps."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.fails = False

    async def day_start(self, account: str) -> bytes | None:
        if self.fails:
            raise StoreUnavailable("no Redis")
        return self.kept.get(account)

    async def keep_day_start(self, account: str, content: bytes) -> None:
        if self.fails:
            raise StoreUnavailable("no Redis")
        self.kept[account] = content


@attrs.define
class Bench:
    """Ten shares at 150, which closed at 160 and are at 170."""

    account: FakeAccount = attrs.Factory(FakeAccount)
    starts: FakeStarts = attrs.Factory(FakeStarts)
    clock: VirtualClock = attrs.Factory(VirtualClock)
    source: FakePositions = attrs.Factory(FakePositions)
    cache: PositionCache = attrs.field(init=False)
    engine: PnlEngine = attrs.field(init=False)
    day: AccountDay = attrs.field(init=False)
    closes: LastCloses | None = None
    seen: list[Decimal | None] = attrs.Factory(list)
    """The day's P&L after each change."""

    def __attrs_post_init__(self) -> None:
        self.cache = PositionCache(self.source, 5.0, self.clock)
        self.open()

    def open(self) -> None:
        """A gateway that starts now."""
        self.engine = PnlEngine(stale_after_s=60, price_ttl_s=300)
        now_ns = self.clock.utc_ns()
        self.engine.update(Quote("AAPL", 170, 170, 1, 1, now_ns, now_ns), now_ns)
        self.day = AccountDay(
            self.account,  # type: ignore[arg-type]
            self.cache,
            self.engine,
            self.starts,  # type: ignore[arg-type]
            self.clock,
            self._changed,
            self.closes,
        )

    def _changed(self) -> None:
        self.seen.append(self.engine.totals.day_pnl)

    async def hold(self, qty: int, avg: object = 150, lastday: int = 160) -> None:
        price = D(str(avg))
        held = Position("AAPL", D(qty), price, lastday_price=D(lastday)) if qty else None
        self.source.positions = [held] if held is not None else []
        self.engine.set_positions(await self.cache.refresh())
        self.day.take_positions()

    def fill(self, qty: int, price: object, name: str, **more: Any) -> Fill:
        return Fill("AAPL", D(qty), D(str(price)), self.clock.utc_ns(), name, **more)

    def update(self, qty: int, price: object, position: int, name: str) -> TradeUpdate:
        return TradeUpdate(
            "fill",
            self.clock.utc_ns(),
            "AAPL",
            "order",
            name,
            "buy" if qty > 0 else "sell",
            D(abs(qty)),
            D(str(price)),
            D(position),
        )

    def figures(self) -> dict[str, Any]:
        return dict(json.loads(self.day.encode(), parse_float=Decimal))


@pytest.fixture
async def bench(autojump_clock: Any) -> Bench:
    return Bench()


@contextmanager
def refused() -> Iterator[None]:
    with pytest.raises(AccountUnavailable):
        yield


async def test_nothing_is_known_before_the_first_answer(autojump_clock: Any, bench: Bench) -> None:
    await bench.hold(10)
    with refused():
        bench.day.encode()
    assert bench.engine.totals.day_pnl is None
    assert bench.engine.totals.realized_day_pnl is None
    await bench.day.poll()
    assert bench.figures()["total"] == bench.engine.totals.day_pnl == 100
    assert bench.engine.totals.realized_day_pnl == 0


async def test_a_fill_from_the_stream_counts_at_once_and_once(
    autojump_clock: Any, bench: Bench
) -> None:
    await bench.hold(10)
    await bench.day.poll()
    changes = len(bench.seen)
    update = bench.update(-4, 180, 6, "execution")
    bench.day.take_fill(update)
    await bench.hold(6)
    assert len(bench.seen) > changes
    figures = bench.figures()
    assert (figures["realized_pnl"], figures["total"]) == (120, 6 * 10 + 4 * 20)
    bench.day.take_fill(update)
    bench.account.listed = [bench.fill(-4, 180, "listed")]
    await bench.day.poll()
    assert bench.figures()["symbols"] == [
        {"symbol": "AAPL", "realized_pnl": 120, "fills": 1, "qty": 6}
    ]


async def test_the_first_answer_counts_as_a_whole(autojump_clock: Any, bench: Bench) -> None:
    bench.account.listed = [bench.fill(100, 170, "a")]
    await bench.hold(110)
    await bench.day.poll()
    assert set(bench.seen) == {D(100)}
    bench.account.listed = [bench.fill(50, 170, "b"), bench.fill(50, 170, "c")]
    await bench.day.poll()
    assert set(bench.seen) == {D(100)}, "the broker has taken a fill back, and has others"


async def test_fills_without_positions_are_no_day(autojump_clock: Any, bench: Bench) -> None:
    await bench.hold(10)
    await bench.day.poll()
    bench.cache = PositionCache(bench.source, 5.0, bench.clock)
    bench.open()
    bench.account.listed = [bench.fill(-4, 150, "a")]
    await bench.day.poll()
    assert bench.engine.totals.day_pnl is None
    await bench.hold(6)
    await bench.day.poll()
    assert bench.engine.totals.day_pnl == 6 * 10 - 4 * 10


async def test_the_day_is_known_as_soon_as_its_positions_are(
    autojump_clock: Any, bench: Bench
) -> None:
    bench.account.listed = [bench.fill(-4, 150, "a")]
    await bench.day.poll()
    assert not bench.day.is_known
    await bench.hold(6)
    await bench.day.current(polled=True)
    assert bench.day.is_known


async def test_events_that_are_no_fills_change_nothing(autojump_clock: Any, bench: Bench) -> None:
    await bench.hold(10)
    await bench.day.poll()
    bench.day.take_fill(TradeUpdate("new", bench.clock.utc_ns(), "AAPL"))
    bench.day.take_fill(attrs.evolve(bench.update(4, 1, 14, "x"), side=""))
    assert bench.figures()["symbols"] == []


async def test_a_fill_that_never_comes_to_the_list_is_dropped(
    autojump_clock: Any, bench: Bench
) -> None:
    await bench.hold(10)
    await bench.day.poll()
    bench.day.take_fill(bench.update(-4, 180, 6, "busted"))
    await anyio.sleep(100)
    await bench.day.poll()
    assert bench.figures()["realized_pnl"] == 120
    await anyio.sleep(100)
    await bench.day.poll()
    assert bench.figures()["realized_pnl"] == 0


async def test_what_the_broker_takes_back_is_taken_back(autojump_clock: Any, bench: Bench) -> None:
    await bench.hold(10)
    bench.account.listed = [bench.fill(-4, 180, "a")]
    await bench.hold(6)
    bench.account.booked = [Booking("f", "FEE", fee=D(1))]
    await bench.day.poll()
    assert (bench.figures()["realized_pnl"], bench.figures()["fees"]) == (120, 1)
    bench.account.booked = []
    await bench.day.poll()
    assert bench.figures()["fees"] == 0
    bench.account.listed = []
    await bench.day.poll()
    assert bench.figures()["symbols"] == []


async def test_an_average_price_that_changes_overnight_is_read_soon(
    autojump_clock: Any, bench: Bench
) -> None:
    """The last close may be the same as the one before."""
    await bench.hold(10, avg=150)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.day.run)
        await anyio.sleep(30)
        await bench.hold(10, avg=152)
        await anyio.sleep(10)
        bench.day.take_fill(bench.update(-10, 180, 0, "execution"))
        await bench.hold(0)
        assert bench.figures()["realized_pnl"] == 10 * (180 - 152)
        tasks.cancel_scope.cancel()


async def test_it_polls_each_minute_and_soon_after_a_fill(
    autojump_clock: Any, bench: Bench
) -> None:
    await bench.hold(10)
    bench.account.balances = Account("id", "USD", None, None, None, None)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.day.run)
        await anyio.sleep(1)
        before = bench.account.polls
        await anyio.sleep(50)
        assert bench.account.polls - before <= 1
        before = bench.account.polls
        bench.day.take_fill(bench.update(1, 170, 11, "x"))
        await anyio.sleep(6)
        assert bench.account.polls == before + 1
        await anyio.sleep(600)
        assert bench.account.polls - before in range(9, 12)
        tasks.cancel_scope.cancel()


async def test_a_failure_keeps_what_is_known_and_is_reported(
    autojump_clock: Any, bench: Bench
) -> None:
    await bench.hold(10)
    bench.account.listed = [bench.fill(-4, 180, "a")]
    await bench.day.poll()
    bench.account.error = AccountUnavailable("busy")
    await bench.day.poll()
    figures = bench.figures()
    assert figures["realized_pnl"] == 120
    assert figures["warnings"] == ["today's fills may be out of date: busy"]
    bench.account.error = None
    await bench.day.poll()
    assert "warnings" not in bench.figures()


async def test_a_refusal_leaves_the_day_unknown(autojump_clock: Any, bench: Bench) -> None:
    await bench.hold(10)
    bench.account.error = AccountRefused("no rights", 403)
    await bench.day.poll()
    with pytest.raises(AccountUnavailable, match="no rights"):
        bench.day.encode()
    assert bench.engine.totals.day_pnl is None


async def test_a_server_without_activities_is_no_account(autojump_clock: Any, bench: Bench) -> None:
    await bench.hold(10)
    bench.account.error = AccountRefused("not found", 404)
    await bench.day.poll()
    with refused():
        bench.day.encode()
    assert (bench.engine.totals.day_pnl, bench.engine.totals.realized_day_pnl) == (100, None)


async def test_a_new_day_begins_at_midnight_in_new_york(autojump_clock: Any, bench: Bench) -> None:
    await bench.hold(10)
    bench.account.listed = [bench.fill(-4, 180, "a")]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.day.run)
        await anyio.sleep(1)
        today = bench.figures()["date"]
        left_s = (midnight_ns(today, 1) - bench.clock.utc_ns()) / 1e9
        await anyio.sleep(left_s - 1)
        assert bench.figures()["date"] == today
        await anyio.sleep(2)
        figures = bench.figures()
        assert figures["date"] == new_york_date(bench.clock.utc_ns()) > today
        assert (figures["realized_pnl"], figures["symbols"]) == (0, [])
        bench.account.error = AccountUnavailable("busy")
        await anyio.sleep(86_400)
        with refused():
            bench.day.encode()
        assert bench.engine.totals.day_pnl is None
        tasks.cancel_scope.cancel()


async def test_the_start_of_the_day_outlives_a_gateway(autojump_clock: Any, bench: Bench) -> None:
    await bench.hold(10)
    await bench.day.poll()
    bench.account.listed = [bench.fill(-10, 180, "a")]
    await bench.hold(0)
    bench.open()
    await bench.day.poll()
    figures = bench.figures()
    assert (figures["realized_pnl"], figures["total"]) == (300, 200)
    assert bench.account.searches == 0
    bench.starts.kept = {"id": b"?"}
    bench.open()
    await bench.day.poll()
    assert bench.figures()["realized_pnl"] is None


async def test_without_redis_the_start_is_kept_in_memory(autojump_clock: Any, bench: Bench) -> None:
    bench.starts.fails = True
    await bench.hold(10)
    await bench.day.poll()
    bench.account.listed = [bench.fill(-10, 180, "a")]
    await bench.hold(0)
    await bench.day.poll()
    assert bench.figures()["total"] == 200
    bench.starts.fails = False
    await bench.day.poll()
    assert set(bench.starts.kept) == {"id"}


async def test_older_activities_are_searched_once(autojump_clock: Any, bench: Bench) -> None:
    bench.account.listed = [bench.fill(-10, 180, "a")]
    day_ns = 86_400 * 10**9
    bought = attrs.evolve(bench.fill(4, 100, "o"), at_ns=bench.clock.utc_ns() - day_ns)
    bench.account.older = [Activities([bought])]
    await bench.hold(0)
    await bench.day.poll()
    await bench.day.poll()
    assert bench.account.searches == 1, "they do not reach back far enough"
    figures = bench.figures()
    assert (figures["realized_pnl"], figures["total"]) == (None, None)
    assert len(figures["warnings"]) == 1
    bench.open()
    first = attrs.evolve(bought, qty=D(6), price=D(150), at_ns=bought.at_ns - day_ns, id="p")
    bench.account.older = [Activities([bought]), Activities([first])]
    await bench.day.poll()
    figures = bench.figures()
    assert figures["realized_pnl"] == 10 * (180 - 130)
    assert figures["warnings"] == ["AAPL: its price at the last close is not known"]


async def test_what_was_sold_before_the_first_start_has_the_close_of_its_last_daily_bar(
    autojump_clock: Any, bench: Bench
) -> None:
    date = new_york_date(bench.clock.utc_ns())
    history = FakeHistory()
    for days, close in ((-2, 155.0), (-1, 160.0), (0, 999.0)):
        start_ns = midnight_ns(date, days)
        history.add(
            [Bar("AAPL", 1.0, 1.0, 1.0, close, 1, 1, 1.0, start_ns, start_ns, daily=True)],
            DAILY_BARS,
        )
    history.script.append(HistoryUnavailable("not now"))
    bench.closes = LastCloses({STOCKS: history}, bench.clock)
    bench.open()
    bench.account.listed = [bench.fill(-10, 180, "a")]
    bought = attrs.evolve(bench.fill(10, 100, "o"), at_ns=midnight_ns(date) - 1)
    bench.account.older = [Activities([bought])]
    # Ten shares at 160 became 1,800 dollars.
    bench.account.balances = Account("id", "USD", D(2800), D(2600), D(2800), D(0))
    await bench.hold(0)
    await bench.day.poll()
    assert bench.figures()["total"] is None, "history does not answer"
    await bench.day.poll()
    figures = bench.figures()
    assert (figures["realized_pnl"], figures["total"]) == (800, 200)
    assert (bench.day.difference, figures.get("warnings")) == (0, None)
    requests = len(history.requests)
    bench.open()
    await bench.day.poll()
    assert bench.figures()["total"] == 200, "it is kept in Redis"
    assert len(history.requests) == requests


OPTION = "AAPL261218C00200000"


@pytest.mark.parametrize(
    ("written", "symbol", "feed", "total"),
    [
        ("BTCUSD", "BTC/USD", CRYPTO, 200),
        ("BTC/USD", "BTC/USD", CRYPTO, 200),
        (OPTION, OPTION, OPTIONS, 20_000),
    ],
)
async def test_crypto_and_options_that_were_sold_before_the_first_start_have_a_last_close(
    autojump_clock: Any, bench: Bench, written: str, symbol: str, feed: Feed, total: int
) -> None:
    date = new_york_date(bench.clock.utc_ns())
    later_ns = 3_600 * 10**9 if feed is CRYPTO else 0
    history = FakeHistory()
    for days, close in ((-2, 155.0), (-1, 160.0), (0, 999.0)):
        at_ns = midnight_ns(date, days) + later_ns
        bar = Bar(symbol, 1.0, 1.0, 1.0, close, 1, 1, 1.0, at_ns, at_ns, daily=True)
        history.add([bar], DAILY_BARS)
    bench.closes = LastCloses({feed: history}, bench.clock)
    bench.open()
    bench.account.listed = [attrs.evolve(bench.fill(-10, 180, "a"), symbol=written)]
    await bench.hold(0)
    await bench.day.poll()
    assert bench.engine.totals.day_pnl == total


async def test_the_close_of_crypto_is_that_of_the_day_that_is_over(autojump_clock: Any) -> None:
    date, clock = "2026-11-20", VirtualClock()
    hour_ns = 3_600 * 10**9
    midnight = midnight_ns(date)
    history = FakeHistory()
    for begins_ns, close in ((-47, 1.0), (-23, 2.0), (1, 3.0)):
        at_ns = midnight + begins_ns * hour_ns
        bar = Bar("BTC/USD", 1.0, 1.0, 1.0, close, 1, 1, 1.0, at_ns, at_ns, daily=True)
        history.add([bar], DAILY_BARS)
    closes = LastCloses({CRYPTO: history}, clock)
    for hours, expected in ((0.5, {}), (2, {"BTC/USD": D(2)}), (23, {"BTC/USD": D(2)})):
        clock.step((midnight + hours * hour_ns - clock.utc_ns()) / 1e9)
        assert await closes.before(date, ["BTCUSD"]) == (expected, [])


async def test_a_feed_that_does_not_answer_leaves_the_last_closes_of_the_others(
    autojump_clock: Any, bench: Bench
) -> None:
    stocks, options = FakeHistory(), FakeHistory()
    date = new_york_date(bench.clock.utc_ns())
    at_ns = midnight_ns(date, -1)
    options.add([Bar(OPTION, 1, 1, 1, 1.5, 1, 1, 1.0, at_ns, at_ns, daily=True)], DAILY_BARS)
    stocks.script.append(HistoryUnavailable("not now"))
    closes = LastCloses({STOCKS: stocks, OPTIONS: options}, bench.clock)
    found, reasons = await closes.before(date, ["AAPL", OPTION, "BTCUSD"])
    assert found == {OPTION: D("1.5")}
    assert [reason.partition(":")[0] for reason in reasons] == ["stocks"]


async def test_a_split_before_makes_the_average_unknown(autojump_clock: Any, bench: Bench) -> None:
    bench.account.listed = [bench.fill(-10, 180, "a")]
    before_ns = bench.clock.utc_ns() - 86_400 * 10**9
    bought = attrs.evolve(bench.fill(10, 100, "o"), at_ns=before_ns)
    bench.account.older = [
        Activities([], [Booking("s", "SPLIT", changes="AAPL")]),
        Activities([bought]),
    ]
    await bench.hold(0)
    await bench.day.poll()
    assert bench.figures()["realized_pnl"] is None


async def test_the_equity_is_compared(autojump_clock: Any, bench: Bench) -> None:
    await bench.hold(10)
    balances = Account("id", "USD", D(2700), D(2600), D(1000), D(1700))
    bench.account.balances = balances
    await bench.day.poll()
    assert bench.day.difference == 0
    bench.account.balances = attrs.evolve(balances, cash=D("995"), equity=D(2695))
    await bench.day.poll()
    assert bench.day.difference == 0, "it may be of another moment"
    await anyio.sleep(5)
    await bench.day.poll()
    assert bench.day.difference == -5
    assert "-5 dollars" in bench.figures()["warnings"][0]
    bench.account.booked = [Booking("w", "CSW", amount=D(-5))]
    await bench.day.poll()
    assert bench.day.difference == 0
    assert "CSW -5" in bench.figures()["warnings"][0]


async def test_what_was_closed_today_is_a_part_of_the_equity(
    autojump_clock: Any, bench: Bench
) -> None:
    bench.account.listed = [bench.fill(10, 160, "a"), bench.fill(-10, 163, "b")]
    await bench.hold(0)
    bench.account.balances = Account("id", "USD", D(2630), D(2600), D(2630), D(0))
    for _ in range(2):
        await bench.day.poll()
        await anyio.sleep(5)
    assert bench.figures()["total"] == 30
    assert bench.day.difference == 0


async def test_without_the_cash_the_positions_own_prices_count(
    autojump_clock: Any, bench: Bench
) -> None:
    held = Position("AAPL", D(10), D(150), current_price=D(171), lastday_price=D(160))
    bench.source.positions = [held]
    bench.engine.set_positions(await bench.cache.refresh())
    bench.account.balances = Account("id", "USD", D(2710), D(2600), None, None)
    await bench.day.poll()
    assert bench.day.difference == 0


async def test_another_currency_is_not_compared(autojump_clock: Any, bench: Bench) -> None:
    await bench.hold(10)
    bench.account.balances = Account("id", "EUR", D(1), D(2), D(3), D(4))
    await bench.day.poll()
    assert bench.day.difference is None
    assert bench.figures()["warnings"] == ["the equity is in EUR, so it is not compared"]


async def test_without_a_poll_a_request_polls(autojump_clock: Any, bench: Bench) -> None:
    await bench.hold(10)
    for _ in range(3):
        await bench.day.current(polled=False)
    assert bench.account.polls == 1
    await anyio.sleep(61)
    await bench.day.current(polled=True)
    assert bench.account.polls == 1
    await bench.day.current(polled=False)
    assert bench.account.polls == 2
    await bench.day.aclose()
    assert bench.account.closed
