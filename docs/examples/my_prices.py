"""Print the prices of the service on this machine.

python my_prices.py AAPL MSFT
"""

import sys

import anyio

import mdservice


async def main(*symbols: str) -> None:
    async with mdservice.open_prices(symbols=symbols) as prices:
        async for quote in prices:
            print(quote.symbol, quote.price, quote.timestamp, flush=True)


anyio.run(main, *sys.argv[1:])
