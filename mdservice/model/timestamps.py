"""Conversion between UTC nanoseconds (inside) and RFC 3339 text (outside), without loss."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache
from zoneinfo import ZoneInfo

__all__ = [
    "EARLIEST_NS",
    "LATEST_NS",
    "format_ns",
    "format_short_ns",
    "new_york_day",
    "parse_rfc3339",
    "parse_written",
]

_SECOND_NS = 1_000_000_000
_DECIMALS = 9
_digits = int.__repr__  # for integers only
EARLIEST_NS = -62_135_596_800 * _SECOND_NS
"""0001-01-01T00:00:00Z; RFC 3339 has four digits for the year, Python none before 1."""
LATEST_NS = 253_402_300_800 * _SECOND_NS - 1
"""9999-12-31T23:59:59.999999999Z."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)

_prefix_of_second: dict[int, str] = {}
_ns_of_prefix: dict[str, int] = {}
_CACHED_SECONDS = 256
_PREFIX_LENGTH = len("2026-11-20T15:51:44")
_SEPARATOR = len("2026-11-20")
_POINT = _PREFIX_LENGTH + 1
_WRITTEN_LENGTH = _POINT + _DECIMALS + 1


def format_ns(ns: int) -> str:
    """UTC nanoseconds as ``2026-11-20T15:51:44.208912345Z``, always nine decimals.

    Texts of this form sort in the order of their times. The time must lie between
    :data:`EARLIEST_NS` and :data:`LATEST_NS`.
    """
    prefix = _prefix_of_second.get(ns // _SECOND_NS)
    if prefix is not None:
        return f"{prefix}{_digits(ns)[-_DECIMALS:]}Z"  # half the cost of formatting the remainder
    second = ns // _SECOND_NS
    # isoformat, since strftime does not fill up the years before 1000 with zeros
    prefix = datetime.fromtimestamp(second, UTC).isoformat()[:_PREFIX_LENGTH] + "."
    if second > 0:
        if len(_prefix_of_second) >= _CACHED_SECONDS:
            _prefix_of_second.clear()
        _prefix_of_second[second] = prefix
    return f"{prefix}{ns % _SECOND_NS:09d}Z"


def format_short_ns(ns: int) -> str:
    """The same as Alpaca writes it, without zeros at the end: ``2026-11-20T15:51:44.2Z``."""
    text = format_ns(ns)
    return text if ns % 10 else text[:-1].rstrip("0").rstrip(".") + "Z"


def parse_rfc3339(text: str) -> int:
    """RFC 3339 text as UTC nanoseconds; digits beyond the ninth decimal are cut.

    Alpaca cuts trailing zeros, so the fraction may have any length or be missing.

    Raises:
        ValueError: The text is not a date and time with an offset, or its UTC time is outside
            the years 1 to 9999.
    """
    second_ns = _ns_of_prefix.get(text[:_POINT])
    if second_ns is not None and text[-1] == "Z" and text.isascii():
        fraction = text[_POINT:-1]
        if fraction.isdecimal():
            if len(fraction) != _DECIMALS:
                fraction = fraction[:_DECIMALS].ljust(_DECIMALS, "0")
            return second_ns + int(fraction)
    return _parse_slowly(text)


def parse_written(text: str) -> int | None:
    """UTC nanoseconds of a text that is exactly as :func:`format_ns` writes it.

    None for any other text, and for one whose second :func:`parse_rfc3339` has not read lately.
    """
    second_ns = _ns_of_prefix.get(text[:_POINT])
    fraction = text[_POINT:-1]
    if second_ns is None or len(text) != _WRITTEN_LENGTH or text[-1] != "Z":
        return None
    return second_ns + int(fraction) if fraction.isdecimal() and fraction.isascii() else None


def _parse_slowly(text: str) -> int:
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(f"not an RFC 3339 time: {text[:40]!r}")
    day, clock, fraction, offset = match.groups()
    moment = datetime.fromisoformat(f"{day}T{clock}{'+00:00' if offset in 'Zz' else offset}")
    elapsed = moment - _EPOCH
    second = elapsed.days * 86_400 + elapsed.seconds
    if offset == "Z" and fraction is not None and text[_SEPARATOR] == "T":
        if len(_ns_of_prefix) >= _CACHED_SECONDS:
            _ns_of_prefix.clear()
        _ns_of_prefix[text[:_POINT]] = second * _SECOND_NS
    ns = second * _SECOND_NS + int((fraction or "").ljust(9, "0"))
    if not EARLIEST_NS <= ns <= LATEST_NS:  # by its offset
        raise ValueError(f"not a time of the years 1 to 9999 in UTC: {text[:40]!r}")
    return ns


_HOUR_NS = 3_600 * _SECOND_NS


def new_york_day(ns: int) -> int:
    """The date in New York of a UTC time in nanoseconds, as ``20261120``."""
    return _day_of_hour(ns // _HOUR_NS)


_FIRST_HOUR = EARLIEST_NS // _HOUR_NS + 24
"""The zero time of a Go program, year 1 in UTC, is still year 0 in New York: no date has that."""


@lru_cache(maxsize=256)
def _day_of_hour(hour: int) -> int:
    moment = datetime.fromtimestamp(max(hour, _FIRST_HOUR) * 3_600, ZoneInfo("America/New_York"))
    return (moment.year * 100 + moment.month) * 100 + moment.day
