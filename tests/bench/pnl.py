"""``python -m tests.bench.pnl [quick]``: what real-time P&L costs, with real parts.

- One answer with 100 and with 10,000 positions, in process and over HTTP from another process.
- One order judged by 20 limits, in process.
- How many events per second the engine takes, alone and behind Valkey, with alert rules or limits.
- From a quote at the exchange to the changed P&L at a reader of the gateway's stream.
- From a fill at the broker to the same, and to the subscription of a new symbol.
- A fixed piece of work after a pause, which is none of the program's: how late the machine is.

Valkey, the service and the gateway on uvicorn are processes of their own; nothing is pinned to a
core. The 99th percentile is also that of each third, since the machine may do something else for a
second; and that of the times when it was steady, as :mod:`tests.bench.pnl_times` sees it. What is measured is checked against decimals computed by hand; the exit code is 1 where
anything is wrong.
"""

from __future__ import annotations

import gc
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import attrs

from mdservice.redis_io.embedded import open_embedded_server
from tests.bench.pnl_account import Writer
from tests.bench.pnl_checks import Checks, checks
from tests.bench.pnl_events import Events, engine_alone, through_a_book
from tests.bench.pnl_fills import Fills, from_fills
from tests.bench.pnl_requests import Counts, Requests, in_process, over_http
from tests.bench.pnl_stream import Latencies, from_quote_to_pnl
from tests.bench.pnl_times import fixed_work, percentiles
from tests.bench.processes import REPOSITORY, Cores
from tests.bench.results import aligned, machine, write

LIMIT_S = 300
"""Nothing here may take longer."""
_BUSY = 0.7
_PAUSE_S = 0.002


@attrs.frozen
class Plan:
    """How much to measure.

    Attributes:
        requests: How many of each kind.
        checks: How many orders are judged, by the number of positions.
        engine_events: For the engine alone.
        book_events: Through Valkey.
        accounts: How many take turns on the stream.
        quotes: How many are followed to the stream, by market.
        fills: How many are followed to the stream, for each source of a gateway.
        opened: How many open a position in a new symbol.
        fixed: How often the fixed piece of work is done.
    """

    requests: Counts
    checks: dict[int, int]
    engine_events: int
    book_events: int
    accounts: int
    quotes: dict[str, int]
    fills: int
    opened: int
    fixed: int


FULL = Plan(
    requests=Counts(
        keys={100: 500, 10_000: 42}, live={100: 500, 10_000: 21}, http={100: 400, 10_000: 60}
    ),
    checks={100: 1_000, 10_000: 1_000},
    engine_events=200_000,
    book_events=100_000,
    accounts=4,
    quotes={"quiet": 200, "other symbols": 200, "held symbols": 60},
    fills=300,
    opened=300,
    fixed=2_000,
)
QUICK = Plan(
    requests=Counts(
        keys={100: 100, 10_000: 10}, live={100: 100, 10_000: 3}, http={100: 100, 10_000: 10}
    ),
    checks={100: 200, 10_000: 200},
    engine_events=50_000,
    book_events=30_000,
    accounts=4,
    quotes={"quiet": 40, "other symbols": 40, "held symbols": 20},
    fills=40,
    opened=20,
    fixed=500,
)


@attrs.define
class Measured:
    """Everything."""

    requests: list[Requests] = attrs.Factory(list)
    checks: list[Checks] = attrs.Factory(list)
    events: list[Events] = attrs.Factory(list)
    latencies: list[Latencies] = attrs.Factory(list)
    fills: list[Fills] = attrs.Factory(list)
    machine: dict[str, Any] = attrs.Factory(dict)
    wrong: list[str] = attrs.Factory(list)

    def collect_wrong(self) -> None:
        """What the parts found."""
        for each in (*self.requests, *self.checks, *self.events):
            self.wrong += [f"{_name(each)}: {reason}" for reason in each.wrong]


async def main(plan: Plan) -> int:
    """Measure it all; the blocking parts may block, nothing else is on this event loop."""
    description = machine(Cores(None, None))
    load_average = description["load_average"][0]
    busy = ", busy: figures will swing" if load_average > _BUSY else ""
    say(f"Load average {load_average:.2f}{busy}")
    started_s = time.monotonic()
    measured = Measured()
    measured.machine = await _fixed_work(plan.fixed)
    with tempfile.TemporaryDirectory(prefix="mdbench-") as name:
        folder = Path(name)
        async with open_embedded_server(folder / "redis.sock") as server:
            with closing(Writer(server.url)) as writer:
                measured.requests += await in_process(server.url, writer, plan.requests)
                measured.requests += over_http(server.url, writer, folder, plan.requests)
                measured.checks += await checks(server.url, writer, plan.checks)
                measured.events += engine_alone(plan.engine_events)
                measured.events += await through_a_book(server.url, writer, plan.book_events)
                writer.forget()
            gc.collect()
            gc.freeze()  # from here on this process only measures, and must not hold that up
            measured.latencies, measured.wrong = await from_quote_to_pnl(
                server.url, folder, plan.accounts, plan.quotes
            )
            measured.fills, wrong = await from_fills(server.url, folder, plan.fills, plan.opened)
            measured.wrong += wrong
    measured.collect_wrong()
    for rows in (_requests, _checks, _events, _latencies, _fills, _machine):
        say("\n" + aligned(list(rows(measured))))
    content = {"machine": description, "plan": attrs.asdict(plan), **attrs.asdict(measured)}
    say(f"\n{time.monotonic() - started_s:.0f} s; {write(REPOSITORY / 'bench-results', content)}")
    for reason in measured.wrong:
        say(f"WRONG: {reason}")
    return 1 if measured.wrong else 0


async def _fixed_work(count: int) -> dict[str, Any]:
    """The time of the same work after a pause each, as a request finds the program."""
    seconds = []
    for _ in range(count):
        await anyio.sleep(_PAUSE_S)
        seconds.append(fixed_work())
    return percentiles(seconds)


def _name(each: Requests | Checks | Events) -> str:
    if isinstance(each, Checks):
        return f"{each.way}, {each.positions} positions, {each.limits} limits"
    if isinstance(each, Requests):
        return f"{each.way}, {each.positions} positions, prices {each.prices}"
    judged = f"{each.rules} rules, {each.limits} limits"
    return f"{each.where}, {each.positions} positions, {judged}"


def _requests(measured: Measured) -> Iterator[tuple[str, ...]]:
    yield (
        "one answer",
        "positions",
        "prices",
        "requests",
        "p50 ms",
        "p99 ms",
        "p99 of each third",
        "max ms",
        "p99 ms, steady",
    )
    for each in measured.requests:
        yield (each.way, f"{each.positions:,}", each.prices, *_figures(each.figures))


def _checks(measured: Measured) -> Iterator[tuple[str, ...]]:
    yield (
        "one order",
        "positions",
        "limits",
        "orders",
        "p50 ms",
        "p99 ms",
        "p99 of each third",
        "max ms",
        "p99 ms, steady",
    )
    for each in measured.checks:
        yield (each.way, f"{each.positions:,}", str(each.limits), *_figures(each.figures))


def _events(measured: Measured) -> Iterator[tuple[str, ...]]:
    yield ("events", "positions", "alert rules", "limits", "taken", "per second")
    for each in measured.events:
        numbers = (each.positions, each.rules, each.limits, each.events, round(each.per_s))
        yield (each.where, *(f"{number:,}" for number in numbers))


def _latencies(measured: Measured) -> Iterator[tuple[str, ...]]:
    yield (
        "quote to P&L, besides",
        "quotes/s",
        "quotes",
        "p50 ms",
        "p99 ms",
        "p99 of each third",
        "max ms",
        "p99 ms, steady",
    )
    for each in measured.latencies:
        yield (each.market, f"{each.background_per_s:,.0f}", *_figures(each.figures))


def _fills(measured: Measured) -> Iterator[tuple[str, ...]]:
    yield (
        "from a fill to",
        "fills",
        "p50 ms",
        "p99 ms",
        "p99 of each third",
        "max ms",
        "p99 ms, steady",
    )
    for each in measured.fills:
        yield (each.what, *_figures(each.figures))


def _machine(measured: Measured) -> Iterator[tuple[str, ...]]:
    yield (
        "the machine",
        "times",
        "p50 ms",
        "p99 ms",
        "p99 of each third",
        "max ms",
        "p99 ms, steady",
    )
    yield ("fixed work after a pause", *_figures(measured.machine))


def _figures(figures: dict[str, Any]) -> Iterator[str]:
    yield f"{figures['n']:,}"
    yield f"{figures['p50_ms']:.2f}"
    yield f"{figures['p99_ms']:.2f}"
    yield " ".join(f"{third:.2f}" for third in figures["thirds_p99_ms"])
    yield f"{figures['max_ms']:.2f}"
    steady = figures.get("steady")
    yield "" if steady is None else f"{steady['p99_ms']:.2f} of {steady['n']:,}"


def say(line: str) -> None:
    """A line for people."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _stop(number: int, _frame: FrameType | None) -> None:
    """End by an exception, so that every process is ended too."""
    sys.exit(f"ended by {signal.Signals(number).name}")


def run(arguments: list[str]) -> int:
    """Measure; the exit code."""
    if arguments not in ([], ["quick"]):
        sys.exit("usage: python -m tests.bench.pnl [quick]")
    for ending in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(ending, _stop)
    signal.alarm(LIMIT_S)
    return anyio.run(main, QUICK if arguments else FULL, backend="asyncio")


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
