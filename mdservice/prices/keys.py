"""The prices that stand in the keys."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Final

from mdservice.errors import StoreUnavailable
from mdservice.model.decode import QuoteDecoder
from mdservice.model.quote import Quote
from mdservice.model.redis_layout import RedisNames
from mdservice.prices.links import refuse_errors
from mdservice.sinks.redis_link import RedisLink
from mdservice.sinks.resp import pack

__all__ = ["read_keys"]

_KEYS_PER_READ: Final = 1_000
_LIMIT_S: Final = 30.0
"""A server with many million other keys takes a while to go through; beyond this it is told."""


def read_keys(
    link: RedisLink,
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


def _all(link: RedisLink, address: str, names: RedisNames) -> Iterator[list[bytes]]:
    cursor = b"0"
    while True:
        words = (b"SCAN", cursor, b"MATCH", names.price_keys, b"COUNT", b"%d" % _KEYS_PER_READ)
        replies = link.call(pack(*words))
        refuse_errors(address, replies)
        cursor, keys = replies[0]
        yield keys
        if cursor == b"0":
            return
