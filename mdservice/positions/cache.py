"""The last known positions of one process, fetched and cached."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Final

import anyio

from mdservice.clock import Clock
from mdservice.errors import PositionsError, PositionsUnavailable
from mdservice.model.position import Position
from mdservice.observability.logging import get_logger, masked
from mdservice.positions.sources import PositionSource

__all__ = ["PATIENCE_S", "PositionCache"]

_log = get_logger(__name__)

PATIENCE_S: Final = 5.0
"""How long :meth:`PositionCache.current` waits for the source before it returns the last answer."""


class PositionCache:
    """Keeps the positions of a process and asks their source, one request at a time.

    Callers await :meth:`current` (or :meth:`refresh`, to poll) and use the result. If the source
    fails, the last answer stays, and :meth:`warning` says why it may be out of date.

    Args:
        source: The source of the positions.
        interval_s: How old they may be, seconds; if 0, each :meth:`current` asks the source.
        clock: The time.
        symbols: Keep only positions in these symbols, as the source or the feed writes them; empty
            means all.

    Attributes:
        interval_s: As given.
        positions: The source's last answer; empty before the first answer.
        last_error: Why the last request failed, or why its answer may be out of date; else None.
        answers: The number of answers.
    """

    def __init__(
        self,
        source: PositionSource,
        interval_s: float,
        clock: Clock,
        symbols: Collection[str] = (),
    ) -> None:
        self.interval_s = interval_s
        self.positions: tuple[Position, ...] = ()
        self.last_error: str | None = None
        self.answers = 0
        self._source = source
        self._clock = clock
        self._symbols = frozenset(symbols)
        self._asking = anyio.Lock()
        self._asked_s: float | None = None
        self._answered_s: float | None = None
        self._overdue = False
        """Whether a caller has waited in full since the source last answered or failed."""

    @property
    def address(self) -> str:
        """The source's address, without any secret."""
        return self._source.address

    def age_s(self) -> float | None:
        """Seconds since the last answer; None before the first."""
        return None if self._answered_s is None else self._clock.monotonic() - self._answered_s

    def warning(self) -> str | None:
        """Why they may be out of date, or None."""
        if self.last_error is None and self._overdue:
            return f"{self.address} does not answer within {PATIENCE_S:g} s"
        return self.last_error

    async def current(self, *, polled: bool) -> tuple[Position, ...]:
        """The positions; the source is asked first where they are older than the interval.

        Args:
            polled: Whether a task calls :meth:`refresh` at that interval. Its last result is
                current then, unless the interval is 0.

        Raises:
            PositionsUnavailable: The source has never answered.
        """
        if not self._is_current(polled=polled):
            with anyio.move_on_after(PATIENCE_S) as patience:
                async with self._asking:
                    if not self._is_current(polled=polled):
                        await self._ask()
            self._overdue = self._overdue or patience.cancelled_caught
        if not self.answers:
            reason = self.warning() or f"{self.address} has not answered yet"
            raise PositionsUnavailable(f"the positions are not known: {reason}")
        return self.positions

    async def refresh(self) -> tuple[Position, ...]:
        """Ask the source now, and return the positions; cancelling changes nothing."""
        async with self._asking:
            await self._ask()
        return self.positions

    async def aclose(self) -> None:
        """Close the source."""
        await self._source.aclose()

    def _is_current(self, *, polled: bool) -> bool:
        if self._asked_s is None:
            return False
        if polled and self.answers:
            # While the source is overdue, only the polling task waits for it.
            return self.interval_s > 0 or self._overdue
        return self._clock.monotonic() < self._asked_s + self.interval_s

    async def _ask(self) -> None:
        try:
            positions = self._chosen(await self._source.fetch())
        except PositionsError as exc:
            self._note(str(exc))
        except Exception as exc:  # noqa: BLE001 - a program's own source may raise anything
            # The message may hold a secret, so it goes only to the log.
            _log.exception("positions_source_is_broken", source=self.address)
            self._note(f"{self.address}: {type(exc).__name__}, see the log")
        else:
            self._keep(positions)
        self._asked_s = self._clock.monotonic()
        self._overdue = False

    def _chosen(self, positions: Sequence[Position]) -> tuple[Position, ...]:
        if not self._symbols:
            return tuple(positions)
        return tuple(
            each
            for each in positions
            if not self._symbols.isdisjoint((each.symbol, each.priced_by))
        )

    def _keep(self, positions: tuple[Position, ...]) -> None:
        before, self.positions = self.positions, positions
        self._note(getattr(self._source, "out_of_date", None))
        self.answers += 1
        self._answered_s = self._clock.monotonic()
        if before is not positions and before != positions:
            _log_problems(before, positions)

    def _note(self, error: str | None) -> None:
        """Store why the last request failed, or None; log it if the reason has changed."""
        reason = None if error is None else masked(error)
        if reason is not None and reason != self.last_error:
            _log.warning("positions_failed", source=self.address, reason=reason)
        elif reason is None and self.last_error is not None:
            _log.info("positions_are_back", source=self.address)
        self.last_error = reason


def _log_problems(before: Sequence[Position], now: Sequence[Position]) -> None:
    """Log each unusable row once, not at each poll."""
    known = _problems(before)
    for (symbol, problem), rows in _problems(now).items():
        if rows > known[symbol, problem]:
            _log.warning("position_not_followed", symbol=symbol, reason=problem, rows=rows)


def _problems(positions: Sequence[Position]) -> Counter[tuple[str, str]]:
    """Count the rows of each symbol and problem; unreadable ones share a symbol."""
    return Counter((each.symbol, each.problem) for each in positions if each.problem is not None)
