"""What the tracker joins: positions, keys and events. On virtual time, without Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, Literal

import anyio
import attrs
import msgspec
import pytest

from mdservice.errors import StoreUnavailable
from mdservice.gateway.missing_prices import MissingPrices
from mdservice.gateway.risk import Risk, make_limits
from mdservice.gateway.tracker import FollowedPrices, PnlTracker
from mdservice.model.kinds import QUOTES
from mdservice.model.market import Market
from mdservice.model.position import Position
from mdservice.model.quote import Quote
from mdservice.model.timestamps import format_ns
from mdservice.model.trade import Trade
from mdservice.pnl.engine import PnlEngine, rows_of
from mdservice.pnl.limits import Limits
from mdservice.positions.cache import PositionCache
from mdservice.positions.trade_updates import TradeUpdate
from mdservice.redis_io.names import Instance
from mdservice.runtime.market_clock import MarketClock
from mdservice.runtime.network import HttpClient
from mdservice.simulator import SimulatorConfig, open_simulator
from mdservice.simulator.transport import SimulatorTransport
from mdservice.testing import FakePositions, VirtualClock
from tests.gateway.test_day import FakeAccount, FakeStarts

FAILS_AFTER_S = 5.0


@asynccontextmanager
async def nothing_answers() -> AsyncIterator[Any]:
    await anyio.sleep(FAILS_AFTER_S)
    raise StoreUnavailable("nothing answers")
    yield


async def test_a_slow_start_is_no_failure_yet_but_is_not_hidden(autojump_clock: Any) -> None:
    followed = FollowedPrices(nothing_answers, pytest.fail)
    assert (followed.error(), followed.delay()) == (None, None)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(followed.run)
        await anyio.sleep(0.5)
        assert (followed.error(), followed.delay()) == (None, None)
        await anyio.sleep(3)
        assert followed.error() is None, "a wait for the first prices continues"
        assert followed.delay() == "not connected to Redis yet"
        await anyio.sleep(FAILS_AFTER_S)
        assert followed.error() == "nothing answers"
        assert followed.delay() is None
        tasks.cancel_scope.cancel()


class FakePrices:
    """A reader of events: those that the test sends."""

    def __init__(self) -> None:
        self.service: Instance | None = None
        self.others: list[Instance] = []
        self._send, self._quotes = anyio.create_memory_object_stream[Quote](10)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Any]:
        yield self

    def __aiter__(self) -> Any:
        return self._quotes.__aiter__()

    def send(self, symbol: str, price: float, at_ns: int) -> None:
        self._send.send_nowait(Quote(symbol, price, price, 1, 1, at_ns, at_ns))

    def status(self) -> Any:
        return SimpleNamespace(connected=True, last_error=None)

    def rivals(self) -> list[Instance]:
        return self.others

    def close(self) -> None:
        self._send.close()
        self._quotes.close()


class FakeKeys:
    """The keys of Redis."""

    def __init__(self) -> None:
        self.service: Instance | None = None
        self.found: dict[str, Quote] = {}
        self.error: StoreUnavailable | None = None
        self.closed = 0

    async def prices(self, symbols: Any) -> list[Quote | None]:
        await anyio.sleep(0.01)
        if self.error is not None:
            raise self.error
        return [self.found.get(symbol) for symbol in symbols]

    async def trades(self, symbols: Any) -> list[Trade | None]:
        return [None] * len(symbols)

    def close(self) -> None:
        self.closed += 1


class Elsewhere:
    """Another source of prices than Redis."""

    name = "elsewhere"
    after_s = 1.0

    def __init__(self) -> None:
        self.quotes: list[Quote] = []
        self.trades: list[Trade] = []

    def has(self, symbol: str) -> bool:
        return bool(symbol)

    async def latest(self, kind: Any, symbols: Sequence[str]) -> Iterable[Any]:
        found: list[Any] = [*self.quotes] if kind is QUOTES else [*self.trades]
        return [one for one in found if one.symbol in symbols]


@attrs.define
class Bench:
    tracker: PnlTracker
    source: FakePositions
    prices: FakePrices
    keys: FakeKeys
    clock: VirtualClock
    elsewhere: Elsewhere

    async def row(self) -> tuple[str, Any]:
        (row,) = (await self.tracker.report()).positions
        return row.status, row.current_price


@pytest.fixture
def bench() -> Iterator[Bench]:
    with open_bench(VirtualClock()) as found:
        yield found


@contextmanager
def open_bench(
    clock: VirtualClock,
    market_clock: MarketClock | None = None,
    mark: Literal["mid", "last", "exit"] = "mid",
) -> Iterator[Bench]:
    prices, keys, elsewhere = FakePrices(), FakeKeys(), Elsewhere()
    source = FakePositions([Position("AAPL", Decimal(10), Decimal(150))])
    engine = PnlEngine(stale_after_s=60, price_ttl_s=300, mark=mark)
    tracker = PnlTracker(
        PositionCache(source, 5.0, clock),
        keys,  # type: ignore[arg-type]
        prices.open,  # type: ignore[arg-type]
        engine,
        None,
        "live",
        clock,
        Risk(Limits(()), engine, keys, clock),  # type: ignore[arg-type]
        market_clock=market_clock,
        missing=MissingPrices(engine, [elsewhere]),
    )
    yield Bench(tracker, source, prices, keys, clock, elsewhere)
    prices.close()


def instance(name: str, *, delay_s: float = 0.0) -> Instance:
    return Instance(name, 0, "host", 1, "iex", delay_s, 300.0, "2026-11-20T15:00:00Z")


async def test_a_live_answer_has_the_prices_of_the_events(
    autojump_clock: Any, bench: Bench
) -> None:
    bench.keys.error = StoreUnavailable("not asked")
    async with bench.tracker.running():
        assert await bench.row() == ("unpriced", None)
        bench.prices.send("AAPL", 187, bench.clock.utc_ns())
        await anyio.sleep(0.1)
        assert await bench.row() == ("live", 187)
        assert bench.tracker.warnings() == []
        await anyio.sleep(61)
        assert await bench.row() == ("stale", 187)


async def test_outside_of_running_an_answer_reads_the_keys(
    autojump_clock: Any, bench: Bench
) -> None:
    at_ns = bench.clock.utc_ns()
    bench.keys.found["AAPL"] = Quote("AAPL", 100, 100, 1, 1, at_ns, at_ns)
    assert await bench.row() == ("live", 100)
    bench.keys.error = StoreUnavailable("Redis is away")
    assert await bench.row() == ("live", 100)
    assert bench.tracker.warnings() == ["the prices are out of date: Redis is away"]
    bench.keys.error = None
    del bench.keys.found["AAPL"]
    assert await bench.row() == ("stale", 100)
    assert bench.tracker.warnings() == []


@pytest.mark.parametrize("mark", ["mid", "last", "exit"])
async def test_a_price_that_redis_never_had_is_live_by_its_age(
    autojump_clock: Any, mark: Literal["mid", "last", "exit"]
) -> None:
    with open_bench(VirtualClock(), mark=mark) as bench:
        at_ns = bench.clock.utc_ns()
        bench.elsewhere.quotes.append(Quote("AAPL", 100, 100, 1, 1, at_ns, at_ns))
        bench.elsewhere.trades.append(Trade("AAPL", 100.0, 1, "V", ("@",), "C", 1, at_ns, at_ns))
        async with bench.tracker.running():
            await anyio.sleep(30)
            for _ in range(2):
                await bench.tracker.read_keys()
                assert await bench.row() == ("live", 100)
            await anyio.sleep(31)
            assert await bench.row() == ("stale", 100)


async def test_a_price_is_stale_once_its_key_has_gone(autojump_clock: Any) -> None:
    with open_bench(VirtualClock()) as bench:
        at_ns = bench.clock.utc_ns()
        quote = Quote("AAPL", 100, 100, 1, 1, at_ns, at_ns)
        bench.elsewhere.quotes.append(quote)
        async with bench.tracker.running():
            await anyio.sleep(10)
            bench.keys.found["AAPL"] = attrs.evolve(quote)
            await bench.tracker.read_keys()
            assert await bench.row() == ("live", 100)
            await anyio.sleep(1)
            del bench.keys.found["AAPL"]
            await bench.tracker.read_keys()
            assert await bench.row() == ("stale", 100)


async def test_the_services_delay_is_allowed_for(autojump_clock: Any, bench: Bench) -> None:
    at_ns = bench.clock.utc_ns() - 100 * 1_000_000_000
    bench.keys.found["AAPL"] = Quote("AAPL", 100, 100, 1, 1, at_ns, at_ns)
    assert await bench.row() == ("stale", 100)
    bench.keys.service = instance("a", delay_s=900)
    assert await bench.row() == ("live", 100)


async def test_a_stream_hears_at_once_that_the_service_is_delayed(
    autojump_clock: Any, bench: Bench
) -> None:
    async with bench.tracker.running():
        await anyio.sleep(0.1)
        bench.prices.send("AAPL", 100, bench.clock.utc_ns() - 100 * 1_000_000_000)
        await anyio.sleep(0.1)
        updates = bench.tracker.updates(rows_of, lambda: False)
        assert [row.status for row in (await anext(updates)).positions] == ["stale"]
        bench.prices.service = instance("a", delay_s=900)
        with anyio.fail_after(2):
            assert [row.status for row in (await anext(updates)).positions] == ["live"]
        await updates.aclose()  # type: ignore[attr-defined]


async def test_services_that_write_the_same_keys_are_counted(
    autojump_clock: Any, bench: Bench
) -> None:
    async with bench.tracker.running():
        await anyio.sleep(0.1)
        assert bench.tracker.warnings() == []
        bench.prices.others = [instance("b"), instance("c")]
        (warning,) = bench.tracker.warnings()
        assert warning.startswith("3 services")


async def test_positions_that_are_never_priced_are_named(autojump_clock: Any, bench: Bench) -> None:
    def odd(number: int) -> Position:
        return Position(f"S{number}", Decimal(1), Decimal(1), problem="not a stock")

    await bench.tracker.report()
    assert bench.tracker.unusable() is None
    for count, named in ((1, "1 position is"), (2, "2 positions are"), (21, "and 1 more")):
        bench.source.set(*map(odd, range(count)))
        await anyio.sleep(6)
        await bench.tracker.report()
        text = bench.tracker.unusable()
        assert text is not None
        assert named in text
        assert "S0 (not a stock)" in text
    assert "S20" not in text


@pytest.mark.parametrize("way", ["end", "error", "cancelled"])
async def test_it_closes_its_connections_however_the_block_ends(
    autojump_clock: Any, bench: Bench, way: str
) -> None:
    with anyio.CancelScope() as scope, suppress(ExceptionGroup):
        async with bench.tracker.running():
            await anyio.sleep(1)
            if way == "error":
                raise LookupError
            if way == "cancelled":
                scope.cancel()
                await anyio.sleep(1)
    assert (bench.keys.closed, bench.source.closed) == (1, 1)


S_NS = 10**9
CLOSES_NS = 1_795_208_400 * S_NS
"""The close of 20 November 2026."""


def announcing(market: Market | None, name: str = "a") -> Instance:
    return msgspec.structs.replace(instance(name), market=market)


def hours(clock: VirtualClock, *, is_open: bool, change_in_s: int) -> Market:
    soon, later = (format_ns(clock.utc_ns() + s * S_NS) for s in (change_in_s, 86_400))
    return Market(is_open, later, soon) if is_open else Market(is_open, soon, later)


async def test_the_markets_hours_are_those_that_the_service_announces(
    autojump_clock: Any, bench: Bench
) -> None:
    async with bench.tracker.running():
        await anyio.sleep(0.1)
        bench.prices.send("AAPL", 100, bench.clock.utc_ns())
        await anyio.sleep(62)
        assert (await bench.tracker.report()).market is None
        assert await bench.row() == ("stale", 100)
        market = hours(bench.clock, is_open=False, change_in_s=300)
        bench.prices.service = announcing(market)
        await anyio.sleep(2)
        assert (await bench.tracker.report()).market == market
        bench.prices.service = announcing(None, "b")
        await anyio.sleep(200)
        assert (await bench.tracker.report()).market == market, "until the market opens by it"
        await anyio.sleep(100)
        assert (await bench.tracker.report()).market is None


async def test_the_last_prices_are_confirmed_after_the_close(
    autojump_clock: Any, bench: Bench
) -> None:
    """A live subscriber does not see that the key of a quiet symbol is still there."""
    bench.clock.step((CLOSES_NS - bench.clock.utc_ns()) / S_NS - 60)
    async with bench.tracker.running():
        await anyio.sleep(0.1)
        at_ns = bench.clock.utc_ns()
        bench.prices.send("AAPL", 100, at_ns)
        await anyio.sleep(120)
        bench.prices.service = announcing(hours(bench.clock, is_open=False, change_in_s=3_600))
        await anyio.sleep(10)
        assert await bench.row() == ("stale", 100), "nothing says that it is the last price"
        bench.keys.found["AAPL"] = Quote("AAPL", 100, 100, 1, 1, at_ns, at_ns)
        await anyio.sleep(10)
        assert await bench.row() == ("closed", 100)


async def test_the_markets_own_clock_comes_first(autojump_clock: Any) -> None:
    clock = VirtualClock()
    async with open_simulator(SimulatorConfig(rate=0), port=None, clock=clock) as simulator:
        http = HttpClient(SimulatorTransport(simulator))
        market_clock = MarketClock(simulator.rest_url, {}, http, "is not known")
        simulator.market_open = False
        simulator.refuse_rest(503)
        with open_bench(clock, market_clock) as bench:
            async with bench.tracker.running():
                others = hours(clock, is_open=True, change_in_s=300)
                bench.prices.service = announcing(others)
                await anyio.sleep(5)
                assert (await bench.tracker.report()).market == others
                await anyio.sleep(10)
                found = (await bench.tracker.report()).market
                assert found is not None
                assert not found.is_open
                bench.prices.service = None
                own = hours(clock, is_open=False, change_in_s=300)
                assert own.next_open is not None
                assert own.next_close is not None
                simulator.set_market_hours(own.next_open, own.next_close)
                await anyio.sleep(15)
                simulator.refuse_rest(503, times=1_000)
                await anyio.sleep(200)
                assert (await bench.tracker.report()).market == own, "until it opens by it"
                await anyio.sleep(400)
                assert (await bench.tracker.report()).market is None


@pytest.mark.parametrize(("qty", "limit"), [(100, "AAPL day_pnl < 0"), (-5, "AAPL day_pnl > 200")])
async def test_limits_see_a_fill_and_its_position_together(
    autojump_clock: Any, qty: int, limit: str
) -> None:
    clock, events = VirtualClock(), []
    held = Position("AAPL", Decimal(10), Decimal(150), lastday_price=Decimal(100))
    cache = PositionCache(FakePositions([held]), 5.0, clock)
    engine = PnlEngine(stale_after_s=60, price_ttl_s=300)
    redis: Any = FakeStarts()
    tracker = PnlTracker(
        cache,
        redis,
        nothing_answers,
        engine,
        None,
        "live",
        clock,
        Risk(make_limits([limit], ()), engine, redis, clock),
        follow_fills=events.append,  # type: ignore[arg-type]
        account=FakeAccount(),  # type: ignore[arg-type]
    )
    (fill_came,) = events
    assert tracker.day is not None
    await tracker.current_positions()
    await tracker.day.poll()
    now_ns = clock.utc_ns()
    engine.update(Quote("AAPL", 120, 120, 1, 1, now_ns, now_ns), now_ns)
    await anyio.sleep(1)
    update = TradeUpdate(
        "fill",
        clock.utc_ns(),
        "AAPL",
        "order",
        "execution",
        "buy" if qty > 0 else "sell",
        Decimal(abs(qty)),
        Decimal(120),
        Decimal(10 + qty),
    )
    cache.apply(update)
    await fill_came(update)
    assert (engine.totals.day_pnl, engine.positions[0].qty) == (200, 10 + qty)
    assert not tracker.risk.is_tripped
