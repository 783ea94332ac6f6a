"""Checks, counts and queues the records of a source for the program."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, Final, Generic, Protocol

import anyio
import anyio.lowlevel

from mdservice.client.discovery import Location
from mdservice.client.sequence import TradeCheck, sequence_check
from mdservice.model.events import RecordBatch
from mdservice.model.kinds import CANCELS, CORRECTIONS, TRADES, Kind, R, RecordDecoder
from mdservice.publish.conflation import ConflatingBuffer, records_of
from mdservice.redis_io.names import GONE_AFTER_S, Instance, RedisNames

__all__ = ["BACKLOG", "KEYS_AT_MOST_EVERY_S", "Intake", "KindState", "ReaderQueue", "Source"]


BACKLOG = 10_000
"""The size of the queue. Beyond it, the oldest updates are conflated."""
_MOST_AT_ONCE = 500


class ReaderQueue(Generic[R]):
    """Takes updates from the reading task, and gives them to the program one by one.

    Updates from :meth:`offer` are conflated or dropped beyond :data:`BACKLOG`, by the policy of
    their kind. Updates from :meth:`offer_entries` are not: their source waits for :meth:`emptied`
    before it reads on.
    """

    def __init__(self) -> None:
        self.position: str | None = None
        """The id of the last log entry that the program got."""
        self._buffer = ConflatingBuffer(BACKLOG)
        self._taken: deque[R] = deque()
        self._positions: deque[str | None] = deque()
        self._arrived = anyio.Event()
        self._emptied = anyio.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._buffer) + len(self._taken)

    @property
    def conflated(self) -> int:
        """Updates that were conflated because the program was too slow."""
        return self._buffer.conflated

    def conflated_of(self, kind: Kind[Any]) -> int:
        """Those of one kind."""
        return self._buffer.conflated_of.get(kind, 0)

    def dropped_of(self, kind: Kind[Any]) -> int:
        """Updates of a kind that were dropped because the program was too slow."""
        return self._buffer.dropped_of[kind]

    def offer(self, kind: Kind[Any], records: Sequence[R]) -> None:
        """Add updates of a kind; without room, conflate or drop the oldest."""
        if records:
            self._buffer.add(RecordBatch(kind, records))
            self._arrived.set()

    def offer_entries(
        self, records: Sequence[R], positions: Sequence[str | None], end: str | None
    ) -> None:
        """Add updates with their ids in the log.

        Args:
            records: Updates, in order.
            positions: For each update, the id of the log up to which the program has got
                everything once it has this update; None if the id does not change.
            end: That id for the last update. Without updates, it takes effect at once.
        """
        if not records:
            self.position = end or self.position
            return
        self._taken.extend(records)
        self._positions.extend([*positions[:-1], end])
        self._arrived.set()

    async def emptied(self) -> None:
        """Wait until the program has got everything."""
        while len(self):
            if self._emptied.is_set():
                self._emptied = anyio.Event()
            await self._emptied.wait()

    def close(self) -> None:
        """End the iteration once the program has got everything."""
        self._closed = True
        self._arrived.set()

    async def take(self) -> R:
        """The next update.

        Raises:
            StopAsyncIteration: The reader was closed, and the program has got everything.
        """
        if not self._taken:
            await anyio.lowlevel.checkpoint()  # a program that never waits must let other tasks run
            await self._refill()
        record = self._taken.popleft()
        if self._positions:
            self.position = self._positions.popleft() or self.position
        if not self._taken:
            self._emptied.set()
        return record

    async def _refill(self) -> None:
        while not self._taken:
            if len(self._buffer):
                self._taken.extend(records_of(self._buffer.take(_MOST_AT_ONCE)))
            elif self._closed:
                raise StopAsyncIteration
            else:
                if self._arrived.is_set():
                    self._arrived = anyio.Event()
                await self._arrived.wait()


KEYS_AT_MOST_EVERY_S: Final = 1.0
"""While the service conflates, ``seq`` steps all the time; this limits how often keys are read."""

_MOST_HEARD: Final = 100


class KindState(Generic[R]):
    """What a reader knows of one kind.

    Attributes:
        kind: The kind.
        event_decoder: Decodes events.
        key_decoder: Decodes keys, or the entries of the kind's stream.
        order: Keeps the newest record of each symbol, and detects missed ones.
        events: Updates that came as events.
        last_entry: The id of the newest entry of the kind's stream when it was read, or None.
    """

    def __init__(self, kind: Kind[R], symbols: Sequence[str]) -> None:
        self.kind = kind
        self.event_decoder = RecordDecoder.of(kind, symbols)
        self.key_decoder = RecordDecoder.of(kind, symbols)
        self.order = sequence_check(kind)
        self.events = 0
        self.last_entry: bytes | None = None


class Intake(Generic[R]):
    """The state of a reader across connections.

    Attributes:
        symbols: The wanted symbols; empty for all.
        names: The names of keys and channels at the last location.
        states: What is known of each kind that is read.
        handover: The queue for the program.
        resyncs: How often the keys were read again.
        trimmed: How often entries of the event log, or of a kind's stream, were deleted before
            they were read.
        lost: How often events were lost before they reached the server.
        following: The service that is read; None if the service does not announce itself.
        foreign: Events of other services, which were dropped.
        heard: The services that announce themselves, by id, with the time of the last
            announcement, monotonic seconds.
    """

    def __init__(self, kinds: Sequence[Kind[R]], symbols: Sequence[str]) -> None:
        self.symbols = tuple(symbols)
        self.names = RedisNames()
        self.states: dict[Kind[Any], KindState[R]] = {
            kind: KindState(kind, symbols) for kind in kinds
        }
        self.handover: ReaderQueue[R] = ReaderQueue()
        self.resyncs = 0
        self.trimmed = 0
        self.lost = 0
        self.following: Instance | None = None
        self.foreign = 0
        self.heard: dict[str, tuple[Instance, float]] = {}
        self.begun = False
        """Whether the keys were read at least once."""
        self._noticed = 0
        self._next_keys_s = -inf

    def hear(self, instance: Instance, now_s: float) -> None:
        """Note that a service has announced itself."""
        for id_, (_, heard_s) in list(self.heard.items()):
            if now_s - heard_s > GONE_AFTER_S:
                del self.heard[id_]
        if self.following is not None and instance.id == self.following.id:
            self.following = instance
        if instance.gone:
            self.heard.pop(instance.id, None)
        elif instance.id in self.heard or len(self.heard) < _MOST_HEARD:
            self.heard[instance.id] = instance, now_s

    def rivals(self, now_s: float) -> list[Instance]:
        """Other services that write the same keys, so that their prices cannot be separated."""
        following = self.following
        if following is None:
            return []
        return [
            one
            for one, heard_s in self.heard.values()
            if one.db == following.db and one.id != following.id and now_s - heard_s <= GONE_AFTER_S
        ]

    def _reasons(self) -> int:
        return sum(state.order.reasons for state in self.states.values()) + self.trimmed + self.lost

    def keys_are_due(self, now_s: float) -> bool:
        """Whether records were missed since the keys were read, and reading them is allowed again.

        Args:
            now_s: The event loop's time.
        """
        return self._reasons() != self._noticed and now_s >= self._next_keys_s

    def reading_keys(self, now_s: float) -> None:
        """Note that the keys are being read now."""
        self._noticed = self._reasons()
        self._next_keys_s = now_s + KEYS_AT_MOST_EVERY_S
        self.resyncs += self.begun
        for state in self.states.values():
            state.order.reading_keys()

    def take_keys(self, kind: Kind[R], records: Sequence[R], *, trimmed: bool = False) -> list[R]:
        """Return the records of keys that are newer. Their steps cause no further read of keys.

        Args:
            kind: Their kind.
            records: Of its keys, or of its stream.
            trimmed: Whether entries of its stream were deleted before they were read.
        """
        before = self._reasons()
        self.trimmed += trimmed
        run = None if self.following is None else self.following.id
        newer = self.states[kind].order.newer_keys(records, run=run)
        self._noticed += self._reasons() - before
        self.begun = True
        return newer

    def take_events(
        self, kind: Kind[R], records: Sequence[R], *, in_order: bool, run: str | None = None
    ) -> list[R]:
        """Return the records of events that are newer.

        Args:
            kind: Their kind.
            records: In the order of their arrival.
            in_order: See :func:`mdservice.client.sequence.judge`.
            run: The id of the service that sent them; None if it is not known.
        """
        state = self.states[kind]
        newer = state.order.newer(records, in_order=in_order, run=run)
        state.events += len(newer)
        if kind is CORRECTIONS or kind is CANCELS:
            self._change_trades(kind, newer)
        return newer

    def _change_trades(self, kind: Kind[Any], changes: Sequence[Any]) -> None:
        trades: Any = self.states[TRADES].order if TRADES in self.states else None
        if isinstance(trades, TradeCheck):
            change = trades.correct if kind is CORRECTIONS else trades.cancel
            change(changes)


class Source(Protocol):
    """A source of events."""

    async def follow(self, location: Location, connected: Callable[[], None]) -> None:
        """Connect, catch up and deliver events, until an error ends it.

        Args:
            location: The server, and the names there.
            connected: Called once when the reader has caught up.

        Raises:
            StoreUnavailable: The connection could not be made or was lost.
            StoreRefused: The server refuses the login or a command.
        """
        ...
