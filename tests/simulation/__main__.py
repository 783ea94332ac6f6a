# ruff: noqa: T201 - it reports to a person
"""``just simulate-faults [N] [first-seed]``: many seeds, on all cores."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice, takewhile

import attrs

from tests.simulation.plan import Outcome, Plan
from tests.simulation.worker import run_quietly
from tests.simulation.world import simulate

_SHOWN = 5
_NO_OR_YES = ("no", "yes")
_TOLD_EVERY_S = 60.0
"""How often progress is printed where the output is no terminal."""


@attrs.frozen
class _Choice:
    """Which seeds, as the command line says.

    Attributes:
        only: Kinds of fault, by how their names begin.
        account: Whether each seed is about every stream of an account; None for a part of them.
        group: Whether each is about a standby group; None for a part of them.
    """

    only: tuple[str, ...] = ()
    account: bool | None = None
    group: bool | None = None

    def command(self, seed: int) -> str:
        """The command that replays a seed."""
        more = f" --only {','.join(self.only)}" if self.only else ""
        for name, value in (("account", self.account), ("group", self.group)):
            if value is not None:
                more += f" --{name} {_NO_OR_YES[value]}"
        return f"{sys.executable} -m tests.simulation --replay {seed}{more}"


def _loudly(choice: _Choice, seed: int) -> Outcome:
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
    print(Plan.draw(seed, choice.only, account=choice.account, group=choice.group))
    return simulate(seed, only=choice.only, account=choice.account, group=choice.group, tell=print)


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(prog="tests.simulation", description=__doc__)
    parser.add_argument("count", nargs="?", type=int, default=100, help="how many seeds at most")
    parser.add_argument("first", nargs="?", type=int, default=1, help="the first of them")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="begin no seed after so much real time"
    )
    parser.add_argument("--replay", type=int, help="run this seed alone and tell everything")
    parser.add_argument("--only", default="", help="kinds of fault, by how their names begin")
    parser.add_argument(
        "--account", choices=_NO_OR_YES, help="every stream of the account in each seed, or in none"
    )
    parser.add_argument(
        "--group", choices=_NO_OR_YES, help="a standby group in each seed, or in none"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    only = tuple(filter(None, given.only.split(",")))
    choice = _Choice(
        only,
        account=None if given.account is None else given.account == "yes",
        group=None if given.group is None else given.group == "yes",
    )
    if given.replay is not None:
        outcome = _loudly(choice, given.replay)
        print("\n".join(outcome.violations) or "every promise was kept", outcome.trace[:16])
        return bool(outcome.violations)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # and the workers too
    totals = _Totals(choice)
    for outcome in _outcomes(
        range(given.first, given.first + given.count), choice, given.jobs, given.seconds
    ):
        totals.add(outcome)
    totals.tell()
    return 1 if totals.failed else 0


def _outcomes(
    seeds: Iterable[int],
    choice: _Choice,
    jobs: int,
    limit_s: float,
) -> Iterator[Outcome]:
    """Of one seed after the other, as they end; the last ones end a moment after the limit."""
    until_s = time.monotonic() + limit_s
    left = takewhile(lambda _: time.monotonic() < until_s, seeds)
    running: set[Future[Outcome]] = set()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
        while True:
            more = islice(left, jobs + 1 - len(running))
            running |= {
                pool.submit(run_quietly, choice.only, choice.account, choice.group, seed)
                for seed in more
            }
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()


class _Totals:
    """What the seeds came to."""

    def __init__(self, choice: _Choice) -> None:
        self.failed = 0
        self._choice = choice
        self._started_s = self._told_s = time.monotonic()
        self._done = self._quotes = self._lives = self._calls = 0
        self._simulated_s = 0.0
        self._faults: Counter[str] = Counter()

    def add(self, outcome: Outcome) -> None:
        """One seed more; tells at once of one that fails."""
        self._done += 1
        self._simulated_s += outcome.simulated_s
        self._faults += outcome.faults
        self._quotes += outcome.quotes
        self._lives += outcome.lives
        self._calls += outcome.calls
        if outcome.violations:
            self.failed += 1
            print(f"\rseed {outcome.seed} fails; replay: {self._choice.command(outcome.seed)}")
            for violation in outcome.violations[:_SHOWN]:
                print(f"    {violation}", flush=True)
        if sys.stderr.isatty():
            print(f"\r{self._short()}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._told_s > _TOLD_EVERY_S:
            self._told_s = time.monotonic()
            print(self._short(), file=sys.stderr, flush=True)

    def _short(self) -> str:
        hours = self._simulated_s / 3600
        return f"{self._done} seeds, {self.failed} failed: {hours:.1f} simulated hours"

    def tell(self) -> None:
        """The last two lines."""
        print(
            f"\r{self._short()}, {self._lives} runs of the service, {self._quotes} quotes, "
            f"{self._calls} HTTP calls, {self._faults.total()} faults, "
            f"in {time.monotonic() - self._started_s:.0f} s"
        )
        print(
            "faults:", ", ".join(f"{name} {count}" for name, count in sorted(self._faults.items()))
        )


if __name__ == "__main__":
    sys.exit(main())
