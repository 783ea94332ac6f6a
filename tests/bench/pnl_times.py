"""Times of what is measured, and of fixed work beside each: whether the machine was steady.

The fixed work is none of the program's, and always the same. Where it took much longer than usual
right before or after something that was measured, the machine was slow at that moment: a virtual
machine shares its processors.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from typing import Any, Final

__all__ = ["Times", "fixed_work", "percentiles"]

_ROWS: Final = [{"symbol": str(number), "price": number / 100} for number in range(300)]
_STEADY: Final = 1.5
"""How many times its median the fixed work may take beside something that counts as steady."""


def fixed_work() -> float:
    """Do the fixed work, about 0.2 ms; its seconds."""
    started_s = time.perf_counter()
    json.dumps(_ROWS)
    return time.perf_counter() - started_s


class Times:
    """The seconds of some things of one kind, measured one after the other."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._beside: list[float] = []
        """The longer of the fixed works before and after each."""
        self._before_s = 0.0

    def begin(self) -> float:
        """When the next one starts, seconds of ``time.perf_counter``."""
        self._before_s = fixed_work()
        return time.perf_counter()

    def note(self, seconds: float) -> None:
        """It has just ended, and took so long."""
        self._seconds.append(seconds)
        self._beside.append(max(self._before_s, fixed_work()))

    def end(self, started_s: float) -> None:
        """It has just ended, and had started then."""
        self.note(time.perf_counter() - started_s)

    def figures(self) -> dict[str, Any]:
        """As :func:`percentiles`; ``steady`` has those of the times when the machine was steady."""
        usual_s = statistics.median(self._beside)
        steady = [
            seconds
            for seconds, beside_s in zip(self._seconds, self._beside, strict=True)
            if beside_s <= _STEADY * usual_s
        ]
        return {**percentiles(self._seconds), "steady": percentiles(steady)}


def percentiles(seconds: Sequence[float]) -> dict[str, Any]:
    """Milliseconds; ``n`` is how many were measured.

    ``thirds_p99_ms`` has the 99th percentile of each third, in the order in which they were
    measured: where the machine does something else for a second, one of them differs.
    """
    third = -(-len(seconds) // 3)
    thirds = [seconds[start : start + third] for start in range(0, len(seconds), third)]
    return {
        "n": len(seconds),
        "p50_ms": _percentile_ms(seconds, 50),
        "p99_ms": _percentile_ms(seconds, 99),
        "thirds_p99_ms": [_percentile_ms(each, 99) for each in thirds],
        "max_ms": _percentile_ms(seconds, 100),
    }


def _percentile_ms(seconds: Sequence[float], percent: int) -> float:
    ordered = sorted(seconds)
    return ordered[-(-(len(ordered) - 1) * percent // 100)] * 1e3
