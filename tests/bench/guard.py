"""Whether a change has cost speed: ratios of a quick run against those that were stored.

A ratio is to program A in the same round, so that most of what the machine does falls out of it.
What is left swings by a fifth or so, more on a busy machine: hence the tolerance, and a loss is
measured a second time before it counts. Latency swings most: what is stored had better be the median
of a few runs. On a busy machine A loses most, since it waits for a round trip twice a quote, and the
ratios rise: a guard that is to mean something runs on a quiet one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from tests.bench.benchmark import ALPACA_PY, RAW, REFERENCE
from tests.bench.results import Measured, aligned

STORED = Path(__file__).with_name("guard.json")
TOLERANCE = 0.35
"""A ratio that is smaller than the stored one by more than this part is a loss."""


def ratios(measured: Sequence[Measured]) -> dict[str, float]:
    """Of every round the ratio to A, and of these the median; more is better in all of them."""

    def times_a(program: str, figure: Callable[[Measured, Measured], float]) -> float:
        as_a = {each.round: each for each in measured if each.program == REFERENCE.name}
        ours = [each for each in measured if each.program == program]
        return median(figure(each, as_a[each.round]) for each in ours)

    return {
        "flood published, raw": times_a(RAW.name, _published),
        "flood published, alpaca-py": times_a(ALPACA_PY.name, _published),
        "flood taken in, raw": times_a(
            RAW.name, lambda we, a: we.flood.in_per_s / a.flood.out_per_s
        ),
        "latency p50 at 1,000/s, raw": times_a(RAW.name, _sooner),
        "latency p50 at 1,000/s, alpaca-py": times_a(ALPACA_PY.name, _sooner),
    }


def _published(we: Measured, a: Measured) -> float:
    return we.flood.out_per_s / a.flood.out_per_s


def _sooner(we: Measured, a: Measured) -> float:
    ours, as_a = we.paced.latency_ms[0], a.paced.latency_ms[0]
    return as_a / ours if ours and as_a else 0.0


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


def _stored() -> dict[str, float]:
    ratios: dict[str, float] = msgspec.json.decode(STORED.read_bytes())["ratios"]
    return ratios


def store(now: dict[str, float], machine: dict[str, Any]) -> None:
    """Make these the ratios that later runs are compared with."""
    content = {
        "measured": f"{datetime.now(UTC):%Y-%m-%d}",
        "python": machine["python"],
        "cores": machine["cores"],
        "ratios": {name: round(ratio, 2) for name, ratio in now.items()},
    }
    STORED.write_bytes(msgspec.json.format(msgspec.json.encode(content)) + b"\n")
