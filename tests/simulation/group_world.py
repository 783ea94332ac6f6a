"""One simulation of a standby group: several services, one Alpaca with one slot, one Redis."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Collection
from typing import Any

import anyio
import attrs
import trio

from mdservice.app.group import Member
from mdservice.app.service import Service, open_service
from mdservice.app.status import always_open
from mdservice.app.topology import FeedParts, Topology
from mdservice.errors import FeedRefused
from mdservice.feed.alpaca.rest import AlpacaHistory
from mdservice.feed.alpaca.websockets_driver import WebsocketsDriver
from mdservice.feed.gap_repair.recheck import Believed
from mdservice.feed.gap_repair.repair import HOLD_LIMIT_S
from mdservice.model.events import FeedStatus
from mdservice.model.feeds import STOCKS
from mdservice.model.kinds import QUOTES
from mdservice.publish.lease import LEASE_S, Leader
from mdservice.publish.store import READ_LIMIT_S
from mdservice.redis_io.lease import RedisLease
from mdservice.settings import Settings
from mdservice.simulator import Freeze, MemoryByteStream, open_simulator
from mdservice.simulator.transport import SimulatorTransport
from tests.simulation.clocks import SimulatedClock
from tests.simulation.freezing import Freezer, open_freezer
from tests.simulation.group_faults import GROUP_FAULTS
from tests.simulation.group_oracle import (
    LeadWatch,
    check_group,
    check_group_at_end,
    until_standbys_know,
)
from tests.simulation.oracle import FAR_OFF_S, LATE
from tests.simulation.plan import Outcome, Plan
from tests.simulation.redis_server import GROUP, Connection, SimulatedRedis, TermStore, Way
from tests.simulation.streams import TrioStream
from tests.simulation.world import _CLOSING_LIMIT_S, _CREDENTIALS, World

GROUP_TTL_S = 300
"""So long that no key runs out while no service leads."""
_CALM_S = 12.0
_REPLICATE_S = 0.7
_LEADER_IS_HIT = 0.7


class Host:
    """A machine, on which one service at a time runs."""

    def __init__(self, world: GroupWorld, name: str) -> None:
        self.world = world
        self.name = name
        self.clock = SimulatedClock()
        self.skew_s = 0.0
        self.skews: list[int] = []
        """The places of its wrong times among those of the world."""
        self.pause_s = 0.0
        """How long it takes until the service is started again."""
        self.feed_down_until_s = 0.0
        self.feed_silent = False
        self.cut_off: dict[str, bool] = {}
        """Which ways to Redis are cut, and whether silently."""
        self.ways: dict[str, list[Way]] = {"lease": [], "store": []}
        self.process: Process | None = None

    def new_way(self, what: str) -> Way:
        """A way to Redis for a new process."""
        way = Way()
        if what in self.cut_off:
            way.cut(silent=self.cut_off[what])
        self.ways[what].append(way)
        return way

    def cut(self, what: str, *, silent: bool) -> None:
        """Cut ways to Redis."""
        for name, ways in self.ways.items():
            if what in {name, "both"}:
                self.cut_off[name] = silent
                for way in ways:
                    way.cut(silent=silent)

    def join(self) -> None:
        """All ways to Redis work again."""
        self.cut_off.clear()
        for ways in self.ways.values():
            for way in ways:
                way.open()

    @property
    def feed_is_down(self) -> bool:
        """Whether it cannot reach Alpaca."""
        return anyio.current_time() < self.feed_down_until_s

    def cut_feed(self, for_s: float, *, silent: bool) -> None:
        """Cut the way to Alpaca; silently, what is sent meanwhile arrives later."""
        self.feed_down_until_s = anyio.current_time() + for_s
        self.feed_silent = silent
        process = self.process
        if process is None:
            return
        if not silent:
            process.reset_streams()
            return
        pipes = {id(stream._outgoing) for stream in process.streams}
        for connection in self.world.sim._connections.values():
            stream = connection._stream
            if isinstance(stream, MemoryByteStream) and id(stream._incoming) in pipes:
                connection.faults.add(Freeze(for_s), anyio.current_time())
                connection.poke()


class Process:
    """One run of the service on a machine."""

    def __init__(self, host: Host, number: int) -> None:
        self.host = host
        self.number = number
        self.name = f"{host.name}-{number}"
        self.scope = anyio.CancelScope()
        self.lease_way, self.store_way = host.new_way("lease"), host.new_way("store")
        self.gone = anyio.Event()
        """Set when another run may begin."""
        self.service: Service | None = None
        self.task: trio.lowlevel.Task | None = None
        self.dead = False
        self.stopped = False
        self.streams: list[MemoryByteStream] = []
        self.topologies: list[Topology] = []
        self.opened_s = anyio.current_time()
        self.drain_began_s: float | None = None
        self.error: BaseException | None = None
        own = Leader(self.name, host.name, 1000 + number, f"/run/{self.name}.sock")
        self.lease = RedisLease(
            "redis://redis.desk:6379", GROUP, own, clock=host.clock, connect=self._connect
        )

    async def _connect(self, _address: Any, _name: str) -> Connection:
        return await self.host.world.redis.connect_client(self.lease_way)

    def make_store(self, leader: Leader | None) -> TermStore:
        """The store of a term."""
        admit = None if leader is None else self.lease.admit("store")
        return TermStore(self.host.world.redis, self.store_way, leader, admit)

    def connect(self) -> MemoryByteStream:
        """Connect to Alpaca; the simulator's own method, for this process."""
        world = self.host.world
        if self.dead or self.host.feed_is_down or world.network_is_down:
            raise ConnectionRefusedError("the network is down")
        self.streams = [stream for stream in self.streams if not stream._closed]
        self.streams.append(world.sim.connect())
        return self.streams[-1]

    async def dial(self) -> trio.abc.Stream:
        """Connect to the feed."""
        world = self.host.world
        await trio.lowlevel.checkpoint()
        if (self.host.feed_is_down and self.host.feed_silent) or (
            world.network_is_down and world.network_silent
        ):
            await trio.sleep_forever()
        return TrioStream(self.connect())

    def begin(self, service: Service) -> None:
        """It leads or stands by; keep what each term was built of."""
        self.service = service
        use = service.use
        self.topologies.append(service._topology)

        def note(topology: Topology, *others: Any) -> None:
            if topology is not self.topologies[-1]:
                self.topologies.append(topology)
            use(topology, *others)

        service.use = note  # type: ignore[method-assign]

    @property
    def leads(self) -> bool:
        """Whether it believes that it leads."""
        service = self.service
        return service is not None and service._group is not None and service._group._leads

    @property
    def runs(self) -> bool:
        """Whether it is there, and neither stopped nor about to end."""
        there = self.service is not None and not self.dead and not self.stopped
        return there and self.drain_began_s is None

    # What is done to it

    def stop(self) -> None:
        """Stop all of its tasks."""
        if self.task is not None and not self.dead and not self.stopped:
            self.stopped = True
            self.host.world.freezer.stop(self.task)

    def resume(self) -> None:
        """Let them continue."""
        if self.stopped and self.task is not None:
            self.stopped = False
            self.host.world.freezer.resume(self.task)

    def reset_streams(self) -> None:
        """Break its connections to Alpaca."""
        for stream in self.streams:
            stream.reset()

    def kill(self) -> None:
        """Nothing that it does from now on leaves it; so its clean-up has no effect."""
        self.dead = True
        self.lease_way.close_for_good()
        self.store_way.close_for_good()
        self.reset_streams()
        self.resume_to_end()
        self.gone.set()

    def resume_to_end(self) -> None:
        """Its tasks end."""
        if self.stopped and self.task is not None:
            self.stopped = False
            self.host.world.freezer.resume(self.task)
        self.scope.cancel()

    @property
    def was_refused_at_its_start(self) -> bool:
        """Whether the feed refused it for good before any data, in its first term."""
        if not isinstance(self.error, FeedRefused) or self.service is None:
            return False
        group = self.service._group
        assert isinstance(group, Member)
        return group._is_a_start and not self.topologies[-1].feed._data_has_come

    @property
    def found_late(self) -> list[FeedStatus]:
        """The gaps that a second look at history has shown, written or not."""
        if self.service is None:
            return []
        states, _ = self.service.states_since(0)
        return [state for state in states if state.details.get("reason") == LATE]

    @property
    def unchecked(self) -> list[Believed[Any]]:
        """Repairs whose second look at history did not come before the end of a term."""
        found: list[Believed[Any]] = []
        for topology in self.topologies:
            recheck = topology.feed._recoveries[QUOTES]._recheck
            if recheck is not None:
                found.extend(recheck.waiting)
        return found


class GroupWorld(World):
    """Everything of one simulation of a group."""

    store: SimulatedRedis

    def __init__(self, plan: Plan, tell: Callable[[str], None] | None = None) -> None:
        super().__init__(plan, tell)
        self.hosts = [Host(self, name) for name in ("ada", "bob", "cat")[: plan.members]]
        self.processes: list[Process] = []
        self.freezer: Freezer
        self.lead_watch = LeadWatch(self)
        self.kinds = GROUP_FAULTS

    @property
    def redis(self) -> SimulatedRedis:
        """The server."""
        return self.store

    @property
    def life(self) -> Process | None:  # type: ignore[override]  # what it is asked for is the same
        """The member that leads now."""
        leading = [process for process in self.processes if process.leads and process.runs]
        return leading[-1] if leading else None

    def left_out(self) -> Collection[str]:
        """No fault of a group leaves out symbols."""
        return ()

    def choose(self) -> Process | None:
        """The member that a fault hits: most often the leader."""
        leader = self.life
        if leader is not None and self.rng.random() < _LEADER_IS_HIT:
            return leader
        host = self.rng.choice(self.hosts)
        process = host.process
        return process if process is not None and process.runs else None

    # The whole

    async def run(self) -> Outcome:
        """Faults, then peace, then the reckoning."""
        self.leftovers.begin()
        with warnings.catch_warnings(), open_freezer() as self.freezer:
            # httpcore leaves a request's body open if the connection breaks while it is sent.
            warnings.filterwarnings("ignore", "Async generator 'httpcore", ResourceWarning)
            async with (
                anyio.create_task_group() as tasks,
                open_simulator(self.plan.config, port=None, clock=self.market_clock) as self.sim,
            ):
                async with anyio.create_task_group() as parts:
                    self.parts = parts
                    rng = random.Random(f"{self.plan.seed}/redis")
                    self.store = SimulatedRedis(self.market_clock, parts, rng, GROUP_TTL_S)
                    for host in self.hosts:
                        parts.start_soon(self._keep, host)
                    parts.start_soon(self.lead_watch.run)
                    parts.start_soon(self._replicate)
                    parts.start_soon(self.market.run, self.sim, self.left_out)
                    await self._inject()
                    self._stop_faults()
                    await anyio.sleep(1)  # who was stopped may still believe that it leads
                    await self.watch.until_ready()
                    await anyio.sleep(HOLD_LIMIT_S + 1)
                    self.market.calm = True
                    await anyio.sleep(_CALM_S)
                    self.market.open = False
                    await anyio.sleep(3)
                    await until_standbys_know(self)
                    check_group_at_end(self)
                    self._over = True
                    self._end.set()
                    await anyio.sleep(_CLOSING_LIMIT_S + 3)
                    parts.cancel_scope.cancel()
                tasks.cancel_scope.cancel()
        self.leftovers.check_at_end()
        for violation in check_group(self):
            self.violated(violation)
        return self._outcome()

    @property
    def runs_of_service(self) -> int:
        """How many there were."""
        return len(self.processes)

    async def _keep(self, host: Host) -> None:
        """Start the service again when it has ended."""
        while not self._over:
            process = host.process = Process(host, len(self.processes))
            self.processes.append(process)
            self.trace(f"{process.name} starts")
            self.parts.start_soon(self._live_as, process)
            await process.gone.wait()
            if not self._over:
                await anyio.sleep(host.pause_s)
                host.pause_s = 0.0

    async def _live_as(self, process: Process) -> None:
        process.task = trio.lowlevel.current_task()
        try:
            with process.scope:
                async with open_service(
                    self._settings(),
                    store=process.make_store,
                    feeds=[
                        FeedParts(
                            STOCKS,
                            [self._driver_of(process)],
                            self._history_of(process),
                            always_open,
                            on_demand=False,
                        )
                    ],
                    clock=process.host.clock,
                    rng=random.Random(f"{self.plan.seed}/jitter/{process.number}"),
                    lease=process.lease,
                ) as service:
                    process.begin(service)
                    try:
                        await self._end.wait()
                    finally:
                        process.drain_began_s = anyio.current_time()
        except Exception as exc:
            process.error = exc
        self.trace(f"{process.name} ended {process.error!r}")
        self._look_at_the_end_of(process)
        process.gone.set()

    def _look_at_the_end_of(self, process: Process) -> None:
        if process.dead:
            return
        if process.error is not None and not process.was_refused_at_its_start:
            self.violated(f"{process.name} ended with {process.error!r}")
        redis = self.redis
        # Who could not renew it for its time steps down, and gives nothing up.
        fast = not redis.slow_s and anyio.current_time() >= redis.fast_s + LEASE_S
        works = not redis.down and redis.refusal is None
        reached = process.lease_way.is_open and works and fast
        if reached and redis.leader == process.name and not self.lead_watch.was_stopped(process):
            self.violated(f"{process.name} has ended and kept the lease")
        took_s = anyio.current_time() - (process.drain_began_s or anyio.current_time())
        if took_s > _CLOSING_LIMIT_S and not self.lead_watch.was_stopped(process):
            self.violated(f"closing {process.name} took {took_s:.3f} s")

    def _driver_of(self, process: Process) -> WebsocketsDriver:
        return WebsocketsDriver(self.sim.url, _CREDENTIALS, process.dial, feed=STOCKS)

    def _history_of(self, process: Process) -> AlpacaHistory:
        return AlpacaHistory(
            self.sim.rest_url,
            "simulator",
            _CREDENTIALS,
            process.host.clock,
            SimulatorTransport(process),  # type: ignore[arg-type]  # it only connects
            feed=STOCKS,
        )

    def _settings(self) -> Settings:
        return attrs.evolve(super()._settings(), group=GROUP, price_ttl=GROUP_TTL_S)

    async def _replicate(self) -> None:
        rng = random.Random(f"{self.plan.seed}/replica")
        while True:
            await anyio.sleep(rng.expovariate(1 / _REPLICATE_S))
            self.redis.replicate()

    # What goes wrong

    def start_redis(self, *, keeps: bool) -> None:
        """Redis runs again."""
        if self.redis.down:
            self.redis.start(keeps=keeps)

    def redis_fast(self) -> None:
        """Redis is as fast as before."""
        self.redis.slow_s = 0.0
        self.redis.fast_s = anyio.current_time()

    def step_clock_of(self, host: Host, seconds: float) -> None:
        """Set a machine's clock wrong."""
        self.set_right(host)
        host.clock.step(seconds)
        host.skew_s = seconds
        self.skews.append((anyio.current_time(), float("inf"), seconds))
        host.skews.append(len(self.skews) - 1)

    def set_right(self, host: Host) -> None:
        """Set it right again."""
        if host.skew_s:
            host.clock.step(-host.skew_s)
            place = host.skews[-1]
            start_s, _, skew_s = self.skews[place]
            self.skews[place] = start_s, anyio.current_time(), skew_s
            host.skew_s = 0.0

    def believes_it_is_earlier(self, name: str, at_s: float) -> bool:
        """Whether a member's clock was so far behind that it could not believe the prices' times."""
        (host,) = (process.host for process in self.processes if process.name == name)
        of_host = [self.skews[place] for place in host.skews]
        return any(
            start_s <= at_s <= end_s + READ_LIMIT_S and skew_s < -FAR_OFF_S
            for start_s, end_s, skew_s in of_host
        )

    def _stop_faults(self) -> None:
        self.redis.claimed = None
        for host in self.hosts:
            self.set_right(host)
            host.join()
            host.feed_down_until_s = 0.0
            host.pause_s = 0.0
        for process in self.processes:
            process.resume()
        self.start_redis(keeps=True)
        self.redis_fast()
        super()._stop_faults()
