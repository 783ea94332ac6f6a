"""URLs that may carry a login: checked, and shown without it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

__all__ = ["MASK", "mask_url", "parse_url", "quoted", "secrets_in_url", "text"]

MASK = "***"
"""What stands where a secret was."""

_QUOTED_AT_MOST = 40
_URL_START = re.compile(r"[a-z][a-z0-9+.-]*://", re.ASCII | re.IGNORECASE)
_PLAIN_QUERY = frozenset({"db", "feed", "protocol", "symbols"})


def quoted(value: str) -> str:
    """The value in quotes and cut short, or a stand-in where it might carry a login."""
    if "@" in value or "://" in value:
        return "the value"
    return repr(value if len(value) <= _QUOTED_AT_MOST else value[:_QUOTED_AT_MOST] + "…")


def text(value: object) -> str:
    """Any text without the blanks around it."""
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise ValueError("must be text, and not empty")


def _split(given: str, schemes: Sequence[str]) -> SplitResult:
    allowed = " or ".join(f"{scheme}://" for scheme in schemes)
    try:
        parts = urlsplit(given)
        port = parts.port
    except ValueError:
        # urllib's own words would quote a part of the URL, perhaps of its password.
        raise ValueError(
            "is not a URL: its host or port is malformed (in a password, '/', '#', '?' and '@' "
            "have to be written as %2F, %23, %3F and %40)"
        ) from None
    if parts.scheme not in schemes or not _URL_START.match(given):
        raise ValueError(f"must be a URL that starts with {allowed}")
    if port == 0:
        raise ValueError("has port 0")
    return parts


def parse_url(value: object, *schemes: str) -> str:
    """A URL of one of these schemes; no ``/`` at its end.

    Raises:
        ValueError: The reason, without any part of the URL.
    """
    given = text(value)
    parts = _split(given, schemes)
    if parts.scheme == "unix":
        if not parts.path.strip("/"):
            raise ValueError("names no socket: write unix:///run/redis.sock")
        return given
    if not parts.hostname and parts.scheme != "redis":
        raise ValueError(f"names no host: write {parts.scheme}://host")
    return given.rstrip("/") if parts.hostname and not parts.query else given


def mask_url(value: str) -> str:
    """The URL with its login and the values of its query hidden; other text as it is.

    ``redis://me:secret@db:6379/1`` → ``redis://***@db:6379/1``.
    """
    if not _URL_START.match(value):
        return value
    scheme, rest = value.split("://", 1)
    rest, hash_sign, _fragment = rest.partition("#")
    rest, question_mark, query = rest.partition("?")
    # The last @ before the query ends the login, also where its password holds a raw '/'.
    login, at, rest = rest.rpartition("@")
    masked = f"{scheme}://{MASK if login else ''}{at}{rest}"
    if question_mark:
        masked += "?" + "&".join(_mask_parameter(part) for part in query.split("&"))
    return masked + (hash_sign + MASK if hash_sign else "")


def _mask_parameter(part: str) -> str:
    name, equals, value = part.partition("=")
    if not equals:
        return MASK
    return f"{name}={value if name in _PLAIN_QUERY else MASK}"


def secrets_in_url(value: str) -> tuple[str, ...]:
    """What must not be shown of a URL: its password, and the values of its query."""
    if not _URL_START.match(value):
        return ()
    try:
        parts = urlsplit(value)
        password = parts.password
    except ValueError:
        return (value,)
    found = [password, unquote(password)] if password else []
    if parts.username and not password:
        found.append(parts.username)
    found += [text for name, text in parse_qsl(parts.query) if name not in _PLAIN_QUERY]
    return tuple(dict.fromkeys(found))
