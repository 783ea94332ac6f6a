"""What every feed driver does: the real ones against the simulator over TCP, on both event loops,
and the fake one on virtual time.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import attrs
import pytest
import sniffio
import trio.testing

from mdservice.errors import FeedRefused, FeedUnavailable
from mdservice.feed import driver as feeds_driver
from mdservice.feed.alpaca import sdk_driver
from mdservice.feed.alpaca.link import AlpacaLink
from mdservice.feed.alpaca.login import Credentials
from mdservice.feed.alpaca.sdk_driver import AlpacaPyDriver
from mdservice.feed.alpaca.websockets_driver import WebsocketsDriver
from mdservice.feed.driver import (
    CLOSE_TIMEOUT_S,
    LONGEST_OPEN_TIMEOUT_S,
    OPEN_TIMEOUT_S,
    Acknowledged,
    Driver,
    Link,
    Received,
    RequestRefused,
)
from mdservice.feed.subscriptions import Followed
from mdservice.model.feeds import FEEDS, NEWS_FEED, OPTIONS, STOCKS, Feed, Topic
from mdservice.model.kinds import (
    BARS,
    CANCELS,
    CORRECTIONS,
    DAILY_BARS,
    IMBALANCES,
    LULDS,
    NEWS,
    ORDERBOOKS,
    QUOTES,
    STATUSES,
    TRADES,
    Kind,
)
from mdservice.simulator import SimQuote, Simulator, SimulatorConfig, open_simulator
from mdservice.simulator.session import Account, SessionRules
from mdservice.simulator.wire import encode_messages
from mdservice.testing import FakeDriver
from tests.integration.conftest import patient

LIMIT_S = 60.0
KEY, SECRET = "PK-right", "right-secret"
SHORT_OPEN_S = 0.25
"""In the place of the real limit, where a test waits for it."""
STEP_S = 0.001
AAPL, MSFT = Topic("quotes", "AAPL"), Topic("quotes", "MSFT")
RECEIVED_NS = 1_795_189_904_300_000_000
MESSAGE = {
    "T": "q", "S": "AAPL", "bp": 1.0, "bs": 1, "ap": 1.5, "as": 1,
    "t": "2026-11-20T15:51:44.208912345Z",
}  # fmt: skip
"""A quote as the feed sends it."""


@attrs.frozen
class Bench:
    """A server, and how to make a driver for it."""

    server: Any
    make: Callable[..., Driver]
    """Takes key, secret and, for another than the stock feed, ``feed``."""
    open_timeout_s: float
    real: bool

    @property
    def driver(self) -> Driver:
        return self.make(KEY, SECRET)


Scene = Callable[[Bench], Awaitable[None]]


@attrs.frozen
class Place:
    """A driver on an event loop."""

    driver: str
    backend: str

    def __str__(self) -> str:
        return f"{self.driver}-{self.backend}"

    def run(self, scene: Scene, config: dict[str, Any]) -> None:
        before = set(threading.enumerate())
        if self.driver == "alpaca-py":
            sdk_driver._import_sdk()  # takes seconds, which are not the server's
        if self.driver == "fake":
            clock = {"clock": trio.testing.MockClock(autojump_threshold=0)}
            anyio.run(self._on_fake, scene, config, backend="trio", backend_options=clock)
        else:
            anyio.run(self._on_simulator, scene, config, backend=self.backend)
        left = {t for t in threading.enumerate() if t not in before and t.name == "alpaca-py"}
        assert not left, "a thread of the driver was left behind"

    async def _on_fake(self, scene: Scene, config: dict[str, Any]) -> None:
        fakes: list[FakeDriver] = []

        def make(key: str, secret: str, feed: Feed = STOCKS) -> Driver:
            fakes[0]._login |= {"key": key, "secret": secret}
            fakes[0].feed = feed
            return fakes[0]

        account = Account(KEY, SECRET, config.get("connection_limit", 1))
        rules = SessionRules(symbol_limit=config.get("symbol_limit"))
        fakes.append(FakeDriver(account=account, rules=rules))
        with anyio.fail_after(LIMIT_S):
            await scene(Bench(fakes[0], make, feeds_driver.OPEN_TIMEOUT_S, real=False))

    async def _on_simulator(self, scene: Scene, config: dict[str, Any]) -> None:
        kind = {"alpaca-py": AlpacaPyDriver, "websockets": WebsocketsDriver}[self.driver]
        settings = SimulatorConfig(rate=0, key=KEY, secret=SECRET, **config)
        with anyio.fail_after(LIMIT_S):
            async with open_simulator(settings) as server:

                def make(key: str, secret: str, feed: Feed = STOCKS) -> Driver:
                    url = server.stream_url(feed.name)
                    driver: Driver = kind(url, Credentials(key, secret), feed=feed)
                    return driver

                await anyio.sleep(STEP_S)  # the server's own tasks are started now
                before = _asyncio_tasks()
                await scene(Bench(server, make, feeds_driver.OPEN_TIMEOUT_S, real=True))
                with anyio.fail_after(30):
                    await server.until(lambda s: not s._connections)
                    while any(t.name == "alpaca-py" for t in threading.enumerate()):
                        await anyio.sleep(STEP_S)
                # One turn for callbacks of what has just ended.
                await anyio.sleep(STEP_S)
                assert _asyncio_tasks() <= before, "a task of the driver was left behind"


def _asyncio_tasks() -> set[Any]:
    """Trio's nurseries leave none; asyncio's tasks can outlive their maker."""
    return asyncio.all_tasks() if sniffio.current_async_library() == "asyncio" else set()


REAL = [
    Place(driver, backend)
    for driver in ("alpaca-py", "websockets")
    for backend in ("trio", "asyncio")
]
ALL = [*REAL, Place("fake", "trio")]


def drivers(places: Sequence[Place] = ALL, **config: Any) -> Callable[[Any], Any]:
    """Run the scene for every driver; config is the simulator's."""

    def decorate(scene: Any) -> Any:
        @pytest.mark.parametrize("place", places, ids=str)
        def test(place: Place) -> None:
            place.run(scene, config)

        test.__name__ = scene.__name__
        return test

    return decorate


@pytest.fixture
def short_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds_driver, "OPEN_TIMEOUT_S", SHORT_OPEN_S)


# ---- what the scenes share


def quotes(count: int, first: int = 1) -> list[dict[str, Any]]:
    """Numbered by their bids."""
    return [
        {"S": "AAPL", "bp": float(n), "ap": float(n) + 0.5} for n in range(first, first + count)
    ]


def opened(driver: Driver) -> AbstractAsyncContextManager[Link]:
    """A connection on which the quotes of one symbol are taken."""
    followed = Followed()
    followed.ask([AAPL])
    return driver.connect(followed, lambda: RECEIVED_NS)


async def subscribe(link: Link) -> None:
    await link.subscribe([AAPL])
    assert (await link.receive()).controls == [Acknowledged(frozenset({AAPL}))]


@asynccontextmanager
async def subscribed(bench: Bench) -> AsyncIterator[Link]:
    async with opened(bench.driver) as link:
        await subscribe(link)
        yield link


class Taker:
    """Collects what a link brings, as numbers."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.bids: list[float] = []
        self.times: list[int] = []

    async def take(self) -> None:
        received = await self.link.receive()
        assert received.of(QUOTES), "receive() returned nothing"
        assert (received.errors, received.unfollowed) == (0, 0)
        self.bids += [quote.bid for quote in received.of(QUOTES)]
        self.times += [quote.ts_event_ns for quote in received.of(QUOTES)]
        assert {quote.ts_recv_ns for quote in received.of(QUOTES)} == {RECEIVED_NS}

    async def take_until(self, count: int) -> None:
        while len(self.bids) < count:
            await self.take()


def numbers(count: int) -> list[float]:
    return [float(n) for n in range(1, count + 1)]


async def end_of(link: Link) -> FeedUnavailable:
    with pytest.raises(FeedUnavailable) as caught:
        while True:
            await link.receive()
    return caught.value


# ---- opening


@drivers()
async def test_opens_and_logs_in(bench: Bench) -> None:
    async with opened(bench.driver):
        (connection,) = bench.server.connections
        assert connection.authenticated


@drivers()
async def test_asks_for_msgpack_and_keeps_all_nanoseconds(bench: Bench) -> None:
    moment_ns = 1_795_189_904_208_912_345
    async with subscribed(bench) as link:
        bench.server.send_quotes([SimQuote("AAPL", 187.12, 187.15, ts_event_ns=moment_ns)])
        taker = Taker(link)
        await taker.take_until(1)
        assert isinstance(link, AlpacaLink)
        assert link.encoding == "msgpack"
        assert taker.times == [moment_ns]


@drivers()
async def test_opens_again_after_it_was_closed(bench: Bench) -> None:
    driver = bench.driver
    for _ in range(3):
        async with opened(driver) as link:
            await subscribe(link)


@drivers()
async def test_wrong_key_is_refused_with_402(bench: Bench) -> None:
    with pytest.raises(FeedRefused) as caught:
        async with opened(bench.make("PK-wrong", SECRET)):
            pytest.fail("it opened")
    assert (caught.value.code, caught.value.http) == (402, False)
    assert "ALPACA_API_KEY" in str(caught.value)
    assert "PK-wrong" not in str(caught.value)
    assert SECRET not in str(caught.value)


@drivers()
async def test_second_connection_is_refused_with_406(bench: Bench) -> None:
    async with opened(bench.driver):
        with pytest.raises(FeedRefused) as caught:
            async with opened(bench.driver):
                pytest.fail("it opened")
    assert (caught.value.code, caught.value.http) == (406, False)
    async with opened(bench.driver):
        pass  # closing has freed the slot


@drivers()
async def test_error_message_at_login_is_a_refusal_by_its_code(bench: Bench) -> None:
    for when in ("connect", "auth"):
        for code in (402, 406, 409, 411, 500):
            bench.server.refuse_next(code, when=when)
            with pytest.raises(FeedRefused) as caught:
                async with opened(bench.driver):
                    pytest.fail("it opened")
            assert (caught.value.code, caught.value.http) == (code, False), when


@drivers()
async def test_refused_upgrade_is_a_refusal_by_http_status(bench: Bench) -> None:
    for status in (401, 403, 404, 429, 500, 503):
        bench.server.refuse_upgrade(status)
        with pytest.raises(FeedRefused) as caught:
            async with opened(bench.driver):
                pytest.fail("it opened")
        assert (caught.value.code, caught.value.http) == (status, True)


@pytest.mark.parametrize("place", REAL, ids=str)
def test_port_without_a_server_is_unavailable(place: Place) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"ws://127.0.0.1:{unused.getsockname()[1]}/v2/iex"

        async def scene(bench: Bench) -> None:
            kind = type(bench.driver)
            with pytest.raises(FeedUnavailable, match=r"127\.0\.0\.1"):
                async with opened(kind(url, Credentials(KEY, SECRET))):  # type: ignore[call-arg]
                    pytest.fail("it opened")

        place.run(scene, {})


def test_limits_are_those_of_the_contract() -> None:
    assert (OPEN_TIMEOUT_S, LONGEST_OPEN_TIMEOUT_S, CLOSE_TIMEOUT_S) == (3.0, 15.0, 1.0)


@pytest.mark.usefixtures("short_open")
@drivers(connection_limit=None)
async def test_each_try_that_runs_out_of_time_doubles_the_limit_of_the_next(bench: Bench) -> None:
    driver = bench.driver
    for round_ in range(2):
        for factor in (1, 2, 4):
            bench.server.stall("auth")
            started_s = anyio.current_time()
            with pytest.raises(FeedUnavailable, match="within"):
                async with opened(driver):
                    pytest.fail("it opened")
            took_s = anyio.current_time() - started_s
            limit_s = bench.open_timeout_s * factor
            assert limit_s - 0.05 <= took_s <= min(15, limit_s) + 0.5, (round_, factor)
        async with opened(driver):
            pass  # a login that succeeds brings the short limit back


@pytest.mark.usefixtures("short_open")
@drivers(connection_limit=None)
async def test_server_that_stops_answering_is_unavailable_in_time(bench: Bench) -> None:
    for when in ("upgrade", "connect", "auth"):
        bench.server.stall(when)
        started_s = anyio.current_time()
        with pytest.raises(FeedUnavailable, match=r"within|finish"):
            async with opened(bench.driver):
                pytest.fail("it opened")
        took_s = anyio.current_time() - started_s
        assert bench.open_timeout_s - 0.05 <= took_s <= bench.open_timeout_s + 1.0, when


@drivers(REAL, connection_limit=None)
async def test_server_that_hangs_up_at_login_is_unavailable(bench: Bench) -> None:
    server: Simulator = bench.server

    async def hang_up(how: Any) -> None:
        await server.until(lambda s: bool(s.connections))
        server.drop(how)

    for how in ("reset", "half-close", "close"):
        server.stall("connect")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hang_up, how)
            with pytest.raises(FeedUnavailable), anyio.fail_after(30):
                async with opened(bench.driver):
                    pytest.fail("it opened")
        await server.until(lambda s: not s.connections)


@pytest.mark.usefixtures("short_open")
@pytest.mark.parametrize("place", REAL, ids=str)
def test_name_resolution_that_hangs_is_unavailable_in_time(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, resolve = threading.Event(), socket.getaddrinfo

    def hang(host: Any, *args: Any, **kwargs: Any) -> Any:
        flags = kwargs.get("flags", args[4] if len(args) > 4 else 0)
        if host in ("hangs.invalid", b"hangs.invalid") and not flags & socket.AI_NUMERICHOST:
            answer.wait(LIMIT_S)
            raise socket.gaierror("no answer")
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", hang)

    async def scene(bench: Bench) -> None:
        kind = type(bench.driver)
        started_s = anyio.current_time()
        try:
            with pytest.raises(FeedUnavailable):
                async with opened(kind("ws://hangs.invalid/", Credentials(KEY, SECRET))):  # type: ignore[call-arg]
                    pytest.fail("it opened")
            assert anyio.current_time() - started_s <= SHORT_OPEN_S + 1.0
        finally:
            answer.set()

    place.run(scene, {})


@drivers(REAL)
async def test_server_that_only_knows_json(bench: Bench) -> None:
    """The raw driver follows it; alpaca-py cannot, and says so, so that auto goes on."""
    async with json_only(bench.server) as url:
        driver = type(bench.driver)(url, Credentials(KEY, SECRET))  # type: ignore[call-arg]
        if driver.name == "alpaca-py":
            with pytest.raises(FeedUnavailable):
                async with opened(driver):
                    pytest.fail("it opened")
            return
        async with opened(driver) as link:
            assert isinstance(link, AlpacaLink)
            assert link.encoding == "json"
            await subscribe(link)
            bench.server.send_quotes(quotes(3))
            taker = Taker(link)
            await taker.take_until(3)
            assert taker.bids == numbers(3)


@asynccontextmanager
async def json_only(server: Simulator) -> AsyncIterator[str]:
    """A way to the server on which the wish for msgpack gets lost."""

    async def pump(source: Any, target: Any) -> None:
        try:
            async for data in source:
                await target.send(data.replace(b"application/msgpack", b"application/json"))
            await target.send_eof()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            return

    async def serve(client: Any) -> None:
        async with (
            client,
            await anyio.connect_tcp(server.host, server.port or 0) as upstream,
            anyio.create_task_group() as pumps,
        ):
            pumps.start_soon(pump, client, upstream)
            pumps.start_soon(pump, upstream, client)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        yield f"ws://127.0.0.1:{port}/v2/iex"
        tasks.cancel_scope.cancel()


@drivers()
async def test_error_in_the_block_comes_out_as_it_is(bench: Bench) -> None:
    for error in (ValueError("mine"), FeedUnavailable("mine"), OSError("mine"), TimeoutError("x")):
        with pytest.raises(type(error)) as caught:
            async with opened(bench.driver):
                raise error
        assert caught.value is error


# ---- sending and receiving


@drivers()
async def test_messages_reach_the_server(bench: Bench) -> None:
    async with subscribed(bench) as link:
        await link.unsubscribe([AAPL])
        assert (await link.receive()).controls == [Acknowledged(frozenset())]
        (connection,) = bench.server.connections
        assert connection.subscriptions["quotes"] == ()


@drivers()
async def test_flood_arrives_complete_and_in_order(bench: Bench) -> None:
    count = 20_000
    async with subscribed(bench) as link:
        bench.server.send_quotes(quotes(count), frames=[5] * (count // 5))
        taker = Taker(link)
        await taker.take_until(count)
        assert taker.bids == numbers(count)


@drivers()
async def test_cancelled_receive_loses_nothing(bench: Bench) -> None:
    count = 300
    async with subscribed(bench) as link, anyio.create_task_group() as tasks:
        taker = Taker(link)

        async def send() -> None:
            for number in range(1, count + 1):
                bench.server.send_quotes(quotes(1, number))
                await anyio.sleep(STEP_S)

        tasks.start_soon(send)
        cancelled = 0
        while len(taker.bids) < count:
            with anyio.move_on_after(STEP_S / 2) as scope:
                await taker.take()
            cancelled += scope.cancelled_caught
            with anyio.CancelScope() as scope:
                scope.cancel()
                await taker.take()
        assert cancelled > 10, "nothing was cancelled, so nothing was tested"
        assert taker.bids == numbers(count)


@drivers()
async def test_large_frame_passes(bench: Bench) -> None:
    filler = {"T": "success", "msg": "x" * (3 << 20)}
    async with subscribed(bench) as link:
        bench.server.send_messages([filler, MESSAGE])
        taker = Taker(link)
        await taker.take()
        assert taker.bids == [1.0]


@drivers(REAL, send_buffer_bytes=1 << 30)
async def test_slow_taker_holds_the_sender_back(bench: Bench) -> None:
    frame_bytes, count = 16_384, 8_000
    server: Simulator = bench.server
    async with subscribed(bench) as link:
        filler = {"T": "success", "msg": "x" * frame_bytes}
        for number in numbers(count):
            server.send_messages([filler, MESSAGE | {"bp": number}])
        await _settled(lambda: server.connections[0].pending_bytes)
        held_back = server.connections[0].pending_bytes
        assert held_back > 0.3 * frame_bytes * count, "the driver took what nobody wants yet"
        taker = Taker(link)
        await taker.take_until(count)
        assert taker.bids == numbers(count)


async def _settled(value: Callable[[], int]) -> None:
    """Wait until a value that the operating system's buffers move has come to rest."""
    last, same = -1, 0
    while same < 10:
        await anyio.sleep(0.02)
        same = same + 1 if value() == last else 0
        last = value()


# ---- every channel of every feed

TIME_NS = 1_795_189_904_208_912_345
OPTION = "AAPL261218C00200000"
BAR: dict[str, Any] = {"o": 1.5, "h": 2.5, "l": 1.0, "c": 2.0, "v": 100, "n": 3, "vw": 1.75}
MESSAGES: dict[str, tuple[Kind[Any], dict[str, Any]]] = {
    "quotes": (QUOTES, {"T": "q", "bp": 1.0, "bs": 0.5, "ap": 1.5, "as": 1, "c": "A"}),
    "trades": (TRADES, {"T": "t", "i": 7, "x": "D", "p": 1.5, "s": 1, "c": ["@"], "z": "C"}),
    "bars": (BARS, {"T": "b", **BAR}),
    "updatedBars": (BARS, {"T": "u", **BAR}),
    "dailyBars": (DAILY_BARS, {"T": "d", **BAR}),
    "statuses": (STATUSES, {"T": "s", "sc": "H", "sm": "Halt", "rc": "T12", "rm": "", "z": "C"}),
    "lulds": (LULDS, {"T": "l", "u": 3.5, "d": 2.5, "i": "B", "z": "C"}),
    "imbalances": (IMBALANCES, {"T": "i", "p": 9.12, "z": "C"}),
    "orderbooks": (ORDERBOOKS, {"T": "o", "r": True, "b": [{"p": 1.5, "s": 0.5}], "a": []}),
    "news": (
        NEWS,
        {
            "T": "n", "id": 7, "headline": "H", "symbols": ["AAPL"],
            "updated_at": "2026-11-20T15:51:44.208912345Z",
        },
    ),
}  # fmt: skip
"""A message of each channel, without symbol and time, and the kind of its record."""
COMPANIONS: list[tuple[Kind[Any], dict[str, Any]]] = [
    (CORRECTIONS, {"T": "c", "x": "D", "oi": 7, "op": 1.5, "ci": 8, "cp": 1.25, "z": "C"}),
    (CANCELS, {"T": "x", "i": 8, "x": "D", "p": 1.25, "s": 1, "a": "C", "z": "C"}),
]
SYMBOLS = {"stocks": "AAPL", "crypto": "BTC/USD", "options": OPTION, "news": "AAPL"}


def messages_of(feed: Feed, *channels: str) -> list[tuple[Kind[Any], dict[str, Any]]]:
    found = [MESSAGES[channel] for channel in channels]
    if feed is STOCKS and "trades" in channels:
        found += COMPANIONS
    about = {} if feed is NEWS_FEED else {"S": SYMBOLS[feed.name], "t": TIME_NS}
    return [(kind, message | about) for kind, message in found]


async def received_until(link: Link, count: int) -> Received:
    """What comes until so many messages are decoded, together."""
    whole, seen = Received(), 0
    while seen < count:
        some = await link.receive()
        for kind, records in some.records.items():
            whole.records.setdefault(kind, []).extend(records)
        whole.controls += some.controls
        whole.errors += some.errors
        whole.others += some.others
        whole.unfollowed += some.unfollowed
        seen += sum(map(len, some.records.values())) + some.errors + some.others + some.unfollowed
    return whole


@pytest.mark.parametrize("feed", FEEDS, ids=lambda feed: str(feed.name))
@pytest.mark.parametrize("place", ALL, ids=str)
def test_every_channel_of_a_feed_brings_its_records(place: Place, feed: Feed) -> None:
    async def scene(bench: Bench) -> None:
        topics = [Topic(channel, SYMBOLS[feed.name]) for channel in feed.channels]
        followed = Followed()
        followed.keep_wire = True
        followed.ask(topics)
        driver = bench.make(KEY, SECRET, feed=feed)
        async with driver.connect(followed, lambda: RECEIVED_NS) as link:
            await link.subscribe(topics)
            assert (await link.receive()).controls == [Acknowledged(frozenset(topics))]
            sent = messages_of(feed, *feed.channels)
            bench.server.send_messages([message for _, message in sent])
            bench.server.send_messages([message for _, message in sent])
            received = await received_until(link, 2 * len(sent))
            assert set(received.records) == set(feed.kinds)
            for kind in feed.kinds:
                own = [one for of, one in sent if of is kind] * 2
                assert [record.symbol for record in received.of(kind)] == [
                    one.get("S", "*") for one in own
                ]
                assert {record.ts_event_ns for record in received.of(kind)} == {TIME_NS}
                assert {record.ts_recv_ns for record in received.of(kind)} == {RECEIVED_NS}
                wires = [encode_messages([one], link.encoding).data[1:] for one in own]
                if link.encoding == "json":
                    wires = [wire.removesuffix(b"]") for wire in wires]
                assert [record.wire for record in received.of(kind)] == wires
            assert (received.errors, received.others, received.unfollowed) == (0, 0, 0)

    place.run(scene, {})


@pytest.mark.parametrize("feed", FEEDS, ids=lambda feed: str(feed.name))
@pytest.mark.parametrize("place", ALL, ids=str)
def test_a_channel_ends_alone(place: Place, feed: Feed) -> None:
    async def scene(bench: Bench) -> None:
        topics = [Topic(channel, SYMBOLS[feed.name]) for channel in feed.channels]
        followed = Followed()
        followed.ask(topics)
        driver = bench.make(KEY, SECRET, feed=feed)
        async with driver.connect(followed, lambda: RECEIVED_NS) as link:
            await link.subscribe(topics)
            await link.receive()
            followed.answered()
            for left in range(len(topics)):
                gone, kept = topics[left], topics[left + 1 :]
                await link.unsubscribe([gone])
                assert (await link.receive()).controls == [Acknowledged(frozenset(kept))]
                followed.give_up([gone])
                late = messages_of(feed, gone.channel)
                others = messages_of(feed, *(topic.channel for topic in kept))
                bench.server.send_messages([message for _, message in late + others])
                received = await received_until(link, len(late + others))
                assert received.unfollowed == len(late)
                assert sum(map(len, received.records.values())) == len(others)

    place.run(scene, {})


@pytest.mark.parametrize("feed", FEEDS, ids=lambda feed: str(feed.name))
@pytest.mark.parametrize("place", ALL, ids=str)
def test_a_broken_message_of_each_kind_costs_itself(place: Place, feed: Feed) -> None:
    async def scene(bench: Bench) -> None:
        topics = [Topic(channel, SYMBOLS[feed.name]) for channel in feed.channels]
        followed = Followed()
        followed.ask(topics)
        driver = bench.make(KEY, SECRET, feed=feed)
        async with driver.connect(followed, lambda: RECEIVED_NS) as link:
            await link.subscribe(topics)
            await link.receive()
            good = [message for _, message in messages_of(feed, *feed.channels)]
            spoiled = {"id": "x"} if feed is NEWS_FEED else {"S": 7}
            mixed = [each for one in good for each in (one, {**one, **spoiled}, one)]
            bench.server.send_messages([*mixed, {"T": "?"}])
            received = await received_until(link, len(mixed) + 1)
            assert sum(map(len, received.records.values())) == 2 * len(good)
            assert (received.errors, received.others) == (len(good), 1)

    place.run(scene, {})


@pytest.mark.parametrize("place", ALL, ids=str)
def test_all_quotes_of_options_are_refused_and_the_link_goes_on(place: Place) -> None:
    async def scene(bench: Bench) -> None:
        followed = Followed()
        followed.ask([Topic("quotes", OPTION)])
        driver = bench.make(KEY, SECRET, feed=OPTIONS)
        async with driver.connect(followed, lambda: RECEIVED_NS) as link:
            for topic, code, cause in (
                (Topic("quotes", "*"), 413, "bad_symbol"),
                (Topic("bars", OPTION), 410, "not_offered"),
            ):
                await link.subscribe([topic])
                (refused,) = (await link.receive()).controls
                assert isinstance(refused, RequestRefused)
                assert (refused.code, refused.cause) == (code, cause)
            await link.subscribe([Topic("quotes", OPTION)])
            (answer,) = (await link.receive()).controls
            assert answer == Acknowledged(frozenset({Topic("quotes", OPTION)}))

    place.run(scene, {})


@pytest.mark.parametrize("place", ALL, ids=str)
def test_the_symbol_limit_counts_each_channel_of_a_symbol(place: Place) -> None:
    async def scene(bench: Bench) -> None:
        topics = [Topic(channel, "AAPL") for channel in ("trades", "quotes", "bars")]
        async with opened(bench.driver) as link:
            await link.subscribe(topics)
            (refused,) = (await link.receive()).controls
            assert isinstance(refused, RequestRefused)
            assert (refused.code, refused.cause) == (405, "symbol_limit")
            assert "each channel of each symbol" in refused.reason
            await link.subscribe(topics[:1])
            assert (await link.receive()).controls == [Acknowledged(frozenset(topics[:1]))]

    place.run(scene, {"symbol_limit": 2})


@pytest.mark.parametrize("place", REAL, ids=str)
def test_each_feed_has_a_connection_of_its_own(place: Place) -> None:
    """One is allowed for each endpoint, so four drivers are connected at once."""

    async def scene(bench: Bench) -> None:
        async with AsyncExitStack() as stack:
            for feed in FEEDS:
                driver = bench.make(KEY, SECRET, feed=feed)
                link = await stack.enter_async_context(
                    driver.connect(Followed(), lambda: RECEIVED_NS)
                )
                assert isinstance(link, AlpacaLink)
                assert link.encoding == "msgpack"
            assert [one.feed for one in bench.server.connections] == [feed.name for feed in FEEDS]

    place.run(scene, {})


# ---- the end


@pytest.mark.parametrize("how", ["close", "half-close"])
@pytest.mark.parametrize("place", ALL, ids=str)
def test_end_is_reported_after_all_frames_were_returned(place: Place, how: Any) -> None:
    async def scene(bench: Bench) -> None:
        async with subscribed(bench) as link:
            bench.server.send_quotes(quotes(2_000), frames=[1] * 2_000)
            bench.server.drop(how)
            taker = Taker(link)
            with pytest.raises(FeedUnavailable):
                while True:
                    await taker.take()
            assert taker.bids == numbers(2_000)
            for _ in range(2):
                with pytest.raises(FeedUnavailable):
                    await link.receive()
            with pytest.raises(FeedUnavailable):
                await link.subscribe([MSFT])

    place.run(scene, {})


@pytest.mark.parametrize(
    ("code", "error"), [(407, FeedUnavailable), (406, FeedRefused), (409, FeedRefused)]
)
@pytest.mark.parametrize("place", ALL, ids=str)
def test_an_error_that_ends_the_connection_comes_after_what_was_sent_before(
    place: Place, code: int, error: type[Exception]
) -> None:
    async def scene(bench: Bench) -> None:
        async with subscribed(bench) as link:
            bench.server.send_quotes(quotes(3))
            bench.server.send_error(code)
            seen: list[float] = []
            for _ in range(2):
                with pytest.raises(error, match=str(code)):
                    while True:
                        seen += [quote.bid for quote in (await link.receive()).of(QUOTES)]
            assert seen == numbers(3)

    place.run(scene, {})


@drivers()
async def test_a_refused_request_is_an_answer_after_which_the_link_goes_on(bench: Bench) -> None:
    async with subscribed(bench) as link:
        bench.server.refuse_next(405, when="subscribe")
        await link.subscribe([MSFT])
        (refused,) = (await link.receive()).controls
        assert isinstance(refused, RequestRefused)
        assert (refused.cause, refused.code) == ("symbol_limit", 405)
        bench.server.send_quotes(quotes(1))
        taker = Taker(link)
        await taker.take()
        assert taker.bids == [1.0]


@drivers()
async def test_cut_line_is_unavailable(bench: Bench) -> None:
    async with subscribed(bench) as link:
        bench.server.drop("reset")
        await end_of(link)


@drivers()
async def test_end_wakes_a_waiting_receive(bench: Bench) -> None:
    for how in ("close", "half-close", "reset"):
        async with subscribed(bench) as link, anyio.create_task_group() as tasks:
            ended = anyio.Event()

            async def wait(link: Link = link, ended: anyio.Event = ended) -> None:
                await end_of(link)
                ended.set()

            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            bench.server.drop(how)
            with anyio.fail_after(30):
                await ended.wait()


@drivers(REAL)
async def test_closing_is_bounded_where_the_peer_never_closes(bench: Bench) -> None:
    async with subscribed(bench):
        bench.server.freeze()
        started_s = anyio.current_time()
    assert anyio.current_time() - started_s <= CLOSE_TIMEOUT_S + patient(2)


@drivers(connection_limit=None)
async def test_closing_a_willing_peer_takes_no_time(bench: Bench) -> None:
    async with subscribed(bench):
        started_s = anyio.current_time()
    assert anyio.current_time() - started_s <= 0.3


@drivers(REAL)
async def test_closing_is_a_handshake_that_frees_the_slot(bench: Bench) -> None:
    server: Simulator = bench.server
    async with subscribed(bench):
        (connection,) = server._connections.values()
    await server.until(lambda s: not s.connections)
    assert connection.clean


# ---- cancellation


@drivers(connection_limit=None)
async def test_opening_can_be_cancelled_at_any_moment(bench: Bench) -> None:
    for delay_ms in (0, 0, 0.2, 0.5, 1, 2, 3, 4, 6, 8, 10, 15):
        with anyio.move_on_after(delay_ms / 1000):
            async with opened(bench.driver):
                await anyio.sleep_forever()


@drivers(connection_limit=None)
async def test_cancelling_the_wait_for_a_silent_server_is_prompt(bench: Bench) -> None:
    for when in ("upgrade", "connect", "auth"):
        bench.server.stall(when)
        started_s = anyio.current_time()
        with anyio.move_on_after(0.1) as scope:
            async with opened(bench.driver):
                pytest.fail("it opened")
        assert scope.cancelled_caught
        assert anyio.current_time() - started_s <= 0.1 + CLOSE_TIMEOUT_S + patient(0.5), when
    # At once, not when the opening would have been given up.
    await anyio.wait_all_tasks_blocked()
    with anyio.fail_after(patient(CLOSE_TIMEOUT_S)):
        while bench.real and (bench.server._connections or _sdk_threads()):
            await anyio.sleep(STEP_S)


def _sdk_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "alpaca-py"]


@drivers()
async def test_open_link_can_be_cancelled(bench: Bench) -> None:
    with anyio.CancelScope() as scope:
        async with subscribed(bench) as link, anyio.create_task_group() as tasks:
            tasks.start_soon(link.receive)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    async with opened(bench.driver):
        pass  # the slot is free


@drivers(send_buffer_bytes=1 << 30)
async def test_cancelled_in_a_flood_it_closes_promptly(bench: Bench) -> None:
    with anyio.CancelScope() as scope:
        async with subscribed(bench) as link:
            bench.server.send_quotes(quotes(50_000), frames=[1] * 50_000)
            await link.receive()
            started_s = anyio.current_time()
            scope.cancel()
            await link.receive()
            await anyio.lowlevel.checkpoint()
    assert anyio.current_time() - started_s <= CLOSE_TIMEOUT_S + patient(0.7)
