"""The supervisor: what it restarts, what it gives up on, and how it ends. On virtual time."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import pytest
import trio

from mdservice.clock import SystemClock
from mdservice.errors import ActorFailed, ConfigurationError, FeedRefused
from mdservice.runtime.actor import Channel, Depth, Heartbeat
from mdservice.runtime.supervisor import (
    LIVE_WITHIN_S,
    STALLED_AFTER_S,
    TICK_S,
    HealthWatchdog,
    RestartPolicy,
    Supervisor,
)
from mdservice.runtime.task_groups import leaves
from mdservice.testing import VirtualClock

Act = Callable[[int], Awaitable[None]]
"""What an actor does in its nth run."""


async def for_ever(run: int) -> None:
    await anyio.sleep_forever()


def fails(after_s: float, *, times: int = 1_000_000, error: Exception | None = None) -> Act:
    """It fails in its first runs, each time after a while, and works in those after them."""

    async def act(run: int) -> None:
        await anyio.sleep(after_s)
        if run <= times:
            raise error or ValueError(f"run {run}")
        await anyio.sleep_forever()

    return act


class FakeActor:
    """An actor that does what the test says.

    Attributes:
        runs: When each run began.
        cancelled: How many runs were cancelled.
    """

    def __init__(
        self,
        name: str = "actor",
        act: Act = for_ever,
        *,
        ready_after_s: float = 0.0,
        inbox: int = 1,
    ) -> None:
        self.name = name
        self.heartbeat = Heartbeat(VirtualClock())
        self.runs: list[float] = []
        self.cancelled = 0
        self._act = act
        self._ready_after_s = ready_after_s
        self.depth = Depth(0, inbox)

    async def run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        self.runs.append(anyio.current_time())
        await anyio.sleep(self._ready_after_s)
        task_status.started()
        try:
            await self._act(len(self.runs))
        except trio.Cancelled:
            self.cancelled += 1
            raise


class Keeping:
    """A supervisor at work."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.outcome: BaseException | None = None
        self.ended = anyio.Event()
        self.ended_s = 0.0

    async def run(self) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                await tasks.start(self.supervisor.run)
        except Exception as exc:
            self.outcome = exc
        finally:
            self.ended_s = anyio.current_time()
            self.ended.set()

    async def error(self) -> Exception:
        """Wait for its end; the one error that it ended with."""
        await self.ended.wait()
        assert isinstance(self.outcome, ExceptionGroup), "it ended without an error"
        (error,) = leaves(self.outcome)
        return error


@asynccontextmanager
async def keeping(
    *actors: FakeActor, policy: RestartPolicy | None = None
) -> AsyncIterator[Keeping]:
    keeping = Keeping(Supervisor(actors, VirtualClock(), policy))
    with anyio.fail_after(10_000):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keeping.run)
            await anyio.wait_all_tasks_blocked()
            yield keeping
            tasks.cancel_scope.cancel()


def gaps(actor: FakeActor, ran_s: float) -> list[float]:
    """How long it waited before each restart."""
    runs = actor.runs
    return [later - earlier - ran_s for earlier, later in itertools.pairwise(runs)]


# ---- start


async def test_starts_one_after_the_other_each_when_the_one_before_is_ready(
    autojump_clock: Any,
) -> None:
    actors = [FakeActor(name, ready_after_s=2) for name in ("first", "second", "third")]
    async with keeping(*actors) as kept:
        await anyio.sleep(10)
        assert [actor.runs for actor in actors] == [[0], [2], [4]]
        assert [kept.supervisor.look_at(a.name).state for a in actors] == ["running"] * 3
        assert kept.supervisor.actors == actors


async def test_actor_that_fails_at_its_start_is_tried_again(autojump_clock: Any) -> None:
    class Reluctant(FakeActor):
        async def run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
            if len(self.runs) < 2:
                self.runs.append(anyio.current_time())
                raise OSError("not yet")
            await super().run(task_status=task_status)

    reluctant, after = Reluctant("reluctant"), FakeActor("after")
    async with keeping(reluctant, after) as kept:
        await anyio.sleep(10)
        assert len(reluctant.runs) == 3
        assert after.runs == [reluctant.runs[2]], "the next one waits for it"
        assert kept.supervisor.look_at("reluctant").restarts == 2


# ---- restarts


async def test_restarts_what_fails_and_leaves_the_others_alone(autojump_clock: Any) -> None:
    failing, fine = FakeActor("failing", fails(3, times=1)), FakeActor("fine")
    async with keeping(failing, fine) as kept:
        await anyio.sleep(30)
        assert failing.runs == pytest.approx([0, 3.1])
        assert fine.runs == [0]
        assert fine.cancelled == 0
        look = kept.supervisor.look_at("failing")
        assert (look.state, look.restarts, look.last_error) == ("running", 1, "ValueError: run 1")
        assert kept.supervisor.look_at("fine").restarts == 0
        assert not kept.ended.is_set()


async def test_waits_longer_with_each_restart(autojump_clock: Any) -> None:
    policy = RestartPolicy(most=8, period_s=60, first_s=0.1, limit_s=5)
    actor = FakeActor(act=fails(1, times=8))
    async with keeping(actor, policy=policy):
        await anyio.sleep(100)
        assert gaps(actor, 1) == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5])


async def test_while_it_waits_the_actor_counts_as_restarting(autojump_clock: Any) -> None:
    actor = FakeActor(act=fails(1))
    async with keeping(actor, policy=RestartPolicy(first_s=4)) as kept:
        await anyio.sleep(2)
        assert kept.supervisor.look_at("actor").state == "restarting"


async def test_too_many_restarts_end_the_service_with_the_reason(autojump_clock: Any) -> None:
    actor, other = FakeActor("actor", fails(1)), FakeActor("other")
    async with keeping(actor, other, policy=RestartPolicy(most=3, period_s=60)) as kept:
        error = await kept.error()
        assert isinstance(error, ActorFailed)
        assert str(error) == (
            "actor failed 4 times within 60 s, the last time with ValueError: run 4"
        )
        assert isinstance(error.__cause__, ValueError)
        assert len(actor.runs) == 4
        assert other.cancelled == 1
        assert kept.supervisor.look_at("actor").state == "failed"
        with anyio.fail_after(1):
            await kept.supervisor.drained()  # a dead actor is not waited for


async def test_rare_failures_never_end_the_service(autojump_clock: Any) -> None:
    actor = FakeActor(act=fails(25))
    async with keeping(actor, policy=RestartPolicy(most=3, period_s=60)) as kept:
        await anyio.sleep(2_000)
        assert not kept.ended.is_set()
        assert kept.supervisor.look_at("actor").restarts == len(actor.runs) - 1 > 70
        assert max(gaps(actor, 25)) <= 0.41, "old failures do not make it wait longer"


@pytest.mark.parametrize(
    "error",
    [ConfigurationError("no such thing"), FeedRefused("refused with 402", code=402)],
    ids=["configuration", "refused"],
)
async def test_error_that_no_restart_fixes_ends_the_service_at_once(
    autojump_clock: Any, error: Exception
) -> None:
    actor, other = FakeActor("actor", fails(1, error=error)), FakeActor("other")
    async with keeping(actor, other) as kept:
        assert await kept.error() is error
        assert len(actor.runs) == 1
        assert kept.ended_s == 1
        assert other.cancelled == 1


async def test_error_within_groups_is_found(autojump_clock: Any) -> None:
    refused = FeedRefused("refused", code=402)
    nested = ExceptionGroup("outer", [ExceptionGroup("inner", [refused])])
    async with keeping(FakeActor(act=fails(1, error=nested))) as kept:
        assert await kept.error() is refused


async def test_return_before_the_drain_is_an_error(autojump_clock: Any) -> None:
    async def returns(run: int) -> None:
        await anyio.sleep(1)

    actor = FakeActor(act=returns)
    async with keeping(actor, policy=RestartPolicy(most=1)) as kept:
        await anyio.sleep(1.05)
        assert kept.supervisor.look_at("actor").last_error == "ActorFailed: actor ended by itself"
        error = await kept.error()
        assert "ended by itself" in str(error)
        assert len(actor.runs) == 2


# ---- restart by the watchdog


async def test_stalled_actor_is_cancelled_and_run_again(autojump_clock: Any) -> None:
    actor = FakeActor()
    async with keeping(actor) as kept:
        await anyio.sleep(5)
        kept.supervisor.restart("actor", "actor has not moved for 20 s")
        await anyio.sleep(5)
        assert actor.cancelled == 1
        assert actor.runs == pytest.approx([0, 5.1])
        look = kept.supervisor.look_at("actor")
        assert (look.state, look.restarts) == ("running", 1)
        assert look.last_error == "ActorFailed: actor has not moved for 20 s"


async def test_heartbeat_starts_again_with_each_run(autojump_clock: Any) -> None:
    actor = FakeActor()
    async with keeping(actor) as kept:
        actor.heartbeat.beat("a loop of the first run")
        await anyio.sleep(50)
        kept.supervisor.restart("actor", "stalled")
        await anyio.sleep(1)
        assert actor.heartbeat.age_s() == pytest.approx(0.9)


async def test_actor_that_waits_for_its_restart_is_not_restarted_again(
    autojump_clock: Any,
) -> None:
    actor = FakeActor(act=fails(1, times=1))
    async with keeping(actor, policy=RestartPolicy(first_s=10, limit_s=10)) as kept:
        await anyio.sleep(2)
        kept.supervisor.restart("actor", "stalled")
        await anyio.sleep(20)
        assert actor.runs == pytest.approx([0, 11])


async def test_stalled_actor_that_fails_while_it_is_cancelled_is_restarted_once(
    autojump_clock: Any,
) -> None:
    async def stumbles(run: int) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            if run == 1:
                raise OSError("while closing")

    actor = FakeActor(act=stumbles)
    async with keeping(actor) as kept:
        await anyio.sleep(1)
        kept.supervisor.restart("actor", "stalled")
        await anyio.sleep(1)
        assert len(actor.runs) == 2
        kept.supervisor.drain()
        actor._act = for_ever
        kept.supervisor.restart("actor", "stalled again")
        await anyio.sleep(10)
        assert kept.supervisor.look_at("actor").last_error == "ActorFailed: stalled again"


# ---- the end


async def test_in_the_drain_an_actor_that_returns_has_done_its_work(autojump_clock: Any) -> None:
    done = anyio.Event()

    async def until_done(run: int) -> None:
        await done.wait()

    async def a_moment_longer(run: int) -> None:
        await done.wait()
        await anyio.sleep(2)

    first, second = FakeActor("first", until_done), FakeActor("second", a_moment_longer)
    watchdog = FakeActor("watchdog", inbox=0)  # without an inbox it has nothing to drain
    async with keeping(watchdog, first, second) as kept:
        kept.supervisor.drain()
        done.set()
        await kept.supervisor.drained()
        assert anyio.current_time() == 2
        states = {a.name: kept.supervisor.look_at(a.name).state for a in (watchdog, first, second)}
        assert states == {"watchdog": "running", "first": "stopped", "second": "stopped"}
        assert [len(a.runs) for a in (first, second)] == [1, 1]


async def test_in_the_drain_an_actor_that_fails_is_still_restarted(autojump_clock: Any) -> None:
    async def fails_then_returns(run: int) -> None:
        await anyio.sleep(1)
        if run == 1:
            raise OSError("once")

    actor = FakeActor(act=fails_then_returns)
    async with keeping(actor) as kept:
        kept.supervisor.drain()
        await kept.supervisor.drained()
        assert actor.runs == pytest.approx([0, 1.1])


async def test_stall_before_the_drain_does_not_count_in_it(autojump_clock: Any) -> None:
    """An error came in the place of the cancellation; the drain must not restart for it."""
    done = anyio.Event()

    async def stumbles_then_waits(run: int) -> None:
        try:
            await done.wait()
        finally:
            if run == 1:
                raise OSError("while closing")

    actor = FakeActor(act=stumbles_then_waits)
    async with keeping(actor) as kept:
        kept.supervisor.restart("actor", "stalled")
        await anyio.sleep(1)
        kept.supervisor.drain()
        done.set()
        await kept.supervisor.drained()
        assert len(actor.runs) == 2
        assert kept.supervisor.look_at("actor").state == "stopped"


async def test_cancellation_ends_every_actor(autojump_clock: Any) -> None:
    actors = [FakeActor("one"), FakeActor("two", fails(1)), FakeActor("three")]
    async with keeping(*actors, policy=RestartPolicy(most=100)):
        await anyio.sleep(3)
    assert actors[0].cancelled == actors[2].cancelled == 1


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
        assert look.stalls == 1
        assert bench.supervisor.look_at("two").stalls == 0
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


async def test_lag_is_reported_for_a_minute_and_its_maximum_for_ever(autojump_clock: Any) -> None:
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


async def test_without_an_actor_to_watch_it_still_measures(autojump_clock: Any) -> None:
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
