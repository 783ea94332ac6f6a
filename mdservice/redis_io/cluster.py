"""Redis Cluster: which node serves a key, and the connections to all nodes, used as one.

::

    redis+cluster://a:7000,b:7000 ──CLUSTER SLOTS──▶ owner of each of the 16,384 slots
    command ──key──▶ slot ──▶ node ──▶ reply
                               ├── MOVED: the slot has another owner; ask again, send there
                               ├── ASK: this key is on its way to another node; send there once
                               └── TRYAGAIN: keys of the slot are on both nodes; wait
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, Final
from urllib.parse import urlencode

import anyio
import anyio.lowlevel
import attrs

from mdservice.errors import StoreError, StoreRefused, StoreUnavailable
from mdservice.redis_io.commands import pack
from mdservice.redis_io.connection import Opener, RedisAddress, RedisConnection, RedisLocator
from mdservice.redis_io.names import EVENTS_TAG
from mdservice.redis_io.replies import (
    MISSING,
    REDIRECTIONS,
    is_error,
    new_reader,
    refusal,
    refusal_code,
)
from mdservice.settings.parsers import SeveralServers

__all__ = ["EVENTS_SLOT", "ClusterConnection", "ClusterLocator", "Node", "Unit", "slot_of"]

_SLOTS: Final = 16_384


def slot_of(key: bytes) -> int:
    """The slot of a key: of its hash tag, the part in the first braces, where it has one."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0) % _SLOTS


EVENTS_SLOT: Final = slot_of(EVENTS_TAG.encode())
"""The node that serves this slot publishes all events, and our readers subscribe there."""

Node = tuple[str, int]
"""Host and port."""

_LOOK_LIMIT_S: Final = 1.0
"""The limit for one node's view of the cluster: a dead node must not hold up the others."""
_MOST_KNOWN: Final = 64
_MOST_TRIES: Final = 6
"""How often a command is sent that the nodes redirect: with the waits, for about a second."""
_TRY_AGAIN_S: Final = 0.03
_ASKING: Final = pack(b"ASKING")
_LOOK: Final = pack(b"CLUSTER", b"INFO"), pack(b"CLUSTER", b"SLOTS")
_SETTLE_S: Final = 0.25
_OWN_PING: Final = b"node"
_PING_AFTER_S: Final = 2.0
_ANSWER_LIMIT_S: Final = 3.0


class ClusterLocator:
    """Finds the nodes of a cluster.

    ``redis+cluster://[user:pass@]host:port[,host:port…]``: some nodes, which know the others. The
    login and the arguments of the query, which are redis-py's, apply to every node. ``ssl=true``,
    or the scheme ``rediss+cluster``, is TLS to every node. With ``publish=sharded``, the events of
    a symbol are published with ``SPUBLISH`` at one of the nodes; readers need the same argument.

    Args:
        url: The parts of the URL.
        timeout_s: How long each wait for a node may take.

    Raises:
        ValueError, ConfigurationError: The URL cannot be used; without any part of it that may
            be secret.
    """

    clustered = True
    may_move = False
    """A demoted node refuses writes, and names its successor."""

    def __init__(self, url: SeveralServers, *, timeout_s: float) -> None:
        query = dict(url.query)
        if url.path not in ((), ("0",)) or query.pop("db", "0") != "0":
            raise ValueError("names a database, and a cluster is used with database 0 alone")
        self._scheme = "rediss" if url.tls else "redis"
        publish = query.pop("publish", "all")
        if publish not in ("all", "sharded"):
            raise ValueError("has a publish that is neither all nor sharded")
        self.sharded = publish == "sharded"
        """Whether events are published to the nodes by symbol."""
        self._login = "" if url.login is None else f"{url.login}@"
        self._query = f"?{urlencode(query)}" if query else ""
        self.timeout_s = timeout_s
        """How long each wait for a node may take."""
        self.nodes: list[Node] = list(url.servers)
        """The known nodes; those that answered are in front of those that did not."""
        self._addresses: dict[Node, RedisAddress] = {}
        """Each keeps its TLS certificates."""
        self.database = 0
        """The number of the database."""
        self.user = self.address_of(url.servers[0]).user
        """Who logs in."""
        hosts = ",".join(_joined(node) for node in url.servers)
        shown = {
            **({"ssl": "true"} if url.tls else {}),
            **({"publish": publish} if self.sharded else {}),
        }
        self.shown = f"redis+cluster://{hosts}" + (f"?{urlencode(shown)}" if shown else "")
        """The URL without user and password; it can be used where no login is needed."""

    def address_of(self, node: Node) -> RedisAddress:
        """The address of a node, with the login of the URL."""
        if node not in self._addresses:
            while len(self._addresses) >= _MOST_KNOWN:
                del self._addresses[next(iter(self._addresses))]
            url = f"{self._scheme}://{self._login}{_joined(node)}/0{self._query}"
            self._addresses[node] = RedisAddress(url, timeout_s=self.timeout_s)
        return self._addresses[node]

    def note(self, node: Node, *, answers: bool) -> None:
        """Ask a node that answers sooner than one that does not."""
        if node in self.nodes:
            self.nodes.remove(node)
        self.nodes.insert(0 if answers else len(self.nodes), node)
        del self.nodes[_MOST_KNOWN:]

    async def is_right(self, server: RedisLocator) -> bool:  # noqa: ARG002 - as above
        """See :class:`~mdservice.redis_io.connection.RedisLocator`: always."""
        return True

    async def reach(self, connect: Opener, *, reads: bool) -> RedisConnection:  # noqa: ARG002 - primaries
        """See :class:`~mdservice.redis_io.connection.RedisLocator`."""
        return await self.connect(connect)

    async def connect(self, connect: Opener) -> ClusterConnection:
        """Ask a node who serves which slot.

        Raises:
            StoreUnavailable: No node answers.
            StoreRefused: The nodes refuse the login, or are not a cluster.
        """
        with ExitStack() as undo:
            connection = ClusterConnection(self, connect)
            undo.callback(connection.close)
            await connection.look()
            undo.pop_all()
            return connection


def _joined(node: Node) -> str:
    host, port = node
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@attrs.define(eq=False)
class Unit:
    """Commands that one node executes together: one command, or a transaction.

    Attributes:
        slot: The slot of its keys; None for a unit without a key.
        data: The packed commands.
        count: How many replies they have.
        node: Where to send it next; None for the node that serves the slot.
        asking: Whether to send ``ASKING`` first, since the slot is still on its way to that node.
        guarded: Whether it depends on a watched key, and so on the connection that watches.
        replies: The last replies.
    """

    slot: int | None
    data: bytes
    count: int = 1
    node: Node | None = None
    asking: bool = False
    guarded: bool = False
    replies: list[Any] = attrs.Factory(list)

    def redirected(self) -> str | None:
        """The text of a reply by which the unit was redirected, and nothing of it executed."""
        for reply in self.replies:
            if is_error(reply) and refusal_code(str(reply)) in REDIRECTIONS:
                return str(reply)
        return None


class ClusterConnection(RedisConnection):
    """Connections to the nodes of a cluster, with the methods of one connection.

    Commands go to the nodes that serve their keys, and those without a key to one node. Commands
    for several nodes are executed in no order. ``MGET`` and ``SCAN`` ask every node that they
    need. Keys between ``MULTI`` and ``EXEC``, which come in one call, have one slot. After
    ``SUBSCRIBE``, everything goes to the node that publishes the events.

    Args:
        cluster: Finds the nodes.
        connect: Connects to one of them.
    """

    settle_s = _SETTLE_S

    def __init__(self, cluster: ClusterLocator, connect: Opener) -> None:
        self.server = self._cluster = cluster
        self.address = cluster.shown
        self._connect = connect
        self._nodes: dict[Node, RedisConnection] = {}
        self.owners: list[Node | None] = [None] * _SLOTS
        """The node that serves each slot."""
        self._subscribed: RedisConnection | None = None
        """The node of the events, once something is subscribed."""
        self._shards: _Shards | None = None
        """The nodes of sharded events, once those are subscribed."""
        self._watched: int | None = None
        """The slot of the watched key."""
        self._works = True
        """Whether a node sees a working cluster."""

    @property
    def primaries(self) -> list[Node]:
        """The nodes that serve slots."""
        return list(dict.fromkeys(owner for owner in self.owners if owner is not None))

    async def servers(self) -> list[RedisConnection]:
        """The connections to the nodes that serve slots.

        Raises:
            StoreUnavailable, StoreRefused
        """
        return [await self.node(node) for node in self.primaries]

    async def node(self, node: Node) -> RedisConnection:
        """The connection to a node.

        Raises:
            StoreUnavailable: No connection.
            StoreRefused: No connection, and the cluster knows that this node has failed; or the
                node refuses the login.
        """
        try:
            return await self._opened(node)
        except StoreUnavailable as exc:
            if self._works:
                raise
            reason = f"CLUSTERDOWN The node {_joined(node)} does not answer"
            raise refusal(self.address, reason) from exc

    async def _opened(self, node: Node) -> RedisConnection:
        if node not in self._nodes:
            self._nodes[node] = await self._connect(self._cluster.address_of(node))
        return self._nodes[node]

    def owner(self, slot: int) -> Node:
        """The node that serves a slot.

        Raises:
            StoreRefused: There is none.
        """
        owner = self.owners[slot]
        if owner is None:
            raise refusal(self.address, f"CLUSTERDOWN No node serves the slot {slot}")
        return owner

    async def look(self) -> None:
        """Ask who serves which slot; a node that sees a working cluster, if there is one.

        Raises:
            StoreUnavailable: No node answers.
            StoreRefused: They refuse to answer.
        """
        view: list[Node | None] | None = None
        error: StoreError = StoreUnavailable("it has no nodes")
        refusals, works = 0, False
        nodes = list(dict.fromkeys((*self._nodes, *self._cluster.nodes)))
        for node in nodes:
            try:
                with anyio.fail_after(_LOOK_LIMIT_S):
                    works, seen = await self._ask(node)
            except (StoreError, TimeoutError) as exc:
                self._forget(node)
                self._cluster.note(node, answers=False)
                refusals += isinstance(exc, StoreRefused)
                text = f"{_joined(node)} does not answer within {_LOOK_LIMIT_S:g} s"
                error = exc if isinstance(exc, StoreError) else StoreUnavailable(text)
                continue
            view = seen if works or view is None else view
            if works:
                self._cluster.note(node, answers=True)
                break
        if view is None:
            if refusals == len(nodes):
                raise error
            raise StoreUnavailable(f"No node of the cluster at {self.address} answers: {error}")
        self.owners, self._works = view, works
        for node in self.primaries:
            if node not in self._cluster.nodes:
                self._cluster.nodes.append(node)
        del self._cluster.nodes[_MOST_KNOWN:]

    async def _ask(self, node: Node) -> tuple[bool, list[Node | None]]:
        """Whether the cluster works in the eyes of this node, and its owners of the slots."""
        connection = await self._opened(node)
        info, slots = await connection.call(*_LOOK)
        if is_error(slots):
            if "cluster support disabled" in str(slots):
                raise StoreRefused(
                    f"Redis at {connection.address} is no node of a cluster; write redis:// "
                    "instead of redis+cluster:// (MDSERVICE_REDIS_URL)"
                )
            raise refusal(connection.address, str(slots))
        owners: list[Node | None] = [None] * _SLOTS
        try:
            for first, last, (host, port, *_), *_replicas in slots:
                # A node that does not know its own address leaves it out.
                known = host.decode() if host and host != b"?" else node[0]
                owners[first : last + 1] = [(known, port)] * (last + 1 - first)
        except (AttributeError, TypeError, ValueError) as exc:
            raise StoreUnavailable(
                f"{connection.address} answers CLUSTER SLOTS unreadably"
            ) from exc
        works = not isinstance(info, bytes) or b"cluster_state:ok" in info
        return works and len(owners) == _SLOTS, owners[:_SLOTS]

    def _forget(self, node: Node) -> None:
        connection = self._nodes.pop(node, None)
        if connection is not None:
            connection.close()

    # One connection's methods.

    async def call(self, *commands: bytes) -> list[Any]:
        """Execute packed commands; see :meth:`RedisConnection.call`.

        Raises:
            StoreUnavailable: A connection was lost, or a node did not answer in time.
            StoreRefused: A slot has no node, or is not served after several tries.
        """
        return await self.exchange(b"".join(commands), len(commands))

    async def exchange(self, data: bytes, count: int) -> list[Any]:
        """Execute packed commands; see :meth:`RedisConnection.exchange`.

        Raises:
            StoreUnavailable, StoreRefused: As :meth:`call`.
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        if self._subscribed is not None:
            return await self._subscribed.exchange(data, count)
        commands = _parsed(data)
        names = {words[0] for words in commands}
        if b"SSUBSCRIBE" in names:
            return await self._subscribe_shards(commands)
        if b"SUBSCRIBE" in names:
            self._subscribed = await self.node(self.owner(EVENTS_SLOT))
            return await self._subscribed.exchange(data, count)
        parts = list(self._parts(commands))
        await self.execute([unit for part in parts for unit in part.units])
        return [reply for part in parts for reply in part.replies()]

    async def receive(self, wait_s: float, data: bytes = b"") -> list[Any]:
        """Wait for messages at the node of the subscription; see :class:`RedisConnection`."""
        if self._subscribed is None:
            raise StoreUnavailable(f"nothing is subscribed at {self.address}; connecting again")
        if self._shards is not None:
            return await self._shards.receive(wait_s, data)
        return await self._subscribed.receive(wait_s, data)

    async def _subscribe_shards(self, commands: list[list[bytes]]) -> list[Any]:
        """Subscribe at the nodes of the channels; one answer to each command."""
        home = self.owner(EVENTS_SLOT)
        lanes: dict[Node, list[int]] = {home: []}
        for place, (name, channel) in enumerate(commands):
            node = self.owner(slot_of(channel)) if name == b"SSUBSCRIBE" else home
            lanes.setdefault(node, []).append(place)
        answers: list[Any] = [None] * len(commands)
        connections = []
        for node, places in lanes.items():
            connection = await self.node(node)
            connections.append(connection)
            await connection.send(b"".join(pack(*commands[place]) for place in places))
            left = iter(places)
            missing = len(places)
            while missing:
                # Events that come before all is subscribed are in the keys.
                replies = await connection.exchange(b"", missing)
                for reply in (one for one in replies if not _is_event(one)):
                    answers[next(left)] = reply
                    missing -= 1
        for reply in answers:
            if is_error(reply) and refusal_code(str(reply)) in REDIRECTIONS:
                raise self._slot_moved()
        self._subscribed = connections[0]
        self._shards = _Shards(connections, self.address)
        return answers

    def _slot_moved(self) -> StoreUnavailable:
        return StoreUnavailable(
            f"A slot of the cluster at {self.address} has moved; connecting again"
        )

    async def send(self, data: bytes) -> None:
        """Send to the node of the subscription; see :class:`RedisConnection`."""
        if self._subscribed is None:
            raise StoreUnavailable(f"nothing is subscribed at {self.address}; connecting again")
        await self._subscribed.send(data)

    def close(self) -> None:
        """Close every connection; never raises."""
        while self._nodes:
            self._nodes.popitem()[1].close()

    # Commands to the nodes of their slots.

    async def scatter(self, lanes: Mapping[Node, tuple[bytes, int]]) -> dict[Node, list[Any]]:
        """Send to each node its data, and return its replies; all nodes work at once.

        Args:
            lanes: Packed commands and the number of their replies.

        Raises:
            StoreUnavailable, StoreRefused: Of the connections.
        """
        connections = {node: await self.node(node) for node in lanes}
        for node, connection in connections.items():
            await connection.send(lanes[node][0])
        return {
            node: await connection.exchange(b"", lanes[node][1])
            for node, connection in connections.items()
        }

    async def execute(self, units: Sequence[Unit]) -> None:
        """Execute each unit once, wherever its slot is served; sets their replies.

        Raises:
            StoreUnavailable, StoreRefused: As :meth:`call`. Some units may be executed.
        """
        waiting = list(units)
        for tried in range(1, _MOST_TRIES + 1):
            by_node: dict[Node, list[Unit]] = {}
            for unit in waiting:
                slot = EVENTS_SLOT if unit.slot is None else unit.slot
                by_node.setdefault(unit.node or self.owner(slot), []).append(unit)
            replies = await self.scatter(
                {
                    node: (
                        b"".join(
                            _ASKING + unit.data if unit.asking else unit.data for unit in some
                        ),
                        sum(unit.count + unit.asking for unit in some),
                    )
                    for node, some in by_node.items()
                }
            )
            for node, some in by_node.items():
                left = iter(replies[node])
                for unit in some:
                    if unit.asking:
                        next(left)
                    unit.replies = [next(left) for _ in range(unit.count)]
            waiting = [unit for unit in waiting if unit.redirected() is not None]
            if not waiting:
                return
            if any(unit.guarded for unit in waiting):
                # What was watched elsewhere says nothing about the key at its new node.
                raise StoreRefused(
                    f"A slot of the cluster at {self.address} has moved; connecting again",
                    reconnect=True,
                    code="MOVED",
                )
            if tried < _MOST_TRIES:
                await self._follow(waiting, tried)
        text = waiting[0].redirected()
        raise refusal(self.address, str(text))

    async def _follow(self, units: Iterable[Unit], tried: int) -> None:
        """Find out where to send these units next."""
        moved: dict[int, Node] = {}
        wait = tried > 1
        for unit in units:
            code, _, where = (unit.redirected() or "").rpartition(": ")[2].partition(" ")
            unit.node, unit.asking = None, False
            slot, _, place = where.partition(" ")
            host, _, port = place.rpartition(":")
            if code == "TRYAGAIN":
                wait = True
            elif slot.isdecimal() and port.isdecimal():
                node = host or self._host_of(unit), int(port)
                if code == "ASK":
                    unit.node, unit.asking = node, True
                else:
                    moved[int(slot)] = node
        if moved:
            with suppress(StoreUnavailable):  # the reply itself names the node
                await self.look()
            for slot_moved, node in moved.items():
                self.owners[slot_moved] = node
        if wait:
            await anyio.sleep(_TRY_AGAIN_S * 2**tried)

    def _host_of(self, unit: Unit) -> str:
        """The host of a node that leaves it out: the one that was asked."""
        owner = self.owners[EVENTS_SLOT if unit.slot is None else unit.slot]
        return owner[0] if owner is not None else self._cluster.nodes[0][0]

    def _parts(self, commands: list[list[bytes]]) -> Iterable[_Part]:
        """The units of these commands, in order."""
        transaction: list[list[bytes]] = []
        for words in commands:
            name = words[0].upper()
            if transaction or name == b"MULTI":
                transaction.append(words)
                if name == b"EXEC":
                    unit = self._unit(transaction)
                    unit.guarded = self._watched is not None
                    yield _Part([unit])
                    transaction, self._watched = [], None
            elif name == b"MGET":
                yield _Gathered(words[1:])
            elif name == b"SCAN":
                yield _Scanned(words, self.primaries)
            else:
                unit = self._unit([words])
                if name == b"WATCH":
                    self._watched = unit.slot
                elif name == b"UNWATCH":
                    self._watched = None
                yield _Part([unit])
        if transaction:
            yield _Part([self._unit(transaction)])

    def _unit(self, commands: list[list[bytes]]) -> Unit:
        slots = (_slot_in(words) for words in commands)
        slot = next((slot for slot in slots if slot is not None), self._watched)
        return Unit(slot, b"".join(pack(*words) for words in commands), len(commands))


def _is_event(reply: object) -> bool:
    return isinstance(reply, list) and reply[:1] in ([b"message"], [b"smessage"])


class _Shards:
    """Subscribed connections to several nodes, received from as from one."""

    def __init__(self, connections: list[RedisConnection], address: str) -> None:
        self._connections = connections
        self._address = address
        now_s = anyio.current_time()
        self._heard_s = dict.fromkeys(connections, now_s)
        self._asked_s: dict[RedisConnection, float] = {}
        """When a silent node got a PING."""
        self._pongs: dict[bytes, int] = {}
        """How many nodes have answered each PING of the caller."""

    async def receive(self, wait_s: float, data: bytes) -> list[Any]:
        """Send ``data``, a PING, to every node; return what has come.

        The answer to a PING is returned when every node has answered.

        Raises:
            StoreUnavailable: A node is lost or silent, or serves a channel no longer.
        """
        if data:
            for connection in self._connections:
                await connection.send(data)
        until_s = anyio.current_time() + wait_s
        found: list[Any] = []
        while True:
            for connection in self._connections:
                replies = await connection.receive(0.0)
                if replies:
                    self._heard_s[connection] = anyio.current_time()
                    self._asked_s.pop(connection, None)
                    found += self._taken(replies)
            if found or anyio.current_time() >= until_s:
                break
            async with anyio.create_task_group() as tasks:
                tasks.cancel_scope.deadline = until_s
                for connection in self._connections:
                    tasks.start_soon(self._wait, connection, tasks.cancel_scope)
        await self._ask_silent(anyio.current_time())
        return found

    async def _wait(self, connection: RedisConnection, scope: anyio.CancelScope) -> None:
        await connection.readable()
        scope.cancel()

    def _taken(self, replies: list[Any]) -> list[Any]:
        taken = []
        for reply in replies:
            if isinstance(reply, list):
                if reply[0] == b"smessage":
                    reply[0] = b"message"
                elif reply[0] == b"sunsubscribe":
                    raise StoreUnavailable(
                        f"A slot of the cluster at {self._address} has moved; connecting again"
                    )
                elif reply[0] == b"pong":
                    if reply[1] == _OWN_PING:
                        continue
                    self._pongs[reply[1]] = self._pongs.get(reply[1], 0) + 1
                    if self._pongs[reply[1]] < len(self._connections):
                        continue
                    del self._pongs[reply[1]]
            taken.append(reply)
        return taken

    async def _ask_silent(self, now_s: float) -> None:
        """Send PING to each silent node; the caller only notices when all are silent."""
        for connection in self._connections:
            asked_s = self._asked_s.get(connection)
            if asked_s is not None and now_s - asked_s >= _ANSWER_LIMIT_S:
                raise StoreUnavailable(
                    f"Redis at {connection.address} does not answer a PING within "
                    f"{_ANSWER_LIMIT_S:g} s; connecting again"
                )
            if asked_s is None and now_s - self._heard_s[connection] >= _PING_AFTER_S:
                self._asked_s[connection] = now_s
                await connection.send(pack(b"PING", _OWN_PING))


_KEYLESS: Final = frozenset(
    {
        *(b"MULTI", b"EXEC", b"DISCARD", b"UNWATCH", b"PUBLISH", b"PING", b"ROLE", b"INFO"),
        *(b"CLIENT", b"CLUSTER", b"SELECT", b"AUTH", b"ASKING"),
    }
)
_KEY_PLACES: Final = {b"XINFO": 2, b"OBJECT": 2, b"EVAL": 3}


def _slot_in(words: list[bytes]) -> int | None:
    """The slot of the first key of a command; None without a key."""
    name = words[0].upper()
    place = _KEY_PLACES.get(name, 1)
    if name == b"XREAD":
        place = [word.upper() for word in words].index(b"STREAMS") + 1
    if name == b"EVAL" and words[2] == b"0":
        return None
    return None if name in _KEYLESS or place >= len(words) else slot_of(words[place])


def _parsed(data: bytes) -> list[list[bytes]]:
    """The words of each packed command."""
    reader = new_reader()
    reader.feed(data)
    commands: list[list[bytes]] = []
    while (words := reader.gets()) is not MISSING:
        commands.append(words)
    return commands


class _Part:
    """The units of one command or transaction."""

    def __init__(self, units: list[Unit]) -> None:
        self.units = units

    def replies(self) -> list[Any]:
        """The replies of a single server."""
        return [reply for unit in self.units for reply in unit.replies]


class _Gathered(_Part):
    """An ``MGET`` of each slot."""

    def __init__(self, keys: list[bytes]) -> None:
        self._keys = keys
        self._by_slot: dict[int, list[bytes]] = {}
        for key in keys:
            self._by_slot.setdefault(slot_of(key), []).append(key)
        units = [Unit(slot, pack(b"MGET", *some)) for slot, some in self._by_slot.items()]
        super().__init__(units or [Unit(None, pack(b"MGET"))])

    def replies(self) -> list[Any]:
        """One array with every value; the first error, if there is one."""
        found: dict[bytes, Any] = {}
        for unit, keys in zip(self.units, self._by_slot.values(), strict=False):
            (values,) = unit.replies
            if not isinstance(values, list):
                return [values]
            found.update(zip(keys, values, strict=False))
        return [[found.get(key) for key in self._keys]] if self._by_slot else self.units[0].replies


class _Scanned(_Part):
    """A ``SCAN`` of one node; the cursor ``1:42`` continues at the second one."""

    def __init__(self, words: list[bytes], nodes: list[Node]) -> None:
        place, _, cursor = words[1].rpartition(b":")
        self._place, self._last = int(place or 0), len(nodes) - 1
        node = nodes[min(self._place, self._last)] if nodes else None
        super().__init__([Unit(None, pack(b"SCAN", cursor, *words[2:]), node=node)])

    def replies(self) -> list[Any]:
        """Cursor and keys."""
        (reply,) = self.units[0].replies
        if not isinstance(reply, list):
            return [reply]
        cursor, keys = reply
        place = self._place
        if cursor == b"0":
            if place >= self._last:
                return [[b"0", keys]]
            place += 1
        return [[b"%d:%b" % (place, cursor), keys]]
