"""Prices that Redis has not are asked for elsewhere. On virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import anyio
import pytest

from mdservice.client.http import NoAnswer
from mdservice.clock import SystemClock
from mdservice.errors import HistoryRefused, HistoryUnavailable
from mdservice.gateway.missing_prices import AlpacaPrices, MissingPrices, last_closes, price_sources
from mdservice.model.feeds import CRYPTO, OPTIONS, STOCKS
from mdservice.model.kinds import TRADES
from mdservice.model.position import Position
from mdservice.model.quote import Quote
from mdservice.model.trade import Trade
from mdservice.pnl.engine import PnlEngine
from mdservice.runtime.network import HttpClient, HttpFailed
from mdservice.settings import Settings
from mdservice.testing import FakeHistory, VirtualClock

CALL = "AAPL261218C00200000"
HOUR_S = 3_600


def quote(symbol: str, price: float, at_ns: int = 1) -> Quote:
    return Quote(symbol, price, price, 1, 1, at_ns, at_ns)


def last_trade(symbol: str, price: float) -> Trade:
    return Trade(symbol, price, 1, "V", (), "C", 1, 1, 1)


def held(*symbols: str) -> list[Position]:
    return [
        Position(s, Decimal(1), Decimal(1), asset_class="crypto" if s == "BTCUSD" else "us_equity")
        for s in symbols
    ]


class FakeSource:
    """Has these prices."""

    def __init__(self, after_s: float = 1.0, **prices: float) -> None:
        self.name = f"the fake after {after_s:g} s"
        self.after_s = after_s
        self.prices = prices
        self.trades: dict[str, float] = {}
        self.error: Exception | None = None
        self.delay_s = 0.0
        self.asked: list[tuple[float, tuple[str, ...]]] = []

    def has(self, symbol: str) -> bool:
        return symbol != "OTHER"

    async def latest(self, kind: Any, symbols: Sequence[str]) -> Iterable[Any]:
        if kind is TRADES:
            return [last_trade(s, self.trades[s]) for s in symbols if s in self.trades]
        self.asked.append((round(anyio.current_time()), tuple(symbols)))
        await anyio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        return [quote(symbol, self.prices[symbol]) for symbol in symbols if symbol in self.prices]


class Bench:
    def __init__(self, *sources: Any) -> None:
        self.clock = VirtualClock()
        self.engine = PnlEngine(stale_after_s=60, price_ttl_s=300)
        self.missing = MissingPrices(self.engine, sources)

    def came(self, found: Quote | Trade) -> None:
        if isinstance(found, Quote):
            self.engine.update(found, self.clock.utc_ns())
        else:
            self.engine.stand_in(found)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.missing.run, self.came)
            yield
            tasks.cancel_scope.cancel()

    def rows(self) -> dict[str, Any]:
        report = self.engine.report(self.clock.utc_ns())
        return {row.symbol: (row.status, row.current_price) for row in report.positions}


async def test_a_price_that_redis_has_is_not_asked_for(autojump_clock: Any) -> None:
    source = FakeSource(A=1)
    bench = Bench(source)
    async with bench.running():
        await anyio.sleep(10)
        bench.engine.set_positions(held("A"))
        await anyio.sleep(0.5)
        bench.came(quote("A", 7))
        await anyio.sleep(HOUR_S)
    assert source.asked == []
    assert bench.rows() == {"A": ("stale", 7)}


async def test_the_first_source_that_has_a_price_is_used_and_the_others_left_alone(
    autojump_clock: Any,
) -> None:
    near, far = FakeSource(A=1), FakeSource(after_s=3.0, A=2, B=3)
    bench = Bench(near, far)
    bench.engine.set_positions(held("A", "B"))
    async with bench.running():
        await anyio.sleep(30)
    assert bench.rows() == {"A": ("stale", 1), "B": ("stale", 3)}
    assert near.asked[0][1] == ("A", "B")
    assert [symbols for _, symbols in far.asked] == [("B",)]


async def test_the_last_trade_stands_in_where_no_quote_is_usable(autojump_clock: Any) -> None:
    source = FakeSource(EMPTY=0.0, GOOD=7)
    source.trades = {"EMPTY": 4.5, "GOOD": 6, "NONE": 0}
    bench = Bench(source)
    bench.engine.set_positions(held("EMPTY", "GOOD", "NONE"))
    async with bench.running():
        await anyio.sleep(5)
    assert bench.rows() == {
        "EMPTY": ("stale", Decimal("4.5")),
        "GOOD": ("stale", 7),
        "NONE": ("unpriced", None),
    }
    report = bench.engine.report(bench.clock.utc_ns())
    assert [row.mark for row in report.positions] == ["last", "mid", None]
    assert report.total_unrealized_pnl == Decimal("3.5") + 6
    bench.came(quote("EMPTY", 5, bench.clock.utc_ns()))
    row, *_ = bench.engine.report(bench.clock.utc_ns()).positions
    assert (row.current_price, row.mark, row.status) == (5, "mid", "live")


async def test_what_no_source_knows_is_asked_for_less_and_less_often(autojump_clock: Any) -> None:
    source = FakeSource(A=1)
    bench = Bench(source)
    bench.engine.set_positions(held("A", "GONE", "OTHER"))
    async with bench.running():
        await anyio.sleep(2 * HOUR_S)
        assert bench.rows()["GONE"] == ("unpriced", None)
        times = [at_s for at_s, symbols in source.asked if symbols == ("GONE",)]
        assert 20 < len(times) < 40
        assert times[-1] - times[-2] >= 300
        source.prices["GONE"] = 9
        await anyio.sleep(310)
        assert bench.rows()["GONE"] == ("stale", 9)
        asked = len(source.asked)
        bench.engine.set_positions(held("A", "GONE", "NEW"))
        await anyio.sleep(2.5)
        assert len(source.asked) == asked + 1, "a new position soon"
    assert not [symbols for _, symbols in source.asked if "OTHER" in symbols]
    assert bench.missing.warning() is None


async def test_a_source_that_fails_is_left_alone_for_longer_and_longer(autojump_clock: Any) -> None:
    bad, good = FakeSource(A=1), FakeSource(after_s=3.0, B=2)
    bad.error = HistoryUnavailable("it is away")
    bench = Bench(bad, good)
    bench.engine.set_positions(held("A", "B"))
    async with bench.running():
        await anyio.sleep(5)
        assert bench.rows()["B"] == ("stale", 2), "one source does not wait for another"
        assert (
            bench.missing.warning()
            == "missing prices cannot be asked for: the fake after 1 s: it is away"
        )
        await anyio.sleep(HOUR_S)
        assert 10 < len(bad.asked) < 40
        bad.error = None
        await anyio.sleep(310)
        assert bench.rows()["A"] == ("stale", 1)
        assert bench.missing.warning() is None


async def test_a_source_that_hangs_holds_nothing_up(autojump_clock: Any) -> None:
    hanging, good = FakeSource(), FakeSource(after_s=3.0, A=2)
    hanging.delay_s = HOUR_S
    bench = Bench(hanging, good)
    bench.engine.set_positions(held("A", "B"))
    async with bench.running():
        await anyio.sleep(5)
        assert bench.rows()["A"] == ("stale", 2)
        await anyio.sleep(15)
        assert "no answer within 10 s" in (bench.missing.warning() or "")
        assert len(hanging.asked) <= 2


async def test_where_no_service_runs_there_is_no_warning(autojump_clock: Any) -> None:
    source = FakeSource()
    source.error = NoAnswer("no service answers")
    bench = Bench(source)
    bench.engine.set_positions(held("A"))
    async with bench.running():
        await anyio.sleep(HOUR_S)
    assert source.asked
    assert bench.missing.warning() is None


async def test_many_symbols_are_asked_for_a_few_at_a_time(autojump_clock: Any) -> None:
    symbols = [f"S{number}" for number in range(1_000)]
    source = FakeSource(**dict.fromkeys(symbols, 5.0))
    bench = Bench(source)
    bench.engine.set_positions(held(*symbols))
    async with bench.running():
        await anyio.sleep(10)
    assert [len(asked) for _, asked in source.asked] == [200] * 5
    assert len({at_s for at_s, _ in source.asked}) == 5, "one call a second"
    assert set(bench.rows().values()) == {("stale", 5)}


async def test_each_class_is_asked_for_at_its_own_feed(autojump_clock: Any) -> None:
    histories = {feed: FakeHistory() for feed in (STOCKS, CRYPTO, OPTIONS)}
    for feed, symbol in ((STOCKS, "A"), (CRYPTO, "BTC/USD"), (OPTIONS, CALL)):
        histories[feed].add([quote(symbol, 5)])
    histories[STOCKS].refuses["BAD"] = "invalid symbol: BAD"
    histories[OPTIONS].script.append(HistoryRefused("not in the plan"))
    bench = Bench(*(AlpacaPrices(feed, each) for feed, each in histories.items()))
    bench.engine.set_positions(held("A", "BTCUSD", CALL, "BAD"))
    async with bench.running():
        await anyio.sleep(5)
        assert bench.rows() == {
            "A": ("stale", 5),
            "BTCUSD": ("stale", 5),
            CALL: ("unpriced", None),
            "BAD": ("unpriced", None),
        }
        assert "Alpaca's options: not in the plan" in (bench.missing.warning() or "")
        await anyio.sleep(5)
        assert bench.rows()[CALL] == ("stale", 5)
        await anyio.sleep(HOUR_S)
    assert len(histories[STOCKS].requests) < 10, "what is refused is set aside"


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, []),
        ({"api_key": "k", "secret_key": "s"}, ["stocks", "crypto", "options"]),
        ({"api_key": "k"}, []),
    ],
)
def test_alpaca_is_asked_where_there_are_keys(settings: Any, names: list[str]) -> None:
    found = price_sources(
        Settings(redis_url="redis://127.0.0.1:1", **settings),
        None,
        SystemClock(),
        HttpClient(),  # type: ignore[arg-type]
    )
    assert [source.name for source in found[1:]] == [f"Alpaca's {name}" for name in names]


@pytest.mark.parametrize("feed", ["iex", "sip", "delayed_sip", "overnight"])
async def test_last_closes_are_those_of_all_exchanges(
    monkeypatch: pytest.MonkeyPatch, feed: str
) -> None:
    asked: list[Any] = []

    async def get(_self: Any, _url: str, *, params: Any, **_: Any) -> Any:
        asked.append(params)
        raise HttpFailed("not here", "network")

    monkeypatch.setattr(HttpClient, "get", get)
    settings = Settings(redis_url="redis://127.0.0.1:1", feed=feed, api_key="k", secret_key="s")
    closes = last_closes(settings, SystemClock(), HttpClient())
    assert closes is not None
    found, reasons = await closes.before("2026-11-20", ["AAPL"])
    assert (found, len(reasons)) == ({}, 1)
    assert (asked[0]["timeframe"], asked[0]["feed"]) == ("1Day", "sip")
    assert asked[0]["end"] < "2026-11-20T05:00:00Z", "midnight in New York"


def test_without_keys_no_last_closes_are_asked_for() -> None:
    assert last_closes(Settings(), SystemClock(), HttpClient()) is None
