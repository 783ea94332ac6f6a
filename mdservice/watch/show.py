"""``mdservice watch``: opens what is to be watched, and shows it until it is told to end."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import anyio
import attrs
from rich.console import Console, Group
from rich.live import Live

from mdservice.clock import Clock, SystemClock
from mdservice.errors import StoreUnavailable
from mdservice.gateway.book import PnlBook
from mdservice.gateway.make import make_book
from mdservice.settings import Settings
from mdservice.settings_feeds import FEED_URLS, feed_delay_s
from mdservice.settings_fields import Unchosen
from mdservice.stop_signals import stop_on_signal
from mdservice.watch.errors import LastError
from mdservice.watch.gather import Gatherer
from mdservice.watch.output import LineOutput
from mdservice.watch.plain import PlainLines
from mdservice.watch.screen import Screen
from mdservice.watch.service import ServiceWatch

__all__ = ["watch"]

_REDRAW_S: Final = 0.25
_LINES_EVERY_S: Final = 1.0
_LOOK_S: Final = 0.02
_FIRST_S: Final = 1.0
"""How long the first screen waits, so that it does not show what is there in a moment."""
_ONCE_S: Final = 8.0
_NO_END: Final = 100_000
"""Columns, where nobody has to see them on a screen."""


async def watch(settings: Settings, chosen: Sequence[str], *, once: bool) -> bool:
    """Show prices and P&L until SIGINT, SIGTERM, SIGHUP or the end of the reader.

    A second signal ends the process at once.

    Args:
        settings: Where the service, Redis and the positions are.
        chosen: The only symbols to show; none means all.
        once: Show everything once, and end.

    Returns:
        Whether nothing that was shown last may be out of date.

    Raises:
        NoAnswer: No service answers, and the settings name no Redis.
        StoreUnavailable: With ``once``: there are no prices.
        ConfigurationError: The settings cannot be used.
    """
    clock, errors = SystemClock(), LastError()
    # What is to be known stands on the screen; a log would be written across it.
    logging.getLogger("mdservice").addHandler(errors)
    async with anyio.create_task_group() as tasks:
        running = anyio.CancelScope()
        await tasks.start(stop_on_signal, running, _restore_terminal)
        well = True
        error: Exception | None = None
        with running:
            try:
                well = await _watch(settings, chosen, clock, errors, once=once)
            except Exception as exc:  # noqa: BLE001 - raised below, outside the group, as it is
                error = exc
        tasks.cancel_scope.cancel()
    if error is not None:
        raise error
    return well


async def _watch(
    settings: Settings, chosen: Sequence[str], clock: Clock, errors: LastError, *, once: bool
) -> bool:
    service = ServiceWatch(settings.socket, subscriptions=bool(chosen))
    await service.refresh()
    if service.failure is not None and settings.redis_url is None:
        raise service.failure
    settings = _of_the_service(settings, service)
    source = settings.gateway_positions or settings.positions
    book = make_book(source, settings, read_from="live", symbols=chosen, clock=clock)
    async with book.running(), anyio.create_task_group() as tasks:
        tasks.start_soon(service.poll)
        gatherer = Gatherer(
            book,
            service,
            chosen,
            stale_after_s=settings.stale_after,
            delay_s=feed_delay_s(settings.feed),
            clock=clock,
            errors=errors.texts,
        )
        with anyio.move_on_after(_ONCE_S if once else _FIRST_S):
            await _known(book)
        console, well = Console(highlight=False), True
        with suppress(BrokenPipeError):  # nobody reads any more
            if once:
                well = await _once(gatherer, book, console)
            elif sys.stdout.isatty() and console.is_terminal and not console.is_dumb_terminal:
                await _on_terminal(gatherer, console)
            else:
                await _in_lines(gatherer, clock)
        tasks.cancel_scope.cancel()
    return well


def _of_the_service(settings: Settings, service: ServiceWatch) -> Settings:
    """Without alerts, which are the gateway's, and with the service's feed where none was set."""
    feed = service.status.get("feed")
    name = feed.get("name") if isinstance(feed, dict) else None
    if isinstance(settings.feed, Unchosen) and name in FEED_URLS:
        settings = attrs.evolve(settings, feed=name)
    return attrs.evolve(settings, alerts=())


async def _known(book: PnlBook) -> None:
    """Wait until the positions and the prices that there are have come, or the reason why not."""
    while True:
        positions = book.positions
        prices = book.prices_status()
        told = positions.answers > 0 or positions.last_error is not None
        if told and (book.prices_error() or (prices is not None and not prices.waiting)):
            return
        await anyio.sleep(_LOOK_S)


def _restore_terminal() -> None:
    """Leave the full screen and show the cursor, where the terminal takes it without a wait."""
    if not os.isatty(1):
        return
    os.set_blocking(1, False)
    with suppress(OSError):
        os.write(1, b"\x1b[?1049l\x1b[?25h")
    os.set_blocking(1, True)  # the shell shares the open terminal


async def _once(gatherer: Gatherer, book: PnlBook, console: Console) -> bool:
    view = gatherer.view()
    if book.prices_status() is None:
        raise StoreUnavailable(book.prices_error() or f"no prices came within {_ONCE_S:g} s")
    on_terminal = sys.stdout.isatty()
    width = console.width if on_terminal else _NO_END
    screen = Screen(plain_text=not console.encoding.startswith("utf"), moving=False)
    with console.capture() as capture:
        for line in screen.lines(view, width):
            console.print(line, soft_wrap=True)
    text = capture.get().rstrip("\n")
    await LineOutput(sys.stdout).write([line.rstrip() for line in text.split("\n")])
    return not view.warnings


async def _on_terminal(gatherer: Gatherer, console: Console) -> None:
    """Redraw the screen until cancelled; whatever was on the terminal before comes back."""
    screen = Screen(plain_text=not console.encoding.startswith("utf"))
    live = Live(
        console=console,
        screen=True,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_let_suspend, live)
        with live:
            await _redraw(gatherer, screen, console, live)


async def _redraw(gatherer: Gatherer, screen: Screen, console: Console, live: Live) -> None:
    while True:
        width, height = console.size
        lines = screen.lines(gatherer.view(height), width, height)
        live.update(Group(*lines), refresh=True)
        await anyio.sleep(_REDRAW_S)


async def _let_suspend(live: Live) -> None:
    """Give the terminal back for as long as Ctrl-Z stops this process."""
    with anyio.open_signal_receiver(signal.SIGTSTP) as signals:
        async for _number in signals:
            live.stop()
            os.kill(os.getpid(), signal.SIGSTOP)
            live.start()


async def _in_lines(gatherer: Gatherer, clock: Clock) -> None:
    """Write what changes, line by line, until cancelled or until nobody reads."""
    output, notes, lines = LineOutput(sys.stdout), LineOutput(sys.stderr), PlainLines()
    while not output.reader_gone():
        now_ns = clock.utc_ns()
        changed = lines.changed(gatherer.changes(), now_ns)
        await notes.write(lines.notes(gatherer.warnings(), now_ns))
        await output.write(changed)
        await anyio.sleep(_LINES_EVERY_S)
