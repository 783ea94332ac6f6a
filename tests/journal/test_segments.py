"""The files of a journal: entries, torn tails, compression, the index."""

import sys
import tracemalloc
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.errors import JournalError
from mdservice.journal.format import (
    MAGIC,
    Entry,
    EntryType,
    SegmentName,
    encode_entry,
    encode_event,
    encode_frames,
    encode_index,
    split,
)
from mdservice.journal.segments import cut_tail, extent, pack, read, segments_of
from tests.examples import examples

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

DAY_NS = 1_800_000_000_000_000_000
NAME = "00000001-2027-01-15.journal"

frames = st.lists(st.binary(max_size=40) | st.text(max_size=40), min_size=1, max_size=4)


def entry(number, some_frames):
    payload = encode_frames(some_frames)
    return encode_entry(EntryType.FRAMES, 1, DAY_NS + number, payload)


def written(path, count=5):
    """A small segment; returns where each entry ends."""
    data, ends = bytearray(MAGIC), []
    data += encode_entry(EntryType.EVENT, 0, DAY_NS, encode_event("run"))
    ends.append(len(data))
    for number in range(1, count):
        data += entry(number, [f"[{number}]", b"\x91" * number])
        ends.append(len(data))
    path.write_bytes(data)
    return ends


@examples(100)
@given(st.lists(frames, max_size=5))
def test_frames_come_back_as_they_were(reads):
    data = b"".join(entry(number, each) for number, each in enumerate(reads))
    assert [list(found.frames) for found in split(data)] == reads


def test_text_that_is_no_unicode_comes_back_as_it_was():
    (found,) = split(entry(0, ["\ud83d"]))
    assert list(found.frames) == ["\ud83d"]


def test_a_segment_that_is_cut_at_any_byte_loses_the_incomplete_entry_alone(tmp_path):
    path = tmp_path / NAME
    ends = written(path)
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        complete = sum(end <= size for end in ends)
        assert len(list(read([path]))) == complete, size
        start = ends[complete - 1] if complete else min(size, len(MAGIC)) * (size >= len(MAGIC))
        assert cut_tail(path) == size - start, size
        assert len(list(read([path]))) == complete, size
        assert path.stat().st_size == max(start, len(MAGIC)), size


def test_what_is_written_after_a_cut_tail_is_read_too(tmp_path):
    path = tmp_path / NAME
    written(path)
    path.write_bytes(path.read_bytes()[:-1])
    cut_tail(path)
    with path.open("ab") as file:
        file.write(entry(99, ["later"]))
    assert [found.time_ns - DAY_NS for found in read([path])] == [0, 1, 2, 3, 99]


@pytest.mark.parametrize("place", [20, 30, 60])
def test_a_damaged_entry_is_not_read(tmp_path, place):
    path = tmp_path / NAME
    written(path, 2)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert len(list(read([path]))) < 2


def test_a_compressed_segment_has_the_same_entries(tmp_path):
    path = tmp_path / NAME
    written(path)
    before = list(read([path]))
    list(pack(path))
    assert not path.exists()
    (packed,) = segments_of(tmp_path)
    assert packed.name == f"{NAME}.zst"
    assert packed.stat().st_mode & 0o777 == 0o600
    assert list(read([packed])) == before


def test_any_zstd_tool_reads_a_compressed_segment(tmp_path):
    from mdservice.journal.segments import zstd

    path = tmp_path / NAME
    written(path)
    before = path.read_bytes()
    list(pack(path))
    with zstd.open(segments_of(tmp_path)[0]) as file:
        assert file.read() == before


def test_large_segments_have_chunks_and_are_read_from_a_time_on(tmp_path):
    path = tmp_path / NAME
    with path.open("wb") as file:
        file.write(MAGIC)
        file.write(encode_entry(EntryType.EVENT, 0, DAY_NS, encode_event("run")))
        for number in range(1, 400):
            file.write(entry(number, [b"x" * 10_000]))
    raw = extent(path)
    assert len(list(pack(path))) > 3
    (packed,) = segments_of(tmp_path)
    assert extent(packed) == raw
    assert (raw.first_ns, raw.last_ns) == (DAY_NS, DAY_NS + 399)
    found = list(read([packed], DAY_NS + 200, DAY_NS + 300))
    assert [each.time_ns - DAY_NS for each in found] == [0, *range(200, 300)]
    assert [each.type for each in read([packed], frames=False)] == [EntryType.EVENT]


def test_a_compression_that_is_broken_off_leaves_the_segment(tmp_path):
    path = tmp_path / NAME
    written(path)
    steps = pack(path)
    next(steps)
    steps.close()
    assert [each.name for each in tmp_path.iterdir()] == [NAME]


def test_a_damaged_compressed_segment_is_named(tmp_path):
    path = tmp_path / NAME
    written(path)
    list(pack(path))
    (packed,) = segments_of(tmp_path)
    packed.write_bytes(packed.read_bytes()[:-3])
    with pytest.raises(JournalError, match=packed.name):
        list(read([packed]))


def test_another_file_is_no_segment(tmp_path):
    path = tmp_path / NAME
    path.write_bytes(b"something else entirely")
    with pytest.raises(JournalError, match="no segment"):
        list(read([path]))


def test_segments_are_in_the_order_of_their_numbers(tmp_path):
    for name in ("00000010-2027-01-14.journal", "00000009-2027-01-15.journal.zst", "lock"):
        (tmp_path / name).touch()
    (tmp_path / "00000009-2027-01-15.journal").touch()
    found = [each.name for each in segments_of(tmp_path)]
    assert found == ["00000009-2027-01-15.journal.zst", "00000010-2027-01-14.journal"]


@pytest.mark.parametrize("name", ["x", "00000001-2027-13-01.journal", "1-2027-01-01.journal"])
def test_other_names_are_no_segments(name):
    assert SegmentName.parse(name) is None


def test_a_name_says_number_and_day():
    name = SegmentName(7, date(2027, 1, 15), compressed=True)
    assert SegmentName.parse(str(name)) == name


def compressed(folder, content, index):
    """A compressed segment with one chunk, and this as the JSON of its index."""
    chunk = zstd.compress(MAGIC + content)
    behind = index(len(chunk)) if callable(index) else index
    tail = encode_index([])
    end = behind + len(behind).to_bytes(4, "little") + tail[-4:]
    path = folder / (NAME + ".zst")
    path.write_bytes(chunk + tail[:4] + len(end).to_bytes(4, "little") + end)
    return path


@pytest.mark.parametrize(
    "index",
    [
        b"{}",
        b"[1]",
        b"[" * 100_000,
        b'["\xff"]',
        b"[[-1,10,0,1,true,1,10]]",
        b"[[0,-1,0,1,true,1,10]]",
        b"[[0,99999999999999999999,0,1,true,1,10]]",
        b"[[0,10,0,1,true,1,10]]",
        lambda size: b"[[0,%d,0,1,true,1,5]]" % size,
        lambda size: b"[[0,%d,0,1,true,1,99999]]" % size,
        lambda size: b"[[0,%d,0,1,true,1,99999999999]]" % size,
    ],
)
def test_a_damaged_index_is_a_reason(tmp_path, index):
    path = compressed(tmp_path, entry(1, ["[]"]), index)
    with pytest.raises(JournalError):
        extent(path)
        list(read([path]))


def test_a_chunk_is_no_larger_than_its_index_says(tmp_path):
    bomb = bytes(200_000_000)
    path = compressed(tmp_path, bomb, lambda size: b"[[0,%d,0,1,true,1,1000]]" % size)
    assert path.stat().st_size < 100_000
    del bomb
    tracemalloc.start()
    with pytest.raises(JournalError):
        list(read([path]))
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    "payload",
    [b"x", b"\xff\xff\xff", b"\x03\0\0\0\xff", b"[]", b"{}", b'{"event":7}', b"[" * 100_000],
)
def test_an_entry_of_another_form_is_a_reason(payload):
    found = Entry(EntryType.FRAMES, 1, DAY_NS, payload)
    with pytest.raises(JournalError):
        _ = found.event
    if not payload.startswith((b"[", b"{")):
        with pytest.raises(JournalError):
            _ = found.frames
