"""The book's subscriber: what it says while there is no connection. On virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from mdservice.errors import StoreUnavailable
from mdservice.gateway.tracker import FollowedPrices

FAILS_AFTER_S = 5.0


@asynccontextmanager
async def nothing_answers() -> AsyncIterator[Any]:
    await anyio.sleep(FAILS_AFTER_S)
    raise StoreUnavailable("nothing answers")
    yield


async def test_a_slow_start_is_no_failure_yet_but_is_not_hidden(autojump_clock: Any) -> None:
    followed = FollowedPrices(nothing_answers, pytest.fail)
    assert (followed.error(), followed.delay()) == (None, None)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(followed.run)
        await anyio.sleep(0.5)
        assert (followed.error(), followed.delay()) == (None, None)
        await anyio.sleep(3)
        assert followed.error() is None, "who waits for the first prices goes on waiting"
        assert followed.delay() == "not connected to Redis yet"
        await anyio.sleep(FAILS_AFTER_S)
        assert followed.error() == "nothing answers"
        assert followed.delay() is None
        tasks.cancel_scope.cancel()
