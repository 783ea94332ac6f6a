"""A price store in this process, with faults on demand.

It stores the same data as a Redis server and passes the same contract suite as the real store.
It starts no thread, so it works under trio's virtual clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from copy import deepcopy
from enum import Enum, auto
from typing import Any, Final

import anyio
import anyio.lowlevel
import attrs

from mdservice.clock import Clock, SystemClock
from mdservice.errors import StoreUnavailable
from mdservice.model.kinds import QUOTES, Kind, Stream
from mdservice.publish.store import WriteBatch
from mdservice.redis_io.replies import refusal

__all__ = ["MemoryPriceStore", "Slow", "StoreFault"]

_NUMBER_TTL_S: Final = 86_400
_PROGRESS_KEY: Final = "mdservice:progress"


class StoreFault(Enum):
    """A fault of one call of a :class:`MemoryPriceStore`."""

    REFUSE_CONNECT = auto()
    """``connect()`` fails: no server listens."""
    LOSE_REQUEST = auto()
    """The connection breaks before the batch has arrived; nothing is executed."""
    LOSE_REPLY = auto()
    """The batch is executed, but the connection breaks before the reply has come."""
    DELAY_REQUEST = auto()
    """The connection breaks while the batch is on its way: the server may get it later, until
    the next ``connect()`` has fenced it. :meth:`MemoryPriceStore.deliver` lets it arrive."""
    REFUSE_WRITE = auto()
    """The server answers with an error and executes nothing."""


@attrs.frozen
class Slow:
    """The call succeeds after a delay.

    Attributes:
        seconds: The delay, by the event loop's clock.
    """

    seconds: float


class MemoryPriceStore:
    """A :class:`~mdservice.publish.store.PriceStore` and the server behind it, in one object.

    The server's data outlives connections; :meth:`restart` empties it.

    Args:
        clock: The clock by which keys expire.
        price_ttl_s: Seconds until a key expires, for kinds that set no time of their own.
        event_log: The name of the stream to which the events of logged kinds are appended, or
            None.
        event_log_maxlen: How many entries the stream keeps.
        instance: Names the writer.

    Attributes:
        script: The next faults; each call takes the first one if it is of its kind
            (``REFUSE_CONNECT`` is for ``connect``, the others are for ``write``).
        down: While True, ``connect`` fails, and every other call loses its connection.
        renewed: The symbols of each renewal, the last 10,000.
        refusal: While set, every write is refused with this text, such as
            ``READONLY You can't write against a read only replica.``
        command_error: While set, appending to the stream fails with this text, and the rest of
            the batch is executed.
        connects: How often ``connect()`` has succeeded.
        executed: Every batch, in the order of execution; a batch executed twice appears
            twice.
        published: The payloads of each channel, in order.
        entries: The event log: symbol and payload of each event.
        streams: The kinds' own streams by name: id and payload of each entry.
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        price_ttl_s: int = 300,
        event_log: str | None = None,
        event_log_maxlen: int = 100_000,
        instance: str = "test",
    ) -> None:
        self._clock = clock if clock is not None else SystemClock()
        self._price_ttl_s = price_ttl_s
        self._event_log = event_log
        self._number_key = f"mdservice:writer:{instance}"
        self._keys: dict[str, tuple[bytes, float]] = {}
        self._on_the_way: list[WriteBatch] = []
        self._connected = False
        self.script: deque[StoreFault | Slow] = deque()
        self.down = False
        self.refusal: str | None = None
        self.command_error: str | None = None
        self._command_errors = 0
        self._last_command_error: str | None = None
        self.connects = 0
        self.renewed: deque[tuple[str, ...]] = deque(maxlen=10_000)
        self.executed: list[WriteBatch] = []
        self.published: dict[str, list[bytes]] = {}
        self.entries: deque[tuple[str, bytes]] = deque(maxlen=event_log_maxlen)
        self.streams: dict[str, deque[tuple[str, bytes]]] = {}
        self.replicate()

    # ---- as the writer sees it

    @property
    def address(self) -> str:
        """``memory://``."""
        return "memory://"

    @property
    def command_errors(self) -> int:
        """How many appends failed inside an executed batch."""
        return self._command_errors

    @property
    def last_command_error(self) -> str | None:
        """The message of the last one."""
        return self._last_command_error

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self._connected

    async def connect(self) -> None:
        """Open a connection; a batch on its way on the previous one is lost.

        Raises:
            StoreUnavailable: By :attr:`script`, or while :attr:`down`.
        """
        self._connected = False
        await anyio.lowlevel.checkpoint()
        refused = self._take(StoreFault.REFUSE_CONNECT)
        if refused is not None or self.down:
            raise StoreUnavailable("No connection to the store at memory://: it is down")
        self._on_the_way.clear()
        self._connected = True
        self.connects += 1

    async def last_batch(self) -> int:
        """The number of the last executed batch, or 0.

        Raises:
            StoreUnavailable: Not connected.
        """
        await self._round_trip()
        return int(self.get(self._number_key) or 0)

    async def write(self, batch: WriteBatch) -> None:
        """Execute the batch, unless the script has a fault for it.

        Raises:
            StoreUnavailable, StoreRefused
        """
        # A call that ends without an answer, also by cancellation, loses the connection.
        answered = False
        try:
            await self._round_trip()
            fault = self._take(
                StoreFault.LOSE_REQUEST,
                StoreFault.LOSE_REPLY,
                StoreFault.DELAY_REQUEST,
                StoreFault.REFUSE_WRITE,
            )
            if isinstance(fault, Slow):
                await anyio.sleep(fault.seconds)
                self._require_connection()
            if fault is StoreFault.REFUSE_WRITE or self.refusal is not None:
                answered = True
                raise refusal("memory://", self.refusal or "ERR")
            if fault is StoreFault.DELAY_REQUEST:
                self._on_the_way.append(batch)
            elif fault is not StoreFault.LOSE_REQUEST:
                self._execute(batch)
            if isinstance(fault, StoreFault):
                raise StoreUnavailable("The connection to the store at memory:// was lost")
            answered = True
        finally:
            self._connected = self._connected and answered

    async def read_latest(self, kind: Kind[Any], symbols: Iterable[str]) -> dict[str, bytes]:
        """The latest values by symbol; symbols without a value are left out.

        Raises:
            StoreUnavailable: Not connected.
        """
        await self._round_trip()
        found = {symbol: self.get(f"{kind.key_prefix}{symbol}") for symbol in symbols}
        return {symbol: payload for symbol, payload in found.items() if payload is not None}

    async def read_newest(self, stream: Stream, count: int) -> list[bytes]:
        """The payloads of the newest entries of a kind's stream, the oldest first.

        Raises:
            StoreUnavailable: Not connected.
        """
        await self._round_trip()
        return [payload for _, payload in self.streams.get(stream.name, ())][-count:]

    async def renew(self, kind: Kind[Any], symbols: Iterable[str]) -> Sequence[str]:
        """Restart the time to live of these values; return the symbols without a value.

        Raises:
            StoreUnavailable, StoreRefused
        """
        await self._round_trip()
        if self.refusal is not None:
            raise refusal("memory://", self.refusal)
        names = tuple(symbols)
        self.renewed.append(names)
        expires_at = self._clock.monotonic() + self._ttl_s(kind)
        missing = []
        for symbol in names:
            key = f"{kind.key_prefix}{symbol}"
            payload = self.get(key)
            if payload is None:
                missing.append(symbol)
            else:
                self._keys[key] = (payload, expires_at)
        return missing

    def _ttl_s(self, kind: Kind[Any]) -> int:
        return kind.ttl_s or self._price_ttl_s

    async def ping(self) -> None:
        """Check that it accepts writes.

        Raises:
            StoreUnavailable, StoreRefused
        """
        await self._round_trip()
        if self.refusal is not None:
            raise refusal("memory://", self.refusal)

    def keep_progress(self, payload: bytes) -> None:
        """Store it, unless the server is :attr:`down` or refuses."""
        if not self.down and self.refusal is None:
            expires_at = self._clock.monotonic() + self._price_ttl_s
            self._keys[_PROGRESS_KEY] = payload, expires_at

    async def read_progress(self) -> bytes | None:
        """What was stored; None while the server is :attr:`down`."""
        await anyio.lowlevel.checkpoint()
        return None if self.down else self.get(_PROGRESS_KEY)

    async def aclose(self) -> None:
        """Close the connection."""
        self._connected = False
        await anyio.lowlevel.checkpoint()

    # ---- as its server's clients see it

    def get(self, key: str) -> bytes | None:
        """The value of a key; None if it has expired."""
        value, expires_at = self._keys.get(key, (None, 0.0))
        return value if expires_at > self._clock.monotonic() else None

    def price(self, symbol: str) -> bytes | None:
        """The price object of a symbol; None if it has expired."""
        return self.get(f"{QUOTES.key_prefix}{symbol}")

    def deliver(self) -> int:
        """Let batches on their way arrive and execute, unless a connect has fenced them.

        Returns:
            How many batches were executed.
        """
        late, self._on_the_way = self._on_the_way, []
        for batch in late:
            self._execute(batch)
        return len(late)

    def drop_connection(self) -> None:
        """Break the connection from the server's side."""
        self._connected = False

    def restart(self) -> None:
        """Break the connection and forget every key and stream entry.

        A server without persistence does the same. :attr:`published` and :attr:`executed` stay.
        """
        self._connected = False
        self._on_the_way.clear()
        self._keys.clear()
        self.entries.clear()
        self.streams.clear()

    def replicate(self) -> None:
        """Bring the replica up to date, to which :meth:`fail_over` leads."""
        self._replica = dict(self._keys), self.entries.copy(), deepcopy(self.streams)

    def fail_over(self) -> None:
        """Break the connection, and lead to the replica: what came after :meth:`replicate` is gone.

        :attr:`published` and :attr:`executed` stay.
        """
        self.restart()
        keys, entries, streams = self._replica
        self._keys.update(keys)
        self.entries.extend(entries)
        self.streams.update(deepcopy(streams))

    # ---- inside

    def _take(self, *kinds: StoreFault) -> StoreFault | Slow | None:
        """The head of the script, if it is for this call."""
        if not self.script:
            return None
        head = self.script[0]
        if head in kinds or (isinstance(head, Slow) and StoreFault.REFUSE_CONNECT not in kinds):
            return self.script.popleft()
        return None

    async def _round_trip(self) -> None:
        self._require_connection()
        answered = False
        try:
            await anyio.lowlevel.checkpoint()
            answered = not self.down
        finally:
            self._connected = self._connected and answered
        self._require_connection()

    def _append(self, symbol: str, payload: bytes) -> None:
        if self.command_error is None:
            self.entries.append((symbol, payload))
            return
        self._command_errors += 1
        self._last_command_error = self.command_error

    def _require_connection(self) -> None:
        if not self._connected:
            raise StoreUnavailable("No connection to the store at memory://: connect() first")

    def _execute(self, batch: WriteBatch) -> None:
        now = self._clock.monotonic()
        for kind, latest in batch.latest.items():
            ages_s = batch.ages_s.get(kind, {})
            for symbol, payload in latest.items():
                left_s = self._ttl_s(kind) - ages_s.get(symbol, 0)
                if left_s > 0:
                    self._keys[f"{kind.key_prefix}{symbol}"] = (payload, now + left_s)
        for kind, symbols in batch.deleted.items():
            for symbol in symbols:
                self._keys.pop(f"{kind.key_prefix}{symbol}", None)
        for events in batch.events:
            self.published.setdefault(events.channel, []).extend(events.payloads)
            if self._event_log is not None and events.kind is not None and events.kind.logged:
                for symbol, payload in zip(events.symbols, events.payloads, strict=True):
                    self._append(symbol, payload)
            if events.kind is not None and events.kind.stream is not None:
                stream = events.kind.stream
                entries = self.streams.setdefault(stream.name, deque(maxlen=stream.maxlen))
                entries.extend(zip(events.entry_ids, events.payloads, strict=True))
        number = b"%d" % batch.number
        self._keys[self._number_key] = (number, now + _NUMBER_TTL_S)
        self.executed.append(batch)
