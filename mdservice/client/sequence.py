"""Selects records that are newer than the known ones. Pure.

Keys and events carry the same records, and some are missed while a connection is lost. The program
gets no record twice, and none that the service accepted before the last one of its symbol. Missed
ones are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, Final, Generic

import attrs

from mdservice.model.kinds import TRADES, Kind, Order, R
from mdservice.model.timestamps import new_york_day
from mdservice.model.trade import Cancel, Correction, Trade, TradeId

__all__ = [
    "ArrivalCheck",
    "IdentityCheck",
    "SequenceCheck",
    "TradeCheck",
    "Verdict",
    "judge",
    "sequence_check",
]


@attrs.frozen
class Verdict:
    """The relation of a record to a known record of the same symbol.

    Attributes:
        newer: Whether it comes after the known one.
        missed: How many accepted records lie between the two, by ``seq``.
        restarted: Whether the service restarted between the two, so that ``seq`` began again.
    """

    newer: bool
    missed: int = 0
    restarted: bool = False


_NOT_NEWER = Verdict(newer=False)


def judge(known: R, coming: R, *, in_order: bool, identity: Callable[[R], Hashable]) -> Verdict:
    """Compare two records of a symbol, of a kind with :attr:`Order.DROP_OLDER`.

    Within a run of the service, ``seq`` goes up by one and time never goes back. If the
    time is later but ``seq`` is not larger, the service has restarted. If the times are equal and
    ``seq`` is smaller, the record is an earlier one of the same run or belongs to a new run; only
    ``in_order`` distinguishes the two.

    Args:
        known: The newest record so far.
        coming: The other record.
        in_order: Whether ``coming`` was certainly published after ``known``. It may not be if
            ``known`` was a key, and earlier events are still on their way.
        identity: :attr:`Kind.identity`.
    """
    if coming.ts_event_ns < known.ts_event_ns:
        return _NOT_NEWER
    if coming.seq > known.seq:
        return Verdict(newer=True, missed=coming.seq - known.seq - 1)
    if coming.ts_event_ns == known.ts_event_ns and (
        not in_order or identity(coming) == identity(known)
    ):
        return _NOT_NEWER
    return Verdict(newer=True, missed=max(0, coming.seq - 1), restarted=True)


class SequenceCheck(Generic[R]):
    """The newest record of each symbol, with counts of missed records and restarts.

    This one is for kinds with :attr:`Order.DROP_OLDER`: time never goes back.

    Args:
        kind: The kind of the records.

    Attributes:
        missed: Accepted records that this reader did not get.
        steps: How often a symbol's ``seq`` went up by more than one.
        starts: How often a symbol's ``seq`` began again.
        left_out: Records that were not newer than the known ones.
    """

    def __init__(self, kind: Kind[R]) -> None:
        self.missed = 0
        self.steps = 0
        self.starts = 0
        self.left_out = 0
        self._identity = kind.identity
        self._latest: dict[str, R] = {}

    def __len__(self) -> int:
        return len(self._latest)

    def latest(self, symbol: str) -> R | None:
        """The newest record of a symbol."""
        return self._latest.get(symbol)

    def all_latest(self) -> list[R]:
        """The newest record of each symbol, in no order."""
        return list(self._latest.values())

    @property
    def reasons(self) -> int:
        """How often something happened for which the keys should be read again."""
        return self.steps + self.starts

    def newer(
        self,
        records: Iterable[R],
        *,
        in_order: bool,
        run: str | None = None,  # noqa: ARG002 - times decide here
    ) -> list[R]:
        """Return the records of events that are newer than the known ones, and remember them.

        Args:
            records: In the order of their arrival.
            in_order: As in :func:`judge`.
            run: The id of the run of the service that sent them; None if it is not known.
        """
        latest = self._latest
        found: list[R] = []
        for record in records:
            known = latest.get(record.symbol)
            if known is None or (
                record.seq == known.seq + 1 and record.ts_event_ns >= known.ts_event_ns
            ):
                pass  # the usual case, without a call
            elif not self._count(judge(known, record, in_order=in_order, identity=self._identity)):
                continue
            latest[record.symbol] = record
            found.append(record)
        return found

    def newer_keys(
        self,
        records: Iterable[R],
        *,
        run: str | None = None,  # noqa: ARG002 - likewise
    ) -> list[R]:
        """Return the records of keys that are newer than the known ones, and remember them.

        Args:
            records: At most one for each symbol.
            run: The id of the run of the service that owns the keys; None if it is not known. A
                key may still be of an earlier run.
        """
        return self.newer(records, in_order=False)

    def reading_keys(self) -> None:
        """Note that the keys are being read from now on."""

    def disconnected(self) -> None:
        """Note that events may have been missed."""

    def _count(self, verdict: Verdict) -> bool:
        if not verdict.newer:
            self.left_out += 1
        elif verdict.restarted:
            self.starts += 1
        elif verdict.missed:
            self.steps += 1
        self.missed += verdict.missed
        return verdict.newer


class ArrivalCheck(SequenceCheck[R]):
    """The same for kinds whose records are in the order of arrival, whatever their time.

    A late record, such as a trade with an older time, is an event like any other. The latest value
    of a symbol, which its key has, is the newest record by time, and not always the last event. A
    kind with :attr:`Order.MERGE` has no late records: the last event is the latest value.
    """

    def __init__(self, kind: Kind[R]) -> None:
        super().__init__(kind)
        self._may_be_late = kind.may_be_late
        self._last: dict[str, tuple[int, str | None]] = {}
        """By symbol: the last ``seq``, and the run of the service that it counts in, if known."""
        self._begun_by_key: set[str] = set()
        """The symbols of which only a key is known, which late records may have followed."""

    def newer(self, records: Iterable[R], *, in_order: bool, run: str | None = None) -> list[R]:
        """As in :class:`SequenceCheck`; a late record is newer too."""
        last, latest = self._last, self._latest
        found: list[R] = []
        for record in records:
            symbol = record.symbol
            known = last.get(symbol)
            if known is not None and known != (record.seq - 1, run):
                verdict = self._judge(known, record, run, in_order=in_order)
                if not self._count(verdict):
                    continue
            last[symbol] = record.seq, run
            newest = latest.get(symbol)
            if newest is None or newest.ts_event_ns <= record.ts_event_ns or not self._may_be_late:
                latest[symbol] = record
            found.append(record)
        return found

    def disconnected(self) -> None:
        """Note that events may have been missed: a step after a key counts from now on."""
        self._begun_by_key.clear()

    def _judge(
        self, known: tuple[int, str | None], coming: R, run: str | None, *, in_order: bool
    ) -> Verdict:
        seq, known_run = known
        missed_of_run = max(0, coming.seq - 1)
        if run is not None and known_run is not None and run != known_run:
            return Verdict(newer=True, missed=missed_of_run, restarted=True)
        if coming.seq > seq:
            first = coming.symbol in self._begun_by_key
            self._begun_by_key.discard(coming.symbol)
            return Verdict(newer=True, missed=0 if first else coming.seq - seq - 1)
        newest = self._latest.get(coming.symbol)
        if (run is not None and run == known_run) or newest is None:
            return _NOT_NEWER
        # One of the two runs is not known. In one run, no record before the newest is later.
        if not in_order and coming.ts_event_ns <= newest.ts_event_ns:
            return _NOT_NEWER
        if self._identity(coming) == self._identity(newest):
            return _NOT_NEWER
        return Verdict(newer=True, missed=missed_of_run, restarted=True)

    def newer_keys(self, records: Iterable[R], *, run: str | None = None) -> list[R]:
        """As in :class:`SequenceCheck`.

        A latest value that was missed may come after a late record that was accepted after it. A
        latest value that was changed while the reader was disconnected comes again, with the same
        ``seq``.
        """
        return [record for record in records if self._take_key(record, run)]

    def _take_key(self, record: R, run: str | None) -> bool:
        symbol = record.symbol
        known, newest = self._last.get(symbol), self._latest.get(symbol)
        if known is None:
            self._last[symbol] = record.seq, None
            if self._may_be_late:
                self._begun_by_key.add(symbol)
        elif record.seq > known[0]:
            self._count(Verdict(newer=True, missed=record.seq - known[0] - 1))
            self._last[symbol] = record.seq, run if run == known[1] else None
        elif newest is None or (record.ts_event_ns, record.seq) > (newest.ts_event_ns, newest.seq):
            same_time = newest is not None and record.ts_event_ns == newest.ts_event_ns
            if same_time or (run is not None and run == known[1]):
                # An event that was accepted later had shown that it was missed.
                self.missed = max(0, self.missed - 1)
            else:
                self._count(Verdict(newer=True, missed=max(0, record.seq - 1), restarted=True))
                self._last[symbol] = record.seq, None
        elif (
            record.ts_event_ns < newest.ts_event_ns or record.seq != newest.seq or record == newest
        ):
            self.left_out += 1
            return False
        self._latest[symbol] = record
        return True


class TradeCheck(ArrivalCheck[Trade]):
    """The same for trades, whose latest values corrections and cancellations change."""

    def __init__(self, kind: Kind[Trade]) -> None:
        super().__init__(kind)
        self._cancels = 0
        self._changed: set[tuple[str, int]] = set()
        """Symbol and ``seq`` of the latest trades that changed since the keys are being read."""
        self._canceled: set[str] = set()
        """The symbols whose latest trade was canceled; the key has another one, maybe known."""
        self._canceled_since: set[str] = set()
        """Those of them that were canceled since the keys are being read."""

    @property
    def reasons(self) -> int:
        """A cancellation of a latest trade is one too: the key has the trade before."""
        return super().reasons + self._cancels

    def reading_keys(self) -> None:
        """Note that the keys are being read from now on."""
        self._changed.clear()
        self._canceled_since.clear()

    def _take_key(self, record: Trade, run: str | None) -> bool:
        symbol = record.symbol
        if (symbol, record.seq) in self._changed or symbol in self._canceled_since:
            return False  # the key was perhaps read before the change
        if symbol in self._canceled:
            self._canceled.discard(symbol)
            if record.seq <= self._last[symbol][0]:
                newest = self._latest.get(symbol)
                if newest is None or newest.ts_event_ns <= record.ts_event_ns:
                    self._latest[symbol] = record
                return False
        return super()._take_key(record, run)

    def correct(self, corrections: Iterable[Correction]) -> None:
        """Change the latest trades that are corrected, as the service does."""
        for one in corrections:
            trade = self._latest_with(one, one.original_id)
            if trade is None:
                continue
            price, size = one.corrected_price, one.corrected_size
            self._latest[one.symbol] = attrs.evolve(
                trade,
                id=one.corrected_id,
                price=trade.price if price is None else price,
                size=trade.size if size is None else size,
                conditions=one.corrected_conditions,
            )
            self._changed.add((trade.symbol, trade.seq))

    def cancel(self, cancels: Iterable[Cancel]) -> None:
        """Forget the latest trades that are canceled."""
        for one in cancels:
            if self._latest_with(one, one.id) is not None:
                del self._latest[one.symbol]
                self._canceled.add(one.symbol)
            elif one.symbol not in self._canceled:
                continue  # otherwise it is perhaps of the trade that the key has
            self._canceled_since.add(one.symbol)
            self._cancels += 1

    def _latest_with(self, change: Correction | Cancel, id_: TradeId | None) -> Trade | None:
        """The symbol's latest trade, if it is the one that is changed."""
        trade = self._latest.get(change.symbol)
        if trade is None:
            return None
        day = new_york_day(trade.ts_event_ns)
        known = (trade.id, trade.exchange, trade.tape, day)
        meant = (id_, change.exchange, change.tape, new_york_day(change.ts_event_ns))
        return trade if known == meant else None


_MOST_IDENTITIES: Final = 20_000
"""Twice what the stream of news keeps."""


class IdentityCheck(SequenceCheck[R]):
    """The same for records without ``seq``: each version comes once. There is no latest value."""

    def __init__(self, kind: Kind[R]) -> None:
        super().__init__(kind)
        self._known: dict[Hashable, None] = {}
        self._uncertain: set[Hashable] = set()
        """The records of this connection before the stream was read: others may be missing before
        them."""

    def knows(self, record: R) -> bool:
        """Whether this record, and each one before it, came or was missing at the start."""
        identity = self._identity(record)
        return identity in self._known and identity not in self._uncertain

    def newer(
        self,
        records: Iterable[R],
        *,
        in_order: bool,
        run: str | None = None,  # noqa: ARG002 - identities decide here
    ) -> list[R]:
        """Return the records that did not come before."""
        found: list[R] = []
        for record in records:
            identity = self._identity(record)
            if identity in self._known:
                self.left_out += 1
                continue
            self._known[identity] = None
            if not in_order:
                self._uncertain.add(identity)
            if len(self._known) > _MOST_IDENTITIES:
                oldest = next(iter(self._known))
                del self._known[oldest]
                self._uncertain.discard(oldest)
            found.append(record)
        return found

    def newer_keys(self, records: Iterable[R], *, run: str | None = None) -> list[R]:
        """Return the records of the stream that did not come before."""
        found = super().newer_keys(records, run=run)
        self._uncertain.clear()
        return found


def sequence_check(kind: Kind[R]) -> SequenceCheck[R]:
    """The check that fits a kind."""
    chosen: type[SequenceCheck[Any]] = ArrivalCheck
    if kind.stream is not None:
        chosen = IdentityCheck
    elif kind.order is Order.DROP_OLDER:
        chosen = SequenceCheck
    elif kind is TRADES:
        chosen = TradeCheck
    return chosen(kind)
