"""What a source of positions is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from mdservice.model.position import Position

__all__ = ["FETCH_LIMIT_S", "PositionSource"]

FETCH_LIMIT_S: Final = 9.0
"""Within this a fetch ends, whatever the other side does; a caller may count on 10 s."""


class PositionSource(Protocol):
    """Positions, asked for again and again."""

    @property
    def address(self) -> str:
        """Where the positions come from, for people; without any secret."""
        ...

    async def fetch(self) -> Sequence[Position]:
        """All positions of now, in the source's order; the caller's own.

        Takes at most 10 s. Calls at the same time are made one after the other. Cancelling
        leaves the source usable, and what was under way ends by itself within seconds.

        Raises:
            PositionsUnavailable: None can be had now; worth another try.
            PositionsRefused: The source said no, or what it says are no positions.
        """
        ...

    async def aclose(self) -> None:
        """Let go of connections. May be called again; a later fetch opens them anew."""
        ...
