"""An exchange to try feed_driver.py with: quotes as lines of text over TCP.

A client logs in with its name, and adds or drops symbols:

    LOGIN desk                 WELCOME desk
    ADD EURUSD GBPUSD          SUBSCRIBED EURUSD GBPUSD
    DROP EURUSD                SUBSCRIBED GBPUSD
    ADD XXX                    REFUSED there is no XXX

    python line_exchange.py 7001
"""

import random
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import anyio
from anyio.abc import SocketStream
from anyio.streams.text import TextStream

mids = {"EURUSD": 1.0842, "GBPUSD": 1.2671, "USDCHF": 0.8834}


async def lines(stream: TextStream) -> AsyncIterator[str]:
    rest = ""
    async for text in stream:
        *whole, rest = (rest + text).split("\n")
        for line in whole:
            yield line


def answer(line: str, wanted: list[str]) -> str:
    word, *names = line.split()
    unknown = [name for name in names if name not in mids]
    if word == "LOGIN":
        return f"WELCOME {names[0]}"
    if unknown:
        return f"REFUSED there is no {unknown[0]}"
    kept = [name for name in wanted if name not in names]
    wanted[:] = kept + names if word == "ADD" else kept
    return f"SUBSCRIBED {' '.join(wanted)}"


async def quote(stream: TextStream, sending: anyio.Lock, wanted: list[str]) -> None:
    while True:
        text = ""
        for symbol in wanted:
            mids[symbol] *= random.gauss(1, 0.00001)
            bid, ask = round(mids[symbol], 4), round(mids[symbol] + 0.0002, 4)
            now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
            text += f"QUOTE {symbol} {bid} 1000000 {ask} 2000000 {now}\n"
        async with sending:
            await stream.send(text)
        await anyio.sleep(0.1)


async def serve(client: SocketStream) -> None:
    wanted: list[str] = []
    stream, sending = TextStream(client), anyio.Lock()  # two tasks send, one at a time
    try:
        async with client, anyio.create_task_group() as tasks:
            tasks.start_soon(quote, stream, sending, wanted)
            async for line in lines(stream):
                async with sending:
                    await stream.send(answer(line, wanted) + "\n")
            tasks.cancel_scope.cancel()
    except* anyio.BrokenResourceError:
        pass  # the client has gone


async def main(port: str) -> None:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=int(port))
    print(f"the exchange listens on 127.0.0.1:{port}", flush=True)
    await listener.serve(serve)


anyio.run(main, sys.argv[1])
