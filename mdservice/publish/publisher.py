"""The publisher: keeps events until the store has acknowledged them, and makes batches.

It always receives, so the feed never waits. It keeps every event in order up to the backlog; beyond
it, the policy of each kind says what becomes of the oldest. It sends the next batch when the
previous one is acknowledged, so batches grow with the load.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import anyio
import attrs
from anyio.abc import TaskStatus

from mdservice.clock import Clock
from mdservice.model.events import (
    AccountEvent,
    LatestChanged,
    RecordBatch,
    RoutedItem,
    encode_status,
)
from mdservice.model.kinds import QUOTES, TRADES, Kind, Record
from mdservice.model.status import Histogram, Latencies
from mdservice.publish.conflation import ConflatingBuffer
from mdservice.publish.latencies import LatencyWindow, samples
from mdservice.publish.store import Events, WriteBatch
from mdservice.redis_io.names import ACCOUNT_CHANNEL, STATUS_CHANNEL
from mdservice.runtime.actor import Channel, Depth, Heartbeat, Outbox

__all__ = ["MOST_IN_BATCH", "EventPublisher"]

_TIMED = frozenset((QUOTES, TRADES))
"""The kinds whose times are those of the market's events. Those of bars are old."""

MOST_IN_BATCH = 4000
"""The maximum number of events in one transaction. One batch is on its way at a time, so this also
limits the rate at which a backlog is worked off: a round trip takes as long as one turn of the
event loop, in which much is read. Other clients of the store wait a few milliseconds at most."""


class EventPublisher:
    """Encodes each event once and keeps it until the store has acknowledged it.

    Args:
        inbox: Accepted records, changed latest values and changes of the feeds' states.
        outbox: Batches for the writer.
        acknowledged: The numbers of the written batches.
        backlog: How many events are kept before the oldest become fewer.
        clock: The time.
    """

    name = "event_publisher"

    def __init__(
        self,
        inbox: Channel[RoutedItem],
        outbox: Outbox[WriteBatch],
        acknowledged: Channel[int],
        backlog: int,
        clock: Clock,
    ) -> None:
        self.heartbeat = Heartbeat(clock)
        self._inbox = inbox.inbox(self.heartbeat)
        self._outbox = outbox
        self._acknowledged = acknowledged.inbox(self.heartbeat, "acknowledged")
        self._backlog = backlog
        self._waiting = ConflatingBuffer(backlog)
        self._in_flight: _InFlight | None = None
        self._sent = False
        self._batches = 0
        self._clock = clock
        self._written: Counter[str] = Counter()
        self._published: Counter[str] = Counter()
        self._account_published = 0
        self.settled = 0
        """How many events have left, acknowledged."""
        self._latency = LatencyWindow()

    @property
    def depth(self) -> Depth:
        """How full its inbox is."""
        return self._inbox.depth

    @property
    def unacknowledged(self) -> int:
        """The number of events that are not acknowledged yet."""
        in_flight = self._in_flight.batch.count if self._in_flight else 0
        return len(self._waiting) + in_flight

    def not_stored(self, written: int) -> tuple[int, int]:
        """Count the events that are not known to be written.

        Args:
            written: The number of the last batch that the store has executed.

        Returns:
            The number of events in the batch without an answer, and of those in no batch.
        """
        batch = self._in_flight.batch if self._in_flight else None
        sent = batch.count if batch is not None and batch.number > written else 0
        return sent, len(self._waiting)

    def snapshot(self) -> PublisherSnapshot:
        """A snapshot of the publisher."""
        return PublisherSnapshot(
            backlog=self.unacknowledged,
            backlog_limit=self._backlog,
            prices_written=self._written[QUOTES.channel],
            events_published=self._published.total(),
            events_conflated=self._waiting.conflated,
            trades_dropped=self._waiting.dropped_of[TRADES],
            account_updates_published=self._account_published,
            account_updates_dropped=self._waiting.account_dropped,
            latencies=self._latency.summary(),
            histograms=self._latency.histograms(),
            published=dict(self._published),
            written=dict(self._written),
            conflated=_by_channel(self._waiting.conflated_of),
            dropped=_by_channel(self._waiting.dropped_of),
        )

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Receive and send until the inbox ends and everything is acknowledged."""
        self._sent = False  # a restart may have lost the acknowledgement
        self._send_next()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._settle_all)
            task_status.started()
            async for item in self._inbox:
                self._waiting.add(item)
                self._send_next()
            self._inbox.rest()
            tasks.cancel_scope.cancel()
        while self._in_flight is not None:
            await self._settle_next()
        self._outbox.close()

    async def _settle_all(self) -> None:
        while True:
            await self._settle_next()

    async def _settle_next(self) -> None:
        """Wait for an acknowledgement, then send the next batch."""
        number = await self._acknowledged.receive()
        if self._in_flight is not None and number == self._in_flight.batch.number:
            self._settle(self._in_flight)
        self._send_next()

    def _send_next(self) -> None:
        """Send the next batch, unless one is being written.

        After a restart, the channel may still have a copy of it. Then this batch is sent when the
        copy is acknowledged.
        """
        if self._in_flight is None:
            if not len(self._waiting):
                return
            self._in_flight = self._next_batch()
            self._sent = False
        if not self._sent:
            with suppress(anyio.WouldBlock):
                self._outbox.send_nowait(self._in_flight.batch)
                self._sent = True

    def _next_batch(self) -> _InFlight:
        latest: dict[Kind[Any], dict[str, bytes]] = {}
        deleted: dict[Kind[Any], dict[str, None]] = {}
        events: list[Events] = []
        timed: list[Sequence[Record]] = []
        for item in self._waiting.take(MOST_IN_BATCH):
            if isinstance(item, RecordBatch):
                kind, records = item.kind, item.records
                payloads = list(map(kind.encode, records))
                symbols = [record.symbol for record in records]
                if kind.may_be_late:
                    newest = zip(records, payloads, strict=True)
                    values = {one.symbol: payload for one, payload in newest if one.newest}
                    latest.setdefault(kind, {}).update(values)
                elif kind.has_key:
                    latest.setdefault(kind, {}).update(zip(symbols, payloads, strict=True))
                ids = list(map(kind.stream.entry_id, records)) if kind.stream is not None else ()
                events.append(Events(kind.event, payloads, kind, symbols, ids))
                if kind in _TIMED:
                    timed.append(records)
            elif isinstance(item, LatestChanged):
                values = latest.setdefault(item.kind, {})
                if item.record is not None:
                    values[item.symbol] = item.kind.encode(item.record)
                else:
                    values.pop(item.symbol, None)
                    deleted.setdefault(item.kind, {})[item.symbol] = None
            elif isinstance(item, AccountEvent):
                events.append(Events(ACCOUNT_CHANNEL, (item.payload,)))
            else:
                events.append(Events(STATUS_CHANNEL, (encode_status(item),)))
        gone = {
            kind: [symbol for symbol in symbols if symbol not in latest[kind]]
            for kind, symbols in deleted.items()
        }
        self._batches += 1
        batch = WriteBatch(self._batches, latest, events, deleted=gone)
        self._waiting.limit = self._backlog - batch.count
        return _InFlight(batch, samples(timed))

    def _settle(self, in_flight: _InFlight) -> None:
        self.settled += in_flight.batch.count
        for kind, latest in in_flight.batch.latest.items():
            self._written[kind.channel] += len(latest)
        for events in in_flight.batch.events:
            if events.kind is not None:
                self._published[events.kind.channel] += len(events.payloads)
            elif events.channel == ACCOUNT_CHANNEL:
                self._account_published += len(events.payloads)
        self._latency.add(in_flight.samples, self._clock.utc_ns())
        self._waiting.limit = self._backlog
        self._in_flight = None


def _by_channel(counts: Mapping[Kind[Any], int]) -> dict[str, int]:
    return {kind.channel: count for kind, count in counts.items()}


@attrs.frozen
class PublisherSnapshot:
    """A snapshot of the publisher, with the names of ``/status``.

    Attributes:
        backlog: Events that are not acknowledged yet.
        backlog_limit: How many are kept before the oldest become fewer.
        prices_written: Keys of quotes that the store has acknowledged.
        events_published: Events of records of every kind that it has acknowledged.
        events_conflated: Events that a newer one has replaced.
        trades_dropped: Events of trades that were dropped because the backlog was full.
        account_updates_published: Events of the account that the store has acknowledged.
        account_updates_dropped: Events of the account that were dropped, likewise.
        latencies: Of quotes and trades.
        histograms: Their distributions since the start.
        published: ``events_published``, by channel.
        written: Keys that the store has acknowledged, by channel.
        conflated: ``events_conflated`` by channel, without feed states.
        dropped: Events that were dropped although no newer one replaces them, by channel.
    """

    backlog: int
    backlog_limit: int
    prices_written: int
    events_published: int
    events_conflated: int
    trades_dropped: int
    account_updates_published: int
    account_updates_dropped: int
    latencies: Latencies
    histograms: Mapping[str, Histogram]
    published: Mapping[str, int]
    written: Mapping[str, int]
    conflated: Mapping[str, int]
    dropped: Mapping[str, int]


@attrs.frozen
class _InFlight:
    batch: WriteBatch
    samples: Sequence[Record]

    @property
    def records(self) -> int:
        """The number of its events that are records."""
        return sum(len(events.payloads) for events in self.batch.events if events.kind is not None)
