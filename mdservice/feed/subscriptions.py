"""The wanted topics with their sources, and the topics whose records are accepted. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, TypeVar

from mdservice.model.events import FeedItem
from mdservice.model.feeds import Topic
from mdservice.model.kinds import Kind
from mdservice.model.symbol import EVERY_SYMBOL

__all__ = ["MOST_SYMBOLS", "FeedTap", "Followed", "SubscriptionSet", "chunks"]


class SubscriptionSet:
    """The wanted topics in the order in which they were first asked for.

    Every topic has the set of sources that want it (``settings``, ``api``, ``positions``), and
    is wanted as long as one of them does. The source ``positions`` also ranks its topics by
    importance. At the feed's symbol limit, the least important topic that only a ranking source
    wants is replaced.
    """

    def __init__(self) -> None:
        self._sources: dict[Topic, set[str]] = {}
        self._symbols: Counter[str] = Counter()
        """How many topics of each symbol are wanted."""
        self._ranks: dict[str, dict[Topic, int]] = {}
        """The rank of each topic for each ranking source; 0 is the most important."""
        self._wanted: tuple[Topic, ...] | None = None
        """What :attr:`wanted` has returned, until something changes."""

    def add(self, topics: Iterable[Topic], source: str) -> list[Topic]:
        """Add topics for a source; return those that the source did not want before."""
        self._wanted = None
        added = []
        for topic in topics:
            sources = self._sources.get(topic)
            if sources is None:
                sources = self._sources[topic] = set()
                self._symbols[topic.symbol] += 1
            if source not in sources:
                sources.add(source)
                added.append(topic)
        return added

    def follow(self, topics: Sequence[Topic], source: str) -> list[Topic]:
        """Replace the topics of a ranking source, the most important one first.

        Returns:
            The topics that no source wants now.
        """
        self._ranks[source] = {topic: rank for rank, topic in enumerate(topics)}
        self.add(topics, source)
        wanted = self._ranks[source]
        left = [t for t, by in self._sources.items() if source in by and t not in wanted]
        return self.remove(left, [source])

    def remove(self, topics: Iterable[Topic], sources: Iterable[str]) -> list[Topic]:
        """Remove topics for these sources; return those that no source wants now."""
        self._wanted = None
        leaving = set(sources)
        gone = []
        for topic in topics:
            if topic in self._sources:
                self._sources[topic] -= leaving
                if not self._sources[topic]:
                    del self._sources[topic]
                    self._symbols[topic.symbol] -= 1
                    if not self._symbols[topic.symbol]:
                        del self._symbols[topic.symbol]
                    gone.append(topic)
        return gone

    def wanted_by(self, source: str) -> frozenset[Topic]:
        """The topics that a source wants."""
        return frozenset(topic for topic, by in self._sources.items() if source in by)

    def by_source(self) -> dict[str, list[Topic]]:
        """The topics that each source wants, in the order of importance or of asking."""
        found: dict[str, list[Topic]] = {}
        for topic, sources in self._sources.items():
            for source in sources:
                found.setdefault(source, []).append(topic)
        for source, ranks in self._ranks.items():
            if source in found:
                found[source].sort(key=lambda topic: ranks.get(topic, len(ranks)))
        return found

    def of_symbols(self, symbols: Collection[str]) -> tuple[Topic, ...]:
        """The wanted topics of these symbols."""
        wanted = frozenset(symbols)
        return tuple(topic for topic in self._sources if topic.symbol in wanted)

    @property
    def wanted(self) -> Sequence[Topic]:
        """Every wanted topic: first those that are never replaced, then by importance."""
        if self._wanted is None:
            ranking = self._ranks.keys()
            firm: list[Topic] = []
            others: list[Topic] = []
            for topic, sources in self._sources.items():
                (others if sources <= ranking else firm).append(topic)
            self._wanted = (*firm, *sorted(others, key=self._importance))
        return self._wanted

    def gives_way(self, topic: Topic) -> bool:
        """Whether only ranking sources want the topic, so that it may be replaced."""
        return self._sources.get(topic, set()) <= self._ranks.keys()

    def _importance(self, topic: Topic) -> int:
        lowest = len(self._sources)
        return min([self._ranks[source].get(topic, lowest) for source in self._sources[topic]])

    def __contains__(self, topic: Topic) -> bool:
        return topic in self._sources

    def __len__(self) -> int:
        return len(self._sources)

    def wants(self, symbol: str) -> bool:
        """Whether any channel of a symbol is wanted."""
        return symbol in self._symbols

    def symbols(self) -> Sequence[str]:
        """The symbols of the wanted topics."""
        return tuple(self._symbols)

    def sources(self) -> dict[str, list[str]]:
        """Each wanted symbol with the sources of its topics, both sorted."""
        found: dict[str, set[str]] = {}
        for topic, sources in self._sources.items():
            found.setdefault(topic.symbol, set()).update(sources)
        return {symbol: sorted(found[symbol]) for symbol in sorted(found)}


_Item = TypeVar("_Item")


def chunks(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """The items in lists of at most ``size``."""
    remaining = iter(items)
    while chunk := list(islice(remaining, size)):
        yield chunk


class FeedTap(Protocol):
    """Gets a copy of what a feed's connections carry, in order; the journal has one for each feed.

    No method waits or fails.
    """

    def connecting(self, driver: str) -> None:
        """Another connection is tried."""
        ...

    def failed(self, reason: str) -> None:
        """It could not be opened, or has ended."""
        ...

    def opened(self, encoding: str) -> None:
        """The feed has accepted the login."""
        ...

    def asked(self, topics: Iterable[Topic]) -> None:
        """A request to subscribe these topics is sent."""
        ...

    def gave_up(self, topics: Iterable[Topic]) -> None:
        """These topics are unsubscribed."""
        ...

    def acknowledged(self, count: int) -> None:
        """The feed says that it sends so many topics; the message itself is among the frames."""
        ...

    def frames(self, frames: Sequence[bytes | str], received_ns: int) -> None:
        """What one read of the connection has brought, UTC nanoseconds. Never the login."""
        ...

    def holding(self, kind: Kind[Any]) -> None:
        """From now on records of a kind wait for a repair."""
        ...

    def item(self, item: FeedItem) -> None:
        """What goes to the router; records that came in :meth:`frames` too."""
        ...


MOST_SYMBOLS = 50_000
"""The maximum number of symbols accepted under ``*``, several times as many as a feed has.

It bounds the memory if a feed sends made-up symbols.
"""


class Followed:
    """The topics whose records are accepted: those that were requested and acknowledged.

    A record may come before the acknowledgement of its topic, so the topics of the current request
    count too. A topic that the feed acknowledges without a request does not count, nor does
    another spelling of a requested symbol.

    Args:
        under_every: The symbols that records have come of under ``*``. Kept over all connections
            of a feed, since what they fill is kept too: no more than :data:`MOST_SYMBOLS`.

    Attributes:
        keep_wire: Whether each record keeps the bytes of its message, for the relay.
        tap: Gets what the connection carries, for the journal; None without one.
    """

    def __init__(self, under_every: set[str] | None = None) -> None:
        self.keep_wire = False
        self.tap: FeedTap | None = None
        self._passed: dict[str, dict[str, str]] = {}
        self._under_every = set() if under_every is None else under_every
        self._requested: set[Topic] = set()
        self._asked: frozenset[Topic] = frozenset()
        self._acknowledged: frozenset[Topic] = frozenset()

    def passed(self, channel: str) -> dict[str, str]:
        """The symbols that are valid and followed on a channel, each with itself: looked at once.

        Every record gets the string that is kept here: later look-ups find it by identity, which
        wins back what this one costs. The dict stays the same object.
        """
        return self._passed.setdefault(channel, {})

    def ask(self, topics: Iterable[Topic]) -> None:
        """Note that a request to subscribe these topics is sent."""
        self._asked = frozenset(topics)
        self._requested |= self._asked
        if self.tap is not None:
            self.tap.asked(self._asked)

    def answered(self) -> None:
        """Note that the request is answered. From now on only acknowledged topics count."""
        self._asked = frozenset()
        self._forget_passed()

    def give_up(self, topics: Iterable[Topic]) -> None:
        """Note that these topics are unsubscribed."""
        given_up = frozenset(topics)
        self._requested -= given_up
        self._forget_passed()
        if self.tap is not None:
            self.tap.gave_up(given_up)

    def acknowledge(self, topics: Iterable[Topic]) -> None:
        """The feed says that it sends these."""
        before, self._acknowledged = self._acknowledged, frozenset(topics)
        if self.tap is not None:
            self.tap.acknowledged(len(self._acknowledged))
        if before - self._acknowledged:
            self._forget_passed()

    def takes(self, channel: str, symbol: str) -> bool:
        """Whether a record of this valid symbol is taken; asked where it is not in ``passed``."""
        if not self._has(Topic(channel, symbol)):
            if not self._has(Topic(channel, EVERY_SYMBOL)):
                return False
            if symbol not in self._under_every:
                if len(self._under_every) >= MOST_SYMBOLS:
                    return False
                self._under_every.add(symbol)
        self.passed(channel)[symbol] = symbol
        return True

    def _forget_passed(self) -> None:
        for passed in self._passed.values():
            passed.clear()

    def _has(self, topic: Topic) -> bool:
        return topic in self._requested and (topic in self._acknowledged or topic in self._asked)
