"""The actor that owns the store's connection: each batch once, in order, however often it takes.

::

    connect ──▶ write ──▶ acknowledged ──▶ next batch
       ▲          │
       │          ├── connection lost: perhaps executed. Connect anew, which ends the old
       └──────────┘   connection; then the store's batch number tells whether to write again
                  └── refused: not executed. Write again, later; on a new connection where
                      that may reach another server (a demoted primary behind one address)

A server that comes back without what was written (restarted empty, or a replica that lagged)
gets the newest price of each symbol again, before anything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress

import anyio
import attrs
from anyio.abc import TaskStatus
from anyio.streams.memory import MemoryObjectSendStream

from mdservice.clock import Clock
from mdservice.errors import StoreError, StoreRefused
from mdservice.model.symbol import EVERY_SYMBOL
from mdservice.observability.logging import get_logger, masked
from mdservice.publish.store import PriceStore, RenewingStore, WriteBatch
from mdservice.runtime.actor import Channel, Depth, Heartbeat, forward

__all__ = ["RedisWriter", "WriterSnapshot"]

_log = get_logger(__name__)

_PING_S = 0.5
"""How long a quiet writer waits before it asks whether the store still answers."""
_RETRY_FIRST_S, _RETRY_LIMIT_S = 0.05, 0.5
"""Short: on the store's return everything has to be there within a second."""
_LEAVE_AFTER_S = 3.0
"""How long any other refusal is retried on one connection. Behind a forwarder, a DNS name or a
proxy, a new connection may reach a server that does not refuse; it costs next to nothing."""
_CLOSE_S = 1.0
"""For a store of somebody's own; Redis is left at once."""
_MOST_RENEWED = 500
"""Prices that are renewed between two batches: a millisecond or two."""
_NEXT_S = 0.001
"""Between two such parts a batch that waits goes first."""
_SCAN_S = 1.0
"""How often the writer looks for prices that are due, at most."""
_MOST_REMINDED = 2_000
"""Prices that are written again in one transaction, as many as in a batch."""


@attrs.frozen
class WriterSnapshot:
    """The writer at one moment."""

    connected: bool
    address: str
    last_error: str | None
    reconnects: int
    command_errors: int
    last_command_error: str | None


class RedisWriter:
    """Writes batches to the store.

    Args:
        inbox: Batches, the next one only after the previous is acknowledged.
        acknowledged: Takes the number of each batch that is written.
        store: Owned by this actor while it runs.
        clock: The time.
        vouched: The symbols whose last price is known to be still right; these are kept from
            expiring. None where no price is.
        price_ttl_s: The life of a price, seconds.
    """

    name = "redis_writer"

    def __init__(
        self,
        inbox: Channel[WriteBatch],
        acknowledged: MemoryObjectSendStream[int],
        store: PriceStore,
        clock: Clock,
        vouched: Callable[[], Collection[str]] | None = None,
        price_ttl_s: int = 300,
    ) -> None:
        self.heartbeat = Heartbeat(clock)
        self._inbox = inbox.inbox(self.heartbeat)
        self._acknowledged = acknowledged
        self._store = store
        self._clock = clock
        self._connected = False
        self._leaves = False
        """Whether to connect again although the connection works: the server refuses."""
        self._refused_since_s: float | None = None
        self._last_error: str | None = None
        self._connects = 0
        self._failures = 0
        """Since it last answered."""
        self._pending: WriteBatch | None = None
        self._uncertain = False
        """Whether the pending batch may have been executed already."""
        self._written = 0
        self._told = 0
        """The newest batch that was acknowledged."""
        self._prices: dict[str, bytes] = {}
        """The newest price of each symbol that was written …"""
        self._written_s: dict[str, float] = {}
        """… and when it was written or renewed last, monotonic seconds."""
        self._vouched = vouched
        self._ttl_s = price_ttl_s
        self._scan_s = min(_SCAN_S, price_ttl_s / 8)
        self._next_scan_s = 0.0
        self._due: list[str] = []
        self._confirmed: dict[str, None] = {}
        self._can_renew = isinstance(store, RenewingStore)
        self._forgotten: list[str] = []
        """Symbols whose prices the server has lost."""
        self._memory_in_doubt = False
        """Whether the server may have lost what was written before this connection."""

    def start_from(self, prices: Mapping[str, bytes]) -> None:
        """These are an earlier run's: written again once they are vouched for and run out."""
        self._prices.update(prices)

    def confirm(self, symbols: Iterable[str]) -> None:
        """Renew these prices soon: they are known to be right, though no record came."""
        self._confirmed.update(dict.fromkeys(symbols))

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
        """Whether the batch after :attr:`written` may have been executed: no answer came."""
        return self._pending is not None and self._uncertain

    def snapshot(self) -> WriterSnapshot:
        """The writer now."""
        return WriterSnapshot(
            self._connected,
            self._store.address,
            self._last_error,
            max(0, self._connects - 1),
            self._store.command_errors,
            self._store.last_command_error,
        )

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Write until the inbox ends; however it ends, the store is closed."""
        task_status.started()
        self._connected = False  # a restart in the middle of a call left it in doubt
        try:
            await self._look()
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
            wait_s = self._retry_s() if self._failures else min(_PING_S, self._scan_s)
            if (self._due or self._confirmed) and not self._failures:
                wait_s = _NEXT_S
            try:
                batch = await self._inbox.receive_within(wait_s)
            except anyio.EndOfStream:
                return
            if batch is None:
                await self._look()
            else:
                self._pending = batch
                self._uncertain = False

    async def _acknowledge(self, number: int) -> None:
        if number > self._told:
            await forward(self._acknowledged, number)
            self._told = number
            return
        # Of a copy, after a restart of the publisher: it may have heard enough and be gone.
        with suppress(anyio.WouldBlock):
            self._acknowledged.send_nowait(number)

    async def _deliver(self, batch: WriteBatch) -> None:
        """Return once the batch has been executed, once."""
        while batch.number > self._written:
            self.heartbeat.beat()
            try:
                await self._try(batch)
            except StoreError as exc:
                self._failed(exc)
                await anyio.sleep(self._retry_s())

    async def _try(self, batch: WriteBatch) -> None:
        await self._connect()
        await self._remind()
        if self._uncertain and await self._store.last_batch() >= batch.number:
            _log.info("redis_batch_was_written", number=batch.number)
        else:
            self._uncertain = True
            failed_before = self._store.command_errors
            try:
                await self._store.write(batch)
            except StoreRefused:
                self._uncertain = False
                raise
            self._answered()
            self._tell_failed_commands(self._store.command_errors - failed_before)
        self._uncertain = False
        self._written = batch.number
        self._prices.update(batch.prices)
        self._written_s.update(dict.fromkeys(batch.prices, self._clock.monotonic()))

    async def _look(self) -> None:
        """Ask whether the store answers; never raises for a store that does not."""
        try:
            await self._connect()
            await self._remind()
            await self._store.ping()
            self._answered()
        except StoreError as exc:
            self._failed(exc)

    async def _connect(self) -> None:
        if not self._connected or self._leaves:
            try:
                await self._store.connect()
            except StoreError:
                self._connected = False
                raise
            self._connected, self._leaves = True, False
            self._connects += 1
            self._memory_in_doubt = self._written > 0
            if not self._written:  # no batch number tells whether this server kept the prices
                self._written_s.clear()
            _log.info("redis_connected", url=self._store.address)

    async def _remind(self) -> None:
        """Write again what the server has lost, so that also quiet symbols have their price."""
        if self._memory_in_doubt:
            if await self._store.last_batch() < self._written:
                # What is about to be written is newer: it may be out already.
                newer = self._pending.prices if self._pending is not None else {}
                ours = self._prices.keys() & self._written_s.keys()  # not only an earlier run's
                self._forgotten = [symbol for symbol in ours if symbol not in newer]
                _log.warning("redis_has_forgotten", prices=len(self._forgotten))
            self._memory_in_doubt = False
        while self._forgotten:
            some = self._forgotten[-_MOST_REMINDED:]
            now_s = self._clock.monotonic()
            await self._store.write(
                WriteBatch(
                    self._written,
                    {symbol: self._prices[symbol] for symbol in some},
                    (),
                    {symbol: math.ceil(now_s - self._written_s[symbol]) for symbol in some},
                )
            )
            del self._forgotten[-_MOST_REMINDED:]

    async def _renew(self) -> None:
        """Keep the next prices that are due from expiring; never raises for a store's failure."""
        symbols = self._next_due()
        if not symbols or not self._connected or self._leaves or self._failures:
            return
        try:
            await self._remind()
            await self._write_again(await self._without_price(symbols))
        except StoreError as exc:
            self._failed(exc)
            self._due = []  # the next scan finds them again
            return
        self._written_s.update(dict.fromkeys(symbols, self._clock.monotonic()))
        for symbol in symbols:
            self._confirmed.pop(symbol, None)

    def _next_due(self) -> list[str]:
        """Confirmed prices, and those of vouched symbols that have lived half of their life."""
        now_s = self._clock.monotonic()
        if not self._due and self._vouched is not None and now_s >= self._next_scan_s:
            self._next_scan_s = now_s + self._scan_s
            vouched = self._vouched()
            names = self._prices.keys() | vouched if EVERY_SYMBOL in vouched else vouched
            old_s = now_s - self._ttl_s / 2
            self._due = [
                symbol
                for symbol in names
                if symbol != EVERY_SYMBOL and self._written_s.get(symbol, old_s) <= old_s
            ]
        taken = list(self._confirmed)[:_MOST_RENEWED]
        room = _MOST_RENEWED - len(taken)
        if room and not self._failures:
            taken += self._due[:room]
            del self._due[:room]
        return taken

    async def _without_price(self, symbols: list[str]) -> Collection[str]:
        """Renew the prices; return the symbols whose prices have to be written again."""
        if self._can_renew and isinstance(self._store, RenewingStore):
            try:
                return await self._store.renew(symbols)
            except StoreRefused as exc:
                if exc.reconnect:
                    raise
                self._can_renew = False  # a user without the right to EXPIRE
                _log.warning("redis_cannot_renew", url=self._store.address, reason=str(exc))
        return symbols

    async def _write_again(self, symbols: Collection[str]) -> None:
        prices = {symbol: self._prices[symbol] for symbol in symbols if symbol in self._prices}
        if prices:
            await self._store.write(WriteBatch(self._written, prices, (), dict.fromkeys(prices, 0)))

    def _answered(self) -> None:
        self._last_error = None
        self._refused_since_s = None
        self._failures = 0

    def _retry_s(self) -> float:
        return min(_RETRY_LIMIT_S, _RETRY_FIRST_S * 2.0 ** min(self._failures - 1, 10))

    def _tell_failed_commands(self, count: int) -> None:
        if count:
            reason = self._store.last_command_error
            _log.error("redis_command_failed", count=count, reason=reason)

    def _failed(self, exc: StoreError) -> None:
        if isinstance(exc, StoreRefused):
            self._leave_soon(exc)
        else:
            self._connected = False
        self._failures += 1
        self._last_error = masked(str(exc))
        _log.warning("redis_failed", url=self._store.address, reason=str(exc))

    def _leave_soon(self, exc: StoreRefused) -> None:
        """Decide whether the next try is made on a new connection."""
        now_s = self._clock.monotonic()
        if self._refused_since_s is None:
            self._refused_since_s = now_s
        if exc.reconnect or now_s - self._refused_since_s >= _LEAVE_AFTER_S:
            self._leaves = True
            self._refused_since_s = now_s
