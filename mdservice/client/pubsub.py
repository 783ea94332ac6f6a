"""Events from the channels of kinds, such as ``price.updated``.

The reader subscribes first, and then reads the keys over a second connection while events already
come. Then it sends a ``PING``, whose answer comes after every event that was published before. Only
then does it use the keys, since any newer record in them was really missed and is not still on its
way.

Channels belong to the whole server, so events of other services come too. A service announces the
owner of the next events at the start of each batch. The reader follows the service whose record is
in its own database, and drops the events of others. It accepts events without an owner.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager
from functools import partial
from math import inf
from typing import Any, Final, Generic, NamedTuple

import anyio
import attrs

from mdservice.client.connection import (
    NewEntries,
    connected_to,
    read_keys,
    read_new_entries,
    refuse_cut_off,
    refuse_errors,
    refuse_moved,
)
from mdservice.client.discovery import Location
from mdservice.client.intake import Intake, KindState
from mdservice.client.sequence import IdentityCheck
from mdservice.errors import StoreError, StoreRefused, StoreUnavailable
from mdservice.model.kinds import Kind, Order, R
from mdservice.redis_io.commands import pack
from mdservice.redis_io.connection import RedisConnection, RedisLocator
from mdservice.redis_io.names import (
    GONE_AFTER_S,
    INSTANCES_CHANNEL,
    BatchMarker,
    Instance,
    RedisNames,
    decode_instance,
    decode_marker,
)
from mdservice.redis_io.replies import is_error, malformed
from mdservice.runtime.task_groups import run_together

__all__ = ["ANSWER_LIMIT_S", "PING_AFTER_S", "PubSubSource", "Silence"]


# When a silent server gets a PING, and when it is given up. Pure.


PING_AFTER_S: Final = 2.0
"""How long the server may be silent before the reader sends PING."""
ANSWER_LIMIT_S: Final = 3.0
"""How long the answer may take."""


@attrs.define
class Silence:
    """How long nothing has been heard. All times are the event loop's time.

    Attributes:
        heard_s: The time of the last data.
        asked_s: When PING was sent since then, or None.
    """

    heard_s: float
    asked_s: float | None = None

    def ask(self, now_s: float) -> bool:
        """Whether to send PING now; notes that it is sent."""
        if self.asked_s is not None or now_s - self.heard_s < PING_AFTER_S:
            return False
        self.asked_s = now_s
        return True

    def too_long(self, now_s: float, *, anything: bool) -> bool:
        """Whether to give up, after having listened.

        Args:
            now_s: When the last wait ended. Later time does not count, since the program itself may
                have been blocked.
            anything: Whether data came.
        """
        if anything:
            self.heard_s, self.asked_s = now_s, None
            return False
        return self.asked_s is not None and now_s - self.asked_s >= ANSWER_LIMIT_S


_WAIT_S: Final = 1.0
_WATCH_EVERY_S: Final = 1.0
"""How often sentinels are asked whether the server is still the right one."""
_SHORT_WAIT_S: Final = 0.02
"""While keys are being read, so that the marker goes out soon."""
_HELD_AT_MOST: Final = 100_000
_UNDECIDED_AT_MOST: Final = 100_000
_RECORD_EVERY_S: Final = 0.5
"""How often the record is read while another service publishes to the same database."""
_MISSED_AFTER_S: Final = GONE_AFTER_S + 1.0
"""A live service announces itself once a second."""
_ROLE_AFTER_S: Final = 2.5
"""After this time without an announcement, the server may be a replica that is cut off."""
_ROLE_EVERY_S: Final = 3.0
"""How often the server is asked for its role where there are no announcements."""
_HELD_UP_S: Final = 2 * _WAIT_S
"""After a pause this long, the reader was blocked, and unread announcements may wait."""
_MARKER: Final = b"keys-were-read"
_PING: Final = pack(b"PING", b"")


Connect = Callable[[RedisLocator], AbstractAsyncContextManager[RedisConnection]]
"""Opens a connection that is closed at the end of the block."""


async def _subscribe(
    connection: RedisConnection,
    names: RedisNames,
    kinds: Collection[Kind[Any]],
    symbols: Collection[str],
) -> bool:
    """Subscribe to the events, and to the channels of their owners if this user may.

    Returns:
        Whether the announcements of the services are heard.
    """
    wanted = [one for kind in kinds for one in names.subscriptions(kind, symbols)]
    commands = [
        *(pack(command, marker) for command, marker, _ in wanted),
        pack(b"SUBSCRIBE", names.channel(INSTANCES_CHANNEL)),
        *(pack(command, event) for command, _, event in wanted),
    ]
    # The markers first, and all at once: no batch may come between.
    replies = await connection.exchange(b"".join(commands), len(commands))
    while len(answers := [reply for reply in replies if not _is_message(reply)]) < len(commands):
        replies += await connection.exchange(b"", 1)
    refuse_errors(connection.address, answers[-len(wanted) :])
    return not is_error(answers[len(wanted)])


def _is_message(reply: object) -> bool:
    return isinstance(reply, list) and reply[:1] == [b"message"]


async def _read_record(connection: RedisConnection, names: RedisNames) -> Instance | None:
    """The service that the database belongs to.

    Raises:
        StoreUnavailable: The connection was lost, or the server gets no events.
    """
    role, record = await connection.call(pack(b"ROLE"), pack(b"GET", names.instance_key))
    refuse_cut_off(connection.address, role)
    return decode_instance(record)


async def _watch(locator: RedisLocator, server: RedisLocator) -> None:
    """Wait until the server is replaced, which raises."""
    while locator.may_move:
        await anyio.sleep(_WATCH_EVERY_S)
        await refuse_moved(locator, server)
    await anyio.sleep_forever()


def _check_channels(owner: Instance, names: RedisNames, address: RedisLocator) -> None:
    """Refuse to wait for events on channels that the service does not use."""
    sharded = owner.sharded is True
    if sharded != bool(names.shards):
        change = "add publish=sharded to" if sharded else "remove publish=sharded from"
        raise StoreRefused(
            f"The service at {address.shown} publishes on other channels: {change} the query of "
            "the Redis URL"
        )


class _Lot(NamedTuple):
    """Events in a row, of one kind and with one owner."""

    kind: Kind[Any]
    owner: BatchMarker | None
    payloads: list[bytes]


@attrs.define(eq=False)
class _Announced:
    """What the last marker of a kind has announced."""

    kind: Kind[Any]
    owner: BatchMarker | None = None
    left: int = 0
    last: BatchMarker | None = None


class _Sorter:
    """Assigns an owner to each event, across reads."""

    def __init__(self, names: RedisNames, kinds: Collection[Kind[Any]]) -> None:
        self._by_event: dict[bytes, _Announced] = {}
        self._by_marker: dict[bytes, _Announced] = {}
        for kind in kinds:
            for _, marker, event in names.subscriptions(kind):
                self._by_event[event] = self._by_marker[marker] = _Announced(kind)
        self._instances = names.channel(INSTANCES_CHANNEL)

    def sort(
        self,
        messages: list[tuple[bytes, bytes]],
        instances: list[Instance],
        losses: list[BatchMarker],
    ) -> list[_Lot]:
        """The payloads of the events with their owners, in order.

        Args:
            messages: Channel and payload of each.
            instances: Gets the announcements among them.
            losses: Gets the markers before which events are missing.
        """
        lots: list[_Lot] = []
        by_event = self._by_event
        current: _Announced | None = None
        """Whose payloads go on in the last lot."""
        for channel, payload in messages:
            announced = by_event.get(channel)
            if announced is None:
                if (announced := self._by_marker.get(channel)) is not None:
                    marker = announced.owner = decode_marker(payload)
                    if marker is not None:
                        if marker.shows_loss_after(announced.last):
                            losses.append(marker)
                        announced.last = marker
                    announced.left = 0 if announced.owner is None else announced.owner.events
                    current = None
                elif (
                    channel == self._instances
                    and (instance := decode_instance(payload)) is not None
                ):
                    instances.append(instance)
                continue
            if not announced.left and announced.owner is not None:
                announced.owner = current = None
            if current is not announced:
                current = announced
                payloads: list[bytes] = []
                lots.append(_Lot(announced.kind, announced.owner, payloads))
            payloads.append(payload)
            if announced.left:
                announced.left -= 1
        return lots


class PubSubSource(Generic[R]):
    """Reads the channels; never waits for the program that iterates.

    Args:
        intake: Where updates go.
        connect: Opens a connection.
    """

    def __init__(self, intake: Intake[R], connect: Connect = connected_to) -> None:
        self._intake = intake
        self._connect = connect

    async def follow(self, location: Location, connected: Callable[[], None]) -> None:
        """See :class:`~mdservice.client.intake.Source`."""
        names = self._intake.names = location.names
        for state in self._intake.states.values() if self._intake.begun else ():
            state.order.disconnected()
        async with self._connect(location.address) as connection:
            owner = await _read_record(connection, names)
            if owner is not None and location.address.clustered:
                _check_channels(owner, names, location.address)
            announcements = await _subscribe(
                connection, names, self._intake.states, self._intake.symbols
            )
            subscription = _Subscription(
                self._intake,
                connection.server,  # further connections lead to the same one
                self._connect,
                connection,
                connected,
                owner,
                announcements=announcements,
            )
            await run_together(
                subscription.receive,
                subscription.read_keys,
                subscription.read_records,
                partial(_watch, location.address, connection.server),
            )


class _Subscription(Generic[R]):
    """One subscribed connection, from its keys to its end."""

    def __init__(
        self,
        intake: Intake[R],
        address: RedisLocator,
        connect: Connect,
        connection: RedisConnection,
        connected: Callable[[], None],
        owner: Instance | None,
        *,
        announcements: bool,
    ) -> None:
        self._intake = intake
        self._address = address
        self._connect = connect
        self._sorter = _Sorter(intake.names, intake.states)
        self._announcements = announcements
        if owner is not None:
            intake.following = owner
        self._followed_heard_s = self._listened_s = anyio.current_time()
        self._missed_from_s = self._listened_s + _MISSED_AFTER_S
        """When the followed service counts as missing, unless it announces itself before."""
        self._followed_is_missed = False
        self._undecided: list[tuple[BatchMarker, Kind[R], list[R], float]] = []
        """Events of a service that may be the new owner of the database, kept until it is known."""
        self._undecided_count = 0
        self._passed_over: dict[str, float] = {}
        """Services that are known to be others, and since when, the event loop's time."""
        self._record_wanted = anyio.Event()
        self._record_wanted_s = anyio.current_time()
        self._reading_record = False
        self._connection = connection
        self._connected = connected
        self._held: list[tuple[Kind[R], list[R], str | None]] | None = []
        """Events that wait for the keys, with the run of the service. None once the keys came, or
        there were too many."""
        self._held_count = 0
        self._holds_all = not intake.begun
        """At the start. Later, events of kinds that never go back in time do not wait."""
        self._silence = Silence(anyio.current_time())
        self._up_to_date = False
        self._keys: list[tuple[KindState[R], list[R] | NewEntries[R]]] | None = None
        self._marker_sent = False
        self._keys_wanted = anyio.Event()
        self._want_keys()

    async def receive(self) -> None:
        """Receive events until the connection is lost."""
        intake = self._intake
        while True:
            wait_s = _SHORT_WAIT_S if self._reading_keys else _WAIT_S
            replies = await self._connection.receive(wait_s, self._to_say())
            now_s = anyio.current_time()
            if self._silence.too_long(now_s, anything=bool(replies)):
                raise StoreUnavailable(
                    f"Redis at {self._address.shown} does not answer a PING within "
                    f"{ANSWER_LIMIT_S:g} s; connecting again"
                )
            if now_s - self._listened_s > _HELD_UP_S:
                self._missed_from_s = now_s + _MISSED_AFTER_S
            self._listened_s = now_s
            marker = self._take_replies(replies, now_s)
            self._look_for_followed(now_s)
            if marker and self._keys is not None:
                self._apply(self._keys)
            if not self._reading_keys and intake.keys_are_due(now_s):
                self._want_keys()

    def _take_replies(self, replies: list[Any], now_s: float) -> bool:
        """Take what one read has brought; whether the marker is among it."""
        messages: list[tuple[bytes, bytes]] = []
        marker = False
        instances: list[Instance] = []
        losses: list[BatchMarker] = []
        try:
            for reply in replies:
                if not isinstance(reply, list):
                    refuse_errors(self._address.shown, (reply,))
                elif reply and reply[0] == b"message":
                    _, channel, payload = reply
                    messages.append((channel, payload))
                elif reply == [b"pong", _MARKER]:
                    marker = True
            lots = self._sorter.sort(messages, instances, losses)
        except (TypeError, ValueError) as exc:  # a message without a channel
            raise malformed(self._address.shown) from exc
        for loss in losses:
            self._note_loss(loss)
        for instance in instances:
            self._hear(instance, now_s)
        states = self._intake.states
        for lot in lots:
            records = states[lot.kind].event_decoder.decode_all(lot.payloads)
            self._sift(lot.owner, lot.kind, records, now_s)
        return marker

    def _note_loss(self, marker: BatchMarker) -> None:
        following = self._intake.following
        of_followed = following is None or marker.id == following.id
        if of_followed and marker.db == self._address.database:
            self._intake.lost += 1

    async def read_keys(self) -> None:
        """Read the keys whenever needed."""
        while True:
            await self._keys_wanted.wait()
            self._keys_wanted = anyio.Event()
            try:
                self._keys = await self._read_all()
            except StoreError:
                if not (self._address.clustered and self._up_to_date):
                    raise
                # A part of the cluster is down. The events still come from another one.
                await anyio.sleep(_RECORD_EVERY_S)
                self._keys_wanted.set()

    async def _read_all(self) -> list[tuple[KindState[R], list[R] | NewEntries[R]]]:
        async with self._connect(self._address) as connection:
            states = self._intake.states.values()
            keys = [(state, await self._read(connection, state)) for state in states]
            if connection.settle_s:  # an event that comes out after its key is not missed
                await anyio.sleep(connection.settle_s)
            return keys

    async def _read(
        self, connection: RedisConnection, state: KindState[R]
    ) -> list[R] | NewEntries[R]:
        """The records in the keys of a kind, or the new ones of its stream."""
        intake, kind = self._intake, state.kind
        if isinstance(state.order, IdentityCheck) and kind.stream is not None:
            stream = intake.names.event_log(kind.stream.name)
            after, knows = state.last_entry, state.order.knows
            return await read_new_entries(
                connection, stream, state.key_decoder, after=after, knows=knows
            )
        if not kind.has_key:
            return []
        return await read_keys(connection, kind, intake.symbols, state.key_decoder, intake.names)

    async def read_records(self) -> None:
        """Read the owner of the database whenever it is in doubt."""
        while True:
            await self._record_wanted.wait()
            self._record_wanted = anyio.Event()
            try:
                async with self._connect(self._address) as connection:
                    owner = await _read_record(connection, self._intake.names)
            except StoreError:
                if not self._address.clustered:
                    raise
                # A part of the cluster is down: likewise, and no service can announce itself.
                self._reading_record = False
                self._note_followed(anyio.current_time())
                continue
            self._reading_record = False
            self._decide(owner)

    def _want_record(self, now_s: float, *, at_once: bool = False) -> None:
        due = at_once or now_s - self._record_wanted_s >= _RECORD_EVERY_S
        if not self._reading_record and due:
            self._reading_record, self._record_wanted_s = True, now_s
            self._record_wanted.set()

    def _hear(self, instance: Instance, now_s: float) -> None:
        intake = self._intake
        intake.hear(instance, now_s)
        following = intake.following
        if following is not None and instance.id == following.id:
            if instance.gone:  # the events of the next service are not those of a rival
                self._passed_over.clear()
                self._want_record(now_s, at_once=True)
                return
            self._note_followed(now_s)
        elif instance.db == self._address.database and not instance.gone:
            self._want_record(now_s)

    def _note_followed(self, now_s: float) -> None:
        self._followed_heard_s = now_s
        self._missed_from_s = now_s + _MISSED_AFTER_S
        self._followed_is_missed = False

    def _look_for_followed(self, now_s: float) -> None:
        """Detect a connection to a server that no longer gets the followed service's events."""
        if self._undecided:
            self._want_record(now_s)
        following = self._intake.following
        # Whether the server still gets events is asked along with the record. In a cluster, a
        # demoted node says so to the subscriber.
        if self._address.clustered:
            pass
        elif following is None or not self._announcements:
            if now_s - self._record_wanted_s >= _ROLE_EVERY_S:
                self._want_record(now_s)
        elif now_s - self._followed_heard_s >= _ROLE_AFTER_S:
            self._want_record(now_s)
        if self._announcements and following is not None and now_s > self._missed_from_s:
            self._followed_is_missed = True
            self._want_record(now_s)

    def _may_be_gone(self, since_s: float, now_s: float) -> bool:
        """Whether the followed service has not announced itself since then.

        The record of a killed service remains until it expires. The events that the next service
        publishes meanwhile must not be lost.
        """
        if self._announcements:
            return self._followed_heard_s <= since_s
        return now_s - since_s <= _MISSED_AFTER_S

    def _decide(self, owner: Instance | None) -> None:
        """Follow the owner of the database, and handle the events that waited for this."""
        intake, now_s, began_s = self._intake, anyio.current_time(), self._record_wanted_s
        following = intake.following
        same = following is not None and owner is not None and owner.id == following.id
        if same and self._followed_is_missed:
            raise StoreUnavailable(
                f"Redis at {self._address.shown} does not send what is published there: the "
                "address leads to another server now; connecting again"
            )
        if not same:
            if owner is not None and self._address.clustered:
                _check_channels(owner, intake.names, self._address)
            intake.following = owner
            self._note_followed(now_s)
            self._passed_over.clear()
            if following is not None and not self._reading_keys:
                self._want_keys()
        waiting, self._undecided, self._undecided_count = self._undecided, [], 0
        for whose, kind, records, came_s in waiting:
            if owner is None or whose.id == owner.id:
                self._take(kind, records, whose.id)
            elif came_s > began_s or self._may_be_gone(came_s, now_s):
                # The database may be taken over, or was since its record was read.
                self._undecided.append((whose, kind, records, came_s))
                self._undecided_count += len(records)
            else:
                self._passed_over[whose.id] = now_s
                intake.foreign += len(records)

    def _sift(
        self, whose: BatchMarker | None, kind: Kind[R], records: list[R], now_s: float
    ) -> None:
        """Accept the events of the followed service, and drop those of others."""
        intake, following = self._intake, self._intake.following
        if whose is None:
            self._take(kind, records, None)
        elif whose.db != self._address.database:
            intake.foreign += len(records)
        elif following is None or whose.id == following.id:
            self._take(kind, records, whose.id)
        elif now_s - self._passed_over.get(whose.id, -inf) < _RECORD_EVERY_S:
            intake.foreign += len(records)
        else:
            self._want_record(now_s, at_once=not self._undecided)
            if self._undecided_count + len(records) > _UNDECIDED_AT_MOST:
                intake.foreign += len(records)
                return
            self._undecided.append((whose, kind, records, now_s))
            self._undecided_count += len(records)

    def _want_keys(self) -> None:
        self._intake.reading_keys(anyio.current_time())
        self._reading_keys = True
        self._keys_wanted.set()

    def _to_say(self) -> bytes:
        if self._keys is not None and not self._marker_sent:
            self._marker_sent = True
            return pack(b"PING", _MARKER)
        return _PING if self._silence.ask(anyio.current_time()) else b""

    def _take(self, kind: Kind[R], records: list[R], run: str | None) -> None:
        if not records:
            return
        if self._held is not None and (self._holds_all or kind.order is not Order.DROP_OLDER):
            self._held.append((kind, records, run))
            self._held_count += len(records)
            if self._held_count > _HELD_AT_MOST:
                self._release()
        else:
            newer = self._intake.take_events(kind, records, in_order=self._up_to_date, run=run)
            self._intake.handover.offer(kind, newer)

    def _release(self) -> None:
        """Deliver the events that waited for the keys."""
        held, self._held = self._held, None
        for kind, records, run in held or ():
            self._take(kind, records, run)

    def _apply(self, keys: list[tuple[KindState[R], list[R] | NewEntries[R]]]) -> None:
        """Deliver the records in the keys that are newer than the events."""
        intake = self._intake
        for state, read in keys:
            if isinstance(read, NewEntries):
                state.last_entry = read.last_id
                newer = intake.take_keys(state.kind, read.records, trimmed=read.trimmed)
            else:
                newer = intake.take_keys(state.kind, read)
            intake.handover.offer(state.kind, newer)
        self._release()
        if not self._up_to_date:
            self._up_to_date = True
            self._connected()
        self._keys, self._marker_sent, self._reading_keys = None, False, False
