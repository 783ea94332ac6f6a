"""What the simulation itself stands on: its clock, its steps, its calls, its command line."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
import trio
import trio.testing

from tests.simulation import __main__ as command
from tests.simulation.asgi import call
from tests.simulation.clocks import SimulatedClock, jumping_clock
from tests.simulation.outages import _AtStep
from tests.simulation.plan import Outcome
from tests.simulation.scheduling import run_seeded
from tests.simulation.world import simulate

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_the_clock_jumps_as_trios_own_does() -> None:
    async def sleep() -> tuple[float, float, float, int]:
        simulated = SimulatedClock()
        before_ns = simulated.utc_ns()
        await trio.sleep(90)
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        after_ns = simulated.utc_ns()
        return (
            trio.current_time(),
            trio.testing.MockClock.current_time(clock),
            simulated.monotonic(),
            after_ns - before_ns,
        )

    assert trio.run(sleep, clock=jumping_clock()) == (90, 90, 90, 90_000_000_000)


async def _cancelled_at(steps: int) -> list[int]:
    seen: list[int] = []

    async def count() -> None:
        for number in range(100):
            seen.append(number)
            await trio.lowlevel.checkpoint()

    with trio.CancelScope() as scope:
        trio.lowlevel.add_instrument(_AtStep(steps, scope.cancel))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            nursery.start_soon(count)
    return seen


def test_a_step_is_the_same_one_in_every_run() -> None:
    def cancelled_at(steps: int) -> list[int]:
        return run_seeded(1, lambda: _cancelled_at(steps))

    assert cancelled_at(30) == cancelled_at(30)
    assert len(cancelled_at(30)) < len(cancelled_at(31)) + 1 < 60
    assert len(cancelled_at(10)) < len(cancelled_at(50))


@pytest.mark.parametrize("only", ["service_cancel", "alpaca", "rest_half"])
def test_a_seed_of_the_newer_faults_replays_exactly(only: str) -> None:
    first, second = (simulate(7, only=(only,), gateway=False) for _ in range(2))
    assert first.trace == second.trace
    assert first.faults == second.faults
    assert first.faults.total()


@pytest.mark.parametrize(
    "path", ["app/group.py", "redis_io/lease.py", "router/actor.py", "feed/gap_repair/repair.py"]
)
def test_the_linter_refuses_what_would_make_two_runs_of_a_seed_differ(path: str) -> None:
    calls = {
        "time": ["time", "monotonic", "localtime"],
        "random": ["random", "gauss"],
        "threading": ["Thread", "Timer"],
        "socket": ["socket"],
        "trio": ["open_tcp_stream"],
    }
    lines = [f"import {module}" for module in calls]
    lines += [f"{module}.{name}()" for module, names in calls.items() for name in names]
    command = ["check", "--select=TID251", "--output-format=concise", "--stdin-filename"]
    answer = subprocess.run(
        [sys.executable, "-m", "ruff", *command, f"mdservice/{path}", "-"],
        cwd=ROOT,
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=False,
    )
    for module, names in calls.items():
        for name in names:
            assert f"`{module}.{name}` is banned" in answer.stdout, answer.stdout + answer.stderr


async def test_an_application_is_called_with_what_was_asked() -> None:
    async def echo(scope: dict, receive: trio.abc.Instrument, send: trio.abc.Instrument) -> None:
        body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 201})
        await send({"type": "http.response.body", "body": scope["query_string"] + b" "})
        await send({"type": "http.response.body", "body": body})

    answer = await call(echo, "POST", "/x", b'{"a":1}', symbols="A,B")
    assert (answer.status, answer.body) == (201, b'symbols=A%2CB {"a":1}')


def test_a_seed_that_fails_shows_how_to_replay_it(capsys: pytest.CaptureFixture[str]) -> None:
    totals = command._Totals(command._Choice(("feed",)))
    totals.add(Outcome(7, faults=Counter(feed_drop=2)))
    totals.add(Outcome(8, ["a promise was broken"], faults=Counter(feed_drop=1, feed_error=1)))
    totals.tell()
    told = capsys.readouterr().out
    assert totals.failed == 1
    assert "-m tests.simulation --replay 8 --only feed\n    a promise was broken\n" in told
    assert "2 seeds, 1 failed" in told
    assert told.endswith("faults: feed_drop 3, feed_error 1\n")


def test_no_seed_begins_after_the_time_is_over() -> None:
    assert list(command._outcomes(range(1, 1_000), command._Choice(), 2, 0.0)) == []


def test_every_seed_that_began_is_reported() -> None:
    choice = command._Choice(("none",), account=False, group=False)
    outcomes = list(command._outcomes(range(1, 4), choice, 1, float("inf")))
    assert sorted(outcome.seed for outcome in outcomes) == [1, 2, 3]
    assert not any(outcome.violations for outcome in outcomes)


def test_time_of_the_simulation_costs_no_time() -> None:
    """A whole day goes by as fast as it is asked for."""

    async def a_day() -> float:
        await anyio.sleep(86_400)
        return anyio.current_time()

    assert run_seeded(1, a_day) == 86_400
