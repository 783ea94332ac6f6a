"""``python -m tests.bench [quick | curves | where | floor | mix | guard … | repair | relay … | page | first-price | pnl …]``.

Compares the service, with each of its drivers, with what users write today: an alpaca-py
handler that awaits SET and PUBLISH for each quote (program A). Everything runs on loopback
and UNIX sockets; the program under test has a core to itself, where there are two, and the
feed, a Valkey server and a listener share the other.

A run is one program from its start to its end, through a few loads: 1,000 quotes a second for
the latency, then a flood. Runs are interleaved, figures are medians of the rounds. The exit code
is 1 when a price, an event or a count was not as it must be.

- Without a word: all of it, and the table of targets (:mod:`tests.bench.suite`).
- ``quick``: the three programs alone.
- ``curves``: how the cost grows, see :mod:`tests.bench.curves`.
- ``where``: where the time of a quote goes, see :mod:`tests.bench.where`.
- ``floor``: what actors cost at least, see :mod:`tests.bench.floor`.
- ``guard``: the same, and instructions counted, compared with what is stored; 1 where something is
  lost. ``guard store`` stores it anew, ``guard store instructions`` only what does not depend on
  the machine's load.
- ``repair``: something else, see :mod:`tests.bench.repair`.
- ``mix``: quotes, trades and bars together, see :mod:`tests.bench.mix`.
- ``relay``, all of it or the parts named: many clients, see :mod:`tests.bench.relay`.
- ``journal``: its cost, its size, replay and export, see :mod:`tests.bench.journal`.
- ``cluster``: one server and a cluster, see :mod:`tests.bench.cluster`.
- ``replicas``: readers of the primary and of a replica, see :mod:`tests.bench.replicas`.
- ``page``: what an open page and a scrape cost, see :mod:`tests.bench.page`.
- ``first-price``: likewise, see :mod:`tests.bench.first_price`.
- ``pnl``: real-time P&L, as ``just bench-pnl``, see :mod:`tests.bench.pnl`.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import attrs

from tests.bench import (
    cluster,
    curves,
    curves_picture,
    first_price,
    floor,
    guard,
    instructions,
    journal,
    mix,
    page,
    pnl,
    relay,
    repair,
    replicas,
    where,
)
from tests.bench.benchmark import REFERENCE, Benchmark, Plan, say
from tests.bench.picture import picture
from tests.bench.processes import REPOSITORY
from tests.bench.references import reference_table
from tests.bench.results import Measured, frame_table, table, write
from tests.bench.suite import FULL, QUICK, STORED, everything, opened
from tests.bench.targets import target_table, targets

LIMIT_S = 330
"""Nothing here may take longer."""
_BUSY = 0.7
_KEPT = REPOSITORY / "bench-results"


async def whole(plan: Plan) -> int:
    """Everything, and which targets are reached."""
    started = time.monotonic()
    async with opened(plan) as (benchmark, description):
        _warn_of_load(description)
        found = await everything(benchmark)
    rows = targets(found)
    say("\n" + table(found.measured, REFERENCE.name))
    say("\n" + frame_table(found.frames))
    say("\n" + reference_table(found.references))
    say("\n" + target_table(rows) + "\n")
    content = {
        "machine": description,
        "plan": attrs.asdict(plan),
        "targets": [attrs.asdict(row) for row in rows],
        **attrs.asdict(found),
        "wrong": benchmark.wrong,
    }
    path = write(_KEPT, content)
    path.with_suffix(".svg").write_text(picture(found))
    return _end(benchmark, f"{time.monotonic() - started:.0f} s; {path} and .svg")


async def quick(plan: Plan) -> int:
    """The three programs."""
    started = time.monotonic()
    async with opened(plan) as (benchmark, description):
        _warn_of_load(description)
        measured = benchmark.rounds()
    say("\n" + table(measured, REFERENCE.name) + "\n")
    kept = _keep(plan, benchmark, description, measured)
    return _end(benchmark, f"{time.monotonic() - started:.0f} s; {kept}")


async def guarded(plan: Plan) -> int:
    """The three programs and the instructions, compared with what is stored."""
    started = time.monotonic()
    lost = _count_instructions()
    async with opened(plan) as (benchmark, description):
        _warn_of_load(description)
        measured = benchmark.rounds()
        for repeat in range(guard.REPEATS):
            seemingly = guard.losses(guard.ratios(measured))
            if not seemingly:
                break
            say(f"\nThis seems lost and is measured again: {'; '.join(seemingly)}\n")
            measured += benchmark.round(plan.rounds + repeat, guard.concerned(seemingly))
    ratios = guard.ratios(measured)
    say("\n" + table(measured, REFERENCE.name) + "\n")
    say(guard.guard_table(ratios) + "\n")
    kept = _keep(plan, benchmark, description, measured)
    code = _end(benchmark, f"{time.monotonic() - started:.0f} s; {kept}")
    judged = guard.judged(measured)
    for name in guard.losses(ratios):
        if name in judged:
            lost.append(f"{name}, more than {100 * guard.TOLERANCE:.0f} %")
        else:
            say(f"NOT JUDGED: {name}: something else used a core whenever it was measured")
    for name in lost:
        say(f"LOST: {name}")
    return 1 if lost else code


def _count_instructions() -> list[str]:
    """Count and compare; returns what is lost."""
    stored = guard.stored_instructions()
    reason = "none are stored" if stored is None else stored.skipped()
    if stored is None or reason is not None:
        say(f"instructions: skipped, {reason}\n")
        return []
    now = instructions.count()
    say(stored.table(now) + "\n")
    limit = 100 * instructions.TOLERANCE
    return [f"instructions of {name}, more than {limit:.0f} %" for name in stored.losses(now)]


async def store(plan: Plan) -> int:
    """Make what is measured and counted now what :func:`guarded` compares with."""
    async with opened(plan) as (benchmark, description):
        _warn_of_load(description)
        measured = benchmark.rounds()
    say("\n" + table(measured, REFERENCE.name) + "\n")
    guard.store(guard.ratios(measured), description, _counted())
    return _end(benchmark, f"Stored: {guard.STORED}")


def store_instructions() -> int:
    """The same, of the instructions alone."""
    guard.store_instructions(_counted())
    say(f"Stored: {guard.STORED}")
    return 0


def _counted() -> instructions.Stored | None:
    if (reason := instructions.missing()) is None:
        return instructions.Stored(instructions.holds_for(), instructions.count())
    say(f"instructions: skipped, {reason}")
    return None


def _keep(
    plan: Plan, benchmark: Benchmark, description: dict[str, Any], measured: list[Measured]
) -> Path:
    content = {
        "machine": description,
        "plan": attrs.asdict(plan),
        "measured": [attrs.asdict(each) for each in measured],
        "ratios": guard.ratios(measured),
        "wrong": benchmark.wrong,
    }
    return write(_KEPT, content)


async def grow(plan: Plan) -> int:
    """The curves."""
    started = time.monotonic()
    async with opened(plan) as (benchmark, description):
        _warn_of_load(description)
        found = curves.measure(benchmark)
    say("\n" + curves.curve_table(found) + "\n")
    content = {
        "machine": description,
        "curves": {name: [attrs.asdict(each) for each in curve] for name, curve in found.items()},
        "wrong": benchmark.wrong,
    }
    path = write(_KEPT, content)
    path.with_suffix(".svg").write_text(curves_picture.picture(found))
    return _end(benchmark, f"{time.monotonic() - started:.0f} s; {path} and .svg")


async def explained(plan: Plan) -> int:
    """Where the time goes."""
    say(where.steps_table(where.steps()) + "\n")
    async with opened(plan) as (benchmark, description):
        _warn_of_load(description)
        found = where.turns(benchmark)
    say("\n" + where.turns_table(found) + "\n")
    return 1 if benchmark.wrong else 0


async def mixed(plan: Plan) -> int:
    """Every stock channel on."""
    async with opened(plan) as (benchmark, description):
        _warn_of_load(description)
        return mix.measure(benchmark.stage, benchmark.new_folder(), say)


async def relayed(plan: Plan, parts: Sequence[str]) -> int:
    """The relay and its clients."""
    started = time.monotonic()
    async with opened(plan) as (benchmark, description):
        _warn_of_load(description)
        table = relay.Relay(benchmark).measure(parts)
    say(table + "\n")
    return _end(benchmark, f"{time.monotonic() - started:.0f} s")


async def recorded(plan: Plan) -> int:
    """The journal."""
    started = time.monotonic()
    async with opened(plan) as (benchmark, description):
        _warn_of_load(description)
        figures = await journal.measure(benchmark)
    say("\n" + figures.table() + "\n")
    return _end(benchmark, f"{time.monotonic() - started:.0f} s")


async def looked_at(plan: Plan) -> int:
    """The page and a scrape."""
    started = time.monotonic()
    async with opened(plan) as (benchmark, description):
        _warn_of_load(description)
        figures = page.measure(benchmark)
    say("\n" + figures.table() + "\n")
    code = _end(benchmark, f"{time.monotonic() - started:.0f} s")
    return code if figures.reached else 1


async def bare(plan: Plan) -> int:
    """The floor."""
    async with opened(plan) as (benchmark, description):
        _warn_of_load(description)
        found = floor.measure(benchmark)
    say("\n" + floor.table(found) + "\n")
    return 1 if benchmark.wrong else 0


def _warn_of_load(description: dict[str, Any]) -> None:
    load_average = description["load_average"][0]
    if load_average > _BUSY:
        say(f"This machine is busy (load average {load_average:.1f}): figures will swing.")


def _end(benchmark: Benchmark, line: str) -> int:
    say(line)
    for reason in benchmark.wrong:
        say(f"WRONG: {reason}")
    return 1 if benchmark.wrong else 0


def _stop(number: int, _frame: FrameType | None) -> None:
    """End by an exception, so that every process is ended too."""
    sys.exit(f"ended by {signal.Signals(number).name}")


if __name__ == "__main__":
    for ending in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(ending, _stop)
    signal.alarm(LIMIT_S)
    match sys.argv[1:]:
        case []:
            code = anyio.run(whole, FULL, backend="trio")
        case ["quick"]:
            code = anyio.run(quick, QUICK, backend="trio")
        case ["curves"]:
            signal.alarm(curves.LIMIT_S)
            code = anyio.run(grow, QUICK, backend="trio")
        case ["where"]:
            code = anyio.run(explained, QUICK, backend="trio")
        case ["floor"]:
            signal.alarm(floor.LIMIT_S)
            code = anyio.run(bare, QUICK, backend="trio")
        case ["mix"]:
            code = anyio.run(mixed, QUICK, backend="trio")
        case ["relay", *parts] if relay.PARTS.issuperset(parts):
            signal.alarm(relay.LIMIT_S)
            code = anyio.run(relayed, QUICK, parts, backend="trio")
        case ["journal"]:
            signal.alarm(journal.LIMIT_S)
            code = anyio.run(recorded, QUICK, backend="trio")
        case ["cluster"]:
            signal.alarm(cluster.LIMIT_S)
            with tempfile.TemporaryDirectory() as folder:
                code = cluster.main(say, Path(folder))
        case ["replicas"]:
            signal.alarm(replicas.LIMIT_S)
            with tempfile.TemporaryDirectory() as folder:
                code = replicas.main(say, Path(folder))
        case ["page"]:
            signal.alarm(page.LIMIT_S)
            code = anyio.run(looked_at, QUICK, backend="trio")
        case ["guard"]:
            code = anyio.run(guarded, QUICK, backend="trio")
        case ["guard", "store"]:
            code = anyio.run(store, STORED, backend="trio")
        case ["guard", "store", "instructions"]:
            code = store_instructions()
        case ["repair"]:
            signal.alarm(repair.LIMIT_S)
            code = anyio.run(repair.main, say, backend="trio")
        case ["first-price"]:
            signal.alarm(first_price.LIMIT_S)
            code = anyio.run(first_price.main, say, backend="asyncio")
        case ["pnl", *arguments]:
            code = pnl.run(arguments)
        case _:
            sys.exit(
                "usage: python -m tests.bench "
                "[quick | curves | where | floor | mix | guard [store [instructions]] | repair | "
                "relay [crowd | few | deaf | redis]… | journal | cluster | replicas | page | first-price | pnl [quick]]"
            )
    sys.exit(code)
