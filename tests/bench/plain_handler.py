"""Program A: what users write today, and the measure of everything here.

An alpaca-py handler that awaits SET and PUBLISH with redis.asyncio for each quote.
``python -m tests.bench.plain_handler FEED_URL REDIS_URL SYMBOL,SYMBOL…``
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import redis.asyncio

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from alpaca.data.live import StockDataStream

PRICE_TTL_S = 300


def main(feed_url: str, redis_url: str, symbols: list[str]) -> None:
    store = redis.asyncio.from_url(redis_url)
    stream = StockDataStream("key", "secret", url_override=feed_url)

    async def on_quote(quote: Any) -> None:
        payload = json.dumps(
            {
                "symbol": quote.symbol,
                "price": (quote.bid_price + quote.ask_price) / 2,
                "bid": quote.bid_price,
                "ask": quote.ask_price,
                "bid_size": quote.bid_size,
                "ask_size": quote.ask_size,
                "timestamp": quote.timestamp.isoformat(),
            }
        )
        await store.set(f"price:{quote.symbol}", payload, ex=PRICE_TTL_S)
        await store.publish("price.updated", payload)

    stream.subscribe_quotes(on_quote, *symbols)
    stream.run()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3].split(","))
