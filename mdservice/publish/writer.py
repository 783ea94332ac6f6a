"""The writer: owns the store's connection, and writes each batch once and in order.

::

    connect ──▶ write ──▶ acknowledged ──▶ next batch
       ▲          │
       │          ├── connection lost: perhaps executed. Reconnect, which ends the old
       └──────────┘   connection. Then the store's batch number tells whether to write again
                  └── refused: not executed. Write again later, on a new connection if that
                      may reach another server (a demoted primary behind one address)

If a server has lost earlier writes (it restarted empty, or it is a replica that lagged), the writer
first writes the newest value of each key again, and has readers read the keys. The lost events of a
replica that lagged become gaps on ``feed.status``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import anyio
import attrs
from anyio.abc import TaskStatus

from mdservice.clock import Clock
from mdservice.errors import StoreError, StoreRefused
from mdservice.model.events import FeedStatus, encode_status
from mdservice.model.feeds import NEWS_FEED, STOCKS, FeedName, feed_of
from mdservice.model.kinds import KINDS, Kind
from mdservice.model.status import Histogram
from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.model.timestamps import format_ns
from mdservice.observability.logging import get_logger, masked
from mdservice.publish.latencies import Durations
from mdservice.publish.store import (
    Events,
    LimitedStore,
    MovingStore,
    PartedStore,
    PriceStore,
    Refusable,
    RenewingStore,
    WriteBatch,
)
from mdservice.redis_io.names import STATUS_CHANNEL
from mdservice.runtime.actor import Channel, Depth, Heartbeat, Outbox
from mdservice.runtime.task_groups import block_tasks

__all__ = ["RedisWriter", "WriterSnapshot"]

_log = get_logger(__name__)

_MS_S = 1000.0
_PING_S = 0.5
"""How long a writer without batches waits before it checks the store."""
_RETRY_FIRST_S, _RETRY_LIMIT_S = 0.05, 0.5
"""Short, so that everything is written within a second of the store's return."""
_RECONNECT_AFTER_S = 3.0
"""How long a refused write is retried on one connection, unless the refusal asks for a new one.
After that the writer reconnects: a forwarder, a DNS name or a proxy may lead to another server."""
_CLOSE_S = 1.0
"""The limit for closing an embedder's store; Redis closes at once."""
_MOST_RENEWED = 500
"""The maximum number of keys renewed between two batches, in a millisecond or two."""
_NEXT_S = 0.001
"""The pause between two parts of a renewal, in which a waiting batch is written first."""
_MOST_REMEMBERED = 100_000
"""The symbols of how many events are kept, to know which a replica has lost: a second's at most."""
_MOST_RESTORED = 2_000
"""How many values one transaction writes again."""


@attrs.frozen
class WriterSnapshot:
    """A snapshot of the writer."""

    connected: bool
    address: str
    last_error: str | None
    reconnects: int
    command_errors: int
    last_command_error: str | None
    refused: Mapping[Refusable, str]
    """The kinds that the store cannot write now, each with the missing rights."""
    refusal: str | None
    """The code of the error with which the store refuses; None while it does not."""
    write_times: Histogram
    """From sending a batch to its answer."""


@attrs.define
class _Keys:
    """The keys of one kind that this writer has written.

    Attributes:
        ttl_s: How long a key lives, seconds.
        latest: The newest value of each symbol, also of an earlier run.
        written_s: When each was last written or renewed, monotonic seconds.
        next_scan_s: When to look for keys to renew again, monotonic seconds.
        due: The symbols whose keys have lived half of their life.
        confirmed: The symbols whose value REST has confirmed, in order. Their keys are renewed
            before those that are due.
        forgotten: The symbols whose values the server has lost.
        removed: The symbols whose keys are to be removed again.
    """

    ttl_s: float
    latest: dict[str, bytes] = attrs.field(factory=dict)
    written_s: dict[str, float] = attrs.field(factory=dict)
    next_scan_s: float = 0.0
    due: list[str] = attrs.field(factory=list)
    confirmed: dict[str, None] = attrs.field(factory=dict)
    forgotten: list[str] = attrs.field(factory=list)
    removed: list[str] = attrs.field(factory=list)

    @property
    def without(self) -> list[str]:
        """The symbols whose keys were removed, and not written since."""
        return [symbol for symbol, at_s in self.written_s.items() if at_s == math.inf]

    @property
    def scan_s(self) -> float:
        """How often to look for keys to renew: every second if they live for minutes."""
        return max(min(1.0, self.ttl_s / 8), min(self.ttl_s / 300, 30.0))

    def old(self, vouched: Collection[str], now_s: float) -> list[str]:
        """The vouched symbols whose keys have lived half of their life."""
        every = EVERY_SYMBOL in vouched
        old_s = now_s - self.ttl_s / 2
        return [
            symbol
            for symbol in (self.latest.keys() | vouched if every else vouched)
            if self.written_s.get(symbol, old_s) <= old_s
            and symbol != EVERY_SYMBOL
            # Every symbol means those of stocks: another feed vouches for each of its own.
            and (not every or symbol in vouched or feed_of(symbol) is STOCKS)
        ]

    def forget(self, symbols: Iterable[str]) -> None:
        """The keys of these symbols were removed: neither renew them nor write them again."""
        for symbol in symbols:
            self.latest.pop(symbol, None)
            self.confirmed.pop(symbol, None)
            self.written_s[symbol] = math.inf  # never old, until it is written


@attrs.frozen
class _Written:
    """A batch that was written.

    Attributes:
        number: Its number.
        at_ns: When, UTC nanoseconds.
        symbols: Of each kind among its events.
        count: How many events it had, and one.
    """

    number: int
    at_ns: int
    symbols: Sequence[tuple[Kind[Any], Sequence[str]]]
    count: int


class RedisWriter:
    """Writes batches to the store.

    Args:
        inbox: Batches. The next one comes only after the previous is acknowledged.
        acknowledged: Gets the number of each written batch.
        store: The store, which this actor owns while it runs.
        clock: The time.
        vouched: Returns the symbols whose last record of a kind is still right, because the feed is
            connected and has acknowledged them. The writer renews their keys. None to renew no key.
        price_ttl_s: How long a key lives, for kinds without their own expiry, seconds.
        kinds: The kinds to write.
    """

    name = "redis_writer"

    def __init__(
        self,
        inbox: Channel[WriteBatch],
        acknowledged: Outbox[int],
        store: PriceStore,
        clock: Clock,
        vouched: Callable[[Kind[Any]], Collection[str]] | None = None,
        price_ttl_s: int = 300,
        kinds: Sequence[Kind[Any]] = KINDS,
    ) -> None:
        self.heartbeat = Heartbeat(clock)
        self._inbox = inbox.inbox(self.heartbeat)
        self._acknowledged = acknowledged
        self._store = store
        self._clock = clock
        self._connected = False
        self._must_reconnect = False
        """Whether to reconnect although the connection works, because the server refuses."""
        self._refused_since_s: float | None = None
        self._last_error: str | None = None
        self._refusal: str | None = None
        self._write_times = Durations()
        self._connects = 0
        self._failures = 0
        """The number of failures since the store last answered."""
        self._pending: WriteBatch | None = None
        self._uncertain = False
        """Whether the pending batch may have been executed already."""
        self._written = 0
        self._last_acknowledged = 0
        """The newest batch that was acknowledged."""
        self._keys = {kind: _Keys(kind.ttl_s or price_ttl_s) for kind in kinds if kind.has_key}
        self._vouched = vouched
        self._wait_s = min([_PING_S, *(keys.scan_s for keys in self._keys.values())])
        self._can_renew = isinstance(store, RenewingStore)
        self._memory_in_doubt = False
        """Whether the server may have lost the writes before this connection."""
        self._recent: deque[_Written] = deque()
        self._recent_count = 0
        self._losses: list[FeedStatus] | None = None
        """The gaps to publish once the lost values are written; None if nothing was lost."""

    def start_from(self, kind: Kind[Any], latest: Mapping[str, bytes]) -> None:
        """Take an earlier run's values, to write again what is confirmed and has expired."""
        if kind.has_key:
            self._keys[kind].latest.update(latest)

    def confirm(self, kind: Kind[Any], symbols: Iterable[str]) -> None:
        """Renew these keys soon: REST has confirmed their values, although no record came."""
        if kind.has_key:
            self._keys[kind].confirmed.update(dict.fromkeys(symbols))

    @property
    def depth(self) -> Depth:
        """How full its inbox is."""
        return self._inbox.depth

    @property
    def written(self) -> int:
        """The number of the last batch that the store has executed."""
        return self._written

    @property
    def uncertain(self) -> bool:
        """Whether the batch after :attr:`written` has no answer and may have been executed."""
        return self._pending is not None and self._uncertain

    def snapshot(self) -> WriterSnapshot:
        """A snapshot of the writer."""
        return WriterSnapshot(
            self._connected,
            self._store.address,
            self._last_error,
            max(0, self._connects - 1),
            self._store.command_errors,
            self._store.last_command_error,
            self._store.refused if isinstance(self._store, LimitedStore) else {},
            self._refusal,
            self._write_times.histogram(),
        )

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Write until the inbox ends. At the end, also after an error, the store is closed."""
        task_status.started()
        self._connected = False  # a restart during a call leaves the connection in an unknown state
        try:
            async with block_tasks() as tasks:
                if isinstance(self._store, MovingStore):
                    tasks.start_soon(self._store.watch)
                await self._check()
                await self._write_all()
        finally:
            with anyio.move_on_after(_CLOSE_S, shield=True):
                await self._store.aclose()
            self._connected = False

    async def _write_all(self) -> None:
        while True:
            if self._pending is not None:
                await self._deliver(self._pending)
                await self._acknowledge(self._pending.number)
                self._pending = None
            await self._renew()
            wait_s = self._retry_s() if self._failures else self._wait_s
            if not self._failures and self._renews_more():
                wait_s = _NEXT_S
            try:
                batch = await self._inbox.receive_within(wait_s)
            except anyio.EndOfStream:
                return
            if batch is None:
                await self._check()
            else:
                self._pending = batch
                self._uncertain = False

    async def _acknowledge(self, number: int) -> None:
        if number > self._last_acknowledged:
            await self._acknowledged.send(number)
            self._last_acknowledged = number
            return
        # A batch that a restarted publisher has sent twice: it may no longer wait for the answer.
        with suppress(anyio.WouldBlock):
            self._acknowledged.send_nowait(number)

    async def _deliver(self, batch: WriteBatch) -> None:
        """Execute the batch exactly once, and return when it is done."""
        while batch.number > self._written:
            self.heartbeat.beat()
            try:
                await self._try(batch)
            except StoreError as exc:
                self._failed(exc)
                await anyio.sleep(self._retry_s())

    async def _try(self, batch: WriteBatch) -> None:
        await self._connect()
        await self._restore()
        if self._uncertain and await self._store.last_batch() >= batch.number:
            _log.info("redis_batch_was_written", number=batch.number)
        else:
            self._uncertain = True
            failed_before = self._store.command_errors
            began_s = self._clock.monotonic()
            try:
                await self._store.write(batch)
            except StoreRefused:
                self._uncertain = False
                raise
            self._write_times.add((self._clock.monotonic() - began_s) * _MS_S)
            self._answered()
            self._log_failed_commands(self._store.command_errors - failed_before)
        self._uncertain = False
        self._written = batch.number
        self._remember(batch)
        now_s = self._clock.monotonic()
        for kind, latest in batch.latest.items():
            keys = self._keys[kind]
            keys.latest.update(latest)
            keys.written_s.update(dict.fromkeys(latest, now_s))
        for kind, symbols in batch.deleted.items():
            self._keys[kind].forget(symbols)

    async def _check(self) -> None:
        """Check the store. Never raises if it does not answer."""
        try:
            await self._connect()
            await self._restore()
            await self._store.ping()
            self._answered()
        except StoreError as exc:
            self._failed(exc)

    async def _connect(self) -> None:
        if not self._connected or self._must_reconnect:
            try:
                await self._store.connect()
            except StoreError:
                self._connected = False
                raise
            self._connected, self._must_reconnect = True, False
            self._connects += 1
            self._memory_in_doubt = self._written > 0
            if not self._written:  # no batch number shows whether this server kept the keys
                for keys in self._keys.values():
                    keys.written_s.clear()
            _log.info("redis_connected", url=self._store.address)

    async def _restore(self) -> None:
        """Write lost values again, also those of quiet symbols."""
        if self._memory_in_doubt:
            last = await self._store.last_batch()
            lost = self._store.take_lost() if isinstance(self._store, PartedStore) else None
            if last < self._written or lost is not None:
                for kind, keys in self._keys.items():
                    # The pending batch has newer values, and may be executed already.
                    newer = set[str]()
                    if self._pending is not None:
                        newer.update(self._pending.latest.get(kind, ()))
                        newer.update(self._pending.deleted.get(kind, ()))
                    ours = keys.latest.keys() & keys.written_s.keys()  # not an earlier run's
                    ours = {symbol for symbol in ours if lost is None or lost(kind, symbol)}
                    ours.update(keys.forgotten)
                    keys.forgotten = [symbol for symbol in ours if symbol not in newer]
                    keys.removed = [symbol for symbol in keys.without if symbol not in newer]
                count = sum(len(keys.forgotten) for keys in self._keys.values())
                self._losses = self._gaps_after(last) or self._losses or []
                _log.warning(
                    "redis_has_forgotten",
                    prices=count,
                    batches=max(0, self._written - last),
                    last=last,
                )
            self._memory_in_doubt = False
        for kind, keys in self._keys.items():
            while keys.forgotten:
                some = keys.forgotten[-_MOST_RESTORED:]
                now_s = self._clock.monotonic()
                ages_s = {symbol: math.ceil(now_s - keys.written_s[symbol]) for symbol in some}
                await self._write_values(kind, ages_s)
                del keys.forgotten[-_MOST_RESTORED:]
        if self._losses is not None:
            gaps = [encode_status(gap) for gap in self._losses]
            events = [Events(STATUS_CHANNEL, gaps)] if gaps else []
            removed = {kind: keys.removed for kind, keys in self._keys.items() if keys.removed}
            await self._store.write(
                WriteBatch(self._written, {}, events, deleted=removed, restored=True)
            )
            self._losses = None

    def _remember(self, batch: WriteBatch) -> None:
        """Keep which symbols the last events were of."""
        symbols = [(one.kind, one.symbols) for one in batch.events if one.kind is not None]
        written = _Written(batch.number, self._clock.utc_ns(), symbols, batch.count + 1)
        self._recent.append(written)
        self._recent_count += written.count
        while self._recent_count > _MOST_REMEMBERED and len(self._recent) > 1:
            self._recent_count -= self._recent.popleft().count

    def _gaps_after(self, last: int) -> list[FeedStatus]:
        """The gaps of a server that has the batches up to ``last``, and none of the later ones.

        None of a server without any, which has restarted: its subscribers got the events.
        """
        if not last:
            return []
        symbols: dict[Kind[Any], set[str]] = {}
        if not self._recent or self._recent[0].number > last + 1:  # it goes back further than known
            for kind, keys in self._keys.items():
                symbols[kind] = set(keys.written_s)
        for written in self._recent:
            if written.number > last:
                for kind, names in written.symbols:
                    symbols.setdefault(kind, set()).update(names)
        from_ns = next((one.at_ns for one in self._recent if one.number >= last), 0)
        now_ns = self._clock.utc_ns()
        gaps = []
        for kind, lost in symbols.items():
            by_feed: dict[FeedName, list[str]] = {}
            for name in sorted(lost):
                feed = NEWS_FEED if kind.stream is not None else feed_of(name)
                by_feed.setdefault(feed.name, []).append(name)
            for feed_name, of_feed in by_feed.items():
                details = {
                    "channel": kind.channel,
                    "from": format_ns(from_ns),
                    "to": format_ns(now_ns),
                    "symbols": of_feed,
                    **({"refreshed": True} if kind.has_key else {}),
                    "reason": "Redis failed over to a replica that did not have these events",
                }
                gaps.append(FeedStatus("gap", now_ns, details, feed_name))
        return gaps

    async def _write_values(self, kind: Kind[Any], ages_s: Mapping[str, int]) -> None:
        """Write the latest values of these symbols again, without an event."""
        latest = {symbol: self._keys[kind].latest[symbol] for symbol in ages_s}
        await self._store.write(WriteBatch(self._written, {kind: latest}, (), {kind: ages_s}))

    async def _renew(self) -> None:
        """Renew the next due keys. Never raises for a failure of the store."""
        self._scan()
        for kind, keys in self._keys.items():
            symbols = list(keys.confirmed)[:_MOST_RENEWED]
            room = _MOST_RENEWED - len(symbols)
            if room and not self._failures:
                symbols += keys.due[:room]
                del keys.due[:room]
            if symbols:
                await self._renew_some(kind, keys, symbols)
                return  # a waiting batch goes before the keys of the next kind

    def _renews_more(self) -> bool:
        """Whether there are keys to renew, or to look for, at once."""
        now_s = self._clock.monotonic() if self._vouched is not None else -math.inf
        return any(
            keys.due or keys.confirmed or keys.next_scan_s <= now_s for keys in self._keys.values()
        )

    def _scan(self) -> None:
        """Find the keys of vouched symbols that have lived half of their life."""
        now_s = self._clock.monotonic()
        if self._vouched is None or any(keys.due for keys in self._keys.values()):
            return
        # The one that has waited longest first: some kind may have due keys at every look.
        for kind, keys in sorted(self._keys.items(), key=lambda each: each[1].next_scan_s):
            if now_s >= keys.next_scan_s:
                keys.next_scan_s = now_s + keys.scan_s
                keys.due = keys.old(self._vouched(kind), now_s)
                if keys.due:
                    return  # their renewal goes first

    async def _renew_some(self, kind: Kind[Any], keys: _Keys, symbols: list[str]) -> None:
        if not self._connected or self._must_reconnect or self._failures:
            return
        try:
            await self._restore()
            missing = await self._without_value(kind, symbols)
            again = [symbol for symbol in missing if symbol in keys.latest]
            if again:
                await self._write_values(kind, dict.fromkeys(again, 0))
        except StoreError as exc:
            self._failed(exc)
            keys.due = []  # the next scan finds them again
            return
        keys.written_s.update(dict.fromkeys(symbols, self._clock.monotonic()))
        for symbol in symbols:
            keys.confirmed.pop(symbol, None)

    async def _without_value(self, kind: Kind[Any], symbols: list[str]) -> Collection[str]:
        """Renew the keys that exist; return the symbols whose values must be written again."""
        if self._can_renew and isinstance(self._store, RenewingStore):
            try:
                return await self._store.renew(kind, symbols)
            except StoreRefused as exc:
                if exc.reconnect:
                    raise
                self._can_renew = False  # a user without the right to EXPIRE
                _log.warning("redis_cannot_renew", url=self._store.address, reason=str(exc))
        return symbols

    def _answered(self) -> None:
        self._last_error = None
        self._refusal = None
        self._refused_since_s = None
        self._failures = 0

    def _retry_s(self) -> float:
        return min(_RETRY_LIMIT_S, _RETRY_FIRST_S * 2.0 ** min(self._failures - 1, 10))

    def _log_failed_commands(self, count: int) -> None:
        if count:
            reason = self._store.last_command_error
            _log.error("redis_command_failed", count=count, reason=reason)

    def _failed(self, exc: StoreError) -> None:
        if isinstance(exc, StoreRefused):
            self._note_refusal(exc)
        else:
            self._connected = False
        self._failures += 1
        self._refusal = exc.code if isinstance(exc, StoreRefused) else None
        self._last_error = masked(str(exc))
        _log.warning("redis_failed", url=self._store.address, reason=str(exc))

    def _note_refusal(self, exc: StoreRefused) -> None:
        """Decide whether to reconnect before the next attempt."""
        now_s = self._clock.monotonic()
        if self._refused_since_s is None:
            self._refused_since_s = now_s
        if exc.reconnect or now_s - self._refused_since_s >= _RECONNECT_AFTER_S:
            self._must_reconnect = True
            self._refused_since_s = now_s
