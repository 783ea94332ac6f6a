"""For the tests of readers: a publisher that writes as the service does, and both event loops."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

import mdservice
from mdservice.client.connection import CLIENT_NAME
from mdservice.model.payload import encode_quote
from mdservice.model.quote import Quote
from mdservice.publish.store import Message
from mdservice.redis_io.store import RedisPriceStore
from tests.batches import write_batch
from tests.integration.conftest import patient

LIMIT_S = 60.0
START_NS = 1_700_000_000 * 10**9


class Publisher:
    """A server, and what the service writes there; ``await write("AAPL", "MSFT")``."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.url: str = server.url
        self.written: list[Quote] = []
        self._seqs: dict[str, int] = {}
        self._now_ns = START_NS
        self._store: RedisPriceStore | None = None
        self._stores: list[RedisPriceStore] = []
        self._batches = 0
        self._runs = 0

    def restart_service(self) -> None:
        """Count every symbol from 1 again; time goes on."""
        self._seqs.clear()
        self._runs += 1
        self._store = None

    def quote(self, symbol: str, step: int = 1) -> Quote:
        """The symbol's next quote."""
        self._seqs[symbol] = seq = self._seqs.get(symbol, 0) + step
        self._now_ns += 1
        return Quote(symbol, 10.0, 10.0 + seq, 1, 2, self._now_ns, self._now_ns, seq)

    async def write(self, *symbols: str, step: int = 1, publish: bool = True) -> list[Quote]:
        """Write the symbols' next quotes in one batch; without ``publish``, their keys alone."""
        return await self.write_quotes(
            [self.quote(symbol, step) for symbol in symbols], publish=publish
        )

    async def write_quotes(self, quotes: list[Quote], *, publish: bool = True) -> list[Quote]:
        store = await self._connected_store()
        self._batches += 1
        payloads = {quote.symbol: encode_quote(quote) for quote in quotes}
        messages = [Message("price.updated", encode_quote(q), q.symbol) for q in quotes]
        await store.write(write_batch(self._batches, payloads, messages if publish else []))
        self.written += quotes
        return quotes

    async def _connected_store(self) -> RedisPriceStore:
        if self._store is None or not self._store.connected:
            name = f"run-{self._runs}"
            self._store = RedisPriceStore(self.url, instance=name, event_log="log")
            self._stores.append(self._store)
            await self._store.connect()
        return self._store

    async def close(self) -> None:
        for store in self._stores:
            await store.aclose()

    def readers(self) -> list[str]:
        """The connections of readers, as the server knows them."""
        with self.server.client() as client:
            return [c["id"] for c in client.client_list() if c["name"] == CLIENT_NAME]

    def kill_readers(self) -> int:
        ids = self.readers()
        with self.server.client() as client:
            return sum(client.client_kill_filter(_id=one) for one in ids)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await anyio.sleep(0.005)


async def take(prices: mdservice.Prices, count: int) -> list[Quote]:
    return [await anext(prices) for _ in range(count)]


def known(quotes: list[Quote]) -> list[tuple[str, int]]:
    return [(quote.symbol, quote.seq) for quote in quotes]


def gapless(quotes: list[Quote]) -> bool:
    """Whether each symbol's quotes are without a step, whatever they begin with."""
    last: dict[str, int] = {}
    for quote in quotes:
        if quote.symbol in last and quote.seq != last[quote.symbol] + 1:
            return False
        last[quote.symbol] = quote.seq
    return True


def threads_at_work() -> list[str]:
    """Threads that still use a connection; the idle ones of a pool do not count."""
    busy = []
    for thread in threading.enumerate():
        frame = sys._current_frames().get(thread.ident or 0)
        while frame is not None:
            if frame.f_code.co_filename.endswith(("connection.py", "client/http.py")):
                busy.append(thread.name)
            frame = frame.f_back
    return busy


def wait_until(condition: Callable[[], bool], limit_s: float, what: str) -> None:
    deadline = time.monotonic() + patient(limit_s)
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def on_both_loops(test: Callable[[Publisher], Awaitable[None]]) -> Callable[..., None]:
    """Run an async test on trio and on asyncio, within a limit; nothing may be left behind."""

    @pytest.mark.parametrize("loop", ["trio", "asyncio"])
    def run(publisher: Publisher, loop: str) -> None:
        async def main() -> None:
            with anyio.fail_after(patient(LIMIT_S)):
                await test(publisher)
                await publisher.close()

        anyio.run(main, backend=loop)
        wait_until(lambda: not threads_at_work(), 15, "a thread was left behind")
        wait_until(lambda: not publisher.readers(), 15, "a connection was left behind")

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run
