"""Looks at the service twice a simulated second: it tells the truth, and nothing in it grows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from mdservice.app.topology import ACKNOWLEDGED, BATCHES, COMMANDS, EVENTS, FEED, Topology
from mdservice.feed.driver import LONGEST_OPEN_TIMEOUT_S
from mdservice.feed.gap_repair.repair import MOST_HELD, GapRepair
from mdservice.model.feeds import STOCKS, feed_of
from mdservice.router.policies import (
    MOST_BARS,
    MOST_RECENT,
    MOST_REMEMBERED,
    KeepAll,
    ReplaceSameTime,
    TradeSequencer,
)
from mdservice.router.sequencer import _MOST_AT_ONE_TIME, Sequencer
from tests.simulation.answers import subscriptions_as_they_should_be

if TYPE_CHECKING:
    from tests.simulation.life import Life
    from tests.simulation.world import World

_SAMPLE_S = 0.5
_STORE_UNNOTICED_S = 5.0
_FEED_UNNOTICED_S = 3.0
_SYMBOLS_UNNOTICED_S = 10.0
_STALLED_LOGIN_S = LONGEST_OPEN_TIMEOUT_S
"""A login that met the network's silence may be under way when the faults end …"""
_LONGEST_WAIT_S = 30.0
"""… and a wait follows: 30 s at most after failures, and for a slot that stays taken for more than
a minute. In the first minute a slot is tried for every 4 to 6 s."""
_LONGEST_REFUSED_S = 300.0
"""How long a feed that refused for good is left alone."""
_SETTLING_S = 5.0
"""Login, subscription and repair, once the feed answers."""
_MOST_IN_OUTLET = 20
"""A connection leaves a handful of items at most."""
_MOST_TASKS = 60
"""Of one service: some twenty, and a few for each request that is under way."""
_MOST_STATUSES = 1_000
_MOST_KEPT = 10_000
"""Records that are never conflated: more than the markets make in the longest outage."""
_SHARED_SIZES = tuple(plan.size for plan in (EVENTS, BATCHES, ACKNOWLEDGED))


class Watch:
    """What is known of the outside, and what the service says of it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._no_connection_since_s: float | None = 0.0
        self._odd_symbols_since_s: float | None = None
        self._logins: tuple[int, int] = (0, 0)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await anyio.sleep(_SAMPLE_S)
            self._note_outside()
            life = self._world.life
            if life is not None and life.service is not None and life.drain_began_s is None:
                self._look_at(life)

    async def until_ready(self) -> None:
        """Ready again within the bound that the longest wait under way allows."""
        world = self._world
        limit_s = _STALLED_LOGIN_S + _LONGEST_WAIT_S + _SETTLING_S
        limit_s += 2 * world.plan.config.slot_hold_s
        if any(abs(skew_s) > 60 for _, _, skew_s in world.skews):
            limit_s += 120.0  # it is believed right again once fifty quotes say so
        refused = False
        with anyio.move_on_after(limit_s) as scope:
            while not (world.life and world.life.service and world.life.service.readiness().ready):
                if not refused and _is_refused(world.life):
                    refused = True
                    limit_s += _LONGEST_REFUSED_S
                    scope.deadline += _LONGEST_REFUSED_S
                await anyio.sleep(0.1)
            world.trace("ready again")
            return
        service = world.life.service if world.life else None
        reasons = service.readiness().reasons if service else "no service"
        world.violated(f"not ready {limit_s:g} s after the last fault: {reasons}")

    def untruth(self, life: Life, *, ready: bool) -> str | None:
        """What is wrong with a readiness that was told at this moment; None where nothing is.

        A fault that has begun just now cannot be known yet.
        """
        if not ready:
            return None
        now_s = anyio.current_time()
        self._note_outside()
        store_s = now_s - (self._world.store.not_working_since_s or now_s)
        if store_s > _STORE_UNNOTICED_S and now_s - life.opened_s > _STORE_UNNOTICED_S:
            return f"ready though the store has not worked for {store_s:.1f} s"
        feed_s = now_s - (self._no_connection_since_s or now_s)
        if feed_s > _FEED_UNNOTICED_S:
            return f"ready though the feed has been away for {feed_s:.1f} s"
        return None

    def _note_outside(self) -> None:
        world = self._world
        world.store.note_health()
        life = world.lives[-1] if world.lives else None
        topology = life.topology if life is not None else None
        logins = len(world.lives), topology.feed.snapshot().logins if topology is not None else 0
        if logins != self._logins:  # one that came and went between two looks counts too
            self._logins, self._no_connection_since_s = logins, None
        if any(
            connection.authenticated and connection.feed == "stocks"
            for connection in world.sim.connections
        ):
            self._no_connection_since_s = None
        elif self._no_connection_since_s is None:
            self._no_connection_since_s = anyio.current_time()

    def _look_at(self, life: Life) -> None:
        world, service = self._world, life.service
        assert service is not None
        if not service.liveness().ready:
            world.violated("not live")
        life.note_refused()
        if untruth := self.untruth(life, ready=service.readiness().ready):
            world.violated(untruth)
        self._look_at_symbols(life)
        for growth in self._grown(service._topology):
            world.violated(growth)
        tasks = world.leftovers.tasks_of_service()
        if tasks > _MOST_TASKS * len(service._topology.pipelines):
            world.violated(f"{tasks} tasks of the service run")

    def _look_at_symbols(self, life: Life) -> None:
        """Ready is: what is wanted is subscribed or named as left out, and nothing else is."""
        world, now_s = self._world, anyio.current_time()
        wanted, unsure = subscriptions_as_they_should_be(life)
        subscribed = {
            symbol
            for connection in world.sim.connections
            for symbol in connection.subscriptions.get("quotes", ())
            if connection.feed == "stocks"
        }
        stocks = {symbol for symbol in wanted if feed_of(symbol) is STOCKS}
        odd = ((stocks ^ subscribed) - unsure) - set(world.left_out())
        if not odd or not life.handle.readiness().ready:
            self._odd_symbols_since_s = None
        elif self._odd_symbols_since_s is None:
            self._odd_symbols_since_s = now_s
        elif now_s - self._odd_symbols_since_s > _SYMBOLS_UNNOTICED_S:
            world.violated(
                f"{sorted(odd)}: {sorted(wanted)} wanted, {sorted(subscribed)} subscribed"
            )
            self._odd_symbols_since_s = None

    def _grown(self, topology: Topology) -> list[str]:
        """What holds more than it says that it does."""
        symbols = len(self._world.symbols)
        most_waiting = self._world.plan.backlog + symbols + _MOST_STATUSES
        if self._world.account is not None:
            most_waiting += _MOST_KEPT
        kept = {
            # One quote per symbol and the states come on top.
            "events in the backlog": (topology.publisher.unacknowledged, most_waiting),
            "readers": (len(topology.readers), 0),
        }
        for pipeline in topology.pipelines:
            feed, name = pipeline.connection, pipeline.feed.name
            kept[f"items in the outlet of {name}"] = len(feed._send_queue), _MOST_IN_OUTLET
            for kind, recovery in feed._recoveries.items():
                if isinstance(recovery, GapRepair):
                    held = len(recovery._held) + len(recovery._held_companions)
                    kept[f"live {kind.channel} held of {name}"] = held, MOST_HELD
            for kind in pipeline.feed.kinds:
                kept |= _kept_by(pipeline.router.sequencer(kind), f"{name} {kind.channel}", symbols)
        several = len(topology.pipelines)
        sizes = (COMMANDS.size,) * several + (FEED.size,) * several + _SHARED_SIZES
        for channel, size in zip(topology.channels, sizes, strict=True):
            used = channel.statistics().current_buffer_used
            kept[f"items in a channel of {size}"] = used, size
        return [
            f"{used} {what}, at most {most}" for what, (used, most) in kept.items() if used > most
        ]


def _is_refused(life: Life | None) -> bool:
    """Whether a feed has refused for good, and is asked again only later."""
    if life is None or life.service is None:
        return False
    pipelines = life.service._topology.pipelines
    return any(each.connection.snapshot().phase == "refused" for each in pipelines)


def _kept_by(sequencer: Sequencer[Any], name: str, symbols: int) -> dict[str, tuple[int, int]]:
    """What a sequencer holds, and how much it may hold."""
    kept = {
        f"{name}: echoes": (sequencer._echoes.total(), MOST_HELD),
        f"{name}: records of one time": (
            max(map(len, sequencer._before_at_same_time.values()), default=0),
            _MOST_AT_ONE_TIME,
        ),
        f"{name}: symbols": (len(sequencer), symbols),
    }
    if isinstance(sequencer, KeepAll):
        remembered = len(sequencer._young) + len(sequencer._old)
        kept[f"{name}: remembered"] = remembered, 2 * MOST_REMEMBERED + MOST_HELD
    if isinstance(sequencer, TradeSequencer):
        most = max(map(len, sequencer._recent.values()), default=0)
        kept[f"{name}: recent trades"] = most, MOST_RECENT
    if isinstance(sequencer, ReplaceSameTime):
        most = max(map(len, sequencer._contents.values()), default=0)
        kept[f"{name}: bars"] = most, MOST_BARS
    return kept
