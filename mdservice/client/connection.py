"""Connections for reading: opened, used from a thread, closed by whoever gives up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

import anyio
import anyio.to_thread

from mdservice.errors import StoreRefused, StoreUnavailable
from mdservice.model.payload import QuoteDecoder
from mdservice.model.quote import Quote
from mdservice.redis_io.commands import pack
from mdservice.redis_io.connection import RedisAddress, RedisConnection
from mdservice.redis_io.names import RedisNames
from mdservice.redis_io.replies import is_error, refusal

__all__ = [
    "CLIENT_NAME",
    "TIMEOUT_S",
    "in_thread",
    "open_link",
    "opening",
    "read_keys",
    "refuse_errors",
]


CLIENT_NAME: Final = "mdservice-reader"
"""How the connections are called in the server's ``CLIENT LIST``."""
TIMEOUT_S: Final = 3.0
"""How long connecting, and each wait for an answer, may take."""
_RIGHTS = (
    "allow this user SUBSCRIBE, PING, MGET, SCAN (XREAD, XRANGE and XINFO for an event log) on "
    "the keys price:* and the channel price.updated, with MDSERVICE_KEY_PREFIX in front"
)
_T = TypeVar("_T")


@contextmanager
def opening(address: RedisAddress) -> Iterator[RedisConnection]:
    """A link, not yet opened, which is closed at the end, whatever ends the block."""
    link = RedisConnection(address)
    try:
        yield link
    finally:
        link.close()


async def in_thread(
    limiter: anyio.CapacityLimiter,
    link: RedisConnection,
    function: Callable[..., _T],
    *args: object,
) -> _T:
    """Call a blocking function that uses the link; an error or a cancellation closes the link.

    A cancelled call is not waited for: its thread ends soon, since its socket is shut.
    """
    done = False
    try:
        result = await anyio.to_thread.run_sync(
            function, link, *args, abandon_on_cancel=True, limiter=limiter
        )
        done = True
    finally:
        if not done:
            link.close()
    return result


def open_link(link: RedisConnection) -> None:
    """Connect, log in, say who we are. Blocks.

    Raises:
        StoreUnavailable, StoreRefused
    """
    link.open()
    link.call(pack(b"CLIENT", b"SETNAME", CLIENT_NAME.encode()))  # a refusal does not matter


def refuse_errors(address: str, replies: Iterable[object]) -> None:
    """Raise for the first of the replies that is an error.

    Raises:
        StoreRefused: With what the server said and what to do.
    """
    for reply in replies:
        if is_error(reply):
            text = str(reply)
            if text.startswith("NOPERM"):
                raise StoreRefused(f"Redis at {address} refused: {text.rstrip('.')}; {_RIGHTS}")
            raise refusal(address, text)


# The prices that stand in the keys.


_KEYS_PER_READ: Final = 1_000
_LIMIT_S: Final = 30.0
"""A server with many million other keys takes a while to go through; beyond this it is told."""


def read_keys(
    link: RedisConnection,
    address: str,
    symbols: Sequence[str],
    decoder: QuoteDecoder,
    names: RedisNames,
) -> list[Quote]:
    """The quotes in the keys, by symbol. Blocks.

    Keys that hold anything else are left out and counted by the decoder.

    Args:
        link: Opened, and not subscribed to anything.
        address: The server, for errors.
        symbols: Which; empty means every key ``price:*``.
        decoder: Counts what cannot be read.
        names: The keys' names.

    Raises:
        StoreUnavailable, StoreRefused
    """
    deadline_s = time.monotonic() + _LIMIT_S
    found: dict[str, Quote] = {}
    for keys in _named(symbols, names) if symbols else _all(link, address, names):
        if time.monotonic() > deadline_s:
            raise StoreUnavailable(
                f"Redis at {address} has so many keys that the prices among them are not found "
                f"within {_LIMIT_S:g} s: name the symbols, or give the prices a database"
            )
        if not keys:
            continue
        replies = link.call(pack(b"MGET", *keys))
        refuse_errors(address, replies)
        for key, payload in zip(keys, replies[0], strict=True):
            quote = None if payload is None else decoder.decode(payload)
            if quote is None:
                continue
            if names.price_key(quote.symbol) != key:
                decoder.errors += 1
                decoder.last_error = f"the key {key.decode(errors='replace')} is of another symbol"
                continue
            found[quote.symbol] = quote
    return [found[symbol] for symbol in sorted(found)]


def _named(symbols: Sequence[str], names: RedisNames) -> Iterator[list[bytes]]:
    for start in range(0, len(symbols), _KEYS_PER_READ):
        yield [names.price_key(symbol) for symbol in symbols[start : start + _KEYS_PER_READ]]


def _all(link: RedisConnection, address: str, names: RedisNames) -> Iterator[list[bytes]]:
    cursor = b"0"
    while True:
        words = (b"SCAN", cursor, b"MATCH", names.price_keys, b"COUNT", b"%d" % _KEYS_PER_READ)
        replies = link.call(pack(*words))
        refuse_errors(address, replies)
        cursor, keys = replies[0]
        yield keys
        if cursor == b"0":
            return
