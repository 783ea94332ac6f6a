"""A standby group under a market that goes on: real processes, one simulated Alpaca, a real Valkey.

Everything that Redis executes is recorded by ``MONITOR``, and what is published by a subscriber. At
the end both are compared with the market's own record: every quote is an event once and in order,
its number goes on over every change of the leader, and no leader writes after the next has begun.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from itertools import groupby, pairwise, zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs
import hiredis

from mdservice.model.timestamps import format_ns, parse_rfc3339
from mdservice.simulator import SimQuote
from tests.integration.conftest import Program, Stage, eventually
from tests.integration.network import Network

__all__ = ["Group", "Market", "Recording", "Ways"]

GROUP = "desk"
EVERY_S = 0.01
"""Between two quotes of each symbol."""
_WRITER = re.compile(rb'"SET" "mdservice:writer:([0-9a-f]+)\.(\d+)"')
_NOTHING = object()


class Market:
    """Sends a quote of every symbol ever so often, numbered by its bid, to whoever is connected."""

    def __init__(self, simulator: Any, symbols: tuple[str, ...]) -> None:
        self.simulator = simulator
        self.symbols = symbols
        self.sent = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            number = self.sent + 1
            self.simulator.send_quotes([SimQuote(s, number, number + 1) for s in self.symbols])
            self.sent = number

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def made(self, symbol: str) -> list[tuple[float, int]]:
        """The bid and the time of every quote of a symbol."""
        found = [quote for quote in self.simulator.history if quote.symbol == symbol]
        return [(quote.bid, quote.ts_event_ns) for quote in found]


class _Wire:
    """A connection to one run of the server whose messages a thread takes."""

    def __init__(self, place: Path | int, request: bytes, take: Any) -> None:
        on_tcp = isinstance(place, int)
        self._socket = socket.socket(socket.AF_INET if on_tcp else socket.AF_UNIX)
        self._socket.connect(("127.0.0.1", place) if on_tcp else str(place))
        self._socket.sendall(request)
        self._take = take
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        reader = hiredis.Reader(notEnoughData=_NOTHING)
        with contextlib.suppress(OSError):
            while data := self._socket.recv(65_536):
                reader.feed(data)
                while (message := reader.gets()) is not _NOTHING:
                    self._take(message)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()


class Recording:
    """What the server published and executed, and when each event came."""

    def __init__(self) -> None:
        self.events: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.states: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.writers: list[tuple[int, str]] = []
        """The epoch and the member of each executed batch."""
        self._marks = 0
        self._monitored = threading.Semaphore(0)
        self._wires: list[_Wire] = []

    def open(self, place: Path | int) -> None:
        """Record a run of the server from now on.

        Args:
            place: The path of its socket, or its port.
        """
        self._wires += [
            _Wire(place, b"SUBSCRIBE price.updated feed.status mark\r\n", self._hear),
            _Wire(place, b"MONITOR\r\n", self._monitor),
        ]
        for _ in range(4):
            assert self._monitored.acquire(timeout=60)

    def _hear(self, message: Any) -> None:
        kind, channel, content = message
        if kind == b"subscribe":
            self._monitored.release()
        elif channel == b"mark":
            self._marks += 1
        elif channel == b"feed.status":
            self.states.append(json.loads(content))
        else:
            event = json.loads(content)
            self.events[event["symbol"]].append(event)
            self.times.append(time.monotonic())

    def _monitor(self, message: bytes) -> None:
        line = message if isinstance(message, bytes) else str(message).encode()
        if line == b"OK":
            self._monitored.release()
        elif found := _WRITER.search(line):
            self.writers.append((int(found[2]), found[1].decode()))

    def hear_all(self, valkey: Any) -> None:
        """Return once everything that has been published so far is recorded."""
        end = self._marks + 1
        with valkey.client() as client:
            client.publish("mark", b"")
        eventually(lambda: self._marks >= end, what="the mark")

    def next_event_s(self, after_s: float, within: float = 60.0) -> float:
        """How long after that moment the next event came, seconds."""

        def look() -> float | None:
            return next((t for t in reversed(self._after(after_s))), None)

        found: float = eventually(look, within=within, what="an event")
        return found - after_s

    def _after(self, after_s: float) -> list[float]:
        found = []
        for at_s in reversed(self.times):
            if at_s <= after_s:
                break
            found.append(at_s)
        return found

    def close(self) -> None:
        for wire in self._wires:
            wire.close()


@attrs.frozen
class Ways:
    """A member's ways to Redis, and to all of Alpaca. They outlive it, for the next on its place."""

    redis: Network
    feed: Network


class Group:
    """Services of one group, and what is checked of them.

    Args:
        stage: Starts them.
        size: How many there are.
        ways: Whether each has :class:`Ways`, which can be cut.
        slot_hold_s: How long Alpaca holds the connection of a member that died, seconds.
        symbols: What they follow.
        redis: Their Redis; None for a new server.
        env: More settings.
    """

    def __init__(
        self,
        stage: Stage,
        size: int = 2,
        *,
        ways: bool = False,
        slot_hold_s: float = 0.0,
        symbols: str = "AAPL,MSFT",
        redis: Any = None,
        **env: str,
    ) -> None:
        self.stage = stage
        self.valkey = stage.valkey() if redis is None else redis
        self.recording = Recording()
        stage.defer(self.recording.close)
        self.recording.open(self.valkey.path)
        self.simulator = stage.simulator(
            slot_hold_s=slot_hold_s, rest_rate_limit=None, history_size=2_000_000
        )
        self.symbols = tuple(symbols.split(","))
        self._env = {"MDSERVICE_SYMBOLS": symbols, "MDSERVICE_GROUP": GROUP, **env}
        self.ways: dict[Program, Ways] = {}
        each = [self._make_ways() if ways else None for _ in range(size)]
        self.members = [self.start(one) for one in each]
        for member in self.members:
            member.wait_answers()
        self.leader()
        self.market = Market(self.simulator, self.symbols)
        stage.defer(self.market.stop)

    def start(self, ways: Ways | None = None, **env: str) -> Program:
        """Start a service of the group, which comes to Redis and to Alpaca by these ways."""
        env = {**self._env, **env}
        if ways is None:
            return self.stage.service(self.simulator, self.valkey, **env)
        url = f"redis://127.0.0.1:{ways.redis.port}"
        account = self.stage.account(self.simulator, url)
        real = urlsplit(self.simulator.url).netloc
        cut = {k: v.replace(real, f"127.0.0.1:{ways.feed.port}") for k, v in account.items()}
        member = self.stage.service(self.simulator, url, **{**cut, **env})
        self.ways[member] = ways
        return member

    def _make_ways(self) -> Ways:
        port = urlsplit(self.simulator.url).port
        assert port is not None
        ways = Ways(Network(self.valkey.path), Network(port))
        self.stage.defer(ways.redis.close)
        self.stage.defer(ways.feed.close)
        return ways

    def replace(self, ended: Program) -> Program:
        """Start another member in the place of one that has ended."""
        self.members.remove(ended)
        ended.close()
        member = self.start(self.ways.pop(ended, None))
        self.members.append(member)
        return member.wait_answers()

    def state(self, member: Program) -> str | None:
        """What the member says of itself; None where it does not answer."""
        if member.process.poll() is None and not is_stopped(member) and member.answers():
            with contextlib.suppress(Exception):
                return str(member.status()["state"])
        return None

    def leading(self, *, besides: Collection[Program] = ()) -> Program | None:
        """The member that serves, if one does, and is none of these."""
        for member in self.members:
            if member not in besides and self.state(member) in ("running", "degraded"):
                return member
        return None

    def settled(self) -> Program:
        """Wait until one member serves, with its feed connected, and every other stands by."""

        def look() -> Program | None:
            states = [self.state(member) for member in self.members]
            if states.count("standby") < len(states) - 1:
                return None
            member = self.leading()
            return member if member is not None and member.ready()[0] else None

        what = lambda: [(m.pid, self.state(m), m.said) for m in self.members]  # noqa: E731
        found: Program = eventually(look, within=90, what=what)
        return found

    def leader(self, within: float = 60.0) -> Program:
        """Wait until a member serves, with its feed connected."""

        def look() -> Program | None:
            member = self.leading()
            return member if member is not None and member.ready()[0] else None

        what = lambda: [(m.pid, m.said) for m in self.members]  # noqa: E731
        found: Program = eventually(look, within=within, what=what)
        return found

    def standby(self) -> Program:
        """A member that stands by."""
        found: Program = eventually(
            lambda: next(
                (m for m in self.members if m.process.poll() is None and not is_stopped(m)
                 and m.answers() and m.status()["state"] == "standby"),
                None,
            ),
            within=60,
            what=lambda: [m.said for m in self.members],
        )  # fmt: skip
        return found

    def more(self, count: int = 30) -> None:
        """Let the market go on until so many more quotes of each symbol are published."""
        end = self.market.sent + count
        eventually(lambda: self.market.sent >= end, what="quotes")
        eventually(
            lambda: all(self._last(s) >= end for s in self.symbols),
            within=60,
            what=lambda: ({s: self._last(s) for s in self.symbols}, end, self._said()),
        )

    def _said(self) -> list[str]:
        return [member.said for member in self.members]

    def _last(self, symbol: str) -> float:
        events = self.recording.events[symbol]
        return float(events[-1]["bid"]) if events else 0.0

    def finish(self, *, may_lose: bool = False) -> None:
        """Stop the market, wait for all of it, and check the record.

        Args:
            may_lose: Whether Redis may have lost events, which are then reported as a gap.
        """
        self.market.stop()
        eventually(
            lambda: all(self._last(s) >= self.market.sent for s in self.symbols),
            within=60,
            what=lambda: (
                {s: self._last(s) for s in self.symbols}, self.market.sent, self._said()
            ),
        )  # fmt: skip
        self.recording.hear_all(self.valkey)
        if may_lose:
            self.check_losses()
        else:
            self.check_complete()
        self.check_fenced()

    def check_complete(self) -> None:
        """Every quote is an event once and in order; the numbers go on; the last is the price."""
        for symbol in self.symbols:
            events = self.recording.events[symbol]
            made = self.market.made(symbol)
            first = next(n for n, (_, ns) in enumerate(made) if ns == _ns(events[0]))
            out = [(event["bid"], _ns(event)) for event in events]
            pairs = enumerate(zip_longest(made[first:], out))
            wrong = next(((n, *pair) for n, pair in pairs if pair[0] != pair[1]), None)
            assert wrong is None, (
                f"{symbol}: made {len(made) - first}, out {len(out)}; differs at {wrong}; "
                f"{self._explain(symbol, made[first:])}"
            )
            seqs = [event["seq"] for event in events]
            assert seqs == list(range(1, len(events) + 1)), _steps(seqs)
            with self.valkey.client() as client:
                assert json.loads(client.get(f"price:{symbol}")) == events[-1]

    def _explain(self, symbol: str, made: Sequence[tuple[float, int]]) -> str:
        """What is missing, the numbers around it, and what the feed's status said around it."""
        events = self.recording.events[symbol]
        seqs = {_ns(event): event["seq"] for event in events}
        lines = [f"{len(events) - len(seqs)} twice"]
        for is_out, some in groupby(made, lambda each: each[1] in seqs):
            if is_out:
                before = list(some)
                continue
            lost = [ns for _, ns in some]
            after = min((ns for ns in seqs if ns > lost[-1]), default=None)
            lines.append(
                f"{len(lost)} from {format_ns(lost[0])} to {format_ns(lost[-1])}, behind number "
                f"{seqs[before[-1][1]]} and before {after and seqs[after]}"
            )
            around = (format_ns(lost[0] - 10**10), format_ns(lost[-1] + 2 * 10**10))
            lines += [
                f"    {state}"
                for state in self.recording.states
                if around[0] <= state["at"] <= around[1]
            ]
        return "\n".join(lines)

    def check_losses(self) -> None:
        """Every quote is an event once and in order, or is in a gap; each has its own number."""
        gaps = [state for state in self.recording.states if state["state"] == "gap"]
        for symbol in self.symbols:
            events = self.recording.events[symbol]
            places = {ns: place for place, (_, ns) in enumerate(self.market.made(symbol))}
            found = [places[_ns(event)] for event in events]
            assert found == sorted(set(found)), "in order, and none twice"
            assert {event["seq"] - place for event, place in zip(events, found, strict=True)} == {
                1 - found[0]
            }
            for ns, place in places.items():
                if found[0] < place and place not in set(found):
                    assert any(
                        symbol in gap["symbols"] and ns <= parse_rfc3339(gap["to"]) for gap in gaps
                    ), (symbol, place, gaps)
            with self.valkey.client() as client:
                assert json.loads(client.get(f"price:{symbol}")) == events[-1]

    def check_fenced(self) -> None:
        """No leader writes once a later one has begun."""
        latest = 0
        for place, (epoch, member) in enumerate(self.recording.writers):
            assert epoch >= latest, (place, epoch, member, self.recording.writers[place - 1])
            latest = epoch


def is_stopped(program: Program) -> bool:
    """Whether the process was stopped by ``SIGSTOP``."""
    try:
        stat = Path(f"/proc/{program.pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False  # it has just ended
    return stat.rpartition(")")[2].split()[0] in "Tt"


def stop(program: Program) -> None:
    program.process.send_signal(signal.SIGSTOP)
    eventually(lambda: is_stopped(program), what="stopped")


def resume(program: Program) -> None:
    program.process.send_signal(signal.SIGCONT)


def _ns(event: dict[str, Any]) -> int:
    return parse_rfc3339(event["timestamp"])


def _steps(seqs: list[int]) -> list[tuple[int, int]]:
    return [(a, b) for a, b in pairwise(seqs) if b != a + 1][:5]
