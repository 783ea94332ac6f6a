"""Everything that the table of targets needs, in one run and on one server.

Single parts need a few seconds each: a pace of a search is tried for two, and only the pace of the
main case, once found, has to hold for ten. The whole stays under five minutes.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from statistics import median
from typing import Any

import attrs
import redis

from mdservice.sinks.embedded import open_embedded_server
from tests.bench import starts
from tests.bench.benchmark import ALPACA_PY, FLOOD, RAW, REFERENCE, Benchmark, Plan, say
from tests.bench.checks import Market
from tests.bench.pnl_desk import Writer
from tests.bench.pnl_requests import Counts, in_process
from tests.bench.processes import Cores, pin
from tests.bench.results import FrameCase, Measured, machine
from tests.bench.runs import Load, Outcome, Stage
from tests.bench.starts import Starts

FULL = Plan(
    rounds=3,
    paced=Load(1000, 2),
    faster=(Load(10_000, 2), Load(60_000, 2)),
    flood_s=2,
    ceiling_s=1.5,
    search_s=2,
    search_steps=4,
    proof_s=10,
)
QUICK = Plan(
    rounds=2,
    paced=Load(1000, 1.2),
    faster=(),
    flood_s=1.8,
    ceiling_s=0,
    search_s=0,
    search_steps=0,
    proof_s=0,
)
OTHER_FRAMES = (1, 100)
"""Quotes a frame, besides ten."""
_MANY_SYMBOLS = 10_000
_NEARLY_QUIET = Load(100, 5)
_ALL_LIVE = Load(20_000, 2)
_LONG_FLOOD = Load(FLOOD, 6)
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
        frames: Every quote published, by encoding and frame size.
        sizes: What depends on the number of symbols.
        starts: How long the start takes.
        pnl: How long one answer in process with all prices new takes, by the number of positions.
    """

    measured: Sequence[Measured]
    ceilings: Sequence[float]
    frames: Sequence[FrameCase]
    sizes: Sizes
    starts: Starts
    pnl: dict[int, dict[str, Any]]

    def reference_per_s(self) -> float:
        """What A, flooded, published with ten quotes a frame."""
        return median(m.flood.out_per_s for m in self.measured if m.program == REFERENCE.name)


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
    base = median(m.flood.out_per_s for m in measured if m.program == REFERENCE.name)
    cases = [
        benchmark.frames(Market(), RAW, base, proof=True),
        benchmark.frames(Market(), ALPACA_PY, base),
    ]
    for per_frame in OTHER_FRAMES:
        cases.append(benchmark.frames(Market(per_frame=per_frame), RAW, None))
    as_msgpack = {case.market.per_frame: case.reference_per_s for case in cases}
    for per_frame, reference_per_s in sorted(as_msgpack.items()):
        market = Market(per_frame=per_frame, encoding="json")
        cases.append(benchmark.frames(market, RAW, reference_per_s))
    return Everything(measured, benchmark.ceilings, cases, sizes, started, pnl)


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
