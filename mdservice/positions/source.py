"""What a source of positions is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

import anyio
import anyio.to_thread

from mdservice.errors import PositionsUnavailable
from mdservice.model.position import Position

__all__ = ["FETCH_LIMIT_S", "PositionSource", "Threads"]


# Calls that may hang, made in threads.


_Result = TypeVar("_Result")
_MOST_HANGING = 4
_LOOKS, _LOOK_S = 100, 0.02


class Threads:
    """Runs calls in threads; one that is cancelled is left behind, and at most four of those.

    Args:
        address: What the calls ask, for the error.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._running = 0
        # Its own: calls that hang take nothing from the threads that all others share
        self._limiter = anyio.CapacityLimiter(_MOST_HANGING + 1)

    async def run(self, call: Callable[[], _Result]) -> _Result:
        """What the call returns or raises. Cancelling does not wait for it.

        Raises:
            PositionsUnavailable: Too many earlier calls still hang.
        """
        for _ in range(_LOOKS):
            if self._running < _MOST_HANGING:
                break
            await anyio.sleep(_LOOK_S)  # those that were just cancelled soon end
        else:
            raise PositionsUnavailable(
                f"{self._address}: {self._running} earlier attempts still hang; waiting for them"
            )

        def counted() -> _Result:
            with self._lock:
                self._running += 1
            try:
                return call()
            finally:
                with self._lock:
                    self._running -= 1

        return await anyio.to_thread.run_sync(
            counted, abandon_on_cancel=True, limiter=self._limiter
        )


FETCH_LIMIT_S: Final = 9.0
"""Within this a fetch ends, whatever the other side does; a caller may count on 10 s."""


class PositionSource(Protocol):
    """Positions, asked for again and again."""

    @property
    def address(self) -> str:
        """Where the positions come from, for people; without any secret."""
        ...

    async def fetch(self) -> Sequence[Position]:
        """All positions of now, in the source's order; the caller's own.

        Takes at most 10 s. Calls at the same time are made one after the other. Cancelling
        leaves the source usable, and what was under way ends by itself within seconds.

        Raises:
            PositionsUnavailable: None can be had now; worth another try.
            PositionsRefused: The source said no, or what it says are no positions.
        """
        ...

    async def aclose(self) -> None:
        """Let go of connections. May be called again; a later fetch opens them anew."""
        ...
