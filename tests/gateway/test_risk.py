"""How the breaker is kept in Redis. On virtual time, with keys in memory."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import anyio
import pytest

from mdservice.errors import ConfigurationError, StoreUnavailable
from mdservice.gateway.risk import StillHolds, make_limits
from mdservice.pnl.breaker import CLOSED, Breaker
from tests.gateway.judging import FakeKeys, Gateway, running, until

RULE = "A pnl < -5"


async def test_a_crossing_trips_the_breaker_once_for_all_gateways(autojump_clock: Any) -> None:
    key = FakeKeys()
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
    assert one.risk.trips + two.risk.trips == 1
    assert (one.risk.crossings, two.risk.crossings) == (1, 1)
    assert one.risk.resets + two.risk.resets == 0


async def test_a_crossing_that_came_back_has_tripped_it_all_the_same(autojump_clock: Any) -> None:
    key = FakeKeys()
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
    key = FakeKeys()
    gateway = Gateway(key, RULE)
    async with running(gateway):
        gateway.price(94)
        await until(lambda: key.value)
    for again in (Gateway(key, RULE), Gateway(key)):
        async with running(again):
            again.price(100)
            assert await again.state() == "tripped"
    assert await again.risk.reset([]) == key.value
    assert (again.risk.trips, again.risk.resets) == (0, 1)
    assert key.changes == ["tripped", "closed"]


async def test_a_key_that_is_lost_is_written_again(autojump_clock: Any) -> None:
    key = FakeKeys()
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
    key = FakeKeys()
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
    key = FakeKeys()
    key.value = Breaker("tripped", RULE, "A", Decimal(-6), "2026-11-20T15:51:44.208912345Z")
    gateway = Gateway(key, RULE)
    with pytest.raises(StillHolds):
        await gateway.risk.reset([])
    gateway.price(100)
    assert not (await gateway.risk.reset([])).tripped


async def test_a_reset_by_another_gateway_does_not_last_while_a_limit_holds(
    autojump_clock: Any,
) -> None:
    key = FakeKeys()
    one, two = Gateway(key, RULE), Gateway(key)
    async with running(one, two):
        one.price(94)
        await until(lambda: key.value)
        await two.risk.reset([])
        assert await one.state() == "tripped"
        await until(lambda: key.changes == ["tripped", "closed", "tripped"])


async def test_a_reset_leaves_a_trip_that_came_meanwhile(autojump_clock: Any) -> None:
    key = FakeKeys()
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
    gateway = Gateway(FakeKeys())
    assert gateway.risk.blind() == []
    assert not gateway.risk.has_limits


def test_alert_rules_that_say_so_are_limits_too() -> None:
    limits = make_limits(["A qty > 1"], ["A pnl < -5", "total pnl < -5 trip"])
    assert [rule.text for rule in limits.rules] == ["A qty > 1", "total pnl < -5 trip"]
    with pytest.raises(ConfigurationError):
        make_limits(["A"], ())


async def test_a_lost_key_is_no_second_trip(autojump_clock: Any) -> None:
    key = FakeKeys()
    gateway = Gateway(key, RULE)
    gateway.price(94)
    async with running(gateway):
        await until(lambda: key.value)
    again = Gateway(key, RULE)
    again.clock.step(60)
    again.price(93)
    async with running(again):
        await until(lambda: again.risk._known.tripped)
        known, key.value = key.value, None
        await until(lambda: key.value)
        await anyio.sleep(5)
    assert key.value == known
    assert again.webhook.sent == []


async def test_a_failover_to_an_older_copy_does_not_close_the_breaker(autojump_clock: Any) -> None:
    key = FakeKeys()
    gateway = Gateway(key, RULE)
    async with running(gateway):
        gateway.price(94)
        await until(lambda: key.value)
        gateway.price(100)
        await gateway.risk.reset([])
        older = key.value
        gateway.price(94)
        await until(lambda: key.value != older)
        gateway.price(100)
        trip, key.value = key.value, older
        assert await gateway.state() == "tripped"
        await until(lambda: key.value == trip)
    assert len(gateway.webhook.sent) == 3


@pytest.mark.parametrize("step_s", [-86_400, 86_400])
async def test_a_reset_counts_whatever_the_other_gateways_clock_says(
    autojump_clock: Any, step_s: int
) -> None:
    key = FakeKeys()
    one, two = Gateway(key, RULE), Gateway(key)
    two.clock.step(step_s)
    async with running(one, two):
        one.price(94)
        await until(lambda: key.value)
        one.price(100)
        await one.risk.breaker()
        assert not (await two.risk.reset([])).tripped
        await anyio.sleep(5)
        assert await one.state() == "closed"
        one.price(94)
        await until(lambda: len(key.changes) == 3)
        one.price(100)
        await two.risk.reset([])
        await anyio.sleep(5)
        assert await one.state() == "closed"
    assert key.changes == ["tripped", "closed"] * 2


@pytest.mark.parametrize("at", ["yesterday", "9999-12-31T23:59:59.999999999Z", None])
async def test_a_trip_written_by_hand_can_be_reset(autojump_clock: Any, at: str | None) -> None:
    key = FakeKeys()
    key.value = Breaker("tripped", at=at)
    gateway = Gateway(key, RULE)
    gateway.price(100)
    async with running(gateway):
        assert await gateway.state() == "tripped"
        await gateway.risk.reset([])
        await anyio.sleep(5)
        assert await gateway.state() == "closed"
