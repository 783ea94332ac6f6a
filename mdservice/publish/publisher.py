"""The actor that holds what the store has not acknowledged, and hands it out in batches.

It always takes, so that the feed never waits: up to the backlog every event is kept in
order, beyond it the oldest are conflated. The next batch is handed out when the previous
one is acknowledged, so batches grow by themselves with the load.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import suppress

import anyio
import attrs
from anyio.abc import TaskStatus
from anyio.streams.memory import MemoryObjectSendStream

from mdservice.clock import Clock
from mdservice.model.events import FeedStatus, QuoteBatch, RoutedItem
from mdservice.model.payload import encode_quote, encode_status
from mdservice.model.quote import Quote
from mdservice.model.status import Latencies, Latency
from mdservice.publish.conflation import ConflatingBuffer
from mdservice.publish.store import Message, WriteBatch
from mdservice.redis_io.names import PRICE_CHANNEL, STATUS_CHANNEL
from mdservice.runtime.actor import Channel, Depth, Heartbeat

__all__ = ["MOST_IN_BATCH", "EventPublisher", "LatencyWindow"]


# How long quotes take to the store: a window of samples, summed up when asked. Pure.


_WINDOW = 4096
_SAMPLES_PER_BATCH = 16
_MS_NS = 1e6


class LatencyWindow:
    """The last few thousand latencies; of a large batch some evenly spaced quotes stand in."""

    def __init__(self) -> None:
        self._feed: deque[float] = deque(maxlen=_WINDOW)
        self._receive: deque[float] = deque(maxlen=_WINDOW)
        self._lag: deque[float] = deque(maxlen=_WINDOW)

    def add(self, quotes: Sequence[Quote], written_ns: int) -> None:
        """Quotes whose write was acknowledged.

        Args:
            quotes: In order; the first has waited longest and is always a sample.
            written_ns: When the acknowledgement came, UTC nanoseconds.
        """
        step = max(1, len(quotes) // _SAMPLES_PER_BATCH)
        for quote in quotes[::step]:
            self._feed.append((written_ns - quote.ts_event_ns) / _MS_NS)
            self._receive.append((written_ns - quote.ts_recv_ns) / _MS_NS)
            self._lag.append((quote.ts_recv_ns - quote.ts_event_ns) / _MS_NS)

    def summary(self) -> Latencies:
        """Percentiles of the window, in milliseconds."""
        return Latencies(*map(_percentiles, (self._feed, self._receive, self._lag)))


def _percentiles(samples: deque[float]) -> Latency:
    if not samples:
        return Latency()
    ordered = sorted(samples)
    last = len(ordered) - 1
    return Latency(
        p50=round(ordered[last // 2], 3),
        p99=round(ordered[last * 99 // 100], 3),
        max=round(ordered[last], 3),
    )


MOST_IN_BATCH = 2000
"""Events in one transaction: enough that its round trip costs nothing per event, few enough
that other clients of the store wait a few milliseconds at most."""


@attrs.frozen
class PublisherSnapshot:
    """The publisher at one moment; the names are those of ``/status``."""

    backlog: int
    prices_written: int
    events_published: int
    events_conflated: int
    latencies: Latencies


@attrs.frozen
class _InFlight:
    batch: WriteBatch
    quotes: Sequence[Quote]


class EventPublisher:
    """Encodes each event once and keeps it until the store has acknowledged it.

    Args:
        inbox: Accepted quotes and changes of the feed's state.
        outbox: Batches for the writer.
        acknowledged: The numbers of the batches that are written.
        backlog: How many events to keep before conflating.
        clock: The time.
    """

    name = "event_publisher"

    def __init__(
        self,
        inbox: Channel[RoutedItem],
        outbox: MemoryObjectSendStream[WriteBatch],
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
        self._handed_out = False
        self._batches = 0
        self._clock = clock
        self._prices_written = 0
        self._events_published = 0
        self._latency = LatencyWindow()

    @property
    def depth(self) -> Depth:
        """How full its inbox is."""
        return self._inbox.depth

    @property
    def unacknowledged(self) -> int:
        """Events that the store does not have yet, as far as is known."""
        in_flight = len(self._in_flight.batch.messages) if self._in_flight else 0
        return len(self._waiting) + in_flight

    def not_stored(self, written: int) -> tuple[int, int]:
        """The events that the store is not known to have.

        Args:
            written: The number of the last batch that the store has executed.

        Returns:
            How many are in the batch that was sent and not answered, and how many in none.
        """
        batch = self._in_flight.batch if self._in_flight else None
        sent = len(batch.messages) if batch is not None and batch.number > written else 0
        return sent, len(self._waiting)

    def snapshot(self) -> PublisherSnapshot:
        """The publisher now."""
        return PublisherSnapshot(
            backlog=self.unacknowledged,
            prices_written=self._prices_written,
            events_published=self._events_published,
            events_conflated=self._waiting.conflated,
            latencies=self._latency.summary(),
        )

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Take and hand out until the inbox ends and everything is acknowledged."""
        self._handed_out = False  # should a restart have lost the acknowledgement
        self._hand_out()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._settle_all)
            task_status.started()
            async for item in self._inbox:
                self._waiting.extend(item.quotes if isinstance(item, QuoteBatch) else (item,))
                self._hand_out()
            self._inbox.rest()
            tasks.cancel_scope.cancel()
        while self._in_flight is not None:
            await self._settle_next()
        self._outbox.close()

    async def _settle_all(self) -> None:
        while True:
            await self._settle_next()

    async def _settle_next(self) -> None:
        """Wait for an acknowledgement; then the next batch can go out."""
        number = await self._acknowledged.receive()
        if self._in_flight is not None and number == self._in_flight.batch.number:
            self._settle(self._in_flight)
        self._hand_out()

    def _hand_out(self) -> None:
        """Hand out the next batch, unless one is under way.

        After a restart a copy of it may still be in the channel: then this one goes out once that
        is acknowledged.
        """
        if self._in_flight is None:
            if not len(self._waiting):
                return
            self._in_flight = self._next_batch()
            self._handed_out = False
        if not self._handed_out:
            with suppress(anyio.WouldBlock):
                self._outbox.send_nowait(self._in_flight.batch)
                self._handed_out = True

    def _next_batch(self) -> _InFlight:
        items = self._waiting.take(MOST_IN_BATCH)
        self._waiting.limit = self._backlog - len(items)
        self._batches += 1
        prices: dict[str, bytes] = {}
        messages: list[Message] = []
        quotes: list[Quote] = []
        for item in items:
            if isinstance(item, FeedStatus):
                messages.append(Message(STATUS_CHANNEL, encode_status(item)))
            else:
                payload = encode_quote(item)
                prices[item.symbol] = payload
                messages.append(Message(PRICE_CHANNEL, payload, item.symbol))
                quotes.append(item)
        return _InFlight(WriteBatch(self._batches, prices, messages), quotes)

    def _settle(self, in_flight: _InFlight) -> None:
        self._prices_written += len(in_flight.batch.prices)
        self._events_published += len(in_flight.quotes)
        self._latency.add(in_flight.quotes, self._clock.utc_ns())
        self._waiting.limit = self._backlog
        self._in_flight = None
