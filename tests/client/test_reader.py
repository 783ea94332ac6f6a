"""Connects again for ever, but tells a refusal at the start."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import trio
import trio.testing

from mdservice.client.discovery import Location
from mdservice.client.http import NoAnswer
from mdservice.client.reader import Follower
from mdservice.errors import (
    ConfigurationError,
    MDServiceError,
    StoreRefused,
    StoreUnavailable,
)
from mdservice.redis_io.connection import RedisAddress
from mdservice.redis_io.names import RedisNames
from mdservice.runtime.backoff import Backoff

ADDRESS = RedisAddress("redis://:hunter2@db", timeout_s=1.0)


class Script:
    """Finds and follows by a script: errors, or how many seconds a connection lasts."""

    def __init__(self, *steps: MDServiceError | float) -> None:
        self.steps = list(steps)
        self.tried_s: list[float] = []

    async def find(self) -> Location:
        self.tried_s.append(trio.current_time())
        if isinstance(self.steps[0], (NoAnswer, ConfigurationError)):
            raise self.steps.pop(0)  # type: ignore[misc]
        return Location(ADDRESS, RedisNames())

    async def follow(self, location: Location, connected: Callable[[], None]) -> None:
        step = self.steps.pop(0)
        if isinstance(step, MDServiceError):
            raise step
        connected()
        await trio.sleep(step)
        raise StoreUnavailable("lost")


def make(script: Script) -> Follower:
    return Follower(script, script, Backoff(1.0, 8.0, random.Random(1)))


@pytest.mark.parametrize("error", [StoreRefused("WRONGPASS"), ConfigurationError("no")])
async def test_a_refusal_at_the_start_is_raised(
    error: MDServiceError, autojump_clock: trio.testing.MockClock
) -> None:
    with pytest.raises(type(error)) as caught:
        await make(Script(StoreUnavailable("away"), error)).run(
            task_status=trio.TASK_STATUS_IGNORED
        )
    assert caught.value is error


async def test_all_else_is_ridden_out(autojump_clock: trio.testing.MockClock) -> None:
    script = Script(
        NoAnswer("no service"),
        StoreRefused("Redis at x refused: LOADING Redis is loading the dataset in memory"),
        5.0,
        StoreRefused("NOAUTH"),
        ConfigurationError("the socket's folder"),
        1_000.0,
    )
    follower = make(script)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: follower.run(task_status=task_status))
        assert (follower.connected, follower.connections) == (True, 1)
        await trio.sleep(6)
        assert not follower.connected
        await trio.sleep(60)
        assert (follower.connected, follower.connections) == (True, 2)
        assert follower.last_error == "the socket's folder"
        assert follower.url == "redis://db:6379/0"
        nursery.cancel_scope.cancel()


async def test_waits_longer_after_each_failure_and_again_after_a_steady_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    away = StoreUnavailable("away")
    script = Script(0.0, away, away, away, away, away, 100.0, away, 1_000.0)
    follower = make(script)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: follower.run(task_status=task_status))
        await trio.sleep(300)
        nursery.cancel_scope.cancel()
    waits = [b - a for a, b in zip(script.tried_s, script.tried_s[1:], strict=False)]
    assert [
        bound
        for bound, wait in zip([1, 2, 4, 8, 8, 8], waits, strict=False)
        if not bound / 2 <= wait <= bound
    ] == []
    assert 100.5 <= waits[6] <= 101
    assert 1 <= waits[7] <= 2
