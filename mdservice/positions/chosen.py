"""The positions of a few symbols only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mdservice.model.position import Position
from mdservice.positions.source import PositionSource

__all__ = ["ChosenPositions"]


class ChosenPositions:
    """A :class:`~mdservice.positions.source.PositionSource` that leaves out what nobody asked for.

    Args:
        source: Where all positions come from; closed with this one.
        symbols: Whose positions to keep.
    """

    def __init__(self, source: PositionSource, symbols: Iterable[str]) -> None:
        self.address = source.address
        self._source = source
        self._symbols = frozenset(symbols)

    @property
    def out_of_date(self) -> str | None:
        """As the source tells it."""
        return getattr(self._source, "out_of_date", None)

    async def fetch(self) -> Sequence[Position]:
        """See :meth:`mdservice.positions.source.PositionSource.fetch`."""
        found = await self._source.fetch()
        return [position for position in found if position.symbol in self._symbols]

    async def aclose(self) -> None:
        """See :meth:`mdservice.positions.source.PositionSource.aclose`."""
        await self._source.aclose()
