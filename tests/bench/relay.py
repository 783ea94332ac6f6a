"""The relay under load: ``python -m tests.bench relay [crowd | few | deaf | redis]…``.

- ``crowd``: 1,000 clients with 100 of 500 symbols each. The most messages a second that all arrive,
  the latency at half of that, and the memory that a client costs.
- ``few``: 10 clients with every symbol, at 1,000 quotes a second.
- ``deaf``: 50 clients that never read, among 950 that do.
- ``redis``: a quote's way into Redis without the relay, with it, and with 10 clients of ``*``.

The first two compare with a client on the feed itself, whose latency is the feed's own, and with a
plain fan-out (:mod:`tests.bench.plain_fan_out`). In every run each client must get as many messages
as were sent of its symbols, less those that the relay counts as conflated; sampled clients also
check the order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from statistics import median

import attrs

from tests.bench import search
from tests.bench.benchmark import FLOOD, Benchmark, say
from tests.bench.programs import Service
from tests.bench.relay_clients import Crowd
from tests.bench.relay_runs import (
    DIRECT,
    MARKET,
    PLAIN,
    RELAY,
    Clients,
    Result,
    Run,
    allow_open_files,
    connected,
    free_port,
    served,
)
from tests.bench.results import aligned, busy
from tests.bench.runs import DISTURBED, Load, Outcome, bench
from tests.bench.targets import Target, target_table

LIMIT_S = 900
PARTS = frozenset(("crowd", "few", "deaf", "redis"))
_ROUNDS = 3
_CLIENTS, _EACH = 1000, 100
_FAN_OUT = _CLIENTS * _EACH / MARKET.symbols
"""Messages for each quote."""
_WANTED_PER_S = 100_000
_WANTED_P99_MS, _WANTED_KB, _WANTED_ADDED_MS = 20, 60, 1
_FEW, _FEW_LOAD = 10, Load(1000, 3)
_DEAF, _TIMES_ALONE = 50, 2
_OVERLOADED_S, _TRIED_S, _PROVEN_S, _PACED_S = 2.0, 1.5, 5.0, 4.0
_STEPS = 4
_OVERLOADS = {RELAY: 2_000_000 / _FAN_OUT, PLAIN: 60_000 / _FAN_OUT}
"""Quotes a second, of which nothing here can deliver all."""
_WARM_UP = Load(_WANTED_PER_S / _FAN_OUT / 2, 1.5)
_HALF_WANTED = attrs.evolve(_WARM_UP, seconds=_PACED_S)
_FILLING = Load(20_000, 1)
_FILLINGS = 20
_OPEN_FILES = _CLIENTS + 500
_FULL = 0.93
_NAME_WIDTH = 38
_KB = 1024


@attrs.frozen
class Crowded:
    """1,000 clients of one program, in one round.

    Attributes:
        most: The pace that held; of the plain fan-out what it delivered of too much.
        half: At half of that.
        half_wanted: At half of what is wanted; only of the relay.
        client_kb: Memory that each client costs, connected and at a load.
        own_ms: The feed's own latency at the quotes a second of the half, p50 and p99.
    """

    most: Result
    half: Result
    half_wanted: Result | None
    client_kb: float
    own_ms: tuple[float, float]

    @property
    def added_ms(self) -> tuple[float, float]:
        """What the program adds to p50 and to p99."""
        return self.half.p50_ms - self.own_ms[0], self.half.p99_ms - self.own_ms[1]


class Relay:
    """All the parts, on one server; what was wrong goes into the benchmark's list."""

    def __init__(self, benchmark: Benchmark) -> None:
        self._benchmark = benchmark
        self._parts: dict[str, Callable[[], list[Target]]] = {
            "crowd": self._crowd,
            "few": self._few,
            "deaf": self._deaf,
            "redis": self._redis,
        }

    def measure(self, names: Sequence[str]) -> str:
        """Some parts, or all; returns the table of targets, where they have any."""
        allow_open_files(_OPEN_FILES)
        rows = [row for name in names or self._parts for row in self._parts[name]()]
        return target_table(rows) if rows else ""

    # 1,000 clients

    def _crowd(self) -> list[Target]:
        found: dict[str, list[Crowded]] = {RELAY: [], PLAIN: []}
        for number in range(_ROUNDS):
            found[PLAIN].append(self._plain_crowd())
            found[RELAY].append(self._relay_crowd(prove=number == _ROUNDS - 1))
        relay, plain = found[RELAY], found[PLAIN]
        say("\n" + _crowd_table(found) + "\n")
        most = median(each.most.per_s for each in relay)
        p50, p99 = (median(each.added_ms[place] for each in relay) for place in (0, 1))
        at_wanted = [each.half_wanted for each in relay if each.half_wanted is not None]
        quiet_p50 = median(each.p50_ms for each in at_wanted)
        quiet_p99 = median(each.p99_ms for each in at_wanted)
        kilobytes = median(each.client_kb for each in relay)
        times = most / median(each.most.per_s for each in plain)
        work = f"{_CLIENTS:,} clients, {_EACH} of {MARKET.symbols} symbols"
        return [
            Target(
                f"{work}: messages/s",
                f"≥ {_WANTED_PER_S:,}",
                f"{most:,.0f} ({most / _WANTED_PER_S:.2f} times), {times:.1f} times plain",
                most >= _WANTED_PER_S,
            ),
            Target(
                "… at half of that: added to p50; p99",
                f"-; ≤ {_WANTED_P99_MS} ms",
                f"{p50:.2f}; {p99:.2f} ms",
                p99 <= _WANTED_P99_MS,
            ),
            Target(
                f"… at {_WANTED_PER_S // 2:,} messages/s: p50; p99",
                f"-; ≤ {_WANTED_P99_MS} ms",
                f"{quiet_p50:.2f}; {quiet_p99:.2f} ms",
                quiet_p99 <= _WANTED_P99_MS,
            ),
            Target(
                "… memory for each client",
                f"≤ {_WANTED_KB} KB",
                f"{kilobytes:.0f} KB",
                kilobytes <= _WANTED_KB,
            ),
        ]

    def _plain_crowd(self) -> Crowded:
        overload = Load(_OVERLOADS[PLAIN], _OVERLOADED_S)
        with self._served(PLAIN) as run, run.clients(_CLIENTS, _EACH) as clients:
            most = self._apply(run, overload, clients, settle=False)
        with self._served(PLAIN) as run:
            before_mb = run.rss_mb()
            with run.clients(_CLIENTS, _EACH) as clients:
                half = self._apply(run, _half_of(most), clients)
        client_kb = (half.rss_mb - before_mb) * _KB / _CLIENTS
        return Crowded(most, half, None, client_kb, self._own_ms(half.load))

    def _relay_crowd(self, *, prove: bool) -> Crowded:
        with self._served(RELAY) as run:
            run.send(_WARM_UP)
            before_mb = run.rss_mb()
            with run.clients(_CLIENTS, _EACH) as clients:
                warm = self._apply(run, _WARM_UP, clients)
                overload = Load(_OVERLOADS[RELAY], _OVERLOADED_S)
                most = self._most(run, clients, self._apply(run, overload, clients), prove=prove)
                half = self._apply(run, _half_of(most), clients)
                half_wanted = self._apply(run, _HALF_WANTED, clients)
        client_kb = (warm.rss_mb - before_mb) * _KB / _CLIENTS
        return Crowded(most, half, half_wanted, client_kb, self._own_ms(half.load))

    def _served(self, name: str) -> AbstractContextManager[Run]:
        return served(self._benchmark.stage, name, self._benchmark.new_folder())

    def _most(self, run: Run, clients: Clients, overloaded: Result, *, prove: bool) -> Result:
        """Look for the highest pace at which every message arrives in time."""
        held = overloaded

        def holds(seconds: float, rate: float) -> bool:
            nonlocal held
            result = self._apply(run, Load(rate / _FAN_OUT, seconds), clients)
            if result.complete:
                held = result
            return result.complete

        lowest, highest = 0.4 * overloaded.per_s, 1.2 * overloaded.per_s
        pace = search.find(partial(holds, _TRIED_S), lowest, highest, _STEPS) or lowest
        if not search.prove(partial(holds, _PROVEN_S if prove else _TRIED_S), pace):
            say(
                "no pace held for so long: the figure is that of the last one that held, or of too much"
            )
        return held

    def _own_ms(self, load: Load) -> tuple[float, float]:
        """What one client on the feed itself sees, p50 and p99."""
        with (
            self._served(DIRECT) as run,
            run.clients(1, MARKET.symbols) as clients,
        ):
            result = self._apply(run, load, clients)
        return result.p50_ms, result.p99_ms

    # 10 clients

    def _few(self) -> list[Target]:
        found: dict[str, list[Result]] = {DIRECT: [], PLAIN: [], RELAY: []}
        for number in range(_ROUNDS):
            order = [*found][number:] + [*found][:number]
            for name in order:
                count = 1 if name == DIRECT else _FEW
                with (
                    self._served(name) as run,
                    run.clients(count, MARKET.symbols) as clients,
                ):
                    if name == RELAY:
                        self._apply(run, attrs.evolve(_FEW_LOAD, seconds=1), clients)
                    found[name].append(self._apply(run, _FEW_LOAD, clients))
        added = {
            name: median(
                each.p50_ms - own.p50_ms for each, own in zip(results, found[DIRECT], strict=True)
            )
            for name, results in found.items()
        }
        rows: list[Sequence[str]] = [("program", "p50", "p99", "added to p50")]
        for name, results in found.items():
            p50, p99 = (
                median(getattr(each, at) for each in results) for at in ("p50_ms", "p99_ms")
            )
            rows.append((name, f"{p50:.2f} ms", f"{p99:.2f} ms", f"{added[name]:.2f} ms"))
        say("\n" + aligned(rows) + "\n")
        return [
            Target(
                f"{_FEW} clients at {_FEW_LOAD.rate:,} quotes/s: added to p50",
                f"≤ {_WANTED_ADDED_MS} ms",
                f"{added[RELAY]:.2f} ms (plain {added[PLAIN]:.2f} ms)",
                added[RELAY] <= _WANTED_ADDED_MS,
            )
        ]

    # Clients that do not read

    def _deaf(self) -> list[Target]:
        load = Load(_WANTED_PER_S / _FAN_OUT / 2, _PACED_S)
        ratios, beside, alone = [], [], []
        for _ in range(_ROUNDS):
            with self._served(RELAY) as run:
                with run.clients(_DEAF, 0, deaf=True):
                    self._fill(run)
                    with run.clients(_CLIENTS - _DEAF, _EACH) as clients:
                        beside.append(self._apply(run, load, clients, others=True))
                        deaf = sum(client["conflated"] > 0 for client in run.relay()["clients"])
                        if deaf < _DEAF:
                            self._benchmark.wrong.append(f"only {deaf} clients were behind")
                with run.clients(_CLIENTS - _DEAF, _EACH) as clients:
                    alone.append(self._apply(run, load, clients))
            ratios.append(beside[-1].p99_ms / alone[-1].p99_ms)
        found = median(ratios)
        p99_beside, p99_alone = (median(r.p99_ms for r in rs) for rs in (beside, alone))
        return [
            Target(
                f"{_CLIENTS - _DEAF} clients beside {_DEAF} that do not read: p99",
                f"≤ {_TIMES_ALONE} times alone",
                f"{found:.2f} times ({p99_beside:.2f} ms, {p99_alone:.2f} ms alone)",
                found <= _TIMES_ALONE,
            )
        ]

    def _fill(self, run: Run) -> None:
        """Send until the relay conflates for every client that does not read."""
        for _ in range(_FILLINGS):
            run.send(_FILLING)
            if all(client["conflated"] for client in run.relay()["clients"]):
                return
        raise RuntimeError(f"the relay conflates for some clients only: {run.relay()}")

    # Redis

    def _redis(self) -> list[Target]:
        cases = ("no relay", "relay", f"relay, {_FEW} clients of *")
        floods: dict[str, list[Outcome]] = {case: [] for case in cases}
        paced: dict[str, list[Outcome]] = {case: [] for case in cases}
        for number in range(_ROUNDS):
            for case in (*cases[number:], *cases[:number]):
                quiet, flood = self._into_redis(case != cases[0], _FEW * (case == cases[2]))
                paced[case].append(quiet)
                floods[case].append(flood)
        without = [each.out_per_s for each in floods[cases[0]]]
        rows: list[Sequence[str]] = [
            ("into Redis", "flood, quotes/s", "of no relay", "µs each", "1,000/s: p50", "p99")
        ]
        for case in cases:
            out_per_s = [each.out_per_s for each in floods[case]]
            part = median(own / base for own, base in zip(out_per_s, without, strict=True))
            cpu_us = median(
                1e4 * (busy(each, "program") or 0) / each.out_per_s for each in floods[case]
            )
            p50, p99 = (median(each.latency_ms[at] or 0 for each in paced[case]) for at in (0, 1))
            figures = f"{median(out_per_s):,.0f}", f"{100 * part:.0f} %", f"{cpu_us:.2f}"
            rows.append((case, *figures, f"{p50:.2f} ms", f"{p99:.2f} ms"))
        say("\n" + aligned(rows) + "\n")
        return []

    def _into_redis(self, relay: bool, clients: int) -> tuple[Outcome, Outcome]:
        """At a quiet pace, then flooded."""
        port = free_port()
        address = f"127.0.0.1:{port}" if relay else None
        program = Service("websockets", relay=address)
        stage, folder = self._benchmark.stage, self._benchmark.new_folder()
        loads = Load(1000, 1.2), Load(FLOOD, 1.8)
        with bench(stage, program, MARKET, folder) as running, ExitStack() as stack:
            if clients:
                crowd = Crowd(port, clients, of=MARKET.symbols, sampled=0)
                connect = connected(stage, crowd, folder / "clients.log")
                running.readers = stack.enter_context(connect).child
            quiet, flood = (self._benchmark.apply(running, load) for load in loads)
            return quiet, flood

    def _apply(
        self, run: Run, load: Load, clients: Clients, *, settle: bool = True, others: bool = False
    ) -> Result:
        """Put on a load, and print how it went."""
        result = run.apply(load, clients, settle=settle, others=others)
        name = f"{run.name}, {len(clients.wanted):,} clients"
        notes = [f"{result.missed:,} missed"] if result.missed else []
        if result.wrong:
            notes.append(f"WRONG: {'; '.join(result.wrong[:3])}")
            self._benchmark.wrong += [f"{name}: {reason}" for reason in result.wrong]
        if result.others_busy > _FULL:
            notes.append(f"feed and clients: {100 * result.others_busy:.0f} % of their core")
        if result.foreign > DISTURBED:
            notes.append(f"DISTURBED: {100 * result.foreign:.0f} % of a core")
        say(
            f"{name:{_NAME_WIDTH}} {load.rate:>6,.0f} quotes/s: {result.per_s:>9,.0f} messages/s, "
            f"latency {result.p50_ms:,.2f} / {result.p99_ms:,.2f} ms, {result.cpu_us:.2f} µs each, "
            f"{result.per_frame:.1f} a frame, "
            f"{result.rss_mb:.0f} MB {', '.join(notes)}".rstrip()
        )
        return result


def _half_of(most: Result) -> Load:
    return Load(most.per_s / _FAN_OUT / 2, _PACED_S)


def _crowd_table(found: dict[str, list[Crowded]]) -> str:
    """Medians, by program."""
    rows: list[Sequence[str]] = [
        (
            *("program", "messages/s", "µs each", "at half of that: p50", "p99"),
            *("added to p50", "to p99", "KB a client"),
        )
    ]
    for name, crowds in found.items():
        figures: tuple[tuple[Callable[[Crowded], float], str], ...] = (
            (lambda each: each.most.per_s, ",.0f"),
            (lambda each: each.most.cpu_us, ".1f"),
            (lambda each: each.half.p50_ms, ".2f"),
            (lambda each: each.half.p99_ms, ".2f"),
            (lambda each: each.added_ms[0], ".2f"),
            (lambda each: each.added_ms[1], ".2f"),
            (lambda each: each.client_kb, ".0f"),
        )
        rows.append((name, *(format(median(map(of, crowds)), form) for of, form in figures)))
    return aligned(rows)
