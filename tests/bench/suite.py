"""Everything that the table of targets needs, in one run and on one server.

Single parts need a few seconds each: a pace of a search is tried for less than two, and the pace that
is found then has to hold for ten. With JSON it need not. The whole stays under five minutes.
"""

from __future__ import annotations

import gc
import itertools
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import attrs
import redis

from mdservice.redis_io.embedded import open_embedded_server
from tests.bench import starts
from tests.bench.benchmark import ALPACA_PY, FLOOD, RAW, Benchmark, Plan, say
from tests.bench.checks import Market
from tests.bench.pnl_account import Writer
from tests.bench.pnl_requests import Counts, in_process
from tests.bench.processes import Cores, pin
from tests.bench.references import Flooded
from tests.bench.results import FrameCase, Measured, machine
from tests.bench.runs import Load, Outcome, Stage
from tests.bench.starts import Starts

FULL = Plan(
    rounds=3,
    paced=Load(1000, 1.5),
    faster=(Load(10_000, 1.5), Load(60_000, 1.5)),
    faster_programs=(RAW,),
    flood_s=1.5,
    ceiling_s=1.2,
    reference_s=1.3,
    search_s=1.5,
    search_steps=3,
    search_steps_unproven=2,
    proof_s=10,
    proof_limit_s=40,
)
QUICK = Plan(
    rounds=2,
    paced=Load(1000, 1.2),
    faster=(Load(10_000, 1),),
    faster_programs=(RAW, ALPACA_PY),
    flood_s=1.8,
    ceiling_s=0,
    reference_s=0,
    search_s=0,
    search_steps=0,
    search_steps_unproven=0,
    proof_s=0,
    proof_limit_s=0,
)
STORED = attrs.evolve(QUICK, rounds=5)
"""What is compared with for long had better be the median of more rounds."""
OTHER_FRAMES = (1, 100)
"""Quotes a frame, besides ten."""
_MANY_SYMBOLS = 10_000
_NEARLY_QUIET = Load(100, 5)
_ALL_LIVE = Load(20_000, 2)
_LONG_FLOOD = Load(FLOOD, 4)
_REFERENCE_FLOOD_S = 1.5
_PNL = Counts(keys={100: 300, 10_000: 40}, live={}, http={})
_LISTENER_BUFFER_BYTES = 268_435_456


@attrs.frozen
class Sizes:
    """What depends on the number of symbols.

    Attributes:
        quiet: 500 symbols at 100 quotes a second, raw driver.
        live: 10,000 symbols, each of them quoted a few times, by program.
        floods: Long ones of the raw driver, by the number of symbols.
    """

    quiet: Outcome
    live: dict[str, Outcome]
    floods: dict[int, Outcome]


@attrs.frozen
class Everything:
    """All that was measured.

    Attributes:
        measured: Every program in every round.
        ceilings: One a round, quotes a second.
        references: Floods of other programs, those that are installed.
        frames: Every quote published, by encoding and frame size.
        sizes: What depends on the number of symbols.
        starts: How long the start takes.
        pnl: How long one answer in process with all prices new takes, by the number of positions.
    """

    measured: Sequence[Measured]
    ceilings: Sequence[float]
    references: Sequence[Flooded]
    frames: Sequence[FrameCase]
    sizes: Sizes
    starts: Starts
    pnl: dict[int, dict[str, Any]]


@asynccontextmanager
async def opened(plan: Plan) -> AsyncIterator[tuple[Benchmark, dict[str, Any]]]:
    """A server and a benchmark on it; also gives the machine's description.

    The blocking parts may block: nothing else is on this event loop.
    """
    cores = Cores.of_this_machine()
    description = machine(cores)
    pin(cores.others)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mdbench-")))
        server = await stack.enter_async_context(open_embedded_server(folder / "redis.sock"))
        store = stack.enter_context(redis.Redis(unix_socket_path=str(server.path)))
        # A listener that is a moment behind must not be cut off in the middle of a flood.
        limit = f"pubsub {_LISTENER_BUFFER_BYTES} {_LISTENER_BUFFER_BYTES} 0"
        store.config_set("client-output-buffer-limit", limit)
        stage = Stage(store, server.path, server.pid, cores)
        yield Benchmark(plan, stage, folder), description


async def everything(benchmark: Benchmark) -> Everything:
    """Measure it all."""
    started = starts.measure(benchmark.stage.cores, benchmark.new_folder())
    pnl = await _pnl(benchmark)
    measured = benchmark.rounds()
    sizes = _sizes(benchmark)
    others = benchmark.references(_REFERENCE_FLOOD_S)
    cases = _frames(benchmark)
    return Everything(measured, benchmark.ceilings, others, cases, sizes, started, pnl)


def _frames(benchmark: Benchmark) -> list[FrameCase]:
    """The pace of every quote, by frame size; A, which swings, is flooded before, between, after."""
    as_a: dict[int, list[float]] = {}

    def flood_a(*sizes: int) -> None:
        for per_frame in sizes:
            as_a.setdefault(per_frame, []).append(benchmark.reference(per_frame))

    cases = []
    usual = Market().per_frame
    for programs, sizes in (((RAW, ALPACA_PY), (usual,)), ((RAW,), OTHER_FRAMES)):
        for program, per_frame in itertools.product(programs, sizes):
            flood_a(*sizes)
            cases.append(benchmark.frames(Market(per_frame=per_frame), program, proof=True))
        flood_a(*sizes)
    for per_frame in sorted(as_a):
        market = Market(per_frame=per_frame, encoding="json")
        cases.append(benchmark.frames(market, RAW, proof=False))
    return [attrs.evolve(case, references_per_s=as_a[case.market.per_frame]) for case in cases]


def _sizes(benchmark: Benchmark) -> Sizes:
    many = Market(symbols=_MANY_SYMBOLS)
    quiet, few_flooded = benchmark.run(RAW, Market(), (_NEARLY_QUIET, _LONG_FLOOD))
    raw_live, many_flooded = benchmark.run(RAW, many, (_ALL_LIVE, _LONG_FLOOD))
    (sdk_live,) = benchmark.run(ALPACA_PY, many, (_ALL_LIVE,))
    return Sizes(
        quiet,
        {RAW.name: raw_live, ALPACA_PY.name: sdk_live},
        {Market().symbols: few_flooded, _MANY_SYMBOLS: many_flooded},
    )


async def _pnl(benchmark: Benchmark) -> dict[int, dict[str, Any]]:
    """Ask for P&L in this process, on the program's core meanwhile."""
    stage = benchmark.stage
    thresholds = gc.get_threshold()
    pin(stage.cores.program)
    began = time.monotonic()
    try:
        url = f"unix://{stage.redis_path}"
        with closing(Writer(url)) as writer:
            requests = await in_process(url, writer, _PNL)
    finally:
        pin(stage.cores.others)
        gc.set_threshold(*thresholds)
    for each in requests:
        benchmark.wrong += [f"P&L, {each.positions} positions: {why}" for why in each.wrong]
    say(f"P&L in process, {time.monotonic() - began:.1f} s")
    return {each.positions: each.figures for each in requests if each.prices != "the same"}
