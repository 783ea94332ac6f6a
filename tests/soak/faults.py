"""What a soak does to the programs, one fault after another, in an order that its seed gives."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping

import anyio
import attrs
import httpx

from tests.soak.programs import Program, Programs, say

__all__ = ["FAULTS", "Fault", "faults_without_end"]

_PAUSE_S = (30.0, 90.0)
"""The time between two faults."""
_EXTRA = 50
"""How many symbols come and go at run time."""
_REQUESTS = 50
_REQUEST_LIMIT_S = 10.0

Act = Callable[[Programs, random.Random], Awaitable[None]]


@attrs.frozen
class Fault:
    """One fault.

    Attributes:
        name: What it is called in the report.
        began_s: When, seconds since the soak began.
        ended_s: When it was over; None while it lasts.
    """

    name: str
    began_s: float
    ended_s: float | None = None


async def _killed(program: Program, rng: random.Random) -> None:
    program.kill()
    await anyio.sleep(rng.uniform(0.5, 8))
    program.start()


async def _stopped(program: Program, longest_s: float, rng: random.Random) -> None:
    program.stop()
    try:
        await anyio.sleep(rng.uniform(0.5, longest_s))
    finally:
        program.go_on()


async def _feed_killed(programs: Programs, rng: random.Random) -> None:
    await _killed(programs.simulator, rng)


async def _feed_stopped(programs: Programs, rng: random.Random) -> None:
    await _stopped(programs.simulator, 40, rng)


async def _redis_killed(programs: Programs, rng: random.Random) -> None:
    await _killed(programs.redis, rng)


async def _redis_stopped(programs: Programs, rng: random.Random) -> None:
    await _stopped(programs.redis, 8, rng)


async def _service_stopped(programs: Programs, rng: random.Random) -> None:
    await _stopped(programs.service, 4, rng)


async def _gateway_stopped(programs: Programs, rng: random.Random) -> None:
    await _stopped(programs.gateway, 4, rng)


async def _symbols_changed(programs: Programs, rng: random.Random) -> None:
    symbols = [f"X{rng.randrange(2_000):04}" for _ in range(_EXTRA)]
    url = f"{programs.http}/api/v1/subscriptions"
    async with httpx.AsyncClient(timeout=_REQUEST_LIMIT_S) as client:
        await client.post(url, json={"symbols": symbols})
        await anyio.sleep(rng.uniform(1, 20))
        await client.request("DELETE", url, json={"symbols": symbols})


async def _many_requests(programs: Programs, rng: random.Random) -> None:
    paths = ("/metrics", "/status", "/api/v1/prices", "/nothing", "/api/v1/prices/%00")
    async with httpx.AsyncClient(timeout=_REQUEST_LIMIT_S) as client:
        for _ in range(_REQUESTS):
            await client.get(programs.http + rng.choice(paths))


async def _half_requests(programs: Programs, rng: random.Random) -> None:
    """Connections to the API and the relay that send half a request and are dropped."""
    for url in (programs.http, programs.relay):
        host, _, port = url.split("/")[2].partition(":")
        for _ in range(_REQUESTS):
            stream = await anyio.connect_tcp(host, int(port))
            async with stream:
                await stream.send(b"GET / HTTP/1.1\r\nHost: x\r\n"[: rng.randrange(1, 26)])


FAULTS: Mapping[str, Act] = {
    "feed killed": _feed_killed,
    "feed stopped": _feed_stopped,
    "redis killed": _redis_killed,
    "redis stopped": _redis_stopped,
    "service stopped": _service_stopped,
    "gateway stopped": _gateway_stopped,
    "symbols changed": _symbols_changed,
    "many requests": _many_requests,
    "half requests": _half_requests,
}
"""Each fault by its name."""


async def faults_without_end(
    programs: Programs, rng: random.Random, faults: list[Fault], now_s: Callable[[], float]
) -> None:
    """Make one fault after another, each recorded in ``faults``, until cancelled."""
    while True:
        await anyio.sleep(rng.uniform(*_PAUSE_S))
        name = rng.choice(sorted(FAULTS))
        faults.append(Fault(name, now_s()))
        try:
            await FAULTS[name](programs, rng)
        except (httpx.HTTPError, OSError) as exc:
            # The fault before may still have its effect, for instance on the API.
            say(f"{name}: {type(exc).__name__}: {exc}")
        faults[-1] = attrs.evolve(faults[-1], ended_s=now_s())
