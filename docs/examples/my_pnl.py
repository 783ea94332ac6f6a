"""Print prices, and every second the profit and loss of the positions.

python my_pnl.py http://127.0.0.1:8002 AAPL MSFT
"""

import sys

import anyio
import httpx

import mdservice


async def print_prices(symbols: tuple[str, ...]) -> None:
    async with mdservice.open_prices(symbols=symbols) as prices:
        async for quote in prices:
            print(quote.symbol, quote.price, quote.timestamp, flush=True)


async def print_pnl(gateway: str) -> None:
    async with httpx.AsyncClient(base_url=gateway) as client:
        while True:
            try:
                answer = await client.get("/api/v1/positions/pnl/realtime")
                pnl = answer.raise_for_status().json()
                total, count = pnl["total_unrealized_pnl"], pnl["priced"]
                print("P&L", total, "of", count, "positions", flush=True)
            except httpx.HTTPError as exc:
                print("no P&L at the moment:", exc, flush=True)
            await anyio.sleep(1)


async def main(gateway: str, symbols: tuple[str, ...]) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(print_prices, symbols)
        tasks.start_soon(print_pnl, gateway)


anyio.run(main, sys.argv[1], tuple(sys.argv[2:]))
