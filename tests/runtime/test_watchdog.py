"""The watchdog: finds what no longer moves, and is not fooled by a loop that was blocked."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import pytest

from mdservice.clock import SystemClock
from mdservice.runtime.actor import Channel, Depth, Heartbeat
from mdservice.runtime.supervisor import Supervisor
from mdservice.runtime.watchdog import (
    LIVE_WITHIN_S,
    STALLED_AFTER_S,
    TICK_S,
    HealthWatchdog,
)
from mdservice.testing import VirtualClock


class Walker:
    """An actor that waits for its inbox; it can be made to hang."""

    depth = Depth(0, 1)

    def __init__(self, name: str, clock: Any) -> None:
        self.name = name
        self.heartbeat = Heartbeat(clock)
        self.channel = Channel[str](1)
        self.runs = 0
        self._inbox = self.channel.inbox(self.heartbeat)

    async def run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        self.runs += 1
        task_status.started()
        async for word in self._inbox:
            if word == "hang":
                await anyio.sleep_forever()
            if word == "rest":
                self.heartbeat.rest()
                await anyio.sleep_forever()


class Bench:
    def __init__(self, clock: Any) -> None:
        self.clock = clock
        self.walkers = [Walker("one", clock), Walker("two", clock)]
        self.watchdog = HealthWatchdog(clock)
        self.supervisor = Supervisor([self.watchdog, *self.walkers], clock)
        self.watchdog.watch(self.supervisor)

    async def tell(self, number: int, word: str) -> None:
        await self.walkers[number].channel.outbox.send(word)

    @property
    def restarts(self) -> list[int]:
        return [self.supervisor.look_at(walker.name).restarts for walker in self.walkers]


@asynccontextmanager
async def open_bench(clock: Any = None) -> AsyncIterator[Bench]:
    bench = Bench(clock or VirtualClock())
    try:
        async with anyio.create_task_group() as tasks:
            await tasks.start(bench.supervisor.run)
            yield bench
            tasks.cancel_scope.cancel()
    finally:
        for walker in bench.walkers:
            walker.channel.close()


async def test_actors_that_wait_for_their_inbox_are_left_alone(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        await anyio.sleep(600)
        assert bench.restarts == [0, 0]


async def test_stalled_actor_is_found_and_restarted_and_only_that(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        await anyio.sleep(100)
        await bench.tell(0, "hang")
        await anyio.sleep(STALLED_AFTER_S - 1)
        assert bench.restarts == [0, 0], "too early: it may still be waiting for something"
        await anyio.sleep(1 + 3 * TICK_S)
        assert bench.restarts == [1, 0]
        look = bench.supervisor.look_at("one")
        assert look.state == "running"
        assert "one has not moved for 1" in str(look.last_error)
        await anyio.sleep(600)
        assert bench.restarts == [1, 0], "it moves again"


async def test_actor_that_hangs_each_time_is_restarted_each_time(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        for number in range(1, 4):
            await bench.tell(1, "hang")
            await anyio.sleep(30)
            assert bench.restarts == [0, number]


async def test_actor_that_rests_is_left_alone(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        await bench.tell(0, "rest")
        await anyio.sleep(600)
        assert bench.restarts == [0, 0]


async def test_after_a_mere_lag_nothing_is_restarted(autojump_clock: Any) -> None:
    """A loop that was blocked makes every heartbeat old at once, and every timer due."""
    async with open_bench() as bench:
        await anyio.sleep(10)
        for _ in range(5):
            autojump_clock.jump(120)
            await anyio.sleep(3.3)
        await anyio.sleep(60)
        assert bench.restarts == [0, 0]
        assert bench.watchdog.snapshot().loop_lag_max_ms == pytest.approx(120_000, rel=0.01)


async def test_lag_is_told_for_a_minute_and_its_maximum_for_ever(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        await anyio.sleep(5)
        assert bench.watchdog.snapshot().loop_lag_ms < 1
        autojump_clock.jump(2.5)
        await anyio.sleep(5)
        assert bench.watchdog.snapshot().loop_lag_ms == pytest.approx(2_500, abs=501)
        await anyio.sleep(65)
        now = bench.watchdog.snapshot()
        assert now.loop_lag_ms < 1
        assert now.loop_lag_max_ms == pytest.approx(2_500, abs=501)


async def test_is_alive_while_it_looks_around(autojump_clock: Any) -> None:
    async with open_bench() as bench:
        await anyio.sleep(100)
        assert bench.watchdog.liveness().ready
        autojump_clock.jump(LIVE_WITHIN_S - TICK_S)
        assert bench.watchdog.liveness().ready
        autojump_clock.jump(2 * TICK_S)
        look = bench.watchdog.liveness()
        assert not look.ready
        assert "has not looked around for" in look.reasons[0]
        await anyio.sleep(2 * TICK_S)
        assert bench.watchdog.liveness().ready


async def test_without_anybody_to_watch_it_still_measures(autojump_clock: Any) -> None:
    watchdog = HealthWatchdog(VirtualClock())
    async with anyio.create_task_group() as tasks:
        await tasks.start(watchdog.run)
        await anyio.sleep(10)
        assert watchdog.liveness().ready
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_really_blocked_event_loop_is_measured(backend: str) -> None:
    """On real time: 0.3 s in which the loop does nothing else."""
    blocked_s = 0.3

    async def scene() -> None:
        async with open_bench(SystemClock()) as bench:
            await anyio.sleep(TICK_S / 2)
            time.sleep(TICK_S / 2 + blocked_s)
            await anyio.sleep(0.05)
            lag_ms = bench.watchdog.snapshot().loop_lag_ms
            assert blocked_s * 1000 * 0.8 <= lag_ms <= blocked_s * 1000 + 400
            assert bench.restarts == [0, 0]

    anyio.run(scene, backend=backend)
