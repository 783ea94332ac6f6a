"""The recorder: what taps report becomes segments; a bad disk costs the journal alone."""

import os
import stat
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from mdservice.clock import SystemClock
from mdservice.errors import ConfigurationError, JournalInUse
from mdservice.journal import recorder as module
from mdservice.journal.format import MAGIC, EntryType
from mdservice.journal.recorder import JournalConfig, Recorder
from mdservice.journal.segments import cut_tail, read, segments_of
from mdservice.model.events import Backfill, FeedLost, FirstRecords, RecordBatch
from mdservice.model.feeds import STOCKS, Topic
from mdservice.model.kinds import QUOTES
from tests.records import make_record

LIMIT_S = 20
DAY_NS = 86_400 * 10**9
NOON_NS = 20_000 * DAY_NS + DAY_NS // 2
TOPICS = (Topic("quotes", "AAPL"), Topic("trades", "MSFT"))


class Clock(SystemClock):
    now_ns = NOON_NS

    def utc_ns(self):
        return self.now_ns


@pytest.fixture(params=["asyncio", "trio"])
def on(request):
    return lambda main, *args: anyio.run(main, *args, backend=request.param)


@asynccontextmanager
async def recording(folder, clock=None, **config):
    recorder = Recorder(JournalConfig(folder, **config), clock or Clock())
    async with anyio.create_task_group() as tasks:
        await tasks.start(recorder.run)
        yield recorder
        await recorder.stop()


async def until(condition):
    with anyio.fail_after(LIMIT_S):
        while not condition():
            await anyio.sleep(0.01)


def opened(recorder, topics=TOPICS):
    tap = recorder.tap(STOCKS)
    tap.connecting("websockets")
    tap.opened("msgpack")
    tap.asked(topics)
    return tap


def entries(folder):
    return list(read(segments_of(folder)))


def events(folder, name=None):
    found = [each.event for each in entries(folder) if each.type is EntryType.EVENT]
    return [each for each in found if name in (None, each["event"])]


def frames(folder):
    found = [each for each in entries(folder) if each.type is EntryType.FRAMES]
    return [frame for each in found for frame in each.frames]


def test_frames_are_recorded_as_they_came(tmp_path, on):
    async def main():
        async with recording(tmp_path) as recorder:
            tap = opened(recorder)
            tap.frames([b"\x91\x01", "[2]"], NOON_NS + 1)
            tap.frames([b"\x93"], NOON_NS + 2)

    on(main)
    found = [each for each in entries(tmp_path) if each.type is EntryType.FRAMES]
    assert [(list(each.frames), each.time_ns, each.connection) for each in found] == [
        ([b"\x91\x01", "[2]"], NOON_NS + 1, 1),
        ([b"\x93"], NOON_NS + 2, 1),
    ]


def test_a_connection_is_recorded_from_its_beginning_to_its_end(tmp_path, on):
    async def main():
        async with recording(tmp_path) as recorder:
            tap = opened(recorder)
            tap.acknowledged(2)
            tap.gave_up(TOPICS[:1])
            tap.item(FeedLost(NOON_NS, frozenset(TOPICS[1:]), "cut"))
            tap.failed("away")

    on(main)
    assert [each["event"] for each in events(tmp_path)] == [
        *("run", "connecting", "login", "subscribe", "acknowledged", "unsubscribed"),
        *("disconnected", "failed"),
    ]
    (lost,) = events(tmp_path, "disconnected")
    assert lost["reason"] == "cut"
    assert lost["topics"] == {"trades": ["MSFT"]}


def test_what_rest_has_brought_is_recorded_and_records_of_the_stream_are_not_again(tmp_path, on):
    quote = make_record(QUOTES, "AAPL", at_ns=NOON_NS)

    async def main():
        async with recording(tmp_path) as recorder:
            tap = opened(recorder)
            tap.item(RecordBatch(QUOTES, [quote]))
            tap.holding(QUOTES)
            tap.item(FirstRecords(QUOTES, [quote], {"AAPL": NOON_NS}))
            tap.item(Backfill(QUOTES, [quote], [], NOON_NS + 1, frozenset({"AAPL"})))

    on(main)
    (first,), (backfill,) = events(tmp_path, "first"), events(tmp_path, "backfill")
    assert first["asked_ns"] == {"AAPL": NOON_NS}
    assert first["messages"] == backfill["messages"]
    assert first["messages"][0]["S"] == "AAPL"
    assert backfill["complete"] == ["AAPL"]
    assert len(events(tmp_path, "hold")) == 1


def test_the_files_are_the_owners_alone(tmp_path, on):
    folder = tmp_path / "deep" / "journal"

    async def main():
        async with recording(folder) as recorder:
            opened(recorder)

    before = os.umask(0)
    try:
        on(main)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(list(folder.iterdir())) == 2
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())


def test_two_recorders_of_one_folder_are_refused(tmp_path, on):
    async def main():
        async with recording(tmp_path):
            with pytest.raises(JournalInUse, match=f"process {os.getpid()}"):
                Recorder(JournalConfig(tmp_path), Clock())
        async with recording(tmp_path):
            pass

    on(main)


def test_a_recorder_that_never_ran_unlocks_the_folder(tmp_path):
    Recorder(JournalConfig(tmp_path), Clock()).close()
    Recorder(JournalConfig(tmp_path), Clock()).close()


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "letter.txt").touch()
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigurationError, match=r"letter\.txt"):
        Recorder(JournalConfig(tmp_path), Clock())
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="MDSERVICE_JOURNAL"):
        Recorder(JournalConfig(tmp_path / "file" / "journal"), Clock())


def test_segments_are_rotated_by_size_compressed_and_begin_with_what_is_subscribed(tmp_path, on):
    async def main():
        async with recording(tmp_path, segment_bytes=10_000) as recorder:
            tap = opened(recorder)
            for number in range(5):
                tap.frames([bytes([number]) * 9_000], NOON_NS + number)
                await until(lambda: recorder.status().waiting_bytes == 0)
            await until(lambda: len(list(tmp_path.glob("*.zst"))) >= 2)

    on(main)
    assert [frame[0] for frame in frames(tmp_path)] == list(range(5))
    opens = events(tmp_path, "open")
    assert len(opens) >= 2
    assert opens[0]["topics"] == {"quotes": ["AAPL"], "trades": ["MSFT"]}
    assert opens[0]["encoding"] == "msgpack"


def test_a_refused_login_is_no_open_connection_of_the_next_segment(tmp_path, on):
    async def main():
        async with recording(tmp_path, segment_bytes=1) as recorder:
            tap = opened(recorder)
            tap.failed("the feed refuses the login")
            tap = opened(recorder)
            for number in range(3):
                tap.frames([b"x"], NOON_NS + number)
                await until(lambda: recorder.status().waiting_bytes == 0)

    on(main)
    found = [each for each in entries(tmp_path) if each.type is EntryType.EVENT]
    assert {each.connection for each in found if each.event["event"] == "open"} == {2}


def test_segments_are_rotated_at_midnight_utc(tmp_path, on):
    async def main():
        async with recording(tmp_path) as recorder:
            tap = opened(recorder)
            midnight_ns = (NOON_NS // DAY_NS + 1) * DAY_NS
            tap.frames([b"before"], midnight_ns - 1)
            tap.frames([b"after"], midnight_ns)
            await until(lambda: len(segments_of(tmp_path)) == 2)

    on(main)
    first, second = segments_of(tmp_path)
    assert [each.frames[0] for each in read([first]) if each.type is EntryType.FRAMES] == [
        b"before"
    ]
    assert first.name[9:19] < second.name[9:19]


def test_old_segments_are_deleted_by_days(tmp_path, on):
    (tmp_path / "00000001-2024-01-01.journal.zst").write_bytes(b"old")

    async def main():
        async with recording(tmp_path, days=30) as recorder:
            opened(recorder)
            await until(lambda: not list(tmp_path.glob("*2024-01-01*")))

    on(main)
    assert len(segments_of(tmp_path)) == 1


def test_the_oldest_segments_are_deleted_by_size(tmp_path, on):
    async def main():
        limits = {"most_bytes": 60_000, "segment_bytes": 10_000}
        async with recording(tmp_path, days=0, **limits) as recorder:
            tap = opened(recorder)
            for number in range(20):
                tap.frames([os.urandom(9_000)], NOON_NS + number)
                await until(lambda: recorder.status().waiting_bytes == 0)
            await until(lambda: recorder.status().bytes <= 60_000 and not recorder_busy(tmp_path))

    on(main)
    kept = [path.name[:8] for path in segments_of(tmp_path)]
    assert len(kept) < 15
    assert kept[-1] == max(kept)


def recorder_busy(folder):
    return len(list(folder.glob("*.journal"))) > 1 or list(folder.glob("*.tmp"))


def test_a_segment_that_a_crash_has_left_is_cut_and_compressed(tmp_path, on):
    async def main():
        async with recording(tmp_path) as recorder:
            opened(recorder).frames([b"kept"], NOON_NS)
        (path,) = segments_of(tmp_path)
        with path.open("ab") as file:
            file.write(b"torn")
        (tmp_path / f"{path.name}.zst.tmp").touch()
        async with recording(tmp_path):
            await until(lambda: list(tmp_path.glob("*.zst")))

    on(main)
    assert frames(tmp_path) == [b"kept"]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_damaged_segment_does_not_stop_the_recording(tmp_path, on):
    (tmp_path / "00000001-2027-01-01.journal").write_bytes(b"this is something else")

    async def main():
        async with recording(tmp_path) as recorder:
            opened(recorder).frames([b"x"], NOON_NS)
            await until(lambda: recorder.status().written == 1)
            await until(lambda: recorder.status().waiting_bytes == 0)
            assert recorder.status().last_error is None
            opened(recorder).frames([b"y"], NOON_NS)
            await until(lambda: recorder.status().written == 2)

    on(main)
    assert frames_of_last(tmp_path) == [b"x", b"y"]


def test_a_segment_that_somebody_deletes_does_not_stop_the_compression(tmp_path, on, monkeypatch):
    for number in (1, 2):
        (tmp_path / f"{number:08d}-2027-01-01.journal").write_bytes(MAGIC)

    def cut_after_deletion(path):
        if "00000001" in path.name:
            path.unlink()
        return cut_tail(path)

    async def main():
        monkeypatch.setattr(module, "cut_tail", cut_after_deletion)
        async with recording(tmp_path):
            await until(lambda: list(tmp_path.glob("00000002*.zst")))

    on(main)
    assert not list(tmp_path.glob("00000001*"))


def frames_of_last(folder):
    found = read(segments_of(folder)[-1:])
    return [frame for each in found if each.type is EntryType.FRAMES for frame in each.frames]


@pytest.mark.parametrize("as_text", [True, False])
def test_no_secret_is_ever_written(tmp_path, on, as_text):
    secret = "PKABCDEFGHIJKLMNOPQR"
    text = f'[{{"T":"error","msg":"bad key {secret}"}}]'

    async def main():
        async with recording(tmp_path, secrets=[secret, "short"]) as recorder:
            tap = opened(recorder)
            tap.frames([text if as_text else text.encode(), "short"], NOON_NS)
            tap.failed(f"refused {secret}")

    on(main)
    masked = text.replace(secret, "*" * len(secret))
    assert frames(tmp_path) == [masked if as_text else masked.encode(), "short"]
    for path in segments_of(tmp_path):
        assert secret.encode() not in path.read_bytes()


class BadDisk:
    """Lets writes fail, or wait, as long as the test wants it."""

    def __init__(self, monkeypatch):
        self.error = None
        self.gate = threading.Event()
        self.gate.set()
        real = module._write_all

        def write_all(file, data):
            self.gate.wait(LIMIT_S)
            if self.error is not None:
                if file is not None:
                    file.write((whole := b"".join(data))[: len(whole) // 2])  # it takes a part
                raise self.error
            real(file, data)

        monkeypatch.setattr(module, "_write_all", write_all)
        monkeypatch.setattr(module, "_RETRY_S", 0.01)


def test_a_full_disk_is_reported_and_the_recording_goes_on_when_there_is_room(
    tmp_path, on, monkeypatch
):
    disk = BadDisk(monkeypatch)

    async def main():
        async with recording(tmp_path) as recorder:
            tap = opened(recorder)
            tap.frames([b"before"], NOON_NS)
            await until(lambda: frames(tmp_path) == [b"before"])
            disk.error = OSError(28, "No space left on device")
            tap.frames([b"meanwhile"], NOON_NS + 1)
            await until(lambda: recorder.status().last_error is not None)
            assert "No space left on device" in recorder.status().last_error
            assert recorder.status().problem == "full"
            disk.error = OSError(5, "Input/output error")
            await until(lambda: recorder.status().problem == "failing")
            assert recorder.status().failures >= 2
            assert frames(tmp_path) == [b"before"]  # no half of an entry in between
            disk.error = None
            tap.frames([b"after"], NOON_NS + 2)
            await until(lambda: recorder.status().last_error is None)
            assert recorder.status().problem is None
            await until(lambda: recorder.status().waiting_bytes == 0)

    on(main)
    assert frames(tmp_path) == [b"before", b"meanwhile", b"after"]


def test_a_slow_disk_costs_messages_which_are_counted_and_never_waits(tmp_path, on, monkeypatch):
    disk = BadDisk(monkeypatch)

    async def main():
        async with recording(tmp_path, most_waiting_bytes=1_000) as recorder:
            tap = opened(recorder)
            tap.frames([b"first"], NOON_NS)
            await until(lambda: recorder.status().waiting_bytes == 0)
            disk.gate.clear()
            for number in range(100):
                tap.frames([b"x" * 100, b"y"], NOON_NS + number)  # returns at once
            status = recorder.status()
            assert status.dropped == 200 - 2 * (status.waiting_bytes // 101)
            assert status.waiting_bytes <= 1_101
            assert "too slow" in status.last_error
            assert status.problem == "slow"
            disk.gate.set()
            await until(lambda: recorder.status().waiting_bytes == 0)
            tap.frames([b"last"], NOON_NS + 200)

    on(main)
    assert frames(tmp_path)[-1] == b"last"
    (dropped,) = events(tmp_path, "dropped")
    assert dropped["messages"] == 200 - len(frames(tmp_path)[1:-1])


def test_the_end_does_not_wait_for_a_disk_that_is_stuck(tmp_path, on, monkeypatch):
    disk = BadDisk(monkeypatch)
    monkeypatch.setattr(module, "_CLOSE_S", 0.1)

    async def main():
        async with recording(tmp_path) as recorder:
            disk.gate.clear()
            opened(recorder).frames([b"lost"], NOON_NS)

    with_limit = time.monotonic() + LIMIT_S / 2
    on(main)
    assert time.monotonic() < with_limit
    disk.gate.set()


SMALL_FILES = """
import resource, sys, anyio
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
from pathlib import Path
from tests.journal.test_recorder import recording, opened, until, NOON_NS, frames

async def main(folder):
    async with recording(folder, days=0) as recorder:
        tap = opened(recorder)
        for number in range(40):
            tap.frames([bytes([number]) * 30_000], NOON_NS + number)
            await until(lambda: recorder.status().waiting_bytes == 0)
    assert [f[0] for f in frames(folder)] == list(range(40))

anyio.run(main, Path(sys.argv[1]))
"""


@pytest.mark.thorough  # a whole process, which takes seconds
def test_where_files_may_not_grow_another_segment_begins(tmp_path):
    """With the limit of the operating system, in a process of its own."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", SMALL_FILES, str(tmp_path)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(segments_of(tmp_path)) > 5


def test_a_thread_that_fails_is_replaced(tmp_path, on, monkeypatch):
    async def main():
        recorder = Recorder(JournalConfig(tmp_path), Clock())
        tap = opened(recorder)
        broken = monkeypatch.context()
        with broken as patch:
            patch.setattr(module, "_next_number", lambda _: 1 / 0)
            tap.frames([b"x"], NOON_NS)
            with pytest.raises(ExceptionGroup) as caught:
                async with anyio.create_task_group() as tasks:
                    await tasks.start(recorder.run)
            assert caught.group_contains(RuntimeError, match="ZeroDivisionError|division by zero")
        async with anyio.create_task_group() as tasks:
            await tasks.start(recorder.run)
            await until(lambda: recorder.status().waiting_bytes == 0)
            await recorder.stop()

    on(main)
    assert frames(tmp_path) == [b"x"]
