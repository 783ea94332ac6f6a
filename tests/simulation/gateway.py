"""A gateway in the simulation: the account trades, and P&L and limits follow its fills.

The tracker is the gateway's own. It has positions, balances and activities from the simulated REST
and trade updates from the simulated stream, all with faults, and prices from the simulated store:
those of the simulated service, and where that follows only stocks, quotes of crypto and options as
another service writes them. At the end every figure is recounted from the account's own records and
the prices in the store.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from decimal import ROUND_UP, Decimal, localcontext
from fractions import Fraction
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Self, cast

import anyio
import attrs
import httpx

from mdservice.client.reader import Prices
from mdservice.errors import StoreUnavailable
from mdservice.feed.alpaca.login import Credentials
from mdservice.feed.alpaca.rest import AlpacaHistory
from mdservice.gateway.missing_prices import AlpacaPrices, MissingPrices
from mdservice.gateway.redis_calls import RedisCalls
from mdservice.gateway.risk import Risk, make_limits
from mdservice.gateway.tracker import Came, PnlTracker
from mdservice.model.feeds import CRYPTO, OPTIONS, STOCKS, Feed
from mdservice.model.kinds import QUOTES, TRADES, Kind, R, RecordDecoder
from mdservice.model.position import Position
from mdservice.model.quote import Quote
from mdservice.model.symbol import is_option, without_slash
from mdservice.model.timestamps import format_ns
from mdservice.model.trade import Trade
from mdservice.pnl.breaker import Breaker, decode_breaker, encode_breaker
from mdservice.pnl.day import SymbolDay, new_york_date
from mdservice.pnl.engine import PnlEngine
from mdservice.positions.activities import AlpacaAccount
from mdservice.positions.cache import PositionCache
from mdservice.positions.sources import AlpacaPositions
from mdservice.positions.trading_stream import TradeUpdatesFollower, TradingStream
from mdservice.redis_io.names import BREAKER_KEY
from mdservice.runtime.market_clock import MarketClock
from mdservice.runtime.network import HttpClient
from mdservice.simulator import (
    CutRest,
    Drop,
    Duplicate,
    Freeze,
    GarbleRest,
    Lose,
    Mute,
    Refuse,
    RefuseRest,
    Reorder,
    Simulator,
    SlowRest,
    crypto,
    options,
)
from mdservice.simulator.assets import asset_of
from mdservice.simulator.http import RefusedRequest
from mdservice.simulator.orders import Leg, OrderRequest
from mdservice.simulator.transport import SimulatorTransport
from mdservice.simulator.wire import EXACT
from tests.pnl.limits_reference import LimitsReference, plain_state
from tests.pnl.reference import PlainRow, Reference, Whole, realized
from tests.simulation.account import OPTIONS_HELD, PAIRS_HELD
from tests.simulation.contracts_end import end_contracts
from tests.simulation.hours import hours_of
from tests.simulation.last_trades import LastLimits, OtherTrades, TradesHeard, counts
from tests.simulation.names import STATIC
from tests.simulation.plan import PRICE_TTL_S, Trading
from tests.simulation.streams import TrioStream

if TYPE_CHECKING:
    from tests.simulation.world import World

__all__ = ["SimulatedGateway"]

_INTERVAL_S: Final = 8.0
"""Between two reconciliations, so that most changes come by events alone."""
_REFUSED_AT_MOST_S: Final = 330.0
"""A refused login is tried again after five minutes at the latest."""
_LOOK_S: Final = 1.0
_WATCH_S: Final = 0.25
_STALE_AFTER_S: Final = 60
_PAIR: Final = PAIRS_HELD[0]
_OPTION: Final = OPTIONS_HELD[0]
_TRADED: Final = (*STATIC, _PAIR, _OPTION)
"""What the account trades."""
_PUT: Final = "AAPL261218P00210000"
"""It trades this too where options are ordered in pairs."""
_SIZES: Final = {
    _PAIR: tuple(map(Decimal, ("0.01", "0.002", "0.1", "0.0375"))),
    _OPTION: tuple(map(Decimal, (1, 2, 5))),
}
_SHARES: Final = (Decimal(1), Decimal(10), Decimal(40), Decimal("0.5"))
LIMITS: Final = (
    *("* qty > 60", "* value > 8000", "* pnl < -150", "* day_pnl < -150", "SPY price > 250"),
    *("SPY day_pnl < -50", "total pnl < -400", "total exposure > 25000", "total value > 20000"),
    *("total pct < -2", "total day_pnl < -400"),
)
_QUOTED_EVERY_S: Final = 1.5
"""Mean time between two quotes of another service."""
_EVENING_S, _MORNING_S = 12.0, 60.0
"""Before the account's day ends, every event and activity of its trades comes; and how soon a
gateway has the last closes afterwards, unless something is wrong with it."""
_DAY_KNOWN_S: Final = 40.0
"""How soon after the last fill the day is known and agrees with the equity: the activities are read
after 5 s, and a difference of the equity is looked at twice. Fills from the stream that no list has
would be dropped only after 120 s."""
_GRACE_S: Final = 3.0
"""How soon a difference that a poll has found is reported, since its event may come late."""
_ENDS: Final = 0.5
"""How often contracts end with the day."""
_MOMENT_S: Final = 1e-6
_S_NS: Final = 1_000_000_000
_CENT: Final = Fraction(1, 100)
_CENTS: Final = Decimal("0.01")
_ZERO: Final = Decimal(0)
_POSITIONS: Final = "/v2/positions"
_CLOCK: Final = "/v2/clock"
_HOURS_KNOWN_S: Final = 30.0
"""How soon the gateway knows the market's hours: it asks each ten seconds."""
_ROLL_LIMIT_S: Final = 3.0
"""How long after midnight the last closes and the average prices may be those of before."""
_ACTIVITIES: Final = "/v2/account/activities"
_CREDENTIALS: Final = Credentials("key", "secret")
_DAY_START: Final = "day start"


class SimulatedGateway:
    """The account's trades, the gateway that follows them, and the recount."""

    def __init__(self, world: World, trading: Trading) -> None:
        self.fixed = False
        """Whether the account trades no more."""
        self.tracker: PnlTracker
        self.cache: PositionCache
        self.reader: _Reader | None = None
        self._world = world
        self._trading = trading
        self._rng = random.Random(f"{world.plan.seed}/gateway")
        self._more = random.Random(f"{world.plan.seed}/gateway, newer")
        self._traded = (*_TRADED, _PUT) if trading.has_options else _TRADED
        self._hours = list(hours_of(trading.turn))
        """The market's, as they become; the first ones are over once the turn has come."""
        self._qty: dict[str, Decimal] = {}
        """What the account holds by its own trades."""
        self._past: dict[str, list[Decimal]] = {symbol: [_ZERO] for symbol in self._traded}
        """What it has held, the oldest first."""
        self._reached: dict[str, int] = {}
        """How far in it the present gateway is."""
        self._tripped = False
        """Whether the present gateway's breaker was tripped."""
        self._today: dict[str, list[tuple[Decimal, Decimal]]] = {}
        """The quantities and prices of its trades since the last day's end."""
        self._ended: Counter[str] = Counter()
        """How many of these are no trades, but contracts that ended."""
        self._morning = ""
        """When the last day ended, RFC 3339."""
        self._start: dict[str, tuple[Decimal, Decimal]] = {}
        """Quantities and average prices at the last day's end."""
        self._fees = _ZERO
        """Dollars since then."""
        self._night = False
        """Whether the day ends, so that the account does not trade."""
        self._knows_closes = True
        """Whether the gateway had the last closes before the first trade after them."""
        self._forgot = False
        """Whether the gateway, or the store, began with nothing since the last day's end."""
        self._scope: anyio.CancelScope | None = None
        self._follower: TradeUpdatesFollower | None = None
        self._heard: dict[str, _Heard] = {}
        self._trades = TradesHeard()
        """What the present gateway was told of trades."""
        self._found: list[Quote] = []
        """Quotes that the present gateway has from elsewhere than Redis."""
        self._calls = _Calls(world, self._note, self._note_gone, self._note_key)
        self._tasks: Any = None

    def past(self, symbol: str) -> Sequence[Decimal]:
        """What the account has held of a symbol, the oldest first."""
        return self._past[symbol]

    async def run(self) -> None:
        """Trade, break things and run gateways until cancelled."""
        async with anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self._trade_on)
            self._tasks.start_soon(self._break_things)
            self._tasks.start_soon(self._watch)
            if self._world.account is None:
                self._tasks.start_soon(self._quote_others)
            if self._trading.has_options:
                self._tasks.start_soon(self._quote_put)
                self._tasks.start_soon(self._trade_pairs)
                self._world.sim.market_open = self._hours[0].is_open
            if self._trading.mark == "last":
                self._tasks.start_soon(OtherTrades(self._world, self._traded).run)
            if self._trading.turn is not None:
                self._tasks.start_soon(self._turn)
            while True:
                with anyio.CancelScope() as self._scope:
                    await self._live()
                await anyio.sleep(self._rng.choice((0.0, 0.3, 3.0)))

    # The gateway

    async def _live(self) -> None:
        world = self._world
        clock = world.market_clock
        transport = _Transport(cast("Simulator", world.leftovers))
        http, url = HttpClient(transport=transport), world.sim.rest_url
        source = AlpacaPositions(url, "key", "secret", http)
        cache = PositionCache(source, _INTERVAL_S, clock)
        engine = PnlEngine(
            stale_after_s=_STALE_AFTER_S,
            price_ttl_s=PRICE_TTL_S,
            max_spread=self._trading.max_spread,
            mark=self._trading.mark,
        )
        calls = cast("RedisCalls", self._calls)
        risk = Risk(make_limits(LIMITS, ()), engine, calls, clock)
        self._heard, self._reached, self._tripped = {}, {}, False
        self._found.clear()
        self._trades = TradesHeard()
        self._forgot = True
        stream = TradingStream(
            world.sim.stream_url("trading"), "key", "secret", open_stream=self._dial
        )

        def follow(came: Came) -> TradeUpdatesFollower:
            self._follower = TradeUpdatesFollower(stream, cache, came, clock)
            return self._follower

        histories = (
            (feed, AlpacaHistory(url, variant, _CREDENTIALS, clock, http=http, feed=feed))
            for feed, variant in ((STOCKS, "simulator"), (CRYPTO, "us"), (OPTIONS, "indicative"))
        )
        tracker = PnlTracker(
            *(cache, calls, self._open_prices, engine, None, "live", clock, risk),
            http=http,
            follow_fills=follow,
            market_clock=(
                MarketClock(url, {}, http, "is not known") if self._trading.has_options else None
            ),
            missing=MissingPrices(engine, [_Noted(*each, self._note_found) for each in histories]),
            account=AlpacaAccount(url, "key", "secret", http),
        )
        self.tracker, self.cache = tracker, cache
        async with tracker.running():
            await anyio.sleep_forever()

    async def _dial(self) -> TrioStream:
        await anyio.lowlevel.checkpoint()
        return TrioStream(self._world.leftovers.connect())

    @asynccontextmanager
    async def _open_prices(self) -> AsyncIterator[Prices]:
        await anyio.lowlevel.checkpoint()
        trades = self._note_trade if self._trading.mark == "last" else None
        async with _Reader(self._world, self._note, trades) as reader:
            self.reader = reader
            yield cast("Prices", reader)

    def _note_found(self, quote: Quote) -> None:
        """Note a quote from elsewhere than Redis, which needs no key."""
        self._note(quote)
        self._found.append(quote)

    def _note_trade(self, record: Any) -> None:
        self._trades.take(record, self._world.market_clock.utc_ns())

    def _note_key(self, symbol: str, trade: Trade | None) -> None:
        self._trades.take_key(symbol, trade, self._world.market_clock.utc_ns())

    def _note_gone(self, symbol: str) -> None:
        if (heard := self._heard.get(symbol)) is not None:
            heard.go(self._world.market_clock.utc_ns())

    def _note(self, quote: Quote) -> None:
        heard = self._heard.setdefault(quote.symbol, _Heard(self._trading.max_spread))
        heard.add(quote, self._world.market_clock.utc_ns())

    # The account

    async def _trade_on(self) -> None:
        while True:
            await anyio.sleep(self._rng.expovariate(1 / self._trading.pause_s))
            if not self.fixed and not self._world.market.calm:
                self.trade(self._rng.choice(_TRADED))

    async def _trade_pairs(self) -> None:
        while True:
            await anyio.sleep(self._more.expovariate(1 / (2 * self._trading.pause_s)))
            if not self.fixed and not self._world.market.calm:
                self.trade_pair()

    def trade_pair(self) -> None:
        """One order with two legs, filled at once; nothing happens where it is refused."""
        if self._night:
            return
        rng, sim = self._more, self._world.sim
        sides: list[Any] = ["buy", "sell"]
        legs = tuple(
            Leg(symbol, Decimal(rng.choice((1, 1, 2))), side=rng.choice(sides))
            for symbol in rng.sample((_OPTION, _PUT), 2)
        )
        request = OrderRequest(
            type="market",
            time_in_force="day",
            order_class="mleg",
            qty=Decimal(rng.choice((1, 2))),
            legs=legs,
        )
        now_ns = self._world.market_clock.utc_ns()
        try:
            order = sim._orders.submit(request, now_ns)
        except RefusedRequest:
            return
        assert not order.is_open
        for trade in list(sim.trades)[-len(legs) :]:
            self._book(trade.symbol, trade.qty, trade.price)
        self._world.trace(f"trade {[f'{leg.side} {leg.symbol}' for leg in legs]}")

    def trade(self, symbol: str) -> None:
        """One order, filled at once: it opens, adds, reduces, closes or turns a position."""
        held = self._qty.get(symbol, Decimal(0))
        changes = [sign * size for size in _SIZES.get(symbol, _SHARES) for sign in (1, -1)]
        if held:
            changes += [-held, -held, -2 * held]
        qty = self._rng.choice(changes)
        if symbol in STATIC and (held + qty) % 1 and held + qty < 0:
            return  # a fraction of a share cannot be short
        if self._night:
            return
        try:
            trade = self._world.sim.trade(symbol, qty)
        except ValueError:
            return
        self._book(symbol, qty, trade.price)
        self._world.trace(f"trade {symbol} {qty}")

    def _book(self, symbol: str, qty: Decimal, price: Decimal) -> None:
        """Note a trade in the account's own records."""
        self._hold(symbol, qty, price)
        if qty < 0:
            value = -qty * price * asset_of(symbol).multiplier
            self._fees += (value * self._trading.sale_fee).quantize(_CENTS, ROUND_UP)

    def _hold(self, symbol: str, qty: Decimal, price: Decimal) -> None:
        self._qty[symbol] = held = self._qty.get(symbol, _ZERO) + qty
        self._past[symbol].append(held)
        self._today.setdefault(symbol, []).append((qty, price))

    def _end_contracts(self) -> None:
        """Some contracts of an option end, after the day's last trade."""
        now_ns = self._world.market_clock.utc_ns()
        for symbol in self._more.sample((_OPTION, _PUT), 2):
            date = new_york_date(now_ns)
            ended = end_contracts(self._world.sim, symbol, self._more, now_ns, date)
            if ended is None:
                continue
            for name, qty, price in ended.changes:
                self._hold(name, qty, price)
                self._ended[name] += 1
            self._world.faults_injected[f"option_{ended.how}"] += 1
            self._world.trace(f"{ended.how} of {symbol}: {ended.changes}")
            return

    async def _quote_put(self) -> None:
        """Quote the other option, which no service follows, as another service does."""
        rng, world = self._more, self._world
        cents = int(asset_of(_PUT).start_price * 100)
        for number in count(1):
            await anyio.sleep(rng.expovariate(1 / _QUOTED_EVERY_S / 2))
            cents = max(5, cents + rng.randrange(-9, 10))
            bid, ask = cents / 100, (cents + rng.randrange(9)) / 100
            bid, ask = rng.choice([(bid, ask)] * 16 + [(0.0, ask), (bid, 0.0), (0.0, 0.0)])
            now_ns = world.market_clock.utc_ns()
            record = options.SimOptionQuote(_PUT, bid, ask, ts_event_ns=now_ns)
            world.sim.send_records(options.QUOTES, [record])
            world.store.put_quote(Quote(_PUT, bid, ask, 1, 1, now_ns, now_ns, number))

    async def _quote_others(self) -> None:
        """Quote what the service does not follow, as another service does."""
        rng, world = self._rng, self._world
        cents = {symbol: int(asset_of(symbol).start_price * 100) for symbol in (_PAIR, _OPTION)}
        for number in count(1):
            await anyio.sleep(rng.expovariate(1 / _QUOTED_EVERY_S))
            symbol = rng.choice((_PAIR, _OPTION))
            step = max(1, cents[symbol] // 500)
            cents[symbol] = max(5, cents[symbol] + rng.randrange(-step, step + 1))
            bid, ask = cents[symbol] / 100, (cents[symbol] + rng.randrange(step + 1)) / 100
            bid, ask = rng.choice(
                [(bid, ask)] * 16 + [(0.0, ask), (bid, 0.0), (0.0, 0.0), (bid, 2 * ask)]
            )
            now_ns = world.market_clock.utc_ns()
            if symbol == _PAIR:
                pair = crypto.SimPairQuote(symbol, bid, ask, ts_event_ns=now_ns)
                world.sim.send_records(crypto.QUOTES, [pair])
            else:
                option = options.SimOptionQuote(symbol, bid, ask, ts_event_ns=now_ns)
                world.sim.send_records(options.QUOTES, [option])
            world.store.put_quote(Quote(symbol, bid, ask, 1, 1, now_ns, now_ns, number))

    # What goes wrong

    async def _break_things(self) -> None:
        rng, world = self._rng, self._world
        while world.faults_over_s is None:
            await anyio.sleep(rng.expovariate(1 / world.plan.fault_pause_s))
            if world.faults_over_s is not None:
                return
            faults = (*_FAULTS, *_NEWER) if self._trading.has_options else _FAULTS
            name, break_it = rng.choice(faults)
            break_it(self)
            world.faults_injected[name] += 1
            world.trace(f"fault {name}")

    def inject(self, fault: Any) -> None:
        """Put a fault of the simulator into force on the trading stream."""
        self._world.sim.inject(fault, feed="trading")

    def spoil(self, fault: Any) -> None:
        """Put a fault into force, and trade while it is."""
        self.inject(fault)
        for _ in range(self._rng.randrange(3)):
            self.trade(self._rng.choice(_TRADED))

    def repeat(self) -> None:
        """Send an event again that has come today, behind newer ones."""
        sim = self._world.sim
        today = [each for each in sim.trade_updates if each["timestamp"] > self._morning]
        if today:
            sim.send_trade_update(self._rng.choice(today))

    def refuse(self) -> None:
        """Refuse the next login, and end the connection."""
        self.inject(Refuse(402, "auth", 2))
        self.inject(Drop("reset", 1001))

    def end_day(self) -> None:
        """The account's day ends: average prices and the last closes change without an event."""
        if not self._night and self._trading.turn != "midnight":
            self._night = True
            self._tasks.start_soon(self._end_day)

    async def _end_day(self) -> None:
        """End the day between its last event and the first of the next one, as a night does.

        The date stays the same, so that a fill of which only the stream told would count today.
        """
        world = self._world
        await anyio.sleep(_EVENING_S)
        day = self.tracker.day
        if day is not None and not any(day._book._unlisted.values()):
            if self._trading.has_options and self._more.random() < _ENDS:
                self._end_contracts()
            world.sim.end_day()
            world.store.forget(_DAY_START)  # it has another date in the morning
            await self._begin_day()
        self._night = False

    async def _begin_day(self) -> None:
        """Another day begins: nothing of the one before counts."""
        world = self._world
        world.trace("the day has ended")
        self._today.clear()
        self._ended.clear()
        self._morning = format_ns(world.market_clock.utc_ns())
        self._fees = _ZERO
        self._forgot = False
        self._start = {
            held.symbol: (held.qty, held.avg_entry_price) for held in world.sim.positions
        }
        with anyio.move_on_after(_MORNING_S) as scope:
            while not self._has_closes():
                await anyio.sleep(_LOOK_S)
        self._knows_closes = not scope.cancelled_caught

    async def _turn(self) -> None:
        """The market opens or closes, or midnight comes in New York."""
        world, turn = self._world, self._trading.turn
        ends = turn == "midnight" and self._more.random() < _ENDS
        if ends:  # after the last trade, whose events may still be on their way
            await anyio.sleep_until(self._trading.turns_at_s - 1.0)
            self._night = True
            self._end_contracts()
        await anyio.sleep_until(self._trading.turns_at_s + _MOMENT_S)
        world.trace(f"New York: {turn}")
        world.faults_injected[f"turn_{turn}"] += 1
        del self._hours[0]
        world.sim.market_open = self._hours[0].is_open
        if turn == "midnight":
            self._night = True
            await anyio.sleep(self._more.uniform(0.0, _ROLL_LIMIT_S))
            world.sim.end_day()
            await self._begin_day()
            self._night = False

    def _has_closes(self) -> bool:
        """Whether the gateway has noted and kept what the account holds in the morning."""
        day, account = self.tracker.day, self._world.sim._paper_account
        if day is None or not day.is_known or day._unsaved:
            return False
        held = {asset_of(each.symbol).position_symbol: each for each in self._world.sim.positions}
        starts = day._book.starts
        return (
            all(
                key in starts
                and starts[key].lastday_price == account.lastday_price(each.symbol)
                and starts[key].qty == each.qty
                and starts[key].avg_entry_price == each.avg_entry_price
                for key, each in held.items()
            )
            and not day._book.keys
        )

    def restart(self) -> None:
        """Another gateway takes the place of this one."""
        if self._scope is not None:
            self._scope.cancel()

    # The recount

    async def _watch(self) -> None:
        """No quantity is one that the account never had, or goes back to an earlier one."""
        while True:
            await anyio.sleep(_WATCH_S)
            self._tripped = self._tripped or self.tracker.risk.is_tripped
            if self._trading.has_options:
                self._watch_hours()
            if not self.cache.answers:
                continue
            told = {each.symbol: each.qty for each in self.cache.positions}
            for symbol, past in self._past.items():
                qty, since = told.get(without_slash(symbol), _ZERO), self._reached.get(symbol, 0)
                if qty in past[since:]:
                    self._reached[symbol] = past.index(qty, since)
                else:
                    self._world.violated(f"the gateway has {qty} of {symbol} after {past[since]}")
                    self._reached[symbol] = 0

    def _watch_hours(self) -> None:
        """A price is that of a closed market only where the market was closed, not so of crypto."""
        engine = self.tracker.engine
        for holding, _ in engine._places:
            if holding.status == "closed" and (
                holding.symbol == _PAIR or engine.market is None or engine.market.is_open
            ):
                self._world.violated(f"{holding.symbol} is closed, the hours {engine.market}")

    async def check_at_end(self, within_s: float) -> None:
        """All is as the account's own records and the store say; takes as long as said."""
        began_s = anyio.current_time()
        await self._until_it_follows()
        while self._night:
            await anyio.sleep(_LOOK_S)
        await anyio.sleep(_INTERVAL_S + 0.5)
        for _ in range(4):
            self.trade(self._rng.choice(_TRADED))
            if self._trading.has_options:
                self.trade_pair()
            await anyio.sleep(1.0)
            self._check_quantities("a second after its fill")
        self.fixed = True
        if self._trading.has_options:
            await self._until_it_knows_the_hours()
        before, differed = dict(self._qty), self.cache.differed
        if self._trading.has_options and self._more.random() < _ENDS:
            self._end_contracts()
        await anyio.sleep(_INTERVAL_S + 0.5)
        self._check_quantities("after the last poll")
        await anyio.sleep(_GRACE_S)
        self._check_differences(before, differed)
        await self._until_the_day_agrees()
        await self._check_figures()
        await anyio.sleep(max(0.0, began_s + within_s - anyio.current_time()))

    async def _until_it_follows(self) -> None:
        with anyio.move_on_after(_REFUSED_AT_MOST_S):
            while (
                self._follower is None or self._follower.snapshot().state != "following"
            ) or self.cache.warning() is not None:
                await anyio.sleep(0.5)
            return
        self._world.violated(f"the gateway is not well: {self._follower}, {self.cache.warning()}")

    async def _until_it_knows_the_hours(self) -> None:
        with anyio.move_on_after(_HOURS_KNOWN_S):
            while self.tracker.engine.market != self._hours[0]:
                await anyio.sleep(_LOOK_S)
            return
        self._world.violated(f"the hours are {self.tracker.engine.market}, not {self._hours[0]}")

    def _check_quantities(self, when: str) -> None:
        told = {each.symbol: each.qty for each in self.cache.positions}
        own = {without_slash(symbol): qty for symbol, qty in self._qty.items() if qty}
        if told != own:
            self._world.violated(f"the gateway has {told} {when}, the account {own}")

    def _check_differences(self, before: Mapping[str, Decimal], differed: int) -> None:
        """What changed without an event since then is reported, and nothing else."""
        told, expected = self.cache.differences(), []
        for symbol, qty in self._qty.items():
            was = before.get(symbol, _ZERO)
            if was != qty:
                expected.append(
                    f"the position in {symbol} was {was.normalize():f} by its fills and is "
                    f"{qty.normalize():f} by its source, which counts"
                )
        if not set(told) >= set(expected) or self.cache.differed != differed + len(expected):
            self._world.violated(f"the differences are {told}, by the recount {expected}")

    async def _until_the_day_agrees(self) -> None:
        """Wait for the day as the account's own records have it."""
        with anyio.move_on_after(_DAY_KNOWN_S):
            while (wrong := self._wrong_day()) is not None:
                await anyio.sleep(_LOOK_S)
            return
        self._world.violated(f"the day: {wrong}")

    def _wrong_day(self) -> str | None:
        """What is wrong with the day's figures now, or None."""
        day, told = self.tracker.day, self.tracker.engine._days
        if day is None or told is None or not day.is_known or day.error is not None:
            return f"it is not known: {day and day.error}"
        if not self._knows_closes:
            return None
        own = self._days()
        for key in dict.fromkeys((*told, *own)):
            mine, recount = (days.get(key, SymbolDay(key)) for days in (told, own))
            if _of_day(mine) != _of_day(recount) or not _agree(mine.realized, recount.realized):
                return f"{mine}, by the recount {recount}"
        if day._book.fees != self._fees:
            return f"the fees are {day._book.fees}, by the recount {self._fees}"
        if not self._lacks_a_close() and not _agree(day.difference, _ZERO):
            return f"it differs by {day.difference} from the equity"
        return None

    def _lacks_a_close(self) -> bool:
        """Whether a gateway that began later cannot know the last close of what is gone."""
        days = self.tracker.engine._days or {}
        return self._forgot and any(
            not day.qty and day.units and day.lastday_price is None for day in days.values()
        )

    def _days(self) -> dict[str, SymbolDay]:
        """What the day's trades have changed, by the account's own records."""
        account, days = self._world.sim._paper_account, {}
        for symbol, trades in self._today.items():
            asset, (qty, average) = asset_of(symbol), self._start.get(symbol, (_ZERO, _ZERO))
            exact = [(Fraction(traded), Fraction(price)) for traded, price in trades]
            gain = realized(exact, Fraction(qty), Fraction(average)) * asset.multiplier
            traded = sum((each for each, _ in trades), _ZERO)
            with localcontext(EXACT):
                days[asset.position_symbol] = SymbolDay(
                    asset.position_symbol,
                    traded * asset.multiplier,
                    sum((each * price for each, price in trades), _ZERO) * asset.multiplier,
                    cast("Decimal", gain),
                    len(trades) - self._ended[symbol],
                    self._qty[symbol],
                    account.lastday_price(symbol),
                    start_qty=qty,
                )
        return days

    async def _check_figures(self) -> None:
        world = self._world
        while self.reader is None or not self.reader.is_done:
            await anyio.sleep(0.001)
        engine, now_ns = self.tracker.engine, world.market_clock.utc_ns()
        for symbol in self._traded:
            payload, heard = world.store.price(symbol), self._heard.get(symbol)
            if payload is not None and not (heard and heard.has(QUOTES.decode(payload))):
                world.violated(f"the gateway has {heard} of {symbol}, the store {payload!r}")
        reference = _Recount(
            _STALE_AFTER_S,
            PRICE_TTL_S,
            self._trading.mark,
            self._recounted(),
            days=None if engine._days is None else dict(engine._days),
            max_spread=self._trading.max_spread,
            heards=self._heard,
        )
        for heard in self._heard.values():
            for quote, heard_ns in heard.in_order():
                reference.update(quote, heard_ns)
        gone = [symbol for symbol, heard in self._heard.items() if heard.is_gone]
        if self._trading.mark == "last":
            gone = self._recount_trades(reference)
        reference.expire([each for each in gone if reference.mark(each) not in self._found])
        if self._trading.has_options:
            reference.set_market(self._hours[0], now_ns)
        told = Whole.of(engine.report(now_ns))
        told = attrs.evolve(told, rows=[row[:-1] for row in told.rows])  # no problem
        expected = reference.whole(now_ns)
        if told != expected:
            world.violated(f"the gateway's report is {told}, the recount {expected}")
        exposure = Fraction(engine.totals.exposure)
        if exposure != reference.exposure():
            world.violated(f"the exposure is {exposure}, by the recount {reference.exposure()}")
        if self._knows_closes and not self._lacks_a_close():
            pnl, own = engine.totals.day_pnl, reference.day(self._days())[1]
            if pnl is None or Fraction(pnl) != own:
                world.violated(f"the day's P&L is {pnl}, by the recount {own}")
        await self._check_limits(reference, now_ns)

    def _recount_trades(self, reference: _Recount) -> list[str]:
        """Give the recount the trades; returns the symbols whose keys are gone."""
        for symbol in self._traded:
            payload = self._world.store.get(f"{TRADES.key_prefix}{symbol}")
            newest = max((each.ts_event_ns for each in self._trades.standing[symbol]), default=0)
            kept = None if payload is None else TRADES.decode(payload)
            if kept is not None and counts(kept) and newest < kept.ts_event_ns:
                self._world.violated(f"the gateway has no trade of {symbol} as new as {kept}")
        reference.trades = [each for of in self._trades.standing.values() for each in of]
        reference.trades_heard = list(self._trades.heard_ns.items())
        return list(self._trades.gone)

    async def _check_limits(self, book: _Recount, now_ns: int) -> None:
        """The limits at the same moment; and soon the breaker, which stays tripped in the store."""
        world, limits = self._world, self.tracker.risk._limits
        judged_by = LastLimits if self._trading.mark == "last" else LimitsReference
        reference = judged_by(list(limits.rules), book, now_ns, book.days)
        limits.check(self.tracker.engine, now_ns)
        told = [plain_state(each) for each in limits.states(self.tracker.engine, now_ns)]
        if told != reference.states():
            world.violated(f"the limits are {told}, by the recount {reference.states()}")
        if limits.is_blind != reference.is_blind():
            world.violated(f"the limits are blind for {limits.blind()}")
        crossed = reference.crossed()
        if not {(one.rule, one.symbol) for one in limits.crossed()} >= crossed:
            world.violated(f"{limits.crossed()} are crossed, by the recount {crossed}")
        await anyio.sleep(2.0)
        payload = world.store.get(BREAKER_KEY)
        is_tripped = payload is not None and decode_breaker(payload).tripped
        if (crossed or self._tripped) and not is_tripped:
            world.violated(f"{crossed} are crossed, and the breaker is {payload!r}")

    def _recounted(self) -> list[Position]:
        """The positions by the account's own book, in its order.

        Their present price is that of the last poll, which may have become another one since.
        """
        account = self._world.sim._paper_account
        polled = {each.symbol: each.current_price for each in self.cache.positions}
        return [
            Position(
                asset_of(held.symbol).position_symbol,
                held.qty,
                held.avg_entry_price,
                Decimal(asset_of(held.symbol).multiplier),
                current_price=polled.get(asset_of(held.symbol).position_symbol),
                lastday_price=account.lastday_price(held.symbol),
                asset_class=asset_of(held.symbol).asset_class,
            )
            for held in account.book
        ]


_FAULTS: Final[Sequence[tuple[str, Callable[[SimulatedGateway], None]]]] = (
    ("trading_drop", lambda gateway: gateway.inject(Drop("reset", 1001))),
    ("trading_close", lambda gateway: gateway.inject(Drop("close", 1012))),
    ("trading_half", lambda gateway: gateway.inject(Drop("half-close", 1000))),
    ("trading_lost", lambda gateway: gateway.spoil(Lose(2))),
    ("trading_twice", lambda gateway: gateway.spoil(Duplicate(3))),
    ("trading_late", lambda gateway: gateway.spoil(Reorder(2))),
    ("trading_again", lambda gateway: gateway.repeat()),
    ("trading_mute", lambda gateway: gateway.spoil(Mute(6.0))),
    ("trading_freeze", lambda gateway: gateway.spoil(Freeze(6.0))),
    ("trading_refused", lambda gateway: gateway.refuse()),
    ("trading_away", lambda gateway: gateway.inject(Refuse(503, "upgrade", 2))),
    ("positions_refused", lambda gateway: gateway.inject(RefuseRest(503, 0, "no", _POSITIONS, 2))),
    ("positions_slow", lambda gateway: gateway.inject(SlowRest(3.0, _POSITIONS, 2))),
    ("positions_cut", lambda gateway: gateway.inject(CutRest(_POSITIONS, 1))),
    ("positions_garbled", lambda gateway: gateway.inject(GarbleRest(_POSITIONS, 1))),
    (
        "activities_refused",
        lambda gateway: gateway.inject(RefuseRest(503, 0, "no", _ACTIVITIES, 4)),
    ),
    ("activities_slow", lambda gateway: gateway.inject(SlowRest(3.0, _ACTIVITIES, 2))),
    ("activities_garbled", lambda gateway: gateway.inject(GarbleRest(_ACTIVITIES, 1))),
    ("positions_overnight", lambda gateway: gateway.end_day()),
    ("gateway_restart", lambda gateway: gateway.restart()),
)
_NEWER: Final[Sequence[tuple[str, Callable[[SimulatedGateway], None]]]] = (
    ("hours_refused", lambda gateway: gateway.inject(RefuseRest(503, 0, "no", _CLOCK, 2))),
    ("hours_slow", lambda gateway: gateway.inject(SlowRest(3.0, _CLOCK, 2))),
    ("hours_garbled", lambda gateway: gateway.inject(GarbleRest(_CLOCK, 1))),
)


@attrs.define
class _Heard:
    """The quotes of a symbol that a gateway has got and on which its price may depend."""

    _max_spread: float
    _kept: dict[str, tuple[int, Quote, int]] = attrs.Factory(dict)
    _count: int = 0
    lapsed: set[int] = attrs.Factory(set)
    """Those that ended by their key's time before the next quote came."""
    is_gone: bool = False
    """Whether its key is gone, and no quote has come since."""

    def go(self, now_ns: int) -> None:
        """Note that its key is gone, unless a quote came meanwhile."""
        self.is_gone = self._kept["newest"][2] < now_ns

    def add(self, quote: Quote, now_ns: int) -> None:
        """Keep it if it is the newest."""
        newest = self._kept.get("newest")
        if newest is not None and quote.ts_event_ns < newest[1].ts_event_ns:
            return
        if newest is not None and now_ns - newest[2] >= PRICE_TTL_S * _S_NS:
            self.lapsed.update(number for number, _, _ in self._kept.values())
        self._count += 1
        self.is_gone = False
        sides = {"bid": quote.bid, "ask": quote.ask, "both": quote.bid and quote.ask, "any": True}
        names = (
            [name for name, has in sides.items() if has] if _usable(quote, self._max_spread) else []
        )
        self._kept.update(dict.fromkeys(("newest", *names), (self._count, quote, now_ns)))

    def has(self, quote: Quote) -> bool:
        """Whether it is the newest, or REST has brought a newer one."""
        _, newest, _ = self._kept["newest"]
        return newest == quote or (not newest.seq and newest.ts_event_ns >= quote.ts_event_ns)

    def has_lapsed(self, quote: object) -> bool:
        """Whether the price of a quote that is kept ended, as nothing new came for so long."""
        return any(
            known is quote and number in self.lapsed for number, known, _ in self._kept.values()
        )

    def in_order(self) -> list[tuple[Quote, int]]:
        """Those quotes in the order in which they came, and when they did."""
        kept = {number: (quote, heard_ns) for number, quote, heard_ns in self._kept.values()}
        return [kept[number] for number in sorted(kept)]


@attrs.define
class _Recount(Reference):
    """With what today's fills add to the rows; each row is worked out once."""

    days: dict[str, SymbolDay] | None = attrs.Factory(dict)
    max_spread: float = 10.0
    heards: dict[str, _Heard] = attrs.Factory(dict)
    _rows: dict[tuple[int, int], PlainRow] = attrs.Factory(dict)

    def usable_of(self, symbol: str) -> list[Quote]:
        return [
            quote
            for quote, _ in self.heard
            if quote.symbol == symbol and _usable(quote, self.max_spread)
        ]

    def young(self, symbol: str, now_ns: int) -> bool:
        """A price that ended by its key's time stays so, whatever unusable quotes come after it."""
        heard = self.heards.get(symbol)
        if heard is not None and heard.has_lapsed(self.mark(symbol)):
            return False
        return Reference.young(self, symbol, now_ns)

    def row(self, position: Position, now_ns: int) -> PlainRow:
        key = id(position), now_ns
        if key not in self._rows:
            self._rows[key] = Reference.row(self, position, now_ns)
        return self._rows[key]

    def whole(self, now_ns: int) -> Whole:
        whole, (days, _, _) = Reference.whole(self, now_ns), self.day(self.days)
        rows = [(*row[:9], days[str(row[0])], *row[10:]) for row in whole.rows]
        of_rows = [days[str(row[0])] for row in rows]
        day = None if None in of_rows else sum(map(Fraction, map(str, of_rows)), Fraction())
        return attrs.evolve(whole, rows=rows, day=day)


def _usable(quote: Quote, max_spread: float) -> bool:
    """Whether it has a side, and is no stock's or pair's with too wide a spread."""
    if quote.bid and quote.ask and max_spread and not is_option(quote.symbol):
        bid, ask = Fraction(repr(quote.bid)), Fraction(repr(quote.ask))
        return abs(ask - bid) * 200 <= (bid + ask) * Fraction(repr(max_spread))
    return bool(quote.bid or quote.ask)


def _of_day(day: SymbolDay) -> tuple[object, ...]:
    return day.units, day.spent, day.fills, day.qty, day.start_qty


def _agree(told: Decimal | None, expected: Decimal | None) -> bool:
    """Whether both are known, and within a cent."""
    if told is None or expected is None:
        return False
    return abs(Fraction(told) - Fraction(expected)) <= _CENT


class _Transport(SimulatorTransport):
    """Each call is of another key: the trading API's do not count as the service's of data."""

    def __init__(self, simulator: Simulator) -> None:
        super().__init__(simulator)
        self._numbers = count()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.headers["APCA-API-KEY-ID"] = f"key {next(self._numbers)}"
        return await super().handle_async_request(request)


class _Noted(AlpacaPrices):
    """Notes the quotes that it finds."""

    def __init__(self, feed: Feed, history: AlpacaHistory, note: Callable[[Quote], None]) -> None:
        super().__init__(feed, history)
        self._note = note

    async def latest(self, kind: Kind[R], symbols: Sequence[str]) -> Iterable[R]:
        found = list(await super().latest(kind, symbols))
        for record in found:
            if isinstance(record, Quote):
                self._note(record)
        return found


class _Reader:
    """Reads the events of the store, after its keys; a lost connection ends it."""

    service = None

    def __init__(
        self,
        world: World,
        note: Callable[[Quote], None],
        note_trade: Callable[[Any], None] | None = None,
    ) -> None:
        self._world = world
        self._note = note
        self._note_trade = note_trade
        self._decoder = RecordDecoder(QUOTES, (*_TRADED, _PUT))
        self._quotes: deque[Any] = deque()
        self._came = anyio.Event()
        self._lost = False

    @property
    def is_done(self) -> bool:
        """Whether it is connected, and all that was read is taken."""
        return self in self._world.store.readers and not self._quotes

    async def __aenter__(self) -> Self:
        store = self._world.store
        if store.down:
            raise StoreUnavailable("the store is down")
        store.readers.append(self)
        for payload in map(store.price, (*_TRADED, _PUT)):
            self.take([] if payload is None else [payload])
        for symbol in (*_TRADED, _PUT):
            payload = store.get(f"{TRADES.key_prefix}{symbol}")
            if payload is not None:
                self.take_record(TRADES, payload)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._world.store.readers.remove(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        while not self._quotes:
            if self._lost or self._world.store.down:
                raise StoreUnavailable("the connection was lost")
            with anyio.move_on_after(_LOOK_S):
                await self._came.wait()
        record = self._quotes.popleft()
        if isinstance(record, Quote):
            self._note(record)
        elif self._note_trade is not None:
            self._note_trade(record)
        return record

    def take(self, payloads: Iterable[bytes]) -> None:
        """Events, or keys."""
        self._quotes.extend(self._decoder.decode_all(payloads))
        self._wake()

    def take_record(self, kind: Kind[Any], payload: bytes) -> None:
        """An event about a trade, or its key; nothing where trades are not followed."""
        if self._note_trade is not None:
            self._quotes.append(RecordDecoder(kind).decode(payload))
            self._wake()

    def lose(self) -> None:
        """The server has restarted."""
        self._lost = True
        self._wake()

    def _wake(self) -> None:
        self._came.set()
        self._came = anyio.Event()

    def rivals(self) -> list[Any]:
        return []

    def status(self) -> Any:
        return _Status(connected=True, last_error=None)


@attrs.frozen
class _Status:
    connected: bool
    last_error: str | None


class _Calls:
    """Redis for one gateway: the keys of prices, and the breaker, in the simulated store."""

    service = None

    def __init__(
        self,
        world: World,
        note: Callable[[Quote], None],
        note_gone: Callable[[str], None],
        note_trade: Callable[[str, Trade | None], None],
    ) -> None:
        self._world = world
        self._note_trade = note_trade
        self._trades = RecordDecoder(TRADES)
        self._note = note
        self._note_gone = note_gone
        self._decoder = RecordDecoder(QUOTES)

    async def _round_trip(self) -> None:
        await anyio.lowlevel.checkpoint()
        if self._world.store.down:
            raise StoreUnavailable("the store is down")

    async def prices(self, symbols: Sequence[str]) -> list[Quote | None]:
        await self._round_trip()
        found = []
        for symbol in symbols:
            payload = self._world.store.price(symbol)
            found.append(None if payload is None else self._decoder.decode(payload))
            if (quote := found[-1]) is None:
                self._note_gone(symbol)
            else:
                self._note(quote)
        return found

    async def trades(self, symbols: Sequence[str]) -> list[Trade | None]:
        await self._round_trip()
        found = []
        for symbol in symbols:
            payload = self._world.store.get(f"{TRADES.key_prefix}{symbol}")
            found.append(None if payload is None else self._trades.decode(payload))
            self._note_trade(symbol, found[-1])
        return found

    async def breaker(self) -> Breaker | None:
        await self._round_trip()
        payload = self._world.store.get(BREAKER_KEY)
        return None if payload is None else decode_breaker(payload)

    async def change_breaker(
        self, decide: Callable[[Breaker | None], Breaker | None], **_: Any
    ) -> tuple[Breaker | None, bool]:
        known = await self.breaker()
        changed = decide(known)
        if changed is None:
            return known, False
        self._world.store.put(BREAKER_KEY, encode_breaker(changed))
        return changed, True

    async def day_start(self, _account: str) -> bytes | None:
        await self._round_trip()
        return self._world.store.get(_DAY_START)

    async def keep_day_start(self, _account: str, content: bytes) -> None:
        await self._round_trip()
        self._world.store.put(_DAY_START, content)

    def close(self) -> None:
        pass
