"""``python -m tests.soak HOURS``: the programs under load and faults, for hours.

A real Valkey, the simulator, the service with every feed, relay and journal, and the gateway run as
processes of their own. Beside them run a reader of every quote, clients of the relay that come
and go, and a fault every minute or so. Every ten seconds the memory, descriptors, threads and
processor time of the service and the gateway are measured, and the time from feed to reader.

It writes ``samples.jsonl`` and ``soak.svg``, and exits with 1 where a figure grew, a program ended
by itself, or the reader missed events that no fault explains.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import anyio
import attrs
import msgspec
import websockets

import mdservice
from mdservice.errors import StoreError
from mdservice.model.quote import Quote
from tests.soak.faults import Fault, faults_without_end
from tests.soak.judge import Sample, Step, growths, unexplained, verdict
from tests.soak.picture import picture
from tests.soak.programs import SYMBOLS, Program, Programs, say

_SAMPLE_EVERY_S = 10.0
_REPORT_EVERY_S = 300.0
_START_LIMIT_S = 60.0
_READER_AGAIN_S = 0.5
_CLIENTS, _CLIENT_S = 10, (5.0, 120.0)


@attrs.define
class Soak:
    """A run, with what it has found so far."""

    programs: Programs
    rng: random.Random
    began_s: float = attrs.Factory(time.monotonic)
    samples: list[Sample] = attrs.Factory(list)
    faults: list[Fault] = attrs.Factory(list)
    steps: list[Step] = attrs.Factory(list)
    ended: dict[str, int] = attrs.Factory(dict)
    quotes: int = 0
    relayed: int = 0
    _delays_ms: list[float] = attrs.Factory(list)
    _cpu_s: dict[str, tuple[float, float]] = attrs.Factory(dict)

    def now_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began_s

    async def run(self, length_s: float) -> None:
        """All of it."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._read)
            for _ in range(_CLIENTS):
                tasks.start_soon(self._relay_client, random.Random(self.rng.random()))
            tasks.start_soon(faults_without_end, self.programs, self.rng, self.faults, self.now_s)
            tasks.start_soon(self._measure)
            tasks.start_soon(self._report, length_s)
            with anyio.move_on_after(length_s):
                await self._until_one_ends()
            tasks.cancel_scope.cancel()

    async def _until_one_ends(self) -> None:
        """Return when the service or the gateway has ended, which no fault does."""
        while not self.ended:
            await anyio.sleep(1)
            for program in (self.programs.service, self.programs.gateway):
                code = program.ended()
                if code is not None:
                    self.ended[program.name] = code

    async def _read(self) -> None:
        last: dict[str, Quote] = {}
        while True:
            with suppress(StoreError):
                async with mdservice.open_prices(self.programs.redis_url, SYMBOLS) as prices:
                    async for quote in prices:
                        self._take(quote, last)
            await anyio.sleep(_READER_AGAIN_S)

    def _take(self, quote: Quote, last: dict[str, Quote]) -> None:
        before = last.get(quote.symbol)
        last[quote.symbol] = quote
        self.quotes += 1
        self._delays_ms.append((time.time_ns() - quote.ts_event_ns) / 1e6)
        if before is not None and quote.seq > before.seq + 1:
            self.steps.append(Step(self.now_s(), quote.symbol, quote.seq - before.seq - 1))

    async def _relay_client(self, rng: random.Random) -> None:
        login = json.dumps({"action": "auth", "key": "any", "secret": "any"})
        while True:
            symbols = rng.sample(SYMBOLS, 20)
            wish = json.dumps({"action": "subscribe", "quotes": symbols, "trades": symbols})
            with anyio.move_on_after(rng.uniform(*_CLIENT_S)):
                with suppress(OSError, websockets.WebSocketException):
                    async with websockets.connect(self.programs.relay) as client:
                        await client.send(login)
                        await client.send(wish)
                        async for message in client:
                            self.relayed += len(json.loads(message))
                await anyio.sleep(1)

    async def _measure(self) -> None:
        while True:
            await anyio.sleep(_SAMPLE_EVERY_S)
            delays_ms, self._delays_ms = sorted(self._delays_ms), []
            latency_ms = None
            if delays_ms:
                latency_ms = (median(delays_ms), delays_ms[int(len(delays_ms) * 0.99)])
            self._sample(self.programs.service, latency_ms)
            self._sample(self.programs.gateway, None)

    def _sample(self, program: Program, latency_ms: tuple[float, float] | None) -> None:
        try:
            usage = program.usage()
        except OSError:
            return  # it has ended, which another task reports
        now_s = self.now_s()
        then_s, used_s = self._cpu_s.get(program.name, (0.0, usage.cpu_s))
        self._cpu_s[program.name] = now_s, usage.cpu_s
        cpu = (usage.cpu_s - used_s) / (now_s - then_s)
        self.samples.append(
            Sample(
                at_s=now_s,
                program=program.name,
                rss_mb=usage.rss_mb,
                descriptors=usage.descriptors,
                threads=usage.threads,
                cpu=cpu,
                latency_ms=latency_ms,
            )
        )

    async def _report(self, length_s: float) -> None:
        while True:
            await anyio.sleep(min(_REPORT_EVERY_S, length_s / 10))
            latest = {sample.program: sample for sample in self.samples}
            figures = "; ".join(
                f"{name} {s.rss_mb:.0f} MB, {s.descriptors} files, {s.threads} threads"
                for name, s in latest.items()
            )
            say(
                f"{self.now_s() / 60:5.0f} of {length_s / 60:.0f} min: {self.quotes:,} quotes, "
                f"{len(self.faults)} faults; {figures}"
            )

    def write(self, folder: Path) -> None:
        """Write the samples and the picture."""
        lines = [{"sample": each} for each in self.samples]
        others: list[dict[str, Any]] = [{"fault": each} for each in self.faults]
        others += [{"step": each} for each in self.steps]
        encoded = b"\n".join(msgspec.json.encode(line) for line in (*lines, *others))
        (folder / "samples.jsonl").write_bytes(encoded + b"\n")
        (folder / "soak.svg").write_text(picture(self.samples, self.faults))

    def table(self) -> str:
        """What was found."""
        lines = [
            f"{self.now_s() / 3600:.2f} h, {self.quotes:,} quotes read, {self.relayed:,} records "
            f"relayed, {len(self.faults)} faults: "
            + ", ".join(f"{n} {name}" for name, n in Counter(f.name for f in self.faults).items()),
            (
                f"events missed after a fault of Redis or of the service: "
                f"{sum(s.missed for s in self.steps):,}; without one: "
                f"{sum(s.missed for s in unexplained(self.steps, self.faults)):,}"
            ),
        ]
        for program in ("service", "gateway"):
            for name, (early, late) in growths(self.samples, program).items():
                lines.append(f"{program:8} {name:12} {early:8.1f} early {late:8.1f} at the end")
        delays_ms = [s.latency_ms for s in self.samples if s.latency_ms is not None]
        if delays_ms:
            p50_ms, p99_ms = (median(each[place] for each in delays_ms) for place in (0, 1))
            lines.append(
                f"feed to reader, median of the samples: p50 {p50_ms:.2f}, p99 {p99_ms:.2f} ms"
            )
        return "\n".join(lines)


async def _ready(programs: Programs) -> None:
    """Wait until the service is ready."""
    import httpx

    with anyio.fail_after(_START_LIMIT_S):
        async with httpx.AsyncClient() as client:
            while True:
                with suppress(httpx.HTTPError):
                    answer = await client.get(f"{programs.http}/health/ready")
                    if answer.status_code == httpx.codes.OK:
                        return
                await anyio.sleep(0.2)


async def _soak(soak: Soak, length_s: float) -> None:
    await _ready(soak.programs)
    soak.began_s = time.monotonic()
    await soak.run(length_s)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns the exit code."""
    parser = argparse.ArgumentParser(prog="just soak", description="Load and faults for hours.")
    parser.add_argument("hours", type=float, help="how long, for instance 2 or 0.1")
    parser.add_argument("--rate", type=int, default=500, help="quotes a second")
    parser.add_argument("--seed", type=int, default=1, help="gives the faults")
    parser.add_argument("--out", type=Path, default=Path("soak-results"), help="a folder")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        programs = Programs.in_folder(Path(name), options.rate)
        soak = Soak(programs, random.Random(options.seed))
        try:
            programs.start()
            anyio.run(_soak, soak, options.hours * 3600)
        except KeyboardInterrupt:
            say("interrupted: this is what was found until now")
        finally:
            programs.close()
            for program in programs.all:
                if program.log.exists():
                    log = program.log.read_bytes()[-1_000_000:]
                    (options.out / program.log.name).write_bytes(log)
            soak.write(options.out)
    say(soak.table())
    wrong = verdict(soak.samples, soak.steps, soak.faults, soak.ended)
    say("\n".join(f"WRONG: {each}" for each in wrong) or "flat, and nothing lost")
    say(f"picture: {options.out / 'soak.svg'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
