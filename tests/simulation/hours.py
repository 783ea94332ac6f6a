"""New York's time in the simulation: the market closes or opens, or the date turns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Literal, get_args

from mdservice.model.market import Market
from tests.simulation.clocks import BEGINS_NS

if TYPE_CHECKING:
    from tests.simulation.plan import Trading

__all__ = ["TURNS", "Turn", "begins_at", "hours_of"]

Turn = Literal["opens", "closes", "midnight"]
TURNS: Final[tuple[Turn, ...]] = get_args(Turn)

_S_NS: Final = 1_000_000_000
_HOUR_NS: Final = 3_600 * _S_NS
_TURNS_NS: Final[dict[Turn, int]] = {
    "opens": BEGINS_NS - _HOUR_NS // 2,
    "closes": BEGINS_NS + 6 * _HOUR_NS,
    "midnight": BEGINS_NS + 14 * _HOUR_NS,
}
_FRIDAY: Final = ("2026-11-20T09:30:00-05:00", "2026-11-20T16:00:00-05:00")
_MONDAY: Final = ("2026-11-23T09:30:00-05:00", "2026-11-23T16:00:00-05:00")
_BEFORE_OPEN: Final = Market(False, *_FRIDAY)
_OPEN: Final = Market(True, _MONDAY[0], _FRIDAY[1])
_AFTER_CLOSE: Final = Market(False, *_MONDAY)


def begins_at(trading: Trading | None) -> int:
    """When a simulation begins, UTC nanoseconds."""
    if trading is None or trading.turn is None:
        return BEGINS_NS
    return _TURNS_NS[trading.turn] - round(trading.turns_at_s * _S_NS)


def hours_of(turn: Turn | None) -> Iterator[Market]:
    """The market's hours until the turn, and from then on."""
    yield _BEFORE_OPEN if turn == "opens" else _AFTER_CLOSE if turn == "midnight" else _OPEN
    yield _OPEN if turn in {"opens", None} else _AFTER_CLOSE
