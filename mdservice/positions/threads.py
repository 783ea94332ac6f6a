"""Calls that may hang, made in threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread

from mdservice.errors import PositionsUnavailable

__all__ = ["Threads"]

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
