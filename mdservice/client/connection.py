"""Connections for reading, and the records that stand in the keys."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio

from mdservice.errors import StoreRefused, StoreUnavailable
from mdservice.model.kinds import KINDS, Kind, R, RecordDecoder
from mdservice.redis_io.commands import pack
from mdservice.redis_io.connection import RedisAddress, RedisConnection
from mdservice.redis_io.names import RedisNames
from mdservice.redis_io.replies import array, is_error, refusal

__all__ = [
    "CLIENT_NAME",
    "TIMEOUT_S",
    "connected_to",
    "read_keys",
    "refuse_errors",
]


CLIENT_NAME: Final = "mdservice-reader"
"""The name of the connections in the server's ``CLIENT LIST``."""
TIMEOUT_S: Final = 3.0
"""The limit for connecting, and for each answer."""
_RIGHTS = (
    "allow this user SUBSCRIBE, PING, MGET, SCAN (XREAD, XRANGE and XINFO for an event log) on "
    f"the keys {', '.join(f'{kind.key_prefix}*' for kind in KINDS)} and the channel "
    f"{', '.join(kind.event for kind in KINDS)}, with MDSERVICE_KEY_PREFIX in front"
)


@asynccontextmanager
async def connected_to(address: RedisAddress) -> AsyncIterator[RedisConnection]:
    """A connection that is closed at the end of the block.

    Raises:
        StoreUnavailable, StoreRefused
    """
    connection = await RedisConnection.open(address, CLIENT_NAME)
    try:
        yield connection
    finally:
        connection.close()


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


# Reading the keys.


_KEYS_PER_READ: Final = 1_000
_LIMIT_S: Final = 30.0
"""The limit for scanning a server, which may have many million other keys."""


async def read_keys(
    connection: RedisConnection,
    kind: Kind[R],
    symbols: Sequence[str],
    decoder: RecordDecoder[R],
    names: RedisNames,
) -> list[R]:
    """The records in the keys of a kind, by symbol.

    Keys with other content are omitted, and the decoder counts them.

    Args:
        connection: One that is not subscribed to anything.
        kind: The kind of the records.
        symbols: The symbols to read; empty for every key of the kind.
        decoder: Counts unreadable content.
        names: The names of the keys.

    Raises:
        StoreUnavailable, StoreRefused
    """
    deadline_s = anyio.current_time() + _LIMIT_S
    found: dict[str, R] = {}
    prefix = names.key_prefix(kind)

    async def read(keys: Sequence[bytes]) -> None:
        if anyio.current_time() > deadline_s:
            raise StoreUnavailable(
                f"Redis at {connection.address} has so many keys that the prices among them are "
                f"not found within {_LIMIT_S:g} s: name the symbols, or give the prices a database"
            )
        if not keys:
            return
        replies = await connection.call(pack(b"MGET", *keys))
        refuse_errors(connection.address, replies)
        values = array(connection.address, replies[0], len(keys))
        for key, payload in zip(keys, values, strict=True):
            record = None if payload is None else decoder.decode(payload)
            if record is None:
                continue
            if prefix + record.symbol.encode() != key:
                decoder.errors += 1
                decoder.last_error = f"the key {key.decode(errors='replace')} is of another symbol"
                continue
            found[record.symbol] = record

    for start in range(0, len(symbols), _KEYS_PER_READ):
        some = symbols[start : start + _KEYS_PER_READ]
        await read([prefix + symbol.encode() for symbol in some])
    cursor: Any = None if symbols else b"0"
    while cursor is not None:
        words = (b"SCAN", cursor, b"MATCH", names.keys(kind), b"COUNT", b"%d" % _KEYS_PER_READ)
        replies = await connection.call(pack(*words))
        refuse_errors(connection.address, replies)
        cursor, keys = array(connection.address, replies[0], 2)
        await read(keys)
        cursor = None if cursor == b"0" else cursor
    return [found[symbol] for symbol in sorted(found)]
