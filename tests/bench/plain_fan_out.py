"""A plain relay, by the method of alpaca-proxy-agent 1.0.1: what the relay is compared with.

``python -m tests.bench.plain_fan_out FEED_URL PORT SYMBOL,SYMBOL…`` serves until it is ended.

The method: Alpaca's client runs in a thread and gives each message to a handler. The handler goes
through all subscribers, looks for the symbol in the list of each, and puts one entry into an
unbounded queue for each subscriber that wants it. The server's event loop takes one entry after the
other, encodes the message with msgpack again, and awaits the send; it sleeps for 50 ms when the queue
is empty.

What differs, all of it in its favour: alpaca-py is the client, since alpaca-trade-api needs packages of
2020; the server is today's of websockets; every symbol is subscribed once, at the start, where the
original unsubscribes and subscribes everything for each client that comes.
"""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
import warnings
from typing import Any

import msgpack
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from alpaca.data.live import StockDataStream

_PAUSE_S = 0.05
_subscribers: dict[ServerConnection, list[str]] = {}
_responses: queue.Queue[tuple[ServerConnection, Any]] = queue.Queue()


async def on_message(message: Any) -> None:
    """Queue a message for every subscriber of its symbol."""
    for subscriber, symbols in list(_subscribers.items()):
        if message["S"] in symbols:
            _responses.put((subscriber, message))


async def send_responses() -> None:
    """Send one entry of the queue after the other."""
    while True:
        if _responses.empty():
            await asyncio.sleep(_PAUSE_S)
            continue
        subscriber, message = _responses.get()
        try:
            await subscriber.send(msgpack.packb([message]))
        except ConnectionClosed:
            _subscribers.pop(subscriber, None)


async def on_connection(subscriber: ServerConnection) -> None:
    """Let a client log in and subscribe."""
    await subscriber.send(msgpack.packb([{"T": "success", "msg": "connected"}]))
    async for data in subscriber:
        request = msgpack.unpackb(data)
        if request["action"] == "auth":
            answer: dict[str, Any] = {"T": "success", "msg": "authenticated"}
        else:
            _subscribers.setdefault(subscriber, []).extend(request["quotes"])
            answer = {"T": "subscription", "quotes": _subscribers[subscriber]}
        await subscriber.send(msgpack.packb([answer]))


async def main(port: int) -> None:
    async with serve(on_connection, "127.0.0.1", port):
        await send_responses()


if __name__ == "__main__":
    stream = StockDataStream("key", "secret", raw_data=True, url_override=sys.argv[1])
    stream.subscribe_quotes(on_message, *sys.argv[3].split(","))
    threading.Thread(target=stream.run, daemon=True).start()
    asyncio.run(main(int(sys.argv[2])))
