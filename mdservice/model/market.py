"""The hours of the stock market: what its clock says, and the last session before a moment. Pure.

Alpaca's clock does not tell the past, so the last session follows from the exchange's rules. They
do not have closures that were never planned, such as a day of mourning: prices of the day before
then count as older than the last session, until the market opens again.

Source: Alpaca, trading API, ``GET /v2/clock``; NYSE, "Holidays & Trading Hours", and rule 7.2.
"""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

import attrs
import msgspec

from mdservice.model.timestamps import parse_rfc3339

__all__ = ["Market", "Session", "last_session"]

_S_NS: Final = 1_000_000_000
_NEW_YORK: Final = ZoneInfo("America/New_York")
_DAY: Final = timedelta(days=1)
_CLOSE, _EARLY_CLOSE = time(16), time(13)
_MON, _THU, _FRI, _SAT, _SUN = 0, 3, 4, 5, 6
_JUNETEENTH_SINCE: Final = 2022


class Market(msgspec.Struct, frozen=True):
    """What the market's clock says.

    Attributes:
        is_open: Whether the regular session is on.
        next_open: RFC 3339, as the clock wrote it; None if it has not.
        next_close: Likewise.
    """

    is_open: bool
    next_open: str | None = None
    next_close: str | None = None

    def __post_init__(self) -> None:
        """Refuse what is not a clock.

        Raises:
            ValueError: A time cannot be read.
        """
        for text in (self.next_open, self.next_close):
            if text is not None:
                parse_rfc3339(text)

    @property
    def changes_ns(self) -> int | None:
        """When it opens or closes next, UTC nanoseconds; None if that is not known."""
        text = self.next_close if self.is_open else self.next_open
        return None if text is None else parse_rfc3339(text)


@attrs.frozen
class Session:
    """A day of trading.

    Attributes:
        date: In New York.
        begins_ns: The close of the session before, UTC nanoseconds: trades from then on, in the
            hours before the open too, belong to this one.
        closes_ns: Its regular close, UTC nanoseconds.
    """

    date: date
    begins_ns: int
    closes_ns: int


def last_session(at_ns: int) -> Session:
    """The session whose close is the last one at or before a moment."""
    day = _trading_day(datetime.fromtimestamp(at_ns // _S_NS, _NEW_YORK).date())
    if _close_ns(day) > at_ns:
        day = _trading_day(day - _DAY)
    return Session(day, _close_ns(_trading_day(day - _DAY)), _close_ns(day))


def _trading_day(day: date) -> date:
    """The day, or the last one before it with a session."""
    while not _is_trading_day(day):
        day -= _DAY
    return day


def _close_ns(day: date) -> int:
    return int(datetime.combine(day, _close_of(day), _NEW_YORK).timestamp()) * _S_NS


def _is_trading_day(day: date) -> bool:
    return day.weekday() < _SAT and day not in _holidays(day.year)


def _close_of(day: date) -> time:
    """Early on the day after Thanksgiving, and on the eves of Independence Day and Christmas."""
    eve = (day.month, day.day) in {(7, 3), (12, 24)}
    return _EARLY_CLOSE if eve or day == _nth(day.year, 11, _THU, 4) + _DAY else _CLOSE


@lru_cache(maxsize=16)
def _holidays(year: int) -> frozenset[date]:
    new_year = date(year, 1, 1)
    days = {
        _nth(year, 1, _MON, 3),
        _nth(year, 2, _MON, 3),
        _easter(year) - 2 * _DAY,
        _nth(year, 6, _MON, 1) - 7 * _DAY,  # the last Monday in May
        _observed(date(year, 7, 4)),
        _nth(year, 9, _MON, 1),
        _nth(year, 11, _THU, 4),
        _observed(date(year, 12, 25)),
        # One on a Saturday is not observed: its Friday belongs to the old year.
        new_year + _DAY if new_year.weekday() == _SUN else new_year,
    }
    if year >= _JUNETEENTH_SINCE:
        days.add(_observed(date(year, 6, 19)))
    return frozenset(days)


def _nth(year: int, month: int, weekday: int, number: int) -> date:
    first = date(year, month, 1)
    return first + timedelta(days=(weekday - first.weekday()) % 7 + 7 * (number - 1))


def _observed(day: date) -> date:
    if day.weekday() == _SAT:
        return day - _DAY
    return day + _DAY if day.weekday() == _SUN else day


def _easter(year: int) -> date:
    """Easter Sunday, by the anonymous Gregorian algorithm (Meeus, "Astronomical Algorithms")."""
    golden, (century, rest) = year % 19, divmod(year, 100)
    skipped = century - century // 4 - (century - (century + 8) // 25 + 1) // 3
    moon = (19 * golden + skipped + 15) % 30
    week = (32 + 2 * (century % 4) + 2 * (rest // 4) - moon - rest % 4) % 7
    late = (golden + 11 * moon + 22 * week) // 451
    month, day = divmod(moon + week - 7 * late + 114, 31)
    return date(year, month, day + 1)
