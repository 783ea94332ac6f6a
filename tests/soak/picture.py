"""A soak as a picture: a row for each figure, a line for each program, a mark for each fault."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape

from tests.soak.faults import Fault
from tests.soak.judge import Sample

__all__ = ["picture"]

_WIDTH, _ROW = 940, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 920, 34, 140
_COLOURS = {"service": "#1f6f8b", "gateway": "#b5651d"}
_FAULT = "#d8d8d8"
_MOST_POINTS = 800

Value = Callable[[Sample], float | None]


def _latency(place: int) -> Value:
    return lambda sample: None if sample.latency_ms is None else sample.latency_ms[place]


_ROWS: Sequence[tuple[str, Value]] = (
    ("Memory, MB", lambda sample: sample.rss_mb),
    ("Open files and sockets", lambda sample: sample.descriptors),
    ("Threads", lambda sample: sample.threads),
    ("Processor, part of a core", lambda sample: sample.cpu),
    ("From the feed to a reader, p50, ms (the scale ends at 99 of 100)", _latency(0)),
    ("From the feed to a reader, p99, ms (likewise)", _latency(1)),
)


def picture(samples: Sequence[Sample], faults: Sequence[Fault]) -> str:
    """The whole document."""
    length_s = max([sample.at_s for sample in samples], default=1.0)
    height = _ROW * len(_ROWS) + 30
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
            f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12">'
        ),
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for row, (title, value) in enumerate(_ROWS):
        parts.append(f'<g transform="translate(0 {row * _ROW})">')
        parts += _row(title, value, samples, faults, length_s)
        parts.append("</g>")
    for place, (name, colour) in enumerate((*_COLOURS.items(), ("fault", _FAULT))):
        x, y = _LEFT + place * 90, height - 12
        parts.append(f'<rect x="{x}" y="{y - 10}" width="11" height="11" fill="{colour}"/>')
        parts.append(_text(x + 15, y, name, "start"))
    return "\n".join((*parts, "</svg>")) + "\n"


def _row(
    title: str, value: Value, samples: Sequence[Sample], faults: Sequence[Fault], length_s: float
) -> Iterator[str]:
    lines = {
        name: [
            (sample.at_s, found)
            for sample in samples
            if sample.program == name and (found := value(sample)) is not None
        ]
        for name in _COLOURS
    }
    values = sorted(found for line in lines.values() for _, found in line)
    top = _round_up(values[int(len(values) * 0.99)] if values else 1.0)
    yield _text(_LEFT - 60, 20, title, "start", bold=True)
    for fault in faults:
        x = _x(fault.began_s, length_s)
        width = max(1.0, _x(fault.ended_s or fault.began_s, length_s) - x)
        yield (
            f'<rect x="{x:.1f}" y="{_TOP}" width="{width:.1f}" height="{_BOTTOM - _TOP}" '
            f'fill="{_FAULT}"><title>{escape(fault.name)}</title></rect>'
        )
    for part in (0, 0.5, 1):
        y = _y(part)
        yield f'<line x1="{_LEFT}" y1="{y:.0f}" x2="{_RIGHT}" y2="{y:.0f}" stroke="#eeeeee"/>'
        yield _text(_LEFT - 6, y + 4, f"{part * top:g}", "end")
    for hour in range(int(length_s / 3600) + 1):
        yield _text(_x(hour * 3600, length_s), _BOTTOM + 16, f"{hour} h", "middle")
    for name, line in lines.items():
        dots = " ".join(
            f"{_x(at_s, length_s):.1f},{_y(min(1.0, found / top)):.1f}"
            for at_s, found in line[:: max(1, len(line) // _MOST_POINTS)]
        )
        yield f'<polyline points="{dots}" fill="none" stroke="{_COLOURS[name]}"/>'


def _text(x: float, y: float, text: str, anchor: str, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    place = f'x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"'
    return f"<text {place}{weight}>{escape(text)}</text>"


def _x(at_s: float, length_s: float) -> float:
    return _LEFT + (_RIGHT - _LEFT) * at_s / length_s


def _y(part: float) -> float:
    return _BOTTOM - part * (_BOTTOM - _TOP)


def _round_up(value: float) -> float:
    """To one, two or five times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value)
