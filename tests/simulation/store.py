"""The simulated Redis: one server for all runs of the service, with late arrivals."""

from __future__ import annotations

import random
from typing import Any, Literal

import anyio

from mdservice.errors import StoreUnavailable
from mdservice.model.kinds import QUOTES, Kind, R
from mdservice.model.quote import Quote
from mdservice.publish.store import WriteBatch
from mdservice.testing import MemoryPriceStore, VirtualClock


class SimulatedStore(MemoryPriceStore):
    """A memory store in which what is on its way arrives by itself, unless fenced before."""

    def __init__(
        self, clock: VirtualClock, tasks: Any, rng: random.Random, price_ttl_s: int
    ) -> None:
        super().__init__(clock=clock, price_ttl_s=price_ttl_s)
        self._tasks = tasks
        self._rng = rng
        self._emptied_at_s: list[float] = []
        self._writing = False
        self.readers: list[Any] = []
        """Get the payloads of prices as they are published, and learn of a restart."""
        self.not_working_since_s: float | None = None
        self.empties_at_write: Literal["before", "after"] | None = None
        """When to restart empty with the next batch: it is then not executed, or executed in
        vain; its answer is lost in both cases."""

    def next_instance(self, name: str) -> None:
        """A new service connects; the old one's connection is gone with its process."""
        self._number_key = f"mdservice:writer:{name}"
        self._on_the_way.clear()
        self.drop_connection()

    async def write(self, batch: WriteBatch) -> None:
        self._writing = True
        try:
            await super().write(batch)
        finally:
            self._writing = False
            if self._on_the_way:
                self._tasks.start_soon(self._arrive, self._rng.uniform(0, 0.2))

    def _execute(self, batch: WriteBatch) -> None:
        when = self.empties_at_write if self._writing else None
        if when != "before":
            super()._execute(batch)
            for events in batch.events if self.readers else ():
                if events.channel == QUOTES.event:
                    for reader in self.readers:
                        reader.take(events.payloads)
        if when is not None:
            self.empties_at_write = None
            self.restart()
            raise StoreUnavailable("The store at memory:// was restarted")

    async def _arrive(self, delay_s: float) -> None:
        await anyio.sleep(delay_s)
        self.deliver()

    def restart(self) -> None:
        super().restart()
        for reader in self.readers:
            reader.lose()
        self._emptied_at_s.append(anyio.current_time())

    def put(self, key: str, payload: bytes) -> None:
        """Write a key that does not expire."""
        self._keys[key] = payload, float("inf")

    def forget(self, key: str) -> None:
        """Delete a key."""
        self._keys.pop(key, None)

    def put_quote(self, quote: Quote) -> None:
        """Write and publish a quote as another service does; nothing happens while it refuses."""
        if self.down or self.refusal is not None:
            return
        payload = QUOTES.encode(quote)
        expires_s = self._clock.monotonic() + self._price_ttl_s
        self._keys[f"{QUOTES.key_prefix}{quote.symbol}"] = payload, expires_s
        for reader in self.readers:
            reader.take([payload])

    def put_change(
        self, kind: Kind[Any], record: Any, key_kind: Kind[R], symbol: str, latest: R | None
    ) -> None:
        """Publish a record, and write the latest value of a symbol, as another service does."""
        key = f"{key_kind.key_prefix}{symbol}"
        if latest is None:
            self.forget(key)
        else:
            expires_s = self._clock.monotonic() + self._price_ttl_s
            self._keys[key] = key_kind.encode(latest), expires_s
        for reader in self.readers:
            reader.take_record(kind, kind.encode(record))

    @property
    def emptied_at_s(self) -> float | None:
        """When it last forgot everything."""
        return self._emptied_at_s[-1] if self._emptied_at_s else None

    def emptied_between(self, start_s: float, end_s: float) -> bool:
        """Whether it forgot everything in this time."""
        return any(start_s <= at_s <= end_s for at_s in self._emptied_at_s)

    def note_health(self) -> None:
        """Since when it does not work, where it does not."""
        if not self.down and self.refusal is None:
            self.not_working_since_s = None
        elif self.not_working_since_s is None:
            self.not_working_since_s = anyio.current_time()
