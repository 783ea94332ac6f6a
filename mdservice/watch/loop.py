"""Feeds the screen, or plain lines where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import anyio
import anyio.to_thread
from rich.console import Console
from rich.live import Live

from mdservice.api_client import NoAnswer, ask
from mdservice.clock import Clock
from mdservice.errors import ConfigurationError
from mdservice.gateway.book import PnlBook
from mdservice.model.quote import Quote
from mdservice.settings import Settings
from mdservice.watch.lines import ChangedLines
from mdservice.watch.screen import screen
from mdservice.watch.view import Moves, Service, View, make_view

__all__ = ["Watcher"]

_FOOT: Final = "Ctrl-C ends"
_REDRAW_S: Final = 0.25
_LINES_S: Final = 1.0
_ASK_S: Final = 2.0
_ASK_TIMEOUT_S: Final = 2.0
_FIRST_LIMIT_S: Final = 3.0
"""How long the first prices may take before anything is shown."""


class Watcher:
    """Shows prices and P&L until cancelled.

    Args:
        book: Positions and prices.
        settings: Where the service is.
        symbols: Only these; empty for all.
        console: Where to draw.
        clock: The time.
    """

    def __init__(
        self,
        book: PnlBook,
        settings: Settings,
        symbols: Sequence[str],
        console: Console,
        clock: Clock,
    ) -> None:
        self._book = book
        self._settings = settings
        self._symbols = symbols
        self._console = console
        self._clock = clock
        self._service = Service()
        self._moves = Moves()
        self._quotes: dict[str, Quote] = {}
        self._events = 0
        self._looked_s = clock.monotonic()
        self._rate = 0.0

    async def run(self, *, once: bool = False) -> None:
        """Show it.

        Args:
            once: The table as soon as there are prices, and no more.
        """
        async with self._book.running(), anyio.create_task_group() as tasks:
            await tasks.start(self._keep_asking)
            await self._first_prices()
            if once:
                await self._show_once()
            elif self._console.is_terminal and not self._console.is_dumb_terminal:
                await self._draw()
            else:
                await self._print_lines()
            tasks.cancel_scope.cancel()

    async def _first_prices(self) -> None:
        """Wait for them, but not for long: then it is shown what is missing."""
        with anyio.move_on_after(_FIRST_LIMIT_S):
            while True:
                if self._book.prices is not None and self._book.last_report() is not None:
                    return
                await anyio.sleep(_REDRAW_S / 5)

    async def _show_once(self) -> None:
        view = self._look()
        height = len(view.lines) + len(view.warnings) + 10
        self._console.print(screen(view, self._console.width, height), soft_wrap=True)

    async def _draw(self) -> None:
        with Live(console=self._console, screen=True, auto_refresh=False) as live:
            while True:
                size = self._console.size
                live.update(screen(self._look(), size.width, size.height, _FOOT), refresh=True)
                await anyio.sleep(_REDRAW_S)

    async def _print_lines(self) -> None:
        changed = ChangedLines()
        while True:
            for line in changed.of(self._look(), self._clock.utc_ns()):
                self._console.file.write(f"{line}\n")  # rich would end the program on EPIPE
            self._console.file.flush()
            await anyio.sleep(_LINES_S)

    def _look(self) -> View:
        now_s, prices = self._clock.monotonic(), self._book.prices
        if prices is not None:
            self._quotes = {quote.symbol: quote for quote in prices.prices()}
            events = prices.status().events
            if now_s - self._looked_s >= _LINES_S:
                self._rate = max(0, events - self._events) / (now_s - self._looked_s)
                self._looked_s, self._events = now_s, events
        return make_view(
            self._book.last_report(),
            self._quotes,
            self._symbols,
            self._moves,
            total_pct=self._book.totals().unrealized_pnl_pct,
            events_per_s=self._rate,
            service=self._service,
            warnings=self._book.warnings(),
            now_ns=self._clock.utc_ns(),
        )

    async def _keep_asking(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        while True:
            self._service = await anyio.to_thread.run_sync(self._ask, abandon_on_cancel=True)
            task_status.started()
            task_status = anyio.TASK_STATUS_IGNORED
            await anyio.sleep(_ASK_S)

    def _ask(self) -> Service:
        try:
            answer = ask(self._settings.socket, "GET", "/status", timeout_s=_ASK_TIMEOUT_S)
        except (NoAnswer, ConfigurationError) as exc:
            return Service("no answer", reason=str(exc))
        return Service.of_status(answer.content)
