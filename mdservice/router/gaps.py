"""What is missing after a lost connection: of which symbols, since when, repaired or not. Pure.

::

    lost ──▶ missing ──resumed──▶ told: a gap ──filled──▶ repaired, or it stays one
                ▲  │                     │
                │  └── left out: it goes on being missing, and is told once it is back
                └──────── lost again ◀───┘  before it was filled: told again, from the same time
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import attrs

from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.model.timestamps import format_ns

__all__ = ["Gaps"]


@attrs.define
class _Gap:
    """A gap that was told and is being repaired; ``times`` is how often it was told."""

    from_ns: int
    to_ns: int
    symbols: frozenset[str]
    times: int = 1

    def details(self, **more: Any) -> dict[str, Any]:
        return {
            "from": format_ns(self.from_ns),
            "to": format_ns(self.to_ns),
            "symbols": sorted(self.symbols),
            **more,
        }


class Gaps:
    """Follows the gaps of one kind of record, and words them for ``feed.status``.

    Args:
        channel: The kind's channel: ``gap_repaired`` has the count of records under this name.

    Attributes:
        told: How many gaps there were.
        repaired: How many of them were repaired.
    """

    def __init__(self, channel: str) -> None:
        self._channel = channel
        self.told = 0
        self.repaired = 0
        self._missing: dict[str, int] = {}
        """Symbols that are not followed, with the last accepted record's time before that."""
        self._being_repaired: list[_Gap] = []
        self._unrepaired: set[str] = set()
        """Symbols whose last gap stayed one, though other symbols' were repaired."""

    def lost(
        self,
        newest_ns: int | None,
        symbols: Collection[str],
        last_ns: Callable[[str], int | None] = lambda _symbol: None,
    ) -> None:
        """Records of these symbols no longer come.

        Args:
            newest_ns: The time of the last accepted record of all, UTC nanoseconds; None where
                nothing has been accepted, so that nothing is known to be missing.
            symbols: Those that were followed.
            last_ns: Returns the time of a symbol's last accepted record. History may have brought
                other symbols further than the stream: a symbol that it left out counts from here.
        """
        since = {symbol: gap.from_ns for gap in self._being_repaired for symbol in gap.symbols}
        for symbol in symbols:
            complete_ns = newest_ns
            if symbol in self._unrepaired and newest_ns is not None:
                complete_ns = min(newest_ns, last_ns(symbol) or newest_ns)
            from_ns = since.get(symbol, complete_ns)
            if from_ns is not None:
                self._missing.setdefault(symbol, from_ns)

    def resumed(
        self,
        at_ns: int,
        followed: Collection[str],
        left_out: Collection[str],
        last_ns: Callable[[str], int | None],
        *,
        repairing: bool,
    ) -> list[dict[str, Any]]:
        """Records come again.

        Args:
            at_ns: Since when, UTC nanoseconds.
            followed: The symbols whose records come; ``*`` is every one.
            left_out: Those that are wanted and still do not; all others are wanted no longer.
            last_ns: Tells the time of a symbol's last accepted record. Where one went out since the
                loss, what came before it can no longer be brought: such a gap stays one.
            repairing: Whether :meth:`filled` will be called.

        Returns:
            What ``gap`` tells, once for each time from which symbols were missing.
        """
        repairable: dict[int, set[str]] = {}
        too_late: dict[int, set[str]] = {}
        still_missing: dict[str, int] = {}
        for symbol, from_ns in self._missing.items():
            if symbol in followed or EVERY_SYMBOL in followed:
                went_on = (last_ns(symbol) or 0) > from_ns
                (too_late if went_on else repairable).setdefault(from_ns, set()).add(symbol)
            elif symbol in left_out:
                still_missing[symbol] = from_ns
        self._missing = still_missing
        gaps = _gaps(repairable, at_ns)
        told = [*_gaps(too_late, at_ns), *gaps]
        self.told += len(told)
        if repairing:
            self._replace(gaps)
        return [gap.details() for gap in told]

    def _replace(self, gaps: list[_Gap]) -> None:
        """The repair that is to come covers these; told before, they are told again."""
        before, self._being_repaired = self._being_repaired, gaps
        for old in before:
            again = next((gap for gap in gaps if gap.from_ns == old.from_ns), None)
            if again is not None:
                again.times += old.times

    def brought(self, newest_ns: int | None, symbols: Collection[str]) -> None:
        """An earlier repair's late records of these went out, maybe in the next outage.

        Up to them nothing is missing that can still be brought, so that what is begins here.

        Args:
            newest_ns: The time of the last accepted record now, UTC nanoseconds.
            symbols: Theirs.
        """
        for symbol in self._missing.keys() & set(symbols):
            self._missing[symbol] = max(self._missing[symbol], newest_ns or 0)

    def late(self, from_ns: int, to_ns: int, symbols: Collection[str]) -> list[dict[str, Any]]:
        """History told too late of what a repair should have brought.

        Args:
            from_ns: The time of the last record that was out before, UTC nanoseconds.
            to_ns: Until when history was asked, UTC nanoseconds.
            symbols: Those of which records are missing for good, or may be.

        Returns:
            What ``gap`` tells; nothing where all could still be brought.
        """
        if not symbols:
            return []
        self.told += 1
        return [_Gap(from_ns, to_ns, frozenset(symbols)).details(reason="history was late")]

    def filled(
        self,
        until_ns: int,
        newest_ns: int | None,
        counts: Mapping[str, int],
        complete: Collection[str],
    ) -> list[dict[str, Any]]:
        """A repair has ended.

        Args:
            until_ns: When, UTC nanoseconds.
            newest_ns: The time of the last accepted record now.
            counts: How many it brought, by symbol.
            complete: The symbols of which these are all that were missing.

        Returns:
            What ``gap_repaired`` tells; nothing where no gap was told yet or none is repaired.
        """
        details = []
        for gap in self._being_repaired:
            if newest_ns is not None:  # lost again meanwhile: what is missing begins here
                for symbol in gap.symbols.intersection(self._missing):
                    self._missing[symbol] = newest_ns
            repaired = gap.symbols.intersection(complete)
            self._unrepaired = (self._unrepaired | gap.symbols) - repaired
            if not repaired:
                continue
            if repaired == gap.symbols:
                self.repaired += gap.times
            fixed = _Gap(gap.from_ns, max(gap.to_ns, until_ns), repaired)
            count = sum(counts.get(symbol, 0) for symbol in repaired)
            details.append(fixed.details(**{self._channel: count}))
        self._being_repaired = []
        return details


def _gaps(symbols: Mapping[int, Collection[str]], at_ns: int) -> list[_Gap]:
    """One for each time from which symbols are missing.

    This machine's clock may be behind the exchange's: a gap does not end before it begins.
    """
    return [
        _Gap(from_ns, max(from_ns, at_ns), frozenset(symbols[from_ns]))
        for from_ns in sorted(symbols)
    ]
