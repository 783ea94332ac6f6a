"""Who gets which record, and the backlog of each client. No function here blocks."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any, Final, Protocol, cast

import attrs

from mdservice.model.feeds import Feed, Topic
from mdservice.model.kinds import NEWS, Kind, R
from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.relay.messages import Message, messages_of

__all__ = [
    "MOST_BEHIND",
    "MOST_BYTES",
    "MOST_KEPT_BYTES",
    "MOST_WAITING",
    "Backlog",
    "Control",
    "FanOut",
    "Receiver",
]

MOST_WAITING: Final = 10_000
MOST_BYTES: Final = 4 * 1024 * 1024
"""A client for which more records or bytes wait is slow."""
MOST_BEHIND: Final = 10_000
"""A slow client is cut off when more records wait for it, not counting quotes and order books."""
MOST_KEPT_BYTES: Final = 64 * 1024 * 1024
"""A slow client is also cut off when more bytes of these records wait, which only very large
articles reach. The bytes of a record are in memory once for all clients."""


@attrs.frozen
class Control:
    """A control message: the payload of a frame of its own, and whether it is the last one."""

    payload: bytes
    closes: bool = False


class Backlog:
    """What waits for one client, in order; bounded.

    A client becomes slow when more than :data:`MOST_WAITING` records or :data:`MOST_BYTES` wait,
    and stays slow until it has received all of them. For a slow client only the newest quote and
    order book of each symbol is kept.

    Attributes:
        slow: Whether the client is slow.
        conflated: How many quotes and order books it lost to newer ones.
        controls: How many control messages wait.
    """

    __slots__ = ("_bytes", "_items", "_latest", "_records", "conflated", "controls", "slow")

    def __init__(self) -> None:
        self.slow = False
        self.conflated = 0
        self.controls = 0
        self._items: deque[Message | Control] = deque()
        self._latest: dict[tuple[str, str], Message] = {}
        """The quotes and order books of a slow client, by channel and symbol."""
        self._records = 0
        """Records among the items."""
        self._bytes = 0
        """Their bytes."""

    def __len__(self) -> int:
        return self._records + len(self._latest)

    def __bool__(self) -> bool:
        return bool(self._items or self._latest)

    def add(self, message: Message) -> bool:
        """Add a record; False where the client is so far behind that it must be cut off."""
        if self.slow:
            return self._add_slow(message)
        self._items.append(message)
        self._records += 1
        self._bytes += message.size
        if self._records > MOST_WAITING or self._bytes > MOST_BYTES:
            self._become_slow()
            return self._fits()
        return True

    def add_control(self, control: Control) -> None:
        """Add a control message, behind the records that wait."""
        self._items.append(control)
        self.controls += 1

    def take(self, most: int, most_bytes: int) -> list[Message] | Control | None:
        """The next records for one frame, or the next control message; None where nothing waits.

        Args:
            most: How many records at most.
            most_bytes: About how many bytes at most; one record may have more.
        """
        items = self._items
        if not items:
            return self._take_latest(most, most_bytes)
        if not (self.slow or self.controls or self._records > most or self._bytes > most_bytes):
            everything = cast("list[Message]", list(items))  # the usual, fast path
            items.clear()
            self._records = self._bytes = 0
            return everything
        if self._latest:  # half of the frame, so that quotes do not wait behind endless trades
            most //= 2
            most_bytes //= 2
        first = items.popleft()
        if isinstance(first, Control):
            self.controls -= 1
            return first
        taken, size = [first], first.size
        while items and len(taken) < most and size < most_bytes:
            item = items[0]
            if isinstance(item, Control):
                break
            items.popleft()
            taken.append(item)
            size += item.size
        self._records -= len(taken)
        self._bytes -= size
        if self._latest:
            taken += self._take_latest(most, most_bytes) or ()
        if not items and not self._latest:
            self.slow = False
        return taken

    def drop(self, channels: Container[str], subscribed: Container[Topic]) -> None:
        """Remove waiting records that the client has unsubscribed.

        Args:
            channels: Of the request.
            subscribed: What the client still gets.
        """

        def wanted(channel: str, symbol: str) -> bool:
            return (
                channel not in channels
                or Topic(channel, symbol) in subscribed
                or Topic(channel, EVERY_SYMBOL) in subscribed
            )

        for key in [key for key in self._latest if not wanted(*key)]:
            del self._latest[key]
        kept = deque(
            item
            for item in self._items
            if isinstance(item, Control) or wanted(item.channel, item.symbol)
        )
        self._count(kept)

    def clear(self) -> None:
        """Remove everything."""
        self._latest.clear()
        self._count(deque())

    def _take_latest(self, most: int, most_bytes: int) -> list[Message] | None:
        taken: list[Message] = []
        size = 0
        while self._latest and len(taken) < most and size < most_bytes:
            message = self._latest.pop(next(iter(self._latest)))
            taken.append(message)
            size += message.size
        if not self._latest and not self._items:
            self.slow = False
        return taken or None

    def _add_slow(self, message: Message) -> bool:
        if message.latest_only:
            self._keep_latest(message)
            return True
        self._items.append(message)
        self._records += 1
        self._bytes += message.size
        return self._fits()

    def _fits(self) -> bool:
        return self._records <= MOST_BEHIND and self._bytes <= MOST_KEPT_BYTES

    def _keep_latest(self, message: Message) -> None:
        key = (message.channel, message.symbol)
        if key in self._latest:
            self.conflated += 1
            message = message.whole()  # the client misses the changes of the one before
        self._latest[key] = message

    def _become_slow(self) -> None:
        self.slow = True
        kept: deque[Message | Control] = deque()
        for item in self._items:
            if isinstance(item, Message) and item.latest_only:
                self._keep_latest(item)
            else:
                kept.append(item)
        self._count(kept)

    def _count(self, items: deque[Message | Control]) -> None:
        self._items = items
        records = [item for item in items if isinstance(item, Message)]
        self._records = len(records)
        self.controls = len(items) - len(records)
        self._bytes = sum(record.size for record in records)
        self.slow &= bool(self)


class Receiver(Protocol):
    """A client, as the fan-out sees it."""

    def receive(self, message: Message) -> None:
        """Take a record; must not wait."""
        ...


class FanOut:
    """The receivers of one feed's topics.

    Args:
        feed: The feed.
    """

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._by_topic: dict[Topic, dict[Receiver, None]] = {}
        self._every: dict[str, dict[Receiver, None]] = {}
        """The receivers of ``*`` of each channel. They are not listed under the symbols too."""
        self._named: dict[Receiver, set[Topic]] = {}
        """What each receiver has asked for by name."""

    def add(self, receiver: Receiver, topics: Iterable[Topic]) -> None:
        """Let a receiver get the records of topics."""
        named = self._named.setdefault(receiver, set())
        for topic in topics:
            named.add(topic)
            if topic.symbol == EVERY_SYMBOL:
                self._every.setdefault(topic.channel, {})[receiver] = None
                for other in named:
                    if other.channel == topic.channel:
                        self._leave(receiver, other)
            elif receiver not in self._every.get(topic.channel, ()):
                self._by_topic.setdefault(topic, {})[receiver] = None

    def remove(self, receiver: Receiver, topics: Iterable[Topic]) -> None:
        """Let a receiver no longer get the records of topics."""
        named = self._named.get(receiver, set())
        for topic in topics:
            named.discard(topic)
            if topic.symbol == EVERY_SYMBOL:
                every = self._every.get(topic.channel, {})
                every.pop(receiver, None)
                if not every:
                    self._every.pop(topic.channel, None)
                for other in named:
                    if other.channel == topic.channel:
                        self._by_topic.setdefault(other, {})[receiver] = None
            else:
                self._leave(receiver, topic)
        if not named:
            self._named.pop(receiver, None)

    def discard(self, receiver: Receiver) -> None:
        """Forget a receiver."""
        self.remove(receiver, list(self._named.get(receiver, ())))

    def offer(self, kind: Kind[R], records: Sequence[R]) -> None:
        """Give accepted records to those who want them."""
        if not self._named:
            return
        wanted = self._wanted(kind, records)
        if not wanted:
            return
        by_topic, every = self._by_topic, self._every
        for message in messages_of(kind, wanted):
            for receiver in every.get(message.channel, ()):
                receiver.receive(message)
            if kind is NEWS:
                for receiver in self._readers_of(message):
                    receiver.receive(message)
            else:
                for receiver in by_topic.get((message.channel, message.symbol), ()):  # type: ignore[call-overload]  # a topic is such a tuple
                    receiver.receive(message)

    def _wanted(self, kind: Kind[Any], records: Sequence[Any]) -> Sequence[Any]:
        """The records that a receiver may want; most often few symbols of many are wanted."""
        if kind is NEWS or any(channel in self._every for channel in kind.topics):
            return records
        by_topic, topics = self._by_topic, kind.topics
        if len(topics) == 1:
            channel = topics[0]
            return [record for record in records if (channel, record.symbol) in by_topic]
        return [
            record
            for record in records
            if any((channel, record.symbol) in by_topic for channel in topics)
        ]

    def _readers_of(self, message: Message) -> Iterator[Receiver]:
        """The receivers of an article about several symbols, each once."""
        found: dict[Receiver, None] = {}
        for symbol in message.symbols:
            found |= self._by_topic.get(Topic(message.channel, symbol), {})
        return iter(found)

    def _leave(self, receiver: Receiver, topic: Topic) -> None:
        receivers = self._by_topic.get(topic)
        if receivers is not None:
            receivers.pop(receiver, None)
            if not receivers:
                del self._by_topic[topic]
