"""Tasks that share one fate, and exception groups that a single cause explains."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

import anyio

__all__ = ["first_error", "leaves", "run_together"]


def leaves(group: BaseExceptionGroup[Exception]) -> Iterator[Exception]:
    """The exceptions of a group and of the groups in it."""
    for exc in group.exceptions:
        if isinstance(exc, BaseExceptionGroup):
            yield from leaves(exc)
        else:
            yield exc


def first_error(group: BaseExceptionGroup[Exception]) -> Exception:
    """The first of them."""
    return next(leaves(group))


async def run_together(*functions: Callable[[], Awaitable[None]]) -> None:
    """Run all at once until all have returned or one has failed, which cancels the others.

    Unlike a bare task group this raises the error itself; and where a cancellation from outside
    comes at the same moment it wins, instead of leaving a group of both.

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
