"""One run of the relay: a program between the feed and its clients, through some loads, checked.

The program is the service, a plain fan-out, or nothing: then the clients are connected to the feed.
It has a core to itself; the feed, the clients and Redis share the other one.
"""

from __future__ import annotations

import math
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import msgspec
import numpy as np
import numpy.typing as npt

from tests.bench.checks import Market
from tests.bench.processes import Child, core_busy_s, running, usage_of
from tests.bench.programs import Service, Surroundings
from tests.bench.relay_clients import SLOT_S, Crowd
from tests.bench.runs import Load, Stage
from tests.bench.tape import symbol_names

DIRECT, PLAIN, RELAY = "no relay", "plain fan-out", "mdservice"
MARKET = Market()
LATE_MS = 150
"""Where messages are as late after a second or two, the backlog grows."""
_START_LIMIT_S, _ANSWER_LIMIT_S, _SETTLE_LIMIT_S = 20.0, 15.0, 30.0
_WARM_UP_S = 0.4
_POLL_S = 0.1
_KEPT_PACE = 0.96


@attrs.frozen
class Result:
    """What became of one load.

    Attributes:
        sent_per_s: Quotes that the program took from its socket.
        wanted_per_s: Messages that its clients should get.
        per_s: Messages that they got while the load lasted, its first moments left out.
        per_frame: Messages in a websocket frame, on average.
        missed: Messages that they did not get at all.
        p50_ms, p99_ms: From the quote's time to the read of a sampled client.
        cpu_us: Processor time of the program for each message.
        rss_mb: Its memory at the end of the load.
        others_busy: How much of the other core feed, clients and Redis used.
        foreign: How much of a core something else had, of the core where that was more.
        wrong: What is not as it must be.
    """

    load: Load
    sent_per_s: float
    wanted_per_s: float
    per_s: float
    per_frame: float
    missed: int
    p50_ms: float
    p99_ms: float
    cpu_us: float
    rss_mb: float
    others_busy: float
    foreign: float
    wrong: list[str]

    @property
    def complete(self) -> bool:
        """Whether every message was delivered, at the pace at which they came."""
        kept_pace = (
            self.sent_per_s > _KEPT_PACE * self.load.rate
            and self.per_s > _KEPT_PACE * self.wanted_per_s
        )
        return kept_pace and not self.missed and not self.wrong and self.p99_ms < LATE_MS


@attrs.define
class Clients:
    """Running clients, and the indexes of the symbols of each."""

    child: Child
    wanted: npt.NDArray[np.int64]

    def ask(self, order: str) -> dict[str, Any]:
        """What they got since the last report."""
        self.child.tell({"do": order})
        return self.child.hear(_ANSWER_LIMIT_S)

    def settled(self, expected: float = math.inf, polls: int = 10) -> None:
        """Wait until all has come, or for some polls nothing."""
        deadline = time.monotonic() + _SETTLE_LIMIT_S
        last, quiet = -1, 0
        while quiet < polls and time.monotonic() < deadline:
            total = self.ask("total")["total"]
            if total >= expected:
                return
            quiet = quiet + 1 if total == last else 0
            last = total
            time.sleep(_POLL_S)


@contextmanager
def connected(stage: Stage, crowd: Crowd, log: Path) -> Iterator[Clients]:
    """Connect clients for as long as the block lasts."""
    with running(
        "tests.bench.relay_clients",
        msgspec.json.encode(crowd).decode(),
        core=stage.cores.others,
        others_core=stage.cores.others,
        log=log,
    ) as child:
        child.hear(2 * _START_LIMIT_S)
        clients = Clients(child, np.array([crowd.symbols(each) for each in range(crowd.clients)]))
        clients.settled(polls=2)  # the latest quotes, which a new subscriber gets
        yield clients


@attrs.define
class Run:
    """A program and its feed; made by :func:`served`."""

    stage: Stage
    name: str
    feed: Child
    child: Child | None
    service: Service | None
    given: Surroundings
    port: int
    frames: int = 0
    crowds: int = 0

    @contextmanager
    def clients(self, count: int, each: int, *, deaf: bool = False) -> Iterator[Clients]:
        """Connect clients for as long as the block lasts.

        Args:
            count: How many.
            each: How many symbols each has, by name; 0 is ``*``.
            deaf: They never read.
        """
        self.crowds += 1
        log = self.given.folder / f"clients{self.crowds}.log"
        crowd = Crowd(self.port, count, each, MARKET.symbols, deaf=deaf)
        with connected(self.stage, crowd, log) as clients:
            if self.child is None:
                self.feed.hear(_START_LIMIT_S)
            yield clients

    def rss_mb(self) -> float:
        """Memory of the program."""
        return 0.0 if self.child is None else usage_of(self.child.pid).rss_mb or 0.0

    def relay(self) -> dict[str, Any]:
        """What the service says of its relay."""
        assert self.service is not None
        relay: dict[str, Any] = self.service.status(self.given)["relay"]
        return relay

    def conflated(self) -> int:
        """Messages that the relay replaced by newer ones, for the clients that it has."""
        return sum(client["conflated"] for client in self.relay()["clients"])

    def send(self, load: Load) -> dict[str, Any]:
        """Let the feed send, and wait until it has; returns its report."""
        self.feed.tell(attrs.asdict(load))
        sent = self.feed.hear(load.seconds + _ANSWER_LIMIT_S)
        self.frames = sent["frames_in_all"]
        return sent

    def apply(
        self, load: Load, clients: Clients, *, settle: bool = True, others: bool = False
    ) -> Result:
        """Put a load on the program, wait until it is through, and check what the clients got.

        Args:
            load: How many quotes a second, and how long.
            clients: Whose messages are counted.
            settle: Whether to wait; else what is behind is left out, and nothing is checked.
            others: Whether there are other clients, for which the relay may conflate.
        """
        clients.ask("report")
        conflated = self.conflated() if self.service else 0
        quoted, before = self._quoted(), self._used_s(clients)
        sent = self.send(load)
        lasted_s = sent["ended"] - sent["started"]
        rss_mb, at_end = self.rss_mb(), self._used_s(clients)
        program, others, program_core, others_core = (
            (after - earlier) / lasted_s for after, earlier in zip(at_end, before, strict=True)
        )
        new = (self._quoted() - quoted)[clients.wanted].sum(axis=1)
        expected = int(new.sum())
        if settle:
            clients.settled(expected)
        report = clients.ask("report")
        missed = expected - sum(report["counts"])
        wrong = report["wrong"]
        if settle and self.service is not None and not others:
            conflated = self.conflated() - conflated
            if missed != conflated:
                wrong.append(f"{missed} of {expected} did not come, {conflated} were conflated")
        elif settle and missed:
            wrong.append(f"{missed} of {expected} did not come")
        if settle and not missed and any(report["counts"] != new):
            wrong.append("some clients got messages of others")
        if report["out_of_order"]:
            wrong.append(f"{report['out_of_order']} quotes were out of order")
        return Result(
            load=load,
            sent_per_s=sent["sent"] / lasted_s,
            wanted_per_s=expected / lasted_s,
            per_s=_rate(report["slots"], sent["started"] + _WARM_UP_S, sent["ended"]),
            per_frame=sum(report["counts"]) / max(1, report["frames"]),
            missed=missed if settle else 0,
            p50_ms=report["p50_ms"] or 0.0,
            p99_ms=report["p99_ms"] or 0.0,
            cpu_us=1e6 * (self._used_s(clients)[0] - before[0]) / max(1, sum(report["counts"])),
            rss_mb=rss_mb,
            others_busy=others,
            foreign=max(0.0, program_core - program if self.child else 0.0, others_core - others),
            wrong=wrong,
        )

    def _used_s(self, clients: Clients) -> tuple[float, float, float, float]:
        """Processor time of the program, of the others, and of their cores; 0 if not known."""
        own = 0.0 if self.child is None else usage_of(self.child.pid).cpu_s or 0.0
        pids = self.feed.pid, clients.child.pid, self.stage.redis_pid
        others = time.process_time() + sum(usage_of(pid).cpu_s or 0.0 for pid in pids)
        cores = self.stage.cores
        program_core, others_core = (
            core_busy_s(core) or 0.0 for core in (cores.program, cores.others)
        )
        return own, others, program_core, others_core

    def _quoted(self) -> npt.NDArray[np.int64]:
        """How many quotes of each symbol the feed has sent."""
        cycles, frames = divmod(self.frames, MARKET.symbols // MARKET.per_frame)
        return cycles + (np.arange(MARKET.symbols) // MARKET.per_frame < frames)


@contextmanager
def served(stage: Stage, name: str, folder: Path) -> Iterator[Run]:
    """Start a feed and a program; end both after the block.

    Args:
        stage: What all runs share.
        name: One of :data:`DIRECT`, :data:`PLAIN` and :data:`RELAY`.
        folder: An empty one for logs and sockets.
    """
    stage.store.flushall()
    other = partial(running, core=stage.cores.others, others_core=stage.cores.others)
    with ExitStack() as stack:
        arguments = (str(MARKET.symbols), str(MARKET.per_frame), MARKET.encoding)
        feed = stack.enter_context(
            other("tests.bench.blaster", *arguments, log=folder / "blaster.log")
        )
        feed_port = feed.hear(_START_LIMIT_S)["port"]
        given = Surroundings(
            feed_url=f"ws://127.0.0.1:{feed_port}",
            redis_url=f"unix://{stage.redis_path}",
            symbols=symbol_names(MARKET.symbols),
            folder=folder,
            cores=stage.cores,
        )
        if name == DIRECT:
            yield Run(stage, name, feed, None, None, given, feed_port)
            return
        port = free_port()
        service = Service("websockets", relay=f"127.0.0.1:{port}") if name == RELAY else None
        child = stack.enter_context(
            service.running(given) if service else _plain_fan_out(given, port)
        )
        try:
            feed.hear(_START_LIMIT_S)
            yield Run(stage, name, feed, child, service, given, port)
        except Exception as exc:
            exc.add_note(f"{name} logged at last:\n{child.last_words()}")
            raise


@contextmanager
def _plain_fan_out(given: Surroundings, port: int) -> Iterator[Child]:
    with running(
        "tests.bench.plain_fan_out",
        *(given.feed_url, str(port), ",".join(given.symbols)),
        core=given.cores.program,
        others_core=given.cores.others,
        log=given.folder / "plain_fan_out.log",
    ) as child:
        yield child


def free_port() -> int:
    """A port without a listener."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def allow_open_files(count: int) -> None:
    """Let this process and those that it starts have as many.

    Raises:
        RuntimeError: The system does not allow it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        raise RuntimeError(f"{count} open files are needed, {hard} are allowed (ulimit -Hn)")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def _rate(slots: list[tuple[int, int]], started: float, ended: float) -> float:
    """Messages per second in the slots that lie within a window."""
    first, last = int(started / SLOT_S) + 1, int(ended / SLOT_S)
    inside = sum(count for slot, count in slots if first <= slot < last)
    return inside / (max(1, last - first) * SLOT_S)
