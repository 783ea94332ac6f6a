"""Connects, and connects again, for ever."""

from __future__ import annotations

from typing import Final

import anyio
from anyio.abc import TaskStatus

from mdservice.api_client import NoAnswer
from mdservice.backoff import Backoff
from mdservice.errors import ConfigurationError, MDServiceError, StoreRefused, StoreUnavailable
from mdservice.logs import get_logger
from mdservice.prices.intake import Source
from mdservice.prices.whereabouts import Whereabouts

__all__ = ["Follower"]

_log = get_logger(__name__)

_STEADY_S: Final = 1.0
"""A connection that lasted this long is no reason to wait longer for the next."""
_PASSING: Final = (
    "LOADING",
    "BUSY",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "UNBLOCKED",
    "max number of clients",
)
"""Refusals that end by themselves, also at the start."""


class Follower:
    """Has a source follow the server, wherever that is, and rides out what fails.

    Args:
        whereabouts: Finds the server.
        source: Reads it.
        backoff: Between two attempts.
    """

    def __init__(self, whereabouts: Whereabouts, source: Source, backoff: Backoff) -> None:
        self.url: str | None = None
        self.connected = False
        self.connections = 0
        self.last_error: str | None = None
        self.last_kind: type[MDServiceError] | None = None
        self._whereabouts = whereabouts
        self._source = source
        self._backoff = backoff
        self._since_s = 0.0

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Follow without end; ready once the first connection has caught up.

        Raises:
            StoreRefused: Before that, if the refusal will not pass by itself.
            ConfigurationError: Before that, if the address cannot be used.
        """

        def connected() -> None:
            self.connected = True
            self.connections += 1
            self._since_s = anyio.current_time()
            if self.connections == 1:
                task_status.started()
            else:
                _log.info("prices_connected_again", url=self.url)

        while True:
            try:
                location = await self._whereabouts.find()
                self.url = location.address.shown
                await self._source.follow(location, connected)
            except (StoreUnavailable, NoAnswer) as exc:
                self._note(exc)
            except (StoreRefused, ConfigurationError) as exc:
                if not self.connections and not any(word in str(exc) for word in _PASSING):
                    raise
                self._note(exc)
            await anyio.sleep(self._backoff.next_s())

    def _note(self, exc: MDServiceError) -> None:
        was_connected, self.connected = self.connected, False
        self.last_error, self.last_kind = str(exc), type(exc)
        if was_connected:
            _log.warning("prices_disconnected", url=self.url, reason=str(exc))
            if anyio.current_time() - self._since_s >= _STEADY_S:
                self._backoff.reset()
