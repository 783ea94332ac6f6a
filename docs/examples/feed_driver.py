"""The service with a feed that is not Alpaca's: see line_exchange.py for what it speaks.

python feed_driver.py 127.0.0.1:7001 EURUSD GBPUSD
"""

import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import anyio
from anyio.abc import SocketStream

import mdservice
from mdservice.errors import FeedRefused, FeedUnavailable
from mdservice.feed.driver import OPEN_TIMEOUT_S, Link, Received, RequestRefused
from mdservice.feed.subscriptions import Followed
from mdservice.http_api.server import serve_api
from mdservice.model.feeds import Topic
from mdservice.model.quote import Quote
from mdservice.model.timestamps import parse_rfc3339

LONGEST_LINE = 65_536
LOST = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)


def quoted(topics: Sequence[Topic]) -> list[str]:
    """The symbols whose quotes are meant: the exchange has no other channel."""
    return [topic.symbol for topic in topics if topic.channel == "quotes"]


class LineLink:
    """An open connection, logged in."""

    def __init__(self, stream: SocketStream, followed: Followed, utc_ns: Callable[[], int]) -> None:
        self._stream = stream
        self._followed = followed
        self._utc_ns = utc_ns
        self._rest = b""

    async def log_in(self, name: str) -> None:
        await self.say(f"LOGIN {name}")
        answer = (await self.lines())[0]
        if not answer.startswith("WELCOME"):
            raise FeedRefused(f"the exchange refused the login: {answer}", code=0)

    async def subscribe(self, topics: Sequence[Topic]) -> None:
        await self.say(" ".join(["ADD", *quoted(topics)]))

    async def unsubscribe(self, topics: Sequence[Topic]) -> None:
        await self.say(" ".join(["DROP", *quoted(topics)]))

    async def receive(self) -> Received:
        received = Received()
        for line in await self.lines():
            try:
                self.take(line, received)
            except ValueError:  # a line that makes no sense costs itself
                received.errors += 1
        return received

    def take(self, line: str, received: Received) -> None:
        match line.split():
            case ["QUOTE", symbol, bid, bid_size, ask, ask_size, time]:
                quote = Quote(
                    symbol,
                    bid=float(bid),
                    ask=float(ask),
                    bid_size=int(bid_size),
                    ask_size=int(ask_size),
                    ts_event_ns=parse_rfc3339(time),
                    ts_recv_ns=self._utc_ns(),
                )
                received.add_quote(quote, self._followed)
            case ["SUBSCRIBED", *symbols]:
                topics = [Topic("quotes", symbol) for symbol in symbols]
                received.acknowledge(topics, self._followed)
            case ["REFUSED", *why]:
                refused = RequestRefused(" ".join(why), cause="bad_symbol")
                received.controls.append(refused)
            case _:
                raise ValueError(line)

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
    async def connect(self, followed: Followed, utc_ns: Callable[[], int]) -> AsyncIterator[Link]:
        where = f"the exchange at {self._host}:{self._port}"
        deadline = anyio.current_time() + OPEN_TIMEOUT_S
        try:
            with anyio.fail_after(OPEN_TIMEOUT_S):
                stream = await anyio.connect_tcp(self._host, self._port)
        except OSError as exc:  # TimeoutError is one
            raise FeedUnavailable(f"{where} cannot be reached: {exc}") from exc
        async with stream:
            link = LineLink(stream, followed, utc_ns)
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
