"""Decides which records from keys and events are newer than the known ones. Pure.

Keys and events carry the same records, and some are missed while a connection is lost. The program
gets no record twice, and none that is older than the last one of its symbol. Missed ones are
counted.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Generic

import attrs

from mdservice.model.kinds import Kind, R

__all__ = ["SequenceCheck", "Verdict", "judge"]


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

    Args:
        kind: The kind of the records.

    Attributes:
        missed: Accepted records that this reader did not get.
        steps: How often a symbol's ``seq`` went up by more than one.
        starts: How often a symbol's ``seq`` began again.
        left_out: Rs that were not newer than the known ones.
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

    def newer(self, records: Iterable[R], *, in_order: bool) -> list[R]:
        """Return the records that are newer than the known ones, and remember them.

        Args:
            records: From keys or events.
            in_order: As in :func:`judge`; never for keys.
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

    def _count(self, verdict: Verdict) -> bool:
        if not verdict.newer:
            self.left_out += 1
        elif verdict.restarted:
            self.starts += 1
        elif verdict.missed:
            self.steps += 1
        self.missed += verdict.missed
        return verdict.newer
