"""What commands share: options and their settings, the lines that they print, exit codes."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import threading
import tomllib
import traceback
import warnings
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO, TypeVar

import click

from mdservice.errors import ConfigurationError, FeedRefused, MDServiceError
from mdservice.observability.logging import get_logger, hide_secrets, is_configured, masked
from mdservice.observability.masking import printable, printable_json
from mdservice.settings import SETTINGS, Settings, load_settings
from mdservice.settings.parsers import default_log_format
from mdservice.settings.sources import CONFIG_FILE, SECTION, SettingInfo

__all__ = [
    "CONFIGURATION",
    "FAILED",
    "OK",
    "USAGE",
    "announce",
    "causes",
    "config_option",
    "print_failure",
    "report",
    "run_async",
    "settings_from",
    "settings_options",
    "use_json_lines",
    "use_plain_lines",
]

_log = get_logger(__name__)

OK = 0
FAILED = 1
USAGE = 2
CONFIGURATION = 78
"""``EX_CONFIG`` of sysexits.h, so that systemd does not start the service again."""

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Result = TypeVar("_Result")


def config_option(command: _Command) -> _Command:
    """Give the command ``--config FILE``, before or after the name of a subcommand."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="The file of settings, instead of ./mdservice.toml.",
    )(command)


def settings_options(*names: str) -> Callable[[_Command], _Command]:
    """Give the command ``--config`` and the flags of these settings, or of all of them."""

    def add(command: _Command) -> _Command:
        for info in reversed(SETTINGS):
            if info.secret or (names and info.name not in names):
                continue
            command = click.option(
                info.flag,
                info.name,
                metavar=info.metavar,
                help=f"{info.help} [{'; '.join(_notes(info))}]",
            )(command)
        return config_option(command)

    return add


def _notes(info: SettingInfo) -> Iterator[str]:
    """What stands behind a flag's help: its variable and its default."""
    yield info.environment[0]
    if info.default is not None:
        yield f"default: {info.default.replace('`', '')}"


def settings_from(
    ctx: click.Context, config: Path | None, flags: Mapping[str, str | None]
) -> Settings:
    """The settings for a command, from the file, the environment and its flags.

    Raises:
        ConfigurationError: See :func:`mdservice.load_settings`.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    settings = load_settings(config or ctx.find_root().obj, given, os.environ)
    hide_secrets(settings.secret_values())
    return settings


def run_async(function: Callable[[], Awaitable[_Result]]) -> _Result:
    """Run the asynchronous part of a command, after all of its imports."""
    import anyio

    # What was imported stays to the end. Python would search it for cycles more than once as the
    # process ends, which takes a third of a second of processor time.
    gc.freeze()
    return anyio.run(function, backend="trio")


class _Lines:
    """How this process prints; one object per process."""

    json = False


def use_json_lines(
    ctx: click.Context, config: Path | None, flags: Mapping[str, str | None] | None = None
) -> bool:
    """Print each line as one JSON object from now on, if the log format is ``json``.

    Commands call this before the settings are checked, so the error of a bad setting is such a
    line too. The format comes from a flag, the environment or the file. Without a valid one, it
    is ``console`` on a terminal and ``json`` elsewhere. This function imports nothing slow; the
    command itself configures the logging.

    Returns:
        Whether the format is ``json``.
    """
    found: object = (flags or {}).get("log_format")
    found = found or os.environ.get("MDSERVICE_LOG_FORMAT", "").strip(" \t\r\n\"'")
    if not found:
        path = config or ctx.find_root().obj or Path(CONFIG_FILE)
        with contextlib.suppress(OSError, ValueError):
            section = tomllib.loads(path.read_text()).get(SECTION)
            found = section.get("log_format") if isinstance(section, dict) else None
    chosen = found.strip() if isinstance(found, str) else None
    if chosen not in {"console", "json"}:
        chosen = default_log_format()
    _Lines.json = chosen == "json"
    if _Lines.json:
        sys.excepthook = _log_uncaught
        sys.unraisablehook = _log_unraisable
        threading.excepthook = _log_of_thread
        warnings.showwarning = _log_warning
    return _Lines.json


def use_plain_lines() -> None:
    """Print plain lines, for commands that only answer a question."""
    _Lines.json = False


def announce(line: str) -> None:
    """Print a line for the user. A closed stdout does not end the program.

    As JSON, it is the field ``message``. A blank follows the text, so that a search for an address
    in the output does not include the closing quote.
    """
    text = masked(line)
    if _Lines.json:
        _print_json("info", "announcement", err=False, message=f"{text} ")
        return
    with contextlib.suppress(OSError, ValueError):
        click.echo(text)


def print_failure(reason: str) -> None:
    """Print why the command ends, on stderr."""
    if _Lines.json:
        _print_json("critical", "mdservice_failed", reason=reason)
    else:
        click.echo(f"mdservice: {_in_lines(reason)}", err=True)


def _print_json(level: str, event: str, *, err: bool = True, **fields: str) -> None:
    """Print a line in the format of the JSON logs, without structlog, which imports slowly."""
    shown = {name: masked(value) for name, value in fields.items()}
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    line = json.dumps(
        {"event": event, **shown, "level": level, "timestamp": now}, ensure_ascii=False
    )
    with contextlib.suppress(OSError, ValueError):
        click.echo(printable_json(line), err=err)


def _in_lines(text: str) -> str:
    """The text without what steers a terminal; its further lines are indented."""
    return "\n  ".join(printable(line) for line in text.split("\n"))


def causes(exc: BaseException) -> Iterator[BaseException]:
    """The single errors in an exception group of any depth."""
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            yield from causes(inner)
    else:
        yield exc


def report(exc: Exception) -> int:
    """Print the reason of a failure, one line per cause; return the exit code.

    An unexpected error is logged with its traceback.
    """
    found = list(causes(exc))
    for line in dict.fromkeys(_line(cause) for cause in found if isinstance(cause, MDServiceError)):
        print_failure(line)
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
        from mdservice.observability.logging import configure_logging

        configure_logging("json" if _Lines.json else "console")
    _log.error("unexpected_error", exc_info=exc)


def _log_uncaught(
    _kind: type[BaseException], exc: BaseException, _traceback: TracebackType | None
) -> None:
    _print_unexpected(exc)


def _log_of_thread(arguments: threading.ExceptHookArgs) -> None:
    _print_unexpected(arguments.exc_value)


def _log_unraisable(arguments: sys.UnraisableHookArgs) -> None:
    _print_unexpected(arguments.exc_value, f"{arguments.err_msg or 'ignored'}: {arguments.object}")


def _print_unexpected(exc: BaseException | None, message: str = "not handled") -> None:
    text = "".join(traceback.format_exception(exc)).rstrip() if exc is not None else ""
    _print_json("critical", "unexpected_error", message=message, exception=text)


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,  # noqa: ARG001 - as the standard library calls it
    line: str | None = None,  # noqa: ARG001 - likewise
) -> None:
    text = f"{filename}:{lineno}: {category.__name__}: {message}"
    _print_json("warning", "third_party_log", logger="py.warnings", message=text)
