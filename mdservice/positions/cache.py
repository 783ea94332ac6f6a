"""The positions as they were last told, and how that went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mdservice.clock import Clock
from mdservice.errors import PositionsError
from mdservice.model.position import Position
from mdservice.observability.logging import get_logger, masked
from mdservice.positions.source import PositionSource

__all__ = ["PositionCache"]

_log = get_logger(__name__)


class PositionCache:
    """Asks a source for the positions; where that fails, what was known stays.

    Args:
        source: Where they come from.
        clock: The time.

    Attributes:
        positions: The last ones that were told; empty before the first answer.
        last_error: Why the last try failed, or what it told may be out of date; else None.
        answers: How many answers there were.
    """

    def __init__(self, source: PositionSource, clock: Clock) -> None:
        self.positions: Sequence[Position] = ()
        self.last_error: str | None = None
        self.answers = 0
        self._source = source
        self._clock = clock
        self._told_s: float | None = None

    @property
    def address(self) -> str:
        """Where they come from, without any secret."""
        return self._source.address

    def age_s(self) -> float | None:
        """Seconds since the last answer; None before the first."""
        return None if self._told_s is None else self._clock.monotonic() - self._told_s

    async def refresh(self) -> bool:
        """Ask once; cancelling changes nothing.

        Returns:
            Whether the positions are others now.
        """
        try:
            positions = await self._source.fetch()
        except PositionsError as exc:
            self._note(str(exc))
            return False
        except Exception as exc:  # noqa: BLE001 - one of somebody else's must not end the asking
            # A source of somebody's own. What it says may hold a secret, so the log alone has it.
            _log.exception("positions_source_is_broken", source=self.address)
            self._note(f"{self.address}: {type(exc).__name__}, see the log")
            return False
        self._note(getattr(self._source, "out_of_date", None))
        self.answers += 1
        self._told_s = self._clock.monotonic()
        before, self.positions = self.positions, tuple(positions)
        if before == self.positions:
            return False
        self._tell_problems(before)
        return True

    def _note(self, error: str | None) -> None:
        """Why the last try failed, or None; told once."""
        reason = None if error is None else masked(error)
        if reason is not None and reason != self.last_error:
            _log.warning("positions_failed", source=self.address, reason=reason)
        elif reason is None and self.last_error is not None:
            _log.info("positions_are_back", source=self.address)
        self.last_error = reason

    def _tell_problems(self, before: Sequence[Position]) -> None:
        """Log each unusable row once, and not at each poll."""
        known, now = _problems(before), _problems(self.positions)
        for (symbol, problem), rows in now.items():
            if rows > known[symbol, problem]:
                _log.warning("position_not_followed", symbol=symbol, reason=problem, rows=rows)

    async def aclose(self) -> None:
        """Close the source."""
        await self._source.aclose()


def _problems(positions: Sequence[Position]) -> Counter[tuple[str, str]]:
    """How many rows there are of each symbol and problem; unreadable ones share a symbol."""
    return Counter((each.symbol, each.problem) for each in positions if each.problem is not None)
