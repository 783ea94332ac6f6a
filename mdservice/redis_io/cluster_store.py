"""The price store in a Redis Cluster.

A cluster executes a transaction only on keys of one slot, and the keys of a batch are in many::

    1  every node at once    SET price:AAPL … SET price:MSFT …    repeatable, so without MULTI
    2  the stream's node     MULTI  XADD news …  SET number  EXEC
    3  the events' node      MULTI  PUBLISH price.updated …  SET number  EXEC

Each step begins when the one before is done: once an event is out, its key has that record. Events
of all symbols come from one node, in order. Each transaction stores the batch's number beside its
own keys, so that after a lost connection each is executed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, ClassVar, cast

import attrs

from mdservice.errors import ConfigurationError, StoreUnavailable
from mdservice.model.kinds import KINDS, Kind
from mdservice.publish.store import Events, PriceStore, WriteBatch
from mdservice.redis_io.cluster import EVENTS_SLOT, ClusterConnection, Unit, slot_of
from mdservice.redis_io.commands import NUMBER_TTL_S, BatchPacker, pack, publish_template
from mdservice.redis_io.connection import RedisAddress, RedisConnection
from mdservice.redis_io.locator import locator_of
from mdservice.redis_io.names import encode_marker
from mdservice.redis_io.replies import ANY_ERROR, REDIRECTIONS, is_error, refusal_code
from mdservice.redis_io.store import (
    CLIENT_NAME,
    Identity,
    RedisPriceStore,
    failed_commands,
    fence,
    raise_refusal,
    try_markers,
)

__all__ = ["ClusterPacker", "ClusterPriceStore", "Transaction", "open_price_store"]

_PING = pack(b"PING")


@attrs.frozen
class Transaction:
    """One transaction of a batch.

    Attributes:
        key: The key of its number.
        commands: What stands between ``MULTI`` and the number.
    """

    key: bytes
    commands: list[bytes]

    def unit(self, number: int) -> Unit:
        """The transaction, with the number to store."""
        stored = pack(b"SET", self.key, b"%d" % number, b"EX", b"%d" % NUMBER_TTL_S)
        data = b"".join((pack(b"MULTI"), *self.commands, stored, pack(b"EXEC")))
        return Unit(slot_of(self.key), data, len(self.commands) + 3)


class ClusterPacker(BatchPacker):
    """Turns a batch into commands for the nodes of a cluster; see :class:`BatchPacker`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._shards: dict[str, str] = {}
        """The shard of each symbol."""
        self._spublish: dict[tuple[str, str], bytes] = {}
        """By channel and shard."""

    def _shard_of(self, symbol: str) -> str:
        self._shards[symbol] = self._names.shard_of(symbol)
        return self._shards[symbol]

    def _spublish_on(self, channel: str, shard: str) -> bytes:
        template = publish_template(b"SPUBLISH", self._names.channel(channel, shard))
        self._spublish[channel, shard] = template
        return template

    def keys(self, batch: WriteBatch) -> tuple[list[int], list[bytes]]:
        """The slots and the commands of the keys, which may be executed in any order."""
        slots: list[int] = []
        commands: list[bytes] = []
        for key, command in self._old_values(batch):
            slots.append(slot_of(key))
            commands.append(command)
        for kind, latest in batch.latest.items():
            if kind in self.refused:
                continue
            set_, prefix = self._set.get(kind) or self._set_of(kind)
            old = batch.ages_s.get(kind, ())
            for symbol, payload in latest.items():
                if symbol not in old:
                    key = prefix + symbol.encode()
                    slots.append(slot_of(key))
                    commands.append(set_ % (len(key), key, len(payload), payload))
        for kind, symbols in batch.deleted.items():
            if kind not in self.refused:
                prefix = self._names.key_prefix(kind)
                for symbol in symbols:
                    key = prefix + symbol.encode()
                    slots.append(slot_of(key))
                    commands.append(pack(b"DEL", key))
        return slots, commands

    def streams(self, batch: WriteBatch) -> Iterator[Transaction]:
        """The entries of each stream."""
        by_stream: dict[bytes, list[bytes]] = {}
        for events in batch.events:
            entries = None if events.refusable in self.refused else self._entries(events)
            if entries is None or events.kind is None:
                continue
            entry, names = entries
            stream = events.kind.stream
            parts = by_stream.setdefault(
                self._log if stream is None else self._names.stream(stream), []
            )
            for name, payload in zip(map(str.encode, names), events.payloads, strict=True):
                parts.append(entry % (len(name), name, len(payload), payload))
        for stream_key, parts in by_stream.items():
            yield Transaction(self.stream_number_key(stream_key), parts)

    def messages(self, batch: WriteBatch) -> Iterator[Transaction]:
        """The messages in order, with the owner in front; those of each shard by themselves."""
        events = batch.events
        if self._names.shards:
            yield from self._sharded(batch)
            events = [one for one in events if not _is_sharded(one)]
        parts: list[bytes] = []
        if self.marks_db is not None and (batch.events or batch.restored):
            parts += self._markers(attrs.evolve(batch, events=events), self.marks_db)
        for one in events:
            if one.refusable not in self.refused:
                publish = self._publish.get(one.channel) or self._publish_on(one.channel)
                parts += [publish % (len(payload), payload) for payload in one.payloads]
        yield Transaction(self._number_key, parts)

    def _sharded(self, batch: WriteBatch) -> Iterator[Transaction]:
        """The records' events, by the shard of their symbol."""
        counts: dict[str, dict[Kind[Any], int]] = {}
        found: dict[str, list[bytes]] = {}
        if batch.restored:
            for shard in self._names.shards:
                counts[shard] = {kind: 0 for kind in KINDS if kind.stream is None}
        for events in batch.events:
            kind = events.kind
            if kind is None or not _is_sharded(events) or kind in self.refused:
                continue
            for symbol, payload in zip(events.symbols, events.payloads, strict=True):
                shard = self._shards.get(symbol) or self._shard_of(symbol)
                of_shard = counts.setdefault(shard, {})
                of_shard[kind] = of_shard.get(kind, 0) + 1
                publish = self._spublish.get((events.channel, shard))
                if publish is None:
                    publish = self._spublish_on(events.channel, shard)
                found.setdefault(shard, []).append(publish % (len(payload), payload))
        for shard, of_shard in counts.items():
            parts = []
            for kind, count in of_shard.items():
                if self.marks_db is not None and kind not in self.unmarked:
                    marker = encode_marker(
                        self._instance, self.marks_db, count, restored=batch.restored
                    )
                    channel = self._names.channel(kind.marker, shard)
                    parts.append(pack(b"SPUBLISH", channel, marker))
            key = self._names.shard_writer_key(self._instance, shard)
            yield Transaction(key, parts + found.get(shard, []))

    def stream_number_key(self, stream: bytes) -> bytes:
        """The key of the number of the last batch that wrote this stream."""
        return self._names.stream_writer_key(self._instance, stream)


def _is_sharded(events: Events) -> bool:
    return events.kind is not None and events.kind.stream is None


class ClusterPriceStore(RedisPriceStore):
    """A :class:`~mdservice.publish.store.PriceStore` in a cluster; see :class:`RedisPriceStore`.

    Where another server has taken over slots, :meth:`take_lost` names their symbols: it may lack
    the last writes.

    The server's refusal of one key leaves other keys of the batch written. Their events come with
    the next try.
    """

    _packs: ClassVar[type[BatchPacker]] = ClusterPacker
    _packer: ClusterPacker

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        if self._admit is not None:
            raise ConfigurationError(
                "A standby group needs a single Redis server: in a cluster, "
                "a new leader cannot end the old one's connections to every node. Change "
                "MDSERVICE_REDIS_URL, or unset MDSERVICE_GROUP"
            )
        self._identities: dict[str, Identity | None] = {}
        """The last connection to each node."""
        self._runs: dict[str, object] = {}
        """The server's run at each node; one of its own for a server that gives none."""
        self._served: list[object] = []
        """By slot: the server's run that has the last writes."""
        self._lost: set[int] = set()
        """The slots whose server may lack the last writes."""
        self._numbers: dict[bytes, int] = {}
        """The numbers by their keys, as last read or written."""
        self._unsettled: Mapping[bytes, int] = {}
        """The numbers of a batch that may be executed in part, by their keys."""
        self._keys_in_doubt = False
        """Whether the keys of that batch have to be written again."""

    def take_lost(self) -> Callable[[Kind[Any], str], bool] | None:
        """See :class:`~mdservice.publish.store.PartedStore`."""
        lost, self._lost = self._lost, set()
        if not lost:
            return None
        prefixes = {}

        def is_lost(kind: Kind[Any], symbol: str) -> bool:
            if kind not in prefixes:
                prefixes[kind] = self._names.key_prefix(kind)
            return slot_of(prefixes[kind] + symbol.encode()) in lost

        return is_lost

    async def _open(self) -> RedisConnection:
        return await self._address.reach(self._open_node, reads=False)

    async def _open_node(self, address: RedisAddress) -> RedisConnection:
        """A connection to a node, after ending the previous one there."""
        with ExitStack() as undo:
            connection = await RedisConnection.open(address, CLIENT_NAME)
            undo.callback(connection.close)
            identity = await fence(connection, self._identities.get(address.shown))
            undo.pop_all()
        self._identities[address.shown] = identity
        self._runs[address.shown] = object() if identity is None else identity.run_id
        return connection

    async def _greet(self, connection: RedisConnection) -> None:
        cluster = cast("ClusterConnection", connection)
        await self._note_owners(cluster)
        identities = [self._identities[node.address] for node in await cluster.servers()]
        self._unfenced = None if None in identities else next(iter(identities), None)
        await try_markers(await cluster.node(cluster.owner(EVENTS_SLOT)), self._packer, 0)

    async def _look(self, connection: RedisConnection) -> None:
        cluster = cast("ClusterConnection", connection)
        await super()._look(await cluster.node(cluster.owner(EVENTS_SLOT)))

    async def _note_owners(self, cluster: ClusterConnection) -> None:
        """Connect to every node that serves slots, and find out whether one took slots over."""
        runs: dict[object, object] = {None: None}
        for node in cluster.primaries:
            runs[node] = self._runs[(await cluster.node(node)).address]
        now = [runs[node] for node in cluster.owners]
        if self._served and now != self._served:
            present = set(runs.values())
            lost = {
                slot
                for slot, (before, after) in enumerate(zip(self._served, now, strict=True))
                # A slot that was moved has left its keys' owner where it was.
                if after not in (before, None) and before is not None and before not in present
            }
            self._lost |= lost
            self._keys_in_doubt |= bool(lost and self._unsettled)
            now = [
                before if after is None else after
                for before, after in zip(self._served, now, strict=True)
            ]
        self._served = now

    async def last_batch(self) -> int:
        """The number of this instance's last executed batch, or 0.

        A batch counts as executed when all its transactions are, and its keys are safe.

        Raises:
            StoreUnavailable, StoreRefused
        """
        keys = {self._number_key, *self._unsettled}
        for key in keys:
            self._numbers[key] = await self._read_number(key)
        number = self._numbers[self._number_key]
        done = all(self._numbers[key] >= wanted for key, wanted in self._unsettled.items())
        if self._unsettled and (self._keys_in_doubt or not done):
            number = min(number, self._unsettled[self._number_key] - 1)
        self._number = self._numbers[self._number_key]
        return number

    async def _write(self, connection: RedisConnection, batch: WriteBatch) -> list[str]:
        cluster, failed = cast("ClusterConnection", connection), list[str]()
        streams, messages = [*self._packer.streams(batch)], [*self._packer.messages(batch)]
        done = set[bytes]()
        settles = bool(batch.events) and not batch.restored
        if settles:
            wanted = {each.key: batch.number for each in (*streams, *messages)}
            if wanted == self._unsettled:
                done = {key for key in wanted if self._numbers.get(key, 0) >= batch.number}
            self._unsettled = wanted
        await self._write_keys(cluster, batch)
        for step in (streams, messages):
            # What is written again has an earlier number, and must not lower the stored one.
            numbers = {
                each.key: max(batch.number, self._numbers.get(each.key, 0))
                for each in step
                if each.key not in done
            }
            units = [each.unit(numbers[each.key]) for each in step if each.key in numbers]
            try:
                await cluster.execute(units)
            finally:  # one node may refuse what another one has executed
                for (key, stored), unit in zip(numbers.items(), units, strict=True):
                    if unit.replies and isinstance(unit.replies[-1], list):
                        self._numbers[key] = stored
            for unit in units:
                failed += failed_commands(self.address, unit.replies)
        if settles:
            self._unsettled, self._keys_in_doubt = {}, False
        self._number = self._numbers[self._number_key]
        return failed

    async def _write_keys(self, cluster: ClusterConnection, batch: WriteBatch) -> None:
        lanes: dict[Any, tuple[list[int], list[bytes]]] = {}
        owners = cluster.owners
        for slot, command in zip(*self._packer.keys(batch), strict=True):
            lane = lanes.get(owners[slot])
            if lane is None:
                lane = lanes[cluster.owner(slot)] = [], []
            lane[0].append(slot)
            lane[1].append(command)
        sent = {node: (b"".join(lane[1]), len(lane[1])) for node, lane in lanes.items()}
        replies = await cluster.scatter(sent)
        moved: list[Unit] = []
        for node, lane in lanes.items():
            if ANY_ERROR not in set(map(type, replies[node])):  # thousands of replies, no errors
                continue
            for slot, command, reply in zip(*lane, replies[node], strict=True):
                if is_error(reply):
                    if refusal_code(str(reply)) not in REDIRECTIONS:
                        raise_refusal(self.address, [reply])
                    moved.append(Unit(slot, command))
        if moved:
            await cluster.execute(moved)
            raise_refusal(self.address, (reply for unit in moved for reply in unit.replies))
            await self._note_owners(cluster)
            if self._lost:
                raise StoreUnavailable(
                    f"Another node of the cluster at {self.address} has taken over; connecting "
                    "again"
                )

    async def ping(self) -> None:
        """Check that every node answers, and that the one of the events accepts writes.

        Raises:
            StoreUnavailable, StoreRefused
        """
        with self._conversation() as connection:
            cluster = cast("ClusterConnection", connection)
            replies = await cluster.scatter(dict.fromkeys(cluster.primaries, (_PING, 1)))
            raise_refusal(self.address, (reply for (reply,) in replies.values()))
        await super().ping()

    async def forget(self) -> None:
        """Remove the batch numbers, so that this writer leaves nothing in Redis.

        Raises:
            StoreUnavailable, StoreRefused
        """
        self._number = None
        await self._call(*(pack(b"DEL", key) for key in {self._number_key, *self._numbers}))


def open_price_store(url: str, **options: Any) -> PriceStore:
    """The store at a URL: :class:`ClusterPriceStore` in a cluster, else :class:`RedisPriceStore`.

    Args:
        url: As :func:`~mdservice.redis_io.locator.locator_of` reads it.
        options: As :class:`RedisPriceStore` has them.

    Raises:
        ConfigurationError: The URL cannot be used.
    """
    clustered = locator_of(url, timeout_s=1.0).clustered
    return (ClusterPriceStore if clustered else RedisPriceStore)(url, **options)
