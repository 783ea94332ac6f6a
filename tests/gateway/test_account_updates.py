"""The events of the account, read from a channel that breaks, garbles and repeats. Virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import anyio
import hiredis
import pytest

from mdservice.client.discovery import Location
from mdservice.client.http import NoAnswer
from mdservice.client.pubsub import ANSWER_LIMIT_S, PING_AFTER_S
from mdservice.errors import StoreUnavailable
from mdservice.gateway import account_updates
from mdservice.gateway.account_updates import AccountUpdates
from mdservice.model.position import Position
from mdservice.positions.cache import PositionCache
from mdservice.positions.trade_updates import TradeUpdate, encode_account_update, position_after
from mdservice.redis_io.connection import RedisAddress
from mdservice.redis_io.names import RedisNames
from mdservice.testing import FakePositions, VirtualClock

HELD = Position("AAPL", Decimal(10), Decimal(10))
CHANNEL = b"desk1:account.updated"
SOON_S = 10.0
"""More than any wait before another try."""


class FakeServer:
    """Finds itself, and answers on one connection at a time."""

    def __init__(self) -> None:
        self.found_error: Exception | None = None
        self.refusal: Exception | None = None
        self.answers_pings = True
        self.is_cut_off = False
        self.server: Any = None
        self.opened = 0
        self.subscribed: list[bytes] = []
        self._replies: list[Any] = []
        self._came = anyio.Event()
        self._is_lost = True

    async def find(self) -> Location:
        if self.found_error is not None:
            raise self.found_error
        address = RedisAddress("redis://localhost:6379", timeout_s=1.0)
        return Location(address, RedisNames("desk1:"))

    async def open(self, *_: Any, reads: bool) -> FakeServer:
        assert reads, "a replica will do"
        self.opened += 1
        self._is_lost, self._replies = False, []
        return self

    def close(self) -> None:
        self._is_lost = True

    async def refuse_cut_off(self, _server: Any) -> None:
        await anyio.lowlevel.checkpoint()
        if self.is_cut_off:
            raise StoreUnavailable("nothing new comes here")

    async def exchange(self, data: bytes, _count: int) -> list[Any]:
        await anyio.lowlevel.checkpoint()
        if self.refusal is not None:
            return [self.refusal]
        self.subscribed.append(data)
        return [[b"subscribe", CHANNEL, 1]]

    async def receive(self, wait_s: float, data: bytes = b"") -> list[Any]:
        if data and self.answers_pings:
            self._replies.append([b"pong", b""])
        if not self._replies:
            self._came = anyio.Event()
            with anyio.move_on_after(wait_s):
                await self._came.wait()
        if self._is_lost:
            raise StoreUnavailable("the connection was lost")
        replies, self._replies = self._replies, []
        return replies

    def lose(self) -> None:
        self._is_lost = True
        self._came.set()

    def send(self, *payloads: bytes) -> None:
        """Publish; without a subscriber it is lost."""
        if not self._is_lost:
            self._replies += [[b"message", CHANNEL, payload] for payload in payloads]
            self._came.set()


class Bench:
    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.source = FakePositions([HELD])
        self.clock = VirtualClock()
        self.cache = PositionCache(self.source, 3_600.0, self.clock)
        self.came: list[str] = []
        self.updates = AccountUpdates(server, self.cache, self._update_came)
        self._position: Position | None = HELD

    async def _update_came(self, update: TradeUpdate) -> None:
        self.came.append(f"{update.execution_id} {self.qty}")

    @property
    def qty(self) -> str | None:
        position = self.cache.position("AAPL")
        return None if position is None else str(position.qty)

    def buys(self, shares: int, execution: str) -> bytes:
        """The event of a buy, with the position after it, which the source has too."""
        held = Decimal(0) if self._position is None else self._position.qty or Decimal(0)
        update = TradeUpdate(
            event="fill",
            timestamp_ns=self.clock.utc_ns() + 1,
            symbol="AAPL",
            order_id="o",
            execution_id=execution,
            side="buy",
            qty=Decimal(shares),
            price=Decimal(10),
            position_qty=held + shares,
        )
        self._position = position_after(self._position, update)
        self.source.positions = () if self._position is None else (self._position,)
        return encode_account_update(update, self._position)

    async def _poll(self) -> None:
        while True:
            await self.cache.refresh_when_due()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._poll)
            tasks.start_soon(self.updates.run)
            await anyio.sleep(SOON_S)
            yield
            tasks.cancel_scope.cancel()

    @property
    def asked(self) -> int:
        """How often the source was asked."""
        return len(self.source.fetches)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    server = FakeServer()
    monkeypatch.setattr(account_updates, "RedisConnection", server)
    monkeypatch.setattr(account_updates, "_refuse_cut_off", server.refuse_cut_off)
    return Bench(server)


async def test_events_are_applied_in_order_before_they_are_passed_on(
    autojump_clock: Any, bench: Bench
) -> None:
    async with bench.running():
        assert CHANNEL in bench.server.subscribed[0]
        asked = bench.asked
        bench.server.send(bench.buys(5, "a"))
        await anyio.sleep(0.1)
        bench.server.send(bench.buys(1, "b"))
        await anyio.sleep(SOON_S)
    assert bench.came == ["a 15", "b 16"]
    assert bench.asked == asked, "events are enough"


async def test_a_repeated_event_counts_once(autojump_clock: Any, bench: Bench) -> None:
    async with bench.running():
        event = bench.buys(5, "a")
        bench.server.send(event, event)
        await anyio.sleep(SOON_S)
        bench.server.send(event)
        await anyio.sleep(SOON_S)
    assert bench.qty == "15"
    assert (bench.cache.applied, bench.cache.late) == (1, 2)


@pytest.mark.parametrize(
    "garbled",
    [
        b"",
        b"no JSON",
        b"{}",
        b"null",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"event":"fill","timestamp":"yesterday","position":null}',
        b'{"event":"fill","timestamp":"2026-11-20T15:00:00Z","qty":"many","position":null}',
    ],
    ids=["empty", "text", "object", "null", "deep", "bytes", "time", "number"],
)
async def test_an_unreadable_event_costs_only_itself(
    autojump_clock: Any, bench: Bench, garbled: bytes
) -> None:
    async with bench.running():
        asked = bench.asked
        bench.server.send(garbled, bench.buys(5, "a"))
        await anyio.sleep(SOON_S)
        assert bench.came == ["a 15"]
        assert bench.asked == asked + 1, "the source has what the event said"
    assert bench.server.opened == 1


async def test_a_server_that_gets_nothing_new_is_left(autojump_clock: Any, bench: Bench) -> None:
    async with bench.running():
        await anyio.sleep(20)
        assert bench.server.opened == 1
        bench.server.is_cut_off = True
        await anyio.sleep(5)
        assert bench.server.opened > 1


async def test_what_a_lost_connection_missed_the_source_is_asked_for(
    autojump_clock: Any, bench: Bench
) -> None:
    async with bench.running():
        for round_ in range(1, 4):
            bench.server.lose()
            await anyio.sleep(0)
            bench.server.send(bench.buys(1, f"missed {round_}"))
            await anyio.sleep(SOON_S)
            assert bench.server.opened == 1 + round_
            assert bench.qty == str(10 + round_)
        bench.server.send(bench.buys(5, "heard"))
        await anyio.sleep(SOON_S)
    assert bench.came == ["heard 18"]


async def test_an_event_without_its_position_has_the_source_asked(
    autojump_clock: Any, bench: Bench
) -> None:
    async with bench.running():
        asked = bench.asked
        payload = bench.buys(5, "a")
        bench.server.send(payload[: payload.index(b',"position":')] + b',"position":null}')
        await anyio.sleep(SOON_S)
    assert bench.asked == asked + 1
    assert bench.qty == "15"


async def test_an_event_after_a_missing_one_has_the_source_asked(
    autojump_clock: Any, bench: Bench
) -> None:
    async with bench.running():
        asked = bench.asked
        bench.buys(5, "never published")
        bench.server.send(bench.buys(1, "b"))
        await anyio.sleep(SOON_S)
    assert bench.asked > asked
    assert bench.qty == "16"


async def test_a_server_that_answers_no_ping_is_left(autojump_clock: Any, bench: Bench) -> None:
    async with bench.running():
        await anyio.sleep(3_600)
        assert bench.server.opened == 1, "it is quiet, and answers"
        bench.server.answers_pings = False
        await anyio.sleep(PING_AFTER_S + ANSWER_LIMIT_S + SOON_S)
        bench.server.answers_pings = True
        assert bench.server.opened > 1
        await anyio.sleep(SOON_S)
        bench.server.send(bench.buys(5, "a"))
        await anyio.sleep(SOON_S)
    assert bench.came == ["a 15"]


async def test_it_waits_for_a_service_that_has_ended(autojump_clock: Any, bench: Bench) -> None:
    async with bench.running():
        bench.server.found_error = NoAnswer("no service answers")
        bench.server.lose()
        await anyio.sleep(3_600)
        assert bench.server.opened == 1
        bench.server.found_error = None
        await anyio.sleep(SOON_S)
        bench.server.send(bench.buys(5, "a"))
        await anyio.sleep(SOON_S)
    assert (bench.came, bench.server.opened) == (["a 15"], 2)


async def test_it_goes_on_once_it_may_subscribe(autojump_clock: Any, bench: Bench) -> None:
    bench.server.refusal = hiredis.ReplyError("NOPERM this user may not subscribe")
    async with bench.running():
        assert not bench.server.subscribed
        bench.server.refusal = None
        await anyio.sleep(SOON_S)
        bench.server.send(bench.buys(5, "a"))
        await anyio.sleep(SOON_S)
    assert bench.came == ["a 15"]
