"""What a Redis stream says: ids, entries, what is left of it. Pure but for :func:`look`."""

from __future__ import annotations

import re
from typing import Any, Final

import attrs

from mdservice.errors import ConfigurationError, StoreRefused
from mdservice.prices.links import refuse_errors
from mdservice.sinks.redis_link import RedisLink
from mdservice.sinks.redis_replies import is_error
from mdservice.sinks.resp import pack

__all__ = ["START", "Chunk", "EntryId", "look", "parse_entry_id", "read_chunk"]

_ID: Final = re.compile(r"(\d{1,20})(?:-(\d{1,20}))?", re.ASCII)
_ENTRIES_PER_READ: Final = 500
_BLOCK_MS: Final = 1_000
"""Below the time after which a server counts as hung."""


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
        ConfigurationError: It is no id.
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
    """What one read of the log brought.

    Attributes:
        entries: Id and payload (None where an entry has none) of each new entry, in order.
        first: The oldest entry that the log has, or None.
    """

    entries: list[tuple[EntryId, bytes | None]]
    first: EntryId | None

    def cut_after(self, cursor: EntryId) -> bool:
        """Whether entries after ``cursor`` may be gone: the log no longer reaches back so far."""
        return cursor != START and self.first is not None and self.first > cursor


def look(link: RedisLink, address: str, log: bytes) -> EntryId | None:
    """The id of the last entry that the log ever had, or None where there is no log. Blocks.

    Raises:
        StoreUnavailable
        StoreRefused: It is no stream, or this user may not ask.
    """
    (reply,) = link.call(pack(b"XINFO", b"STREAM", log))
    if is_error(reply) and "no such key" in str(reply):
        return None
    _refuse(address, log, [reply])
    facts = dict(zip(reply[::2], reply[1::2], strict=False))
    return _entry_id(facts[b"last-generated-id"])


def read_chunk(link: RedisLink, address: str, log: bytes, after: EntryId) -> Chunk:
    """The next entries; waits a second for one. Blocks.

    The oldest entry is asked for behind the reading: what is cut goes from the front, so where
    the log still reaches back to ``after`` now, nothing was missing before.

    Raises:
        StoreUnavailable, StoreRefused
    """
    count, block = b"%d" % _ENTRIES_PER_READ, b"%d" % _BLOCK_MS
    replies = link.call(
        pack(b"XREAD", b"COUNT", count, b"BLOCK", block, b"STREAMS", log, after.encode()),
        pack(b"XRANGE", log, b"-", b"+", b"COUNT", b"1"),
    )
    _refuse(address, log, replies)
    streams, oldest = replies
    entries = streams[0][1] if streams else []
    return Chunk(
        [(_entry_id(raw), _payload(fields)) for raw, fields in entries],
        _entry_id(oldest[0][0]) if oldest else None,
    )


def _payload(fields: Any) -> bytes | None:
    found = dict(zip(fields[::2], fields[1::2], strict=False)) if fields else {}
    payload: bytes | None = found.get(b"data")
    return payload


def _refuse(address: str, log: bytes, replies: list[Any]) -> None:
    for reply in replies:
        if is_error(reply) and str(reply).startswith("WRONGTYPE"):
            name = log.decode(errors="replace")
            raise StoreRefused(
                f"The key {name} at {address} is not a stream: is it the service's "
                "MDSERVICE_EVENT_LOG?"
            )
    refuse_errors(address, replies)
