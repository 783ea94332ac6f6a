"""``python -m tests.bench journal``: what the journal costs, and how fast it is read again.

- **Cost**: the service floods Redis with and without the journal, in many short turns; each turn
  with it is divided by the one without beside it, and the median of these ratios counts. Beside the
  quotes a second stands the program's processor time for a quote, which other work on the machine
  changes less, and the part of it that the journal's thread takes, which needs no comparison.
- **Size**: bytes of a compressed segment for each quote of the simulator's market.
- **Replay**: a market of 10,000 quotes a second is recorded, then ``mdservice replay --speed max``
  serves it: how many times faster than it was recorded. First to a client that only counts, which
  is the speed of the replay; then to a service with a Valkey. These three share the machine's
  cores, so their processor time for a quote stands beside it.
- **Export**: rows a second into Parquet.
"""

from __future__ import annotations

import gc
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from urllib.parse import urlsplit

import anyio
import attrs
import msgspec

import mdservice
from mdservice.cli import GC_THRESHOLD
from mdservice.clock import SystemClock
from mdservice.journal.export import export
from mdservice.journal.recorder import JournalConfig, Recorder
from mdservice.journal.replay import open_journal
from mdservice.journal.segments import pack, segments_of
from mdservice.model.feeds import STOCKS, Topic
from mdservice.simulator import SimulatorConfig
from mdservice.simulator.kinds import Batch
from mdservice.simulator.markets import MARKETS
from mdservice.simulator.stocks import QUOTES
from tests.bench.benchmark import FLOOD, Benchmark
from tests.bench.checks import Market
from tests.bench.processes import all_cores, descendants, other_threads_s, usage_of
from tests.bench.programs import Service
from tests.bench.results import aligned
from tests.bench.runs import Load, bench
from tests.bench.tape import symbol_names

__all__ = ["LIMIT_S", "measure"]

LIMIT_S = 400
"""Nothing here may take longer."""
_PAIRS = 8
_FLOODS = 3
"""In each run of the program; the first one only warms it up."""
_FLOOD_S = 1.5
_RATE = 10_000
_RECORDED_S = 60
_PER_FRAME = 10
_SYMBOLS = 500
_BEGIN_NS = 1_700_000_000_000_000_000
_SLICE_NS = 25_000_000
_CORES = os.cpu_count() or 1
_READY_LIMIT_S = 20.0
_REPLAY_LIMIT_S = 120.0
_QUOTE = msgspec.msgpack.encode("T") + msgspec.msgpack.encode("q")
_UPGRADE = (
    "GET {path} HTTP/1.1\r\nHost: {place}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    "Content-Type: application/msgpack\r\n\r\n"
)


@attrs.frozen
class Flooded:
    """The program in one run, with or without the journal.

    Attributes:
        quotes_per_s: The median of its floods.
        cpu_us: Its processor time for a quote, microseconds, all threads together.
        threads_us: That of its threads but the main one: with the journal, the journal's.
    """

    quotes_per_s: float
    cpu_us: float
    threads_us: float


@attrs.frozen
class Figures:
    """What was measured.

    Attributes:
        pairs: Runs without and with the journal, one after the other.
        quotes: How many quotes the market of the other figures has.
        bytes_a_quote: Of its compressed files.
        counted_s: How long its replay to a client took that only counts.
        replay_s: How long its replay through a service took.
        replay_us: The processor time of each program for a quote of it, microseconds.
        conflated: The part of its quotes that were no event, since Redis was slower.
        rows_per_s: How fast it was exported.
    """

    pairs: list[tuple[Flooded, Flooded]]
    quotes: int
    bytes_a_quote: float
    counted_s: float
    replay_s: float
    replay_us: dict[str, float]
    conflated: float
    rows_per_s: float

    def speed(self, seconds: float) -> str:
        """How many times faster than it was recorded."""
        return f"{self.quotes / _RATE / seconds:.1f} x"

    def table(self) -> str:
        """Each figure with its target."""
        slower = [1 - on.quotes_per_s / off.quotes_per_s for off, on in self.pairs]
        dearer = [on.cpu_us / off.cpu_us - 1 for off, on in self.pairs]
        thread = [on.threads_us / on.cpu_us for _, on in self.pairs]
        cpu_us = median(off.cpu_us for off, _ in self.pairs)
        parts = ", ".join(f"{name} {us:.2f}" for name, us in self.replay_us.items())
        return aligned(
            [
                ("the journal", "measured", "target"),
                ("cost, of the throughput", _with_spread(slower), "<= 5 %"),
                (f"the same, of {cpu_us:.2f} us processor time", _with_spread(dearer), "-"),
                ("the journal's thread, of the processor time", _with_spread(thread), "-"),
                ("size, bytes a quote", f"{self.bytes_a_quote:.1f}", "-"),
                (f"replay at {_RATE:,} quotes/s", self.speed(self.counted_s), ">= 20 x"),
                ("the same, through a service into Redis", self.speed(self.replay_s), ">= 20 x"),
                (
                    "processor time of a replayed quote",
                    f"{sum(self.replay_us.values()):.2f} us ({parts})",
                    f"<= {_CORES * 1e6 / _RATE / 20:.0f} us on {_CORES} cores",
                ),
                ("conflated in the replay", f"{self.conflated:.0%}", "-"),
                ("export, rows/s", f"{self.rows_per_s:,.0f}", "-"),
            ]
        )


def _with_spread(values: Sequence[float]) -> str:
    """The median, and between which values the middle half of all lies."""
    low, _, high = quantiles(values, n=4)
    return f"{median(values):.1%} ({low:.1%} to {high:.1%})"


async def measure(benchmark: Benchmark) -> Figures:
    """All of it, within a folder that is deleted."""
    pairs = _cost(benchmark)
    gc.set_threshold(*GC_THRESHOLD)  # as in the programs
    with tempfile.TemporaryDirectory(prefix="mdbench-") as name:
        folder = Path(name) / "journal"
        quotes = await _record(folder)
        for path in segments_of(folder):
            if path.suffix != ".zst":
                list(pack(path))
        size = sum(path.stat().st_size for path in segments_of(folder))
        began = time.perf_counter()
        rows = export(open_journal([folder]), Path(name) / "day.parquet").rows
        export_s = time.perf_counter() - began
        with all_cores(benchmark.stage.cores):
            counted_s = _count(folder, quotes)
            replayed = await _replay(folder, Path(name), quotes)
    return Figures(pairs, quotes, size / quotes, counted_s, *replayed, rows / export_s)


def _cost(benchmark: Benchmark) -> list[tuple[Flooded, Flooded]]:
    pairs = []
    for number in range(_PAIRS):
        order = (False, True) if number % 2 else (True, False)
        run = {journal: _flooded(benchmark, journal=journal) for journal in order}
        pairs.append((run[False], run[True]))
    return pairs


def _flooded(benchmark: Benchmark, *, journal: bool) -> Flooded:
    with tempfile.TemporaryDirectory(prefix="mdbench-journal-") as name:
        program = Service("websockets", journal=Path(name) if journal else None)
        with bench(benchmark.stage, program, Market(), benchmark.new_folder()) as running:
            load = Load(FLOOD, _FLOOD_S)
            benchmark.apply(running, load)
            before_s = other_threads_s(running.child.pid)
            floods = [benchmark.apply(running, load) for _ in range(_FLOODS - 1)]
            threads_s = other_threads_s(running.child.pid) - before_s
    quotes = sum(flood.sent for flood in floods)
    return Flooded(
        median(flood.out_per_s for flood in floods),
        1e6 * sum(flood.cpu_s.get("program", 0.0) for flood in floods) / quotes,
        1e6 * threads_s / quotes,
    )


async def _record(folder: Path) -> int:
    """Record a minute of the simulator's market through the recorder, without waiting for it."""
    config = SimulatorConfig(rate=_RATE, shape="flat")
    market = next(each for each in MARKETS if QUOTES in each.kinds)
    records = {kind: kind.record(config.history_size) for kind in market.kinds}
    source = market.source(config, records)
    assert source is not None
    symbols = set(symbol_names(_SYMBOLS))
    source.follow({kind.channel: symbols if kind is QUOTES else set() for kind in market.kinds})
    recorder = Recorder(JournalConfig(folder), SystemClock())
    quotes = 0
    async with anyio.create_task_group() as tasks:
        await tasks.start(recorder.run)
        tap = recorder.tap(STOCKS)
        tap.connecting("websockets")
        tap.opened("msgpack")
        tap.asked([Topic("quotes", symbol) for symbol in symbols])
        for number in range(_RECORDED_S * 1_000_000_000 // _SLICE_NS):
            now_ns = _BEGIN_NS + number * _SLICE_NS
            batches: list[Batch] = list(source.make(number * _SLICE_NS / 1e9, now_ns))
            for kind, made in batches:
                for start in range(0, len(made), _PER_FRAME):
                    part = made[start : start + _PER_FRAME]
                    frame = kind.encode(part, "msgpack", spoil=False)
                    tap.frames([frame.data], now_ns)
                    quotes += len(part)
            while recorder.status().waiting_bytes > 1 << 20:
                await anyio.sleep(0.01)
        await recorder.stop()
    return quotes


@contextmanager
def _serving(folder: Path) -> Iterator[tuple[int, str]]:
    """A replay as a process: its number and its address."""
    command = [sys.executable, "-m", "mdservice", "replay", str(folder), "--speed", "max"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as replay:
        try:
            assert replay.stdout is not None
            line = next(line for line in replay.stdout if "to use it: " in line)
            words = shlex.split(json.loads(line)["message"])
            url = next(word for word in words if word.startswith("MDSERVICE_FEED_URL="))
            yield replay.pid, url.partition("=")[2]
        finally:
            replay.terminate()


def _count(folder: Path, quotes: int) -> float:
    """Seconds from the first to the last quote that a client gets which only counts them."""
    with _serving(folder) as (_, url):
        address = urlsplit(url)
        place = address.hostname, address.port
        with socket.create_connection(place, timeout=_REPLAY_LIMIT_S) as sock:
            upgrade = _UPGRADE.format(path=address.path, place=address.netloc)
            sock.sendall(upgrade.encode())
            _until(sock, b"connected")
            sock.sendall(_masked({"action": "auth", "key": "key", "secret": "secret"}))
            _until(sock, b"authenticated")
            sock.sendall(_masked({"action": "subscribe", "quotes": symbol_names(_SYMBOLS)}))
            received = _until(sock, _QUOTE)
            began = time.perf_counter()
            missing = quotes - received.count(_QUOTE)
            rest = len(_QUOTE) - 1  # one may be in two parts
            buffer = bytearray(rest + (1 << 20))
            buffer[:rest], into = received[-rest:], memoryview(buffer)[rest:]
            while missing:
                end = rest + sock.recv_into(into)
                missing -= buffer.count(_QUOTE, 0, end)
                buffer[:rest] = buffer[end - rest : end]
            return time.perf_counter() - began


def _until(sock: socket.socket, wanted: bytes) -> bytes:
    """What is received until it has these bytes."""
    received = b""
    while wanted not in received:
        part = sock.recv(1 << 20)
        if not part:
            raise ConnectionError(f"the replay ended the connection: {received[-200:]!r}")
        received += part
    return received


def _masked(message: dict[str, Any]) -> bytes:
    """A client's frame, with a mask that changes nothing."""
    content = msgspec.msgpack.encode(message)
    return b"\x82\xfe" + len(content).to_bytes(2, "big") + bytes(4) + content


async def _replay(folder: Path, others: Path, quotes: int) -> tuple[float, dict[str, float], float]:
    """Seconds from the first to the last quote that a service gets of ``mdservice replay``.

    With the processor time of each program for a quote, microseconds, and the part of the quotes
    that were conflated.
    """
    with _serving(folder) as (replay, url):
        settings = mdservice.Settings(
            feed="simulator",
            feed_url=url,
            symbols=tuple(symbol_names(_SYMBOLS)),
            driver="websockets",
            relay="off",
            socket=others / "s",
        )

        def used_s() -> dict[str, float]:
            valkey = [pid for pid in descendants(os.getpid()) if pid != replay]
            return {
                "replay": usage_of(replay).cpu_s or 0.0,
                "service": time.process_time(),
                "Valkey": sum(usage_of(pid).cpu_s or 0.0 for pid in valkey),
            }

        async with mdservice.open_service(settings) as service:

            def received() -> int:
                return service.status().counters.quotes_received

            with anyio.fail_after(_READY_LIMIT_S):
                while not received():
                    await anyio.sleep(0.001)
            began, before, used = time.perf_counter(), received(), used_s()
            with anyio.fail_after(_REPLAY_LIMIT_S):
                while received() < quotes:
                    await anyio.sleep(0.1)  # the status costs time too
            took_s, sent = time.perf_counter() - began, quotes - before
            costs = {name: 1e6 * (now - used[name]) / sent for name, now in used_s().items()}
            conflated = service.status().counters.events_conflated / quotes
            return took_s * quotes / sent, costs, conflated
