# ruff: noqa: T201 - it reports to a person
"""``just simulate-faults [N] [first-seed]``: many seeds, on all cores."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter
from functools import partial

from tests.simulation.plan import Outcome, Plan
from tests.simulation.worker import run_quietly
from tests.simulation.world import simulate

_SHOWN = 5


def _loudly(only: tuple[str, ...], seed: int) -> Outcome:
    import anyio

    class Stamped(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            try:
                now_s = anyio.current_time()
            except RuntimeError:
                now_s = 0.0
            return f"{now_s:10.3f}     {record.getMessage()}"

    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(Stamped())
    logging.getLogger("mdservice").addHandler(handler)
    logging.getLogger("mdservice").setLevel(logging.INFO)
    print(Plan.draw(seed, only))
    return simulate(seed, only=only, tell=print)


def _command(seed: int, only: tuple[str, ...]) -> str:
    kinds = f" --only {','.join(only)}" if only else ""
    return f"{sys.executable} -m tests.simulation --replay {seed}{kinds}"


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(prog="tests.simulation", description=__doc__)
    parser.add_argument("count", nargs="?", type=int, default=100, help="how many seeds")
    parser.add_argument("first", nargs="?", type=int, default=1, help="the first of them")
    parser.add_argument("--replay", type=int, help="run this seed alone and tell everything")
    parser.add_argument("--only", default="", help="kinds of fault, by how their names begin")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    only = tuple(filter(None, given.only.split(",")))
    if given.replay is not None:
        outcome = _loudly(only, given.replay)
        print("\n".join(outcome.violations) or "every promise was kept", outcome.trace[:16])
        return bool(outcome.violations)
    return _many(range(given.first, given.first + given.count), only, given.jobs)


def _many(seeds: range, only: tuple[str, ...], jobs: int) -> int:
    started = time.monotonic()
    done = failed = quotes = lives = calls = 0
    faults: Counter[str] = Counter()
    simulated_s = 0.0
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for outcome in pool.imap_unordered(partial(run_quietly, only), seeds):
            done += 1
            simulated_s += outcome.simulated_s
            faults += outcome.faults
            quotes += outcome.quotes
            lives += outcome.lives
            calls += outcome.calls
            if outcome.violations:
                failed += 1
                print(f"\rseed {outcome.seed} fails; replay: {_command(outcome.seed, only)}")
                for violation in outcome.violations[:_SHOWN]:
                    print(f"    {violation}")
            line = (
                f"{done}/{len(seeds)} seeds, {failed} failed, {simulated_s / 3600:.1f} h simulated"
            )
            if sys.stderr.isatty():
                print(f"\r{line}", end="", file=sys.stderr, flush=True)
    print(
        f"\r{done} seeds, {failed} failed: {simulated_s / 3600:.1f} simulated hours, "
        f"{faults.total()} faults, {lives} runs of the service, {quotes} quotes, {calls} HTTP calls, "
        f"in {time.monotonic() - started:.0f} s"
    )
    print("faults:", ", ".join(f"{name} {faults[name]}" for name in sorted(faults)))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
