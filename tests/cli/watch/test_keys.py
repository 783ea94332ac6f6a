"""Keys as terminals send them, and what they do."""

from __future__ import annotations

import os
import pty
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdservice.cli.watch.keys import ORDERS, Browse, Keyboard, parse_keys


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"\x1b[A\x1b[B", ["up", "down"]),
        (b"\x1bOA\x1bOB", ["up", "down"]),
        (b"\x1b[5~\x1b[6~", ["page up", "page down"]),
        (b"\x1b[H\x1b[F\x1bOH\x1bOF", ["home", "end"] * 2),
        (b"\x1b[1~\x1b[4~\x1b[7~\x1b[8~", ["home", "end"] * 2),
        (b"\x1b[1;5A\x1b[6;2~", ["up", "page down"]),
        (b"kjsrq", ["up", "down", "sort", "reverse", "quit"]),
        (b"\x03\x04", ["quit", "quit"]),
        (b"xyz\x00\xff\r\n\x1b[200~\x1b[15~\x1b[Z\x1b[M", []),
        (b"\x1bj", ["down"]),
        (b"\x1b\x1b[A", ["up"]),
        (b"\x1b[?62;c", []),
    ],
)
def test_keys_of_terminals(data: bytes, keys: list[str]) -> None:
    assert parse_keys(data) == (keys, b"")


@given(st.lists(st.sampled_from([b"\x1b[A", b"\x1bOB", b"\x1b[5~", b"q", b"x", b"\x1b[1;2F"])))
def test_a_sequence_may_come_in_parts(parts: list[bytes]) -> None:
    data = b"".join(parts)
    found, rest = [], b""
    for at in range(len(data)):
        keys, rest = parse_keys(rest + data[at : at + 1])
        found += keys
    assert (found, rest) == parse_keys(data)


@given(st.lists(st.binary(max_size=40)))
def test_nothing_that_is_typed_breaks_it_or_piles_up(parts: list[bytes]) -> None:
    rest = b""
    for part in parts:
        _, rest = parse_keys(rest + part)
        assert len(rest) < 24


def pressed(browse: Browse, *keys: Any, shown: int = 10, total: int = 25) -> int:
    for key in keys:
        browse.press(key, shown, total)
    return browse.start


def test_scrolling_stays_within_the_rows() -> None:
    browse = Browse()
    assert pressed(browse, "up") == 0
    assert pressed(browse, "down", "down") == 2
    assert pressed(browse, "page down") == 11
    assert pressed(browse, "page down", "page down") == 15
    assert pressed(browse, "page up", "up") == 5
    assert pressed(browse, "end") == 15
    assert pressed(browse, "home") == 0
    assert pressed(browse, "down", "end", "page down", shown=30) == 0
    assert pressed(browse, "end", shown=1, total=0) == 0


def test_the_end_stays_the_end_and_rows_that_are_gone_are_left() -> None:
    browse = Browse()
    pressed(browse, "end")
    assert browse.fit(10, 30)
    assert browse.start == 20
    assert not browse.fit(10, 30)
    pressed(browse, "up", total=30)
    assert not browse.fit(10, 40)
    assert browse.start == 19
    assert browse.fit(10, 15)
    assert browse.start == 5


def test_a_key_cycles_through_the_orders_and_another_reverses() -> None:
    browse = Browse()
    seen = [browse.order]
    for _ in ORDERS[1:]:
        pressed(browse, "sort")
        seen.append(browse.order)
    assert tuple(seen) == ORDERS
    pressed(browse, "reverse")
    assert browse.reverse
    pressed(browse, "sort")
    assert (browse.order, browse.reverse) == (ORDERS[0], False)


def test_what_is_no_terminal_has_no_keys() -> None:
    reading, writing = os.pipe()
    try:
        assert Keyboard.of(reading) is None
    finally:
        os.close(reading)
        os.close(writing)
    assert Keyboard.of(reading) is None, "a closed one"
    end, other = pty.openpty()
    try:
        assert Keyboard.of(other) is None, "the terminal of another session"
    finally:
        os.close(end)
        os.close(other)
