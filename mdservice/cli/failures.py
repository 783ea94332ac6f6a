"""Errors as lines for people, and as exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import tomllib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import click

from mdservice.errors import ConfigurationError, FeedRefused, MDServiceError
from mdservice.logs import get_logger, is_configured, masked
from mdservice.settings_sources import CONFIG_FILE, SECTION

__all__ = [
    "CONFIGURATION",
    "FAILED",
    "OK",
    "USAGE",
    "announce",
    "causes",
    "report",
    "use_json_lines",
]

OK = 0
FAILED = 1
USAGE = 2
CONFIGURATION = 78
"""``EX_CONFIG`` of sysexits.h, so that systemd does not start the service again."""

_log = get_logger(__name__)


class _Lines:
    """How this process prints; one for the process."""

    json = False


def use_json_lines(
    ctx: click.Context, config: Path | None, flags: Mapping[str, str | None] | None = None
) -> bool:
    """Print each line as one JSON object from now on, where the log format ``json`` is chosen.

    Called before the settings are checked, so that the error of a bad one is such a line too.
    Without a choice, what people read at the start stays plain.

    Returns:
        Whether it was chosen, by a flag, the environment or the file.
    """
    from mdservice.logs import configure_logging

    found: object = (flags or {}).get("log_format")
    found = found or os.environ.get("MDSERVICE_LOG_FORMAT", "").strip(" \t\r\n\"'")
    if not found:
        path = config or ctx.find_root().obj or Path(CONFIG_FILE)
        with contextlib.suppress(OSError, ValueError):
            section = tomllib.loads(path.read_text()).get(SECTION)
            found = section.get("log_format") if isinstance(section, dict) else None
    _Lines.json = isinstance(found, str) and found.strip() == "json"
    if _Lines.json:
        configure_logging("json")
        sys.excepthook = _log_uncaught
        threading.excepthook = _log_of_thread
    return _Lines.json


def announce(line: str) -> None:
    """Print a line for the person at the terminal; a closed stdout does not end the program."""
    text = masked(line)
    if _Lines.json:
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        fields = {"event": "announcement", "message": text, "level": "info", "timestamp": now}
        text = json.dumps(fields, ensure_ascii=False)
    with contextlib.suppress(OSError, ValueError):
        click.echo(text)


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
        if _Lines.json:
            _log.critical("mdservice_failed", reason=line)
        else:
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


def _log_uncaught(
    _kind: type[BaseException], exc: BaseException, _traceback: TracebackType | None
) -> None:
    _log.critical("unexpected_error", exc_info=exc)


def _log_of_thread(arguments: threading.ExceptHookArgs) -> None:
    _log.critical("unexpected_error", exc_info=arguments.exc_value)
