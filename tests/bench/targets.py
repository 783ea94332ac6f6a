"""The targets of what is called fast here, and whether a run reached them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median

import attrs

from tests.bench.benchmark import ALPACA_PY, RAW, REFERENCE
from tests.bench.checks import Market
from tests.bench.references import REFERENCES, figures
from tests.bench.results import Measured, aligned, busy
from tests.bench.runs import DISTURBED, Outcome
from tests.bench.suite import Everything

_TIMES_REFERENCES = 2.5
_FLAT = 1.05
"""Memory is flat when it is at most this much more at the end of a flood than in its middle."""
_VERDICTS = {True: "reached", False: "missed", None: "not measured"}


@attrs.frozen
class Target:
    """One line of the table.

    Attributes:
        work: What is done.
        wanted: What was aimed at.
        found: What was measured.
        reached: None where it was not measured.
    """

    work: str
    wanted: str
    found: str
    reached: bool | None

    @property
    def verdict(self) -> str:
        """In a word."""
        return _VERDICTS[self.reached]


def targets(found: Everything) -> list[Target]:
    """All of them, in order."""
    return [
        *_every_quote(found),
        *_floods(found),
        *_latencies(found),
        *_frugality(found),
        *_starts(found),
    ]


def target_table(rows: list[Target]) -> str:
    """One line a target."""
    head = ("target", "wanted", "found", "")
    return aligned([head, *((row.work, row.wanted, row.found, row.verdict) for row in rows)])


def _at_most(work: str, limit: float, value: float, unit: str, form: str = ".2f") -> Target:
    return Target(work, f"≤ {limit:g} {unit}", f"{value:{form}} {unit}", value <= limit)


def _every_quote(found: Everything) -> Iterator[Target]:
    def times_a(name: str, program: str, market: Market, wanted: float) -> Target:
        case = next(c for c in found.frames if (c.program, c.market) == (program, market))
        times = case.times_reference
        text = (
            f"{times:.1f} times A ({case.search.highest:,.0f}/s for {case.search.held_s:g} s; "
            f"A {case.reference_per_s:,.0f}/s)"
        )
        if not case.search.highest:
            text = f"no pace was held for {case.search.held_s:g} s"
        if case.disturbed > DISTURBED:
            text += f", DISTURBED: {100 * case.disturbed:.0f} % of a core"
        return Target(name, f"≥ {wanted:g} times A", text, times >= wanted)

    yield times_a("every quote", RAW.name, Market(), 40)
    yield _against_references(found)
    top = median(found.ceilings)
    share = found.frames[0].search.highest / top
    text = f"{100 * share:.0f} % of {top:,.0f}/s"
    yield Target("… against the ceiling", "≥ 50 %", text, share >= 0.5)
    yield times_a("every quote, 1 a frame", RAW.name, Market(per_frame=1), 30)
    yield times_a("every quote, 100 a frame", RAW.name, Market(per_frame=100), 45)
    yield times_a("every quote, alpaca-py driver", ALPACA_PY.name, Market(), 20)


def _against_references(found: Everything) -> Target:
    per_s = found.frames[0].search.highest
    times = {name: per_s / written for name, (_, written) in figures(found.references).items()}
    missing = [each.name for each in REFERENCES if each.name not in times]
    text = ", ".join(
        [f"{name}: {value:.1f} times" for name, value in times.items()]
        + [f"{name}: skipped" for name in missing]
    )
    reached = min(times.values()) >= _TIMES_REFERENCES if times else None
    return Target("… against other programs", f"≥ {_TIMES_REFERENCES:g} times", text, reached)


def _floods(found: Everything) -> Iterator[Target]:
    for symbols, least_in, least_out in ((500, 400_000, 100_000), (10_000, 300_000, 0)):
        flood = found.sizes.floods[symbols]
        work = f"flood, {symbols:,} symbols"
        yield Target(
            f"{work}, taken in", f"≥ {least_in:,}/s", *_least(flood.in_per_s, least_in, "/s")
        )
        if least_out:
            yield Target(
                f"{work}, published",
                f"≥ {least_out:,}/s",
                *_least(flood.out_per_s, least_out, "/s"),
            )
        prices = "right" if flood.wrong == [] else "WRONG"
        yield Target(f"{work}, last prices", "right", prices, flood.wrong == [])
        middle, end = flood.rss_mb
        if middle is None or end is None:
            yield Target(f"{work}, memory", "flat", "unknown here", None)
        else:
            text = f"{middle:.0f} MB in the middle, {end:.0f} MB at the end"
            yield Target(f"{work}, memory", "flat", text, end <= _FLAT * middle)


def _least(value: float, least: float, unit: str) -> tuple[str, bool]:
    return f"{value:,.0f}{unit}", value >= least


def _latencies(found: Everything) -> Iterator[Target]:
    def middle(program: str, of: Callable[[Measured], Outcome], place: int) -> float:
        runs = [of(each) for each in found.measured if each.program == program]
        return median(ms for run in runs if (ms := run.latency_ms[place]) is not None)

    ours = middle(RAW.name, lambda each: each.paced, 0)
    as_a = middle(REFERENCE.name, lambda each: each.paced, 0)
    text = f"{ours:.2f} ms, {100 * ours / as_a:.0f} % of A's {as_a:.2f} ms"
    yield Target("latency p50, 1,000/s", "≤ a third of A's", text, ours <= as_a / 3)
    for place, name, limits in ((0, "10,000", (0.6, 2.5)), (1, "60,000", (None, 5))):
        for percentile, limit in enumerate(limits):
            if limit is not None:
                ms = middle(RAW.name, lambda each, place=place: each.faster[place], percentile)
                yield _at_most(f"latency p{('50', '99')[percentile]}, {name}/s", limit, ms, "ms")


def _frugality(found: Everything) -> Iterator[Target]:
    spent = busy(found.sizes.quiet, "program")
    if spent is None:
        yield Target("CPU at 100 quotes/s", "≤ 4 %", "unknown here", None)
    else:
        yield _at_most("CPU at 100 quotes/s", 4, spent, "%", ".1f")
    for program, limit_mb in ((RAW, 150), (ALPACA_PY, 200)):
        rss_mb = found.sizes.live[program.name].rss_mb[1]
        work = f"memory, 10,000 symbols live, {program.driver}"
        if rss_mb is None:
            yield Target(work, f"≤ {limit_mb} MB", "unknown here", None)
        else:
            yield _at_most(work, limit_mb, rss_mb, "MB", ".0f")


def _starts(found: Everything) -> Iterator[Target]:
    for positions, limit_ms in ((100, 2), (10_000, 60)):
        work = f"one P&L request, {positions:,} positions, p99"
        yield _at_most(work, limit_ms, found.pnl[positions]["p99_ms"], "ms", ".1f")
    yield _at_most("import mdservice", 0.25, found.starts.import_s, "s")
    yield _at_most("mdservice --help", 0.4, found.starts.help_s, "s")
    for program, limit_s in ((RAW, 2), (ALPACA_PY, 3)):
        ready_s = found.starts.ready_s[program.driver]
        yield _at_most(f"second start to ready, {program.driver}", limit_s, ready_s, "s")
