"""The whole simulator over streams in memory, on trio's virtual clock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import anyio
import msgpack
import msgspec
import pytest
import trio
from trio.testing import MockClock

from mdservice.errors import InvalidSymbol
from mdservice.simulator import (
    DEMO_POSITIONS,
    Drop,
    Duplicate,
    Freeze,
    Garble,
    Holding,
    Mute,
    Planned,
    Refuse,
    Reorder,
    SendError,
    SimQuote,
    Simulator,
    SimulatorConfig,
    Slow,
    Spoil,
    Trade,
    crypto,
    open_simulator,
    options,
)
from mdservice.simulator.stocks import QUOTES

NOW_NS = 1_795_189_904_000_000_000


class TrioClock:
    """UTC that follows the event loop's time."""

    def monotonic(self) -> float:
        return anyio.current_time()

    def utc_ns(self) -> int:
        return NOW_NS + round(anyio.current_time() * 1_000_000_000)


@asynccontextmanager
async def opened(**settings: Any) -> AsyncIterator[Simulator]:
    """A simulator in memory, for at most a virtual quarter of an hour."""
    config = SimulatorConfig(**{"rate": 0, **settings})
    with anyio.fail_after(900):
        async with open_simulator(config, port=None, clock=TrioClock()) as simulator:
            yield simulator


def error(code: int) -> dict[str, Any]:
    return {"T": "error", "code": code, "msg": MESSAGES[code]}


MESSAGES = {
    400: "invalid syntax",
    402: "auth failed",
    404: "auth timeout",
    405: "symbol limit exceeded",
    406: "connection limit exceeded",
    407: "slow client",
    409: "insufficient subscription",
    500: "internal error",
}


@pytest.mark.parametrize("use_msgpack", [False, True])
async def test_serves_exact_quotes_in_both_encodings(
    dial: Any, use_msgpack: bool, autojump_clock: MockClock
) -> None:
    async with opened() as simulator:
        client = await dial(simulator, msgpack=use_msgpack)
        await client.login("AAPL", "FAKEPACA")
        sent = simulator.send_quotes(
            [
                {"S": "AAPL", "bp": 187.12, "ap": 187.15, "t": NOW_NS + 5},
                {"S": "MSFT", "bp": 1.0, "ap": 2.0},
                SimQuote("FAKEPACA", 0, 9.5),
            ]
        )
        assert sent == 1
        frame = await client.frame()
        assert isinstance(frame, bytes if use_msgpack else str)
        quotes = msgpack.unpackb(frame) if use_msgpack else msgspec.json.decode(frame)
        assert [(quote["S"], quote["bp"], quote["ap"]) for quote in quotes] == [
            ("AAPL", 187.12, 187.15),
            ("FAKEPACA", 0, 9.5),
        ]
        stamp = quotes[0]["t"]
        if use_msgpack:
            assert stamp.to_unix_nano() == NOW_NS + 5
        else:
            assert stamp == "2026-11-20T15:51:44.000000005Z"
        assert [quote.symbol for quote in simulator.sent] == ["AAPL", "FAKEPACA"]
        assert [quote.symbol for quote in simulator.history] == ["AAPL", "MSFT", "FAKEPACA"]


async def test_frames_are_cut_as_asked(dial: Any, autojump_clock: MockClock) -> None:
    async with opened() as simulator:
        client = await dial(simulator)
        await client.login("A")
        simulator.send_quotes(
            [SimQuote("A", float(n), n + 1.0) for n in range(1, 7)], frames=[1, 2]
        )
        assert [len(await client.receive()) for _ in range(3)] == [1, 2, 3]


async def test_nothing_comes_before_subscribing_or_after_unsubscribing(
    dial: Any, autojump_clock: MockClock
) -> None:
    async with opened() as simulator:
        client = await dial(simulator)
        await client.login()
        assert simulator.send_quotes([SimQuote("A", 1, 2)]) == 0
        await client.send(action="subscribe", quotes=["A"], trades=["B"])
        await client.receive()
        assert simulator.send_quotes([SimQuote("B", 1, 2)]) == 0
        await client.send(action="unsubscribe", quotes=["A"])
        await client.receive()
        assert simulator.send_quotes([SimQuote("A", 1, 2)]) == 0
        await client.send(action="subscribe", quotes=["*"])
        await client.receive()
        assert simulator.send_quotes([SimQuote("ANY", 1, 2)]) == 1


async def test_shows_its_connections(dial: Any, autojump_clock: MockClock) -> None:
    async with opened() as simulator:
        assert not simulator.connections
        client = await dial(simulator, msgpack=True, path="/v2/test?x=1")
        (info,) = simulator.connections
        assert (info.endpoint, info.encoding, info.authenticated) == ("/v2/test", "msgpack", False)
        await client.login("A", "B")
        (info,) = simulator.connections
        assert info.authenticated
        assert info.subscriptions["quotes"] == ("A", "B")
        await client.close()
        await simulator.until(lambda s: not s.connections)


async def test_keeps_what_clients_send_with_secrets_masked(
    dial: Any, autojump_clock: MockClock
) -> None:
    async with opened(received_size=3) as simulator:
        client = await dial(simulator)
        await client.login("A")
        await client.send_text("{")
        assert await client.receive() == [error(400)]
        assert [entry.message for entry in simulator.received] == [
            {"action": "auth", "key": "***", "secret": "***"},
            {"action": "subscribe", "quotes": ["A"]},
            None,
        ]
        await client.send(action="unsubscribe", quotes=["A"])
        await client.receive()
        assert len(simulator.received) == 3


async def test_headers_log_in(dial: Any, autojump_clock: MockClock) -> None:
    headers = {"APCA-API-KEY-ID": "key", "APCA-API-SECRET-KEY": "right"}
    async with opened(key="key", secret="right") as simulator:
        client = await dial(simulator, headers=headers)
        assert await client.receive() == [{"T": "success", "msg": "connected"}]
        assert await client.receive() == [{"T": "success", "msg": "authenticated"}]
        await client.close()
        client = await dial(simulator, headers={**headers, "APCA-API-SECRET-KEY": "wrong"})
        assert await client.receive() == [{"T": "success", "msg": "connected"}]
        assert await client.receive() == [error(402)]
        assert await client.closed() == 1000
        assert "right" not in repr(simulator.config)


async def test_who_does_not_log_in_is_sent_away_after_ten_seconds(
    dial: Any, autojump_clock: MockClock
) -> None:
    async with opened() as simulator:
        client = await dial(simulator)
        await client.receive()
        started_s = trio.current_time()
        assert await client.receive() == [error(404)]
        assert trio.current_time() - started_s == pytest.approx(10)
        assert await client.closed() == 1000


async def test_a_second_connection_is_refused_and_the_slot_comes_back(
    dial: Any, autojump_clock: MockClock
) -> None:
    async with opened(slot_hold_s=90) as simulator:
        first = await dial(simulator)
        await first.login("A")
        await _expect_406(dial, simulator)
        await first.close()
        second = await dial(simulator)
        await second.login("A")
        await second.stream.aclose()
        await simulator.until(lambda s: not s.connections)
        await _expect_406(dial, simulator)
        await trio.sleep(90)
        await (await dial(simulator)).login("A")


async def _expect_406(dial: Any, simulator: Simulator) -> None:
    client = await dial(simulator)
    await client.receive()
    await client.send(action="auth", key="key", secret="secret")
    assert await client.receive() == [error(406)]
    assert await client.closed() == 1000


async def test_a_client_that_does_not_read_is_cut_off_with_407(
    dial: Any, autojump_clock: MockClock
) -> None:
    async with opened(send_buffer_bytes=100_000) as simulator:
        client = await dial(simulator)
        await client.login("A")
        # Random digits, so that compression does not make it all fit.
        walk = [SimQuote("A", n * 7919 % 100_003 / 100, 1001.0) for n in range(2_000)]
        for _ in range(200):
            simulator.send_quotes(walk)
            if simulator.connections[0].pending_bytes < 1_000:
                break
            await trio.lowlevel.checkpoint()
        codes = [
            message["code"]
            async for messages in _frames(client)
            for message in messages
            if message["T"] == "error"
        ]
        assert codes == [407]
        assert client.protocol.close_rcvd.code == 1008


async def test_a_message_larger_than_the_buffer_does_not_make_its_client_slow(
    dial: Any, autojump_clock: MockClock
) -> None:
    async with opened(send_buffer_bytes=1_000, compression=False) as simulator:
        client = await dial(simulator)
        await client.login("A")
        large = '[{"T":"' + "x" * 5_000 + '"}]'
        for _ in range(2):
            simulator.send_raw(large)
            assert len((await client.receive())[0]["T"]) == 5_000
        simulator.send_raw('[{"T":"x"}]')
        simulator.send_raw(large)  # behind one that waits
        assert await client.receive() == [error(407)]


async def test_a_slow_client_that_never_reads_again_is_dropped(
    dial: Any, autojump_clock: MockClock
) -> None:
    async with opened(send_buffer_bytes=50_000, compression=False) as simulator:
        client = await dial(simulator)
        await client.login("A")
        for _ in range(4):
            simulator.send_raw("x" * 49_000)
            await trio.testing.wait_all_tasks_blocked()
        started_s = trio.current_time()
        await simulator.until(lambda s: not s.connections)
        assert trio.current_time() - started_s == pytest.approx(1)


async def _frames(client: Any) -> Any:
    try:
        while True:
            yield await client.receive()
    except EOFError:
        return


@pytest.mark.parametrize(("how", "code"), [("reset", 1006), ("half-close", 1006), ("close", 1012)])
async def test_drops_connections(dial: Any, how: Any, code: int, autojump_clock: MockClock) -> None:
    async with opened() as simulator:
        client = await dial(simulator)
        await client.login("A")
        simulator.drop(how, code=1012)
        assert await client.closed() == code
        await simulator.until(lambda s: not s.connections)


async def test_a_half_close_comes_after_what_was_sent_and_leaves_the_slot_taken(
    dial: Any, autojump_clock: MockClock
) -> None:
    async with opened() as simulator:
        client = await dial(simulator)
        await client.login("A")
        simulator.send_quotes([SimQuote("A", 1, 2)])
        simulator.drop("half-close")
        assert len(await client.receive()) == 1
        with pytest.raises(EOFError):
            await client.receive()
        assert [connection.authenticated for connection in simulator.connections] == [True]


async def test_the_symbol_limit_can_be_set_for_the_logins_to_come(
    dial: Any, autojump_clock: MockClock
) -> None:
    async with opened(connection_limit=None) as simulator:
        before = await dial(simulator)
        await before.login()
        simulator.symbol_limit = 1
        after = await dial(simulator)
        await after.login()
        for client in (before, after):
            await client.send(action="subscribe", quotes=["A", "B"])
        assert (await before.receive())[0]["quotes"] == ["A", "B"]
        assert await after.receive() == [error(405)]


async def test_answers_as_planned(dial: Any, autojump_clock: MockClock) -> None:
    async with opened() as simulator:
        for status in (401, 403, 429, 503):
            simulator.refuse_upgrade(status)
        assert [(await dial(simulator)).status for _ in range(4)] == [401, 403, 429, 503]
        simulator.refuse_next(500, when="connect")
        client = await dial(simulator)
        assert await client.receive() == [error(500)]
        simulator.refuse_next(409)
        await client.send(action="auth", key="key", secret="secret")
        assert await client.receive() == [error(409)]
        await client.send(action="auth", key="key", secret="secret")
        assert await client.receive() == [{"T": "success", "msg": "authenticated"}]
        simulator.refuse_next(405, when="subscribe")
        await client.send(action="subscribe", quotes=["A"])
        assert await client.receive() == [error(405)]
        simulator.send_error(500)
        assert await client.receive() == [error(500)]


@pytest.mark.parametrize("when", ["upgrade", "connect", "auth", "subscribe"])
async def test_stalls_from_any_moment_on(dial: Any, when: Any, autojump_clock: MockClock) -> None:
    async with opened() as simulator:
        simulator.stall(when)
        with trio.move_on_after(60) as waited:
            client = await dial(simulator)
            await client.login("A")
        assert waited.cancelled_caught
        expected = {"upgrade": 0, "connect": 0, "auth": 1, "subscribe": 2}[when]
        assert len(simulator.received) == expected
        assert len(simulator.connections) == (when != "upgrade"), "the line stays open"


async def test_a_muted_connection_still_answers(dial: Any, autojump_clock: MockClock) -> None:
    async with opened() as simulator:
        client = await dial(simulator)
        await client.login("A")
        simulator.mute(5)
        assert simulator.send_quotes([SimQuote("A", 1, 2)]) == 0
        await client.send(action="subscribe", quotes=["B"])
        assert (await client.receive())[0]["quotes"] == ["A", "B"]
        await trio.sleep(5)
        assert simulator.send_quotes([SimQuote("A", 3, 4)]) == 1
        assert (await client.receive())[0]["bp"] == 3
        simulator.mute()
        simulator.resume()
        assert simulator.send_quotes([SimQuote("A", 5, 6)]) == 1
        assert [quote.bid for quote in simulator.history] == [1, 3, 5]


async def test_a_frozen_connection_says_nothing_until_it_thaws(
    dial: Any, autojump_clock: MockClock
) -> None:
    async with opened() as simulator:
        client = await dial(simulator)
        await client.login("A")
        started_s = trio.current_time()
        simulator.freeze(3)
        simulator.send_quotes([SimQuote("A", 1, 2)])
        client.protocol.send_ping(b"there?")
        await client.flush()
        assert (await client.receive())[0]["bp"] == 1
        assert trio.current_time() - started_s == pytest.approx(3)
        simulator.freeze()
        simulator.send_quotes([SimQuote("A", 3, 4)])
        with trio.move_on_after(100) as waited:
            await client.receive()
        assert waited.cancelled_caught
        simulator.resume()
        assert (await client.receive())[0]["bp"] == 3


async def test_slow_frames_come_one_by_one(dial: Any, autojump_clock: MockClock) -> None:
    async with opened() as simulator:
        client = await dial(simulator)
        await client.login("A")
        simulator.inject(Slow(delay_s=0.5))
        started_s = trio.current_time()
        simulator.send_quotes([SimQuote("A", 1, 2)] * 3, frames=[1, 1])
        arrivals = []
        for _ in range(3):
            await client.receive()
            arrivals.append(trio.current_time() - started_s)
        assert arrivals == pytest.approx([0.5, 1.0, 1.5])


@pytest.mark.parametrize("use_msgpack", [False, True])
async def test_garbles_spoils_repeats_and_reorders(
    dial: Any, use_msgpack: bool, autojump_clock: MockClock
) -> None:
    async with opened() as simulator:
        client = await dial(simulator, msgpack=use_msgpack)
        await client.login("A")
        quotes = [SimQuote("A", 1, 9), SimQuote("A", 2, 9)]

        async def bids() -> list[Any]:
            return [quote["bp"] for quote in await client.receive()]

        simulator.inject(Garble())
        simulator.send_quotes(quotes)
        with pytest.raises(msgspec.DecodeError):
            await client.receive()
        simulator.inject(Spoil())
        simulator.send_quotes(quotes)
        assert await bids() == [1, "no price", 2]
        simulator.inject(Duplicate())
        simulator.send_quotes(quotes)
        assert [await bids(), await bids()] == [[1, 2], [1, 2]]
        simulator.inject(Reorder())
        simulator.send_quotes(quotes)
        assert await bids() == [2, 1]
        simulator.send_quotes(quotes)
        assert await bids() == [1, 2]


async def test_the_script_runs_by_time_and_by_quotes(dial: Any, autojump_clock: MockClock) -> None:
    script = [
        Planned(SendError(500), after_s=5),
        Planned(Drop("close", 1012), after_quotes=3),
        Planned(Refuse(503, "upgrade"), after_s=2),
    ]
    async with opened(faults=script) as simulator:
        await trio.sleep(2.5)
        assert (await dial(simulator)).status == 503
        client = await dial(simulator)
        await client.login("A")
        assert await client.receive() == [error(500)]
        assert trio.current_time() == pytest.approx(5)
        simulator.send_quotes([SimQuote("A", 1, 2)] * 2)
        assert len(await client.receive()) == 2
        simulator.send_quotes([SimQuote("A", 1, 2)])
        assert len(await client.receive()) == 1
        assert await client.closed() == 1012


async def test_one_connection_can_be_meant(dial: Any, autojump_clock: MockClock) -> None:
    async with opened(connection_limit=None) as simulator:
        first, second = await dial(simulator), await dial(simulator)
        await first.login("A")
        await second.login("A")
        simulator.inject(Mute(), connection=1)
        assert simulator.send_quotes([SimQuote("A", 1, 2)]) == 1
        simulator.drop("close", connection=2)
        assert len(await second.receive()) == 1
        assert await second.closed() == 1001
        simulator.send_raw("last", connection=1)
        assert await first.frame() == "last"


async def test_the_market_is_the_same_on_every_run(dial: Any, autojump_clock: MockClock) -> None:
    async def run() -> list[tuple[str, float, float, int]]:
        async with opened(rate=500, seed=42, shape="flat") as simulator:
            client = await dial(simulator)
            await client.login("AAPL", "MSFT", "FAKEPACA")
            quotes: list[dict[str, Any]] = []
            while len(quotes) < 400:
                quotes += await client.receive()
            return [(quote["S"], quote["bp"], quote["ap"], quote["bs"]) for quote in quotes[:400]]

    first = await run()
    await trio.sleep(0.0123)
    assert await run() == first
    assert {quote[0] for quote in first} == {"AAPL", "MSFT", "FAKEPACA"}


async def test_the_rate_and_the_frames_are_kept(dial: Any, autojump_clock: MockClock) -> None:
    async with opened(rate=20_000, shape="flat", quotes_per_frame=200) as simulator:
        client = await dial(simulator, msgpack=True)
        await client.login("AAPL")
        frames = []
        while trio.current_time() < 1.001:
            frames.append(len(await client.receive()))
        assert sum(frames) == pytest.approx(20_000, rel=0.05)
        assert max(frames) == 200


async def test_the_market_goes_on_without_a_connection(
    dial: Any, autojump_clock: MockClock
) -> None:
    async with opened(rate=100, shape="flat") as simulator:
        client = await dial(simulator)
        await client.login("AAPL")
        await client.receive()
        simulator.drop()
        await client.closed()
        heard = len(simulator.sent)
        await trio.sleep(10)
        assert len(simulator.sent) == heard
        assert len(simulator.history) - heard == pytest.approx(1_000, abs=10)
        client = await dial(simulator)
        await client.login("AAPL")
        newest = simulator.history[-1]
        (quote, *_) = await client.receive()
        assert quote["bp"] == pytest.approx(newest.bid, abs=1)


async def test_silent_symbols_are_acknowledged_and_never_quoted(
    dial: Any, autojump_clock: MockClock
) -> None:
    async with opened(rate=100, silent_symbols={"AAPL"}) as simulator:
        client = await dial(simulator)
        await client.login("AAPL", "MSFT")
        await trio.sleep(5)
        assert {quote.symbol for quote in simulator.sent} == {"MSFT"}


async def test_the_history_is_bounded(dial: Any, autojump_clock: MockClock) -> None:
    async with opened(history_size=5) as simulator:
        client = await dial(simulator)
        await client.login("A")
        simulator.send_quotes([SimQuote("A", n, n + 1) for n in range(1, 11)])
        assert [quote.bid for quote in simulator.history] == [6, 7, 8, 9, 10]
        assert len(simulator.sent) == 5
        assert simulator.quotes_made == 10


async def test_closes_its_connections_when_it_ends(dial: Any, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery, opened() as simulator:
        client = await dial(simulator)
        await client.login("A")
        codes: list[int] = []

        async def listen() -> None:
            codes.append(await client.closed())

        nursery.start_soon(listen)
        await trio.testing.wait_all_tasks_blocked()
    assert codes == [1001]


async def test_an_error_in_the_block_comes_out_as_it_is(autojump_clock: MockClock) -> None:
    with pytest.raises(LookupError, match="mine"):
        async with opened():
            raise LookupError("mine")


async def test_cancelling_ends_it_at_once(dial: Any, autojump_clock: MockClock) -> None:
    with trio.move_on_after(1) as waited:
        async with opened(rate=100) as simulator:
            client = await dial(simulator)
            await client.login("A")
            await trio.sleep_forever()
    assert waited.cancelled_caught
    assert trio.current_time() == pytest.approx(1)


async def test_answers_an_unknown_endpoint_with_404(autojump_clock: MockClock) -> None:
    async with opened() as simulator:
        stream = simulator.connect()
        await stream.send(b"GET /v2/iex HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        with pytest.raises(anyio.EndOfStream):
            while True:
                answer += await stream.receive()
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 404 Not Found")
        assert msgspec.json.decode(body) == {"message": "endpoint not found."}


async def test_a_client_may_send_frames_without_waiting_for_the_upgrade(
    autojump_clock: MockClock,
) -> None:
    login = b'{"action":"auth","key":"k","secret":"s"}'
    frame = bytes([0x81, 0x80 | len(login)]) + bytes(4) + login  # masked with zeros
    async with opened() as simulator:
        stream = simulator.connect()
        await stream.send(
            b"GET /v2/iex HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            + frame
        )
        await simulator.until(lambda s: any(c.authenticated for c in s.connections))
        assert len(simulator.received) == 1


async def test_what_is_no_http_is_hung_up_on(autojump_clock: MockClock) -> None:
    async with opened() as simulator:
        stream = simulator.connect()
        await stream.send(b"hello\r\n\r\n")
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()


async def test_a_client_that_sends_no_request_is_dropped(autojump_clock: MockClock) -> None:
    async with opened() as simulator:
        with pytest.raises(anyio.EndOfStream):
            await simulator.connect().receive()
        assert trio.current_time() == pytest.approx(10)


async def test_too_many_connections_get_503(dial: Any, autojump_clock: MockClock) -> None:
    async with opened(most_connections=1) as simulator:
        await (await dial(simulator)).login()
        assert (await dial(simulator)).status == 503


async def test_pongs_that_are_not_read_do_not_pile_up(dial: Any, autojump_clock: MockClock) -> None:
    async with opened() as simulator:
        client = await dial(simulator)
        await client.login()
        simulator.inject(Freeze())
        for _ in range(10_001):
            client.protocol.send_ping(b"x")
        await client.flush()
        await simulator.until(lambda s: not s.connections)


def test_runs_on_asyncio_too(dial: Any) -> None:
    async def run() -> None:
        with anyio.fail_after(10):
            config = SimulatorConfig(rate=2_000, seed=3)
            async with open_simulator(config, port=None) as simulator:
                client = await dial(simulator, msgpack=True)
                await client.login("AAPL")
                seen = [quote["bp"] for _ in range(3) for quote in await client.receive()]
                assert seen == [quote.bid for quote in simulator.sent][: len(seen)]
                simulator.drop("half-close")
                assert await client.closed() == 1006

    anyio.run(run, backend="asyncio")


def test_an_error_in_the_block_comes_out_as_it_is_on_asyncio() -> None:
    async def run() -> None:
        async with open_simulator(port=None):
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        anyio.run(run, backend="asyncio")


D = Decimal


class StoppedClock:
    def monotonic(self) -> float:
        return anyio.current_time()

    def utc_ns(self) -> int:
        return NOW_NS


@asynccontextmanager
async def stopped(**settings: Any) -> AsyncIterator[Simulator]:
    config = SimulatorConfig(**{"rate": 0, **settings})
    async with open_simulator(config, port=None, clock=StoppedClock()) as simulator:
        yield simulator


async def test_starts_with_nothing_unless_configured() -> None:
    async with stopped() as simulator:
        assert simulator.positions == ()
    async with stopped(positions={"aapl": (2, 150.5)}) as simulator:
        assert simulator.positions == (Holding("AAPL", D(2), D("150.5")),)


async def test_a_trade_without_a_price_is_done_at_the_middle_of_the_market() -> None:
    async with stopped() as simulator:
        assert simulator.trade("AAPL", 1) == Trade(NOW_NS, "AAPL", D(1), D("187.13"))
        simulator.send_quotes([SimQuote("AAPL", 0.1, 0.2)])
        assert simulator.trade("AAPL", 1).price == D("0.15")
        simulator.send_quotes([SimQuote("AAPL", 0, 0.2)])
        assert simulator.trade("AAPL", 1).price == D("0.2")
        simulator.send_quotes([SimQuote("AAPL", 0.3, 0)])
        assert simulator.trade("AAPL", 1).price == D("0.3")
        simulator.send_quotes([SimQuote("AAPL", 0, 0)])
        assert simulator.trade("AAPL", 1).price == D("0.3")
        assert simulator.positions[0].qty == 5


async def test_trades_open_turn_and_close() -> None:
    async with stopped(received_size=3) as simulator:
        for qty, price in [(10, 100), ("-15.0", "120.5"), (2.5, 90.1), (2.5, 1)]:
            simulator.trade("msft", qty, price)
        assert simulator.positions == ()
        assert [(t.symbol, t.qty, t.price) for t in simulator.trades] == [
            ("MSFT", D("-15"), D("120.5")),
            ("MSFT", D("2.5"), D("90.1")),
            ("MSFT", D("2.5"), D(1)),
        ]


@pytest.mark.parametrize(
    ("symbol", "qty", "price", "error"),
    [
        ("A B", 1, 1, InvalidSymbol),
        ("*", 1, 1, ValueError),
        ("A", 0, 1, ValueError),
        ("A", 1, -1, ValueError),
        ("A", "x", 1, ValueError),
    ],
)
async def test_a_trade_that_cannot_be_changes_nothing(
    symbol: str, qty: Any, price: Any, error: type[Exception]
) -> None:
    async with stopped() as simulator:
        with pytest.raises(error):
            simulator.trade(symbol, qty, price)
        assert simulator.positions == ()
        assert not simulator.trades


async def test_who_waits_for_a_position_is_woken(autojump_clock: MockClock) -> None:
    async with stopped() as simulator, anyio.create_task_group() as tasks:
        with anyio.fail_after(5):

            async def buy() -> None:
                await trio.sleep(1)
                simulator.trade("AAPL", 1)

            tasks.start_soon(buy)
            await simulator.until(lambda s: bool(s.positions))
            assert trio.current_time() == 1


async def test_the_trader_trades_at_bid_and_ask(autojump_clock: MockClock) -> None:
    async with stopped(positions=DEMO_POSITIONS, trade_every_s=20) as simulator:
        simulator.send_quotes([SimQuote(symbol, 5, 6) for symbol in SYMBOLS])
        await trio.sleep(20.5 + 19 * 20)
        assert len(simulator.trades) == 20
        for trade in simulator.trades:
            assert trade.price == (6 if trade.qty > 0 else 5)
        first = list(simulator.trades)
    async with stopped(positions=DEMO_POSITIONS, trade_every_s=20) as simulator:
        simulator.send_quotes([SimQuote(symbol, 5, 6) for symbol in SYMBOLS])
        await trio.sleep(20.5 + 19 * 20)
        assert list(simulator.trades) == first


SYMBOLS = (*DEMO_POSITIONS, "AMD", "QQQ", "INTC", "BAC")


async def test_there_are_no_trades_unasked(autojump_clock: MockClock) -> None:
    async with stopped(positions=DEMO_POSITIONS) as simulator:
        await trio.sleep(1_000)
        assert not simulator.trades


@pytest.mark.thorough
async def test_stocks_and_options_stop_while_the_market_is_closed(
    dial: Any, autojump_clock: MockClock
) -> None:
    async with opened(rate=200, crypto_rate=200, options_rate=200) as simulator:
        kinds = {"stocks": QUOTES, "crypto": crypto.QUOTES, "options": options.QUOTES}
        followed = {
            "/v2/iex": "AAPL",
            "/v1beta3/crypto/us": "BTC/USD",
            "/v1beta1/indicative": "AAPL261218C00200000",
        }
        for path, symbol in followed.items():
            websocket = await dial(simulator, msgpack=True, path=path)
            await websocket.login(symbol)
        await simulator.until(lambda s: all(s.made[kind] for kind in kinds.values()))
        simulator.market_open = False
        before = {feed: simulator.made[kind] for feed, kind in kinds.items()}
        await trio.sleep(60)
        after = {feed: simulator.made[kind] for feed, kind in kinds.items()}
        assert after == {**before, "crypto": after["crypto"]}
        assert after["crypto"] > before["crypto"] + 1_000
        simulator.market_open = True
        await simulator.until(
            lambda s: all(s.made[kind] > after[feed] for feed, kind in kinds.items())
        )
