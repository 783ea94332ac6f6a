"""Print trades, bars and news of the service on this machine.

python my_records.py AAPL BTC/USD
"""

import sys

import anyio

import mdservice


async def main(*symbols: str) -> None:
    channels = ("trades", "bars", "news")
    async with mdservice.open_stream(symbols=symbols, channels=channels) as records:
        async for record in records:
            match record:
                case mdservice.Trade():
                    print(record.symbol, "trade", record.size, "at", record.price, flush=True)
                case mdservice.Bar():
                    print(record.symbol, "bar", record.close, "volume", record.volume, flush=True)
                case mdservice.Article():
                    print("news", record.headline, flush=True)
                case _:  # a correction or a cancellation of a trade
                    print(record, flush=True)


anyio.run(main, *sys.argv[1:])
