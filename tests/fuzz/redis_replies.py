"""The replies of a Redis server, for every part that reads them: only a ``StoreError`` may come."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from mdservice.client.connection import read_keys, read_new_entries
from mdservice.client.discovery import GivenServer, Location
from mdservice.client.event_log import START, look, read_chunk
from mdservice.client.intake import Intake
from mdservice.client.pubsub import PubSubSource
from mdservice.errors import StoreError, StoreUnavailable
from mdservice.gateway.redis_calls import RedisCalls
from mdservice.model.kinds import KINDS, NEWS, QUOTES, RecordDecoder
from mdservice.pnl.breaker import Breaker
from mdservice.publish.store import WriteBatch
from mdservice.redis_io.connection import _LOST, RedisAddress, RedisConnection
from mdservice.redis_io.locator import (
    Found,
    SentinelLocator,
    _address,
    _names,
    _replicas,
    locator_of,
)
from mdservice.redis_io.names import RedisNames
from mdservice.redis_io.rights import missing_rights
from mdservice.redis_io.store import Identity, RedisPriceStore, greet
from tests.records import make_record

__all__ = ["run", "seeds"]

_MOST_BYTES: Final = 32_768
"""Fits into the buffer of a socket."""
_LIMIT_S: Final = 30.0
_LOOP: Final = asyncio.new_event_loop()
_ADDRESS: Final = RedisAddress("redis://127.0.0.1:1", timeout_s=_LIMIT_S)
_NAMES: Final = RedisNames()
_STREAM: Final = NEWS.stream


def run(data: bytes) -> None:
    """The first byte chooses the reader; the others are what the server sends before it leaves."""
    if data:
        with suppress(StoreError):
            _LOOP.run_until_complete(
                asyncio.wait_for(
                    _READERS[data[0] % len(_READERS)](data[1 : _MOST_BYTES + 1]), _LIMIT_S
                )
            )


def _connected(data: bytes) -> RedisConnection:
    """A connection to a server that sends this, then nothing more, and reads nothing."""
    ours, theirs = socket.socketpair()
    theirs.sendall(data)
    theirs.shutdown(socket.SHUT_WR)
    connection = RedisConnection(ours, _ADDRESS)
    close = connection.close

    def close_both() -> None:
        close()
        theirs.close()

    connection.close = close_both  # type: ignore[method-assign]
    return connection


@asynccontextmanager
async def _connection(data: bytes) -> AsyncIterator[RedisConnection]:
    connection = _connected(data)
    try:
        yield connection
    finally:
        connection.close()


def _store(connection: RedisConnection) -> RedisPriceStore:
    store = RedisPriceStore("redis://127.0.0.1:1", instance="fuzz")
    store._connection = connection
    return store


async def _greeting(data: bytes) -> None:
    async with _connection(data) as connection:
        try:
            await connection._log_in(_ADDRESS.options, "fuzz")
        except _LOST as error:  # as open() translates them
            raise StoreUnavailable(str(error)) from error
        packer = _store(connection)._packer
        await greet(connection, Identity(b"run", 1), packer, 0)
        await missing_rights(connection, _NAMES, "log")


async def _writing(data: bytes) -> None:
    async with _connection(data) as connection:
        record = make_record(QUOTES)
        latest = {QUOTES: {record.symbol: QUOTES.encode(record)}}
        await _store(connection).write(WriteBatch(number=1, latest=latest, events=[]))


async def _reading(data: bytes) -> None:
    async with _connection(data) as connection:
        store = _store(connection)
        await store.last_batch()
        await store.read_latest(QUOTES, ["AAPL"])
        if _STREAM is not None:
            await store.read_newest(_STREAM, 10)
        await store.renew(QUOTES, ["AAPL"])
        await store.ping()


async def _keys(data: bytes) -> None:
    async with _connection(data) as connection:
        await read_keys(connection, QUOTES, (), RecordDecoder.of(QUOTES), _NAMES)


async def _entries(data: bytes) -> None:
    async with _connection(data) as connection:
        decoder = RecordDecoder.of(NEWS)
        await read_new_entries(connection, b"news", decoder, after=b"1-1", knows=lambda _: False)


async def _log(data: bytes) -> None:
    async with _connection(data) as connection:
        await look(connection, b"log")
        await read_chunk(connection, b"log", START)


async def _events(data: bytes) -> None:
    @asynccontextmanager
    async def connect(_address: RedisAddress) -> AsyncIterator[RedisConnection]:
        async with _connection(data) as connection:
            yield connection

    source: PubSubSource[Any] = PubSubSource(Intake(KINDS, ()), connect)
    await source.follow(Location(_ADDRESS, _NAMES), lambda: None)


async def _sentinel(data: bytes) -> None:
    async with _connection(data) as connection:
        primary, replicas, services = await connection.call(b"", b"", b"")
    found = Found("sentinel", _address(primary), _replicas(replicas), services=_names(services))
    locator = locator_of("redis+sentinel://127.0.0.1:1/prices", timeout_s=_LIMIT_S)
    assert isinstance(locator, SentinelLocator)
    for server in locator._candidates(found):
        locator._server(*server)


def _of_gateway(call: Callable[[RedisCalls], Awaitable[object]]) -> Callable[[bytes], Any]:
    async def talk(data: bytes) -> None:
        calls = RedisCalls(GivenServer("redis://127.0.0.1:1", ""))

        async def connect() -> RedisConnection:
            calls._connection = _connected(data)
            (role,) = await calls._connection.call(b"")
            calls._was_primary = role is not None
            return calls._connection

        calls._connect = connect  # type: ignore[method-assign]
        try:
            await call(calls)
        finally:
            calls.close()

    return talk


_TRIPPED: Final = Breaker("tripped", at="2026-11-20T15:51:44Z")
_READERS: Final[tuple[Callable[[bytes], Any], ...]] = (
    _greeting,
    _writing,
    _reading,
    _keys,
    _entries,
    _log,
    _events,
    _of_gateway(lambda calls: calls.prices(["AAPL", "MSFT"])),
    _of_gateway(lambda calls: calls.publish("pnl.alert", [b"{}"])),
    _of_gateway(lambda calls: calls.breaker()),
    _of_gateway(lambda calls: calls.change_breaker(lambda _: _TRIPPED)),
    _of_gateway(lambda calls: calls.hold_actions()),
    _of_gateway(lambda calls: calls.actions()),
    _of_gateway(lambda calls: calls.day_start("account")),
    _sentinel,
)


def _bulk(text: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(text), text)


def seeds() -> Iterator[bytes]:
    """What a server answers to each reader, and types that it does not send."""
    price = _bulk(QUOTES.encode(make_record(QUOTES)))
    article = _bulk(b"data") + _bulk(NEWS.encode(make_record(NEWS)))
    entry = b"*2\r\n" + _bulk(b"5-0") + b"*2\r\n" + article
    role = b"*3\r\n" + _bulk(b"master") + b":0\r\n*0\r\n"
    subscribed = b"*3\r\n" + _bulk(b"subscribe") + _bulk(b"price.updated") + b":1\r\n"
    message = b"*3\r\n" + _bulk(b"message") + _bulk(b"price.updated") + price
    breaker = _bulk(b'{"state":"closed","rule":null,"subject":null,"value":null,"at":null}')
    facts = (b"name", b"prices", b"ip", b"::1", b"port", b"6380", b"flags", b"slave")
    replica = b"*1\r\n*8\r\n" + b"".join(map(_bulk, facts))
    answers = (
        b"+OK\r\n:7\r\n" + _bulk(b"# Server\r\nrun_id:abc\r\n") + b"+OK\r\n*0\r\n" + b":0\r\n" * 30,
        b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n+OK\r\n",
        _bulk(b"12") + b"*1\r\n" + price + b"*1\r\n" + entry + b":1\r\n+OK\r\n",
        b"*2\r\n" + _bulk(b"0") + b"*1\r\n" + _bulk(b"price:AAPL") + b"*1\r\n" + price,
        b"*1\r\n" + entry,
        b"*2\r\n"
        + _bulk(b"last-generated-id")
        + _bulk(b"5-0")
        + b"*1\r\n*2\r\n"
        + _bulk(b"log")
        + b"*1\r\n"
        + entry
        + b"*1\r\n"
        + entry,
        b"$-1\r\n" + subscribed * 20 + message * 2,
        role + b"$-1\r\n*2\r\n" + price + b"$-1\r\n",
        role + b":1\r\n",
        role + breaker,
        role + b"+OK\r\n" + breaker + b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n:0\r\n",
        role + b"+OK\r\n" + _bulk(b"other"),
        role + b"$-1\r\n",
        _bulk(b"{}"),
        b"*2\r\n" + _bulk(b"127.0.0.1") + _bulk(b"6379") + replica + replica,
    )
    for place, answer in enumerate(answers):
        yield bytes([place]) + answer
        yield (
            bytes([place]) + b"%1\r\n*0\r\n:1\r\n~1\r\n*0\r\n,1.5\r\n#t\r\n_\r\n(12\r\n>1\r\n+x\r\n"
        )
        yield bytes([place]) + b"-NOPERM this user has no permissions\r\n-\xff\xfe\r\n" * 8
