"""A week in which nothing is wrong raises no alert."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from mdservice.feed.liveness import Hours
from tests.operations.bench import open_bench
from tests.operations.parts import gateway, journal
from tests.operations.promtool import SCRAPE_S, Scrapes, judge, needs_promtool
from tests.simulation.clocks import jumping_clock

_HOUR_S = 3600
_DAY: tuple[tuple[Hours, float, float | None], ...] = (
    ("closed", 4, None),
    ("extended", 5.5, 20.0),
    ("open", 6.5, 2.0),
    ("extended", 4, 20.0),
    ("closed", 4, None),
)
"""A working day in New York: what silence means, for how many hours, and the seconds between two
quotes of a symbol."""


async def scrape_quiet_day(longest_h: float) -> tuple[Scrapes, list[range]]:
    """Run an installation through a day; its scrapes, and those of each part of the day.

    Once in each part the feed and Redis lose their connection for a moment.

    Args:
        longest_h: Of each part, no more hours than these.
    """
    parts = []
    settings = {"relay": "127.0.0.1:0"}
    async with open_bench(settings) as bench, journal(bench), gateway(bench):
        for hours, length_h, quotes_every_s in _DAY:
            first = bench.scrapes.count
            bench.hours, bench.quotes_every_s = hours, quotes_every_s
            length_s = min(length_h, longest_h) * _HOUR_S
            await bench.scrape_for(length_s / 4)
            bench.feed.drop()
            bench.store.drop_connection()
            await bench.scrape_for(length_s * 3 / 4)
            parts.append(range(first, bench.scrapes.count))
    return bench.scrapes, parts


def _lasting(part: range, hours: float) -> Iterator[range]:
    """A part of the day that lasts so long, by its second half again and again."""
    yield part
    left = round(hours * _HOUR_S / SCRAPE_S) - len(part)
    half = part[len(part) // 2 :]
    while left > 0:
        yield half[:left]
        left -= len(half)


@needs_promtool
@pytest.mark.parametrize("longest_h", [0.5, pytest.param(24, marks=pytest.mark.slow)])
def test_a_quiet_week_raises_none(longest_h: float, tmp_path: Path) -> None:
    scrapes, parts = trio.run(scrape_quiet_day, longest_h, clock=jumping_clock())
    lengths_h = [length_h for _, length_h, _ in _DAY]
    day = [
        each
        for part, length_h in zip(parts, lengths_h, strict=True)
        for each in _lasting(part, length_h)
    ]
    week = scrapes.again([*day * 5, *_lasting(parts[-1], 48)])
    assert week.count == 7 * 24 * _HOUR_S / SCRAPE_S
    if wrong := judge(week, [], tmp_path, every_s=60):
        pytest.fail(wrong)
