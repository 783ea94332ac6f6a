"""The positions of a program that mounts the router: a function that returns them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from inspect import isawaitable
from typing import Any, Final

import msgspec

from mdservice.errors import PositionsRefused, PositionsUnavailable
from mdservice.model.position import Position
from mdservice.positions.parse import parse_positions

__all__ = ["FunctionPositions", "PositionsFunction"]

PositionsFunction = Callable[[], Iterable[Any] | Awaitable[Iterable[Any]]]
"""Returns rows: positions, mappings, or objects with the attributes of a position."""

_FIELDS: Final = ("symbol", "qty", "avg_entry_price", "side", "multiplier")


class FunctionPositions:
    """A :class:`~mdservice.positions.source.PositionSource` that calls a function."""

    address = "the program's own positions"

    def __init__(self, function: PositionsFunction) -> None:
        self._function = function
        self._content = b""
        self._positions: list[Position] = []
        """Of that content: a function is asked far more often than what it returns changes."""

    async def fetch(self) -> Sequence[Position]:
        """What the function returns now.

        Raises:
            PositionsUnavailable: It raised an error.
            PositionsRefused: What it returns are no positions.
        """
        try:
            found = self._function()
            rows = list(await found if isawaitable(found) else found)
        except Exception as exc:
            raise PositionsUnavailable(
                f"the program's function for positions failed: {type(exc).__name__}: {exc}"
            ) from exc
        try:
            content = msgspec.json.encode(rows, enc_hook=_as_mapping)
        except (TypeError, ValueError, NotImplementedError) as exc:
            raise PositionsRefused(f"what the function returns are no positions: {exc}") from exc
        if content != self._content:
            self._positions = parse_positions(content, "what the function returns")
            self._content = content
        return self._positions

    async def aclose(self) -> None:
        """Nothing is kept open."""


def _as_mapping(row: object) -> dict[str, Any]:
    found = {name: getattr(row, name) for name in _FIELDS if hasattr(row, name)}
    if "symbol" not in found:
        raise NotImplementedError(f"a row is a {type(row).__name__} without a symbol")
    return found
