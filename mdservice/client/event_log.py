"""Reads events from the event log, a Redis stream. Conflates nothing, and can resume.

The stream is the buffer: the reader reads on when the program has taken the records that it read.
It reads the keys if the log is incomplete: at the start, and when entries were deleted before they
were read. The content of the keys waits until the log has been read up to its end at that time.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from math import inf
from typing import Any, Final, Generic

import anyio
import attrs

from mdservice.client.connection import (
    OTHER_FORM,
    connected_to,
    payload_of,
    read_keys,
    refuse_cut_off,
    refuse_errors,
    refuse_moved,
)
from mdservice.client.discovery import Location
from mdservice.client.intake import Intake
from mdservice.errors import ConfigurationError, StoreRefused
from mdservice.model.kinds import R, RecordDecoder
from mdservice.observability.logging import get_logger
from mdservice.redis_io.commands import pack
from mdservice.redis_io.connection import RedisConnection
from mdservice.redis_io.replies import is_error, malformed

__all__ = ["START", "Chunk", "EntryId", "EventLogSource", "look", "parse_entry_id", "read_chunk"]


# The ids and entries of a Redis stream. Pure, except for the functions that block.


_ID: Final = re.compile(r"(\d{1,20})(?:-(\d{1,20}))?", re.ASCII)
_ENTRIES_PER_READ: Final = 500
_BLOCK_MS: Final = 1_000
"""Shorter than the time after which a server counts as hung."""


@attrs.frozen(order=True)
class EntryId:
    """A stream entry's id: milliseconds, and a number within these."""

    ms: int
    number: int

    def __str__(self) -> str:
        return f"{self.ms}-{self.number}"

    def encode(self) -> bytes:
        """As Redis writes it."""
        return b"%d-%d" % (self.ms, self.number)


START: Final = EntryId(0, 0)
"""Before every entry."""


def parse_entry_id(text: str) -> EntryId:
    """``1732456284208-0``; without the second part, 0.

    Raises:
        ConfigurationError: It is not an id.
    """
    match = _ID.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ConfigurationError(
            f"after: {str(text)[:40]!r} is not the id of a log's entry, such as 1732456284208-0, "
            "as `position` gives it"
        )
    return EntryId(int(match[1]), int(match[2] or 0))


def _entry_id(raw: bytes) -> EntryId:
    ms, _, number = raw.partition(b"-")
    return EntryId(int(ms), int(number))


@attrs.frozen
class Chunk:
    """The result of one read of the log.

    Attributes:
        entries: Id and payload (None where an entry has none) of each new entry, in order.
        first: The oldest entry that the log has, or None.
    """

    entries: list[tuple[EntryId, bytes | None]]
    first: EntryId | None

    def cut_after(self, cursor: EntryId) -> bool:
        """Whether entries after ``cursor`` may have been deleted."""
        return cursor != START and self.first is not None and self.first > cursor


async def look(connection: RedisConnection, log: bytes) -> EntryId | None:
    """The id of the last entry that the log ever had, or None where there is no log.

    Raises:
        StoreUnavailable
        StoreRefused: It is not a stream, or this user lacks the right.
    """
    (reply,) = await connection.call(pack(b"XINFO", b"STREAM", log))
    if is_error(reply) and "no such key" in str(reply):
        return None
    _refuse(connection.address, log, [reply])
    try:
        facts = dict(zip(reply[::2], reply[1::2], strict=False))
        return _entry_id(facts[b"last-generated-id"])
    except OTHER_FORM as exc:
        raise malformed(connection.address) from exc


async def read_chunk(connection: RedisConnection, log: bytes, after: EntryId) -> Chunk:
    """The next entries; waits a second for one.

    It asks for the oldest entry after the read. Redis deletes entries from the front, so if the log
    still reaches back to ``after`` now, nothing was missing before.

    Raises:
        StoreUnavailable, StoreRefused
    """
    count, block = b"%d" % _ENTRIES_PER_READ, b"%d" % _BLOCK_MS
    replies = await connection.call(
        pack(b"XREAD", b"COUNT", count, b"BLOCK", block, b"STREAMS", log, after.encode()),
        pack(b"XRANGE", log, b"-", b"+", b"COUNT", b"1"),
    )
    _refuse(connection.address, log, replies)
    streams, oldest = replies
    try:
        entries = streams[0][1] if streams else []
        return Chunk(
            [(_entry_id(raw), payload_of(fields)) for raw, fields in entries],
            _entry_id(oldest[0][0]) if oldest else None,
        )
    except OTHER_FORM as exc:
        raise malformed(connection.address) from exc


def _refuse(address: str, log: bytes, replies: list[Any]) -> None:
    for reply in replies:
        if is_error(reply) and str(reply).startswith("WRONGTYPE"):
            name = log.decode(errors="replace")
            raise StoreRefused(
                f"The key {name} at {address} is not a stream: is it the service's "
                "MDSERVICE_EVENT_LOG?"
            )
    refuse_errors(address, replies)


_log = get_logger(__name__)

_WATCH_EVERY_S: Final = 1.0
"""How often sentinels are asked whether the server is still the right one."""
_LOST_AT_MOST_MS: Final = 60_000
"""Ids are the server's time: a log that ends this much before our position is the same log."""


_RESTORED_AFTER_S: Final = 5.0
"""After this time the service has written the values again that a new primary had lost; the keys
are read once more then."""


@attrs.frozen
class _Keys(Generic[R]):
    """Keys, and the end of the log after they were read."""

    records: list[R]
    end: EntryId


@attrs.frozen
class _Entries(Generic[R]):
    records: list[R]
    ids: list[EntryId]
    end: EntryId
    cut: bool


async def _read_entries(
    connection: RedisConnection, log: bytes, after: EntryId, decoder: RecordDecoder[R]
) -> _Entries[R]:
    chunk = await read_chunk(connection, log, after)
    records, ids = [], []
    for entry_id, payload in chunk.entries:
        record = decoder.decode(payload)
        if record is not None:
            records.append(record)
            ids.append(entry_id)
    end = chunk.entries[-1][0] if chunk.entries else after
    return _Entries(records, ids, end, chunk.cut_after(after))


class EventLogSource(Generic[R]):
    """Reads the log, from connection to connection.

    Args:
        intake: Gets the updates, which are of one kind.
        log: The name of the stream.
        after: The id after which to continue; None for the keys first, then new entries.
    """

    def __init__(self, intake: Intake[R], log: str, after: EntryId | None) -> None:
        self._intake = intake
        (self._state,) = intake.states.values()
        self._name = log
        self._log = intake.names.event_log(log)
        self._cursor = after
        if after is not None:
            intake.begun = True
            intake.handover.position = str(after)
        self._has_read = False
        """Whether the cursor is the id of an entry that was read."""
        self._lost_s = inf
        """When it was noticed that the log had lost its end, the event loop's time."""
        self._keys: _Keys[R] | None = None
        # The id up to which entries may be older than the keys.
        self._unordered_to = START

    async def follow(self, location: Location, connected: Callable[[], None]) -> None:
        """See :class:`~mdservice.client.intake.Source`."""
        intake = self._intake
        intake.names = location.names
        self._log = location.names.event_log(self._name)
        async with connected_to(location.address) as connection:
            (role,) = await connection.call(pack(b"ROLE"))
            refuse_cut_off(connection.address, role)
            end = await look(connection, self._log)
            if self._cursor is None:
                await self._begin(connection, end or START)
            elif end is not None:
                self._check_end(end)
                await self._check_last_entry(connection)
            connected()
            watched_s = anyio.current_time()
            while True:
                await intake.handover.emptied()
                if anyio.current_time() - watched_s >= _WATCH_EVERY_S:
                    watched_s = anyio.current_time()
                    await refuse_moved(location.address, connection.server)
                await self._step(connection)

    async def _begin(self, connection: RedisConnection, end: EntryId) -> None:
        """Read the keys first, then events from the end of the log before that."""
        keys = await self._ask_keys(connection)
        newer = self._intake.take_keys(self._state.kind, keys.records)
        self._cursor, self._unordered_to = end, keys.end
        # One that ends among the keys has to begin with them again.
        self._intake.handover.offer_entries(newer, [None] * len(newer), str(end))

    async def _ask_keys(self, connection: RedisConnection) -> _Keys[R]:
        intake = self._intake
        intake.reading_keys(anyio.current_time())
        state = self._state
        records = await read_keys(
            connection, state.kind, intake.symbols, state.key_decoder, intake.names
        )
        if connection.settle_s:  # an entry that comes after its key is not missed
            await anyio.sleep(connection.settle_s)
        return _Keys(records, await look(connection, self._log) or START)

    async def _step(self, connection: RedisConnection) -> None:
        intake = self._intake
        cursor = self._cursor or START
        if anyio.current_time() - self._lost_s >= _RESTORED_AFTER_S:
            self._lost_s = inf
            intake.lost += 1
        if self._keys is None and intake.keys_are_due(anyio.current_time()):
            self._keys = await self._ask_keys(connection)
        if self._keys is not None and cursor >= self._keys.end:
            newer = intake.take_keys(self._state.kind, self._keys.records)
            self._keys = None
            intake.handover.offer_entries(newer, [None] * len(newer), None)
            return
        read = await _read_entries(connection, self._log, cursor, self._state.event_decoder)
        if read.cut:
            self._note("event_log_was_cut", cursor)
        if read.end == cursor:
            (role,) = await connection.call(pack(b"ROLE"))
            refuse_cut_off(connection.address, role)
            end = await look(connection, self._log)
            if end is not None:
                self._check_end(end)
            return
        self._forward(read, in_order=cursor >= self._unordered_to)

    def _forward(self, read: _Entries[R], *, in_order: bool) -> None:
        self._cursor, self._has_read = read.end, True
        newer = self._intake.take_events(self._state.kind, read.records, in_order=in_order)
        # Both are in the same order; known records are skipped.
        ids = {id(record): str(entry) for record, entry in zip(read.records, read.ids, strict=True)}
        places = [ids[id(record)] for record in newer]
        self._intake.handover.offer_entries(newer, places, str(read.end))

    def _check_end(self, end: EntryId) -> None:
        """Handle a log that ends before the last read entry: it lost its end, or is a new log.

        After a crash or a failover, a log lacks its last seconds, and its other entries were read.
        Any other log is new and is read from its start.
        """
        cursor = self._cursor
        if cursor is None or end >= cursor:
            return
        self._keys = None
        if cursor.ms - end.ms <= _LOST_AT_MOST_MS:
            self._note("event_log_lost_its_end", cursor)
            self._cursor = end
            self._lost_s = anyio.current_time()
        else:
            self._note("event_log_begins_anew", cursor)
            self._cursor = self._unordered_to = START

    async def _check_last_entry(self, connection: RedisConnection) -> None:
        """Detect a log that went on without its last entries: a replica that became the primary."""
        cursor = self._cursor
        if cursor is None or not self._has_read:
            return
        id_, count = cursor.encode(), (b"COUNT", b"1")
        replies = await connection.call(
            pack(b"XRANGE", self._log, id_, id_), pack(b"XRANGE", self._log, b"-", id_, *count)
        )
        _refuse(connection.address, self._log, replies)
        found, earlier = replies
        if earlier and not found:
            self._note("event_log_lost_its_end", cursor)
            self._lost_s = anyio.current_time()

    def _note(self, event: str, cursor: EntryId) -> None:
        self._intake.trimmed += 1
        _log.warning(
            event,
            log=self._name,
            position=str(cursor),
            reason="entries may have gone before they were read; the keys are read again",
        )
