"""Redis commands as bytes, packed once a batch.

A client library spends about 9 µs on packing one ``SET`` and one ``PUBLISH``; filling in
templates takes well under 1 µs, and there are two commands for every quote.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

import attrs
import hiredis

from mdservice.model.kinds import KINDS, QUOTES, Kind, Stream
from mdservice.publish.store import Events, Refusable, WriteBatch
from mdservice.redis_io.names import RedisNames, encode_marker

__all__ = ["NUMBER_TTL_S", "BatchPacker", "PackedBatch", "pack", "publish_template"]

NUMBER_TTL_S = 86_400
"""How many seconds Redis keeps the number of a writer's last batch."""


def pack(*words: bytes) -> bytes:
    """One command, as an array of its words."""
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # of any length
    return packed


def _words(*words: bytes) -> bytes:
    """Some words of a command, to be embedded in a template: ``%`` is escaped."""
    packed = b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
    return packed.replace(b"%", b"%%")


_WORD = b"$%d\r\n%b\r\n"
_MULTI = pack(b"MULTI")
_EXEC = pack(b"EXEC")


def publish_template(command: bytes, channel: bytes) -> bytes:
    """A message on a channel, to be filled with the length of its payload and the payload."""
    return b"*3\r\n" + _words(command, channel) + _WORD


@attrs.frozen
class PackedBatch:
    """A batch ready to be sent.

    Attributes:
        data: All its commands, ``MULTI`` and ``EXEC`` included.
        queued: How many commands stand between these two.
    """

    data: bytes
    queued: int


class BatchPacker:
    """Turns batches into one transaction each.

    Args:
        price_ttl_s: Seconds until a key expires, for kinds that set no time of their own.
        event_log: The stream to which the events of logged kinds are appended, or None.
        event_log_maxlen: About how many entries the stream keeps.
        instance: The service instance whose batch number is stored.
        prefix: The prefix of every name.
        names: The names, in place of the prefix.
    """

    def __init__(
        self,
        *,
        price_ttl_s: int,
        event_log: str | None,
        event_log_maxlen: int,
        instance: str,
        prefix: str = "",
        names: RedisNames | None = None,
    ) -> None:
        self._names = names = names or RedisNames(prefix)
        self._instance = instance
        self.marks_db: int | None = None
        """The database to name at the head of each batch; None for no such message."""
        self.unmarked: frozenset[Kind[Any]] = frozenset()
        """The kinds whose batches have no such message."""
        self.refused: Mapping[Refusable, str] = {}
        """What the server does not let this user write, each with the missing rights.
        What a batch has of them is left out."""
        self.marks_all = False
        """Whether the next batch names the owner for each kind that ever had events."""
        self._numbers: dict[Kind[Any], int] = {}
        """How many batches had events of a kind."""
        self._counted = 0
        """The last batch that is counted: one without an answer is packed again."""
        self._price_ttl_s = price_ttl_s
        self._set: dict[Kind[Any], tuple[bytes, bytes]] = {}
        """How a key is written, and the part before the symbol."""
        self._publish: dict[str, bytes] = {}
        """By channel; there are only a few."""
        self._entry: dict[Kind[Any], bytes] = {}
        """How an entry of a kind's own stream is appended."""
        self._xadd: bytes | None = None
        self._log = b""
        if event_log is not None:
            self._log = names.event_log(event_log)
            limit = (b"MAXLEN", b"~", b"%d" % event_log_maxlen)
            head = (b"XADD", self._log, *limit, b"*")
            self._xadd = b"*10\r\n" + _words(*head, b"symbol") + _WORD + _words(b"data") + _WORD
        self._number_key = names.writer_key(instance)

    def number(self, value: int, *condition: bytes) -> bytes:
        """The command that stores a batch number; ``b"NX"`` as condition keeps another one."""
        words = (b"SET", self._number_key, b"%d" % value, b"EX", b"%d" % NUMBER_TTL_S)
        return pack(*words, *condition)

    def ttl_s(self, kind: Kind[Any]) -> int:
        """After how many seconds a key of this kind expires."""
        return kind.ttl_s or self._price_ttl_s

    def _old_values(self, batch: WriteBatch) -> Iterator[tuple[bytes, bytes]]:
        """The keys of old values that have not expired, each with its command."""
        for kind, ages_s in batch.ages_s.items():
            if kind in self.refused:
                continue
            prefix = self._names.key_prefix(kind)
            for symbol, age_s in ages_s.items():
                left_s = self.ttl_s(kind) - age_s
                if left_s > 0:
                    payload = batch.latest[kind][symbol]
                    key = prefix + symbol.encode()
                    yield key, pack(b"SET", key, payload, b"EX", b"%d" % left_s)

    def marker(self, kind: Kind[Any], db: int, events: int, *, restored: bool = False) -> bytes:
        """The command that announces the owner of the next events of a kind to readers."""
        channel, number = self._names.channel(kind.marker), self._numbers.get(kind, 0)
        message = encode_marker(self._instance, db, events, number, restored=restored)
        return pack(b"PUBLISH", channel, message)

    def idle_markers(self) -> list[bytes]:
        """The commands that show readers how many batches there were, while there is no new one."""
        if self.marks_db is None:
            return []
        kinds = [kind for kind in self._numbers if kind not in self.unmarked]
        return [self.marker(kind, self.marks_db, 0) for kind in kinds]

    def _markers(self, batch: WriteBatch, db: int) -> Iterator[bytes]:
        counts: dict[Kind[Any], int] = {QUOTES: 0}  # in front of feed states too
        if self.marks_all or batch.restored:
            counts.update(dict.fromkeys(KINDS if batch.restored else self._numbers, 0))
            self.marks_all = False
        for events in batch.events:
            if events.kind is not None and events.kind not in self.refused:
                counts[events.kind] = counts.get(events.kind, 0) + len(events.payloads)
        if batch.number > self._counted:
            self._counted = batch.number
            for kind, count in counts.items():
                if count:
                    self._numbers[kind] = self._numbers.get(kind, 0) + 1
        for kind, count in counts.items():
            if kind not in self.unmarked:
                yield self.marker(kind, db, count, restored=batch.restored)

    def _set_of(self, kind: Kind[Any]) -> tuple[bytes, bytes]:
        ttl = b"%d" % self.ttl_s(kind)
        template = b"*5\r\n" + _words(b"SET") + _WORD + _WORD + _words(b"EX", ttl)
        self._set[kind] = template, self._names.key_prefix(kind)
        return self._set[kind]

    def _entry_of(self, kind: Kind[Any], stream: Stream) -> bytes:
        head = (b"XADD", self._names.stream(stream), b"MAXLEN", b"~", b"%d" % stream.maxlen, b"*")
        template = b"*10\r\n" + _words(*head, b"id") + _WORD + _words(b"data") + _WORD
        self._entry[kind] = template
        return template

    def _publish_on(self, channel: str) -> bytes:
        template = publish_template(b"PUBLISH", self._names.channel(channel))
        self._publish[channel] = template
        return template

    def _entries(self, events: Events) -> tuple[bytes, Sequence[str]] | None:
        """How to append these events to the event log or the kind's stream, and their names."""
        kind = events.kind
        if kind is not None and kind.stream is not None:
            return self._entry.get(kind) or self._entry_of(kind, kind.stream), events.entry_ids
        if kind is not None and kind.logged and self._xadd is not None:
            return self._xadd, events.symbols
        return None

    def _messages(self, events: Events) -> list[bytes]:
        """The messages in order; with each its entry in the event log or the kind's stream."""
        publish = self._publish.get(events.channel) or self._publish_on(events.channel)
        payloads, entries = events.payloads, self._entries(events)
        if entries is None:
            return [publish % (len(payload), payload) for payload in payloads]
        entry, names = entries
        parts = []
        for name, payload in zip(map(str.encode, names), payloads, strict=True):
            parts.append(publish % (len(payload), payload))
            parts.append(entry % (len(name), name, len(payload), payload))
        return parts

    def batch(self, batch: WriteBatch) -> PackedBatch:
        """Pack a batch: its owner, every key, every message in order, then the batch number."""
        parts = [_MULTI]
        add = parts.append
        if self.marks_db is not None and (batch.events or batch.restored):
            parts += self._markers(batch, self.marks_db)
        parts += map(itemgetter(1), self._old_values(batch)) if batch.ages_s else ()
        refused = self.refused
        for kind, latest in batch.latest.items():
            if kind in refused:
                continue
            set_, prefix = self._set.get(kind) or self._set_of(kind)
            old = batch.ages_s.get(kind, ())
            for symbol, payload in latest.items():
                if symbol not in old:
                    key = prefix + symbol.encode()
                    add(set_ % (len(key), key, len(payload), payload))
        for kind, symbols in batch.deleted.items():
            if kind in refused:
                continue
            prefix = self._names.key_prefix(kind)
            parts += [pack(b"DEL", prefix + symbol.encode()) for symbol in symbols]
        for events in batch.events:
            if events.refusable not in refused:
                parts += self._messages(events)
        add(self.number(batch.number))
        queued = len(parts) - 1
        add(_EXEC)
        return PackedBatch(b"".join(parts), queued)
