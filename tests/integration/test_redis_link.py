"""One connection, from threads: what the server says of its own accord."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from mdservice.errors import StoreUnavailable
from mdservice.redis_io.commands import pack
from mdservice.redis_io.connection import RedisAddress, RedisConnection
from mdservice.redis_io.replies import is_error


def make(url: str, timeout_s: float = 2.0) -> RedisConnection:
    return RedisConnection(RedisAddress(url, timeout_s=timeout_s))


@pytest.fixture
def link(valkey: Any) -> Iterator[RedisConnection]:
    link = make(valkey.url)
    link.open()
    yield link
    link.close()


def test_receives_what_was_published_and_what_was_asked_for(
    link: RedisConnection, valkey: Any
) -> None:
    assert link.call(pack(b"SUBSCRIBE", b"c")) == [[b"subscribe", b"c", 1]]
    with valkey.client() as client:
        for number in range(3):
            client.publish("c", number)
    heard = link.receive(1.0, pack(b"PING", b"x"))
    while len(heard) < 4:
        heard += link.receive(1.0)
    assert heard == [[b"message", b"c", b"%d" % n] for n in range(3)] + [[b"pong", b"x"]]


def test_what_came_along_with_an_answer_is_kept(link: RedisConnection) -> None:
    two = pack(b"SUBSCRIBE", b"c", b"d")  # one command with two replies
    assert link.call(two) == [[b"subscribe", b"c", 1]]
    assert link.receive(1.0) == [[b"subscribe", b"d", 2]]


def test_hears_nothing_within_the_time(link: RedisConnection) -> None:
    link.call(pack(b"SUBSCRIBE", b"c"))
    started_s = time.monotonic()
    assert link.receive(0.1) == []
    assert 0.1 <= time.monotonic() - started_s < 1
    assert link.call(pack(b"PING")) == [[b"pong", b""]]  # it can still be used


def test_an_error_is_heard_like_anything_else(link: RedisConnection) -> None:
    link.call(pack(b"SUBSCRIBE", b"c"))
    (reply,) = link.receive(1.0, pack(b"GET", b"x"))
    assert is_error(reply)


def test_closing_ends_the_wait(link: RedisConnection) -> None:
    link.call(pack(b"SUBSCRIBE", b"c"))
    timer = threading.Timer(0.1, link.close)
    timer.start()
    started_s = time.monotonic()
    with pytest.raises(StoreUnavailable):
        link.receive(10.0)
    assert time.monotonic() - started_s < 2
    timer.join()
    with pytest.raises(StoreUnavailable, match="closed"):
        link.receive(0.1)


def test_one_that_was_never_opened_tells_so(valkey: Any) -> None:
    link = make(valkey.url)
    with pytest.raises(StoreUnavailable, match="never opened"):
        link.receive(0.1)


@pytest.fixture
def raw() -> Iterator[tuple[RedisConnection, socket.socket]]:
    """A link, and the other end of its socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        link = make(f"redis://127.0.0.1:{listener.getsockname()[1]}?db=0")
        link.open()
        far, _ = listener.accept()
    yield link, far
    link.close()
    with suppress(OSError):
        far.close()


def test_half_a_message_is_waited_for_and_kept(raw: tuple[RedisConnection, socket.socket]) -> None:
    link, far = raw
    far.sendall(b"*1\r\n$3\r\n")
    assert link.receive(0.05) == []
    far.sendall(b"abc\r\n*1\r\n$1\r\n")
    assert link.receive(0.5) == [[b"abc"]]
    far.sendall(b"d\r\n")
    assert link.receive(0.5) == [[b"d"]]


def test_bytes_that_trickle_do_not_make_it_wait_longer(
    raw: tuple[RedisConnection, socket.socket],
) -> None:
    link, far = raw
    far.sendall(b"$1000\r\n")
    stop = threading.Event()

    def trickle() -> None:
        while not stop.wait(0.01):
            far.sendall(b"x")

    thread = threading.Thread(target=trickle)
    thread.start()
    started_s = time.monotonic()
    try:
        assert link.receive(0.2) == []
        assert time.monotonic() - started_s < 1
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("end", ["close", "garbage"])
def test_a_connection_that_ends_or_talks_nonsense_is_lost(
    raw: tuple[RedisConnection, socket.socket], end: str
) -> None:
    link, far = raw
    if end == "garbage":
        far.sendall(b"HTTP/1.1 200\r\n")
    else:
        far.close()
    with pytest.raises(StoreUnavailable, match="was lost"):
        link.receive(1.0)
    with pytest.raises(StoreUnavailable, match="closed"):
        link.receive(1.0)


def test_an_address_where_nobody_listens_is_told_in_whole_sentences() -> None:
    with pytest.raises(StoreUnavailable) as told:
        make("unix:///nowhere/valkey.sock").open()
    assert "No such file or directory; it is tried again. Is the server" in str(told.value)
