"""``python -m tests.bench replicas``: readers of the primary, and readers of a replica.

The store writes one quote at a time, which a reader of either server gets: the time from the write
to the program. Then it writes batches under load, with readers of every event at either server:
the processor time of the primary for each quote says how full it is. All run on this machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Self

import anyio
import attrs

import mdservice
from mdservice.model.kinds import QUOTES
from mdservice.publish.store import Events, WriteBatch
from mdservice.redis_io.store import RedisPriceStore
from tests.bench.processes import running
from tests.bench.results import aligned
from tests.conftest import RealServer, free_port

__all__ = ["LIMIT_S", "main"]

LIMIT_S = 300
_ROUNDS = 5
_QUOTES, _EVERY_S = 1_000, 0.002
_READERS, _BATCHES, _LARGE = 30, 30, 2_000
_START_S = 30.0
_DRAIN_S = 1.0
_PAYLOAD = (
    b'{"symbol":"AAPL","price":187.425,"bid":187.42,"ask":187.43,"bid_size":3.0,"ask_size":2.0,'
    b'"timestamp":"2026-11-27T14:30:00.%09dZ","seq":%d}'
)


@attrs.frozen
class Figures:
    """What one round has measured.

    Attributes:
        middle_us: Microseconds from the write to the reader, the median.
        late_us: The 99th percentile.
        primary_us: Of the primary's processor time for each quote, with many readers.
        replica_us: Of the replica's.
    """

    middle_us: float
    late_us: float
    primary_us: float
    replica_us: float


class Writer:
    """Writes quotes of one symbol to the primary, each newer than the one before."""

    def __init__(self, url: str) -> None:
        self._store = RedisPriceStore(url, instance=f"bench{time.monotonic_ns()}")
        self._batches = 0
        self.seq = 0

    async def __aenter__(self) -> Self:
        await self._store.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._store.aclose()

    async def write(self, count: int) -> None:
        self._batches += 1
        seqs = range(self.seq + 1, self.seq + count + 1)
        self.seq += count
        payloads = [_PAYLOAD % (seq, seq) for seq in seqs]
        events = [Events(QUOTES.event, payloads, QUOTES, ["AAPL"] * count)]
        await self._store.write(WriteBatch(self._batches, {QUOTES: {"AAPL": payloads[-1]}}, events))


@contextmanager
def _opened() -> Iterator[tuple[RealServer, RealServer]]:
    with ExitStack() as stack:
        port = free_port(stack)
        primary = RealServer(
            "--port", str(port), "--bind", "127.0.0.1", "--repl-diskless-sync-delay", "0"
        )
        replica = RealServer("--replicaof", "127.0.0.1", str(port))
        for server in (primary, replica):
            stack.callback(server.close)
            server.start()
        client = stack.enter_context(replica.client())
        deadline_s = time.monotonic() + _START_S
        while client.info("replication")["master_link_status"] != "up":
            if time.monotonic() > deadline_s:
                raise RuntimeError("the replica is not in step")
            time.sleep(0.01)
        yield primary, replica


async def _latencies(primary: RealServer, readers_of: RealServer) -> list[float]:
    """Seconds from each write to the program."""
    took: list[float] = []
    with primary.client() as client:
        client.flushall()
    async with (
        Writer(primary.url) as writer,
        mdservice.open_prices(readers_of.url, ["AAPL"]) as prices,
    ):
        with anyio.fail_after(LIMIT_S):
            for _ in range(_QUOTES):
                began_s = time.perf_counter()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(writer.write, 1)
                    quote = await anext(prices)
                    took.append(time.perf_counter() - began_s)
                assert quote.seq == writer.seq
                await anyio.sleep(_EVERY_S)
    return took


async def _load(primary: RealServer) -> None:
    async with Writer(primary.url) as writer:
        for _ in range(_BATCHES):
            await writer.write(_LARGE)
    await anyio.sleep(_DRAIN_S)


def _cpu_s(server: RealServer) -> float:
    with server.client() as client:
        facts = client.info("cpu")
    return float(facts["used_cpu_sys"]) + float(facts["used_cpu_user"])


def _round(primary: RealServer, replica: RealServer, of: RealServer, log: Path) -> Figures:
    took = anyio.run(_latencies, primary, of, backend="trio")
    with ExitStack() as stack:
        many = running(
            *("tests.bench.readers", str(of.path), str(_READERS)),
            core=None,
            others_core=None,
            log=log,
        )
        stack.enter_context(many).hear(_START_S)
        before = _cpu_s(primary), _cpu_s(replica)
        anyio.run(_load, primary, backend="trio")
        used = [_cpu_s(primary) - before[0], _cpu_s(replica) - before[1]]
    each = [cpu_s / (_BATCHES * _LARGE) * 1e6 for cpu_s in used]
    return Figures(median(took) * 1e6, quantiles(took, n=100)[98] * 1e6, *each)


def main(say: Callable[[str], None], folder: Path) -> int:
    """Measure in turns, and print the medians."""
    found: dict[str, list[Figures]] = {"the primary": [], "a replica": []}
    with _opened() as (primary, replica):
        for _ in range(_ROUNDS):
            for name, of in (("the primary", primary), ("a replica", replica)):
                found[name].append(_round(primary, replica, of, folder / "readers.log"))
    rows = [["readers of", "p50 µs", "p99 µs", "primary, µs a quote", "replica, µs a quote"]]
    for name, figures in found.items():
        middle, late, first, second = (
            median(getattr(each, field.name) for each in figures) for field in attrs.fields(Figures)
        )
        rows.append([name, f"{middle:.0f}", f"{late:.0f}", f"{first:.2f}", f"{second:.2f}"])
    say("\n" + aligned(rows) + "\n")
    return 0
