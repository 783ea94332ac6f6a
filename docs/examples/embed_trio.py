"""A trio program with the whole service inside: it prints where each price comes from.

Without settings the prices are simulated; ALPACA_API_KEY, ALPACA_SECRET_KEY make them real.

    python embed_trio.py AAPL MSFT
"""

import os
import sys

import trio

import mdservice


async def main() -> None:
    settings = mdservice.load_settings(None, {}, os.environ)
    async with mdservice.open_service(settings) as service:
        outcome = await service.subscribe(*sys.argv[1:])
        print(f"{outcome.status}: {', '.join(outcome.symbols)}", flush=True)
        async with service.quotes(*sys.argv[1:]) as quotes:
            async for quote in quotes:
                print(quote.symbol, quote.price, quote.timestamp, flush=True)


trio.run(main)
