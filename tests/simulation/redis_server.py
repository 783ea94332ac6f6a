"""A simulated Redis with connections: each has a way that may be cut, and an end at the server.

What a client has sent is executed in the server's own time: also if the client stops, is killed, or
gives up meanwhile. So the group's lease is the real one, with the real client; its scripts are
written again here in Python, and pass the contract suite of the lease.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import attrs
import hiredis

from mdservice.errors import StoreRefused, StoreUnavailable
from mdservice.model.kinds import Kind
from mdservice.publish.lease import Leader
from mdservice.publish.store import WriteBatch
from mdservice.redis_io import lease as scripts
from mdservice.redis_io.lease import Admit
from mdservice.redis_io.names import RedisNames
from mdservice.redis_io.replies import refusal
from mdservice.testing import VirtualClock
from tests.simulation.store import SimulatedStore

T = TypeVar("T")

GROUP = "desk"
STORE_TIMEOUT_S = 3.0
"""As long as the service waits for each answer."""
_KEYS = RedisNames("").group_keys(GROUP)
_LEASE, _TERM, _STANDBY, _WISHES = _KEYS
_FOR_EVER_S = float("inf")
_LONGEST_WAY_S = 0.002


class Way:
    """The network between one client and the server."""

    def __init__(self) -> None:
        self.is_open = True
        self.is_gone = False
        self.silent = False
        """Whether what is sent while it is cut arrives later; else connections break."""
        self._opened = anyio.Event()
        self._connections: list[Connection] = []

    def cut(self, *, silent: bool) -> None:
        """Nothing arrives any more, in either direction."""
        self.is_open, self.silent, self._opened = False, silent, anyio.Event()
        if not silent:
            self.break_connections()

    def close_for_good(self) -> None:
        """The client is dead: it sends nothing more, and what it has sent may arrive."""
        self.is_gone = True
        self.break_connections()

    def open(self) -> None:
        """The network works again."""
        self.is_open = True
        self._opened.set()

    def break_connections(self) -> None:
        """The client learns at once that its connections are gone; what it has sent may arrive."""
        for connection in self._connections:
            connection.broken()
        self._connections.clear()

    async def pass_through(self) -> None:
        """Wait until something that was sent arrives."""
        while not self.is_open:
            await self._opened.wait()


@attrs.define
class Granted:
    """A lease that the server gave or renewed.

    Attributes:
        free: It was given up, not taken.
    """

    at_s: float
    id: str
    epoch: int
    free: bool = False


@attrs.define
class Written:
    """A batch that the server executed.

    Attributes:
        id, term: The writer: its name in the group, and the epoch of its term.
        holder: Who the server says leads, at that moment.
        epoch: The last epoch that the server has given away.
        keys: The payload of each price that the batch writes or publishes, right after it.
    """

    at_s: float
    batch: WriteBatch
    id: str
    term: int
    holder: str | None
    epoch: int
    keys: dict[str, bytes | None]


@attrs.define
class Read:
    """What a leader read of the prices at the begin of its term."""

    at_s: float
    id: str
    term: int
    found: Mapping[str, bytes]


@attrs.define
class Lost:
    """The server came back without its last data, or without any.

    Attributes:
        keys: The prices that it still has.
    """

    at_s: float
    keys: dict[str, bytes]


class SimulatedRedis(SimulatedStore):
    """The server of a group: prices, events and the lease, for clients with connections."""

    def __init__(
        self, clock: VirtualClock, tasks: Any, rng: random.Random, price_ttl_s: int = 300
    ) -> None:
        self.run_number = 0
        self.connections: dict[int, Connection] = {}
        self.granted: list[Granted] = []
        self.history: list[Written | Read | Lost] = []
        """What a reader of all that happened would have seen, in order."""
        self._group: dict[bytes, tuple[bytes, float]] = {}
        self._group_replica: dict[bytes, tuple[bytes, float]] = {}
        self._last_client = 0
        self.restarted_s = -_FOR_EVER_S
        self.slow_s = 0.0
        """How much longer each exchange takes."""
        self.fast_s = -_FOR_EVER_S
        """When it last became fast again."""
        self.claimed: Callable[[str], None] | None = None
        """Called once with the id of who claims the lease next, before it has the answer."""
        super().__init__(clock, tasks, rng, price_ttl_s)

    # Faults

    @property
    def run_id(self) -> str:
        """Names this run of the server."""
        return f"run{self.run_number}"

    def stop(self) -> None:
        """It does not run until :meth:`start`."""
        self.down = True
        self._end_every_connection()

    def start(self, *, keeps: bool = True) -> None:
        """It runs again, with its data or without any."""
        self.down = False
        self._begin_run()
        if not keeps:
            self.restart()

    def restart(self) -> None:
        """Forget everything."""
        self._begin_run()
        self._group.clear()
        super().restart()
        self.history.append(Lost(anyio.current_time(), {}))

    def replicate(self) -> None:
        super().replicate()
        self._group_replica = dict(self._group)

    def fail_over(self) -> None:
        """The address leads to the replica."""
        self._begin_run()
        keys, _, _ = self._replica
        self._keys.clear()
        self._keys.update(keys)
        self._group = dict(self._group_replica)
        self.history.append(Lost(anyio.current_time(), self._prices()))

    def _begin_run(self) -> None:
        self._end_every_connection()
        self.run_number += 1
        self.restarted_s = anyio.current_time()

    def _end_every_connection(self) -> None:
        for connection in list(self.connections.values()):
            connection.end()

    def _prices(self) -> dict[str, bytes]:
        names = [name for name in self._keys if name.startswith("price:")]
        return {name[len("price:") :]: found for name in names if (found := self.get(name))}

    # The lease, as an observer sees it

    @property
    def holder(self) -> str | None:
        """Who the server says leads or led last; None if it does not know."""
        term = self._text(_TERM)
        return None if term is None else json.loads(term)["holder"]

    @property
    def leader(self) -> str | None:
        """Who has the lease now."""
        lease = self._text(_LEASE)
        return None if lease is None else json.loads(lease)["id"]

    @property
    def epoch(self) -> int:
        """The last epoch that it gave away."""
        term = self._text(_TERM)
        return 0 if term is None else json.loads(term)["epoch"]

    @property
    def wishes(self) -> dict[str, Any]:
        """What the leader's programs want, as it is kept for the next one."""
        kept = self._text(_WISHES)
        return {"sources": {}, "removed": []} if kept is None else json.loads(kept)

    def forget_lease(self) -> None:
        """End the lease, as if its time were over."""
        self._group.pop(_LEASE, None)

    # Commands

    async def connect_client(self, way: Way) -> Connection:
        """Open a connection.

        Raises:
            StoreUnavailable: Nothing listens there, or the way is cut.
        """
        await anyio.lowlevel.checkpoint()
        if not way.is_open and way.silent:
            await way.pass_through()
        if self.down or way.is_gone or not way.is_open:
            raise StoreUnavailable("cannot connect to Redis at redis://redis.desk:6379")
        self._last_client += 1
        connection = Connection(self, way, self._last_client, self._tasks, self._rng)
        way._connections = [each for each in way._connections if each._open]
        self.connections[connection.client_id] = connection
        way._connections.append(connection)
        return connection

    def call(self, connection: Connection, command: bytes) -> Any:
        """Execute a packed command."""
        reader = hiredis.Reader()
        reader.feed(command)
        name, *words = reader.gets()
        if name == b"CLIENT" and words[0] == b"ID":
            return connection.client_id
        if name == b"INFO":
            return f"# Server\r\nrun_id:{self.run_id}\r\n".encode()
        if name == b"CLIENT" and words[:2] == [b"KILL", b"ID"]:
            killed = self.connections.get(int(words[2]))
            if killed is None:
                return 0
            killed.end()
            return 1
        if name == b"EVAL":
            script, count = words[0].decode(), int(words[1])
            if self.refusal is not None and "'SET'" in script:
                return hiredis.ReplyError(self.refusal)
            return _SCRIPTS[script](self, *words[2 + count :])
        raise AssertionError(f"an unknown command: {name!r} {words!r}")

    def _text(self, key: bytes) -> bytes | None:
        value, until_s = self._group.get(key, (None, 0.0))
        return value if until_s > anyio.current_time() else None

    def _set(self, key: bytes, value: bytes, lasts_ms: bytes | None = None) -> None:
        lasts_s = _FOR_EVER_S if lasts_ms is None else int(lasts_ms) / 1000
        self._group[key] = value, anyio.current_time() + lasts_s

    def _read(self) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        lease, stored = self._text(_LEASE), self._text(_TERM)
        return (
            None if lease is None else json.loads(lease),
            None if stored is None else json.loads(stored),
        )

    def _bring(
        self, known: bytes, holder: bytes, run_id: bytes
    ) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """The leader and the last term, after what a member knows of it."""
        leader, stored = self._read()
        term = stored or {"epoch": 0, "holder": "", "writers": {}}
        epoch, name = int(known), holder.decode()
        other = term["holder"] not in (name, "")
        if epoch > term["epoch"] or (0 < epoch == term["epoch"] and other):
            leads = leader is not None and leader["id"] == term["holder"]
            if other and leads and term.get("run") == run_id.decode():
                term["epoch"] = epoch + 1
            else:
                term["replaced"] = term.pop("run", None) or term.get("replaced")
                later = epoch > term["epoch"]
                term["epoch"], term["holder"] = (epoch, name) if later else (epoch + 1, "")
            self._set(_TERM, json.dumps(term).encode())
        if leader is not None and leader["id"] != term["holder"]:
            leader = None
        elif leader is not None:
            leader["epoch"] = term["epoch"]
        return leader, term

    def _look(
        self, known: bytes, holder: bytes, own_id: bytes, lasts_ms: bytes, run_id: bytes
    ) -> list[bytes | None]:
        leader, term = self._bring(known, holder, run_id)
        run = run_id.decode()
        if leader is not None and run not in (term.get("run"), term.get("counted")):
            self._set(_TERM, json.dumps({**term, "counted": run}).encode())
            self._set(_LEASE, json.dumps(leader).encode(), lasts_ms)
        if own_id:
            self._set(_STANDBY, own_id, lasts_ms)
        return [None if leader is None else json.dumps(leader).encode(), self._text(_TERM)]

    def _keep_term(self, term: dict[str, Any], run_id: bytes, writers: bytes) -> None:
        term["writers"].update(json.loads(writers))
        term["run"], term["replaced"] = run_id.decode(), None
        self._set(_TERM, json.dumps(term).encode())

    def _take_lease(
        self, term: dict[str, Any], own_text: bytes, lasts_ms: bytes, run_id: bytes, writers: bytes
    ) -> None:
        own = json.loads(own_text)
        term["epoch"] += 1
        term["holder"], own["epoch"] = own["id"], term["epoch"]
        self._set(_LEASE, json.dumps(own).encode(), lasts_ms)
        self._keep_term(term, run_id, writers)
        if self._text(_STANDBY) == own["id"].encode():
            self._group.pop(_STANDBY)
        self.granted.append(Granted(anyio.current_time(), own["id"], term["epoch"]))

    def _claim(self, known: bytes, holder: bytes, own_text: bytes, *others: bytes) -> list[Any]:
        *rest, state = others
        leader, term = self._bring(known, holder, rest[1])
        if leader is not None and leader["id"] != json.loads(own_text)["id"]:
            return [0]
        if state == b"waits":
            return [0]
        self._take_lease(term, own_text, *rest)
        claimed, self.claimed = self.claimed, None
        if claimed is not None:
            claimed(term["holder"])
        return [term["epoch"], json.dumps(term["writers"]).encode()]

    def _renew(self, known: bytes, holder: bytes, own_text: bytes, *others: bytes) -> list[Any]:
        own = json.loads(own_text)
        own_id = own["id"]
        *rest, state = others
        lasts_ms, run_id, writers = rest
        leader, term = self._bring(known, holder, run_id)
        if term["holder"] != own_id or term.get("replaced") == run_id.decode():
            return [0]
        if state == b"unseen" and term.get("run") != run_id.decode():
            return [-2]
        if state == b"waits":
            return [-1]
        if leader is None:
            self._take_lease(term, own_text, lasts_ms, run_id, writers)
        else:
            self._set(_LEASE, json.dumps(leader).encode(), lasts_ms)
            self.granted.append(Granted(anyio.current_time(), own_id, leader["epoch"]))
            same = term.get("run") == run_id.decode() and term["epoch"] == own["epoch"]
            if state == b"settled" and same:
                return [term["epoch"], self._text(_STANDBY)]
            self._keep_term(term, run_id, writers)
        return [term["epoch"], self._text(_STANDBY), json.dumps(term["writers"]).encode()]

    def _change_writers(self, own_id: bytes, epoch: bytes, *changes: bytes) -> int:
        _, stored = self._read()
        if stored is None:
            return -1
        if stored["holder"] != own_id.decode():
            return 0
        if stored["epoch"] != int(epoch):
            return -1
        for writer, value in zip(changes[::2], changes[1::2], strict=True):
            if value:
                stored["writers"][writer.decode()] = int(value)
            else:
                stored["writers"].pop(writer.decode(), None)
        self._set(_TERM, json.dumps(stored).encode())
        return 1

    def _release(self, own_id: bytes) -> None:
        leader, _ = self._read()
        if leader is not None and leader["id"] == own_id.decode():
            self._group.pop(_LEASE)
            released = Granted(anyio.current_time(), leader["id"], leader["epoch"], free=True)
            self.granted.append(released)

    def _remember(self, own_id: bytes, wishes: bytes, run_id: bytes) -> int:
        _, stored = self._read()
        if stored is None:
            return -1
        if stored["holder"] != own_id.decode():
            return 0
        if stored.get("run") != run_id.decode():
            return -1
        self._set(_WISHES, wishes)
        return 1

    def _recall(self) -> bytes | None:
        return self._text(_WISHES)

    # Prices

    def check_writable(self) -> None:
        """Refuse while writes are refused."""
        if self.refusal is not None:
            raise refusal("memory://", self.refusal)

    def renew_now(self, kind: Kind[Any], symbols: Sequence[str]) -> list[str]:
        """Restart the time to live of these values; the symbols without one."""
        self.check_writable()
        until_s = self._clock.monotonic() + self._ttl_s(kind)
        missing = []
        for symbol in symbols:
            key = f"{kind.key_prefix}{symbol}"
            payload = self.get(key)
            if payload is None:
                missing.append(symbol)
            else:
                self._keys[key] = payload, until_s
        return missing

    def take(self, writer: str, leader: Leader, batch: WriteBatch) -> None:
        """Execute a batch of a writer."""
        self.check_writable()
        self._number_key = f"mdservice:writer:{writer}"
        self._execute(batch)
        touched = {message.symbol for message in batch.messages if message.symbol is not None}
        for latest in batch.latest.values():
            touched |= latest.keys()
        keys = {symbol: self.price(symbol) for symbol in sorted(touched)}
        now_s, holder, epoch = anyio.current_time(), self.holder, self.epoch
        self.history.append(Written(now_s, batch, leader.id, leader.epoch, holder, epoch, keys))


_SCRIPTS: dict[str, Callable[..., Any]] = {
    scripts._LOOK: SimulatedRedis._look,
    scripts._CLAIM: SimulatedRedis._claim,
    scripts._RENEW: SimulatedRedis._renew,
    scripts._CHANGE_WRITERS: SimulatedRedis._change_writers,
    scripts._RELEASE: SimulatedRedis._release,
    scripts._REMEMBER: SimulatedRedis._remember,
    scripts._RECALL: SimulatedRedis._recall,
}


@attrs.define
class _Request:
    execute: Callable[[], Any]
    done: anyio.Event = attrs.field(factory=anyio.Event)
    result: Any = None
    error: Exception | None = None


class Connection:
    """A client's connection, with its end at the server."""

    address = "redis://redis.desk:6379"

    def __init__(
        self, server: SimulatedRedis, way: Way, client_id: int, tasks: Any, rng: random.Random
    ) -> None:
        self.client_id = client_id
        self._server = server
        self._way = way
        self._tasks = tasks
        self._rng = rng
        self._alive = True
        """Whether the server still has it."""
        self._open = True
        """Whether the client still has it."""
        self._request: _Request | None = None

    async def call(self, *commands: bytes) -> list[Any]:
        """Send packed commands; their replies."""
        return await self.ask(lambda: [self._server.call(self, each) for each in commands])

    async def ask(self, execute: Callable[[], T]) -> T:
        """Have the server execute something.

        Raises:
            StoreUnavailable: The connection is lost; it may or may not be executed.
            StoreRefused: As the server says.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        if not self._open:
            raise StoreUnavailable("The connection to Redis was lost")
        request = self._request = _Request(execute)
        if self._tasks is None:
            self._execute(request)
        else:
            self._tasks.start_soon(self._serve, request)
        await request.done.wait()
        if request.error is not None:
            raise request.error
        return request.result

    async def _serve(self, request: _Request) -> None:
        await self._travel()
        await self._way.pass_through()
        if self._execute(request, answer=False):
            await self._travel()
            await self._way.pass_through()
            if self._alive:
                request.done.set()

    async def _travel(self) -> None:
        await anyio.sleep(self._rng.uniform(0, _LONGEST_WAY_S) + self._server.slow_s / 2)

    def _execute(self, request: _Request, *, answer: bool = True) -> bool:
        if not self._alive:
            return False
        try:
            request.result = request.execute()
        except StoreRefused as exc:
            request.error = exc
        if answer:
            request.done.set()
        return True

    def end(self) -> None:
        """The server ends it: nothing that comes on it later is executed."""
        self._alive = False
        self._server.connections.pop(self.client_id, None)
        if self._tasks is None or self._way.is_open:
            self.broken()
        else:
            self._tasks.start_soon(self._tell)

    async def _tell(self) -> None:
        await self._way.pass_through()
        self.broken()

    def broken(self) -> None:
        """The client learns that it is lost."""
        self._open = False
        request = self._request
        if request is not None and not request.done.is_set():
            request.error = StoreUnavailable("The connection to Redis was lost")
            request.done.set()

    def close(self) -> None:
        """The client closes it; what it has sent still arrives."""
        self._open = False


class TermStore:
    """The store of one term, or that from which a standby reads."""

    address = "memory://"
    command_errors = 0
    last_command_error: str | None = None

    def __init__(
        self, server: SimulatedRedis, way: Way, leader: Leader | None, admit: Admit | None
    ) -> None:
        self._server = server
        self._way = way
        self._leader = leader
        self._admit = admit
        self._writer = "standby" if leader is None else f"{leader.id}.{leader.epoch}"
        self._connection: Connection | None = None

    async def connect(self) -> None:
        await self.aclose()
        connection: Connection | None = None
        try:
            with anyio.move_on_after(STORE_TIMEOUT_S):
                connection = await self._server.connect_client(self._way)
                if self._admit is not None:
                    await self._admit(connection)  # type: ignore[arg-type]  # it only calls it
                self._connection = connection
                return
        finally:
            if self._connection is None and connection is not None:
                connection.close()
        raise StoreUnavailable("Redis did not answer")

    async def _ask(self, execute: Callable[[], T]) -> T:
        connection = self._connection
        if connection is None:
            raise StoreUnavailable("No connection to Redis")
        answered = False
        try:
            with anyio.move_on_after(STORE_TIMEOUT_S):
                result = await connection.ask(execute)
                answered = True
                return result
        except StoreRefused:
            answered = True
            raise
        finally:
            if not answered:
                connection.close()
                self._connection = None
        raise StoreUnavailable("Redis did not answer")

    async def last_batch(self) -> int:
        return await self._ask(
            lambda: int(self._server.get(f"mdservice:writer:{self._writer}") or 0)
        )

    async def write(self, batch: WriteBatch) -> None:
        leader = self._leader
        assert leader is not None
        await self._ask(lambda: self._server.take(self._writer, leader, batch))

    async def read_latest(self, kind: Kind[Any], symbols: Iterable[str]) -> Mapping[str, bytes]:
        names = list(symbols)

        def read() -> dict[str, bytes]:
            server, leader = self._server, self._leader
            found = {name: server.get(f"{kind.key_prefix}{name}") for name in names}
            there = {name: payload for name, payload in found.items() if payload is not None}
            if leader is not None:
                now_s = anyio.current_time()
                server.history.append(Read(now_s, leader.id, leader.epoch, there))
            return there

        return await self._ask(read)

    async def renew(self, kind: Kind[Any], symbols: Iterable[str]) -> Sequence[str]:
        names = tuple(symbols)
        return await self._ask(lambda: self._server.renew_now(kind, names))

    async def ping(self) -> None:
        await self._ask(self._server.check_writable)

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
