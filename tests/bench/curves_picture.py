"""The curves as a picture: a row each, throughput on the left, who used the cores on the right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from tests.bench.curves import PROCESSES, Point, value_of

_WIDTH, _HEIGHT = 940, 250
_LEFTS, _CHART_WIDTH = (74, 544), 380
_LEGEND_WIDTH = 86
_TOP, _BOTTOM = 52, 200
_COLOURS = {
    "program": "#1f6f8b",
    "redis": "#b5651d",
    "feed": "#888888",
    "listener": "#5a9367",
    "readers": "#a9c9a4",
}
_IN, _OUT = "#8fc1d4", "#1f6f8b"
_BAR, _GAP = 18, 2
_NAMES = {
    "program": "program",
    "redis": "Valkey",
    "listener": "first reader",
    "readers": "more readers",
}


def picture(curves: dict[str, list[Point]]) -> str:
    """The whole document."""
    parts: list[str] = []
    for row, (title, points) in enumerate(curves.items()):
        top = row * _HEIGHT
        parts.append(f'<g transform="translate(0 {top})">')
        parts += _throughput(title, points)
        parts += _cores(title, points)
        parts.append("</g>")
    height = _HEIGHT * len(curves) + 40
    parts += _legend(height - 22)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12">'
    )
    background = f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>'
    return "\n".join((head, background, *parts, "</svg>")) + "\n"


def _places(left: int, count: int) -> list[float]:
    """The middle of each column."""
    column = _CHART_WIDTH / count
    return [left + column * (place + 0.5) for place in range(count)]


def _throughput(title: str, points: Sequence[Point]) -> Iterator[str]:
    left = _LEFTS[0]
    yield _text(left - 60, 24, f"Flooded, by {title}: quotes per second", "start", bold=True)
    top = _round_up(max(point.in_per_s for point in points))
    yield from _axis(left, [value_of(title, point.setting) for point in points], top, "{:,.0f}")
    for name, colour in (("in_per_s", _IN), ("out_per_s", _OUT)):
        places = zip(_places(left, len(points)), points, strict=True)
        dots = [(x, _y(getattr(point, name) / top)) for x, point in places]
        line = " ".join(f"{x:.0f},{y:.0f}" for x, y in dots)
        yield f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>'
        yield from (f'<circle cx="{x:.0f}" cy="{y:.0f}" r="3" fill="{colour}"/>' for x, y in dots)


def _cores(title: str, points: Sequence[Point]) -> Iterator[str]:
    left = _LEFTS[1]
    heading = "Use of the two cores: by the program, by others"
    yield _text(left - 40, 24, heading, "start", bold=True)
    yield from _axis(left, [value_of(title, point.setting) for point in points], 1.0, "{:.0%}")
    for x, point in zip(_places(left, len(points)), points, strict=True):
        yield from _stack(x - _BAR - _GAP / 2, [("program", point.cpu.get("program", 0.0))])
        others = [(name, point.cpu[name]) for name in PROCESSES[1:] if name in point.cpu]
        yield from _stack(x + _GAP / 2, others)


def _stack(x: float, parts: Sequence[tuple[str, float]]) -> Iterator[str]:
    used = 0.0
    for name, part in parts:
        y, height = _y(used + part), part * (_BOTTOM - _TOP)
        box = f'x="{x:.1f}" y="{y:.1f}" width="{_BAR}" height="{height:.1f}"'
        yield f'<rect {box} fill="{_COLOURS[name]}"/>'
        used += part


def _axis(left: int, values: Sequence[int], top: float, form: str) -> Iterator[str]:
    for part in (0, 0.5, 1):
        y = _y(part)
        line = f'x1="{left}" y1="{y:.0f}" x2="{left + _CHART_WIDTH}" y2="{y:.0f}"'
        yield f'<line {line} stroke="#dddddd"/>'
        yield _text(left - 6, y + 4, form.format(part * top), "end")
    for x, value in zip(_places(left, len(values)), values, strict=True):
        yield _text(x, _BOTTOM + 18, f"{value:,}", "middle")


def _legend(y: int) -> Iterator[str]:
    processes = [(_NAMES.get(name, name), colour) for name, colour in _COLOURS.items()]
    for left, entries in zip(
        _LEFTS, ([("taken in", _IN), ("published", _OUT)], processes), strict=True
    ):
        for place, (name, colour) in enumerate(entries):
            x = left - 60 + place * _LEGEND_WIDTH
            yield f'<rect x="{x}" y="{y - 10}" width="11" height="11" fill="{colour}"/>'
            yield _text(x + 15, y, name, "start")


def _text(x: float, y: float, text: str, anchor: str, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    place = f'x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"'
    return f"<text {place}{weight}>{escape(text)}</text>"


def _y(part: float) -> float:
    return _BOTTOM - part * (_BOTTOM - _TOP)


def _round_up(value: float) -> float:
    """To full hundred thousands."""
    step = 100_000
    return max(step, -(-value // step) * step)
