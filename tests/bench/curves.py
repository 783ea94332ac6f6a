"""``python -m tests.bench curves``: how the cost grows with symbols, readers and frames.

One thing is varied at a time, the rest is as in the main case: 500 symbols, one reader, ten quotes a
frame. Each point is a run of the raw driver, first at 20,000 quotes a second, where every quote is
published, for latency and cost, then flooded for throughput. Every point is measured twice, and the
run that was disturbed less counts.
Where a curve bends, the CPU of each process says why: the program has one core, the feed, Redis and
all readers share the other. A flood always fills the program's core; what fills the other one too is
a limit that is not the program's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from tests.bench.benchmark import FLOOD, RAW, Benchmark
from tests.bench.checks import Market
from tests.bench.results import aligned
from tests.bench.runs import Load, Outcome, bench

LIMIT_S = 200
ROUNDS = 2
_PACED, _FLOOD = Load(20_000, 1.5), Load(FLOOD, 1.6)
_SYMBOLS = (10, 100, 1000, 10_000)
_READERS = (0, 1, 10, 100)
_PER_FRAME = (1, 2, 5, 10, 20, 50, 100)
_FULL = 0.95
"""A core that is as busy has no more to give."""
_FIELDS = {"symbols": "symbols", "readers": "readers", "quotes a frame": "per_frame"}
PROCESSES = ("program", "redis", "feed", "listener", "readers")


@attrs.frozen
class Setting:
    """What a point is of: one curve, or several where it is the main case."""

    symbols: int = Market().symbols
    readers: int = 1
    per_frame: int = Market().per_frame


@attrs.frozen
class Point:
    """A setting, measured.

    Attributes:
        setting: What it is of.
        in_per_s: Quotes taken in, flooded.
        out_per_s: Events published, flooded.
        latency_ms: Median and 99th percentile at 20,000 quotes a second; None without a reader.
        cost_us: What one quote costs each process at that pace, in µs of CPU.
        cpu: Of each process, flooded, the part of a core.
        disturbed: What something else took of the program's core, flooded.
    """

    setting: Setting
    in_per_s: float
    out_per_s: float
    latency_ms: tuple[float | None, float | None]
    cost_us: dict[str, float]
    cpu: dict[str, float]
    disturbed: float = 0.0

    @property
    def limit(self) -> str:
        """Which cores are full when flooded."""
        program = self.cpu.get("program", 0.0)
        full = {"program's": program + self.disturbed, "others'": sum(self.cpu.values()) - program}
        return " and ".join(name for name, part in full.items() if part >= _FULL) or "none"


def settings() -> dict[str, list[Setting]]:
    """The curves."""
    return {
        "symbols": [Setting(symbols=count) for count in _SYMBOLS],
        "readers": [Setting(readers=count) for count in _READERS],
        "quotes a frame": [Setting(per_frame=count) for count in _PER_FRAME],
    }


def value_of(curve: str, setting: Setting) -> int:
    """What is varied along a curve."""
    value: int = getattr(setting, _FIELDS[curve])
    return value


def measure(benchmark: Benchmark, rounds: int = ROUNDS) -> dict[str, list[Point]]:
    """Every point in every round; a setting that is of several curves once."""
    curves = settings()
    runs: dict[Setting, list[tuple[Outcome, Outcome]]] = {}
    for _ in range(rounds):
        for setting in dict.fromkeys(each for curve in curves.values() for each in curve):
            runs.setdefault(setting, []).append(_run(benchmark, setting))
    return {name: [point(each, runs[each]) for each in curve] for name, curve in curves.items()}


def _run(benchmark: Benchmark, setting: Setting) -> tuple[Outcome, Outcome]:
    market = Market(setting.symbols, setting.per_frame)
    folder = benchmark.new_folder()
    with bench(benchmark.stage, RAW, market, folder, readers=setting.readers) as running:
        paced = benchmark.apply(running, _PACED)
        return paced, benchmark.apply(running, _FLOOD)


def point(setting: Setting, runs: Sequence[tuple[Outcome, Outcome]]) -> Point:
    """The run in which least of the program's core was taken by something else."""
    paced, flood = min(runs, key=lambda run: sum(outcome.disturbed for outcome in run))
    return Point(
        setting,
        in_per_s=flood.in_per_s,
        out_per_s=flood.out_per_s,
        latency_ms=paced.latency_ms,
        cost_us=_cost_us(paced),
        cpu=_parts(flood),
        disturbed=flood.disturbed,
    )


def _parts(outcome: Outcome) -> dict[str, float]:
    """Of each process, the part of a core."""
    seconds = outcome.sent / outcome.in_per_s
    return {name: used / seconds for name, used in outcome.cpu_s.items()}


def _cost_us(outcome: Outcome) -> dict[str, float]:
    return {name: 1e6 * used / outcome.sent for name, used in outcome.cpu_s.items()}


def curve_table(curves: dict[str, list[Point]]) -> str:
    """One line a point."""
    rows: list[Sequence[str]] = [
        (
            *("curve", "", "taken in", "published", "p50 ms", "p99 ms", "µs/quote", "µs/quote"),
            *PROCESSES,
            *("disturbed", "core full"),
        ),
        (
            *("", "", "flood", "flood", "20,000/s", "20,000/s", "program", "redis"),
            *("flood" for _ in PROCESSES),
            *("flood", "flood"),
        ),
    ]
    for title, curve in curves.items():
        for each in curve:
            rows.append(
                (
                    *(title, f"{value_of(title, each.setting):,}"),
                    *(f"{each.in_per_s:,.0f}", f"{each.out_per_s:,.0f}"),
                    *(_text(ms, ".2f") for ms in each.latency_ms),
                    *(_text(each.cost_us.get(name), ".2f") for name in ("program", "redis")),
                    *(_text(each.cpu.get(process), ".0%") for process in PROCESSES),
                    *(f"{max(0, each.disturbed):.0%}", each.limit),
                )
            )
    return aligned(rows)


def _text(figure: Any, form: str) -> str:
    return "-" if figure is None else format(figure, form)
