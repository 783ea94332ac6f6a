"""Removes what must not be shown: secrets, and what begins a line or steers a terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

__all__ = ["MASK", "Masker", "mask_url", "printable", "printable_json", "quoted", "secrets_in_url"]

MASK = "***"
"""Replaces a secret."""

_WHOLE_WORD_BELOW = 8
"""Shorter secrets are masked only as whole words, since ``a`` is in almost every word."""
_WITHIN_NO_WORD_BELOW = 4
"""Still shorter ones are also not masked in ``Alpaca's``, ``us-1`` and ``0.1``."""
_DEPTH = 6
_PLAIN = (bool, int, float, type(None))
_QUOTED_AT_MOST = 40
_URL_START = re.compile(r"[a-z][a-z0-9+.-]*://", re.ASCII | re.IGNORECASE)
_PLAIN_QUERY = frozenset({"db", "feed", "protocol", "publish", "read_from", "ssl", "symbols"})


def printable(text: str) -> str:
    r"""The text in one line without control characters, which are written as ``\n`` or ``\x1b``."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def printable_json(line: str) -> str:
    """The same JSON in one line, also for a reader that knows more line ends than JSON does."""
    if line.isprintable():
        return line
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in line)


class Masker:
    """Replaces known secrets by ``***``."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: frozenset[str] = frozenset()
        self._pattern: re.Pattern[str] | None = None
        self.add(secrets)

    def add(self, secrets: Iterable[str]) -> None:
        """Hide these too."""
        secrets = self._secrets.union(secret for secret in secrets if secret)
        if secrets == self._secrets:
            return
        self._secrets = secrets
        forms = {form for secret in secrets for form in _forms(secret)}
        # Longest first, so that masking a secret within a longer one leaves no part of the latter.
        ordered = sorted(forms, key=lambda form: (-len(form), form))
        self._pattern = re.compile("|".join(map(_expression, ordered)))

    def mask_text(self, text: str) -> str:
        """Return the text without any secret."""
        return text if self._pattern is None else self._pattern.sub(MASK, text)

    def mask(self, value: Any, depth: int = _DEPTH) -> Any:
        """Return the value, or a copy of it without any secret.

        Containers are copied; an object of any other kind becomes its text.
        """
        if isinstance(value, str):
            return self.mask_text(value)
        if isinstance(value, _PLAIN):
            return value
        if depth and isinstance(value, Mapping):
            return {self.mask_text(str(k)): self.mask(v, depth - 1) for k, v in value.items()}
        if depth and isinstance(value, (list, tuple, set, frozenset)):
            return [self.mask(item, depth - 1) for item in value]
        return self.mask_text(_text_of(value))


def _text_of(value: object) -> str:
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).decode("utf-8", "backslashreplace")
    try:
        return str(value) if isinstance(value, Exception) else repr(value)
    except Exception as exc:  # noqa: BLE001 - logging must not fail on someone's broken repr
        return f"<{type(value).__name__} that cannot be shown: {type(exc).__name__}>"


def _forms(secret: str) -> set[str]:
    """The secret as it is, and in the forms that URLs, JSON and Python write."""
    return {
        secret,
        quote(secret, safe=""),
        quote_plus(secret),
        json.dumps(secret)[1:-1],
        repr(secret)[1:-1],
    }


def _expression(form: str) -> str:
    escaped = re.escape(form)
    if len(form) >= _WHOLE_WORD_BELOW:
        return escaped
    if len(form) < _WITHIN_NO_WORD_BELOW:
        return rf"(?<!\w)(?<!\w['\u2019.-]){escaped}(?!\w|['\u2019.-]\w)"
    return rf"(?<![A-Za-z0-9]){escaped}(?![A-Za-z0-9])"


def mask_url(value: str) -> str:
    """The URL with its login and query values hidden; other text unchanged.

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
    """The secret parts of a URL: its password, and the values of its query."""
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


def quoted(value: str) -> str:
    """The value in quotes, shortened; or a placeholder if it might contain a login."""
    if "@" in value or "://" in value:
        return "the value"
    return repr(value if len(value) <= _QUOTED_AT_MOST else value[:_QUOTED_AT_MOST] + "…")
