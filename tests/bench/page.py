"""``python -m tests.bench page``: what looking at the service costs it, in processor time.

- **The page**: 500 symbols at 10,000 quotes a second, with ten open pages and without, in turns. A
  thread here reads each page's stream. One page costs a tenth of the difference.
- **A scrape** of ``/metrics`` with 10,000 symbols that all have a price, in each format, less what
  the service uses in the same time without scrapes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median

import attrs
import httpx

from tests.bench.benchmark import RAW, Benchmark
from tests.bench.checks import Market
from tests.bench.processes import usage_of
from tests.bench.results import aligned
from tests.bench.runs import Bench, Load, bench

__all__ = ["LIMIT_S", "measure"]

LIMIT_S = 180
"""Nothing here may take longer."""
_MARKET, _LOAD = Market(), Load(10_000, 4.0)
_ROUNDS = 4
_PAGES = 10
_PAGE_LIMIT = 0.05
_MANY = Market(symbols=10_000)
_PRICES = Load(20_000, 1.0)
_SCRAPES = 100
_SCRAPE_LIMIT_MS = 20.0
_PROTOBUF = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
)
_FORMATS: Mapping[str, str] = {
    "text": "text/plain",
    "OpenMetrics": "application/openmetrics-text;version=1.0.0",
    "protobuf": _PROTOBUF,
}
_READ_LIMIT_S = 30.0


@attrs.frozen
class Figures:
    """What was measured.

    Attributes:
        without: The part of a core that the service uses without a page, one for each round.
        open: The same with :data:`_PAGES`.
        updates_per_s: Prices that each page got a second and symbol.
        scrape_ms: By format: processor time of a scrape, its time on the wall, half and 99 of 100,
            and its kilobytes.
    """

    without: list[float]
    open: list[float]
    updates_per_s: float
    scrape_ms: Mapping[str, tuple[float, float, float, float]]

    @property
    def page(self) -> float:
        """The part of a core that one page costs: the median of the rounds."""
        return median(self.pages)

    @property
    def pages(self) -> list[float]:
        """The same in each round."""
        pairs = zip(self.without, self.open, strict=True)
        return [(with_pages - without) / _PAGES for without, with_pages in pairs]

    @property
    def reached(self) -> bool:
        """Whether all of it costs as little as it must."""
        scrapes_ms = (each[0] for each in self.scrape_ms.values())
        return self.page <= _PAGE_LIMIT and max(scrapes_ms) <= _SCRAPE_LIMIT_MS

    def table(self) -> str:
        """Each figure with its target."""
        title = f"{_MARKET.symbols} symbols, {_LOAD.rate:,.0f} quotes/s"
        rows = [
            ("looking at the service", "measured", "target"),
            (f"{title}: of a core", f"{median(self.without):.1%}", "-"),
            (
                "… an open page adds",
                f"{self.page:.1%} ({min(self.pages):.1%} to {max(self.pages):.1%})",
                f"<= {_PAGE_LIMIT:.0%}",
            ),
            ("… updates a second and symbol", f"{self.updates_per_s:.1f}", "<= 15"),
        ]
        for name, (cpu_ms, p50_ms, p99_ms, kilobytes) in self.scrape_ms.items():
            rows += [
                (
                    f"/metrics of {_MANY.symbols:,} symbols, {name}, {kilobytes:.0f} kB",
                    f"{cpu_ms:.1f} ms",
                    f"<= {_SCRAPE_LIMIT_MS:.0f} ms",
                ),
                ("… on the wall, p50; p99", f"{p50_ms:.1f}; {p99_ms:.1f} ms", "-"),
            ]
        return aligned(rows)


def measure(benchmark: Benchmark) -> Figures:
    """All of it."""
    without, with_page, updates_per_s = _page(benchmark)
    with bench(benchmark.stage, RAW, _MANY, benchmark.new_folder()) as running:
        benchmark.apply(running, _PRICES)
        scrapes = {name: _scrapes(running, accept) for name, accept in _FORMATS.items()}
    return Figures(without, with_page, updates_per_s, scrapes)


def _page(benchmark: Benchmark) -> tuple[list[float], list[float], float]:
    used: dict[bool, list[float]] = {False: [], True: []}
    updates = 0
    with bench(benchmark.stage, RAW, _MARKET, benchmark.new_folder()) as running:
        benchmark.apply(running, _LOAD)
        for number in range(_ROUNDS):
            for page in (False, True) if number % 2 else (True, False):
                if page:
                    with ExitStack() as pages:
                        open_page = partial(_reader, running.given.socket)
                        read = [pages.enter_context(open_page()) for _ in range(_PAGES)]
                        before = sum(each[0] for each in read)
                        outcome = benchmark.apply(running, _LOAD)
                        updates += sum(each[0] for each in read) - before
                else:
                    outcome = benchmark.apply(running, _LOAD)
                used[page].append(outcome.cpu_s["program"] / _LOAD.seconds)
    return used[False], used[True], updates / _ROUNDS / _PAGES / _LOAD.seconds / _MARKET.symbols


@contextmanager
def _reader(socket: Path) -> Iterator[list[int]]:
    """A page that is open as long as the block lasts; how many prices it has got."""
    prices, begun, ended = [0], threading.Event(), threading.Event()

    def read() -> None:
        transport = httpx.HTTPTransport(uds=str(socket))
        with (
            httpx.Client(transport=transport, timeout=_READ_LIMIT_S) as client,
            client.stream("GET", "http://service/api/v1/page/stream") as answer,
        ):
            answer.raise_for_status()
            for part in answer.iter_raw():
                prices[0] += part.count(b'"bid":')
                begun.set()
                if ended.is_set():
                    return

    thread = threading.Thread(target=read)
    thread.start()
    if not begun.wait(_READ_LIMIT_S):
        raise RuntimeError("the page's stream brings nothing")
    try:
        yield prices
    finally:
        ended.set()
        thread.join(_READ_LIMIT_S)


def _scrapes(running: Bench, accept: str) -> tuple[float, float, float, float]:
    transport = httpx.HTTPTransport(uds=str(running.given.socket))
    with httpx.Client(transport=transport, headers={"accept": accept}, timeout=10) as client:
        size = len(client.get("http://service/metrics").raise_for_status().content)
        taken_s = []
        began_s, before_s = time.monotonic(), _cpu_s(running)
        for _ in range(_SCRAPES):
            asked_s = time.perf_counter()
            client.get("http://service/metrics")
            taken_s.append(time.perf_counter() - asked_s)
        used_s, lasted_s = _cpu_s(running) - before_s, time.monotonic() - began_s
    idle_s = _cpu_s(running)
    time.sleep(lasted_s)
    idle_s = _cpu_s(running) - idle_s
    taken_s.sort()
    return (
        1000 * (used_s - idle_s) / _SCRAPES,
        1000 * median(taken_s),
        1000 * taken_s[_SCRAPES * 99 // 100 - 1],
        size / 1024,
    )


def _cpu_s(running: Bench) -> float:
    return usage_of(running.child.pid).cpu_s or 0.0
