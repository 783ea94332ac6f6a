"""The wanted symbols with their sources, and the symbols whose quotes are accepted. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from mdservice.model.symbol import EVERY_SYMBOL

__all__ = ["MOST_SYMBOLS", "Followed", "SubscriptionSet", "chunks"]


class SubscriptionSet:
    """The wanted symbols in the order in which they were first asked for.

    Every symbol has the set of sources that want it (``settings``, ``api``, ``positions``), and
    is wanted as long as one of them does. The source ``positions`` also ranks its symbols by
    importance. At the feed's symbol limit, the least important symbol that only a ranking source
    wants is replaced.
    """

    def __init__(self) -> None:
        self._sources: dict[str, set[str]] = {}
        self._ranks: dict[str, dict[str, int]] = {}
        """The rank of each symbol for each ranking source; 0 is the most important."""

    def add(self, symbols: Iterable[str], source: str) -> list[str]:
        """Add symbols for a source; return those that the source did not want before."""
        added = []
        for symbol in symbols:
            sources = self._sources.setdefault(symbol, set())
            if source not in sources:
                sources.add(source)
                added.append(symbol)
        return added

    def follow(self, symbols: Sequence[str], source: str) -> list[str]:
        """Replace the symbols of a ranking source, the most important one first.

        Returns:
            The symbols that no source wants now.
        """
        self._ranks[source] = {symbol: rank for rank, symbol in enumerate(symbols)}
        self.add(symbols, source)
        wanted = self._ranks[source]
        left = [s for s, by in self._sources.items() if source in by and s not in wanted]
        return self.remove(left, [source])

    def remove(self, symbols: Iterable[str], sources: Iterable[str]) -> list[str]:
        """Remove symbols for these sources; return those that no source wants now."""
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
        """Every wanted symbol: first those that are never replaced, then by importance."""
        firm = [symbol for symbol in self._sources if not self.gives_way(symbol)]
        others = [symbol for symbol in self._sources if self.gives_way(symbol)]
        return (*firm, *sorted(others, key=self._importance))

    def gives_way(self, symbol: str) -> bool:
        """Whether only ranking sources want the symbol, so that it may be replaced."""
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


MOST_SYMBOLS = 50_000
"""The maximum number of symbols accepted under ``*``, several times as many as a feed has.

It bounds the memory if a feed sends made-up symbols.
"""


class Followed:
    """The symbols whose quotes are accepted: those that were requested and acknowledged.

    A quote may come before the acknowledgement of its symbol, so the symbols of the current request
    count too. A symbol that the feed acknowledges without a request does not count, nor does
    another spelling of a requested one.

    Args:
        under_every: The symbols that quotes have come of under ``*``. Kept over all connections
            of a feed, since what they fill is kept too: no more than :data:`MOST_SYMBOLS`.
    """

    def __init__(self, under_every: set[str] | None = None) -> None:
        self.passed: dict[str, str] = {}
        """Symbols that are valid and followed, each with itself: looked at once.

        Every quote gets the string that is kept here: later look-ups find it by identity, which
        wins back what this one costs.
        """
        self._under_every = set() if under_every is None else under_every
        self._requested: set[str] = set()
        self._asked: frozenset[str] = frozenset()
        self._acknowledged: frozenset[str] = frozenset()

    def ask(self, symbols: Iterable[str]) -> None:
        """Note that a request to subscribe these symbols is sent."""
        self._asked = frozenset(symbols)
        self._requested |= self._asked

    def answered(self) -> None:
        """Note that the request is answered. From now on only acknowledged symbols count."""
        self._asked = frozenset()
        self.passed.clear()

    def give_up(self, symbols: Iterable[str]) -> None:
        """Note that these symbols are unsubscribed."""
        self._requested.difference_update(symbols)
        self.passed.clear()

    def acknowledge(self, symbols: Iterable[str]) -> None:
        """The feed says that it sends these."""
        before, self._acknowledged = self._acknowledged, frozenset(symbols)
        if before - self._acknowledged:
            self.passed.clear()

    def takes(self, symbol: str) -> bool:
        """Whether a quote of this valid symbol is taken; asked where it is not in ``passed``."""
        if not self._has(symbol):
            if not self._has(EVERY_SYMBOL):
                return False
            if symbol not in self._under_every:
                if len(self._under_every) >= MOST_SYMBOLS:
                    return False
                self._under_every.add(symbol)
        self.passed[symbol] = symbol
        return True

    def _has(self, symbol: str) -> bool:
        return symbol in self._requested and (symbol in self._acknowledged or symbol in self._asked)
