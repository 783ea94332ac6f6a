"""A server's replies out of the bytes that come, read by a thread or by the event loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import hiredis

__all__ = ["MISSING", "READ_BYTES", "collect", "hung_up", "is_error", "new_reader"]

READ_BYTES: Final = 65_536
"""What is read at once, at most."""
MISSING: Final = object()
"""What a reader gives where no whole reply is there yet."""


def new_reader() -> hiredis.Reader:
    """A reader that gives :data:`MISSING`; None is a reply."""
    return hiredis.Reader(notEnoughData=MISSING)


def collect(reader: hiredis.Reader, replies: list[Any], count: int) -> bool:
    """Add the whole replies that are there; whether there are ``count`` of them now.

    Those beyond stay in the reader.
    """
    gets = reader.gets
    while len(replies) < count:
        if (reply := gets()) is MISSING:
            return False
        replies.append(reply)
    return True


def is_error(reply: object) -> bool:
    """Whether a reply is the server's error."""
    return isinstance(reply, hiredis.ReplyError)


def hung_up(replies: Sequence[object]) -> ConnectionResetError:
    """The server's end of the connection; one that takes nobody in says why, once, before it."""
    reasons = [f": {reply}" for reply in replies[-1:] if is_error(reply)]
    return ConnectionResetError("the server closed it" + "".join(reasons))
