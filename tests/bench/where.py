"""``python -m tests.bench where``: where the time of a quote goes.

First what each pure step takes by the clock, one quote among thousands; its tasks are those whose
instructions are counted (:mod:`tests.bench.counted`). Then the turns of the event loop from the read of
the socket to the write to Redis, on a quiet feed and on a busy one, watched from inside
(:mod:`tests.bench.traced`), which slows them a little.
"""

from __future__ import annotations

import gc
import json
import time
from collections import defaultdict
from statistics import median
from typing import Any

from tests.bench.benchmark import Benchmark
from tests.bench.checks import Market
from tests.bench.counted import MANY, TASKS
from tests.bench.programs import Service
from tests.bench.results import aligned
from tests.bench.runs import Load

_TIMES = 30
_LOADS = (Load(1_000, 5), Load(10_000, 3))


def steps() -> dict[str, float]:
    """Nanoseconds a quote of each step: the shortest of many times, the collector off."""
    found = {}
    gc.disable()
    try:
        for name, prepare in TASKS.items():
            least_ns = min(_once_ns(prepare(MANY)) for _ in range(_TIMES))
            found[name] = least_ns / MANY
    finally:
        gc.enable()
    return found


def _once_ns(work: Any) -> int:
    started_ns = time.perf_counter_ns()
    work()
    return time.perf_counter_ns() - started_ns


def turns(benchmark: Benchmark) -> dict[float, list[dict[str, Any]]]:
    """The wakes of the service's event loop, by quotes a second."""
    found = {}
    for load in _LOADS:
        path = benchmark.new_folder() / "turns.json"
        traced = Service("websockets", command=("tests.bench.traced", str(path), "run"))
        benchmark.run(traced, Market(), (load,))
        found[load.rate] = json.loads(path.read_text())
    return found


def steps_table(found: dict[str, float]) -> str:
    """One line a step."""
    rows = [(name, f"{ns:,.0f}") for name, ns in found.items()]
    return aligned([("step", "ns a quote"), *rows])


def turns_table(found: dict[float, list[dict[str, Any]]]) -> str:
    """Medians: the way from the socket to Redis, and each task's part of it."""
    rows = [("quotes/s", "wakes", "turns", "read to written, µs", "of it, by task")]
    for rate, wakes in found.items():
        parts: defaultdict[str, list[float]] = defaultdict(list)
        for wake in wakes:
            for name in {name for name, _ in wake["steps"]}:
                parts[name].append(sum(us for each, us in wake["steps"] if each == name))
        often = {name: us for name, us in parts.items() if len(us) > len(wakes) / 2}
        told = ", ".join(f"{name} {median(us):.0f}" for name, us in often.items())
        written_us = median(wake["write_us"] for wake in wakes)
        turned = median(wake["turns"] for wake in wakes)
        rows.append((f"{rate:,.0f}", f"{len(wakes):,}", f"{turned:.0f}", f"{written_us:.0f}", told))
    return aligned(rows)
