"""Runs one after the other; what was wrong in any of them is collected."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import attrs

from tests.bench import ceiling, references, search
from tests.bench.checks import Market
from tests.bench.programs import PlainHandler, Program, Service
from tests.bench.references import Flooded
from tests.bench.results import FrameCase, Measured, Search
from tests.bench.runs import DISTURBED, Bench, Load, Outcome, Stage, bench

RAW, ALPACA_PY = Service("websockets"), Service("alpaca-py")
REFERENCE = PlainHandler()
PROGRAMS: tuple[Program, ...] = (REFERENCE, RAW, ALPACA_PY)
FLOOD = 0
"""The rate of a load that gives as much as the program takes."""
_NAME_WIDTH = 52
_TRIES = 2
"""A pace that only just failed, or while the machine was disturbed, has failed when it did as often:
one hiccup of the machine is not the program's."""
_LAGGING_MS = 80
"""Where events are as late after a second or two, the backlog grows: the pace won't hold for long."""


@attrs.frozen
class Plan:
    """How long to measure.

    Attributes:
        rounds: How often each program is measured.
        paced: The quiet load of each run.
        faster: Further paces …
        faster_programs: … of these.
        flood_s: How long the flood of each run lasts.
        ceiling_s: How long the ceiling is measured in each round; 0 leaves it out.
        reference_s: How long A is flooded, each time that its figure for a frame size is needed.
        search_s: How long each pace of a search is tried, and the flood before it lasts.
        search_steps: How many paces are tried where the one found has to hold for long …
        search_steps_unproven: … and where it has not.
        proof_s: How long the pace that was found has to hold, where that is asked for.
        proof_limit_s: After how long of searching no further pace is tried.
    """

    rounds: int
    paced: Load
    faster: tuple[Load, ...]
    faster_programs: tuple[Program, ...]
    flood_s: float
    ceiling_s: float
    reference_s: float
    search_s: float
    search_steps: int
    search_steps_unproven: int
    proof_s: float
    proof_limit_s: float


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

    def rounds(self) -> list[Measured]:
        """Every program in every round, each round beginning with another."""
        measured = []
        for number in range(self._plan.rounds):
            measured += self.round(number)
            if self._plan.ceiling_s:
                self._ceiling()
        return measured

    def round(self, number: int, programs: Sequence[Program] = PROGRAMS) -> list[Measured]:
        """Some programs, one after the other; which is the first depends on the number."""
        measured = []
        turn = number % len(programs)
        for program in (*programs[turn:], *programs[:turn]):
            faster = self._plan.faster if program in self._plan.faster_programs else ()
            loads = (self._plan.paced, *faster, Load(FLOOD, self._plan.flood_s))
            paced, *others, flood = self.run(program, Market(), loads)
            measured.append(Measured(number, program.name, paced, flood, others))
        return measured

    def reference(self, per_frame: int) -> float:
        """Flood A with frames of a size; quotes a second."""
        load = Load(FLOOD, self._plan.reference_s)
        (flood,) = self.run(REFERENCE, Market(per_frame=per_frame), (load,))
        return flood.out_per_s

    def frames(self, market: Market, program: Program, *, proof: bool) -> FrameCase:
        """Flood a program with frames of one kind, then look for the pace without loss.

        Args:
            market: The frames.
            program: What is measured.
            proof: Whether the pace has to hold for :attr:`Plan.proof_s` too.
        """
        with bench(self.stage, program, market, self.new_folder()) as running:
            for _ in range(_TRIES):  # where the pace is looked for depends on it
                flood = self.apply(running, Load(FLOOD, self._plan.search_s))
                if flood.disturbed < DISTURBED:
                    break
            lowest, highest = search.bounds(flood.out_per_s, conflating=bool(flood.conflated))
            found = self._search(running, lowest, highest, proof=proof)
        return FrameCase(program.name, market, flood, found)

    def references(self, seconds: float) -> list[Flooded]:
        """Flood the references that are installed, one after the other."""
        floods = []
        for each in (one for one in references.REFERENCES if one.python()):
            floods.append(references.measure(self.stage, each, seconds, self.new_folder()))
            one = floods[-1]
            self.wrong += [f"{one.name}: {reason}" for reason in one.wrong]
            figures = f"{one.in_per_s:>9,.0f}/s in, {one.written_per_s:>9,.0f}/s in Redis"
            say(f"{one.name:{_NAME_WIDTH}} {'flood':>10}: {figures}")
        return floods

    def run(self, program: Program, market: Market, loads: Sequence[Load]) -> list[Outcome]:
        """One program through some loads."""
        with bench(self.stage, program, market, self.new_folder()) as running:
            return [self.apply(running, load) for load in loads]

    def new_folder(self) -> Path:
        """An empty one."""
        self._runs += 1
        folder = self._folder / str(self._runs)
        folder.mkdir()
        return folder

    def _search(self, running: Bench, lowest: float, highest: float, *, proof: bool) -> Search:
        """Look for the highest pace without conflation; prove it where that is asked for."""
        tried: list[Outcome] = []

        def outcome(rate: float, seconds: float) -> Outcome:
            long = seconds == self._plan.proof_s
            tried.append(self.apply(running, Load(rate, seconds), while_lossless=long))
            return tried[-1]

        def holds(rate: float) -> bool:
            for _ in range(_TRIES if proof else 1):
                one = outcome(rate, self._plan.search_s)
                late_ms = one.latency_ms[1]
                if one.every_quote and late_ms is not None and late_ms < _LAGGING_MS:
                    return True
                if one.conflated:
                    break
            return False

        began = time.monotonic()
        steps = self._plan.search_steps if proof else self._plan.search_steps_unproven
        best = search.find(holds, lowest, highest, steps)
        if not proof:
            return Search(best, 0, tried)

        def holds_long(rate: float) -> bool:
            for _ in range(_TRIES):
                if time.monotonic() - began > self._plan.proof_limit_s:
                    say(f"{running.program.name}: no pace held in the time that there is")
                    return False
                one = outcome(rate, self._plan.proof_s)
                if one.every_quote or one.disturbed < DISTURBED:
                    return one.every_quote
            return False

        return Search(search.prove(holds_long, best or lowest), self._plan.proof_s, tried)

    def _ceiling(self) -> None:
        result = ceiling.measure(self.stage, self._plan.ceiling_s, self.new_folder())
        self.ceilings.append(result.quotes_per_s)
        self.wrong += [f"ceiling: {reason}" for reason in result.wrong]
        say(f"{'ceiling':{_NAME_WIDTH}} {'flood':>10}: {result.quotes_per_s:>31,.0f}/s out")

    def apply(self, running: Bench, load: Load, *, while_lossless: bool = False) -> Outcome:
        """Put on a load, tell how it went."""
        outcome = running.apply(load, while_lossless=while_lossless)
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
            f"latency {p50} / {p99} ms, {verdict}{_disturbance(outcome)}"
        )
        return outcome


def _disturbance(outcome: Outcome) -> str:
    """In words, where something else had more than a little of the program's core."""
    share = outcome.disturbed
    return f", DISTURBED: {100 * share:.0f} % of a core" if share > DISTURBED else ""


def say(line: str) -> None:
    """A line for people, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
