"""The market's clock, and the last session: weekends, holidays, early closes."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import msgspec
import pytest

from mdservice.model.market import Market, last_session

NEW_YORK = ZoneInfo("America/New_York")
HOLIDAYS_OF_2026 = [
    "2026-01-01",
    "2026-01-19",
    "2026-02-16",
    "2026-04-03",
    "2026-05-25",
    "2026-06-19",
    "2026-07-03",
    "2026-09-07",
    "2026-11-26",
    "2026-12-25",
]
OTHER_HOLIDAYS = [
    "2024-03-29",
    "2025-04-18",
    "2027-03-26",
    "2028-04-14",
    "2022-12-26",
    "2023-01-02",
    "2021-07-05",
    "2021-12-24",
    "2024-12-25",
    "2022-06-20",
    "2027-06-18",
    "2028-07-04",
]


def ns(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=NEW_YORK).timestamp()) * 10**9


@pytest.mark.parametrize("day", [*HOLIDAYS_OF_2026, *OTHER_HOLIDAYS])
def test_a_holiday_has_no_session(day: str) -> None:
    assert str(last_session(ns(f"{day}T23:59:00")).date) < day


@pytest.mark.parametrize("day", ["2021-12-31", "2021-06-18", "2026-07-02", "2026-12-24"])
def test_a_day_beside_a_holiday_has_one(day: str) -> None:
    assert str(last_session(ns(f"{day}T16:00:00")).date) == day


@pytest.mark.parametrize(
    ("at", "date", "close"),
    [
        ("2026-11-20T16:00:00", "2026-11-20", "16:00"),
        ("2026-11-20T15:59:59", "2026-11-19", "16:00"),
        ("2026-11-21T12:00:00", "2026-11-20", "16:00"),
        ("2026-11-23T09:29:59", "2026-11-20", "16:00"),
        ("2026-11-26T12:00:00", "2026-11-25", "16:00"),
        ("2026-11-27T13:00:00", "2026-11-27", "13:00"),
        ("2026-11-27T12:59:59", "2026-11-25", "16:00"),
        ("2025-07-03T13:00:00", "2025-07-03", "13:00"),
        ("2026-12-24T14:00:00", "2026-12-24", "13:00"),
        ("2026-03-09T03:00:00", "2026-03-06", "16:00"),
        ("2026-01-01T10:00:00", "2025-12-31", "16:00"),
    ],
)
def test_the_last_session_is_the_one_that_closed_last(at: str, date: str, close: str) -> None:
    session = last_session(ns(at))
    assert str(session.date) == date
    assert session.closes_ns == ns(f"{date}T{close}")
    assert session.begins_ns == last_session(session.closes_ns - 1).closes_ns


def test_a_clock_says_when_it_changes() -> None:
    times = "2026-11-23T09:30:00-05:00", "2026-11-23T16:00:00-05:00"
    assert Market(False, *times).changes_ns == ns("2026-11-23T09:30:00")
    assert Market(True, *times).changes_ns == ns("2026-11-23T16:00:00")
    assert Market(True).changes_ns is None


@pytest.mark.parametrize("text", ["", "soon", "2026-11-23"])
def test_what_has_no_times_is_no_clock(text: str) -> None:
    encoded = msgspec.json.encode(
        {"is_open": True, "next_open": text, "next_close": "2026-11-23T16:00:00-05:00"}
    )
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(encoded, type=Market)
