"""``python -m tests.bench journal``: what the journal costs, and how fast it is read again.

- **Cost**: the service floods Redis with and without the journal, in turns; the ratio of the
  medians. The feed, Valkey and the listener share the other core with the journal's compression.
- **Size**: bytes of a compressed segment for each quote of the simulator's market.
- **Replay**: a market of 10,000 quotes a second is recorded, then ``mdservice replay --speed max``
  serves it to a service with a Valkey: how many times faster than it was recorded.
- **Export**: rows a second into Parquet.
"""

from __future__ import annotations

import gc
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import anyio
import attrs

import mdservice
from mdservice.app.run import GC_THRESHOLD
from mdservice.clock import SystemClock
from mdservice.journal.export import export
from mdservice.journal.recorder import JournalConfig, Recorder
from mdservice.journal.replay import open_journal
from mdservice.journal.segments import pack, segments_of
from mdservice.model.feeds import STOCKS, Topic
from mdservice.simulator import SimulatorConfig
from mdservice.simulator.kinds import Batch
from mdservice.simulator.markets import MARKETS
from mdservice.simulator.stocks import QUOTES
from tests.bench.benchmark import FLOOD, Benchmark
from tests.bench.checks import Market
from tests.bench.processes import usage_of
from tests.bench.programs import Service
from tests.bench.results import aligned
from tests.bench.runs import Load
from tests.bench.tape import symbol_names

__all__ = ["LIMIT_S", "measure"]

LIMIT_S = 300
"""Nothing here may take longer."""
_ROUNDS = 5
_FLOOD_S = 2.5
_RATE = 10_000
_RECORDED_S = 60
_PER_FRAME = 10
_SYMBOLS = 500
_BEGIN_NS = 1_700_000_000_000_000_000
_SLICE_NS = 25_000_000
_READY_LIMIT_S = 20.0
_REPLAY_LIMIT_S = 120.0


@attrs.frozen
class Figures:
    """What was measured.

    Attributes:
        plain: Quotes a second without the journal, one for each round.
        recording: The same with it.
        quotes: How many quotes the market of the other figures has.
        bytes_a_quote: Of its compressed files.
        replay_s: How long its replay through a service took.
        replay_cpu_s: The processor time that the busier of the two took for it.
        cpu: Microseconds of the program's processor time for a quote, without and with the journal.
        rows_per_s: How fast it was exported.
    """

    plain: list[float]
    recording: list[float]
    quotes: int
    bytes_a_quote: float
    replay_s: float
    replay_cpu_s: float
    rows_per_s: float
    cpu: tuple[float, float]

    @property
    def cost(self) -> float:
        """The part of the throughput that the journal takes."""
        return 1 - median(self.recording) / median(self.plain)

    @property
    def speed(self) -> float:
        """How many times faster than it was recorded."""
        return self.quotes / _RATE / self.replay_s

    def table(self) -> str:
        """Each figure with its target."""
        return aligned(
            [
                ("the journal", "measured", "target"),
                ("cost, of the throughput", f"{self.cost:.1%}", "<= 5 %"),
                (
                    "the same, in processor time",
                    f"{self.cpu[1] / self.cpu[0] - 1:.1%} of {self.cpu[0]:.2f} us",
                    "-",
                ),
                ("size, bytes a quote", f"{self.bytes_a_quote:.1f}", "-"),
                (f"replay at {_RATE:,} quotes/s", f"{self.speed:.1f} x", ">= 20 x"),
                (
                    "the same, by processor time",
                    f"{self.quotes / _RATE / self.replay_cpu_s:.1f} x",
                    "-",
                ),
                ("export, rows/s", f"{self.rows_per_s:,.0f}", "-"),
            ]
        )


async def measure(benchmark: Benchmark) -> Figures:
    """All of it, within a folder that is deleted."""
    plain, recording, cpu = _cost(benchmark)
    gc.set_threshold(*GC_THRESHOLD)  # as in the programs
    with tempfile.TemporaryDirectory(prefix="mdbench-") as name:
        folder = Path(name) / "journal"
        quotes = await _record(folder)
        for path in segments_of(folder):
            if path.suffix != ".zst":
                list(pack(path))
        size = sum(path.stat().st_size for path in segments_of(folder))
        began = time.perf_counter()
        rows = export(open_journal([folder]), Path(name) / "day.parquet").rows
        export_s = time.perf_counter() - began
        replay_s, replay_cpu_s = await _replay(folder, Path(name), quotes)
    return Figures(
        plain,
        recording,
        quotes,
        size / quotes,
        replay_s,
        replay_cpu_s,
        rows / export_s,
        cpu,
    )


def _cost(benchmark: Benchmark) -> tuple[list[float], list[float], tuple[float, float]]:
    figures: dict[bool, list[float]] = {False: [], True: []}
    cpu: dict[bool, list[float]] = {False: [], True: []}
    for number in range(_ROUNDS):
        for journal in (False, True) if number % 2 else (True, False):
            folder = Path(tempfile.mkdtemp(prefix="mdbench-journal-"))
            program = Service("websockets", journal=folder if journal else None)
            try:
                (flood,) = benchmark.run(program, Market(), (Load(FLOOD, _FLOOD_S),))
            finally:
                shutil.rmtree(folder)
            figures[journal].append(flood.out_per_s)
            cpu[journal].append(1e6 * flood.cpu_s.get("program", 0.0) / flood.sent)
    return figures[False], figures[True], (median(cpu[False]), median(cpu[True]))


async def _record(folder: Path) -> int:
    """Record a minute of the simulator's market through the recorder, without waiting for it."""
    config = SimulatorConfig(rate=_RATE, shape="flat")
    market = next(each for each in MARKETS if QUOTES in each.kinds)
    records = {kind: kind.record(config.history_size) for kind in market.kinds}
    source = market.source(config, records)
    assert source is not None
    symbols = set(symbol_names(_SYMBOLS))
    source.follow({kind.channel: symbols if kind is QUOTES else set() for kind in market.kinds})
    recorder = Recorder(JournalConfig(folder), SystemClock())
    quotes = 0
    async with anyio.create_task_group() as tasks:
        await tasks.start(recorder.run)
        tap = recorder.tap(STOCKS)
        tap.connecting("websockets")
        tap.opened("msgpack")
        tap.asked([Topic("quotes", symbol) for symbol in symbols])
        for number in range(_RECORDED_S * 1_000_000_000 // _SLICE_NS):
            now_ns = _BEGIN_NS + number * _SLICE_NS
            batches: list[Batch] = list(source.make(number * _SLICE_NS / 1e9, now_ns))
            for kind, made in batches:
                for start in range(0, len(made), _PER_FRAME):
                    part = made[start : start + _PER_FRAME]
                    frame = kind.encode(part, "msgpack", spoil=False)
                    tap.frames([frame.data], now_ns)
                    quotes += len(part)
            while recorder.status().waiting_bytes > 1 << 20:
                await anyio.sleep(0.01)
        await recorder.stop()
    return quotes


async def _replay(folder: Path, others: Path, quotes: int) -> tuple[float, float]:
    """Seconds from the first to the last quote that a service gets of ``mdservice replay``.

    The second is the processor time of the server or of the service, whichever is more.
    """
    command = [sys.executable, "-m", "mdservice", "replay", str(folder), "--speed", "max"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as replay:
        try:
            assert replay.stdout is not None
            line = next(line for line in replay.stdout if "to use it: " in line)
            words = shlex.split(json.loads(line)["message"])
            url = next(word for word in words if word.startswith("MDSERVICE_FEED_URL="))
            settings = mdservice.Settings(
                feed="simulator",
                feed_url=url.partition("=")[2],
                symbols=tuple(symbol_names(_SYMBOLS)),
                driver="websockets",
                relay="off",
                socket=others / "s",
            )
            async with mdservice.open_service(settings) as service:

                def received() -> int:
                    return service.status().counters.quotes_received

                with anyio.fail_after(_READY_LIMIT_S):
                    while not received():
                        await anyio.sleep(0.001)
                began, before = time.perf_counter(), received()
                served_s, own_s = usage_of(replay.pid).cpu_s or 0.0, time.process_time()
                with anyio.fail_after(_REPLAY_LIMIT_S):
                    while received() < quotes:
                        await anyio.sleep(0.1)  # the status costs time too
                whole = quotes / (quotes - before)
                took_s = time.perf_counter() - began
                served_s = (usage_of(replay.pid).cpu_s or 0.0) - served_s
                own_s = time.process_time() - own_s
                return took_s * whole, max(served_s, own_s) * whole
        finally:
            replay.terminate()
