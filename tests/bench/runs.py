"""One run: a program between blaster, Redis server and listener, through some loads, checked."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import redis

from tests.bench.checks import Market, wrong_counts, wrong_prices
from tests.bench.listener import REPORT_CHANNEL, SLOT_S
from tests.bench.processes import Child, Cores, core_busy_s, running, usage_of
from tests.bench.programs import Program, Surroundings
from tests.bench.tape import symbol_names

_START_LIMIT_S = 20.0
_ANSWER_LIMIT_S = 10.0
_SETTLE_LIMIT_S = 30.0
_POLL_S = 0.02
_WARM_UP_S = 0.5
"""The start of a load is left out of its rate."""
_LAST_WORDS_S = 0.1
"""Between the last key and the last event, or the last acknowledgement."""
_KEPT_PACE = 0.98
_WATCH_S = 1.0
DISTURBED = 0.08
"""Where something else took as much of a core, what was measured may be due to that."""


@attrs.frozen
class Load:
    """Quotes a second, 0 for as many as the program takes, for some seconds."""

    rate: float
    seconds: float


@attrs.frozen
class Outcome:
    """What became of one load.

    Attributes:
        sent: Quotes that the program took from its socket.
        in_per_s: The same per second.
        out_per_s: Events heard per second while the load lasted, its first moments left out.
        heard: All events heard, also those after the load.
        conflated: Quotes that were not published, by the program's own count.
        latency_ms: From the quote's time to the event heard: median and 99th percentile.
        cpu_s: Processor time while the load lasted, by process; empty where it is not known.
        foreign_s: Processor time that something else took meanwhile, on the core where that was more.
        rss_mb: Memory in the middle of the load and at its end.
        wrong: What is not as it must be; None where it was not checked.
    """

    load: Load
    sent: int
    in_per_s: float
    out_per_s: float
    heard: int
    conflated: int | None
    latency_ms: tuple[float | None, float | None]
    cpu_s: dict[str, float]
    foreign_s: float | None
    peak_rss_mb: float | None
    rss_mb: tuple[float | None, float | None]
    wrong: list[str] | None

    @property
    def every_quote(self) -> bool:
        """Whether each quote became an event, at the pace at which they were sent."""
        kept_pace = (
            self.in_per_s > _KEPT_PACE * self.load.rate
            and self.out_per_s > _KEPT_PACE * self.in_per_s
        )
        return kept_pace and self.conflated == 0 and not self.wrong

    @property
    def disturbed(self) -> float:
        """Which part of a core something else had; 0 where it is not known."""
        return (self.foreign_s or 0.0) * self.in_per_s / self.sent


@attrs.frozen
class Stage:
    """What all runs share.

    Attributes:
        store: A client of the Redis server.
        redis_path: The server's UNIX socket.
        redis_pid: The server's process.
        cores: Who runs where.
    """

    store: redis.Redis
    redis_path: Path
    redis_pid: int
    cores: Cores


@attrs.define
class Bench:
    """A running program and what surrounds it; made by :func:`bench`."""

    stage: Stage
    program: Program
    market: Market
    given: Surroundings
    blaster: Child
    listener: Child
    child: Child
    readers: Child | None
    deaf: bool
    heard: int = 0

    def apply(self, load: Load, *, while_lossless: bool = False) -> Outcome:
        """Put a load on the program, wait until it is through, and check what came out.

        Args:
            load: How much, and how long.
            while_lossless: Whether it ends as soon as the program tells of a quote conflated.
        """
        before, used_before = self.program.counters(self.given), self._cpu_s()
        foreign_before = self._foreign_s()
        self.blaster.tell(attrs.asdict(load))
        if while_lossless:
            self._watch(load.seconds, before)
        else:
            time.sleep(load.seconds / 2)
        middle = usage_of(self.child.pid)
        blast = self.blaster.hear(load.seconds + _ANSWER_LIMIT_S)
        end, ended_s = usage_of(self.child.pid), time.monotonic()
        cpu_s = {name: used - used_before[name] for name, used in self._cpu_s().items()}
        foreign = zip(foreign_before, self._foreign_s(), strict=True)
        at_end = self.program.counters(self.given) if self.deaf else None
        checked = self.program.lossless or load.rate > 0
        wrong = self._settle(blast["frames_in_all"]) if checked else None
        report = self._report()
        after = self.program.counters(self.given)
        started, ended = blast["started"], blast["ended"]
        out_per_s = _rate(report["slots"], started + _WARM_UP_S, ended)
        if self.deaf:  # then the program's own count has to do
            report["events"] = _difference(before, after, "events_published")
            out_per_s = (_difference(before, at_end, "events_published") or 0) / (ended_s - started)
        self.heard += report["events"]
        if wrong is not None:
            sent = blast["frames_in_all"] * self.market.per_frame
            wrong += wrong_counts(sent, self.heard, report["out_of_order"], after)
        return Outcome(
            load=load,
            sent=blast["sent"],
            in_per_s=blast["sent"] / (ended - started),
            out_per_s=out_per_s,
            heard=report["events"],
            conflated=_difference(before, after, "events_conflated"),
            latency_ms=(report["p50_ms"], report["p99_ms"]),
            cpu_s=cpu_s,
            foreign_s=max((after - before for before, after in foreign), default=None),
            peak_rss_mb=end.peak_rss_mb,
            rss_mb=(middle.rss_mb, end.rss_mb),
            wrong=wrong,
        )

    def _watch(self, seconds: float, before: dict[str, int] | None) -> None:
        """Wait for about that long; stop the feed when the program has conflated a quote."""
        deadline = time.monotonic() + seconds - _WATCH_S
        while time.monotonic() < deadline:
            time.sleep(_WATCH_S)
            if _difference(before, self.program.counters(self.given), "events_conflated"):
                self.blaster.tell({"stop": True})
                return

    def _cpu_s(self) -> dict[str, float]:
        processes = {
            "program": self.child.pid,
            "redis": self.stage.redis_pid,
            "feed": self.blaster.pid,
            "listener": self.listener.pid,
        }
        if self.readers is not None:
            processes["readers"] = self.readers.pid
        used = {name: usage_of(pid).cpu_s for name, pid in processes.items()}
        return {name: cpu_s for name, cpu_s in used.items() if cpu_s is not None}

    def _foreign_s(self) -> list[float]:
        """How long each of the two cores has been busy with something else; empty if not known."""
        own = self._cpu_s()
        program = own.pop("program", 0.0)
        cores = self.stage.cores
        busy = (core_busy_s(cores.program), core_busy_s(cores.others))
        parts = (program, sum(own.values()) + time.process_time())
        return [used - part for used, part in zip(busy, parts, strict=True) if used is not None]

    def _settle(self, frames: int) -> list[str]:
        """Wait until the last quote of every symbol is in Redis; say what is missing then."""
        deadline = time.monotonic() + _SETTLE_LIMIT_S
        while wrong := wrong_prices(self.stage.store, self.market, frames):
            self.child.check_alive()
            if time.monotonic() > deadline:
                return wrong
            time.sleep(_POLL_S)
        time.sleep(_LAST_WORDS_S)
        return []

    def _report(self) -> dict[str, Any]:
        self.stage.store.publish(REPORT_CHANNEL, b"")
        return self.listener.hear(_ANSWER_LIMIT_S)


@contextmanager
def bench(
    stage: Stage, program: Program, market: Market, folder: Path, *, readers: int = 1
) -> Iterator[Bench]:
    """Empty the server, start a program and what surrounds it; end all of it after the block.

    Args:
        stage: What all runs share.
        program: What is measured.
        market: What is quoted.
        folder: An empty one for logs and sockets.
        readers: How many hear the events: the listener, which checks them, and others, which do
            not. With none, what the program counts is believed.
    """
    stage.store.flushall()
    other = partial(running, core=stage.cores.others, others_core=stage.cores.others)
    blaster_arguments = (str(market.symbols), str(market.per_frame), market.encoding)
    with ExitStack() as stack:
        start = stack.enter_context
        blaster = start(
            other("tests.bench.blaster", *blaster_arguments, log=folder / "blaster.log")
        )
        path = str(stage.redis_path)
        arguments = (path,) if readers else (path, "deaf")
        listener = start(other("tests.bench.listener", *arguments, log=folder / "listener.log"))
        more = None
        if readers > 1:
            arguments = (path, str(readers - 1))
            more = start(other("tests.bench.readers", *arguments, log=folder / "readers.log"))
            more.hear(_START_LIMIT_S)
        given = Surroundings(
            feed_url=f"ws://127.0.0.1:{blaster.hear(_START_LIMIT_S)['port']}",
            redis_url=f"unix://{stage.redis_path}",
            symbols=symbol_names(market.symbols),
            folder=folder,
            cores=stage.cores,
        )
        listener.hear(_START_LIMIT_S)
        child = start(program.running(given))
        try:
            blaster.hear(_START_LIMIT_S)
            yield Bench(
                stage, program, market, given, blaster, listener, child, more, deaf=not readers
            )
        except Exception as exc:
            exc.add_note(f"{program.name} logged at last:\n{child.last_words()}")
            raise


def _rate(slots: Sequence[tuple[int, int]], started: float, ended: float) -> float:
    """Events per second in the slots that lie within a window."""
    first, last = int(started / SLOT_S) + 1, int(ended / SLOT_S)
    inside = sum(count for slot, count in slots if first <= slot < last)
    return inside / (max(1, last - first) * SLOT_S)


def _difference(
    before: dict[str, int] | None, after: dict[str, int] | None, name: str
) -> int | None:
    return None if before is None or after is None else after[name] - before[name]
