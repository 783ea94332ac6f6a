"""What the recorded service made of a journal: the same decoding and routing, entry by entry.

A replay cannot repeat outages and REST: their times depend on the machine, and history would have
to answer as it did then. So it repeats the decisions instead, with the codec and the router of the
service, and sends what was accepted. An accepted record is accepted again without REST: it was new
to the sequencer that knew more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import attrs
import msgspec

from mdservice.errors import JournalError
from mdservice.feed.alpaca.codec import Codec, Encoding, Frame
from mdservice.feed.driver import Received
from mdservice.feed.subscriptions import Followed
from mdservice.journal.format import OTHER_FORM, Entry, EntryType, damaged
from mdservice.model.events import (
    Backfill,
    FeedItem,
    FeedLost,
    FirstRecords,
    LateRecords,
    RecordBatch,
    RoutedItem,
)
from mdservice.model.feeds import Feed, Topic
from mdservice.model.kinds import KINDS, ORDERBOOKS, Kind
from mdservice.router.actor import FUTURE_TOLERANCE_NS, Router
from mdservice.router.sequencer import Routed
from mdservice.runtime.actor import Channel

__all__ = ["Decisions", "Step", "recorded_topics", "topics_of_event"]

_BY_CHANNEL: Final[Mapping[str, Kind[Any]]] = {kind.channel: kind for kind in KINDS}
_CONTROLS: Final = (b"success", b"subscription", b"error")
"""The types of Alpaca's control messages. Entries with such a word are decided one by one."""


@attrs.frozen
class Step:
    """What one entry brings to a client.

    Attributes:
        time_ns: When it came, UTC nanoseconds.
        batches: The records to send, in order.
        frames: The frames that have exactly these, as they came; empty where they had more.
        encoding: Of the frames.
    """

    time_ns: int
    batches: Sequence[RecordBatch[Any]]
    frames: Sequence[Frame] = ()
    encoding: Encoding = "json"


class _EntryClock:
    """The time of the entry that is being decided."""

    def __init__(self) -> None:
        self.now_ns = 0

    def monotonic(self) -> float:
        return self.now_ns / 1e9

    def utc_ns(self) -> int:
        return self.now_ns


class _Decider(Router):
    """A router that its listener alone hears, and whose clock is never wrong."""

    def _send(self, item: RoutedItem) -> None:
        self._listener(item)

    def _check_times(self, records: Sequence[Any], routed: Routed[Any]) -> None:
        """The clock is that of the entries."""


class Decisions:
    """Decides what a feed's clients get of a journal; its entries are taken in order.

    Args:
        feed: Which feed. Entries of others are left out.

    Attributes:
        as_sent_in: The encoding of the frames that may go as they came. Records of such a frame
            do not keep their bytes, which saves a third of the time.
    """

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self.as_sent_in: Encoding | None = None
        self._clock = _EntryClock()
        self._channels: tuple[Channel[FeedItem], Channel[RoutedItem]] | None = None
        self._begin_run()

    def close(self) -> None:
        """Close the router's channels."""
        for channel in self._channels or ():
            channel.close()

    def _begin_run(self) -> None:
        self._accepted: list[RecordBatch[Any]] = []
        self._connection = 0
        self._codec: Codec | None = None
        self._followed = Followed()
        self._under_every: set[str] = set()
        self._held: dict[Kind[Any], list[Any]] = {}
        """The records that wait for a repair, by kind."""
        self._companions: dict[Kind[Any], list[RecordBatch[Any]]] = {}
        """What came with them, such as corrections of trades, by the kind that waits."""
        self._by_rest: set[Kind[Any]] = set()
        """The kinds of which REST has brought something, or a connection was lost."""
        self.close()
        inbox, outbox = self._channels = Channel[FeedItem](1), Channel[RoutedItem](1)
        self._router = _Decider(inbox, outbox.outbox, self._listen, self._clock, feed=self._feed)

    def _listen(self, item: RoutedItem) -> None:
        if isinstance(item, RecordBatch):
            self._accepted.append(item)

    def take(self, entry: Entry) -> Step | None:
        """What an entry brings; None for nothing.

        Raises:
            JournalError: It has another form than the service writes.
        """
        try:
            return self._take(entry)
        except OTHER_FORM as exc:
            raise damaged(entry, repr(exc)) from exc

    def take_group(self, entries: Sequence[Entry]) -> Iterator[Step]:
        """What entries of frames bring that came one right after the other, on one connection.

        That is the same as :meth:`take` of each, but decoded and routed together where nothing
        depends on it, which saves a large part of the time.

        Raises:
            JournalError: As :meth:`take`.
        """
        if len(entries) > 1 and (step := self._take_together(entries)) is not None:
            yield step
            return
        for entry in entries:
            if (found := self.take(entry)) is not None:
                yield found

    def _take_together(self, entries: Sequence[Entry]) -> Step | None:
        """One step for all of them; None, with nothing changed, where each has to be taken alone.

        The clock is that of the first, so no record of them may be ahead of it: one that is could
        be refused here, and not by the service.
        """
        first, codec = entries[0], self._codec
        if (
            codec is None
            or self._held
            or first.connection != self._connection
            or codec.encoding != self.as_sent_in
            or ORDERBOOKS in self._feed.kinds
        ):
            return None
        payload = b"".join([entry.payload for entry in entries])
        if any(word in payload for word in _CONTROLS):
            return None
        together = Entry(first.type, first.connection, entries[-1].time_ns, payload)
        self._followed.keep_wire = False
        try:
            frames = together.frames
            received = codec.decode(frames, first.time_ns)
        except (JournalError, *OTHER_FORM):  # the next one who takes them names the entry
            return None
        horizon_ns = first.time_ns + FUTURE_TOLERANCE_NS
        if received.controls or codec.ended is not None or received.unfollowed:
            return None
        for kind, records in received.records.items():
            if kind.is_companion or max([one.ts_event_ns for one in records]) > horizon_ns:
                return None
        self._clock.now_ns = first.time_ns
        as_sent = True
        for kind, records in received.records.items():
            as_sent &= self._accept(kind, records, horizon_ns)
        return self._step(together, received, frames, codec, as_sent=as_sent)

    def _take(self, entry: Entry) -> Step | None:
        self._clock.now_ns = entry.time_ns
        if entry.type is EntryType.FRAMES:
            if entry.connection != self._connection or self._codec is None:
                return None
            return self._take_frames(entry, self._codec)
        event = entry.event
        if event["event"] == "run":
            self._begin_run()
        elif event.get("feed") == self._feed.name:
            self._take_event(event, entry)
            if accepted := self._take_accepted():
                return Step(entry.time_ns, accepted)
        return None

    def _take_accepted(self) -> list[RecordBatch[Any]]:
        accepted, self._accepted = self._accepted, []
        return accepted

    def _take_event(self, event: Mapping[str, Any], entry: Entry) -> None:
        name = event["event"]
        if name in ("login", "open"):
            self._connection = entry.connection
            self._followed = Followed(self._under_every)
            self._codec = Codec(event["encoding"], self._followed, self._feed)
            self._followed.ask(topics_of_event(event))
        elif name == "subscribe":
            self._followed.ask(topics_of_event(event))
        elif name == "unsubscribed":
            self._followed.give_up(topics_of_event(event))
        elif name == "hold":
            self._held.setdefault(_BY_CHANNEL[event["kind"]], [])
        elif name == "disconnected":
            self._by_rest.update(self._feed.kinds)
            lost = frozenset(topics_of_event(event))
            self._route(FeedLost(entry.time_ns, lost, event["reason"]))
        elif name in ("backfill", "late", "first"):
            self._take_rest(event, entry)

    def _take_rest(self, event: Mapping[str, Any], entry: Entry) -> None:
        """Route what REST has brought, with the records that waited for it."""
        kind = _BY_CHANNEL[event["kind"]]
        codec = Codec("json", None, self._feed)
        text = msgspec.json.encode(event["messages"]).decode()
        records = codec.decode([text], entry.time_ns).of(kind)
        self._by_rest.add(kind)
        item: FeedItem
        if event["event"] == "first":
            item = FirstRecords(kind, records, event["asked_ns"])
        elif event["event"] == "late":
            unknown = frozenset(event["unknown"])
            item = LateRecords(kind, records, event["from_ns"], event["to_ns"], unknown)
        else:
            live = self._held.pop(kind, [])
            complete = frozenset(event["complete"])
            item = Backfill(kind, records, live, event["until_ns"], complete)
        self._route(item)
        if isinstance(item, Backfill):
            for batch in self._companions.pop(kind, []):
                self._route(batch)

    def _take_frames(self, entry: Entry, codec: Codec) -> Step | None:
        frames = entry.frames
        # A book is made of its changes when it is routed, so its bytes must be there before.
        has_books = ORDERBOOKS in self._feed.kinds
        self._followed.keep_wire = has_books or codec.encoding != self.as_sent_in
        received = codec.decode(frames, entry.time_ns)
        control = bool(received.controls) or codec.ended is not None
        as_sent = not (control or received.unfollowed)
        for kind, records in received.records.items():
            leading = self._leading(kind) if self._held else kind
            if leading in self._held:
                as_sent = False
                if kind is leading:
                    self._held[kind] += records
                else:
                    batch = RecordBatch(kind, records)
                    self._companions.setdefault(leading, []).append(batch)
                continue
            as_sent &= self._accept(kind, records, entry.time_ns + FUTURE_TOLERANCE_NS)
        return self._step(entry, received, frames, codec, as_sent=as_sent)

    def _accept(self, kind: Kind[Any], records: Sequence[Any], horizon_ns: int) -> bool:
        """Route records; return whether all may be sent, since a service refuses the same ones."""
        before = len(self._accepted)
        self._route(RecordBatch(kind, records))
        if len(records) <= sum(len(batch.records) for batch in self._accepted[before:]):
            return True
        return kind not in self._by_rest and all(
            record.ts_event_ns <= horizon_ns for record in records
        )

    def _step(
        self,
        entry: Entry,
        received: Received,
        frames: Sequence[Frame],
        codec: Codec,
        *,
        as_sent: bool,
    ) -> Step | None:
        """What an entry brings whose records were routed."""
        accepted_batches = self._take_accepted()
        if as_sent:
            batches = [RecordBatch(kind, some) for kind, some in received.records.items()]
            return Step(entry.time_ns, batches, frames, codec.encoding)
        if not self._followed.keep_wire:
            self._add_wire(received, codec, entry)
        codec.ended = None
        if received.controls:
            self._followed.answered()
        return Step(entry.time_ns, accepted_batches) if accepted_batches else None

    def _add_wire(self, received: Received, codec: Codec, entry: Entry) -> None:
        """Give the records of an entry their bytes, by decoding it once more."""
        self._followed.keep_wire = True
        again = codec.decode(entry.frames, entry.time_ns)
        for kind, records in received.records.items():
            for record, other in zip(records, again.of(kind), strict=False):
                # An acknowledgement among them may have changed what is followed.
                if (record.symbol, record.ts_event_ns) == (other.symbol, other.ts_event_ns):
                    record.wire = other.wire

    def _leading(self, kind: Kind[Any]) -> Kind[Any]:
        """The kind with whose topics a companion comes; any other kind itself."""
        if not kind.is_companion:
            return kind
        return next(
            each
            for each in self._feed.kinds
            if not each.is_companion and not set(each.topics).isdisjoint(kind.topics)
        )

    def _route(self, item: FeedItem) -> None:
        self._router.route_now(item)


def topics_of_event(event: Mapping[str, Any]) -> set[Topic]:
    """The topics that an event names; a login has none yet."""
    named = event.get("topics", {}).items()
    return {Topic(channel, symbol) for channel, symbols in named for symbol in symbols}


def recorded_topics(entries: Iterable[Entry]) -> dict[str, set[Topic]]:
    """The topics that were subscribed at any time, by feed.

    Args:
        entries: Events; frames are left out.

    Raises:
        JournalError: An event has another form than the service writes.
    """
    found: dict[str, set[Topic]] = {}
    for entry in entries:
        if entry.type is not EntryType.EVENT:
            continue
        event = entry.event
        if event["event"] in ("subscribe", "open"):
            try:
                found.setdefault(event["feed"], set()).update(topics_of_event(event))
            except OTHER_FORM as exc:
                raise damaged(entry, repr(exc)) from exc
    return found
