"""Whether a change has cost speed: a quick run and counted instructions against what is stored.

A ratio is to program A in the same round, so that most of what the machine does falls out of it.
What is left swings by a fifth or so, more on a busy machine: hence the tolerance, and what seems
lost is measured again, up to twice, before it counts. Of throughput the median of all rounds is
judged; of latency, which the machine can only add to, the lowest of each program. Runs during which
something else used a core are left out, and a loss that only they show is none. On a busy machine A
loses most, since it waits for a round trip twice a quote, and the ratios rise: a guard that is to
mean something runs on a quiet one. Instructions are the same everywhere,
see :mod:`tests.bench.instructions`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import attrs
import msgspec

from tests.bench.benchmark import ALPACA_PY, RAW, REFERENCE
from tests.bench.instructions import Stored
from tests.bench.programs import Program
from tests.bench.results import Measured, aligned
from tests.bench.runs import DISTURBED, Outcome

STORED = Path(__file__).with_name("guard.json")
REPEATS = 2
"""How often what seems lost is measured again."""
TOLERANCE = 0.35
"""A ratio that is smaller than the stored one by more than this part is a loss."""


def ratios(measured: Sequence[Measured]) -> dict[str, float]:
    """How much better than A; more is better in all of them."""
    return {name: ratio(measured, program) for name, (program, ratio) in _RATIOS.items()}


def concerned(names: Sequence[str]) -> list[Program]:
    """The programs that have to be measured for some ratios, A among them."""
    return [REFERENCE, *dict.fromkeys(_RATIOS[name][0] for name in names)]


def judged(measured: Sequence[Measured]) -> list[str]:
    """The ratios for which both programs had a run that nothing else disturbed."""
    return [
        name
        for name, (program, ratio) in _RATIOS.items()
        if all(ratio.undisturbed(measured, one) for one in (program, REFERENCE))
    ]


class _Ratio:
    """How much better a program is than A, of the runs that nothing disturbed, where there are any."""

    def __init__(self, load: Callable[[Measured], Outcome]) -> None:
        self._load = load

    def undisturbed(self, measured: Sequence[Measured], program: Program) -> list[Measured]:
        return [
            each
            for each in measured
            if each.program == program.name and self._load(each).disturbed < DISTURBED
        ]

    def of(self, measured: Sequence[Measured], program: Program) -> dict[int, Outcome]:
        """By round."""
        runs = self.undisturbed(measured, program)
        runs = runs or [each for each in measured if each.program == program.name]
        return {each.round: self._load(each) for each in runs}


class _TimesA(_Ratio):
    """Of every round the ratio to A's flood, and of these the median."""

    def __init__(self, figure: Callable[[Outcome], float]) -> None:
        super().__init__(lambda each: each.flood)
        self._figure = figure

    def __call__(self, measured: Sequence[Measured], program: Program) -> float:
        ours, as_a = self.of(measured, program), self.of(measured, REFERENCE)
        usual = median(flood.out_per_s for flood in as_a.values())
        return median(
            self._figure(flood) / (as_a[number].out_per_s if number in as_a else usual)
            for number, flood in ours.items()
        )


class _Sooner(_Ratio):
    """How many times A's lowest median latency is the program's.

    A's is at 1,000 quotes a second, which is near what it can do, the program's at 10,000: at a
    slower pace its latency is that of waking an idle virtual machine, which varies with the host.
    """

    def __init__(self) -> None:
        super().__init__(lambda each: each.faster[0] if each.faster else each.paced)

    def __call__(self, measured: Sequence[Measured], program: Program) -> float:
        ours, as_a = (
            min((ms for each in runs if (ms := each.latency_ms[0])), default=0.0)
            for runs in (self.of(measured, one).values() for one in (program, REFERENCE))
        )
        return as_a / ours if ours else 0.0


_published = _TimesA(lambda flood: flood.out_per_s)
_taken_in = _TimesA(lambda flood: flood.in_per_s)
_RATIOS: dict[str, tuple[Program, _TimesA | _Sooner]] = {
    "flood published, raw": (RAW, _published),
    "flood published, alpaca-py": (ALPACA_PY, _published),
    "flood taken in, raw": (RAW, _taken_in),
    "latency p50 at 10,000/s, raw": (RAW, _Sooner()),
    "latency p50 at 10,000/s, alpaca-py": (ALPACA_PY, _Sooner()),
}


def changes(now: dict[str, float]) -> dict[str, float]:
    """By how much each ratio differs from the stored one, as a part of that."""
    return {name: now[name] / before - 1 for name, before in _stored().items()}


def losses(now: dict[str, float]) -> list[str]:
    """Which ratios are lost."""
    return [name for name, change in changes(now).items() if change < -TOLERANCE]


def guard_table(now: dict[str, float]) -> str:
    """Stored, now, and whether that is a loss."""
    rows = [("compared with A", "stored", "now", "change", "")]
    lost, stored = losses(now), _stored()
    for name, change in changes(now).items():
        figures = (f"{stored[name]:.1f}", f"{now[name]:.1f}", f"{100 * change:+.0f} %")
        rows.append((name, *figures, "LOST" if name in lost else "kept"))
    return aligned(rows)


def stored_instructions() -> Stored | None:
    """The stored counts, where there are any."""
    content = _content().get("instructions")
    return None if content is None else Stored(**content)


def _stored() -> dict[str, float]:
    found: dict[str, float] = _content()["ratios"]
    return found


def _content() -> dict[str, Any]:
    content: dict[str, Any] = msgspec.json.decode(STORED.read_bytes())
    return content


def store(
    now: dict[str, float], machine: dict[str, Any], instructions: Stored | None = None
) -> None:
    """Make these what later runs are compared with."""
    content = {
        "measured": f"{datetime.now(UTC):%Y-%m-%d}",
        "python": machine["python"],
        "cores": machine["cores"],
        "ratios": {name: round(ratio, 2) for name, ratio in now.items()},
    }
    if instructions is not None:
        content["instructions"] = attrs.asdict(instructions)
    _write(content)


def store_instructions(instructions: Stored | None) -> None:
    """Make these counts what later ones are compared with; None removes them."""
    content = {name: value for name, value in _content().items() if name != "instructions"}
    if instructions is not None:
        content["instructions"] = attrs.asdict(instructions)
    _write(content)


def _write(content: dict[str, Any]) -> None:
    STORED.write_bytes(msgspec.json.format(msgspec.json.encode(content)) + b"\n")
