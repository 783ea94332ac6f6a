"""The stream of trade updates: its protocol and its faults, on trio's virtual clock."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
import trio
from trio.testing import MockClock

from mdservice.simulator import (
    Duplicate,
    Lose,
    Planned,
    Reorder,
    Simulator,
    SimulatorConfig,
    Slow,
    open_simulator,
)
from mdservice.simulator.session import Account, Refusals
from mdservice.simulator.trade_updates import TradingSession
from mdservice.simulator.transport import SimulatorTransport

LIMIT_S = 600
LOGIN = {"action": "authenticate", "data": {"key_id": "key", "secret_key": "secret"}}
OLD_LOGIN = {"action": "auth", "key": "key", "secret": "secret"}
LISTEN = {"action": "listen", "data": {"streams": ["trade_updates"]}}
AUTHORIZED = {
    "stream": "authorization",
    "data": {"status": "authorized", "action": "authenticate"},
}
UNAUTHORIZED = {
    "stream": "authorization",
    "data": {"status": "unauthorized", "action": "authenticate"},
}
LISTENING = {"stream": "listening", "data": {"streams": ["trade_updates"]}}


@asynccontextmanager
async def opened(**settings: Any) -> AsyncIterator[Simulator]:
    config = SimulatorConfig(**{"rate": 0, **settings})
    with anyio.fail_after(LIMIT_S):
        async with open_simulator(config, port=None) as simulator:
            yield simulator


class Listener:
    """A client of the stream."""

    def __init__(self, client: Any) -> None:
        self.client = client

    async def ask(self, message: Any) -> Any:
        await self.client.send(**message)
        return await self.next()

    async def next(self) -> Any:
        return json.loads(await self.client.frame())

    async def update(self) -> Any:
        message = await self.next()
        assert message["stream"] == "trade_updates"
        return message["data"]

    async def position(self) -> tuple[str, str | None]:
        """Event and position of the next update."""
        data = await self.update()
        return data["event"], data.get("position_qty")


@pytest.fixture
def listen(dial: Any) -> Any:
    async def connect(simulator: Simulator) -> Listener:
        listener = Listener(await dial(simulator, path="/stream"))
        assert await listener.ask(LOGIN) == AUTHORIZED
        assert await listener.ask(LISTEN) == LISTENING
        return listener

    return connect


@pytest.mark.parametrize("login", [LOGIN, OLD_LOGIN])
@pytest.mark.parametrize("as_text", [True, False])
async def test_both_logins_and_both_kinds_of_frames(
    login: Any, as_text: bool, dial: Any, autojump_clock: MockClock
) -> None:
    async with opened(text_updates=as_text, key="key", secret="secret") as simulator:
        client = await dial(simulator, path="/stream")
        for message, answer in [(login, AUTHORIZED), (LISTEN, LISTENING)]:
            await client.send(**message)
            frame = await client.frame()
            assert isinstance(frame, str) == as_text
            assert json.loads(frame) == answer
        simulator.trade("AAPL", 10, "187.13")
        new, fill = json.loads(await client.frame()), json.loads(await client.frame())
        assert new["stream"] == fill["stream"] == "trade_updates"
        assert (new["data"]["event"], new["data"]["order"]["status"]) == ("new", "new")
        data = fill["data"]
        assert {name: data[name] for name in ("event", "price", "qty", "position_qty")} == {
            "event": "fill",
            "price": "187.13",
            "qty": "10",
            "position_qty": "10",
        }
        assert data["order"]["symbol"] == "AAPL"
        assert data["order"]["filled_avg_price"] == "187.13"
        assert data["order"]["status"] == "filled"
        (connection,) = simulator.trading_connections
        assert connection.subscriptions == {"streams": ("trade_updates",)}
        assert simulator.connections == ()
        masked = {"key_id": "***", "secret_key": "***"}
        message = simulator.received[0].message
        assert message is not None
        assert message.get("data", {"key_id": message.get("key")}).items() <= masked.items()
        assert message.get("secret", "***") == "***"


def test_a_wrong_key_is_unauthorized_and_may_try_again() -> None:
    session = TradingSession(
        "/stream", account=Account("right", "secret"), refusals=Refusals(), as_text=False
    )
    assert session.receive(LISTEN, 0).messages == (
        {"stream": "authorization", "data": {"status": "unauthorized", "action": "listen"}},
    )
    for wrong in (LOGIN, OLD_LOGIN, {"action": "auth"}, {"action": "authenticate", "data": 5}):
        assert session.receive(wrong, 0).messages == (UNAUTHORIZED,)
        assert not session.authenticated
    good = {"action": "auth", "key": "right", "secret": "secret"}
    assert session.receive(good, 0).messages == (AUTHORIZED,)
    for nothing in (None, {}, {"action": "subscribe"}):
        assert session.receive(nothing, 0).messages == ()
    assert session.receive(LISTEN, 0).messages == (
        {"stream": "listening", "data": {"streams": ("trade_updates",)}},
    )
    for streams in ([], ["other"], 5, None):
        again = {"action": "listen", "data": {"streams": streams}}
        assert session.receive(again, 0).messages == (
            {"stream": "listening", "data": {"streams": ()}},
        )
        assert not session.listens


async def test_a_planned_refusal_is_of_this_stream_alone(
    dial: Any, autojump_clock: MockClock
) -> None:
    async with opened() as simulator:
        simulator.refuse_next(402, feed="trading")
        simulator.refuse_next(402)
        listener = Listener(await dial(simulator, path="/stream"))
        assert await listener.ask(LOGIN) == UNAUTHORIZED
        assert await listener.ask(LOGIN) == AUTHORIZED
        client = await dial(simulator)
        await client.receive()
        await client.send(action="auth", key="key", secret="secret")
        assert (await client.receive())[0]["code"] == 402
        simulator.refuse_upgrade(503, feed="trading")
        with pytest.raises(EOFError):
            client = await dial(simulator, path="/stream")
            await client.frame()


async def test_a_client_that_does_not_log_in_is_cut(dial: Any, autojump_clock: MockClock) -> None:
    async with opened() as simulator:
        client = await dial(simulator, path="/stream")
        assert await client.closed() == 1000
        assert trio.current_time() == pytest.approx(10)


@pytest.mark.parametrize("when", ["upgrade", "connect", "auth", "subscribe"])
async def test_a_login_may_never_be_answered(
    when: Any, dial: Any, autojump_clock: MockClock
) -> None:
    async with opened() as simulator:
        simulator.stall(when, feed="trading")
        with anyio.move_on_after(300) as waiting:
            listener = Listener(await dial(simulator, path="/stream"))
            assert await listener.ask(LOGIN) == AUTHORIZED
            await listener.ask(LISTEN)
        assert waiting.cancelled_caught


async def test_a_refused_connection_is_closed(dial: Any, autojump_clock: MockClock) -> None:
    async with opened() as simulator:
        simulator.refuse_next(500, when="connect", feed="trading")
        client = await dial(simulator, path="/stream")
        assert await client.closed() == 1011


async def test_only_who_listens_gets_updates(
    dial: Any, listen: Any, autojump_clock: MockClock
) -> None:
    async with opened() as simulator:
        listener = await listen(simulator)
        silent = Listener(await dial(simulator, path="/stream"))
        assert await silent.ask(LOGIN) == AUTHORIZED
        simulator.trade("AAPL", 1)
        assert await listener.position() == ("new", None)
        assert await listener.position() == ("fill", "1")
        assert await silent.ask(LISTEN) == LISTENING
        simulator.trade("AAPL", -3)
        for each in (listener, silent):
            assert await each.position() == ("new", None)
            assert await each.position() == ("fill", "-2")


async def test_updates_are_lost_repeated_late_and_out_of_order(
    listen: Any, autojump_clock: MockClock
) -> None:
    async with opened() as simulator:
        listener = await listen(simulator)
        simulator.inject(Lose(2), feed="trading")
        simulator.trade("AAPL", 1)
        simulator.inject(Duplicate(2), feed="trading")
        simulator.trade("AAPL", 1)
        assert [await listener.position() for _ in range(4)] == [
            ("new", None),
            ("new", None),
            ("fill", "2"),
            ("fill", "2"),
        ]
        simulator.inject(Reorder(), feed="trading")
        simulator.trade("AAPL", 1)
        assert [await listener.position() for _ in range(2)] == [("fill", "3"), ("new", None)]
        simulator.inject(Slow(5, 60), feed="trading")
        started_s = trio.current_time()
        simulator.trade("AAPL", 1)
        assert [await listener.position() for _ in range(2)] == [("new", None), ("fill", "4")]
        assert trio.current_time() >= started_s + 5
        simulator.resume()
        simulator.mute(feed="trading")
        simulator.trade("AAPL", 1)
        simulator.resume()
        simulator.trade("AAPL", -5)
        assert [await listener.position() for _ in range(2)] == [("new", None), ("fill", "0")]
        assert len(simulator.trade_updates) == 12


async def test_a_script_names_the_stream_it_means(listen: Any, autojump_clock: MockClock) -> None:
    async with opened(
        faults=[Planned(Lose(), after_s=1, feed="trading"), Planned(Duplicate(), after_s=1)]
    ) as simulator:
        listener = await listen(simulator)
        await trio.sleep(2)
        simulator.trade("AAPL", 1)
        assert await listener.position() == ("fill", "1")


async def test_orders_are_filled_in_parts_as_time_goes(
    listen: Any, autojump_clock: MockClock
) -> None:
    async with opened(fills_per_order=3, fill_every_s=10, trade_every_s=None) as simulator:
        listener = await listen(simulator)
        async with httpx.AsyncClient(
            transport=SimulatorTransport(simulator), base_url=simulator.rest_url
        ) as client:
            body = {"symbol": "AAPL", "qty": 7, "side": "sell", "type": "market"}
            answer = await client.post("/v2/orders", json={**body, "time_in_force": "day"})
        assert answer.json()["status"] == "new"
        assert await listener.position() == ("new", None)
        for count, expected in enumerate(
            [("partial_fill", "-2"), ("partial_fill", "-4"), ("fill", "-7")], start=1
        ):
            assert await listener.position() == expected
            assert trio.current_time() == pytest.approx(10 * count)


@pytest.mark.parametrize("how", ["reset", "half-close", "close"])
async def test_the_connection_is_cut_by_name_alone(
    how: Any, listen: Any, autojump_clock: MockClock
) -> None:
    async with opened() as simulator:
        listener = await listen(simulator)
        simulator.drop(how)
        simulator.trade("AAPL", 1)
        assert await listener.position() == ("new", None)
        assert await listener.position() == ("fill", "1")
        simulator.drop(how, feed="trading")
        await listener.client.closed()
        await simulator.until(lambda s: not s.trading_connections)
        again = await listen(simulator)
        simulator.trade("AAPL", 1)
        assert await again.position() == ("new", None)
        assert await again.position() == ("fill", "2")


async def test_any_update_may_be_sent(listen: Any, autojump_clock: MockClock) -> None:
    async with opened() as simulator:
        listener = await listen(simulator)
        simulator.send_trade_update({"event": "restated", "order": {"symbol": "AAPL"}})
        assert await listener.update() == {"event": "restated", "order": {"symbol": "AAPL"}}
        simulator.send_messages([{"stream": "other"}], feed="trading")
        assert await listener.next() == {"stream": "other"}
        simulator.send_raw(b"\x00", feed="trading")
        assert await listener.client.frame() == b"\x00"
        assert simulator.positions == ()


async def test_a_client_that_does_not_read_is_cut(listen: Any, autojump_clock: MockClock) -> None:
    async with opened(send_buffer_bytes=4_096) as simulator:
        listener = await listen(simulator)
        simulator.freeze(feed="trading")
        for _ in range(20):
            simulator.trade("AAPL", 1)
        simulator.resume()
        assert await listener.client.closed() == 1008
