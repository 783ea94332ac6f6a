"""The thread that lends alpaca-py's socket, at the moments where two threads meet."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import cache
from types import TracebackType
from typing import Any

import anyio
import pytest

from mdservice.errors import FeedUnavailable
from mdservice.feed.alpaca import sdk_driver as sdk_thread
from mdservice.feed.alpaca.sdk_driver import SdkThread

LIMIT_S = 10.0


class FakeSocket:
    """The SDK's stream and its websocket, in one."""

    def __init__(
        self, frames: int = 0, *, open_s: float = 0.0, hang_in_close: bool = False
    ) -> None:
        self.frames = iter(range(frames))
        self.open_s = open_s
        self.hang_in_close = hang_in_close
        self.taken = 0
        self.aborted = threading.Event()
        self.end: Exception | None = None

    async def open(self) -> FakeSocket:
        await asyncio.sleep(self.open_s)
        return self

    async def recv(self) -> bytes:
        for number in self.frames:
            self.taken += 1
            return b"%d" % number
        if self.end is not None:
            raise self.end
        await asyncio.Event().wait()
        raise AssertionError("not reached")

    async def send(self, message: bytes) -> None:
        raise OSError("broken")

    async def close(self) -> None:
        if self.hang_in_close:
            await asyncio.Event().wait()

    def abort(self) -> None:
        self.aborted.set()


class MeddlingLock:
    """A lock after whose first release something happens, as another thread could do it."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._then: Callable[[], None] | None = then

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        then, self._then = self._then, None
        if then is not None:
            then()


async def test_last_frame_is_returned_though_it_came_with_the_end() -> None:
    thread = SdkThread(FakeSocket, LIMIT_S)

    def last_frame_and_end() -> None:
        thread._frames.append(b"last")
        thread._ended = True
        thread._changed.set()

    thread._lock = MeddlingLock(last_frame_and_end)  # type: ignore[assignment]
    with anyio.fail_after(LIMIT_S):
        assert list(await thread.take()) == [b"last"]
        with pytest.raises(FeedUnavailable):
            await thread.take()


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_reads_no_further_than_its_limit_while_the_channel_is_full(backend: str) -> None:
    count = 50_000

    async def scene() -> None:
        socket = FakeSocket(count)
        thread = SdkThread(lambda: socket, LIMIT_S)
        await thread.open()
        before = -1
        while socket.taken != before:  # it has come to rest
            before = socket.taken
            await anyio.sleep(0.05)
        assert socket.taken <= 3_000
        seen: list[bytes] = []
        while len(seen) < count:
            seen += await thread.take()  # type: ignore[arg-type]
        assert seen == [b"%d" % number for number in range(count)]
        await thread.close()

    anyio.run(limited, scene, backend=backend)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_end_comes_with_its_reason_after_the_frames(backend: str) -> None:
    async def scene() -> None:
        socket = FakeSocket(3)
        socket.end = ValueError("the line broke")
        thread = SdkThread(lambda: socket, LIMIT_S)
        await thread.open()
        seen: list[Any] = []
        with pytest.raises(FeedUnavailable, match="the line broke"):
            while True:
                seen += await thread.take()
        assert seen == [b"0", b"1", b"2"]
        with pytest.raises(FeedUnavailable, match="the line broke"):
            thread.send(b"x")
        await thread.close()

    anyio.run(limited, scene, backend=backend)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_closing_before_its_loop_exists_ends_it_too(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancellation can come between the thread's start and its first step."""
    gate, run = threading.Event(), asyncio.run

    def run_late(main: Any) -> None:
        gate.wait(LIMIT_S)
        run(main)

    async def scene() -> None:
        socket = FakeSocket()
        thread = SdkThread(lambda: socket, LIMIT_S)
        monkeypatch.setattr(sdk_thread.asyncio, "run", run_late)
        with anyio.move_on_after(0.02):
            await thread.open()
        assert thread._loop is None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(thread.close)
            await anyio.wait_all_tasks_blocked()
            gate.set()
        await anyio.to_thread.run_sync(thread._thread.join, 2)
        assert not thread._thread.is_alive()

    anyio.run(limited, scene, backend=backend)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_closing_while_it_opens_is_at_once(backend: str) -> None:
    async def scene() -> None:
        socket = FakeSocket(open_s=60)
        thread = SdkThread(lambda: socket, LIMIT_S)
        with anyio.move_on_after(0.05):
            await thread.open()
        started_s = anyio.current_time()
        await thread.close()
        assert anyio.current_time() - started_s <= 0.5
        await anyio.to_thread.run_sync(thread._thread.join, 2)
        assert not thread._thread.is_alive()
        assert socket.aborted.is_set()

    anyio.run(limited, scene, backend=backend)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_an_import_that_takes_long_goes_on_and_is_tried_again(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end, runs = threading.Event(), []

    def slow_import() -> tuple[dict[str, Any], Any]:
        runs.append(1)
        may_end.wait(60)
        return {}, object

    async def main() -> None:
        with pytest.raises(FeedUnavailable, match="goes on"):
            await sdk_thread._sdk()
        monkeypatch.setattr(sdk_thread, "_IMPORT_LIMIT_S", 60.0)
        may_end.set()
        assert await sdk_thread._sdk() == ({}, object)

    monkeypatch.setattr(sdk_thread, "_IMPORT_LIMIT_S", 0.01)
    monkeypatch.setattr(sdk_thread, "_import_sdk", cache(slow_import))
    anyio.run(main, backend=backend)
    assert runs == [1]


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_close_that_hangs_is_given_up(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdk_thread, "CLOSE_TIMEOUT_S", 0.1)

    async def scene() -> None:
        socket = FakeSocket(hang_in_close=True)
        thread = SdkThread(lambda: socket, LIMIT_S)
        await thread.open()
        await thread.close()
        assert socket.aborted.is_set(), "the line was not cut"

    anyio.run(limited, scene, backend=backend)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_maker_that_fails_is_an_outage(backend: str) -> None:
    """So that auto goes on to the raw driver when the SDK's names have changed."""

    async def scene() -> None:
        def make() -> Any:
            raise TypeError("unexpected keyword argument")

        thread = SdkThread(make, LIMIT_S)
        with pytest.raises(FeedUnavailable, match="unexpected keyword"):
            await thread.open()
        await thread.close()

    anyio.run(limited, scene, backend=backend)


async def limited(scene: Any) -> None:
    with anyio.fail_after(LIMIT_S):
        await scene()
