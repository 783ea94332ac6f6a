"""Something that runs beside a block of code, and outlives a cancellation until the block ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

import anyio
from anyio.abc import TaskStatus

__all__ = ["Runnable", "background"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Runnable(Protocol[T_co]):
    """Runs until cancelled, and tells when it is ready."""

    def __call__(self, *, task_status: TaskStatus[T_co]) -> Awaitable[None]:
        """Run."""
        ...


@asynccontextmanager
async def background(run: Runnable[T]) -> AsyncIterator[T]:
    """Run something until the block ends, shielded from what cancels the block.

    So the block's clean-up still finds it at work. An error of it ends the block.

    Yields:
        What it passed to ``task_status.started()``.
    """
    scope = anyio.CancelScope(shield=True)
    async with anyio.create_task_group() as tasks:
        try:
            yield await tasks.start(_run_in, scope, run)
        finally:
            scope.cancel()


async def _run_in(
    scope: anyio.CancelScope, run: Runnable[T], *, task_status: TaskStatus[T]
) -> None:
    with scope:
        await run(task_status=task_status)
