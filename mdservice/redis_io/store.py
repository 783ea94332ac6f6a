"""The price store in a Redis-protocol server: one connection, one transaction a batch.

A cancelled call closes the connection, since the server may or may not execute what it sent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final

import anyio
import attrs

from mdservice.errors import StoreRefused, StoreUnavailable
from mdservice.model.kinds import KINDS, Kind, Stream
from mdservice.observability.logging import get_logger
from mdservice.publish.store import Refusable, WriteBatch, channel_of
from mdservice.redis_io.commands import BatchPacker, pack
from mdservice.redis_io.connection import RedisConnection, no_answer
from mdservice.redis_io.locator import locator_of
from mdservice.redis_io.names import ACCOUNT_CHANNEL, RedisNames
from mdservice.redis_io.replies import (
    ANY_ERROR,
    array,
    describe_refusal,
    is_error,
    malformed,
    refusal,
)
from mdservice.redis_io.rights import MissingRights, missing_rights

__all__ = [
    "CLIENT_NAME",
    "LOOK_AGAIN_S",
    "Identity",
    "RedisPriceStore",
    "failed_commands",
    "fence",
    "greet",
    "identify",
    "raise_refusal",
    "try_markers",
    "write_batch",
]


# The exchanges on a connection: the greeting, which includes the fence, and a batch.


CLIENT_NAME: Final = "mdservice-writer"
"""The connection's name in the server's ``CLIENT LIST``."""


@attrs.frozen
class Identity:
    """A connection as its server knows it; an id means nothing to another run of the server."""

    run_id: bytes
    client_id: int


async def identify(connection: RedisConnection) -> Identity | None:
    """The connection as its server knows it; None if this user may not ask.

    Raises:
        StoreUnavailable
    """
    client_id, info = await connection.call(pack(b"CLIENT", b"ID"), pack(b"INFO", b"server"))
    run_id = _run_id(info)
    if run_id is None or not isinstance(client_id, int):
        return None
    return Identity(run_id, client_id)


async def greet(
    connection: RedisConnection,
    previous: Identity | None,
    packer: BatchPacker,
    database: int,
    admit: Callable[[RedisConnection], Awaitable[None]] | None = None,
) -> Identity | None:
    """Fence the previous connection; return the server's identity of this one.

    Also sets in the packer for which kinds it may name the owner of a batch. In a group, ``admit``
    registers the connection before anything is published on it.

    Raises:
        StoreUnavailable, StoreRefused
    """
    identity = await fence(connection, previous)
    if admit is not None:
        await admit(connection)
    await try_markers(connection, packer, database)
    return identity


async def fence(connection: RedisConnection, previous: Identity | None) -> Identity | None:
    """Fence the previous connection; return the server's identity of this one.

    Returns None if the server gives no identity or refuses the fence;
    :class:`~mdservice.redis_io.store.RedisPriceStore` says what follows from that.

    Raises:
        StoreUnavailable, StoreRefused
    """
    identity = await identify(connection)
    # If this user may not use MULTI, the server would execute a batch's commands one by one.
    multi, executed = await connection.call(pack(b"MULTI"), pack(b"EXEC"))
    raise_refusal(connection.address, [multi, executed])
    if identity is not None and previous is not None and previous.run_id == identity.run_id:
        kill = pack(b"CLIENT", b"KILL", b"ID", b"%d" % previous.client_id)
        (killed,) = await connection.call(kill)
        if is_error(killed):
            identity = None
    return identity


async def try_markers(connection: RedisConnection, packer: BatchPacker, database: int) -> None:
    """Set in the packer for which kinds it may name the owner of a batch.

    Raises:
        StoreUnavailable
    """
    # If this user may not publish one of these messages, the server would refuse the whole batch.
    markers = [packer.marker(kind, database, 0) for kind in KINDS]
    marked = zip(KINDS, await connection.call(*markers), strict=True)
    packer.marks_db = database
    packer.unmarked = frozenset(kind for kind, reply in marked if is_error(reply))


def _run_id(info: object) -> bytes | None:
    if not isinstance(info, bytes):
        return None
    for line in info.splitlines():
        name, _, value = line.partition(b":")
        if name == b"run_id" and value:
            return value
    return None


async def write_batch(
    connection: RedisConnection, packer: BatchPacker, batch: WriteBatch
) -> list[str]:
    """Send a batch; return the texts of the commands that failed inside the transaction.

    Raises:
        StoreUnavailable, StoreRefused
    """
    packed = packer.batch(batch)
    replies = await connection.exchange(packed.data, packed.queued + 2)
    return failed_commands(connection.address, replies)


def failed_commands(address: str, replies: Sequence[Any]) -> list[str]:
    """The texts of the commands that failed inside an executed transaction.

    Args:
        address: The server, without a secret.
        replies: Those from ``MULTI`` to ``EXEC``.

    Raises:
        StoreUnavailable, StoreRefused: It was not executed as a transaction.
    """
    results = replies[-1]
    if isinstance(results, list):
        if ANY_ERROR not in set(map(type, results)):  # thousands of results, no errors
            return []
        return [str(result) for result in results if is_error(result)]
    if is_error(replies[0]) and not all(map(is_error, replies)):
        # Only MULTI was refused (the permission was removed while the service ran), and the
        # server executed the rest one by one. The next connect() reports the refusal.
        raise StoreUnavailable(
            describe_refusal(address, str(replies[0])) + "; part of the batch was executed"
        )
    raise_refusal(address, replies)
    raise StoreUnavailable(f"Redis at {address} answered EXEC with {results!r}")


def raise_refusal(address: str, replies: Iterable[object]) -> None:
    """Raise StoreRefused for the first of the replies that is an error."""
    for reply in replies:
        if is_error(reply):
            raise refusal(address, str(reply))


LOOK_AGAIN_S: Final = 10.0
"""How often to try again the rights of kinds that this user may not write, seconds."""
_KEYS_PER_READ: Final = 1_000
_WATCH_EVERY_S: Final = 1.0
"""How often sentinels are asked whether the server is still the primary."""
_MARK_EVERY_S: Final = 1.0
"""How often readers of every kind learn how many batches there were, under load."""

_log = get_logger(__name__)


class RedisPriceStore:
    """A :class:`~mdservice.publish.store.PriceStore` in Redis or Valkey.

    After a connection is lost in the middle of a write, the server may still receive and
    execute the bytes later. :meth:`connect` therefore ends the previous connection by
    ``CLIENT KILL ID`` before :meth:`last_batch` is read. Where the server refuses ``CLIENT``
    or ``INFO`` to this user, :attr:`can_fence` is False, and a batch that was under way when
    a connection broke may then be executed twice, or after a newer one. The same holds where
    one address leads to several servers in turn.

    A kind or channel that the user may not write is left out, and :attr:`command_errors` counts
    its events. The others are written. Its rights are tried again every :data:`LOOK_AGAIN_S`.
    Without the rights to write quotes, every write is refused.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, as redis-py reads it.
        price_ttl_s: Seconds until a key expires, for kinds that set no time of their own.
        event_log: A stream to which the events of logged kinds are appended too, or None.
        event_log_maxlen: About how many entries the stream keeps.
        instance: Names the writer. A new name for each start of the service, since batches
            are counted from 1 again.
        prefix: The prefix of every key, channel and stream name.
        timeout_s: How long connecting, and each wait for the server, may take.
        kinds: The kinds, and the channels of other messages, that will be written; their missing
            rights are logged at connecting.
        admit: Registers each new connection in a group before anything is written on it
            (:meth:`mdservice.redis_io.lease.RedisLease.admit`). It raises if the service no longer
            leads.
        reads_only: Connect only to read the latest values, and publish nothing. So a standby reads.

    Raises:
        ConfigurationError: The URL cannot be used.
    """

    _packs: ClassVar[type[BatchPacker]] = BatchPacker

    def __init__(
        self,
        url: str,
        *,
        instance: str,
        price_ttl_s: int = 300,
        event_log: str | None = None,
        event_log_maxlen: int = 100_000,
        prefix: str = "",
        timeout_s: float = 5.0,
        kinds: Collection[Refusable] = (*KINDS, ACCOUNT_CHANNEL),
        admit: Callable[[RedisConnection], Awaitable[None]] | None = None,
        reads_only: bool = False,
    ) -> None:
        self._address = locator_of(url, timeout_s=timeout_s)
        self._timeout_s = timeout_s
        self._names = RedisNames(
            prefix, clustered=self._address.clustered, sharded=self._address.sharded
        )
        self._packer = self._packs(
            price_ttl_s=price_ttl_s,
            event_log=event_log,
            event_log_maxlen=event_log_maxlen,
            instance=instance,
            names=self._names,
        )
        self._event_log = event_log
        self._kinds = kinds
        self._admit = admit
        self._reads_only = reads_only
        self._missing = MissingRights()
        self._said_missing: Mapping[Refusable, str] = {}
        self._looked_s = 0.0
        self._number_key = self._names.writer_key(instance)
        self._connection: RedisConnection | None = None
        self._unfenced: Identity | None = None
        self._said_unfenced = False
        self._number: int | None = None
        self._marked_s = 0.0
        self._command_errors = 0
        self._last_command_error: str | None = None

    @property
    def address(self) -> str:
        """Where the server is, without user and password."""
        return self._address.shown

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as the client knows."""
        return self._connection is not None

    @property
    def can_fence(self) -> bool:
        """Whether the next :meth:`connect` can end the present connection."""
        return self._unfenced is not None

    @property
    def command_errors(self) -> int:
        """How many commands failed inside an executed transaction, with the events left out.

        For instance an ``XADD`` to a key that is no stream.
        """
        return self._command_errors

    @property
    def last_command_error(self) -> str | None:
        """The server's message for the last of them."""
        return self._last_command_error

    @property
    def refused(self) -> Mapping[Refusable, str]:
        """The kinds and channels that this user may not write, each with the missing rights."""
        return self._missing.others

    async def connect(self) -> None:
        """Open a connection, after ending the previous one where the server still holds it.

        Raises:
            StoreUnavailable: No connection within ``timeout_s``.
            StoreRefused: The login, or a command that is needed, is refused.
        """
        self._drop()
        with anyio.move_on_after(self._timeout_s) as scope:
            connection = await self._open()
            if self._reads_only:
                self._connection = connection
                return
            try:
                await self._greet(connection)
                await self._look(connection)
                self._connection = connection
            finally:
                if self._connection is None:
                    connection.close()
        if scope.cancelled_caught:
            raise no_answer(self._address, self._timeout_s)
        if self.can_fence:
            self._said_unfenced = False
        elif not self._said_unfenced:
            self._said_unfenced = True
            _log.warning(
                "redis_cannot_be_fenced",
                url=self.address,
                reason="this user may not use CLIENT or INFO: a write whose connection broke may "
                "be executed twice",
            )

    async def _open(self) -> RedisConnection:
        return await RedisConnection.open(self._address, CLIENT_NAME)

    async def _greet(self, connection: RedisConnection) -> None:
        """Fence the previous connection, and identify this one."""
        self._unfenced = await greet(
            connection, self._unfenced, self._packer, self._address.database, self._admit
        )

    async def watch(self) -> None:
        """Close the connection to a server that sentinels have replaced, also during a write.

        A replaced primary still accepts writes until the sentinels demote it, and they are lost. It
        returns at once if the URL names one server.
        """
        while self._address.may_move:
            await anyio.sleep(_WATCH_EVERY_S)
            connection = self._connection
            if connection is None or await self._address.is_right(connection.server):
                continue
            _log.warning("redis_primary_moved", url=self.address, old=connection.address)
            connection.close()

    async def last_batch(self) -> int:
        """The number of this instance's last executed batch, or 0.

        Raises:
            StoreUnavailable, StoreRefused
        """
        self._number = await self._read_number(self._number_key)
        return self._number

    async def _read_number(self, key: bytes) -> int:
        (reply,) = await self._call(pack(b"GET", key))
        try:
            return int(reply or 0)
        except (TypeError, ValueError) as exc:
            raise StoreRefused(
                f"The key {key.decode()} at {self.address} holds no batch number; delete it"
            ) from exc

    async def write(self, batch: WriteBatch) -> None:
        """Execute the batch as one transaction: every key, every message, then the number.

        A command that fails inside the executed transaction does not undo the others: the
        batch counts as executed, and :attr:`command_errors` counts the failure.

        Raises:
            StoreUnavailable: The connection was lost; the batch may or may not be executed.
            StoreRefused: Nothing was executed; the connection can be used again.
        """
        self._number = None
        if (now_s := anyio.current_time()) - self._marked_s >= _MARK_EVERY_S:
            self._packer.marks_all, self._marked_s = True, now_s
        with self._conversation() as connection:
            await self._look_again(connection)
            try:
                failed = await self._write(connection, batch)
            except StoreRefused as exc:
                if self._missing.needed:
                    words = f"{exc}. Missing: {self._missing.needed}"
                    raise StoreRefused(words, reconnect=exc.reconnect, code=exc.code) from exc
                raise
        failed += self._left_out(batch)
        if failed:
            self._command_errors += len(failed)
            self._last_command_error = failed[-1]

    async def _write(self, connection: RedisConnection, batch: WriteBatch) -> list[str]:
        failed = await write_batch(connection, self._packer, batch)
        self._number = batch.number
        return failed

    async def ping(self) -> None:
        """Check that the server answers and accepts writes.

        It stores the last batch's number again. A replica, a full or a misconfigured server
        refuses that, but would answer a plain ``PING``. Readers learn how many batches there
        were: a replica may have lost the last one.

        Raises:
            StoreUnavailable, StoreRefused
        """
        with self._conversation() as connection:
            await self._look_again(connection)
        if self._number is None:
            # The number is not known, so a stored one must stay.
            number = self._packer.number(0, b"NX")
        else:
            number = self._packer.number(self._number)
        await self._call(number, *self._packer.idle_markers())

    async def read_latest(self, kind: Kind[Any], symbols: Iterable[str]) -> dict[str, bytes]:
        """The latest values by symbol; symbols without a value are left out.

        Raises:
            StoreUnavailable, StoreRefused
        """
        names = list(symbols)
        prefix = self._names.key_prefix(kind)
        found: dict[str, bytes] = {}
        for start in range(0, len(names), _KEYS_PER_READ):
            some = names[start : start + _KEYS_PER_READ]
            (reply,) = await self._call(pack(b"MGET", *(prefix + s.encode() for s in some)))
            values = array(self.address, reply, len(some))
            found.update(
                (name, value) for name, value in zip(some, values, strict=True) if value is not None
            )
        return found

    async def read_newest(self, stream: Stream, count: int) -> list[bytes]:
        """The payloads of the newest entries of a kind's stream, the oldest first.

        Raises:
            StoreUnavailable, StoreRefused
        """
        name = self._names.stream(stream)
        (reply,) = await self._call(pack(b"XREVRANGE", name, b"+", b"-", b"COUNT", b"%d" % count))
        try:
            entries = [dict(zip(fields[::2], fields[1::2], strict=True)) for _, fields in reply]
        except (LookupError, TypeError, ValueError) as exc:
            raise malformed(self.address) from exc
        return [fields[b"data"] for fields in reversed(entries) if b"data" in fields]

    async def renew(self, kind: Kind[Any], symbols: Iterable[str]) -> Sequence[str]:
        """Restart the time to live of these values; return the symbols without a value.

        Raises:
            StoreUnavailable, StoreRefused
        """
        names = list(symbols)
        if not names or kind in self.refused:
            return ()
        prefix = self._names.key_prefix(kind)
        ttl = b"%d" % self._packer.ttl_s(kind)
        commands = (pack(b"EXPIRE", prefix + name.encode(), ttl) for name in names)
        replies = await self._call(*commands)
        return [name for name, reply in zip(names, replies, strict=True) if not reply]

    async def forget(self) -> None:
        """Remove the batch number, so that this writer leaves nothing in Redis.

        Raises:
            StoreUnavailable, StoreRefused
        """
        self._number = None
        await self._call(pack(b"DEL", self._number_key))

    async def aclose(self) -> None:
        """Close the connection; never raises for a broken one."""
        self._drop()

    async def _look(self, connection: RedisConnection) -> None:
        """Try which kinds may be written."""
        self._missing = await missing_rights(connection, self._names, self._event_log)
        self._looked_s = anyio.current_time()
        self._packer.refused = self.refused
        shown = {kind: self.refused[kind] for kind in self._kinds if kind in self.refused}
        if shown and shown != self._said_missing:
            _log.error(
                "redis_rights_missing",
                url=self.address,
                rights=", ".join(shown.values()),
                not_written=list(map(channel_of, shown)),
                fix="`mdservice check` prints the ACL line",
            )
        self._said_missing = shown

    async def _look_again(self, connection: RedisConnection) -> None:
        if self.refused and anyio.current_time() - self._looked_s >= LOOK_AGAIN_S:
            await self._look(connection)

    def _left_out(self, batch: WriteBatch) -> list[str]:
        """The reason for each event of a kind that may not be written."""
        return [
            f"no {channel_of(events.refusable)} are written, because this user has no right to "
            f"{self.refused[events.refusable]}; `mdservice check` prints the ACL line"
            for events in batch.events
            if events.refusable in self.refused
            for _ in events.payloads
        ]

    async def _call(self, *commands: bytes) -> list[Any]:
        """Send commands and return their replies; raise for an error among them."""
        with self._conversation() as connection:
            replies = await connection.call(*commands)
            raise_refusal(self.address, replies)
        return replies

    @contextmanager
    def _conversation(self) -> Iterator[RedisConnection]:
        """The connection; closed when the block fails or is cancelled."""
        connection = self._connection
        if connection is None:
            raise StoreUnavailable(f"No connection to Redis at {self.address}: connect() first")
        usable = False
        try:
            yield connection
            usable = True
        except StoreRefused:
            usable = True  # the server has answered every command, so no reply is still to come
            raise
        finally:
            if not usable:
                connection.close()
                if connection is self._connection:
                    self._connection = None

    def _drop(self) -> None:
        connection, self._connection, self._number = self._connection, None, None
        if connection is not None:
            connection.close()
