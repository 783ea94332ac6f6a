"""The service with a feed that is not Alpaca's: see line_exchange.py for what it speaks.

python feed_driver.py 127.0.0.1:7001 EURUSD GBPUSD
"""

import json
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
from anyio.abc import SocketStream

import mdservice
from mdservice.errors import FeedRefused, FeedUnavailable
from mdservice.feed.driver import OPEN_TIMEOUT_S, Encoding, Frame, Link
from mdservice.http_api.server import serve_api

LONGEST_LINE = 65_536
NOT_UNDERSTOOD = 400
LOST = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)


def to_message(line: str) -> dict[str, Any]:
    """A line of the exchange as the message that Alpaca would send."""
    match line.split():
        case ["QUOTE", symbol, bid, bid_size, ask, ask_size, time]:
            message: dict[str, Any] = {"T": "q", "S": symbol, "t": time}
            message |= {"bp": float(bid), "bs": int(bid_size)}
            return message | {"ap": float(ask), "as": int(ask_size)}
        case ["SUBSCRIBED", *symbols]:
            return {"T": "subscription", "quotes": symbols}
        case ["REFUSED", *why]:
            return {"T": "error", "code": NOT_UNDERSTOOD, "msg": " ".join(why)}
    raise ValueError(line)


def to_message_or_broken(line: str) -> dict[str, Any]:
    """A line that makes no sense becomes a message without its fields: counted, and left out."""
    try:
        return to_message(line)
    except ValueError:
        return {"T": "q"}


class LineLink:
    """An open connection, logged in."""

    encoding: Encoding = "json"

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream
        self._rest = b""

    async def log_in(self, name: str) -> None:
        await self.say(f"LOGIN {name}")
        answer = (await self.lines())[0]
        if not answer.startswith("WELCOME"):
            raise FeedRefused(f"the exchange refused the login: {answer}", code=402)

    async def send(self, message: Mapping[str, Any]) -> None:
        word = {"subscribe": "ADD", "unsubscribe": "DROP"}[message["action"]]
        await self.say(" ".join([word, *message["quotes"]]))

    async def receive(self) -> Sequence[Frame]:
        return [json.dumps([to_message_or_broken(line) for line in await self.lines()])]

    async def say(self, line: str) -> None:
        try:
            await self._stream.send(f"{line}\n".encode())
        except LOST as exc:
            raise FeedUnavailable("the exchange has closed the connection") from exc

    async def lines(self) -> list[str]:
        """Wait for whole lines, at least one; a cancelled call loses nothing."""
        while True:
            try:
                self._rest += await self._stream.receive()
            except LOST as exc:
                raise FeedUnavailable("the exchange has closed the connection") from exc
            *lines, self._rest = self._rest.split(b"\n")
            if lines:
                return [line.decode(errors="replace") for line in lines]
            if len(self._rest) > LONGEST_LINE:
                raise FeedUnavailable("the exchange sends no lines")


class LineDriver:
    """A way to reach the exchange."""

    name = "lines"

    def __init__(self, host: str, port: int, login: str) -> None:
        self._host, self._port, self._login = host, port, login

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Link]:
        where = f"the exchange at {self._host}:{self._port}"
        deadline = anyio.current_time() + OPEN_TIMEOUT_S
        try:
            with anyio.fail_after(OPEN_TIMEOUT_S):
                stream = await anyio.connect_tcp(self._host, self._port)
        except OSError as exc:  # TimeoutError is one
            raise FeedUnavailable(f"{where} cannot be reached: {exc}") from exc
        async with stream:
            link = LineLink(stream)
            try:
                with anyio.fail_after(deadline - anyio.current_time()):
                    await link.log_in(self._login)
            except TimeoutError as exc:
                raise FeedUnavailable(f"{where} does not answer to the login") from exc
            yield link


async def main(address: str, symbols: list[str]) -> None:
    host, port = address.split(":")
    driver = LineDriver(host, int(port), "desk")
    settings = mdservice.load_settings(None, {"symbols": ",".join(symbols)}, os.environ)
    async with (
        mdservice.open_service(settings, drivers=[driver]) as service,
        anyio.create_task_group() as tasks,
    ):
        api = await tasks.start(partial(serve_api, service, socket=settings.socket))
        print(f"api {api.socket}", flush=True)
        await anyio.sleep_forever()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2:])
