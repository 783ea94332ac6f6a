"""A lane per symbol: order, repeats and numbers. Pure.

A lane is its last accepted quote: that tells the newest time, what a repeat looks like and
the last number. At the start it may be the last quote of an earlier run, with the number 0.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence

import attrs

from mdservice.model.quote import Identity, Quote, identity

__all__ = ["Fetched", "Routed", "Sequencer", "merge"]


# Past quotes and live ones of the same stretch of time, as one. Pure.


def merge(past: Sequence[Quote], live: Sequence[Quote]) -> list[Quote]:
    """All quotes once, in the order of their times, those of one time in history's order.

    Where both have a symbol's time, they are counted against each other, since several quotes
    may share a time: what both have is taken from the stream, as often as both have it, at the
    place that history gives it. What only one of them has is kept: nothing is lost at the edge
    of a history that lags.

    Args:
        past: From history, in the order of their times within each symbol.
        live: From the stream, in the order in which they came.
    """
    in_live: defaultdict[Identity, deque[Quote]] = defaultdict(deque)
    for quote in live:
        in_live[identity(quote)].append(quote)
    merged = []
    in_both = set()
    for quote in past:
        same = in_live.get(identity(quote))
        if same:
            in_both.add(id(same[0]))
            merged.append(same.popleft())
        else:
            merged.append(quote)
    merged += [quote for quote in live if id(quote) not in in_both]
    return sorted(merged, key=_time)


def _time(quote: Quote) -> int:
    return quote.ts_event_ns


@attrs.frozen
class Routed:
    """What became of some quotes.

    Attributes:
        accepted: Numbered, in the order in which they came.
        stale: How many were older than their symbol's last one, or repeated it exactly.
        ahead_ns: Of each quote that is too far in the future, how far.
    """

    accepted: list[Quote]
    stale: int
    ahead_ns: Sequence[int]


@attrs.frozen
class Fetched:
    """What became of quotes that were fetched when their symbols were subscribed.

    Attributes:
        accepted: Numbered, in the order in which they came.
        known: Symbols whose last quote is this one or a newer one that the stream did not bring
            since: their price is still right.
        ahead_ns: Of each quote that is too far in the future, how far.
    """

    accepted: list[Quote]
    known: Sequence[str]
    ahead_ns: Sequence[int]


_MOST_AT_ONE_TIME = 1000
"""Quotes of one symbol and time that are told apart when history repeats them."""
_ECHO_NS = 20_000_000_000
"""Of the quotes that history brought, those this close to the newest may yet come live."""


class Sequencer:
    """The latest accepted quote of each symbol."""

    def __init__(self) -> None:
        self._latest: dict[str, Quote] = {}
        self._before_at_same_time: dict[str, list[Quote]] = {}
        """Where a symbol's last time has several accepted quotes: those before the last."""
        self._echoes: Counter[Identity] = Counter()
        """What history brought before the stream did."""
        self._firsts: set[str] = set()
        """Symbols whose last quote was fetched when they were subscribed."""
        self._earlier: dict[str, Quote] = {}
        """The last quotes of an earlier run, with its numbers …"""
        self._confirmed: set[str] = set()
        """… and the symbols of which REST has shown that these are still right."""
        self._resuming = False

    def __len__(self) -> int:
        return len(self._latest)

    def latest(self, symbol: str) -> Quote | None:
        """The symbol's last accepted quote, else that of an earlier run if it is still right."""
        last = self._latest.get(symbol)
        if last is None or last.seq:
            return last
        return self._earlier[symbol] if symbol in self._confirmed else None

    def all_latest(self) -> Sequence[Quote]:
        """The last quote of every symbol, as :meth:`latest` has it."""
        found = (self.latest(symbol) for symbol in self._latest)
        return tuple(quote for quote in found if quote is not None)

    def last_ns(self, symbol: str) -> int | None:
        """The time of the symbol's last quote, UTC nanoseconds, an earlier run's included."""
        last = self._latest.get(symbol)
        return last.ts_event_ns if last is not None else None

    def is_first(self, symbol: str) -> bool:
        """Whether its last quote was fetched on subscribing: the stream has brought none since."""
        return symbol in self._firsts

    def streamed_ns(self, symbol: str) -> int | None:
        """The time of the symbol's last quote, unless that was fetched on subscribing."""
        return None if symbol in self._firsts else self.last_ns(symbol)

    def newest_ns(self) -> int | None:
        """The time of the newest accepted quote of all, UTC nanoseconds.

        Quotes that were fetched on subscribing do not count: they say nothing of other symbols.
        """
        return max((quote.ts_event_ns for quote in self._resumable()), default=None)

    def complete_until_ns(self) -> int | None:
        """Up to when what was received is out, UTC nanoseconds; None where nothing is.

        A quote whose time is ahead of its coming says nothing of those between the two.
        """
        return max(
            (min(quote.ts_event_ns, quote.ts_recv_ns) for quote in self._resumable()), default=None
        )

    def symbols(self) -> Sequence[str]:
        """Those that have an accepted quote, from which what comes later can be repaired."""
        return [quote.symbol for quote in self._resumable()]

    def start_from(self, quotes: Iterable[Quote], *, resuming: bool) -> None:
        """Begin where an earlier run ended: nothing older than its last quotes is accepted.

        Args:
            quotes: One of each symbol, as the earlier run numbered them.
            resuming: Whether what came after them shall be repaired.
        """
        for quote in quotes:
            self._earlier[quote.symbol] = quote
            self._latest[quote.symbol] = attrs.evolve(quote, seq=0)
        self._resuming = resuming

    def route(self, quotes: Iterable[Quote], now_ns: int, tolerance_ns: int) -> Routed:
        """Accept what is new and number it in place.

        A quote with a smaller time than its symbol's last is refused, and so is an exact
        repeat of it; the same time with other content is accepted, since several quotes may
        share a time. A quote from the future is refused without touching its lane, so that
        it cannot block the symbol. One that history has brought already is left out uncounted.

        Args:
            quotes: In the order in which they came.
            now_ns: This machine's time, UTC nanoseconds.
            tolerance_ns: How far ahead of it a quote may be.
        """
        latest = self._latest
        firsts = self._firsts
        shared = self._before_at_same_time
        horizon_ns = now_ns + tolerance_ns
        accepted: list[Quote] = []
        ahead_ns: list[int] = []
        stale = 0
        for quote in quotes:
            event_ns = quote.ts_event_ns
            if event_ns > horizon_ns:
                ahead_ns.append(event_ns - now_ns)
                continue
            last = latest.get(quote.symbol)
            if last is None:
                quote.seq = 1
            elif event_ns > last.ts_event_ns:
                quote.seq = last.seq + 1
                if shared:
                    shared.pop(quote.symbol, None)
                if firsts:
                    firsts.discard(quote.symbol)
            else:
                new = self._is_new_at(quote, last)
                if not new:
                    stale += new is False
                    continue
                quote.seq = last.seq + 1
            if last is not None:
                quote.symbol = last.symbol  # one text for all: each of a backlog's would be its own
            latest[quote.symbol] = quote
            accepted.append(quote)
        return Routed(accepted, stale, ahead_ns)

    def _is_new_at(self, quote: Quote, last: Quote) -> bool | None:
        """Whether to accept a quote that is not newer; None where it was out before the stream."""
        same = identity(quote) == identity(last)
        if quote.symbol in self._firsts:
            # REST told the last quote of this time: the stream's others came before it.
            if same:
                self._firsts.discard(quote.symbol)
            return None if same else False
        if self._echoes and self._is_echo(quote):
            return None
        if quote.ts_event_ns < last.ts_event_ns or same:
            return False
        before = self._before_at_same_time.setdefault(quote.symbol, [])
        if len(before) < _MOST_AT_ONE_TIME:
            before.append(last)
        return True

    def route_first(
        self, quotes: Iterable[Quote], asked_ns: Mapping[str, int], now_ns: int, tolerance_ns: int
    ) -> Fetched:
        """Accept the latest quotes of symbols that were subscribed just now.

        What the stream has brought since then wins. Otherwise a newer quote is accepted; an
        older one, or the same, shows that the last one is still right.

        Args:
            quotes: One of each symbol at most.
            asked_ns: When each symbol was wanted, UTC nanoseconds.
            now_ns: This machine's time, UTC nanoseconds.
            tolerance_ns: How far ahead of it a quote may be.
        """
        accepted: list[Quote] = []
        known: list[str] = []
        ahead_ns: list[int] = []
        for quote in quotes:
            symbol = quote.symbol
            last = self._latest.get(symbol)
            if quote.ts_event_ns > now_ns + tolerance_ns:
                ahead_ns.append(quote.ts_event_ns - now_ns)
                continue
            if last is not None:
                streamed = last.seq and symbol not in self._firsts
                if streamed and last.ts_recv_ns >= asked_ns[symbol]:
                    continue
                if quote.ts_event_ns <= last.ts_event_ns:
                    known.append(symbol)
                    self._confirmed.add(symbol)
                    continue
                quote.symbol = last.symbol
            quote.seq = last.seq + 1 if last is not None else 1
            self._latest[symbol] = quote
            self._before_at_same_time.pop(symbol, None)
            self._firsts.add(symbol)
            accepted.append(quote)
        return Fetched(accepted, known, ahead_ns)

    def not_out_yet(self, quotes: Sequence[Quote]) -> list[Quote]:
        """Of past quotes, those that came after what each lane has accepted.

        At the time of a lane's last quote the two are counted against each other, since
        several quotes may share a time: what is out already is left out as often as it is out.

        Args:
            quotes: In the order of their times within each symbol.
        """
        out = self._out_at_last_times(quotes)
        found = []
        for quote in quotes:
            last_ns = self.last_ns(quote.symbol)
            if last_ns is not None and quote.ts_event_ns <= last_ns:
                if quote.ts_event_ns < last_ns or quote.symbol in self._firsts:
                    continue  # of the same time REST gave the last one
                if out[identity(quote)]:
                    out[identity(quote)] -= 1
                    continue
            found.append(quote)
        return found

    def expect_again(self, quotes: Sequence[Quote], before: Counter[Identity]) -> None:
        """These came from history; those that the stream has yet to bring are not new then.

        Args:
            quotes: What history brought.
            before: What it had brought before and is still expected; older ones are forgotten.
        """
        times = [quote.ts_event_ns for quote in quotes] + [one[1] for one in before]
        oldest_ns = max(times, default=0) - _ECHO_NS
        self._echoes = Counter(
            identity(quote) for quote in quotes if quote.ts_event_ns >= oldest_ns
        )
        for one, count in before.items():
            if one[1] >= oldest_ns:
                self._echoes[one] += count

    def take_echoes(self) -> Counter[Identity]:
        """What the stream was expected to bring again; from now on nothing is."""
        echoes, self._echoes = self._echoes, Counter()
        return echoes

    def _is_echo(self, quote: Quote) -> bool:
        left = self._echoes.get(identity(quote), 0)
        if left > 1:
            self._echoes[identity(quote)] = left - 1
        elif left:
            del self._echoes[identity(quote)]
        return left > 0

    def _resumable(self) -> Iterable[Quote]:
        firsts, resuming = self._firsts, self._resuming
        return (
            quote
            for quote in self._latest.values()
            if (quote.seq or resuming) and quote.symbol not in firsts
        )

    def _out_at_last_times(self, quotes: Sequence[Quote]) -> Counter[Identity]:
        """What every lane has accepted at its last time.

        Of an earlier run's time only the last quote is known: those that history has before
        it were out too.
        """
        out: Counter[Identity] = Counter()
        before: dict[str, list[Identity]] = {}
        for symbol, last in self._latest.items():
            if last.seq:
                shared = self._before_at_same_time.get(symbol, ())
                out.update(identity(quote) for quote in (*shared, last))
            else:
                before[symbol] = []
        for quote in quotes if before else ():
            at_same_time = before.get(quote.symbol)
            if at_same_time is not None and quote.ts_event_ns == self.last_ns(quote.symbol):
                at_same_time.append(identity(quote))
                if at_same_time[-1] == identity(self._latest[quote.symbol]):
                    out.update(at_same_time)
                    at_same_time.clear()
        return out
