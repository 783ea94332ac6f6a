"""When the market is open, as ``/v2/clock`` tells it.

Pure: the time is an argument.
"""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import msgspec

__all__ = ["encode_clock"]

_OPENS, _CLOSES = time(9, 30), time(16, 0)
_SATURDAY = 5


def encode_clock(now_ns: int, *, is_open: bool) -> bytes:
    """``{"timestamp":"…","is_open":true,"next_open":"…","next_close":"…"}``, New York's time.

    ``is_open`` is what the simulator was told; the next times fit it, by the usual hours of
    the days from Monday to Friday, without holidays.
    """
    second, fraction = divmod(now_ns, 1_000_000_000)
    now = datetime.fromtimestamp(second, UTC).astimezone(ZoneInfo("America/New_York"))
    if is_open:
        next_close = _next(now, _CLOSES)
        next_open = _next(next_close, _OPENS)
    else:
        next_open = _next(now, _OPENS)
        next_close = _next(next_open, _CLOSES)
    # Python's text ends with microseconds; the offset follows the nanoseconds.
    text = now.isoformat()
    stamp = f"{text[:19]}.{fraction:09d}{text[19:]}"
    return msgspec.json.encode(
        {
            "timestamp": stamp,
            "is_open": is_open,
            "next_open": next_open.isoformat(),
            "next_close": next_close.isoformat(),
        }
    )


def _next(after: datetime, at: time) -> datetime:
    """The first weekday's ``at`` after this moment."""
    day = after.date()
    while True:
        moment = datetime.combine(day, at, after.tzinfo)
        if moment > after and day.weekday() < _SATURDAY:
            return moment
        day += timedelta(days=1)
