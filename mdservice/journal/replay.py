"""Serves a journal through Alpaca's protocol: each connection gets its feed's part from the start.

The protocol is that of the simulator's connections and sessions; only the data is another. The same
port answers Alpaca's REST without any record, so that the service takes nothing but the journal.
"""

from __future__ import annotations

import math
from collections.abc import (
    AsyncGenerator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
import attrs
import msgspec
from anyio.abc import ByteStream, SocketAttribute, TaskGroup
from anyio.lowlevel import checkpoint
from websockets.http11 import Request

from mdservice.clock import Clock, SystemClock
from mdservice.errors import JournalError
from mdservice.feed.alpaca.codec import Encoding
from mdservice.journal.decisions import Decisions, Step, recorded_topics
from mdservice.journal.format import Entry, EntryType
from mdservice.journal.segments import Extent, extent, read, segments_of
from mdservice.model.events import RecordBatch
from mdservice.model.feeds import FEEDS, Feed, Topic
from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.model.timestamps import format_ns
from mdservice.observability.logging import get_logger
from mdservice.relay.messages import Message, messages_of, payload
from mdservice.relay.websocket import data_frame
from mdservice.runtime.network import cannot_listen
from mdservice.runtime.task_groups import block_tasks
from mdservice.simulator.config import SimulatorConfig
from mdservice.simulator.connection import Connection
from mdservice.simulator.feeds import SimFeed
from mdservice.simulator.http import HttpAnswer, json_response, wants_websocket
from mdservice.simulator.kinds import SimKind
from mdservice.simulator.rest import encode_clock
from mdservice.simulator.session import Account, Refusals, Reply, Session
from mdservice.simulator.wire import OutFrame, S

__all__ = ["MAX_SPEED", "Journal", "Player", "Replay", "open_journal", "open_replay"]

_log = get_logger(__name__)

MAX_SPEED: Final = math.inf
_QUIET_S: Final = 1.0
"""A client that subscribes less than was recorded gets data so long after its last request."""
_MOST_PENDING_BYTES: Final = 512 * 1024
_WAIT_S: Final = 0.001
_MOST_IN_FRAME: Final = 500
_TURN_BYTES: Final = 64 * 1024
"""What is sent at once …"""
_GROUP_BYTES: Final = 32 * 1024
"""Entries of so many bytes are decided together where the time between them does not matter."""
_TURN_STEPS: Final = 200
"""… and the entries of one turn of the event loop: some milliseconds."""
_BY_NAME: Final[Mapping[str, Feed]] = {feed.name: feed for feed in FEEDS}
_NO_RECORDS: Final = msgspec.json.encode(
    {
        **{name: {} for name in ("quotes", "trades", "bars", "orderbooks", "snapshots")},
        "news": [],
        "next_page_token": None,
    }
)


@attrs.frozen
class Journal:
    """Some journals in turn, and the part of them that is wanted.

    Attributes:
        segments: Their files, in order.
        from_ns: The time from which on frames are wanted, UTC nanoseconds; None for all.
        to_ns: The time before which they are wanted.
        first_ns: The time of the first entry.
        last_ns: The time of the last.
        topics: What was subscribed, by feed.
    """

    segments: Sequence[Path]
    from_ns: int | None
    to_ns: int | None
    first_ns: int
    last_ns: int
    topics: Mapping[str, AbstractSet[Topic]]


def open_journal(
    folders: Sequence[Path], from_ns: int | None = None, to_ns: int | None = None
) -> Journal:
    """Look at journals.

    Raises:
        JournalError: One cannot be read, or there is nothing of that time.
    """
    segments: list[Path] = []
    extents: list[Extent] = []
    recorded: list[int] = []
    for folder in folders:
        try:
            found = segments_of(folder)
        except OSError as exc:
            raise JournalError(
                f"{folder} cannot be read: {exc.strerror}; name the folder of a journal"
            ) from exc
        if not found:
            raise JournalError(
                f"{folder} has no journal: name another folder, or record one there with "
                f"MDSERVICE_JOURNAL={folder}"
            )
        for path in found:
            covered = extent(path)
            recorded += [ns for ns in (covered.first_ns, covered.last_ns) if ns is not None]
            if covered.first_ns is not None and _overlaps(covered, from_ns, to_ns):
                segments.append(path)
                extents.append(covered)
    times = [ns for each in extents for ns in (each.first_ns, each.last_ns) if ns is not None]
    if not times:
        if not recorded:
            raise JournalError("the journal is empty: let the service run for a while")
        raise JournalError(
            f"the journal has nothing of that time: it was recorded from "
            f"{format_ns(min(recorded))} to {format_ns(max(recorded))}"
        )
    first_ns = max(min(times), from_ns or 0)
    last_ns = max(times) if to_ns is None else min(max(times), to_ns)
    topics = recorded_topics(read(segments, to_ns=to_ns, frames=False))
    return Journal(segments, from_ns, to_ns, first_ns, last_ns, topics)


def _overlaps(covered: Extent, from_ns: int | None, to_ns: int | None) -> bool:
    first_ns, last_ns = covered.first_ns or 0, covered.last_ns or 0
    return (from_ns is None or last_ns >= from_ns) and (to_ns is None or first_ns < to_ns)


@asynccontextmanager
async def open_replay(
    journal: Journal,
    *,
    speed: float = 1.0,
    host: str = "127.0.0.1",
    port: int = 0,
    clock: Clock | None = None,
) -> AsyncGenerator[Replay, None]:
    """Serve a journal for the length of the block.

    Args:
        journal: What to serve.
        speed: How many times faster than it was recorded; :data:`MAX_SPEED` for as fast as it is
            read.
        host: Where to listen.
        port: 0 for a free one.
        clock: The time, for REST.

    Raises:
        ConfigurationError: The address cannot be listened on.
    """
    try:
        listener = await anyio.create_tcp_listener(local_host=host, local_port=port)
    except (OSError, OverflowError) as exc:
        raise cannot_listen("the replay", f"{host}:{port}", exc) from exc
    async with block_tasks() as tasks:
        shown = f"[{host}]" if ":" in host else host
        address = f"{shown}:{listener.extra(SocketAttribute.local_port)}"  # noqa: S610 - no Django
        replay = Replay(journal, speed, address, clock or SystemClock(), tasks)

        async def accept() -> None:
            async with listener:
                await listener.serve(replay.serve, tasks)

        tasks.start_soon(accept)
        yield replay
        await replay.close()


class Replay:
    """A server of a journal; made by :func:`open_replay`.

    Attributes:
        players: What is being sent, and was, one for each connection that has subscribed something.
    """

    kinds: tuple[SimKind[Any], ...] = ()

    def __init__(
        self, journal: Journal, speed: float, address: str, clock: Clock, tasks: TaskGroup
    ) -> None:
        self.config = SimulatorConfig(
            connection_limit=None,
            option_quotes_limit=None,
            send_buffer_bytes=1 << 30,
            compression=False,  # the frames go as they were recorded
        )
        self.journal = journal
        self.speed = speed
        self.address = address
        self.players: list[Player] = []
        self._clock = clock
        self._tasks = tasks
        self._account = Account(connection_limit=None)
        self._refusals = Refusals()
        self._connections: dict[int, Connection] = {}
        self._numbers = 0

    @property
    def url(self) -> str:
        """``ws://127.0.0.1:PORT/v2/iex``, the stream of stocks; the others have Alpaca's paths."""
        return f"ws://{self.address}/v2/iex"

    async def serve(self, stream: ByteStream) -> None:
        """Serve one client until it is gone."""
        self._numbers += 1
        connection = Connection(self._numbers, stream, self)
        self._connections[connection.number] = connection
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._play, connection)
                await connection.serve()
                tasks.cancel_scope.cancel()
        finally:
            del self._connections[connection.number]
            if connection.session is not None:
                connection.session.end(anyio.current_time(), clean=connection.clean)

    async def finished(self, feeds: int = 1) -> None:
        """Wait until clients of so many feeds were sent everything; they may not have read all."""

        def ended() -> bool:
            return len(self.players) >= feeds and all(
                player.ended or player.error is not None for player in self.players
            )

        await _until(ended)

    async def close(self) -> None:
        """Close every connection with code 1001, within half a second."""
        for connection in list(self._connections.values()):
            connection.hang_up(1001)
        with anyio.move_on_after(0.5):
            await _until(lambda: not self._connections)

    async def _play(self, connection: Connection) -> None:
        session = await self._session_that_subscribes(connection)
        feed = _BY_NAME.get(session.feed.name)
        if feed is None:
            return
        player = Player(self.journal, feed, self.speed)
        await self._until_all_is_subscribed(player, session)
        self.players.append(player)
        try:
            await player.play(connection, session)
        except JournalError as exc:
            player.error = str(exc)
            _log.error("replay_failed", feed=feed.name, reason=str(exc))
            connection.hang_up(1011)

    async def _session_that_subscribes(self, connection: Connection) -> Session:
        await _until(lambda: connection.session is not None)
        session = connection.session
        while not isinstance(session, Session):
            await anyio.sleep_forever()
        await _until(lambda: any(session.subscriptions.values()))
        return session

    async def _until_all_is_subscribed(self, player: Player, session: Session) -> None:
        """Return when the client has all that was recorded, or asks for no more."""
        subscribed, since_s = session.subscriptions, anyio.current_time()

        def ready() -> bool:
            nonlocal subscribed, since_s
            if session.subscriptions != subscribed:
                subscribed, since_s = session.subscriptions, anyio.current_time()
            return player.covered(session) or anyio.current_time() >= since_s + _QUIET_S

        await _until(ready)

    # What the simulator's connections ask of it.

    def answer_http(self, request: Request, body: bytes) -> HttpAnswer | None:  # noqa: ARG002 - Venue
        """Answer REST: nothing but what is in the journal is known."""
        if wants_websocket(request):
            return None
        path = request.path.partition("?")[0]
        if path == "/v2/clock":
            content = encode_clock(self._clock.utc_ns(), is_open=False)
        elif path.startswith(("/v2/positions", "/v2/account/activities", "/v2/orders")):
            content = b"[]"
        elif path.startswith(("/v2/stocks/", "/v1beta3/crypto/", "/v1beta1/")):
            content = _NO_RECORDS
        else:
            return HttpAnswer(json_response(404, b'{"message":"not found"}'))
        return HttpAnswer(json_response(200, content))

    def refuse_upgrade_now(self, path: str) -> None:
        """Every upgrade is accepted."""

    def open_session(
        self, number: int, request: Request, encoding: Encoding
    ) -> tuple[Session, Reply]:
        """Begin a session, with the login of the request's headers where it has one."""
        session = Session(
            number,
            request.path.partition("?")[0],
            account=self._account,
            refusals=self._refusals,
            rules=self.config.rules(),
            encoding=encoding,
        )
        key = request.headers.get("APCA-API-KEY-ID")
        secret = request.headers.get("APCA-API-SECRET-KEY")
        credentials = None if key is None and secret is None else (key or "", secret or "")
        return session, session.open(anyio.current_time(), credentials)

    def message_came(self, number: int, message: Mapping[str, Any] | None) -> None:
        """Nothing is kept of what clients send."""

    def subscriptions_changed(self, feed: SimFeed) -> None:
        """The players look themselves."""

    def first_records(self, kind: SimKind[S], symbols: AbstractSet[str]) -> Sequence[S]:  # noqa: ARG002 - Venue
        """There are none."""
        return ()

    def notify(self) -> None:
        """The players look themselves."""


class Player:
    """Sends a feed's part of a journal to one client.

    Args:
        journal: The journal.
        feed: The client's feed.
        speed: See :func:`open_replay`.

    Attributes:
        at_ns: The time in the journal that was reached, UTC nanoseconds.
        messages: The messages sent.
        ended: Whether all is sent.
        error: Why it has ended early, or None.
    """

    def __init__(self, journal: Journal, feed: Feed, speed: float) -> None:
        self.feed = feed
        self.at_ns = journal.first_ns
        self.messages = 0
        self.ended = False
        self.error: str | None = None
        self._journal = journal
        self._speed = speed
        self._wanted = journal.topics.get(feed.name, frozenset())

    @property
    def share(self) -> float:
        """The part of the journal's time that is over, 0 to 1."""
        length_ns = self._journal.last_ns - self._journal.first_ns
        done = (self.at_ns - self._journal.first_ns) / length_ns if length_ns > 0 else 1.0
        return 1.0 if self.ended else min(max(done, 0.0), 1.0)

    def covered(self, session: Session) -> bool:
        """Whether a client has subscribed all that was recorded."""
        return all(session.wants(topic.symbol, topic.channel) for topic in self._wanted)

    async def play(self, connection: Connection, session: Session) -> None:
        """Send everything; the connection stays open.

        Raises:
            JournalError: The journal cannot be read to its end.
        """
        decisions = Decisions(self.feed)
        sending = _Sending(connection, session, self, decisions)
        started_s, first_ns = anyio.current_time(), self._journal.first_ns
        reached_ns = math.inf if self._speed == MAX_SPEED else first_ns
        with closing(self._steps(decisions)) as steps:
            try:
                for step in steps:
                    if step.time_ns > reached_ns:
                        due_s = started_s + (step.time_ns - first_ns) / 1e9 / self._speed
                        if (wait_s := due_s - anyio.current_time()) > _WAIT_S:
                            await sending.turn(wait_s)
                        passed_s = anyio.current_time() + _WAIT_S - started_s
                        reached_ns = first_ns + passed_s * self._speed * 1e9
                    if sending.full:
                        await sending.turn()
                    sending.add(step)
                    self.at_ns = max(self.at_ns, step.time_ns)
            finally:
                sending.flush()
        await sending.turn()
        await connection.wait_for_room(0)
        self.ended = True

    def _steps(self, decisions: Decisions) -> Generator[Step]:
        journal = self._journal
        with closing(decisions):
            entries = read(journal.segments, journal.from_ns, journal.to_ns)
            in_time = self._speed != MAX_SPEED
            groups = ([entry] for entry in entries) if in_time else groups_of(entries)
            for group in groups:
                for step in decisions.take_group(group):
                    if step.time_ns >= (journal.from_ns or 0):
                        yield step


class _Sending:
    """What a player sends in one turn of the event loop; subscriptions change only between two."""

    def __init__(
        self, connection: Connection, session: Session, player: Player, decisions: Decisions
    ) -> None:
        self._connection = connection
        self._session = session
        self._player = player
        self._decisions = decisions
        self._framed: list[bytes] = []
        self._framed_bytes = 0
        self._steps = 0
        self._subscribed: Mapping[str, Sequence[str]] | None = None
        self._look()

    def _look(self) -> None:
        subscribed = self._session.subscriptions
        if subscribed != self._subscribed:
            self._subscribed = subscribed
            self._covered = self._player.covered(self._session)
            self._decisions.as_sent_in = self._connection.encoding if self._covered else None

    @property
    def full(self) -> bool:
        """Whether the turn should end."""
        return self._framed_bytes >= _TURN_BYTES or self._steps >= _TURN_STEPS

    async def turn(self, pause_s: float = 0.0) -> None:
        """Send what was added, and pause at least until the client has read most of it."""
        self.flush()
        self._steps = 0
        if pause_s:
            await anyio.sleep(pause_s)
        else:
            await checkpoint()
        await self._connection.wait_for_room(_MOST_PENDING_BYTES)
        self._look()

    def add(self, step: Step) -> None:
        """Add what an entry brings: its frames, or the part of its records that is wanted."""
        self._steps += 1
        player, encoding = self._player, self._connection.encoding
        if self._covered and step.frames and step.encoding == encoding:
            for frame in step.frames:
                text = isinstance(frame, str)
                data = frame.encode("utf-8", "surrogatepass") if isinstance(frame, str) else frame
                framed = data_frame(data, text=text)
                self._framed.append(framed)
                self._framed_bytes += len(framed)
            player.messages += sum(len(batch.records) for batch in step.batches)
            return
        self.flush()
        for batch in step.batches:
            messages = _messages(batch)
            if not self._covered:
                messages = [each for each in messages if _wants(self._session, each)]
            player.messages += len(messages)
            for start in range(0, len(messages), _MOST_IN_FRAME):
                content = payload(messages[start : start + _MOST_IN_FRAME], encoding)
                self._connection.send_frame(OutFrame(content, encoding == "json"))

    def flush(self) -> None:
        """Give the connection what was added."""
        if self._framed:
            self._connection.send_framed(b"".join(self._framed))
            self._framed.clear()
            self._framed_bytes = 0


def groups_of(entries: Iterable[Entry]) -> Iterator[Sequence[Entry]]:
    """Frames of one connection that follow one another, in groups; any other entry alone.

    Raises:
        JournalError: From the entries, after the last group before it.
    """
    group: list[Entry] = []
    size = 0
    try:
        for entry in entries:
            is_frames = entry.type is EntryType.FRAMES
            size += len(entry.payload)
            if group and not (
                is_frames and size <= _GROUP_BYTES and entry.connection == group[0].connection
            ):
                yield group
                group, size = [], len(entry.payload)
            group.append(entry)
            if not is_frames:
                yield group
                group, size = [], 0
    except JournalError:
        if group:
            yield group
        raise
    if group:
        yield group


async def _until(condition: Callable[[], object]) -> None:
    """Wait for a change of a connection, which has no event for it."""
    while not condition():  # noqa: ASYNC110
        await anyio.sleep(_WAIT_S)


def _messages(batch: RecordBatch[Any]) -> list[Message]:
    return messages_of(batch.kind, batch.records)


def _wants(session: Session, message: Message) -> bool:
    symbols = message.symbols or (message.symbol,)
    return any(session.wants(symbol, message.channel) for symbol in (*symbols, EVERY_SYMBOL))
