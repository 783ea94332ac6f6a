"""Whether what a soak measured is flat, and whether anything was lost without a fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

import attrs

from tests.soak.faults import Fault

__all__ = ["GROWTH", "Sample", "Step", "growths", "unexplained", "verdict"]

GROWTH: Mapping[str, tuple[float, float]] = {
    "rss_mb": (0.10, 8.0),
    "descriptors": (0.10, 8.0),
    "threads": (0.10, 3.0),
}
"""How much each figure may grow: by this part, or by this much where that is more."""

_WARM = 0.25
"""The part of a run in which caches fill and which is not compared."""
_EXPLAINED_S = 45.0
"""A reader may miss events this long after a fault, since pub/sub keeps none."""
_EXPLAINING = frozenset(("redis killed", "redis stopped", "service stopped"))


@attrs.frozen
class Sample:
    """What was measured at one moment.

    Attributes:
        at_s: Seconds since the soak began.
        program: Its name.
        rss_mb: Its memory.
        descriptors: Its open files and sockets.
        threads: Its threads.
        cpu: The part of a core that it has used since its last sample.
        latency_ms: From the feed to the reader, half and 99 of 100, since the last sample; None
            without quotes. Only of the service.
    """

    at_s: float
    program: str
    rss_mb: float
    descriptors: int
    threads: int
    cpu: float
    latency_ms: tuple[float, float] | None = None


@attrs.frozen
class Step:
    """Events that the reader has missed.

    Attributes:
        at_s: When it noticed, seconds since the soak began.
        symbol: Whose.
        missed: How many.
    """

    at_s: float
    symbol: str
    missed: int


def growths(samples: Sequence[Sample], program: str) -> Mapping[str, tuple[float, float]]:
    """Each figure's median early in the run, after the warm part, and at its end.

    Empty for a run that is too short to say.
    """
    of_it = [sample for sample in samples if sample.program == program]
    if not of_it:
        return {}
    begin_s, end_s = of_it[0].at_s, of_it[-1].at_s
    length_s = (end_s - begin_s) * _WARM
    early = [s for s in of_it if begin_s + length_s <= s.at_s < begin_s + 2 * length_s]
    late = [s for s in of_it if s.at_s >= end_s - length_s]
    if not early or not late:
        return {}
    return {
        name: (median(getattr(s, name) for s in early), median(getattr(s, name) for s in late))
        for name in GROWTH
    }


def unexplained(steps: Sequence[Step], faults: Sequence[Fault]) -> list[Step]:
    """The steps that no fault of Redis or of the service explains."""
    return [step for step in steps if not any(_explains(fault, step) for fault in faults)]


def _explains(fault: Fault, step: Step) -> bool:
    if fault.name not in _EXPLAINING or step.at_s < fault.began_s:
        return False
    return fault.ended_s is None or step.at_s <= fault.ended_s + _EXPLAINED_S


def verdict(
    samples: Sequence[Sample],
    steps: Sequence[Step],
    faults: Sequence[Fault],
    ended: Mapping[str, int],
) -> list[str]:
    """What is wrong, in words; empty for a good run.

    Args:
        samples: Of every program under test.
        steps: What the reader has missed.
        faults: All of them.
        ended: The exit codes of programs that ended by themselves.
    """
    wrong = [f"{name} ended by itself with exit code {code}" for name, code in ended.items()]
    for program in sorted({sample.program for sample in samples}):
        for name, (early, late) in growths(samples, program).items():
            part, least = GROWTH[name]
            if late - early > max(part * early, least):
                wrong.append(f"{program}: {name} grew from {early:.1f} to {late:.1f}")
    lost = unexplained(steps, faults)
    if lost:
        first = lost[0]
        count = sum(step.missed for step in lost)
        wrong.append(
            f"{count} events missed without a fault, first {first.missed} of {first.symbol} at "
            f"{first.at_s:.0f} s"
        )
    return wrong
