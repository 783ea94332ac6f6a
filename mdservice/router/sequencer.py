"""The order of one kind's records within each symbol: late ones, repeats and numbers. Pure.

Of each symbol the last accepted record is kept: it has the newest time, the last number and what a
repeat looks like. At the start it may be the last record of an earlier run, with the number 0.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from copy import copy
from typing import Generic

import attrs

from mdservice.model.kinds import Kind, R, Record

__all__ = ["Echo", "Fetched", "Routed", "Sequencer", "merge"]

_MOST_AT_ONE_TIME = 1000
"""Records of one symbol and time that are told apart when history repeats them."""
_ECHO_NS = 20_000_000_000
"""Of the records that history brought, those this close to the newest may yet come live."""

Echo = tuple[int, Hashable]
"""The time and the identity of a record that the stream may yet bring again."""


class Sequencer(Generic[R]):
    """The latest accepted record of each symbol, by :attr:`Order.DROP_OLDER`.

    Args:
        kind: What it orders.
    """

    def __init__(self, kind: Kind[R]) -> None:
        self._identity = kind.identity
        self._latest: dict[str, R] = {}
        self._before_at_same_time: dict[str, list[R]] = {}
        """Where a symbol's last time has several accepted records: those before the last."""
        self._echoes: Counter[Echo] = Counter()
        """What history brought before the stream did."""
        self._firsts: set[str] = set()
        """Symbols whose last record was fetched when they were subscribed."""
        self._earlier: dict[str, R] = {}
        """The last records of an earlier run, with its numbers …"""
        self._confirmed: set[str] = set()
        """… and the symbols of which REST has shown that these are still right."""
        self._resuming = False

    def __len__(self) -> int:
        return len(self._latest)

    def latest(self, symbol: str) -> R | None:
        """The symbol's last accepted record, else that of an earlier run if it is still right."""
        last = self._latest.get(symbol)
        if last is None or last.seq:
            return last
        return self._earlier[symbol] if symbol in self._confirmed else None

    def all_latest(self) -> Sequence[R]:
        """The last record of every symbol, as :meth:`latest` has it."""
        found = (self.latest(symbol) for symbol in self._latest)
        return tuple(record for record in found if record is not None)

    def last_ns(self, symbol: str) -> int | None:
        """The time of the symbol's last record, UTC nanoseconds, an earlier run's included."""
        last = self._latest.get(symbol)
        return last.ts_event_ns if last is not None else None

    def is_first(self, symbol: str) -> bool:
        """Whether its last record was fetched on subscribing: the stream has brought none since."""
        return symbol in self._firsts

    def streamed_ns(self, symbol: str) -> int | None:
        """The time of the symbol's last record, unless that was fetched on subscribing."""
        return None if symbol in self._firsts else self.last_ns(symbol)

    def newest_ns(self) -> int | None:
        """The time of the newest accepted record of all, UTC nanoseconds.

        Records that were fetched on subscribing do not count: they say nothing of other symbols.
        """
        return max((record.ts_event_ns for record in self._resumable()), default=None)

    def complete_until_ns(self) -> int | None:
        """Up to when what was received is out, UTC nanoseconds; None where nothing is.

        A record whose time is ahead of its coming says nothing of those between the two.
        """
        return max(
            (min(record.ts_event_ns, record.ts_recv_ns) for record in self._resumable()),
            default=None,
        )

    def symbols(self) -> Sequence[str]:
        """Those that have an accepted record, from which what comes later can be repaired."""
        return [record.symbol for record in self._resumable()]

    def start_from(self, records: Iterable[R], *, resuming: bool) -> None:
        """Begin where an earlier run ended: nothing older than its last records is accepted.

        Args:
            records: One of each symbol, as the earlier run numbered them.
            resuming: Whether what came after them shall be repaired.
        """
        for record in records:
            self._earlier[record.symbol] = record
            self._latest[record.symbol] = _without_number(record)
        self._resuming = resuming

    def route(self, records: Iterable[R], now_ns: int, tolerance_ns: int) -> Routed[R]:
        """Accept what is new and number it in place.

        A record with a smaller time than its symbol's last is refused, and so is an exact
        repeat of it; the same time with other content is accepted, since several records may
        share a time. A record from the future is refused and leaves its symbol as it
        is, so that it cannot block it. One that history has brought already is left out uncounted.

        Args:
            records: In the order in which they came.
            now_ns: This machine's time, UTC nanoseconds.
            tolerance_ns: How far ahead of it a record may be.
        """
        latest = self._latest
        firsts = self._firsts
        shared = self._before_at_same_time
        horizon_ns = now_ns + tolerance_ns
        accepted: list[R] = []
        ahead_ns: list[int] = []
        rejected = 0
        for record in records:
            event_ns = record.ts_event_ns
            if event_ns > horizon_ns:
                ahead_ns.append(event_ns - now_ns)
                continue
            last = latest.get(record.symbol)
            if last is None:
                record.seq = 1
            elif event_ns > last.ts_event_ns:
                record.seq = last.seq + 1
                if shared:
                    shared.pop(record.symbol, None)
                if firsts:
                    firsts.discard(record.symbol)
            else:
                new = self._is_new_at(record, last)
                if not new:
                    rejected += new is False
                    continue
                record.seq = last.seq + 1
            if last is not None:
                record.symbol = (
                    last.symbol
                )  # one text for all: each of a backlog's would be its own
            latest[record.symbol] = record
            accepted.append(record)
        return Routed(accepted, rejected, ahead_ns)

    def _is_new_at(self, record: R, last: R) -> bool | None:
        """Whether to accept a record that is not newer; None where it was out before the stream."""
        same = self._identity(record) == self._identity(last)
        if record.symbol in self._firsts:
            # REST told the last record of this time: the stream's others came before it.
            if same:
                self._firsts.discard(record.symbol)
            return None if same else False
        if self._echoes and self._is_echo(record):
            return None
        if record.ts_event_ns < last.ts_event_ns or same:
            return False
        before = self._before_at_same_time.setdefault(record.symbol, [])
        if len(before) < _MOST_AT_ONE_TIME:
            before.append(last)
        return True

    def route_first(
        self, records: Iterable[R], asked_ns: Mapping[str, int], now_ns: int, tolerance_ns: int
    ) -> Fetched[R]:
        """Accept the latest records of symbols that were subscribed just now.

        What the stream has brought since then wins. Otherwise a newer record is accepted; an
        older one, or the same, shows that the last one is still right.

        Args:
            records: One of each symbol at most.
            asked_ns: When each symbol was wanted, UTC nanoseconds.
            now_ns: This machine's time, UTC nanoseconds.
            tolerance_ns: How far ahead of it a record may be.
        """
        accepted: list[R] = []
        known: list[str] = []
        ahead_ns: list[int] = []
        for record in records:
            symbol = record.symbol
            last = self._latest.get(symbol)
            if record.ts_event_ns > now_ns + tolerance_ns:
                ahead_ns.append(record.ts_event_ns - now_ns)
                continue
            if last is not None:
                streamed = last.seq and symbol not in self._firsts
                if streamed and last.ts_recv_ns >= asked_ns[symbol]:
                    continue
                if record.ts_event_ns <= last.ts_event_ns:
                    known.append(symbol)
                    self._confirmed.add(symbol)
                    continue
                record.symbol = last.symbol
            record.seq = last.seq + 1 if last is not None else 1
            self._latest[symbol] = record
            self._before_at_same_time.pop(symbol, None)
            self._firsts.add(symbol)
            accepted.append(record)
        return Fetched(accepted, known, ahead_ns)

    def not_out_yet(self, records: Sequence[R]) -> list[R]:
        """Of past records, those that came after what was accepted of each symbol.

        At the time of a symbol's last record the two are counted against each other, since
        several records may share a time: what is out already is left out as often as it is out.

        Args:
            records: In the order of their times within each symbol.
        """
        out = self._out_at_last_times(records)
        found = []
        for record in records:
            last_ns = self.last_ns(record.symbol)
            if last_ns is not None and record.ts_event_ns <= last_ns:
                if record.ts_event_ns < last_ns or record.symbol in self._firsts:
                    continue  # of the same time REST gave the last one
                one = self._identity(record)
                if out[one]:
                    out[one] -= 1
                    continue
            found.append(record)
        return found

    def expect_again(self, records: Sequence[R], before: Counter[Echo]) -> None:
        """These came from history; those that the stream has yet to bring are not new then.

        Args:
            records: What history brought.
            before: What it had brought before and is still expected; older ones are forgotten.
        """
        times = [record.ts_event_ns for record in records] + [one[0] for one in before]
        oldest_ns = max(times, default=0) - _ECHO_NS
        self._echoes = Counter(
            self._echo(record) for record in records if record.ts_event_ns >= oldest_ns
        )
        for one, count in before.items():
            if one[0] >= oldest_ns:
                self._echoes[one] += count

    def take_echoes(self) -> Counter[Echo]:
        """What the stream was expected to bring again; from now on nothing is."""
        echoes, self._echoes = self._echoes, Counter()
        return echoes

    def _echo(self, record: R) -> Echo:
        return record.ts_event_ns, self._identity(record)

    def _is_echo(self, record: R) -> bool:
        one = self._echo(record)
        left = self._echoes.get(one, 0)
        if left > 1:
            self._echoes[one] = left - 1
        elif left:
            del self._echoes[one]
        return left > 0

    def _resumable(self) -> Iterable[R]:
        firsts, resuming = self._firsts, self._resuming
        return (
            record
            for record in self._latest.values()
            if (record.seq or resuming) and record.symbol not in firsts
        )

    def _out_at_last_times(self, records: Sequence[R]) -> Counter[Hashable]:
        """What was accepted of each symbol at its last time.

        Of an earlier run's time only the last record is known: those that history has before
        it were out too.
        """
        out: Counter[Hashable] = Counter()
        before: dict[str, list[Hashable]] = {}
        for symbol, last in self._latest.items():
            if last.seq:
                shared = self._before_at_same_time.get(symbol, ())
                out.update(self._identity(record) for record in (*shared, last))
            else:
                before[symbol] = []
        for record in records if before else ():
            at_same_time = before.get(record.symbol)
            if at_same_time is not None and record.ts_event_ns == self.last_ns(record.symbol):
                at_same_time.append(self._identity(record))
                if at_same_time[-1] == self._identity(self._latest[record.symbol]):
                    out.update(at_same_time)
                    at_same_time.clear()
        return out


@attrs.frozen
class Routed(Generic[R]):
    """What became of some records.

    Attributes:
        accepted: Numbered, in the order in which they came.
        rejected: How many were older than their symbol's last one, or repeated it exactly.
        ahead_ns: Of each record that is too far in the future, how far.
    """

    accepted: list[R]
    rejected: int
    ahead_ns: Sequence[int]


@attrs.frozen
class Fetched(Generic[R]):
    """What became of records that were fetched when their symbols were subscribed.

    Attributes:
        accepted: Numbered, in the order in which they came.
        known: Symbols whose last record is this one or a newer one that the stream did not bring
            since: their price is still right.
        ahead_ns: Of each record that is too far in the future, how far.
    """

    accepted: list[R]
    known: Sequence[str]
    ahead_ns: Sequence[int]


def merge(kind: Kind[R], past: Sequence[R], live: Sequence[R]) -> list[R]:
    """All records once, in the order of their times, those of one time in history's order.

    Where both have a symbol's time, they are counted against each other, since several records
    may share a time: what both have is taken from the stream, as often as both have it, at the
    place that history gives it. What only one of them has is kept: nothing is lost at the edge
    of a history that lags.

    Args:
        kind: Theirs.
        past: From history, in the order of their times within each symbol.
        live: From the stream, in the order in which they came.
    """
    identity = kind.identity
    in_live: defaultdict[Hashable, deque[R]] = defaultdict(deque)
    for record in live:
        in_live[identity(record)].append(record)
    merged = []
    in_both = set()
    for record in past:
        same = in_live.get(identity(record))
        if same:
            in_both.add(id(same[0]))
            merged.append(same.popleft())
        else:
            merged.append(record)
    merged += [record for record in live if id(record) not in in_both]
    return sorted(merged, key=_time)


def _time(record: Record) -> int:
    return record.ts_event_ns


def _without_number(record: R) -> R:
    again = copy(record)
    again.seq = 0
    return again
