"""The files of a journal: only a ``JournalError`` may come, from every reader."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mdservice.errors import JournalError
from mdservice.journal.decisions import Decisions
from mdservice.journal.export import CHANNELS, export
from mdservice.journal.format import (
    MAGIC,
    Chunk,
    EntryType,
    encode_entry,
    encode_event,
    encode_frames,
    encode_index,
)
from mdservice.journal.replay import open_journal
from mdservice.journal.segments import cut_tail, extent, pack, read
from mdservice.model.feeds import FEEDS
from mdservice.model.kinds import QUOTES, TRADES
from mdservice.relay.messages import messages_of, payload
from tests.records import make_record

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["run", "seeds"]

_FOLDER: Final = tempfile.TemporaryDirectory(prefix="fuzz-journal-")
_RAW, _ENTRIES, _PACKED, _INDEX = range(4)
_NOW_NS: Final = 1_764_460_800_000_000_000
_MARK: Final = b"\x00\xff\x00"
"""Separates entries."""


def run(data: bytes) -> None:
    """The first byte says what the rest is: a file, entries with right sums, or a packed file."""
    if not data:
        return
    form, content = data[0] % 4, data[1:]
    packed = form in (_PACKED, _INDEX)
    folder = Path(_FOLDER.name)
    for old in folder.iterdir():
        old.unlink()
    path = folder / f"00000001-2026-11-27.journal{'.zst' if packed else ''}"
    if form == _ENTRIES:
        content = MAGIC + _entries(content)
    elif form == _INDEX:
        content = _with_index(content)
    path.write_bytes(content)
    try:
        extent(path)
        for entry in read([path]):
            assert entry.type in EntryType
        list(read([path], _NOW_NS, _NOW_NS + 1, frames=False))
        journal = open_journal([folder])
        for feed in FEEDS:
            decisions = Decisions(feed)
            try:
                for entry in read(journal.segments):
                    decisions.take(entry)
            finally:
                decisions.close()
        export(journal, folder / "out.parquet", channels=CHANNELS)
    except JournalError:
        pass
    if not packed:
        try:
            cut_tail(path)
            list(pack(path))
        except JournalError:
            pass


def _entries(content: bytes) -> bytes:
    """Entries with right checksums: of each part the first byte is the type."""
    return b"".join(
        encode_entry(EntryType(1 + part[0] % 2), 1, _NOW_NS, part[1:])
        for part in content.split(_MARK)
        if part
    )


def _with_index(content: bytes) -> bytes:
    """One chunk of entries, and the index behind it, whose JSON is the first part."""
    index, _, entries = content.partition(_MARK)
    data = zstd.compress(MAGIC + _entries(entries))
    tail = encode_index([Chunk(0, len(data), _NOW_NS, _NOW_NS, True, 1, len(entries))])
    if index:
        length = len(index).to_bytes(4, "little")
        frame = index + length + b"MDJX"
        tail = (0x184D2A5E).to_bytes(4, "little") + len(frame).to_bytes(4, "little") + frame
    return data + tail


def seeds() -> Iterator[bytes]:
    """A run with a login, frames, a repair and its end, raw and packed."""
    topics = {"quotes": ["AAPL"], "trades": ["AAPL"]}
    frame = payload(messages_of(QUOTES, [make_record(QUOTES, at_ns=_NOW_NS)]), "json").decode()
    rest = payload(messages_of(TRADES, [make_record(TRADES, at_ns=_NOW_NS)]), "json")
    named = {"feed": "stocks", "kind": "trades"}
    parts = [
        b"\x01" + encode_event("run"),
        b"\x01" + encode_event("open", feed="stocks", encoding="json", topics=topics),
        b"\x01" + encode_event("hold", **named),
        b"\x00" + encode_frames([frame, b"\x80"]),
        b'\x01{"event":"backfill","feed":"stocks","kind":"trades","complete":["AAPL"],'
        b'"until_ns":1764460800000000000,"messages":%b}' % rest,
        b'\x01{"event":"first","feed":"stocks","kind":"trades","asked_ns":{"AAPL":1},"messages":%b}'
        % rest,
        b'\x01{"event":"late","feed":"stocks","kind":"trades","from_ns":1,"to_ns":2,'
        b'"unknown":[],"messages":%b}' % rest,
        b"\x01" + encode_event("unsubscribed", feed="stocks", topics=topics),
        b"\x01" + encode_event("disconnected", feed="stocks", topics=topics, reason="lost"),
    ]
    content = _MARK.join(parts)
    raw = MAGIC + _entries(content)
    yield b"\x00" + raw
    yield b"\x00" + raw[:-3]
    yield b"\x01" + content
    for part in parts:
        yield b"\x01" + _MARK.join([*parts[:2], part])
    yield b"\x02" + _with_index(_MARK + content)
    for index in (b"[[0,10,1,2,true,1,10]]", b"[[-1,-1,1,2,true,1,1]]", b"{}"):
        yield b"\x03" + index + _MARK + content
