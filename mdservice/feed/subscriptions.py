"""Which symbols are wanted, and by whom. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

__all__ = ["SubscriptionSet", "chunks"]


class SubscriptionSet:
    """The wanted symbols in the order in which they were first asked for.

    Every symbol has the set of sources that want it (``settings``, ``api``, ``positions``);
    it is wanted for as long as one of them does. A source that follows something (``positions``)
    says which symbols are the more important ones: where the feed does not give all, these go
    first, and what is wanted for such a source alone gives way.
    """

    def __init__(self) -> None:
        self._sources: dict[str, set[str]] = {}
        self._ranks: dict[str, dict[str, int]] = {}
        """Of each source that follows: how important each symbol is, 0 the most."""

    def add(self, symbols: Iterable[str], source: str) -> list[str]:
        """The source wants the symbols; returns those that it did not want before."""
        added = []
        for symbol in symbols:
            sources = self._sources.setdefault(symbol, set())
            if source not in sources:
                sources.add(source)
                added.append(symbol)
        return added

    def follow(self, symbols: Sequence[str], source: str) -> list[str]:
        """The source wants exactly these, the most important one first.

        Returns:
            The symbols that nobody wants now.
        """
        self._ranks[source] = {symbol: rank for rank, symbol in enumerate(symbols)}
        self.add(symbols, source)
        wanted = self._ranks[source]
        left = [s for s, by in self._sources.items() if source in by and s not in wanted]
        return self.remove(left, [source])

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
        """Every wanted symbol: first those that do not give way, then by importance."""
        firm = [symbol for symbol in self._sources if not self.gives_way(symbol)]
        others = [symbol for symbol in self._sources if self.gives_way(symbol)]
        return (*firm, *sorted(others, key=self._importance))

    def gives_way(self, symbol: str) -> bool:
        """Whether it is wanted only for sources that follow something."""
        return self._sources.get(symbol, set()) <= self._ranks.keys()

    def _importance(self, symbol: str) -> int:
        lowest = len(self._sources)
        return min(self._ranks[source].get(symbol, lowest) for source in self._sources[symbol])

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
