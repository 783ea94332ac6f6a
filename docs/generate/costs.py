"""The picture of what a quote costs on its way, drawn from the figures below.

They are those of "Where the time goes" in ``docs/performance.md``, as texts; a test compares.
"""

from __future__ import annotations

from typing import Final
from xml.sax.saxutils import escape

__all__ = ["FIGURES", "costs"]

_STEPS: Final = (
    ("Codec", "decoding", "0.53", "#0969da"),
    ("Sequencer", "routing", "0.10", "#8250df"),
    ("encode_quote", "encoding", "0.84", "#1a7f37"),
    ("BatchPacker", "packing", "0.17", "#bf3989"),
)
"""By whom, what, µs a quote, colour."""
_LATENCY: Final = (
    ("1,000 quotes/s", "0.64 ms", "p50"),
    ("10,000 quotes/s", "0.30 ms", "p50"),
    ("10,000 quotes/s", "0.55 ms", "p99"),
)
"""From the quote to the event in another process, by the raw driver."""

FIGURES: Final = (
    *(figure for _, _, figure, _ in _STEPS),
    *(figure for _, figure, _ in _LATENCY),
)
"""All that was measured, as it stands in the picture."""

_LEFT: Final = 24.0
_WIDTH: Final = 712.0
_HEAD: Final = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 352" role="img" aria-labelledby="title">
  <title id="title">What a quote costs on its way from the socket to Redis</title>
  <style>
    text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; \
fill: #1f2328; }
    .name { font-weight: 600; }
    .code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; \
font-size: 12px; }
    .note { font-size: 12px; fill: #57606a; }
    .mid { text-anchor: middle; }
    .light { fill: #ffffff; font-weight: 600; text-anchor: middle; }
    .box { fill: #f6f8fa; stroke: #8c959f; }
    .way { fill: none; stroke: #24292f; stroke-width: 1.5; marker-end: url(#tip); }
  </style>
  <defs>
    <marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" \
orient="auto">
      <path d="M0 0 L8 4 L0 8 z" fill="#24292f"/>
    </marker>
  </defs>
  <rect x="0.5" y="0.5" width="759" height="351" rx="8" fill="#ffffff" stroke="#d0d7de"/>"""
_HOPS: Final = (
    ("Alpaca", "socket"),
    ("driver", "all of one read"),
    ("actors", "lists on channels"),
    ("Redis", "one transaction"),
    ("readers", "one event a quote"),
)


def costs() -> str:
    """The picture."""
    return "\n".join([_HEAD, *_bar(), *_hops(), *_latencies(), "</svg>", ""])


def _text(x: float, y: float, kind: str, words: str) -> str:
    return f'  <text class="{kind}" x="{x:.0f}" y="{y:.0f}">{escape(words)}</text>'


def _bar() -> list[str]:
    """One bar for a quote, in proportion; below it who does it."""
    total = sum(float(figure) for _, _, figure, _ in _STEPS)
    words = f"Each quote: about {total:.1f} µs of processor time for these"
    drawn = [_text(_LEFT, 30, "name", words)]
    left = _LEFT
    for who, what, figure, colour in _STEPS:
        width = _WIDTH * float(figure) / total
        drawn.append(
            f'  <rect x="{left:.1f}" y="44" width="{width:.1f}" height="40" fill="{colour}"/>'
        )
        middle, wide = left + width / 2, width > 80  # noqa: PLR2004 - room for the words
        if wide:
            drawn.append(_text(middle, 69, "light", f"{what} {figure}"))
            drawn.append(_text(middle, 102, "code mid", who))
        else:
            drawn.append(_text(middle, 69, "light", figure))
            drawn.append(_text(middle, 102, "code mid", who))
            drawn.append(_text(middle, 118, "note mid", what))
        left += width
    return drawn


def _hops() -> list[str]:
    drawn = [_text(_LEFT, 158, "name", "Shared by all quotes of a batch")]
    width, gap = 122.0, 25.5
    for place, (name, note) in enumerate(_HOPS):
        left = _LEFT + place * (width + gap)
        drawn.append(
            f'  <rect class="box" x="{left:.1f}" y="172" width="{width:.0f}" height="50" rx="6"/>'
        )
        drawn.append(_text(left + width / 2, 193, "name mid", name))
        drawn.append(_text(left + width / 2, 211, "note mid", note))
        if place:
            drawn.append(f'  <path class="way" d="M{left - gap:.1f} 197 H{left:.1f}"/>')
    return drawn


def _latencies() -> list[str]:
    drawn = [_text(_LEFT, 262, "name", "From the quote to the event in another process")]
    for place, (pace, figure, what) in enumerate(_LATENCY):
        left = _LEFT + place * 240
        drawn.append(f'  <rect class="box" x="{left:.0f}" y="276" width="232" height="54" rx="6"/>')
        drawn.append(_text(left + 116, 298, "name mid", f"{figure} ({what})"))
        drawn.append(_text(left + 116, 317, "note mid", f"at {pace}"))
    return drawn
