"""Calls in threads that may hang."""

from __future__ import annotations

import threading

import anyio
import pytest

from mdservice.errors import PositionsUnavailable
from mdservice.positions.source import Threads


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_few_may_hang_and_then_none_is_begun(backend: str) -> None:
    ended = threading.Event()

    async def main() -> None:
        threads = Threads("the place")
        try:
            for _ in range(4):
                with anyio.move_on_after(0.05) as scope:
                    await threads.run(ended.wait)
                assert scope.cancelled_caught
            with pytest.raises(PositionsUnavailable, match="the place: 4 earlier attempts"):
                await threads.run(ended.wait)
        finally:
            ended.set()
        with anyio.fail_after(5):
            while threads._running:
                await anyio.sleep(0.01)
            assert await threads.run(lambda: 7) == 7

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_call_cancelled_before_it_began_is_not_counted(backend: str) -> None:
    async def main() -> None:
        threads = Threads("the place")
        for _ in range(10):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await threads.run(lambda: None)
        with anyio.fail_after(5):
            while threads._running:
                await anyio.sleep(0.01)

    anyio.run(main, backend=backend)
