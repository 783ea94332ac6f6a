"""How the breaker is kept in Redis. On virtual time, with keys in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import anyio
import pytest

from mdservice.errors import ConfigurationError, StoreUnavailable
from mdservice.gateway.risk import Risk, StillHolds, make_limits
from mdservice.model.position import Position
from mdservice.model.quote import Quote
from mdservice.pnl.breaker import CLOSED, Breaker
from mdservice.pnl.engine import PnlEngine
from mdservice.testing import VirtualClock


class FakeBreakerKey:
    """The key of the breaker, for several gateways."""

    def __init__(self) -> None:
        self.value: Breaker | None = None
        self.changes: list[str] = []
        self.away = False

    async def breaker(self) -> Breaker | None:
        await anyio.sleep(0.001)
        if self.away:
            raise StoreUnavailable("Redis is away")
        return self.value

    async def change_breaker(self, decide: Any) -> tuple[Breaker | None, bool]:
        await self.breaker()
        wanted = decide(self.value)
        if wanted is None:
            return self.value, False
        self.value = wanted
        self.changes.append(wanted.state)
        return wanted, True


class FakeWebhook:
    def __init__(self) -> None:
        self.sent: list[str] = []

    def send(self, _content: bytes, text: str) -> None:
        self.sent.append(text)


class Gateway:
    """One gateway's judge, with one position in A, bought at 100."""

    def __init__(self, key: FakeBreakerKey, *limits: str) -> None:
        self.clock = VirtualClock()
        self.engine = PnlEngine(stale_after_s=60, price_ttl_s=300)
        self.engine.set_positions([Position("A", Decimal(1), Decimal(100))])
        self.webhook = FakeWebhook()
        self.risk = Risk(
            make_limits(limits, ()),
            self.engine,
            key,  # type: ignore[arg-type]
            self.clock,
            self.webhook,  # type: ignore[arg-type]
        )

    def price(self, price: float) -> None:
        now_ns = self.clock.utc_ns()
        self.engine.update(Quote("A", price, price, 1, 1, now_ns, now_ns), now_ns)
        self.risk.look()

    async def state(self) -> str:
        return (await self.risk.breaker()).state


@asynccontextmanager
async def running(*gateways: Gateway) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        for gateway in gateways:
            tasks.start_soon(gateway.risk.run)
        yield
        tasks.cancel_scope.cancel()


async def until(condition: Callable[[], Any]) -> None:
    with anyio.fail_after(100):
        while not condition():
            await anyio.sleep(0.01)


RULE = "A pnl < -5"


async def test_a_crossing_trips_the_breaker_once_for_all_gateways(autojump_clock: Any) -> None:
    key = FakeBreakerKey()
    one, two = Gateway(key, RULE), Gateway(key, RULE)
    async with running(one, two):
        assert await one.state() == "closed"
        for gateway in (one, two):
            gateway.price(94)
        assert await two.state() == "tripped"
        await until(lambda: key.value)
        await anyio.sleep(10)
    assert key.changes == ["tripped"]
    assert key.value is not None
    assert (key.value.rule, key.value.subject, key.value.value) == (RULE, "A", Decimal(-6))
    assert len(one.webhook.sent + two.webhook.sent) == 1


async def test_a_crossing_that_came_back_has_tripped_it_all_the_same(autojump_clock: Any) -> None:
    key = FakeBreakerKey()
    gateway = Gateway(key, RULE)
    async with running(gateway):
        key.away = True
        await anyio.sleep(5)
        gateway.price(94)
        gateway.price(100)
        with pytest.raises(StoreUnavailable):
            await gateway.state()
        key.away = False
        assert await gateway.state() == "tripped"
        await until(lambda: key.value)
    assert key.changes == ["tripped"]


async def test_a_tripped_breaker_survives_the_gateway_and_its_limits(autojump_clock: Any) -> None:
    key = FakeBreakerKey()
    gateway = Gateway(key, RULE)
    async with running(gateway):
        gateway.price(94)
        await until(lambda: key.value)
    for again in (Gateway(key, RULE), Gateway(key)):
        async with running(again):
            again.price(100)
            assert await again.state() == "tripped"
    assert await again.risk.reset([]) == key.value
    assert key.changes == ["tripped", "closed"]


async def test_a_key_that_is_lost_is_written_again(autojump_clock: Any) -> None:
    key = FakeBreakerKey()
    gateway = Gateway(key, RULE)
    async with running(gateway):
        gateway.price(94)
        await until(lambda: key.value)
        gateway.price(100)
        known, key.value = key.value, None
        assert await gateway.state() == "tripped"
        await until(lambda: key.value)
    assert key.value == known


async def test_a_reset_has_to_wait_until_the_limit_no_longer_holds(autojump_clock: Any) -> None:
    key = FakeBreakerKey()
    gateway = Gateway(key, RULE, "A price > 200")
    assert await gateway.risk.reset([]) == CLOSED
    async with running(gateway):
        gateway.price(94)
        await until(lambda: key.value)
        with pytest.raises(StillHolds):
            await gateway.risk.reset([])
        gateway.engine.expire("A", gateway.clock.utc_ns())
        gateway.price(0)
        gateway.risk.look()
        with pytest.raises(StillHolds):
            await gateway.risk.reset([])
        gateway.price(100)
        with pytest.raises(StillHolds):
            await gateway.risk.reset(["the positions are not known"])
        gateway.price(201)
        with pytest.raises(StillHolds):
            await gateway.risk.reset([])
        gateway.price(100)
        assert not (await gateway.risk.reset([])).tripped
        await anyio.sleep(10)
        assert key.changes == ["tripped", "closed"]
        gateway.price(94)
        await until(lambda: len(key.changes) == 3)
    assert gateway.webhook.sent[1] == "mdservice: the breaker is closed"


async def test_a_limit_that_cannot_be_judged_may_still_hold(autojump_clock: Any) -> None:
    key = FakeBreakerKey()
    key.value = Breaker("tripped", RULE, "A", Decimal(-6), "2026-11-20T15:51:44.208912345Z")
    gateway = Gateway(key, RULE)
    with pytest.raises(StillHolds):
        await gateway.risk.reset([])
    gateway.price(100)
    assert not (await gateway.risk.reset([])).tripped


async def test_a_reset_by_another_gateway_does_not_last_while_a_limit_holds(
    autojump_clock: Any,
) -> None:
    key = FakeBreakerKey()
    one, two = Gateway(key, RULE), Gateway(key)
    async with running(one, two):
        one.price(94)
        await until(lambda: key.value)
        await two.risk.reset([])
        assert await one.state() == "tripped"
        await until(lambda: key.changes == ["tripped", "closed", "tripped"])


async def test_a_reset_leaves_a_trip_that_came_meanwhile(autojump_clock: Any) -> None:
    key = FakeBreakerKey()
    gateway = Gateway(key, RULE)
    key.value = Breaker("tripped", "gone", "A")
    breaker = key.breaker

    async def overtaken() -> Breaker | None:
        found = await breaker()
        key.value = Breaker("tripped", "other", "B")
        return found

    key.breaker = overtaken  # type: ignore[method-assign]
    with pytest.raises(StillHolds):
        await gateway.risk.reset([])
    assert key.value == Breaker("tripped", "other", "B")


async def test_without_limits_nothing_is_blind() -> None:
    gateway = Gateway(FakeBreakerKey())
    assert gateway.risk.blind() == []
    assert not gateway.risk.has_limits


def test_alert_rules_that_say_so_are_limits_too() -> None:
    limits = make_limits(["A qty > 1"], ["A pnl < -5", "total pnl < -5 trip"])
    assert [rule.text for rule in limits.rules] == ["A qty > 1", "total pnl < -5 trip"]
    with pytest.raises(ConfigurationError):
        make_limits(["A"], ())
