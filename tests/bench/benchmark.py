"""Runs one after the other; what was wrong in any of them is collected."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import attrs

from tests.bench import ceiling
from tests.bench.checks import Market
from tests.bench.programs import PlainHandler, Program, Service
from tests.bench.results import FrameCase, Measured, Search
from tests.bench.runs import Bench, Load, Outcome, Stage, bench

RAW, ALPACA_PY = Service("websockets"), Service("alpaca-py")
REFERENCE = PlainHandler()
PROGRAMS: tuple[Program, ...] = (REFERENCE, RAW, ALPACA_PY)
FLOOD = 0
"""The rate of a load that gives as much as the program takes."""
_LOWEST, _HIGHEST = 0.6, 1.8
"""Where the pace that publishes every quote is looked for, times the flood's figure, which a flood
keeps low: what is conflated costs too."""
_NAME_WIDTH = 52
_TRIES = 2
"""A pace has failed when it failed as often: one hiccup of the machine is not the program's."""
_PROOFS, _LESS = 3, 0.9
"""How often a pace that was found is tried for long, and how much of it after it did not hold."""


@attrs.frozen
class Plan:
    """How long to measure.

    Attributes:
        rounds: How often each program is measured.
        paced: The quiet load of each run.
        faster: Further paces, of the raw driver alone.
        flood_s: How long the flood of each run lasts.
        ceiling_s: How long the ceiling is measured in each round; 0 leaves it out.
        search_s: How long each pace of a search is tried.
        search_steps: How many paces are tried.
        proof_s: How long the pace that was found has to hold, where that is asked for.
    """

    rounds: int
    paced: Load
    faster: tuple[Load, ...]
    flood_s: float
    ceiling_s: float
    search_s: float
    search_steps: int
    proof_s: float


class Benchmark:
    """The runs of a plan.

    Args:
        plan: How long to measure.
        stage: What all runs share.
        folder: For the processes' logs and sockets.
    """

    def __init__(self, plan: Plan, stage: Stage, folder: Path) -> None:
        self.wrong: list[str] = []
        self.ceilings: list[float] = []
        self.stage = stage
        self._plan = plan
        self._folder = folder
        self._runs = 0

    def rounds(self, first: int = 0) -> list[Measured]:
        """Every program in every round, each round beginning with another.

        Args:
            first: The first round's number; not 0 when some were done before.
        """
        measured = []
        for number in range(first, first + self._plan.rounds):
            turn = number % len(PROGRAMS)
            for program in (*PROGRAMS[turn:], *PROGRAMS[:turn]):
                faster = self._plan.faster if program == RAW else ()
                loads = (self._plan.paced, *faster, Load(FLOOD, self._plan.flood_s))
                paced, *others, flood = self.run(program, Market(), loads)
                measured.append(Measured(number, program.name, paced, flood, others))
            if self._plan.ceiling_s:
                self._ceiling()
        return measured

    def frames(
        self,
        market: Market,
        program: Program,
        reference_per_s: float | None,
        *,
        proof: bool = False,
    ) -> FrameCase:
        """Flood a program with frames of one kind, then look for the pace without loss.

        Args:
            market: The frames.
            program: What is measured.
            reference_per_s: What A does with frames of this size; measured where None.
            proof: Whether the pace has to hold for :attr:`Plan.proof_s` too.
        """
        flood_load = Load(FLOOD, self._plan.flood_s)
        if reference_per_s is None:
            as_a = attrs.evolve(market, encoding="msgpack")  # it reads nothing else
            (flood,) = self.run(REFERENCE, as_a, (flood_load,))
            reference_per_s = flood.out_per_s
        with bench(self.stage, program, market, self.new_folder()) as running:
            flood = self._apply(running, flood_load)
            search = self._search(running, flood.out_per_s, proof=proof)
        return FrameCase(program.name, market, reference_per_s, flood, search)

    def run(self, program: Program, market: Market, loads: Sequence[Load]) -> list[Outcome]:
        """One program through some loads."""
        with bench(self.stage, program, market, self.new_folder()) as running:
            return [self._apply(running, load) for load in loads]

    def new_folder(self) -> Path:
        """An empty one."""
        self._runs += 1
        folder = self._folder / str(self._runs)
        folder.mkdir()
        return folder

    def _search(self, running: Bench, flood_per_s: float, *, proof: bool) -> Search:
        """Halve the range in which the highest pace without conflation lies."""
        lowest, highest = _LOWEST * flood_per_s, _HIGHEST * flood_per_s
        best, tried = 0.0, []

        def holds(rate: float, seconds: float) -> bool:
            tried.append(self._apply(running, Load(rate, seconds)))
            return tried[-1].every_quote

        for _ in range(self._plan.search_steps):
            rate = round((lowest + highest) / 2, -3)
            if any(holds(rate, self._plan.search_s) for _ in range(_TRIES)):
                best = lowest = rate
            else:
                highest = rate
        if proof and best:
            paces = (round(best * _LESS**less, -3) for less in range(_PROOFS))
            best = next((rate for rate in paces if holds(rate, self._plan.proof_s)), 0.0)
        return Search(running.program.name, best, tried)

    def _ceiling(self) -> None:
        result = ceiling.measure(self.stage, self._plan.ceiling_s, self.new_folder())
        self.ceilings.append(result.quotes_per_s)
        self.wrong += [f"ceiling: {reason}" for reason in result.wrong]
        say(f"{'ceiling':{_NAME_WIDTH}} {'flood':>10}: {result.quotes_per_s:>31,.0f}/s out")

    def _apply(self, running: Bench, load: Load) -> Outcome:
        """Put on a load, tell how it went."""
        outcome = running.apply(load)
        market, name = running.market, running.program.name
        pace = f"{load.rate:,.0f}/s" if load.rate else "flood"
        if market != Market():
            name += f", {market.encoding} by {market.per_frame}, {market.symbols:,} symbols"
        p50, p99 = (f"{ms:,.2f}" if ms is not None else "-" for ms in outcome.latency_ms)
        verdict = "not checked" if outcome.wrong is None else "right"
        if outcome.wrong:
            verdict = "WRONG"
            self.wrong += [f"{name}, {pace}: {reason}" for reason in outcome.wrong]
        conflated = "" if outcome.conflated is None else f", {outcome.conflated:,} conflated"
        say(
            f"{name:{_NAME_WIDTH}} {pace:>10}: {outcome.in_per_s:>9,.0f}/s in, "
            f"{outcome.out_per_s:>9,.0f}/s out{conflated}, "
            f"latency {p50} / {p99} ms, {verdict}"
        )
        return outcome


def say(line: str) -> None:
    """A line for people, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
