"""The lease of a group in a Redis-protocol server; see :mod:`mdservice.publish.lease`.

Each step is one script, so nothing comes between its check and its change.

==========================================  =======================================================
key                                         content
==========================================  =======================================================
``mdservice:group:{NAME}``                  the leader (JSON); it expires with the lease
``mdservice:group:{NAME}:term``             the last epoch, its holder, the run of the server that
                                            it was claimed or continued on, and every connection
                                            that may still write: ``{"run_id client_id": epoch}``.
                                            Also the run of a term that a later one from another
                                            server has replaced, and the run that has counted the
                                            lease's time again
``mdservice:group:{NAME}:standby``          the id of a standby that is alive; expires likewise
``mdservice:group:{NAME}:subscriptions``    what the leader's programs want, and up to when each
                                            feed and channel is published
==========================================  =======================================================

The braces are part of the names: they put a group's keys into one slot of a cluster.

A new leader ends the registered connections with ``CLIENT KILL ID``, and takes each off the list
once it is dead. If it dies between the two, the next leader finds the whole list.

Another run of the server is a restart, or a replica that sentinels have promoted. It may lack the
last claim. So each member brings the last term that it knows, with every call that may decide who
leads, and the server keeps the newest. On a run that is new to the term:

* A leader whose last renewal is younger than the lease goes on: no other can have claimed on the
  run before.
* Any other member waits, so that those who know a later term come first. The last leader waits
  half as long.
* A leader whose lease ended while it was stopped does not go on. It claims a new term: another one
  may have led during the stop, and may have died.
* A leader may write only once it has continued its term there, and has ended the connections of
  earlier leaders to that run.
* Who leads on that run keeps the lead, with an epoch above all that members bring. A leader from
  another server does not go on where another one has led: it does not know the records of that one.
  It claims a new term, and reads them.

The lease's own connection is not registered, since each script checks who leads. A new one ends the
last one first: what the network still holds of it, the server does not execute after later calls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import anyio
import msgspec

from mdservice.clock import Clock
from mdservice.errors import ConfigurationError, Deposed, StoreError, StoreRefused, StoreUnavailable
from mdservice.observability.logging import get_logger, masked
from mdservice.publish.lease import LEASE_S, Leader, decode_leader, encode_leader
from mdservice.redis_io.commands import pack
from mdservice.redis_io.connection import RedisConnection, RedisLocator
from mdservice.redis_io.locator import locator_of
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
_WATCH_EVERY_S: Final = 1.0
"""How often sentinels are asked whether the server is still the primary."""
_IN_SCRIPT: Final = re.compile(r"^ERR Error running script .*: -([A-Z]+ .*)$", re.DOTALL)
"""How servers before Redis 7 show the error of a command that a script has called.

Source: issue 3042 of spring-data-redis quotes one.
"""
_MAY_HAVE_CHANGED: Final = -2
"""The answer to a renewal where another member may have led unseen."""
_ANOTHER_LEADS: Final = "another service has claimed the lease"
_MOST_KEPT: Final = 64
"""How many connections to other runs of the server are kept on the list."""

Admit = Callable[[RedisConnection], Awaitable[None]]
"""Registers a connection before its first write.

It raises StoreUnavailable or StoreRefused if the connection must not write.
"""

Connect = Callable[[RedisLocator, str], Awaitable[RedisConnection]]
"""Opens a connection with a name."""

_READ: Final = """
local lease = redis.call('GET', KEYS[1])
local leader = lease and cjson.decode(lease)
local stored = redis.call('GET', KEYS[2])
local term = stored and cjson.decode(stored) or {epoch = 0, holder = '', writers = {}}
"""
# ARGV: the epoch and the holder of the last term that the member knows, and, as the fifth, the run
_BRING: Final = (
    _READ
    + """
local known = tonumber(ARGV[1])
local function replace(epoch, holder)
  term.replaced = term.run or term.replaced
  term.epoch, term.holder, term.run = epoch, holder, nil
  stored = cjson.encode(term)
  redis.call('SET', KEYS[2], stored)
end
local other = term.holder ~= ARGV[2] and term.holder ~= ''
if known > term.epoch or (known > 0 and known == term.epoch and other) then
  if other and leader and leader.id == term.holder and term.run == ARGV[5] then
    -- It leads at this server, and the later term was at another one.
    term.epoch = known + 1
    stored = cjson.encode(term)
    redis.call('SET', KEYS[2], stored)
  elseif known > term.epoch then
    replace(known, ARGV[2])
  else
    -- Two members have claimed the same epoch on two servers: neither leads.
    replace(known + 1, '')
  end
end
if leader and leader.id ~= term.holder then
  leader, lease = nil, false
elseif leader and leader.epoch ~= term.epoch then
  leader.epoch = term.epoch
  lease = cjson.encode(leader)
end
"""
)
# further ARGV: own id or nothing, lease (ms), run of the server
_LOOK: Final = (
    _BRING
    + """
if leader and term.run ~= ARGV[5] and term.counted ~= ARGV[5] then
  -- A replica ends a key by its own clock, which may be behind.
  term.counted = ARGV[5]
  stored = cjson.encode(term)
  redis.call('SET', KEYS[2], stored)
  redis.call('SET', KEYS[1], lease, 'PX', ARGV[4])
end
if ARGV[3] ~= '' then redis.call('SET', KEYS[3], ARGV[3], 'PX', ARGV[4]) end
return {lease, stored}
"""
)
_TAKE: Final = """
local own = cjson.decode(ARGV[3])
local function keep()
  for writer, epoch in pairs(cjson.decode(ARGV[6])) do term.writers[writer] = epoch end
  term.run, term.replaced = ARGV[5], nil
  redis.call('SET', KEYS[2], cjson.encode(term))
end
local function take()
  term.epoch = term.epoch + 1
  term.holder = own.id
  own.epoch = term.epoch
  redis.call('SET', KEYS[1], cjson.encode(own), 'PX', ARGV[4])
  if redis.call('GET', KEYS[3]) == own.id then redis.call('DEL', KEYS[3]) end
  keep()
end
"""
# further ARGV of claim and renew: own (JSON), lease (ms), run of the server, writers (JSON), state
_CLAIM: Final = (
    _BRING
    + _TAKE
    + """
if leader and leader.id ~= own.id then return {0} end
if ARGV[7] == 'waits' then return {0} end
take()
return {term.epoch, cjson.encode(term.writers)}
"""
)
_RENEW: Final = (
    _BRING
    + _TAKE
    + """
-- Where another term has gone on at this server, its records are not those that this leader knows.
if term.holder ~= own.id or term.replaced == ARGV[5] then return {0} end
if ARGV[7] == 'unseen' and term.run ~= ARGV[5] then return {-2} end
if ARGV[7] == 'waits' then return {-1} end
if not leader then
  take()
else
  redis.call('SET', KEYS[1], lease, 'PX', ARGV[4])
  if ARGV[7] == 'settled' and term.run == ARGV[5] and term.epoch == own.epoch then
    return {term.epoch, redis.call('GET', KEYS[3])}
  end
  keep()
end
return {term.epoch, redis.call('GET', KEYS[3]), cjson.encode(term.writers)}
"""
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
if term.run ~= ARGV[3] then return -1 end
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
        self._address = locator_of(url, timeout_s=_TIMEOUT_S)
        self._keys = RedisNames(prefix).group_keys(group)
        self._own = own
        self._clock = clock
        self._lease_s = lease_s
        self._lease_ms = b"%d" % round(lease_s * 1000)
        self._connection: RedisConnection | None = None
        self._run_id = ""
        """The run of the server that the last connection leads to."""
        self._last_connection = ""
        """The run of the server and the client id of the last connection; see :meth:`_open`."""
        self._rights_known = False
        self._calls = anyio.Lock()
        self._renewals = anyio.Lock()
        self._last_error: str | None = None
        self._known = 0, ""
        """The epoch and the holder of the last term that this member knows. A server without its
        data, or with older ones, must not lower the epoch."""
        self._term_run = ""
        """The run of the server on which that term was claimed, or last continued; empty if it is
        not known, such as for a term that a member brought."""
        self._leads = False
        self._settled = ""
        """The run of the server on which this member leads, and no earlier leader can write."""
        self._held_until_s = 0.0
        """Until then no other member can have claimed on the run before."""
        self._awake_s = 0.0
        """When the last exchange began or ended. While this member leads, one follows the other."""
        self._was_stopped = False
        """Whether its lease ended while it was stopped, so that another may have led since."""
        self._why_deposed = _ANOTHER_LEADS
        self._waited_run = ""
        self._wait_until_s = 0.0
        """Until then, one that knows a later term may come to this run of the server."""
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
        own = self._own.id.encode() if sign else b""
        reply, run_id = await self._run(
            _LOOK, lambda run_id: [*self._bring(), own, self._lease_ms, run_id.encode()]
        )
        if sign:
            self._signed_s = now_s
        lease, term = self._parts(reply, 2)
        if term is not None:
            self._note_term(self._read(_decode_term, term), run_id)
        leader: Leader | None = None if lease is None else self._read(decode_leader, lease)
        return leader if leader is not None and leader.id != self._own.id else None

    async def claim(self) -> Leader | None:
        """Lead, unless another member does; see :meth:`mdservice.publish.lease.Lease.claim`."""
        if not await self._is_at_the_right_server():
            self._drop()
            return None
        began_s = anyio.current_time()
        taken = self._own.leads(0, self._clock)
        reply, run_id = await self._take(_CLAIM, taken, self._others)
        epoch, writers = self._parts(reply, 2)
        if not epoch:
            return None
        self._note_epoch(taken, epoch, run_id)
        self._admitted.clear()
        await self._end(self._read(json.loads, writers), run_id)
        self._leads, self._settled = True, run_id
        self._why_deposed = _ANOTHER_LEADS
        self._note_held(began_s)
        return self._own

    async def renew(self) -> bool:
        """Lead for another term of the lease; see :meth:`mdservice.publish.lease.Lease.renew`."""
        async with self._renewals:
            return await self._renew()

    async def _renew(self) -> bool:
        if not self._leads:
            raise self._deposed()
        began_s = anyio.current_time()
        admitted = dict.fromkeys(self._admitted.values(), self._own.epoch)
        reply, run_id = await self._take(_RENEW, self._own, admitted)
        epoch, standby, writers = self._parts(reply, 3)
        if not epoch:
            raise self._deposed()
        if epoch == _MAY_HAVE_CHANGED:
            raise self._deposed(
                f"its lease ended while it was stopped, and Redis at {self.address} no longer "
                "knows who has led since"
            )
        if epoch < 0:
            self._last_error = (
                f"Redis at {self.address} is another server than before, which may lack a claim: "
                "the lease is claimed again unless another service comes first"
            )
            raise StoreUnavailable(self._last_error)
        if writers is not None:
            if epoch != self._own.epoch:
                _log.warning("lease_claimed_again", epoch=epoch, url=self.address)
            else:
                _log.info("lease_continued", epoch=epoch, url=self.address)
            self._note_epoch(self._own, epoch, run_id)
            await self._end(self._read(json.loads, writers), run_id)
            self._settled = run_id
        self._note_held(began_s)
        return standby is not None and standby != self._own.id.encode()

    async def watch(self) -> None:
        """Leave a server that is replaced; see :class:`mdservice.publish.lease.MovingLease`."""
        while self._address.may_move:
            await anyio.sleep(_WATCH_EVERY_S)
            connection = self._connection
            if not await self._is_at_the_right_server() and connection is self._connection:
                self._drop()

    async def _is_at_the_right_server(self) -> bool:
        connection = self._connection
        if connection is None or not self._address.may_move:
            return True
        return await self._address.is_right(connection.server)

    async def release(self) -> None:
        """Free the lease if it is this member's."""
        self._leads = False
        await self._ask(_RELEASE, self._own.id.encode())

    async def remember(self, wishes: bytes) -> None:
        """Keep what the leader's programs want for the next leader."""
        reply, _ = await self._run(
            _REMEMBER, lambda run_id: [self._own.id.encode(), wishes, run_id.encode()]
        )
        self._require(reply)

    async def recall(self) -> bytes | None:
        """What the last leader's programs wanted, or None."""
        found: bytes | None = await self._ask(_RECALL)
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
                raise self._lacks("CLIENT ID or INFO")
            run_id = identity.run_id.decode()
            if run_id != self._settled:
                await self._settle(run_id, connection.address)
            name, previous = f"{run_id} {identity.client_id}", self._admitted.get(writer)
            changes = [name.encode(), b"%d" % self._own.epoch]
            kills = [] if previous is None else _kill(run_id, previous)
            if previous is not None and kills:
                changes += [previous.encode(), b""]
            command = self._pack(_CHANGE_WRITERS, *self._id_and_epoch(), *changes)
            replies = await connection.call(*kills, command)
            for reply in replies:
                if is_error(reply):
                    raise self._refused(str(reply))
            self._require(replies[-1])
            self._admitted[writer] = name

        return admit

    async def _settle(self, run_id: str, address: str) -> None:
        """Continue the term on the run of the server to which a writer has connected."""
        if self._run_id != run_id:
            self._drop()  # it leads to the server of before
        await self.renew()
        if self._settled != run_id:
            raise StoreUnavailable(
                f"Redis at {address} is another server than that of the group's lease; connecting "
                "again"
            )

    # The connections of earlier leaders

    async def _end(self, writers: Mapping[str, int], run_id: str) -> None:
        """End the connections to this run of the server, and take them off the list.

        Those to another run are dead, or that server is down or a replica now. It may come back.
        """
        others = {name: epoch for name, epoch in writers.items() if not _is_of(run_id, name)}
        own = set(self._admitted.values())
        ended = [name for name in writers if name not in others and name not in own]
        forgotten = sorted(others, key=others.__getitem__)[:-_MOST_KEPT]
        if not ended and not forgotten:
            return
        kills = [kill for name in ended for kill in _kill(run_id, name)]
        if kills:
            replies, _ = await self._exchange(lambda _: kills, only=run_id)
            for reply in replies:
                if is_error(reply):
                    raise self._refused(str(reply))
        changes = [word for name in (*ended, *forgotten) for word in (name.encode(), b"")]
        self._require(await self._ask(_CHANGE_WRITERS, *self._id_and_epoch(), *changes))
        self._others.clear()

    # The exchanges

    def _bring(self) -> list[bytes]:
        epoch, holder = self._known
        return [b"%d" % epoch, holder.encode()]

    async def _take(self, script: str, own: Leader, writers: Mapping[str, int]) -> tuple[Any, str]:
        def arguments(run_id: str) -> list[bytes]:
            state = b""
            if script is _RENEW and self._was_stopped:
                state = b"unseen"
            elif run_id == self._settled:
                state = b"settled"
            elif anyio.current_time() < self._wait_until_s and not self._leads_for_sure():
                state = b"waits"
            return [
                *self._bring(),
                encode_leader(own),
                self._lease_ms,
                run_id.encode(),
                json.dumps(dict(writers)).encode(),
                state,
            ]

        return await self._run(script, arguments)

    def _note_awake(self) -> None:
        """Note a stop: a leader that runs asks the server much more often."""
        now_s = anyio.current_time()
        if now_s >= self._held_until_s and now_s - self._awake_s >= self._lease_s / 2:
            self._was_stopped = True
        self._awake_s = now_s

    def _note_held(self, since_s: float) -> None:
        """The server gave the lease to this member after that moment."""
        self._held_until_s = since_s + self._lease_s
        # Else the answer is as old as the stop.
        self._was_stopped = anyio.current_time() >= self._held_until_s

    def _leads_for_sure(self) -> bool:
        """Whether no other member can have claimed on the run before."""
        return self._leads and anyio.current_time() < self._held_until_s

    def _note_term(self, term: Mapping[str, Any], run_id: str) -> None:
        epoch = term["epoch"]
        if epoch >= self._known[0]:
            self._known = epoch, term["holder"]
        self._term_run = str(term.get("run", ""))
        self._wait_for_others(run_id)
        if not term["writers"].keys() <= self._others.keys():
            every = {**self._others, **term["writers"]}
            self._others = dict(list(every.items())[-_MOST_KEPT:])

    def _wait_for_others(self, run_id: str) -> None:
        """On a run of the server that is new to the term, let those who know a later one come."""
        if not self._known[0] or run_id in (self._term_run, self._waited_run):
            return
        self._waited_run = run_id
        share = 0.5 if self._known[1] == self._own.id else 1.0
        self._wait_until_s = anyio.current_time() + self._lease_s * share

    def _note_epoch(self, own: Leader, epoch: int, run_id: str) -> None:
        self._own = msgspec.structs.replace(own, epoch=epoch)
        self._known = epoch, own.id
        self._term_run = run_id

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

    def _deposed(self, why: str = "") -> Deposed:
        self._leads = False
        self._why_deposed = why or self._why_deposed
        return Deposed(f"{self._own.shown} no longer leads its group: {self._why_deposed}")

    async def _ask(self, script: str, *arguments: bytes) -> Any:
        reply, _ = await self._run(script, lambda _: arguments)
        return reply

    async def _run(
        self, script: str, arguments: Callable[[str], Sequence[bytes]]
    ) -> tuple[Any, str]:
        """Run a script with the arguments for this run of the server; its reply, and the run."""
        (reply,), run_id = await self._exchange(
            lambda run_id: [self._pack(script, *arguments(run_id))]
        )
        if is_error(reply):
            error = self._refused(str(reply))
            if isinstance(error, StoreRefused) and error.reconnect:
                self._drop()  # a demoted server
            raise error
        self._rights_known = True
        return reply, run_id

    def _pack(self, script: str, *arguments: bytes) -> bytes:
        return pack(b"EVAL", script.encode(), b"%d" % len(self._keys), *self._keys, *arguments)

    async def _exchange(
        self, commands: Callable[[str], Sequence[bytes]], *, only: str | None = None
    ) -> tuple[list[Any], str]:
        """Send the commands for this run of the server; their replies, and the run.

        The connection is closed unless every reply has come.

        Args:
            commands: The commands for a run of the server.
            only: The only run to which they may be sent, if it is given.
        """
        async with self._calls:
            replies = None
            self._note_awake()
            try:
                with anyio.move_on_after(_TIMEOUT_S):
                    connection = await self._open()
                    run_id = self._run_id
                    if only not in (None, run_id):
                        raise StoreUnavailable(
                            f"Redis at {self.address} is another server now; trying again"
                        )
                    replies = await connection.call(*commands(run_id))
            except StoreError as exc:
                self._last_error = masked(str(exc))
                raise
            finally:
                self._note_awake()
                if replies is None:
                    self._drop()
            if replies is None:
                self._last_error = f"Redis at {self.address} did not answer within {_TIMEOUT_S:g} s"
                raise StoreUnavailable(self._last_error)
            self._last_error = None
            return replies, run_id

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
        self._run_id = run_id
        self._wait_for_others(run_id)
        return connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _refused(self, text: str) -> StoreRefused | ConfigurationError:
        wrapped = _IN_SCRIPT.search(text)
        if wrapped is not None:
            text = wrapped[1]
        if refusal_code(text) == "NOPERM" or "ACL failure in script" in text:
            return self._lacks("EVAL, GET, SET or DEL", text)
        if refusal_code(text) == "WRONGTYPE" or (refusal_code(text) == "ERR" and "script:" in text):
            return self._foreign()
        return refusal(self.address, text)

    def _foreign(self) -> StoreRefused:
        return StoreRefused(
            f"The keys of the group at {self.address} have foreign content: delete them, or set "
            "MDSERVICE_GROUP to another name"
        )

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
            raise self._foreign() from exc


def _decode_term(text: bytes) -> dict[str, Any]:
    """The last term.

    Raises:
        ValueError: It is not a term.
    """
    term = json.loads(text)
    types = (("epoch", int), ("holder", str), ("writers", dict))
    if not isinstance(term, dict) or not all(isinstance(term.get(k), of) for k, of in types):
        raise ValueError("not a term of a group")
    return term


def _is_of(run_id: str, name: str) -> bool:
    """Whether a registered connection leads to this run of the server."""
    return name.partition(" ")[0] == run_id


def _kill(run_id: str, name: str) -> list[bytes]:
    """The command that ends a registered connection; none if it leads to another run."""
    if not _is_of(run_id, name):
        return []
    return [_kill_of(name.partition(" ")[2])]


def _kill_of(client_id: str) -> bytes:
    return pack(b"CLIENT", b"KILL", b"ID", client_id.encode())
