"""One run as a picture: throughput and latency, as bars, in SVG written by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from statistics import median

from tests.bench.benchmark import RAW, REFERENCE
from tests.bench.references import figures
from tests.bench.results import Measured
from tests.bench.suite import Everything

_WIDTH, _LABEL, _BARS, _ROW = 940, 330, 440, 24
_TOP = 34
_A, _A_LIGHT, _OURS, _LIGHT, _OTHER = "#b5651d", "#dfb48d", "#1f6f8b", "#8fc1d4", "#888888"

_Bar = tuple[str, float, str, str]
"""Label, length, text behind the bar, colour."""


def picture(found: Everything) -> str:
    """The whole document."""
    charts = (
        (
            "Quotes per second, every one published; A and other programs flooded",
            list(_throughput(found)),
        ),
        ("Latency from the quote to the event heard: p50 dark, p99 light", list(_latency(found))),
    )
    parts: list[str] = []
    y = 0
    for title, bars in charts:
        parts += _chart(title, bars, y)
        y += _TOP + _ROW * len(bars) + 20
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y}" '
        f'viewBox="0 0 {_WIDTH} {y}" font-family="sans-serif" font-size="13">'
    )
    background = f'<rect width="{_WIDTH}" height="{y}" fill="#ffffff"/>'
    return "\n".join((head, background, *parts, "</svg>")) + "\n"


def _chart(title: str, bars: Sequence[_Bar], y: int) -> Iterator[str]:
    longest = max(length for _, length, _, _ in bars) or 1
    yield f'<text x="10" y="{y + 22}" font-weight="bold">{escape(title)}</text>'
    for place, (label, length, text, colour) in enumerate(bars):
        top = y + _TOP + place * _ROW
        width = max(1, round(_BARS * length / longest))
        yield f'<text x="{_LABEL - 8}" y="{top + 14}" text-anchor="end">{escape(label)}</text>'
        yield f'<rect x="{_LABEL}" y="{top}" width="{width}" height="18" fill="{colour}"/>'
        yield f'<text x="{_LABEL + width + 6}" y="{top + 14}">{escape(text)}</text>'


def _throughput(found: Everything) -> Iterator[_Bar]:
    told: set[int] = set()
    for case in sorted(found.frames, key=lambda case: case.market.per_frame):
        size = case.market.per_frame
        if size not in told:
            told.add(size)
            per_s = case.reference_per_s
            yield f"{REFERENCE.name}, {size} a frame", per_s, f"{per_s:,.0f}", _A
        label = f"{case.program}, {case.market.encoding}, {size} a frame"
        held = "" if case.search.held_s else ", held shortly"
        text = f"{case.search.highest:,.0f} ({case.times_reference:.0f} times A{held})"
        if not case.search.highest:
            text = "no pace was held"
        yield label, case.search.highest, text, _OURS
    for name, (_, written) in figures(found.references).items():
        yield f"{name}: streams only, flooded", written, f"{written:,.0f}", _OTHER
    top = median(found.ceilings)
    yield "ceiling: the bytes on a plain socket", top, f"{top:,.0f}", _OTHER


def _latency(found: Everything) -> Iterator[_Bar]:
    for program in dict.fromkeys(each.program for each in found.measured):
        runs = [each for each in found.measured if each.program == program]
        yield from _percentiles(f"{program}, 1,000/s", runs, -1)
        if program == RAW.name:
            for place, outcome in enumerate(runs[0].faster):
                yield from _percentiles(f"{program}, {outcome.load.rate:,.0f}/s", runs, place)


def _percentiles(label: str, runs: Sequence[Measured], place: int) -> Iterator[_Bar]:
    """Two bars; place -1 is the quiet load."""
    colours = (_A, _A_LIGHT) if runs[0].program == REFERENCE.name else (_OURS, _LIGHT)
    outcomes = [run.paced if place < 0 else run.faster[place] for run in runs]
    for percentile, colour in enumerate(colours):
        known = [ms for each in outcomes if (ms := each.latency_ms[percentile]) is not None]
        ms = median(known) if known else 0.0
        yield label if percentile == 0 else "", ms, f"{ms:.2f} ms", colour
