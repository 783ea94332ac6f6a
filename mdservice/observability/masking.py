"""Secrets, taken out of whatever is about to be shown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

from mdservice.observability.urls import MASK

__all__ = ["Masker"]

_WHOLE_WORD_BELOW = 8
"""Shorter secrets are masked where they stand alone: ``a`` is no reason to mangle every word."""
_WITHIN_NO_WORD_BELOW = 4
"""Still shorter ones are not masked in ``Alpaca's``, ``us-1`` and ``0.1`` either."""
_DEPTH = 6
_PLAIN = (bool, int, float, type(None))


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
        # Longest first, so that a secret within a longer one leaves nothing of that behind.
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
    """The secret as it is, and as URLs, JSON and Python would write it."""
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
