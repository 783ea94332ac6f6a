"""Errors as lines for people, and as exit codes."""

from __future__ import annotations

from collections.abc import Iterator

import click

from mdservice.errors import ConfigurationError, FeedRefused, MDServiceError
from mdservice.logs import get_logger, is_configured, masked

__all__ = ["CONFIGURATION", "FAILED", "OK", "USAGE", "causes", "report"]

OK = 0
FAILED = 1
USAGE = 2
CONFIGURATION = 78
"""``EX_CONFIG`` of sysexits.h, so that systemd does not start the service again."""

_log = get_logger(__name__)


def causes(exc: BaseException) -> Iterator[BaseException]:
    """The errors themselves, however deep exception groups hold them."""
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            yield from causes(inner)
    else:
        yield exc


def report(exc: Exception) -> int:
    """Tell what went wrong, one line a cause; return the exit code.

    An error that nobody foresaw is logged with its traceback.
    """
    found = list(causes(exc))
    for line in dict.fromkeys(_line(cause) for cause in found if isinstance(cause, MDServiceError)):
        click.echo(f"mdservice: {line}", err=True)
    if not all(isinstance(cause, MDServiceError) for cause in found):
        _log_unexpected(exc)
        return FAILED
    refused = any(isinstance(cause, (ConfigurationError, FeedRefused)) for cause in found)
    return CONFIGURATION if refused else FAILED


def _line(exc: BaseException) -> str:
    text = " ".join(str(exc).split())
    return masked(text or type(exc).__name__)


def _log_unexpected(exc: Exception) -> None:
    if not is_configured():
        from mdservice.logs import configure_logging

        configure_logging("console")
    _log.error("unexpected_error", exc_info=exc)
