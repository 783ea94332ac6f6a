"""Connections for reading: opened, used from a thread, closed by whoever gives up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import anyio
import anyio.to_thread

from mdservice.errors import StoreRefused
from mdservice.sinks.redis_advice import refusal
from mdservice.sinks.redis_link import RedisAddress, RedisLink
from mdservice.sinks.redis_replies import is_error
from mdservice.sinks.resp import pack

__all__ = ["CLIENT_NAME", "TIMEOUT_S", "in_thread", "open_link", "opening", "refuse_errors"]

CLIENT_NAME: Final = "mdservice-reader"
"""How the connections are called in the server's ``CLIENT LIST``."""
TIMEOUT_S: Final = 3.0
"""How long connecting, and each wait for an answer, may take."""
_RIGHTS = (
    "allow this user SUBSCRIBE, PING, MGET, SCAN (XREAD, XRANGE and XINFO for an event log) on "
    "the keys price:* and the channel price.updated, with MDSERVICE_KEY_PREFIX in front"
)
_T = TypeVar("_T")


@contextmanager
def opening(address: RedisAddress) -> Iterator[RedisLink]:
    """A link, not yet opened, which is closed at the end, whatever ends the block."""
    link = RedisLink(address)
    try:
        yield link
    finally:
        link.close()


async def in_thread(
    limiter: anyio.CapacityLimiter, link: RedisLink, function: Callable[..., _T], *args: object
) -> _T:
    """Call a blocking function that uses the link; an error or a cancellation closes the link.

    A cancelled call is not waited for: its thread ends soon, since its socket is shut.
    """
    done = False
    try:
        result = await anyio.to_thread.run_sync(
            function, link, *args, abandon_on_cancel=True, limiter=limiter
        )
        done = True
    finally:
        if not done:
            link.close()
    return result


def open_link(link: RedisLink) -> None:
    """Connect, log in, say who we are. Blocks.

    Raises:
        StoreUnavailable, StoreRefused
    """
    link.open()
    link.call(pack(b"CLIENT", b"SETNAME", CLIENT_NAME.encode()))  # a refusal does not matter


def refuse_errors(address: str, replies: Iterable[object]) -> None:
    """Raise for the first of the replies that is an error.

    Raises:
        StoreRefused: With what the server said and what to do.
    """
    for reply in replies:
        if is_error(reply):
            text = str(reply)
            if text.startswith("NOPERM"):
                raise StoreRefused(f"Redis at {address} refused: {text.rstrip('.')}; {_RIGHTS}")
            raise refusal(address, text)
