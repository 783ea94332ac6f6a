"""The highest pace at which every quote is published: looked for in short loads, proven by a long one.

Pure: what tries a pace is handed in.
"""

from __future__ import annotations

from collections.abc import Callable

Trial = Callable[[float], bool]
"""Whether a pace, quotes a second, held."""

_CONFLATING, _NOT_CONFLATING = (1.0, 1.6), (0.8, 1.1)
"""Where the pace is looked for, times what a flood published. That is less than the pace where it
conflated, which costs too; else it is about all that there is."""
HOLDS = (1.0, 0.95, 0.9, 0.82, 0.74)
"""How much of the pace that was found is tried for long, one after the other."""


def bounds(flood_per_s: float, *, conflating: bool) -> tuple[float, float]:
    """Where to look for the pace, after what a flood published a second."""
    lowest, highest = _CONFLATING if conflating else _NOT_CONFLATING
    return lowest * flood_per_s, highest * flood_per_s


def find(holds: Trial, lowest: float, highest: float, steps: int) -> float:
    """Halve the range in which the highest pace lies.

    Args:
        holds: Tries a pace for a short time.
        lowest: Below what is looked for.
        highest: Above it.
        steps: How many paces are tried.

    Returns:
        The highest pace that held, in thousands; 0 where none did.
    """
    best = 0.0
    for _ in range(steps):
        pace = round((lowest + highest) / 2, -3)
        if holds(pace):
            best = lowest = pace
        else:
            highest = pace
    return best


def prove(holds: Trial, pace: float) -> float:
    """Try a pace for long, a little less where it does not hold, a few times.

    Returns:
        The first pace that held; 0 where none did.
    """
    return next((each for part in HOLDS if holds(each := round(part * pace, -3))), 0.0)
