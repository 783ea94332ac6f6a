"""Tasks that fail together, and exception groups with a single cause."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

import anyio
from anyio.abc import TaskGroup, TaskStatus

__all__ = ["Runnable", "background", "block_tasks", "first_error", "leaves", "run_together"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


async def run_together(*functions: Callable[[], Awaitable[None]]) -> None:
    """Run all at once until all have returned or one has failed, which cancels the others.

    Unlike a task group this raises the error itself. If a cancellation from outside comes at the
    same moment, the cancellation wins; no group of both is raised.

    Raises:
        Exception: The first error.
    """
    errors: list[Exception] = []

    async def run(function: Callable[[], Awaitable[None]]) -> None:
        try:
            await function()
        except Exception as exc:  # noqa: BLE001 - raised below, whatever it is
            errors.append(first_error(exc) if isinstance(exc, ExceptionGroup) else exc)
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for function in functions:
            tasks.start_soon(run, function)
    if errors:
        raise errors[0]


def first_error(group: BaseExceptionGroup[Exception]) -> Exception:
    """The first exception of the group, or of the groups in it."""
    return next(leaves(group))


def leaves(group: BaseExceptionGroup[Exception]) -> Iterator[Exception]:
    """The exceptions of a group and of the groups in it."""
    for exc in group.exceptions:
        if isinstance(exc, BaseExceptionGroup):
            yield from leaves(exc)
        else:
            yield exc


class Runnable(Protocol[T_co]):
    """Runs until cancelled, and reports when it is ready."""

    def __call__(self, *, task_status: TaskStatus[T_co]) -> Awaitable[None]:
        """Run."""
        ...


@asynccontextmanager
async def block_tasks() -> AsyncIterator[TaskGroup]:
    """A task group whose tasks are cancelled when its block ends.

    An error of the block is raised as it is, outside any group. An error of a task ends the block
    and is raised in a group, as by any task group.
    """
    error: Exception | None = None
    async with anyio.create_task_group() as tasks:
        try:
            yield tasks
        except Exception as exc:  # noqa: BLE001 - raised below, outside the group
            error = exc
        tasks.cancel_scope.cancel()
    if error is not None:
        raise error


@asynccontextmanager
async def background(run: Runnable[T]) -> AsyncIterator[T]:
    """Run a task until the block ends, shielded from a cancellation of the block.

    So the task still runs during the block's clean-up. An error of the task ends the block. A
    cancellation before the task has started ends the task, since there is no block yet.

    Yields:
        The value that the task passed to ``task_status.started()``.
    """
    scope = anyio.CancelScope()
    async with anyio.create_task_group() as tasks:
        try:
            value = await tasks.start(_run_in, scope, run)
            scope.shield = True
            yield value
        finally:
            scope.cancel()


async def _run_in(
    scope: anyio.CancelScope, run: Runnable[T], *, task_status: TaskStatus[T]
) -> None:
    with scope:
        await run(task_status=task_status)
