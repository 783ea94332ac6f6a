"""What went wrong inside, for the screen: a log would be written across it."""

from __future__ import annotations

import logging
import time
from typing import Final

__all__ = ["LastError"]

_SHOWN_S: Final = 30.0


class LastError(logging.Handler):
    """Keeps the last error that was logged, for a while; drops all other events."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._text = ""
        self._until_s = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the first line; the last one too, which names the error of a traceback."""
        lines = record.getMessage().splitlines() or [""]
        self._text = lines[0] if len(lines) == 1 else f"{lines[0]}: {lines[-1]}"
        self._until_s = time.monotonic() + _SHOWN_S

    def texts(self) -> tuple[str, ...]:
        """The error, or nothing."""
        return (f"an error inside: {self._text}",) if time.monotonic() < self._until_s else ()
