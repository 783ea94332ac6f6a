"""alpaca-py, unchanged: ``alpaca_py.py raw|models``. The lines are those of ``plain.py``."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgpack
from alpaca.data.live import CryptoDataStream, NewsDataStream, OptionDataStream, StockDataStream
from pydantic import BaseModel

RAW = sys.argv[1] == "raw"
FEEDS = {
    "stocks": (StockDataStream, "/v2/iex"),
    "crypto": (CryptoDataStream, "/v1beta3/crypto/us"),
    "options": (OptionDataStream, "/v1beta1/indicative"),
    "news": (NewsDataStream, "/v1beta1/news"),
}
METHODS = {
    "updatedBars": "updated_bars",
    "dailyBars": "daily_bars",
    "statuses": "trading_statuses",
}
printing = threading.Lock()


def plain(value: Any) -> Any:
    if isinstance(value, msgpack.Timestamp):
        return value.to_unix_nano()
    return {type(value).__name__: dict(value)} if isinstance(value, BaseModel) else str(value)


def handler(name: str, channel: str) -> Callable[[Any], Awaitable[None]]:
    async def handle(record: Any) -> None:
        with printing:
            sys.stdout.write(json.dumps([name, channel, record], default=plain) + "\n")
            sys.stdout.flush()

    return handle


def until_it_runs(stream: Any) -> None:
    """Wait until it has sent its first subscription: it loses what is added just after."""
    limit_s = time.monotonic() + 30
    while not stream._running and time.monotonic() < limit_s:
        time.sleep(0.01)


streams: dict[str, Any] = {}
for line in sys.stdin:
    command = json.loads(line)
    name, channel, symbols = command["stream"], command["channel"], command["symbols"]
    new = name not in streams
    if new:
        kind, path = FEEDS[command["feed"]]
        streams[name] = kind("key", "secret", RAW, url_override=command["base"] + path)
    stream = streams[name]
    if not new:
        until_it_runs(stream)
    method = METHODS.get(channel, channel)
    if command["do"] == "subscribe":
        if channel == "trades" and command["feed"] == "stocks":
            stream.register_trade_corrections(handler(name, "corrections"))
            stream.register_trade_cancels(handler(name, "cancelErrors"))
        getattr(stream, f"subscribe_{method}")(handler(name, channel), *symbols)
    else:
        getattr(stream, f"unsubscribe_{method}")(*symbols)
    if new:
        threading.Thread(target=stream.run, daemon=True).start()
