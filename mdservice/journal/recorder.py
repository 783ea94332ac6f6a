"""The actor that records what the feeds bring, and the thread that writes it.

::

    event loop                              thread
    feed's tap ──▶ queue (bounded) ──▶ entries ──▶ segment ──full or a new day──▶ compressed
                      │ full: dropped, counted        └── disk full: cut to whole entries, try again

The event loop only appends to the queue. The thread takes what waits twenty times a second, so a
crash of the process loses at most what came in the last twentieth of a second, and a crash of the
machine what the operating system had not written yet.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, Final
from uuid import uuid4

import anyio
import anyio.to_thread
import attrs
import msgspec
from anyio.abc import TaskStatus

from mdservice.clock import Clock
from mdservice.errors import ConfigurationError, JournalError, JournalInUse
from mdservice.journal.format import (
    COMPRESSED,
    MAGIC,
    EntryType,
    SegmentName,
    day_of,
    encode_entry,
    encode_event,
    encode_frames,
    encode_head,
)
from mdservice.journal.segments import cut_tail, pack, segments_of
from mdservice.model.events import Backfill, FeedItem, FeedLost, FirstRecords, LateRecords
from mdservice.model.feeds import Feed, Topic
from mdservice.model.kinds import Kind
from mdservice.model.status import JournalProblem, JournalStatus
from mdservice.observability.logging import get_logger
from mdservice.relay.messages import messages_of
from mdservice.runtime.actor import BEAT_S, Depth, Heartbeat

__all__ = ["JournalConfig", "Recorder", "open_folder"]

_log = get_logger(__name__)

_SEGMENT_BYTES: Final = 64 << 20
_MOST_WAITING_BYTES: Final = 64 << 20
"""Beyond it new frames are dropped: three seconds of a flood, minutes of a busy day."""
_MOST_WAITING: Final = 200_000
"""Reads and events that may wait, however small they are."""
_PERIOD_S: Final = 0.05
"""How often the thread takes what waits."""
_RETRY_S: Final = 1.0
_STUCK_S: Final = 5.0
"""A write that takes longer is reported."""
_RECENT_S: Final = 60.0
"""How long a drop is reported."""
_TIDY_S: Final = 60.0
_CLOSE_S: Final = 2.0
"""How long writing the rest may take at the end."""
_LEAST_SECRET: Final = 8
"""Shorter secrets are words of the feed too. None is sent back by Alpaca anyway."""
_FLUSHED_BYTES: Final = 1 << 20
"""How much is encoded before it is written."""
_MOST_AT_ONCE: Final = 512
"""Buffers in one write; Linux and macOS allow 1,024."""
_CHUNKS_AT_ONCE: Final = 4
_MUCH_BYTES: Final = 256 * 1024
"""While more comes in one turn, compression waits: its time is the feed's on a busy machine …"""
_MOST_TO_PACK: Final = 8
"""… unless so many segments wait, half a gigabyte."""
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_DAY_NS: Final = 86_400 * 1_000_000_000
_LOCK: Final = "lock"


@attrs.frozen
class JournalConfig:
    """Where and how to record.

    Attributes:
        folder: Only for journals; made if it is not there, with mode 0700.
        days: Segments of earlier UTC days are deleted; 0 keeps all.
        most_bytes: The oldest segments beyond it are deleted; 0 keeps all.
        secrets: Texts that the files never have; of the same length, ``*`` replaces them.
        segment_bytes: The size at which a segment is closed and compressed.
        most_waiting_bytes: How much may wait for the disk.
    """

    folder: Path
    days: int = 30
    most_bytes: int = 0
    secrets: Sequence[str] = attrs.field(default=(), repr=False)
    segment_bytes: int = _SEGMENT_BYTES
    most_waiting_bytes: int = _MOST_WAITING_BYTES


class Recorder:
    """Records connections; an actor without an inbox, whose taps never wait.

    Args:
        config: Where and how.
        clock: The time.

    Raises:
        JournalInUse: Another process records into the folder.
        ConfigurationError: The folder cannot be used.
    """

    name = "journal"
    depth = Depth(0, 0)

    def __init__(self, config: JournalConfig, clock: Clock) -> None:
        self.heartbeat = Heartbeat(clock)
        self._clock = clock
        self._lock = open_folder(config.folder)
        self._writer = _Writer(config, clock)
        self._connections = 0
        self._stopping = anyio.Event()
        self._reported: str | None = None

    def tap(self, feed: Feed) -> _Tap:
        """What a feed's connection reports to."""
        return _Tap(feed, self)

    def new_connection(self) -> int:
        """The number of a new connection."""
        self._connections += 1
        return self._connections

    @property
    def queue(self) -> _Queue:
        """Where taps add what they record."""
        return self._writer.queue

    @property
    def clock(self) -> Clock:
        """The time."""
        return self._clock

    def status(self) -> JournalStatus:
        """What was recorded, and whether it is written."""
        return self._writer.report(self._clock.monotonic())

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Write until :meth:`stop`.

        Raises:
            RuntimeError: The thread has ended; a restart begins another.
        """
        self._writer.start()
        task_status.started()
        while not self._stopping.is_set():
            self.heartbeat.beat()
            self._log_problem()
            if not self._writer.alive:
                raise RuntimeError(f"the journal's thread has ended: {self._writer.failure}")
            with anyio.move_on_after(BEAT_S):
                await self._stopping.wait()

    async def stop(self) -> None:
        """Write what waits, within a time limit; close the segment and unlock the folder."""
        self._stopping.set()
        self._writer.end()
        await anyio.to_thread.run_sync(self._writer.join, _CLOSE_S)
        self._log_problem()
        self.close()

    def close(self) -> None:
        """Unlock the folder; the thread ends by itself. For a service that has not started."""
        self._writer.end()
        self._lock.close()

    def _log_problem(self) -> None:
        problem = self.status().last_error
        if problem != self._reported:
            self._reported = problem
            if problem is None:
                _log.info("journal_recovered", dropped=self.status().dropped)
            else:
                _log.warning("journal_failed", reason=problem)


class _Tap:
    """Records the connections of one feed; see :class:`mdservice.feed.subscriptions.FeedTap`."""

    def __init__(self, feed: Feed, recorder: Recorder) -> None:
        self._feed = feed
        self._recorder = recorder
        self._queue = recorder.queue
        self._clock = recorder.clock
        self._connection = 0

    def connecting(self, driver: str) -> None:
        self._connection = self._recorder.new_connection()
        self._event("connecting", feed=self._feed.name, driver=driver)

    def failed(self, reason: str) -> None:
        self._event("failed", feed=self._feed.name, reason=reason)

    def opened(self, encoding: str) -> None:
        self._event("login", feed=self._feed.name, encoding=encoding)

    def asked(self, topics: Iterable[Topic]) -> None:
        self._event("subscribe", feed=self._feed.name, topics=_by_channel(topics))

    def gave_up(self, topics: Iterable[Topic]) -> None:
        self._event("unsubscribed", feed=self._feed.name, topics=_by_channel(topics))

    def acknowledged(self, count: int) -> None:
        self._event("acknowledged", feed=self._feed.name, count=count)

    def holding(self, kind: Kind[Any]) -> None:
        self._event("hold", feed=self._feed.name, kind=kind.channel)

    def frames(self, frames: Sequence[bytes | str], received_ns: int) -> None:
        self._queue.add(self._connection, received_ns, frames)

    def item(self, item: FeedItem) -> None:
        if isinstance(item, (Backfill, LateRecords, FirstRecords, FeedLost)):
            found = _RouterItem(self._feed, item)
            self._queue.add_event(self._connection, self._clock.utc_ns(), found)

    def _event(self, name: str, **fields: Any) -> None:
        self._queue.add_event(self._connection, self._clock.utc_ns(), {"event": name, **fields})


@attrs.frozen
class _RouterItem:
    """What a feed has sent to its router, other than records of the stream."""

    feed: Feed
    item: Backfill[Any] | LateRecords[Any] | FirstRecords[Any] | FeedLost

    def encode(self) -> bytes:
        """The payload of its event; records are in it as messages of the stream."""
        item, feed = self.item, self.feed.name
        if isinstance(item, FeedLost):
            lost = _by_channel(item.topics)
            return encode_event("disconnected", feed=feed, reason=item.reason, topics=lost)
        records = item.past if isinstance(item, Backfill) else item.records
        fields = {
            "feed": feed,
            "kind": item.kind.channel,
            "messages": [msgspec.Raw(m.encoded("json")) for m in messages_of(item.kind, records)],
        }
        if isinstance(item, Backfill):
            complete = sorted(item.complete)
            return encode_event("backfill", **fields, until_ns=item.until_ns, complete=complete)
        if isinstance(item, LateRecords):
            unknown = sorted(item.unknown)
            times = {"from_ns": item.from_ns, "to_ns": item.to_ns}
            return encode_event("late", **fields, **times, unknown=unknown)
        return encode_event("first", **fields, asked_ns=dict(item.asked_ns))


@attrs.frozen
class _Frames:
    """The frames of one read, as they are in the file.

    Attributes:
        head: The head of their entry.
        payload: Its payload.
        messages: How many they are.
        size: Their bytes.
    """

    head: bytes
    payload: bytes
    messages: int
    size: int


_Queued = _Frames | Mapping[str, Any] | _RouterItem


class _Queue:
    """From the event loop to the thread; bounded, and never waits.

    Frames are encoded when they are added. The thread would need the interpreter's lock for each
    read to do it, and the event loop would wait for the lock and find the frames' memory cold.

    Args:
        most_bytes: Of frames that may wait.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._items: deque[tuple[int, int, _Queued]] = deque()
        self._added_bytes = 0
        """Changed by the event loop alone …"""
        self.taken_bytes = 0
        """… and this by the thread alone."""
        self.dropped = 0
        """Messages."""
        self._unmarked = 0
        """Of these, those whose place in the journal has no mark yet."""

    @property
    def waiting_bytes(self) -> int:
        """Bytes of frames that are not written."""
        return self._added_bytes - self.taken_bytes

    def add(self, connection: int, time_ns: int, frames: Sequence[bytes | str]) -> None:
        """Add the frames of one read, or drop them where there is no room."""
        size = sum(map(len, frames))
        waiting = self._added_bytes - self.taken_bytes
        if waiting > self._most_bytes or len(self._items) > _MOST_WAITING:
            self.dropped += len(frames)
            self._unmarked += len(frames)
            return
        if self._unmarked:
            self._mark(connection, time_ns)
        self._added_bytes += size
        payload = encode_frames(frames)
        head = encode_head(EntryType.FRAMES, connection, time_ns, payload)
        self._items.append((connection, time_ns, _Frames(head, payload, len(frames), size)))

    def add_event(
        self, connection: int, time_ns: int, event: Mapping[str, Any] | _RouterItem
    ) -> None:
        """Add an event; there is room for them, since they are few."""
        if len(self._items) > 2 * _MOST_WAITING:
            self.dropped += 1
            self._unmarked += 1
            return
        if self._unmarked:
            self._mark(connection, time_ns)
        self._items.append((connection, time_ns, event))

    def _mark(self, connection: int, time_ns: int) -> None:
        """Note in the journal that something is missing here."""
        event = {"event": "dropped", "messages": self._unmarked}
        self._unmarked = 0
        self._items.append((connection, time_ns, event))

    def take(self) -> list[tuple[int, int, _Queued]]:
        """What waits, for the thread."""
        return [self._items.popleft() for _ in range(len(self._items))]

    def __bool__(self) -> bool:
        return bool(self._items)


class _Writer:
    """The thread: encodes, writes, rotates, compresses, deletes what is too old."""

    def __init__(self, config: JournalConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._secrets = [s.encode() for s in config.secrets if len(s) >= _LEAST_SECRET]
        self.queue = _Queue(config.most_waiting_bytes)
        self.failure: Exception | None = None
        self._run = uuid4().hex
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._ending = False
        self._file: IO[bytes] | None = None
        self._name: SegmentName | None = None
        self._size = 0
        """Bytes of whole entries in the open segment."""
        self._unwritten: list[bytes] = []
        """Entries of the open segment that the disk has not taken, each a head and a payload."""
        self._unwritten_bytes = 0
        self._unwritten_raw = 0
        """The bytes of frames in them."""
        self._taken: deque[tuple[int, int, _Queued]] = deque()
        """What was taken from the queue and is not encoded yet."""
        self._day_end_ns = 0
        """When the open segment's day ends, UTC nanoseconds."""
        self._connections: dict[int, dict[str, Any]] = {}
        """The open connections, with their subscribed topics."""
        self._packing: Iterator[object] | None = None
        self._to_pack: deque[Path] = deque()
        self._leftover: set[Path] = set()
        """Of these, the segments of an earlier run, whose last entry may be incomplete."""
        self._tidied_s = float("-inf")
        self._others_bytes = 0
        """Of the closed segments."""
        self._written = 0
        self._error: str | None = None
        self._problem: JournalProblem | None = None
        """The kind of the last error."""
        self._failures = 0
        self._since_s: float | None = None
        """When the present write began, monotonic seconds."""
        self._dropped_before, self._dropped_s = 0, float("-inf")

    # Called from the event loop

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Start the thread, also after it has failed."""
        if not self.alive:
            self.failure = None
            self._thread = threading.Thread(target=self._main, name="journal", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Let the thread write what waits, and end."""
        self._ending = True
        self._wake.set()

    def join(self, limit_s: float) -> None:
        """Wait until it has ended."""
        if self._thread is not None:
            self._thread.join(limit_s)

    def report(self, now_s: float) -> JournalStatus:
        """The journal now."""
        dropped, since_s = self.queue.dropped, self._since_s
        if dropped > self._dropped_before:
            self._dropped_before, self._dropped_s = dropped, now_s
        error, problem = self._error, self._problem
        if error is None and since_s is not None and now_s - since_s > _STUCK_S:
            error = f"the disk has not taken anything for {now_s - since_s:.0f} s"
            problem = "stuck"
        if error is None and now_s - self._dropped_s < _RECENT_S:
            error = "the disk was too slow, so that messages were dropped"
            problem = "slow"
        return JournalStatus(
            folder=str(self._config.folder),
            written=self._written,
            dropped=dropped,
            waiting_bytes=self.queue.waiting_bytes,
            bytes=self._others_bytes + self._size,
            last_error=error,
            problem=None if error is None else problem,
            failures=self._failures,
        )

    # The thread

    def _main(self) -> None:
        try:
            self._begin()
            while not self._ending or self.queue:
                self._wake.wait(0.0 if self._ending else _PERIOD_S)
                if not self._turn() and self._ending:
                    break  # the disk is full: what waits is lost
        except Exception as exc:  # noqa: BLE001 - the actor reports it, and begins another thread
            self.failure = exc
        finally:
            if self._ending:
                self._close()

    def _begin(self) -> None:
        """Take over what an earlier run has left: segments to compress, half of a compression."""
        if self._packing is None:
            for leftover in self._config.folder.glob("*.tmp"):
                leftover.unlink(missing_ok=True)
        if self._file is None and not self._to_pack:
            found = segments_of(self._config.folder)
            self._leftover = {path for path in found if not path.name.endswith(COMPRESSED)}
            self._to_pack = deque(sorted(self._leftover))
            for path in self._config.folder.glob(f"*{COMPRESSED}"):
                path.with_name(path.name.removesuffix(COMPRESSED)).unlink(missing_ok=True)

    def _turn(self) -> bool:
        """Write what waits; return whether the disk took it."""
        self._since_s = self._clock.monotonic()
        try:
            self._taken += self.queue.take()
            before = self._size
            while self._taken:
                self._add(*self._taken[0])
                self._taken.popleft()
            self._flush()
            if self._size - before < _MUCH_BYTES or len(self._to_pack) > _MOST_TO_PACK:
                self._pack_on()
            self._tidy()
        except OSError as exc:
            self._failures += 1
            self._problem = "full" if exc.errno in _FULL else "failing"
            self._error = (
                f"the journal in {self._config.folder} is not written: {exc.strerror or exc}"
            )
            if not self._ending:
                self._wake.wait(_RETRY_S)
            return False
        finally:
            self._since_s = None
        self._error = None
        return True

    def _add(self, connection: int, time_ns: int, item: _Queued) -> None:
        """Add an entry to what is written next; open or rotate the segment first."""
        if self._unwritten_bytes > _FLUSHED_BYTES or time_ns >= self._day_end_ns:
            self._flush()
        if not self._unwritten:
            self._rotate(time_ns)
        if isinstance(item, _Frames):
            head, payload = item.head, item.payload
            self._unwritten_raw += item.size
            self._written += item.messages
        else:
            payload = self._event(connection, item)
            head = encode_head(EntryType.EVENT, connection, time_ns, payload)
        if any(secret in payload for secret in self._secrets):
            kind = EntryType.FRAMES if isinstance(item, _Frames) else EntryType.EVENT
            for secret in self._secrets:
                payload = payload.replace(secret, b"*" * len(secret))
            head = encode_head(kind, connection, time_ns, payload)
        self._unwritten += (head, payload)
        self._unwritten_bytes += len(head) + len(payload)

    def _event(self, connection: int, item: Any) -> bytes:
        """The payload of an event; notes what it changes about the connection."""
        if isinstance(item, _RouterItem):
            if isinstance(item.item, FeedLost):
                self._connections.pop(connection, None)
            return item.encode()
        name = item["event"]
        if name == "login":
            self._connections[connection] = {**item, "topics": {}}
        elif name == "failed":
            self._connections.pop(connection, None)  # a refused login is followed by no FeedLost
        elif name in ("subscribe", "unsubscribed") and connection in self._connections:
            topics = self._connections[connection]["topics"]
            for channel, symbols in item["topics"].items():
                known = topics.setdefault(channel, {})
                if name == "subscribe":
                    known.update(dict.fromkeys(symbols))
                else:
                    for symbol in symbols:
                        known.pop(symbol, None)
        return msgspec.json.encode(item)

    def _flush(self) -> None:
        """Write the entries; where the disk takes only a part, keep the file whole.

        Raises:
            OSError: The disk took nothing, or not all. They are written later.
        """
        if not self._unwritten:
            return
        if self._file is None:
            self._rotate(self._clock.utc_ns())
        try:
            _write_all(self._file, self._unwritten)
        except OSError:
            self._cut()
            raise
        self._size += self._unwritten_bytes
        self._unwritten.clear()
        self._unwritten_bytes = 0
        self.queue.taken_bytes += self._unwritten_raw
        self._unwritten_raw = 0

    def _cut(self) -> None:
        """Remove a part of an entry from the file.

        The next try begins another segment, since the disk may only refuse a larger file.
        """
        if self._file is not None:
            os.ftruncate(self._file.fileno(), self._size)
            self._close_segment()

    def _rotate(self, time_ns: int) -> None:
        """Let a segment be open that may take an entry of this time."""
        if self._file is not None:
            if self._size < self._config.segment_bytes and time_ns < self._day_end_ns:
                return
            self._close_segment()
        self._open_segment(SegmentName(_next_number(self._config.folder), day_of(time_ns)), time_ns)
        self._day_end_ns = (time_ns // _DAY_NS + 1) * _DAY_NS

    def _open_segment(self, name: SegmentName, time_ns: int) -> None:
        path = self._config.folder / str(name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        opened = open(os.open(path, flags, 0o600), "wb", buffering=0)  # noqa: SIM115, PTH123 - kept open
        head = bytearray(MAGIC)
        head += encode_entry(EntryType.EVENT, 0, time_ns, encode_event("run", run=self._run))
        for connection, known in self._connections.items():
            topics = {channel: list(symbols) for channel, symbols in known["topics"].items()}
            state = msgspec.json.encode({**known, "event": "open", "topics": topics})
            head += encode_entry(EntryType.EVENT, connection, time_ns, state)
        try:
            _write_all(opened, [bytes(head)])
        except OSError:
            opened.close()
            path.unlink(missing_ok=True)
            raise
        self._file, self._name, self._size = opened, name, len(head)

    def _close_segment(self) -> None:
        if self._file is None or self._name is None:
            return
        with suppress(OSError):  # of the disk that reports its failure late
            os.fsync(self._file.fileno())
        self._file.close()
        self._to_pack.append(self._config.folder / str(self._name))
        self._file, self._name, self._size = None, None, 0
        self._tidied_s = float("-inf")

    def _close(self) -> None:
        """End the run: the open segment is compressed by the next one."""
        if self._file is not None:
            with suppress(OSError):
                os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def _pack_on(self) -> None:
        """Compress the next chunks of a closed segment: some milliseconds."""
        for _ in range(_CHUNKS_AT_ONCE):
            if self._ending or (self._packing is None and not self._to_pack):
                return
            try:
                if self._packing is None:
                    self._packing = self._pack(self._to_pack[0])
                if next(self._packing, None) is None:
                    self._packing = None
                    self._to_pack.popleft()
                    self._tidied_s = float("-inf")
            except (JournalError, FileNotFoundError) as exc:
                self._packing = None
                _log.warning("journal_segment_damaged", reason=str(exc))
                self._to_pack.popleft()
            except OSError:
                self._packing = None
                raise

    def _pack(self, path: Path) -> Iterator[object]:
        if path in self._leftover:
            self._leftover.discard(path)
            cut = cut_tail(path)
            if cut:
                _log.warning("journal_tail_cut", segment=path.name, bytes=cut)
        return pack(path)

    def _tidy(self) -> None:
        """Delete the segments that are too old or too many, now and then."""
        now_s = self._clock.monotonic()
        if now_s < self._tidied_s + _TIDY_S:
            return
        self._tidied_s = now_s
        config, closed = self._config, []
        open_name = None if self._name is None else str(self._name)
        for path in segments_of(config.folder):
            name = SegmentName.parse(path.name)
            if name is not None and path.name != open_name:
                closed.append((name, path, path.stat().st_size))
        total = sum(size for _, _, size in closed)
        today = day_of(self._clock.utc_ns())
        for name, path, size in closed:
            too_old = config.days and name.day < today - timedelta(days=config.days)
            if too_old or (config.most_bytes and total + self._size > config.most_bytes):
                if path in self._to_pack:
                    continue  # it is being compressed
                path.unlink(missing_ok=True)
                total -= size
                _log.info("journal_segment_deleted", segment=path.name)
        self._others_bytes = total


def _write_all(file: IO[bytes] | None, parts: Sequence[bytes]) -> None:
    """Write buffers one after the other, without a copy of them."""
    if file is None:
        return
    for start in range(0, len(parts), _MOST_AT_ONCE):
        some = parts[start : start + _MOST_AT_ONCE]
        written = os.writev(file.fileno(), some)
        if written < sum(map(len, some)):
            rest = b"".join(some)[written:]
            while rest:
                rest = rest[os.write(file.fileno(), rest) :]


def _by_channel(topics: Iterable[Topic]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for topic in sorted(topics):
        found.setdefault(topic.channel, []).append(topic.symbol)
    return found


def _next_number(folder: Path) -> int:
    names = (SegmentName.parse(path.name) for path in folder.iterdir())
    return max((name.number for name in names if name is not None), default=0) + 1


def open_folder(folder: Path) -> IO[str]:
    """Make and lock the folder; the lock is held until the file is closed.

    Raises:
        JournalInUse: Another process has locked it.
        ConfigurationError: It cannot be used.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        others = [p.name for p in folder.iterdir() if not _is_own(p.name)]
        if others:
            raise ConfigurationError(
                f"the journal's folder {folder} has other files, such as {min(others)}: "
                "give it a folder of its own in MDSERVICE_JOURNAL"
            )
        folder.chmod(0o700)
        opened = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise ConfigurationError(
            f"the journal's folder {folder} cannot be used: {exc.strerror}. "
            "Choose another in MDSERVICE_JOURNAL"
        ) from exc
    lock = open(opened, "r+")  # noqa: SIM115, PTH123 - held as long as the recorder
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise JournalInUse(
            f"another service records into {folder} (process {owner}): "
            "give this one another folder in MDSERVICE_JOURNAL"
        ) from exc
    with suppress(OSError):  # a full disk
        lock.truncate()
        lock.write(f"{os.getpid()}\n")
        lock.flush()
    return lock


def _is_own(name: str) -> bool:
    return name == _LOCK or name.endswith(".tmp") or SegmentName.parse(name) is not None
