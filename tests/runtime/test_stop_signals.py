"""What the first and the second signal do. On virtual time; the signals are real."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from mdservice.runtime.stop_signals import stop_on_signal, stop_signals


class Ended(Exception):
    """Stands for the end of the process."""


@pytest.fixture(autouse=True)
def _survive(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", end)


@pytest.fixture
def ignored_hangup() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_the_first_signal_cancels_what_runs(
    autojump_clock: Any, number: signal.Signals
) -> None:
    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as running:
            await tasks.start(stop_on_signal, running)
            signal.raise_signal(number)
            with anyio.move_on_after(5):
                await anyio.sleep_forever()
        assert running.cancelled_caught
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("has_call", [True, False])
@pytest.mark.parametrize(
    ("after_s", "ends"), [(0.01, False), (0.04, False), (0.06, True), (3, True)]
)
async def test_a_second_signal_ends_the_process_unless_it_is_the_first_delivered_twice(
    autojump_clock: Any, after_s: float, ends: bool, has_call: bool
) -> None:
    called: list[str] = []
    at_once = (lambda: called.append("at once")) if has_call else None
    codes: list[int] = []

    async def stop(running: anyio.CancelScope, *, task_status: Any) -> None:
        try:
            await stop_on_signal(running, at_once, task_status=task_status)
        except Ended as exc:
            codes.append(exc.args[0])

    async with anyio.create_task_group() as tasks:
        running = anyio.CancelScope()
        await tasks.start(stop, running)
        signal.raise_signal(signal.SIGTERM)
        await anyio.sleep(after_s)
        assert running.cancel_called
        assert called == []
        signal.raise_signal(signal.SIGINT)
        await anyio.sleep(1)
        assert codes == ([1] if ends else [])
        assert called == (["at once"] if ends and has_call else [])
        tasks.cancel_scope.cancel()


def test_a_hangup_that_is_ignored_stays_so(ignored_hangup: None) -> None:
    assert stop_signals() == (signal.SIGINT, signal.SIGTERM)


def test_a_hangup_counts_else() -> None:
    assert signal.SIGHUP in stop_signals()
