"""Finds other services that publish the same names on this server.

Database numbers do not separate pub/sub channels, so readers get the events of all services on one
server. Each service announces itself on a channel once a second and receives the announcements of
the others. It also keeps a record in its own database, which tells readers which service to follow.

::

    Instances ──PUBLISH mdservice.instances──▶ Redis ──▶ Instances of every other service
         └─────SET mdservice:instance PX───────▶        └──▶ readers

With its record it also writes what the next run needs to know.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.abc
import msgspec
from anyio.abc import TaskStatus

from mdservice.clock import Clock
from mdservice.errors import StoreError, StoreRefused, StoreUnavailable
from mdservice.model.market import Market
from mdservice.model.timestamps import format_ns
from mdservice.observability.logging import get_logger
from mdservice.publish.store import READ_LIMIT_S
from mdservice.redis_io.commands import pack
from mdservice.redis_io.connection import RedisConnection
from mdservice.redis_io.locator import locator_of
from mdservice.redis_io.names import (
    ANNOUNCE_EVERY_S,
    GONE_AFTER_S,
    INSTANCES_CHANNEL,
    Instance,
    RedisNames,
    decode_instance,
    encode_instance,
)
from mdservice.redis_io.replies import is_error, refusal

__all__ = ["Instances"]

_log = get_logger(__name__)

_CLIENT_NAME: Final = "mdservice-instances"
_TIMEOUT_S: Final = 3.0
_GOODBYE_S: Final = 0.5
_AGAIN_S: Final = 1.0
_AGAIN_IF_REFUSED_S: Final = 10.0
_MOST_HEARD: Final = 100
"""The limit of remembered services, since any program may publish announcements."""

_here: set[str] = set()
"""The services that run in this process."""


class Instances:
    """Announces this service, and receives the announcements of others.

    Args:
        url: The server.
        id: This service's id, by which its batches are marked too.
        feed: The feed's name.
        delay_s: The intended delay of the feed, seconds.
        price_ttl_s: How long the key of a price exists, seconds.
        prefix: The prefix of every key and channel.
        clock: The time.
        channels: Which channels a followed symbol gets; None if that is not to be announced.
        group: The standby group that this service leads, or None.
        admit: Registers each connection in a group before anything is published on it; the first
            announcement then takes the record of the earlier leader.
    """

    def __init__(
        self,
        url: str,
        *,
        id: str,  # noqa: A002 - the record's word
        feed: str,
        delay_s: float,
        price_ttl_s: float,
        prefix: str,
        clock: Clock,
        channels: Sequence[str] | None = None,
        group: str | None = None,
        admit: Callable[[RedisConnection], Awaitable[None]] | None = None,
    ) -> None:
        self._address = locator_of(url, timeout_s=_TIMEOUT_S)
        self._names = RedisNames(prefix)
        self._clock = clock
        self._heard: dict[str, tuple[Instance, float]] = {}
        self._refused: str | None = None
        self._refusals = 0
        self._admit = admit
        self._takes_over = admit is not None
        self._announced = False
        """Whether Redis may have a record of this service."""
        self._progress: bytes | None = None
        self.own = Instance(
            id=id,
            db=self._address.database,
            host=socket.gethostname(),
            pid=os.getpid(),
            pid_space=_pid_space(),
            feed=feed,
            delay_s=delay_s,
            price_ttl_s=price_ttl_s,
            since=format_ns(clock.utc_ns()),
            channels=None if channels is None else tuple(channels),
            sharded=True if self._address.sharded else msgspec.UNSET,
            group=msgspec.UNSET if group is None else group,
        )

    def set_market(self, market: Market | None) -> None:
        """Announce the stock market's hours from now on; None if they are not known."""
        self.own = msgspec.structs.replace(self.own, market=market)

    def keep_progress(self, payload: bytes) -> None:
        """Write this with the next announcement; see ``ProgressStore`` of publish.store."""
        self._progress = payload

    async def read_progress(self) -> bytes | None:
        """What an earlier service has written to this database; None also without an answer."""
        connection = None
        try:
            with anyio.fail_after(READ_LIMIT_S):
                connection = await self._open()
                (payload,) = await connection.exchange(pack(b"GET", self._names.progress_key), 1)
        except (StoreError, TimeoutError):
            return None  # the last prices are not read either, which is logged
        finally:
            if connection is not None:
                connection.close()
        return payload if isinstance(payload, bytes) else None

    def others(self) -> list[Instance]:
        """The other services that publish the same names now, the longest running first."""
        self._forget_silent()
        return sorted((other for other, _ in self._heard.values()), key=lambda one: one.since)

    def conflicts(self) -> tuple[str, ...]:
        """A warning about each of them."""
        return tuple(map(self._describe, self.others()))

    async def groupless(self) -> Instance | None:
        """The service that writes to this database now and is in no group.

        Such a service knows of no lease: an older version of this program, for instance, that is to
        be replaced. A group leads only after it.

        Raises:
            StoreUnavailable, StoreRefused
        """
        connection = await self._open()
        try:
            replies = await connection.exchange(pack(b"GET", self._names.instance_key), 1)
        finally:
            connection.close()
        self._refuse(replies)
        owner = decode_instance(replies[0])
        if owner is None or owner.group is not msgspec.UNSET or _has_ended(owner, self.own):
            return None
        return owner

    def _describe(self, other: Instance) -> str:
        who = (
            f"another service (feed {other.feed}, process {other.pid} on {other.host}, since "
            f"{other.since})"
        )
        if other.db == self.own.db:
            what = f"writes the same keys in database {other.db} of this Redis server"
        else:
            what = (
                f"publishes the same channels from database {other.db} of this Redis server: "
                "database numbers do not separate channels"
            )
        return f"{who} {what}; stop one of them, or set MDSERVICE_KEY_PREFIX"

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Announce and listen until cancelled. Never raises for an unreachable server."""
        _here.add(self.own.id)
        task_status.started()
        try:
            while True:
                refused_before = self._refusals
                try:
                    await self._connected()
                except StoreRefused as exc:
                    self._note_refusal(exc)
                except StoreError:
                    pass  # the writer reports an unreachable server
                refused = self._refusals > refused_before
                await anyio.sleep(_AGAIN_IF_REFUSED_S if refused else _AGAIN_S)
        finally:
            if self._announced:
                with anyio.move_on_after(_GOODBYE_S, shield=True), suppress(StoreError):
                    await self._leave()
            _here.discard(self.own.id)

    async def _leave(self) -> None:
        """Use a separate connection, since the other may have broken between two replies."""
        speaker = await self._open_speaker()
        try:
            await self._say_goodbye(speaker)
        finally:
            speaker.close()

    def _note_refusal(self, exc: StoreRefused) -> None:
        if exc.reconnect:  # a demoted server, which is left at once
            return
        self._refusals += 1
        if str(exc) != self._refused:
            self._refused = str(exc)
            _log.warning(
                "other_services_cannot_be_noticed",
                reason=str(exc),
                channel=self._names.channel(INSTANCES_CHANNEL).decode(),
            )

    async def _connected(self) -> None:
        speaker = await self._open_speaker()
        try:
            self._announced = True
            await self._announce(speaker)
            listener = await self._open()
            try:
                async with anyio.create_task_group() as tasks:
                    ended = tasks.cancel_scope
                    tasks.start_soon(self._guard, self._listen, listener, ended)
                    tasks.start_soon(self._guard, self._keep_announcing, speaker, ended)
            finally:
                listener.close()
        finally:
            speaker.close()

    async def _guard(
        self, work: Any, connection: RedisConnection, scope: anyio.CancelScope
    ) -> None:
        """A lost connection ends both tasks, without an error group around it."""
        try:
            await work(connection)
        except StoreRefused as exc:
            self._note_refusal(exc)
        except StoreError:
            pass
        scope.cancel()

    async def _open(self) -> RedisConnection:
        return await RedisConnection.open(self._address, _CLIENT_NAME, limit_s=_TIMEOUT_S)

    async def _open_speaker(self) -> RedisConnection:
        speaker = await self._open()
        admitted = False
        try:
            if self._admit is not None:
                await self._admit(speaker)
            admitted = True
        finally:
            if not admitted:
                speaker.close()
        return speaker

    async def _keep_announcing(self, speaker: RedisConnection) -> None:
        while True:
            await anyio.sleep(ANNOUNCE_EVERY_S)
            if not await self._address.is_right(speaker.server):
                raise StoreUnavailable(f"{speaker.address} is not the primary any more")
            await self._announce(speaker)
            self._forget_silent()

    async def _announce(self, speaker: RedisConnection) -> None:
        key, payload = self._names.instance_key, encode_instance(self.own)
        (record,) = await speaker.exchange(pack(b"GET", key), 1)
        owner = None if is_error(record) else decode_instance(record)
        commands = [pack(b"PUBLISH", self._names.channel(INSTANCES_CHANNEL), payload)]
        free = owner is None or owner.id == self.own.id or _has_ended(owner, self.own)
        if free or self._takes_over:
            commands.insert(0, pack(b"SET", key, payload, b"PX", b"%d" % int(GONE_AFTER_S * 1e3)))
            commands += self._progress_commands()
        self._refuse(await speaker.exchange(b"".join(commands), len(commands)))
        self._takes_over = False

    async def _say_goodbye(self, speaker: RedisConnection) -> None:
        key = self._names.instance_key
        (record,) = await speaker.exchange(pack(b"GET", key), 1)
        owner = None if is_error(record) else decode_instance(record)
        farewell = encode_instance(msgspec.structs.replace(self.own, gone=True))
        commands = [pack(b"PUBLISH", self._names.channel(INSTANCES_CHANNEL), farewell)]
        if owner is not None and owner.id == self.own.id:
            commands += [pack(b"DEL", key), *self._progress_commands()]
        await speaker.exchange(b"".join(commands), len(commands))

    def _progress_commands(self) -> list[bytes]:
        if self._progress is None:
            return []
        lives = b"EX", b"%d" % max(1, round(self.own.price_ttl_s))
        return [pack(b"SET", self._names.progress_key, self._progress, *lives)]

    async def _listen(self, listener: RedisConnection) -> None:
        # This service's own announcements keep the connection from being silent: one without
        # any is lost.
        channel = self._names.channel(INSTANCES_CHANNEL)
        self._refuse(await listener.exchange(pack(b"SUBSCRIBE", channel), 1))
        while messages := await listener.receive(_TIMEOUT_S):
            for message in messages:
                if isinstance(message, list) and message[:1] == [b"message"]:
                    self._take(decode_instance(message[2]))

    def _refuse(self, replies: Iterable[object]) -> None:
        for reply in replies:
            if is_error(reply):
                raise refusal(self._address.shown, str(reply))

    def _take(self, other: Instance | None) -> None:
        if other is None or other.id == self.own.id:
            return
        if other.gone:
            self._forget(other.id)
            return
        if other.id not in self._heard:
            if len(self._heard) >= _MOST_HEARD:
                return
            _log.warning("another_service_publishes_here", reason=self._describe(other))
        self._heard[other.id] = other, self._clock.monotonic()

    def _forget_silent(self) -> None:
        oldest_s = self._clock.monotonic() - GONE_AFTER_S
        for other, heard_s in list(self._heard.values()):
            if heard_s < oldest_s:
                self._forget(other.id)

    def _forget(self, id: str) -> None:  # noqa: A002 - the record's word
        if self._heard.pop(id, None) is not None:
            _log.info("the_other_service_is_gone", id=id)


def _has_ended(owner: Instance, own: Instance) -> bool:
    """Whether the record is of a service of this machine that was killed."""
    if not own.pid_space or (owner.host, owner.pid_space) != (own.host, own.pid_space):
        return False
    if owner.pid == own.pid:
        return owner.id not in _here
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _pid_space() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""
