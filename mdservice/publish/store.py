"""The protocol of a price store, which writes a batch of latest values and events in one step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Protocol, runtime_checkable

import anyio
import attrs

from mdservice.errors import StoreError, StoreRefused, StoreUnavailable
from mdservice.model.kinds import Kind, R, Stream
from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.model.timestamps import format_ns
from mdservice.observability.logging import get_logger

__all__ = [
    "READ_LIMIT_S",
    "Events",
    "LimitedStore",
    "Message",
    "MovingStore",
    "PartedStore",
    "PriceStore",
    "ProgressStore",
    "Refusable",
    "RenewingStore",
    "StreamStore",
    "WriteBatch",
    "channel_of",
    "read_last_records",
]

_log = get_logger(__name__)

READ_LIMIT_S = 2.0
"""The limit for reading, so that an unreachable store does not delay the start."""
_ENTRIES_READ = 1_000


Refusable = Kind[Any] | str
"""What a store may not be allowed to write: a kind, or the messages of another channel."""


def channel_of(refusable: Refusable) -> str:
    """Alpaca's name of a kind's channel; of other messages the channel in Redis."""
    return refusable if isinstance(refusable, str) else refusable.channel


class PriceStore(Protocol):
    """One connection to a store, owned by one writer.

    The writer calls :meth:`connect` first and again after every :class:`StoreUnavailable`.
    Calls never overlap. After a cancelled call the store is not connected, and the batch may have
    been executed, as after a lost connection.
    """

    @property
    def address(self) -> str:
        """The address of the store, without any secret."""
        ...

    @property
    def command_errors(self) -> int:
        """How many commands failed inside executed transactions.

        They do not undo the rest: after an ``XADD`` to a key that is not a stream, the prices are
        written, but the event log lacks the event.
        """
        ...

    @property
    def last_command_error(self) -> str | None:
        """The server's message for the last of them."""
        ...

    async def connect(self) -> None:
        """Open a connection, and end the previous one if the server still has it.

        When this returns, nothing that was sent on the previous connection can be executed
        any more, so the result of :meth:`last_batch` is final.

        Raises:
            StoreUnavailable: No connection.
            StoreRefused: The server refuses the login or a required command.
        """
        ...

    async def last_batch(self) -> int:
        """The number of the last batch that this instance's writer had executed, or 0.

        Raises:
            StoreUnavailable, StoreRefused
        """
        ...

    async def write(self, batch: WriteBatch) -> None:
        """Execute the batch as one transaction: every key, every message in order, the number.

        Raises:
            StoreUnavailable: The connection was lost; the batch may or may not be executed.
            StoreRefused: The server refused it; nothing of it was executed.
        """
        ...

    async def read_latest(self, kind: Kind[Any], symbols: Iterable[str]) -> Mapping[str, bytes]:
        """The latest values of these symbols, by symbol; symbols without one are omitted.

        Raises:
            StoreUnavailable, StoreRefused
        """
        ...

    async def ping(self) -> None:
        """Check that the server answers and would accept writes.

        Raises:
            StoreUnavailable, StoreRefused
        """
        ...

    async def aclose(self) -> None:
        """Close the connection; never raises for a broken one."""
        ...


@runtime_checkable
class RenewingStore(Protocol):
    """A price store that can renew a value without writing it again.

    For a store without this, the writer writes the values again.
    """

    async def renew(self, kind: Kind[Any], symbols: Iterable[str]) -> Sequence[str]:
        """Restart the expiry of the latest values of these symbols.

        Returns:
            The symbols that have no value in the store.

        Raises:
            StoreUnavailable, StoreRefused
        """
        ...


@runtime_checkable
class PartedStore(Protocol):
    """A price store with parts that can lose their last writes alone."""

    def take_lost(self) -> Callable[[Kind[Any], str], bool] | None:
        """What the store may have lost since the last call: whether the value of a symbol.

        None if nothing is lost, or :meth:`PriceStore.last_batch` shows that everything is.
        """
        ...


@runtime_checkable
class MovingStore(Protocol):
    """A price store whose server may be replaced by another one while it still answers."""

    async def watch(self) -> None:
        """Break the connection to a server that is replaced; returns if that cannot happen.

        The writer runs it beside the other calls. Raises nothing.
        """
        ...


@runtime_checkable
class LimitedStore(Protocol):
    """A price store that may be refused some kinds or channels, and writes the others.

    It leaves out what a batch has of them, and counts each event in ``command_errors``.
    """

    @property
    def refused(self) -> Mapping[Refusable, str]:
        """What it cannot write now, each with the missing rights."""
        ...


@runtime_checkable
class StreamStore(Protocol):
    """A price store that can read back the stream of a kind, such as news."""

    async def read_newest(self, stream: Stream, count: int) -> Sequence[bytes]:
        """The payloads of the newest entries of a stream, at most ``count``, the oldest first.

        Raises:
            StoreUnavailable, StoreRefused
        """
        ...


@runtime_checkable
class ProgressStore(Protocol):
    """Keeps for the next run how far this one has published all records."""

    def keep_progress(self, payload: bytes) -> None:
        """Store this soon, for as long as the key of a price lives."""
        ...

    async def read_progress(self) -> bytes | None:
        """What an earlier run has stored; None without it, or without an answer."""
        ...


@attrs.frozen
class WriteBatch:
    """The content of one transaction.

    Attributes:
        number: Counts the batches of one service instance, from 1, without a step.
        latest: The newest record of each symbol in the batch, encoded, by kind and symbol. A store
            writes it under the key of its kind.
        events: The messages to publish, in order. Events of kinds that are logged are also
            appended to the event log, if there is one, and events with entry ids to the stream of
            their kind.
        ages_s: For values that are written again, the seconds since they were first written.
            They expire that much sooner. Values without an age are new.
        deleted: The symbols whose latest value does not hold any more, by kind. Their keys are
            removed. None of them is in ``latest``.
        restored: Whether it ends the writing of values that the store had lost. Readers then read
            the keys again. Its number is that of the last batch, as is that of each batch with
            ``ages_s``.
    """

    number: int
    latest: Mapping[Kind[Any], Mapping[str, bytes]]
    events: Sequence[Events]
    ages_s: Mapping[Kind[Any], Mapping[str, int]] = attrs.field(factory=dict)
    deleted: Mapping[Kind[Any], Sequence[str]] = attrs.field(factory=dict)
    restored: bool = False

    @property
    def count(self) -> int:
        """The number of messages of the batch."""
        return sum(len(events.payloads) for events in self.events)

    @property
    def messages(self) -> list[Message]:
        """The events one by one, for a store that need not be fast."""
        return [
            Message(events.channel, payload, symbol)
            for events in self.events
            for payload, symbol in zip_longest(events.payloads, events.symbols)
        ]


@attrs.frozen
class Events:
    """Messages of one channel, in order.

    Attributes:
        channel: A kind's event, such as ``price.updated``; ``feed.status``, ``account.updated``.
        payloads: The JSON texts, encoded once: key, channel and log have the same bytes.
        kind: The kind of the records; None for any other message.
        symbols: The symbol of each record; empty for any other message.
        entry_ids: The field ``id`` of each record's entry in the stream of the kind; empty for a
            kind without a stream.
    """

    channel: str
    payloads: Sequence[bytes]
    kind: Kind[Any] | None = None
    symbols: Sequence[str] = ()
    entry_ids: Sequence[str] = ()

    @property
    def refusable(self) -> Refusable:
        """What a store may not be allowed to write of it."""
        return self.channel if self.kind is None else self.kind


@attrs.frozen
class Message:
    """One message to publish, with the symbol of a record; see :attr:`WriteBatch.messages`."""

    channel: str
    payload: bytes
    symbol: str | None = None


async def read_last_records(
    store: PriceStore,
    wanted: Mapping[Kind[Any], Sequence[str]],
    latest_ns: int,
    *,
    required: bool = False,
) -> Mapping[Kind[Any], Sequence[Any]]:
    """The records in the symbols' keys, by kind; without the kinds for which there is no answer.

    Of a kind with a stream, the newest records there, the oldest first.

    A key that is unreadable, or whose time is too far ahead, is omitted and logged.

    Args:
        store: This function connects it; the writer connects it again.
        wanted: The symbols to read, by kind; ``*`` is ignored. Of a kind with a stream, any symbol
            stands for all.
        latest_ns: The latest time that a record may have, UTC nanoseconds.
        required: Whether to raise without an answer.

    Raises:
        StoreUnavailable, StoreRefused: Only where ``required``.
    """
    named = {
        kind: [symbol for symbol in symbols if symbol != EVERY_SYMBOL]
        for kind, symbols in wanted.items()
    }
    streams = [(kind, kind.stream) for kind, symbols in wanted.items() if kind.stream and symbols]
    if not streams and not any(named.values()):
        return {}
    found: dict[Kind[Any], Sequence[Any]] = {}
    reason: str | None = f"no answer within {READ_LIMIT_S:g} s"
    try:
        with anyio.move_on_after(READ_LIMIT_S):
            await store.connect()
            for kind, symbols in named.items():
                if symbols and kind.has_key:
                    found[kind] = await _read_keys(store, kind, symbols, latest_ns)
            for kind, stream in streams:
                if isinstance(store, StreamStore):
                    found[kind] = await _read_stream(store, kind, stream, latest_ns)
            reason = None
    except StoreError as exc:
        if required:
            raise
        reason = str(exc)
    if reason is not None:
        if required:
            raise StoreUnavailable(f"{store.address}: {reason}")
        _log.warning("last_prices_not_read", url=store.address, reason=reason)
    return found


async def _read_keys(
    store: PriceStore, kind: Kind[R], symbols: Sequence[str], latest_ns: int
) -> list[R]:
    """The records in a kind's keys; none if the server refuses to read those, and no others."""
    try:
        payloads = await store.read_latest(kind, symbols)
    except StoreRefused as exc:
        _log.warning("last_prices_not_read", channel=kind.channel, reason=str(exc))
        return []
    read = (_read(kind, symbol, payload, latest_ns) for symbol, payload in payloads.items())
    return [record for record in read if record is not None]


async def _read_stream(
    store: StreamStore, kind: Kind[R], stream: Stream, latest_ns: int
) -> list[R]:
    """The newest records of a kind's stream; likewise."""
    try:
        entries = await store.read_newest(stream, _ENTRIES_READ)
    except StoreRefused as exc:
        _log.warning("last_prices_not_read", channel=kind.channel, reason=str(exc))
        return []
    read = (_read(kind, EVERY_SYMBOL, payload, latest_ns) for payload in entries)
    return [record for record in read if record is not None]


def _read(kind: Kind[R], symbol: str, payload: bytes, latest_ns: int) -> R | None:
    try:
        record = kind.decode(payload)
    except ValueError as exc:
        reason = str(exc)
    else:
        if record.symbol == symbol and record.ts_event_ns <= latest_ns:
            return record
        reason = f"it is of {record.symbol} at {format_ns(record.ts_event_ns)}"
    _log.warning("last_price_ignored", key=f"{kind.key_prefix}{symbol}", reason=reason)
    return None
