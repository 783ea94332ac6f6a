"""The keys of ``mdservice watch``: scrolling, and the order of the rows."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal

import anyio
import attrs

__all__ = ["FROM_THE_SMALLEST", "ORDERS", "Browse", "Key", "Keyboard", "OrderName", "parse_keys"]

Key = Literal["up", "down", "page up", "page down", "home", "end", "sort", "reverse", "quit"]
OrderName = Literal[
    "size", "symbol", "qty", "price", "value", "P&L", "P&L %", "day P&L", "age", "status"
]
ORDERS: Final[tuple[OrderName, ...]] = (
    "size", "P&L", "P&L %", "day P&L", "value", "qty", "price", "age", "status", "symbol",
)  # fmt: skip
"""In the order in which a key cycles through them. ``size`` is what a position has cost."""

FROM_THE_SMALLEST: Final = frozenset({"symbol", "status"})
"""The columns that are sorted from A to Z unless reversed; the others from the largest number."""

_LETTERS: Final[dict[bytes, Key]] = {
    b"k": "up", b"j": "down", b"g": "home", b"G": "end", b"b": "page up", b" ": "page down",
    b"s": "sort", b"r": "reverse", b"q": "quit", b"Q": "quit", b"\x03": "quit", b"\x04": "quit",
}  # fmt: skip
_ENDINGS: Final[dict[bytes, Key]] = {
    b"A": "up", b"B": "down", b"H": "home", b"F": "end",
    b"1~": "home", b"7~": "home", b"4~": "end", b"8~": "end", b"5~": "page up", b"6~": "page down",
}  # fmt: skip
_SEQUENCE: Final = re.compile(rb"\x1b(?:\[(\??[\d;]*[ -/]*[@-~])|O([@-~]))", re.DOTALL)
_BEGINNING: Final = re.compile(rb"\x1b(?:\[\??[\d;]{0,16}|O)?", re.DOTALL)
_MODIFIED: Final = re.compile(rb"^1;\d+(?=[A-Z]$)|;\d+(?=~$)")
"""The part of a sequence for Shift, Ctrl and Alt."""
_MOST_READ: Final = 1024
_IDLE_S: Final = 0.1


def parse_keys(data: bytes) -> tuple[list[Key], bytes]:
    """The keys in what a terminal has sent, and the beginning of a sequence at its end.

    Other keys are ignored.

    Source: XTerm Control Sequences, "PC-Style Function Keys".
    """
    keys: list[Key] = []
    at = 0
    while at < len(data):
        if data[at : at + 1] != b"\x1b":
            if (key := _LETTERS.get(data[at : at + 1])) is not None:
                keys.append(key)
            at += 1
        elif (found := _SEQUENCE.match(data, at)) is not None:
            ending = _MODIFIED.sub(b"", found[1] or found[2])
            if (key := _ENDINGS.get(ending)) is not None:
                keys.append(key)
            at = found.end()
        elif _BEGINNING.fullmatch(data, at):
            break
        else:
            at += 1  # the Escape key
    return keys, data[at:]


@attrs.define
class Browse:
    """Which rows are shown, and in which order. Pure.

    Attributes:
        start: How many rows are above the first one shown.
        order: The column by which rows are sorted.
        reverse: Whether the other way round: numbers from the smallest.
    """

    start: int = 0
    order: OrderName = ORDERS[0]
    reverse: bool = False
    at_end: bool = False

    def press(self, key: Key, shown: int, total: int) -> None:
        """Act on a key other than ``quit``.

        Args:
            key: The key.
            shown: The number of rows on the screen.
            total: The number of all rows.
        """
        page = max(1, shown - 1)  # one row stays for the eye
        step = {"up": -1, "down": 1, "page up": -page, "page down": page}.get(key, 0)
        self.start += step
        if step:
            self.at_end = False
        elif key in {"home", "end"}:
            self.start = 0
            self.at_end = key == "end"
        elif key == "sort":
            self.order = ORDERS[(ORDERS.index(self.order) + 1) % len(ORDERS)]
            self.reverse = False
        elif key == "reverse":
            self.reverse = not self.reverse
        self.fit(shown, total)

    def fit(self, shown: int, total: int) -> bool:
        """Stay within the rows; return whether others have to be shown."""
        before, last = self.start, max(0, total - shown)
        self.start = last if self.at_end else max(0, min(self.start, last))
        return self.start != before


class Keyboard:
    """Reads keys from a terminal, which sends each at once and shows none inside :meth:`reading`.

    Args:
        descriptor: The terminal.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._before: list[Any] | None = None

    @classmethod
    def of(cls, descriptor: int) -> Keyboard | None:
        """The keyboard of a terminal; None for anything else, and in the background."""
        try:
            usable = os.isatty(descriptor) and os.tcgetpgrp(descriptor) == os.getpgrp()
        except OSError:
            usable = False
        return cls(descriptor) if usable else None

    @classmethod
    def of_stdin(cls) -> Keyboard | None:
        """That of the program's input; None if that is no terminal."""
        try:
            return None if sys.stdin is None else cls.of(sys.stdin.fileno())
        except (OSError, ValueError):  # closed, or without a descriptor
            return None

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Have keys sent at once inside this block. Ctrl-C and Ctrl-Z stay signals."""
        self.take()
        try:
            yield
        finally:
            self.give_back()

    def take(self) -> None:
        """Have keys sent at once, and not shown."""
        with contextlib.suppress(termios.error):
            before = termios.tcgetattr(self._descriptor)
            self._before = self._before or before
            wanted = [*before]
            wanted[3] &= ~(termios.ICANON | termios.ECHO)
            wanted[6] = list(before[6])
            wanted[6][termios.VMIN] = wanted[6][termios.VTIME] = 0  # a read never waits
            termios.tcsetattr(self._descriptor, termios.TCSANOW, wanted)

    def give_back(self) -> None:
        """Leave the terminal as it was."""
        if self._before is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._descriptor, termios.TCSANOW, self._before)

    async def read(self, pressed: Callable[[Key], None]) -> None:
        """Pass each key on, until the terminal is gone or this is cancelled."""
        rest = b""
        while True:
            await anyio.wait_readable(self._descriptor)
            try:
                data = os.read(self._descriptor, _MOST_READ)
            except OSError:
                return
            keys, rest = parse_keys(rest + data)
            for key in keys:
                pressed(key)
            if not data:  # another program reads the same terminal, or it is going away
                await anyio.sleep(_IDLE_S)
