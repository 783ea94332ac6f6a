"""The lease of a group in a Redis-protocol server; see :mod:`mdservice.publish.lease`.

Each step is one script, so nothing comes between its check and its change.

==========================================  =======================================================
key                                         content
==========================================  =======================================================
``mdservice:group:{NAME}``                  the leader (JSON); it expires with the lease
``mdservice:group:{NAME}:term``             the last epoch, its holder, and every connection that
                                            may still write: ``{"run_id client_id": epoch}``
``mdservice:group:{NAME}:standby``          the id of a standby that is alive; expires likewise
``mdservice:group:{NAME}:subscriptions``    what the leader's programs want, and up to when each
                                            feed and channel is published
==========================================  =======================================================

The braces are part of the names: they put a group's keys into one slot of a cluster.

A new leader ends the registered connections with ``CLIENT KILL ID``, and takes each off the list
once it is dead. If it dies between the two, the next leader finds the whole list. A connection
that was registered with another run of the server is dead already.

The lease's own connection is not registered, since each script checks who leads. A new one ends the
last one first: what the network still holds of it, the server does not execute after later calls.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import anyio
import msgspec

from mdservice.clock import Clock
from mdservice.errors import ConfigurationError, Deposed, StoreError, StoreRefused, StoreUnavailable
from mdservice.observability.logging import get_logger, masked
from mdservice.publish.lease import LEASE_S, Leader, decode_leader, encode_leader
from mdservice.redis_io.commands import pack
from mdservice.redis_io.connection import RedisAddress, RedisConnection
from mdservice.redis_io.names import RedisNames
from mdservice.redis_io.replies import is_error, malformed, refusal, refusal_code
from mdservice.redis_io.store import identify

__all__ = ["Admit", "RedisLease"]

_log = get_logger(__name__)

CLIENT_NAME: Final = "mdservice-lease"
"""The connection's name in the server's ``CLIENT LIST``."""
_TIMEOUT_S: Final = 1.0
"""The limit of each call. Shorter than the lease, so that a renewal is tried more than once."""
_SIGN_EVERY_S: Final = 1.0
"""How often a standby shows that it is alive."""

Admit = Callable[[RedisConnection], Awaitable[None]]
"""Registers a connection before its first write.

It raises StoreUnavailable or StoreRefused if the connection must not write.
"""

Connect = Callable[[RedisAddress, str], Awaitable[RedisConnection]]
"""Opens a connection with a name."""

_READ: Final = """
local lease = redis.call('GET', KEYS[1])
local leader = lease and cjson.decode(lease)
local stored = redis.call('GET', KEYS[2])
local term = stored and cjson.decode(stored) or {epoch = 0, holder = '', writers = {}}
"""
_LOOK: Final = """
if ARGV[1] ~= '' then redis.call('SET', KEYS[3], ARGV[1], 'PX', ARGV[2]) end
return {redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2])}
"""
_TAKE: Final = """
local own = cjson.decode(ARGV[1])
term.epoch = math.max(term.epoch, tonumber(ARGV[3])) + 1
term.holder = own.id
own.epoch = term.epoch
for writer, epoch in pairs(cjson.decode(ARGV[4])) do term.writers[writer] = epoch end
redis.call('SET', KEYS[1], cjson.encode(own), 'PX', ARGV[2])
redis.call('SET', KEYS[2], cjson.encode(term))
if redis.call('GET', KEYS[3]) == own.id then redis.call('DEL', KEYS[3]) end
"""
# ARGV of claim and renew: own (JSON), lease (ms), highest known epoch, writers (JSON)
_CLAIM: Final = (
    _READ
    + "if leader and leader.id ~= cjson.decode(ARGV[1]).id then return {0} end"
    + _TAKE
    + "return {term.epoch, cjson.encode(term.writers)}"
)
_RENEW: Final = (
    _READ
    + """
local id = cjson.decode(ARGV[1]).id
if leader then
  if leader.id ~= id then return {0} end
  redis.call('SET', KEYS[1], lease, 'PX', ARGV[2])
  return {leader.epoch, redis.call('GET', KEYS[3])}
end
if stored and term.holder ~= id then return {0} end
"""
    + _TAKE
    + "return {term.epoch, redis.call('GET', KEYS[3])}"
)
# ARGV: id, epoch, writer, epoch again for a new one or nothing for a dead one; further pairs
_CHANGE_WRITERS: Final = (
    _READ
    + """
if not stored then return -1 end
if term.holder ~= ARGV[1] then return 0 end
if term.epoch ~= tonumber(ARGV[2]) then return -1 end
for place = 3, #ARGV, 2 do term.writers[ARGV[place]] = tonumber(ARGV[place + 1]) end
redis.call('SET', KEYS[2], cjson.encode(term))
return 1
"""
)
_RELEASE: Final = _READ + "if leader and leader.id == ARGV[1] then redis.call('DEL', KEYS[1]) end"
_REMEMBER: Final = (
    _READ
    + """
if not stored then return -1 end
if term.holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[4], ARGV[2])
return 1
"""
)
_RECALL: Final = "return redis.call('GET', KEYS[4])"


class RedisLease:
    """A :class:`~mdservice.publish.lease.Lease` in Redis or Valkey, over a connection of its own.

    Args:
        url: As for :class:`~mdservice.redis_io.store.RedisPriceStore`.
        group: The group's name.
        own: This member.
        prefix: The prefix of every key.
        clock: The time.
        lease_s: How long a lease lasts, seconds.
        connect: Opens a connection to an address, with its name.

    Raises:
        ConfigurationError: The URL cannot be used.
    """

    def __init__(
        self,
        url: str,
        group: str,
        own: Leader,
        *,
        clock: Clock,
        prefix: str = "",
        lease_s: float = LEASE_S,
        connect: Connect = RedisConnection.open,
    ) -> None:
        self._connect = connect
        self._address = RedisAddress(url, timeout_s=_TIMEOUT_S)
        self._keys = RedisNames(prefix).group_keys(group)
        self._own = own
        self._clock = clock
        self._lease_s = lease_s
        self._lease_ms = b"%d" % round(lease_s * 1000)
        self._connection: RedisConnection | None = None
        self._run_id = ""
        self._last_connection = ""
        """The run of the server and the client id of the last connection; see :meth:`_open`."""
        self._rights_known = False
        self._calls = anyio.Lock()
        self._last_error: str | None = None
        self._highest = 0
        """The highest epoch that this member has seen. A server without its data must not lower
        it."""
        self._leads = False
        self._seen_leader = False
        """Whether the lease was held when this member last looked."""
        self._may_return_until_s = 0.0
        """Until then, a leader may renew its lease after an outage of the server."""
        self._signed_s = -_SIGN_EVERY_S
        self._others: dict[str, int] = {}
        """The connections of earlier leaders, as last seen, by run of the server and client id."""
        self._admitted: dict[str, str] = {}
        """The registered connection of each of this member's writers in its term."""

    @property
    def address(self) -> str:
        """Where the server is, without user and password."""
        return self._address.shown

    @property
    def last_error(self) -> str | None:
        """Why the last call failed; None after one that succeeded."""
        return self._last_error

    @property
    def own(self) -> Leader:
        """This member, with the epoch of its present or last term."""
        return self._own

    async def look(self) -> Leader | None:
        """Who leads now; see :meth:`mdservice.publish.lease.Lease.look`."""
        now_s = anyio.current_time()
        sign = now_s - self._signed_s >= _SIGN_EVERY_S
        reply = await self._run(_LOOK, self._own.id.encode() if sign else b"", self._lease_ms)
        if sign:
            self._signed_s = now_s
        lease, term = self._parts(reply, 2)
        if term is not None:
            found = self._read(json.loads, term)
            self._highest = max(self._highest, int(found["epoch"]))
            self._others.update(found["writers"])
        leader: Leader | None = None if lease is None else self._read(decode_leader, lease)
        if leader is not None and leader.id != self._own.id:
            self._seen_leader = True
            return leader
        return None

    async def claim(self) -> Leader | None:
        """Lead, unless another member does; see :meth:`mdservice.publish.lease.Lease.claim`."""
        if anyio.current_time() < self._may_return_until_s:
            return None
        taken = self._own.leads(0, self._clock)
        epoch, writers = self._parts(await self._take(_CLAIM, taken, self._others), 2)
        if not epoch:
            return None
        self._note_epoch(taken, epoch)
        self._admitted.clear()
        await self._end(self._read(json.loads, writers))
        self._others.clear()
        self._leads = True
        return self._own

    async def renew(self) -> bool:
        """Lead for another term of the lease; see :meth:`mdservice.publish.lease.Lease.renew`."""
        if not self._leads:
            raise self._deposed()
        writers = dict.fromkeys(self._admitted.values(), self._own.epoch)
        epoch, standby = self._parts(await self._take(_RENEW, self._own, writers), 2)
        if not epoch:
            raise self._deposed()
        if epoch != self._own.epoch:
            _log.warning("lease_claimed_again", epoch=epoch, url=self.address)
            self._note_epoch(self._own, epoch)
        return standby is not None and standby != self._own.id.encode()

    async def release(self) -> None:
        """Free the lease if it is this member's."""
        self._leads = False
        await self._run(_RELEASE, self._own.id.encode())

    async def remember(self, wishes: bytes) -> None:
        """Keep what the leader's programs want for the next leader."""
        self._require(await self._run(_REMEMBER, self._own.id.encode(), wishes))

    async def recall(self) -> bytes | None:
        """What the last leader's programs wanted, or None."""
        found: bytes | None = await self._run(_RECALL)
        return found

    async def aclose(self) -> None:
        """Close the connection; never raises for a broken one."""
        self._drop()

    def admit(self, writer: str) -> Admit:
        """Return the function that registers each new connection of a writer.

        The writer calls it before it writes on the connection. It also ends the writer's previous
        connection, so that the list of those that may still write stays short.

        Args:
            writer: Which of this member's writers: it has one connection at a time.
        """

        async def admit(connection: RedisConnection) -> None:
            if not self._leads:
                raise self._deposed()
            identity = await identify(connection)
            if identity is None:
                raise self._lacks("CLIENT or INFO")
            run_id = identity.run_id.decode()
            name, previous = f"{run_id} {identity.client_id}", self._admitted.get(writer)
            changes = [name.encode(), b"%d" % self._own.epoch]
            kills = [] if previous is None else _kill(run_id, previous)
            if previous is not None:
                changes += [previous.encode(), b""]
            command = self._pack(_CHANGE_WRITERS, *self._id_and_epoch(), *changes)
            replies = await connection.call(*kills, command)
            for reply in replies:
                if is_error(reply):
                    raise self._refused(str(reply))
            self._require(replies[-1])
            self._admitted[writer] = name

        return admit

    # The connections of earlier leaders

    async def _end(self, writers: Mapping[str, int]) -> None:
        """End connections, and take them off the list."""
        if not writers:
            return

        def kills(run_id: str) -> list[bytes]:
            return [kill for name in writers for kill in _kill(run_id, name)]

        for reply in await self._exchange(kills):
            if is_error(reply):
                raise self._refused(str(reply))
        changes = [word for name in writers for word in (name.encode(), b"")]
        self._require(await self._run(_CHANGE_WRITERS, *self._id_and_epoch(), *changes))

    # The exchanges

    async def _take(self, script: str, own: Leader, writers: Mapping[str, int]) -> Any:
        return await self._run(
            script,
            encode_leader(own),
            self._lease_ms,
            b"%d" % max(self._highest, self._own.epoch),
            json.dumps(dict(writers)).encode(),
        )

    def _note_epoch(self, own: Leader, epoch: int) -> None:
        self._own = msgspec.structs.replace(own, epoch=epoch)
        self._highest = max(self._highest, epoch)

    def _id_and_epoch(self) -> list[bytes]:
        return [self._own.id.encode(), b"%d" % self._own.epoch]

    def _require(self, reply: object) -> None:
        """Raise unless a change was made."""
        if reply == 0:
            raise self._deposed()
        if reply != 1:
            raise StoreUnavailable(
                f"Redis at {self.address} has lost the lease; it is claimed again first"
            )

    def _deposed(self) -> Deposed:
        self._leads = False
        return Deposed(
            f"{self._own.shown} no longer leads its group: another service has claimed the lease"
        )

    async def _run(self, script: str, *arguments: bytes) -> Any:
        command = self._pack(script, *arguments)
        (reply,) = await self._exchange(lambda _run_id: [command])
        if is_error(reply):
            raise self._refused(str(reply))
        self._rights_known = True
        return reply

    def _pack(self, script: str, *arguments: bytes) -> bytes:
        return pack(b"EVAL", script.encode(), b"%d" % len(self._keys), *self._keys, *arguments)

    async def _exchange(self, commands: Callable[[str], Sequence[bytes]]) -> list[Any]:
        """Send the commands for this run of the server, and return their replies.

        The connection is closed unless every reply has come.
        """
        async with self._calls:
            replies = None
            try:
                with anyio.move_on_after(_TIMEOUT_S):
                    connection = await self._open()
                    replies = await connection.call(*commands(self._run_id))
            except StoreError as exc:
                self._last_error = masked(str(exc))
                raise
            finally:
                if replies is None:
                    self._drop()
            if replies is None:
                self._last_error = f"Redis at {self.address} did not answer within {_TIMEOUT_S:g} s"
                raise StoreUnavailable(self._last_error)
            self._last_error = None
            return replies

    async def _open(self) -> RedisConnection:
        """The connection; a new one where it was lost."""
        if self._connection is not None:
            return self._connection
        connection = await self._connect(self._address, CLIENT_NAME)
        try:
            identity = await identify(connection)
            if identity is None:
                raise self._lacks("CLIENT ID or INFO")
            run_id = identity.run_id.decode()
            # What the network still holds of the last connection comes too late from here on. The
            # server refuses the id 0, but checks the right before.
            (kill,) = _kill(run_id, self._last_connection) or [_kill_of("0")]
            (killed,) = await connection.call(kill)
            if refusal_code(str(killed)) == "NOPERM":
                raise self._lacks("CLIENT KILL")
            self._last_connection = f"{run_id} {identity.client_id}"
            self._connection = connection
        finally:
            if self._connection is None:
                connection.close()
        if self._run_id not in ("", run_id) and self._seen_leader:
            # Another server, or one that may have lost the lease: the leader finds it as late.
            self._may_return_until_s = anyio.current_time() + self._lease_s
        self._run_id = run_id
        return connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _refused(self, text: str) -> StoreRefused | ConfigurationError:
        if refusal_code(text) == "NOPERM" or "ACL failure in script" in text:
            return self._lacks("EVAL, GET, SET or DEL", text)
        return refusal(self.address, text)

    def _lacks(self, rights: str, text: str = "") -> StoreRefused | ConfigurationError:
        words = (
            f"MDSERVICE_GROUP needs the right to {rights} for the user {self._address.user} at "
            f"{self.address}{f' ({text})' if text else ''}: `mdservice check` prints the ACL line"
        )
        # Rights that are taken away while the service runs do not end it.
        return (
            StoreRefused(words, code="NOPERM") if self._rights_known else ConfigurationError(words)
        )

    def _parts(self, reply: Any, most: int) -> list[Any]:
        """The items of an array; a script's array ends before its first nil."""
        if not isinstance(reply, list) or len(reply) > most:
            raise malformed(self.address)
        return [*reply, *[None] * (most - len(reply))]

    def _read(self, decode: Callable[[bytes], Any], text: bytes) -> Any:
        try:
            return decode(text)
        except (TypeError, ValueError) as exc:
            raise StoreRefused(
                f"The keys of the group at {self.address} have foreign content: delete them, or "
                "set MDSERVICE_GROUP to another name"
            ) from exc


def _kill(run_id: str, name: str) -> list[bytes]:
    """The command that ends a registered connection; none if it ended with its server."""
    registered_with, _, client_id = name.partition(" ")
    if registered_with != run_id:
        return []
    return [_kill_of(client_id)]


def _kill_of(client_id: str) -> bytes:
    return pack(b"CLIENT", b"KILL", b"ID", client_id.encode())
