"""alpaca-py's own StockDataStream, unchanged, in a thread of its own."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest
from alpaca.data.live import StockDataStream
from alpaca.data.models import Quote

from mdservice.simulator import Simulator, SimulatorConfig, open_simulator
from tests.integration.conftest import patient

LIMIT_S = 60
RATE = 400


@pytest.fixture(params=["trio", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Runs a test's body beside a simulator, on either event loop."""

    def with_simulator(body: Callable[[Simulator], Any], **settings: Any) -> None:
        async def main() -> None:
            with anyio.fail_after(patient(LIMIT_S)):
                config = SimulatorConfig(**{"rate": RATE, "shape": "flat", **settings})
                async with open_simulator(config) as simulator:
                    await body(simulator)

        anyio.run(main, backend=request.param)

    return with_simulator


class Subscriber:
    """The SDK and what its handler was given."""

    def __init__(self, simulator: Simulator, *, raw_data: bool, key: str = "key") -> None:
        self.stream = StockDataStream(key, "secret", raw_data, url_override=simulator.url)
        self.quotes: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self.stream.run)

    async def handle(self, quote: Any) -> None:
        self.quotes.put(quote)

    async def next(self) -> Any:
        """The next quote; the simulator goes on meanwhile."""
        return await anyio.to_thread.run_sync(partial(self.quotes.get, timeout=LIMIT_S))

    async def subscribe(self, *symbols: str) -> None:
        call = partial(self.stream.subscribe_quotes, self.handle, *symbols)
        await anyio.to_thread.run_sync(call)

    async def unsubscribe(self, *symbols: str) -> None:
        await anyio.to_thread.run_sync(partial(self.stream.unsubscribe_quotes, *symbols))

    async def stop(self) -> None:
        await anyio.to_thread.run_sync(self.stream.stop)
        await anyio.to_thread.run_sync(partial(self.thread.join, LIMIT_S))
        assert not self.thread.is_alive()


@contextmanager
def running(subscriber: Subscriber) -> Iterator[None]:
    """Let the thread end with the block, whatever happens in it."""
    subscriber.thread.start()
    try:
        yield
    finally:
        if subscriber.thread.is_alive():
            subscriber.stream.stop()


def test_receives_raw_quotes_with_nanoseconds(run: Callable[..., None]) -> None:
    async def body(simulator: Simulator) -> None:
        subscriber = Subscriber(simulator, raw_data=True)
        await subscriber.subscribe("AAPL", "FAKEPACA")
        with running(subscriber):
            seen = [await subscriber.next() for _ in range(100)]
            await subscriber.stop()
        sent = list(simulator.sent)[:100]
        assert [(q["S"], q["bp"], q["ap"], q["bs"], q["as"]) for q in seen] == [
            (q.symbol, q.bid, q.ask, q.bid_size, q.ask_size) for q in sent
        ]
        assert [q["t"].to_unix_nano() for q in seen] == [q.ts_event_ns for q in sent]
        assert {q["S"] for q in seen} == {"AAPL", "FAKEPACA"}

    run(body)


def test_receives_its_own_models(run: Callable[..., None]) -> None:
    async def body(simulator: Simulator) -> None:
        subscriber = Subscriber(simulator, raw_data=False)
        await subscriber.subscribe("*")
        with running(subscriber):
            seen = [await subscriber.next() for _ in range(50)]
            await subscriber.stop()
        assert all(isinstance(quote, Quote) for quote in seen)
        for quote, sent in zip(seen, simulator.sent, strict=False):
            assert (quote.symbol, quote.bid_price, quote.ask_price) == (
                sent.symbol,
                sent.bid,
                sent.ask,
            )
            assert quote.tape == sent.tape
            assert quote.conditions == ["R"]
            assert round(quote.timestamp.timestamp() * 1e6) == sent.ts_event_ns // 1_000

    run(body)


def test_subscribes_and_unsubscribes_while_running(run: Callable[..., None]) -> None:
    async def body(simulator: Simulator) -> None:
        subscriber = Subscriber(simulator, raw_data=True)
        await subscriber.subscribe("AAPL")
        with running(subscriber):
            assert (await subscriber.next())["S"] == "AAPL"
            await subscriber.subscribe("MSFT")
            while (await subscriber.next())["S"] != "MSFT":
                pass
            await subscriber.unsubscribe("AAPL")
            await simulator.until(
                lambda s: [c.subscriptions["quotes"] for c in s.connections] == [("MSFT",)]
            )
            await subscriber.stop()
        actions = [dict(entry.message or {}) for entry in simulator.received]
        assert actions == [
            {"action": "auth", "key": "***", "secret": "***"},
            {"action": "subscribe", "quotes": ["AAPL"]},
            {"action": "subscribe", "quotes": ["AAPL", "MSFT"]},
            {"action": "unsubscribe", "quotes": ["AAPL"]},
        ]

    run(body)


def test_a_large_subscription_comes_in_fragments(run: Callable[..., None]) -> None:
    symbols = [f"S{number}" for number in range(8_000)]

    async def body(simulator: Simulator) -> None:
        subscriber = Subscriber(simulator, raw_data=True)
        await subscriber.subscribe(*symbols)
        with running(subscriber):
            await subscriber.next()
            (connection,) = simulator.connections
            assert connection.subscriptions["quotes"] == tuple(symbols)
            await subscriber.stop()

    run(body)


def test_reconnects_after_a_drop(run: Callable[..., None]) -> None:
    async def body(simulator: Simulator) -> None:
        subscriber = Subscriber(simulator, raw_data=True)
        await subscriber.subscribe("AAPL")
        with running(subscriber):
            await subscriber.next()
            (first,) = simulator.connections
            simulator.drop("close", code=1012)
            await simulator.until(
                lambda s: any(c.quotes_sent and c.number > first.number for c in s.connections)
            )
            await subscriber.stop()

    run(body)


def test_a_wrong_key_is_refused(run: Callable[..., None], caplog: Any) -> None:
    async def body(simulator: Simulator) -> None:
        subscriber = Subscriber(simulator, raw_data=True, key="wrong")
        await subscriber.subscribe("AAPL")
        with caplog.at_level(logging.ERROR), running(subscriber):
            await simulator.until(lambda s: bool(s.received) and not s.connections)
            await subscriber.stop()
        assert "auth failed" in caplog.text
        assert [entry.message for entry in simulator.received] == [
            {"action": "auth", "key": "***", "secret": "***"}
        ]
        assert not simulator.sent

    run(body, key="right")
