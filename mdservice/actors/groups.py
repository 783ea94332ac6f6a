"""Exception groups that a single cause explains."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["first_error", "leaves"]


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
