"""A reference: quotes into Redis streams by NautilusTrader's message bus.

The bus has its Redis database behind it, with a buffer of 10 ms, as a trading node's has, and sends
an ``XADD`` for each quote that is published. Kinder than life: quotes are published at once, without
the data engine and the cache between. Runs in an environment of its own.
``python -m tests.bench.nautilus_handler FEED_URL REDIS_PORT SYMBOL,SYMBOL…``
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import msgspec
import uvloop
from nautilus_trader.common.component import LiveClock, MessageBus
from nautilus_trader.common.config import DatabaseConfig, MessageBusConfig, msgspec_encoding_hook
from nautilus_trader.core import nautilus_pyo3
from nautilus_trader.core.uuid import UUID4
from nautilus_trader.model.data import QuoteTick
from nautilus_trader.model.identifiers import InstrumentId, TraderId
from nautilus_trader.model.objects import Price, Quantity
from nautilus_trader.serialization.serializer import MsgSpecSerializer

from tests.bench.wire import LOGIN, decode_quotes, subscription

VENUE = "ALPACA"
_BUFFER_MS = 10
_DECIMALS = 2


def open_bus(redis_port: int, clock: LiveClock) -> MessageBus:
    """The bus as a trading node makes it."""
    trader_id, instance_id = TraderId("BENCH-001"), UUID4()
    config = MessageBusConfig(
        database=DatabaseConfig(host="127.0.0.1", port=redis_port), buffer_interval_ms=_BUFFER_MS
    )
    database = nautilus_pyo3.RedisMessageBusDatabase(
        trader_id=nautilus_pyo3.TraderId(trader_id.value),
        instance_id=nautilus_pyo3.UUID4.from_str(instance_id.value),
        config_json=msgspec.json.encode(config, enc_hook=msgspec_encoding_hook),
    )
    return MessageBus(
        trader_id=trader_id,
        instance_id=instance_id,
        clock=clock,
        serializer=MsgSpecSerializer(encoding=msgspec.msgpack),
        database=database,
        config=config,
    )


async def main(feed_url: str, redis_port: int, symbols: list[str]) -> None:
    clock = LiveClock()
    bus = open_bus(redis_port, clock)
    instruments = {symbol: InstrumentId.from_str(f"{symbol}.{VENUE}") for symbol in symbols}
    topics = {symbol: f"data.quotes.{VENUE}.{symbol}" for symbol in symbols}

    def on_frame(frame: bytes) -> None:
        now_ns = clock.timestamp_ns()
        for quote in decode_quotes(frame):
            symbol: Any = quote.S
            tick = QuoteTick(
                instruments[symbol],
                Price(quote.bp, _DECIMALS),
                Price(quote.ap, _DECIMALS),
                Quantity(quote.bs, 0),
                Quantity(quote.as_, 0),
                quote.time_ns(),
                now_ns,
            )
            bus.publish(topics[symbol], tick)

    config = nautilus_pyo3.WebSocketConfig(url=feed_url, handler=on_frame, headers=[])
    client = await nautilus_pyo3.WebSocketClient.connect(config=config)
    await client.send_text(LOGIN)
    await client.send_text(subscription(symbols))
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3].split(",")))
