"""What history had not told yet when it was asked in a quiet market.

Where no live record shows how far history has come, a repair allows for a lag and believes it
(:data:`mdservice.feed.gap_repair.repair.QUIET_S`). Some time later history is asked once more: what
it has then and had not before was missed, and is told.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
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
"""After so long history has what it will ever have, as far as is known."""

_MOST_TRIES = 5
_ANSWER_LIMIT_S = 60.0
_ENOUGH_FIRST = 1_000
_AHEAD_NS = 60_000_000_000
"""History is asked up to so long after now: this machine's clock may be behind the exchange's."""


@attrs.define
class Horizon(Generic[R]):
    """Up to where a connection's repair is responsible: what is later came over the stream.

    Attributes:
        opened_ns: When the connection was opened, by this machine's clock, UTC nanoseconds.
        first: The first records that came over it, a thousand or more where there were so many.
    """

    opened_ns: int
    first: list[R] = attrs.field(factory=list)

    def came(self, records: Sequence[R]) -> None:
        """Quotes came over the connection."""
        if len(self.first) < _ENOUGH_FIRST:
            self.first.extend(records)

    def until_ns(self) -> tuple[int, dict[str, int]]:
        """The earliest time that came, of all and of each symbol: right whatever the clock is."""
        firsts: dict[str, int] = {}
        for record in self.first:
            firsts[record.symbol] = min(
                firsts.get(record.symbol, record.ts_event_ns), record.ts_event_ns
            )
        return min(firsts.values(), default=self.opened_ns), firsts


@attrs.frozen
class Believed(Generic[R]):
    """A repair whose history was believed to be up to date.

    Attributes:
        missed: What it asked for.
        found: What it got, and what the stream had brought by then.
        lasts_ns: The time of each symbol's last record that was out before, UTC nanoseconds; of
            one without any, of the newest that history told.
        horizon: Up to where history should have told everything.
    """

    missed: Sequence[Missed]
    found: Sequence[R]
    lasts_ns: Mapping[str, int]
    horizon: Horizon[R]

    def concerned(self, records: Iterable[R]) -> list[R]:
        """Those that the repair should have brought."""
        until_ns, of_symbol = self.horizon.until_ns()
        return [
            record
            for record in records
            if record.symbol in self.lasts_ns
            and self.lasts_ns[record.symbol]
            < record.ts_event_ns
            <= of_symbol.get(record.symbol, until_ns)
        ]


class Recheck(Generic[R]):
    """Looks once more at what repairs have believed.

    Args:
        kind: The kind of the records.
        history: Past records.
        clock: The time.
    """

    def __init__(self, kind: Kind[R], history: HalvingHistory[R], clock: Clock) -> None:
        self._kind = kind
        self._history = history
        self._clock = clock
        self._waiting: deque[tuple[float, Believed[R]]] = deque()
        """When to look, and at what."""
        self._added = anyio.Event()

    @property
    def waiting(self) -> Sequence[Believed[R]]:
        """What is yet to be looked at."""
        return [believed for _, believed in self._waiting]

    def check(self, believed: Believed[R]) -> None:
        """Look at it again in a while; kept until that is done."""
        self._waiting.append((anyio.current_time() + LOOK_AGAIN_S, believed))
        self._added.set()

    async def next(self) -> LateRecords[R]:
        """Wait for the next find.

        A history that does not answer is asked a few times more; then nobody knows, and that is
        the find.
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
        """What history has now and had not before, and the symbols that it refuses now."""
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
                else:
                    late.append(record)
        return believed.concerned(late), frozenset(refused & believed.lasts_ns.keys())
