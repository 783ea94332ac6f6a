"""The older alpaca-trade-api, unchanged. The lines are those of ``plain.py``."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgpack
from alpaca_trade_api.stream import Stream

METHODS = {"updatedBars": "updated_bars", "dailyBars": "daily_bars"}


def plain(value: Any) -> Any:
    return value.to_unix_nano() if isinstance(value, msgpack.Timestamp) else value._raw


def handler(name: str, channel: str) -> Callable[[Any], Awaitable[None]]:
    async def handle(record: Any) -> None:
        line = [name, channel, {type(record).__name__: record}]
        sys.stdout.write(json.dumps(line, default=plain) + "\n")
        sys.stdout.flush()

    return handle


def until_it_runs(stream: Any) -> None:
    """Wait until it has sent its first subscription: it loses what is added just after."""
    limit_s = time.monotonic() + 30
    while not stream._running and time.monotonic() < limit_s:
        time.sleep(0.01)


PARTS = {"stocks": "_data_ws", "crypto": "_crypto_ws", "news": "_news_ws"}
streams: dict[str, Stream] = {}
for line in sys.stdin:
    command = json.loads(line)
    name, channel, symbols = command["stream"], command["channel"], command["symbols"]
    new = name not in streams
    if new:
        streams[name] = Stream("key", "secret", data_stream_url=command["base"], data_feed="iex")
    stream = streams[name]
    if not new:
        until_it_runs(getattr(stream, PARTS[command["feed"]]))
    method = METHODS.get(channel, channel)
    if command["feed"] == "crypto":
        method = f"crypto_{method}"
    if command["do"] == "unsubscribe":
        getattr(stream, f"unsubscribe_{method}")(*symbols)
    elif method == "trades":
        stream.subscribe_trades(
            handler(name, "trades"),
            *symbols,
            handler_cancel_errors=handler(name, "cancelErrors"),
            handler_corrections=handler(name, "corrections"),
        )
    else:
        getattr(stream, f"subscribe_{method}")(handler(name, channel), *symbols)
    if new:
        threading.Thread(target=stream.run, daemon=True).start()
