"""What is missing after a lost connection: from when, until when, repaired or not. Pure.

::

    lost ──▶ resumed: a gap is told ──▶ filled: repaired, or it stays one
      ▲                   │
      └──── lost again ◀──┘  before it was filled: told again, from the same time
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mdservice.model.timestamps import format_ns

__all__ = ["Gaps"]


class Gaps:
    """Follows one feed's gaps, and words them for ``feed.status``.

    Attributes:
        told: How many gaps there were.
        repaired: How many of them were repaired.
    """

    def __init__(self) -> None:
        self.told = 0
        self.repaired = 0
        self._is_lost = False
        self._from_ns: int | None = None
        """The last accepted quote before what is missing; None where nothing is."""
        self._open = 0
        """Gaps that were told and may yet be repaired, all at once."""
        self._to_ns = 0
        self._symbols: Sequence[str] = ()

    def lost(self, newest_ns: int | None) -> None:
        """The connection is lost.

        Args:
            newest_ns: The time of the last accepted quote, UTC nanoseconds.
        """
        self._is_lost = True
        if self._from_ns is None:
            self._from_ns = newest_ns

    def resumed(
        self, at_ns: int, symbols: Sequence[str], *, repairing: bool
    ) -> dict[str, Any] | None:
        """Quotes come again.

        Args:
            at_ns: Since when, UTC nanoseconds.
            symbols: Those that were followed before and are again.
            repairing: Whether :meth:`filled` will be called.

        Returns:
            What ``gap`` tells, or None where there is none.
        """
        was_lost, self._is_lost = self._is_lost, False
        if not was_lost or self._from_ns is None:
            return None
        if not symbols:
            self._close()
            return None
        self.told += 1
        self._open += 1
        self._to_ns, self._symbols = at_ns, symbols
        details = self._details()
        if not repairing:
            self._close()
        return details

    def filled(
        self, until_ns: int, newest_ns: int | None, quotes: int, *, repaired: bool
    ) -> dict[str, Any] | None:
        """A repair has ended.

        Args:
            until_ns: When, UTC nanoseconds.
            newest_ns: The time of the last accepted quote now.
            quotes: How many it brought.
            repaired: Whether these are all that were missing.

        Returns:
            What ``gap_repaired`` tells, or None where nothing is repaired.
        """
        details = None
        if not self._open:
            return None  # it was not told yet: what is missing goes on
        if repaired:
            self.repaired += self._open
            self._to_ns = max(self._to_ns, until_ns)
            details = {**self._details(), "quotes": quotes}
        self._close()
        if self._is_lost:
            self._from_ns = newest_ns
        return details

    def _close(self) -> None:
        self._from_ns = None
        self._open = 0

    def _details(self) -> dict[str, Any]:
        return {
            "from": format_ns(self._from_ns or 0),
            "to": format_ns(self._to_ns),
            "symbols": list(self._symbols),
        }
