"""Asks history once more after a repair in a quiet market.

In a quiet market there is no live record that history must have. So a repair waits a fixed time
(:data:`mdservice.feed.gap_repair.repair.QUIET_S`) and then trusts history. This module asks again
20 s later. Records that history did not have before were missed.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Generic

import anyio
import attrs

from mdservice.clock import Clock
from mdservice.errors import HistoryRefused, HistoryUnavailable
from mdservice.feed.gap_repair.missing import Missed
from mdservice.feed.history import HalvingHistory
from mdservice.model.events import LateRecords
from mdservice.model.kinds import Kind, R
from mdservice.observability.logging import get_logger

__all__ = ["LOOK_AGAIN_S", "Believed", "Horizon", "Recheck"]

_log = get_logger(__name__)

LOOK_AGAIN_S = 20.0
"""How long after a repair to ask again; history is assumed to be complete by then."""

_MOST_TRIES = 5
_ANSWER_LIMIT_S = 60.0
_ENOUGH_FIRST = 1_000
_LATE_NS = 1_000_000_000
"""A record this much older than one before it, or than the connection, came late."""
_AHEAD_NS = 60_000_000_000
"""How far into the future history is asked: this machine's clock may be behind the exchange's."""


@attrs.define
class Horizon(Generic[R]):
    """The time up to which a repair fetches; later records come over the stream.

    Attributes:
        opened_ns: When the connection was opened, by this machine's clock, UTC nanoseconds.
        in_order: Whether records come in the order of their times. Otherwise the first live record
            may be older than a missed one.
        first: The first records of the connection, a thousand or more if there were as many.
    """

    opened_ns: int
    in_order: bool = True
    first: list[R] = attrs.field(factory=list)

    def came(self, records: Sequence[R]) -> None:
        """Note live records of the connection."""
        if len(self.first) < _ENOUGH_FIRST:
            self.first.extend(records)

    def timely(self, records: Iterable[R]) -> list[R]:
        """The records that show how far the stream has come: those that did not come late."""
        if self.in_order:
            return list(records)
        newest_ns = self.opened_ns
        found = []
        for record in records:
            if record.ts_event_ns >= newest_ns - _LATE_NS:
                found.append(record)
                newest_ns = max(newest_ns, record.ts_event_ns)
        return found

    def until_ns(self) -> tuple[int, dict[str, int]]:
        """The time of the first live record of all, and that of each symbol, UTC nanoseconds.

        Without a live record, or if records may come late, it is the time when the connection was
        opened.
        """
        if not self.in_order:
            return self.opened_ns, {}
        firsts: dict[str, int] = {}
        for record in self.first:
            firsts[record.symbol] = min(
                firsts.get(record.symbol, record.ts_event_ns), record.ts_event_ns
            )
        return min(firsts.values(), default=self.opened_ns), firsts


@attrs.frozen
class Believed(Generic[R]):
    """A repair that trusted history without proof that it was up to date.

    Attributes:
        missed: The symbols and times that it asked for.
        found: The records from history, and those that the stream had sent by then.
        lasts_ns: The time of each symbol's last published record before it, UTC nanoseconds; for
            a symbol without one, the time of the newest record in history.
        horizon: The time up to which history should have been complete.
        slack_ns: How much earlier than a symbol's last published record a missed one may be: a
            trade may come late, and a bar may be updated.
    """

    missed: Sequence[Missed]
    found: Sequence[R]
    lasts_ns: Mapping[str, int]
    horizon: Horizon[R]
    slack_ns: int = -1

    def concerned(self, records: Iterable[R]) -> list[R]:
        """Those of the records that the repair should have fetched."""
        until_ns, of_symbol = self.horizon.until_ns()
        return [
            record
            for record in records
            if record.symbol in self.lasts_ns
            and self.lasts_ns[record.symbol] - self.slack_ns
            <= record.ts_event_ns
            <= of_symbol.get(record.symbol, until_ns)
        ]


class Recheck(Generic[R]):
    """Asks history again for the repairs that trusted it.

    Args:
        kind: The kind of the records.
        history: The source of past records.
        clock: The time.
        was_accepted: Whether an equal record was accepted lately.
    """

    def __init__(
        self,
        kind: Kind[R],
        history: HalvingHistory[R],
        clock: Clock,
        was_accepted: Callable[[R], bool] = lambda _record: False,
    ) -> None:
        self._kind = kind
        self._history = history
        self._clock = clock
        self._was_accepted = was_accepted
        self._waiting: deque[tuple[float, Believed[R]]] = deque()
        """The repairs to check, with the time of each check."""
        self._added = anyio.Event()

    @property
    def waiting(self) -> Sequence[Believed[R]]:
        """The repairs that are not checked yet."""
        return [believed for _, believed in self._waiting]

    def check(self, believed: Believed[R]) -> None:
        """Check this repair after :data:`LOOK_AGAIN_S`."""
        self._waiting.append((anyio.current_time() + LOOK_AGAIN_S, believed))
        self._added.set()

    async def next(self) -> LateRecords[R]:
        """Wait for the next check that finds missed records, and return them.

        If history does not answer five times, the result names the symbols as unknown: records of
        them may be missing.
        """
        tries = 0
        while True:
            while not self._waiting:
                self._added = anyio.Event()
                await self._added.wait()
            due_s, believed = self._waiting[0]
            await anyio.sleep_until(due_s)
            late: Sequence[R] = ()
            unknown: frozenset[str] = frozenset()
            try:
                with anyio.fail_after(_ANSWER_LIMIT_S):
                    late, unknown = await self._late(believed)
            except (HistoryRefused, HistoryUnavailable, TimeoutError) as exc:
                _log.warning("history_not_checked", reason=str(exc))
                tries += 1
                if tries < _MOST_TRIES:
                    self._waiting[0] = (anyio.current_time() + LOOK_AGAIN_S, believed)
                    continue
                unknown = frozenset(believed.lasts_ns)
            self._waiting.popleft()
            tries = 0
            if late or unknown:
                return self._find(believed, late, unknown)

    def _find(
        self, believed: Believed[R], late: Sequence[R], unknown: frozenset[str]
    ) -> LateRecords[R]:
        _log.warning("history_was_late", records=len(late), unknown=len(unknown))
        symbols = unknown.union(record.symbol for record in late)
        from_ns = min(believed.lasts_ns[symbol] for symbol in symbols)
        until_ns = max((record.ts_event_ns for record in late), default=0)
        return LateRecords(
            self._kind, late, from_ns, max(until_ns, believed.horizon.until_ns()[0]), unknown
        )

    async def _late(self, believed: Believed[R]) -> tuple[list[R], frozenset[str]]:
        """The missed records that history has only now, and the symbols that it refuses."""
        identity = self._kind.identity
        known: Counter[Hashable] = Counter(
            map(identity, (*believed.found, *believed.horizon.first))
        )
        end_ns = self._clock.utc_ns() + _AHEAD_NS
        late = []
        refused: set[str] = set()
        for part in believed.missed:
            found = await self._history.past(part.symbols, part.since_ns, end_ns)
            refused.update(found.refused)
            for record in found.records:
                if known[identity(record)]:
                    known[identity(record)] -= 1
                elif not self._was_accepted(record):
                    late.append(record)
        return believed.concerned(late), frozenset(refused & believed.lasts_ns.keys())
