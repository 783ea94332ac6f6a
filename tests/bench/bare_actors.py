"""The least that actors can cost: tasks joined by memory channels that do the service's steps and no more.

Reads the feed from a plain socket, decodes, keeps each symbol's last quote, encodes, and writes a SET
and a PUBLISH for each quote. No numbers, no repair, no backlog, no acknowledgement, no batch number,
no watchdog: what is left is what the tasks, their channels and the sockets cost.
``python -m tests.bench.bare_actors FEED_URL REDIS_PATH SYMBOL,SYMBOL… TASKS``; the tasks are 4
(connection, router, publisher, writer) or 1.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

import anyio
import hiredis
import msgspec
import trio
from anyio.lowlevel import checkpoint

from mdservice.model.timestamps import format_ns
from tests.bench.wire import LOGIN, Quote, decode_quotes, subscription

_SIZE = 64
_READ_BYTES = 65_536
_HEAD_16, _HEAD_64 = 126, 127
_CLIENT_BINARY, _MASKED_16, _NO_MASK = 0x82, 0xFE, bytes(4)
_PRICE_TTL_S = b"300"


class _Price(msgspec.Struct):
    symbol: str
    price: float
    bid: float
    ask: float
    bid_size: int
    ask_size: int
    timestamp: str


def payloads(quotes: list[Quote]) -> list[tuple[bytes, bytes]]:
    """The key and the payload of each quote."""
    encode = msgspec.json.encode
    return [
        (
            b"price:" + quote.S.encode(),
            encode(
                _Price(
                    *(quote.S, (quote.bp + quote.ap) / 2, quote.bp, quote.ap, quote.bs, quote.as_),
                    format_ns(quote.time_ns()),
                )
            ),
        )
        for quote in quotes
    ]


def commands(prices: list[tuple[bytes, bytes]]) -> bytes:
    """SET and PUBLISH of each."""
    pack = hiredis.pack_command
    parts = []
    for key, payload in prices:
        parts.append(pack((b"SET", key, payload, b"EX", _PRICE_TTL_S)))
        parts.append(pack((b"PUBLISH", b"price.updated", payload)))
    return b"".join(parts)


class Feed:
    """A websocket client of one server: it never pings and never fragments."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._rest = b""

    async def log_in(self, host: str, path: str, symbols: list[str]) -> None:
        """Upgrade, authenticate, subscribe."""
        await self._stream.send_all(
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += bytes(await self._stream.receive_some())
        self._rest = answer.partition(b"\r\n\r\n")[2]
        for message in (LOGIN, subscription(symbols)):
            head = bytes((_CLIENT_BINARY, _MASKED_16)) + len(message).to_bytes(2, "big")
            await self._stream.send_all(head + _NO_MASK + message)

    async def read(self) -> list[Quote]:
        """The quotes of one read."""
        self._rest += bytes(await self._stream.receive_some(_READ_BYTES))
        return [quote for frame in self._frames() for quote in decode_quotes(frame)]

    def _frames(self) -> Iterator[bytes]:
        while len(self._rest) > 1:
            length, start = self._rest[1], 2
            if length in (_HEAD_16, _HEAD_64):
                start += 2 if length == _HEAD_16 else 8
                length = int.from_bytes(self._rest[2:start], "big")
            if len(self._rest) < start + length:
                return
            yield self._rest[start : start + length]
            self._rest = self._rest[start + length :]


async def run(feed_url: str, redis_path: str, symbols: list[str], tasks: int) -> None:
    """Pass quotes on until cancelled."""
    parts = urlsplit(feed_url)
    host, port = parts.hostname or "", parts.port or 80
    redis = await trio.open_unix_socket(redis_path)
    feed = Feed(await trio.open_tcp_stream(host, port))
    await feed.log_in(host, parts.path or "/", symbols)
    last: dict[str, Quote] = {}

    def route(quotes: list[Quote]) -> list[Quote]:
        for quote in quotes:
            last[quote.S] = quote
        return quotes

    async def forget_replies() -> None:
        while await redis.receive_some(_READ_BYTES):
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(forget_replies)
        if tasks == 1:
            while True:
                if quotes := await feed.read():
                    await redis.send_all(commands(payloads(route(quotes))))
        routing, to_route = anyio.create_memory_object_stream[list[Quote]](_SIZE)
        publishing, to_publish = anyio.create_memory_object_stream[list[Quote]](_SIZE)
        writing, to_write = anyio.create_memory_object_stream[list[tuple[bytes, bytes]]](_SIZE)

        async def router() -> None:
            async for quotes in to_route:
                publishing.send_nowait(route(quotes))

        async def publisher() -> None:
            async for quotes in to_publish:
                writing.send_nowait(payloads(quotes))

        async def writer() -> None:
            async for prices in to_write:
                await redis.send_all(commands(prices))

        for actor in (router, publisher, writer):
            nursery.start_soon(actor)
        while True:
            if quotes := await feed.read():
                routing.send_nowait(quotes)
                await checkpoint()


if __name__ == "__main__":
    trio.run(run, sys.argv[1], sys.argv[2], sys.argv[3].split(","), int(sys.argv[4]))
