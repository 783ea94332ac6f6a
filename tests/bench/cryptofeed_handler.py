"""A reference: quotes into Redis streams by cryptofeed's back end.

Its ticker callback with its queue and its writer, which sends all that waits as one pipeline, an
``XADD`` each. Kinder than life: quotes are decoded with msgspec and handed to the callback at once,
without a feed's own bookkeeping, and prices stay floats. Runs in an environment of its own.
``python -m tests.bench.cryptofeed_handler FEED_URL REDIS_PORT SYMBOL,SYMBOL…``
"""

from __future__ import annotations

import asyncio
import sys
import time

import uvloop
import websockets
from cryptofeed.backends.redis import TickerStream
from cryptofeed.types import Ticker

from tests.bench.wire import LOGIN, decode_quotes, subscription

VENUE = "ALPACA"


async def main(feed_url: str, redis_port: int, symbols: list[str]) -> None:
    callback = TickerStream(host="127.0.0.1", port=redis_port)
    callback.start(asyncio.get_running_loop())
    async with websockets.connect(feed_url, compression=None) as connection:
        await connection.send(LOGIN)
        await connection.send(subscription(symbols))
        async for frame in connection:
            now = time.time()
            for quote in decode_quotes(frame):
                ticker = Ticker(VENUE, quote.S, quote.bp, quote.ap, quote.time_ns() / 1e9)
                await callback(ticker, now)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3].split(",")))
