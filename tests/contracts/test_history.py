"""What every history does for each kind of each feed: the one over REST against a simulator, and
the fake.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import anyio
import attrs
import pytest

from mdservice.errors import HistoryRefused, HistoryUnavailable
from mdservice.feed.alpaca.login import Credentials
from mdservice.feed.alpaca.rest import AlpacaHistory
from mdservice.feed.history import History
from mdservice.model.bar import Bar
from mdservice.model.feeds import CRYPTO, NEWS_FEED, OPTIONS, STOCKS, Feed
from mdservice.model.kinds import BARS, DAILY_BARS, NEWS, ORDERBOOKS, QUOTES, TRADES, Kind
from mdservice.model.news import Article
from mdservice.model.order_book import OrderBook
from mdservice.model.quote import Quote
from mdservice.model.trade import Trade
from mdservice.simulator import SimQuote, SimulatorConfig, crypto, news, open_simulator, options
from mdservice.simulator import stocks as sim_stocks
from mdservice.simulator.bars import SimBar
from mdservice.simulator.kinds import SimKind
from mdservice.simulator.stock_records import SimTrade
from mdservice.simulator.transport import SimulatorTransport
from mdservice.testing import FakeHistory, VirtualClock

LAG_S = 3.0
START_NS = 1_795_186_800 * 10**9  # where the virtual clock begins
VARIANTS = {"stocks": "iex", "crypto": "us", "options": "indicative", "news": "news"}
SYMBOLS = {
    "stocks": ("AAPL", "MSFT", "TSLA"),
    "crypto": ("BTC/USD", "ETH/USD", "SOL/USD"),
    "options": ("AAPL261218C00200000", "AAPL261218P00200000", "MSFT261218C00500000"),
    "news": ("AAPL", "MSFT", "TSLA"),
}


# ---- a record of each kind, and how the simulator has it


def quote(number: int, symbol: str, at_ns: int) -> Quote:
    return Quote(symbol, number + 0.5, number + 1.0, number, 2, at_ns, 0)


def trade(number: int, symbol: str, at_ns: int) -> Trade:
    return Trade(symbol, number + 0.5, number, "V", ("@", "I"), "C", number, at_ns, 0)


def pair_trade(number: int, symbol: str, at_ns: int) -> Trade:
    return Trade(
        symbol, number + 0.5, number + 0.25, None, (), None, number, at_ns, 0, taker_side="buy"
    )


def option_trade(number: int, symbol: str, at_ns: int) -> Trade:
    return Trade(symbol, number + 0.5, number, "C", ("S",), None, None, at_ns, 0)


def bar(number: int, symbol: str, at_ns: int) -> Bar:
    return Bar(symbol, 1.5, 2.5, 1.0, 2.0, number, 3, 1.75, at_ns, 0)


def book(number: int, symbol: str, at_ns: int) -> OrderBook:
    return OrderBook(symbol, ((1.5, number + 0.25),), ((2.5, 1.5),), at_ns, 0)


def article(number: int, symbol: str, at_ns: int) -> Article:
    return Article(
        number, f"Headline {number}", "", "", "", "", "", (symbol,), None, None, at_ns, 0
    )


def sim_quote(q: Quote) -> SimQuote:
    return SimQuote(q.symbol, q.bid, q.ask, q.bid_size, q.ask_size, q.ts_event_ns)  # type: ignore[arg-type]


def sim_bar(b: Bar) -> SimBar:
    prices = b.open, b.high, b.low, b.close
    return SimBar(b.symbol, *prices, b.volume, b.trade_count or 0, b.vwap or 0.0, b.ts_event_ns)


def sim_trade(t: Any) -> SimTrade:
    return SimTrade(t.symbol, t.price, t.size, t.id, t.ts_event_ns, "V", t.conditions, "C")


def sim_pair_quote(q: Quote) -> crypto.SimPairQuote:
    return crypto.SimPairQuote(q.symbol, q.bid, q.ask, q.bid_size, q.ask_size, q.ts_event_ns)


def sim_pair_trade(t: Any) -> crypto.SimPairTrade:
    return crypto.SimPairTrade(t.symbol, t.price, t.size, t.id, "B", t.ts_event_ns)


def sim_book(b: OrderBook) -> crypto.SimBook:
    return crypto.SimBook(b.symbol, b.bids, b.asks, True, b.ts_event_ns)


def sim_option_quote(q: Any) -> options.SimOptionQuote:
    return options.SimOptionQuote(q.symbol, q.bid, q.ask, q.bid_size, q.ask_size, q.ts_event_ns)


def sim_option_trade(t: Any) -> options.SimOptionTrade:
    return options.SimOptionTrade(t.symbol, t.price, t.size, t.ts_event_ns, "C", "S")


def sim_article(a: Article) -> news.SimArticle:
    return news.SimArticle(a.id, a.headline or "", a.symbols, ts_event_ns=a.ts_event_ns)


@attrs.frozen
class Case:
    """One kind of one feed."""

    feed: Feed
    kind: Kind[Any]
    make: Callable[[int, str, int], Any]
    sim_kind: SimKind[Any]
    to_sim: Callable[[Any], Any]

    def __str__(self) -> str:
        return f"{self.feed.name} {self.kind.channel}"

    @property
    def symbols(self) -> tuple[str, str, str]:
        """Two symbols that have records, and one that has none."""
        return SYMBOLS[self.feed.name]

    def record(self, number: int, symbol: str | None = None, *, at_ns: int | None = None) -> Any:
        """A record with this number in its content and, by default, in its time."""
        return self.make(number, symbol or self.symbols[0], at_ns or START_NS + number)

    def identities(self, records: Iterable[Any], about: str | None = None) -> list[Any]:
        """What makes the records equal; of those about a symbol, if one is given."""
        return [
            self.kind.identity(one)
            for one in records
            if about is None or about in (getattr(one, "symbols", None) or (one.symbol,))
        ]


CASES = [
    Case(STOCKS, QUOTES, quote, sim_stocks.QUOTES, sim_quote),
    Case(STOCKS, TRADES, trade, sim_stocks.TRADES, sim_trade),
    Case(STOCKS, BARS, bar, sim_stocks.BARS, sim_bar),
    Case(STOCKS, DAILY_BARS, bar, sim_stocks.DAILY_BARS, sim_bar),
    Case(CRYPTO, QUOTES, quote, crypto.QUOTES, sim_pair_quote),
    Case(CRYPTO, TRADES, pair_trade, crypto.TRADES, sim_pair_trade),
    Case(CRYPTO, BARS, bar, crypto.BARS, sim_bar),
    Case(CRYPTO, DAILY_BARS, bar, crypto.DAILY_BARS, sim_bar),
    Case(CRYPTO, ORDERBOOKS, book, crypto.ORDERBOOKS, sim_book),
    Case(OPTIONS, QUOTES, quote, options.QUOTES, sim_option_quote),
    Case(OPTIONS, TRADES, option_trade, options.TRADES, sim_option_trade),
    Case(NEWS_FEED, NEWS, article, news.ARTICLES, sim_article),
]
WITH_PAST = [
    case
    for case in CASES
    if case.kind is not ORDERBOOKS and (case.feed, case.kind) != (OPTIONS, QUOTES)
]
WITH_REPEATS = [case for case in WITH_PAST if case.kind in (QUOTES, TRADES)]
"""Of these several may have one time."""
WITH_LATEST = [case for case in WITH_PAST if case.kind not in (DAILY_BARS, NEWS)]
"""Those whose latest record is not read from the past ones."""


# ---- the two histories


class Backend(Protocol):
    history: History

    def add(self, case: Case, records: Sequence[Any]) -> None: ...
    def refuse(self) -> None: ...
    def fail(self) -> None: ...


class OfSimulator:
    def __init__(self, simulator: Any, feed: Feed) -> None:
        self._simulator = simulator
        self.history: History = AlpacaHistory(
            simulator.rest_url,
            VARIANTS[feed.name],
            Credentials("key", "secret"),
            VirtualClock(),
            SimulatorTransport(simulator),
            feed=feed,
        )

    def add(self, case: Case, records: Sequence[Any]) -> None:
        self._simulator.send_records(case.sim_kind, [case.to_sim(one) for one in records])

    def refuse(self) -> None:
        self._simulator.refuse_rest()

    def fail(self) -> None:
        self._simulator.refuse_rest(503, 0, "away")


class Fake:
    def __init__(self) -> None:
        self._fake = FakeHistory(LAG_S)
        self.history: History = self._fake

    def add(self, case: Case, records: Sequence[Any]) -> None:
        self._fake.add(records, case.kind)

    def refuse(self) -> None:
        self._fake.script.append(HistoryRefused("42210000"))

    def fail(self) -> None:
        self._fake.script.append(HistoryUnavailable("away"))


@asynccontextmanager
async def opened(kind: str, feed: Feed) -> AsyncIterator[Backend]:
    with anyio.fail_after(60):
        if kind == "fake":
            yield Fake()
            return
        config = SimulatorConfig(rate=0, rest_page_size=3, rest_lag_s=LAG_S, rest_rate_limit=None)
        async with open_simulator(config, port=None, clock=VirtualClock()) as simulator:
            yield OfSimulator(simulator, feed)


def on_both(cases: Sequence[Case]) -> Callable[[Any], Any]:
    def decorate(test: Callable[[Backend, Case], Awaitable[None]]) -> Any:
        @pytest.mark.parametrize("kind", ["simulator", "fake"])
        @pytest.mark.parametrize("case", cases, ids=str)
        async def run(kind: str, case: Case, autojump_clock: Any) -> None:
            async with opened(kind, case.feed) as backend:
                await test(backend, case)

        run.__name__ = test.__name__
        return run

    return decorate


# ---- what they do


@on_both(WITH_PAST)
async def test_all_records_of_the_time_come_in_order_within_each_symbol(
    behind: Backend, case: Case
) -> None:
    first, second, _ = case.symbols
    made = [case.record(number, first if number % 3 else second) for number in range(1, 21)]
    behind.add(case, made)
    await anyio.sleep(LAG_S + 0.1)
    found = await behind.history.past(case.kind, [second, first], START_NS + 4, START_NS + 18)
    expected = made[3:18]
    for symbol in (first, second):
        assert case.identities(found, symbol) == case.identities(expected, symbol)
    assert len(found) == len(expected)
    assert {one.seq for one in found} == {0}


@on_both(WITH_REPEATS)
async def test_records_of_one_time_come_as_they_were_made_also_repeats(
    behind: Backend, case: Case
) -> None:
    at_ns = START_NS + 7
    made = [case.record(number, at_ns=at_ns) for number in (3, 1, 2, 1, 3, 3, 9)]
    behind.add(case, made)
    await anyio.sleep(LAG_S + 0.1)
    found = await behind.history.past(case.kind, case.symbols[:1], at_ns, at_ns)
    assert case.identities(found) == case.identities(made)


@on_both(WITH_PAST)
async def test_what_is_not_asked_for_does_not_come(behind: Backend, case: Case) -> None:
    first, second, none = case.symbols
    behind.add(case, [case.record(1), case.record(2, second)])
    await anyio.sleep(LAG_S + 0.1)
    past = behind.history.past
    assert await past(case.kind, [none], START_NS, START_NS + 99) == []
    assert await past(case.kind, [first], START_NS + 2, START_NS + 99) == []
    assert await past(case.kind, [], START_NS, START_NS + 99) == []


@on_both(WITH_LATEST)
async def test_past_records_lag_and_the_latest_do_not(behind: Backend, case: Case) -> None:
    # By the simulator it is the record's time that lags, by the fake when it was added.
    first, second, none = case.symbols
    made = [case.record(1), case.record(2), case.record(5, second)]
    behind.add(case, made)
    end_ns = START_NS + 10**12
    await anyio.sleep(LAG_S - 0.1)
    assert await behind.history.past(case.kind, [first], START_NS, end_ns) == []
    latest = await behind.history.latest(case.kind, [first, second, none])
    assert sorted(case.identities(latest)) == sorted(case.identities(made[1:]))
    await anyio.sleep(0.2)
    found = await behind.history.past(case.kind, [first], START_NS, end_ns)
    assert case.identities(found) == case.identities(made[:2])


@on_both(CASES)
async def test_the_latest_record_of_each_symbol(behind: Backend, case: Case) -> None:
    first, second, none = case.symbols
    made = [case.record(1), case.record(2), case.record(5, second)]
    behind.add(case, made)
    await anyio.sleep(LAG_S + 0.1)
    latest = await behind.history.latest(case.kind, [first, second, none])
    newest = made[2:] if case.kind is NEWS else made[1:]
    assert sorted(case.identities(latest)) == sorted(case.identities(newest))
    assert case.identities(await behind.history.latest(case.kind, [first])) == case.identities(
        made[1:2]
    )


@on_both(CASES)
async def test_latest_of_nothing_is_nothing(behind: Backend, case: Case) -> None:
    assert list(await behind.history.latest(case.kind, case.symbols[:1])) == []
    assert list(await behind.history.latest(case.kind, [])) == []


@on_both(WITH_PAST)
async def test_answers_are_the_callers_own(behind: Backend, case: Case) -> None:
    """The router numbers records in place."""
    behind.add(case, [case.record(1)])
    await anyio.sleep(LAG_S + 0.1)
    asked = (case.kind, case.symbols[:1], START_NS, START_NS + 9)
    for one in await behind.history.past(*asked):
        one.seq = 7
    again = await behind.history.past(*asked)
    assert [one.seq for one in again] == [0]


@on_both(WITH_PAST)
async def test_a_refusal_differs_from_an_outage(behind: Backend, case: Case) -> None:
    symbols = case.symbols[:1]
    for call in (
        lambda: behind.history.past(case.kind, symbols, START_NS, START_NS + 9),
        lambda: behind.history.latest(case.kind, symbols),
    ):
        behind.refuse()
        with pytest.raises(HistoryRefused, match="42210000"):
            await call()
        behind.fail()
        with pytest.raises(HistoryUnavailable, match="away"):
            await call()
        assert list(await call()) == []


@on_both([case for case in CASES if case.kind is NEWS])
async def test_all_news_is_that_about_any_symbol(behind: Backend, case: Case) -> None:
    first, second, _ = case.symbols
    made = [case.record(1, first), case.record(2, second), case.record(3, first)]
    behind.add(case, made)
    await anyio.sleep(LAG_S + 0.1)
    found = await behind.history.past(NEWS, ["*"], START_NS, START_NS + 9)
    assert case.identities(found) == case.identities(made)
    latest = await behind.history.latest(NEWS, ["*"])
    assert case.identities(latest) == case.identities(made[2:])
