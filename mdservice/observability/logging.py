"""Logs: one event name per fact, UTC times, to stderr, without secrets and without floods.

``log = get_logger(__name__)``, then ``log.warning("feed_disconnected", reason=…)``. Until
:func:`configure_logging` is called, events go to the standard library's logging under the logger's
name, so that a program that embeds the service decides where they go. Importing this module does
not import structlog; configuring does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Protocol

from mdservice.observability.masking import Masker

__all__ = [
    "LogStream",
    "Logger",
    "configure_logging",
    "get_logger",
    "hide_secrets",
    "is_configured",
    "masked",
]

Level = Literal["debug", "info", "warning", "error", "critical"]
_LEVELS: dict[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}

_masker = Masker()


class LogStream(Protocol):
    """A stream for lines, such as any text file."""

    def write(self, text: str, /) -> object:
        """Write one or more lines."""
        ...

    def flush(self) -> None:
        """Write what is buffered."""
        ...

    def isatty(self) -> bool:
        """Whether it is a terminal, which shows colours."""
        ...


class _Output:
    """Where events go once logging is configured; one for the process."""

    threshold: int = logging.NOTSET
    emit: Callable[[str, str, dict[str, Any]], None] | None = None


class Logger:
    """Logs events under a name, with fields that are the same in all of them.

    A call below the level costs a comparison.

    Args:
        name: Usually the module's.
        fields: What each event gets besides its own.
    """

    __slots__ = ("_fields", "_name")

    def __init__(self, name: str, fields: Mapping[str, Any] | None = None) -> None:
        self._name = name
        self._fields = dict(fields or {})

    def bind(self, **fields: Any) -> Logger:
        """Return a logger that adds these fields to each of its events."""
        return Logger(self._name, {**self._fields, **fields})

    def debug(self, event: str, **fields: Any) -> None:
        """Log a detail for developers."""
        if _Output.threshold <= logging.DEBUG:
            self._log("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """Log a normal event."""
        if _Output.threshold <= logging.INFO:
            self._log("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Log a problem that the service deals with itself."""
        if _Output.threshold <= logging.WARNING:
            self._log("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Log a failure."""
        self._log("error", event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """Log a failure, with the traceback of the exception being handled."""
        fields.setdefault("exc_info", True)
        self._log("error", event, fields)

    def critical(self, event: str, **fields: Any) -> None:
        """Log a failure that ends the service. Repeats are never suppressed."""
        self._log("critical", event, fields)

    def _log(self, level: Level, event: str, fields: dict[str, Any]) -> None:
        everything = {**self._fields, **fields}
        if _Output.emit is None:
            self._log_to_host(level, event, everything)
        else:
            _Output.emit(level, event, {"logger": self._name, **everything})

    def _log_to_host(self, level: Level, event: str, fields: dict[str, Any]) -> None:
        host = logging.getLogger(self._name)
        number = _LEVELS[level]
        if not host.isEnabledFor(number):
            return
        exc_info = fields.pop("exc_info", None)
        described = "".join(f" {name}={value!r}" for name, value in fields.items())
        # The host would format the traceback itself, with secrets; only text can be masked.
        if exc_info:
            described += "\n" + _traceback(exc_info)
        host.log(number, "%s", _masker.mask_text(event + described))


def get_logger(name: str) -> Logger:
    """Return the logger of this name, usually ``__name__``. Cheap to call."""
    return Logger(name)


def hide_secrets(secrets: Iterable[str]) -> None:
    """Show ``***`` for these texts in all log lines from now on."""
    _masker.add(secrets)


def masked(text: str) -> str:
    """Return the text without the secrets that logs hide."""
    return _masker.mask_text(text)


def is_configured() -> bool:
    """Whether :func:`configure_logging` has been called in this process."""
    return _Output.emit is not None


def configure_logging(
    format: Literal["console", "json"],  # noqa: A002 - the setting's word
    level: Level = "info",
    *,
    secrets: Iterable[str] = (),
    stream: LogStream | None = None,
) -> None:
    """Send every event of this process to stderr; third parties' from ``warning`` up.

    For programs that own their process: it replaces the handlers of the root logger.

    Args:
        format: ``console`` for people, ``json`` for machines: one object per line.
        level: The lowest level that is shown.
        secrets: As for :func:`hide_secrets`.
        stream: Where to write instead of stderr.
    """
    from mdservice.observability.log_output import make_emitter, route_standard_logging

    hide_secrets(secrets)
    _Output.emit = make_emitter(format, _masker, stream)
    _Output.threshold = _LEVELS[level]
    route_standard_logging(_Output.emit, max(_LEVELS[level], logging.WARNING))


def _traceback(exc_info: Any) -> str:
    import sys
    import traceback

    exc = exc_info if isinstance(exc_info, BaseException) else sys.exc_info()[1]
    return "".join(traceback.format_exception(exc)).rstrip() if exc else ""
