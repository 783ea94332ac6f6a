"""``python -m tests.bench first-price``: how long after subscribing a symbol has its price.

The market is closed: the simulator's stream says nothing, and its REST API answers each request
after 50 ms. A service runs in this process, the simulator in another, with a real Valkey server.
Measured is from the call of ``subscribe`` to the key in Redis, looked for every millisecond, and
to the event on ``price.updated``; of 200 symbols, to the last of them. Each round takes symbols
that were never subscribed before, and checks that each has its key and one event.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

import anyio
import attrs
import msgspec
from redis.asyncio import Redis

from mdservice.app.service import Service, open_service
from mdservice.redis_io.embedded import open_embedded_server
from mdservice.settings import Settings
from mdservice.simulator import SimQuote, SimulatorConfig, SlowRest, open_simulator
from tests.bench.processes import REPOSITORY, Cores, pin, running
from tests.bench.results import aligned, machine, write
from tests.bench.tape import symbol_names

__all__ = ["LIMIT_S", "main"]

LIMIT_S = 60
"""Nothing here may take longer."""
TARGET_MS = 150.0
_REST_S = 0.05
_ROUNDS = 20
_AT_ONCE = (1, 200)
_SYMBOLS = _ROUNDS * sum(_AT_ONCE)
_CLOSED_FOR_NS = 16 * 3_600 * 1_000_000_000
_LATEST = "/v2/stocks/quotes/latest"
_LOOK_S = 0.001
_PRICE_LIMIT_S = 3.0
_QUIET_S = 0.05
"""After a round: an event that comes twice is heard."""
_START_LIMIT_S = 10.0
_CHANNEL = "price.updated"


class _Event(msgspec.Struct, gc=False):
    symbol: str


@attrs.frozen
class FirstPrice:
    """One round, seconds from the call."""

    symbols: int
    key_s: float
    event_s: float


class _Round:
    """Subscribes, and waits for keys and events."""

    def __init__(self, service: Service, redis: Redis, wrong: list[str]) -> None:
        self._service = service
        self._redis = redis
        self._wrong = wrong
        self._events: Counter[str] = Counter()
        self._heard_s = 0.0

    async def listen(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Count events until cancelled."""
        decode = msgspec.json.Decoder(_Event).decode
        async with self._redis.pubsub() as pubsub:
            await pubsub.subscribe(_CHANNEL)
            task_status.started()
            async for message in pubsub.listen():
                if message["type"] == "message":
                    self._events[decode(message["data"]).symbol] += 1
                    self._heard_s = time.monotonic()

    async def measure(self, symbols: Sequence[str]) -> FirstPrice:
        """From the call to the last key and the last event."""
        self._events.clear()
        started_s = time.monotonic()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._subscribe, symbols)
            key_s = await self._until_keys(symbols)
        with anyio.move_on_after(_PRICE_LIMIT_S):
            while len(self._events) < len(symbols):
                await anyio.sleep(_LOOK_S)
        event_s = self._heard_s
        await anyio.sleep(_QUIET_S)
        if self._events != Counter(symbols):
            self._wrong.append(f"{len(symbols)} symbols, events: {self._events.most_common(3)} …")
        return FirstPrice(len(symbols), key_s - started_s, event_s - started_s)

    async def _subscribe(self, symbols: Sequence[str]) -> None:
        await self._service.subscribe(*symbols)

    async def _until_keys(self, symbols: Sequence[str]) -> float:
        keys = [f"price:{symbol}" for symbol in symbols]
        with anyio.move_on_after(_PRICE_LIMIT_S):
            while await self._redis.exists(*keys) < len(keys):
                await anyio.sleep(_LOOK_S)
            return time.monotonic()
        self._wrong.append(f"{len(symbols)} symbols: not all have a price")
        return time.monotonic()


async def main(say: Callable[[str], None]) -> int:
    """Run it all, on asyncio.

    Args:
        say: Takes a line for people.

    Returns:
        The exit code.
    """
    cores = Cores.of_this_machine()
    description = machine(cores)
    pin(cores.program)
    wrong: list[str] = []
    found: list[FirstPrice] = []
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mdbench-")))
        server = await stack.enter_async_context(open_embedded_server(folder / "redis.sock"))
        market = stack.enter_context(
            running(
                "tests.bench.first_price",
                core=cores.others,
                others_core=cores.others,
                log=folder / "market.log",
            )
        )
        port = market.hear(_START_LIMIT_S)["port"]
        redis = await stack.enter_async_context(Redis(unix_socket_path=str(server.path)))
        settings = Settings(
            feed="sip",
            feed_url=f"ws://127.0.0.1:{port}/v2/sip",
            rest_url=f"http://127.0.0.1:{port}",
            trading_url=f"http://127.0.0.1:{port}",
            api_key="key",
            secret_key="secret",
            driver="websockets",
            redis_url=f"unix://{server.path}",
            socket=folder / "api.sock",
        )
        service = await stack.enter_async_context(open_service(settings))
        with anyio.fail_after(_START_LIMIT_S):
            while not service.status().feed.connected:
                await anyio.sleep(_LOOK_S)
        names = iter(symbol_names(_SYMBOLS))
        one_round = _Round(service, redis, wrong)
        async with anyio.create_task_group() as tasks:
            await tasks.start(one_round.listen)
            for _ in range(_ROUNDS):
                for count in _AT_ONCE:
                    found.append(await one_round.measure([next(names) for _ in range(count)]))
            tasks.cancel_scope.cancel()
    say("\n" + _table(found) + "\n")
    content = {"machine": description, "first_prices": [attrs.asdict(each) for each in found]}
    say(str(write(REPOSITORY / "bench-results", {**content, "wrong": wrong})))
    for reason in wrong:
        say(f"WRONG: {reason}")
    return 1 if wrong else 0


def _table(found: Sequence[FirstPrice]) -> str:
    """Medians and spread of all rounds, and whether the target is reached."""
    rows = [("symbols", "key after, ms", "spread", "event after, ms", "spread", "")]
    for count in _AT_ONCE:
        keys = [1e3 * each.key_s for each in found if each.symbols == count]
        events = [1e3 * each.event_s for each in found if each.symbols == count]
        reached = median(keys) <= TARGET_MS
        verdict = f"{'within' if reached else 'NOT within'} {TARGET_MS:g} ms"
        rows.append((str(count), *_spread(keys), *_spread(events), verdict))
    return aligned(rows)


def _spread(values: list[float]) -> tuple[str, str]:
    return f"{median(values):.0f}", f"{min(values):.0f} … {max(values):.0f}"


async def _serve() -> None:
    """The closed market: a last quote of each symbol, and a REST API that takes its time."""
    config = SimulatorConfig(rate=0, rest_rate_limit=None)
    async with open_simulator(config) as simulator:
        simulator.market_open = False
        closed_ns = time.time_ns() - _CLOSED_FOR_NS
        simulator.send_quotes(
            [
                SimQuote(symbol, 10.0, 10.01, 1, 1, closed_ns + index)
                for index, symbol in enumerate(symbol_names(_SYMBOLS))
            ]
        )
        simulator.inject(SlowRest(_REST_S, _LATEST, _SYMBOLS))
        sys.stdout.buffer.write(msgspec.json.encode({"port": simulator.port}) + b"\n")
        sys.stdout.flush()
        await anyio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    anyio.run(_serve)
