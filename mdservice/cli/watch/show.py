"""``mdservice watch``: opens prices and positions, and shows them until it is stopped."""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack, nullcontext, suppress
from functools import partial
from typing import Final, TextIO

import anyio
import anyio.to_thread
import attrs
from anyio.abc import TaskStatus
from rich.console import Console, Group
from rich.live import Live

from mdservice.cli.watch.gather import GatewayDay, Gatherer, MarketWatch, ServiceWatch
from mdservice.cli.watch.keys import Browse, Key, Keyboard
from mdservice.cli.watch.screen import (
    Entry,
    Screen,
    money_text,
    number_text,
    percent_text,
    price_text,
)
from mdservice.clock import Clock, SystemClock
from mdservice.errors import StoreUnavailable
from mdservice.gateway.make import make_tracker
from mdservice.gateway.risk_observer import RiskObserver
from mdservice.gateway.tracker import PnlTracker
from mdservice.model.timestamps import format_ns
from mdservice.runtime.network import HttpClient
from mdservice.runtime.stop_signals import stop_on_signal
from mdservice.runtime.task_groups import block_tasks
from mdservice.settings import Settings
from mdservice.settings.feeds import STREAM_PATHS, feed_delay_s

__all__ = ["LastError", "LineOutput", "PlainLines", "entry_text", "watch"]

_SECONDS = len("2026-11-24T18:00:00")
_SHOWN_S: Final = 30.0
_REDRAW_S: Final = 0.25
_LINES_EVERY_S: Final = 1.0
_LOOK_S: Final = 0.02
_FITTING: Final = 4
"""How often a screen is laid out again, since other rows may leave another number of lines."""
_FIRST_S: Final = 1.0
"""How long the first screen waits, so that it does not appear without prices."""
_ONCE_S: Final = 8.0
_NO_END: Final = 100_000
"""The width for output that is not a terminal."""


async def watch(settings: Settings, chosen: Sequence[str], *, once: bool) -> bool:
    """Show prices and P&L until SIGINT, SIGTERM or SIGHUP, or until the reader is gone.

    A second signal ends the process at once.

    Args:
        settings: The addresses of the service, Redis and the positions.
        chosen: The only symbols to show; none means all.
        once: Show everything once and return.

    Returns:
        Whether everything that was shown last is up to date.

    Raises:
        NoAnswer: No service answers, and the settings name no Redis.
        StoreUnavailable: With ``once``: there are no prices.
        ConfigurationError: The settings cannot be used.
    """
    clock, errors = SystemClock(), LastError()
    keyboard = Keyboard.of_stdin()
    # The screen shows errors; log lines would destroy its layout.
    logging.getLogger("mdservice").addHandler(errors)
    well = True
    async with block_tasks() as tasks:
        running = anyio.CancelScope()
        await tasks.start(stop_on_signal, running, partial(_restore_terminal, keyboard))
        with running:
            well = await _watch(settings, chosen, clock, errors, keyboard, once=once)
    return well


async def _watch(
    settings: Settings,
    chosen: Sequence[str],
    clock: Clock,
    errors: LastError,
    keyboard: Keyboard | None,
    *,
    once: bool,
) -> bool:
    service = ServiceWatch(settings.socket, subscriptions=bool(chosen))
    await service.refresh()
    if service.failure is not None and settings.redis_url is None:
        raise service.failure
    given, settings = settings, _of_the_service(settings, service)
    source = settings.gateway_positions or settings.positions
    tracker = make_tracker(
        source, settings, read_from="live", symbols=chosen, judges=False, clock=clock
    )
    http = HttpClient()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(http.aclose)
        await stack.enter_async_context(tracker.running())
        tasks = await stack.enter_async_context(anyio.create_task_group())
        tasks.start_soon(service.poll)
        market = MarketWatch(chosen)
        tasks.start_soon(market.run, settings)
        risk = RiskObserver(tracker, given, clock, http)
        day = GatewayDay(tracker, given, http) if tracker.day is None and not chosen else None
        gatherer = Gatherer(
            tracker,
            service,
            chosen,
            stale_after_s=settings.stale_after,
            delay_s=feed_delay_s(settings.feed),
            clock=clock,
            market=market,
            risk=risk,
            day=day,
            errors=errors.texts,
        )
        with anyio.move_on_after(_ONCE_S if once else _FIRST_S):
            await _known(tracker)
            await market.known()
            await risk.refresh()
            if day is not None:
                await day.refresh()
        tasks.start_soon(risk.poll)
        if day is not None:
            tasks.start_soon(day.poll)
        console, well = Console(highlight=False), True
        with suppress(BrokenPipeError):  # the reader is gone
            if once:
                well = await _once(gatherer, tracker, console)
            elif sys.stdout.isatty() and console.is_terminal and not console.is_dumb_terminal:
                await _on_terminal(gatherer, console, keyboard)
            else:
                await _in_lines(gatherer, clock)
        tasks.cancel_scope.cancel()
    return well


def _of_the_service(settings: Settings, service: ServiceWatch) -> Settings:
    """Drop the alerts, which the gateway handles; use the service's feed if none is set."""
    feed = service.status.get("feed")
    name = feed.get("name") if isinstance(feed, dict) else None
    if "feed" not in settings.sources and name in STREAM_PATHS["stocks"]:
        sources = {**settings.sources, "feed": "the running service"}
        settings = attrs.evolve(settings, feed=name, sources=sources)
    return attrs.evolve(settings, alerts=())


async def _known(tracker: PnlTracker) -> None:
    """Wait for the first positions and prices, or for an error."""
    while True:
        positions = tracker.positions
        prices = tracker.prices_status()
        answered = positions.answers > 0 or positions.last_error is not None
        if answered and (tracker.prices_error() or (prices is not None and not prices.waiting)):
            return
        await anyio.sleep(_LOOK_S)


async def _once(gatherer: Gatherer, tracker: PnlTracker, console: Console) -> bool:
    view = gatherer.view()
    if tracker.prices_status() is None:
        raise StoreUnavailable(tracker.prices_error() or f"no prices came within {_ONCE_S:g} s")
    on_terminal = sys.stdout.isatty()
    width = console.width if on_terminal else _NO_END
    screen = Screen(plain_text=not console.encoding.startswith("utf"), moving=False)
    with console.capture() as capture:
        for line in screen.lines(view, width):
            console.print(line, soft_wrap=True)
    text = capture.get().rstrip("\n")
    await LineOutput(sys.stdout).write([line.rstrip() for line in text.split("\n")])
    return not view.warnings


async def _on_terminal(gatherer: Gatherer, console: Console, keyboard: Keyboard | None) -> None:
    """Redraw the screen until cancelled or a key ends it, then restore the terminal."""
    plain_text = not console.encoding.startswith("utf")
    screen = Screen(plain_text=plain_text, keys=keyboard is not None)
    live = Live(
        console=console,
        screen=True,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    drawing = _Drawing(gatherer, screen, console, live)
    async with anyio.create_task_group() as tasks:
        await tasks.start(_let_suspend, live, keyboard)  # before the terminal is changed
        with live, nullcontext() if keyboard is None else keyboard.reading():
            if keyboard is not None:
                tasks.start_soon(keyboard.read, drawing.press)
            await drawing.run()
        tasks.cancel_scope.cancel()


class _Drawing:
    """Draws the screen again and again, and at each key."""

    def __init__(self, gatherer: Gatherer, screen: Screen, console: Console, live: Live) -> None:
        self._gatherer = gatherer
        self._screen = screen
        self._console = console
        self._live = live
        self._browse = Browse()
        self._total = 0
        self._ended = False
        self._pressed = anyio.Event()

    def press(self, key: Key) -> None:
        """Act on a key."""
        if key == "quit":
            self._ended = True
        else:
            self._browse.press(key, self._screen.rows, self._total)
        self._pressed.set()

    async def run(self) -> None:
        """Draw until cancelled, or until a key ends it."""
        while not self._ended:
            width, height = self._console.size
            for _ in range(_FITTING):
                view = self._gatherer.view(height, self._browse)
                lines = self._screen.lines(view, width, height)
                self._total = view.held_count + view.others_count
                if not self._browse.fit(self._screen.rows, self._total):
                    break
            self._live.update(Group(*lines), refresh=True)
            with anyio.move_on_after(_REDRAW_S):
                await self._pressed.wait()
            self._pressed = anyio.Event()


async def _let_suspend(
    live: Live, keyboard: Keyboard | None, *, task_status: TaskStatus[None]
) -> None:
    """Restore the terminal while Ctrl-Z stops this process."""
    with anyio.open_signal_receiver(signal.SIGTSTP) as signals:
        task_status.started()
        async for _number in signals:
            live.stop()
            if keyboard is not None:
                keyboard.give_back()
            os.kill(os.getpid(), signal.SIGSTOP)
            if keyboard is not None:
                keyboard.take()
            live.start()


def _restore_terminal(keyboard: Keyboard | None) -> None:
    """Leave the full screen and show the cursor, if the terminal accepts it at once."""
    if keyboard is not None:
        keyboard.give_back()
    if not os.isatty(1):
        return
    os.set_blocking(1, False)
    with suppress(OSError):
        os.write(1, b"\x1b[?1049l\x1b[?25h")
    os.set_blocking(1, True)  # the shell uses the same open terminal


async def _in_lines(gatherer: Gatherer, clock: Clock) -> None:
    """Write each change as a line until cancelled or until the reader is gone."""
    output, notes, lines = LineOutput(sys.stdout), LineOutput(sys.stderr), PlainLines()
    while not output.reader_gone():
        now_ns = clock.utc_ns()
        changed = lines.changed(gatherer.changes(), now_ns)
        await notes.write(lines.notes(gatherer.notes(), now_ns))
        await output.write(changed)
        await anyio.sleep(_LINES_EVERY_S)


class LineOutput:
    """Writes lines in a thread, without buffers, so that a slow reader blocks nothing else.

    Args:
        stream: An open file with a descriptor.
    """

    def __init__(self, stream: TextIO) -> None:
        self._descriptor = stream.fileno()
        self._encoding = stream.encoding

    async def write(self, lines: Sequence[str]) -> None:
        """Write all lines.

        When cancelled, it stops at once, perhaps in the middle of a line.

        Raises:
            BrokenPipeError: The reader is gone.
        """
        if not lines:
            return
        text = "".join(f"{line}\n" for line in lines)
        data = text.encode(self._encoding, "replace")
        await anyio.to_thread.run_sync(self._write, data, abandon_on_cancel=True)

    def reader_gone(self) -> bool:
        """Whether it is a pipe whose reader is gone."""
        poll = select.poll()
        poll.register(self._descriptor, 0)
        return any(event & select.POLLERR for _descriptor, event in poll.poll(0))

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]


def entry_text(entry: Entry) -> str:
    """``AAPL 187.135 10 @ 150.00 P&L +371.35 (+24.76 %) live``; ``-`` for unknown values.

    With the day, where it is known: ``last 187.13 day +0.52 % volume 8,104,311``.
    """
    parts = [entry.symbol, price_text(entry.price)]
    lot = entry.lot
    if lot is not None:
        parts += [number_text(lot.qty), "@", price_text(lot.avg_entry_price)]
        parts += ["P&L", money_text(lot.pnl)]
        if lot.pnl_pct is not None:
            parts.append(f"({percent_text(lot.pnl_pct)})")
    if entry.last is not None:
        parts += ["last", price_text(entry.last)]
    if entry.day_pct is not None:
        parts += ["day", percent_text(entry.day_pct)]
    if entry.volume is not None:
        parts += ["volume", number_text(entry.volume)]
    parts.append(entry.status)
    if entry.status == "not asked":
        parts.append(f"(mdservice subscribe {entry.symbol})")
    return " ".join(parts)


class PlainLines:
    """Tells each change once, where there is no terminal that could be redrawn. Pure."""

    def __init__(self) -> None:
        self._printed: dict[tuple[str, int], str] = {}
        self._notes: tuple[str, ...] = ()

    def changed(self, entries: Iterable[tuple[tuple[str, int], Entry]], now_ns: int) -> list[str]:
        """A line for each entry whose text has changed.

        Args:
            entries: By symbol and number of the lot.
            now_ns: The time at the start of each line.
        """
        lines = []
        for place, entry in entries:
            text = entry_text(entry)
            if self._printed.get(place) != text:
                self._printed[place] = text
                lines.append(f"{_time(now_ns)} {text}")
        return lines

    def notes(self, warnings: tuple[str, ...], now_ns: int) -> list[str]:
        """A line for each new warning, and one line when all are gone."""
        before, self._notes = self._notes, warnings
        if before and not warnings:
            return [f"{_time(now_ns)} # all is well again"]
        return [f"{_time(now_ns)} # {text}" for text in warnings if text not in before]


def _time(now_ns: int) -> str:
    return f"{format_ns(now_ns)[:_SECONDS]}Z"


class LastError(logging.Handler):
    """Keeps the last error that was logged, for the screen; drops all other events."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._text = ""
        self._until_s = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the first line, and the last one, which names the error of a traceback."""
        lines = record.getMessage().splitlines() or [""]
        self._text = lines[0] if len(lines) == 1 else f"{lines[0]}: {lines[-1]}"
        self._until_s = time.monotonic() + _SHOWN_S

    def texts(self) -> tuple[str, ...]:
        """The error; empty without one."""
        return (f"an error inside: {self._text}",) if time.monotonic() < self._until_s else ()
