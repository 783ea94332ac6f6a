"""One line with counts of quotes and events: redrawn on a terminal, else logged now and then."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TextIO

import anyio

from mdservice.app.service import Service
from mdservice.model.status import Status
from mdservice.observability.logging import get_logger
from mdservice.pnl.holding import Totals

__all__ = ["LiveLine", "fitted"]

_log = get_logger(__name__)

_REDRAW_S = 0.5
_LOG_EVERY_S = 10.0
_CLEAR = "\r\x1b[K"
_PRICES = 12


class LiveLine:
    """Draws the line on a terminal. Logs go through it too, so that the two do not mix.

    Args:
        terminal: The stream for the line and the logs.
        redrawn: Whether it is a terminal that can be redrawn. If not, it gets only log lines.
    """

    def __init__(self, terminal: TextIO | None = None, *, redrawn: bool = True) -> None:
        self._redrawn = redrawn
        self._terminal = terminal or sys.stderr
        self._drawn = False

    # The methods that a log handler needs

    def write(self, text: str) -> int:
        """Clear the live line and write a log line."""
        with suppress(OSError):  # the terminal is gone; the service continues
            if self._drawn:
                self._drawn = False
                self._terminal.write(_CLEAR)
            self._terminal.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        with suppress(OSError):
            self._terminal.flush()

    def isatty(self) -> bool:
        """Whether the stream is a terminal that can be redrawn."""
        return self._redrawn and self._terminal.isatty()

    # The line

    async def show(self, service: Service, totals: Callable[[], Totals] | None = None) -> None:
        """Show the line until cancelled.

        Args:
            service: The service whose counts are shown.
            totals: The P&L of all positions, or None without positions.
        """
        try:
            if self.isatty():
                await self._redraw(service, totals)
            else:
                await self._log_now_and_then(service)
        finally:
            self.write("")
            self.flush()

    async def _redraw(self, service: Service, totals: Callable[[], Totals] | None) -> None:
        before, published = anyio.current_time(), 0
        while True:
            await anyio.sleep(_REDRAW_S)
            status = service.status()
            now = anyio.current_time()
            rate = (status.counters.events_published - published) / (now - before)
            before, published = now, status.counters.events_published
            prices = [f"{quote.symbol} {quote.price}" for quote in service.prices()[:_PRICES]]
            columns = shutil.get_terminal_size().columns
            numbers = [*_pnl(totals), *prices]
            line = fitted(_summary(status, rate), numbers, columns - 1)
            self.write("")
            self.write(_CLEAR + line)
            self.flush()
            self._drawn = True

    async def _log_now_and_then(self, service: Service) -> None:
        published = 0
        while True:
            await anyio.sleep(_LOG_EVERY_S)
            status = service.status()
            counters = status.counters
            _log.info(
                "throughput",
                state=status.state,
                symbols=status.symbols,
                quotes_received=counters.quotes_received,
                events_published=counters.events_published,
                events_per_s=round((counters.events_published - published) / _LOG_EVERY_S, 1),
                latency_p50_ms=status.latency_ms.receive_to_redis.p50,
                backlog=status.redis.backlog,
            )
            published = counters.events_published


def fitted(text: str, numbers: Iterable[str], width: int) -> str:
    """The text and as many whole numbers as fit: a number that is cut would look like another."""
    line = text[: max(0, width)]
    for number in numbers:
        if len(line) + 1 + len(number) > width:
            break
        line = f"{line} {number}"
    return line


def _pnl(totals: Callable[[], Totals] | None) -> Iterator[str]:
    found = totals() if totals is not None else None
    if found is not None and found.priced:
        yield f"P&L {found.unrealized_pnl:+,.2f} of {found.priced} positions |"


def _summary(status: Status, rate: float) -> str:
    if status.state != "running":
        reason = status.reasons[0] if status.reasons else ""
        return f"{status.state}: {reason} | {status.counters.events_published:,} events"
    p50 = status.latency_ms.receive_to_redis.p50
    latency = "" if p50 is None else f", {p50:.1f} ms to Redis"
    return (
        f"{status.state} | {rate:,.0f} events/s, {status.counters.events_published:,} in all"
        f"{latency} |"
    )
