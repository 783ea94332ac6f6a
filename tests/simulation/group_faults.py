"""What can go wrong of a group of services: with one of them, its ways to others, or what all share.

Which of the members it hits, and for how long, is drawn from the seed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from mdservice.errors import MDServiceError
from tests.simulation.names import DYNAMIC
from tests.simulation.outages import FAULTS

if TYPE_CHECKING:
    from tests.simulation.group_world import GroupWorld

GROUP_FAULTS: dict[str, Callable[[GroupWorld], Awaitable[str | None]]] = {}
"""By name, as those of one service."""

_SHARED = (
    "feed_drop",
    "feed_error",
    "login_refuse_upgrade",
    "login_refuse",
    "login_stall",
    "data_mute",
    "data_freeze",
    "data_slow",
    "data_garble",
    "data_duplicate",
    "data_reorder",
    "data_burst",
    "network_down",
    "alpaca_restart",
    "rest_refuse",
    "rest_slow",
    "rest_cut",
    "rest_garble",
    "rest_half",
)
"""Faults of what all members use, which are those of one service."""

GROUP_SEAMS = (
    "member",
    "way",
    "redis",
    "clock",
    "feed",
    "login",
    "data",
    "network",
    "alpaca",
    "rest",
)
"""The names begin with one of these."""


def group_fault(function: Callable[[GroupWorld], Awaitable[str | None]]) -> None:
    """Add a kind of fault under the function's name."""
    GROUP_FAULTS[function.__name__] = function


# A member


@group_fault
async def member_kill(world: GroupWorld) -> str | None:
    """It ends without any clean-up, and is started again later."""
    if (process := world.choose()) is None:
        return None
    process.host.pause_s = world.rng.choice((0.0, 0.5, 5.0, 20.0))
    process.kill()
    return f"{process.name}, back after {process.host.pause_s:g} s"


@group_fault
async def member_end(world: GroupWorld) -> str | None:
    """It is ended as by SIGTERM, and is started again later."""
    if (process := world.choose()) is None:
        return None
    process.host.pause_s = world.rng.choice((0.0, 0.5, 5.0))
    process.scope.cancel()
    return f"{process.name}, back after {process.host.pause_s:g} s"


@group_fault
async def member_stop(world: GroupWorld) -> str | None:
    """It is stopped as by SIGSTOP, and continues later."""
    if (process := world.choose()) is None:
        return None
    for_s = world.rng.choice((0.3, 2.0, 3.2, 5.0, 12.0, 45.0))
    process.stop()
    world.later(for_s, process.resume)
    return f"{process.name} {for_s:g} s"


@group_fault
async def member_hit_at_claim(world: GroupWorld) -> str:
    """Who claims the lease next is hit before it has the answer."""
    what = world.rng.choice(("kill", "stop", "stop", "cut"))
    for_s = world.rng.choice((0.5, 3.5, 8.0))

    def hit(name: str) -> None:
        (process,) = (each for each in world.processes if each.name == name)
        if world.faults_over_s is not None or process.dead:
            return
        world.trace(f"{name} is hit at its claim: {what}")
        if what == "kill":
            process.host.pause_s = for_s
            process.kill()
        elif what == "stop":
            process.stop()
            world.later(for_s, process.resume)
        else:
            process.host.cut("lease", silent=False)
            world.later(for_s, process.host.join)

    world.redis.claimed = hit
    leader = world.life
    if leader is not None and world.rng.random() < 0.7:  # so that another one claims soon
        leader.host.pause_s = 1.0
        leader.kill()
    return f"{what} {for_s:g} s"


@group_fault
async def member_symbols(world: GroupWorld) -> str | None:
    """Somebody subscribes to symbols at the leader, or no longer wants them."""
    leader = world.life
    if leader is None or leader.service is None:
        return None
    symbols = world.rng.sample(DYNAMIC, world.rng.randrange(1, 3))
    adding = world.rng.random() < 0.6
    change = leader.service.subscribe if adding else leader.service.unsubscribe
    try:
        outcome = (await change(*symbols)).status
    except MDServiceError as exc:
        outcome = f"refused: {exc}"
    return f"{leader.name} {'subscribe' if adding else 'unsubscribe'} {symbols} {outcome}"


# Its ways


@group_fault
async def way_to_redis(world: GroupWorld) -> str | None:
    """It cannot reach Redis: for the lease, for the prices, or for both."""
    if (process := world.choose()) is None:
        return None
    what = world.rng.choice(("both", "both", "lease", "store"))
    silent = world.rng.random() < 0.5
    for_s = world.rng.choice((0.3, 1.5, 3.0, 4.5, 8.0, 25.0))
    process.host.cut(what, silent=silent)
    world.later(for_s, process.host.join)
    return f"{process.host.name} {what}{', silent' if silent else ''} {for_s:g} s"


@group_fault
async def way_to_feed(world: GroupWorld) -> str | None:
    """It cannot reach Alpaca."""
    if (process := world.choose()) is None:
        return None
    silent = world.rng.random() < 0.5
    for_s = world.rng.choice((1.0, 5.0, 20.0))
    process.host.cut_feed(for_s, silent=silent)
    return f"{process.host.name}{', silent' if silent else ''} {for_s:g} s"


# Redis


@group_fault
async def redis_restart(world: GroupWorld) -> str:
    """It is away for a while, and comes back with its data or without any."""
    for_s = world.rng.choice((0.0, 0.5, 3.0, 6.0, 20.0))
    keeps = world.rng.random() < 0.6
    world.redis.stop()
    world.later(for_s, lambda: world.start_redis(keeps=keeps))
    return f"{for_s:g} s{'' if keeps else ', comes back empty'}"


@group_fault
async def redis_slow(world: GroupWorld) -> str:
    """Each answer takes longer."""
    world.redis.slow_s = world.rng.choice((0.05, 0.3, 1.3, 2.5))
    for_s = world.rng.choice((2.0, 8.0))
    world.later(for_s, world.redis_fast)
    return f"{world.redis.slow_s:g} s"


@group_fault
async def redis_refuses(world: GroupWorld) -> str:
    """It refuses every write."""
    for_s = world.rng.choice((0.3, 3.5, 12.0))
    world.redis.refusal = world.rng.choice(
        ("READONLY You can't write against a read only replica.", "OOM command not allowed")
    )
    world.later(for_s, world.store_up)
    return f"{world.redis.refusal[:8]} {for_s:g} s"


@group_fault
async def redis_fail_over(world: GroupWorld) -> str:
    """Its address leads to a replica, which lacks the last writes."""
    world.redis.fail_over()
    return ""


# The clock


@group_fault
async def clock_step(world: GroupWorld) -> str:
    """The clock of one machine is set wrong, and right again later."""
    host = world.rng.choice(world.hosts)
    step_s = world.rng.choice((-2.0, -0.3, 0.3, 2.0))
    world.step_clock_of(host, step_s)
    world.later(world.rng.uniform(1, 20), lambda: world.set_right(host))
    return f"{host.name} {step_s:g} s"


@group_fault
async def clock_far_off(world: GroupWorld) -> str:
    """The clock of one machine is set far off, and right again later."""
    host = world.rng.choice(world.hosts)
    step_s = world.rng.choice((-3_600.0, -90.0, 90.0, 3_600.0))
    world.step_clock_of(host, step_s)
    world.later(world.rng.uniform(1, 20), lambda: world.set_right(host))
    return f"{host.name} {step_s:g} s"


for _name in _SHARED:
    GROUP_FAULTS[_name] = FAULTS[_name]  # type: ignore[assignment]  # a GroupWorld is a World
