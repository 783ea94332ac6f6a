"""Connections for reading, and the records in the keys and in the stream of news."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Generic

import anyio
import attrs

from mdservice.errors import StoreRefused, StoreUnavailable
from mdservice.model.kinds import KINDS, Kind, R, RecordDecoder
from mdservice.redis_io.commands import pack
from mdservice.redis_io.connection import RedisConnection, RedisLocator
from mdservice.redis_io.names import RedisNames
from mdservice.redis_io.replies import array, is_error, malformed, refusal, role_of

__all__ = [
    "CLIENT_NAME",
    "OTHER_FORM",
    "TIMEOUT_S",
    "NewEntries",
    "connected_to",
    "payload_of",
    "read_keys",
    "read_new_entries",
    "refuse_cut_off",
    "refuse_errors",
    "refuse_moved",
]


CLIENT_NAME: Final = "mdservice-reader"
"""The name of the connections in the server's ``CLIENT LIST``."""
TIMEOUT_S: Final = 3.0
"""The limit for connecting, and for each answer."""
_KEYS = (
    *(f"{kind.key_prefix}*" for kind in KINDS if kind.has_key),
    *(kind.stream.name for kind in KINDS if kind.stream is not None),
)
_RIGHTS = (
    "allow this user SUBSCRIBE, PING, ROLE, GET, MGET, SCAN (XREVRANGE for news; XREAD, XRANGE "
    f"and XINFO for an event log) on the keys {', '.join(_KEYS)} and the channels "
    f"{', '.join(kind.event for kind in KINDS)}, with MDSERVICE_KEY_PREFIX in front"
)


@asynccontextmanager
async def connected_to(address: RedisLocator) -> AsyncIterator[RedisConnection]:
    """A connection that is closed at the end of the block.

    Raises:
        StoreUnavailable, StoreRefused
    """
    connection = await RedisConnection.open(address, CLIENT_NAME, reads=True)
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


async def refuse_moved(locator: RedisLocator, server: RedisLocator) -> None:
    """Raise for a server that is replaced; return if it is the right one.

    Raises:
        StoreUnavailable
    """
    if not await locator.is_right(server):
        raise StoreUnavailable(
            f"Redis at {server.shown} is not the primary any more, as {locator.shown} has it; "
            "connecting again"
        )


def refuse_cut_off(address: str, role: object) -> None:
    """Raise for the role of a replica that gets nothing new; ``role`` is the answer to ``ROLE``.

    Raises:
        StoreUnavailable
    """
    found = role_of(role)
    if found is not None and not found.follows:
        raise StoreUnavailable(
            f"Redis at {address} is a replica without a connection to its primary, so nothing new "
            "comes there; connecting again"
        )


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
        if not isinstance(keys, list) or not {type(cursor), *map(type, keys)} <= {bytes}:
            raise malformed(connection.address)
        await read(keys)
        cursor = None if cursor == b"0" else cursor
    return [found[symbol] for symbol in sorted(found)]


# Reading the stream of a kind, such as news.


OTHER_FORM: Final = (AttributeError, LookupError, TypeError, ValueError)
"""How reading a reply fails that no Redis server gives."""
_ENTRIES_PER_READ: Final = 100
_FIRST_RECORDS: Final = 50
"""How many records of a stream a reader gets at its start."""
_FIRST_ENTRIES: Final = 1_000
"""Among how many of the newest entries it looks for them."""
_EMPTY: Final = b"0-0"
"""Stands for the last entry of a stream that had none."""


@attrs.frozen
class NewEntries(Generic[R]):
    """What the stream of a kind has since the last read.

    Attributes:
        records: The wanted records, the oldest first.
        last_id: The id of the newest entry, for the next read.
        trimmed: Whether entries may have been deleted before they were read.
    """

    records: list[R]
    last_id: bytes
    trimmed: bool = False


async def read_new_entries(
    connection: RedisConnection,
    stream: bytes,
    decoder: RecordDecoder[R],
    *,
    after: bytes | None,
    knows: Callable[[R], bool],
) -> NewEntries[R]:
    """The records of a stream since the last read; at the first read, the newest 50.

    It reads from the end of the stream backward, up to the last read or a record that is known.

    Args:
        connection: One that is not subscribed to anything.
        stream: The stream's full name.
        decoder: Selects the wanted records, and counts unreadable content.
        after: The ``last_id`` of the last read; None at the first one.
        knows: Whether a record came before.

    Raises:
        StoreUnavailable, StoreRefused
    """
    found: list[R] = []
    newest, until, looked_at = after or _EMPTY, b"+", 0
    count = b"%d" % (_ENTRIES_PER_READ + 1)  # the last one of a page begins the next
    while True:
        words = (b"XREVRANGE", stream, until, after or b"-", b"COUNT", count)
        (reply,) = await connection.call(pack(*words))
        refuse_errors(connection.address, (reply,))
        try:
            page = [(entry_id, payload_of(fields)) for entry_id, fields in reply]
        except OTHER_FORM as exc:
            raise malformed(connection.address) from exc
        if until == b"+" and page:
            newest = page[0][0]
        for entry_id, payload in page:
            if entry_id == after:
                return NewEntries(found[::-1], newest)
            record = None if entry_id == until else decoder.decode(payload)
            if record is None:
                continue
            if knows(record):
                return NewEntries(found[::-1], newest)
            found.append(record)
            if after is None and len(found) == _FIRST_RECORDS:
                return NewEntries(found[::-1], newest)
        looked_at += _ENTRIES_PER_READ
        if len(page) <= _ENTRIES_PER_READ or (after is None and looked_at >= _FIRST_ENTRIES):
            return NewEntries(found[::-1], newest, trimmed=after not in (None, _EMPTY))
        until = page[-1][0]


def payload_of(fields: Any) -> bytes | None:
    """The field ``data`` of a stream's entry; None if the entry has none."""
    found = dict(zip(fields[::2], fields[1::2], strict=False)) if fields else {}
    payload: bytes | None = found.get(b"data")
    return payload
