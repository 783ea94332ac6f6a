"""``python -m tests.bench floor``: what part of the latency at a quiet pace is the actors' own.

Program A, the service, and tasks that do the service's steps and no more
(:mod:`tests.bench.bare_actors`), in interleaved rounds at 1,000 quotes a second, ten together. The
four bare actors are what a pipeline of this shape costs at least; the one task is what it would cost
without actors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median

import attrs

from tests.bench.benchmark import RAW, REFERENCE, Benchmark
from tests.bench.checks import Market
from tests.bench.processes import Child, running
from tests.bench.programs import Program, Surroundings
from tests.bench.results import aligned
from tests.bench.runs import Load

LIMIT_S = 270
_ROUNDS = 5
_LOADS = (Load(1_000, 4), Load(10_000, 3))


@attrs.frozen
class BareActors:
    """Tasks that do the service's steps and no more."""

    tasks: int
    lossless: bool = False

    @property
    def name(self) -> str:
        return f"bare actors: {self.tasks}"

    @contextmanager
    def running(self, given: Surroundings) -> Iterator[Child]:
        with running(
            "tests.bench.bare_actors",
            *(given.feed_url, given.redis_url.removeprefix("unix://")),
            *(",".join(given.symbols), str(self.tasks)),
            core=given.cores.program,
            others_core=given.cores.others,
            log=given.folder / "bare_actors.log",
        ) as child:
            yield child

    def counters(self, given: Surroundings) -> dict[str, int] | None:
        return None


PROGRAMS: tuple[Program, ...] = (REFERENCE, RAW, BareActors(4), BareActors(1))


def measure(benchmark: Benchmark) -> dict[str, list[list[float]]]:
    """The median latencies of each program in each round, milliseconds, by load."""
    found: dict[str, list[list[float]]] = {program.name: [] for program in PROGRAMS}
    for number in range(_ROUNDS):
        turn = number % len(PROGRAMS)
        for program in (*PROGRAMS[turn:], *PROGRAMS[:turn]):
            loads = _LOADS if program is not REFERENCE else _LOADS[:1]
            outcomes = benchmark.run(program, Market(), loads)
            found[program.name].append([each.latency_ms[0] or 0.0 for each in outcomes])
    return found


def table(found: dict[str, list[list[float]]]) -> str:
    """Medians over the rounds, and of the round's A."""
    rows: list[Sequence[str]] = [("program", "p50 at 1,000/s", "of A's", "p50 at 10,000/s")]
    of_a = [each[0] for each in found[REFERENCE.name]]
    for name, rounds in found.items():
        first = [each[0] for each in rounds]
        share = median(own / a for own, a in zip(first, of_a, strict=True))
        faster = [each[1] for each in rounds if len(each) > 1]
        rows.append(
            (
                name,
                f"{median(first):.2f} ms",
                f"{100 * share:.0f} %",
                f"{median(faster):.2f} ms" if faster else "-",
            )
        )
    return aligned(rows)
