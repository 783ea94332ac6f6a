"""What can go wrong, at every seam; which of it does, and when, is drawn from the seed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import anyio

from mdservice.simulator import (
    SILENCE,
    CutRest,
    Drop,
    Duplicate,
    Freeze,
    Garble,
    GarbleRest,
    Mute,
    Refuse,
    RefuseRest,
    Reorder,
    SendError,
    Slow,
    SlowRest,
    Spoil,
)
from mdservice.testing import Slow as SlowStore
from mdservice.testing import StoreFault

if TYPE_CHECKING:
    from tests.simulation.world import World

FAULTS: dict[str, Callable[[World], Awaitable[str | None]]] = {}
"""By name; each injects itself and tells what it did, or None where it did nothing."""

HISTORY, LATEST = "/v2/stocks/quotes", "/v2/stocks/quotes/latest"
_PATHS = {
    "stocks": (HISTORY, LATEST, "/v2/stocks/trades", "/v2/stocks/bars"),
    "crypto": tuple(f"/v1beta3/crypto/us/{name}" for name in ("quotes", "trades", "bars")),
    "options": ("/v1beta1/options/trades", "/v1beta1/options/quotes/latest"),
    "news": ("/v1beta1/news",),
}
"""What the service asks REST about each feed."""
_ACTORS = ("redis_writer", "event_publisher", "quote_router", "feed_connection")


def fault(function: Callable[[World], Awaitable[str | None]]) -> None:
    """Add a kind of fault under the function's name."""
    FAULTS[function.__name__] = function


# The feed


@fault
async def feed_drop(world: World) -> str:
    how = world.rng.choice(("reset", "half-close", "close"))
    code = world.rng.choice((1000, 1001, 1011, 1012))
    world.inject(Drop(how, code))
    return f"{how} {code}"


@fault
async def feed_error(world: World) -> str:
    code = world.rng.choice((400, 401, 403, 404, 405, 406, 407, 410, 500, 599))
    world.inject(SendError(code))
    return str(code)


@fault
async def login_refuse_upgrade(world: World) -> str:
    status = world.rng.choice((429, 500, 502, 503, 504, 404))
    world.inject(Refuse(status, "upgrade", world.rng.randrange(1, 4)))
    return await and_drop(world, str(status))


@fault
async def login_refuse(world: World) -> str:
    when = world.rng.choice(("connect", "auth"))
    code = world.rng.choice((404, 406, 406, 500))
    world.inject(Refuse(code, when, world.rng.randrange(1, 3)))
    return await and_drop(world, f"{when} {code}")


@fault
async def login_refuse_for_good(world: World) -> str:
    code = world.rng.choice((402, 409, 411))
    world.inject(Refuse(code, "auth", 1))
    return await and_drop(world, str(code))


@fault
async def login_refuse_subscribe(world: World) -> str:
    code = world.rng.choice((400, 405, 405, 407, 500))
    world.inject(Refuse(code, "subscribe", world.rng.randrange(1, 3)))
    return await and_drop(world, str(code))


@fault
async def login_stall(world: World) -> str:
    when = world.rng.choice(("upgrade", "connect", "auth", "subscribe"))
    world.inject(Refuse(SILENCE, when, world.rng.randrange(1, 3)))
    return await and_drop(world, when)


async def and_drop(world: World, what: str) -> str:
    """A refusal is met at the next connection; most often that is now."""
    if world.rng.random() < 0.7:
        world.inject(Drop("reset"))
        what += ", reset"
    return what


@fault
async def data_mute(world: World) -> str:
    for_s = world.rng.choice((0.5, 5.0, 40.0, 120.0))
    world.inject(Mute(for_s))
    return f"{for_s:g} s"


@fault
async def data_freeze(world: World) -> str:
    for_s = world.rng.choice((0.5, 3.0, 15.0, 60.0))
    world.inject(Freeze(for_s))
    return f"{for_s:g} s"


@fault
async def data_slow(world: World) -> str:
    delay_s = world.rng.choice((0.01, 0.2, 1.0))
    world.inject(Slow(delay_s, world.rng.uniform(1, 15)))
    return f"{delay_s:g} s"


@fault
async def data_garble(world: World) -> str:
    world.inject(world.rng.choice((Garble, Spoil))(world.rng.randrange(1, 4)))
    return ""


@fault
async def data_duplicate(world: World) -> str:
    world.inject(Duplicate(world.rng.randrange(1, 6)))
    return ""


@fault
async def data_reorder(world: World) -> str:
    world.inject(Reorder(world.rng.randrange(1, 6)))
    return ""


@fault
async def data_burst(world: World) -> str:
    count = world.rng.choice((300, 1_500))
    world.market.publish(world.sim, count, world.left_out())
    return f"{count} quotes"


@fault
async def network_down(world: World) -> str:
    for_s = world.rng.choice((1.0, 10.0, 30.0))
    world.network_down_until_s = anyio.current_time() + for_s
    world.network_silent = world.rng.random() < 0.5
    world.inject(Drop("reset"))
    return f"{for_s:g} s{', silent' if world.network_silent else ''}"


# REST


def actors(world: World) -> tuple[str, ...]:
    """The actors of the service that may be restarted."""
    if world.account is None or world.aim in {None, "stocks"}:
        return _ACTORS
    return f"{world.aim}_router", f"{world.aim}_connection"


def rest_path(world: World) -> str | None:
    """The requests that a fault is about; None for all."""
    if world.account is not None:
        return world.rng.choice((*(_PATHS[world.aim] if world.aim else ()), None))
    return world.rng.choice((HISTORY, HISTORY, LATEST, None))


@fault
async def rest_refuse(world: World) -> str:
    status = world.rng.choice((403, 422, 500, 503, 504))
    world.inject(RefuseRest(status, 0, "no", rest_path(world), world.rng.randrange(1, 5)))
    return await and_drop(world, str(status))


@fault
async def rest_slow(world: World) -> str:
    delay_s = world.rng.choice((0.5, 3.0, 9.0, 30.0, float("inf")))
    world.inject(SlowRest(delay_s, rest_path(world), world.rng.randrange(1, 4)))
    return await and_drop(world, f"{delay_s:g} s")


@fault
async def rest_cut(world: World) -> str:
    world.inject(CutRest(rest_path(world), world.rng.randrange(1, 4)))
    return await and_drop(world, "")


@fault
async def rest_garble(world: World) -> str:
    world.inject(GarbleRest(rest_path(world), world.rng.randrange(1, 4)))
    return await and_drop(world, "")


# The store


@fault
async def store_script(world: World) -> str:
    faults = world.rng.choices(tuple(StoreFault), k=world.rng.randrange(1, 5))
    world.store.script.extend(faults)
    if world.rng.random() < 0.3:
        world.store.drop_connection()
    return ", ".join(fault.name for fault in faults)


@fault
async def store_slow(world: World) -> str:
    seconds = world.rng.choice((0.05, 0.5, 2.5))
    world.store.script.extend([SlowStore(seconds)] * world.rng.randrange(1, 5))
    return f"{seconds:g} s"


@fault
async def store_down(world: World) -> str:
    for_s = world.rng.choice((0.3, 2.0, 10.0, 40.0))
    empty = world.rng.random() < 0.3
    world.store.down = True
    world.later(for_s, world.store_up)
    if empty:
        world.store.restart()
    else:
        world.store.drop_connection()
    return f"{for_s:g} s{', comes back empty' if empty else ''}"


@fault
async def store_refuses(world: World) -> str:
    for_s = world.rng.choice((0.3, 3.0, 20.0))
    world.store.refusal = world.rng.choice(
        ("READONLY You can't write against a read only replica.", "OOM command not allowed")
    )
    world.later(for_s, world.store_up)
    return f"{world.store.refusal[:8]} {for_s:g} s"


@fault
async def store_restart(world: World) -> str:
    world.store.restart()
    return "empty"


# The clock


@fault
async def clock_step(world: World) -> str:
    step_s = world.rng.choice((-2.0, -0.3, 0.3, 2.0))
    world.step_clock(step_s)
    world.later(world.rng.uniform(1, 20), world.set_clock_right)
    return f"{step_s:g} s"


@fault
async def clock_far_off(world: World) -> str:
    step_s = world.rng.choice((-3_600.0, -90.0, 90.0, 3_600.0))
    world.step_clock(step_s)
    world.later(world.rng.uniform(1, 20), world.set_clock_right)
    return f"{step_s:g} s"


# The service


@fault
async def service_restart(world: World) -> str | None:
    if world.life is None or world.scope is None:
        return None
    world.life.cut_short = True
    world.scope.cancel()
    return "cancelled"


@fault
async def service_actor_restart(world: World) -> str | None:
    name = world.rng.choice(actors(world))
    now = anyio.current_time()
    if world.life is None or world.life.service is None or now < world.no_restart_before_s:
        return None
    world.no_restart_before_s = now + 15
    world.life.service._topology.supervisor.restart(name, "simulated")
    return name


@fault
async def symbols_change(world: World) -> str | None:
    return await world.clients.change_subscriptions()
