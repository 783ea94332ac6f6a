"""``python -m tests.bench cluster``: what a write costs at one server, and at a cluster of three.

The store writes batches of quotes, as the writer does, with no readers, and with readers of every
event: all at the one server, or spread over the nodes of the cluster. The servers share a few
cores here, so the time of a write says little about a cluster on machines of its own. What limits
a server is its one thread: the processor time of the busiest server for each quote says at which
rate it is full.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import anyio
import attrs

from mdservice.model.kinds import QUOTES
from mdservice.publish.store import Events, PriceStore, WriteBatch
from mdservice.redis_io.cluster_store import open_price_store
from mdservice.redis_io.names import RedisNames
from tests.bench.processes import running
from tests.bench.results import aligned
from tests.bench.tape import symbol_names
from tests.cluster import RealCluster
from tests.conftest import RealServer, free_port

__all__ = ["LIMIT_S", "main"]

LIMIT_S = 300
_ROUNDS = 5
_SYMBOLS = 500
_LARGE, _SMALL = 2_000, 10
"""Quotes of a batch under load, and at a quiet pace."""
_TOTAL, _SMALL_WRITES = 60_000, 300
_READERS = (0, 30)
_START_S = 30.0
_DRAIN_S = 1.0
"""Until the readers have read everything."""
_PAYLOAD = (
    b'{"symbol":"%b","price":187.425,"bid":187.42,"ask":187.43,"bid_size":3.0,"ask_size":2.0,'
    b'"timestamp":"2026-11-27T14:30:00.123456789Z","seq":%d}'
)


@attrs.frozen
class Servers:
    """One server, or the nodes of a cluster.

    Attributes:
        name: For the table.
        url: Of the store.
        paths: The UNIX sockets of the servers.
        shards: The shard channels of each server that a reader subscribes to there; empty for the
            channel of all, at one of the servers.
        ask: The reply of each server to a command.
    """

    name: str
    url: str
    paths: Sequence[Path]
    shards: Sequence[Sequence[str]]
    ask: Callable[..., list[Any]]

    def cpu_s(self) -> list[float]:
        """The processor time of each server so far."""
        found = []
        for reply in self.ask("INFO", "cpu"):
            facts = dict(line.split(":") for line in _text(reply).split() if ":" in line)
            found.append(float(facts["used_cpu_sys"]) + float(facts["used_cpu_user"]))
        return found


@attrs.frozen
class Figures:
    """What one round has measured.

    Attributes:
        per_s: Quotes a second.
        busiest: Microseconds of the busiest server's processor time for each quote.
        servers: Of all servers.
        small_ms: Milliseconds for a batch of 10 quotes.
    """

    per_s: float
    busiest: float
    servers: float
    small_ms: float


def _text(reply: Any) -> str:
    if isinstance(reply, dict):
        return "\n".join(f"{name}:{value}" for name, value in reply.items())
    return bytes(reply).decode()


@contextmanager
def _opened() -> Iterator[list[Servers]]:
    with ExitStack() as stack:
        port = free_port(stack)
        single = RealServer("--port", str(port), "--bind", "127.0.0.1")
        stack.callback(single.close)
        single.start()
        cluster = RealCluster()
        stack.callback(cluster.close)
        cluster.start()
        client = stack.enter_context(single.client())
        names = RedisNames(clustered=True, sharded=True)
        channels = [event.decode() for _, _, event in names.subscriptions(QUOTES)]
        shards = [
            [channel for channel in channels if cluster.owner(channel) is node]
            for node in cluster.primaries
        ]
        paths = [node.path for node in cluster.primaries]

        def ask_all(*words: Any) -> list[Any]:
            return [node.ask(*words) for node in cluster.primaries]

        yield [
            Servers(
                "one server",
                f"redis://127.0.0.1:{port}",
                [single.path],
                [],
                lambda *words: [client.execute_command(*words)],
            ),
            Servers("cluster of three", cluster.url, paths, [], ask_all),
            Servers("the same, sharded", f"{cluster.url}?publish=sharded", paths, shards, ask_all),
        ]


def _batch(number: int, symbols: Sequence[str], count: int) -> WriteBatch:
    chosen = [symbols[(number * count + place) % len(symbols)] for place in range(count)]
    payloads = [_PAYLOAD % (symbol.encode(), number) for symbol in chosen]
    latest = dict(zip(chosen, payloads, strict=True))
    return WriteBatch(number, {QUOTES: latest}, [Events(QUOTES.event, payloads, QUOTES, chosen)])


async def _measure(servers: Servers) -> Figures:
    symbols = symbol_names(_SYMBOLS)
    store: PriceStore = open_price_store(servers.url, instance=f"bench{time.monotonic_ns()}")
    await store.connect()
    number = 0

    async def write(count: int) -> float:
        nonlocal number
        number += 1
        batch = _batch(number, symbols, count)
        began_s = time.perf_counter()
        await store.write(batch)
        return time.perf_counter() - began_s

    for _ in range(3):
        await write(_LARGE)
    before = servers.cpu_s()
    took_s = sum([await write(_LARGE) for _ in range(_TOTAL // _LARGE)])
    await anyio.sleep(_DRAIN_S)
    cpu_s = [after - earlier for earlier, after in zip(before, servers.cpu_s(), strict=True)]
    small = [await write(_SMALL) for _ in range(_SMALL_WRITES)]
    await store.aclose()
    return Figures(
        _TOTAL / took_s, max(cpu_s) / _TOTAL * 1e6, sum(cpu_s) / _TOTAL * 1e6, median(small) * 1e3
    )


def _round(servers: Servers, readers: int, log: Path) -> Figures:
    with ExitStack() as stack:
        for place, path in enumerate(servers.paths if readers else ()):
            # A reader of shards is connected to every node, any other to one.
            count = readers if servers.shards else readers // len(servers.paths)
            shards = servers.shards[place] if servers.shards else ()
            child = running(
                *("tests.bench.readers", str(path), str(count), *shards),
                core=None,
                others_core=None,
                log=log,
            )
            stack.enter_context(child).hear(_START_S)
        return anyio.run(_measure, servers, backend="trio")


def main(say: Callable[[str], None], folder: Path) -> int:
    """Measure in turns, and print the medians."""
    found: dict[tuple[int, str], list[Figures]] = {}
    with _opened() as both:
        for _ in range(_ROUNDS):
            for readers in _READERS:
                for servers in both:
                    figures = _round(servers, readers, folder / "readers.log")
                    found.setdefault((readers, servers.name), []).append(figures)
    rows = [["readers", "", "quotes/s", "busiest µs", "all servers µs", "10 quotes, ms"]]
    for (readers, name), figures in found.items():
        middle = [
            median(getattr(each, field.name) for each in figures) for field in attrs.fields(Figures)
        ]
        per_s, busiest, total, small_ms = middle
        rows.append(
            [
                str(readers),
                name,
                f"{per_s:,.0f}",
                f"{busiest:.2f}",
                f"{total:.2f}",
                f"{small_ms:.2f}",
            ]
        )
    say("\n" + aligned(rows) + "\n")
    return 0
