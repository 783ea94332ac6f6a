"""Accepts records in the order of their times, drops repeats, and numbers the rest. Pure.

It keeps the last accepted record of each symbol: its time, number and content decide about the next
one. At the start, it may be the last record of an earlier run, with number 0.

A *first price* is the latest record from REST, fetched when the symbol was subscribed. An *echo* is
a record that history gave to a repair and that the stream may send too.

:mod:`mdservice.router.policies` has the sequencers of the other order policies.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from copy import copy
from typing import ClassVar, Generic

import attrs

from mdservice.model.kinds import FIRST_KINDS, Kind, R, Record

__all__ = ["Echo", "Fetched", "Routed", "Sequencer", "merge", "without_number"]

_MOST_AT_ONE_TIME = 1000
"""How many records of one symbol and time are kept, to recognise them in history."""
_ECHO_NS = 20_000_000_000
"""Records from history are echoes if they are at most this much older than the newest one."""

Echo = tuple[int, Hashable]
"""The time and the identity of a record from history that the stream may repeat."""


class Sequencer(Generic[R]):
    """Keeps the last accepted record of each symbol, and decides about the next one.

    It implements the order policy :attr:`Order.DROP_OLDER`, and is the base of the others.

    Args:
        kind: The kind of its records.

    Attributes:
        complete_ns: Returns the time up to which received records were accepted, UTC nanoseconds,
            or None. Its argument is the time of the newest accepted record, or None without any.
    """

    in_order: ClassVar[bool] = True
    """Whether it rejects records that are older than the last one of their symbol."""

    def __init__(self, kind: Kind[R]) -> None:
        self.complete_ns: Callable[[int | None], int | None] = lambda newest_ns: newest_ns
        self._kind = kind
        self._identity = kind.identity
        self._latest: dict[str, R] = {}
        self._before_at_same_time: dict[str, list[R]] = {}
        """The accepted records with the same time as the symbol's last record, without that one."""
        self._echoes: Counter[Echo] = Counter()
        """Records from history that the stream may still repeat."""
        self._firsts: set[str] = set()
        """The symbols whose last record is a first price."""
        self._earlier: dict[str, R] = {}
        """The last records of an earlier run, with their numbers."""
        self._confirmed: set[str] = set()
        """The symbols whose record of the earlier run counts as the latest one: REST has confirmed
        it, or is not asked for records of this kind."""
        self._resuming = False
        self._numbers: dict[str, int] = {}
        """The number of each symbol's last record of an earlier run, until its first one now, if
        the numbers go on."""

    def __len__(self) -> int:
        return len(self._latest)

    def latest(self, symbol: str) -> R | None:
        """The symbol's last accepted record, or else a confirmed one of an earlier run."""
        last = self._latest.get(symbol)
        if last is None or last.seq:
            return last
        return self._earlier[symbol] if symbol in self._confirmed else None

    def all_latest(self) -> Sequence[R]:
        """The last record of every symbol, as in :meth:`latest`."""
        found = (self.latest(symbol) for symbol in self._latest)
        return tuple(record for record in found if record is not None)

    def last_ns(self, symbol: str) -> int | None:
        """The time of the symbol's last record, UTC nanoseconds, also of an earlier run."""
        last = self._latest.get(symbol)
        return last.ts_event_ns if last is not None else None

    def is_first(self, symbol: str) -> bool:
        """Whether the symbol's last record is a first price."""
        return symbol in self._firsts

    def streamed_ns(self, symbol: str) -> int | None:
        """The time of the symbol's last record, UTC nanoseconds; None for a first price."""
        return None if symbol in self._firsts else self.last_ns(symbol)

    def newest_ns(self) -> int | None:
        """The time of the newest accepted record of all symbols, UTC nanoseconds.

        First prices do not count: they do not show how far the stream has come.
        """
        return max((record.ts_event_ns for record in self._resumable()), default=None)

    def complete_until_ns(self) -> int | None:
        """The time up to which received records were accepted, UTC nanoseconds.

        If the time of a record is later than its arrival, its arrival counts.
        """
        times = (min(record.ts_event_ns, record.ts_recv_ns) for record in self._resumable())
        return self.complete_ns(max(times, default=None))

    def symbols(self) -> Sequence[str]:
        """The symbols with an accepted record at which a repair can begin, so no first price."""
        return [record.symbol for record in self._resumable()]

    def start_from(self, records: Iterable[R], *, resuming: bool) -> None:
        """Continue where an earlier run ended: from history accept nothing older.

        Args:
            records: One record per symbol, with the earlier run's numbers.
            resuming: Whether a repair will fetch the records since then.
        """
        for record in records:
            self._earlier[record.symbol] = record
            self._latest[record.symbol] = without_number(record)
        if self._kind not in FIRST_KINDS:
            self._confirmed.update(self._earlier)
        self._resuming = resuming

    def trust_earlier(self) -> None:
        """Count the records of the earlier run as the latest ones, without asking REST."""
        self._confirmed.update(self._earlier)

    def number_on(self, numbers: Mapping[str, int]) -> None:
        """Number each symbol's records after this number, instead of from 1."""
        self._numbers = dict(numbers)

    def _number_on(self, accepted: Sequence[R]) -> None:
        """Add the number of the earlier run to the first records of each symbol."""
        earlier: dict[str, int] = {}
        for record in accepted:
            if record.symbol in self._numbers:
                earlier[record.symbol] = self._numbers.pop(record.symbol)
            if record.symbol in earlier:
                record.seq += earlier[record.symbol]

    def route(self, records: Iterable[R], now_ns: int, tolerance_ns: int) -> Routed[R]:
        """Accept new records and number them in place.

        It rejects a record with a smaller time than the last one of its symbol, and an exact repeat
        of the last one. A record with the same time and other content is accepted, because several
        records may share a time. A record from the future is rejected, so that it does
        not block its symbol. An echo is dropped and not counted.

        Args:
            records: In the order of their arrival.
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
                # Share one string: otherwise each record of a backlog keeps its own copy.
                record.symbol = last.symbol
            latest[record.symbol] = record
            accepted.append(record)
        if self._numbers:
            self._number_on(accepted)
        return Routed(accepted, rejected, ahead_ns)

    def _is_new_at(self, record: R, last: R) -> bool | None:
        """Whether to accept a record that is not newer; None if it is already published."""
        same = self._identity(record) == self._identity(last)
        if record.symbol in self._firsts:
            # A first price is the last record of its time, so others of that time are older.
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
        """Accept the first prices of symbols that were just subscribed.

        If the stream has sent a record since the request, that one wins. Otherwise a newer record
        is accepted, and an older or equal one confirms the symbol's last record.

        Args:
            records: At most one record per symbol.
            asked_ns: When the first price of each symbol was requested, UTC nanoseconds.
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
                if not self._is_newer(record, last):
                    known.append(symbol)
                    self._confirmed.add(symbol)
                    continue
                record.symbol = last.symbol
            self._accept_first(record, last)
            self._latest[symbol] = record
            self._firsts.add(symbol)
            accepted.append(record)
        return Fetched(accepted, known, ahead_ns)

    def _is_newer(self, record: R, last: R) -> bool:
        """Whether a record from REST is newer than the symbol's last one."""
        return record.ts_event_ns > last.ts_event_ns

    def _accept_first(self, record: R, last: R | None) -> None:
        """Number a first price."""
        record.seq = last.seq + 1 if last is not None else 1
        self._number_on([record])
        self._before_at_same_time.pop(record.symbol, None)

    def lose(self, symbols: Collection[str]) -> None:  # noqa: ARG002 - order books need them
        """Note that records of these symbols are missing from now on.

        The stream does not repeat records of an earlier connection.
        """
        self.take_echoes()

    def fill(self, past: Sequence[R], live: Sequence[R]) -> tuple[list[R], list[R]]:
        """Join the records of a repair with the live ones that waited for them.

        Args:
            past: The records from history, in the order of their times within each symbol.
            live: The records from the stream, in the order of their arrival.

        Returns:
            The records to route, in this order, and the records from history that the stream may
            still repeat.
        """
        merged = merge(self._kind, past, live)
        from_history = {id(record) for record in past}
        echoes = [record for record in merged if id(record) in from_history]
        return self.not_out_yet(merged), echoes

    def was_accepted(self, record: R) -> bool:  # noqa: ARG002 - it cannot tell
        """Whether this very record is known to be accepted already."""
        return False

    def not_out_yet(self, records: Sequence[R]) -> list[R]:
        """Return the past records that come after the last accepted record of their symbol.

        Several records may share a time. So at the time of a symbol's last record, each accepted
        record drops one equal past record.

        Args:
            records: In the order of their times within each symbol.
        """
        out = self._out_at_last_times(records)
        found = []
        for record in records:
            last_ns = self.last_ns(record.symbol)
            if last_ns is not None and record.ts_event_ns <= last_ns:
                if record.ts_event_ns < last_ns or record.symbol in self._firsts:
                    continue  # a first price is the last record of its time
                one = self._identity(record)
                if out[one]:
                    out[one] -= 1
                    continue
            found.append(record)
        return found

    def expect_again(self, records: Sequence[R], before: Counter[Echo]) -> None:
        """Note the echoes to expect from the stream.

        Args:
            records: The records from history.
            before: The echoes that were expected before. Old ones are forgotten.
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
        """Return the expected echoes, and expect none from now on."""
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
        """Count the accepted records that have the same time as the last record of their symbol.

        Of an earlier run, only the last of them is known. The records that history has before it
        were published too.
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
    """The result of :meth:`Sequencer.route`.

    Attributes:
        accepted: The accepted records, numbered, in the order of their arrival.
        rejected: How many were older than their symbol's last record, or its exact repeat.
        ahead_ns: How far ahead each record was that was rejected as a future one.
    """

    accepted: list[R]
    rejected: int
    ahead_ns: Sequence[int]


@attrs.frozen
class Fetched(Generic[R]):
    """The result of :meth:`Sequencer.route_first`.

    Attributes:
        accepted: The accepted records, numbered, in the order of their arrival.
        known: The symbols whose last record is confirmed: it is not older than the first price,
            and the stream has sent none since the request.
        ahead_ns: How far ahead each record was that was rejected as a future one.
    """

    accepted: list[R]
    known: Sequence[str]
    ahead_ns: Sequence[int]


def merge(kind: Kind[R], past: Sequence[R], live: Sequence[R]) -> list[R]:
    """Merge past and live records in the order of their times, without repeats.

    Several equal records may share a time. Each past record is paired with one equal live record.
    Of a pair the live record is kept, at the place of the past one. Records without a partner are
    kept too, so nothing is lost where a lagging history ends.

    Args:
        kind: The kind of the records.
        past: The records from history, in the order of their times within each symbol.
        live: The records from the stream, in the order of their arrival.
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


def without_number(record: R) -> R:
    """A copy of a record with the number 0, as of an earlier run."""
    again = copy(record)
    again.seq = 0
    return again
