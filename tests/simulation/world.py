"""One simulation: a market, an Alpaca, a Redis, the whole service, and what goes wrong."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Collection
from typing import Any

import anyio
import attrs
import trio

from mdservice.errors import FeedRefused, SubscriptionRefused
from mdservice.feeds.alpaca.login import Credentials
from mdservice.feeds.alpaca.raw import WebsocketsDriver
from mdservice.feeds.alpaca.rest import AlpacaHistory
from mdservice.feeds.repair import HOLD_LIMIT_S
from mdservice.model.quote import Quote
from mdservice.service import open_service
from mdservice.settings import Settings
from mdservice.simulator import Simulator, SimulatorConfig, open_simulator
from mdservice.simulator.transport import SimulatorTransport
from tests.simulation.clocks import SimulatedClock
from tests.simulation.faults import FAULTS
from tests.simulation.life import Life
from tests.simulation.market import Market, Pace
from tests.simulation.oracle import check_at_end, check_life
from tests.simulation.store import SimulatedStore
from tests.simulation.streams import TrioStream

STATIC = ("AAPL", "MSFT", "SPY")
DYNAMIC = ("TSLA", "NVDA", "F", "KO")
_CREDENTIALS = Credentials("key", "secret")
_CLOSING_LIMIT_S = 5.0
_SAMPLE_S = 0.5
_CALM_S = 24.0


@attrs.frozen
class Plan:
    """What a seed stands for."""

    seed: int
    faults: tuple[str, ...]
    fault_pause_s: float
    faults_for_s: float
    pace: Pace
    backlog: int
    mute_after_s: float
    config: SimulatorConfig

    @classmethod
    def draw(cls, seed: int, only: tuple[str, ...] = ()) -> Plan:
        """The seed's plan; ``only`` these kinds of fault, by the beginning of their names."""
        rng = random.Random(f"{seed}/plan")
        share = rng.choice((0.15, 0.3, 1.0))
        names = tuple(name for name in FAULTS if rng.random() < share)
        if only:
            names = tuple(name for name in FAULTS if name.startswith(only))
        return cls(
            seed=seed,
            faults=names,
            fault_pause_s=rng.choice((2.0, 6.0, 15.0)),
            faults_for_s=rng.uniform(20, 120),
            pace=Pace(
                pause_s=rng.choice((0.1, 0.3, 1.0)),
                burst=rng.choice((5, 50, 400)),
                quiet_s=rng.choice((0.0, 0.0, 45.0, 100.0)),
            ),
            backlog=rng.choice((50, 500, 10_000)),
            mute_after_s=rng.choice((10.0, 30.0)),
            config=SimulatorConfig(
                seed=seed,
                rate=0,
                slot_hold_s=rng.choice((0.0, 0.0, 0.0, 20.0)),
                rest_page_size=rng.choice((7, 100, 10_000)),
                rest_rate_limit=rng.choice((None, 200, 200, 10)),
                rest_lag_s=rng.choice((0.0, 0.0, 0.5, 0.8)),
                send_buffer_bytes=rng.choice((20_000, 4_000_000)),
            ),
        )


@attrs.define
class Outcome:
    """What came of one seed."""

    seed: int
    violations: list[str] = attrs.field(factory=list)
    simulated_s: float = 0.0
    faults: int = 0
    quotes: int = 0
    published: int = 0
    lives: int = 0
    trace: str = ""


class World:
    """Everything of one simulation."""

    def __init__(self, plan: Plan, tell: Callable[[str], None] | None = None) -> None:
        self.plan = plan
        self.rng = random.Random(f"{plan.seed}/faults")
        self.market_clock = SimulatedClock()
        self.service_clock = SimulatedClock()
        self.skew_s = 0.0
        self.skews: list[tuple[float, float, float]] = []
        """From when to when the service's clock was off, and by how much, seconds."""
        self.market = Market(
            random.Random(f"{plan.seed}/market"), self.market_clock, STATIC + DYNAMIC, plan.pace
        )
        self.lives: list[Life] = []
        self.scope: anyio.CancelScope | None = None
        self.violations: list[str] = []
        self.network_down_until_s = 0.0
        self.network_silent = False
        self.no_restart_before_s = 0.0
        self.faults_injected = 0
        self.faults_over_s: float | None = None
        self.unready_since_s: float | None = 0.0
        self.no_connection_since_s: float | None = 0.0
        self.sim: Simulator
        self.store: SimulatedStore
        self._over = False
        self._end = anyio.Event()
        self._digest = hashlib.sha256()
        self._tell_person = tell
        self._fault_tasks: Any = None

    @property
    def life(self) -> Life | None:
        """The service that runs now."""
        return self.lives[-1] if self.lives and self.lives[-1].service is not None else None

    def left_out(self) -> Collection[str]:
        """The symbols of which the service says now that the feed does not give them."""
        life = self.life
        if life is None or life.service is None:
            return ()
        session = life.service._topology.feed._session
        return session.left_out if session is not None else ()

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
        async with (
            anyio.create_task_group() as tasks,
            open_simulator(self.plan.config, port=None, clock=self.market_clock) as self.sim,
        ):
            async with anyio.create_task_group() as parts:
                self.store = SimulatedStore(self.market_clock, parts, self.rng)
                parts.start_soon(self._keep_service)
                parts.start_soon(self._sample)
                parts.start_soon(self.market.run, self.sim, self.left_out)
                await self._inject()
                self._stop_faults()
                await self._until_ready()
                await anyio.sleep(HOLD_LIMIT_S + 1)
                self.market.calm = True
                await anyio.sleep(_CALM_S)
                self.market.open = False
                await anyio.sleep(3)
                if self.life is not None:
                    check_at_end(self)
                self._over = True
                self._end.set()
                await anyio.sleep(_CLOSING_LIMIT_S + 1)
                parts.cancel_scope.cancel()
            tasks.cancel_scope.cancel()
        for life in self.lives:
            for violation in check_life(self, life, final=life is self.lives[-1]):
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
            len(self.market.made),
            published,
            len(self.lives),
            self._digest.hexdigest(),
        )

    # The service

    async def _keep_service(self) -> None:
        """As a process supervisor does: start it again when it has ended."""
        while not self._over:
            self.store.next_instance(str(len(self.lives)))
            life = Life(len(self.lives), self.market_clock, self.store)
            life.first_batch = len(self.store.executed)
            life.opened_s = anyio.current_time()
            self.lives.append(life)
            self.trace(f"service {life.number} starts")
            await self._live(life)
            if not self._over:
                await anyio.sleep(self.rng.choice((0.0, 0.1, 5.0)))

    async def _live(self, life: Life) -> None:
        self.scope = anyio.CancelScope()
        try:
            with self.scope:
                async with open_service(
                    self._settings(),
                    store=self.store,
                    drivers=[WebsocketsDriver(self.sim.url, _CREDENTIALS, self._dial)],
                    history=AlpacaHistory(
                        self.sim.rest_url,
                        "simulator",
                        _CREDENTIALS,
                        self.service_clock,
                        SimulatorTransport(self.sim),
                    ),
                    clock=self.service_clock,
                    rng=random.Random(f"{self.plan.seed}/jitter/{life.number}"),
                ) as service:
                    life.begin(service, STATIC)
                    try:
                        await self._end.wait()
                    finally:
                        life.drain_began_s = anyio.current_time()
        except Exception as exc:
            life.error = exc
        self.scope = None
        life.end()
        self.trace(f"service {life.number} ended {life.counters} {life.error!r}")
        if life.drain_began_s is not None:
            took_s = life.closed_s - life.drain_began_s
            if took_s > _CLOSING_LIMIT_S:
                self.violated(f"closing took {took_s:.3f} s")
        error = life.error
        data_came = bool(life.counters and life.counters.quotes_received)
        if error is not None and (data_came or not isinstance(error, FeedRefused)):
            self.violated(f"the service ended with {error!r}")

    def _settings(self) -> Settings:
        settings = Settings(
            feed="simulator",
            feed_url=self.sim.url,
            driver="websockets",
            symbols=STATIC,
            mute_after=self.plan.mute_after_s,
        )
        # Smaller than the settings allow, so that conflation is met in minutes.
        object.__setattr__(settings, "backlog", self.plan.backlog)
        return settings

    async def _dial(self) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        if anyio.current_time() < self.network_down_until_s:
            if self.network_silent:
                await trio.sleep_forever()
            raise ConnectionRefusedError("the network is down")
        return TrioStream(self.sim.connect())

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
        if (what := await FAULTS[name](self)) is not None:
            self.trace(f"fault {name} {what}")
            self.faults_injected += 1

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
        self.network_down_until_s = 0.0
        self.store.script.clear()
        self.store_up()
        self.set_clock_right()
        self.trace("faults are over")

    def store_up(self) -> None:
        """The store works again."""
        self.store.down = False
        self.store.refusal = None

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

    async def change_subscriptions(self) -> str | None:
        """Somebody follows or no longer follows some symbols."""
        life = self.life
        if life is None or life.service is None:
            return None
        symbols = self.rng.sample(DYNAMIC, self.rng.randrange(1, 3))
        try:
            if self.rng.random() < 0.5:
                for symbol in symbols:
                    life.unwant(symbol)
                result = await life.service.unsubscribe(*symbols)
            else:
                result = await life.service.subscribe(*symbols)
                for symbol in symbols:
                    life.want(symbol)
        except SubscriptionRefused as exc:
            return f"{symbols} refused: {exc}"
        except Exception as exc:
            if life.drain_began_s is None:
                raise
            return f"{symbols} while it stops: {exc!r}"
        return f"{symbols} {result.status}"

    # What is seen on the way

    async def _until_ready(self) -> None:
        """Ready again within the bound that the longest wait under way allows."""
        limit_s = 45.0 + 2 * self.plan.config.slot_hold_s
        life = self.life
        service = life.service if life is not None else None
        if service is not None and service._topology.feed.snapshot().phase == "refused":
            limit_s += 300.0
        if any(abs(skew_s) > 60 for _, _, skew_s in self.skews):
            limit_s += 120.0  # it is believed right again once fifty quotes say so
        with anyio.move_on_after(limit_s):
            while not (self.life and self.life.service and self.life.service.readiness().ready):
                await anyio.sleep(0.1)
            self.trace("ready again")
            return
        service = self.life.service if self.life else None
        reasons = service.readiness().reasons if service else "no service"
        self.violated(f"not ready {limit_s:g} s after the last fault: {reasons}")

    async def _sample(self) -> None:
        while True:
            await anyio.sleep(_SAMPLE_S)
            now_s = anyio.current_time()
            self.store.note_health()
            connected = any(c.authenticated for c in self.sim.connections)
            if connected:
                self.no_connection_since_s = None
            elif self.no_connection_since_s is None:
                self.no_connection_since_s = now_s
            life = self.life
            if life is None or life.service is None or life.drain_began_s is not None:
                continue
            self._look_at(life, now_s)

    def _look_at(self, life: Life, now_s: float) -> None:
        service = life.service
        assert service is not None
        topology = service._topology
        readiness = service.readiness()
        if not service.liveness().ready:
            self.violated("not live")
        if readiness.ready:
            store_s = now_s - (self.store.not_working_since_s or now_s)
            if store_s > 5.0 and now_s - life.opened_s > 5.0:
                self.violated(f"ready though the store has not worked for {store_s:.1f} s")
            feed_s = now_s - (self.no_connection_since_s or now_s)
            if feed_s > 3.0:
                self.violated(f"ready though the feed has been away for {feed_s:.1f} s")
        backlog = topology.publisher.unacknowledged
        # One quote per symbol and the states come on top.
        if backlog > self.plan.backlog + len(self.market.symbols) + 1_000:
            self.violated(f"{backlog} events are kept")
        if len(topology.readers._readers if hasattr(topology.readers, "_readers") else ()) > 0:
            self.violated("a reader is left")


def simulate(
    seed: int, *, only: tuple[str, ...] = (), tell: Callable[[str], None] | None = None
) -> Outcome:
    """Run one seed."""
    from tests.simulation.scheduling import run_seeded

    plan = Plan.draw(seed, only)

    async def run() -> Outcome:
        return await World(plan, tell).run()

    return run_seeded(seed, run)


__all__ = ["Outcome", "Plan", "Quote", "World", "simulate"]
