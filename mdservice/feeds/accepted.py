"""What the feed's side has to know of the quotes that are out already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["AcceptedQuotes"]


class AcceptedQuotes(Protocol):
    """The accepted quotes, read while they grow."""

    def complete_until_ns(self) -> int | None:
        """Up to when what was received is out, UTC nanoseconds; None where nothing is."""
        ...

    def last_ns(self, symbol: str) -> int | None:
        """The time of the symbol's last accepted quote, UTC nanoseconds, or None."""
        ...

    def is_first(self, symbol: str) -> bool:
        """Whether its last quote was fetched on subscribing: the stream has brought none since."""
        ...

    def symbols(self) -> Sequence[str]:
        """Those that have an accepted quote."""
        ...
