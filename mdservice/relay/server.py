"""The actor that accepts the relay's clients and serves them."""

from __future__ import annotations

import errno
import re
import resource
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, get_args
from urllib.parse import urlsplit

import anyio
import attrs
from anyio.abc import TaskGroup, TaskStatus
from anyio.lowlevel import checkpoint
from websockets.frames import CloseCode
from websockets.http11 import Request

from mdservice.clock import Clock
from mdservice.errors import SubscriptionRefused
from mdservice.model.events import RecordBatch, RoutedItem
from mdservice.model.feeds import NEWS_FEED, OPTIONS, Feed, Topic
from mdservice.model.kinds import ORDERBOOKS, QUOTES, Kind
from mdservice.model.status import RelayClass, RelayClassReport, RelayClient, RelayStatus
from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.observability.logging import get_logger
from mdservice.relay.fanout import Backlog, Control, FanOut
from mdservice.relay.messages import Encoding, Message, messages_of, payload
from mdservice.relay.session import (
    Ack,
    Change,
    Credentials,
    RelayError,
    Session,
    encode_control,
    feed_at,
    is_msgpack,
    read_message,
)
from mdservice.relay.websocket import Line, WebSocket
from mdservice.relay.wishes import Upstream, Wishes
from mdservice.runtime.actor import BEAT_S, Answer, Depth, Heartbeat
from mdservice.settings.parsers import is_loopback

__all__ = ["AUTH_TIMEOUT_S", "MOST_CLIENTS", "Relay", "RelayConfig"]

_log = get_logger(__name__)

MOST_CLIENTS: Final = 4_000
"""The most clients at once; a further one gets HTTP 503."""
_MOST_CONNECTIONS: Final = 2 * MOST_CLIENTS
"""The most connections, with those that log in; a further one is closed without a word."""
_OWN_FILES: Final = 768
"""Of the files that the process may open, the relay leaves so many: 256 to the feeds and to Redis,
and as many to each listener of the HTTP API. If there are few, it takes half of them."""
AUTH_TIMEOUT_S: Final = 10.0
"""The time for TLS, upgrade and login together; then the client gets 404."""
_ANSWER_S: Final = 1.0
"""How long a subscription waits for the feed's answer. The Go SDK gives up after 3 s."""
_REQUESTS_PER_S: Final = 100
"""A client that sends more is read more slowly. A ping counts as one; a large request as more."""
_REQUEST_BYTES: Final = 8 * 1024
_REQUEST_TOPICS: Final = 8 * 1024
"""A request counts once more for each such part, and for as many topics in its answer."""
_MOST_ANSWERS: Final = 4
"""Likewise one that leaves more control messages unread."""
_CLOSE_S: Final = 2.0
"""The time for a client to take its last bytes and to answer the closing handshake."""
_MOST_IN_FRAME: Final = 500
_MOST_FRAME_BYTES: Final = 64 * 1024
_AT_ONCE: Final = 32
"""How many clients are sent to before other tasks run."""
_FIRST_KINDS: Final[tuple[Kind[Any], ...]] = (QUOTES, ORDERBOOKS)
"""The kinds whose latest value a new subscriber gets at once."""
_CLASSES: Final[tuple[RelayClass, ...]] = get_args(RelayClass)
_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e]")
_NAME_CHARACTERS: Final = 64
_NO_FILES: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

_Frames = dict[tuple[Message, ...], bytes]


@attrs.frozen
class RelayConfig:
    """What the relay serves, and to whom.

    Attributes:
        address: Where it listens, ``127.0.0.1:8765``.
        served: Each feed with its name in Alpaca's paths, ``iex``; None where any is right.
        keys: Key pairs that may log in; empty for any.
        tls: The TLS context of the listeners, or None.
    """

    address: str
    served: Mapping[Feed, str | None]
    keys: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    tls: ssl.SSLContext | None = None


class Client:
    """One client, from its upgrade to its end.

    Args:
        number: Names it in the log.
        name: Names its program: the ``User-Agent``.
        address: Its own address.
        path: What it has asked for.
        runs: Where its program runs.
        websocket: Its connection.
        session: The protocol's state.
        ready: Called when something waits for it that was not there before.
    """

    def __init__(
        self,
        *,
        number: int,
        name: str,
        address: str,
        path: str,
        runs: RelayClass,
        websocket: WebSocket,
        session: Session,
        ready: Callable[[Client], None],
        now_s: float,
    ) -> None:
        self.number = number
        self.name = name
        self.address = address
        self.path = path
        self.runs: RelayClass = runs
        self.websocket = websocket
        self.session = session
        self.backlog = Backlog()
        self.connected_s = now_s
        """When it connected, monotonic seconds."""
        self.sent = 0
        """Records."""
        self.sent_before = 0
        self.rate = 0.0
        """Records per second in the last second."""
        self.cut = False
        self.requests = 0
        """Of this second."""
        self.closing_s = 0
        """How many seconds ago the relay began to end the connection."""
        self.draining = False
        """Whether a task waits until its socket takes more."""
        self._flushed: anyio.Event | None = None
        self._ready = ready
        self._queued = False
        self._text = session.encoding == "json"

    def use_msgpack(self) -> None:
        """Send msgpack from now on."""
        self.session.encoding = "msgpack"
        self._text = False

    @property
    def unsent(self) -> bool:
        """Whether something waits that the socket has not taken."""
        return bool(self.backlog) or self.websocket.line.blocked

    async def flushed(self) -> None:
        """Wait until the socket has taken something."""
        if self._flushed is None:
            self._flushed = anyio.Event()
        await self._flushed.wait()

    def receive(self, message: Message) -> None:
        """Take a record that the client has subscribed."""
        if self.cut:
            return
        if not self.backlog.add(message):
            self.cut = True
            self.backlog.clear()
            self.control(RelayError(407).message(), closes=True)
        if not self._queued:
            self._queued = True
            self._ready(self)

    def control(self, message: Mapping[str, object], *, closes: bool = False) -> None:
        """Send a control message after what waits, alone in its frame."""
        encoded = encode_control(message, self.session.encoding)
        self.backlog.add_control(Control(encoded, closes))
        if not self._queued:
            self._queued = True
            self._ready(self)

    def flush(self, frames: _Frames) -> None:
        """Send what waits, until the socket takes no more.

        Args:
            frames: The frames of this turn, which clients with the same encoding share.
        """
        self._queued = False
        if self._flushed is not None:
            self._flushed.set()  # those who wait look when this turn is over
            self._flushed = None
        websocket, backlog = self.websocket, self.backlog
        while backlog and not websocket.line.blocked:
            taken = backlog.take(_MOST_IN_FRAME, _MOST_FRAME_BYTES)
            if taken is None:
                return
            if isinstance(taken, Control):
                if websocket.open:
                    websocket.send(taken.payload, text=self._text)
                if taken.closes:
                    backlog.clear()
                    websocket.close(
                        CloseCode.POLICY_VIOLATION if self.cut else CloseCode.NORMAL_CLOSURE
                    )
                continue
            if not websocket.open:
                backlog.clear()
                return
            websocket.line.send(self._frame(taken, frames))
            self.sent += len(taken)

    def _frame(self, messages: list[Message], frames: _Frames) -> bytes:
        if not self.websocket.shares_frames:
            return self.websocket.frame(payload(messages, self.session.encoding), text=self._text)
        key = tuple(messages)
        frame = frames.get(key)
        if frame is None:
            frame = frames[key] = self.websocket.frame(
                payload(messages, self.session.encoding), text=self._text
            )
        return frame


@attrs.define
class _Totals:
    """Sums over clients; their meanings are those of :class:`RelayClassReport`."""

    clients: int = 0
    cut: int = 0
    messages: int = 0
    conflated: int = 0

    def add(self, client: Client) -> None:
        """Add what a client counts."""
        self.cut += client.cut
        self.messages += client.sent
        self.conflated += client.backlog.conflated


class _EarlyRecords:
    """The records that the feed sends between its acknowledgement and the client's own.

    The client gets them behind its acknowledgement, since the Go SDK allows no data before it.

    Args:
        known: What the client has already, so that it gets those records anyway.

    Attributes:
        quoted: The symbols of the quotes among them: the client needs no other latest quote.
    """

    def __init__(self, known: frozenset[Topic]) -> None:
        self.quoted: set[Topic] = set()
        self._known = known
        self._backlog = Backlog()
        self._full = False

    def receive(self, message: Message) -> None:
        """Take a record."""
        channel, symbols = message.channel, message.symbols or (message.symbol,)
        if self._full or channel == ORDERBOOKS.channel:
            return  # the client is cut for the number of these; or it gets the whole book
        if not any(Topic(channel, each) in self._known for each in (EVERY_SYMBOL, *symbols)):
            self._full = not self._backlog.add(message)
            if channel == QUOTES.channel:
                self.quoted.add(Topic(channel, message.symbol))

    def messages(self) -> Iterator[Message]:
        """The records, in order."""
        while isinstance(taken := self._backlog.take(_MOST_IN_FRAME, _MOST_FRAME_BYTES), list):
            yield from taken


class Relay:
    """Serves Alpaca's streams to clients.

    Each client has a reader task; one loop sends to all. A client that does not read costs its
    backlog and nothing else.

    Args:
        config: What to serve.
        listeners: Bound sockets; this object accepts from them, and does not close them.
        upstream: The service.
        clock: The time.
        ready: Returns whether the service has started; until then clients get HTTP 503.
    """

    name = "relay"
    depth = Depth(0, 0)

    def __init__(
        self,
        config: RelayConfig,
        listeners: Sequence[socket.socket],
        upstream: Upstream,
        clock: Clock,
        ready: Callable[[], bool],
    ) -> None:
        self.config = config
        self.heartbeat = Heartbeat(clock)
        self._listeners = listeners
        self._upstream = upstream
        self._fan_outs = {feed: FanOut(feed) for feed in config.served}
        self._wishes = {feed: Wishes(feed, upstream) for feed in config.served}
        self._clients: dict[int, Client] = {}
        self._connections = 0
        self._most_connections = _most_connections()
        self._most_clients = min(MOST_CLIENTS, self._most_connections * 7 // 8)
        self._number = 0
        self._ready = ready
        self._refusing = False
        self._stopping = anyio.Event()
        self._stopped = anyio.Event()
        self._queue: list[Client] = []
        self._wake = anyio.Event()
        self._second = anyio.Event()
        """Set when the next second begins."""
        self._left = anyio.Event()
        """Set when a client has left."""
        self._tasks: TaskGroup | None = None
        self._left_totals = {name: _Totals() for name in _CLASSES}
        """Of the clients that have left."""

    # Called by others; none of these waits.

    def offer(self, feed: Feed, item: RoutedItem) -> None:
        """Give the accepted records of a feed to the clients. Never fails."""
        if isinstance(item, RecordBatch):
            try:
                self._fan_outs[feed].offer(item.kind, item.records)
            except Exception:  # noqa: BLE001 - the router, which calls this, must go on
                _log.exception("relay_offer_failed", feed=feed.name, channel=item.kind.channel)

    def status(self) -> RelayStatus:
        """The clients, and the counters since the service started."""
        now_s = anyio.current_time()
        clients = tuple(
            RelayClient(
                name=each.name,
                address=each.address,
                path=each.path,
                encoding=each.session.encoding,
                connected_s=round(now_s - each.connected_s, 1),
                symbols=len(each.session.subscribed),
                sent=each.sent,
                rate=each.rate,
                backlog=len(each.backlog),
                conflated=each.backlog.conflated,
            )
            for each in self._clients.values()
        )
        totals = {name: attrs.evolve(left) for name, left in self._left_totals.items()}
        for client in self._clients.values():
            totals[client.runs].add(client)
            totals[client.runs].clients += 1
        return RelayStatus(
            address=self.config.address,
            clients=clients,
            cut=sum(each.cut for each in totals.values()),
            messages=sum(each.messages for each in totals.values()),
            conflated=sum(each.conflated for each in totals.values()),
            classes={name: RelayClassReport(**attrs.asdict(each)) for name, each in totals.items()},
        )

    async def stop(self) -> None:
        """Send what waits, close every connection with code 1001, and return."""
        self._refusing = True
        self._stopping.set()
        with anyio.move_on_after(_CLOSE_S):
            await self._stopped.wait()

    def refuse(self) -> None:
        """Accept no more clients; those that are connected stay."""
        self._refusing = True

    # The actor

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Serve clients until :meth:`stop`."""
        self._queue, self._wake = [], anyio.Event()
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._flush_all)
                tasks.start_soon(self._tick)
                tasks.start_soon(self._release)
                for listener in self._listeners:
                    tasks.start_soon(self._accept, listener)
                task_status.started()
                await self._stopping.wait()
                await self._close_all()
                tasks.cancel_scope.cancel()
        finally:
            self._tasks = None
            for feed in self._fan_outs:
                self._fan_outs[feed] = FanOut(feed)
                self._wishes[feed].remove_all()
            self._clients.clear()
        self._stopped.set()

    async def _close_all(self) -> None:
        """Let each client take what waits, and end its connection."""
        clients = list(self._clients.values())
        with anyio.move_on_after(_CLOSE_S / 2):
            for client in clients:
                while client.unsent:
                    await client.flushed()
        for client in clients:
            client.websocket.close(CloseCode.GOING_AWAY)
        with anyio.move_on_after(_CLOSE_S / 4):
            while self._clients:
                await self._left.wait()

    async def _accept(self, listener: socket.socket) -> None:
        full = False
        while True:
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                await anyio.wait_readable(listener)
                continue
            except OSError as error:  # the client has left, or there is no room for its socket
                if error.errno in _NO_FILES:
                    if not full:
                        full = True
                        _log.warning("relay_cannot_accept", reason=error.strerror)
                    await anyio.sleep(0.1)
                await checkpoint()
                continue
            full = False
            if self._tasks is None or self._connections >= self._most_connections:
                sock.close()  # not even a refusal is affordable
            else:
                self._connections += 1
                self._tasks.start_soon(self._serve, sock, _shown(address))
            await checkpoint()

    async def _serve(self, sock: socket.socket, address: str) -> None:
        """Serve one connection until it ends. Its failure ends no other."""
        line = Line(sock, self.config.tls)
        runs: RelayClass = "local" if _is_loopback(sock) else "remote"
        websocket = WebSocket(line, compresses=runs == "remote")
        client: Client | None = None
        try:
            with anyio.CancelScope(deadline=anyio.current_time() + AUTH_TIMEOUT_S) as login:
                client = await self._open(websocket, address, runs)
                if client is not None and await self._log_in(client):
                    login.deadline = float("inf")
                    await self._read(client)
            if login.cancelled_caught and client is not None:
                client.control(RelayError(404).message(), closes=True)
            await self._end(line, client)
        except Exception:  # noqa: BLE001 - what one client causes must end no other
            _log.exception("relay_client_failed", address=address)
        finally:
            self._connections -= 1
            if client is not None:
                self._forget(client)
            line.close()

    async def _open(self, websocket: WebSocket, address: str, runs: RelayClass) -> Client | None:
        try:
            request = await websocket.handshake(self._refusal)
        except ConnectionError as error:
            _log.info("relay_client_refused", address=address, reason=str(error))
            return None
        if request is None:
            return None
        path = _path(request)
        feed, served = feed_at(path, self.config.served) or (None, False)
        if feed is None:
            return None
        content_type = _header(request, "Content-Type") or ""
        encoding: Encoding = "msgpack" if "msgpack" in content_type.lower() else "json"
        self._number += 1
        client = Client(
            number=self._number,
            name=_name(request, self._number),
            address=address,
            path=path,
            runs=runs,
            websocket=websocket,
            session=Session(feed, served=served, encoding=encoding, keys=self.config.keys),
            ready=self._enqueue,
            now_s=anyio.current_time(),
        )
        self._clients[client.number] = client
        client.control({"T": "success", "msg": "connected"})
        key = _header(request, "APCA-API-KEY-ID")
        secret = _header(request, "APCA-API-SECRET-KEY")
        if key is not None and secret is not None:
            try:
                client.session.log_in(Credentials(key, secret))
            except RelayError as error:
                client.control(error.message(), closes=error.closes)
            else:
                client.control({"T": "success", "msg": "authenticated"})
        return client

    def _refusal(self, request: Request) -> tuple[HTTPStatus, str] | None:
        if self._refusing or not self._ready():
            return HTTPStatus.SERVICE_UNAVAILABLE, "the service starts or stops: try again"
        path = _path(request)
        if feed_at(path, self.config.served) is None:
            shown = _UNPRINTABLE.sub("?", path)
            return HTTPStatus.NOT_FOUND, f"no stream of Alpaca's has the path {shown}"
        if not self.config.keys and not all(map(_is_local_page, request.headers.get_all("Origin"))):
            return (
                HTTPStatus.FORBIDDEN,
                "a page of another host may connect only where MDSERVICE_RELAY_KEYS is set",
            )
        if len(self._clients) >= self._most_clients:
            return (
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{self._most_clients} programs are connected, which is the limit",
            )
        return None

    async def _log_in(self, client: Client) -> bool:
        """Read until the client has logged in; False where it has not, and ends."""
        while not client.session.authenticated:
            if not client.websocket.open or not await self._take_next(client):
                return False
        client.websocket.trust()
        _log.info("relay_client_connected", client=client.name, path=client.path)
        return True

    async def _read(self, client: Client) -> None:
        """Answer the client's requests until it leaves."""
        while await self._take_next(client):
            pass

    async def _take_next(self, client: Client) -> bool:
        """Take the client's next messages; False at the end.

        A client that sends many requests, or does not read the answers, is read more slowly.
        """
        before = client.websocket.frames
        messages = await client.websocket.receive()
        if messages is None:
            return False
        client.requests += client.websocket.frames - before - len(messages)
        for data, text in messages:
            client.requests += 1 + len(data) // _REQUEST_BYTES
            await self._pace(client)
            if is_msgpack(data, text=text) and client.session.feed is OPTIONS:
                client.use_msgpack()  # Alpaca's C# SDK cannot name it in the upgrade
            if not await self._answer(client, read_message(data, text=text)):
                return False
            client.requests += len(client.session.subscribed) // _REQUEST_TOPICS
        await self._pace(client)
        return True

    async def _pace(self, client: Client) -> None:
        while client.requests > _REQUESTS_PER_S:
            await self._second.wait()
        while client.backlog.controls > _MOST_ANSWERS:
            await client.flushed()

    async def _answer(self, client: Client, message: Mapping[str, Any] | None) -> bool:
        """Answer a message; False where that ends the connection."""
        try:
            asked = client.session.receive(message)
            if isinstance(asked, Ack):
                client.control({"T": "success", "msg": "authenticated"})
            else:
                await self._change(client, asked)
        except RelayError as error:
            client.control(error.message(), closes=error.closes)
            return not error.closes
        return True

    async def _change(self, client: Client, change: Change) -> None:
        """Apply a request, acknowledge it, and send the latest values of what is new."""
        session, topics = client.session, change.topics
        wishes, fan_out = self._wishes[session.feed], self._fan_outs[session.feed]
        if not change.adding:
            session.apply(change)
            fan_out.remove(client, topics)
            wishes.remove(topics)
            if session.feed is not NEWS_FEED:  # articles are about several symbols
                client.backlog.drop({topic.channel for topic in topics}, session.subscribed)
            client.control(session.acknowledgement())
            return
        wishes.count(topics)
        known = frozenset(session.subscribed)
        early = _EarlyRecords(known)
        if topics and self._tasks is not None:
            answer = Answer[None]()
            fan_out.add(early, topics)
            self._tasks.start_soon(self._ask, client, change, answer)
            try:
                with anyio.move_on_after(_ANSWER_S):
                    await answer.wait()
                answer.give(None)  # from now on a refusal is late
                await answer.wait()  # it may have come together with the end of the wait
            except SubscriptionRefused as refused:
                wishes.remove(topics)
                raise RelayError(refused.code) from refused
            finally:
                fan_out.discard(early)
        session.apply(change)
        client.control(session.acknowledgement())
        for message in early.messages():
            client.receive(message)
        known |= early.quoted
        for kind in _FIRST_KINDS:
            every = Topic(kind.channel, EVERY_SYMBOL)
            if every in known:
                continue
            new = [
                topic.symbol
                for topic in topics
                if topic.channel == kind.channel and topic not in early.quoted
            ]
            for symbol in [EVERY_SYMBOL] if every in topics else new:
                self._send_latest(client, kind, symbol, known)
        fan_out.add(client, topics)

    async def _ask(self, client: Client, change: Change, answer: Answer[None]) -> None:
        """Ask the feed for the topics of a request."""
        session = client.session
        feed, wishes = session.feed, self._wishes[session.feed]
        try:
            await wishes.ask(change.topics)
        except SubscriptionRefused as refused:
            if not answer.given:
                answer.fail(refused)
                return
            _log.warning(
                "relay_request_refused_late",
                client=client.name,
                feed=feed.name,
                code=refused.code,
                reason=str(refused),
                count=len(change.topics),
            )
            if client.number in self._clients:
                # without those that the client has unsubscribed, and perhaps asked for again
                left = [each for each in change.topics if session.subscribed.get(each) is change]
                session.apply(Change(adding=False, topics=tuple(left)))
                self._fan_outs[feed].remove(client, left)
                wishes.remove(left)
                client.control(RelayError(refused.code).message())
                client.control(session.acknowledgement())
        else:
            answer.give(None)

    def _send_latest(
        self, client: Client, kind: Kind[Any], symbol: str, known: frozenset[Topic]
    ) -> None:
        """Send the latest value of a symbol, or for ``*`` of all but those that are known."""
        records = self._upstream.latest(client.session.feed, kind, symbol)
        if known:
            records = [one for one in records if Topic(kind.channel, one.symbol) not in known]
        for message in messages_of(kind, records):
            client.receive(message.whole())

    async def _end(self, line: Line, client: Client | None) -> None:
        """Let the client take its last bytes and answer the closing handshake."""
        with anyio.move_on_after(_CLOSE_S):
            if client is not None:
                while client.unsent:
                    await client.flushed()
                client.websocket.close()
                while await client.websocket.receive() is not None:
                    pass
            await line.finish()

    def _forget(self, client: Client) -> None:
        if self._clients.pop(client.number, None) is None:
            return
        left, self._left = self._left, anyio.Event()
        left.set()
        feed = client.session.feed
        if feed in self._fan_outs:
            self._fan_outs[feed].discard(client)
            self._wishes[feed].remove(client.session.subscribed)
        self._left_totals[client.runs].add(client)
        if client.cut:
            _log.warning("relay_client_cut", client=client.name, reason="slow client")
        elif client.session.authenticated:
            _log.info("relay_client_left", client=client.name)

    # Sending

    def _enqueue(self, client: Client) -> None:
        self._queue.append(client)
        self._wake.set()

    async def _flush_all(self) -> None:
        """Send to the clients for whom something waits, in turns."""
        while True:
            await self._wake.wait()
            self._wake = anyio.Event()
            queue, self._queue = self._queue, []
            shared: dict[Encoding, _Frames] = {"json": {}, "msgpack": {}}
            for place, client in enumerate(queue, 1):
                self._flush(client, shared[client.session.encoding])
                if not place % _AT_ONCE:
                    await checkpoint()
            await checkpoint()

    def _flush(self, client: Client, frames: _Frames) -> None:
        try:
            client.flush(frames)
        except Exception:  # noqa: BLE001 - the others must get their messages
            _log.exception("relay_client_failed", address=client.address)
            client.websocket.line.cut()
        if client.websocket.line.blocked and not client.draining and self._tasks is not None:
            client.draining = True
            self._tasks.start_soon(self._drain, client)

    async def _drain(self, client: Client) -> None:
        """Send to a client whose socket was full, as fast as it reads."""
        try:
            while client.websocket.line.blocked:
                await client.websocket.line.drain()
                self._flush(client, {})
        finally:
            client.draining = False

    async def _tick(self) -> None:
        """Once a second: the clients' rates, and the end of those that do not close."""
        while True:
            before_s = anyio.current_time()
            await anyio.sleep(BEAT_S)
            passed_s = max(anyio.current_time() - before_s, BEAT_S)
            self.heartbeat.beat()
            second, self._second = self._second, anyio.Event()
            for client in self._clients.values():
                client.rate = round((client.sent - client.sent_before) / passed_s, 1)
                client.sent_before = client.sent
                client.requests = 0
                if client.cut or not client.websocket.open:
                    client.closing_s += 1
                    if client.closing_s > _CLOSE_S:  # it does not read, or does not answer
                        client.websocket.line.cut()
            second.set()

    async def _release(self) -> None:
        """Unsubscribe what no client has wanted for a while."""
        while True:
            await anyio.sleep(BEAT_S)
            for wishes in self._wishes.values():
                await wishes.release()


def _path(request: Request) -> str:
    return request.path.partition("?")[0]


def _header(request: Request, name: str) -> str | None:
    """The first of a header's values; a client may send several."""
    return next(iter(request.headers.get_all(name)), None)


def _name(request: Request, number: int) -> str:
    agent = _header(request, "User-Agent") or "client"
    return f"{_UNPRINTABLE.sub('', agent)[:_NAME_CHARACTERS]} ({number})"


def _shown(address: tuple[object, ...]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def _is_loopback(sock: socket.socket) -> bool:
    try:
        host = str(sock.getpeername()[0])
    except OSError:
        return True
    return host.startswith("127.") or host in ("::1", "::ffff:127.0.0.1")


def _is_local_page(origin: str) -> bool:
    """Whether the ``Origin`` of a browser's request is a page of this machine."""
    try:
        host = urlsplit(origin).hostname or ""
    except ValueError:
        return False
    return host.endswith(".localhost") or is_loopback(host)


def _most_connections() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return _MOST_CONNECTIONS
    return min(_MOST_CONNECTIONS, max(files - _OWN_FILES, files // 2))
