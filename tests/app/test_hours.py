"""What the silence of each feed means, by the time of the day in New York."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from mdservice.app.status import FeedFacts, always_open, news_hours


class Clock:
    def __init__(self, day_and_time: str) -> None:
        moment = datetime.fromisoformat(day_and_time).replace(tzinfo=ZoneInfo("America/New_York"))
        self._ns = int(moment.timestamp()) * 1_000_000_000

    def utc_ns(self) -> int:
        return self._ns

    def monotonic(self) -> float:
        return 0.0


def facts(*, is_open: bool) -> FeedFacts:
    async def opened() -> bool:
        return is_open

    return FeedFacts("iex", False, False, 0.0, opened, lambda: None)


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("2026-11-20 03:59", "closed"),
        ("2026-11-20 04:00", "extended"),
        ("2026-11-20 09:29", "extended"),
        ("2026-11-20 16:01", "extended"),
        ("2026-11-20 19:59", "extended"),
        ("2026-11-20 20:00", "closed"),
        ("2026-11-21 12:00", "closed"),  # a Saturday
        ("2026-07-06 04:00", "extended"),  # summer time
        ("2026-07-06 03:59", "closed"),
    ],
)
async def test_stocks_are_judged_before_the_open_and_after_the_close(
    at: str, expected: str
) -> None:
    hours = facts(is_open=False).hours(Clock(at))
    assert await hours() == expected


async def test_an_open_market_counts_whatever_the_time() -> None:
    assert await facts(is_open=True).hours(Clock("2026-11-21 02:00"))() == "open"


@pytest.mark.parametrize(("is_open", "expected"), [(True, "open"), (False, "closed")])
async def test_options_are_judged_while_their_market_is_open(is_open: bool, expected: str) -> None:
    assert await facts(is_open=is_open).regular_hours() == expected


async def test_crypto_never_closes_and_news_need_a_newer_article() -> None:
    assert await always_open() == "open"
    assert await news_hours() == "extended"
