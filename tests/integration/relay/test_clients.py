"""Alpaca's own clients, as they come from the registries, on the relay and on the feed itself."""

from __future__ import annotations

import asyncio
import itertools
import random
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from mdservice.simulator import SimQuote, crypto, news, options, stocks
from mdservice.simulator.bars import SimBar
from mdservice.simulator.crypto import SimBook, SimPairQuote, SimPairTrade
from mdservice.simulator.news import SimArticle
from mdservice.simulator.options import SimOptionQuote, SimOptionTrade
from mdservice.simulator.stock_records import (
    SimCancel,
    SimCorrection,
    SimImbalance,
    SimLimits,
    SimStatus,
    SimTrade,
)
from tests.integration.conftest import new_symbol
from tests.integration.relay.conftest import RelayService
from tests.integration.relay.sdks import SDKS, Sdk, SdkProcess

WITH_TRADES = {"corrections", "cancelErrors"}
KINDS = {
    "stocks": stocks._BY_CHANNEL,
    "crypto": {
        "quotes": crypto.QUOTES,
        "trades": crypto.TRADES,
        "bars": crypto.BARS,
        "updatedBars": crypto.UPDATED_BARS,
        "dailyBars": crypto.DAILY_BARS,
        "orderbooks": crypto.ORDERBOOKS,
    },
    "options": {"quotes": options.QUOTES, "trades": options.TRADES},
    "news": {"news": news.ARTICLES},
}
_ids = itertools.count(52_983_525_000_000)


@attrs.frozen
class Symbols:
    """What one test subscribes to: nothing that another one does."""

    root: str = attrs.field(factory=new_symbol)

    def of(self, feed: str) -> str:
        forms = {"crypto": f"{self.root}/USD", "options": f"{self.root}281215C00200000"}
        return forms.get(feed, self.root)


@attrs.define
class Market:
    """A feed, and two services on it: one relays in the clear, the other over TLS.

    Attributes:
        simulator: The feed.
        plain, tls: The services.
        feed_url, feed_tls: The feed's own addresses.
        folder: For what programs leave.
        certificate: The one that everything here has.
    """

    simulator: Any
    plain: RelayService
    tls: RelayService
    feed_url: str
    feed_tls: str
    folder: Path
    certificate: Path

    def relay(self, sdk: Sdk) -> RelayService:
        return self.tls if sdk.tls else self.plain

    def base(self, sdk: Sdk, side: str) -> str:
        """The address to put in place of Alpaca's."""
        if side == "relay":
            return self.relay(sdk).url
        return self.feed_tls if sdk.tls else self.feed_url

    def process(self, sdk: Sdk) -> SdkProcess:
        return SdkProcess(sdk, self.folder, self.certificate)

    def subscribers(self, feed: str, channel: str, symbol: str) -> int:
        """How many connections of the feed have this."""
        return sum(
            symbol in connection.subscriptions.get(channel, ())
            for connection in self.simulator.connections
            if connection.feed == feed
        )

    def send(self, feed: str, channel: str, *records: Any, frames: list[int] | None = None) -> int:
        """Send on the feed; to how many of its connections."""
        reached: int = self.simulator.send_records(KINDS[feed][channel], records, frames=frames)
        return reached


async def _open_front(port: int, context: ssl.SSLContext) -> asyncio.Server:
    """Ends TLS in front of a port of this machine."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, to_writer), copy(to_reader, writer))

    return await asyncio.start_server(forward, "127.0.0.1", 0, ssl=context)


@pytest.fixture(scope="module")
def market(
    module_stage: Any,
    simulator_loop: Any,
    certificate: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Market]:
    simulator = module_stage.simulator(connection_limit=None, rest_rate_limit=None)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    front = simulator_loop.call(_open_front, simulator.port, context)
    account = module_stage.account(simulator, module_stage.valkey())
    second = {"MDSERVICE_KEY_PREFIX": "second:"}
    yield Market(
        simulator,
        RelayService(module_stage, **account).start(),
        RelayService(module_stage, certificate, **account, **second).start(),
        simulator.rest_url.replace("http", "ws"),
        f"wss://127.0.0.1:{front.sockets[0].getsockname()[1]}",
        tmp_path_factory.mktemp("sdks"),
        certificate[0],
    )
    simulator_loop.call(front.close)


@pytest.fixture
def process(market: Market, sdk: Sdk) -> Iterator[SdkProcess]:
    """The client, with no stream open."""
    process = market.process(sdk)
    yield process
    process.close()
    market.relay(sdk).until_pairs(lambda now: now == 0)


def channel_of(feed: str) -> str:
    """A channel that all clients of the feed know."""
    return "news" if feed == "news" else "trades"


def trade_of(feed: str, symbol: str) -> tuple[Any, str]:
    """A record of that channel, and what no other one has in it."""
    number = next(_ids)
    price = number % 10**6 + 0.25
    if feed == "news":
        return SimArticle(number, headline := f"Article {number}", (symbol,)), headline
    if feed == "crypto":
        return SimPairTrade(symbol, price, 0.25, number), str(price)
    if feed == "options":
        return SimOptionTrade(symbol, price), str(price)
    return SimTrade(symbol, price, 100, number), str(price)


def bars(symbol: str, draw: random.Random) -> list[SimBar]:
    minute_ns = 60 * 10**9
    now_ns = time.time_ns() // minute_ns * minute_ns
    return [
        SimBar(symbol, 10.0, 12.5, 9.0125, price(draw), draw.randrange(10**6), 17, 10.123456, t)
        for t in range(now_ns - 3 * minute_ns, now_ns, minute_ns)
    ]


def price(draw: random.Random) -> float:
    return round(draw.uniform(0.01, 999), draw.choice([0, 2, 4]))


def record_of(feed: str, symbol: str) -> dict[str, list[Any]]:
    """Records of every channel of a feed, in the order in which it sends them."""
    draw = random.Random(symbol)  # the same of each run
    conditions = [("@",), ("@", "I"), (" ", "F", "T"), ()]

    def size() -> int:
        return draw.randrange(1, 10**5)

    def coins() -> float:
        return round(draw.uniform(0, 5), 9)

    def levels() -> tuple[tuple[float, float], ...]:
        return tuple((round(100 - number / 10, 2), coins()) for number in range(5))

    if feed == "stocks":
        ids = [next(_ids) for _ in range(40)]
        return {
            "quotes": [
                SimQuote(symbol, price(draw), price(draw), size(), size(), 0,
                         draw.choice("VQNP"), draw.choice("VQNP"), ("R",), draw.choice("ABC"))
                for _ in range(60)
            ],
            "trades": [
                SimTrade(symbol, price(draw), size(), number, 0, draw.choice("VQNP"),
                         draw.choice(conditions), draw.choice("ABC"))
                for number in ids
            ],
            "corrections": [
                SimCorrection(symbol, "V", number, 10.0, 5, ("@",), next(_ids), 10.25, 6,
                              ("@", "I"))
                for number in ids[:3]
            ],
            "cancelErrors": [
                SimCancel(symbol, number, "V", 10.25, 100, action)
                for number, action in zip(ids[3:], ("C", "E"), strict=False)
            ],
            "bars": bars(symbol, draw),
            "updatedBars": bars(symbol, draw),
            "dailyBars": bars(symbol, draw),
            "statuses": [
                SimStatus(symbol, "H", "Trading Halt", "T12", "Halted; for information"),
                SimStatus(symbol, "T", "Trading Resumption", "", ""),
            ],
            "lulds": [SimLimits(symbol, 101.5, 98.25, "B")],
            "imbalances": [SimImbalance(symbol, 100.125)],
        }  # fmt: skip
    if feed == "crypto":
        return {
            "quotes": [
                SimPairQuote(symbol, price(draw), price(draw), coins(), coins()) for _ in range(60)
            ],
            "trades": [
                SimPairTrade(symbol, price(draw), coins(), next(_ids), draw.choice("BS-"))
                for _ in range(40)
            ],
            "bars": bars(symbol, draw),
            "updatedBars": bars(symbol, draw),
            "dailyBars": bars(symbol, draw),
            "orderbooks": [
                SimBook(symbol, levels(), tuple((p + 5, s) for p, s in levels()), whole=True),
                SimBook(symbol, ((99.9, 0.5), (99.8, 0.0)), ()),
                SimBook(symbol, (), ((105.0, 0.125),)),
            ],
        }
    if feed == "options":
        return {
            "quotes": [
                SimOptionQuote(symbol, price(draw), price(draw), size(), size(), 0, "C", "X", "A")
                for _ in range(60)
            ],
            "trades": [
                SimOptionTrade(symbol, price(draw), size(), 0, "C", draw.choice("aIS"))
                for _ in range(40)
            ],
        }
    created_ns = time.time_ns() - 10**9
    return {
        "news": [
            SimArticle(next(_ids), "A \u201cheadline\u201d", (symbol, "MSFT"), "s", "<p>c</p>"),
            SimArticle(next(_ids), "Nothing else", (symbol,), created_ns=created_ns),
        ]
    }


def times_of(feed: str, records: list[Any]) -> list[int]:
    field = "updated_at" if feed == "news" else "t"
    return [record[field] for record in records]


@pytest.mark.parametrize("sdk", SDKS, ids=str)
def test_sees_of_the_relay_what_it_sees_of_the_feed(
    market: Market, process: SdkProcess, sdk: Sdk
) -> None:
    symbols = Symbols()
    topics = [
        (feed, channel)
        for feed, channels in sdk.channels.items()
        for channel in channels
        if channel not in WITH_TRADES
    ]
    for side, (feed, channel) in itertools.product(("feed", "relay"), topics):
        base = market.base(sdk, side)
        process.tell("subscribe", f"{side} {feed}", base, feed, channel, symbols.of(feed))
    relay = market.relay(sdk)
    relay.until_pairs(lambda now: now == len(topics))
    process.until(
        lambda: all(market.subscribers(feed, c, symbols.of(feed)) == 2 for feed, c in topics),
        lambda: market.simulator.connections,
    )
    for feed, channels in sdk.channels.items():
        sent = record_of(feed, symbols.of(feed))
        for channel in channels:
            records = sent[channel]
            market.send(feed, channel, *records, frames=[7] * (len(records) // 7))
        for channel in channels:
            process.wait(f"feed {feed}", [channel], len(sent[channel]))
            process.wait(f"relay {feed}", [channel], len(sent[channel]))
    for feed, channels in sdk.channels.items():
        for channel in channels:
            seen = process.heard(f"feed {feed}", channel)
            assert process.heard(f"relay {feed}", channel) == seen, (feed, channel)
            if sdk.name in {"alpaca-py-raw", "websockets-msgpack"}:
                made = market.simulator.sent_of(KINDS[feed][channel])
                mine = [r for r in list(made) if symbols.of(feed) in (r.symbol, *_about(r))]
                assert times_of(feed, seen) == [record.ts_event_ns for record in mine]


def _about(record: Any) -> tuple[str, ...]:
    return getattr(record, "symbols", ())


@pytest.mark.parametrize("sdk", SDKS, ids=str)
def test_subscribes_and_unsubscribes_while_it_runs(
    market: Market, process: SdkProcess, sdk: Sdk
) -> None:
    relay, base = market.relay(sdk), market.base(sdk, "relay")
    for before, feed in enumerate(sdk.channels):  # each one leaves a pair
        one, other = Symbols().of(feed), Symbols().of(feed)
        channel = channel_of(feed)

        def change(do: str, symbol: str, pairs: int, f: str = feed, c: str = channel) -> None:
            process.tell(do, f, base, f, c, symbol)
            relay.until_pairs(lambda now: now == pairs)
            process.until(lambda: do == "unsubscribe" or market.subscribers(f, c, symbol))

        change("subscribe", one, before + 1)
        market.send(feed, channel, trade_of(feed, one)[0])
        process.wait(feed, [channel], 1)
        change("subscribe", other, before + 2)
        market.send(feed, channel, trade_of(feed, one)[0], trade_of(feed, other)[0])
        process.wait(feed, [channel], 3)
        change("unsubscribe", one, before + 1)
        market.send(feed, channel, trade_of(feed, one)[0], trade_of(feed, other)[0])
        process.wait(feed, [channel], 4)
        text = [str(record) for record in process.heard(feed, channel)]
        assert [one in record for record in text] == [True, True, False, False]
        assert [other in record for record in text] == [False, False, True, True]


def until_heard(market: Market, process: SdkProcess, feed: str, symbol: str) -> None:
    """Send records until the client hears one of them."""
    marks: list[str] = []

    def came() -> bool:
        record, mark = trade_of(feed, symbol)
        marks.append(mark)
        market.send(feed, channel_of(feed), record)
        heard = [str(record) for record in process.heard(feed, channel_of(feed))]
        return any(mark in record for mark in marks for record in heard)

    process.until(came, lambda: feed)


@pytest.fixture(scope="module")
def restarted(market: Market) -> Iterator[dict[Sdk, tuple[SdkProcess, Symbols]]]:
    """Every client that can be had, after the services were ended and started again."""
    running: dict[Sdk, tuple[SdkProcess, Symbols]] = {}
    try:
        for sdk in SDKS:
            try:
                process = market.process(sdk)
            except pytest.skip.Exception:
                continue
            symbols = Symbols()
            running[sdk] = process, symbols
            for feed in sdk.channels:
                base, symbol = market.base(sdk, "relay"), symbols.of(feed)
                process.tell("subscribe", feed, base, feed, channel_of(feed), symbol)
        for process, symbols in running.values():
            for feed in process.sdk.channels:
                until_heard(market, process, feed, symbols.of(feed))
        market.plain.restart()
        market.tls.restart()
        yield running
    finally:
        for process, _ in running.values():
            process.close()


@pytest.mark.parametrize("sdk", SDKS, ids=str)
def test_comes_back_by_itself_after_a_restart_of_the_service(
    market: Market, restarted: dict[Sdk, tuple[SdkProcess, Symbols]], sdk: Sdk
) -> None:
    if sdk not in restarted:
        sdk.runner()
    process, symbols = restarted[sdk]
    for feed in sdk.channels:
        until_heard(market, process, feed, symbols.of(feed))
