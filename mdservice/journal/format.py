"""The files of a journal: entries, segments and their index. Pure.

A segment begins with :data:`MAGIC`; entries follow. The writer appends each entry whole, so a crash
leaves at most one incomplete entry, at the end. A full segment is compressed::

    00000042-2026-11-27.journal      MAGIC entry entry entry …
    00000042-2026-11-27.journal.zst  chunk chunk chunk … index

    entry   size:u32 crc32:u32 type:u8 connection:u32 time_ns:i64 payload
    chunk   a zstd frame with whole entries, about a megabyte
    index   a skippable zstd frame: JSON with place and times of each chunk, its size:u32, "MDJX"

``zstd -d`` also reads a compressed segment. All numbers are little-endian.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from enum import IntEnum
from itertools import chain
from typing import Any, Final, NamedTuple
from zlib import crc32

import attrs
import msgspec

from mdservice.errors import JournalError

__all__ = [
    "CHUNK_BYTES",
    "COMPRESSED",
    "MAGIC",
    "OTHER_FORM",
    "Chunk",
    "Entry",
    "EntryType",
    "SegmentName",
    "Span",
    "damaged",
    "day_of",
    "encode_entry",
    "encode_event",
    "encode_frames",
    "encode_head",
    "encode_index",
    "index_place",
    "read_index",
    "spans",
    "split",
]

MAGIC: Final = b"mdservice journal 1\n"
COMPRESSED: Final = ".zst"
CHUNK_BYTES: Final = 1 << 20
"""Entries of about so many bytes are compressed together; a reader can begin at each chunk."""
_SECOND_NS: Final = 1_000_000_000

_HEAD: Final = struct.Struct("<IIBIq")
_HEAD_BYTES: Final = _HEAD.size
_CHECKED: Final = struct.Struct("<BIq")
"""The part of the head that the checksum covers, with the payload."""
_SUM_END: Final = 8
_LENGTH: Final = struct.Struct("<I")
_SKIPPABLE: Final = struct.Struct("<II")
_SKIPPABLE_MAGIC: Final = 0x184D2A5E
_INDEX_END: Final = struct.Struct("<I4s")
_INDEX_MAGIC: Final = b"MDJX"
_NAME: Final = re.compile(r"(\d{8})-(\d{4}-\d\d-\d\d)\.journal(\.zst)?", re.ASCII)


class EntryType(IntEnum):
    """What an entry has."""

    FRAMES = 1
    """The websocket messages of one read of a connection."""
    EVENT = 2
    """A JSON object: a connection's change, a request, or what REST has brought."""


_TYPES: Final = {int(type_): type_ for type_ in EntryType}


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One entry.

    Attributes:
        type: What the payload is.
        connection: Which connection, counted from 1 in each run of the service; 0 for none.
        time_ns: When it came, UTC nanoseconds.
        payload: See :attr:`frames` and :attr:`event`.
    """

    type: EntryType
    connection: int
    time_ns: int
    payload: bytes

    @property
    def frames(self) -> Sequence[bytes | str]:
        """The messages of an entry of frames, text for JSON.

        Raises:
            JournalError: The payload has another form.
        """
        found: list[bytes | str] = []
        data, place = self.payload, 0
        try:
            while place < len(data):
                (mark,) = _LENGTH.unpack_from(data, place)
                start = place + _LENGTH.size
                place = start + (mark >> 1)
                part = data[start:place]
                found.append(part.decode("utf-8", "surrogatepass") if mark & 1 else part)
        except (struct.error, UnicodeDecodeError) as exc:
            raise damaged(self, exc) from exc
        return found

    @property
    def event(self) -> dict[str, Any]:
        """The object of an entry of an event; ``event`` names it.

        Raises:
            JournalError: The payload has another form.
        """
        try:
            found: dict[str, Any] = msgspec.json.decode(self.payload, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise damaged(self, exc) from exc
        if not isinstance(found.get("event"), str):
            raise damaged(self, "an event without a name")
        return found


OTHER_FORM: Final = (AttributeError, LookupError, TypeError, ValueError)
"""How reading an event fails that the service does not write."""


def damaged(entry: Entry, reason: object) -> JournalError:
    """The error for an entry that the service does not write so, although its sum is right."""
    moment = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=entry.time_ns // 1_000)
    return JournalError(f"the journal is damaged: its entry of {moment.isoformat()}: {reason}")


def encode_frames(frames: Sequence[bytes | str]) -> bytes:
    """The payload of an entry of frames."""
    if str not in map(type, frames):
        # The usual case, without a step of the interpreter for each frame.
        lengths = map(_LENGTH.pack, [size << 1 for size in map(len, frames)])
        return b"".join(chain.from_iterable(zip(lengths, frames, strict=True)))  # type: ignore[arg-type]
    parts: list[bytes] = []
    for frame in frames:
        if isinstance(frame, str):
            data = frame.encode("utf-8", "surrogatepass")
            parts += (_LENGTH.pack(len(data) << 1 | 1), data)
        else:
            parts += (_LENGTH.pack(len(frame) << 1), frame)
    return b"".join(parts)


def encode_event(name: str, **fields: Any) -> bytes:
    """The payload of an entry of an event."""
    return msgspec.json.encode({"event": name, **fields})


def encode_entry(type: EntryType, connection: int, time_ns: int, payload: bytes) -> bytes:  # noqa: A002 - as in Entry
    """An entry as it is in the file."""
    return encode_head(type, connection, time_ns, payload) + payload


def encode_head(type: EntryType, connection: int, time_ns: int, payload: bytes) -> bytes:  # noqa: A002 - as in Entry
    """What is before an entry's payload in the file."""
    total = crc32(payload, crc32(_CHECKED.pack(type, connection, time_ns)))
    return _HEAD.pack(len(payload), total, type, connection, time_ns)


class Span(NamedTuple):
    """Where an entry is in the bytes of a segment, and what its head says."""

    start: int
    end: int
    type: int
    connection: int
    time_ns: int


def spans(data: bytes, start: int = 0, *, check: bool = True) -> Iterator[Span]:
    """The whole entries of a part of a segment; it stops at an incomplete or damaged one.

    Args:
        data: Bytes of the segment.
        start: Where an entry begins.
        check: Whether to compare the checksums.
    """
    size, view = len(data), memoryview(data)
    while size - start >= _HEAD_BYTES:
        length, total, kind, connection, time_ns = _HEAD.unpack_from(data, start)
        end = start + _HEAD_BYTES + length
        if end > size or kind not in _TYPES:
            return
        if check and crc32(view[start + _SUM_END : end]) != total:
            return
        yield Span(start, end, kind, connection, time_ns)
        start = end


def split(data: bytes, start: int = 0) -> Iterator[Entry]:
    """The entries of :func:`spans`."""
    for begin, end, kind, connection, time_ns in spans(data, start):
        yield Entry(_TYPES[kind], connection, time_ns, data[begin + _HEAD_BYTES : end])


class Chunk(msgspec.Struct, array_like=True):
    """One chunk of a compressed segment.

    Attributes:
        place: Where it begins in the file.
        size: Its bytes in the file.
        first_ns: The smallest time of its entries, UTC nanoseconds.
        last_ns: The largest.
        events: Whether it has events.
        entries: How many entries it has.
        raw_size: Its bytes uncompressed.
    """

    place: int
    size: int
    first_ns: int
    last_ns: int
    events: bool
    entries: int
    raw_size: int


def encode_index(chunks: Sequence[Chunk]) -> bytes:
    """The index behind the chunks of a compressed segment."""
    data = msgspec.json.encode(chunks)
    data += _INDEX_END.pack(len(data), _INDEX_MAGIC)
    return _SKIPPABLE.pack(_SKIPPABLE_MAGIC, len(data)) + data


def index_place(tail: bytes, size: int) -> int | None:
    """Where the index of a file of this size begins, by its last bytes; None without one."""
    if len(tail) < _INDEX_END.size:
        return None
    length, magic = _INDEX_END.unpack(tail[-_INDEX_END.size :])
    place = size - _INDEX_END.size - length
    return place if magic == _INDEX_MAGIC and place >= 0 else None


def read_index(data: bytes) -> list[Chunk]:
    """The chunks of an index, from :func:`index_place` on.

    Raises:
        msgspec.DecodeError: It is damaged.
    """
    return msgspec.json.decode(data[: -_INDEX_END.size], type=list[Chunk])


def day_of(time_ns: int) -> date:
    """The UTC day of a time."""
    return datetime.fromtimestamp(time_ns // _SECOND_NS, UTC).date()


@attrs.frozen(order=True)
class SegmentName:
    """What a segment's file name says.

    Attributes:
        number: Its place among all segments of the folder.
        day: The UTC day of its entries.
        compressed: Whether the file is compressed.
    """

    number: int
    day: date
    compressed: bool = False

    def __str__(self) -> str:
        return f"{self.number:08d}-{self.day}.journal{COMPRESSED if self.compressed else ''}"

    @classmethod
    def parse(cls, name: str) -> SegmentName | None:
        """The name of a file; None where it is no segment's."""
        found = _NAME.fullmatch(name)
        if found is None:
            return None
        try:
            return cls(int(found[1]), date.fromisoformat(found[2]), found[3] is not None)
        except ValueError:
            return None
