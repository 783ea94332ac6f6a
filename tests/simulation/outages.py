"""More of what can go wrong: whole parts that go away, and cancellation at any step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio
import trio

from mdservice.simulator import CutRest, RefuseRest
from tests.simulation.faults import FAULTS, actors, and_drop, fault, rest_path

if TYPE_CHECKING:
    from tests.simulation.world import World

__all__ = ["FAULTS", "SEAMS", "fault"]

SEAMS = (
    "alpaca",
    "feed",
    "login",
    "data",
    "network",
    "rest",
    "store",
    "clock",
    "service",
    "symbols",
    "positions",
)
"""The names begin with one of these."""
_PAUSE_BETWEEN_RESTARTS_S = 15.0


class _AtStep(trio.abc.Instrument):
    """Calls a function before the task step that is so many away."""

    def __init__(self, steps: int, then: Callable[[], None]) -> None:
        self._left = steps
        self._then = then

    def before_task_step(self, _task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if not self._left:
            trio.lowlevel.remove_instrument(self)
            self._then()


def _at_a_step(world: World, then: Callable[[], None]) -> str:
    """Let it happen between two steps of the scheduler, unless the faults are over then."""
    steps = world.rng.choice((world.rng.randrange(1, 60), world.rng.randrange(1, 3_000)))

    def unless_over() -> None:
        if world.faults_over_s is None:
            then()

    trio.lowlevel.add_instrument(_AtStep(steps, unless_over))
    return f"in {steps} steps"


@fault
async def alpaca_restart(world: World) -> str:
    """Alpaca restarts: it forgets who was connected, and is away for a while."""
    for_s = world.rng.choice((0.5, 3.0, 12.0))
    code = world.rng.choice((1001, 1012, None))
    world.network_down_until_s = anyio.current_time() + for_s
    world.network_silent = False
    world.sim._account._slots.clear()
    for connection in list(world.sim._connections.values()):
        if connection.session is None or code is None:
            connection.reset()
        else:
            connection.hang_up(code)
    return f"{for_s:g} s, {code or 'reset'}"


@fault
async def rest_half(world: World) -> str:
    """Half an answer, and then nothing."""
    world.inject(CutRest(rest_path(world), world.rng.randrange(1, 3), stalls=True))
    return await and_drop(world, "")


@fault
async def rest_refuse_symbol(world: World) -> str:
    """One symbol spoils every list that it is in."""
    symbol = world.rng.choice(world.symbols)
    status = world.rng.choice((400, 404, 422))
    words = world.rng.choice(("no", f"invalid symbol: {symbol}"))
    times = world.rng.randrange(1, 30)
    world.inject(RefuseRest(status, 0, words, rest_path(world), times, symbol))
    return await and_drop(world, f"{symbol} {status}")


@fault
async def store_empties(world: World) -> str:
    """It restarts empty with the next batch, before or after it is executed."""
    world.store.empties_at_write = world.rng.choice(("before", "after"))
    return world.store.empties_at_write


@fault
async def service_cancel(world: World) -> str | None:
    """Its scope is cancelled at any step, also while it starts or ends."""
    life, scope = world.lives[-1], world.scope
    if scope is None:
        return None

    def cancel() -> None:
        life.cut_short = True
        scope.cancel()

    return _at_a_step(world, cancel)


@fault
async def service_actor_cancel(world: World) -> str | None:
    """One actor is restarted at any step."""
    name = world.rng.choice(actors(world))
    life, now_s = world.life, anyio.current_time()
    if life is None or life.service is None or now_s < world.no_restart_before_s:
        return None
    world.no_restart_before_s = now_s + _PAUSE_BETWEEN_RESTARTS_S
    supervisor = life.service._topology.supervisor
    return f"{name} {_at_a_step(world, lambda: supervisor.restart(name, 'simulated'))}"


@fault
async def service_restart_without_store(world: World) -> str | None:
    """It is started again while the store is away."""
    if world.life is None or world.scope is None:
        return None
    for_s = world.rng.choice((1.0, 5.0, 20.0))
    world.store.down = True
    world.store.drop_connection()
    world.later(for_s, world.store_up)
    world.life.cut_short = True
    world.scope.cancel()
    return f"away for {for_s:g} s"


@fault
async def symbols_limit(world: World) -> str:
    """From the next login on the plan allows fewer symbols, or more."""
    limits = (1, 3, 4, 5) if world.account is None else (1, 5, 20, 30)
    world.sim.symbol_limit = world.rng.choice((*limits, None, None))
    return await and_drop(world, str(world.sim.symbol_limit))
