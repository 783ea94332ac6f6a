"""An asyncio program with the whole service inside, which ends in order on Ctrl-C and SIGTERM.

Without settings the prices are simulated; ALPACA_API_KEY, ALPACA_SECRET_KEY make them real.

    python embed_asyncio.py AAPL MSFT
"""

import asyncio
import os
import signal
import sys
from contextlib import suppress

import mdservice


async def print_prices(service: mdservice.Service, symbols: list[str]) -> None:
    async with service.quotes(*symbols) as quotes:
        async for quote in quotes:
            print(quote.symbol, quote.price, quote.timestamp, flush=True)


async def print_readiness(service: mdservice.Service) -> None:
    while True:
        now = service.readiness()
        print("ready" if now.ready else "; ".join(now.reasons), flush=True)
        await asyncio.sleep(1)


async def main(symbols: list[str]) -> None:
    settings = mdservice.load_settings(None, {}, os.environ)
    async with mdservice.open_service(settings) as service:
        await service.subscribe(*symbols)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(print_prices(service, symbols))
            tasks.create_task(print_readiness(service))


async def until_a_signal(symbols: list[str]) -> None:
    running = asyncio.create_task(main(symbols))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    with suppress(asyncio.CancelledError):
        await running
    print("ended", flush=True)


asyncio.run(until_a_signal(sys.argv[1:]))
