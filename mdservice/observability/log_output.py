"""How events are written: the chain of processors, and the limit on repeats.

Imported only when logging is configured. structlog takes about 0.2 s to import, and neither
``mdservice health`` nor a program that embeds the service needs it.

structlog's ``ProcessorFormatter`` on a handler of standard logging would take more code. Its
processors cannot drop an event, so the limit on repeats would need a separate filter. Each event
would need a message object with masked text for a host's formatter and fields for ours. And the
level of our own events would depend on the names of loggers.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, Literal

import attrs
import structlog

from mdservice.observability.logging import LogStream
from mdservice.observability.masking import Masker, printable, printable_json

__all__ = ["RepeatLimit", "make_emitter", "route_standard_logging"]

Emit = Callable[[str, str, dict[str, Any]], None]
Event = MutableMapping[str, Any]

KEY_FIELDS = ("logger", "actor", "driver", "symbol", "state", "code", "message")
"""Fields that distinguish two facts with the same event name."""
_REPEATS = 5
_PERIOD_S = 10.0
_FACTS = 1024


@attrs.define
class _Window:
    """How often one fact was logged since ``since_s``."""

    since_s: float
    passed: int = 0
    suppressed: int = 0


class RepeatLimit:
    """A structlog processor that logs the same fact only a few times in a period.

    It counts the rest, and the next event has the count as ``suppressed``. It remembers a
    limited number of facts and forgets the one that was silent longest first.

    Args:
        repeats: How many events of a fact pass in one period.
        period_s: The length of a period, seconds.
        facts: How many facts are remembered.
        now: Monotonic seconds.
    """

    def __init__(
        self,
        repeats: int = _REPEATS,
        period_s: float = _PERIOD_S,
        facts: int = _FACTS,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._repeats = repeats
        self._period_s = period_s
        self._facts = facts
        self._now = now
        self._lock = threading.Lock()  # A driver may log from a thread of its own.
        self._windows: OrderedDict[tuple[str, ...], _Window] = OrderedDict()

    def __call__(self, _logger: object, level: str, event: Event) -> Event:
        """Return the event, or raise structlog's ``DropEvent``."""
        if level == "critical":
            return event
        key = (level, str(event.get("event")), *(str(event.get(name)) for name in KEY_FIELDS))
        with self._lock:
            suppressed = self._count(key)
        if suppressed:
            event["suppressed"] = suppressed
        return event

    def _count(self, key: tuple[str, ...]) -> int:
        """Count one more; return how many were suppressed in the period that has ended."""
        now = self._now()
        suppressed = 0
        window = self._windows.get(key)
        if window is None or now - window.since_s >= self._period_s:
            suppressed = window.suppressed if window else 0
            window = self._windows[key] = _Window(now)
        self._windows.move_to_end(key)
        if len(self._windows) > self._facts:
            self._windows.popitem(last=False)
        if window.passed >= self._repeats:
            window.suppressed += 1
            raise structlog.DropEvent
        window.passed += 1
        return suppressed


def make_emitter(
    format: Literal["console", "json"],  # noqa: A002 - the setting's word
    masker: Masker,
    stream: LogStream | None = None,
) -> Emit:
    """Return a function that takes a level, an event name and fields, and writes a line."""

    def mask(_logger: object, _level: str, event: Event) -> Event:
        return {name: masker.mask(value) for name, value in event.items()}

    processors: Sequence[Callable[[Any, str, Any], Any]] = (
        structlog.processors.add_log_level,
        RepeatLimit(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        mask,
        _renderer(format, stream or sys.stderr),
    )

    def emit(level: str, event: str, fields: dict[str, Any]) -> None:
        line: Any = {**fields, "event": event}
        try:
            for process in processors:
                line = process(None, level, line)
        except structlog.DropEvent:
            return
        _write(stream or sys.stderr, line)

    return emit


def _write(stream: LogStream | None, line: str) -> None:
    """Write a line; ignore a broken stream, since no actor should fail because of a log."""
    if stream is None:
        return
    with contextlib.suppress(OSError, ValueError):
        stream.write(line + "\n")
        stream.flush()


def _renderer(format: str, stream: LogStream | None) -> Any:  # noqa: A002 - the setting's word
    if format == "json":
        return _render_json
    render = structlog.dev.ConsoleRenderer(
        colors=stream is not None and stream.isatty(),
        exception_formatter=structlog.dev.plain_traceback,
        pad_event_to=28,
    )

    def render_printable(logger: Any, level: str, event: Event) -> Any:
        return render(logger, level, {name: _printable(name, event[name]) for name in event})

    return render_printable


_to_json = structlog.processors.JSONRenderer(ensure_ascii=False)


def _render_json(logger: Any, level: str, event: Event) -> str:
    return printable_json(str(_to_json(logger, level, event)))


def _printable(name: str, value: object) -> object:
    """A text without what begins a line or steers a terminal.

    A traceback keeps its lines, indented, since the message of an exception may have some.
    """
    if not isinstance(value, str):
        return value
    if name == "exception":
        return "\n".join(f"  {printable(line)}" for line in value.split("\n"))
    return printable(value)


class _ThirdParty(logging.Handler):
    """Turns records of the standard library's logging into our events."""

    def __init__(self, emit: Emit) -> None:
        super().__init__()
        self._emit = emit

    def emit(self, record: logging.LogRecord) -> None:
        level = "critical" if record.levelno >= logging.CRITICAL else record.levelname.lower()
        if level not in ("debug", "info", "warning", "error", "critical"):
            level = "warning" if record.levelno < logging.ERROR else "error"
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            message = str(record.msg)
        fields: dict[str, Any] = {"logger": record.name, "message": message}
        if record.exc_info and record.exc_info[0] is not None:
            fields["exc_info"] = record.exc_info
        self._emit(level, "third_party_log", fields)


def route_standard_logging(emit: Emit, level: int) -> None:
    """Turn every standard logger's records, and Python's warnings, into our events."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    root.addHandler(_ThirdParty(emit))
    root.setLevel(level)
    logging.captureWarnings(capture=True)
