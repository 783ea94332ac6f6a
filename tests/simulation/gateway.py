"""A gateway in the simulation: the account trades, and P&L and limits follow its fills.

The tracker is the gateway's own. It has positions from the simulated REST and trade updates from
the simulated stream, both with faults, and prices from the simulated store. At the end every figure
is recounted from the account's own records and the prices in the store.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, Self, cast

import anyio
import attrs

from mdservice.client.reader import Prices
from mdservice.errors import StoreUnavailable
from mdservice.gateway.redis_calls import RedisCalls
from mdservice.gateway.risk import Risk, make_limits
from mdservice.gateway.tracker import Came, PnlTracker
from mdservice.model.kinds import QUOTES, RecordDecoder
from mdservice.model.position import Position
from mdservice.model.quote import Quote
from mdservice.model.symbol import without_slash
from mdservice.pnl.breaker import Breaker, decode_breaker, encode_breaker
from mdservice.pnl.engine import PnlEngine
from mdservice.positions.cache import PositionCache
from mdservice.positions.sources import AlpacaPositions
from mdservice.positions.trading_stream import TradeUpdatesFollower, TradingStream
from mdservice.redis_io.names import BREAKER_KEY
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
)
from mdservice.simulator.assets import asset_of
from mdservice.simulator.transport import SimulatorTransport
from tests.pnl.limits_reference import LimitsReference, plain_state
from tests.pnl.reference import Reference, Whole
from tests.simulation.plan import PRICE_TTL_S, STATIC
from tests.simulation.streams import TrioStream

if TYPE_CHECKING:
    from tests.simulation.world import World

__all__ = ["SimulatedGateway"]

_INTERVAL_S: Final = 8.0
"""Between two reconciliations, so that most changes come by events alone."""
_REFUSED_AT_MOST_S: Final = 330.0
"""A refused login is tried again after five minutes at the latest."""
_LOOK_S: Final = 1.0
_STALE_AFTER_S: Final = 60
_TRADED: Final = (*STATIC, "BTC/USD")
"""What the account trades; the last one has no price but that of its position."""
LIMITS: Final = (
    *("* qty > 60", "* value > 20000", "* pnl < -400", "* price > 450", "SPY day_pnl < -150"),
    *("total pnl < -900", "total exposure > 60000", "total value > 40000", "total pct < -5"),
)
_SHARES: Final = (Decimal(1), Decimal(10), Decimal(40), Decimal("0.5"))
_PAUSE_S: Final = 4.0
_POSITIONS: Final = "/v2/positions"


class SimulatedGateway:
    """The account's trades, the gateway that follows them, and the recount."""

    def __init__(self, world: World) -> None:
        self.fixed = False
        """Whether the account trades no more."""
        self.tracker: PnlTracker
        self.cache: PositionCache
        self.reader: _Reader | None = None
        self._world = world
        self._rng = random.Random(f"{world.plan.seed}/gateway")
        self._qty: dict[str, Decimal] = {}
        """What the account holds by its own trades."""
        self._scope: anyio.CancelScope | None = None
        self._follower: TradeUpdatesFollower | None = None
        self._heard: dict[str, tuple[Quote, int]] = {}
        """The newest quote that the present gateway has got of each symbol, and when."""
        self._calls = _Calls(world)

    async def run(self) -> None:
        """Trade, break things and run gateways until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._trade_on)
            tasks.start_soon(self._break_things)
            while True:
                with anyio.CancelScope() as self._scope:
                    await self._live()
                await anyio.sleep(self._rng.choice((0.0, 0.3, 3.0)))

    # The gateway

    async def _live(self) -> None:
        world = self._world
        clock = world.market_clock
        http = HttpClient(transport=SimulatorTransport(cast("Simulator", world.leftovers)))
        source = AlpacaPositions(world.sim.rest_url, "key", "secret", http)
        cache = PositionCache(source, _INTERVAL_S, clock)
        engine = PnlEngine(stale_after_s=_STALE_AFTER_S, price_ttl_s=PRICE_TTL_S)
        calls = cast("RedisCalls", self._calls)
        risk = Risk(make_limits(LIMITS, ()), engine, calls, clock)
        self._heard = {}
        stream = TradingStream(
            world.sim.stream_url("trading"), "key", "secret", open_stream=self._dial
        )

        def follow(came: Came) -> TradeUpdatesFollower:
            self._follower = TradeUpdatesFollower(stream, cache, came, clock)
            return self._follower

        tracker = PnlTracker(
            cache, calls, self._open_prices, engine, None, "live", clock, risk, follow_fills=follow
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
        async with _Reader(self._world, self._note) as reader:
            self.reader = reader
            yield cast("Prices", reader)

    def _note(self, quote: Quote) -> None:
        known = self._heard.get(quote.symbol)
        if known is None or quote.ts_event_ns >= known[0].ts_event_ns:
            self._heard[quote.symbol] = quote, self._world.market_clock.utc_ns()

    # The account

    async def _trade_on(self) -> None:
        while True:
            await anyio.sleep(self._rng.expovariate(1 / _PAUSE_S))
            if not self.fixed and not self._world.market.calm:
                self.trade(self._rng.choice(_TRADED))

    def trade(self, symbol: str) -> None:
        """One order, filled at once: it opens, adds, reduces, closes or turns a position."""
        held = self._qty.get(symbol, Decimal(0))
        changes = [sign * shares for shares in _SHARES for sign in (1, -1)]
        if held:
            changes += [-held, -held, -2 * held]
        qty = self._rng.choice(changes)
        if symbol != "BTC/USD" and (held + qty) % 1 and held + qty < 0:
            return  # a fraction of a share cannot be short
        try:
            self._world.sim.trade(symbol, qty)
        except ValueError:
            return
        self._qty[symbol] = held + qty
        self._world.trace(f"trade {symbol} {qty}")

    # What goes wrong

    async def _break_things(self) -> None:
        rng, world = self._rng, self._world
        while world.faults_over_s is None:
            await anyio.sleep(rng.expovariate(1 / world.plan.fault_pause_s))
            if world.faults_over_s is not None:
                return
            name, break_it = rng.choice(_FAULTS)
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

    def refuse(self) -> None:
        """Refuse the next login, and end the connection."""
        self.inject(Refuse(402, "auth", 2))
        self.inject(Drop("reset", 1001))

    def end_day(self) -> None:
        """The account's day ends: average prices and the last closes change without an event."""
        self._world.sim.end_day()

    def restart(self) -> None:
        """Another gateway takes the place of this one."""
        if self._scope is not None:
            self._scope.cancel()

    # The recount

    async def check_at_end(self, within_s: float) -> None:
        """All is as the account's own records and the store say; takes as long as said."""
        began_s = anyio.current_time()
        await self._until_it_follows()
        await anyio.sleep(_INTERVAL_S + 0.5)
        for _ in range(4):
            self.trade(self._rng.choice(_TRADED))
            await anyio.sleep(1.0)
            self._check_quantities("a second after its fill")
        self.fixed = True
        await anyio.sleep(_INTERVAL_S + 0.5)
        self._check_quantities("after the last poll")
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

    def _check_quantities(self, when: str) -> None:
        told = {each.symbol: each.qty for each in self.cache.positions}
        own = {without_slash(symbol): qty for symbol, qty in self._qty.items() if qty}
        if told != own:
            self._world.violated(f"the gateway has {told} {when}, the account {own}")

    async def _check_figures(self) -> None:
        world = self._world
        while self.reader is None or not self.reader.is_done:
            await anyio.sleep(0.001)
        engine, now_ns = self.tracker.engine, world.market_clock.utc_ns()
        for symbol in STATIC:
            payload, heard = world.store.price(symbol), self._heard.get(symbol)
            if payload is not None and (heard is None or heard[0] != QUOTES.decode(payload)):
                world.violated(f"the gateway has {heard} of {symbol}, the store {payload!r}")
        reference = Reference(_STALE_AFTER_S, PRICE_TTL_S, positions=self._recounted())
        for quote, heard_ns in self._heard.values():
            reference.update(quote, heard_ns)
        told = Whole.of(engine.report(now_ns))
        told = attrs.evolve(told, rows=[row[:-1] for row in told.rows])  # no problem
        expected = reference.whole(now_ns)
        if told != expected:
            world.violated(f"the gateway's report is {told}, the recount {expected}")
        exposure = Fraction(engine.totals.exposure)
        if exposure != reference.exposure():
            world.violated(f"the exposure is {exposure}, by the recount {reference.exposure()}")

        await self._check_limits(reference, now_ns)

    async def _check_limits(self, book: Reference, now_ns: int) -> None:
        """The limits at the same moment; and soon the breaker, which stays tripped."""
        world, limits = self._world, self.tracker.risk._limits
        reference = LimitsReference(list(limits.rules), book, now_ns)
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
        if crossed and (payload is None or not decode_breaker(payload).tripped):
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
    ("trading_mute", lambda gateway: gateway.spoil(Mute(6.0))),
    ("trading_freeze", lambda gateway: gateway.spoil(Freeze(6.0))),
    ("trading_refused", lambda gateway: gateway.refuse()),
    ("trading_away", lambda gateway: gateway.inject(Refuse(503, "upgrade", 2))),
    ("positions_refused", lambda gateway: gateway.inject(RefuseRest(503, 0, "no", _POSITIONS, 2))),
    ("positions_slow", lambda gateway: gateway.inject(SlowRest(3.0, _POSITIONS, 2))),
    ("positions_cut", lambda gateway: gateway.inject(CutRest(_POSITIONS, 1))),
    ("positions_garbled", lambda gateway: gateway.inject(GarbleRest(_POSITIONS, 1))),
    ("positions_overnight", lambda gateway: gateway.end_day()),
    ("gateway_restart", lambda gateway: gateway.restart()),
)


class _Reader:
    """Reads the events of the store, after its keys; a lost connection ends it."""

    service = None

    def __init__(self, world: World, note: Callable[[Quote], None]) -> None:
        self._world = world
        self._note = note
        self._decoder = RecordDecoder(QUOTES, STATIC)
        self._quotes: deque[Quote] = deque()
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
        for payload in map(store.price, STATIC):
            self.take([] if payload is None else [payload])
        return self

    async def __aexit__(self, *_: object) -> None:
        self._world.store.readers.remove(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Quote:
        while not self._quotes:
            if self._lost or self._world.store.down:
                raise StoreUnavailable("the connection was lost")
            with anyio.move_on_after(_LOOK_S):
                await self._came.wait()
        quote = self._quotes.popleft()
        self._note(quote)
        return quote

    def take(self, payloads: Iterable[bytes]) -> None:
        """Events, or keys."""
        self._quotes.extend(self._decoder.decode_all(payloads))
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

    def __init__(self, world: World) -> None:
        self._world = world
        self._decoder = RecordDecoder(QUOTES)

    async def _round_trip(self) -> None:
        await anyio.lowlevel.checkpoint()
        if self._world.store.down:
            raise StoreUnavailable("the store is down")

    async def prices(self, symbols: Sequence[str]) -> dict[str, Quote]:
        await self._round_trip()
        found = {symbol: self._world.store.price(symbol) for symbol in symbols}
        decoded = ((name, self._decoder.decode(data)) for name, data in found.items() if data)
        return {name: quote for name, quote in decoded if quote is not None}

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

    def close(self) -> None:
        pass
