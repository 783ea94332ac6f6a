"""Which symbols are wanted, and by whom. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

__all__ = ["SubscriptionBook", "chunks"]


class SubscriptionBook:
    """The wanted symbols in the order in which they were first asked for.

    Every symbol has the set of sources that want it (``settings``, ``api``, ``positions``);
    it is wanted for as long as one of them does.
    """

    def __init__(self) -> None:
        self._sources: dict[str, set[str]] = {}

    def add(self, symbols: Iterable[str], source: str) -> list[str]:
        """The source wants the symbols; returns those that it did not want before."""
        added = []
        for symbol in symbols:
            sources = self._sources.setdefault(symbol, set())
            if source not in sources:
                sources.add(source)
                added.append(symbol)
        return added

    def remove(self, symbols: Iterable[str], sources: Iterable[str]) -> list[str]:
        """The sources no longer want them; returns the symbols that nobody wants now."""
        leaving = set(sources)
        gone = []
        for symbol in symbols:
            if symbol in self._sources:
                self._sources[symbol] -= leaving
                if not self._sources[symbol]:
                    del self._sources[symbol]
                    gone.append(symbol)
        return gone

    @property
    def wanted(self) -> Sequence[str]:
        """Every wanted symbol."""
        return tuple(self._sources)

    def __contains__(self, symbol: str) -> bool:
        return symbol in self._sources

    def __len__(self) -> int:
        return len(self._sources)

    def sources(self) -> dict[str, list[str]]:
        """Each wanted symbol with its sources, both sorted."""
        return {symbol: sorted(self._sources[symbol]) for symbol in sorted(self._sources)}


def chunks(symbols: Iterable[str], size: int) -> Iterator[list[str]]:
    """The symbols in lists of at most ``size``."""
    remaining = iter(symbols)
    while chunk := list(islice(remaining, size)):
        yield chunk
