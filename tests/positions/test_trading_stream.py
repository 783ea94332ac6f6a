"""Following the trading stream, against the simulator in memory. On virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from websockets.exceptions import ConnectionClosedOK

from mdservice.errors import PositionsRefused, PositionsUnavailable
from mdservice.model.position import Position
from mdservice.pnl.numbers import short
from mdservice.positions.cache import PositionCache
from mdservice.positions.trade_updates import TradeUpdate
from mdservice.positions.trading_stream import TradeUpdatesFollower, TradingLink, TradingStream
from mdservice.simulator import SimulatorConfig, open_simulator
from mdservice.testing import VirtualClock
from tests.simulation.streams import TrioStream

EVERY_S = 1000.0
START = {"AAPL": ("10", "100")}


class AccountPositions:
    """What the simulator's account holds, as REST would answer."""

    address = "the simulator"

    def __init__(self, simulator: Any) -> None:
        self._simulator = simulator
        self.asked = 0

    async def fetch(self) -> list[Position]:
        self.asked += 1
        await anyio.sleep(0.01)
        return [
            Position(held.symbol.replace("/", ""), held.qty, held.avg_entry_price)
            for held in self._simulator.positions
        ]

    async def aclose(self) -> None:
        """Nothing is open."""


class Bench:
    """A follower of a simulator, and what it has passed on."""

    def __init__(self, simulator: Any, clock: VirtualClock, key: str) -> None:
        async def open_stream() -> Any:
            return TrioStream(simulator.connect())

        self.simulator = simulator
        self.source = AccountPositions(simulator)
        self.positions = PositionCache(self.source, EVERY_S, clock)
        self.came: list[TradeUpdate] = []
        stream = TradingStream(simulator.stream_url("trading"), key, "s", open_stream=open_stream)
        self.follower = TradeUpdatesFollower(stream, self.positions, self._note, clock)

    async def _note(self, update: TradeUpdate) -> None:
        self.came.append(update)

    @property
    def state(self) -> str:
        return self.follower.snapshot().state

    def qty(self, symbol: str) -> str | None:
        position = self.positions.position(symbol)
        return None if position is None or position.qty is None else short(position.qty)

    async def poll(self) -> None:
        while True:
            await self.positions.refresh_when_due()


@asynccontextmanager
async def following(key: str = "k", **config: Any) -> AsyncIterator[Bench]:
    clock = VirtualClock()
    settings = SimulatorConfig(rate=0, positions=START, key="k", secret="s", **config)
    async with (
        open_simulator(settings, port=None, clock=clock) as simulator,
        anyio.create_task_group() as tasks,
    ):
        bench = Bench(simulator, clock, key)
        tasks.start_soon(bench.poll)
        await tasks.start(bench.follower.run)
        await anyio.sleep(1)
        yield bench
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("text_updates", [False, True])
async def test_a_fill_changes_the_position_and_is_passed_on(
    autojump_clock: Any, text_updates: bool
) -> None:
    async with following(text_updates=text_updates) as bench:
        assert bench.state == "following"
        asked = bench.source.asked
        bench.simulator.trade("AAPL", 5, 130)
        await anyio.sleep(0.001)
        assert bench.qty("AAPL") == "15"
        assert [update.event for update in bench.came] == ["new", "fill"]
        assert bench.source.asked == asked, "no answer of REST was needed"


async def test_the_positions_are_asked_for_after_each_connection(autojump_clock: Any) -> None:
    async with following() as bench:
        bench.simulator.drop(feed="trading")
        bench.simulator.trade("AAPL", 5, 130)
        await anyio.sleep(5)
        assert bench.state == "following"
        assert bench.follower.snapshot().reconnects == 1
        assert bench.qty("AAPL") == "15"
        await anyio.sleep(2)
        (difference,) = bench.positions.differences()
        assert "AAPL" in difference


async def test_a_refused_login_is_tried_again_slowly(autojump_clock: Any) -> None:
    async with following(key="wrong") as bench:
        assert bench.state == "refused"
        warning = bench.follower.warning() or ""
        assert "refuses the login" in warning
        assert "wrong" not in warning
        await anyio.sleep(600)
        logins = [one for one in bench.simulator.received if one.message["action"] != "listen"]
        assert 4 <= len(logins) <= 20, "both forms at each of few tries"
        assert bench.qty("AAPL") == "10", "polling goes on"


class RefusingWebsocket:
    """A server that refuses the login and closes the connection."""

    def __init__(self) -> None:
        self._answers = [b'{"stream":"authorization","data":{"status":"unauthorized"}}']

    async def send(self, _message: str) -> None:
        """Nothing reads it."""

    async def recv(self) -> bytes:
        if not self._answers:
            raise ConnectionClosedOK(None, None)
        return self._answers.pop()


async def test_a_refused_login_that_closes_the_connection_is_a_refusal() -> None:
    link = TradingLink(RefusingWebsocket(), "ws://here")
    with pytest.raises(PositionsRefused, match="refuses the login"):
        await link.log_in(({"action": "authenticate"}, {"action": "auth"}))


async def test_a_login_that_is_refused_for_a_while_is_found_again(autojump_clock: Any) -> None:
    async with following() as bench:
        bench.simulator.refuse_next(402, feed="trading", times=4)
        bench.simulator.drop(feed="trading")
        await anyio.sleep(2)
        assert bench.state == "refused"
        await anyio.sleep(200)
        assert bench.state == "following"
        assert bench.follower.warning() is None


async def test_the_other_form_of_the_login_is_tried(autojump_clock: Any) -> None:
    async with following() as bench:
        bench.simulator.refuse_next(402, feed="trading")
        bench.simulator.drop(feed="trading")
        await anyio.sleep(2)
        assert bench.state == "following"
        assert [one.message["action"] for one in bench.simulator.received][-3:] == [
            "authenticate",
            "auth",
            "listen",
        ]


async def test_a_login_without_an_answer_is_given_up_and_tried_again(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with following() as bench:
        bench.simulator.stall("auth", feed="trading")
        bench.simulator.drop(feed="trading")
        await anyio.sleep(15)
        assert "does not answer the login" in caplog.text
        assert bench.state == "following"


async def test_a_peer_that_is_gone_without_a_word_is_found(autojump_clock: Any) -> None:
    async with following() as bench:
        bench.simulator.freeze(feed="trading")
        bench.simulator.trade("AAPL", 5, 130)
        await anyio.sleep(25)
        assert bench.follower.snapshot().reconnects == 1
        assert bench.qty("AAPL") == "15"


async def test_what_cannot_be_read_costs_only_itself(autojump_clock: Any) -> None:
    async with following() as bench:
        asked = bench.source.asked
        deep = b'{"stream":"trade_updates","data":%b}' % (b"[" * 100_000 + b"]" * 100_000)
        for broken in (b"{", b"[]", deep, b'{"stream":"trade_updates","data":{"event":"fill"}}'):
            bench.simulator.send_raw(broken, feed="trading")
        bench.simulator.send_raw(b'{"stream":"account_updates","data":{}}', feed="trading")
        await anyio.sleep(1)
        assert bench.source.asked > asked, "a fill may be among what cannot be read"
        bench.simulator.trade("AAPL", 5, 130)
        await anyio.sleep(0.1)
        assert bench.qty("AAPL") == "15"
        snapshot = bench.follower.snapshot()
        assert (snapshot.unreadable, snapshot.reconnects, snapshot.state) == (4, 0, "following")


async def test_an_unknown_event_is_counted_and_passed_on(autojump_clock: Any) -> None:
    async with following() as bench:
        bench.simulator.trade("AAPL", 5, 130)
        last = dict(bench.simulator.trade_updates[-1])
        await anyio.sleep(0.1)
        bench.simulator.send_trade_update({**last, "event": "teleported", "position_qty": None})
        await anyio.sleep(0.1)
        assert bench.follower.snapshot().unknown == 1
        assert bench.came[-1].event == "teleported"
        assert bench.qty("AAPL") == "15"


async def test_legs_change_each_of_their_positions(autojump_clock: Any) -> None:
    call, put = "AAPL281215C00200000", "AAPL281215P00200000"
    async with following() as bench:
        bench.simulator.trade("AAPL", 1, 130)
        last = dict(bench.simulator.trade_updates[-1])
        await anyio.sleep(0.1)
        order = {**last["order"], "symbol": "", "side": "", "asset_class": ""}
        legs = [
            {"order_id": "1", "symbol": call, "side": "buy", "price": "3", "qty": "2"},
            {"order_id": "2", "symbol": put, "side": "sell", "price": "1", "qty": "2"},
        ]
        quantities = {call: "2", put: "-2"}
        event = {**last, "order": order, "legs": legs, "position_qtys": quantities}
        del event["position_qty"]
        bench.simulator.send_trade_update(event)
        await anyio.sleep(0.001)
        assert (bench.qty(call), bench.qty(put)) == ("2", "-2")


async def test_stopping_leaves_the_stream_with_a_close_frame(autojump_clock: Any) -> None:
    async with following() as bench:
        connection = bench.simulator.trading_connections[0]
        assert connection.authenticated
    assert bench.simulator.trading_connections == ()


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, PositionsRefused),
        (404, PositionsRefused),
        (429, PositionsUnavailable),
        (503, PositionsUnavailable),
    ],
)
async def test_a_refused_upgrade_says_whether_a_retry_may_help(
    autojump_clock: Any, status: int, error: type[Exception]
) -> None:
    async with open_simulator(
        SimulatorConfig(rate=0), port=None, clock=VirtualClock()
    ) as simulator:

        async def open_stream() -> Any:
            return TrioStream(simulator.connect())

        stream = TradingStream(simulator.stream_url("trading"), "k", "s", open_stream=open_stream)
        simulator.refuse_upgrade(status, feed="trading")
        with pytest.raises(error, match=str(status)):
            async with stream.connect():
                pass
