"""One simulation: a market, an Alpaca, a Redis, the whole service, and what goes wrong."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

import anyio
import trio

from mdservice.app.service import open_service
from mdservice.app.status import always_open, news_hours
from mdservice.app.topology import FeedParts
from mdservice.errors import FeedRefused
from mdservice.feed.alpaca.login import Credentials
from mdservice.feed.alpaca.rest import AlpacaHistory
from mdservice.feed.alpaca.websockets_driver import WebsocketsDriver
from mdservice.feed.gap_repair.repair import HOLD_LIMIT_S
from mdservice.model.feeds import FEEDS, NEWS_FEED, STOCKS, Feed, FeedName, Topic
from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.settings import Settings
from mdservice.simulator import Fault, Simulator, open_simulator
from mdservice.simulator.transport import SimulatorTransport
from tests.simulation.account import (
    CHANNELS,
    FEED_NAMES,
    AccountMarket,
)
from tests.simulation.account_events import AccountEvents
from tests.simulation.clients import Clients
from tests.simulation.clocks import SimulatedClock
from tests.simulation.every_kind import (
    check_account,
    check_account_at_end,
    check_keys_live,
    check_keys_run_out,
)
from tests.simulation.gateway import SimulatedGateway
from tests.simulation.hours import begins_at
from tests.simulation.leftovers import Leftovers
from tests.simulation.life import Life
from tests.simulation.market import Market
from tests.simulation.names import DYNAMIC, STATIC
from tests.simulation.oracle import (
    check_at_end,
    check_first_price,
    check_life,
    check_prices_live,
    check_prices_run_out,
)
from tests.simulation.plan import PRICE_TTL_S, Outcome, Plan
from tests.simulation.positions import FAULTS, HELD, SimulatedPositions
from tests.simulation.store import SimulatedStore
from tests.simulation.streams import TrioStream
from tests.simulation.watch import Watch

_CREDENTIALS = Credentials("key", "secret")
_CLOSING_LIMIT_S = 5.0
_CALM_S = 24.0


class World:
    """Everything of one simulation."""

    def __init__(self, plan: Plan, tell: Callable[[str], None] | None = None) -> None:
        self.plan = plan
        self.rng = random.Random(f"{plan.seed}/faults")
        begins_ns = begins_at(plan.trading)
        self.market_clock = SimulatedClock(begins_ns)
        self.service_clock = SimulatedClock(begins_ns)
        self.skew_s = 0.0
        self.skews: list[tuple[float, float, float]] = []
        """From when to when the service's clock was off, and by how much, seconds."""
        self.positions = SimulatedPositions(plan.seed) if plan.positions else None
        held = tuple(symbol for symbol in HELD if plan.positions and symbol not in DYNAMIC)
        self.market = Market(
            random.Random(f"{plan.seed}/market"),
            self.market_clock,
            STATIC + DYNAMIC + held,
            plan.pace,
        )
        self.account: AccountMarket | None = None
        if plan.account is not None:
            self.account = AccountMarket(
                plan.seed, plan.config, plan.account, self.market_clock, self.market
            )
            self.market.quoted = self.account.quoted
        self.aim: FeedName | None = None
        """The feed that the faults of now are about; None for every one."""
        self.account_rng = random.Random(f"{plan.seed}/account faults")
        self.lives: list[Life] = []
        self.scope: anyio.CancelScope | None = None
        self.violations: list[str] = []
        self.network_down_until_s = 0.0
        self.network_silent = False
        self.no_restart_before_s = 0.0
        self.faults_injected: Counter[str] = Counter()
        self.faults_over_s: float | None = None
        self.watch = Watch(self)
        self.clients = Clients(self)
        self.leftovers = Leftovers(self)
        self.gateway = SimulatedGateway(self, plan.trading) if plan.trading else None
        self.account_events: AccountEvents | None = None
        if plan.trading is not None and plan.trading.of_service:
            self.account_events = AccountEvents(self)
        self.sim: Simulator
        self.parts: Any
        self.store: SimulatedStore
        self.left_out_at_end: set[Topic] = set()
        """What a feed still does not give: its gap is reported only when it returns."""
        self.kinds: Mapping[str, Callable[[Any], Awaitable[str | None]]] = FAULTS
        """The kinds of fault by name."""
        self._over = False
        self._end = anyio.Event()
        self._digest = hashlib.sha256()
        self._tell_person = tell
        self._fault_tasks: Any = None

    @property
    def symbols(self) -> tuple[str, ...]:
        """Every symbol of the markets."""
        others = self.plan.symbols[len(STATIC) :]
        return (*self.market.symbols, *others)

    @property
    def life(self) -> Life | None:
        """The service that runs now."""
        return self.lives[-1] if self.lives and self.lives[-1].service is not None else None

    def left_out(self) -> Collection[str]:
        """The stocks of which the service says now that the feed does not give their quotes."""
        return {topic.symbol for topic in self.topics_left_out() if topic.channel == "quotes"}

    def topics_left_out(self, feed: FeedName = STOCKS.name) -> Collection[Topic]:
        """The topics of which the service says now that a feed does not give them."""
        life = self.life
        if life is None or life.service is None:
            return ()
        (connection,) = (
            each.connection for each in life.service._topology.pipelines if each.feed.name == feed
        )
        return connection._session.left_out if connection._session is not None else ()

    def _feed_names(self) -> list[FeedName]:
        life = self.life
        if life is None or life.service is None:
            return []
        return [each.feed.name for each in life.service._topology.pipelines]

    def inject(self, fault: Fault) -> None:
        """Put a fault of the simulator into force, for the feed that it is aimed at."""
        self.sim.inject(fault, feed=self.aim)

    def trace(self, what: str) -> None:
        """Goes into the digest by which two runs are compared."""
        line = f"{anyio.current_time():10.3f} {what}"
        self._digest.update(line.encode())
        if self._tell_person is not None:
            self._tell_person(line)

    def violated(self, what: str) -> None:
        """A promise was broken."""
        self.trace(f"VIOLATED {what}")
        self.violations.append(f"at {anyio.current_time():.3f} s: {what}")

    # The whole

    async def run(self) -> Outcome:
        """Faults, then peace, then the reckoning."""
        self.leftovers.begin()
        async with (
            anyio.create_task_group() as tasks,
            open_simulator(self.plan.config, port=None, clock=self.market_clock) as self.sim,
        ):
            self.leftovers.follow(self.sim)
            async with anyio.create_task_group() as parts:
                self.parts = parts
                self.store = SimulatedStore(self.market_clock, parts, self.rng, PRICE_TTL_S)
                parts.start_soon(self._keep_service)
                parts.start_soon(self.watch.run)
                parts.start_soon(self.clients.run)
                parts.start_soon(self.market.run, self.sim, self.left_out)
                if self.account is not None:
                    parts.start_soon(self.account.run, self.sim, self.topics_left_out)
                if self.gateway is not None:
                    parts.start_soon(self.gateway.run)
                await self._inject()
                self._stop_faults()
                await self.watch.until_ready()
                await anyio.sleep(HOLD_LIMIT_S + 1)
                self.market.calm = True
                if self.gateway is None:
                    await anyio.sleep(_CALM_S)
                else:
                    await self.gateway.check_at_end(_CALM_S)
                self.market.open = False
                await anyio.sleep(3)
                if self.life is not None:
                    await check_at_end(self)
                    self.left_out_at_end = {
                        topic for feed in self._feed_names() for topic in self.topics_left_out(feed)
                    }
                    if self.positions is not None:
                        self.positions.check_at_end(self)
                    if self.account is not None:
                        await check_account_at_end(self)
                    await check_first_price(self)
                    await check_prices_live(self)
                    if self.account is not None:
                        check_keys_live(self)
                    await check_prices_run_out(self)
                    if self.account is not None:
                        check_keys_run_out(self)
                self._over = True
                self._end.set()
                await anyio.sleep(_CLOSING_LIMIT_S + 3)
                parts.cancel_scope.cancel()
            tasks.cancel_scope.cancel()
        self.leftovers.check_at_end()
        for life in self.lives:
            final = life is self.lives[-1]
            check = check_life if self.account is None else check_account
            for violation in check(self, life, final=final):
                self.violated(f"[run {life.number}] {violation}")
            if self.account_events is not None:
                for violation in self.account_events.check_life(life):
                    self.violated(f"[run {life.number}] {violation}")
        return self._outcome()

    def _outcome(self) -> Outcome:
        published = sum(len(batch.messages) for batch in self.store.executed)
        self.trace(f"end {published} {len(self.market.made)}")
        return Outcome(
            self.plan.seed,
            self.violations,
            anyio.current_time(),
            self.faults_injected,
            self.clients.calls,
            len(self.market.made),
            published,
            self.runs_of_service,
            self._digest.hexdigest(),
        )

    @property
    def runs_of_service(self) -> int:
        """How many there were."""
        return len(self.lives)

    # The service

    async def _keep_service(self) -> None:
        """As a process supervisor does: start it again when it has ended."""
        self.leftovers.keeper_runs()
        while not self._over:
            self.store.next_instance(str(len(self.lives)))
            life = Life(len(self.lives), self.market_clock, self.store)
            life.first_batch = len(self.store.executed)
            life.opened_s = anyio.current_time()
            self.lives.append(life)
            self.trace(f"service {life.number} starts")
            await self._live(life)
            self.leftovers.service_ended(life)
            if not self._over:
                await anyio.sleep(self.rng.choice((0.0, 0.1, 5.0)))

    async def _live(self, life: Life) -> None:
        self.scope = anyio.CancelScope()
        source = self.positions.source if self.positions is not None else None
        stream, close = None, anyio.lowlevel.checkpoint
        if self.account_events is not None:
            source, stream, close = self.account_events.of_life(life)
        try:
            with self.scope:
                async with open_service(
                    self._settings(),
                    store=self.store,
                    feeds=self._feeds() if self.account is not None else None,
                    drivers=[self._driver(STOCKS)] if self.account is None else None,
                    history=self._history(STOCKS),
                    positions=source,
                    trading_stream=stream,
                    clock=self.service_clock,
                    rng=random.Random(f"{self.plan.seed}/jitter/{life.number}"),
                ) as service:
                    life.begin(service, self.plan.symbols)
                    try:
                        await self._end.wait()
                    finally:
                        life.drain_began_s = anyio.current_time()
        except Exception as exc:
            life.error = exc
        with anyio.CancelScope(shield=True):
            await close()
        self.scope = None
        life.end()
        self.trace(f"service {life.number} ended {life.counters} {life.error!r}")
        if life.drain_began_s is not None:
            took_s = life.closed_s - life.drain_began_s
            if took_s > _CLOSING_LIMIT_S:
                self.violated(f"closing took {took_s:.3f} s")
        error = life.error
        if error is not None and (life.data_came or not isinstance(error, FeedRefused)):
            self.violated(f"the service ended with {error!r}")

    def _driver(self, feed: Feed) -> WebsocketsDriver:
        url = self.sim.stream_url(feed.name) if self.account is not None else self.sim.url
        return WebsocketsDriver(url, _CREDENTIALS, self._dial, feed=feed)

    def _history(self, feed: Feed) -> AlpacaHistory:
        variants = {"stocks": "simulator", "crypto": "us", "options": "indicative"}
        return AlpacaHistory(
            self.sim.rest_url,
            variants.get(feed.name, feed.name),
            _CREDENTIALS,
            self.service_clock,
            SimulatorTransport(self.sim),
            feed=feed,
        )

    def _feeds(self) -> list[FeedParts]:
        return [
            FeedParts(
                feed,
                [self._driver(feed)],
                self._history(feed),
                news_hours if feed is NEWS_FEED else always_open,
                on_demand=feed is not STOCKS,
            )
            for feed in FEEDS
        ]

    def _settings(self) -> Settings:
        settings = Settings(
            feed="simulator",
            feed_url=self.sim.url,
            driver="websockets",
            symbols=self.plan.symbols,
            channels=CHANNELS if self.account is not None else ("quotes",),
            news=(EVERY_SYMBOL,) if self.account is not None else (),
            mute_after=self.plan.mute_after_s,
            price_ttl=PRICE_TTL_S,
            relay=None,  # a socket of this machine, with its real time
        )
        # Smaller than the settings allow, so that conflation is met in minutes.
        object.__setattr__(settings, "backlog", self.plan.backlog)
        return settings

    async def _dial(self) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        if self.network_is_down and self.network_silent:
            await trio.sleep_forever()
        return TrioStream(self.sim.connect())

    @property
    def network_is_down(self) -> bool:
        """Whether nobody answers at Alpaca's addresses."""
        return anyio.current_time() < self.network_down_until_s

    # What goes wrong

    async def _inject(self) -> None:
        plan = self.plan
        async with anyio.create_task_group() as self._fault_tasks:
            with anyio.move_on_after(plan.faults_for_s):
                while True:
                    await anyio.sleep(self.rng.expovariate(1 / plan.fault_pause_s))
                    if plan.faults:
                        self._fault_tasks.start_soon(self._inject_one, self.rng.choice(plan.faults))
            self._fault_tasks.cancel_scope.cancel()

    async def _inject_one(self, name: str) -> None:
        if self.account is not None:
            self.aim = self.account_rng.choice((None, *FEED_NAMES))
        if (what := await self.kinds[name](self)) is not None:
            self.trace(f"fault {name} {what}")
            self.faults_injected[name] += 1

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call it then, unless the faults are over before."""

        async def call() -> None:
            await anyio.sleep(seconds)
            function()

        self._fault_tasks.start_soon(call)

    def _stop_faults(self) -> None:
        self.faults_over_s = anyio.current_time()
        self.market.lively.set()
        self.sim.resume()
        self.sim.symbol_limit = None
        self.network_down_until_s = 0.0
        self.store.script.clear()
        self.store.empties_at_write = None
        if self.positions is not None:
            self.positions.fix()
        self.store_up()
        self.set_clock_right()
        self.trace("faults are over")

    def store_up(self) -> None:
        """The store works again."""
        self.store.down = False
        self.store.refusal = None
        self.store.note_health()

    def step_clock(self, seconds: float) -> None:
        """Set the service's clock wrong."""
        self.set_clock_right()
        self.service_clock.step(seconds)
        self.skew_s = seconds
        self.skews.append((anyio.current_time(), float("inf"), seconds))

    def set_clock_right(self) -> None:
        """Set it right again."""
        if self.skew_s:
            self.service_clock.step(-self.skew_s)
            start_s, _, skew_s = self.skews[-1]
            self.skews[-1] = start_s, anyio.current_time(), skew_s
            self.skew_s = 0.0


def simulate(
    seed: int,
    *,
    only: tuple[str, ...] = (),
    account: bool | None = None,
    gateway: bool = True,
    newer: bool = True,
    group: bool | None = False,
    tell: Callable[[str], None] | None = None,
) -> Outcome:
    """Run one seed; see :meth:`tests.simulation.plan.Plan.draw`."""
    from tests.simulation.group_world import GroupWorld
    from tests.simulation.scheduling import run_seeded

    plan = Plan.draw(seed, only, account=account, gateway=gateway, newer=newer, group=group)
    make = GroupWorld if plan.members else World

    async def run() -> Outcome:
        return await make(plan, tell).run()

    return run_seeded(seed, run)
