"""A program on `websockets` alone, with that library's own reconnection: ``plain.py json|msgpack``.

Like the other programs of this folder, it reads commands from its input, one JSON object a line,
``{"stream": NAME, "base": URL, "feed": "stocks", "do": "subscribe", "channel": "trades",
"symbols": [...]}``, and writes each record that it receives as a line
``[NAME, channel, record]``. A stream is connected when it is first named. Times are written as
UTC nanoseconds, or in the form that the client gives them.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import msgpack
from websockets.asyncio.client import ClientConnection, connect

PATHS = {
    "stocks": "/v2/iex",
    "crypto": "/v1beta3/crypto/us",
    "options": "/v1beta1/indicative",
    "news": "/v1beta1/news",
}
CHANNELS = {
    "t": "trades", "q": "quotes", "b": "bars", "u": "updatedBars", "d": "dailyBars",
    "s": "statuses", "l": "lulds", "i": "imbalances", "c": "corrections", "x": "cancelErrors",
    "o": "orderbooks", "n": "news",
}  # fmt: skip
BINARY = sys.argv[1] == "msgpack"


def plain(value: Any) -> Any:
    return value.to_unix_nano() if isinstance(value, msgpack.Timestamp) else str(value)


class Stream:
    def __init__(self, name: str, base: str, feed: str) -> None:
        self.name, self.url = name, base + PATHS[feed]
        self.wanted: dict[str, list[str]] = {}
        self.socket: ClientConnection | None = None

    async def send(self, action: str, **fields: Any) -> None:
        assert self.socket is not None
        message = {"action": action, **fields}
        await self.socket.send(msgpack.packb(message) if BINARY else json.dumps(message))

    async def change(self, do: str, channel: str, symbols: list[str]) -> None:
        wanted = set(self.wanted.get(channel, ()))
        changed = wanted | set(symbols) if do == "subscribe" else wanted - set(symbols)
        self.wanted[channel] = sorted(changed)
        if self.socket is not None:
            await self.send(do, **{channel: symbols})

    async def run(self) -> None:
        headers = {"Content-Type": "application/msgpack"} if BINARY else {}
        connections = connect(self.url, additional_headers=headers, max_size=None, proxy=None)
        async for socket in connections:
            async for payload in socket:
                messages = msgpack.unpackb(payload) if BINARY else json.loads(payload)
                for message in messages:
                    await self.hear(socket, message)
            self.socket = None

    async def hear(self, socket: ClientConnection, message: dict[str, Any]) -> None:
        if message["T"] == "success" and message["msg"] == "connected":
            self.socket = socket
            await self.send("auth", key="key", secret="secret")
        elif message["T"] == "success":
            await self.send("subscribe", **self.wanted)
        elif message["T"] == "error":
            sys.stderr.write(f"{message}\n")
        elif message["T"] in CHANNELS:
            line = [self.name, CHANNELS[message["T"]], message]
            sys.stdout.write(json.dumps(line, default=plain) + "\n")
            sys.stdout.flush()


async def main() -> None:
    streams: dict[str, Stream] = {}
    tasks = []
    while line := await asyncio.to_thread(sys.stdin.readline):
        command = json.loads(line)
        name = command["stream"]
        new = name not in streams
        if new:
            streams[name] = Stream(name, command["base"], command["feed"])
        await streams[name].change(command["do"], command["channel"], command["symbols"])
        if new:
            tasks.append(asyncio.create_task(streams[name].run()))


asyncio.run(main())
