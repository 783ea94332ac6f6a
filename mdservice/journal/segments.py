"""The segments of a journal's folder: listing, cutting a torn tail, compressing, reading."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import attrs
import msgspec

from mdservice.errors import JournalError
from mdservice.journal.format import (
    CHUNK_BYTES,
    COMPRESSED,
    MAGIC,
    Chunk,
    Entry,
    EntryType,
    SegmentName,
    Span,
    encode_index,
    index_place,
    read_index,
    spans,
    split,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["Extent", "cut_tail", "extent", "pack", "read", "segments_of"]

_LEVEL: Final = 3
_READ_BYTES: Final = 1 << 20
_TAIL_BYTES: Final = 64
_MOST_CHUNK_BYTES: Final = 256 << 20
"""Of one chunk, decompressed: a chunk has about a megabyte, and one entry more at most."""
_UNREADABLE: Final = (zstd.ZstdError, msgspec.DecodeError, EOFError, UnicodeError, RecursionError)


def segments_of(folder: Path) -> list[Path]:
    """The segments of a folder, the oldest first; of two forms of one, the compressed.

    Raises:
        OSError: The folder cannot be read.
    """
    found: dict[int, tuple[SegmentName, Path]] = {}
    for path in folder.iterdir():
        name = SegmentName.parse(path.name)
        if name is not None and (name.number not in found or name.compressed):
            found[name.number] = (name, path)
    return [found[number][1] for number in sorted(found)]


def cut_tail(path: Path) -> int:
    """Cut an incomplete last entry off a segment; return how many bytes that were.

    Raises:
        JournalError: It is no segment.
        OSError
    """
    size, end = path.stat().st_size, len(MAGIC)
    for part, _ in _parts_of_raw(path, check=True):
        end += len(part)
    if size < len(MAGIC):  # it was torn in its first bytes
        path.write_bytes(MAGIC)
        return size
    if size > end:
        os.truncate(path, end)
    return size - end


def pack(path: Path) -> Iterator[Chunk]:
    """Compress a closed segment, a chunk at each step; then replace it.

    Raises:
        OSError: The segment stays as it is.
    """
    packed = path.with_name(path.name + COMPRESSED)
    temporary = packed.with_name(packed.name + ".tmp")
    chunks: list[Chunk] = []
    place = 0
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        with open(os.open(temporary, flags, 0o600), "wb") as out:  # noqa: PTH123 - for the mode
            for data, chunk in _parts_of_raw(path):
                compressed = zstd.compress(data if chunks else MAGIC + data, level=_LEVEL)
                out.write(compressed)
                chunk.place, chunk.size = place, len(compressed)
                place += chunk.size
                chunks.append(chunk)
                yield chunk
            out.write(encode_index(chunks))
            out.flush()
            os.fsync(out.fileno())
        temporary.rename(packed)
    finally:
        temporary.unlink(missing_ok=True)
    path.unlink()


def _parts_of_raw(path: Path, *, check: bool = False) -> Iterator[tuple[bytes, Chunk]]:
    """The whole entries of a raw segment, in parts of about a megabyte."""
    with path.open("rb") as file:
        head = file.read(len(MAGIC))
        if head != MAGIC:
            if MAGIC.startswith(head):
                return
            raise JournalError(f"{path} is no segment of a journal")
        data = b""
        while more := file.read(_READ_BYTES):
            data += more
            if len(data) >= CHUNK_BYTES and (found := list(spans(data, check=check))):
                yield data[: found[-1].end], _chunk_of(found)
                data = data[found[-1].end :]
        if found := list(spans(data, check=check)):
            yield data[: found[-1].end], _chunk_of(found)


def _chunk_of(found: Sequence[Span]) -> Chunk:
    times = [span.time_ns for span in found]
    events = any(span.type == EntryType.EVENT for span in found)
    return Chunk(0, 0, min(times), max(times), events, len(found), found[-1].end)


@attrs.frozen
class Extent:
    """What a segment covers.

    Attributes:
        first_ns: The smallest time of its entries, UTC nanoseconds; None without entries.
        last_ns: The largest.
        raw_bytes: The size of its entries.
    """

    first_ns: int | None
    last_ns: int | None
    raw_bytes: int


def extent(path: Path) -> Extent:
    """What a segment covers: of a compressed one by its index.

    Raises:
        JournalError: It cannot be read.
    """
    chunks = [chunk for chunk, _ in _chunks(path)]
    if not chunks:
        return Extent(None, None, 0)
    return Extent(
        min(chunk.first_ns for chunk in chunks),
        max(chunk.last_ns for chunk in chunks),
        sum(chunk.raw_size for chunk in chunks),
    )


def read(
    paths: Iterable[Path],
    from_ns: int | None = None,
    to_ns: int | None = None,
    *,
    frames: bool = True,
) -> Iterator[Entry]:
    """The entries of segments, in order.

    Args:
        paths: The segments.
        from_ns: Leave out frames that came earlier, UTC nanoseconds. Events before it are
            yielded, since they say what was subscribed.
        to_ns: Leave out what came at this time or later.
        frames: Whether to yield frames at all, and not only events.

    Raises:
        JournalError: A segment cannot be read.
    """
    for path in paths:
        for chunk, content in _chunks(path):
            early = not frames or (from_ns is not None and chunk.last_ns < from_ns)
            if (early and not chunk.events) or (to_ns is not None and chunk.first_ns >= to_ns):
                continue
            for entry in split(content()):
                if to_ns is not None and entry.time_ns >= to_ns:
                    continue
                if entry.type is EntryType.FRAMES and (
                    not frames or (from_ns is not None and entry.time_ns < from_ns)
                ):
                    continue
                yield entry


_Content = Callable[[], bytes]


def _chunks(path: Path) -> Iterator[tuple[Chunk, _Content]]:
    """The chunks of a segment, each with what decompresses its entries."""
    try:
        if not path.name.endswith(COMPRESSED):
            for data, chunk in _parts_of_raw(path, check=True):
                yield chunk, lambda data=data: data  # type: ignore[misc]
            return
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _TAIL_BYTES))
            place = index_place(file.read(), size)
            if place is None:
                raise JournalError(f"{path} has no index: it is damaged")
            file.seek(place)
            for chunk in read_index(file.read()):
                if not _fits(chunk, place):
                    raise JournalError(f"{path} is damaged: its index names what it does not have")
                file.seek(chunk.place)
                data = file.read(chunk.size)
                yield chunk, lambda data=data, chunk=chunk: _decompressed(path, chunk, data)  # type: ignore[misc]
    except FileNotFoundError as exc:
        raise JournalError(f"{path} was compressed or deleted meanwhile: try again") from exc
    except OSError as exc:
        raise JournalError(f"{path} cannot be read: {exc.strerror}") from exc
    except _UNREADABLE as exc:
        raise JournalError(f"{path} is damaged: {exc}") from exc


def _fits(chunk: Chunk, end: int) -> bool:
    """Whether a chunk is in the file, before its index, and not larger than any is."""
    inside = 0 <= chunk.place <= end and 0 <= chunk.size <= end - chunk.place
    return inside and 0 <= chunk.raw_size <= _MOST_CHUNK_BYTES


def _decompressed(path: Path, chunk: Chunk, data: bytes) -> bytes:
    """The entries of a chunk, which has as many bytes as the index says.

    Raises:
        JournalError: It has not.
    """
    decompressor = zstd.ZstdDecompressor()
    try:
        # No more than expected, since a few bytes can be the compressed form of very many.
        found = decompressor.decompress(data, chunk.raw_size + len(MAGIC) + 1)
    except _UNREADABLE as exc:
        raise JournalError(f"{path} is damaged: {exc}") from exc
    found = found.removeprefix(MAGIC)
    if len(found) != chunk.raw_size:
        raise JournalError(f"{path} is damaged: a chunk has not the size that the index names")
    return found
