"""Tasks that share one fate. On virtual time."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import anyio
import pytest
from anyio.abc import TaskStatus

from mdservice.runtime.task_groups import (
    background,
    block_tasks,
    first_error,
    leaves,
    run_together,
)


async def test_runs_all_at_once_until_the_last_has_returned(autojump_clock: Any) -> None:
    done: list[int] = []

    def sleeper(seconds: int) -> Any:
        async def sleep() -> None:
            await anyio.sleep(seconds)
            done.append(seconds)

        return sleep

    await run_together(sleeper(3), sleeper(1), sleeper(2))
    assert (done, anyio.current_time()) == ([1, 2, 3], 3)


async def test_the_first_error_is_raised_itself_and_cancels_the_others(autojump_clock: Any) -> None:
    cancelled: list[str] = []

    async def fail() -> None:
        await anyio.sleep(1)
        raise LookupError("mine")

    async def wait() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.append("the other")

    with pytest.raises(LookupError, match="mine"):
        await run_together(wait, fail)
    assert (cancelled, anyio.current_time()) == (["the other"], 1)


async def test_an_error_in_groups_comes_out_of_them(autojump_clock: Any) -> None:
    async def fail() -> None:
        raise ExceptionGroup("outer", [ExceptionGroup("inner", [LookupError("mine")])])

    with pytest.raises(LookupError, match="mine"):
        await run_together(fail)


async def test_a_cancellation_from_outside_wins_over_an_error_of_the_clean_up(
    autojump_clock: Any,
) -> None:
    async def fail_when_cancelled() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise LookupError("while it ends")

    with anyio.move_on_after(1) as scope:
        await run_together(fail_when_cancelled, anyio.sleep_forever)
    assert scope.cancelled_caught


async def test_a_background_task_outlives_what_cancels_the_block(autojump_clock: Any) -> None:
    events: list[str] = []

    async def work(*, task_status: TaskStatus[str]) -> None:
        task_status.started("ready")
        try:
            await anyio.sleep_forever()
        finally:
            events.append("the task ends")

    with anyio.move_on_after(1):
        async with background(work) as value:
            assert value == "ready"
            try:
                await anyio.sleep_forever()
            finally:
                events.append("the block ends")
    assert events == ["the block ends", "the task ends"]


async def test_a_background_task_that_has_not_started_can_be_cancelled(
    autojump_clock: Any,
) -> None:
    async def work(*, task_status: TaskStatus[None]) -> None:
        await anyio.sleep(100)
        task_status.started()

    with anyio.move_on_after(1):
        async with background(work):
            raise AssertionError("it has not started")
    assert anyio.current_time() == 1


async def test_the_error_of_a_background_task_ends_the_block(autojump_clock: Any) -> None:
    async def work(*, task_status: TaskStatus[None]) -> None:
        task_status.started()
        await anyio.sleep(1)
        raise LookupError("mine")

    with anyio.fail_after(5), pytest.raises(ExceptionGroup) as caught:
        async with background(work):
            await anyio.sleep_forever()
    assert isinstance(first_error(caught.value), LookupError)


@pytest.mark.parametrize("error", [None, LookupError("mine")])
async def test_the_tasks_of_a_block_end_with_it_and_its_error_is_in_no_group(
    autojump_clock: Any, error: Exception | None
) -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("the task")

    with nullcontext() if error is None else pytest.raises(LookupError, match="mine"):
        async with block_tasks() as tasks:
            tasks.start_soon(work)
            await anyio.sleep(1)
            if error is not None:
                raise error
    assert ended == ["the task"]


async def test_the_error_of_a_task_ends_its_block(autojump_clock: Any) -> None:
    async def work() -> None:
        raise LookupError("mine")

    with anyio.fail_after(5), pytest.raises(ExceptionGroup) as caught:
        async with block_tasks() as tasks:
            tasks.start_soon(work)
            await anyio.sleep_forever()
    assert isinstance(first_error(caught.value), LookupError)


def test_leaves_are_in_their_order_however_deep() -> None:
    one, two, three = LookupError(1), KeyError(2), ValueError(3)
    group = ExceptionGroup("a", [one, ExceptionGroup("b", [two, ExceptionGroup("c", [three])])])
    assert list(leaves(group)) == [one, two, three]
    assert first_error(group) is one
