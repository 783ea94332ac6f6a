"""``python -m tests.bench [quick | repair]``: websocket in, Redis out, whole processes, real parts.

Compares the service, with each of its drivers, with what users write today: an alpaca-py
handler that awaits SET and PUBLISH for each quote (program A). Everything runs on loopback
and UNIX sockets; the program under test has a core to itself, where there are two, and the
feed, a Valkey server and a listener share the other.

A run is one program from its start to its end: first 1,000 quotes a second, for the latency,
then a flood. Runs are interleaved, figures are medians of the rounds. The exit code is 1 when
a price, an event or a count was not as it must be.

``repair`` measures something else: see :mod:`tests.bench.repair`.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from types import FrameType

import anyio
import attrs
import redis

from mdservice.sinks.embedded import open_embedded_server
from tests.bench import repair
from tests.bench.checks import Market
from tests.bench.processes import REPOSITORY, Cores, pin
from tests.bench.programs import PlainHandler, Program, Service
from tests.bench.results import Measured, Search, machine, table, write
from tests.bench.runs import Load, Outcome, Stage, bench

LIMIT_S = 240
"""Nothing here may take longer."""
_REFERENCE = PlainHandler()
_PROGRAMS: tuple[Program, ...] = (_REFERENCE, Service("websockets"), Service("alpaca-py"))
_LISTENER_BUFFER_BYTES = 268_435_456
_BUSY = 0.7
_LOWEST, _HIGHEST = 0.4, 1.2
"""Where the pace that publishes every quote is looked for, times the flood's figure."""


@attrs.frozen
class Plan:
    """How long to measure.

    Attributes:
        rounds: How often each program is measured.
        paced: The quiet load of each run.
        flood_s: How long the flood of each run lasts.
        search_s: How long each pace of the search is tried.
        search_steps: How many paces are tried; 0 leaves the search out.
    """

    rounds: int
    paced: Load
    flood_s: float
    search_s: float
    search_steps: int


FULL = Plan(rounds=3, paced=Load(1000, 2.5), flood_s=3, search_s=4, search_steps=4)
QUICK = Plan(rounds=2, paced=Load(1000, 1.2), flood_s=1.8, search_s=0, search_steps=0)


class Benchmark:
    """The runs of a plan, one after the other; wrong results are collected.

    Args:
        plan: How long to measure.
        stage: What all runs share.
        folder: For the processes' logs and sockets.
    """

    def __init__(self, plan: Plan, stage: Stage, folder: Path) -> None:
        self.wrong: list[str] = []
        self._plan = plan
        self._stage = stage
        self._folder = folder
        self._runs = 0

    def measure(self) -> list[Measured]:
        """Every program in every round, each round beginning with another."""
        measured = []
        for number in range(self._plan.rounds):
            turn = number % len(_PROGRAMS)
            for program in (*_PROGRAMS[turn:], *_PROGRAMS[:turn]):
                paced, flood = self._run(program, (self._plan.paced, Load(0, self._plan.flood_s)))
                measured.append(Measured(number, program.name, paced, flood))
        return measured

    def search(self, program: Program, flood_per_s: float) -> Search:
        """Halve the range in which the highest pace without conflation lies."""
        lowest, highest = _LOWEST * flood_per_s, _HIGHEST * flood_per_s
        best, tried = 0.0, []
        with bench(self._stage, program, Market(), self._new_folder()) as running:
            for _ in range(self._plan.search_steps):
                rate = round((lowest + highest) / 2, -3)
                outcome = running.apply(Load(rate, self._plan.search_s))
                self._note(program, outcome)
                tried.append(outcome)
                if outcome.every_quote:
                    best = lowest = rate
                else:
                    highest = rate
        return Search(program.name, best, tried)

    def _run(self, program: Program, loads: Sequence[Load]) -> list[Outcome]:
        with bench(self._stage, program, Market(), self._new_folder()) as running:
            outcomes = []
            for load in loads:
                outcomes.append(running.apply(load))
                self._note(program, outcomes[-1])
            return outcomes

    def _new_folder(self) -> Path:
        self._runs += 1
        folder = self._folder / str(self._runs)
        folder.mkdir()
        return folder

    def _note(self, program: Program, outcome: Outcome) -> None:
        """Tell how it went."""
        load = f"{outcome.load.rate:,.0f}/s" if outcome.load.rate else "flood"
        p50, p99 = (f"{ms:,.2f}" if ms is not None else "-" for ms in outcome.latency_ms)
        verdict = "not checked" if outcome.wrong is None else "right"
        if outcome.wrong:
            verdict = "WRONG"
            self.wrong += [f"{program.name}, {load}: {reason}" for reason in outcome.wrong]
        conflated = "" if outcome.conflated is None else f", {outcome.conflated:,} conflated"
        say(
            f"{program.name:24} {load:>10}: {outcome.in_per_s:>9,.0f}/s in, "
            f"{outcome.out_per_s:>9,.0f}/s out{conflated}, "
            f"latency {p50} / {p99} ms, {verdict}"
        )


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def main(plan: Plan) -> int:
    """Run it all; the blocking parts may block, nothing else is on this event loop."""
    cores = Cores.of_this_machine()
    description = machine(cores)
    load_average = description["load_average"][0]
    if load_average > _BUSY:
        say(f"This machine is busy (load average {load_average:.1f}): figures will swing.")
    pin(cores.others)
    started = time.monotonic()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mdbench-")))
        server = await stack.enter_async_context(open_embedded_server(folder / "redis.sock"))
        store = stack.enter_context(redis.Redis(unix_socket_path=str(server.path)))
        # A listener that is a moment behind must not be cut off in the middle of a flood.
        limit = f"pubsub {_LISTENER_BUFFER_BYTES} {_LISTENER_BUFFER_BYTES} 0"
        store.config_set("client-output-buffer-limit", limit)
        benchmark = Benchmark(plan, Stage(store, server.path, server.pid, cores), folder)
        measured = benchmark.measure()
        searches = []
        if plan.search_steps:
            for program in _PROGRAMS[1:2]:
                floods = [m.flood.out_per_s for m in measured if m.program == program.name]
                searches.append(benchmark.search(program, median(floods)))
    say("\n" + table(measured, _REFERENCE.name) + "\n")
    base = median(m.flood.out_per_s for m in measured if m.program == _REFERENCE.name)
    for search in searches:
        say(
            f"Every quote published by {search.program}: up to {search.highest:,.0f} quotes/s, "
            f"{search.highest / base:.0f} times A flooded"
        )
    content = {
        "machine": description,
        "plan": attrs.asdict(plan),
        "measured": [attrs.asdict(each) for each in measured],
        "searches": [attrs.asdict(each) for each in searches],
        "wrong": benchmark.wrong,
    }
    say(f"{time.monotonic() - started:.0f} s; {write(REPOSITORY / 'bench-results', content)}")
    for reason in benchmark.wrong:
        say(f"WRONG: {reason}")
    return 1 if benchmark.wrong else 0


def _stop(number: int, _frame: FrameType | None) -> None:
    """End by an exception, so that every process is ended too."""
    sys.exit(f"ended by {signal.Signals(number).name}")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments not in ([], ["quick"], ["repair"]):
        sys.exit("usage: python -m tests.bench [quick | repair]")
    for ending in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(ending, _stop)
    repairs = arguments == ["repair"]
    signal.alarm(repair.LIMIT_S if repairs else LIMIT_S)
    if repairs:
        sys.exit(anyio.run(repair.main, say, backend="trio"))
    sys.exit(anyio.run(main, QUICK if arguments else FULL, backend="trio"))
